"""One way to connect: what the meaning of values depends on, timeouts, keepalives, and errors that say what to do.

Behind a connection pooler such as PgBouncer a session is not ours: in transaction mode each transaction may run on
another server connection, and what one client sets there stays for the next client. Such a connection makes its
settings in each transaction and leaves nothing behind. See :class:`Session`.
"""

import getpass
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.abc import RV, Buffer, Params, PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.types.datetime import TimestamptzLoader
from psycopg.waiting import Ready

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.errors import UsageError
from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.store import sqlstate
from esp_ingest.store.queries import query

if TYPE_CHECKING:
    from psycopg.abc import QueryNoTemplate  # of psycopg 3.3; older ones run as well

Connection = psycopg.Connection[tuple[Any, ...]]

APPLICATION_NAME = "esp-ingest"
WRONG_ENCODING = "the database cannot hold UTF-8 text"

_ANSWER_GRACE_SECONDS = 5.0  # beyond the time that the server gives a statement itself
_LOOK_SECONDS = 0.1


Moment = datetime | str
"""A timestamptz as it comes out of the database: in the database's own words where Python's calendar, which has the
years 1 to 9999, does not reach ("infinity", "0044-03-15 00:00:00+00 BC")."""


class _MomentLoader(TimestamptzLoader):
    def load(self, data: Buffer) -> Moment:  # type: ignore[override]  # text comes where Python has no datetime
        try:
            return super().load(data)
        except psycopg.DataError:
            return bytes(data).decode()


class Session(Connection):
    """A connection that gives up on a server which says nothing for ``silence_seconds``, and is closed then.

    The kernel's timeouts only see a peer that acknowledges nothing. A server that is stopped or hangs, or a pooler or
    balancer whose other side is gone, goes on acknowledging: without this the writer would wait for it for ever.

    ``pooled``: a pooler stands between us and the server. Then each transaction begins with the settings, which costs
    one more exchange with the pooler, and a statement outside a transaction gets one of its own, so that nothing is
    ever set on a server connection that others use too. Use :meth:`cursor` only inside a transaction."""

    silence_seconds: float | None = None
    pooled: bool = False
    _transaction_settings: bytes = b""  # of a pooled session

    def adapt(self, settings: DatabaseSettings) -> None:
        """Make the settings that values, durability and waiting times depend on, whatever role, database, environment
        and connection string say. Raises psycopg.Error, or WrongEncoding where the database cannot hold our text."""
        server_pid, holds_utf8 = only_row(self.execute(query("session_identity")))
        if not holds_utf8:
            encoding = self.info.parameter_status("server_encoding") or "unknown"
            raise WrongEncoding(WRONG_ENCODING, f"its encoding is {encoding}")
        self.pooled = stands_behind_pooler(self, server_pid)
        self.adapters.register_loader("timestamptz", _MomentLoader)
        # After a wait for a lock, a statement sees what was committed before it.
        self.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        statement = psycopg.ClientCursor(self).mogrify(
            query("session_settings").decode(),
            session_parameters(
                settings, settings.statement_timeout_seconds, settings.lock_timeout_seconds, local=self.pooled
            ),
        )
        if self.pooled:
            self._transaction_settings = statement.encode()
            with self.transaction():  # so that what is wrong with them is found here
                pass
        else:
            self.execute(statement.encode())

    def execute(  # type: ignore[override]  # psycopg's other overload is for templates, which Python 3.11 lacks
        self,
        query: "QueryNoTemplate",
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> psycopg.Cursor[tuple[Any, ...]]:
        """See psycopg. On a pooled connection in autocommit, a transaction of its own."""
        idle = self.info.transaction_status == TransactionStatus.IDLE
        if not (self._transaction_settings and self.autocommit and idle):
            return super().execute(query, params, prepare=prepare, binary=binary)
        with self.transaction():
            return super().execute(query, params, prepare=prepare, binary=binary)

    def _exec_command(self, command: Any, *arguments: Any, **options: Any) -> PQGen[Any]:
        """psycopg sends BEGIN here, and COMMIT, ROLLBACK and savepoints: the settings follow a BEGIN."""
        result = yield from super()._exec_command(command, *arguments, **options)
        if self._transaction_settings and isinstance(command, bytes) and command.startswith(b"BEGIN"):
            yield from super()._exec_command(self._transaction_settings)
        return result

    def wait(self, gen: PQGen[RV], interval: float = _LOOK_SECONDS, timeout: float | None = None) -> RV:
        """See psycopg. Raises ServerSilent."""
        options = {} if timeout is None else {"timeout": timeout}  # unknown to psycopg 3.2
        if self.silence_seconds is None:
            return super().wait(gen, interval, **options)
        try:
            return super().wait(_impatient(gen, int(self.silence_seconds / interval)), interval, **options)
        except ServerSilent:
            self.pgconn.finish()  # in the middle of an exchange: of no use to anyone
            raise


def stands_behind_pooler(connection: "psycopg.BaseConnection[Any]", server_pid: int) -> bool:
    """Whether a pooler stands between us and the server, whose process says that it is ``server_pid``. A pooler has to
    give its clients a cancel key of its own, whose process number is made up."""
    return server_pid != connection.info.backend_pid


class DsnError(StoreUnavailable, UsageError):
    """database.dsn is no connection string: trying again changes nothing."""


class WrongEncoding(StoreUnavailable):
    """The database is of an encoding that cannot hold all of Unicode: somebody has to make another."""


class ServerSilent(psycopg.OperationalError):
    """The server took longer than it said it would allow itself."""


def _impatient(gen: PQGen[RV], looks: int) -> PQGen[RV]:
    """``gen``, ended after so many looks in a row at a socket that was not ready. psycopg looks ten times a second; so
    no clock is needed, and a process that was stopped itself does not take that for silence."""
    silent = 0
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            silent = silent + 1 if ready == Ready.NONE else 0
            if silent > looks:
                raise ServerSilent("the database is connected and does not answer")
            wanted = gen.send(ready)
    except StopIteration as done:
        value: RV = done.value
        return value


def session_parameters(
    settings: DatabaseSettings, statement_timeout_seconds: float, lock_timeout_seconds: float, *, local: bool
) -> dict[str, Any]:
    """The parameters of the query ``session_settings``, which every session of the daemon, the commands and the API
    runs: for the session, or, if ``local``, for the transaction."""
    return {
        "local": local,
        "schema": settings.schema_name,
        "statement_timeout": f"{round(statement_timeout_seconds * 1000)}ms",
        "lock_timeout": f"{round(lock_timeout_seconds * 1000)}ms",
    }


def conninfo(settings: DatabaseSettings) -> str:
    """The libpq connection string for ``settings``. What the DSN itself says wins over our defaults.

    Raises DsnError where the DSN cannot be parsed."""
    try:
        given = conninfo_to_dict(settings.dsn.get_secret_value())
    except psycopg.ProgrammingError:
        # psycopg's message repeats the string, and with it the password.
        raise DsnError(
            "database.dsn is not a connection string", "write it as postgresql://user@host:5432/database"
        ) from None
    ours: dict[str, Any] = {
        "connect_timeout": settings.connect_timeout_seconds,
        "application_name": APPLICATION_NAME,
        # A cut network is noticed in about 25 s rather than after hours: idle connections by probes, and data under way
        # by the longest time it may stay unacknowledged.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 25_000,
        # Without any, libpq has OpenSSL ask for the password of an encrypted key on the terminal, and waits.
        "sslpassword": "none",
    }
    if settings.password.get_secret_value():
        ours["password"] = settings.password.get_secret_value()
        given.pop("password", None)
    # Not the DSN's nor PGCLIENTENCODING's: what we send is UTF-8, and so has to be what the server says meanwhile.
    return make_conninfo("", **(ours | given | {"client_encoding": "UTF8"}))


def connect(settings: DatabaseSettings, *, autocommit: bool = False, patient: bool = False) -> Connection:
    """Open a connection; blocks up to ``connect_timeout_seconds`` for each address of the host.

    It is given up when the server says nothing for ``statement_timeout_seconds`` and a little, unless ``patient``: a
    migration lifts that timeout and may take its time.

    Raises StoreUnavailable with a reason from :mod:`esp_ingest.store.sqlstate`.

    Settings are made by statement and not in the startup packet, which connection poolers refuse. Statements are never
    prepared by name, which a pooler in transaction mode may not know; a batch is few statements, so that costs nothing.

    Commits wait for the disk even where the server's default is not to: what is committed is acknowledged."""
    info = conninfo(settings)
    try:
        connection = Session.connect(info, autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        raise _unreachable(settings, error) from None
    if not patient:
        connection.silence_seconds = settings.statement_timeout_seconds + _ANSWER_GRACE_SECONDS
    try:
        connection.adapt(settings)
        connection.autocommit = autocommit
    except psycopg.Error as error:
        connection.close()
        raise sqlstate.unavailable(error) from None
    except StoreUnavailable:
        connection.close()
        raise
    return connection


def is_pooled(connection: Connection) -> bool:
    """Whether a connection pooler stands between: nothing may be left in its session."""
    return isinstance(connection, Session) and connection.pooled


def staging(connection: Connection, name: str) -> bytes:
    """The query ``name``, which makes a temporary table: kept for the life of a connection that is ours alone, and
    dropped with the transaction behind a pooler, where the next client would find it."""
    statement = query(name)
    return statement.replace(b"ON COMMIT DELETE ROWS", b"ON COMMIT DROP") if is_pooled(connection) else statement


def only_row(cursor: psycopg.Cursor[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The row of a statement that always gives one."""
    row = cursor.fetchone()
    assert row is not None, "the statement gave no row"
    return row


class OnDemand:
    """A connection in autocommit that is opened when it is needed, and again after it was lost. For one thread.

    ``may_connect``: false while a connection that matters more is missing. Then this one is given up, since the server
    may allow no more of them."""

    def __init__(self, settings: DatabaseSettings, may_connect: Callable[[], bool] = lambda: True) -> None:
        self._settings = settings
        self._may_connect = may_connect
        self._connection: Connection | None = None

    def get(self) -> Connection:
        """The connection, open. Raises StoreUnavailable."""
        if not self._may_connect():
            self.close()
            raise StoreUnavailable("the connection that stores readings comes first")
        if self._connection is None or self._connection.closed or self._connection.broken:
            self._connection = connect(self._settings, autocommit=True)
        return self._connection

    def rows(self, name: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """The rows of the named query. Raises StoreUnavailable."""
        try:
            return self.get().execute(query(name), parameters).fetchall()
        except psycopg.Error as error:
            raise self.lost(error) from None

    def execute(self, name: str, parameters: Any = None) -> None:
        """Run the named query, which gives no rows. Raises StoreUnavailable."""
        try:
            self.get().execute(query(name), parameters)
        except psycopg.Error as error:
            raise self.lost(error) from None

    def lost(self, error: psycopg.Error) -> StoreUnavailable:
        """Close it after ``error``; what to raise."""
        self.close()
        return sqlstate.unavailable(error)

    def close(self) -> None:
        """Close the connection; :meth:`get` opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _unreachable(settings: DatabaseSettings, error: psycopg.Error) -> StoreUnavailable:
    """Who set no DSN has usually forgotten it, and libpq tried a socket of this machine. Of a file that it may not read
    libpq says anything but that, in letters that are none."""
    said = sqlstate.unavailable(error)
    if said.reason == sqlstate.FILE.reason and (unread := _unreadable_file(settings)):
        return StoreUnavailable(said.reason, unread)
    if settings.dsn.get_secret_value():
        return said
    return StoreUnavailable(said.reason, f"{said.detail}; database.dsn is empty")


def _unreadable_file(settings: DatabaseSettings) -> str:
    """The first file of TLS that is named and cannot be read, and why; empty if all can."""
    given = conninfo_to_dict(conninfo(settings))
    for name in ("sslrootcert", "sslcert", "sslkey"):
        path = str(given.get(name) or os.environ.get(f"PG{name.upper()}") or "")
        if path and path != "system":
            try:
                Path(path).open("rb").close()
            except OSError as error:
                return f"{name} {path}: {error.strerror}"
    return ""


def grant_connect(settings: DatabaseSettings) -> str:
    """What to do where the user may not connect: without this right there is no session to ask for the rest."""
    said = conninfo_to_dict(conninfo(settings))
    user = said.get("user") or os.environ.get("PGUSER") or getpass.getuser()
    name = said.get("dbname") or os.environ.get("PGDATABASE") or user
    return f'This user may not connect: let the database\'s owner run GRANT CONNECT ON DATABASE "{name}" TO "{user}".'
