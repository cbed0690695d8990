"""The habits of a well from day to day: how low and for how long its load drops, and how much it varies.

A well that slugs or hunts drops its load several times a day and recovers by itself. Fixed limits would report each of
these drops, so here the well's own days are the measure. Each closed 5-minute bucket of settled running gives a few
quantities. The extreme of each day of running (48 settled half-hours, as for the habits of baseline.py) is kept for 5
days, and the number of drops for 28. The usual value is the median of the last 5 days, so that a day or two of trouble
do not become a habit. Until five days are known, those that are decide: a well that drops several times on its first
day has shown what it does. While drops follow each other on a well without the habit, their own extremes count
(recent_drops.py).

A drop is a fall of the 5-minute mean from at least 90 % of its running median to below 80 %. How low and how long drops
usually are is known only if the median day has at least 3 of them, or while drops follow each other. Otherwise the well
has no habit of dropping, and the limits apply as they are.

The result depends only on the sequence of closed buckets, not on how the readings were cut into batches: extremes
and counts can be combined in any order, and sums are made strictly in order."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from esp_ingest.diagnostics.engine.buckets import (
    BUCKET_US,
    Key,
    Runs,
    Slots,
    Window,
    appended,
    median,
    present,
    rings_at,
    until,
)
from esp_ingest.diagnostics.engine.features import Features
from esp_ingest.diagnostics.engine.recent_drops import RecentDrops, RecentPlan
from esp_ingest.diagnostics.engine.well_state import NEVER, Array, Journal, WellArrays
from esp_ingest.diagnostics.language.evaluation import BoolArray
from esp_ingest.model import FloatArray, IntArray

_HEALTHY, _LOW = 0.9, 0.8  # of the running median
# 15 minutes: a habitual drop of 20 minutes has three whole buckets. A longer mean takes in the load before or after it,
# and the next drop of the same depth would look deeper than usual.
MEAN_BUCKETS = 3
_USUAL_DAYS = 5
_WEEK, _WEEKS = 7, 4
_HABITUAL_DROPS = 3.0  # on the median day
# What is usual: its function → the function whose daily extreme it is made of, and which extreme.
_USUAL: dict[str, tuple[str, Any]] = {
    "usual_low": ("low", np.fmin),
    "usual_low_time": ("low_time", np.fmax),
    "usual_cv": ("cv", np.fmax),
    "usual_fall": ("trend", np.fmin),
}
KEPT_BY_DAY = (
    *_USUAL,
    "low_time",
    "drops",
    "drops_trend",
    "drops_rise",
    "recent_drops",
)  # read no window of 5-minute means
EACH_CLOSING = ("low", "low_time")  # what each closed bucket makes; the others change with a day that ends
_OF_DROPS = ("drops", "drops_trend", "drops_rise", "recent_drops", "usual_low", "usual_low_time", "low_time")
# A series tells less than days do, and a drop that lasts may end in a stop: of its longest drop this share is usual.
_LONGEST_SHARE = 0.8
_LOAD = "current_load"  # whose drops vary the other signals too


@dataclass(slots=True)
class OwnPlan:
    """The changes that a batch makes, for the wells of the batch in which a bucket closed: ``healthy_us``,
    ``excursion`` and ``drops`` are (signals, wells), ``extreme`` is (quantities, wells). If a day ended: the wells
    ``day_slots`` of such days, with their ``days`` (quantities, 5, wells) and ``drop_days`` (signals, 28, wells)."""

    healthy_us: IntArray
    excursion: Array
    drops: FloatArray
    extreme: FloatArray
    recent: dict[str, RecentPlan | None]  # by signal
    day_slots: Slots | None = None
    days: FloatArray | None = None
    drop_days: FloatArray | None = None


class _Ended(NamedTuple):
    """The closings ``at`` which days end, with the rings ``days`` and ``drop_days`` after each of them."""

    at: Slots
    days: FloatArray
    drop_days: FloatArray


class OwnDays:
    """The days of all wells, kept in ``state``. ``keys`` are the features that are computed here, see
    :func:`sources_of`. ``dropping``: the signals whose drops are counted."""

    def __init__(self, state: WellArrays, keys: Iterable[Key], row: dict[Key, int]) -> None:
        keys = sorted(keys, key=str)
        self._state, self._row = state, row
        self._usual = [key for key in keys if key[0] in _USUAL]
        self._extremes = [_USUAL[str(key[0])][1] for key in self._usual]
        self._sources = [row[_source(key)] for key in self._usual]
        self.dropping = sorted({str(key[1]) for key in keys if key[0] in _OF_DROPS})
        self._lows = sorted({str(key[1]) for key in keys if key[0] == "low"})
        self.is_used = bool(keys)
        names = ["|".join(map(str, key)) for key in self._usual]
        state.add("healthy_us", np.int64, NEVER, self.dropping)
        state.add("excursion", np.int8, 1, self.dropping)
        state.add("day_drops", np.float64, 0.0, self.dropping)
        state.add("day_extreme", np.float64, np.nan, names)
        state.add("own_days", np.float32, np.nan, names, (_USUAL_DAYS,), newest_first=True)
        state.add("own_drops", np.float32, np.nan, self.dropping, (_WEEKS * _WEEK,), newest_first=True)
        # By signal, the places of the usual quantities that its newest drops tell.
        self._places = {
            name: [at for at, key in enumerate(self._usual) if _is_told(key, name)] for name in self.dropping
        }
        self._recent = {name: self._recent_of(name, names, places) for name, places in self._places.items()}

    def _recent_of(self, signal: str, names: list[str], places: list[int]) -> RecentDrops:
        kept = [names[at] for at in places]
        ufuncs, sources = [self._extremes[at] for at in places], [self._sources[at] for at in places]
        return RecentDrops(self._state, signal, kept, ufuncs, sources)

    def lows(self) -> list[str]:
        """The signals whose 15-minute mean is read by a rule."""
        return self._lows

    def plan(
        self,
        runs: Runs,
        features: Features,
        means: dict[str, FloatArray],
        settled: BoolArray,
        day: IntArray,
        ended: BoolArray,
    ) -> OwnPlan:
        """What the closed buckets of a batch change. ``features`` are filled in. ``means`` are the
        5-minute means by signal of ``dropping``, (closings,). For each closing, ``settled`` says whether the well ran
        steadily, ``day`` which of the well's days of running it belongs to, and ``ended`` whether it is the last one of
        that day."""
        state, slots = self._state, runs.closing_slot
        first = np.flatnonzero(runs.new)
        last = until(first, runs.new.shape[0]) - 1
        which = np.cumsum(runs.new) - 1
        groups = runs.new.copy()
        groups[1:] |= day[1:] != day[:-1]
        starts = np.flatnonzero(groups)
        healthy, excursion, drops = [], [], []
        recent: dict[str, RecentPlan | None] = {}
        for at, name in enumerate(self.dropping):
            share = means[name] / features.at_closings(self._row["median", name])
            code = np.where(~settled | ~(share < _HEALTHY), 1, np.where(share < _LOW, -1, 0)).astype(np.int8)
            end_us = (runs.closed + 1) * BUCKET_US
            since = _carried(code == 1, end_us, state["healthy_us"][at][slots[first]], first, which)
            if ("low_time", name) in self._row:
                seconds = np.where(since == NEVER, 0.0, (end_us - since) / 1e6)
                features.close(self._row["low_time", name], np.where(settled, seconds, np.nan))
            before = state["excursion"][at][slots[first]]
            now = _carried(code != 0, code, before, first, which)
            previous = np.empty_like(now)
            previous[1:] = now[:-1]
            previous[first] = before
            onset = ((now == -1) & (previous == 1)).astype(np.float64)
            healthy.append(since[last])
            excursion.append(now[last])
            recovers = settled & (share >= _HEALTHY)
            recent[name] = self._recent[name].plan(runs, features, settled, recovers, previous, now)
            drops.append(onset if runs.lone else np.add.reduceat(onset, starts))  # whole numbers: exact in any order
        plan = OwnPlan(np.array(healthy, np.int64), np.array(excursion, np.int8), np.array(drops), np.empty(0), recent)
        ends = self._days(runs, features, settled, groups, starts, last, ended, plan)
        self._tell(runs, features, plan, ends)
        return plan

    def _days(
        self,
        runs: Runs,
        features: Features,
        settled: BoolArray,
        groups: BoolArray,
        starts: Slots,
        last: Slots,
        ended: BoolArray,
        plan: OwnPlan,
    ) -> "_Ended | None":
        """Find the extremes of each day that the batch touches. Days that ended become part of what is usual."""
        state = self._state
        extreme = np.empty((len(self._usual), starts.shape[0]))
        drops = plan.drops.reshape(len(self.dropping), starts.shape[0])
        if runs.lone:
            for at, (ufunc, source) in enumerate(zip(self._extremes, self._sources, strict=True)):
                values = np.where(settled, features.at_closings(source), np.nan)
                ufunc(values, state["day_extreme"][at, runs.closers], out=extreme[at])
            drops += state["day_drops"][:, runs.closers]
        else:
            opens = runs.new[starts]  # the day was open before the batch
            slots = runs.closing_slot[starts[opens]]
            for at, (ufunc, source) in enumerate(zip(self._extremes, self._sources, strict=True)):
                values = np.where(settled, features.at_closings(source), np.nan)
                extreme[at] = ufunc.reduceat(values, starts)
                extreme[at, opens] = ufunc(extreme[at, opens], state["day_extreme"][at][slots])
            drops[:, opens] += state["day_drops"][:, slots]
        ends = until(starts, groups.shape[0]) - 1
        over = ended[ends]
        newest: Any = slice(None) if runs.lone else (np.cumsum(groups) - 1)[last]  # the last group of each well
        plan.extreme, plan.drops = extreme[:, newest], drops[:, newest]
        if not over.any():
            return None
        plan.extreme = np.where(over[newest], np.nan, plan.extreme)
        plan.drops = np.where(over[newest], 0.0, plan.drops)
        return self._end(runs, plan, ends[over], extreme[:, over], drops[:, over])

    def _end(self, runs: Runs, plan: OwnPlan, at: Slots, extreme: FloatArray, drops: FloatArray) -> "_Ended":
        """Append the days that end at the closings ``at`` to the rings of days, newest first."""
        state = self._state
        well = runs.closing_well[at]
        new = np.ones(well.shape[0], np.bool_)
        np.not_equal(well[1:], well[:-1], out=new[1:])
        slots = plan.day_slots = runs.slots[well[new]]
        extreme = extreme.astype(np.float32).astype(np.float64)  # as the ring keeps them
        days, plan.days = appended(state["own_days"][:, :, slots], new, extreme)
        drop_days, plan.drop_days = appended(state["own_drops"][:, :, slots], new, drops)
        return _Ended(at, days, drop_days)

    def _tell(self, runs: Runs, features: Features, plan: OwnPlan, ended: "_Ended | None") -> None:
        """What is usual changes where a day ends, and at each closing of a well of which recent drops count: there are
        few such wells, and drops cease to count as time goes by."""
        told = np.zeros(runs.closing_well.shape[0], np.bool_)
        for name, recent in plan.recent.items():
            counts = features.at_closings(self._row["recent_drops", name]) > 0
            if recent is not None and recent.at.size:
                has_dropped = np.zeros(runs.slots.shape[0], np.bool_)
                has_dropped[runs.closing_well[recent.at]] = True
                told |= has_dropped[runs.closing_well]
            told |= counts
        if ended is not None:
            told[ended.at] = True
        at = np.flatnonzero(told)
        if not at.size:
            return
        made = self._made_of_days(runs, at, ended)
        for name, recent in plan.recent.items():
            count, extremes = self._recent[name].at(runs, recent, at)
            made[self._row["recent_drops", name]] = count
            for place, extreme in zip(self._places[name], extremes, strict=True):
                row, key = self._row[self._usual[place]], self._usual[place]
                if key[0] in _OF_DROPS:
                    extreme = _LONGEST_SHARE * extreme if key[0] == "usual_low_time" else extreme
                    made[row] = np.where(np.isnan(made[row]), extreme, made[row])
                else:
                    made[row] = self._extremes[place](made[row], extreme)
        features.change(made, runs.opening[at], np.array(list(made.values())))

    def _made_of_days(self, runs: Runs, at: Slots, ended: "_Ended | None") -> dict[int, FloatArray]:
        """The features by row, each at the closings ``at``, as the days tell them. Between two days that end they stay
        the same, so they are made of the first closing of each such stretch."""
        ends = np.empty(0, np.intp) if ended is None else ended.at
        well, days_before = runs.closing_well[at], ends.searchsorted(at, side="right")
        begins = np.ones(at.shape[0], np.bool_)
        begins[1:] = (well[1:] != well[:-1]) | (days_before[1:] != days_before[:-1])
        first = np.flatnonzero(begins)
        rings = [self._state[name] for name in ("own_days", "own_drops")]
        changes = (None, None) if ended is None else (ended.days, ended.drop_days)
        days, drop_days = (
            rings_at(runs, at[first], ring, None if ended is None else ends, after)
            for ring, after in zip(rings, changes, strict=True)
        )
        lengths = until(first, at.shape[0]) - first
        return {row: values.repeat(lengths) for row, values in self._made(days, drop_days).items()}

    def _made(self, days: FloatArray, drop_days: FloatArray) -> dict[int, FloatArray]:
        """The features by row, each (places,), computed from the days at these places, newest day first."""
        made: dict[int, FloatArray] = {}
        habitual = {}
        for at, name in enumerate(self.dropping):
            recent = _median_of(drop_days[at, :_USUAL_DAYS])
            habitual[name] = recent >= _HABITUAL_DROPS
            made[self._row.get(("drops", name), -1)] = recent
            weeks = _median_of(drop_days[at].reshape(_WEEKS, _WEEK, -1), _WEEK)
            for function, before in (("drops_trend", weeks[1]), ("drops_rise", weeks[-1])):
                rise = np.where(before >= _HABITUAL_DROPS, weeks[0] / before, np.nan)
                made[self._row.get((function, name), -1)] = rise
        for key, usual in zip(self._usual, _median_of(days), strict=True):
            if key[0] in _OF_DROPS:
                made[self._row[key]] = np.where(habitual[str(key[1])], usual, np.nan)
            else:
                made[self._row[key]] = usual
        made.pop(-1, None)
        return made

    def commit(self, journal: Journal, runs: Runs, plan: OwnPlan) -> None:
        """Write the plan of a batch into the state."""
        state = self._state
        slots = runs.closers
        if self.dropping:
            journal.put(state["healthy_us"], (slice(None), slots), plan.healthy_us)
            journal.put(state["excursion"], (slice(None), slots), plan.excursion)
            journal.put(state["day_drops"], (slice(None), slots), plan.drops)
        for name, recent in plan.recent.items():
            if recent is not None:
                self._recent[name].commit(journal, recent)
        if self._usual:
            journal.put(state["day_extreme"], (slice(None), slots), plan.extreme)
        if plan.day_slots is not None:
            journal.put(state["own_days"], (slice(None), slice(None), plan.day_slots), plan.days)
            journal.put(state["own_drops"], (slice(None), slice(None), plan.day_slots), plan.drop_days)


def is_own(key: Key) -> bool:
    """Whether the column ``key`` is one of the features that are computed here."""
    return key[0] == "low" or key[0] in KEPT_BY_DAY


def sources_of(key: Key) -> list[Key]:
    """The other columns that the column ``key`` is computed from."""
    if not is_own(key):
        return []
    found: list[Key] = [_source(key)] if key[0] in _USUAL else []
    if key[0] in _OF_DROPS:
        found.append(("recent_drops", key[1]))
    return found if key[0] in ("usual_cv", "usual_fall") else [*found, ("median", key[1])]


def low_mean(window: Window) -> FloatArray:
    """The mean of the newest 15 minutes of a ``window`` of 5-minute means. NaN if none of them is there."""
    total, count = present(window[:MEAN_BUCKETS])
    return total / count  # 0/0 is NaN


def _is_told(key: Key, signal: str) -> bool:
    """Whether the drops of ``signal`` tell what is usual of the quantity ``key``: its own, and those that vary as the
    load drops."""
    return key[1] == signal if key[0] in _OF_DROPS else signal == _LOAD


def _source(key: Key) -> Key:
    return (_USUAL[str(key[0])][0], *key[1:])


def _carried(flag: BoolArray, values: Array, before: Array, first: Slots, which: Slots) -> Array:
    """For each closing, the value at the newest flagged closing of the same well so far; if there is none yet, the
    value in ``before`` (wells,)."""
    out = values.copy()
    others = np.flatnonzero(~flag)
    if others.size:
        flagged = np.flatnonzero(flag)
        well = which[others]
        if flagged.size:
            newest = flagged[np.maximum(flagged.searchsorted(others) - 1, 0)]
            out[others] = np.where((newest < others) & (newest >= first[well]), values[newest], before[well])
        else:
            out[others] = before[well]
    return out


def _median_of(days: FloatArray, least: int = 1) -> FloatArray:
    """The median over the days of ``days`` (…, days, wells); NaN if there are fewer than ``least`` days."""
    return median(days.swapaxes(-1, -2), least)
