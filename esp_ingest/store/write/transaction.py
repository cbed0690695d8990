"""The statements of one transaction on one rung of the write ladder."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg

from esp_ingest.interfaces import Findings, Refusal, StoreUnavailable
from esp_ingest.model import NOTHING_ARRIVED, Arrival, Checkpoint, DiagnosticRow, Readings, Reject, at_us
from esp_ingest.store import sqlstate
from esp_ingest.store.connection import staging
from esp_ingest.store.queries import query
from esp_ingest.store.sqlstate import Verdict
from esp_ingest.store.write.copy_format import Buffer, telemetry_stream
from esp_ingest.store.write.findings import write_diagnostics
from esp_ingest.store.write.high_water import Marks, first_of_each
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
        return self.reasons.total()

    def add(self, other: "Tally") -> None:
        """What became of another part of the batch."""
        self.written += other.written
        self.duplicates += other.duplicates
        self.reasons += other.reasons
        self.refused += other.refused
        self.refusal = self.refusal or other.refusal
        self.path = max(self.path, other.path, key=("direct", "staging", "bisect").index)


class Found:
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
class Last:
    """What goes with the last transaction of a write, or with its only one."""

    found: Found = field(default_factory=lambda: Found((), (), None))
    cursor_us: tuple[int, int] | None = None
    arrival: Arrival = NOTHING_ARRIVED


class TooMuch(StoreUnavailable):
    """Perhaps the moment, perhaps the batch is more than the database takes in one transaction."""


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
    stream: list[Buffer] | None

    @staticmethod
    def of(readings: Readings, marks: Marks) -> "Prepared":
        first = first_of_each(readings)
        direct = first is None and bool(marks.fresh(readings).all())
        return Prepared(readings, first, telemetry_stream(readings) if direct else None)


class Attempt:
    """The statements of one transaction on one rung; the caller commits."""

    def __init__(
        self,
        cursor: Cursor,
        rung: Rung,
        marks: Marks,
        topic_root: str,
        publish: bool,
        last: Last,
        beat: Callable[[], None],
        prepared: "Prepared | None",
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
        self._tally = Tally()

    def run(self, readings: Readings, rejects: Sequence[Reject]) -> Tally:
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
            prepared = Prepared.of(readings, self._marks)
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

    def _staged(self, readings: Readings, rows: Rows) -> None:
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


def move_cursor(cursor: Cursor, from_us: int, to_us: int) -> None:
    cursor.execute(query("move_cursor"), {"from": at_us(from_us), "to": at_us(to_us)})
    if cursor.rowcount != 1:
        raise StoreUnavailable("another daemon follows the table", "this one lets go")
