"""5-minute buckets of event time: which of them a batch touches and closes, and the closed ones of the last hour."""

from typing import Any

import numpy as np
import numpy.typing as npt

from esp_ingest.diagnostics.engine.well_state import NEVER, Array, WellArrays
from esp_ingest.model import FloatArray, IntArray

Key = tuple[object, ...]
Slots = npt.NDArray[np.intp]

BUCKET_US = 300_000_000
RING = 16  # ≥ 12 closed buckets of an hour and two to fall back on
BACK = RING - 1


class Runs:
    """The buckets that a batch touches: runs of rows of one well in one bucket, well after well.

    Shapes: by well ``slots``, ``first`` and ``last`` (its runs); by run ``well``, ``bucket``, ``begins`` (its first
    row) and ``ends`` (its last). ``opening``: the runs before which a bucket closes; ``closed`` is that bucket, and
    ``of_state`` tells that it was left open by an earlier batch."""

    def __init__(self, state: WellArrays, slots: Slots, well: Slots, bucket: IntArray, begins: Slots, rows: int):
        self.slots, self.well, self.bucket, self.begins = slots, well, bucket, begins
        self.index = as_index(slots)
        count = well.shape[0]
        self.ends = np.append(begins[1:], rows).astype(np.intp) - 1
        self.first = np.searchsorted(well, np.arange(slots.shape[0]))
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
        # Each closing is the only one of its well. Slices in place of gathers, if they are the same.
        self.lone = self.opening.shape[0] == np.count_nonzero(self.new)
        is_all = self.single and self.opening.shape[0] == count
        self.closing_index: Any = self.index if is_all else self.closing_slot

    def before(self, by_run: Array, by_well: Array) -> Array:
        """What belongs to the closed buckets: ``by_run`` (…, runs) in this batch, ``by_well`` (…, wells) before it."""
        if self.of_state.all():
            alike = self.closing_well.shape[0] == by_well.shape[-1]
            return np.array(by_well) if alike else np.asarray(by_well[..., self.closing_well])
        if isinstance(self.opening_index, slice) and self.opening[0] > 0:
            out = by_run[..., self.opening_index.start - 1 : self.opening_index.stop - 1].copy()
        else:
            out = by_run[..., self.opening - 1]
        if self.of_state.any():
            out[..., self.of_state] = by_well[..., self.closing_well[self.of_state]]
        return np.asarray(out)


Window = list[FloatArray]  # a column for each bucket, newest first


class Past:
    """The buckets before each opening run: 1 … 15 back, from the batch if it holds them, else from the state.

    A window is a list of columns, the newest bucket first, which functions take element by element. Its columns are
    parts of what is there already, so that nothing is gathered for each bucket of each closing; therefore a column may
    have more elements than there are closings, and :meth:`at_closings` picks theirs out of what was made of it."""

    def __init__(self, runs: Runs, state: WellArrays) -> None:
        closed, slots = runs.closed, runs.closing_slot
        gap = np.minimum(runs.bucket[runs.opening] - closed, RING).astype(np.intp)
        self._lone = runs.lone
        if self._lone:
            # 1 … 15 back from the run: what just closed is one of them, the rest is in the state's ring.
            self._near = np.flatnonzero(gap <= BACK)
            self._gap = gap[self._near] - 1
            self._in_step = bool(self._near.shape[0] == gap.shape[0] and (gap == gap[0]).all())
            back = runs.bucket[runs.opening] - np.arange(1, RING)[:, None]
            self._slots = slots
        else:
            # A line a well: 15 buckets before its first closing, then its closings, at their distance in time.
            before = np.zeros_like(gap)
            before[1:] = np.where(runs.new[1:], 0, gap[:-1])
            start = np.flatnonzero(runs.new)
            which = np.cumsum(runs.new) - 1
            walked = np.cumsum(before)
            offset = walked - walked[start][which]
            last = np.append(start[1:], closed.shape[0]) - 1
            length = BACK + offset[last] + gap[last]  # up to the bucket before the last run
            base = np.cumsum(length) - length
            self._position = base[which] + BACK + offset
            self._open = as_index(self._position + gap - BACK)
            self._size = int(length.sum())
            self._base = base + np.arange(BACK)[:, None]
            back = closed[start] - np.arange(BACK, 0, -1)[:, None]
            self._slots = slots[start]
        self._at = (back % RING).astype(np.intp)
        self._index = as_index(self._slots)
        # A fleet in step reads whole rows of the ring.
        self._rows = bool((self._at == self._at[:, :1]).all())
        self._unknown: Array = np.stack(self._ring(state["ring_tag"], BACK)) != back
        self._is_unknown = self._unknown.any(axis=1).tolist()

    def _ring(self, ring: Array, k: int) -> list[Array]:
        """``k`` columns (wells,) of ``ring`` (16, slots), which are not to be changed."""
        if self._rows:
            return [ring[at, self._index] for at in self._at[:k, 0].tolist()]
        return list(ring[self._at[:k], self._slots])

    def window(self, ring: Array, closed: Array, k: int, missing: float = np.nan) -> Window:
        """The newest ``k`` buckets, as precise as the ring. ``ring`` (16, slots); ``closed`` (closings,): what closes
        now."""
        closed = closed.astype(ring.dtype, copy=False)
        closes = int(self._gap[0]) if self._lone and self._in_step else -1  # is not in the ring, and comes from here
        old = [
            np.where(self._unknown[at], missing, column) if self._is_unknown[at] and at != closes else column
            for at, column in enumerate(self._ring(ring, k if self._lone else BACK))
        ]
        if not self._lone:
            line = np.full(self._size, missing, ring.dtype)
            line[self._base] = old
            line[self._position] = closed
            return [line[BACK - ago : self._size + 1 - ago] for ago in range(1, k + 1)]
        # What lies between the closed bucket and the run is empty: the ring's tags say so.
        if self._in_step:
            if closes < k:
                old[closes] = closed
            return old
        near = self._gap < k
        out = np.stack(old)
        out[self._gap[near], self._near[near]] = closed[self._near[near]]
        return list(out)

    def at_closings(self, values: FloatArray) -> FloatArray:
        """Of ``values`` that were made of windows, those of the closings."""
        return values if self._lone else values[self._open]


def windowed(function: str, past: Window, k: int) -> FloatArray:
    """The mean or spread of the newest ``k`` buckets, or the change over them, from the means ``past``."""
    if function == "mean":
        total, count = present(past[:k])
        return np.asarray(total / count)
    return spread(past[:k]) if function == "spread" else latest(past, 0) - latest(past, k)


def as_index(slots: Slots) -> Any:
    """``slots``, as a slice if they follow each other: a fleet that reports whole."""
    count = slots.shape[0]
    if count and slots[-1] - slots[0] + 1 == count and (np.diff(slots) == 1).all():
        return slice(int(slots[0]), int(slots[0]) + count)
    return slots


def in_turns(wells: Slots) -> list[Slots]:
    """The places in ``wells`` (n,), where each well's follow each other, in turns: the first of each well, then the
    second ones, and so on."""
    new = np.ones(wells.shape[0], np.bool_)
    np.not_equal(wells[1:], wells[:-1], out=new[1:])
    rank = np.arange(wells.shape[0]) - np.flatnonzero(new)[np.cumsum(new) - 1]
    return [np.flatnonzero(rank == turn) for turn in range(int(rank.max(initial=-1)) + 1)]


def added(start: Array, to: Slots, values: Array) -> Array:
    """``start`` (rows, k) with ``values`` (rows, n) added at ``to`` (n,), one after the other."""
    if start.shape == values.shape:  # each in its own place
        return np.asarray(start + values)
    flat = start.reshape(-1)
    offsets = (np.arange(start.shape[0]) * start.shape[1])[:, None]
    np.add.at(flat, (offsets + to).ravel(), np.asarray(values, start.dtype).ravel())
    return start


def median(values: Array, least: int) -> FloatArray:
    """Median over the last axis without NaN, in double precision; NaN where fewer than ``least`` values are there.
    (…, k) → (…)"""
    ordered = np.array(values, order="C")
    ordered.sort(axis=-1)  # NaN last
    size = values.shape[-1]
    if size == 0 or ordered.size == 0:
        return np.full(values.shape[:-1], np.nan)
    if not np.isnan(ordered[..., -1]).any():
        low, high = ordered[..., (size - 1) // 2], ordered[..., size // 2]
        return np.asarray((low.astype(np.float64) + high) / 2)
    n = size - np.isnan(ordered).sum(axis=-1).ravel()
    flat, rows = ordered.reshape(-1, size), np.arange(n.shape[0])
    low = flat[rows, np.maximum(n - 1, 0) // 2].astype(np.float64)
    high = flat[rows, np.minimum(n // 2, size - 1)]
    return np.where(n >= least, (low + high) / 2, np.nan).reshape(values.shape[:-1])


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
    some = np.zeros(n[0].shape[0], np.int64)
    for column in n:
        some += column > 0
    count, sums = in_order(n).astype(np.float64), in_order(total)
    mean = sums / count
    variance = np.maximum(in_order(square) - sums * mean, 0.0) / (count - 1)
    enough = (some * 2 >= len(n)) & (count >= min(6, len(n)))
    return np.where(enough & (mean > 0), np.sqrt(variance) / mean, np.nan)
