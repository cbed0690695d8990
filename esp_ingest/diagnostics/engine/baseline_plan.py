"""What a batch makes of the baselines, computed whole before any state is written."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from esp_ingest.diagnostics.engine.buckets import Past, Runs, Slots, added, median_of_own
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


class Lines:
    """What running medians are made of, a line a well and signal: the ring of its half-hours as it was before the
    batch, oldest first, then its pushes of this batch. ``long`` (medians, 48, slots) is that ring, ``count`` (wells,)
    how many pushes came before, ``which`` the place in ``slots`` of a push's well, ``ordinal`` its place among the
    pushes of its well."""

    def __init__(self, long: Array, slots: Slots, count: IntArray, which: Slots, ordinal: Slots, means: FloatArray):
        self._size = size = long.shape[1]
        sizes = np.bincount(which, minlength=slots.shape[0]) + size
        self._base = np.cumsum(sizes) - sizes
        self._after = self._base[which] + ordinal + 1
        back = (count + np.arange(size)[:, None]) % size
        self._lines = np.empty((long.shape[0], int(sizes.sum())), np.float32)  # as the rings and the means are
        self._lines[:, self._base + np.arange(size)[:, None]] = long[:, back, slots]
        self._lines[:, self._after + size - 1] = means
        # Two pushes of a well that follow each other share all their half-hours but one each.
        is_second = ordinal % 2 == 1
        self._pair = np.cumsum(~is_second) - 1
        self._shared = self._after[~is_second] + 1
        self._single = self._after + np.where(is_second, size - 1, 0)

    def medians(self, places: Sequence[int], least: int) -> FloatArray:
        """Of the signals at ``places`` after each push, (places, pushes); see :func:`median`."""
        lines = self._lines[places]
        unknown = np.isnan(lines).any(axis=1)
        if not unknown.any():
            return self._medians_of_whole(lines)
        out = np.empty((len(places), self._after.shape[0]))
        out[unknown] = median_of_own(_windows(lines[unknown], self._size)[:, self._after], least)
        if not unknown.all():
            out[~unknown] = self._medians_of_whole(lines[~unknown])
        return out

    def _medians_of_whole(self, lines: Array) -> FloatArray:
        """After each push, of ``lines`` without NaN."""
        size = self._size
        shared = _windows(lines, size - 1)[:, self._shared]
        shared.sort(axis=-1)
        # The single one has its place before, between or after the three in the middle of the 47 others.
        low, middle, high = (shared[..., at].take(self._pair, axis=1) for at in range(size // 2 - 2, size // 2 + 1))
        single = lines.take(self._single, axis=1)
        below = np.minimum(np.maximum(single, low), middle).astype(np.float64)
        return np.asarray((below + np.minimum(np.maximum(single, middle), high)) / 2)

    def medians_before(self, place: int, least: int) -> FloatArray:
        """Of the signal ``place`` before the batch, (wells,)."""
        return median_of_own(_windows(self._lines[[place]], self._size)[0, self._base], least)


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
    ends = np.append(starts[1:], group.shape[0]) - 1
    # Mostly each signal counts in each bucket, and there is nothing to add up but how many buckets there are.
    is_whole = there.all(axis=1)
    if is_whole.all():
        sums = added(sums, group, part)
        counts += ends - starts + 1
    elif there.any():
        sums = added(sums, group, np.where(there, part, 0.0))
        counts[is_whole] += ends - starts + 1
        counts[~is_whole] = added(counts[~is_whole], group, there[~is_whole])
    last = np.append(np.flatnonzero(of_state)[1:], starts.shape[0]) - 1
    return ends, over[ends], sums, counts, last
