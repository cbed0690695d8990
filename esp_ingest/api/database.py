"""How the API reaches the database: a small pool of connections for queries, and a connection of its own for each
change.

A query is one read-only transaction with a time limit. It is repeated if a connection of the pool turns out to be
dead, so that the first request after an outage succeeds; the pool's own ``check=`` would spend the whole timeout on
dead connections (psycopg#709). Changes go through the same synchronous functions as the command line, in a thread."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.abc import RV, Buffer, PQGen
from psycopg.rows import dict_row
from psycopg.types.datetime import TimestamptzBinaryLoader
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from esp_ingest.config.settings import Settings
from esp_ingest.store.connection import Connection, ServerSilent, _impatient, connect, conninfo, session_parameters
from esp_ingest.store.queries import query

log = logging.getLogger(__name__)

T = TypeVar("T")
Row = dict[str, Any]
Statement = tuple[str | sql.Composed, Mapping[str, Any]]
AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]

WAIT_SECONDS = 3.0  # for a connection
_GRACE_SECONDS = 2.0  # for a server that says nothing, beyond the time that it was given
_LOOK_SECONDS = 0.1
_WRITES_AT_ONCE = 4


class _BoundedMomentLoader(TimestamptzBinaryLoader):
    """Reads times outside Python's calendar ("infinity", before the year 1) as its first or last day, so that one
    such row does not make a whole page fail."""

    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            is_early = bytes(data)[0] >= 0x80  # the sign of the count of microseconds
            return (datetime.min if is_early else datetime.max).replace(tzinfo=UTC)


class ImpatientAsyncConnection(AsyncConnection):
    """Like store.connection.Session, but asynchronous: it gives up on a server that is connected and silent.
    Cancelling an await would not do: psycopg would ask the server to cancel the statement, and would wait for that
    answer without a limit."""

    silence_seconds = 15.0

    async def wait(self, gen: PQGen[RV], interval: float = _LOOK_SECONDS, timeout: float | None = None) -> RV:
        """See psycopg. Raises ServerSilent."""
        options = {} if timeout is None else {"timeout": timeout}  # unknown to psycopg 3.2
        try:
            return await super().wait(_impatient(gen, int(self.silence_seconds / interval)), interval, **options)
        except ServerSilent:
            self.pgconn.finish()
            raise


def composed(name: str, **parts: sql.Composable) -> sql.Composed:
    """The named query with its placeholders in braces filled in."""
    return sql.SQL(query(name).decode()).format(**parts)


class Database:
    """All queries and changes of the API. Call :meth:`open` first; it never waits for the database."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._timeout_seconds = settings.api.request_timeout_seconds
        self._tries = settings.api.pool_size + 1
        self._writes = asyncio.Semaphore(_WRITES_AT_ONCE)
        self._session = session_parameters(settings.database, self._timeout_seconds, self._timeout_seconds, local=True)

        class PooledConnection(ImpatientAsyncConnection):
            silence_seconds = self._timeout_seconds + _GRACE_SECONDS

        self._pool = AsyncConnectionPool(
            conninfo(settings.database),
            connection_class=PooledConnection,
            min_size=1,
            max_size=settings.api.pool_size,
            max_waiting=max(64, 16 * settings.api.pool_size),
            timeout=WAIT_SECONDS,
            max_idle=300.0,
            reconnect_timeout=0.0,  # each request tries anew, and a probe does in between
            open=False,
            configure=_configure,
            name="api",
        )

    async def open(self) -> None:
        """Start connecting, without waiting for it."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close all connections. Waits for a second at most."""
        await self._pool.close(timeout=1.0)

    async def fetch(self, name: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """The rows of a named query. Raises the errors of psycopg and of its pool, and TimeoutError."""
        (rows,) = await self.ask((name, parameters or {}))
        return rows

    async def fetch_one(self, name: str, parameters: Mapping[str, Any] | None = None) -> tuple[Any, ...] | None:
        """The first row of a named query, None if there is none. Raises as :meth:`fetch`."""
        rows = await self.fetch(name, parameters)
        return rows[0] if rows else None

    async def fetch_dicts(self, name: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
        """Like :meth:`fetch`, each row as a dictionary by the names of its columns."""
        return await self._retried(lambda c: self._dicts(c, name, parameters or {}))

    async def ask(self, *statements: Statement) -> list[list[tuple[Any, ...]]]:
        """The rows of several statements, which all see the same state of the database. Raises as :meth:`fetch`."""
        return await self._retried(lambda connection: self._rows(connection, statements))

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a thread, with a connection in autocommit. At most four run at a time, others wait. Raises
        psycopg.Error and StoreUnavailable."""

        def run() -> T:
            with connect(self._settings.database, autocommit=True) as connection:
                return work(connection)

        async with self._writes:
            return await asyncio.to_thread(run)

    async def _retried(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        for attempt in range(self._tries):
            try:
                async with self._pool.connection() as connection, connection.transaction():
                    await connection.execute(query("session_settings"), self._session)
                    return await work(connection)
            except (PoolTimeout, PoolClosed, TooManyRequests, ServerSilent):
                raise
            except psycopg.OperationalError as error:
                is_lost = error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))
                if not is_lost or attempt == self._tries - 1:
                    raise
        raise AssertionError("unreachable")

    async def _rows(self, connection: AsyncConnection, statements: Sequence[Statement]) -> list[list[tuple[Any, ...]]]:
        found = []
        for statement, parameters in statements:
            text = query(statement) if isinstance(statement, str) else statement
            async with connection.cursor(binary=True) as cursor:
                await cursor.execute(text, parameters)
                found.append(await cursor.fetchall())
        return found

    async def _dicts(self, connection: AsyncConnection, name: str, parameters: Mapping[str, Any]) -> list[Row]:
        async with connection.cursor(row_factory=dict_row, binary=True) as cursor:
            await cursor.execute(query(name), parameters)
            return await cursor.fetchall()


async def _configure(connection: AsyncConnection) -> None:
    """Never prepare statements by name, and never set anything beyond a transaction: this works behind a connection
    pooler in transaction mode, too."""
    connection.prepare_threshold = None
    connection.adapters.register_loader("timestamptz", _BoundedMomentLoader)
    await connection.set_autocommit(True)
    await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
    await connection.set_read_only(True)
