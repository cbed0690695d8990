"""Case ``api``: how long each request of a page takes over a large fleet, as the 95th percentile.

python -m tests.bench.api [--wells 10000] [--days 30] [--every 50] [--requests 200] [--paste]

Native TimescaleDB, Apache edition, on this machine: ``wells`` × ``days`` with a reading each ``every`` minutes (10 000
× 30 days at 50 minutes are 8.6 million rows), 3 000 occurrences of which 500 are open, 1 000 rejects; `esp-ingest api`
as a process; requests one after the other over one connection. A route that is not below its target is marked. Not for
CI."""

import argparse
import os
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from esp_ingest.store.schema import migrate
from tests.bench.paste import paste
from tests.support.api import ApiProcess
from tests.support.databases import Database, NativeTimescale

TARGET_SECONDS = 0.1
NOW = datetime.now(UTC).replace(second=0, microsecond=0)

# A day at a time: COPY-like speed without leaving the server.
_DAY = """
INSERT INTO esp_telemetry ("timestamp", well_id, flow_rate, pip, motor_current, motor_temp, vibration, vsd_frequency,
    gor, discharge_pressure, wellhead_pressure, casing_pressure, intake_temp, leakage_current, drive_voltage,
    received_at)
SELECT at, 'W-' || lpad(w::text, 5, '0'), 1800 + 50 * sin(i / 9.0 + w), 600 + w %% 100, 40 + w %% 7, 250, 0.1, 52, 420,
    2800, 240, 180, 176, 0.4, 1180, at
FROM generate_series(0, %(samples)s - 1) AS i, generate_series(1, %(wells)s) AS w,
    LATERAL (SELECT %(day)s::timestamptz + i * %(every)s::interval + (w %% 50) * interval '1 second' AS at) AS t
ORDER BY w, at
"""
_ALARMS = """
INSERT INTO diagnostic_results
SELECT %(now)s::timestamptz - n * interval '10 minutes', 'W-' || lpad((n * 37 %% %(wells)s + 1)::text, 5, '0'),
    (ARRAY['gas_lock', 'vibration', 'leakage', 'pump_off'])[n %% 4 + 1],
    (ARRAY['high', 'medium', 'low', 'critical'])[n %% 4 + 1],
    CASE WHEN n < 500 THEN 'unacknowledged' ELSE 'normal' END,
    CASE WHEN n >= 500 THEN %(now)s::timestamptz - n * interval '9 minutes' END, 1, 2, 3, 1, 0.9, 'said so', '[]', '{}'
FROM generate_series(1, 3000) AS n
"""
_REJECTS = """
INSERT INTO ingest_rejects (received_at, digest, item, topic, reason, detail, payload, redelivered)
SELECT %(now)s::timestamptz - n * interval '1 minute', md5(n::text)::uuid, 0, 'esp/W-00001/telemetry', 'invalid_json',
    'not JSON', repeat('x', 300)::bytea, false
FROM generate_series(1, 1000) AS n
"""


def requests(wells: int) -> dict[str, str]:
    """Name → path; ``{n}`` is another well each time."""
    return {
        "fleet": "/api/v1/fleet",
        "wells, first page": "/api/v1/wells?limit=100",
        "wells by need": "/api/v1/wells?sort=need&limit=100",
        "wells, all of the fleet in pages of 1 000": "/api/v1/wells?limit=1000",
        "a well": "/api/v1/wells/{n}",
        "telemetry 24 h, 3 signals": "/api/v1/wells/{n}/telemetry?from=24h&signals=flow_rate,pip,motor_current",
        "telemetry 7 d, all signals": "/api/v1/wells/{n}/telemetry?from=7d",
        "telemetry 30 d, all signals, 200 points": "/api/v1/wells/{n}/telemetry?from=30d&max_points=200",
        "telemetry 30 d, 1 h buckets": "/api/v1/wells/{n}/telemetry?from=30d&resolution=1h&signals=flow_rate,pip",
        "alarms, first page": "/api/v1/alarms?limit=100",
        "alarms open": "/api/v1/alarms?state=open&limit=100",
        "alarms of a well": "/api/v1/alarms?well_id={n}",
        "KPIs 24 h": "/api/v1/alarms/kpis",
        "KPIs 30 d": "/api/v1/alarms/kpis?from=30d",
        "history": "/api/v1/alarms/history",
        "precision": "/api/v1/alarms/precision",
        "rejects": "/api/v1/rejects?limit=100",
        "archive": "/api/v1/archive",
        "me": "/api/v1/me",
    }


def fill(database: Database, wells: int, days: int, every_minutes: int) -> int:
    """The fleet. Returns the number of readings."""
    migrate(database.settings)
    with database.connect() as connection:
        for day in range(days, 0, -1):
            began = time.monotonic()
            parameters = {
                "samples": 24 * 60 // every_minutes, "wells": wells, "day": NOW - timedelta(days=day),
                "every": timedelta(minutes=every_minutes),
            }  # fmt: skip
            connection.execute(_DAY.encode(), parameters)
            say(f"day {days - day + 1} of {days}: {time.monotonic() - began:.1f} s")
        connection.execute(_ALARMS.encode(), {"now": NOW, "wells": wells})
        connection.execute(_REJECTS.encode(), {"now": NOW})
        connection.execute(b"ANALYZE")
        row = connection.execute(b"SELECT count(*) FROM esp_telemetry").fetchone()
    assert row is not None
    return int(row[0])


def measure(client: httpx.Client, path: str, wells: int, count: int) -> tuple[list[float], int]:
    """Seconds of each request, sorted, and the bytes of the last answer."""
    taken, size = [], 0
    for number in range(count + 3):
        well = f"W-{number * 7919 % wells + 1:05d}"
        began = time.monotonic()
        answer = client.get(path.replace("{n}", well))
        took = time.monotonic() - began
        assert answer.status_code == 200, answer.text
        size = len(answer.content)
        if number >= 3:  # the first ones open connections and fill caches
            taken.append(took)
    return sorted(taken), size


def main() -> int:
    options = _options()
    with NativeTimescale.start() as server, tempfile.TemporaryDirectory() as folder:
        database = server.create_database()
        began = time.monotonic()
        rows = fill(database, options.wells, options.days, options.every)
        say(f"{rows} readings in {time.monotonic() - began:.0f} s")
        process = ApiProcess(Path(folder), database.dsn, {"API__REQUEST_TIMEOUT_SECONDS": "60"})
        process.add_user("vera", "viewer")
        slow = 0
        with process, process.signed_in("vera") as client:
            lines = ["| request | median | p95 | worst | bytes |", "|---|---|---|---|---|"]
            for name, path in requests(options.wells).items():
                token = process.sign_in("vera")["access_token"]
                client.headers["Authorization"] = f"Bearer {token}"
                taken, size = measure(client, path, options.wells, options.requests)
                p95 = taken[int(len(taken) * 0.95) - 1]
                slow += p95 > TARGET_SECONDS
                mark = " (above the target)" if p95 > TARGET_SECONDS else ""
                median = statistics.median(taken)
                lines.append(f"| {name} | {_ms(median)} | {_ms(p95)}{mark} | {_ms(taken[-1])} | {size} |")
                say(lines[-1])
    if options.paste:
        load = f"{os.getloadavg()[2]:.1f}"
        lines.insert(
            0, f"{rows:,} readings; load average of the last quarter of an hour {load} on {os.cpu_count()} cores.\n"
        )
        paste("\n".join(lines), "api")
    return 1 if slow else 0


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _options() -> Any:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.api")
    parser.add_argument("--wells", type=int, default=10_000, help="wells in the fleet")
    parser.add_argument("--days", type=int, default=30, help="days of readings")
    parser.add_argument("--every", type=int, default=50, help="minutes between readings")
    parser.add_argument("--requests", type=int, default=200, help="of each kind")
    parser.add_argument("--paste", action="store_true", help="put the table into docs/performance.md")
    return parser.parse_args()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
