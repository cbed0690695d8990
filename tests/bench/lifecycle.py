"""``make lifecycle-bench``: what questions about a month of readings take, and what the readings weigh.

    python -m tests.bench.lifecycle [--wells 200] [--days 30] [--minutes 1] [--paste]

Native TimescaleDB, Apache edition: ``wells`` × ``days`` with a reading each ``minutes``, seven signals of two decimals.
200 × 30 × 1 are 8.6 million readings, a quarter of an hour in all and 3 GB of disk. Not for CI."""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from esp_ingest.lifecycle import aggregates, runs
from esp_ingest.store.schema import migrate
from tests.bench.paste import paste
from tests.support.databases import Database, NativeTimescale
from tests.support.lifecycle_data import settings_for

_DAY = """
INSERT INTO esp_telemetry ("timestamp", well_id, flow_rate, pip, motor_current, motor_temp, vibration, vsd_frequency,
    gor, received_at)
SELECT at, 'W-' || lpad(w::text, 5, '0'), round((1800 + 50 * sin(i / 90.0 + w) + 3 * random())::numeric, 2),
    round((600 + w %% 100 + 5 * random())::numeric, 2), round((40 + w %% 7 + random())::numeric, 2),
    round((250 + random())::numeric, 2), round((0.1 + random() / 10)::numeric, 2),
    CASE WHEN (i / 200 + w) %% 40 = 0 THEN 0 ELSE 52 END, round((420 + 10 * random())::numeric), at + INTERVAL '200 ms'
FROM generate_series(0, %(samples)s - 1) AS i, generate_series(1, %(wells)s) AS w,
    LATERAL (SELECT %(day)s::timestamptz + i * %(every)s::interval + (w %% 50) * INTERVAL '1 s' AS at) AS t
WHERE at < %(now)s
ORDER BY at
"""
_BIN = "date_bin(INTERVAL '{width}', \"timestamp\", TIMESTAMPTZ '2000-01-01 00:00:00Z')"
_RAW = f"""
SELECT {_BIN} AS bucket, {{key}} count(*), avg(pip), min(motor_temp), max(motor_temp)
FROM esp_telemetry WHERE "timestamp" >= %(since)s {{only}} GROUP BY {{keys}} ORDER BY {{keys}}
"""
_VIEW = """
SELECT bucket, {key} count, pip_mean, motor_temp_min, motor_temp_max
FROM {view} WHERE bucket >= %(since)s {only} ORDER BY {keys}
"""
_ALONE = """
CREATE TEMP TABLE alone AS SELECT bucket, well_id, count, pip_mean, motor_temp_min, motor_temp_max
FROM esp_telemetry_hourly WHERE bucket >= %(since)s ORDER BY 1, 2
"""
_FLEET = {"key": "", "keys": "1", "only": ""}
_EACH = {"key": "well_id,", "keys": "1, 2", "only": ""}
_ONE = {"key": "", "keys": "1", "only": "AND well_id = 'W-00007'"}
DASHBOARD = {
    "hours of the fleet": (_FLEET, "1 hour", "esp_fleet_hourly"),
    "days of the fleet": (_FLEET, "1 day", "esp_fleet_daily"),
    "hours of each well": (_EACH, "1 hour", "esp_telemetry_hourly"),
    "days of each well": (_EACH, "1 day", "esp_telemetry_daily"),
    "hours of one well": (_ONE, "1 hour", "esp_telemetry_hourly"),
    "days of one well": (_ONE, "1 day", "esp_telemetry_daily"),
}
LOOKS = {
    "newest reading of one well": "SELECT * FROM well_latest WHERE well_id = 'W-00007'",
    "newest reading of each well": "SELECT * FROM well_latest",
    "… looked for in the readings": "SELECT * FROM well_newest_now",
    "a day of one well": (
        "SELECT * FROM esp_telemetry WHERE well_id = 'W-00007' AND \"timestamp\" >= %(day)s "
        "AND \"timestamp\" < %(day)s + INTERVAL '1 day'"
    ),
    "an hour of all wells": (
        'SELECT * FROM esp_telemetry WHERE "timestamp" >= %(day)s AND "timestamp" < %(day)s + INTERVAL \'1 hour\''
    ),
}
_SIZES = """
SELECT sum(table_bytes), sum(index_bytes), sum(toast_bytes) FROM hypertable_detailed_size('esp_telemetry')
"""


@dataclass(frozen=True)
class Taken:
    """The best of several runs."""

    seconds: float
    cpu_seconds: float  # of the server process
    rows: list[tuple[Any, ...]]


class Asker:
    """One connection, which the server answers by one process."""

    def __init__(self, database: Database, parameters: dict[str, Any]) -> None:
        self._connection: psycopg.Connection[tuple[Any, ...]] = psycopg.connect(database.dsn, autocommit=True)
        self._connection.execute("SET max_parallel_workers_per_gather = 0")
        self._connection.execute("SET timezone = 'UTC'")
        self._parameters = parameters

    def ask(self, question: str, times: int) -> Taken:
        """``question``, so many times."""
        best: Taken | None = None
        for _ in range(times):
            began, cpu = time.monotonic(), self._cpu_seconds()
            rows = self._connection.execute(question.encode(), self._parameters).fetchall()
            seconds = time.monotonic() - began
            cpu = self._cpu_seconds() - cpu
            best = Taken(
                min(seconds, best.seconds if best else seconds), min(cpu, best.cpu_seconds if best else cpu), rows
            )
        assert best is not None
        return best

    def do(self, statement: str) -> None:
        """``statement``, which has no rows to give."""
        self._connection.execute(statement.encode(), self._parameters)

    def _cpu_seconds(self) -> float:
        return cpu_seconds(self._connection.info.backend_pid)


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, to the microsecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def fill(database: Database, wells: int, days: int, every: timedelta, now: datetime) -> None:
    """The readings, a day at a time, up to ``now``."""
    migrate(database.settings)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    with database.connect() as connection:
        for day in range(days - 1, -1, -1):
            began = time.monotonic()
            samples = int(timedelta(days=1) / every)
            at = midnight - timedelta(days=day)
            what = {"wells": wells, "samples": samples, "every": every, "day": at, "now": now}
            connection.execute(_DAY.encode(), what)
            say(f"day {days - day} of {days}: {time.monotonic() - began:.1f} s")
        connection.execute(b"ANALYZE")


def keep(database: Database) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of the first and the second time that the lifecycle keeps the aggregates: seconds, and CPU seconds of the
    server."""
    taken = []
    with runs.session(settings_for(database)) as connection:
        for _ in range(2):
            began, cpu = time.monotonic(), cpu_seconds(connection.info.backend_pid)
            aggregates.keep(connection, 730, lambda: None)
            taken.append((time.monotonic() - began, cpu_seconds(connection.info.backend_pid) - cpu))
        connection.execute(b"SELECT refresh_well_newest()")
        connection.execute(b"ANALYZE aggregate_hours, aggregate_days, aggregate_fleet_hours, well_newest")
    return taken[0], taken[1]


def is_same(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> bool:
    """Equal, means to a part in 10⁹."""
    return len(one) == len(other) and all(
        left == right or (isinstance(left, float) and abs(left - right) <= 1e-9 * abs(left))
        for row, its in zip(one, other, strict=True)
        for left, right in zip(row, its, strict=True)
    )


def measured(database: Database, now: datetime) -> list[str]:
    """The lines of the tables."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    asker = Asker(database, {"since": midnight - timedelta(days=30), "day": midnight - timedelta(days=3)})
    lines = ["| 30 days | readings | CPU | view | CPU | ratio of CPU | same answer |", "|---|---|---|---|---|---|---|"]
    for name, (shape, width, view) in DASHBOARD.items():
        say(name)
        raw = asker.ask(_RAW.format(width=width, **shape), 2)
        kept = asker.ask(_VIEW.format(view=view, **shape), 5)
        ratio = raw.cpu_seconds / kept.cpu_seconds
        same = "yes" if is_same(raw.rows, kept.rows) else "NO"
        cells = (
            _ms(raw.seconds),
            _ms(raw.cpu_seconds),
            _ms(kept.seconds),
            _ms(kept.cpu_seconds),
            f"{ratio:.0f} ×",
            same,
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    asker.do(_ALONE)
    alone = asker.ask("SELECT * FROM alone", 5)
    lines += [
        "",
        f"To send the {len(alone.rows):,} rows of the hours of each well takes {_ms(alone.cpu_seconds)} of CPU by "
        "itself, from a table that has nothing else in it and is in order already.",
    ]
    lines += ["", "| question | rows | time | CPU |", "|---|---|---|---|"]
    for name, question in LOOKS.items():
        say(name)
        found = asker.ask(question, 10)
        lines.append(f"| {name} | {len(found.rows)} | {_ms(found.seconds)} | {_ms(found.cpu_seconds)} |")
    return lines


def sizes(database: Database) -> list[str]:
    """What a row weighs."""
    count = database.value("SELECT count(*) FROM esp_telemetry")
    table, index, toast = database.all(_SIZES)[0]
    hours = database.value(
        "SELECT pg_total_relation_size('aggregate_hours') + pg_total_relation_size('aggregate_days')"
    )
    return [
        f"A reading takes {(table + index + toast) / count:.0f} bytes ({table / count:.0f} in the heap, "
        f"{index / count:.0f} in indexes; this edition has no columnstore), its share of hours and days "
        f"{hours / count:.1f} bytes."
    ]


def main() -> int:
    options = _options()
    with NativeTimescale.start() as server:
        database = server.create_database()
        now, began = datetime.now(UTC), time.monotonic()
        fill(database, options.wells, options.days, timedelta(minutes=options.minutes), now)
        filled = time.monotonic() - began
        first, second = keep(database)
        count = database.value("SELECT count(*) FROM esp_telemetry")
        lines = [
            f"{count:,} readings of {options.wells} wells in {options.days} days, loaded in {filled:.0f} s, gathered "
            f"into hours and days in {first[0]:.0f} s ({first[1]:.0f} s of CPU), again with nothing new in "
            f"{second[0]:.1f} s ({second[1]:.1f} s). Load: {os.getloadavg()[1]:.1f}, {os.cpu_count()} cores.",
            "",
            *measured(database, now),
            "",
            *sizes(database),
        ]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if options.paste:
        paste(text, "lifecycle-bench")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.lifecycle")
    parser.add_argument("--wells", type=int, default=200)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=1.0, help="between two readings of a well")
    parser.add_argument("--paste", action="store_true", help="put the tables into docs/performance.md")
    return parser.parse_args()


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
