"""Asks pgBackRest for its backups, and has it restore one. It is run as a command, as an operator would type it;
nothing here writes to a repository."""

import json
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esp_ingest.config.settings import BackupSettings
from esp_ingest.interfaces import Clock
from esp_ingest.lifecycle.errors import BackupError
from esp_ingest.service.guard import GuardedProcess

_PROGRAM = "pgbackrest"
_INFO_SECONDS = 300.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Backup:
    """A backup that can be restored. ``ended_seconds`` is Unix time, ``bytes`` is the size of the database in it,
    ``last_wal`` is the name of the newest WAL segment in its repository."""

    label: str
    repository: int
    ended_seconds: int
    bytes: int
    postgres: str
    last_wal: str


def newest(settings: BackupSettings) -> Backup:
    """The newest backup in ``settings.repository``, or in any repository. Raises BackupError."""
    command = [*_command(settings), "--log-level-console=off", "--log-level-stderr=error", "--output=json", "info"]
    try:
        done = subprocess.run(  # noqa: S603 - the command is ours
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_INFO_SECONDS, check=False
        )
    except FileNotFoundError:
        raise BackupError("pgbackrest is not installed on this machine: apt-get install pgbackrest.") from None
    except subprocess.TimeoutExpired:
        raise BackupError(f"pgbackrest info did not answer within {_INFO_SECONDS:.0f} s: try it by hand.") from None
    if done.returncode:
        raise BackupError(f"pgbackrest info failed: {_said(done.stderr)}.")
    try:
        return _newest(json.loads(done.stdout), settings)
    except (ValueError, KeyError, TypeError):
        raise BackupError("pgbackrest info gave no JSON that can be read: try it by hand.") from None


def _newest(stanzas: list[dict[str, Any]], settings: BackupSettings) -> Backup:
    wanted = settings.repository
    of_repository = f" in repository {wanted}" if wanted else ""
    stanza = next((each for each in stanzas if each["name"] == settings.stanza), {})
    found = [
        each
        for each in stanza.get("backup", [])
        if wanted in (0, each["database"]["repo-key"]) and not each.get("error")
    ]
    if not found:
        states = [each["status"] for each in stanza.get("repo", []) if wanted in (0, each["key"])]
        why = next((str(each["message"]).split("\n")[0] for each in states if each["code"]), "")
        raise BackupError(
            f"There is no backup of stanza {settings.stanza}{of_repository}{f' ({why})' * bool(why)}: make one with "
            f"pgbackrest --stanza={settings.stanza} backup."
        )
    latest = max(found, key=lambda each: (each["timestamp"]["stop"], -each["database"]["repo-key"]))
    place = {key: latest["database"][key] for key in ("id", "repo-key")}
    segments = [each["max"] for each in stanza["archive"] if each["database"] == place and each["max"]]
    (version,) = [each["version"] for each in stanza["db"] if {key: each[key] for key in ("id", "repo-key")} == place]
    return Backup(
        latest["label"],
        place["repo-key"],
        latest["timestamp"]["stop"],
        latest["info"]["size"],
        version,
        max(segments, default=""),
    )


def restore(settings: BackupSettings, backup: Backup, folder: Path, clock: Clock) -> None:
    """Restore ``backup`` into ``folder``/data, with its tablespaces beside it. pgBackRest compares the checksum of
    every file. Blocks. Raises BackupError."""
    command = [
        *_command(settings, backup, folder),
        f"--set={backup.label}",
        # Without this a tablespace is restored to where the live database has its own.
        f"--tablespace-map-all={folder / 'tablespaces'}",
        "--archive-mode=off",
        "--type=default",
        "--log-level-console=error",
        "--log-level-stderr=off",
        "restore",
    ]
    output = folder / "restore.log"
    with output.open("wb") as file, GuardedProcess(command, output=file) as guarded:
        while (status := guarded.poll()) is None:
            clock.sleep(_LOOK_SECONDS)
    if status:
        said = _said(output.read_text(errors="replace"))
        raise BackupError(
            f"Backup {backup.label} of repository {backup.repository} cannot be restored: {said}; look at the "
            "repository, and make a new full backup."
        )


def restore_command(settings: BackupSettings, backup: Backup, folder: Path) -> str:
    """The command with which the restored server fetches WAL: from the same repository, and without the queue of
    segments that the live database keeps in pgBackRest's spool-path."""
    command = [*_command(settings, backup, folder), "--no-archive-async", "archive-get"]
    return shlex.join(command).replace("%", "%%") + ' %f "%p"'


def _command(settings: BackupSettings, backup: Backup | None = None, folder: Path | None = None) -> list[str]:
    """pgBackRest with the options that all of its commands take. It uses nothing of the live database: neither its
    data folder, nor its locks, nor its log."""
    options = [f"--stanza={settings.stanza}", "--log-level-file=off"]
    if settings.config:
        options.append(f"--config={settings.config}")
    if backup is not None:
        options.append(f"--repo={backup.repository}")
    if folder is not None:
        # On a repository host the configuration names the database's host, where pgBackRest would want to restore.
        options += [f"--pg1-path={folder / 'data'}", "--reset-pg1-host", f"--lock-path={folder / 'lock'}"]
    return [_PROGRAM, *options]


def _said(output: str) -> str:
    """The first error in the output of pgBackRest, without its number."""
    found = re.search(r"ERROR: \[\d+\]: (.+)", output)
    lines = output.strip().splitlines() or ["it says nothing"]
    return (found[1] if found else lines[-1]).strip().rstrip(".")
