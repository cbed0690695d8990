"""How the API reaches the database: a small pool of connections for queries, and a connection of its own for each
change.

Whatever one request reads, it reads in one read-only transaction with a time limit, so that all of an answer is of the
same moment. It is repeated if a connection of the pool turns out to be dead, so that the first request after an outage
succeeds; the pool's own ``check=`` would spend the whole timeout on dead connections (psycopg#709). Changes go through
the same synchronous functions as the command line, in a thread."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.abc import RV, Buffer, PQGen
from psycopg.rows import dict_row
from psycopg.types.datetime import TimestamptzBinaryLoader
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from esp_ingest.config.settings import DatabaseSettings, Settings
from esp_ingest.store.connection import (
    Connection,
    ServerSilent,
    _impatient,
    connect,
    conninfo,
    session_parameters,
    stands_behind_pooler,
)
from esp_ingest.store.queries import query

log = logging.getLogger(__name__)

T = TypeVar("T")
Row = dict[str, Any]
Rows = list[tuple[Any, ...]]
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
    _settings: bytes = b""  # of a transaction, behind a pooler

    async def configure(self, settings: DatabaseSettings, timeout_seconds: float) -> None:
        """Make the settings of a session that reads, or prepare for making them in each transaction where a pooler
        stands between us and the server (see store.connection.Session). Nothing is prepared by name, for the same
        reason. Raises psycopg.Error."""
        self.prepare_threshold = None
        self.adapters.register_loader("timestamptz", _BoundedMomentLoader)
        await self.set_autocommit(True)
        cursor = await self.execute(query("session_identity"))
        ((server_pid, _),) = await cursor.fetchall()
        is_pooled = stands_behind_pooler(self, server_pid)
        parameters = session_parameters(settings, timeout_seconds, timeout_seconds, local=is_pooled)
        made = psycopg.AsyncClientCursor(self).mogrify(query("session_settings").decode(), parameters).encode()
        if is_pooled:
            self._settings = b"; " + made
        else:
            await self.execute(made)
            await self.execute("SET default_transaction_read_only = on")

    @contextlib.asynccontextmanager
    async def snapshot(self, is_one_statement: bool) -> AsyncIterator["Snapshot"]:
        """A read-only transaction, as long as the block lasts. It begins and makes its settings in one exchange with
        the server. One statement in a session of our own is a transaction by itself. Raises psycopg.Error."""
        try:
            if self._settings or not is_one_statement:
                await self.execute(b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" + self._settings)
            yield Snapshot(self)
            await self.commit()
        except BaseException:
            with contextlib.suppress(psycopg.Error):  # what is broken is closed, and so rolled back by the server
                await self.rollback()
            raise

    async def wait(self, gen: PQGen[RV], interval: float = _LOOK_SECONDS, timeout: float | None = None) -> RV:
        """See psycopg. Raises ServerSilent."""
        options = {} if timeout is None else {"timeout": timeout}  # unknown to psycopg 3.2
        try:
            return await super().wait(_impatient(gen, int(self.silence_seconds / interval)), interval, **options)
        except ServerSilent:
            self.pgconn.finish()
            raise


class Snapshot:
    """What the database holds at one moment. Every method raises psycopg.Error, and TimeoutError through a statement
    that takes too long."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def fetch(self, statement: str | sql.Composed, parameters: Mapping[str, Any] | None = None) -> Rows:
        """The rows of a query: of a named one, or of one that queries.composed() made."""
        text = query(statement) if isinstance(statement, str) else statement
        async with self._connection.cursor(binary=True) as cursor:
            await cursor.execute(text, parameters)
            return await cursor.fetchall()

    async def fetch_dicts(self, name: str, parameters: Mapping[str, Any]) -> list[Row]:
        """The rows of a named query, each as a dictionary by the names of its columns."""
        async with self._connection.cursor(row_factory=dict_row, binary=True) as cursor:
            await cursor.execute(query(name), parameters)
            return await cursor.fetchall()


class Database:
    """All queries and changes of the API. Call :meth:`open` first; it never waits for the database."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._timeout_seconds = settings.api.request_timeout_seconds
        self._tries = settings.api.pool_size + 1
        self._writes = asyncio.Semaphore(_WRITES_AT_ONCE)

        class PooledConnection(ImpatientAsyncConnection):
            silence_seconds = self._timeout_seconds + _GRACE_SECONDS

        async def configure(connection: PooledConnection) -> None:
            await connection.configure(settings.database, self._timeout_seconds)

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
            configure=configure,
            name="api",
        )

    async def open(self) -> None:
        """Start connecting, without waiting for it."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close all connections. Waits for a second at most."""
        await self._pool.close(timeout=1.0)

    async def read(self, work: Callable[[Snapshot], Awaitable[T]]) -> T:
        """What ``work`` makes of one snapshot. It is called anew where its connection turns out to be dead. Raises the
        errors of psycopg and of its pool, and what ``work`` raises."""
        return await self._read(work, is_one_statement=False)

    async def _read(self, work: Callable[[Snapshot], Awaitable[T]], is_one_statement: bool) -> T:
        for attempt in range(self._tries):
            try:
                async with self._pool.connection() as connection, connection.snapshot(is_one_statement) as snapshot:
                    return await work(snapshot)
            except (PoolTimeout, PoolClosed, TooManyRequests, ServerSilent):
                raise
            except psycopg.OperationalError as error:
                # 40: of two that waited for each other this one was ended; the lifecycle locks a day when it drops it.
                may_go = error.sqlstate is None or error.sqlstate.startswith(("08", "40", "57P"))
                if not may_go or attempt == self._tries - 1:
                    raise
        raise AssertionError("unreachable")

    async def fetch(self, name: str, parameters: Mapping[str, Any] | None = None) -> Rows:
        """The rows of a named query. Raises as :meth:`read`."""
        return await self._read(lambda snapshot: snapshot.fetch(name, parameters), is_one_statement=True)

    async def ask(self, *named: tuple[str, Mapping[str, Any]]) -> list[Rows]:
        """The rows of several named queries of one snapshot. Raises as :meth:`read`."""

        async def work(snapshot: Snapshot) -> list[Rows]:
            return [await snapshot.fetch(name, parameters) for name, parameters in named]

        return await self.read(work)

    async def fetch_one(self, name: str, parameters: Mapping[str, Any] | None = None) -> tuple[Any, ...] | None:
        """The first row of a named query, None if there is none. Raises as :meth:`read`."""
        rows = await self.fetch(name, parameters)
        return rows[0] if rows else None

    async def fetch_dicts(self, name: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
        """Like :meth:`fetch`, each row as a dictionary by the names of its columns."""
        return await self._read(lambda s: s.fetch_dicts(name, parameters or {}), is_one_statement=True)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a thread, with a connection in autocommit. At most four run at a time, others wait. Raises
        psycopg.Error and StoreUnavailable."""

        def run() -> T:
            with connect(self._settings.database, autocommit=True) as connection:
                return work(connection)

        async with self._writes:
            return await asyncio.to_thread(run)
