"""What a batch makes of the baselines, computed whole before any state is written."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from esp_ingest.diagnostics.engine.buckets import Past, Runs, Slots, added, median_of_own, until
from esp_ingest.diagnostics.engine.features import Features
from esp_ingest.diagnostics.engine.own_days import OwnPlan
from esp_ingest.diagnostics.engine.slow_trends import SlowPlan
from esp_ingest.diagnostics.engine.speed_steps import HalfHours, SpeedStep
from esp_ingest.diagnostics.engine.well_state import Array, WellArrays
from esp_ingest.diagnostics.language.evaluation import BoolArray
from esp_ingest.model import FloatArray, IntArray


@dataclass(slots=True)
class Plan:
    """What a batch makes of the baselines. ``features`` as they stand during each run."""

    sums: FloatArray
    counts: IntArray
    squares: FloatArray
    pace: IntArray
    features: Features
    closed_sums: FloatArray = field(init=False)
    closed_counts: IntArray = field(init=False)
    closed_squares: FloatArray = field(init=False)
    means: FloatArray = field(init=False)
    mean_dt: FloatArray = field(init=False)
    half_sum: FloatArray | None = None  # (medians, wells with closings), and so half_n
    half_n: IntArray | None = None
    pushes: "Pushes | None" = None
    half_hours: tuple[Slots, IntArray, IntArray] | None = (
        None  # that end: slot, end, and time of the reading that tells
    )
    halves: HalfHours | None = None  # the same, with their means
    held: tuple[Slots, IntArray] | None = None  # by well with half-hours that end: slot and how many were held
    cut_us: int | None = None  # the batch has to be cut here
    past: Past | None = None  # the buckets before each run
    own: OwnPlan | None = None
    slow: SlowPlan | None = None


@dataclass(slots=True)
class Pushes:
    """Half-hours that are over, each pushed into the running medians. By push: the closing ``at`` which it happens, its
    well, the run before which it happens, its number among the well's pushes so far, its means (medians, pushes); its
    place among all half-hours of the batch, and whether it is learned in part only."""

    at: Slots
    well: Slots
    run: Slots
    number: IntArray
    means: FloatArray
    time_us: IntArray
    half: Slots
    partly: BoolArray
    day_slots: Slots | None = None  # of the wells of which a day ended or the speed changed, with their days
    days: FloatArray | None = None  # (habits, 7, these wells)
    steps: list[SpeedStep] = field(default_factory=list)
    lines: "Lines | None" = None  # if the batch has several runs of a well
    medians: dict[int, tuple[FloatArray, FloatArray]] = field(default_factory=dict)  # by place, made on demand


_TOGETHER = 4  # medians that are made of one sorted series


class Lines:
    """What running medians are made of, a line a well and signal: the ring of its half-hours as it was before the
    batch, oldest first, then its pushes of this batch. ``long`` (medians, 48, slots) is that ring, ``count`` (wells,)
    how many pushes came before, ``which`` the place in ``slots`` of a push's well, ``ordinal`` its place among the
    pushes of its well."""

    def __init__(self, long: Array, slots: Slots, count: IntArray, which: Slots, ordinal: Slots, means: FloatArray):
        self._size = size = long.shape[1]
        pushes = np.bincount(which, minlength=slots.shape[0])
        base = (pushes + size).cumsum() - (pushes + size)
        back = (count + np.arange(size)[:, None]) % size
        self._lines = np.empty((long.shape[0], int(pushes.sum()) + size * slots.shape[0]), np.float32)  # as the rings
        self._lines[:, base + np.arange(size)[:, None]] = long[:, back, slots]
        self._lines[:, base[which] + ordinal + size] = means
        # Windows, well after well: the one before the batch, then that after each push.
        first = (pushes + 1).cumsum() - (pushes + 1)
        self._before, self._after = first, first[which] + ordinal + 1
        nth = np.arange(which.shape[0] + slots.shape[0]) - first.repeat(pushes + 1)
        self._begins = base.repeat(pushes + 1) + nth
        # Windows of a well that follow each other share all their half-hours but three of each, or two, or one.
        place = nth % _TOGETHER
        leads = place == 0
        self._group = leads.cumsum() - 1
        self._shared = self._begins[leads] + _TOGETHER - 1
        own = np.arange(_TOGETHER - 1)[:, None]
        self._own = self._begins + own + np.where(own + place >= _TOGETHER - 1, size - _TOGETHER + 1, 0)

    def medians(self, places: Sequence[int], least: int) -> tuple[FloatArray, FloatArray]:
        """Of the signals at ``places`` before the batch, (places, wells), and after each push, (places, pushes); see
        :func:`median`."""
        lines = self._lines[places]
        unknown = np.isnan(lines).any(axis=1)
        if not unknown.any():
            out = self._medians_of_whole(lines)
        else:
            out = np.empty((len(places), self._begins.shape[0]))
            out[unknown] = median_of_own(_windows(lines[unknown], self._size)[:, self._begins], least)
            if not unknown.all():
                out[~unknown] = self._medians_of_whole(lines[~unknown])
        return out[:, self._before], out[:, self._after]

    def _medians_of_whole(self, lines: Array) -> FloatArray:
        """Of all windows of ``lines`` without NaN."""
        shared = _windows(lines, self._size - _TOGETHER + 1)[:, self._shared]
        shared.sort(axis=-1)
        first, second, third = _in_order(*lines.take(self._own, axis=1).swapaxes(0, 1))
        # The 24th and 25th of all 48. The nth of two sorted series is the least of the maxima of the nth of the one, of
        # its (n − 1)th and the first of the other, and so on.
        begin = self._size // 2 - _TOGETHER
        near = [shared[..., at].take(self._group, axis=1) for at in range(begin, begin + _TOGETHER + 1)]
        middle = [
            np.minimum(
                np.minimum(near[at + 3], np.maximum(near[at + 2], first)),
                np.minimum(np.maximum(near[at + 1], second), np.maximum(near[at], third)),
            )
            for at in (0, 1)
        ]
        return np.asarray((middle[0].astype(np.float64) + middle[1]) / 2)


def _in_order(a: Array, b: Array, c: Array) -> tuple[Array, Array, Array]:
    """The least, the middle and the greatest of three, element by element."""
    low, high = np.minimum(a, b), np.maximum(a, b)
    middle = np.minimum(high, c)
    return np.minimum(low, middle), np.maximum(low, middle), np.maximum(high, c)


def _windows(lines: Array, size: int) -> Array:
    """(lines, n, size): the n windows of each of ``lines``, which nobody else has, as one view of them. It is what
    sliding_window_view() gives, which takes longer than the sorting of a window."""
    along = lines.strides[1]
    shape = lines.shape[0], lines.shape[1] - size + 1, size
    return np.ndarray(shape, lines.dtype, lines, 0, (lines.strides[0], along, along))


# Of groups of closings of one half-hour: their last closings, whether they are over, their sums and counts by signal,
# and the last group of each well.
Folded = tuple[Slots, BoolArray, FloatArray, Array, Any]


def folded_one(state: WellArrays, runs: Runs, over: BoolArray, part: FloatArray, there: BoolArray) -> Folded:
    """As :func:`folded_many`, if each closing is the only one of its well: groups and closings are the same."""
    index = (slice(None), runs.closers)
    sums = state["half_sum"][index] + np.where(there, part, 0.0)
    return np.arange(over.shape[0]), over, sums, state["half_n"][index] + there, slice(None)


def folded_many(state: WellArrays, runs: Runs, over: BoolArray, part: FloatArray, there: BoolArray) -> Folded:
    """Add 5-minute means to their half-hours. By closing: whether the half-hour is ``over`` with it, its means ``part``
    (medians, closings), and which of them are ``there`` and count."""
    begins = runs.new.copy()
    begins[1:] |= over[:-1]
    group = np.cumsum(begins) - 1
    starts = np.flatnonzero(begins)
    of_state = runs.new[starts]
    slots = runs.closing_slot[starts[of_state]]
    sums = np.zeros((part.shape[0], starts.shape[0]))
    counts = np.zeros(sums.shape, np.int32)  # of buckets, up to 6
    sums[:, of_state], counts[:, of_state] = state["half_sum"][:, slots], state["half_n"][:, slots]
    ends = until(starts, group.shape[0]) - 1
    # Mostly each signal counts in each bucket, and there is nothing to add up but how many buckets there are.
    is_whole = there.all(axis=1)
    if is_whole.all():
        sums = added(sums, group, part)
        counts += ends - starts + 1
    elif there.any():
        sums = added(sums, group, np.where(there, part, 0.0))
        counts[is_whole] += ends - starts + 1
        counts[~is_whole] = added(counts[~is_whole], group, there[~is_whole])
    last = until(np.flatnonzero(of_state), starts.shape[0]) - 1
    return ends, over[ends], sums, counts, last
