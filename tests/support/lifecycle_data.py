"""Rows of all three tables with values that are easily lost on the way, days old; and settings for the lifecycle."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from esp_ingest.config.load import load
from esp_ingest.config.settings import Settings
from esp_ingest.lifecycle import runs
from esp_ingest.service.clock import SystemClock
from esp_ingest.store import schema
from tests.support.databases import Database

TELEMETRY = """
    INSERT INTO esp_telemetry ("timestamp", well_id, flow_rate, pip, motor_temp, gor, extra, quality, received_at)
    SELECT %s::timestamptz + n * INTERVAL '13.000001 s', 'ESP-' || lpad((n %% 7)::text, 2, '0'), n * 0.1,
           CASE n %% 5 WHEN 0 THEN '-0'::float8 WHEN 1 THEN 4.9e-324 WHEN 2 THEN 1.7976931348623157e308
                       WHEN 3 THEN 0.1::float8 + 0.2 END,
           CASE WHEN n = 3 THEN 'NaN'::float8 WHEN n = 4 THEN '-Infinity' ELSE 100 END, NULL,
           CASE n %% 3 WHEN 0 THEN '{"a": 1.50, "ä": "x\\u20ac\\n\\"", "big": 123456789012345678901234567890.10}'::jsonb
                       WHEN 1 THEN '{}' END,
           CASE WHEN n %% 4 = 0 THEN '{"pip": "1.#QNAN"}'::jsonb END,
           %s::timestamptz + n * INTERVAL '13.000001 s' + INTERVAL '1.5 s'
    FROM generate_series(1, %s) AS n
"""
DIAGNOSTICS = """
    INSERT INTO diagnostic_results
    SELECT %s::timestamptz + n * INTERVAL '61 s', 'ESP-' || (n %% 3), 'gas_lock', 'high',
           CASE WHEN n %% 10 = 0 THEN 'unacknowledged' ELSE 'normal' END,
           CASE WHEN n %% 10 = 0 THEN NULL ELSE %s::timestamptz + n * INTERVAL '62 s' END,
           n / 3.0, NULL, 1e-300, n, 0.5, 'Text — ' || n, '[1, "two"]', '{"pip": null}'
    FROM generate_series(1, %s) AS n
"""
REJECTS = """
    INSERT INTO ingest_rejects (received_at, digest, item, topic, topic_bytes, reason, detail, payload, redelivered)
    SELECT %s::timestamptz + n * INTERVAL '100 s', md5(n::text)::uuid, n, 'esp/x/' || n,
           CASE WHEN n %% 2 = 0 THEN '\\xff00'::bytea END, 'invalid_json', 'not JSON',
           decode(repeat(lpad(to_hex(n %% 256), 2, '0'), n), 'hex') || '\\x00ff0a'::bytea, n %% 2 = 0
    FROM generate_series(1, %s) AS n
"""
TABLES = ("esp_telemetry", "diagnostic_results", "ingest_rejects")


def today() -> date:
    return datetime.now(UTC).date()


def midnight(days_ago: int) -> datetime:
    return datetime.combine(today() - timedelta(days=days_ago), datetime.min.time(), UTC)


def migrated(database: Database) -> Database:
    schema.migrate(database.settings)
    return database


def fill(database: Database, days_ago: int, rows: int = 200) -> None:
    """A day of telemetry and rejects. Rows begin at midnight UTC."""
    at = midnight(days_ago)
    with database.connect() as connection:
        connection.execute(TELEMETRY.encode(), (at, at, rows))
        connection.execute(REJECTS.encode(), (at, max(rows // 10, 1)))


def fill_diagnostics(database: Database, days_ago: int, rows: int = 40) -> None:
    """A day of occurrences; each tenth is still open."""
    at = midnight(days_ago)
    with database.connect() as connection:
        connection.execute(DIAGNOSTICS.encode(), (at, at, rows))


def settings_for(database: Database, url: str | Path = "", **more: Any) -> Settings:
    """Settings with the archive at ``url``; further sections as keyword arguments."""
    archive = {"url": str(url), **more.pop("archive", {})}
    dsn = {"dsn": database.dsn}
    return load(None, database=dsn, archive=archive, **more)


def run(settings: Settings, **options: Any) -> tuple[runs.Outcome, list[tuple[str, dict[str, Any]]]]:
    """One run, and what it reported."""
    said: list[tuple[str, dict[str, Any]]] = []
    outcome = runs.run_once(settings, SystemClock(), lambda event, fields: said.append((event, fields)), **options)
    return outcome, said


def contents(database: Database, table: str) -> list[Any]:
    """Every row as the server's own bytes, in no order that matters."""
    return sorted(database.all(f"SELECT encode(record_send(t), 'hex') FROM {table} AS t"))
