"""What a well is used to: 5-minute means over an hour, running medians over 24 h, and features made of them.

Event time is cut into 5-minute buckets aligned to the epoch. A reading only adds to its bucket; features change only
when a later reading closes it, so they are the same however the data is cut into batches, and their memory does not
depend on the sample rate. Sums are added strictly in the order of the readings: floating point is not associative.

Only readings while running count. A median is over the last 48 half-hours of settled running (24 h of it, however long
the stops between), so that a baseline outlives a shutdown; it is known after 12 of them (6 h).

A batch is computed whole, over wells and time (:meth:`Baselines.plan`), before any state is written
(:meth:`Baselines.commit`): whether a well runs depends on its median, so the plan may have to be made twice.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from esp_ingest.diagnostics.engine.baseline_plan import Lines, Plan, Pushes, folded_many, folded_one
from esp_ingest.diagnostics.engine.buckets import (
    BUCKET_US,
    Key,
    Runs,
    Slots,
    added,
    appended,
    as_index,
    median,
    median_of_own,
    until,
)
from esp_ingest.diagnostics.engine.features import Features, OnDemand
from esp_ingest.diagnostics.engine.held_baseline import HeldBaseline
from esp_ingest.diagnostics.engine.own_days import KEPT_BY_DAY, OwnDays, is_own, sources_of
from esp_ingest.diagnostics.engine.slow_trends import SPEED, SlowTrends, slow_keys
from esp_ingest.diagnostics.engine.speed_steps import CURRENT, FREQUENCY, LEARNED, HalfHours, SpeedSteps
from esp_ingest.diagnostics.engine.well_state import NEVER, Array, Journal, WellArrays
from esp_ingest.diagnostics.engine.windows import INTERVAL, HourWindows
from esp_ingest.diagnostics.language.functions import Need, needs_of
from esp_ingest.model import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]

SETTLE_US = 3_600_000_000
_HALF = 6  # buckets in a half-hour
_HALF_SECONDS = 1_800.0
_LONG = 48  # half-hours in a day of running
_KNOWN = 12  # half-hours after which a median counts: 6 h of running (DIAGNOSTICS.md)
_DAYS = 7
HOURS: Key = ("hours",)  # of settled running in the running medians, up to 24
HELD: Key = ("held",)  # s of settled running for which they were held, because an alarm stands


class Baselines:
    """Buckets and features of all wells, kept in ``state``. ``columns`` are the keys that the rules read."""

    def __init__(self, state: WellArrays, columns: Iterable[Key], held: HeldBaseline) -> None:
        columns = set(columns) | {("median", CURRENT), ("median", FREQUENCY)}
        columns |= {source for key in columns for source in sources_of(key)}
        own = sorted((key for key in columns if is_own(key)), key=str)
        slow = slow_keys(columns)
        columns |= {("median", SPEED)} if slow else set()
        windowed = [key for key in columns if Need.MEANS in needs_of(key) and not is_own(key)]
        self._habits = _names(columns, Need.HABIT)
        self._medians = _names(columns, Need.MEDIAN)
        self.signals: list[str] = sorted({*self._medians, *(str(key[1]) for key in [*windowed, *own])})
        self._squares = _names(columns, Need.SQUARES)
        # The signals of which windows of 5-minute means are read.
        ringed = sorted({str(key[1]) for key in [*windowed, *own] if key[0] not in ("cv", *KEPT_BY_DAY)})
        windowed = sorted(windowed, key=str)
        daily = {source for key in own for source in sources_of(key)}
        # Features that are made when they are read: windows, and medians that nothing else here is made of.
        self._rare_windows = [key for key in windowed if key not in daily]
        needed = {CURRENT, *self._habits, *(str(key[1]) for key in [*own, *daily])}
        rare = [("median", name) for name in self._medians if name not in needed]
        features: list[Key] = [
            INTERVAL,
            HOURS,
            HELD,
            *LEARNED,
            *[("median", name) for name in self._medians if name in needed],
            *[("habit", name) for name in self._habits],
            *[key for key in windowed if key in daily],
            *own,
            *slow,
        ]
        on_demand: list[Key] = [*self._rare_windows, *rare]
        self.row = {key: at for at, key in enumerate([*features, *on_demand])}
        self._place = {name: at for at, name in enumerate(self.signals)}
        self._square_place = [self._place[name] for name in self._squares]
        self._median_place = [self._place[name] for name in self._medians]
        self._median_rows = [self.row["median", name] for name in self._medians]
        self._needed = [at for at, name in enumerate(self._medians) if name in needed]
        self._habit_rows = [self.row["habit", name] for name in self._habits]
        self._habit_of = [self._medians.index(name) for name in self._habits]
        # Places of the medians that were read, of those that are made on demand: in this batch, and in the one before.
        self._asked: set[int] = set()
        self._asked_before: set[int] = set()
        self._state, self._held = state, held
        self._steps = SpeedSteps(state, self._medians)
        self._allocate(state, features)
        self._on_demand = OnDemand(state, on_demand, len(features))
        self._own = OwnDays(state, own, self.row)
        kept = [key for key in windowed if key in daily]
        self._windows = HourWindows(state, kept, ringed, self._squares, self._own.lows(), self.signals, self.row)
        self._slow = SlowTrends(state, slow, self._medians, self.row)

    def _allocate(self, state: WellArrays, features: Sequence[Key]) -> None:
        state.add("bucket", np.int64, NEVER)
        state.add("pace", np.int64, 0, shape=(2,))  # readings, and the time since the one before each
        state.add("sum", np.float64, 0.0, self.signals)
        state.add("n", np.int32, 0, self.signals)
        state.add("square", np.float64, 0.0, self._squares)
        state.add("half_sum", np.float64, 0.0, self._medians)
        state.add("half_n", np.int8, 0, self._medians)  # up to 6
        state.add("long", np.float32, np.nan, self._medians, (_LONG,))
        state.add("long_count", np.int64, 0)
        state.add("days", np.float64, np.nan, self._habits, (_DAYS,))
        state.add("features", np.float64, np.nan, features)

    # -- what a batch makes of it

    def plan(
        self,
        runs: Runs,
        run: Slots,
        t: IntArray,
        values: FloatArray,
        dt_us: IntArray,
        running: Array,
        start_us: IntArray,
    ) -> Plan:
        """By reading (n,): ``run`` and ``t``, its event time in µs; ``values`` (signals, n) with NaN for what does not
        count; ``dt_us`` since the reading before; ``running`` and ``start_us``: the run state after it."""
        plan = self._add_up(runs, run, values, dt_us)
        if not runs.opening.size:
            return plan
        state, index = self._state, runs.index
        sums, counts, squared = state["sum"][:, index], state["n"][:, index], self._square_place
        plan.closed_sums = runs.before(plan.sums[squared], sums[squared])
        plan.closed_counts = runs.before(plan.counts[squared], counts[squared])
        plan.closed_squares = runs.before(plan.squares, state["square"][:, index])
        pace = runs.before(plan.pace, state["pace"][:, index])
        if runs.single:  # 0/0 is NaN: nothing measured
            plan.means = runs.before(plan.sums, sums) / runs.before(plan.counts, counts)
        else:
            plan.means = runs.before(plan.sums / plan.counts, sums / counts)
        plan.mean_dt = pace[1] / pace[0]
        settled = (runs.before(running[runs.ends], state["running"][index]) == 1) & (
            runs.before(start_us[runs.ends], state["start_us"][index]) <= runs.closed * BUCKET_US - SETTLE_US
        )
        self._fold(runs, plan, settled, t)
        self._windows.close(runs, plan)
        if self._own.is_used:
            means = {name: plan.means[self._place[name]] for name in self._own.dropping}
            plan.own = self._own.plan(runs, plan.features, means, settled, *self._days_of(runs, plan))
        return plan

    def _days_of(self, runs: Runs, plan: Plan) -> tuple[IntArray, BoolArray]:
        """By closing: the number of the well's day of running that it belongs to, and whether it ends it."""
        before = self._state["long_count"][runs.closing_slot]
        ended = np.zeros(before.shape[0], np.bool_)
        if plan.pushes is None:
            return before // _LONG, ended
        pushed = np.zeros(before.shape[0], np.int64)
        pushed[plan.pushes.at] = 1
        earlier = np.cumsum(pushed) - pushed
        first = np.flatnonzero(runs.new)
        earlier -= earlier[first][np.cumsum(runs.new) - 1]
        ended[plan.pushes.at] = (plan.pushes.number + 1) % _LONG == 0
        return (before + earlier) // _LONG, ended

    def _add_up(self, runs: Runs, run: Slots, values: FloatArray, dt_us: IntArray) -> Plan:
        """Add the readings to their buckets, in order, from what the state left open."""
        state = self._state
        there = ~np.isnan(values)
        weights = np.where(there, values, 0.0)
        some = weights[self._square_place]
        goes_on, continues = runs.continuing.all(), runs.continuing.any()
        parts: list[Any] = []
        each = (
            ("sum", weights),
            ("n", there),
            ("square", some * some),
            ("pace", np.stack([np.ones_like(dt_us), dt_us])),
        )
        for name, what in each:
            before = state[name][:, runs.index]
            if not continues and what.shape[1] == runs.well.shape[0]:
                parts.append(what + before.dtype.type(0))
                continue
            if goes_on and runs.single:
                start = before if what.shape == before.shape else before.copy()
            else:
                start = np.zeros((what.shape[0], runs.well.shape[0]), before.dtype)
                if continues:
                    start[:, runs.first[runs.continuing]] = before[:, runs.continuing]
            parts.append(added(start, run, what))
        sums, counts, squares, pace = parts
        return Plan(sums, counts, squares, pace, Features(state["features"], runs))

    # -- half-hours and medians

    def _fold(self, runs: Runs, plan: Plan, settled: BoolArray, t: IntArray) -> None:
        """Settled 5-minute means go into their half-hour; a half-hour that is over goes into the running median."""
        over = runs.bucket[runs.opening] // _HALF > runs.closed // _HALF
        part = plan.means[self._median_place]
        there = ~np.isnan(part) & settled
        fold = folded_one if runs.lone else folded_many
        ends, is_over, sums, counts, last = fold(self._state, runs, over, part, there)
        plan.half_sum, plan.half_n = sums[:, last], counts[:, last]
        if not is_over.any():
            return
        plan.half_sum = np.where(is_over[last], 0.0, plan.half_sum)
        plan.half_n = np.where(is_over[last], 0, plan.half_n)
        pushed = np.flatnonzero(is_over & (counts > 0).any(axis=0))
        if pushed.size:
            at = ends[pushed]
            # As the ring keeps them, so that a mean is the same from the batch and from the ring.
            means = (sums[:, pushed] / counts[:, pushed]).astype(np.float32).astype(np.float64)
            end_us = (runs.closed[at] // _HALF + 1) * (_HALF * BUCKET_US)
            time_us = t[runs.begins[runs.opening[at]]]
            plan.half_hours = runs.closing_slot[at], end_us, time_us
            plan.halves = HalfHours(means, *_places(runs, at))
            learned, partly = self._hold(runs, plan, at)
            if learned.any():
                self._push(runs, plan, at, time_us, np.flatnonzero(learned), partly)
            if self._slow.is_used and plan.cut_us is None:
                plan.slow = self._slow.plan(runs, at, means, plan.features)

    def _hold(self, runs: Runs, plan: Plan, at: Slots) -> tuple[BoolArray, BoolArray]:
        """Which of the half-hours that end at the closings ``at`` are learned, and which of them in part only."""
        if plan.half_hours is None or self._held.is_quiet(plan.half_hours[0]):
            nothing = np.zeros(at.shape[0], np.bool_)
            return ~nothing, nothing
        slots, end_us, _ = plan.half_hours
        new = np.ones(at.shape[0], np.bool_)
        new[1:] = slots[1:] != slots[:-1]
        learned, held, partly = self._held.learned(slots, end_us, new)
        last = until(new, True)
        plan.held = slots[last], held[last]
        plan.features.change([self.row[HELD]], runs.opening[at], np.float64(_HALF_SECONDS) * held[None])
        return learned, partly

    def _push(self, runs: Runs, plan: Plan, at: Slots, time_us: IntArray, half: Slots, partly: BoolArray) -> None:
        """Half-hours go into the running medians: those at the places ``half`` of those that end at the closings
        ``at``, which the readings at ``time_us`` tell; of those that are ``partly`` learned, not what is moved."""
        assert plan.halves is not None
        at, time_us, partly, means = at[half], time_us[half], partly[half], plan.halves.means[:, half]
        well, run = runs.closing_well[at], runs.opening[at]
        slots, which, ordinal = plan.halves.slots, plan.halves.which, plan.halves.ordinal
        if half.shape[0] < which.shape[0]:
            slots, which, ordinal = _places(runs, at)
        number = self._state["long_count"][runs.slots[well]] + ordinal
        for nth in np.flatnonzero(partly).tolist():
            means[self._steps.is_moved, nth] = self._kept(means, nth, int(number[nth]), int(ordinal[nth]), slots[which])
        plan.pushes = Pushes(at, well, run, number, means, time_us, half, partly)
        self._look_for_steps(plan, plan.pushes, slots, which, ordinal)
        if plan.cut_us is not None:
            return
        if not runs.single:
            count = self._state["long_count"][slots]
            plan.pushes.lines = Lines(self._state["long"], slots, count, which, ordinal, means)
        medians = self._long_medians(plan.pushes, slots)
        self._moved(plan.pushes, runs.slots[well], medians)
        hours = np.minimum(number + 1, _LONG) / 2
        habits = self._end_days(runs, plan.pushes, medians)
        rows = [*(self._median_rows[place] for place in self._needed), self.row[HOURS]]
        plan.features.change(rows, run, np.concatenate([medians[self._needed], hours[None]]))
        if habits is not None:
            plan.features.change(self._habit_rows, run[habits[0]], habits[1])
        if plan.pushes.steps:
            steps = plan.pushes.steps
            exponents = np.stack([step.learned for step in steps], axis=1)
            plan.features.change([self.row[key] for key in LEARNED], run[[step.at for step in steps]], exponents)

    def _look_for_steps(self, plan: Plan, pushes: Pushes, slots: Slots, which: Slots, ordinal: Slots) -> None:
        """Put the changes of speed that the pushes tell into the plan, or where the batch has to be cut: such a push
        stands alone of its well, since the half-hours before it are others after it."""
        assert plan.halves is not None
        halves = plan.halves
        recent = self._steps.recent(halves, self._steps.frequency)[:, pushes.half]
        for at in np.flatnonzero(self._steps.seen(recent, pushes.number, slots[which])).tolist():
            alone = [other for other in (at, at + 1) if other < which.shape[0] and ordinal[other] > 0]
            if alone:
                cut_us = int(pushes.time_us[alone[0]])
                plan.cut_us = cut_us if plan.cut_us is None else min(plan.cut_us, cut_us)
                continue
            slot = int(slots[which[at]])
            places = range(pushes.means.shape[0])
            means = np.array([self._steps.recent(halves, each)[:, pushes.half[at]] for each in places])
            pushes.steps.append(self._steps.step(at, slot, means))

    def _moved(self, pushes: Pushes, slots: Slots, medians: FloatArray) -> None:
        """The half-hours before a change of speed are what they would have been at the new speed."""
        for step in pushes.steps:
            slot, number = int(slots[step.at]), int(pushes.number[step.at])
            step.ring = self._state["long"][:, :, slot].astype(np.float64)
            kept = [number % _LONG, (number - 1) % _LONG]
            step.ring[:, kept[0]] = pushes.means[:, step.at]
            after = step.ring[:, kept]
            step.ring *= step.factors[:, None]
            learned = ~(self._steps.is_moved & pushes.partly[step.at])  # what is not learned is moved whole
            step.ring[np.ix_(learned, kept)] = after[learned]
            step.ring = step.ring.astype(np.float32).astype(np.float64)
            medians[:, step.at] = median(step.ring, _KNOWN)

    def _kept(self, means: FloatArray, nth: int, number: int, ordinal: int, slots: Slots) -> FloatArray:
        """What stands at the place of the push ``nth`` in the running medians that a change of speed moves."""
        moved = self._steps.is_moved
        if ordinal >= _LONG:
            return np.asarray(means[moved, nth - _LONG], np.float64)
        return np.asarray(self._state["long"][moved, number % _LONG, slots[nth]], np.float64)

    def _long_medians(self, pushes: Pushes, slots: Slots) -> FloatArray:
        """Running medians (medians, pushes) after each push, of those that are needed. ``slots``: of the wells."""
        out = np.full_like(pushes.means, np.nan)
        if pushes.lines is not None:
            out[self._needed] = pushes.lines.medians(self._needed, _KNOWN)[1]
            return out
        # One push a well.
        well, at, index = np.arange(slots.shape[0]), pushes.number % _LONG, as_index(slots)
        for place in self._needed:
            window = np.ascontiguousarray(self._state["long"][place][:, index].T)
            window[well, at] = pushes.means[place]
            out[place] = median_of_own(window, _KNOWN)
        return out

    def _end_days(self, runs: Runs, pushes: Pushes, medians: FloatArray) -> tuple[Slots, FloatArray] | None:
        """If the well's speed changed or a day of running ended: the places of such pushes, and the habits (habits,
        places) after each of them."""
        ends = np.flatnonzero((pushes.number + 1) % _LONG == 0)
        if not self._habits or not (ends.size or pushes.steps):
            return None
        state = self._state
        # Not np.unique(), which would load numpy.ma in the middle of a batch.
        is_changed = np.zeros(runs.slots.shape[0], np.bool_)
        is_changed[pushes.well[[*ends, *(step.at for step in pushes.steps)]]] = True
        wells = np.flatnonzero(is_changed)
        pushes.day_slots = slots = runs.slots[wells]
        pushes.days = days = state["days"][:, :, slots]
        places, habits = [], []
        for step in pushes.steps:
            factors, which = step.factors[self._habit_of], np.searchsorted(wells, pushes.well[step.at])
            days[:, :, which] *= factors[:, None]
            places.append(np.array([step.at]))
            habits.append((state["features"][self._habit_rows, slots[which]] * factors)[:, None])
        if ends.size:
            well, day = pushes.well[ends], pushes.number[ends] // _LONG
            new = np.append(True, well[1:] != well[:-1])
            some, ago = np.searchsorted(wells, well[new]), np.arange(_DAYS)[:, None]
            rings = days[:, (day[new] - 1 - ago) % _DAYS, some]
            after, newest = appended(rings, new, medians[self._habit_of][:, ends])
            days[:, (day[until(new, True)] - ago) % _DAYS, some] = newest
            places.append(ends)
            habits.append(median(after.transpose(0, 2, 1), 1))
        return np.concatenate(places), np.concatenate(habits, axis=1)

    # -- the batch is computed: write the state

    def commit(self, journal: Journal, runs: Runs, plan: Plan) -> None:
        """Write the plan of a batch into the state, with what it overwrites in the journal."""
        state, last = self._state, runs.last
        index = (slice(None), runs.index)
        for name, values in (("sum", plan.sums), ("n", plan.counts), ("square", plan.squares), ("pace", plan.pace)):
            journal.put(state[name], index, values if runs.single else values[:, last])
        if not runs.continuing.all() or not runs.single:
            journal.put(state["bucket"], runs.index, runs.bucket[last])
        plan.features.commit(journal)
        self._asked, self._asked_before = set(), self._asked
        plan.features.read = partial(self._read, journal, runs, plan)
        if not runs.opening.size:
            return
        wells = (slice(None), runs.closers)
        journal.put(state["half_sum"], wells, plan.half_sum)
        journal.put(state["half_n"], wells, plan.half_n)
        if plan.held is not None:
            journal.put(state["held"], *plan.held)
        if plan.halves is not None:
            self._steps.commit(journal, plan.halves)
        self._windows.commit(journal, runs, plan)
        windows = len(self._rare_windows)
        self._on_demand.forget(journal, slice(windows), runs.closers)
        if plan.pushes is not None:
            self._commit_pushes(journal, runs, plan.pushes)
            self._on_demand.forget(journal, slice(windows, None), runs.closers)
        if plan.own is not None:
            self._own.commit(journal, runs, plan.own)
        if plan.slow is not None:
            self._slow.commit(journal, plan.slow)

    def _read(self, journal: Journal, runs: Runs, plan: Plan, row: int) -> FloatArray:
        """A feature by run that is made on demand, once the batch is written."""
        key = self._on_demand.key_of(row)
        if key[0] == "median":
            if plan.pushes is not None and plan.pushes.lines is not None:
                return self._median_by_run(journal, runs, plan.features, plan.pushes, plan.pushes.lines, row)
            make = partial(self._median_of, key, runs.index)
        elif runs.single:
            make = partial(self._windows.read, runs, plan, key)
        else:
            return self._windows.read(runs, plan, key)
        values = self._on_demand.by_well(row, runs.index, make, journal)
        return values if runs.single else np.asarray(values[runs.well])

    def _median_by_run(
        self, journal: Journal, runs: Runs, features: Features, pushes: Pushes, lines: Lines, row: int
    ) -> FloatArray:
        """A median by run that is made on demand, if half-hours of the batch change it between two runs of a well."""
        key = self._on_demand.key_of(row)
        place = self._medians.index(str(key[1]))
        self._asked.add(place)
        if place not in pushes.medians:  # and, in one go, what was asked for in the batch before
            places = sorted(self._asked | self._asked_before)
            pushes.medians = dict(zip(places, zip(*lines.medians(places, _KNOWN), strict=True), strict=True))
        before_pushes, after = pushes.medians[place]
        for step in pushes.steps:
            after[step.at] = median(step.ring[place], _KNOWN)
        before = np.empty(runs.slots.shape[0])
        is_pushed = np.zeros(before.shape[0], np.bool_)
        is_pushed[pushes.well] = True
        before[is_pushed] = before_pushes
        if not is_pushed.all():
            slots = runs.slots[~is_pushed]
            before[~is_pushed] = self._on_demand.by_well(row, slots, partial(self._median_of, key, slots), journal)
        return features.along(self.row[HOURS], after, before)

    def _median_of(self, key: Key, index: Any) -> FloatArray:
        place = self._medians.index(str(key[1]))
        return median(self._state["long"][place][:, index].T, _KNOWN)

    def _commit_pushes(self, journal: Journal, runs: Runs, pushes: Pushes) -> None:
        state = self._state
        final = np.append(pushes.well[1:] != pushes.well[:-1], True)
        wells = pushes.well[final]
        after = pushes.number[final] + 1
        total = np.zeros(runs.slots.shape[0], np.int64)
        total[wells] = after
        some = np.flatnonzero(pushes.number >= total[pushes.well] - _LONG)
        at = (pushes.number[some] % _LONG).astype(np.intp)
        slots = runs.slots[pushes.well[some]]
        index: Any = (slice(None), at, slots)
        if (at == at[0]).all():  # a fleet in step
            index = (slice(None), int(at[0]), as_index(slots))
        journal.put(state["long"], index, pushes.means[:, some])
        journal.put(state["long_count"], runs.slots[wells], after)
        for step in pushes.steps:
            slot = int(runs.slots[pushes.well[step.at]])
            journal.put(state["long"], (slice(None), slice(None), slot), step.ring)
            journal.put(state["exponents"], (slice(None), slot), step.exponents)
            journal.put(state["step_number"], slot, pushes.number[step.at])
        if pushes.day_slots is not None:
            journal.put(state["days"], (slice(None), slice(None), pushes.day_slots), pushes.days)


def _places(runs: Runs, at: Slots) -> tuple[Slots, Slots, Slots]:
    """Of half-hours that end at the closings ``at``: their wells' slots, the place in these of each, its ordinal."""
    well = runs.closing_well[at]
    new = np.ones(at.shape[0], np.bool_)
    new[1:] = well[1:] != well[:-1]
    first, which = np.flatnonzero(new), np.cumsum(new) - 1
    return runs.slots[well[first]], which, np.arange(at.shape[0]) - first[which]


def _names(columns: Iterable[Key], need: Need) -> list[str]:
    """The signals of which ``need`` has to be kept."""
    return sorted({str(key[1]) for key in columns if need in needs_of(key)})
