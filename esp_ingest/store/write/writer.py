"""The store on PostgreSQL: readings, rejects and diagnostics of a batch in one transaction, and the write ladder.

`PostgresStore.begin` sends the readings, `PendingWrite.finish` writes the rest and commits. The statements of one
transaction stand in transaction.py.

The first rung of the ladder is what happens all day: binary COPY of what is newer than anything known of its well, and
the rest through a staging table with ON CONFLICT DO NOTHING. If a key turns out to be there already (a restart, another
daemon), everything goes through the staging table. If the database refuses a row, the batch is halved until the rows at
fault are found, and they become rejects. Each rung is a transaction of its own, so that nothing of a failed one stays.

What is too much for one transaction (its locks, its memory, its time) is written in parts, each a transaction.

Nothing here relies on memory for correctness: whatever was committed without our knowing is found by its key.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import numpy as np
import psycopg

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.interfaces import Store, StoreUnavailable, WriteResult
from esp_ingest.model import NOTHING_ARRIVED, Arrival, Checkpoint, DiagnosticRow, Readings, Reject
from esp_ingest.store import schema, sqlstate
from esp_ingest.store.connection import Connection, connect
from esp_ingest.store.presence import Presence
from esp_ingest.store.queries import query
from esp_ingest.store.write.copy_format import TELEMETRY_COLUMNS
from esp_ingest.store.write.high_water import HighWaterMarks
from esp_ingest.store.write.newest import WellNewest
from esp_ingest.store.write.redelivery import RejectWriter
from esp_ingest.store.write.rejects import refused_reading
from esp_ingest.store.write.session import WriterSession, refuse_unless_ok
from esp_ingest.store.write.transaction import (
    Last,
    Means,
    NextRung,
    Prepared,
    Rows,
    Rung,
    Tally,
    TooMuch,
    Transaction,
    climb,
)

log = logging.getLogger(__name__)

_DAY_US = 86_400_000_000
_MOST_DAYS = 64  # of one transaction: each day is a chunk, and a new one takes a dozen locks and 20 ms
_TOO_MUCH_TRIES = 3  # a batch that is too much so often in a row is halved; a row that is so alone becomes a reject


class PostgresStore(Store):
    """interfaces.Store on one connection of its own, opened when it is needed and opened again after it was lost.

    ``topic_root`` is the first level of the topic that is put down for a reading which the database refused.
    ``publish``: changes of occurrences go to the outbox as well. ``beat`` is called between the steps of a write that
    takes long. ``rejects``: of the daemon's session. ``presence`` tells others that this daemon is here.
    ``newest`` keeps the newest reading of each well; without it the view well_latest looks for them."""

    def __init__(
        self,
        settings: DatabaseSettings,
        topic_root: str = "esp",
        connect: Callable[[DatabaseSettings], Connection] = connect,
        publish: bool = False,
        beat: Callable[[], None] = lambda: None,
        rejects: RejectWriter | None = None,
        presence: Presence | None = None,
        newest: WellNewest | None = None,
    ) -> None:
        self._settings = settings
        self._newest = newest
        self._presence = presence
        self._session = WriterSession(settings, connect, self._connected)
        self._means = Means(HighWaterMarks(), rejects or RejectWriter(), topic_root, publish, beat)
        self._ladder = Ladder(self._session, self._means, newest)
        self._prepared: Prepared | None = None  # of the readings that come next
        self.without_diagnostics = ""  # why diagnoses would not be stored, a sentence

    def begin(
        self, readings: Readings, rejects: Sequence[Reject], arrival: Arrival = NOTHING_ARRIVED
    ) -> "PendingWrite":
        prepared = None
        if self._prepared is not None and self._prepared.readings is readings:
            prepared, self._prepared = self._prepared, None
        self._be_present()
        parts = by_days(readings)
        begun: Transaction | None = None
        if parts:
            self._session.get()
        else:
            try:
                begun = self._ladder.begin(readings, prepared)
            except TooMuch:
                if not self._ladder.is_to_be_halved(readings, rejects):
                    raise
                parts = halves(np.arange(len(readings)))
        return PendingWrite(self._ladder, readings, rejects, arrival, begun, parts, self._keep_newest)

    def write(
        self,
        readings: Readings,
        rejects: Sequence[Reject],
        diagnostics: Sequence[DiagnosticRow],
        checkpoints: Sequence[Checkpoint] = (),
        cursor_us: tuple[int, int] | None = None,
        arrival: Arrival = NOTHING_ARRIVED,
    ) -> WriteResult:
        if not (len(readings) or rejects or diagnostics or checkpoints or cursor_us):
            return WriteResult(0, 0, 0)
        with self.begin(readings, rejects, arrival) as pending:
            return pending.finish(diagnostics, checkpoints, cursor_us)

    def _keep_newest(self, *, at_end: bool = False) -> None:
        """The newest reading of each well, where it is time. If it fails, nothing depends on it."""
        connection = self._session.standing()
        if self._newest is None or connection is None:
            return
        if self._newest.waiting if at_end else self._newest.is_due():
            try:
                self._newest.keep(connection, at_end=at_end)
            except psycopg.Error as error:
                self._session.give_back(error)
                self._newest.failed(self._session.connection, error)

    def idle(self) -> None:
        self._keep_newest()

    def prepare(self, readings: Readings) -> None:
        """See interfaces.Store: the COPY stream, where all of them can be expected to go directly."""
        if len(readings) and (self._prepared is None or self._prepared.readings is not readings):
            self._prepared = Prepared.of(readings, self._means)

    def ping(self) -> None:
        """See interfaces.Store. Unless ``database.skip_init`` says not to, what would keep this connection from storing
        is looked for once; whether the schema is of a version that this program works with, every new connection
        asks."""
        connection = self._session.get()
        try:
            if self._session.schema_ok or self._settings.skip_init:
                connection.execute(query("ping"))
            else:
                found = refuse_unless_ok(connection, schema.check_schema)
                self.without_diagnostics = found.without_diagnostics
                # As long as something is wrong, it is looked at again.
                self._session.schema_ok = not found.without_diagnostics
            connection.rollback()
            self._be_present()
        except psycopg.Error as error:
            self._session.give_back(error)
            raise sqlstate.unavailable(error) from None
        except StoreUnavailable:
            self.close()  # what makes it fit is perhaps for new sessions only
            raise

    @property
    def connected(self) -> bool:
        """There is a connection. From any thread."""
        return self._session.connection is not None

    @property
    def schema_checked(self) -> bool:
        """The schema's version was looked at when this connection was opened, and this program works with it."""
        return self._session.connection is not None and not self._settings.skip_init

    def _be_present(self) -> None:
        """Once a minute. If it fails, nothing depends on it. Raises StoreUnavailable if there is no connection."""
        if self._presence is not None and self._presence.is_due:
            connection = self._session.get()
            try:
                self._presence.renew(connection)
            except psycopg.Error as error:
                log.debug("presence not renewed", extra={"error": str(error)})
                self._session.give_back(error)

    def end(self) -> None:
        """Close for good, and tell the others."""
        self._keep_newest(at_end=True)
        if self._presence is not None and self._session.connection is not None:
            self._presence.end(self._session.connection)
        self.close()

    def close(self) -> None:
        """Close the connection; a later write opens another."""
        self._session.close()

    def _connected(self, connection: Connection) -> None:
        found = {name for (name,) in connection.execute(query("columns_with_default"))}
        self._means.defaults.clear()
        self._means.defaults.update(found.intersection(TELEMETRY_COLUMNS))
        if self._newest is not None:
            self._newest.reconnected()


class PendingWrite:
    """interfaces.PendingWrite: what :meth:`PostgresStore.begin` began. ``begun``: its readings are on their way; None
    where they are written in ``parts``, later."""

    def __init__(
        self,
        ladder: "Ladder",
        readings: Readings,
        rejects: Sequence[Reject],
        arrival: Arrival,
        begun: Transaction | None,
        parts: list[Rows],
        stored: Callable[[], None],
    ) -> None:
        self._ladder = ladder
        self._readings = readings
        self._rejects = rejects
        self._arrival = arrival
        self._begun = begun
        self._parts = parts
        self._stored = stored

    def __enter__(self) -> "PendingWrite":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        begun, self._begun = self._begun, None
        if begun is not None:
            self._ladder.cancel(begun, error)

    def finish(
        self,
        diagnostics: Sequence[DiagnosticRow],
        checkpoints: Sequence[Checkpoint],
        cursor_us: tuple[int, int] | None = None,
    ) -> WriteResult:
        """See interfaces.PendingWrite."""
        last = Last(diagnostics, checkpoints, cursor_us, self._arrival)
        readings, rejects, ladder = self._readings, self._rejects, self._ladder
        begun, self._begun = self._begun, None
        tally: Tally | None = None
        if not self._parts:
            try:
                tally = ladder.write(readings, rejects, last, begun)
            except TooMuch:
                if not ladder.is_to_be_halved(readings, rejects):
                    raise
                self._parts = halves(np.arange(len(readings)))
        if tally is None:
            tally, stubborn = ladder.in_parts(readings, self._parts)
            tally.add(ladder.rejects_in_parts([*rejects, *stubborn], last))
            tally.refused += stubborn
        ladder.succeeded()
        self._stored()
        return WriteResult(
            tally.written,
            tally.duplicates,
            tally.rejected,
            tuple(tally.refused),
            tally.reasons,
            tally.path,
            tally.refusal,
        )


class Ladder:
    """Tries one transaction on one rung after the other, and remembers from one write to the next what went wrong."""

    def __init__(self, session: WriterSession, means: Means, newest: WellNewest | None) -> None:
        self._session = session
        self._means = means
        self._newest = newest
        self._doubt = False  # a commit's outcome is unknown: the next batch is probably there already
        self._too_much = 0  # times in a row that a batch was more than the database takes at once
        self._stubborn: Counter[tuple[str, int]] = Counter()  # single rows that were, by key

    def begin(self, readings: Readings, prepared: Prepared | None = None, rung: Rung | None = None) -> Transaction:
        """A transaction whose readings are on their way, on the first rung or on ``rung``; where the database refuses
        it at once, on a later one. Raises StoreUnavailable with no transaction open."""
        if rung is None:
            rung = Rung.STAGED if self._doubt else Rung.DIRECT
        while True:
            transaction = Transaction(self._session.get(), rung, readings, self._means)
            try:
                with self._undoing(transaction):
                    transaction.send(prepared)
                    return transaction
            except NextRung as step:
                rung = step.rung

    def write(
        self, readings: Readings, rejects: Sequence[Reject], last: Last, begun: Transaction | None = None
    ) -> Tally:
        """One transaction, tried on one rung after the other. ``begun`` is what :meth:`begin` made for these readings.
        Raises StoreUnavailable with nothing of it stored, except that a lost connection during the commit leaves that
        open."""
        transaction = begun or self.begin(readings)
        while True:
            try:
                with self._undoing(transaction):
                    tally = transaction.store(rejects, last)
                    transaction.is_committing = True
                    transaction.connection.commit()
                break
            except NextRung as step:
                transaction = self.begin(readings, rung=step.rung)
        self._doubt = False
        if self._newest is not None and len(readings):
            self._newest.committed(readings, transaction.direct)
        self._means.marks.committed(readings)
        self._means.rejects.committed(last.arrival, rejects)
        return tally

    def cancel(self, transaction: Transaction, error: BaseException | None) -> None:
        """Undo what :meth:`begin` began, because of ``error`` or because it is not wanted any more."""
        transaction.cancel(error or StoreUnavailable("the write was given up"))
        self._session.give_back()

    @contextmanager
    def _undoing(self, transaction: Transaction) -> Iterator[None]:
        """Whatever error leaves the block, the transaction does not stay open. Raises NextRung, TooMuch or
        StoreUnavailable for an error of the database."""
        try:
            yield
        except (psycopg.Error, UnicodeError) as error:
            connection = transaction.connection
            transaction.cancel(error)
            is_lost = connection.closed or connection.broken
            self._session.give_back(error)
            if transaction.is_committing and is_lost:
                self._doubt = True
                detail = sqlstate.unavailable(error).detail
                raise StoreUnavailable("the connection was lost during a commit", detail) from None
            step = climb(transaction.rung, error)
            self._too_much += isinstance(step, TooMuch)
            raise step from None
        except BaseException as error:
            # Not an error of the database: whatever it was, the transaction must not stay open.
            self.cancel(transaction, error)
            raise

    def succeeded(self) -> None:
        """All of a batch is stored."""
        self._too_much = 0
        self._stubborn.clear()

    def is_to_be_halved(self, readings: Readings, rejects: Sequence[Reject]) -> bool:
        """After TooMuch: it has been so often, and there is something to halve."""
        return len(readings) + len(rejects) >= 2 and self._too_much >= _TOO_MUCH_TRIES

    def in_parts(self, readings: Readings, parts: list[Rows]) -> tuple[Tally, list[Reject]]:
        """Each part a transaction; one that is still too much is halved, down to one row. Returns what became of them,
        and rows that are too much by themselves, time and again, while others are not: those become rejects.

        Raises StoreUnavailable with some of them stored; they are duplicates when they are written again."""
        tally = Tally()
        todo = deque(parts)
        stuck: list[tuple[int, TooMuch]] = []
        while todo:
            self._means.beat()
            rows = todo.popleft()
            try:
                if len(rows):
                    tally.add(self.write(readings.select(rows), (), Last()))
            except TooMuch as error:
                if len(rows) > 1:
                    todo.extendleft(reversed(halves(rows)))
                else:
                    stuck.append((int(rows[0]), error))
        if not stuck:
            return tally, []
        for row, _ in stuck:
            self._stubborn[readings.well_of(row), int(readings.timestamp_us[row])] += 1
        if len(stuck) == len(readings) or min(self._stubborn.values()) < _TOO_MUCH_TRIES:
            raise stuck[0][1]  # the moment's fault, as far as can be told
        return tally, [refused_reading(readings, row, error, self._means.topic_root) for row, error in stuck]

    def rejects_in_parts(self, rejects: list[Reject], last: Last) -> Tally:
        """As many of them in a transaction as the database takes, the first ones first; ``last`` goes with the last.

        Raises StoreUnavailable with some of them stored; they are duplicates when they are written again."""
        tally = Tally()
        size = len(rejects)
        while True:
            self._means.beat()
            ends = size >= len(rejects)
            try:
                tally.add(self.write(Readings.empty(), rejects[:size], last if ends else Last()))
            except TooMuch:
                if size < 2:
                    raise
                size //= 2
                continue
            if ends:
                return tally
            rejects = rejects[size:]


def by_days(readings: Readings) -> list[Rows]:
    """Rows in parts of so many days; none where one transaction will do. What has the same key stays in one part, in
    order."""
    if len(readings) <= _MOST_DAYS or np.ptp(readings.timestamp_us) < _MOST_DAYS * _DAY_US:
        return []
    days, day = np.unique(readings.timestamp_us // _DAY_US, return_inverse=True)
    if len(days) <= _MOST_DAYS:
        return []
    part = day // _MOST_DAYS
    return [np.flatnonzero(part == at) for at in range(int(part.max()) + 1)]


def halves(rows: Rows) -> list[Rows]:
    """The first half and the second."""
    half = len(rows) // 2
    return [rows[:half], rows[half:]]
