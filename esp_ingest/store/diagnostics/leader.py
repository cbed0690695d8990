"""The table as a stream: what was received since, for the one daemon of a share group that runs the rules."""

from collections.abc import Callable
from typing import TypeVar

import psycopg

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.interfaces import Feed, StoreUnavailable
from esp_ingest.model import Readings, at_us
from esp_ingest.store import sqlstate
from esp_ingest.store.connection import Connection, connect, is_pooled
from esp_ingest.store.diagnostics.checkpoints import to_readings
from esp_ingest.store.queries import query

_OLDEST_US = 6 * 86_400_000_000
Result = TypeVar("Result")


class PostgresFeed(Feed):
    """On a connection of its own, which holds the lock of the one who leads: when it breaks, the lead is lost. Every
    method may raise StoreUnavailable. For one thread.

    Behind a connection pooler a session is nobody's, and a lock of the session would be left behind on a server
    connection. There the lock is held by a transaction on a second connection, open for as long as this one leads and
    doing nothing else, so that it keeps neither tables nor old rows."""

    def __init__(self, settings: DatabaseSettings, member: str) -> None:
        """``member`` is what the others know this daemon by: its client id."""
        self._settings = settings
        self._member = member
        self._connection: Connection | None = None
        self._lock: Connection | None = None  # behind a pooler, while this one leads

    def lead(self) -> bool:
        if self._connection is None or self._connection.closed or self._connection.broken:
            self._connection = connect(self._settings, autocommit=True)
        if is_pooled(self._connection):
            return self._lead_by_transaction()
        row = self._asked(lambda connection: connection.execute(query("lead")).fetchone())
        return row is not None and bool(row[0])

    def _lead_by_transaction(self) -> bool:
        self._release()
        self._lock = connect(self._settings)

        def ask(_: Connection) -> bool:
            assert self._lock is not None
            row = self._lock.execute(query("lead_by_transaction")).fetchone()
            return row is not None and bool(row[0])

        leads = self._asked(ask)
        if not leads:
            self._release()
        return leads

    def cursor(self, first_us: int) -> int:
        self._asked(lambda connection: connection.execute(query("place_cursor"), (at_us(first_us),)))
        row = self._asked(lambda connection: connection.execute(query("read_cursor")).fetchone())
        return first_us if row is None else int(row[0])

    def received(self, after_us: int, until_us: int, limit: int) -> Readings:
        parameters = {
            "after": at_us(after_us),
            "until": at_us(until_us),
            "oldest": at_us(after_us - _OLDEST_US),
            "limit": limit,
        }

        def ask(connection: Connection) -> Readings:
            with connection.transaction(), connection.cursor(binary=True) as cursor:
                rows = cursor.execute(query("received_between"), parameters).fetchall()
            return to_readings(rows) if rows else Readings.empty()

        return self._asked(ask)

    def report(self, committed_us: int) -> None:
        parameters = {"member": self._member, "to": at_us(committed_us)}
        self._asked(lambda connection: connection.execute(query("report_committed"), parameters))

    def committed_by_others(self) -> dict[str, int]:
        rows = self._asked(
            lambda connection: connection.execute(query("committed_by_others"), (self._member,)).fetchall()
        )
        return {member: int(committed_us) for member, committed_us in rows}

    def withdraw(self) -> None:
        self._asked(lambda connection: connection.execute(query("withdraw_member"), (self._member,)))

    def close(self) -> None:
        self._release()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def _asked(self, ask: Callable[[Connection], Result]) -> Result:
        if self._connection is None:
            raise StoreUnavailable("the lead was lost")
        try:
            if self._lock is not None:
                self._lock.execute(query("ping"))  # the lead is lost with it
            return ask(self._connection)
        except psycopg.Error as error:
            self.close()
            raise sqlstate.unavailable(error) from None
