"""Features over the last hour: made of the closed 5-minute buckets, of which a ring of 16 is kept a well.

What a day of the well is made of (own_days.py) is computed when a bucket closes. All other windows are computed when a
rule reads them (features.py), which as long as all is well is seldom: they are a function of the rings and the running
medians, which stay as they are until the next bucket closes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from esp_ingest.diagnostics.engine.baseline_plan import Plan
from esp_ingest.diagnostics.engine.buckets import (
    BUCKET_SECONDS,
    RING,
    Key,
    Past,
    Runs,
    Window,
    as_index,
    median_of_own,
    until,
    variation,
    windowed,
)
from esp_ingest.diagnostics.engine.own_days import MEAN_BUCKETS, low_mean
from esp_ingest.diagnostics.engine.well_state import NEVER, Array, Journal, WellArrays
from esp_ingest.model import FloatArray

INTERVAL: Key = ("interval",)  # usual time between readings, µs: median of the 5-minute means of the last hour
_INTERVAL_BUCKETS, _LEAST_INTERVALS = 12, 3
_SLOW_US = 1_200_000_000  # at samples that are further apart, an hour never has the least: the newest interval counts


class HourWindows:
    """The rings of all wells, kept in ``state``. ``daily``: the keys of the features that are made whenever a bucket
    closes, all others are made when they are read; ``ringed`` and ``squares``: the signals of
    which means, and sums for the variation are kept; ``lows``: the signals of whose last 15 minutes the mean is needed;
    ``signals``: those of which the plan has means; ``row``: of each key in the features."""

    def __init__(
        self,
        state: WellArrays,
        daily: Sequence[Key],
        ringed: Sequence[str],
        squares: Sequence[str],
        lows: Sequence[str],
        signals: Sequence[str],
        row: dict[Key, int],
    ) -> None:
        self._state, self._row = state, row
        self._daily = daily
        self._lows = lows
        self._ringed, self._squares = ringed, squares
        self._ring_place = [signals.index(name) for name in ringed]
        state.add("ring_tag", np.int64, NEVER, shape=(RING,))
        state.add("ring_dt", np.float64, np.nan, shape=(RING,))
        state.add("ring_mean", np.float32, np.nan, ringed, (RING,))  # no gauge has more than seven digits
        for name in ("ring_sum", "ring_square"):
            state.add(name, np.float64, 0.0, squares, (RING,))
        state.add("ring_n", np.float32, 0.0, squares, (RING,))  # whole numbers, exact up to 16 million

    # -- what a batch makes of them

    def past(self, runs: Runs, plan: Plan | None) -> Past:
        """The buckets before each run, with those that ``plan`` closes; None if there are none. The state may be
        written afterwards."""
        state, past = self._state, Past(runs, self._state)
        means = dt = sums = counts = squares = None
        if plan is not None:
            means, dt = plan.means[self._ring_place], plan.mean_dt[None]
            sums, counts, squares = plan.closed_sums, plan.closed_counts, plan.closed_squares
        past.add(["dt"], state["ring_dt"][None], dt)
        past.add([("mean", name) for name in self._ringed], state["ring_mean"], means)
        for ring, closed in (("n", counts), ("sum", sums), ("square", squares)):
            past.add([(ring, name) for name in self._squares], state[f"ring_{ring}"], closed, 0.0)
        return past

    def close(self, runs: Runs, plan: Plan) -> None:
        """Buckets close: compute what is needed of each of them."""
        past = plan.past = self.past(runs, plan)
        features, row = plan.features, self._row
        interval = usual_interval(past.window("dt", _INTERVAL_BUCKETS), past.at_closings)
        slow = np.isnan(interval) & (plan.mean_dt > _SLOW_US)
        features.close(row[INTERVAL], np.where(slow, plan.mean_dt, interval) if slow.any() else interval)
        for key in self._daily:
            values = past.at_closings(self._windowed(past, key))
            features.close(row[key], self._scaled(key, values, features.at_closings))
        for name in self._lows:
            newest = plan.means[self._ring_place[self._ringed.index(name)]]  # at slow samples all that there is
            low = past.at_closings(low_mean(past.window(("mean", name), MEAN_BUCKETS)))
            low = np.where(np.isnan(low), newest, low)
            features.close(row["low", name], low / features.at_closings(row["median", name]))

    @staticmethod
    def _windowed(past: Past, key: Key) -> FloatArray:
        function, signal, k = str(key[0]), key[1], int(str(key[2])) // BUCKET_SECONDS
        if function == "cv":
            return variation(*(past.window((ring, signal), k) for ring in ("n", "sum", "square")))
        reach = k if function in ("mean", "spread") else k + 3
        return windowed(function, past.window(("mean", signal), reach), k)

    def _scaled(self, key: Key, values: FloatArray, feature: Callable[[int], FloatArray]) -> FloatArray:
        function, signal, seconds = str(key[0]), key[1], int(str(key[2]))
        if function == "trend":
            values = values / feature(self._row["median", signal])
        return values / seconds if function in ("trend", "rate") else values

    def read(self, runs: Runs, plan: Plan, key: Key) -> FloatArray:
        """The window ``key`` by run, (runs,), once the batch is written into the state."""
        if plan.past is None:
            plan.past = self.past(runs, None)
        return self._scaled(key, plan.past.at_runs(self._windowed(plan.past, key)), plan.features.of)

    def commit(self, journal: Journal, runs: Runs, plan: Plan) -> None:
        """Put the closed buckets into the rings: the last 16; what is older would be overwritten at once."""
        state, closed, slots = self._state, runs.closed, runs.closing_slot
        some: Any = slice(None)
        if not runs.single:
            recent = closed >= runs.bucket[runs.last][runs.closing_well] - RING
            newest = until(runs.new, True)
            some = np.flatnonzero(recent | newest)
            closed, slots = closed[some], slots[some]
        at = (closed % RING).astype(np.intp)
        index: Any = (at, slots)
        if (at == at[0]).all():  # a fleet in step: whole rows of the ring
            index = (int(at[0]), as_index(slots))
        journal.put(state["ring_tag"], index, closed)
        journal.put(state["ring_dt"], index, plan.mean_dt[some])
        each = (slice(None), *index)
        journal.put(state["ring_mean"], each, plan.means[:, some][self._ring_place])
        journal.put(state["ring_sum"], each, plan.closed_sums[:, some])
        journal.put(state["ring_n"], each, plan.closed_counts[:, some])
        journal.put(state["ring_square"], each, plan.closed_squares[:, some])


def usual_interval(window: Window, at_closings: Callable[[Array], Array]) -> FloatArray:
    """The median of the columns, at the closings. Wells mostly report evenly: what more than half of the columns have
    is the median."""
    newest = window[0]
    alike = np.ones(newest.shape[0], np.int8)
    for column in window[1:]:
        alike += column == newest
    others = np.flatnonzero(at_closings(alike) <= len(window) // 2)
    out = at_closings(newest)
    if others.size:
        out = out.copy()
        others_of = [at_closings(column)[others] for column in window]
        out[others] = median_of_own(np.stack(others_of, axis=-1), _LEAST_INTERVALS)
    return out
