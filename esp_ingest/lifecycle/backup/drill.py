"""`lifecycle drill`: restores the newest backup into an empty folder, starts it, compares it with the manifests of
the archive, throws it away, and remembers the result. The live database is only read, apart from the row with the
result."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from esp_ingest.config.settings import ConfigError, Settings
from esp_ingest.interfaces import Clock
from esp_ingest.lifecycle import reading, runs
from esp_ingest.lifecycle.backup import compare, instance, pgbackrest
from esp_ingest.lifecycle.backup.instance import Instance
from esp_ingest.lifecycle.backup.pgbackrest import Backup
from esp_ingest.lifecycle.errors import BackupError, LifecycleError
from esp_ingest.service.guard import undisturbed
from esp_ingest.store.queries import query

_MARK = "esp-ingest-drill"
_LOCATIONS_OF_WAL = slice(8, 24)  # a segment's name without its timeline

Report = Callable[[str], None]
"""Gets a line for people after each step."""


@dataclass
class Result:
    """The result of a drill. ``problem`` is empty after a successful drill, else a sentence. ``recovered_at`` is the
    time of the newest transaction in the copy."""

    seconds: float = 0.0
    problem: str = ""
    backup: Backup | None = None
    recovered_at: datetime | None = None
    days: int = 0
    rows: int = 0


def run(settings: Settings, clock: Clock, report: Report) -> Result:
    """Do one drill. Blocks until it has ended. Raises ConfigError if it cannot be begun; whatever goes wrong later
    is in the result."""
    if os.geteuid() == 0:
        raise ConfigError(
            "PostgreSQL does not start as root: run the drill as a user that may read the backup, as with "
            "setpriv --reuid=postgres --regid=postgres --init-groups."
        )
    if not settings.archive.url:
        raise ConfigError("archive.url is not set: a drill compares what it restored with the archive's manifests.")
    folder = settings.backup.folder()
    begun = clock.monotonic()
    result = Result()
    try:
        _drill(settings, folder, clock, result, report)
    except (BackupError, LifecycleError) as error:
        result.problem = str(error)
    except OSError as error:
        where = error.filename or folder
        result.problem = f"The drill cannot use {where}: {error.strerror or error}."
    result.seconds = clock.monotonic() - begun
    return result


def _drill(settings: Settings, folder: Path, clock: Clock, result: Result, report: Report) -> None:
    backup = result.backup = pgbackrest.newest(settings.backup)
    binaries = instance.programs(backup.postgres, settings.backup.postgres_bin)
    made = datetime.fromtimestamp(backup.ended_seconds, UTC)
    with _emptied(folder):
        free = shutil.disk_usage(folder).free
        if free < backup.bytes:
            raise BackupError(
                f"The backup needs {backup.bytes} bytes in {folder}, which has {free}: make room, or set "
                "backup.drill_folder."
            )
        begun = clock.monotonic()
        pgbackrest.restore(settings.backup, backup, folder, clock)
        report(
            f"restored backup {backup.label} of repository {backup.repository}, made {made:%Y-%m-%d %H:%M:%S} UTC, "
            f"{backup.bytes} bytes, in {clock.monotonic() - begun:.1f} s"
        )
        begun = clock.monotonic()
        fetch = pgbackrest.restore_command(settings.backup, backup, folder)
        with instance.started(binaries, folder, fetch) as copy:
            copy.await_ready(settings.database, settings.backup.start_timeout_seconds, clock)
            taken = clock.monotonic() - begun
            _look(settings, copy, binaries, backup, result)
            report(f"started and replayed WAL to {result.recovered_at or 'the end of the backup'} in {taken:.1f} s")
            begun = clock.monotonic()
            found = _compared(settings, copy)
            result.days, result.rows = found.days, found.rows
            report(
                f"compared {found.days} archived days, {found.rows} rows, in {clock.monotonic() - begun:.1f} s; "
                f"{found.skipped} days have nothing to compare with yet"
            )
    if found.problems:
        more = f" {len(found.problems) - 1} more days have a problem." if len(found.problems) > 1 else ""
        raise BackupError(found.problems[0] + more)
    if not found.days:
        raise BackupError(
            "No archived day is in this backup yet, so there is nothing to compare: run esp-ingest lifecycle run."
        )


def _look(settings: Settings, copy: Instance, binaries: Path, backup: Backup, result: Result) -> None:
    """Ask the copy what it recovered. Raises BackupError if WAL or a library is missing."""
    try:
        with psycopg.connect(copy.settings(settings.database).dsn.get_secret_value(), autocommit=True) as connection:
            row = connection.execute(query("drill_recovery")).fetchone()
            extension = connection.execute(query("drill_timescaledb")).fetchone()
    except psycopg.Error as error:
        text = str(error).strip().splitlines()[0].rstrip(".")
        hint = ": install that version of TimescaleDB beside PostgreSQL" if "timescaledb-" in text else ""
        raise BackupError(f"The restored database cannot be read ({text}){hint}.") from None
    assert row is not None
    result.recovered_at, replayed = row
    if extension is not None and not instance.has_timescaledb(binaries, extension[0]):
        raise BackupError(
            f"The backup needs TimescaleDB {extension[0]}, which is not installed here: install exactly that version."
        )
    if replayed is not None and replayed[_LOCATIONS_OF_WAL] < backup.last_wal[_LOCATIONS_OF_WAL]:
        raise BackupError(
            f"The WAL ends at segment {replayed}, but repository {backup.repository} goes on to {backup.last_wal}: "
            "what is between them is damaged or gone; make a new full backup."
        )


def _compared(settings: Settings, copy: Instance) -> compare.Compared:
    there = settings.model_copy(update={"database": copy.settings(settings.database)})
    with reading.opened(there) as (days, storage, origin):
        return compare.compare(days, storage, origin)


@contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    """The folder for one drill. It is made if it does not exist, must be empty otherwise, and is emptied or removed
    at the end. What a drill that was killed left in it is removed first. Raises BackupError and OSError."""
    mark = folder / _MARK
    is_ours = mark.exists() or not folder.exists()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not mark.exists() and any(folder.iterdir()):
        raise BackupError(
            f"The folder {folder} is not empty, and no drill made what is in it: name another in backup.drill_folder."
        )
    folder.chmod(0o700)
    with mark.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(f"Another drill is at work in {folder}: wait for it.") from None
        _empty(folder)
        try:
            (folder / "tablespaces").mkdir(mode=0o700)
            (folder / "lock").mkdir(mode=0o700)
            (folder / "data").mkdir(mode=0o700)
            yield
        finally:
            with undisturbed():
                _empty(folder)
                mark.unlink(missing_ok=True)
                if is_ours:
                    with contextlib.suppress(OSError):
                        folder.rmdir()


def _empty(folder: Path) -> None:
    """Remove everything in the folder except the mark. Raises OSError."""
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        elif each.name != _MARK:
            each.unlink()


def remember(settings: Settings, result: Result) -> str:
    """Write the result into the live database, for the metrics of `lifecycle run`. Returns a sentence if that
    failed, else an empty text."""
    backup = result.backup
    values = {
        "seconds": result.seconds,
        "problem": result.problem,
        "backup": backup.label if backup else None,
        "repository": backup.repository if backup else None,
        "backup_at": datetime.fromtimestamp(backup.ended_seconds, UTC) if backup else None,
        "recovered_at": result.recovered_at,
        "days": result.days,
        "rows": result.rows,
    }
    try:
        with runs.session(settings) as connection:
            connection.execute(query("drill_note"), values)
    except LifecycleError as error:
        return str(error)
    except psycopg.Error as error:
        return str(error).strip().splitlines()[0]
    return ""
