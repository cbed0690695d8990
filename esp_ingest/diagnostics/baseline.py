"""What a well is used to: 5-minute means over an hour, running medians over 24 h, and features made of them.

Event time is cut into 5-minute buckets aligned to the epoch. A reading only adds to its bucket; features change only
when a later reading closes it, so they are the same however the data is cut into batches, and their memory does not
depend on the sample rate. Sums are added strictly in the order of the readings: floating point is not associative.

Only readings while running count. A median is over the last 48 half-hours of settled running (24 h of it, however long
the stops between), so that a baseline outlives a shutdown; it is known after 12 of them (6 h).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from esp_ingest.diagnostics.state import NEVER, Array, Journal, WellArrays
from esp_ingest.telemetry.model import FloatArray, IntArray

Key = tuple[object, ...]
Slots = npt.NDArray[np.intp]

BUCKET_US = 300_000_000
SETTLE_US = 3_600_000_000
_RING = 16  # ≥ 12 closed buckets of an hour and two to fall back on
_HALF = 6  # buckets in a half-hour
_LONG = 48  # half-hours in a day of running
_KNOWN = 12  # half-hours after which a median counts: 6 h of running (DIAGNOSTICS.md)
_DAYS = 7
INTERVAL: Key = ("interval",)  # usual time between readings, µs: median of the 5-minute means of the last hour
HOURS: Key = ("hours",)  # of settled running in the running medians, up to 24
_OF_MEDIAN = ("median", "ratio", "deviation", "trend")
_OF_HABIT = ("habit", "habit_ratio")


class Baselines:
    """Buckets and features of all wells, kept in ``state``. ``columns`` are the keys that the rules read."""

    def __init__(self, state: WellArrays, columns: Iterable[Key]) -> None:
        columns = set(columns) | {("median", "motor_current")}
        windowed = [key for key in columns if key[0] in ("cv", "spread", "change", "trend", "rate")]
        self._habits = _names(columns, _OF_HABIT)
        self._medians = sorted({*_names(columns, _OF_MEDIAN), *self._habits})
        self.signals: list[str] = sorted({*self._medians, *(str(key[1]) for key in windowed)})
        self._squares = _names(columns, ("cv",))
        self._windowed = sorted(windowed, key=str)
        self.features: list[Key] = [
            INTERVAL,
            HOURS,
            *[("median", name) for name in self._medians],
            *[("habit", name) for name in self._habits],
            *self._windowed,
        ]
        self.row = {key: at for at, key in enumerate(self.features)}
        self._place = {name: at for at, name in enumerate(self.signals)}
        self._square_place = [self._place[name] for name in self._squares]
        self._state = state
        self._allocate(state)

    def _allocate(self, state: WellArrays) -> None:
        state.add("bucket", np.int64, NEVER)
        state.add("pace", np.int64, 0, shape=(2,))  # readings, and the time since the one before each
        state.add("sum", np.float64, 0.0, self.signals)
        state.add("n", np.int64, 0, self.signals)
        state.add("square", np.float64, 0.0, self._squares)
        state.add("ring_tag", np.int64, NEVER, shape=(_RING,))
        state.add("ring_dt", np.float64, np.nan, shape=(_RING,))
        state.add("ring_mean", np.float64, np.nan, self.signals, (_RING,))
        for name in ("ring_sum", "ring_square", "ring_n"):
            state.add(name, np.float64, 0.0, self._squares, (_RING,))
        state.add("half_sum", np.float64, 0.0, self._medians)
        state.add("half_n", np.int64, 0, self._medians)
        state.add("long", np.float64, np.nan, self._medians, (_LONG,))
        state.add("long_count", np.int64, 0)
        state.add("days", np.float64, np.nan, self._habits, (_DAYS,))
        state.add("features", np.float64, np.nan, self.features)

    # -- a reading comes in

    def advance(self, journal: Journal, slots: Slots, buckets: IntArray) -> None:
        """The next readings of ``slots`` (each once) lie in ``buckets``: close what came before."""
        current = self._state["bucket"][slots]
        moved = current != buckets
        if not moved.any():
            return
        closing = moved & (current != NEVER)
        if closing.any():
            self._close(journal, slots[closing], buckets[closing])
        journal.put(self._state["bucket"], slots[moved], buckets[moved])

    def add(self, journal: Journal, slots: Slots, rows: Slots, values: FloatArray, dt_us: IntArray) -> None:
        """Add readings to the open buckets. ``slots`` (k,): the wells; ``rows`` (n,): the well of each reading, in
        order; ``values`` (signals, n) with NaN for what does not count; ``dt_us`` (n,) since the reading before."""
        state = self._state
        single = rows.shape[0] == slots.shape[0]
        there = ~np.isnan(values)
        weights = np.where(there, values, 0.0)
        _accumulate(journal, state["sum"], slots, rows, weights, single)
        _accumulate(journal, state["n"], slots, rows, there, single)
        if self._squares:
            some = weights[self._square_place]
            _accumulate(journal, state["square"], slots, rows, some * some, single)
        both = np.stack([np.ones_like(dt_us), dt_us])
        _accumulate(journal, state["pace"], slots, rows, both, single)

    # -- a bucket closes

    def _close(self, journal: Journal, slots: Slots, now: IntArray) -> None:
        state = self._state
        closed = state["bucket"][slots]
        at = (closed % _RING).astype(np.intp)
        sums, n = state["sum"][:, slots], state["n"][:, slots]
        with np.errstate(invalid="ignore", divide="ignore"):
            means = sums / n  # 0/0 is NaN: nothing measured
            mean_dt = state["pace"][1, slots] / state["pace"][0, slots]
        journal.put(state["ring_tag"], (at, slots), closed)
        journal.put(state["ring_dt"], (at, slots), mean_dt)
        journal.put(state["ring_mean"], (slice(None), at, slots), means)
        if self._squares:
            some = self._square_place
            journal.put(state["ring_sum"], (slice(None), at, slots), sums[some])
            journal.put(state["ring_n"], (slice(None), at, slots), n[some])
            journal.put(state["ring_square"], (slice(None), at, slots), state["square"][:, slots])
            journal.put(state["square"], (slice(None), slots), 0.0)
        journal.put(state["sum"], (slice(None), slots), 0.0)
        journal.put(state["n"], (slice(None), slots), 0)
        journal.put(state["pace"], (slice(None), slots), 0)
        self._fold(journal, slots, closed, now, means)
        self._refresh(journal, slots, now)

    def _fold(self, journal: Journal, slots: Slots, closed: IntArray, now: IntArray, means: FloatArray) -> None:
        """Settled 5-minute means go into their half-hour; a half-hour that is over goes into the running median."""
        state = self._state
        settled = (state["running"][slots] == 1) & (state["start_us"][slots] <= closed * BUCKET_US - SETTLE_US)
        places = [self._place[name] for name in self._medians]
        if settled.any():
            some = slots[settled]
            part = means[places][:, settled]
            there = ~np.isnan(part)
            index = (slice(None), some)
            journal.put(state["half_sum"], index, state["half_sum"][index] + np.where(there, part, 0.0))
            journal.put(state["half_n"], index, state["half_n"][index] + there)
        over = (now // _HALF > closed // _HALF) & (state["half_n"][:, slots] > 0).any(axis=0)
        if over.any():
            self._push(journal, slots[over])

    def _push(self, journal: Journal, slots: Slots) -> None:
        state = self._state
        index = (slice(None), slots)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = state["half_sum"][index] / state["half_n"][index]
        count = state["long_count"][slots]
        journal.put(state["long"], (slice(None), (count % _LONG).astype(np.intp), slots), means)
        journal.put(state["long_count"], slots, count + 1)
        hours = np.minimum(count + 1, _LONG) / 2
        journal.put(state["features"], (self.row[HOURS], slots), hours)
        journal.put(state["half_sum"], index, 0.0)
        journal.put(state["half_n"], index, 0)
        for place, name in enumerate(self._medians):
            median = _median(state["long"][place][:, slots].T, _KNOWN)
            journal.put(state["features"], (self.row[("median", name)], slots), median)
        day = (count + 1) % _LONG == 0
        if day.any():
            self._end_of_day(journal, slots[day], (count[day] // _LONG % _DAYS).astype(np.intp))

    def _end_of_day(self, journal: Journal, slots: Slots, at: Slots) -> None:
        state = self._state
        for place, name in enumerate(self._habits):
            median = state["features"][self.row[("median", name)], slots]
            journal.put(state["days"], (place, at, slots), median)
            habit = _median(state["days"][place][:, slots].T, 1)
            journal.put(state["features"], (self.row[("habit", name)], slots), habit)

    # -- features

    def _refresh(self, journal: Journal, slots: Slots, now: IntArray) -> None:
        """Features over the last hour, for wells whose open bucket is now ``now``."""
        state = self._state
        back = now[None] - np.arange(1, _RING, dtype=np.int64)[:, None]
        at = (back % _RING).astype(np.intp)
        known = state["ring_tag"][at, slots] == back
        hour = slice(0, 12)
        dt = np.where(known[hour], state["ring_dt"][at[hour], slots], np.nan)
        features = np.empty((len(self._windowed) + 1, slots.shape[0]))
        features[0] = _median(dt.T, 3)
        for place, key in enumerate(self._windowed, start=1):
            features[place] = self._feature(key, slots, at, known)
        rows = [0, *(self.row[key] for key in self._windowed)]
        journal.put(state["features"], (np.asarray(rows)[:, None], slots[None]), features)

    def _feature(self, key: Key, slots: Slots, at: Slots, known: Array) -> FloatArray:
        function, signal, seconds = str(key[0]), str(key[1]), int(str(key[2]))
        k = seconds // 300
        if function == "cv":
            return self._cv(self._squares.index(signal), slots, at[:k], known[:k])
        ring = self._state["ring_mean"][self._place[signal]]
        if function == "spread":
            return _spread(np.where(known[:k], ring[at[:k], slots], np.nan))
        change = _latest(ring, slots, at, known, 0) - _latest(ring, slots, at, known, k)
        if function == "trend":
            change = change / self._state["features"][self.row[("median", signal)], slots]
        return change / seconds if function in ("trend", "rate") else change

    def _cv(self, place: int, slots: Slots, at: Slots, known: Array) -> FloatArray:
        """Sample standard deviation ÷ mean, where at least half of the buckets have something and 6 readings do."""
        state = self._state
        n = np.where(known, state["ring_n"][place][at, slots], 0.0)
        total = _in_order(np.where(known, state["ring_sum"][place][at, slots], 0.0))
        square = _in_order(np.where(known, state["ring_square"][place][at, slots], 0.0))
        count = n.sum(axis=0)
        enough = ((n > 0).sum(axis=0) * 2 >= at.shape[0]) & (count >= min(6, at.shape[0]))
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total / count
            variance = np.maximum(square - total * mean, 0.0) / (count - 1)
            return np.where(enough & (mean > 0), np.sqrt(variance) / mean, np.nan)


def _names(columns: Iterable[Key], functions: Sequence[str]) -> list[str]:
    return sorted({str(key[1]) for key in columns if key[0] in functions})


def _accumulate(journal: Journal, array: Array, slots: Slots, rows: Slots, values: Any, single: bool) -> None:
    """``array[:, rows] += values``, in the order of the rows; ``single``: each well has one."""
    index = (slice(None), slots)
    if single:
        journal.put(array, index, array[index] + values)
        return
    journal.keep(array, index)
    flat = array.reshape(-1)
    offsets = (np.arange(array.shape[0]) * array.shape[1])[:, None]
    np.add.at(flat, (offsets + rows).ravel(), np.asarray(values, array.dtype).ravel())


def _median(values: FloatArray, least: int) -> FloatArray:
    """Median over the last axis without NaN; NaN where fewer than ``least`` values are there."""
    ordered = np.sort(values, axis=-1)  # NaN last
    n = (~np.isnan(ordered)).sum(axis=-1)
    rows = np.arange(values.shape[0])
    low = ordered[rows, np.maximum(n - 1, 0) // 2]
    high = ordered[rows, np.minimum(n // 2, values.shape[-1] - 1)]
    return np.where(n >= least, (low + high) / 2, np.nan)


def _in_order(values: FloatArray) -> FloatArray:
    """Sum over the first axis, strictly one after the other: np.sum pairs up differently for one well than for many."""
    return np.asarray(np.add.accumulate(values, axis=0)[-1])


def _latest(ring: FloatArray, slots: Slots, at: Slots, known: Array, back: int) -> FloatArray:
    """The mean ``back`` buckets before the last closed one, or up to two earlier where that one is empty."""
    found = np.where(known[back], ring[at[back], slots], np.nan)
    for earlier in (back + 1, back + 2):
        missing = np.isnan(found)
        if not missing.any():
            break
        found = np.where(missing & known[earlier], ring[at[earlier], slots], found)
    return found


def _spread(values: FloatArray) -> FloatArray:
    """Greatest − least over the first axis, NaN with fewer than two values."""
    there = ~np.isnan(values)
    high = np.where(there, values, -np.inf).max(axis=0)
    low = np.where(there, values, np.inf).min(axis=0)
    with np.errstate(invalid="ignore"):
        return np.where(there.sum(axis=0) >= 2, high - low, np.nan)
