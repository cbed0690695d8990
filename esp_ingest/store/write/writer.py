"""Readings, rejects and diagnostics of a batch in one transaction: the write ladder.

The first rung is what happens all day: binary COPY of what is newer than anything known of its well, the rest through a
staging table with ON CONFLICT DO NOTHING. When a key turns out to be there already (a restart, another daemon),
everything goes through the staging table. When the database refuses a row, the batch is halved until the rows at fault
are found, and they become rejects. Each rung is a transaction of its own, so that nothing of a failed one stays.

What is too much for one transaction (its locks, its memory, its time) is written in parts, each a transaction.

Nothing here relies on memory for correctness: whatever was committed without our knowing is found by its key.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence

import numpy as np
import psycopg

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.interfaces import Findings, StoreUnavailable, WriteResult
from esp_ingest.model import NOTHING_ARRIVED, Arrival, Checkpoint, DiagnosticRow, Readings, Reject
from esp_ingest.store import schema, sqlstate
from esp_ingest.store.connection import Connection, connect
from esp_ingest.store.presence import Presence
from esp_ingest.store.queries import query
from esp_ingest.store.write.high_water import Marks, first_of_each
from esp_ingest.store.write.newest import WellNewest
from esp_ingest.store.write.redelivery import RejectWriter
from esp_ingest.store.write.rejects import refused_reading
from esp_ingest.store.write.transaction import (
    Attempt,
    Cursor,
    Found,
    Last,
    NextRung,
    Prepared,
    Rows,
    Rung,
    Tally,
    TooMuch,
    climb,
    move_cursor,
    reconcile,
)

log = logging.getLogger(__name__)

_DAY_US = 86_400_000_000
_MOST_DAYS = 64  # of one transaction: each day is a chunk, and a new one takes a dozen locks and 20 ms
_TOO_MUCH_TRIES = 3  # a batch that is too much so often in a row is halved; a row that is so alone becomes a reject


class PostgresStore:
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
        self._beat = beat
        self._newest = newest
        self._presence = presence
        self._rejects = rejects or RejectWriter()
        self._settings = settings
        self._publish = publish
        self._topic_root = topic_root
        self._connect = connect
        self._connection: Connection | None = None
        self._schema_ok = False
        self.without_diagnostics = ""  # why diagnoses would not be stored, a sentence
        self._marks = Marks()
        self._prepared: Prepared | None = None  # of the readings that come next
        self._underway: Prepared | None = None  # of those that are being written
        self._doubt = False  # a commit's outcome is unknown: the next batch is probably there already
        self._too_much = 0  # times in a row that a batch was more than the database takes at once
        self._stubborn: Counter[tuple[str, int]] = Counter()  # single rows that were, by key

    def write(
        self,
        readings: Readings,
        rejects: Sequence[Reject],
        diagnostics: Sequence[DiagnosticRow],
        checkpoints: Sequence[Checkpoint] = (),
        cursor_us: tuple[int, int] | None = None,
        meanwhile: Callable[[], Findings] | None = None,
        arrival: Arrival = NOTHING_ARRIVED,
    ) -> WriteResult:
        """Store all of it in one transaction, or nothing; where that is too much, in parts. See interfaces.Store."""
        if not (len(readings) or rejects or diagnostics or checkpoints or cursor_us or meanwhile):
            return WriteResult(0, 0, 0)
        if self._prepared is not None and self._prepared.readings is readings:
            self._underway, self._prepared = self._prepared, None
        self._be_present()
        found = Found(diagnostics, checkpoints, meanwhile)
        last = Last(found, cursor_us, arrival)
        tally: Tally | None = None
        parts = _by_days(readings)
        if not parts:
            try:
                tally = self._ladder(readings, rejects, last)
            except TooMuch:
                if len(readings) + len(rejects) < 2 or self._too_much < _TOO_MUCH_TRIES:
                    raise
                parts = _halves(np.arange(len(readings)))
        if tally is None:
            tally, stubborn = self._in_parts(readings, parts)
            tally.add(self._rejects_in_parts([*rejects, *stubborn], last))
            tally.refused += stubborn
        self._too_much = 0
        self._stubborn.clear()
        self._keep_newest()
        return WriteResult(
            tally.written,
            tally.duplicates,
            tally.rejected,
            tuple(tally.refused),
            tally.reasons,
            tally.path,
            tally.refusal,
        )

    def _in_parts(self, readings: Readings, parts: list[Rows]) -> tuple[Tally, list[Reject]]:
        """Each part a transaction; one that is still too much is halved, down to one row. Returns what became of them,
        and rows that are too much by themselves, time and again, while others are not: those become rejects.

        Raises StoreUnavailable with some of them stored; they are duplicates when they are written again."""
        tally = Tally()
        todo = deque(parts)
        stuck: list[tuple[int, TooMuch]] = []
        while todo:
            self._beat()
            rows = todo.popleft()
            try:
                if len(rows):
                    tally.add(self._ladder(readings.select(rows), (), Last()))
            except TooMuch as error:
                if len(rows) > 1:
                    todo.extendleft(reversed(_halves(rows)))
                else:
                    stuck.append((int(rows[0]), error))
        if not stuck:
            return tally, []
        for row, _ in stuck:
            self._stubborn[readings.well_of(row), int(readings.timestamp_us[row])] += 1
        if len(stuck) == len(readings) or min(self._stubborn.values()) < _TOO_MUCH_TRIES:
            raise stuck[0][1]  # the moment's fault, as far as can be told
        return tally, [refused_reading(readings, row, error, self._topic_root) for row, error in stuck]

    def _rejects_in_parts(self, rejects: list[Reject], last: Last) -> Tally:
        """As many of them in a transaction as the database takes, the first ones first; ``last`` goes with the last.

        Raises StoreUnavailable with some of them stored; they are duplicates when they are written again."""
        tally = Tally()
        size = len(rejects)
        while True:
            self._beat()
            ends = size >= len(rejects)
            try:
                tally.add(self._ladder(Readings.empty(), rejects[:size], last if ends else Last()))
            except TooMuch:
                if size < 2:
                    raise
                size //= 2
                continue
            if ends:
                return tally
            rejects = rejects[size:]

    def _ladder(self, readings: Readings, rejects: Sequence[Reject], last: Last) -> Tally:
        """One transaction, tried on one rung after the other."""
        rung = Rung.STAGED if self._doubt else Rung.DIRECT
        while True:
            try:
                tally = self._transaction(rung, readings, rejects, last)
            except NextRung as step:
                rung = step.rung
                continue
            except TooMuch:
                self._too_much += 1
                raise
            self._doubt = False
            if self._newest is not None and len(readings):
                self._newest.committed(readings, self._as_sent(readings) if rung is Rung.DIRECT else None)
            self._marks.committed(readings)
            self._rejects.committed(last.arrival, rejects)
            return tally

    def _as_sent(self, readings: Readings) -> Rows:
        """Which of them went directly into the table. No other one is the newest of its well."""
        prepared = self._underway
        is_known = prepared is not None and prepared.readings is readings
        first = prepared.first if is_known and prepared is not None else first_of_each(readings)
        fresh = self._marks.fresh(readings)
        return np.flatnonzero(fresh if first is None else first & fresh)

    def _keep_newest(self, *, at_end: bool = False) -> None:
        """The newest reading of each well, where it is time. If it fails, nothing depends on it."""
        if self._newest is None or self._connection is None:
            return
        if self._newest.waiting if at_end else self._newest.is_due():
            try:
                self._newest.keep(self._connection)
            except psycopg.Error as error:
                self._give_back(error)
                self._newest.failed(self._connection, error)

    def idle(self) -> None:
        """See interfaces.Store."""
        self._keep_newest()

    def prepare(self, readings: Readings) -> None:
        """See interfaces.Store: the COPY stream, where all of them can be expected to go directly."""
        if len(readings) and (self._prepared is None or self._prepared.readings is not readings):
            self._prepared = Prepared.of(readings, self._marks)

    def ping(self) -> None:
        """See interfaces.Store. Unless ``database.skip_init`` says not to, what would keep this connection from storing
        is looked for once; whether the schema is of a version that this program works with, every new connection
        asks."""
        connection = self._connected()
        try:
            if self._schema_ok or self._settings.skip_init:
                connection.execute(query("ping"))
            else:
                found = _refuse_unless_ok(connection, schema.check_schema)
                self.without_diagnostics = found.without_diagnostics
                self._schema_ok = not found.without_diagnostics  # as long as something is wrong it is looked at again
            connection.rollback()
            self._be_present()
        except psycopg.Error as error:
            self._give_back(error)
            raise sqlstate.unavailable(error) from None
        except StoreUnavailable:
            self.close()  # what makes it fit is perhaps for new sessions only
            raise

    @property
    def connected(self) -> bool:
        """There is a connection. From any thread."""
        return self._connection is not None

    @property
    def schema_checked(self) -> bool:
        """The schema's version was looked at when this connection was opened, and this program works with it."""
        return self._connection is not None and not self._settings.skip_init

    def _be_present(self) -> None:
        """Once a minute. If it fails, nothing depends on it. Raises StoreUnavailable if there is no connection."""
        if self._presence is not None and self._presence.is_due:
            connection = self._connected()
            try:
                self._presence.renew(connection)
            except psycopg.Error as error:
                log.debug("presence not renewed", extra={"error": str(error)})
                self._give_back(error)

    def end(self) -> None:
        """Close for good, and tell the others."""
        self._keep_newest(at_end=True)
        if self._presence is not None and self._connection is not None:
            self._presence.end(self._connection)
        self.close()

    def close(self) -> None:
        """Close the connection; a later write opens another."""
        connection, self._connection = self._connection, None
        self._schema_ok = False
        if connection is not None:
            connection.close()

    # ------------------------------------------------------------------------------------------------ connection

    def _connected(self) -> Connection:
        if self._connection is not None and (self._connection.closed or self._connection.broken):
            self.close()
        if self._connection is None:
            connection = self._connect(self._settings)
            try:
                if not self._settings.skip_init:
                    _refuse_unless_ok(connection, schema.check_version)
                connection.rollback()
                if self._newest is not None:
                    self._newest.reconnected()
            except psycopg.Error as error:
                connection.close()
                raise sqlstate.unavailable(error) from None
            except StoreUnavailable:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _give_back(self, error: BaseException | None = None) -> None:
        """After ``error``: back to a clean connection, or to none."""
        if self._connection is None:
            return
        if error is not None and sqlstate.wants_new_session(error):
            self.close()
            return
        try:
            self._connection.rollback()
        except psycopg.Error:
            self.close()
        else:
            if self._connection.closed or self._connection.broken:
                self.close()

    # ----------------------------------------------------------------------------------------------- transaction

    def _transaction(
        self,
        rung: Rung,
        readings: Readings,
        rejects: Sequence[Reject],
        last: Last,
    ) -> Tally:
        """One try on one rung. Raises NextRung or StoreUnavailable with nothing of it stored, except that a lost
        connection during the commit leaves that open."""
        connection = self._connected()
        committing = False
        try:
            with connection.cursor() as cursor:
                attempt = Attempt(
                    cursor,
                    rung,
                    self._marks,
                    self._topic_root,
                    self._publish,
                    last,
                    self._beat,
                    self._underway,
                    self._rejects,
                )
                tally = attempt.run(readings, rejects)
                if last.cursor_us is not None:
                    move_cursor(cursor, *last.cursor_us)
                if rung is Rung.STAGED and len(readings):
                    self._learn(cursor, readings)
            reconcile(tally, len(readings) + len(rejects))
            committing = True
            connection.commit()
        except (psycopg.Error, UnicodeError) as error:
            lost = connection.closed or connection.broken
            self._give_back(error)
            if committing and lost:
                self._doubt = True
                detail = sqlstate.unavailable(error).detail
                raise StoreUnavailable("the connection was lost during a commit", detail) from None
            raise climb(rung, error) from None
        except BaseException:
            # Not an error of the database: whatever it was, the transaction must not stay open.
            self._give_back()
            raise
        return tally

    def _learn(self, cursor: Cursor, readings: Readings) -> None:
        """On the staging rung rows are known to be stored that we had no mark of: ask how far, once, so that the
        batches to come do not each find out by a failed COPY."""
        wells = [readings.wells[at] for at in np.unique(readings.well_index).tolist()]
        self._marks.raise_to(cursor.execute(query("newest_of_wells"), (wells,)).fetchall())


def _refuse_unless_ok(connection: Connection, check: Callable[[Connection], schema.SchemaCheck]) -> schema.SchemaCheck:
    """What ``check`` finds. Raises StoreUnavailable if something is wrong, and psycopg.Error."""
    try:
        found = check(connection)
    except schema.SchemaError as error:
        raise StoreUnavailable("the database cannot be used", str(error)) from None
    if not found.ok:
        differs = found.status == "needs migrate"
        reason = "the schema is not the one this program writes" if differs else "nothing can be stored here"
        raise StoreUnavailable(reason, found.detail)
    return found


def _by_days(readings: Readings) -> list[Rows]:
    """Rows in parts of so many days; none where one transaction will do. What has the same key stays in one part, in
    order."""
    if len(readings) <= _MOST_DAYS or np.ptp(readings.timestamp_us) < _MOST_DAYS * _DAY_US:
        return []
    days, day = np.unique(readings.timestamp_us // _DAY_US, return_inverse=True)
    if len(days) <= _MOST_DAYS:
        return []
    part = day // _MOST_DAYS
    return [np.flatnonzero(part == at) for at in range(int(part.max()) + 1)]


def _halves(rows: Rows) -> list[Rows]:
    half = len(rows) // 2
    return [rows[:half], rows[half:]]
