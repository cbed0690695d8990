"""What goes wrong with an archive, a clock or a day: a sentence, nothing dropped, nothing overwritten."""

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from esp_ingest.lifecycle import reading, retention, runs
from esp_ingest.lifecycle.archive import export
from esp_ingest.lifecycle.days import Days
from esp_ingest.lifecycle.errors import LifecycleError, Reason
from esp_ingest.service.clock import SystemClock
from esp_ingest.store.locks import LOCKS
from tests.support.databases import Database
from tests.support.lifecycle_data import (
    contents,
    fill,
    fill_diagnostics,
    midnight,
    migrated,
    run,
    settings_for,
    today,
)
from tests.support.waiting import until

OLD = 40
DAY = today() - timedelta(days=OLD)
PLACE = f"esp_telemetry/day={DAY}"


@pytest.fixture
def database(postgres15: Database) -> Database:
    return migrated(postgres15)


@pytest.fixture
def archived(database: Database, tmp_path: Path) -> Database:
    """A day that is archived and proven, and due to be dropped by the next run; a second one to swap with."""
    fill(database, OLD)
    fill(database, OLD + 1)
    outcome, _ = run(settings_for(database, tmp_path, lifecycle={"telemetry_days": 0, "rejects_days": 0}))
    assert outcome.ok
    return database


def file_of(folder: Path, place: str = PLACE) -> Path:
    (found,) = (folder / place).glob("*.parquet")
    return found


def flip_a_bit(folder: Path) -> None:
    path = file_of(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    path = file_of(folder)
    path.write_bytes(path.read_bytes()[:-100])


def lose_the_manifest(folder: Path) -> None:
    (folder / PLACE / "manifest.json").unlink()


def lose_the_file(folder: Path) -> None:
    file_of(folder).unlink()


def swap_the_file(folder: Path) -> None:
    shutil.copy(file_of(folder, f"esp_telemetry/day={DAY - timedelta(days=1)}"), file_of(folder))


def swap_the_whole_day(folder: Path) -> None:
    """Files and manifest of another day, the manifest edited so that it looks right."""
    other = folder / f"esp_telemetry/day={DAY - timedelta(days=1)}"
    shutil.rmtree(folder / PLACE)
    shutil.copytree(other, folder / PLACE)
    edit_manifest(folder, day=str(DAY))


def garble_the_manifest(folder: Path) -> None:
    (folder / PLACE / "manifest.json").write_text('{"table": "esp_tele')


def lie_about_rows(folder: Path) -> None:
    edit_manifest(folder, rows=199)


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / PLACE / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE: list[Callable[[Path], None]] = [
    flip_a_bit,
    truncate,
    lose_the_manifest,
    lose_the_file,
    swap_the_file,
    swap_the_whole_day,
    garble_the_manifest,
    lie_about_rows,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_before_anything_is_dropped_and_mended_while_the_day_is_here(
    archived: Database, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    before = contents(archived, "esp_telemetry")
    damage(tmp_path)
    settings = settings_for(archived, tmp_path)

    outcome, _ = run(settings)

    assert [problem.reason for problem in outcome.problems] == [Reason.DAMAGED]
    assert outcome.dropped == [], "not even a day that is whole"
    assert contents(archived, "esp_telemetry") == before
    (row,) = [row for row in runs.status(settings) if row["table"] == "esp_telemetry" and row["day"] == str(DAY)]
    assert row["verified_at"] is None
    assert row["problem"]
    outcome, _ = run(settings)
    assert outcome.ok, outcome.problems
    assert archived.value("SELECT count(*) FROM esp_telemetry") == 0
    reading.restore_days(settings, reading.Wanted("esp_telemetry", DAY - timedelta(1), DAY), lambda *_: None)
    assert contents(archived, "esp_telemetry") == before


@pytest.mark.parametrize("damage", [each for each in DAMAGE if each is not swap_the_whole_day])
def test_verify_and_restore_find_damage_of_a_dropped_day(
    archived: Database, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    settings = settings_for(archived, tmp_path)
    assert run(settings)[0].dropped
    damage(tmp_path)
    said: list[str] = []
    code = reading.verify_days(settings, None, None, None, lambda event, fields: said.append(event))
    assert code == 1
    assert said.count("problem") == 1
    if damage is not lose_the_manifest:
        with pytest.raises(LifecycleError) as caught:
            reading.restore_days(settings, reading.Wanted("esp_telemetry", DAY, DAY), lambda *_: None)
        assert caught.value.reason is Reason.DAMAGED
    assert archived.value("SELECT count(*) FROM esp_telemetry") == 0
    # Late rows do not make a version that would lack what is damaged.
    insert = "INSERT INTO esp_telemetry (timestamp, well_id, received_at)"
    archived.run(f"{insert} VALUES ('{midnight(OLD)}', 'LATE', now())")
    files = {path: path.read_bytes() for path in (tmp_path / PLACE).iterdir()}
    outcome, _ = run(settings)
    assert [problem.reason for problem in outcome.problems] == [Reason.DAMAGED]
    assert {path: path.read_bytes() for path in (tmp_path / PLACE).iterdir()} == files
    assert archived.value("SELECT count(*) FROM esp_telemetry") == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2, "program_version": "9.9"}, Reason.NEWER),
        ({"schema_version": 9_999}, Reason.NEWER),
        ({"version": 7}, Reason.NEWER),
        ({"database": "another"}, Reason.FOREIGN),
    ],
)
def test_a_manifest_that_is_not_ours_to_replace(
    archived: Database, tmp_path: Path, changes: dict[str, object], reason: Reason
) -> None:
    if "version" in changes:
        changes = changes | {"id": "00000000-0000-0000-0000-000000000000"}
    edit_manifest(tmp_path, **changes)
    files = {path: path.read_bytes() for path in (tmp_path / PLACE).iterdir()}
    late = midnight(OLD) + timedelta(hours=3)
    archived.run(f"INSERT INTO esp_telemetry (timestamp, well_id, received_at) VALUES ('{late}', 'LATE', now())")
    for _ in range(2):
        outcome, _ = run(settings_for(archived, tmp_path))
        assert [problem.reason for problem in outcome.problems] == [reason]
        assert outcome.dropped == []
    assert {path: path.read_bytes() for path in (tmp_path / PLACE).iterdir()} == files
    assert archived.value("SELECT count(*) FROM esp_telemetry") == 401


def test_an_archive_ahead_of_a_database_from_a_backup_is_merged_when_told(archived: Database, tmp_path: Path) -> None:
    """The database forgets what it archived, and one reading; the archive forgets nothing."""
    before = contents(archived, "esp_telemetry")
    archived.run("DELETE FROM archive_days")
    archived.run("DELETE FROM esp_telemetry WHERE well_id = 'ESP-03'")
    settings = settings_for(archived, tmp_path)
    outcome, _ = run(settings)
    assert {problem.reason for problem in outcome.problems} == {Reason.NEWER}
    assert outcome.dropped == []
    outcome, _ = run(settings, adopt=True)
    assert outcome.ok, outcome.problems
    assert archived.value("SELECT count(*) FROM esp_telemetry") == 0
    reading.restore_days(settings, reading.Wanted("esp_telemetry", DAY - timedelta(1), DAY), lambda *_: None)
    assert contents(archived, "esp_telemetry") == before


def test_two_databases_never_share_an_archive(postgres15: Database, archived: Database, tmp_path: Path) -> None:
    other = archived.server.create_database()
    try:
        fill(migrated(other), OLD + 5)
        files = sorted(tmp_path.rglob("*"))
        outcome, _ = run(settings_for(other, tmp_path))
        assert [problem.reason for problem in outcome.problems] == [Reason.FOREIGN]
        assert other.value("SELECT count(*) FROM esp_telemetry") == 200
        assert sorted(tmp_path.rglob("*")) == files
        with pytest.raises(LifecycleError, match="another database"):
            reading.restore_days(settings_for(other, tmp_path), reading.Wanted("esp_telemetry", DAY, DAY), print)
    finally:
        archived.server.drop_database(other)


def test_an_empty_place_is_not_taken_for_the_archive(archived: Database, tmp_path: Path) -> None:
    outcome, _ = run(settings_for(archived, tmp_path / "not-mounted"))
    assert [problem.reason for problem in outcome.problems] == [Reason.DAMAGED]
    assert "mount it" in outcome.problems[0].sentence
    assert not (tmp_path / "not-mounted").exists()
    assert outcome.dropped == []


def test_a_second_run_at_the_same_time_does_nothing(archived: Database, tmp_path: Path) -> None:
    with archived.connect() as connection:
        connection.execute(f"SELECT pg_advisory_lock({LOCKS['lifecycle']})".encode())
        outcome, said = run(settings_for(archived, tmp_path))
    assert outcome.busy
    assert not outcome.ok
    assert said == []


class WrongClock(SystemClock):
    """Ahead by some days, or behind."""

    def __init__(self, days: float) -> None:
        self._us = round(days * 86_400_000_000)

    def now_us(self) -> int:
        return super().now_us() + self._us


@pytest.mark.parametrize("days", [365.0, -365.0, 0.01])
def test_a_clock_that_jumped_archives_and_drops_nothing(database: Database, tmp_path: Path, days: float) -> None:
    fill(database, 3)
    settings = settings_for(database, tmp_path)
    outcome = runs.run_once(settings, WrongClock(days), lambda *_: None)
    assert [problem.reason for problem in outcome.problems] == [Reason.CLOCK]
    assert not (tmp_path / "esp_telemetry").exists()
    assert run(settings)[0].ok
    database.run("UPDATE archive_identity SET last_run = now() + INTERVAL '1 day'")
    outcome, _ = run(settings)
    assert [problem.reason for problem in outcome.problems] == [Reason.CLOCK]


def test_today_and_the_first_minutes_of_a_day_are_not_archived(database: Database, tmp_path: Path) -> None:
    fill(database, 0, rows=5)
    fill(database, 1, rows=5)
    settings = settings_for(database, tmp_path, lifecycle={"settle_minutes": 24 * 60})
    assert run(settings)[0].archived == []
    outcome, _ = run(settings_for(database, tmp_path))
    assert {day for _, day in outcome.archived} == {today() - timedelta(days=1)}


# -- Late rows between verify and drop.


@pytest.fixture(params=["timescaledb_apache", "postgres15"])
def concurrent(request: pytest.FixtureRequest) -> Database:
    database: Database = request.getfixturevalue(request.param)
    return migrated(database)


def test_a_late_row_between_verify_and_drop_stops_the_drop(
    concurrent: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(concurrent, OLD)
    late = midnight(OLD) + timedelta(hours=3)
    original = retention.drop

    def late_then_drop(*arguments: object) -> int:
        monkeypatch.setattr(retention, "drop", original)
        concurrent.run(f"INSERT INTO esp_telemetry (timestamp, well_id, received_at) VALUES ('{late}', 'LATE', now())")
        return original(*arguments)

    monkeypatch.setattr(retention, "drop", late_then_drop)
    settings = settings_for(concurrent, tmp_path)
    outcome, _ = run(settings)
    assert [problem.reason for problem in outcome.problems] == [Reason.MISMATCH]
    assert concurrent.value("SELECT count(*) FROM esp_telemetry") == 201
    outcome, _ = run(settings)
    assert outcome.ok, outcome.problems
    assert concurrent.value("SELECT count(*) FROM esp_telemetry") == 0
    reading.restore_days(settings, reading.Wanted("esp_telemetry", DAY, DAY), lambda *_: None)
    assert concurrent.value("SELECT count(*) FROM esp_telemetry") == 201


def test_a_late_row_that_comes_during_the_drop_is_not_dropped(
    concurrent: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written after the check and before the drop commits: it waits for the chunk's lock, or is not seen by DELETE."""
    fill(concurrent, OLD)
    late = midnight(OLD) + timedelta(hours=3)
    original = Days.dropped
    writers: list[subprocess.Popen[bytes]] = []

    def dropped_then_late(*arguments: Any) -> None:
        original(*arguments)
        if not writers:
            insert = f"INSERT INTO esp_telemetry (timestamp, well_id, received_at) VALUES ('{late}', 'LATE', now())"
            writers.append(subprocess.Popen(["psql", concurrent.dsn, "-c", insert]))
            with psycopg.connect(concurrent.dsn) as connection:
                while (
                    writers[0].poll() is None
                    and not connection.execute(
                        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
                    ).fetchall()
                ):
                    connection.rollback()

    monkeypatch.setattr(Days, "dropped", dropped_then_late)
    settings = settings_for(concurrent, tmp_path)
    outcome, _ = run(settings)
    is_written = writers[0].wait(30) == 0
    stored = concurrent.value("SELECT count(*) FROM esp_telemetry")
    if outcome.ok:
        assert stored == is_written, "what the server confirmed is there, and nothing else"
    else:  # the two waited for each other, the server ended the drop, and the next try saw the row
        assert {problem.reason for problem in outcome.problems} == {Reason.MISMATCH}
        assert (stored, is_written) == (201, True)


def test_a_drop_that_the_server_ends_for_a_deadlock_is_tried_again(
    timescaledb_apache: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that has read the chunk before it was locked: it waits for the lock, and the drop for the writer."""
    concurrent = migrated(timescaledb_apache)
    fill(concurrent, OLD)
    late = midnight(OLD) + timedelta(hours=3)
    insert = f"INSERT INTO esp_telemetry (timestamp, well_id, received_at) VALUES ('{late}', 'LATE', now())"
    original = Days.dropped
    writers: list[threading.Thread] = []

    def write(connection: psycopg.Connection[Any]) -> None:
        connection.execute(insert.encode())
        connection.rollback()
        connection.close()

    def dropped_then_write(*arguments: Any) -> None:
        original(*arguments)
        if not writers:
            writers.append(threading.Thread(target=write, args=(reader,)))
            writers[0].start()
            until(lambda: concurrent.value("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    reader = psycopg.connect(concurrent.dsn)
    reader.execute("SET deadlock_timeout = '1min'")  # so that the drop is the one that the server ends
    reader.execute("SELECT count(*) FROM esp_telemetry")
    monkeypatch.setattr(Days, "dropped", dropped_then_write)
    outcome, _ = run(settings_for(concurrent, tmp_path))
    writers[0].join(30)
    assert outcome.ok, outcome.problems
    assert concurrent.value("SELECT count(*) FROM esp_telemetry") == 0
    assert concurrent.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") > 0


def test_a_value_changed_by_hand_is_archived_again_before_it_is_dropped(archived: Database, tmp_path: Path) -> None:
    """Neither the count nor the newest received_at shows it."""
    archived.run("UPDATE esp_telemetry SET pip = 4321 WHERE well_id = 'ESP-02'")
    before = contents(archived, "esp_telemetry")
    settings = settings_for(archived, tmp_path)
    outcome, _ = run(settings)
    assert {problem.reason for problem in outcome.problems} == {Reason.MISMATCH}
    outcome, _ = run(settings)
    assert outcome.ok, outcome.problems
    reading.restore_days(settings, reading.Wanted("esp_telemetry", DAY - timedelta(1), DAY), lambda *_: None)
    assert contents(archived, "esp_telemetry") == before


def test_an_occurrence_that_clears_after_its_day_was_dropped_is_archived_and_goes(
    database: Database, tmp_path: Path
) -> None:
    fill_diagnostics(database, 100)
    settings = settings_for(database, tmp_path)
    assert run(settings)[0].ok
    assert database.value("SELECT count(*) FROM diagnostic_results") == 4
    database.run("UPDATE diagnostic_results SET cleared_at = now(), state = 'normal'")
    outcome, _ = run(settings)
    assert outcome.ok, outcome.problems
    assert database.value("SELECT count(*) FROM diagnostic_results") == 0
    day = today() - timedelta(days=100)
    reading.restore_days(settings, reading.Wanted("diagnostic_results", day, day), lambda *_: None)
    assert database.value("SELECT count(*) FROM diagnostic_results") == 40
    assert database.value("SELECT count(*) FROM diagnostic_results WHERE cleared_at IS NULL") == 0


# -- Schemas.


def test_a_column_that_was_added_later_is_archived_and_restored(archived: Database, tmp_path: Path) -> None:
    archived.run("ALTER TABLE esp_telemetry ADD COLUMN sand_rate double precision")
    archived.run("UPDATE esp_telemetry SET sand_rate = 0.25 WHERE well_id = 'ESP-02'")
    before = contents(archived, "esp_telemetry")
    settings = settings_for(archived, tmp_path)
    run(settings)
    outcome, _ = run(settings)
    assert outcome.ok, outcome.problems
    reading.restore_days(settings, reading.Wanted("esp_telemetry", DAY - timedelta(1), DAY), lambda *_: None)
    assert contents(archived, "esp_telemetry") == before
    archived.run("DELETE FROM esp_telemetry")
    archived.run("ALTER TABLE esp_telemetry DROP COLUMN sand_rate")
    with pytest.raises(LifecycleError, match="has the column sand_rate, which the table lacks"):
        reading.restore_days(settings, reading.Wanted("esp_telemetry", DAY, DAY), lambda *_: None)


def test_a_column_that_the_archive_cannot_hold_stops_everything_in_a_sentence(
    archived: Database, tmp_path: Path
) -> None:
    archived.run("ALTER TABLE esp_telemetry ADD COLUMN tags text[]")
    outcome, _ = run(settings_for(archived, tmp_path))
    assert outcome.problems[0].reason is Reason.SCHEMA
    assert "esp_telemetry.tags has the type text[]" in outcome.problems[0].sentence
    assert outcome.dropped == []


@pytest.mark.parametrize("moment", ["infinity", "0044-03-15 00:00:00+00 BC"])
def test_times_that_no_file_can_hold(database: Database, tmp_path: Path, moment: str) -> None:
    fill(database, OLD)
    if moment == "infinity":
        database.run("UPDATE esp_telemetry SET received_at = 'infinity' WHERE well_id = 'ESP-02'")
    else:
        database.run(f"INSERT INTO esp_telemetry (timestamp, well_id, received_at) VALUES ('{moment}', 'X', now())")
    outcome, _ = run(settings_for(database, tmp_path))
    assert outcome.problems[0].reason is Reason.SCHEMA
    assert outcome.dropped == []


# -- Storage.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_costs_nothing_and_the_next_run_goes_on(database: Database, small_disk: Path) -> None:
    fill(database, OLD, rows=30_000)
    settings = settings_for(database, small_disk)
    outcome, _ = run(settings)
    assert [problem.reason for problem in outcome.problems] == [Reason.STORAGE]
    assert "No space left on device" in outcome.problems[0].sentence
    assert outcome.dropped == []
    assert database.value("SELECT count(*) FROM esp_telemetry") == 30_000
    assert len(list(small_disk.rglob("*.parquet"))) == len(outcome.archived), "what was begun is removed"
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert run(settings)[0].ok
    assert database.value("SELECT count(*) FROM esp_telemetry") == 0


def test_a_read_only_folder_is_said(archived: Database, small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    archived.run("DELETE FROM archive_days")
    outcome, _ = run(settings_for(archived, small_disk / "archive"))
    assert [problem.reason for problem in outcome.problems] == [Reason.STORAGE]
    assert "Read-only file system" in outcome.problems[0].sentence
    assert archived.value("SELECT count(*) FROM esp_telemetry") == 400


def test_memory_is_bounded_by_pages_and_not_by_the_day(database: Database, tmp_path: Path) -> None:
    """Rejects of a megabyte each: a page holds some, a row group holds some more, never all."""
    at = midnight(OLD).isoformat()
    database.run(
        "INSERT INTO ingest_rejects (received_at, digest, item, topic, reason, detail, payload, redelivered) "
        f"SELECT '{at}'::timestamptz + n * INTERVAL '1 s', md5(n::text)::uuid, 0, 't', 'invalid_json', '', "
        "decode(repeat(md5(n::text), 32768), 'hex'), false FROM generate_series(1, 100) n"
    )
    pages = list(export.pages(iter([(b"x" * 1_000_000,)] * 30)))
    assert max(len(page) for page in pages) <= 9
    outcome, _ = run(settings_for(database, tmp_path))
    assert outcome.ok, outcome.problems
    import pyarrow.parquet as pq

    metadata = pq.ParquetFile(file_of(tmp_path, f"ingest_rejects/day={DAY}")).metadata
    assert metadata.num_row_groups >= 2
    assert max(metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)) < 100
