"""One way to connect: timeouts, keepalives, and errors that say what to do."""

from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.waiting import Ready

from esp_ingest.config import DatabaseSettings
from esp_ingest.seams import StoreUnavailable
from esp_ingest.store import sqlstate
from esp_ingest.store.queries import query

Connection = psycopg.Connection[tuple[Any, ...]]

APPLICATION_NAME = "esp-ingest"

_ANSWER_GRACE_SECONDS = 5.0  # beyond the time that the server gives a statement itself
_LOOK_SECONDS = 0.1


class ImpatientConnection(Connection):
    """A connection that gives up on a server which says nothing for ``silence_seconds``, and is closed then.

    The kernel's timeouts only see a peer that acknowledges nothing. A server that is stopped or hangs, or a pooler or
    balancer whose other side is gone, goes on acknowledging: without this the writer would wait for it for ever."""

    silence_seconds: float | None = None

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


class DsnError(StoreUnavailable):
    """database.dsn is no connection string: trying again changes nothing."""


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
    }
    if settings.password.get_secret_value():
        ours["password"] = settings.password.get_secret_value()
        given.pop("password", None)
    return make_conninfo("", **(ours | given))


def connect(settings: DatabaseSettings, *, autocommit: bool = False, patient: bool = False) -> Connection:
    """Open a connection; blocks up to ``connect_timeout_seconds`` for each address of the host.

    It is given up when the server says nothing for ``statement_timeout_seconds`` and a little, unless ``patient``: a
    migration lifts that timeout and may take its time.

    Raises StoreUnavailable with a reason from :mod:`esp_ingest.store.sqlstate`.

    Timeouts are set by statement and not in the startup packet, which connection poolers refuse. Statements are never
    prepared by name, so that a pooler in transaction mode will do; a batch is few statements, so that costs nothing.

    Commits wait for the disk even where the server's default is not to: what is committed is acknowledged."""
    info = conninfo(settings)
    try:
        connection = ImpatientConnection.connect(info, autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        raise _unreachable(settings, error) from None
    if not patient:
        connection.silence_seconds = settings.statement_timeout_seconds + _ANSWER_GRACE_SECONDS
    try:
        for name, seconds in (
            ("statement_timeout", settings.statement_timeout_seconds),
            ("lock_timeout", settings.lock_timeout_seconds),
        ):
            connection.execute("SELECT set_config(%s, %s, false)", (name, f"{round(seconds * 1000)}ms"))
        connection.execute(query("commit_durably"))
        connection.autocommit = autocommit
    except psycopg.Error as error:
        connection.close()
        raise sqlstate.unavailable(error) from None
    return connection


class OnDemand:
    """A connection in autocommit that is opened when it is needed, and again after it was lost. For one thread."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._connection: Connection | None = None

    def get(self) -> Connection:
        """The connection, open. Raises StoreUnavailable."""
        if self._connection is None or self._connection.closed or self._connection.broken:
            self._connection = connect(self._settings, autocommit=True)
        return self._connection

    def lost(self, error: psycopg.Error) -> StoreUnavailable:
        """Close it after ``error``; what to raise."""
        self.close()
        return sqlstate.unavailable(error)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _unreachable(settings: DatabaseSettings, error: psycopg.Error) -> StoreUnavailable:
    """Who set no DSN has usually forgotten it, and libpq tried a socket of this machine."""
    said = sqlstate.unavailable(error)
    if settings.dsn.get_secret_value():
        return said
    return StoreUnavailable(said.reason, f"{said.detail}; database.dsn is empty")
