"""Hours and days of each well against the same figures gathered from the readings by other means, on every edition."""

import re
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from esp_ingest.lifecycle.errors import Reason
from esp_ingest.model import SIGNALS as DECLARED
from esp_ingest.store.schema import migrate
from tests.support.databases import Database
from tests.support.lifecycle_data import fill, midnight, migrated, run, settings_for

FILL = """
    INSERT INTO esp_telemetry ("timestamp", well_id, flow_rate, pip, motor_current, vsd_frequency, received_at)
    SELECT %s::timestamptz + n * INTERVAL '247.25 s', w, n * 0.1 + length(w), CASE WHEN n %% 3 = 0 THEN n * 1.7 END,
           CASE WHEN n %% 50 < 30 THEN 40 ELSE 0 END, CASE WHEN n %% 2 = 0 THEN 50 END, now()
    FROM generate_series(0, %s) AS n, unnest(ARRAY['a', 'bb', 'ccc']) AS w
    WHERE n %% 70 < 60 OR w <> 'bb'
"""
OCCURRENCE = """
    INSERT INTO diagnostic_results
    SELECT %s::timestamptz + begins * INTERVAL '1 minute', 'a', 'd' || begins, severity, 'normal',
           %s::timestamptz + ends * INTERVAL '1 minute', 1, NULL, NULL, 1, 1, '', '[]', '{}'
    FROM (VALUES (10, 200, 'high'), (100, 130, 'high'), (190, 260, 'high'), (30, 40, 'low'), (1430, 1450, 'critical'))
         AS o (begins, ends, severity)
"""
SIGNALS = tuple(signal.name for signal in DECLARED)
SEVERITIES = ("critical", "high", "medium", "low", "info")
FIGURES = ("min", "max", "mean", "first", "last")
COLUMNS = [
    *("well_id", "bucket", "count"),
    *(f"{signal}_{figure}" for signal in SIGNALS for figure in FIGURES),
    "running_seconds",
    *(f"alarm_{severity}_seconds" for severity in SEVERITIES),
]


@pytest.fixture
def database(any_database: Database) -> Database:
    return migrated(any_database)


def add(database: Database, days_ago: int, count: int = 900) -> None:
    """Three wells for two and a half days, one of them with gaps, and occurrences that overlap."""
    at = midnight(days_ago)
    with database.connect() as connection:
        connection.execute("SET timezone = 'UTC'")
        connection.execute(FILL.encode(), (at, count))
        connection.execute(OCCURRENCE.encode(), (at, at))


def kept(database: Database, view: str) -> dict[tuple[str, datetime], dict[str, Any]]:
    with database.connect() as connection:
        cursor = connection.execute(f"SELECT * FROM {view}".encode())
        assert cursor.description is not None
        names = [column.name for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    found = {(row["well_id"], row["bucket"].astimezone(UTC)): row for row in rows}
    assert len(found) == len(rows)
    return found


def expected(database: Database, width: timedelta) -> dict[tuple[str, datetime], dict[str, Any]]:
    """The same by a loop over all readings. A day's running time is the sum of its hours that have readings."""
    names = ", ".join(SIGNALS)
    rows = database.all(f'SELECT well_id, "timestamp", {names} FROM esp_telemetry ORDER BY 1, 2')
    buckets: dict[tuple[str, datetime], list[Any]] = defaultdict(list)
    seconds: dict[tuple[str, datetime], float] = defaultdict(float)
    with_readings = {(row[0], floor(row[1], timedelta(hours=1))) for row in rows}
    for at, row in enumerate(rows):
        well, time = row[0], row[1].astimezone(UTC)
        buckets[well, floor(time, width)].append(row[2:])
        value = dict(zip(SIGNALS, row[2:], strict=True))
        amperes, hertz = value["motor_current"], value["vsd_frequency"]
        if (amperes is None and hertz is None) or (amperes is not None and amperes <= 1) or (hertz or 50) <= 5:
            continue
        end = time + timedelta(minutes=15)
        if at + 1 < len(rows) and rows[at + 1][0] == well:
            end = min(end, rows[at + 1][1].astimezone(UTC))
        while time < end:
            hour = floor(time, timedelta(hours=1))
            stop = min(end, hour + timedelta(hours=1))
            if (well, hour) in with_readings:
                seconds[well, floor(time, width)] += (stop - time).total_seconds()
            time = stop
    spans = database.all('SELECT well_id, severity, "timestamp", cleared_at FROM diagnostic_results')
    return {key: figures(key, width, found, seconds[key], spans) for key, found in buckets.items()}


def figures(key: tuple[str, datetime], width: timedelta, rows: list[Any], runs: float, spans: list[Any]) -> Any:
    found: dict[str, Any] = {"well_id": key[0], "bucket": key[1], "count": len(rows), "running_seconds": runs}
    for at, signal in enumerate(SIGNALS):
        values = [row[at] for row in rows if row[at] is not None]
        mean = sum(values) / len(values) if values else None
        all_of_it = (min(values), max(values), mean, values[0], values[-1]) if values else (None,) * 5
        found |= {f"{signal}_{name}": value for name, value in zip(FIGURES, all_of_it, strict=True)}
    for severity in SEVERITIES:
        minutes = {
            key[1] + n * timedelta(minutes=1)
            for n in range(int(width.total_seconds() // 60))
            for well, of, begin, end in spans
            if (well, of) == (key[0], severity) and begin <= key[1] + n * timedelta(minutes=1) < end
        }
        found[f"alarm_{severity}_seconds"] = 60.0 * len(minutes)
    return found


def floor(at: datetime, width: timedelta) -> datetime:
    epoch = datetime(2000, 1, 1, tzinfo=UTC)
    return epoch + (at.astimezone(UTC) - epoch) // width * width


def fleet(database: Database, width: timedelta) -> dict[datetime, list[Any]]:
    """By bucket: wells, count, and min, max, mean and number of each signal, by a loop over all readings."""
    rows = database.all(f'SELECT well_id, "timestamp", {", ".join(SIGNALS)} FROM esp_telemetry')
    buckets: dict[datetime, list[Any]] = defaultdict(list)
    for row in rows:
        buckets[floor(row[1], width)].append(row)
    found = {}
    for bucket, its in buckets.items():
        figures_of = [len({row[0] for row in its}), len(its)]
        for at in range(len(SIGNALS)):
            values = [row[at + 2] for row in its if row[at + 2] is not None]
            figures_of += [min(values), max(values), sum(values) / len(values)] if values else [None] * 3
        found[bucket] = figures_of
    return found


def assert_the_fleet_is_right(database: Database) -> None:
    wanted = ", ".join(f"{signal}_{figure}" for signal in SIGNALS for figure in FIGURES[:3])
    hours = database.all(f"SELECT bucket, wells, count, {wanted}, running_seconds FROM esp_fleet_hourly")
    days = database.all(f"SELECT bucket, 0, count, {wanted}, running_seconds FROM esp_fleet_daily")
    for rows, width, view in ((hours, timedelta(hours=1), "hourly"), (days, timedelta(days=1), "daily")):
        right = fleet(database, width)
        assert {row[0].astimezone(UTC) for row in rows} == right.keys()
        assert len(rows) == len(right)
        running = dict(database.all(f"SELECT bucket, sum(running_seconds) FROM esp_telemetry_{view} GROUP BY 1"))
        for bucket, wells, *figures_of, seconds in rows:
            expected_wells, *its = right[bucket.astimezone(UTC)]
            assert wells in (expected_wells, 0)
            for mine, other in zip(figures_of, its, strict=True):
                assert mine == (pytest.approx(other) if isinstance(other, float) else other), bucket
            assert seconds == pytest.approx(running[bucket])


Right = list[tuple[str, dict[tuple[str, datetime], dict[str, Any]]]]


def all_expected(database: Database) -> Right:
    widths = {"esp_telemetry_hourly": timedelta(hours=1), "esp_telemetry_daily": timedelta(days=1)}
    return [(view, expected(database, width)) for view, width in widths.items()]


def assert_right(database: Database, all_right: Right | None = None) -> None:
    assert_the_fleet_is_right(database)
    for view, right in all_right or all_expected(database):
        found = kept(database, view)
        assert found.keys() == right.keys()
        for key, row in right.items():
            assert list(found[key]) == COLUMNS
            for name, value in row.items():
                assert found[key][name] == (pytest.approx(value) if isinstance(value, float) else value), (key, name)


def plan_of(database: Database, question: str) -> list[str]:
    """The plan's lines, after the question was answered."""
    return [row[0] for row in database.all(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) {question}")]


def assert_a_kept_day_is_gathered_without_readings(database: Database, day: datetime) -> None:
    """It once gathered all later readings, to throw them away: minutes a day of a large fleet."""
    since, until = (f"TIMESTAMPTZ '{at.isoformat()}'" for at in (day, day + timedelta(days=1)))
    plan = plan_of(database, f"SELECT * FROM aggregated_days({since}, {until})")
    readings = [line for line in plan if re.search(r"Scan.* on (esp_telemetry|_hyper_\d+_\d+_chunk)", line)]
    assert readings
    assert all("never executed" in line for line in readings), plan


def assert_only_what_is_asked_is_gathered(database: Database) -> None:
    """The views are merged into the question: other wells are not gathered, nor times in alarm that no one asks for."""
    for view in ("esp_telemetry_hourly", "esp_telemetry_daily"):
        lines = plan_of(database, f"SELECT bucket, pip_mean FROM {view} WHERE well_id = 'bb'")
        plan = "\n".join(lines)
        # What is there for the case that nothing was kept for two days is not merged, and not executed.
        assert all("never executed" in line for line in lines if "Function Scan" in line), plan
        assert "aggregate_alarm_hours" not in plan
        assert re.search(r"well_id = 'bb'", plan)


def assert_right_on_another_search_path(database: Database) -> None:
    """A reader whose search_path leads elsewhere reads the same."""
    views = ("esp_telemetry_hourly", "esp_telemetry_daily")
    right = [database.value(f"SELECT count(*) FROM {view}") for view in views]
    with database.connect(autocommit=False) as connection:
        connection.execute(b"SET LOCAL search_path TO pg_catalog")
        found = [connection.execute(f"SELECT count(*) FROM public.{view}".encode()).fetchone() for view in views]
    assert found == [(count,) for count in right]


def assert_right_however_long_nothing_was_kept(database: Database) -> None:
    """Later hours are gathered in another way if the last that is kept is two days old: right on both sides of it."""
    right = all_expected(database)
    for hours in (46, 47):
        to = f"date_bin(INTERVAL '1 hour', now() - INTERVAL '{hours} hours', TIMESTAMPTZ '2000-01-01 00:00:00Z')"
        for table in ("hours", "fleet_hours", "seen"):
            database.run(f"DELETE FROM aggregate_{table} WHERE bucket >= {to}")
        database.run(f"UPDATE aggregate_state SET hours_to = {to}, fleet_to = {to}, days_to = '-infinity'")
        assert_right(database, right)


def assert_few_chunks_are_planned(database: Database) -> None:
    """Of the readings only the newest chunks are looked at, so that planning does not grow with the days kept."""
    plan = "\n".join(row[0] for row in database.all("EXPLAIN SELECT pip_mean FROM esp_telemetry_hourly"))
    kept_chunks = database.value("SELECT count(*) FROM show_chunks('esp_telemetry')")
    planned = set(re.findall(r"_hyper_\d+_\d+_chunk(?= )", plan))
    assert kept_chunks >= 4
    assert 1 <= len(planned) <= 2, planned


def test_aggregates_are_what_a_loop_over_the_readings_says(database: Database, tmp_path: Path) -> None:
    add(database, 5)
    assert_right(database)  # nothing is kept yet: all of it gathered at once
    settings = settings_for(database, tmp_path)
    assert run(settings)[0].ok
    assert database.value("SELECT count(*) FROM aggregate_hours") > 100
    assert database.value("SELECT count(*) FROM aggregate_days") == 9
    assert_right(database)
    assert_a_kept_day_is_gathered_without_readings(database, midnight(4))
    assert_only_what_is_asked_is_gathered(database)
    assert_right_on_another_search_path(database)
    late = midnight(4) + timedelta(minutes=59)  # into an hour that is kept; the pump runs into the next
    insert = "INSERT INTO esp_telemetry (timestamp, well_id, pip, motor_current, received_at)"
    database.run(f"{insert} VALUES ('{late.isoformat()}', 'bb', 9999, 40, '2026-01-01Z')")
    database.run(f"{insert} VALUES (now() - INTERVAL '1 second', 'a', 1, 40, now())")  # gathered when asked
    newest = "SELECT count(*) FROM esp_telemetry_hourly WHERE bucket >= now() - INTERVAL '2 hours'"
    assert database.value(newest) == 1
    assert run(settings)[0].ok
    before = [database.all(f"SELECT * FROM aggregate_{name} ORDER BY 1, 2") for name in ("hours", "days")]
    assert_right(database)
    assert run(settings)[0].ok
    assert [database.all(f"SELECT * FROM aggregate_{name} ORDER BY 1, 2") for name in ("hours", "days")] == before
    if database.value("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'"):
        assert_few_chunks_are_planned(database)
    assert_right_however_long_nothing_was_kept(database)


def test_hours_of_the_fleet_that_are_behind_their_wells_are_gathered_by_the_next_run(
    database: Database, tmp_path: Path
) -> None:
    """A run was killed between both, or an older program kept the hours of the wells."""
    add(database, 5)
    settings = settings_for(database, tmp_path)
    assert run(settings)[0].ok
    kept_of_fleet = "SELECT * FROM aggregate_fleet_hours ORDER BY 1"
    before = database.all(kept_of_fleet)
    assert len(before) > 50
    database.run("DELETE FROM aggregate_fleet_hours WHERE bucket > (SELECT min(bucket) FROM aggregate_fleet_hours)")
    database.run("UPDATE aggregate_fleet_hours SET count = 1, pip_max = 1")
    assert run(settings)[0].ok
    assert database.all(kept_of_fleet) == before
    assert_right(database)


def test_aggregates_outlive_the_readings_and_late_ones_of_a_dropped_day_do_not_replace_them(
    database: Database, tmp_path: Path
) -> None:
    add(database, 40)
    settings = settings_for(database, tmp_path)
    right = expected(database, timedelta(days=1))
    assert run(settings)[0].dropped
    assert database.value("SELECT count(*) FROM esp_telemetry") == 0
    found = kept(database, "esp_telemetry_daily")
    assert {key: row["count"] for key, row in found.items()} == {key: row["count"] for key, row in right.items()}
    late = midnight(40) + timedelta(hours=5)
    database.run(
        f"INSERT INTO esp_telemetry (timestamp, well_id, pip, received_at) VALUES ('{late.isoformat()}', 'a', 7, now())"
    )
    run(settings)
    assert kept(database, "esp_telemetry_daily") == found
    run(settings_for(database, tmp_path, lifecycle={"aggregates_days": 30}))
    assert kept(database, "esp_telemetry_daily") == {}


def test_aggregates_are_kept_also_while_the_archive_is_unset(database: Database) -> None:
    fill(database, 2, rows=50)
    outcome, _ = run(settings_for(database))  # no occurrence was ever stored either
    assert [problem.reason for problem in outcome.problems] == [Reason.UNSET]
    assert database.value("SELECT sum(count) FROM aggregate_hours") == 50
    assert database.value("SELECT isfinite(days_to) AND isfinite(alarms_to) FROM aggregate_state")


def test_the_smallest_numbers_are_gathered_too(database: Database, tmp_path: Path) -> None:
    """Dividing one of them would underflow, which is an error in PostgreSQL: one reading would stop every run."""
    hours = {"kept": midnight(2), "recent": datetime.now(UTC).replace(minute=0, second=0, microsecond=0)}
    for at in hours.values():
        database.run(
            "INSERT INTO esp_telemetry (timestamp, well_id, pip, motor_current, received_at) "
            f"SELECT '{at.isoformat()}'::timestamptz - n * INTERVAL '1 second', 'a', 5e-324, -5e-324, now() "
            "FROM generate_series(1, 3) AS n"
        )
    assert run(settings_for(database, tmp_path))[0].ok
    for view in ("esp_telemetry_hourly", "esp_telemetry_daily"):
        rows = kept(database, view).values()
        assert sum(row["count"] for row in rows) == 6
        assert {(row["pip_min"], row["pip_mean"], row["motor_current_mean"]) for row in rows} == {(5e-324, 0.0, 0.0)}
    assert sum(row[0] for row in database.all("SELECT count FROM esp_fleet_hourly")) == 6
    assert database.all("SELECT DISTINCT pip_mean FROM esp_fleet_daily") == [(0.0,)]


def test_a_mean_of_an_older_version_that_would_underflow_is_mended(any_database: Database) -> None:
    migrate(any_database.settings, target=22)
    add(any_database, 3, count=5)
    any_database.run("INSERT INTO aggregate_hours SELECT * FROM aggregated_hours('-infinity', now())")
    any_database.run("UPDATE aggregate_state SET hours_to = now()")
    any_database.run("UPDATE aggregate_hours SET pip_mean = -5e-324 WHERE well_id = 'a'")
    before = dict(any_database.all("SELECT well_id, pip_mean FROM aggregate_hours"))
    migrate(any_database.settings)
    assert dict(any_database.all("SELECT well_id, pip_mean FROM aggregate_hours")) == before | {"a": 0.0}
    assert before["bb"] > 0
