"""5-minute buckets of event time: which of them a batch touches and closes, and the closed ones of the last hour."""

from typing import Any

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
        self.ends = np.append(begins[1:], rows).astype(np.intp) - 1
        self.first = np.flatnonzero(np.diff(well, prepend=-1))
        self.last = np.append(self.first[1:], count).astype(np.intp) - 1
        before = state["bucket"][self.index].copy()
        self.continuing = before == bucket[self.first]
        self.single = count == slots.shape[0]
        opens = np.ones(count, np.bool_)
        opens[self.first] = ~self.continuing & (before != NEVER)
        self.opening = np.flatnonzero(opens)
        self.opening_index: Any = as_index(self.opening)
        is_first = np.zeros(count, np.bool_)
        is_first[self.first] = True
        self.of_state = is_first[self.opening]
        self.closing_well = well[self.opening]
        self.closing_slot = slots[self.closing_well]
        self.closed = self.before(bucket, before)
        self.new = np.empty(self.opening.shape[0], np.bool_)  # first closing of its well
        self.new[:1] = True
        np.not_equal(self.closing_well[1:], self.closing_well[:-1], out=self.new[1:])
        closers = int(np.count_nonzero(self.new))
        self.lone = self.opening.shape[0] == closers
        self.closers: Any = self.index if closers == slots.shape[0] else self.closing_slot[self.new]
        self.last_closing: Any = slice(None)
        if not self.lone:
            self.last_closing = np.append(np.flatnonzero(self.new)[1:], self.new.shape[0]) - 1

    def before(self, by_run: Array, by_well: Array) -> Array:
        """What belongs to the closed buckets: ``by_run`` (…, runs) in this batch, ``by_well`` (…, wells) before it."""
        if self.of_state.all():
            alike = self.closing_well.shape[0] == by_well.shape[-1]
            return np.array(by_well) if alike else np.take(by_well, self.closing_well, axis=-1)
        if isinstance(self.opening_index, slice):
            begin, end = self.opening_index.start - 1, self.opening_index.stop - 1
            out = np.empty((*by_run.shape[:-1], end - begin), by_run.dtype)
            out[..., max(0, -begin) :] = by_run[..., max(0, begin) : end]
        else:
            out = np.take(by_run, self.opening - 1, axis=-1)
        if self.of_state.any():
            out[..., self.of_state] = by_well[..., self.closing_well[self.of_state]]
        return np.asarray(out)


Window = list[FloatArray]  # a column for each bucket, newest first
_Source = tuple[Array, Array | None, float]  # what is kept of closed buckets, what closes now, what stands for nothing


class Past:
    """The buckets before each run: 1 … 15 back, from the batch if it holds them, else from the state.

    A window is a list of columns, the newest bucket first, which functions take element by element. Its columns are
    parts of what is there already, so that nothing is gathered for each bucket of each run; therefore a column may have
    more elements than there are runs, and :meth:`at_runs` picks theirs out of what was made of it."""

    def __init__(self, runs: Runs, state: WellArrays) -> None:
        self._runs = runs
        self._sources: dict[object, _Source] = {}
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
        self._missing = np.nonzero(unknown) if unknown.any() else None
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
        self._begins, self._begins_of_closings = as_index(begins), as_index(begins[runs.opening])
        self._near = np.flatnonzero(~runs.of_state | (self._gap <= BACK))
        if self._near.shape[0] == runs.opening.shape[0]:
            self._near = slice(None)
        self._position = as_index((begins[runs.opening] + BACK - self._gap)[self._near])

    def _ring(self, ring: Array, k: int) -> list[Array]:
        """``k`` columns (wells,) of ``ring`` (16, slots), which are not to be changed."""
        if self._in_step:
            return [ring[at, self._runs.index] for at in self._at[:k, 0].tolist()]
        return list(ring[self._at[:k], self._runs.slots])

    def add(self, key: object, ring: Array, closed: Array | None, missing: float = np.nan) -> None:
        """Windows of ``key`` are made of ``ring`` (16, slots) as it is before the batch is written, and of ``closed``
        (closings,): what closes now, as precise as the ring."""
        if not self._runs.single:
            ring = ring[self._at, self._runs.slots]
            if self._missing is not None:
                ring[self._missing] = missing
        self._sources[key] = ring, closed, missing

    def window(self, key: object, k: int) -> Window:
        """The newest ``k`` buckets of ``key``."""
        made = self._windows.get(key, [])
        if len(made) < k:
            make = self._of_ring if self._runs.single else self._of_line
            made = self._windows[key] = make(k, *self._sources[key])
        return made[:k]

    def _of_ring(self, k: int, ring: Array, closed: Array | None, missing: float) -> Window:
        old = [
            np.where(self._unknown[at], missing, column) if self._is_unknown[at] and at != self._closes else column
            for at, column in enumerate(self._ring(ring, k))
        ]
        if closed is None or not self._near.size:
            return old
        # What lies between the closed bucket and the run is empty: the ring's tags say so.
        closed = closed.astype(ring.dtype, copy=False)
        if self._closes >= 0:
            if self._closes < k:
                old[self._closes] = closed
            return old
        near = self._near[self._gap[self._near] <= k]
        out = np.stack(old)
        out[self._gap[near] - 1, self._runs.opening[near]] = closed[near]
        return list(out)

    def _of_line(self, _: int, old: Array, closed: Array | None, missing: float) -> Window:
        line = np.full(self._size, missing, old.dtype)
        line[self._base] = old
        if closed is not None:
            line[self._position] = closed[self._near]
        return [line[BACK - ago : self._size + 1 - ago] for ago in range(1, RING)]

    def at_runs(self, values: FloatArray) -> FloatArray:
        """Of ``values`` that were made of windows, those of the runs."""
        return values if self._runs.single else values[self._begins]

    def at_closings(self, values: FloatArray) -> FloatArray:
        """Of ``values`` that were made of windows, those of the runs before which a bucket closes."""
        return np.asarray(values[self._runs.opening_index if self._runs.single else self._begins_of_closings])


def windowed(function: str, past: Window, k: int) -> FloatArray:
    """The mean or spread of the newest ``k`` buckets, or the change over them, from the means ``past``."""
    if function == "mean":
        total, count = present(past[:k])
        return np.asarray(total / count)
    return spread(past[:k]) if function == "spread" else latest(past, 0) - latest(past, k)


def as_index(slots: Slots) -> Any:
    """``slots``, which rise strictly, as a slice if they follow each other: a fleet that reports whole."""
    count = slots.shape[0]
    if count and slots[-1] - slots[0] + 1 == count:
        return slice(int(slots[0]), int(slots[0]) + count)
    return slots


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
    last = position[np.append(first[1:], which.shape[0]) - 1]
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
    n: Any = size - int(np.count_nonzero(np.isnan(ordered[0])))
    is_alike = (not n or not np.isnan(ordered[:, n - 1]).any()) and (n == size or np.isnan(ordered[:, n]).all())
    if is_alike:  # as many values in each row: columns in place of gathers
        low, high = ordered[:, max(n - 1, 0) // 2], ordered[:, min(n // 2, size - 1)]
    else:
        n, rows = size - np.isnan(ordered).sum(axis=-1), np.arange(ordered.shape[0])
        low, high = ordered[rows, np.maximum(n - 1, 0) // 2], ordered[rows, np.minimum(n // 2, size - 1)]
    middle = (low.astype(np.float64) + high) / 2
    return np.where(n >= least, middle, np.nan).reshape(values.shape[:-1])


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
