"""Drops of a signal that follow each other: what is usual while it is not yet a habit of the well's days.

A well that begins to slug has five days of habits (own_days.py) that know nothing of it. So drops that recover by
themselves are counted in series, in which each comes within 12 hours of the one before. The last 10 of a series, some
day of them, are kept with their extremes: how low, how long, how much the current varied, how steeply pressure fell.
From the third drop on these extremes are what the well does at present, until 12 hours pass without a drop.

A drop that ends in a stop of the pump has not recovered. It is no example of what is harmless, and it ends the series:
the next stop may announce itself by a drop just like these."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esp_ingest.diagnostics.engine.buckets import Runs, Slots, appended, rings_at
from esp_ingest.diagnostics.engine.features import Features
from esp_ingest.diagnostics.engine.well_state import Array, Journal, WellArrays
from esp_ingest.diagnostics.language.evaluation import BoolArray
from esp_ingest.model import FloatArray

_KEPT = 10  # drops
_PAUSE_BUCKETS = 144  # 12 h without another drop end a series
KNOWN_DROPS = 3


@dataclass(slots=True)
class RecentPlan:
    """What a batch changes. ``slots`` are the wells with a drop in the batch, ``extreme`` (quantities, these wells)
    that of a drop that is not over. ``at``: closings at which a drop is over, and if there are any, ``series`` (2, at)
    and ``after`` (quantities, 10, at), which are the series and the ring after each of them, ``ring_slots`` their
    wells, and of these ``newest`` (2, these wells) and ``rings``."""

    slots: Slots
    extreme: FloatArray
    at: Slots
    series: FloatArray | None = None
    after: FloatArray | None = None
    ring_slots: Slots | None = None
    newest: FloatArray | None = None
    rings: FloatArray | None = None


class RecentDrops:
    """Of one ``signal``. Of each drop the extremes ``ufuncs`` of the features in the rows ``sources`` are
    kept, by their ``names``. All functions here are of the closings of a batch."""

    def __init__(
        self, state: WellArrays, signal: str, names: Sequence[str], ufuncs: Sequence[Any], sources: Sequence[int]
    ) -> None:
        self._state, self._ufuncs, self._sources = state, ufuncs, sources
        self._extreme, self._series, self._ring = (
            f"{of} {signal}" for of in ("drop_extreme", "series", "recent_drops")
        )
        state.add(self._extreme, np.float64, np.nan, names)
        # Of the newest drop. "ended" is the number of the 5-minute bucket after it, which float32 has exactly until the
        # year 2129, and negative if it ended in a stop.
        state.add(self._series, np.float32, np.nan, ["ended", "number"])
        state.add(self._ring, np.float32, np.nan, names, (_KEPT,), newest_first=True)

    def plan(
        self, runs: Runs, features: Features, settled: BoolArray, healthy: BoolArray, before: Array, now: Array
    ) -> RecentPlan | None:
        """By closing (closings,): whether the well is ``settled``, whether the signal is ``healthy`` again, and
        whether it was in a drop ``before`` the closing and is in one ``now`` (-1). None if it is in none anywhere."""
        some = np.flatnonzero((before == -1) | (now == -1))
        if not some.size:
            return None
        over = now[some] != -1
        well = runs.closing_well[some]
        first = np.append(True, well[1:] != well[:-1])
        starts = np.flatnonzero(first | np.append(False, over[:-1]))
        last = np.append(starts[1:], some.shape[0]) - 1
        # Nothing tells yet where a drop goes on that an earlier batch left open, but that it is its well's first here.
        goes_on = first[starts] & (before[some[starts]] == -1) & runs.new[some[starts]]
        slots = runs.closing_slot[some]
        extreme = np.empty((len(self._sources), starts.shape[0]))
        for at, (ufunc, source) in enumerate(zip(self._ufuncs, self._sources, strict=True)):
            values = np.where(settled, features.at_closings(source), np.nan)[some]
            extreme[at] = ufunc.reduceat(values, starts)
            extreme[at, goes_on] = ufunc(extreme[at, goes_on], self._state[self._extreme][at][slots[starts[goes_on]]])
        ended = over[last]
        final = np.append(first[1:], True)[last]  # the last of its well
        left = np.where(ended, np.nan, extreme)[:, final]
        plan = RecentPlan(slots[last[final]], left, some[last[ended]])
        if plan.at.size:
            self._append(runs, plan, healthy[plan.at], extreme[:, ended])
        return plan

    def _append(self, runs: Runs, plan: RecentPlan, healthy: BoolArray, extreme: FloatArray) -> None:
        """Append the drops that are over to the rings of their wells, each with its number in its series."""
        well = runs.closing_well[plan.at]
        new = np.append(True, well[1:] != well[:-1])
        plan.ring_slots = runs.slots[well[new]]
        ended_before, number_before = self._state[self._series][:, plan.ring_slots]
        bucket = runs.closed[plan.at] + 1
        ended = np.where(healthy, bucket, -bucket).astype(np.float64)
        before = np.append(np.nan, ended[:-1])
        before[new] = ended_before
        follows = (before > 0) & (bucket - before < _PAUSE_BUCKETS)
        nth = np.arange(ended.shape[0])
        begins = np.maximum.accumulate(np.where(new | ~follows, nth, 0))
        counted = np.zeros(ended.shape[0])
        counted[new] = np.where(follows[new], number_before, 0)
        plan.series = np.stack([ended, nth - begins + 1 + counted[begins]])
        plan.newest = plan.series[:, np.append(new[1:], True)]
        extreme = extreme.astype(np.float32).astype(np.float64)  # as the ring keeps them
        plan.after, plan.rings = appended(self._state[self._ring][:, :, plan.ring_slots], new, extreme)

    def at(self, runs: Runs, plan: RecentPlan | None, closings: Slots) -> tuple[FloatArray, FloatArray]:
        """At the ``closings``: how many drops the series has, 0 if the last one is over, and their extremes
        (quantities, closings), NaN unless there are enough."""
        series, rings = self._state[self._series][:, None], self._state[self._ring]
        if plan is None or plan.series is None:
            series, rings = rings_at(runs, closings, series), rings_at(runs, closings, rings)
        else:
            series = rings_at(runs, closings, series, plan.at, plan.series[:, None])
            rings = rings_at(runs, closings, rings, plan.at, plan.after)
        ended, number = series[:, 0]
        goes_on = (ended > 0) & (runs.closed[closings] + 1 - ended < _PAUSE_BUCKETS)
        count = np.where(goes_on, number, 0.0)
        told = (np.arange(_KEPT)[:, None] < count) & (count >= KNOWN_DROPS)
        extremes = [
            ufunc.reduce(np.where(told, each, np.nan), axis=0) for ufunc, each in zip(self._ufuncs, rings, strict=True)
        ]
        return count, np.array(extremes).reshape(-1, closings.shape[0])

    def commit(self, journal: Journal, plan: RecentPlan) -> None:
        """Write the plan of a batch into the state."""
        journal.put(self._state[self._extreme], (slice(None), plan.slots), plan.extreme)
        if plan.ring_slots is not None:
            journal.put(self._state[self._series], (slice(None), plan.ring_slots), plan.newest)
            journal.put(self._state[self._ring], (slice(None), slice(None), plan.ring_slots), plan.rings)
