"""The HTTP API as a process of its own against a real TimescaleDB: what it reads."""

import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pyarrow as pa
import pytest

from esp_ingest.store.schema import migrate
from tests.support.api import ApiProcess, insert_alarm, insert_reading
from tests.support.databases import Database, Server

NOW = datetime.now(UTC).replace(microsecond=0)
MINUTES = 600
SPIKE_AT = NOW - timedelta(minutes=333)


def fill(database: Database) -> None:
    migrate(database.settings)
    with database.connect() as connection:
        connection.execute(
            """INSERT INTO esp_telemetry
               ("timestamp", well_id, flow_rate, pip, motor_current, vsd_frequency, received_at)
               SELECT %s::timestamptz - i * interval '1 minute', 'A-' || w, 1800 + 10 * sin(i / 30.0),
                      CASE WHEN i %% 7 = 0 THEN NULL ELSE 600 + w END, 40, CASE WHEN w = 2 THEN 0 ELSE 52 END, now()
               FROM generate_series(0, %s) AS i, generate_series(1, 3) AS w""",
            (NOW, MINUTES - 1),
        )
        connection.execute(
            "UPDATE esp_telemetry SET flow_rate = 9999, pip = 1 WHERE well_id = 'A-1' AND \"timestamp\" = %s",
            (SPIKE_AT,),
        )
        insert_alarm(connection, "A-1", "gas_lock", NOW - timedelta(hours=1))
        insert_alarm(connection, "A-1", "vibration", NOW - timedelta(hours=2), "low", "normal", NOW)
        insert_alarm(connection, "A-3", "leakage", NOW - timedelta(days=2), "medium", "acknowledged")
        for number in range(5):
            connection.execute(
                "INSERT INTO ingest_rejects (received_at, digest, item, topic, reason, detail, payload, redelivered) "
                "VALUES (%s, md5(%s::text)::uuid, 0, %s, 'invalid_json', 'not JSON', %s, false)",
                (NOW - timedelta(minutes=number), number, f"esp/A-{number}/telemetry", bytes([0, 255, number])),
            )
    insert_reading(database, "B-1", NOW - timedelta(days=3))


@pytest.fixture(scope="module")
def api(timescaledb_apache_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    database = timescaledb_apache_server.create_database()
    fill(database)
    # NOW is when the tests were collected, which in a whole run is long ago.
    settings = {"API__SILENT_AFTER_SECONDS": "86400"}
    process = ApiProcess(tmp_path_factory.mktemp("api"), database.dsn, settings)
    process.add_user("vera", "viewer")
    with process:
        yield process
    timescaledb_apache_server.drop_database(database)


@pytest.fixture(scope="module")
def vera(api: ApiProcess) -> Iterator[httpx.Client]:
    with api.signed_in("vera") as client:
        yield client


def got(client: httpx.Client, path: str, **parameters: Any) -> Any:
    answer = client.get(path, params=parameters or None)  # {} would take the query of a next link away
    assert answer.status_code == 200, answer.text
    return answer.json()


def pages(client: httpx.Client, path: str, **parameters: Any) -> list[Any]:
    """All items, by following next."""
    found: list[Any] = []
    page = got(client, path, **parameters)
    while True:
        found += page.get("items", page.get("rows"))
        if page["next"] is None:
            return found
        page = got(client, page["next"])


def test_who_one_is(vera: httpx.Client) -> None:
    me = got(vera, "/api/v1/me")
    assert (me["name"], me["role"], me["wells"]) == ("vera", "viewer", ["*"])


def test_wells_have_reading_state_and_alarms(vera: httpx.Client) -> None:
    page = got(vera, "/api/v1/wells")
    assert [well["well_id"] for well in page["items"]] == ["A-1", "A-2", "A-3", "B-1"]
    first = page["items"][0]
    assert first["state"] == "running"
    assert first["severity"] == "high"
    assert first["reading"]["flow_rate"] == pytest.approx(1800)
    assert first["reading"]["pip"] is None
    assert [alarm["diagnosis"] for alarm in first["alarms"]] == ["gas_lock"]
    assert [well["state"] for well in page["items"]] == ["running", "stopped", "running", "silent"]
    assert page["units"]["pip"] == "psi"


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"q": "a-"}, ["A-1", "A-2", "A-3"]),
        ({"q": "*-1"}, ["A-1", "B-1"]),
        ({"state": "stopped"}, ["A-2"]),
        ({"state": ["stopped", "silent"]}, ["A-2", "B-1"]),
        ({"severity": "medium"}, ["A-3"]),
        ({"sort": "need"}, ["A-1", "A-3", "B-1", "A-2"]),
        ({"sort": "-well_id"}, ["B-1", "A-3", "A-2", "A-1"]),
        ({"sort": "last_seen"}, ["B-1", "A-1", "A-2", "A-3"]),
    ],
)
@pytest.mark.parametrize("limit", [1, 100])
def test_wells_filtered_and_sorted(
    vera: httpx.Client, parameters: dict[str, Any], expected: list[str], limit: int
) -> None:
    found = pages(vera, "/api/v1/wells", limit=limit, **parameters)
    assert [well["well_id"] for well in found] == expected


def test_rules_explain_their_alarms(vera: httpx.Client) -> None:
    rules = {rule["diagnosis"]: rule for rule in got(vera, "/api/v1/rules")["items"]}
    assert rules["underload"]["signals"] == ["motor_current", "vsd_frequency"]
    assert rules["motor_hot"]["signals"] == ["motor_temp"]
    assert rules["stale_well"]["signals"] == []
    assert rules["underload"]["consequence"].startswith("the drive may trip")


def test_a_well(vera: httpx.Client) -> None:
    well = got(vera, "/api/v1/wells/A-1", units="metric")
    assert well["units"]["flow_rate"] == "m³/d"
    assert well["reading"]["flow_rate"] == pytest.approx(1800 * 0.158987294928)
    assert well["limits"]["motor_temp"] == {"low": pytest.approx(0), "high": pytest.approx(300)}


def test_raw_telemetry_in_pages(vera: httpx.Client) -> None:
    rows = pages(
        vera, "/api/v1/wells/A-1/telemetry", signals="flow_rate,pip", resolution="raw", max_points=100, **{"from": "1d"}
    )
    assert len(rows) == MINUTES
    assert [row[0] for row in rows] == sorted({row[0] for row in rows})
    assert rows[-1][0] == NOW.isoformat().replace("+00:00", "Z")
    assert [row for row in rows if row[1] == 9999] == [[SPIKE_AT.isoformat().replace("+00:00", "Z"), 9999, 1]]


@pytest.mark.parametrize("signals", ["flow_rate", "flow_rate,pip", ""])
@pytest.mark.parametrize("max_points", [10, 57, 200, 599])
def test_auto_keeps_the_extremes(vera: httpx.Client, signals: str, max_points: int) -> None:
    answer = got(
        vera,
        "/api/v1/wells/A-1/telemetry",
        max_points=max_points,
        **{"from": "1d"} | ({"signals": signals} if signals else {}),
    )
    assert answer["resolution"] != "raw"
    assert len(answer["rows"]) <= max_points
    place = answer["columns"].index("flow_rate")
    assert max(row[place] for row in answer["rows"]) == 9999
    if "pip" in answer["columns"]:
        place = answer["columns"].index("pip")
        assert min(row[place] for row in answer["rows"] if row[place] is not None) == 1
    if signals == "flow_rate":
        assert [SPIKE_AT.isoformat().replace("+00:00", "Z"), 9999] in answer["rows"]
    assert answer["next"] is None


def test_auto_is_raw_where_it_fits(vera: httpx.Client) -> None:
    answer = got(vera, "/api/v1/wells/A-1/telemetry", max_points=MINUTES, signals="pip", **{"from": "1d"})
    assert (answer["resolution"], len(answer["rows"])) == ("raw", MINUTES)


def test_a_chart_up_to_now_is_shared_in_the_units_asked_for(vera: httpx.Client) -> None:
    """It is kept as it was sent: whoever wants other units gets other values, and none is converted twice."""
    asked = {"signals": "pip", "max_points": 20, "from": "1d"}
    field, metric, again, metric_again = (
        [row[1] for row in got(vera, "/api/v1/wells/A-1/telemetry", units=units, **asked)["rows"]]
        for units in ("field", "metric", "field", "metric")
    )
    assert field == again
    assert metric == metric_again
    assert metric == [value if value is None else pytest.approx(value / 14.5037738) for value in field]


@pytest.mark.parametrize("resolution", ["1m", "1h", "1d"])
def test_buckets(vera: httpx.Client, resolution: str) -> None:
    rows = pages(
        vera, "/api/v1/wells/A-1/telemetry", signals="flow_rate", resolution=resolution, max_points=50, **{"from": "2d"}
    )
    assert sum(row[1] for row in rows) == MINUTES
    assert max(row[4] for row in rows) == 9999
    assert all(low <= mean <= high for _, _, mean, low, high in rows)
    assert len({row[0] for row in rows}) == len(rows)


def test_csv_and_arrow_say_the_same(vera: httpx.Client) -> None:
    for path in (
        "/api/v1/wells/A-1/telemetry?from=1d&max_points=600",
        "/api/v1/wells",
        "/api/v1/alarms",
        "/api/v1/rejects",
    ):
        plain = got(vera, path)
        count = len(plain.get("rows", plain.get("items")))
        text = vera.get(path, headers={"Accept": "text/csv"})
        assert text.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(text.text)))
        binary = vera.get(path, headers={"Accept": "application/vnd.apache.arrow.stream"})
        table = pa.ipc.open_stream(binary.content).read_all()
        assert len(rows) == table.num_rows == count
        assert list(rows[0]) == table.column_names
    assert vera.get("/api/v1/wells", headers={"Accept": "image/png"}).status_code == 406


def test_unchanged_is_not_sent_again(vera: httpx.Client) -> None:
    first = vera.get("/api/v1/wells/B-1/telemetry", params={"from": "7d"})
    path = {"from": "2020-01-01T00:00:00Z", "to": "2020-01-02T00:00:00Z"}
    first = vera.get("/api/v1/wells/B-1/telemetry", params=path)
    again = vera.get("/api/v1/wells/B-1/telemetry", params=path, headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert "immutable" in first.headers["cache-control"]
    moving = vera.get("/api/v1/wells/B-1/telemetry", params={"from": "41d", "to": "40d"})
    assert "immutable" not in moving.headers["cache-control"], "an age is another time tomorrow"


def test_a_spreadsheet_runs_nothing_out_of_a_csv(api: ApiProcess, vera: httpx.Client) -> None:
    topic = "=cmd|'/c calc'!A1"
    insert = (
        "INSERT INTO ingest_rejects (received_at, digest, item, topic, reason, detail, payload, redelivered) "
        "VALUES (now(), gen_random_uuid(), 0, %s, 'invalid_topic', '@SUM(1+1)', 'x', false)"
    )
    with psycopg.connect(api.dsn, autocommit=True) as connection:
        connection.execute(insert, (topic,))
        text = vera.get("/api/v1/rejects", headers={"Accept": "text/csv"}).text
        connection.execute("DELETE FROM ingest_rejects WHERE topic = %s", (topic,))
    row = next(row for row in csv.DictReader(io.StringIO(text)) if "cmd" in row["topic"])
    assert (row["topic"], row["detail"]) == (f"'{topic}", "'@SUM(1+1)")


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, ["gas_lock", "vibration", "leakage"]),
        ({"state": "open"}, ["gas_lock", "leakage"]),
        ({"state": "cleared"}, ["vibration"]),
        ({"state": ["cleared", "acknowledged"]}, ["vibration", "leakage"]),
        ({"severity": ["high", "low"]}, ["gas_lock", "vibration"]),
        ({"well_id": "A-3"}, ["leakage"]),
        ({"diagnosis": "vibration"}, ["vibration"]),
        ({"from": "1d"}, ["gas_lock", "vibration"]),
        ({"to": "1d"}, ["leakage"]),
        ({"verdict": "true"}, []),
    ],
)
@pytest.mark.parametrize("limit", [1, 100])
def test_alarms_filtered(vera: httpx.Client, parameters: dict[str, Any], expected: list[str], limit: int) -> None:
    assert [a["diagnosis"] for a in pages(vera, "/api/v1/alarms", limit=limit, **parameters)] == expected


def test_kpis(vera: httpx.Client) -> None:
    kpis = got(vera, "/api/v1/alarms/kpis", **{"from": "7d"})
    assert (kpis["alarms"], kpis["wells"], kpis["peak_10_minutes"]) == (3, 2, 1)
    assert [each["diagnosis"] for each in kpis["stale"]] == ["leakage"]
    first_day = got(vera, "/api/v1/alarms/kpis", **{"from": "0001-01-01T00:00:00Z", "to": "0001-01-02T00:00:00Z"})
    assert first_day["alarms"] == 0
    assert kpis["by_severity"] == {"critical": 0, "high": 1, "medium": 1, "low": 1}


def test_what_is_held_back_is_in_no_figure(api: ApiProcess, vera: httpx.Client) -> None:
    before = got(vera, "/api/v1/alarms/kpis", **{"from": "7d"})
    with psycopg.connect(api.dsn) as connection:
        for state in ("suppressed", "shelved", "out_of_service"):
            insert_alarm(connection, "A-2", f"t_{state}", NOW - timedelta(days=3), "high", state)
            connection.execute("UPDATE diagnostic_results SET occurrences = 99 WHERE diagnosis = %s", (f"t_{state}",))
    try:
        after = got(vera, "/api/v1/alarms/kpis", **{"from": "7d"})
        moving = ("from", "to", "alarms_per_hour", "alarms_per_10_minutes", "flood_share")
        assert {key: value for key, value in after.items() if key not in moving} == {
            key: value for key, value in before.items() if key not in moving
        }
    finally:
        with psycopg.connect(api.dsn) as connection:
            connection.execute("DELETE FROM diagnostic_results WHERE diagnosis LIKE 't#_%' ESCAPE '#'")


def test_fleet(vera: httpx.Client) -> None:
    fleet = got(vera, "/api/v1/fleet")
    assert fleet["states"] == {"running": 2, "stopped": 1, "unknown": 0, "silent": 1}
    assert fleet["alarms"]["high"] == 1
    assert fleet["rejects_24h"] == 5
    assert fleet["silent_after_seconds"] == 86_400


def test_each_sum_of_the_fleet_is_the_length_of_its_list(api: ApiProcess, vera: httpx.Client) -> None:
    """Whatever is held back, is an event, or belongs to a well without readings."""
    states = ("unacknowledged", "acknowledged", "latched", "suppressed", "shelved", "out_of_service")
    severities = ("critical", "high", "medium", "low", "info")
    with psycopg.connect(api.dsn) as connection:
        for severity in severities:
            for state in states:
                insert_alarm(connection, "A-2", f"t_{severity}_{state}", NOW, severity, state)
        insert_alarm(connection, "never-sent", "t_stale", NOW, "high")
        insert_alarm(connection, "A-2", "t_returned", NOW, "high", "returned-unacknowledged", NOW)
        connection.execute(
            "INSERT INTO alarm_shelves (well_id, diagnosis, shelved_to, by_whom, why) "
            "VALUES ('A-2', 'no_such_rule', now() + interval '1 day', 'x', 'y')"
        )
    try:
        fleet = got(vera, "/api/v1/fleet")

        def listed(**parameters: Any) -> int:
            return len(pages(vera, "/api/v1/alarms", **parameters))

        assert fleet["alarms"] == {each: listed(state="active", severity=each) for each in severities}
        assert fleet["alarms"]["critical"] == 3
        assert fleet["unacknowledged"] == listed(state="waiting") == 4 * 2 + 2
        assert fleet["shelved"] == listed(state="shelved") == 5
    finally:
        with psycopg.connect(api.dsn) as connection:
            connection.execute("DELETE FROM diagnostic_results WHERE diagnosis LIKE 't#_%' ESCAPE '#'")
            connection.execute("DELETE FROM alarm_shelves")


def test_rejects_byte_for_byte(vera: httpx.Client) -> None:
    found = pages(vera, "/api/v1/rejects", limit=2)
    assert [each["payload"] for each in found] == ["AP8A", "AP8B", "AP8C", "AP8D", "AP8E"]
    assert [each["topic"] for each in pages(vera, "/api/v1/rejects", topic="*A-3*")] == ["esp/A-3/telemetry"]
    assert pages(vera, "/api/v1/rejects", reason="too_deep") == []


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [
        ("/api/v1/wells/Z-9", 404, "no well Z-9"),
        ("/api/v1/wells/Z-9/telemetry", 404, "no well Z-9"),
        ("/api/v1/wells/a%20b", 422, "well_id"),
        ("/api/v1/wells/A-1/telemetry?signals=flow_rat", 422, "did you mean flow_rate"),
        ("/api/v1/wells/A-1/telemetry?from=1900-01-01T00:00:00Z", 422, "3660 days"),
        ("/api/v1/wells/A-1/telemetry?max_points=1000000", 422, "10 to 20000"),
        ("/api/v1/wells/A-1/telemetry?from=2026-01-01T00:00:00", 422, "lacks its offset"),
        ("/api/v1/wells/A-1/telemetry?from=1h&to=2h", 422, "before to"),
        ("/api/v1/wells/A-1/telemetry?resolution=5m", 422, "resolution"),
        ("/api/v1/wells?cursor=rubbish", 422, "cursor"),
        ("/api/v1/wells?sort=pip", 422, "sort"),
        ("/api/v1/wells?fliter=1", 422, "no parameter 'fliter'"),
        ("/api/v1/alarms?severity=grave", 422, "severity"),
        ("/api/v1/alarms?diagnosis='; DROP TABLE esp_telemetry; --", 200, ""),
        ("/api/v1/rejects?topic=%00", 422, "NUL"),
        ("/api/v2", 404, "/openapi.json"),
    ],
)
def test_bad_questions_are_problems_that_say_what_to_do(vera: httpx.Client, path: str, status: int, word: str) -> None:
    answer = vera.get(path)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == status
        assert word in problem["detail"]


def test_a_method_that_is_not_there(vera: httpx.Client) -> None:
    answer = vera.delete("/api/v1/wells")
    assert (answer.status_code, answer.headers["content-type"]) == (405, "application/problem+json")
    assert "GET" in answer.headers["allow"]


def test_a_page_in_place_of_which_there_is_an_operation(vera: httpx.Client) -> None:
    """The console's files lie at /, and answer for no path of the API."""
    for path in ("/api/v1/alarms/ack", "/api/v1/auth/token"):
        answer = vera.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (405, "application/problem+json")
        assert answer.headers["allow"] == "POST"
    assert vera.get("/").status_code == 200
    assert vera.get("/nothing.js").headers["content-type"] == "application/problem+json"


def test_nothing_without_a_token(api: ApiProcess) -> None:
    with api.client() as nobody:
        for path in ("me", "fleet", "wells", "alarms", "rejects", "archive", "stream", "daemon", "audit", "users"):
            answer = nobody.get(f"/api/v1/{path}")
            assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json"), path
            assert "www-authenticate" in answer.headers
        assert nobody.get("/health/live").json()["status"] == "ok"
        assert "esp_ingest_api_requests_total" in nobody.get("/metrics").text
        assert nobody.get("/openapi.json").json()["openapi"].startswith("3.1")
