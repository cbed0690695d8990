"""Telemetry in a range of time, as stored or in buckets: which way a question goes, and the rows that come of it.

- ``raw``: readings as stored, in pages.
- ``1m``, ``1h``, ``1d``: buckets, each with count and, of each signal, mean, lowest and highest value, in pages.
- ``auto``: readings as stored where no more than ``max_points`` are there. Else buckets of equal width, two rows each:
  of each signal the lowest and the highest value in the order in which they came. So each extreme is in the answer, and
  a line through the rows looks as one through all readings. With one signal the rows are the readings themselves, at
  their times; with several they carry the times of the bucket's first and last reading.

Hours and days come from the tables that the lifecycle keeps (aggregate_hours, aggregate_days), which outlive the
readings; what these do not reach is gathered from readings. Not from the views esp_telemetry_hourly and
esp_telemetry_daily: what is not kept yet they gather for all wells, and here it is one."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from psycopg import sql

from esp_ingest.api.database import Snapshot
from esp_ingest.api.wire.ranges import Range
from esp_ingest.store.queries import composed

Resolution = Literal["raw", "1m", "1h", "1d", "auto"]
WIDTHS = {"1m": timedelta(minutes=1), "1h": timedelta(hours=1), "1d": timedelta(days=1)}
_ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)
_TABLES = (("aggregate_days", timedelta(days=1)), ("aggregate_hours", timedelta(hours=1)))
Rows = list[list[Any]]


class Page(NamedTuple):
    """``signals`` says which signal a column is of, None for one that is none; ``following`` is where the next page
    begins, None at the end."""

    resolution: str
    columns: list[str]
    signals: list[str | None]
    rows: Rows
    following: datetime | None


def _joined(pattern: str, signals: Sequence[str]) -> sql.Composed:
    """``pattern`` once for each signal, with the signal's name in place of {0}, separated by commas."""
    return sql.SQL(", ").join(sql.SQL(pattern).format(sql.Identifier(signal)) for signal in signals)


def _aggregated(signals: Sequence[str], parts: Sequence[tuple[str, str]]) -> sql.Composed:
    """For each signal and (function, suffix): ``function(signal_suffix)``; a mean is weighed by counts."""
    made = []
    for signal in signals:
        for function, suffix in parts:
            column, count = sql.Identifier(f"{signal}_{suffix}"), sql.Identifier(f"{signal}_count")
            pattern = "sum({0} * {1}) / nullif(sum({1}), 0)::double precision"
            made.append(sql.SQL(pattern if function == "mean" else f"{function}({{0}})").format(column, count))
    return sql.SQL(", ").join(made)


class Kept(NamedTuple):
    """A table of aggregates, the width of its buckets, and the first and the last of those in the range that was
    asked for. The last may still grow, so it is left to the readings."""

    table: str
    width: timedelta
    first: datetime
    last: datetime


class TelemetryReader:
    """Reads the telemetry of one well, all of it in one snapshot. Every method raises as the snapshot's."""

    def __init__(self, snapshot: Snapshot, well_id: str, signals: Sequence[str]) -> None:
        self._snapshot = snapshot
        self._well = well_id
        self._signals = list(signals)

    def _parameters(self, asked: Range, **more: Any) -> dict[str, Any]:
        return {"well": self._well, "from": asked.start, "to": asked.end, "origin": _ORIGIN, **more}

    async def raw(self, asked: Range, limit: int) -> Page:
        """The first ``limit`` readings of the range."""
        statement = composed("api_raw", columns=_joined("{0}", self._signals))
        rows = await self._snapshot.fetch(statement, self._parameters(asked, limit=limit + 1))
        following = rows[limit][0] if len(rows) > limit else None
        columns = ["timestamp", *self._signals]
        return Page("raw", columns, [None, *self._signals], [list(row) for row in rows[:limit]], following)

    async def fixed(self, asked: Range, resolution: Literal["1m", "1h", "1d"], limit: int) -> Page:
        """The first buckets of the range, ``limit`` at most. A page spans that many bucket widths from the first
        reading on, so that its cost is bounded however long the range is."""
        width = WIDTHS[resolution]
        columns = ["timestamp", "count"]
        signals: list[str | None] = [None, None]
        for signal in self._signals:
            columns += [signal, f"{signal}_min", f"{signal}_max"]
            signals += [signal] * 3
        _, first, _, kept = await self._range(asked, 0)
        aggregates = _fitting(kept, width)
        starts = [each for each in (first, aggregates and aggregates.first) if each is not None]
        if not starts:
            return Page(resolution, columns, signals, [], None)
        first = min(starts)
        begin = max(asked.start, floor(first, width))
        end = min(asked.end, floor(begin, width) + limit * width)
        page = Range(begin, end)
        rows: Rows = []
        for piece, table in self._pieces(page, aggregates):
            rows += await self._buckets(piece, width, table)
        return Page(resolution, columns, signals, merged(rows), end if end < asked.end else None)

    async def auto(self, asked: Range, max_points: int) -> Page:
        """The whole range in ``max_points`` rows at most, with all extremes among them."""
        columns = ["timestamp", *self._signals]
        signals: list[str | None] = [None, *self._signals]
        count, first, last, kept = await self._range(asked, max_points + 1)
        days = _fitting(kept, timedelta(days=1))  # may hold days whose readings have been dropped
        if count <= max_points and (days is None or (first is not None and first < days.first + days.width)):
            return await self.raw(asked, max_points)
        if days is not None:
            end = min(days.last + days.width, asked.end)
            first = days.first if first is None else min(first, days.first)
            last = end if last is None else max(last, end)
        assert first is not None  # more than none were counted, or there are aggregates
        assert last is not None
        # Two rows a bucket; a bucket more where the range does not begin on one, and where readings and aggregates
        # meet.
        width = bucket_width(last - first, max_points)
        aggregates = _fitting(kept, width)
        if aggregates is not None:
            width = aggregates.width * math.ceil(width / aggregates.width)
        rows: Rows = []
        for piece, table in self._pieces(Range(first, min(asked.end, last + timedelta(microseconds=1))), aggregates):
            rows += await self._extremes(piece, width, table)
        rows.sort(key=lambda row: row[0])
        return Page(spelled(width), columns, signals, rows, None)

    # -- Which table.

    async def _range(self, asked: Range, limit: int) -> tuple[int, datetime | None, datetime | None, list[Kept]]:
        """How many readings there are, counted up to ``limit``, the first and the last, and the tables of aggregates
        that hold some of the range, the coarser first."""
        parameters = self._parameters(asked, limit=limit)
        ((count, first, last, *there),) = await self._snapshot.fetch("api_range", parameters)
        readable = [each for each, is_there in zip(_TABLES, there, strict=True) if is_there]
        if not readable:
            return count, first, last, []
        spans = [
            composed("api_aggregates_span", text=sql.Literal(table), table=sql.Identifier(table))
            for table, _ in readable
        ]
        found = await self._snapshot.fetch(sql.SQL(" UNION ALL ").join(spans), parameters)
        by_table = {table: (begin, end) for table, begin, end in found if begin is not None}
        return count, first, last, [Kept(name, own, *by_table[name]) for name, own in readable if name in by_table]

    @staticmethod
    def _pieces(asked: Range, aggregates: Kept | None) -> list[tuple[Range, str | None]]:
        """The range in pieces, each with the table that has it (None: the readings)."""
        if aggregates is None:
            return [(asked, None)]
        table, own, first, last = aggregates
        # Only whole buckets: one that the range cuts is gathered from readings.
        begin, end = max(first, ceil(asked.start, own)), min(last, floor(asked.end, own))
        if begin >= end:
            return [(asked, None)]
        pieces = [(Range(asked.start, begin), None), (Range(begin, end), table), (Range(end, asked.end), None)]
        return [(piece, name) for piece, name in pieces if piece.start < piece.end]

    # -- Rows.

    async def _buckets(self, asked: Range, width: timedelta, table: str | None) -> Rows:
        if table is None:
            statement = composed("api_buckets", columns=_joined("avg({0}), min({0}), max({0})", self._signals))
        else:
            columns = _aggregated(self._signals, (("mean", "mean"), ("min", "min"), ("max", "max")))
            statement = composed("api_aggregates", columns=columns, table=sql.Identifier(table))
        rows = await self._snapshot.fetch(statement, self._parameters(asked, width=width))
        return [list(row) for row in rows]

    async def _extremes(self, asked: Range, width: timedelta, table: str | None) -> Rows:
        if table is None:
            pattern = (
                'min(ARRAY[{0}, extract(epoch FROM "timestamp")::double precision]) FILTER (WHERE {0} IS NOT NULL)'
            )
            pattern += ', max(ARRAY[{0}, -extract(epoch FROM "timestamp")::double precision])'
            pattern += " FILTER (WHERE {0} IS NOT NULL)"
            statement = composed("api_extremes", columns=_joined(pattern, self._signals))
        else:
            columns = _aggregated(self._signals, (("min", "min"), ("max", "max")))
            statement = composed("api_aggregates", columns=columns, table=sql.Identifier(table))
        found = await self._snapshot.fetch(statement, self._parameters(asked, width=width))
        if table is None:
            return [row for each in found for row in two_rows(each, len(self._signals))]
        return [row for each in found for row in _low_and_high(each, width, len(self._signals))]


def _fitting(kept: Sequence[Kept], width: timedelta) -> Kept | None:
    """The coarsest table whose buckets fill ``width``, or else fit into it; None if none does."""
    fitting = [each for each in kept if each.width <= width]
    return next((each for each in fitting if width % each.width == timedelta(0)), next(iter(fitting), None))


def two_rows(found: tuple[Any, ...], signals: int) -> Rows:
    """The rows of a bucket of readings: (first time, last time, [low, when] and [high, -when] of each signal)."""
    first, last, *extremes = found
    if signals == 1:
        low, high = extremes
        if low is None:
            return []
        pair = sorted([(low[1], low[0]), (-high[1], high[0])])
        rows = [[_exactly(when, first, last), value] for when, value in pair]
        return rows[:1] if rows[0] == rows[1] else rows
    early: list[Any] = [first]
    late: list[Any] = [last]
    for low, high in zip(extremes[::2], extremes[1::2], strict=True):
        if low is None:
            early.append(None)
            late.append(None)
            continue
        is_rising = low[1] <= -high[1]
        early.append(low[0] if is_rising else high[0])
        late.append(high[0] if is_rising else low[0])
    return [early] if first == last else [early, late]


def _exactly(seconds: float, first: datetime, last: datetime) -> datetime:
    """The time that a double holds, which is exact to the microsecond until the year 2106."""
    at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=round(seconds * 1e6))
    return min(max(at, first), last)


def _low_and_high(found: tuple[Any, ...], width: timedelta, signals: int) -> Rows:
    """The rows of a bucket of aggregates, which do not say when in it the extremes were: the lows, then the highs."""
    bucket, _, *extremes = found
    lows, highs = extremes[0 : 2 * signals : 2], extremes[1 : 2 * signals : 2]
    return [[bucket, *lows], [bucket + width / 2, *highs]]


def merged(rows: Rows) -> Rows:
    """Buckets in order; one that lies in two pieces becomes one."""
    rows.sort(key=lambda row: row[0])
    merged: Rows = []
    for row in rows:
        if not merged or merged[-1][0] != row[0]:
            merged.append(row)
            continue
        before = merged[-1]
        for at in range(2, len(row), 3):
            before[at : at + 3] = _together(before[at : at + 3], before[1], row[at : at + 3], row[1])
        before[1] += row[1]
    return merged


def _together(one: list[Any], count: int, other: list[Any], more: int) -> list[Any]:
    if one[0] is None or other[0] is None:
        return other if one[0] is None else one
    mean = (one[0] * count + other[0] * more) / (count + more)
    return [mean, min(one[1], other[1]), max(one[2], other[2])]


def floor(at: datetime, width: timedelta) -> datetime:
    """The last multiple of ``width`` since 2000 that is not after ``at``."""
    return at - (at - _ORIGIN) % width


def ceil(at: datetime, width: timedelta) -> datetime:
    """The first multiple of ``width`` since 2000 that is not before ``at``."""
    below = floor(at, width)
    return at if below == at else below + width


_NICE_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400)


def bucket_width(span: timedelta, max_points: int) -> timedelta:
    """The width of buckets with two rows each, of which ``span`` may have ``max_points``, those at its ends too."""
    buckets = max(1, max_points // 2 - 3)
    return _round_up(-(-span // buckets))  # rounded up to a microsecond: one too narrow is a bucket too many


def _round_up(width: timedelta) -> timedelta:
    """A width that people know: 1 s … 1 d, then whole days. Below a second, microseconds as they are."""
    seconds = width.total_seconds()
    if seconds <= 0.5:
        return max(timedelta(microseconds=math.ceil(seconds * 1e6)), timedelta(microseconds=1))
    for nice in _NICE_SECONDS:
        if seconds <= nice:
            return timedelta(seconds=nice)
    return timedelta(days=math.ceil(seconds / 86_400))


def spelled(width: timedelta) -> str:
    """``30s``, ``15m``, ``6h``, ``2d``."""
    seconds = width.total_seconds()
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")):
        if seconds >= size and seconds % size == 0:
            return f"{round(seconds / size)}{name}"
    return f"{seconds:g}s"
