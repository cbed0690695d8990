"""What happens to a day between its proof and its drop, and to one that is dropped more than once: nothing goes that is
not in the archive."""

import json
import uuid
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg.pq import TransactionStatus

from esp_ingest.lifecycle import query, reading, retention
from esp_ingest.lifecycle.archive import verify
from esp_ingest.lifecycle.archive.checksum import Content
from esp_ingest.lifecycle.days import Days
from esp_ingest.lifecycle.errors import Reason
from esp_ingest.lifecycle.tables import Table
from tests.support.databases import Database
from tests.support.lifecycle_data import contents, fill, midnight, migrated, run, settings_for, today

OLD = 40
DAY = today() - timedelta(days=OLD)
LATE = f"INSERT INTO esp_telemetry (timestamp, well_id, received_at) VALUES ('{midnight(OLD)}', 'LATE%s', now())"


@pytest.fixture
def database(any_database: Database) -> Database:
    return migrated(any_database)


def before_the_drop(monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    """Run ``statement`` once, after all is proven and before the first drop begins, on the run's own connection: one
    edition has a single one."""
    original = retention.drop

    def first_the_statement(days: Any, *arguments: Any) -> int:
        monkeypatch.setattr(retention, "drop", original)
        days.connection.execute(statement.encode())
        return original(days, *arguments)

    monkeypatch.setattr(retention, "drop", first_the_statement)


def compress(database: Database) -> None:
    """Put all chunks into the columnstore, where there is one."""
    if database.value("SELECT current_setting('timescaledb.license', true)") == "timescale":
        for (chunk,) in database.all("SELECT show_chunks('esp_telemetry')::text"):
            database.run(f"CALL convert_to_columnstore('{chunk}')")


def test_a_late_row_between_proof_and_drop_stops_the_drop_on_every_edition(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, OLD)
    compress(database)
    before_the_drop(monkeypatch, LATE % 1)
    settings = settings_for(database, tmp_path)
    outcome, _ = run(settings)
    assert [problem.reason for problem in outcome.problems] == [Reason.MISMATCH]
    stored = contents(database, "esp_telemetry")
    assert len(stored) == 201
    outcome, _ = run(settings)
    assert outcome.ok, outcome.problems
    assert contents(database, "esp_telemetry") == []
    reading.restore_days(settings, reading.Wanted("esp_telemetry", DAY, DAY), lambda *_: None)
    assert contents(database, "esp_telemetry") == stored


@pytest.mark.parametrize(
    "statement",
    [
        LATE % 1,
        "UPDATE esp_telemetry SET flow_rate = -1 WHERE well_id = 'ESP-03'",
        "DELETE FROM esp_telemetry WHERE well_id = 'ESP-03'",
        "DELETE FROM esp_telemetry WHERE timestamp = (SELECT min(timestamp) FROM esp_telemetry);" + LATE % 1,
    ],
)
def test_whoever_changes_a_day_while_it_is_looked_at_does_not_wait_and_stops_the_drop(
    timescaledb_apache: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """Only the check that nothing has changed since is under the lock."""
    fill(migrated(timescaledb_apache), OLD)
    original = Days.checksum
    changed: list[int] = []

    def change_after(days: Days, table: Table, day: date) -> Content:
        found = original(days, table, day)
        if table.name == "esp_telemetry" and not changed:
            with timescaledb_apache.connect() as other:
                other.execute("SET lock_timeout = '500ms'")
                changed.append(other.execute(statement.encode()).rowcount)
        return found

    monkeypatch.setattr(Days, "checksum", change_after)
    settings = settings_for(timescaledb_apache, tmp_path)
    outcome, _ = run(settings)
    assert changed
    assert changed[0] > 0
    assert [problem.reason for problem in outcome.problems] == [Reason.MISMATCH]
    stored = contents(timescaledb_apache, "esp_telemetry")
    assert stored
    assert run(settings)[0].dropped
    assert contents(timescaledb_apache, "esp_telemetry") == []
    asked = list(query.ask(settings, "SELECT count(*) FROM esp_telemetry"))
    assert [row for _, rows in asked for row in rows] >= [(len(stored),)], "what was archived once stays"


def test_a_day_that_nobody_changes_is_read_once_for_its_drop(
    timescaledb_apache: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(migrated(timescaledb_apache), OLD)
    original, read = Days.checksum, []

    def count(days: Days, table: Table, day: date) -> Content:
        read.append((table.name, days.connection.info.transaction_status))
        return original(days, table, day)

    monkeypatch.setattr(Days, "checksum", count)
    assert run(settings_for(timescaledb_apache, tmp_path))[0].dropped
    assert read == [(name, TransactionStatus.IDLE) for name in ("esp_telemetry", "ingest_rejects")]


def test_a_column_that_comes_between_proof_and_drop_is_archived_first(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its values are in no checksum of this run: the rows would be the proven ones, and the values lost."""
    fill(database, OLD)
    before_the_drop(monkeypatch, "ALTER TABLE esp_telemetry ADD COLUMN added double precision DEFAULT 5")
    settings = settings_for(database, tmp_path)
    outcome, _ = run(settings)
    assert [problem.reason for problem in outcome.problems] == [Reason.MISMATCH]
    assert database.value("SELECT sum(added) FROM esp_telemetry") == 1000
    outcome, _ = run(settings)
    assert outcome.ok, outcome.problems
    assert contents(database, "esp_telemetry") == []
    reading.restore_days(settings, reading.Wanted("esp_telemetry", DAY, DAY), lambda *_: None)
    assert database.value("SELECT sum(added) FROM esp_telemetry") == 1000


def test_a_manifest_that_is_replaced_after_its_proof_stops_the_drop(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of this database writes into the same archive meanwhile: its version may lack rows of ours."""
    fill(database, OLD)
    settings = settings_for(database, tmp_path)
    assert run(settings_for(database, tmp_path, lifecycle={"telemetry_days": 0, "rejects_days": 0}))[0].ok
    original = verify.read_back
    path = tmp_path / f"esp_telemetry/day={DAY}/manifest.json"

    def read_back_then_replace(*arguments: Any) -> Any:
        found = original(*arguments)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"id": str(uuid.uuid4())}))
        return found

    monkeypatch.setattr(verify, "read_back", read_back_then_replace)
    outcome, _ = run(settings)
    assert [problem.reason for problem in outcome.problems] == [Reason.DAMAGED]
    assert database.value("SELECT count(*) FROM esp_telemetry") == 200


def test_a_day_that_is_dropped_twice_and_has_late_rows_again_is_read_back_once(
    database: Database, tmp_path: Path
) -> None:
    fill(database, OLD)
    settings = settings_for(database, tmp_path)
    assert run(settings)[0].dropped
    for late in (1, 2):
        database.run(LATE % late)
        asked = list(query.ask(settings, "SELECT count(*), count(DISTINCT (well_id, timestamp)) FROM esp_telemetry"))
        assert [row for _, rows in asked for row in rows] == [(200 + late, 200 + late)]
        outcome, _ = run(settings)
        assert ("esp_telemetry", DAY) in outcome.dropped
        assert contents(database, "esp_telemetry") == []
    asked = list(query.ask(settings, "SELECT count(*) FROM esp_telemetry"))
    assert [row for _, rows in asked for row in rows] == [(202,)]
