"""5-minute buckets of event time: which of them a batch touches and closes, and the closed ones of the last hour."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from esp_ingest.diagnostics.engine.well_state import NEVER, Array, WellArrays
from esp_ingest.diagnostics.language.evaluation import BoolArray
from esp_ingest.model import FloatArray, IntArray

Key = tuple[object, ...]
Slots = npt.NDArray[np.intp]

BUCKET_US = 300_000_000
BUCKET_SECONDS = 300
RING = 16  # ≥ 12 closed buckets of an hour and two to fall back on
BACK = RING - 1


class Runs:
    """The buckets that a batch touches: runs of rows of one well in one bucket, well after well.

    Shapes: by well ``slots``, ``first`` and ``last`` (its runs); by run ``well``, ``bucket``, ``begins`` (its first
    row) and ``ends`` (its last). ``opening``: the runs before which a bucket closes; ``closed`` is that bucket, and
    ``of_state`` tells that it was left open by an earlier batch. ``closers``: the slots of the wells with closings, and
    ``last_closing`` of each of them. ``single``: one run a well; ``lone``: each closing is the only one of its well.
    Indices are slices in place of gathers, if they are the same."""

    def __init__(self, state: WellArrays, slots: Slots, well: Slots, bucket: IntArray, begins: Slots, rows: int):
        self.slots, self.well, self.bucket, self.begins = slots, well, bucket, begins
        self.index = as_index(slots)
        count = well.shape[0]
        self.ends = until(begins, rows) - 1
        is_first = np.ones(count, np.bool_)
        np.not_equal(well[1:], well[:-1], out=is_first[1:])
        self.first = np.flatnonzero(is_first)
        self.last = until(self.first, count) - 1
        before = state["bucket"][self.index].copy()
        self.continuing = before == bucket[self.first]
        self.single = count == slots.shape[0]
        opens = np.ones(count, np.bool_)
        opens[self.first] = ~self.continuing & (before != NEVER)
        self.opening = np.flatnonzero(opens)
        self.opening_index: Any = as_index(self.opening)
        self.of_state = is_first[self.opening]
        self._from_state = np.flatnonzero(self.of_state)
        self.closing_well = well[self.opening]
        self.closing_slot = slots[self.closing_well]
        self._from_well = self.closing_well[self._from_state]
        self.closed = self.before(bucket, before)
        self.new = np.empty(self.opening.shape[0], np.bool_)  # first closing of its well
        self.new[:1] = True
        np.not_equal(self.closing_well[1:], self.closing_well[:-1], out=self.new[1:])
        closers = int(np.count_nonzero(self.new))
        self.lone = self.opening.shape[0] == closers
        self.closers: Any = self.index if closers == slots.shape[0] else self.closing_slot[self.new]
        self.last_closing: Any = slice(None)
        if not self.lone:
            self.last_closing = until(np.flatnonzero(self.new), self.new.shape[0]) - 1

    def before(self, by_run: Array, by_well: Array) -> Array:
        """What belongs to the closed buckets: ``by_run`` (…, runs) in this batch, ``by_well`` (…, wells) before it."""
        if self._from_state.shape[0] == self.opening.shape[0]:
            alike = self.closing_well.shape[0] == by_well.shape[-1]
            return np.array(by_well) if alike else np.take(by_well, self.closing_well, axis=-1)
        if isinstance(self.opening_index, slice):
            begin, end = self.opening_index.start - 1, self.opening_index.stop - 1
            out = np.empty((*by_run.shape[:-1], end - begin), by_run.dtype)
            out[..., max(0, -begin) :] = by_run[..., max(0, begin) : end]
        else:
            out = np.take(by_run, self.opening - 1, axis=-1)
        if self._from_state.shape[0]:
            out[..., self._from_state] = by_well[..., self._from_well]
        return np.asarray(out)


Window = list[FloatArray]  # a column for each bucket, newest first


@dataclass(slots=True)
class _Source:
    """What windows of some keys are made of: ``rings``, of the buckets that were closed before; what is ``closed`` now;
    what is ``missing`` has this value. ``lines``: all of it, (keys, places), in a batch with several runs of a well."""

    rings: Array
    closed: Array | None
    missing: float
    lines: Array | None = None


class Past:
    """The buckets before each run: 1 … 15 back, from the batch if it holds them, else from the state.

    A window is a list of columns, the newest bucket first, which functions take element by element. Its columns are
    parts of what is there already, so that nothing is gathered for each bucket of each run; therefore a column may have
    more elements than there are runs, and :meth:`at_runs` picks theirs out of what was made of it."""

    def __init__(self, runs: Runs, state: WellArrays) -> None:
        self._runs = runs
        self._sources: dict[object, tuple[_Source, int]] = {}  # by key, with its place
        self._windows: dict[object, Window] = {}
        self._gap = np.minimum(runs.bucket[runs.opening] - runs.closed, RING).astype(np.intp)
        first = runs.bucket if runs.single else runs.bucket[runs.first]
        # A fleet in step reads whole rows of the ring.
        self._in_step = bool((first == first[0]).all())
        back = (first[:1] if self._in_step else first) - np.arange(1, RING)[:, None]
        self._at = (back % RING).astype(np.intp)
        if runs.single:
            tags = self._ring(state["ring_tag"], BACK)
            self._unknown = [tag != bucket for tag, bucket in zip(tags, back, strict=True)]
            self._is_unknown = [bool(some.any()) for some in self._unknown]
            # What just closed is one of the buckets back, if it is near enough; the rest is in the state's ring.
            self._near: Any = np.flatnonzero(self._gap <= BACK)
            is_all = self._near.shape[0] == runs.slots.shape[0] and bool((self._gap == self._gap[0]).all())
            self._closes = int(self._gap[0]) - 1 if is_all and self._in_step else -1
            return
        unknown = state["ring_tag"][self._at, runs.slots] != back
        self._missing: Any = np.nonzero(unknown) if unknown.any() else None
        # A line a well: 15 buckets before its first run, then its runs, at their distance in time.
        ahead = np.zeros(runs.well.shape[0], np.intp)
        ahead[1:] = np.minimum(np.diff(runs.bucket), RING)
        ahead[runs.first] = 0
        walked = np.cumsum(ahead)
        offset = walked - walked[runs.first][runs.well]
        length = BACK + offset[runs.last]
        base = np.cumsum(length) - length
        self._size = int(length.sum())
        self._base = base + BACK - np.arange(1, RING)[:, None]
        begins = base[runs.well] + offset
        wells = runs.slots.shape[0]
        self._begins, self._begins_of_closings = as_blocks(begins, wells), as_blocks(begins[runs.opening], wells)
        self._near = np.flatnonzero(~runs.of_state | (self._gap <= BACK))
        if self._near.shape[0] == runs.opening.shape[0]:
            self._near = slice(None)
        self._position = as_blocks((begins[runs.opening] + BACK - self._gap)[self._near], wells)

    def _ring(self, ring: Array, k: int) -> list[Array]:
        """``k`` columns (wells,) of ``ring`` (16, slots), which are not to be changed."""
        if self._in_step:
            return [ring[at, self._runs.index] for at in self._at[:k, 0].tolist()]
        return list(ring[self._at[:k], self._runs.slots])

    def add(self, keys: Sequence[object], rings: Array, closed: Array | None, missing: float = np.nan) -> None:
        """Windows of each of ``keys`` are made of its ring of ``rings`` (keys, 16, slots) as it is before the batch is
        written, and of its ``closed`` (keys, closings): what closes now, as precise as the ring."""
        if not self._runs.single:
            rings = rings[:, self._at, self._runs.slots]
            if self._missing is not None:
                rings[(slice(None), *self._missing)] = missing
        source = _Source(rings, closed, missing)
        self._sources.update((key, (source, at)) for at, key in enumerate(keys))

    def window(self, key: object, k: int) -> Window:
        """The newest ``k`` buckets of ``key``."""
        made = self._windows.get(key, [])
        if len(made) < k:
            make = self._of_ring if self._runs.single else self._of_line
            made = self._windows[key] = make(k, *self._sources[key])
        return made[:k]

    def _of_ring(self, k: int, source: _Source, place: int) -> Window:
        ring, missing = source.rings[place], source.missing
        old = [
            np.where(self._unknown[at], missing, column) if self._is_unknown[at] and at != self._closes else column
            for at, column in enumerate(self._ring(ring, k))
        ]
        if source.closed is None or not self._near.size:
            return old
        # What lies between the closed bucket and the run is empty: the ring's tags say so.
        closed = source.closed[place].astype(ring.dtype, copy=False)
        if self._closes >= 0:
            if self._closes < k:
                old[self._closes] = closed
            return old
        near = self._near[self._gap[self._near] <= k]
        out = np.stack(old)
        out[self._gap[near] - 1, self._runs.opening[near]] = closed[near]
        return list(out)

    def _of_line(self, k: int, source: _Source, place: int) -> Window:
        if source.lines is None:
            lines = source.lines = np.full((source.rings.shape[0], self._size), source.missing, source.rings.dtype)
            lines[:, self._base] = source.rings
            if source.closed is not None:
                put(lines, self._position, source.closed[:, self._near])
        line = source.lines[place]
        wide = line.itemsize
        # As line[BACK - ago : size + 1 - ago] for each bucket ago, in one go.
        return list(np.ndarray((k, self._size - BACK + 1), line.dtype, line, (BACK - 1) * wide, (-wide, wide)))

    def at_runs(self, values: FloatArray) -> FloatArray:
        """Of ``values`` that were made of windows, those of the runs."""
        return values if self._runs.single else taken(values, self._begins)

    def at_closings(self, values: FloatArray) -> FloatArray:
        """Of ``values`` that were made of windows, those of the runs before which a bucket closes."""
        return taken(values, self._runs.opening_index if self._runs.single else self._begins_of_closings)


def windowed(function: str, past: Window, k: int) -> FloatArray:
    """The mean or spread of the newest ``k`` buckets, or the change over them, from the means ``past``."""
    if function == "mean":
        total, count = present(past[:k])
        return np.asarray(total / count)
    return spread(past[:k]) if function == "spread" else latest(past, 0) - latest(past, k)


def until(begins: Array, end: int) -> Array:
    """Of stretches that begin at ``begins`` (k,), one after the other: where each of them ends, the last at ``end``."""
    out = np.empty_like(begins)
    out[:-1] = begins[1:]
    out[-1:] = end
    return out


def as_index(slots: Slots) -> Any:
    """``slots``, which rise strictly, as a slice if they follow each other: a fleet that reports whole."""
    count = slots.shape[0]
    if count and slots[-1] - slots[0] + 1 == count:
        return slice(int(slots[0]), int(slots[0]) + count)
    return slots


class Blocks(NamedTuple):
    """Places in an array as ``blocks`` of ``size`` places that follow each other, the first at ``begin`` and each
    ``apart`` from the one before. To copy blocks takes an eighth of the time that it takes to pick each element."""

    begin: int
    apart: int
    blocks: int
    size: int

    def of(self, values: Array) -> Array:
        """Those places of ``values`` (…, n), contiguous: (…, blocks, size), a view."""
        wide = values.itemsize
        shape = (*values.shape[:-1], self.blocks, self.size)
        strides = (*values.strides[:-1], self.apart * wide, wide)
        return np.ndarray(shape, values.dtype, values, self.begin * wide, strides)


def as_blocks(places: Slots, wells: int) -> Any:
    """``places``, which rise strictly, as :func:`as_index` or as a block for each of ``wells``, if they are that: wells
    in step that a batch holds hours of."""
    index = as_index(places)
    count = places.shape[0]
    if isinstance(index, slice) or wells < 2 or count % wells or count < 8 * wells:
        return index
    begins, size = places[:: count // wells], count // wells
    apart = begins[1:] - begins[:-1]
    if (apart != apart[0]).any() or (places[size - 1 :: size] - begins != size - 1).any():
        return index
    return Blocks(int(begins[0]), int(apart[0]), wells, size)


def taken(values: Array, index: Any) -> Array:
    """``values`` (n,), contiguous, at ``index``: a slice, blocks or places."""
    if isinstance(index, Blocks):
        return index.of(values).reshape(-1)
    return np.asarray(values[index] if isinstance(index, slice) else values.take(index))


def put(values: Array, index: Any, new: Array) -> None:
    """``values[..., index] = new`` (…, n), ``values`` contiguous, where ``index`` is a slice, blocks or places."""
    if isinstance(index, Blocks):
        index.of(values)[...] = new.reshape(*new.shape[:-1], index.blocks, index.size)
    else:
        values[..., index] = new


def appended(rings: Array, new: BoolArray, values: Array, told: Slots | None = None) -> tuple[Array, Array]:
    """``rings`` (rows, k, wells), newest first, to which ``values`` (rows, n) are appended one after the other, well
    after well, ``new`` for the first of each well: the rings after each of them, (rows, k, n), or after those at the
    places ``told``, and after the last of each well."""
    k, wells = rings.shape[1:]
    which, first = new.cumsum() - 1, np.flatnonzero(new)
    base = first + k * np.arange(wells)  # a line a well: its ring, oldest first, then its values
    line = np.empty((rings.shape[0], values.shape[1] + k * wells), rings.dtype)
    back = np.arange(k)[:, None]
    line[:, base + k - 1 - back] = rings
    position = np.arange(which.shape[0]) + k * (which + 1)
    line[:, position] = values
    last = position[until(first, which.shape[0]) - 1]
    after = position if told is None else position[told]
    return line.take(after - back, axis=1), line.take(last - back, axis=1)


def rings_at(
    runs: Runs, closings: Slots, before: Array, at: Slots | None = None, after: FloatArray | None = None
) -> FloatArray:
    """Rings (rows, k, closings) as they are at the ``closings``: ``before`` (rows, k, slots), or what the newest change
    of the same well up to there made of them; changes ``at`` closings, in order, with the rings ``after`` each."""
    out = before[:, :, runs.closing_slot[closings]].astype(np.float64)
    if at is not None and after is not None:
        nth = np.searchsorted(at, closings, side="right") - 1
        some = (nth >= 0) & (runs.closing_well[at[nth]] == runs.closing_well[closings])
        out[:, :, some] = after[:, :, nth[some]]
    return out


def added(start: Array, to: Slots, values: Array) -> Array:
    """``start`` (rows, k), contiguous, with ``values`` (rows, n) added at ``to`` (n,), one after the other."""
    if start.shape == values.shape:  # each in its own place
        return np.asarray(start + values)
    flat = start.reshape(-1)
    offsets = (np.arange(start.shape[0]) * start.shape[1])[:, None]
    np.add.at(flat, (offsets + to).ravel(), np.asarray(values, start.dtype).ravel())
    return start


def median(values: Array, least: int) -> FloatArray:
    """Median over the last axis without NaN, in double precision; NaN where fewer than ``least`` values are there.
    (…, k) → (…)"""
    return median_of_own(np.array(values, order="C"), least)


def median_of_own(values: Array, least: int) -> FloatArray:
    """As :func:`median`, of contiguous ``values`` that nobody else reads: they are sorted in place."""
    size = values.shape[-1]
    ordered = values.reshape(-1, size)
    if ordered.size == 0:
        return np.full(values.shape[:-1], np.nan)
    ordered.sort(axis=-1)  # NaN last
    n: Any = size
    is_alike = not np.isnan(ordered[:, -1]).any()
    if not is_alike:
        n -= int(np.count_nonzero(np.isnan(ordered[0])))
        is_alike = n < size and (not n or not np.isnan(ordered[:, n - 1]).any()) and bool(np.isnan(ordered[:, n]).all())
    if is_alike:  # as many values in each row: columns in place of gathers
        low, high = ordered[:, max(n - 1, 0) // 2], ordered[:, min(n // 2, size - 1)]
    else:
        n, rows = size - np.isnan(ordered).sum(axis=-1), np.arange(ordered.shape[0])
        low, high = ordered[rows, np.maximum(n - 1, 0) // 2], ordered[rows, np.minimum(n // 2, size - 1)]
    middle = (low.astype(np.float64) + high) / 2
    if not is_alike or n < least:
        middle = np.where(n >= least, middle, np.nan)
    return middle.reshape(values.shape[:-1])


def in_order(window: Window) -> FloatArray:
    """The sum of the columns, strictly one after the other: np.sum pairs up differently for one well than for many."""
    total: FloatArray = window[0].copy()
    for column in window[1:]:
        total += column
    return total


def present(window: Window) -> tuple[FloatArray, IntArray]:
    """The sum of what is not NaN, strictly in order, and how many there are."""
    total = in_order(window)
    if not np.isnan(total).any():
        return total, np.full(total.shape[0], len(window))
    missing = [np.isnan(column) for column in window]
    count = np.full(window[0].shape[0], len(window))
    for some in missing:
        count -= some
    return in_order([np.where(some, 0.0, column) for some, column in zip(missing, window, strict=True)]), count


def latest(past: Window, back: int) -> FloatArray:
    """The mean ``back`` buckets before the last closed one, or up to two earlier if that one is empty."""
    found: FloatArray = past[back]
    for earlier in (back + 1, back + 2):
        missing = np.isnan(found)
        if not np.count_nonzero(missing):
            break
        found = np.where(missing, past[earlier], found)
    return found


def spread(window: Window) -> FloatArray:
    """Greatest − least of the columns, NaN with fewer than two values."""
    high, low = window[0].copy(), window[0].copy()
    for column in window[1:]:
        np.fmax(high, column, out=high)
        np.fmin(low, column, out=low)
    high -= low
    if len(window) > 1 and not np.count_nonzero(np.isnan(window[0] + window[1])):
        return high
    return np.where(present(window)[1] >= 2, high, np.nan)


def variation(n: Window, total: Window, square: Window) -> FloatArray:
    """Sample standard deviation ÷ mean from counts, sums and sums of squares of the buckets, if at least half of them
    have something and 6 readings do."""
    some = np.zeros(n[0].shape[0], np.int8)
    for column in n:
        some += column > 0
    count, sums = in_order(n).astype(np.float64), in_order(total)
    mean = sums / count
    variance = np.maximum(in_order(square) - sums * mean, 0.0) / (count - 1)
    enough = (some * 2 >= len(n)) & (count >= min(6, len(n)))
    return np.where(enough & (mean > 0), np.sqrt(variance) / mean, np.nan)
