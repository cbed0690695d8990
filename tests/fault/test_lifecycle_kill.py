"""SIGKILL at each step of export, verify, drop and restore: every row is always in the database or in the archive, and
the next run finishes the work."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from esp_ingest.lifecycle import reading
from esp_ingest.store.locks import LOCKS
from tests.support.databases import Database
from tests.support.lifecycle_data import (
    TABLES,
    contents,
    fill,
    fill_diagnostics,
    midnight,
    migrated,
    run,
    settings_for,
    today,
)

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

ARCHIVE, STORAGE = "esp_ingest.lifecycle.archive.export", "esp_ingest.lifecycle.archive.storage:FolderStorage"
DAYS, RETENTION = "esp_ingest.lifecycle.days:Days", "esp_ingest.lifecycle.retention"
STEPS = [
    ("esp_ingest.lifecycle.runs:claim", "after"),
    ("esp_ingest.lifecycle.archive.files:Writer.add", "after"),
    ("esp_ingest.lifecycle.archive.files:Writer.finish", "after"),
    (f"{STORAGE}.take", "before"),
    ("pathlib:Path.replace", "before"),
    ("pathlib:Path.replace", "after"),
    (f"{DAYS}.begin", "before"),
    (f"{DAYS}.begin", "after"),
    (f"{STORAGE}.write", "after"),
    (f"{DAYS}.archived", "after"),
    (f"{ARCHIVE}:clean", "after"),
    ("esp_ingest.lifecycle.archive.verify:read_back", "after"),
    (f"{DAYS}.verified", "after"),
    (f"{RETENTION}:drop", "before"),
    (f"{RETENTION}:_compare", "after"),
    (f"{DAYS}.dropped", "after"),
    (f"{RETENTION}:drop", "after"),
]


@pytest.fixture(
    params=["timescaledb_apache", pytest.param("postgres15", marks=pytest.mark.soak)]  # a step takes seconds
)
def database(request: pytest.FixtureRequest) -> Database:
    found: Database = request.getfixturevalue(request.param)
    return migrated(found)


def killed(database: Database, archive: Path, step: tuple[str, str], number: int, *arguments: str) -> None:
    """Run the command until it kills itself there."""
    where, when = step
    command = [sys.executable, "-m", "tests.support.killed", where, when, str(number), "lifecycle", *arguments]
    environment = os.environ | {
        "ESP_INGEST_DATABASE__DSN": database.dsn,
        "ESP_INGEST_ARCHIVE__URL": str(archive),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, f"{step} was not reached: {done.stdout}{done.stderr}"


def archived_keys(archive: Path) -> set[tuple[object, ...]]:
    """(well, time) of every reading that the manifests name; each manifest's files are there and whole."""
    found = set()
    for path in archive.glob("esp_telemetry/*/manifest.json"):
        manifest = json.loads(path.read_text())
        rows = 0
        for file in manifest["files"]:
            table = pq.read_table(path.parent / file["name"])
            rows += table.num_rows
            found |= set(zip(table["well_id"].to_pylist(), table["timestamp"].to_pylist(), strict=True))
        assert rows == manifest["rows"]
    return found


def stored_keys(database: Database) -> set[tuple[object, ...]]:
    return set(database.all('SELECT well_id, "timestamp" FROM esp_telemetry'))


def released(database: Database) -> None:
    """The killed process's session is gone, and its lock with it."""
    key = LOCKS["lifecycle"]
    with database.connect() as connection:
        connection.execute(f"SELECT pg_advisory_lock({key}), pg_advisory_unlock({key})".encode())


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.soak)])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step[0].split(':')[1]}-{step[1]}")
def test_a_run_is_killed(database: Database, tmp_path: Path, step: tuple[str, str], number: int) -> None:
    if number == 2 and step[0].endswith("claim"):
        pytest.skip("claimed once a run")
    fill(database, 41)
    fill(database, 40)
    fill_diagnostics(database, 100)
    before = {table: contents(database, table) for table in TABLES}
    keys = stored_keys(database)

    killed(database, tmp_path, step, number, "run")

    assert archived_keys(tmp_path) | stored_keys(database) == keys, "a reading is nowhere"
    released(database)
    outcome, _ = run(settings_for(database, tmp_path))
    assert outcome.ok, outcome.problems
    assert stored_keys(database) == set()
    assert archived_keys(tmp_path) == keys
    assert_no_stale_files(tmp_path)
    restore(database, tmp_path, *TABLES)
    assert {table: contents(database, table) for table in TABLES} == before


def assert_no_stale_files(archive: Path) -> None:
    for folder in archive.glob("*/day=*"):
        named = {file["name"] for file in json.loads((folder / "manifest.json").read_text())["files"]}
        assert {path.name for path in folder.glob("*.parquet")} == named


FIRST_DAYS = {"esp_telemetry": 41, "ingest_rejects": 41, "diagnostic_results": 100}


def restore(database: Database, archive: Path, *tables: str) -> None:
    for table in tables:
        first = FIRST_DAYS[table]
        wanted = reading.Wanted(table, midnight(first).date(), today())
        reading.restore_days(settings_for(database, archive), wanted, lambda *_: None)


AGAIN = [
    (f"{STORAGE}.take", "after"),
    (f"{DAYS}.begin", "after"),
    (f"{STORAGE}.write", "after"),
    (f"{ARCHIVE}:clean", "before"),
]


@pytest.mark.parametrize("step", AGAIN, ids=lambda step: f"{step[0].split(':')[1]}-{step[1]}")
def test_a_new_version_is_killed_again_and_again(database: Database, tmp_path: Path, step: tuple[str, str]) -> None:
    fill(database, 40)
    assert run(settings_for(database, tmp_path))[0].ok
    dropped = archived_keys(tmp_path)
    late = midnight(40).isoformat()
    database.run(f"INSERT INTO esp_telemetry (timestamp, well_id, received_at) VALUES ('{late}', 'LATE', now())")
    keys = dropped | stored_keys(database)
    for _ in range(3):
        killed(database, tmp_path, step, 1, "run")
        released(database)
        assert archived_keys(tmp_path) | stored_keys(database) == keys
        assert archived_keys(tmp_path) >= dropped
    outcome, _ = run(settings_for(database, tmp_path))
    assert outcome.ok, outcome.problems
    assert archived_keys(tmp_path) == keys
    assert stored_keys(database) == set()
    assert_no_stale_files(tmp_path)


@pytest.mark.parametrize("number", [1, 3])
def test_a_restore_is_killed(database: Database, tmp_path: Path, number: int) -> None:
    fill(database, 40, rows=2_500)
    before = contents(database, "esp_telemetry")
    assert run(settings_for(database, tmp_path))[0].ok
    day = str(midnight(40).date())
    step = ("esp_ingest.lifecycle.archive.restore:_Array.__init__", "after")
    killed(database, tmp_path, step, 18 * number + 5, "restore", "--from", day, "--to", day)
    assert database.value("SELECT count(*) FROM esp_telemetry") == 0, "all of the day or nothing"
    restore(database, tmp_path, "esp_telemetry")
    assert contents(database, "esp_telemetry") == before
