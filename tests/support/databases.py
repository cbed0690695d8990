"""Real databases for tests, benches and fault suites: native TimescaleDB (Apache edition), plain PostgreSQL 15, and the
WebAssembly build of TimescaleDB community edition. Loopback, a free port and a temporary folder each.

``with NativeTimescale.start(fsync=True) as server:`` works outside pytest too. A server ends with the thread that
started it (PDEATHSIG): start it from one that lives as long as you need it, normally the main thread.
"""

import hashlib
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import psycopg
import pytest
from pydantic import SecretStr

from esp_ingest.config.settings import DatabaseSettings

TRIXIE = Path(os.environ.get("ESP_INGEST_TRIXIE", "/var/cache/esp-ingest/trixie"))
_PGLITE = Path(__file__).parent / "pglite"
_LEAST_PORT, _PORTS, _PORT_RANGES = 12_000, 2_500, 8  # up to 32 000; outgoing connections have those from 32 768
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_TUNED = {
    "shared_buffers": "256MB",
    "max_connections": "60",
    "log_min_messages": "warning",
    "logging_collector": "off",
    "unix_socket_directories": "",
    "dynamic_shared_memory_type": "mmap",
    "max_wal_size": "2GB",
}
# Of the servers that tests share. To compile a query of all columns takes seconds, whatever it reads. Servers of the
# fault suite, of benches and of tests that start their own do compile, as is PostgreSQL's default.
_SHARED = {"jit": "off"}


_OWN_OBJECTS = b"""
    SELECT format('DROP %s IF EXISTS %s CASCADE', CASE relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, oid::regclass)
    FROM pg_class c
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'p')
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
    UNION ALL
    SELECT format('DROP ROUTINE IF EXISTS %s CASCADE', oid::regprocedure)
    FROM pg_proc p
    WHERE pronamespace = 'public'::regnamespace
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
"""


class Missing(Exception):
    """This machine cannot run that server; the message says what to install."""


def unavailable(reason: str) -> None:
    """Skip the test with a reason; with CI=true fail it instead, so that a green run means that it really ran."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"needed in CI: {reason}")
    pytest.skip(reason)


def npm_packages(source: Path) -> Path:
    """A folder with the packages that the lock file in ``source`` names, kept between runs under the hash of that file.
    Raises Missing."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Missing(f"node and npm are needed for {source.name}")
    lock = (source / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "esp-ingest"
    folder = cache / f"{source.name}-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not (folder / "node_modules").exists():
        cache.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{source.name}-", dir=cache))
        for name in ("package.json", "package-lock.json"):
            shutil.copy(source / name, fresh)
        result = subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=fresh, capture_output=True, text=True)
        if result.returncode:
            shutil.rmtree(fresh, ignore_errors=True)
            raise Missing(f"npm ci failed: {result.stderr[-300:]}")
        with suppress(OSError):  # another run was first
            fresh.rename(folder)
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def free_port() -> int:
    """A TCP port on loopback that nobody listens on just now, below those that the system gives to outgoing
    connections, one of which might take it before the server does. Each worker of pytest-xdist has ports of its own."""
    worker = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0)
    least = _LEAST_PORT + worker % _PORT_RANGES * _PORTS
    for port in random.SystemRandom().sample(range(least, least + _PORTS), 100):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


@dataclass(frozen=True)
class Database:
    """One database on a running server."""

    dsn: str
    server: "Server"

    @property
    def settings(self) -> DatabaseSettings:
        return DatabaseSettings(dsn=SecretStr(self.dsn))

    def connect(self, autocommit: bool = True) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.dsn, autocommit=autocommit, prepare_threshold=None)

    def all(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Every row of ``query`` over a connection of its own."""
        with self.connect() as connection:
            return connection.execute(query.encode(), parameters or None).fetchall()

    def value(self, query: str, *parameters: object) -> Any:
        return self.all(query, *parameters)[0][0]

    def run(self, statement: str) -> None:
        with self.connect() as connection:
            connection.execute(statement.encode())

    def drop_everything(self) -> None:
        """All tables, views and functions; an extension stays."""
        with self.connect() as connection:
            for (statement,) in connection.execute(_OWN_OBJECTS).fetchall():
                connection.execute(statement.encode())


class Server:
    """A PostgreSQL server process of our own. ``stop`` and the context manager end it and remove its folder."""

    user: ClassVar[str] = "postgres"

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    # What differs between the kinds.
    @classmethod
    def require(cls) -> None:
        raise NotImplementedError

    @classmethod
    def _new_folder(cls) -> Path:
        raise NotImplementedError

    @classmethod
    def _command(cls, program: str, *arguments: str) -> list[str]:
        """``program`` of this PostgreSQL, as its unprivileged user, ended with us."""
        raise NotImplementedError

    @classmethod
    def data_folder(cls, folder: Path) -> str:
        """The data folder as the server sees it."""
        return str(folder)

    @classmethod
    def _settings(cls) -> dict[str, str]:
        return dict(_TUNED)

    @classmethod
    def start(cls, fsync: bool = False, settings: Mapping[str, str] | None = None) -> Self:
        """A new cluster, up and answering. ``fsync`` on for crash tests and benches. Raises Missing."""
        cls.require()
        folder = cls._new_folder()
        server = cls(folder, free_port())
        try:
            server._initialise(fsync, settings or {})
            server.launch()
        except BaseException:
            server.stop()
            raise
        return server

    def _initialise(self, fsync: bool, settings: Mapping[str, str]) -> None:
        data = self.data_folder(self.folder)
        subprocess.run(
            self._command(
                "initdb", "-D", data, "-U", self.user, "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync"
            ),
            check=True,
            capture_output=True,
            cwd="/",
        )
        chosen = self._settings()
        if not fsync:
            chosen |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        chosen |= {"listen_addresses": "127.0.0.1", "port": str(self.port), **settings}
        lines = [f"{key} = '{value}'\n" for key, value in chosen.items()]
        with (self.folder / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def launch(self) -> None:
        """Start the process (again) on the same data and port, and wait until it answers."""
        assert self._process is None, "it runs already"
        log = (self.folder / "server.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", self.data_folder(self.folder)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        self._await_ready()

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self.dsn_of("postgres"), connect_timeout=2).close()
                return
            except psycopg.OperationalError as error:
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"server did not start: {error}\n{self.log()}") from None
                time.sleep(0.05)

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def pids(self) -> list[int]:
        """The server process and its backends, for CPU accounting and for :meth:`kill`."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [self.pid, *(int(pid) for pid in children.read_text().split())]

    def dsn_of(self, database: str) -> str:
        return f"postgresql://{self.user}@127.0.0.1:{self.port}/{database}"

    @property
    def dsn(self) -> str:
        """The maintenance database."""
        return self.dsn_of("postgres")

    def log(self) -> str:
        path = self.folder / "server.log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def halt(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the process and keep the data: SIGINT is a fast shutdown, SIGQUIT an immediate one."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(how)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def kill(self) -> None:
        """SIGKILL to the server and all its backends at once, as a power cut would look to its clients."""
        if not self.running:
            self._process = None
            return
        pids = self.pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self._process = None

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        self.halt(how)
        self.launch()

    def stop(self) -> None:
        """End the process and remove the data. Safe twice."""
        self.halt()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def create_database(self, name: str | None = None, tablespace: str = "pg_default") -> Database:
        """An empty database without the extension; ``migrate`` makes the schema. In its tablespace from the start: once
        it is there, TimescaleDB's launcher looks into it, and a database in use cannot be moved."""
        name = name or f"t{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 TABLESPACE {tablespace}".encode())
        return Database(self.dsn_of(name), self)

    def drop_database(self, database: Database) -> None:
        name = database.dsn.rsplit("/", 1)[1]
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


class NativeTimescale(Server):
    """PostgreSQL 17 with TimescaleDB 2.19.3, Apache edition, out of a Debian 13 folder (docs/development.md)."""

    @classmethod
    def require(cls) -> None:
        if os.geteuid() != 0:
            raise Missing("native TimescaleDB needs root for chroot")
        if not (TRIXIE / "usr/lib/postgresql/17/bin/postgres").exists():
            raise Missing(f"no PostgreSQL 17 in {TRIXIE}: run `make test-machine`")

    @classmethod
    def ids(cls) -> tuple[int, int]:
        for line in (TRIXIE / "etc/passwd").read_text().splitlines():
            name, _, uid, gid, *_ = line.split(":")
            if name == "postgres":
                return int(uid), int(gid)
        raise Missing(f"no user postgres in {TRIXIE}")

    @classmethod
    def _new_folder(cls) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="esp-pg-", dir=TRIXIE / "tmp"))
        os.chown(folder, *cls.ids())
        return folder

    @classmethod
    def data_folder(cls, folder: Path) -> str:
        return f"/{folder.relative_to(TRIXIE)}"

    @classmethod
    def _command(cls, program: str, *arguments: str) -> list[str]:
        uid, gid = cls.ids()
        drop = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--pdeathsig=INT"]
        return ["chroot", str(TRIXIE), *drop, f"/usr/lib/postgresql/17/bin/{program}", *arguments]

    @classmethod
    def _settings(cls) -> dict[str, str]:
        return _TUNED | {"shared_preload_libraries": "timescaledb", "timescaledb.telemetry_level": "off"}


class Postgres15(Server):
    """Plain PostgreSQL 15 as Debian 12 packages it."""

    _BIN: ClassVar[Path] = Path("/usr/lib/postgresql/15/bin")

    @classmethod
    def require(cls) -> None:
        if os.geteuid() != 0:
            raise Missing("PostgreSQL refuses to run as root, and only root can become the user postgres")
        if not (cls._BIN / "postgres").exists():
            raise Missing("apt-get install postgresql-15")

    @classmethod
    def _new_folder(cls) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="esp-pg15-"))
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        return folder

    @classmethod
    def _command(cls, program: str, *arguments: str) -> list[str]:
        user = pwd.getpwnam("postgres")
        drop = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--pdeathsig=INT"]
        return [*drop, str(cls._BIN / program), *arguments]


class PgLite(Server):
    """TimescaleDB community edition 2.23 in WebAssembly. In memory, one connection at a time, no COPY FROM STDIN, no
    background workers: proves the schema, not the writer. Each start is a fresh database."""

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(folder, port)

    @classmethod
    def require(cls) -> None:
        if shutil.which("node") is None or shutil.which("npm") is None:
            raise Missing("node and npm are needed for the WebAssembly database")

    @classmethod
    def start(cls, fsync: bool = False, settings: Mapping[str, str] | None = None) -> Self:
        cls.require()
        server = cls(cls._packages(), 0)
        try:
            server.launch()
        except BaseException:
            server.stop()
            raise
        return server

    @classmethod
    def _packages(cls) -> Path:
        """A folder with the locked packages."""
        folder = npm_packages(_PGLITE)
        shutil.copy(_PGLITE / "server.mjs", folder)
        return folder

    def launch(self) -> None:
        assert self._process is None, "it runs already"
        self._process = subprocess.Popen(
            ["node", "server.mjs"],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        if not line.startswith("port "):
            raise RuntimeError(f"the WebAssembly database did not start: {line!r}")
        self.port = int(line.split()[1])

    def dsn_of(self, database: str) -> str:
        return f"postgresql://postgres:postgres@127.0.0.1:{self.port}/template1?sslmode=disable"

    def create_database(self, name: str | None = None) -> Database:
        raise NotImplementedError("PGlite has one database: start another server")

    def database(self) -> Database:
        """The one it has."""
        return Database(self.dsn, self)

    def halt(self, how: signal.Signals = signal.SIGTERM) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def stop(self) -> None:
        """End the process; the packages stay for the next run."""
        self.halt()


def start_server(kind: type[Server], **options: Any) -> Server:
    try:
        return kind.start(**options)
    except Missing as missing:
        unavailable(str(missing))
        raise


@pytest.fixture(scope="session")
def timescaledb_apache_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Shared by the whole run, fsync off; ``parametrize("timescaledb_apache_server", [True], indirect=True)`` is on."""
    with start_server(NativeTimescale, fsync=bool(getattr(request, "param", False)), settings=_SHARED) as server:
        yield server


@pytest.fixture(scope="session")
def postgres15_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with start_server(Postgres15, fsync=bool(getattr(request, "param", False)), settings=_SHARED) as server:
        yield server


@pytest.fixture
def timescaledb_apache(timescaledb_apache_server: Server) -> Iterator[Database]:
    """A fresh, empty database on native TimescaleDB, Apache edition."""
    database = timescaledb_apache_server.create_database()
    yield database
    timescaledb_apache_server.drop_database(database)


@pytest.fixture
def postgres15(postgres15_server: Server) -> Iterator[Database]:
    """A fresh, empty database on plain PostgreSQL 15."""
    database = postgres15_server.create_database()
    yield database
    postgres15_server.drop_database(database)


@pytest.fixture(scope="session")
def pglite_server() -> Iterator[Server]:
    """Starting it takes seconds, so the run shares one."""
    with start_server(PgLite) as server:
        yield server


@pytest.fixture
def pglite(pglite_server: Server) -> Database:
    """TimescaleDB community edition in WebAssembly without tables of ours (the extension may be installed already): one
    connection at a time, no COPY FROM STDIN. Keep statements small: parameters of about 100 kB were seen to end it."""
    database = Database(pglite_server.dsn, pglite_server)
    try:
        database.drop_everything()
    except psycopg.OperationalError:  # an earlier test broke it
        pglite_server.restart()
        database = Database(pglite_server.dsn, pglite_server)
    return database


@pytest.fixture
def pglite_fresh() -> Iterator[Database]:
    """As ``pglite``, with a server of its own that has no extension yet."""
    with start_server(PgLite) as server:
        yield Database(server.dsn, server)


@pytest.fixture(params=["timescaledb_apache", "postgres15", "pglite"])
def any_database(request: pytest.FixtureRequest) -> Database:
    """Each kind of database in turn, fresh and empty."""
    database: Database = request.getfixturevalue(request.param)
    return database


@pytest.fixture(params=["timescaledb_apache", "postgres15"])
def native_database(request: pytest.FixtureRequest) -> Database:
    """Each kind that knows COPY FROM STDIN."""
    database: Database = request.getfixturevalue(request.param)
    return database


@pytest.fixture(scope="session")
def timescaledb_docker() -> Iterator[str]:
    """The connection string of timescale/timescaledb:2.23.1-pg17 where there is a Docker engine."""
    if not Path(os.environ.get("DOCKER_HOST", "/var/run/docker.sock").removeprefix("unix://")).exists():
        pytest.skip("no Docker engine here; the native and WebAssembly databases stand in")
    from testcontainers.core.container import DockerContainer

    container = DockerContainer("timescale/timescaledb:2.23.1-pg17").with_env("POSTGRES_PASSWORD", "postgres")
    with container.with_exposed_ports(5432) as running:
        host, port = running.get_container_host_ip(), running.get_exposed_port(5432)
        dsn = f"postgresql://postgres:postgres@{host}:{port}/postgres"
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(dsn, connect_timeout=2).close()
                break
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        yield dsn
