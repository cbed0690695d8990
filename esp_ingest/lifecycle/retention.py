"""Drops days whose archived copy was verified a moment ago. The comparison and the drop are one transaction.

With TimescaleDB, telemetry and rejects are dropped in whole chunks. The server computes the content of their days,
which takes some microseconds a row. Then the chunks are locked against late rows. If no row has come, changed or gone
since, which is found out in a fraction of that time, the content is still that; else it is computed again. The chunks
are dropped if it is what was read back from the archive. So a late row, and the batch that it is in, waits briefly.

Without TimescaleDB, and always for diagnostics, rows are deleted day by day. The statement that deletes them also
returns what it deleted: if this is not what was read back, the transaction is rolled back. So a late row is either
part of the comparison, or it is not deleted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import TypeVar

import psycopg
from psycopg import sql
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from esp_ingest.lifecycle.archive.checksum import NOTHING, Content
from esp_ingest.lifecycle.days import Days, Seen
from esp_ingest.lifecycle.errors import LifecycleError, Reason
from esp_ingest.lifecycle.tables import Table, bounds
from esp_ingest.store.connection import only_row
from esp_ingest.store.queries import composed, query

T = TypeVar("T")

_TRIES = 3  # in all, where the server ends a deadlock


@dataclass(frozen=True)
class Chunk:
    """A chunk of a hypertable: its quoted name, its range, and whether it is compressed."""

    name: str
    start: datetime
    end: datetime
    is_compressed: bool = False


@dataclass(frozen=True)
class Drop:
    """What is dropped in one transaction: these days with these chunks. Without chunks the rows of the days are
    deleted."""

    days: tuple[date, ...]
    chunks: tuple[Chunk, ...] = ()


def cutoff(keep_days: int, today: date) -> date:
    """The first day that is kept: today and ``keep_days`` whole days before it stay."""
    return today - timedelta(days=keep_days)


def plan(table: Table, held: Sequence[date], first_kept: date, chunks: Sequence[Chunk] | None) -> list[Drop]:
    """What may be dropped of the days ``held`` in the database. ``chunks`` is None if rows are deleted one by one. A
    chunk is dropped once all of its days may be dropped; one that reaches beyond ``first_kept`` stays."""
    due = [day for day in sorted(held) if day < first_kept]
    if chunks is None or table.by_row:
        return [Drop((day,)) for day in due]
    drops = []
    for group in _groups(chunks):
        days = tuple(day for day in due if group[0].start < bounds(day)[1] and bounds(day)[0] < group[-1].end)
        if days and group[-1].end <= bounds(first_kept)[0]:
            drops.append(Drop(days, tuple(group)))
    return drops


def _groups(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """The chunks in groups: chunks that share a day are in one group."""
    groups: list[list[Chunk]] = []
    for chunk in sorted(chunks, key=lambda each: each.start):
        if groups and chunk.start.astimezone(UTC) < _end_of_day(groups[-1][-1].end):
            groups[-1].append(chunk)
        else:
            groups.append([chunk])
    return groups


def _end_of_day(end: datetime) -> datetime:
    """The midnight UTC at or after ``end``."""
    midnight = end.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight if midnight == end else midnight + timedelta(days=1)


def chunks_of(days: Days, table: Table, *, has_timescaledb: bool) -> list[Chunk] | None:
    """The chunks of the table, oldest first; None if the table has no chunks."""
    if not has_timescaledb:
        return None
    row = days.connection.execute(query("lifecycle_is_hypertable"), (table.name,)).fetchone()
    if row is None or not row[0]:
        return None
    return [Chunk(*found) for found in days.connection.execute(query("lifecycle_chunks"), (table.name,)).fetchall()]


def drop(days: Days, table: Table, what: Drop, proven: Mapping[date, Content] | None) -> int:
    """Drop the days, if the database still holds exactly what was ``proven`` to be in the archive (None: days may be
    dropped without a copy). Returns the number of rows. Raises LifecycleError if the content differs, and then
    nothing is dropped."""
    seen: dict[date, Seen] = {}
    if not any(chunk.is_compressed for chunk in what.chunks):  # the rows of those do not say who stored them
        seen = {day: days.look(table, day) for day in what.days if what.chunks}

    def work() -> int:
        if what.chunks:
            return _drop_chunks(days, table, what, seen, proven)
        return sum(_delete(days, table, day, proven) for day in what.days)

    return _in_transaction(days, f"{table.name} {what.days[0]}", work)


def _in_transaction(days: Days, what: str, work: Callable[[], T]) -> T:
    """``work()``, in a transaction; again if the server ended it because it and a writer waited for each other, which
    happens when the writer had read the chunk before it was locked. Raises LifecycleError if ``what`` is in use."""
    again = Retrying(
        retry=retry_if_exception_type(psycopg.errors.DeadlockDetected), stop=stop_after_attempt(_TRIES), reraise=True
    )

    def attempt() -> T:
        with days.connection.transaction():
            return work()

    try:
        return again(attempt)
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
        raise LifecycleError(
            Reason.DATABASE, f"{what} could not be locked, since somebody uses it: the next run tries again."
        ) from None


def _drop_chunks(
    days: Days, table: Table, what: Drop, seen: Mapping[date, Seen], proven: Mapping[date, Content] | None
) -> int:
    for chunk in what.chunks:
        _lock(days, chunk)
    days.check_columns(table)
    now = chunks_of(days, table, has_timescaledb=True) or []
    if any(chunk.is_compressed and chunk.name == one.name for chunk in now for one in what.chunks):
        seen = {}  # somebody has compressed it since the look
    rows = 0
    for day in what.days:
        is_unchanged = day in seen and days.is_unchanged(table, day, seen[day])
        content = seen[day].content if is_unchanged else days.checksum(table, day)
        _compare(table, day, content, proven)
        rows += content.rows
        days.dropped(table, day, NOTHING)
    for chunk in what.chunks:
        where = {"relation": table.name, "start": chunk.start, "end": chunk.end}
        gone = days.connection.execute(query("lifecycle_drop_chunk"), where).fetchall()
        if [name for (name,) in gone] != [chunk.name]:
            raise LifecycleError(
                Reason.DATABASE,
                f"TimescaleDB would not drop the chunk {chunk.name} alone: look at timescaledb_information.chunks.",
            )
    return rows


def _delete(days: Days, table: Table, day: date, proven: Mapping[date, Content] | None) -> int:
    start, end = bounds(day)
    statement = days.statement("lifecycle_delete_day", table)
    row = only_row(days.connection.execute(statement, {"start": start, "end": end}))
    days.check_columns(table)
    gone, gone_high, gone_low, left, left_high, left_low = (int(value) for value in row)
    _compare(table, day, Content.of(gone + left, gone_high + left_high, gone_low + left_low), proven)
    days.dropped(table, day, Content.of(left, left_high, left_low))
    return gone


def _compare(table: Table, day: date, content: Content, proven: Mapping[date, Content] | None) -> None:
    if proven is not None and content != proven[day]:
        raise LifecycleError(
            Reason.MISMATCH,
            f"{table.name} {day} has changed since its copy was made ({content.rows} rows, {proven[day].rows} in the "
            "copy): it is archived again before it is dropped.",
        )


def drop_empty_chunks(days: Days, table: Table, chunks: Sequence[Chunk], first_kept: date) -> None:
    """Drop the chunks before ``first_kept`` from which every row has been deleted."""
    for chunk in chunks:
        if chunk.end > bounds(first_kept)[0]:
            continue
        _in_transaction(days, chunk.name, partial(_drop_if_empty, days, table, chunk))


def _drop_if_empty(days: Days, table: Table, chunk: Chunk) -> None:
    _lock(days, chunk)
    where = {"relation": table.name, "start": chunk.start, "end": chunk.end}
    row = days.connection.execute(days.statement("lifecycle_has_rows", table), where).fetchone()
    if row is not None and not row[0]:
        days.connection.execute(query("lifecycle_drop_chunk"), where)


def _lock(days: Days, chunk: Chunk) -> None:
    """Until the end of the transaction nobody writes to it."""
    name = sql.Identifier(*(part.strip('"') for part in chunk.name.split(".")))  # schema and table, quoted if need be
    days.connection.execute(composed("lifecycle_lock_relation", relation=name))
