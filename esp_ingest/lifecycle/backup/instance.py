"""A restored copy of the database that is started to be looked at and is then thrown away. It must not be able to do
anything to the live database, to the backup, or to anything that the live database talks to."""

import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.interfaces import Clock
from esp_ingest.lifecycle.errors import BackupError
from esp_ingest.service.guard import GuardedProcess, undisturbed
from esp_ingest.store.connection import conninfo

_PLACES = ("/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin", "/usr/local/pgsql/bin", "/usr/local/bin")
_LIBRARIES = ("../lib", "../lib/postgresql", "../lib64", "../lib64/pgsql")
_LOOK_SECONDS = 0.05
_STOP_SECONDS = 20.0
_PORT = 5432  # names the socket in a folder of its own: nothing listens on TCP
# Given on the command line, these win over postgresql.auto.conf, which was restored with the data.
_SETTINGS = {
    # It promotes itself to a timeline of its own, whose WAL must never get into the repository.
    "archive_mode": "off",
    "archive_command": "",
    "archive_library": "",
    "listen_addresses": "",
    "ssl": "off",
    # No background worker starts: no job of TimescaleDB, no subscription that would take the live one's place.
    "max_worker_processes": "0",
    "timescaledb.max_background_workers": "0",
    "timescaledb.telemetry_level": "off",
    "max_logical_replication_workers": "0",
    "primary_conninfo": "",
    "primary_slot_name": "",
    "synchronous_standby_names": "",
    "archive_cleanup_command": "",
    "recovery_end_command": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    # All of the WAL is replayed before the first connection.
    "hot_standby": "off",
    "recovery_target_timeline": "latest",
    # It is thrown away, so nothing has to reach the disk.
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "restart_after_crash": "off",
    "shared_buffers": "128MB",
    "max_wal_size": "4GB",
    "huge_pages": "off",
    "jit": "off",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_min_messages": "warning",
    "lc_messages": "C",
    "cluster_name": "esp-ingest drill",
}
# What a server answers that is not there yet. Whether one that says nothing will be, its process tells.
_NOT_YET = "starting up|shutting down|in recovery mode|not (yet )?accepting connections"
_CONTROLLED = {  # the least that replaying needs, as the live database had them
    "max_connections": "max_connections setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}


def programs(version: str, given: str) -> Path:
    """The folder of PostgreSQL's programs of this major version. Raises BackupError."""
    places = [given] if given else [place.format(version) for place in _PLACES]
    if not given and (found := shutil.which("postgres")):
        places.append(str(Path(found).parent))
    for place in places:
        try:
            said = subprocess.run(  # noqa: S603 - the command is ours
                [f"{place}/postgres", "--version"], capture_output=True, text=True, timeout=30, check=False
            ).stdout
        except OSError:
            continue
        if re.search(rf"\) {version}\b", said):
            return Path(place)
    raise BackupError(
        f"The backup is of PostgreSQL {version}, and there is no such server{f' in {given}' * bool(given)}: install "
        "it, or set backup.postgres_bin."
    )


class Instance:
    """PostgreSQL on ``folder``/data, reached through a socket that only this user can open."""

    def __init__(self, folder: Path, sockets: Path, guarded: GuardedProcess) -> None:
        self._folder = folder
        self._sockets = sockets
        self._guarded = guarded

    def settings(self, live: DatabaseSettings) -> DatabaseSettings:
        """The settings to connect to this copy, with the user and the database that ``live`` names."""
        given = conninfo_to_dict(conninfo(live))
        place: dict[str, Any] = {key: given[key] for key in ("user", "dbname", "service") if key in given}
        # Empty, and not absent: what PG* variables say is for the live database.
        place |= {
            "host": str(self._sockets),
            "hostaddr": "",
            "port": _PORT,
            "sslmode": "disable",
            "gssencmode": "disable",
        }
        place |= {"channel_binding": "disable", "target_session_attrs": "any"}
        return live.model_copy(update={"dsn": SecretStr(make_conninfo("", **place)), "password": SecretStr("")})

    def await_ready(self, live: DatabaseSettings, timeout_seconds: float, clock: Clock) -> None:
        """Block until all WAL is replayed and the server answers. Raises BackupError."""
        info = self.settings(live).dsn.get_secret_value()
        deadline = clock.monotonic() + timeout_seconds
        while True:
            if self._guarded.poll() is not None:
                raise BackupError(f"The restored database does not start: {self._said()}.")
            try:
                psycopg.connect(info, connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                lines = [line for line in str(error).splitlines() if "FATAL:" in line]
                if lines and not re.search(_NOT_YET, lines[-1]):
                    raise BackupError(f"The restored database refuses a connection: {lines[-1].rstrip('.')}.") from None
            if clock.monotonic() > deadline:
                raise BackupError(
                    f"The restored database is not up after {timeout_seconds:g} s: raise backup.start_timeout_seconds, "
                    "or make backups more often: there is less WAL to replay then."
                )
            clock.sleep(_LOOK_SECONDS)

    def _said(self) -> str:
        lines = (self._folder / "postgres.log").read_text(errors="replace").splitlines()
        fatal = [line for line in lines if re.search(r"\b(FATAL|PANIC):", line)]
        text = (fatal or lines or ["it says nothing"])[0]
        return re.sub(r"^.*?\b(FATAL|PANIC):\s*", "", text).strip().rstrip(".")


def has_timescaledb(binaries: Path, version: str = "") -> bool:
    """Whether TimescaleDB is installed for these programs, in this version or in any."""
    name = f"timescaledb-{version}.so" if version else "timescaledb.so"
    return any((binaries / place / name).exists() for place in _LIBRARIES)


@contextmanager
def started(binaries: Path, folder: Path, restore_command: str) -> Iterator[Instance]:
    """Start PostgreSQL on ``folder``/data, and stop it at the end, however the block is left. Raises BackupError."""
    sockets = Path(tempfile.mkdtemp(prefix="esp-drill-"))  # the path of a socket has 107 bytes at most
    try:
        for name, text in (("postgresql.conf", ""), ("pg_hba.conf", "local all all trust\n"), ("pg_ident.conf", "")):
            (folder / name).write_text(text, encoding="ascii")
        chosen = _SETTINGS | _controlled(binaries, folder / "data")
        chosen |= {
            "port": str(_PORT),
            "unix_socket_directories": str(sockets),
            "config_file": str(folder / "postgresql.conf"),
            "hba_file": str(folder / "pg_hba.conf"),
            "ident_file": str(folder / "pg_ident.conf"),
            "external_pid_file": "",
            "restore_command": restore_command,
            "shared_preload_libraries": "timescaledb" if has_timescaledb(binaries) else "",
        }
        options = [part for key, value in chosen.items() for part in ("-c", f"{key}={value}")]
        with (folder / "postgres.log").open("wb") as log:
            command = [str(binaries / "postgres"), "-D", str(folder / "data"), *options]
            guarded = GuardedProcess(command, output=log, stop_signal=signal.SIGQUIT, grace_seconds=_STOP_SECONDS)
        try:
            yield Instance(folder, sockets, guarded)
        finally:
            with undisturbed():
                guarded.stop()  # an immediate shutdown: nothing of it is needed any more
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


def _controlled(binaries: Path, data: Path) -> dict[str, str]:
    """The settings that must not be smaller than they were in the live database. Raises BackupError."""
    done = subprocess.run(  # noqa: S603 - the command is ours
        [str(binaries / "pg_controldata"), str(data)],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C"},
        timeout=60,
        check=False,
    )
    found = dict(re.findall(r"^(.+?):\s+(.+)$", done.stdout, re.MULTILINE))
    try:
        return {name: str(int(found[line])) for name, line in _CONTROLLED.items()}
    except (KeyError, ValueError):
        raise BackupError(
            f"The restored data folder cannot be read by pg_controldata: {done.stderr.strip()}."
        ) from None
