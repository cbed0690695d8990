"""Lost hours and lost production of stops, by well and reason, over HTTP and from the view."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from esp_ingest.store.schema import migrate
from tests.support.api import ApiProcess, insert_reading
from tests.support.databases import Database, Server

NOW = datetime.now(UTC).replace(microsecond=0)
INSERT = (
    'INSERT INTO diagnostic_results ("timestamp", well_id, diagnosis, severity, state, cleared_at, occurrences, '
    "message, actions, telemetry_snapshot) VALUES (%s, %s, %s, %s, 'normal', %s, 1, '', '[]', %s)"
)


def hours_ago(hours: float) -> datetime:
    return NOW - timedelta(hours=hours)


def stop(
    connection: Any, well: str, began: float, ended: float | None, rate: float | None, diagnosis: str = "trip"
) -> datetime:
    at, until = hours_ago(began), None if ended is None else hours_ago(ended)
    snapshot = {"pip": 1, "median_24h": {} if rate is None else {"flow_rate": rate}}
    severity = "info" if diagnosis == "planned_stop" else "medium"
    connection.execute(INSERT, (at, well, diagnosis, severity, until, json.dumps(snapshot)))
    return at


@pytest.fixture(scope="module")
def database(timescaledb_apache_server: Server) -> Iterator[Database]:
    made = timescaledb_apache_server.create_database()
    migrate(made.settings)
    insert_reading(made, "A-1", NOW)
    with made.connect() as connection:
        stop(connection, "A-1", 100, 90, 1_200)
        stop(connection, "A-1", 60, 58, None)
        stop(connection, "A-1", 50, 47, 800, "planned_stop")
        stop(connection, "A-1", 24 * 40, 24 * 35, 1_200)
        stop(connection, "A-2", 6, None, 480)
        stop(connection, "B-1", 100, 90, 1_200)
        connection.execute(INSERT, (hours_ago(20), "A-1", "underload", "high", hours_ago(1), "{}"))
    yield made
    timescaledb_apache_server.drop_database(made)


@pytest.fixture(scope="module")
def client(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of an operator who sees the wells of group A."""
    process = ApiProcess(tmp_path_factory.mktemp("api"), database.dsn)
    process.add_user("olga", "operator", "A-*")
    with process, process.signed_in("olga") as found:
        yield found


def losses(client: httpx.Client, **parameters: str) -> dict[tuple[str, bool, str | None], Any]:
    answer = client.get("/api/v1/losses", params=parameters)
    assert answer.status_code == 200, answer.text
    assert answer.json()["next"] is None
    return {(each["well_id"], each["planned"], each["reason"]): each for each in answer.json()["items"]}


def test_lost_hours_and_production_by_well_and_reason(client: httpx.Client, database: Database) -> None:
    reason = {"verdict": "true", "cause": "gas slug", "stop_reason": "power", "why": "logbook"}
    item = {"well_id": "A-1", "diagnosis": "trip", "timestamp": hours_ago(100).isoformat()}
    answer = client.post("/api/v1/alarms/verdict", json={"items": [item], **reason})
    assert answer.status_code == 200, answer.text
    assert answer.json()["items"][0]["outcome"] == "done"
    found = losses(client)
    assert set(found) == {("A-1", False, "power"), ("A-1", False, None), ("A-1", True, None), ("A-2", False, None)}
    power = found["A-1", False, "power"]
    assert (power["stops"], power["lost_hours"], power["lost_production"], power["without_rate"]) == (1, 10, 500, 0)
    unknown = found["A-1", False, None]
    assert (unknown["stops"], unknown["lost_hours"], unknown["lost_production"], unknown["without_rate"]) == (
        1, 2, None, 1,
    )  # fmt: skip
    assert found["A-1", True, None]["lost_production"] == pytest.approx(100)
    down = found["A-2", False, None]
    assert down["down"] == 1
    hours = (datetime.now(UTC) - hours_ago(6)).total_seconds() / 3_600  # NOW is when the tests were collected
    assert down["lost_hours"] == pytest.approx(hours, abs=0.1)
    assert down["lost_production"] == pytest.approx(20 * hours, abs=2)
    rows = database.all("SELECT count(*), count(reason), count(started_at) FROM well_stops")
    assert rows == [(6, 1, 5)]


def test_a_stop_counts_with_the_part_of_it_that_lies_in_the_range(client: httpx.Client) -> None:
    part = losses(client, **{"from": hours_ago(95).isoformat(), "to": hours_ago(49).isoformat(), "well_id": "A-1"})
    assert sum(each["lost_hours"] for each in part.values()) == pytest.approx(5 + 2 + 1)
    assert losses(client, **{"from": hours_ago(46).isoformat(), "to": hours_ago(7).isoformat()}) == {}
    assert losses(client, well_id="B-1") == {}


def test_a_rate_of_the_smallest_number_is_no_production(client: httpx.Client, database: Database) -> None:
    """Its product with less than a day would underflow, which is an error in PostgreSQL."""
    with database.connect() as connection:
        stop(connection, "A-3", 4, 3, 5e-324)
    found = losses(client, well_id="A-3")
    assert [(each["lost_hours"], each["lost_production"]) for each in found.values()] == [(1, 0)]


def test_a_stop_inside_a_common_stop_is_lost_to_power_unless_an_operator_says_otherwise(
    client: httpx.Client, database: Database
) -> None:
    with database.connect() as connection:
        for well in ("A-4", "A-5", "A-6", "A-7"):
            stop(connection, well, 10, 8, 480)
            stop(connection, well, 9.9, 8, None, "common_stop")  # a reading later: the fifth well had to stop first
            stop(connection, well, 30, 29, 480)  # of its own
            stop(connection, well, 9, 8.5, 480, "planned_stop")
        stop(connection, "A-4", 8, 7, 480)  # again, after the common stop was over
        stop(connection, "A-8", 3, None, 480)
        stop(connection, "A-8", 3, None, None, "common_stop")
        stop(connection, "B-1", 10, 8, None, "common_stop")
    for well in ("A-5", "A-6", "A-7"):
        insert_reading(database, well, NOW)
    said = [
        ("A-5", "trip", 10, {"verdict": "true", "stop_reason": "separator shut down", "why": "logbook"}),
        ("A-6", "common_stop", 9.9, {"verdict": "true", "cause": "lightning", "why": "logbook"}),
        ("A-7", "common_stop", 9.9, {"verdict": "false", "why": "each for itself"}),
    ]
    for well, diagnosis, began, verdict in said:
        item = {"well_id": well, "diagnosis": diagnosis, "timestamp": hours_ago(began).isoformat()}
        answer = client.post("/api/v1/alarms/verdict", json={"items": [item], **verdict})
        assert answer.status_code == 200, answer.text
        assert [each["outcome"] for each in answer.json()["items"]] == ["done"]
    found = {}
    for well in ("A-4", "A-5", "A-6", "A-7", "A-8"):
        for each in losses(client, well_id=well).values():
            found[well, each["planned"], each["reason"]] = each["stops"], each["lost_production"]
    assert {key: stops for key, (stops, _) in found.items() if not key[1]} == {
        ("A-4", False, "power"): 1,
        ("A-4", False, None): 2,
        ("A-5", False, "separator shut down"): 1,
        ("A-5", False, None): 1,
        ("A-6", False, "lightning"): 1,
        ("A-6", False, None): 1,
        ("A-7", False, None): 2,
        ("A-8", False, "power"): 1,
    }
    assert found["A-4", False, "power"][1] == pytest.approx(40)
    assert {key[2] for key in found if key[1]} == {None}
