"""The operating point beside the pump's curve, over HTTP."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from esp_ingest.api.wire.units import convert, unit
from esp_ingest.store.schema import migrate
from tests.support.api import ApiProcess
from tests.support.databases import Database, Server

PUMPS: dict[str, Any] = {
    "A-1": {
        "curve": [[0, 52], [1500, 44], [3000, 8]], "stages": 120, "recommended_bpd": [1100, 2100],
        "bubble_point_psi": 700, "reservoir_pressure_psi": 1500,
    },
    "A-2": {"curve": [[0, 6000], [3000, 0]], "gradient_psi_per_ft": 0.5},
    "B-1": {"curve": [[0, 6000], [3000, 0]]},
    "B-2": {"curve": [[0, 6000], [3000, 0]]},
}  # fmt: skip
INSERT = (
    'INSERT INTO esp_telemetry ("timestamp", well_id, flow_rate, pip, discharge_pressure, vsd_frequency, received_at) '
    "VALUES (%s, %s, %s, %s, %s, %s, now())"
)


@pytest.fixture(scope="module")
def database(timescaledb_apache_server: Server) -> Iterator[Database]:
    made = timescaledb_apache_server.create_database()
    migrate(made.settings)
    at = datetime.now(UTC).replace(microsecond=0)
    with made.connect() as connection:
        connection.execute(INSERT, (at - timedelta(minutes=1), "A-1", 1.0, 1.0, 1.0, 60.0))
        connection.execute(INSERT, (at, "A-1", 1000.0, 600.0, 2200.0, 50.0))
        connection.execute(INSERT, (at, "A-2", None, 600.0, None, None))
        connection.execute(INSERT, (at, "A-3", 1000.0, 600.0, 2200.0, 50.0))
        connection.execute(INSERT, (at, "B-1", 1000.0, 600.0, 2200.0, 50.0))
    yield made
    timescaledb_apache_server.drop_database(made)


@pytest.fixture(scope="module")
def client(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a viewer who sees the wells of group A."""
    process = ApiProcess(tmp_path_factory.mktemp("api"), database.dsn, {"PUMPS__BY_WELL": json.dumps(PUMPS)})
    process.add_user("vera", "viewer", "A-*", "B-2")
    with process, process.signed_in("vera") as found:
        yield found


def pump(client: httpx.Client, well: str, **parameters: str) -> Any:
    answer = client.get(f"/api/v1/wells/{well}/pump", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_curve_is_at_the_newest_frequency(client: httpx.Client) -> None:
    """As tests/unit/test_api_pump.py calculates by hand."""
    found = pump(client, "A-1")
    assert found["vsd_frequency"] == found["curve_hz"] == 50.0
    assert found["curve"][1] == [pytest.approx(1250.0), pytest.approx(3666.667, abs=0.001)]
    assert found["recommended"] == [pytest.approx(916.667, abs=0.001), pytest.approx(1750.0)]
    assert (found["flow_rate"], found["head"], found["curve_head"]) == (
        1000.0, pytest.approx(4000.0), pytest.approx(3800.0),
    )  # fmt: skip
    # 4 000 ft lie between 0 (4 333.3) and 1 250 bbl/d (3 666.7).
    assert (found["virtual_flow_rate"], found["thrust"]) == (pytest.approx(625.0), "normal")
    assert (found["drawdown"], found["bubble_point_margin"]) == (pytest.approx(900.0), pytest.approx(-100.0))
    assert found["units"] == {"flow_rate": "bbl/d", "head": "ft", "pip": "psi"}


def test_metric_units(client: httpx.Client) -> None:
    found = pump(client, "A-1", units="metric")
    assert found["units"] == {"flow_rate": "m³/d", "head": "m", "pip": unit("pip", "metric")}
    assert found["drawdown"] == pytest.approx(convert(900.0, "pip", "metric"))
    assert found["flow_rate"] == pytest.approx(158.987, abs=0.001)
    assert found["head"] == pytest.approx(1219.2)
    assert found["curve"][1] == [pytest.approx(198.734, abs=0.001), pytest.approx(1117.6)]


def test_what_the_reading_does_not_say_is_null(client: httpx.Client) -> None:
    found = pump(client, "A-2")
    assert [found[name] for name in ("vsd_frequency", "flow_rate", "head", "curve_head", "recommended")] == [None] * 5
    unknown = ("virtual_flow_rate", "thrust", "drawdown", "bubble_point_margin")
    assert [found[name] for name in unknown] == [None] * 4
    assert (found["curve_hz"], found["curve"], found["gradient_psi_per_ft"]) == (60.0, [[0, 6000], [3000, 0]], 0.5)


@pytest.mark.parametrize(
    ("well", "kind"), [("A-3", "no-pump"), ("A-9", "no-such-well"), ("B-1", "no-such-well"), ("B-2", "no-such-well")]
)
def test_no_pump_no_well_a_foreign_well_and_one_without_a_reading(client: httpx.Client, well: str, kind: str) -> None:
    answer = client.get(f"/api/v1/wells/{well}/pump")
    assert answer.status_code == 404
    assert answer.json()["type"].endswith(f":{kind}")


def test_a_well_says_whether_it_has_one(client: httpx.Client) -> None:
    assert [client.get(f"/api/v1/wells/{well}").json()["has_pump"] for well in ("A-1", "A-3")] == [True, False]
