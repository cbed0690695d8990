"""`lifecycle run` as a process, its metrics and health; how tables are, on every edition; compressed chunks."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from psycopg.sql import SQL

from esp_ingest.commands import check
from esp_ingest.lifecycle import observe, reading, runs
from esp_ingest.lifecycle.days import Days
from esp_ingest.lifecycle.errors import Reason
from esp_ingest.lifecycle.tables import TABLE_NAMES, TABLES
from esp_ingest.service.metrics import ARCHIVE_REASONS, LIFECYCLE_TABLES
from tests.support.databases import Database, free_port
from tests.support.lifecycle_data import contents, fill, fill_diagnostics, midnight, migrated, run, settings_for, today


def test_the_labels_of_the_metrics_are_those_of_the_program() -> None:
    assert set(ARCHIVE_REASONS) == {reason.value for reason in Reason}
    assert LIFECYCLE_TABLES == TABLE_NAMES


@contextmanager
def service(database: Database, url: str, **more: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    port = free_port()
    environment = os.environ | {
        "ESP_INGEST_DATABASE__DSN": database.dsn,
        "ESP_INGEST_ARCHIVE__URL": url,
        "ESP_INGEST_LIFECYCLE__HTTP_PORT": str(port),
        **more,
    }
    command = [sys.executable, "-m", "esp_ingest", "lifecycle", "run", "--every", "1s"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        yield process, port
    finally:
        process.kill()
        process.communicate()


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def value_of(page: str, series: str) -> float:
    (line,) = [line for line in page.splitlines() if line.startswith(f"esp_ingest_{series} ")]
    return float(line.rpartition(" ")[2])


def until(port: int, path: str, text: str, status: int) -> str:
    deadline = time.monotonic() + 60
    while True:
        found = get(port, path)
        if found[0] == status and text in found[1]:
            return found[1]
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def test_the_loop_says_how_it_is_and_ends_when_asked(postgres15: Database, tmp_path: Path) -> None:
    migrated(postgres15)
    fill(postgres15, 40)
    file = tmp_path / "lifecycle.prom"
    with service(postgres15, str(tmp_path / "a"), ESP_INGEST_LIFECYCLE__METRICS_FILE=str(file)) as (process, port):
        until(port, "/health/ready", "archived and proven", 200)
        page = until(port, "/metrics", 'esp_ingest_table_rows{table="esp_telemetry"} 0.0', 200)
        for line in (
            "esp_ingest_archive_configured 1.0",
            'esp_ingest_lifecycle_days_dropped_total{table="esp_telemetry"} 1.0',
            'esp_ingest_archive_days_verified_total{table="ingest_rejects"} 1.0',
            'esp_ingest_archive_problem{reason="storage"} 0.0',
            'esp_ingest_archive_lag_seconds{table="esp_telemetry"} 0.0',
            "esp_ingest_database_disk_full_days +Inf",
            "esp_ingest_ready 1.0",
        ):
            assert line in page
        assert get(port, "/health/live")[0] == 200
        assert "esp_ingest_database_bytes" in file.read_text()
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[0]
    assert process.returncode == 0
    events = [json.loads(line)["event"] for line in said.splitlines()]
    assert events[0] == "started"
    assert {"archived", "verified", "dropped", "ran"} <= set(events)
    assert "stopping" in events
    assert events[-1] == "stopped"


def test_health_and_metrics_say_why_nothing_is_dropped(postgres15: Database) -> None:
    migrated(postgres15)
    fill(postgres15, 40)
    with service(postgres15, "") as (_, port):
        until(port, "/health/ready", "archive.url is not set: nothing is archived, and nothing is dropped.", 503)
        page = until(port, "/metrics", 'esp_ingest_archive_problem{reason="unset"} 1.0', 200)
        assert "esp_ingest_archive_configured 0.0" in page
        page = until(port, "/metrics", 'esp_ingest_table_rows{table="esp_telemetry"} 200.0', 200)
        assert value_of(page, 'archive_lag_seconds{table="esp_telemetry"}') > 38 * 86_400
        assert value_of(page, 'lifecycle_overdue_days{table="esp_telemetry"}') > 8
        assert get(port, "/health/live")[0] == 200, "a restart would not help"


def test_a_run_takes_one_core_of_the_database_and_not_all(native_database: Database, tmp_path: Path) -> None:
    fill(migrated(native_database), 3)
    with runs.session(settings_for(native_database, tmp_path)) as connection:
        for setting in ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size"):
            connection.execute("SELECT set_config(%s, '0', false)", (setting,))
        statement = Days(connection).statement("lifecycle_days", TABLES[0])
        explain = SQL("EXPLAIN {}").format(statement)
        assert "Gather" not in str(connection.execute(explain).fetchall())
        connection.execute("SET max_parallel_workers_per_gather = 2")
        assert "Gather" in str(connection.execute(explain).fetchall()), "workers would have been asked for"


def test_how_tables_are_on_every_edition(any_database: Database, tmp_path: Path) -> None:
    migrated(any_database)
    fill(any_database, 3)
    is_hypertable = "timescale" in any_database.value("SELECT string_agg(extname, ' ') FROM pg_extension")
    settings = settings_for(any_database, tmp_path, lifecycle={"disk_path": str(tmp_path)})
    with runs.session(settings) as connection:
        state = observe.look(connection, settings.lifecycle, datetime.now(UTC))
        telemetry = state.tables[0]
        assert telemetry.rows == 200
        assert telemetry.bytes > 8_192
        assert telemetry.lag_seconds > 86_400
        assert telemetry.overdue_days == 0
        assert telemetry.chunks == (1 if is_hypertable else 0)
        assert state.policies == 0
        assert state.disk_full_days == float("inf"), "no growth is known on the first day"
        connection.execute("INSERT INTO archive_sizes VALUES (current_date - 2, 1000)")
        state = observe.look(connection, settings.lifecycle, datetime.now(UTC))
        assert state.growth_bytes == pytest.approx((state.database_bytes - 1_000) / 2)
        assert state.disk_full_days == pytest.approx(state.disk_free_bytes / state.growth_bytes)
    assert not all(ok for ok, _ in observe.lines(state)), "a day without a copy for two days"
    assert run(settings)[0].ok
    with runs.session(settings) as connection:
        state = observe.look(connection, settings.lifecycle, datetime.now(UTC))
    assert state.tables[0].lag_seconds == 0
    said = [str(line) for line in check.lifecycle(settings)]
    assert any("esp_telemetry: 200 rows" in line for line in said), said


def test_a_retention_policy_of_somebody_is_said(pglite: Database, tmp_path: Path) -> None:
    migrated(pglite)
    pglite.run("SELECT add_retention_policy('esp_telemetry', INTERVAL '30 days')")
    settings = settings_for(pglite, tmp_path)
    with runs.session(settings) as connection:
        state = observe.look(connection, settings.lifecycle, datetime.now(UTC))
    assert state.policies == 1
    assert {job.name for job in state.jobs} >= {"policy_compression esp_telemetry", "policy_retention esp_telemetry"}
    assert any("a retention policy drops rows" in text for ok, text in observe.lines(state) if not ok)


def test_compressed_chunks_are_archived_dropped_and_restored_into(pglite: Database, tmp_path: Path) -> None:
    migrated(pglite)
    for days_ago in (40, 20):
        fill(pglite, days_ago)
    fill_diagnostics(pglite, 100)
    pglite.run("SELECT compress_chunk(c) FROM show_chunks('esp_telemetry') AS c")
    pglite.run("SELECT compress_chunk(c) FROM show_chunks('diagnostic_results') AS c")
    before = {table: contents(pglite, table) for table in ("esp_telemetry", "diagnostic_results")}
    settings = settings_for(pglite, tmp_path)
    outcome, _ = run(settings)
    assert outcome.ok, outcome.problems
    assert pglite.value("SELECT count(*) FROM esp_telemetry") == 200
    assert pglite.value("SELECT count(*) FROM diagnostic_results") == 4
    with runs.session(settings) as connection:
        state = observe.look(connection, settings.lifecycle, datetime.now(UTC))
    assert (state.tables[0].chunks, state.tables[0].compressed) == (1, 1)
    day = today() - timedelta(days=20)
    pglite.run(f"DELETE FROM esp_telemetry WHERE well_id <> 'ESP-03' AND timestamp < '{midnight(19)}'")
    for _ in range(2):
        reading.restore_days(settings, reading.Wanted("esp_telemetry", day, day), lambda *_: None)
    assert pglite.value("SELECT count(*) FROM esp_telemetry") == 200
    for table, ago in (("esp_telemetry", 40), ("diagnostic_results", 100)):
        old = today() - timedelta(days=ago)
        reading.restore_days(settings, reading.Wanted(table, old, old), lambda *_: None)
    assert {table: contents(pglite, table) for table in before} == before


def test_restore_into_another_table_and_of_one_well(any_database: Database, tmp_path: Path) -> None:
    migrated(any_database)
    fill(any_database, 40)
    settings = settings_for(any_database, tmp_path)
    run(settings)
    day = today() - timedelta(days=40)
    for _ in range(2):
        reading.restore_days(settings, reading.Wanted("esp_telemetry", day, day, "ESP-01", "august"), lambda *_: None)
    assert any_database.all("SELECT DISTINCT well_id FROM august") == [("ESP-01",)]
    assert any_database.value("SELECT count(*) FROM august") == 29
    assert any_database.value("SELECT count(*) FROM esp_telemetry") == 0
