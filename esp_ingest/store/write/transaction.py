"""The statements of one transaction on one rung of the write ladder."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg

from esp_ingest.interfaces import Refusal, StoreUnavailable
from esp_ingest.model import NOTHING_ARRIVED, Arrival, Checkpoint, DiagnosticRow, Readings, Reject, at_us
from esp_ingest.store import sqlstate
from esp_ingest.store.connection import Connection, staging
from esp_ingest.store.queries import copy_of, query
from esp_ingest.store.sqlstate import Verdict
from esp_ingest.store.write.copy_format import TelemetryStream, telemetry_stream
from esp_ingest.store.write.findings import write_diagnostics
from esp_ingest.store.write.high_water import HighWaterMarks, first_of_each
from esp_ingest.store.write.redelivery import RejectWriter
from esp_ingest.store.write.rejects import conflicting_reading, refused_reading

Rows = npt.NDArray[np.intp]
Cursor = psycopg.Cursor[tuple[Any, ...]]


class Rung(IntEnum):
    """How a batch is written, from fast to careful."""

    DIRECT = 0
    STAGED = 1
    ROW_BY_ROW = 2


@dataclass(slots=True)
class Tally:
    """What became of the items of one transaction."""

    written: int = 0
    duplicates: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # of the rejects that were not stored before
    refused: list[Reject] = field(default_factory=list)  # stored in place of readings
    refusal: Refusal | None = None  # of the diagnostics
    path: str = "direct"  # as in metrics.WRITE_PATHS

    @property
    def rejected(self) -> int:
        """Rejects that were not stored before."""
        return self.reasons.total()

    def add(self, other: "Tally") -> None:
        """What became of another part of the batch."""
        self.written += other.written
        self.duplicates += other.duplicates
        self.reasons += other.reasons
        self.refused += other.refused
        self.refusal = self.refusal or other.refusal
        self.path = max(self.path, other.path, key=("direct", "staging", "bisect").index)


@dataclass(frozen=True, slots=True)
class Last:
    """What goes with the last transaction of a write, or with its only one: what the rules found, the place of whoever
    follows the table (from, to; see interfaces.Store), and the messages that all of it came from."""

    diagnostics: Sequence[DiagnosticRow] = ()
    checkpoints: Sequence[Checkpoint] = ()
    cursor_us: tuple[int, int] | None = None
    arrival: Arrival = NOTHING_ARRIVED


class TooMuch(StoreUnavailable):
    """The server is overloaded now, or this transaction is too large for it."""


class NextRung(Exception):
    """The batch has to be written again, more carefully."""

    def __init__(self, rung: Rung) -> None:
        super().__init__(rung.name)
        self.rung = rung


def climb(rung: Rung, error: BaseException) -> Exception:
    """What an error on ``rung`` leads to."""
    verdict = sqlstate.decide(error).verdict
    if verdict is Verdict.DUPLICATE and rung is Rung.DIRECT:
        return NextRung(Rung.STAGED)
    if verdict in (Verdict.DUPLICATE, Verdict.DATA) and rung < Rung.ROW_BY_ROW:
        return NextRung(Rung.ROW_BY_ROW)
    unavailable = sqlstate.unavailable(error)
    return TooMuch(unavailable.reason, unavailable.detail) if sqlstate.is_too_much(error) else unavailable


def reconcile(tally: Tally, items: int) -> None:
    """Every item handed in is written, a duplicate or a reject. Checked before the commit, so that a difference (a
    trigger that swallows rows, a rule) keeps the batch and does not lose it."""
    accounted = tally.written + tally.duplicates + tally.rejected
    if accounted != items:
        raise StoreUnavailable(
            "the database took another number of rows than were sent",
            f"{accounted} of {items}: look for triggers and rules on esp_telemetry and ingest_rejects",
        )


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a write needs to know of its readings and can be known before: which are the first of their key (None: all),
    and the COPY stream of all of them, where no mark speaks against one yet."""

    readings: Readings
    first: npt.NDArray[np.bool_] | None
    stream: TelemetryStream | None

    @staticmethod
    def of(readings: Readings, means: "Means") -> "Prepared":
        """What can be known of them beforehand."""
        first = first_of_each(readings)
        direct = first is None and bool(means.marks.fresh(readings).all())
        return Prepared(readings, first, telemetry_stream(readings, always=means.defaults) if direct else None)


@dataclass(frozen=True, slots=True)
class Means:
    """What every transaction of a store works with. ``publish``: changes of occurrences go to the outbox as well.
    ``topic_root`` is the first level of the topic that is put down for a reading which the database refused. ``beat``
    is called between the steps of what takes long. ``defaults``: the TELEMETRY_COLUMNS that somebody gave one,
    which must not stand in for a value that no controller sent."""

    marks: HighWaterMarks
    rejects: RejectWriter
    topic_root: str
    publish: bool
    beat: Callable[[], None]
    defaults: set[str] = field(default_factory=set)


class Transaction:
    """The statements of one transaction on one rung: :meth:`send`, then :meth:`store`; the caller commits. After an
    error of either, and in place of :meth:`store`, comes :meth:`cancel`, and the caller rolls back. All three block
    while the database works."""

    def __init__(self, connection: Connection, rung: Rung, readings: Readings, means: Means) -> None:
        self.connection = connection
        self.rung = rung
        self.readings = readings
        self.direct: Rows | None = None  # went straight into the table; None: the database tells which
        self.is_committing = False
        self._means = means
        self._cursor = connection.cursor()
        self._tally = Tally()
        self._copy = ExitStack()  # the COPY that is open
        self._copied_rows = 0  # sent to it
        self._staged: Rows | None = None  # go through the staging table

    def send(self, prepared: "Prepared | None" = None) -> None:
        """Send the rows of the first COPY and leave it open: the database reads them until :meth:`store`. ``prepared``
        saves work if it is of these readings."""
        if self.rung is Rung.DIRECT and len(self.readings):
            self._send_direct(prepared)
        elif self.rung is Rung.STAGED and len(self.readings):
            self._send_to_staging(np.arange(len(self.readings)))

    def store(self, rejects: Sequence[Reject], last: Last) -> Tally:
        """End the COPY, and write all else. Raises psycopg.Error, UnicodeError and StoreUnavailable."""
        readings, cursor = self.readings, self._cursor
        items = len(readings) + len(rejects)
        if self.rung is Rung.ROW_BY_ROW and len(readings):
            self._row_by_row(readings)
        elif len(readings):
            self._end_readings()
        rejects = [*rejects, *self._tally.refused]
        stored = self._means.rejects.store(cursor, rejects, last.arrival)
        self._tally.reasons += stored
        self._tally.duplicates += len(rejects) - stored.total()
        if last.diagnostics or last.checkpoints:
            self._store_findings(last)
        if last.cursor_us is not None:
            move_cursor(cursor, *last.cursor_us)
        if self.rung is Rung.STAGED and len(readings):
            self._learn()
        reconcile(self._tally, items)
        cursor.close()
        return self._tally

    def cancel(self, error: BaseException) -> None:
        """End an open COPY with ``error``, so that nothing of it counts. Raises nothing of the database."""
        with suppress(psycopg.Error):
            self._copy.__exit__(type(error), error, error.__traceback__)
        self._cursor.close()

    def _store_findings(self, last: Last) -> None:
        written = write_diagnostics(
            self._cursor,
            last.diagnostics,
            last.checkpoints,
            publish=self._means.publish,
            topic_root=self._means.topic_root,
            must=last.cursor_us is not None,
        )
        self._tally.refusal = written.refusal
        if written.rejects:  # beside the items that are counted
            self._means.rejects.store(self._cursor, written.rejects, NOTHING_ARRIVED)

    def _learn(self) -> None:
        """On the staging rung rows are known to be stored that we had no mark of: ask how far, once, so that the
        batches to come do not each find out by a failed COPY."""
        wells = [self.readings.wells[at] for at in np.unique(self.readings.well_index).tolist()]
        self._means.marks.raise_to(self._cursor.execute(query("newest_of_wells"), (wells,)).fetchall())

    # -------------------------------------------------------------------------------------------------- readings

    def _send_direct(self, prepared: "Prepared | None") -> None:
        """What no mark speaks against goes straight into the table, the rest through the staging table after it."""
        readings = self.readings
        if prepared is None or prepared.readings is not readings:
            prepared = Prepared.of(readings, self._means)
        first, fresh = prepared.first, self._means.marks.fresh(readings)
        direct = fresh if first is None else first & fresh
        self.direct = np.flatnonzero(direct)
        if len(self.direct) == len(readings):
            stream, defaults = prepared.stream, self._means.defaults
            if stream is None or not defaults.issubset(stream.columns):  # prepared for another connection
                stream = telemetry_stream(readings, always=defaults)
            self._open_copy("copy_telemetry", stream, len(readings))
            return
        suspect = np.flatnonzero(~direct)
        if len(self.direct):
            stream = telemetry_stream(readings, self.direct, self._means.defaults)
            self._open_copy("copy_telemetry", stream, len(self.direct))
            self._staged = suspect
        else:
            self._send_to_staging(suspect)

    def _send_to_staging(self, rows: Rows) -> None:
        """These, in that order."""
        self._tally.path = "staging"
        self._staged = rows
        self._cursor.execute(staging(self._cursor.connection, "create_staging"))
        self._open_copy("copy_staging", telemetry_stream(self.readings, rows), len(rows))

    def _end_readings(self) -> None:
        """The database has read what it was sent; what goes through the staging table goes on from there."""
        if self.direct is not None and len(self.direct):
            self._tally.written += self._end_copy()
            if self._staged is not None:
                self._send_to_staging(self._staged)
        if self._staged is not None:
            self._end_copy()
            self._cursor.execute(query("insert_staged"))
            self._count_staged(self.readings, self._staged.tolist(), self._cursor.rowcount)

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
            self._means.beat()
            start, end = todo.pop()
            try:
                with self._cursor.connection.transaction():
                    result = work(start, end)
            except psycopg.Error as error:
                if not sqlstate.is_a_row(error):
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
        self._tally.refused.append(refused_reading(readings, row, error, self._means.topic_root))

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
        self._tally.refused += [conflicting_reading(readings, row, self._means.topic_root) for row in conflicts]

    def _copied(self, name: str, stream: TelemetryStream, count: int) -> int:
        """Run a whole COPY of ``count`` rows; see :meth:`_taken`."""
        with self._cursor.copy(copy_of(name, stream.columns)) as copy:
            for piece in stream.pieces:
                copy.write(piece)
        return self._taken(count)

    def _open_copy(self, name: str, stream: TelemetryStream, count: int) -> None:
        """Begin a COPY and send ``stream``, of ``count`` rows."""
        copy = self._copy.enter_context(self._cursor.copy(copy_of(name, stream.columns)))
        self._copied_rows = count
        for piece in stream.pieces:
            copy.write(piece)

    def _end_copy(self) -> int:
        """Wait until the database has taken what :meth:`_open_copy` sent; see :meth:`_taken`. Raises psycopg.Error."""
        self._copy.close()
        return self._taken(self._copied_rows)

    def _taken(self, count: int) -> int:
        """How many rows the database took of a COPY. Raises StoreUnavailable if they are not ``count``."""
        taken = self._cursor.rowcount
        if taken != count:
            raise StoreUnavailable(
                "the database took another number of rows than were sent",
                f"{taken} of {count}: look for triggers and rules on the tables of esp-ingest",
            )
        return taken


def move_cursor(cursor: Cursor, from_us: int, to_us: int) -> None:
    """Raises StoreUnavailable if the cursor does not stand at ``from_us``: another daemon has moved it."""
    cursor.execute(query("move_cursor"), {"from": at_us(from_us), "to": at_us(to_us)})
    if cursor.rowcount != 1:
        raise StoreUnavailable("another daemon follows the table", "this one lets go")
