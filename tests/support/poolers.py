"""A real PgBouncer in front of a test's database, on a free port of loopback."""

import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, Self

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.databases import Database, free_port, unavailable

PROGRAM = Path("/usr/sbin/pgbouncer")
Mode = Literal["session", "transaction", "statement"]


class PgBouncer:
    """Hands out ``servers`` server connections for each user and database. Runs as the user postgres."""

    def __init__(self, database: Database, mode: Mode, servers: int) -> None:
        self.behind = database
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="esp-pgbouncer-"))
        user = pwd.getpwnam("postgres")
        shutil.chown(self._folder, user.pw_uid, user.pw_gid)
        target = conninfo_to_dict(database.dsn)
        (self._folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={target['host']} port={target['port']}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = {mode}\ndefault_pool_size = {servers}\nmax_client_conn = 100\n"
        )
        # auth_type any logs every client in as one user
        text = (self._folder / "pgbouncer.ini").read_text().replace("* = host", f"* = user={target['user']} host")
        (self._folder / "pgbouncer.ini").write_text(text)
        self._log = (self._folder / "log").open("ab")
        drop = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--pdeathsig=TERM"]
        self._process = subprocess.Popen(
            [*drop, str(PROGRAM), str(self._folder / "pgbouncer.ini")], stdout=self._log, stderr=self._log
        )

    @property
    def database(self) -> Database:
        """The same database, through the pooler."""
        parts = conninfo_to_dict(self.behind.dsn) | {"host": "127.0.0.1", "port": str(self.port)}
        return Database(make_conninfo("", **parts), self.behind.server)

    def __enter__(self) -> Self:
        deadline = time.monotonic() + 10
        while True:
            try:
                self.database.connect().close()
                return self
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    said = (self._folder / "log").read_text()
                    self.__exit__()
                    raise RuntimeError(f"PgBouncer did not start: {error}\n{said}") from None
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture
def pooler() -> Iterator[Callable[[Database, Mode, int], PgBouncer]]:
    """``pooler(database, mode, servers)``: one that runs until the end of the test."""
    if not PROGRAM.exists():
        unavailable("apt-get install pgbouncer")
    with ExitStack() as stack:
        yield lambda database, mode, servers: stack.enter_context(PgBouncer(database, mode, servers))
