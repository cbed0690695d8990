"""Upgrade and rollback: an older program on a newer schema, a newer one on an older schema, and both at once."""

import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.store import schema
from esp_ingest.store.capabilities import SchemaError
from esp_ingest.store.schema import Migration, check_database, migrate, migrations
from esp_ingest.store.write.writer import PostgresStore
from tests.support.databases import Database
from tests.support.store_data import DIAGNOSIS, readings, reject

ROOT = Path(__file__).parents[2]
NEWEST = max(step.number for step in migrations())
ADDS = Migration(
    NEWEST + 1,
    "",
    "adds",
    f"-- Something.\n-- works with programs of schema >= {NEWEST}\nALTER TABLE esp_telemetry ADD COLUMN later int;",
)
BREAKS = Migration(
    NEWEST + 2,
    "",
    "breaks",
    f"-- works with programs of schema >= {NEWEST + 1}\nALTER TABLE esp_telemetry ALTER COLUMN later SET DEFAULT 0;",
)
SILENT = Migration(NEWEST + 2, "", "says_nothing", "CREATE TABLE later_still ();")


@dataclass(frozen=True)
class Program:
    """A copy of the program with further migrations: another version of it, as a process."""

    folder: Path

    @staticmethod
    def of(folder: Path, *more: Migration) -> "Program":
        shutil.copytree(ROOT / "esp_ingest", folder / "esp_ingest", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "sql", folder / "sql")
        shutil.copytree(ROOT / "config", folder / "config")
        for step in more:
            (folder / "sql" / "migrations" / f"{step.label}.sql").write_text(step.sql)
        return Program(folder)

    def run(self, database: Database, *arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ESP_INGEST_")}
        environment = kept | {
            "PYTHONPATH": str(self.folder),
            "ESP_INGEST_DATABASE__DSN": database.dsn,
            "ESP_INGEST_MQTT__PORT": "1",
            "ESP_INGEST_SPOOL__PATH": str(self.folder / "spool"),
            "ESP_INGEST_MQTT__CONNECT_TIMEOUT_SECONDS": "0.1",
        }
        command = [sys.executable, "-m", "esp_ingest", *arguments]
        return subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=60)


def line_of(subject: str, output: str) -> str:
    (found,) = re.findall(rf"^{subject} .*$", output, re.MULTILINE)
    return str(found)


class TestOldProgramOnNewSchema:
    def test_goes_on_where_the_migrations_allow_it(self, native_database: Database) -> None:
        migrate(native_database.settings, known=(*migrations(), ADDS))
        found, _ = check_database(native_database.settings)
        assert found.ok
        assert str(NEWEST + 1) in found.detail
        assert str(NEWEST) in found.detail
        report = migrate(native_database.settings)  # nothing to do, and it says why
        assert report.applied == ()
        assert f"newer than this program, which is of schema {NEWEST}, and works with it" in report.lines()[-1]
        store = PostgresStore(native_database.settings)
        store.ping()
        written = store.write(readings([("w1", 0), ("w1", 1)]), [reject(1)], [DIAGNOSIS])
        again = store.write(readings([("w1", 0), ("w1", 1), ("w1", 2)]), [reject(1, redelivered=True)], [DIAGNOSIS])
        store.close()
        assert (written.written, again.written, again.duplicates) == (2, 1, 3)

    @pytest.mark.parametrize("step", [BREAKS, SILENT])
    def test_stops_where_they_do_not(self, postgres15: Database, step: Migration) -> None:
        migrate(postgres15.settings, known=(*migrations(), ADDS, step))
        sentence = f"it has migration {NEWEST + 2}, which works with programs of schema"
        with pytest.raises(SchemaError, match=sentence):
            migrate(postgres15.settings)
        assert sentence in check_database(postgres15.settings)[0].detail
        for use in ("ping", "write"):
            store = PostgresStore(postgres15.settings)
            with pytest.raises(StoreUnavailable, match=sentence):
                store.ping() if use == "ping" else store.write(readings([("w1", 0)]), [], [])

    def test_a_ledger_of_before_gains_the_column(self, postgres15: Database) -> None:
        migrate(postgres15.settings)
        postgres15.run("ALTER TABLE esp_ingest_migrations DROP COLUMN works_with")
        assert check_database(postgres15.settings)[0].ok
        migrate(postgres15.settings, known=(*migrations(), ADDS))
        assert check_database(postgres15.settings)[0].ok


class TestNewProgramOnOldSchema:
    def test_says_migrate_and_goes_on_after_it(self, postgres15: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        migrate(postgres15.settings)
        with monkeypatch.context() as newer:
            newer.setattr(schema, "migrations", lambda: (*migrations(), ADDS))
            store = PostgresStore(postgres15.settings)
            for use in (store.ping, lambda: store.write(readings([("w1", 0)]), [], [])):
                with pytest.raises(
                    StoreUnavailable, match=f"version {NEWEST} and {NEWEST + 1} is needed: run esp-inge"
                ):
                    use()
            migrate(postgres15.settings, known=(*migrations(), ADDS))
            store.ping()
            assert store.write(readings([("w1", 0)]), [], []).written == 1
            store.close()


def test_both_at_once(postgres15: Database, tmp_path: Path) -> None:
    """Two versions of the program as processes: the old one writes while the new one migrates, and is not disturbed."""
    old, new = Program(ROOT), Program.of(tmp_path, ADDS)
    assert old.run(postgres15, "migrate").returncode == 0
    stop = threading.Event()
    trouble: list[BaseException] = []

    def go_on() -> None:
        try:
            at = 0
            while not stop.is_set():
                store = PostgresStore(postgres15.settings)  # connects anew each time: the gate is asked each time
                store.ping()
                store.write(readings([("w1", at)]), [], [])
                store.close()
                at += 1
        except BaseException as error:
            trouble.append(error)

    writing = threading.Thread(target=go_on)
    writing.start()
    upgraded = new.run(postgres15, "migrate")
    after = old.run(postgres15, "migrate")
    stop.set()
    writing.join()
    assert trouble == []
    assert upgraded.returncode == 0, upgraded.stderr
    assert f"applied {ADDS.label}" in upgraded.stdout
    assert after.returncode == 0, after.stderr
    assert f"schema is at version {NEWEST + 1}" in after.stdout
    said = line_of("schema", old.run(postgres15, "check").stdout)
    assert f"ok    The schema is at version {NEWEST + 1}, and works with this program, which writes {NEWEST}" in said
    said = line_of("schema", new.run(postgres15, "check").stdout)
    assert f"ok    The schema is at version {NEWEST + 1}, which this program writes" in said


def test_each_migration_says_which_programs_it_works_with() -> None:
    for step in migrations():
        if step.number > 12:
            assert step.works_with is not None, f"{step.label}: see sql/README.md"
            assert step.works_with <= step.number
