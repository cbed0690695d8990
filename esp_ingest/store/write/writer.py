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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.interfaces import Findings, Refusal, StoreUnavailable, WriteResult
from esp_ingest.model import NOTHING_ARRIVED, Arrival, Checkpoint, DiagnosticRow, Readings, Reject, at_us
from esp_ingest.store import schema, sqlstate
from esp_ingest.store.connection import Connection, connect, staging
from esp_ingest.store.presence import Presence
from esp_ingest.store.queries import query
from esp_ingest.store.sqlstate import Verdict
from esp_ingest.store.write.copy_format import Buffer, telemetry_stream
from esp_ingest.store.write.findings import write_diagnostics
from esp_ingest.store.write.high_water import Marks, first_of_each
from esp_ingest.store.write.newest import WellNewest
from esp_ingest.store.write.redelivery import RejectWriter
from esp_ingest.store.write.rejects import conflicting_reading, refused_reading

log = logging.getLogger(__name__)

_DAY_US = 86_400_000_000
_MOST_DAYS = 64  # of one transaction: each day is a chunk, and a new one takes a dozen locks and 20 ms
_TOO_MUCH_TRIES = 3  # a batch that is too much so often in a row is halved; a row that is so alone becomes a reject

_Rows = npt.NDArray[np.intp]
_Cursor = psycopg.Cursor[tuple[Any, ...]]


class Rung(IntEnum):
    """How a batch is written, from fast to careful."""

    DIRECT = 0
    STAGED = 1
    ROW_BY_ROW = 2


@dataclass(slots=True)
class _Tally:
    """What became of the items of one transaction."""

    written: int = 0
    duplicates: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # of the rejects that were not stored before
    refused: list[Reject] = field(default_factory=list)  # stored in place of readings
    refusal: Refusal | None = None  # of the diagnostics
    path: str = "direct"  # as in metrics.WRITE_PATHS

    @property
    def rejected(self) -> int:
        return self.reasons.total()

    def add(self, other: "_Tally") -> None:
        """What became of another part of the batch."""
        self.written += other.written
        self.duplicates += other.duplicates
        self.reasons += other.reasons
        self.refused += other.refused
        self.refusal = self.refusal or other.refusal
        self.path = max(self.path, other.path, key=("direct", "staging", "bisect").index)


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
        self._prepared: _Prepared | None = None  # of the readings that come next
        self._underway: _Prepared | None = None  # of those that are being written
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
        found = _Found(diagnostics, checkpoints, meanwhile)
        last = _Last(found, cursor_us, arrival)
        tally: _Tally | None = None
        parts = _by_days(readings)
        if not parts:
            try:
                tally = self._ladder(readings, rejects, last)
            except _TooMuch:
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

    def _in_parts(self, readings: Readings, parts: list[_Rows]) -> tuple[_Tally, list[Reject]]:
        """Each part a transaction; one that is still too much is halved, down to one row. Returns what became of them,
        and rows that are too much by themselves, time and again, while others are not: those become rejects.

        Raises StoreUnavailable with some of them stored; they are duplicates when they are written again."""
        tally = _Tally()
        todo = deque(parts)
        stuck: list[tuple[int, _TooMuch]] = []
        while todo:
            self._beat()
            rows = todo.popleft()
            try:
                if len(rows):
                    tally.add(self._ladder(readings.select(rows), (), _Last()))
            except _TooMuch as error:
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

    def _rejects_in_parts(self, rejects: list[Reject], last: "_Last") -> _Tally:
        """As many of them in a transaction as the database takes, the first ones first; ``last`` goes with the last.

        Raises StoreUnavailable with some of them stored; they are duplicates when they are written again."""
        tally = _Tally()
        size = len(rejects)
        while True:
            self._beat()
            ends = size >= len(rejects)
            try:
                tally.add(self._ladder(Readings.empty(), rejects[:size], last if ends else _Last()))
            except _TooMuch:
                if size < 2:
                    raise
                size //= 2
                continue
            if ends:
                return tally
            rejects = rejects[size:]

    def _ladder(self, readings: Readings, rejects: Sequence[Reject], last: "_Last") -> _Tally:
        """One transaction, tried on one rung after the other."""
        rung = Rung.STAGED if self._doubt else Rung.DIRECT
        while True:
            try:
                tally = self._transaction(rung, readings, rejects, last)
            except _NextRung as step:
                rung = step.rung
                continue
            except _TooMuch:
                self._too_much += 1
                raise
            self._doubt = False
            if self._newest is not None and len(readings):
                self._newest.committed(readings, self._as_sent(readings) if rung is Rung.DIRECT else None)
            self._marks.committed(readings)
            self._rejects.committed(last.arrival, rejects)
            return tally

    def _as_sent(self, readings: Readings) -> _Rows:
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
            self._prepared = _Prepared.of(readings, self._marks)

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
        last: "_Last",
    ) -> _Tally:
        """One try on one rung. Raises _NextRung or StoreUnavailable with nothing of it stored, except that a lost
        connection during the commit leaves that open."""
        connection = self._connected()
        committing = False
        try:
            with connection.cursor() as cursor:
                attempt = _Attempt(
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
                    _move(cursor, *last.cursor_us)
                if rung is Rung.STAGED and len(readings):
                    self._learn(cursor, readings)
            _reconcile(tally, len(readings) + len(rejects))
            committing = True
            connection.commit()
        except (psycopg.Error, UnicodeError) as error:
            lost = connection.closed or connection.broken
            self._give_back(error)
            if committing and lost:
                self._doubt = True
                detail = sqlstate.unavailable(error).detail
                raise StoreUnavailable("the connection was lost during a commit", detail) from None
            raise _climb(rung, error) from None
        except BaseException:
            # Not an error of the database: whatever it was, the transaction must not stay open.
            self._give_back()
            raise
        return tally

    def _learn(self, cursor: _Cursor, readings: Readings) -> None:
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


class _Found:
    """What the rules found. They are asked once, however often the transaction is tried."""

    def __init__(
        self,
        rows: Sequence[DiagnosticRow],
        checkpoints: Sequence[Checkpoint],
        look: Callable[[], Findings] | None,
    ) -> None:
        self.rows = rows
        self.checkpoints = checkpoints
        self._look = look

    def look(self) -> None:
        if self._look is not None:
            look, self._look = self._look, None
            self.rows, self.checkpoints = look()


@dataclass(slots=True)
class _Last:
    """What goes with the last transaction of a write, or with its only one."""

    found: _Found = field(default_factory=lambda: _Found((), (), None))
    cursor_us: tuple[int, int] | None = None
    arrival: Arrival = NOTHING_ARRIVED


class _TooMuch(StoreUnavailable):
    """Perhaps the moment, perhaps the batch is more than the database takes in one transaction."""


def _by_days(readings: Readings) -> list[_Rows]:
    """Rows in parts of so many days; none where one transaction will do. What has the same key stays in one part, in
    order."""
    if len(readings) <= _MOST_DAYS or np.ptp(readings.timestamp_us) < _MOST_DAYS * _DAY_US:
        return []
    days, day = np.unique(readings.timestamp_us // _DAY_US, return_inverse=True)
    if len(days) <= _MOST_DAYS:
        return []
    part = day // _MOST_DAYS
    return [np.flatnonzero(part == at) for at in range(int(part.max()) + 1)]


def _halves(rows: _Rows) -> list[_Rows]:
    half = len(rows) // 2
    return [rows[:half], rows[half:]]


class _NextRung(Exception):
    """The batch has to be written again, more carefully."""

    def __init__(self, rung: Rung) -> None:
        super().__init__(rung.name)
        self.rung = rung


def _climb(rung: Rung, error: BaseException) -> Exception:
    """What an error on ``rung`` leads to."""
    verdict = sqlstate.decide(error).verdict
    if verdict is Verdict.DUPLICATE and rung is Rung.DIRECT:
        return _NextRung(Rung.STAGED)
    if verdict in (Verdict.DUPLICATE, Verdict.DATA) and rung < Rung.ROW_BY_ROW:
        return _NextRung(Rung.ROW_BY_ROW)
    unavailable = sqlstate.unavailable(error)
    return _TooMuch(unavailable.reason, unavailable.detail) if sqlstate.is_too_much(error) else unavailable


def _reconcile(tally: _Tally, items: int) -> None:
    """Every item handed in is written, a duplicate or a reject. Checked before the commit, so that a difference (a
    trigger that swallows rows, a rule) keeps the batch and does not lose it."""
    accounted = tally.written + tally.duplicates + tally.rejected
    if accounted != items:
        raise StoreUnavailable(
            "the database took another number of rows than were sent",
            f"{accounted} of {items}: look for triggers and rules on esp_telemetry and ingest_rejects",
        )


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a write needs to know of its readings and can be known before: which are the first of their key (None: all),
    and the COPY stream of all of them, where no mark speaks against one yet."""

    readings: Readings
    first: npt.NDArray[np.bool_] | None
    stream: list[Buffer] | None

    @staticmethod
    def of(readings: Readings, marks: Marks) -> "_Prepared":
        first = first_of_each(readings)
        direct = first is None and bool(marks.fresh(readings).all())
        return _Prepared(readings, first, telemetry_stream(readings) if direct else None)


class _Attempt:
    """The statements of one transaction on one rung; the caller commits."""

    def __init__(
        self,
        cursor: _Cursor,
        rung: Rung,
        marks: Marks,
        topic_root: str,
        publish: bool,
        last: _Last,
        beat: Callable[[], None],
        prepared: "_Prepared | None",
        reject_writer: RejectWriter,
    ) -> None:
        self._beat = beat
        self._prepared = prepared
        self._found = last.found
        self._has_cursor = last.cursor_us is not None
        self._arrival = last.arrival
        self._reject_writer = reject_writer
        self._publish = publish
        self._cursor = cursor
        self._rung = rung
        self._marks = marks
        self._topic_root = topic_root
        self._tally = _Tally()

    def run(self, readings: Readings, rejects: Sequence[Reject]) -> _Tally:
        if len(readings):
            if self._rung is Rung.DIRECT:
                self._direct(readings)
            elif self._rung is Rung.STAGED:
                self._staged(readings, np.arange(len(readings)))
            else:
                self._row_by_row(readings)
        self._found.look()
        rejects = [*rejects, *self._tally.refused]
        stored = self._reject_writer.store(self._cursor, rejects, self._arrival)
        self._tally.reasons += stored
        self._tally.duplicates += len(rejects) - stored.total()
        if self._found.rows or self._found.checkpoints:
            written = write_diagnostics(
                self._cursor,
                self._found.rows,
                self._found.checkpoints,
                publish=self._publish,
                topic_root=self._topic_root,
                must=self._has_cursor,
            )
            self._tally.refusal = written.refusal
            if written.rejects:  # beside the items that are counted
                self._reject_writer.store(self._cursor, written.rejects, NOTHING_ARRIVED)
        return self._tally

    # -------------------------------------------------------------------------------------------------- readings

    def _direct(self, readings: Readings) -> None:
        """What no mark speaks against goes straight into the table; an error ends the transaction."""
        prepared = self._prepared
        if prepared is None or prepared.readings is not readings:
            prepared = _Prepared.of(readings, self._marks)
        first, fresh = prepared.first, self._marks.fresh(readings)
        if first is None and fresh.all():
            stream = prepared.stream or telemetry_stream(readings)
            self._tally.written += self._copied("copy_telemetry", stream, len(readings))
            return
        direct = fresh if first is None else first & fresh
        rows, suspect = np.flatnonzero(direct), np.flatnonzero(~direct)
        if len(rows):
            self._tally.written += self._copied("copy_telemetry", telemetry_stream(readings, rows), len(rows))
        self._staged(readings, suspect)

    def _staged(self, readings: Readings, rows: _Rows) -> None:
        """Through the staging table, in order."""
        self._tally.path = "staging"
        self._cursor.execute(staging(self._cursor.connection, "create_staging"))
        self._copied("copy_staging", telemetry_stream(readings, rows), len(rows))
        self._cursor.execute(query("insert_staged"))
        self._count_staged(readings, rows.tolist(), self._cursor.rowcount)

    def _row_by_row(self, readings: Readings) -> None:
        """Halve until the rows at fault stand alone; those become rejects. The order received is kept, so the first
        storable one of each key is the one that stays. The staging table is filled once, then inserted in ranges."""
        self._tally.path = "bisect"
        self._cursor.execute(query("create_checked_staging"))

        def fill(start: int, end: int) -> int:
            return self._copied("copy_staging", telemetry_stream(readings, np.arange(start, end)), end - start)

        filled, _ = self._halving(len(readings), fill, lambda at, error: self._refuse(readings, at, error))
        if not filled:
            return
        places = [int(place) for (place,) in self._cursor.execute(query("staged_places"))]
        at_fault: list[int] = []

        def insert(start: int, end: int) -> int:
            self._cursor.execute(query("insert_staged_range"), (places[start], places[end - 1]))
            return self._cursor.rowcount

        def refuse(at: int, error: BaseException) -> None:
            self._refuse(readings, filled[at], error)
            at_fault.append(places[at])

        inserted, new = self._halving(len(filled), insert, refuse)
        self._cursor.execute(query("unstage"), (at_fault,))
        self._count_staged(readings, [filled[at] for at in inserted], new)

    def _halving(
        self, count: int, work: Callable[[int, int], int], refuse: Callable[[int, BaseException], None]
    ) -> tuple[list[int], int]:
        """``work`` from 0 to ``count``, in order, in halves where there is a row at fault, down to the row. Returns
        where it succeeded, and the sum of what it returned."""
        todo = [(0, count)]
        done: list[int] = []
        total = 0
        while todo:
            self._beat()
            start, end = todo.pop()
            try:
                with self._cursor.connection.transaction():
                    result = work(start, end)
            except psycopg.Error as error:
                if not _is_a_row(error):
                    raise
                if end - start == 1:
                    refuse(start, error)
                else:
                    half = (start + end) // 2
                    todo += [(half, end), (start, half)]
            else:
                total += result
                done += range(start, end)
        return done, total

    def _refuse(self, readings: Readings, row: int, error: BaseException) -> None:
        self._tally.refused.append(refused_reading(readings, row, error, self._topic_root))

    def _count_staged(self, readings: Readings, rows: list[int], new: int) -> None:
        """``rows`` stand in the staging table, in that order, and ``new`` of them went on from there. What did not is a
        duplicate where the very same is stored; else it says something else, and is kept as a reject."""
        conflicts: list[int] = []
        if new < len(rows):
            times = [int(readings.timestamp_us[rows].min()), int(readings.timestamp_us[rows].max())]
            found = self._cursor.execute(query("staged_conflicts"), [at_us(each) for each in times]).fetchall()
            if found:
                places = [place for (place,) in self._cursor.execute(query("staged_places"))]
                row_of = dict(zip(places, rows, strict=True))
                conflicts = [row_of[place] for (place,) in found]
        self._tally.written += new
        self._tally.duplicates += len(rows) - new - len(conflicts)
        self._tally.refused += [conflicting_reading(readings, row, self._topic_root) for row in conflicts]

    def _copied(self, name: str, stream: Iterable[Buffer], count: int) -> int:
        """Run a COPY. Returns how many rows the database took, which has to be ``count``."""
        with self._cursor.copy(query(name)) as copy:
            for piece in stream:
                copy.write(piece)
            self._found.look()  # the database has its work and we have ours: 1 of 6 µs a reading
        taken = self._cursor.rowcount
        if taken != count:
            raise StoreUnavailable(
                "the database took another number of rows than were sent",
                f"{taken} of {count}: look for triggers and rules on the tables of esp-ingest",
            )
        return taken


def _is_a_row(error: BaseException) -> bool:
    """The row itself is at fault, not the moment or the set-up."""
    return sqlstate.decide(error).verdict in (Verdict.DATA, Verdict.DUPLICATE)


def _move(cursor: _Cursor, from_us: int, to_us: int) -> None:
    cursor.execute(query("move_cursor"), {"from": at_us(from_us), "to": at_us(to_us)})
    if cursor.rowcount != 1:
        raise StoreUnavailable("another daemon follows the table", "this one lets go")
