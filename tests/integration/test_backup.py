"""The backup of the whole database by pgBackRest, and the drill that restores it: good ones, and each way to fail."""

import fcntl
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from esp_ingest.config.settings import ConfigError, LifecycleSettings
from esp_ingest.lifecycle import observe
from esp_ingest.lifecycle.backup import drill as drills
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.metrics import LifecycleMetrics
from tests.support.backups import Backups, TimescaleBackups, azurite_tls, backups, drill, timescale_backups
from tests.support.brokers import ROOT
from tests.support.lifecycle_data import contents, midnight, settings_for

__all__ = ["azurite_tls", "backups", "timescale_backups"]  # fixtures of this file's own


@pytest.fixture
def folder(backups: Backups) -> Iterator[Path]:
    """A place for one drill, which is gone afterwards, as are the processes that worked in it."""
    path = backups.folder / f"drill-{time.monotonic_ns()}"
    yield path
    shutil.rmtree(path, ignore_errors=True)
    assert not processes(path)


def processes(folder: Path) -> list[int]:
    """Processes with this folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def files(place: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_size) for path in place.rglob("*") if path.is_file())


def copy_of(backups: Backups, name: str) -> tuple[Path, dict[str, str]]:
    """A copy of repository 1 to damage, and the settings of a drill that restores from it."""
    place = backups.folder / name
    shutil.copytree(backups.folder / "repo1", place, symlinks=True)
    text = re.sub(r"^repo2-.*\n", "", backups.config.read_text(), flags=re.MULTILINE)
    config = backups.folder / f"{name}.conf"
    config.write_text(text.replace(f"repo1-path={backups.folder / 'repo1'}", f"repo1-path={place}"))
    backups.own(place)
    return place, {"ESP_INGEST_BACKUP__CONFIG": str(config)}


def observed(backups: Backups) -> observe.Backup:
    with backups.database.connect() as connection:
        return observe.look(connection, LifecycleSettings(), datetime.now(UTC)).backup


def test_a_drill_replays_the_wal_compares_with_the_archive_and_leaves_no_trace(backups: Backups, folder: Path) -> None:
    database = backups.database
    late = midnight(2) + timedelta(hours=5)
    insert = "INSERT INTO esp_telemetry (timestamp, well_id, pip, received_at)"
    database.run(f"{insert} VALUES ('{late.isoformat()}', 'LATE', 7, now())")  # after the day was archived: no harm
    database.run("UPDATE diagnostic_results SET cleared_at = now() WHERE cleared_at IS NULL")
    backups.archive_wal()
    before = contents(database, "esp_telemetry")
    repository, place = files(backups.folder / "repo1"), files(backups.folder / "place")

    config = backups.folder / "repository-host.conf"  # as on a machine of its own, with a queue for segments
    config.write_text(backups.config.read_text().replace("async=n", "async=y") + "pg1-host=database.example\n")
    done = drill(backups, folder, "--repository", "1", ESP_INGEST_BACKUP__CONFIG=str(config))

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not (backups.folder / "spool").exists(), "the live database's queue of segments"
    said = done.stdout.splitlines()
    assert re.match(r"restored backup \d{8}-\d{6}F of repository 1, made .* UTC, \d+ bytes, in [\d.]+ s$", said[0])
    assert re.match(r"started and replayed WAL to \d{4}-.*\+00:00 in [\d.]+ s$", said[1]), "rows came after the backup"
    # esp_telemetry and ingest_rejects of two days, of which the second came after the backup; and diagnostic_results.
    assert said[2].startswith("compared 5 archived days, 480 rows, ")
    assert said[2].endswith("; 0 days have nothing to compare with yet")
    assert re.match(r"the backup is good; the drill took [\d.]+ s$", said[3])
    assert not folder.exists()
    assert files(backups.folder / "repo1") == repository, "the copy's own timeline must not get into the repository"
    assert files(backups.folder / "place") == place, "a tablespace was restored over the live one"
    assert contents(database, "esp_telemetry") == before
    seen = observed(backups)
    assert time.time() - seen.drill_success < 60
    assert (seen.drill_problem, seen.drill_days) == ("", 5)
    assert seen.drill_backup < seen.drill_success
    assert (seen.is_archiving, seen.is_wal_failing) == (True, False)


def test_the_newest_backup_is_restored_also_out_of_azure_blob(backups: Backups, folder: Path) -> None:
    backups.pgbackrest("--repo=2", "--type=full", "backup")
    done = drill(backups, folder)
    assert done.returncode == 0, done.stderr
    assert " of repository 2, made " in done.stdout
    assert "the backup is good" in done.stdout
    assert not folder.exists()


def test_a_row_that_was_changed_behind_the_archives_back_is_found(backups: Backups, folder: Path) -> None:
    where = f"WHERE well_id = 'ESP-05' AND timestamp >= '{midnight(1)}' AND flow_rate = 0.5"
    backups.database.run(f"UPDATE esp_telemetry SET motor_temp = 101 {where}")
    backups.archive_wal()
    try:
        done = drill(backups, folder, "--repository", "1")
    finally:
        backups.database.run(f"UPDATE esp_telemetry SET motor_temp = 100 {where}")
    assert done.returncode == 1
    assert re.search(
        r"The restored esp_telemetry of \S+ differs from the archive: 200 rows were archived, 200 are there, 1 of the "
        "archived ones are missing or changed; find out",
        done.stderr,
    )
    assert not folder.exists()
    assert observed(backups).drill_problem in done.stderr
    metrics = LifecycleMetrics()
    with backups.database.connect() as connection:
        state = observe.look(connection, LifecycleSettings(), datetime.now(UTC))
    observe.export(state, metrics)
    page = metrics.render().decode()
    assert "esp_ingest_backup_drill_failed 1.0" in page
    assert any(not ok and "backup: the last drill failed" in text for ok, text in observe.lines(state))


def damage_a_file(place: Path) -> str:
    """Flip one bit in the middle of the largest file of the newest backup."""
    largest = max((place / "backup/esp").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0x10
    largest.write_bytes(data)
    return r"Backup \S+ of repository 1 cannot be restored: .+; look at the repository"


def segments(place: Path) -> list[Path]:
    return sorted((place / "archive/esp/15-1").rglob("0000*-*"))


def lose_the_backups_wal(place: Path) -> str:
    """Without the WAL that was written during the backup it is not consistent."""
    for path in segments(place):
        path.unlink()
    return "The restored database does not start: .+"


def lose_a_segment(place: Path) -> str:
    """One in the middle of what came after the backup."""
    segments(place)[-2].unlink()
    return (
        r"The WAL ends at segment \w{24}, but repository 1 goes on to \w{24}: what is between them is damaged or gone"
    )


@pytest.mark.parametrize("damage", [damage_a_file, lose_the_backups_wal, lose_a_segment])
def test_a_damaged_repository_is_found(backups: Backups, folder: Path, damage: Callable[[Path], str]) -> None:
    while len(segments(backups.folder / "repo1")) < 4:  # two of them of the time after the backup
        backups.archive_wal()
    place, settings = copy_of(backups, damage.__name__)
    expected = damage(place)
    done = drill(backups, folder, **settings)
    assert done.returncode == 1
    assert re.search(f"^esp-ingest: {expected}", done.stderr), done.stderr
    assert done.stderr.count("\n") == 1, "one sentence"
    assert not folder.exists()


def test_what_stops_a_drill_before_it_restores_anything(
    backups: Backups, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def problem_of(archive: str = "archive", **backup: str) -> str:
        backup = {"config": str(backups.config), "drill_folder": str(folder), **backup}
        url = str(backups.folder / archive) if archive else ""
        settings = settings_for(backups.database, url, backup=backup)
        result = drills.run(settings, SystemClock(), lambda _: None)
        assert drills.remember(settings, result) == ""
        return result.problem

    with pytest.raises(ConfigError, match="PostgreSQL does not start as root: run the drill as a user"):
        problem_of()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match=r"archive\.url is not set"):
        problem_of("")

    said = problem_of(stanza="other")
    assert said.startswith("There is no backup of stanza other (missing stanza path): make one with pgbackrest ")
    assert observed(backups).drill_problem == said
    assert "no such server in /usr/bin" in problem_of(postgres_bin="/usr/bin")

    folder.mkdir(mode=0o755)
    (folder / "precious").write_text("x")
    assert f"The folder {folder} is not empty, and no drill made what is in it" in problem_of()
    assert (folder / "precious").read_text() == "x"
    (folder / "precious").rename(folder / "esp-ingest-drill")
    with (folder / "esp-ingest-drill").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert f"Another drill is at work in {folder}: wait for it." in problem_of()

    monkeypatch.setenv("PATH", "/nowhere")
    assert problem_of() == "pgbackrest is not installed on this machine: apt-get install pgbackrest."


def begun(backups: Backups, folder: Path) -> "subprocess.Popen[str]":
    """A drill whose backup is restored and whose copy is being started."""
    command = backups.command("--repository", "1")
    process = subprocess.Popen(
        command, env=backups.environment(folder), cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("restored backup"), process.communicate()
    deadline = time.monotonic() + 30
    while not (folder / "data" / "postmaster.pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_a_drill_that_is_stopped_or_killed_leaves_no_server_behind(backups: Backups, folder: Path) -> None:
    process = begun(backups, folder)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while processes(folder):
        assert time.monotonic() < deadline, "the copy outlived the drill"
        time.sleep(0.05)
    assert (folder / "data").exists()

    process = begun(backups, folder)  # removes what the killed one left
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said == "esp-ingest: Stopped by a signal before the command was done.\n"
    assert not folder.exists()
    assert not processes(folder)


def test_a_differential_backup_by_the_shipped_script_is_small_and_what_a_drill_restores(
    backups: Backups, folder: Path
) -> None:
    backups.database.run("CREATE TABLE since_the_full_backup AS SELECT 1 AS one")
    environment = ["env", f"ESP_INGEST_BACKUP__CONFIG={backups.config}", "BACKUP_REPOSITORIES=1"]
    script = ["sh", str(ROOT / "config/backup/esp-ingest-backup"), "diff"]
    done = subprocess.run([*backups.as_postgres(), *environment, *script], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(backups.pgbackrest("--repo=1", "--output=json", "info"))[0]["backup"]
    full, newest = found[0], found[-1]
    assert (full["type"], newest["type"], newest["prior"]) == ("full", "diff", full["label"])
    assert newest["info"]["repository"]["delta"] < full["info"]["repository"]["delta"] / 4
    done = drill(backups, folder, "--repository", "1")
    assert done.returncode == 0, done.stderr
    assert f"restored backup {newest['label']} of repository 1" in done.stdout
    assert "the backup is good" in done.stdout


def titles() -> set[str]:
    """What processes of a copy call themselves: PostgreSQL puts cluster_name there."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            title = path.read_bytes().rstrip(b"\0").decode(errors="replace")
            if title.startswith("postgres: esp-ingest drill"):
                found.add(title.removeprefix("postgres: esp-ingest drill").strip(": "))
    return found


def test_a_drill_on_timescaledb_runs_no_job_and_needs_the_same_library(timescale_backups: TimescaleBackups) -> None:
    folder = timescale_backups.folder / "drill"
    timescale_backups.archive_wal()
    environment = timescale_backups.environment(folder)
    with subprocess.Popen(
        timescale_backups.command(), env=environment, cwd="/", stdout=subprocess.PIPE, text=True
    ) as running:
        seen: set[str] = set()
        while running.poll() is None:
            seen |= titles()
            time.sleep(0.1)
        assert running.stdout is not None
        said = running.stdout.read()
    assert running.returncode == 0
    assert "compared 5 archived days, 480 rows, " in said
    assert any(title.startswith("startup") for title in seen), seen
    assert not any("TimescaleDB" in title or "launcher" in title or "archiver" in title for title in seen), seen

    version = timescale_backups.database.value("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
    (timescale_backups.folder / "lib").unlink()  # for the drill alone; the server has its own path
    done = drill(timescale_backups, folder)
    assert done.returncode == 1
    assert f"The backup needs TimescaleDB {version}, which is not installed here: install exactly " in done.stderr
    assert not folder.exists()
