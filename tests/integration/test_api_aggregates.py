"""Hours and days out of the tables that the lifecycle keeps: the same answer as from readings, also where the readings
are gone, and where the tables do not reach."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from esp_ingest.model import SIGNAL_NAMES
from esp_ingest.store.schema import migrate
from tests.support.api import ApiProcess, insert_alarm
from tests.support.databases import Database, Server

NOW = datetime.now(UTC).replace(minute=30, second=0, microsecond=0)
DAYS = 12
PARTS = ("min", "max", "mean", "first", "last", "count")


def aggregate(database: Database, name: str, width: str, until: datetime) -> None:
    """As the lifecycle does, by other means."""
    columns = ", ".join(f"{signal}_{part}" for signal in SIGNAL_NAMES for part in PARTS)
    values = ", ".join(
        f'min({s}), max({s}), avg({s}), (array_agg({s} ORDER BY "timestamp"))[1], '
        f'(array_agg({s} ORDER BY "timestamp" DESC))[1], count({s})'
        for s in SIGNAL_NAMES
    )
    with database.connect() as connection:
        connection.execute(
            f"INSERT INTO {name} (well_id, bucket, count, {columns}, running_seconds) "
            f"SELECT well_id, date_trunc('{width}', \"timestamp\", 'UTC'), count(*), {values}, 0 "
            'FROM esp_telemetry WHERE "timestamp" < %s GROUP BY 1, 2'.encode(),
            (until,),
        )


@pytest.fixture(scope="module")
def database(timescaledb_apache_server: Server) -> Iterator[Database]:
    made = timescaledb_apache_server.create_database()
    migrate(made.settings)
    made.run(
        f"""INSERT INTO esp_telemetry ("timestamp", well_id, flow_rate, pip, received_at)
            SELECT '{NOW.isoformat()}'::timestamptz - i * interval '2 minutes', 'A-1', 1800 + 10 * sin(i / 30.0),
                   CASE WHEN i % 7 = 0 THEN NULL ELSE 600 + i % 5 END, now()
            FROM generate_series(0, {DAYS * 720 - 1}) AS i"""
    )
    made.run(
        'UPDATE esp_telemetry SET flow_rate = 9999 WHERE "timestamp" = (SELECT min("timestamp") FROM esp_telemetry)'
    )
    yield made
    timescaledb_apache_server.drop_database(made)


@pytest.fixture(scope="module")
def api(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    process = ApiProcess(tmp_path_factory.mktemp("api"), database.dsn)
    process.add_user("vera", "viewer")
    process.add_user("olga", "operator")
    with process:
        yield process


def asked(client: httpx.Client, **question: Any) -> dict[str, Any]:
    answer = client.get("/api/v1/wells/A-1/telemetry", params={"signals": "flow_rate,pip", "from": "20d", **question})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def buckets(client: httpx.Client, resolution: str) -> list[list[Any]]:
    found = asked(client, resolution=resolution, max_points=20_000)
    assert found["next"] is None
    rows: list[list[Any]] = found["rows"]
    return rows


def close(one: list[list[Any]], other: list[list[Any]]) -> bool:
    return [row[0] for row in one] == [row[0] for row in other] and all(
        left[1:] == pytest.approx(right[1:], rel=1e-9) for left, right in zip(one, other, strict=True)
    )


def test_the_same_answers_with_the_tables_and_after_the_readings_are_gone(api: ApiProcess, database: Database) -> None:
    with api.signed_in("vera") as client:
        from_readings = {resolution: buckets(client, resolution) for resolution in ("1h", "1d")}
        points = asked(client, max_points=100)
        assert max(row[1] for row in points["rows"]) == 9999
        aggregate(database, "aggregate_hours", "hour", NOW - timedelta(days=1))
        aggregate(database, "aggregate_days", "day", NOW - timedelta(days=1))
        for resolution, rows in from_readings.items():
            assert close(buckets(client, resolution), rows)
        with database.connect() as connection:
            connection.execute(
                'DELETE FROM esp_telemetry WHERE "timestamp" < %s',
                ((NOW - timedelta(days=3)).replace(hour=0, minute=0),),
            )
        for resolution, rows in from_readings.items():
            assert close(buckets(client, resolution), rows)
        for max_points in (10, 40, 100, 1_000):
            again = asked(client, max_points=max_points)
            assert len(again["rows"]) <= max_points
            assert max(row[1] for row in again["rows"]) == 9999
            assert [row[0] for row in again["rows"]] == sorted(row[0] for row in again["rows"])
            assert min(row[2] for row in again["rows"] if row[2] is not None) == 600
        recent = asked(client, **{"from": "2h"}, max_points=1_000)
        assert recent["resolution"] == "raw"


@pytest.mark.parametrize("is_marked", [False, True], ids=["kept", "marked"])
def test_a_well_whose_readings_have_all_been_dropped_is_still_a_well(
    api: ApiProcess, database: Database, is_marked: bool
) -> None:
    """It is in the list of wells with its last reading, so its page is there too, and so is what can be done."""
    well, last = f"GONE-{is_marked:d}", NOW - timedelta(days=40)
    with database.connect() as connection:
        connection.execute("SELECT refresh_well_newest()")
        connection.execute(
            'INSERT INTO well_newest ("timestamp", well_id, motor_current, received_at) VALUES (%s, %s, 41, %s)',
            (last, well, last),
        )
        connection.execute(
            "INSERT INTO archive_days (relation, day, version, rows, checksum, bytes, held_rows, held_checksum, "
            "held_changed, dropped_at) VALUES ('esp_telemetry', %s, 1, 1, '', 1, 1, '', '', now()) "
            "ON CONFLICT DO NOTHING",
            (last.date(),),
        )
        if is_marked:
            connection.execute("INSERT INTO well_newest_stale DEFAULT VALUES")
        insert_alarm(connection, well, "no_data", last)
    with api.signed_in("olga") as client:
        listed = client.get("/api/v1/wells", params={"q": well}).json()["items"]
        assert [each["state"] for each in listed] == ["silent"]
        found = client.get(f"/api/v1/wells/{well}").json()
        assert found["reading"] == listed[0]["reading"]
        assert [each["diagnosis"] for each in found["alarms"]] == ["no_data"]
        telemetry = client.get(f"/api/v1/wells/{well}/telemetry")
        assert (telemetry.status_code, telemetry.json()["rows"]) == (200, [])
        items = [{"well_id": well, "diagnosis": "no_data", "timestamp": last.isoformat()}]
        done = client.post("/api/v1/alarms/ack", json={"items": items, "why": "plugged and abandoned"})
        assert [each["state"] for each in done.json()["items"]] == ["acknowledged"]
