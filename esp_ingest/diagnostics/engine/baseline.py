"""What a well is used to: 5-minute means over an hour, running medians over 24 h, and features made of them.

Event time is cut into 5-minute buckets aligned to the epoch. A reading only adds to its bucket; features change only
when a later reading closes it, so they are the same however the data is cut into batches, and their memory does not
depend on the sample rate. Sums are added strictly in the order of the readings: floating point is not associative.

Only readings while running count. A median is over the last 48 half-hours of settled running (24 h of it, however long
the stops between), so that a baseline outlives a shutdown; it is known after 12 of them (6 h).

A batch is computed whole, over wells and time (:meth:`Baselines.plan`), before any state is written
(:meth:`Baselines.commit`): whether a well runs depends on its median, so the plan may have to be made twice.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from esp_ingest.diagnostics.engine.baseline_plan import Plan, Pushes, folded_many, folded_one
from esp_ingest.diagnostics.engine.buckets import (
    BACK,
    BUCKET_US,
    RING,
    Key,
    Past,
    Runs,
    Slots,
    added,
    as_index,
    in_turns,
    median,
    variation,
    windowed,
)
from esp_ingest.diagnostics.engine.held_baseline import HeldBaseline
from esp_ingest.diagnostics.engine.own_days import EACH_CLOSING, KEPT_BY_DAY, OwnDays, is_own, low_mean, sources_of
from esp_ingest.diagnostics.engine.slow_trends import SPEED, SlowTrends, slow_keys
from esp_ingest.diagnostics.engine.speed_steps import CURRENT, FREQUENCY, LEARNED, HalfHours, SpeedSteps
from esp_ingest.diagnostics.engine.well_state import NEVER, Array, Journal, WellArrays
from esp_ingest.diagnostics.language.functions import Need, needs_of
from esp_ingest.model import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]

SETTLE_US = 3_600_000_000
_HALF = 6  # buckets in a half-hour
_HALF_SECONDS = 1_800.0
_LONG = 48  # half-hours in a day of running
_KNOWN = 12  # half-hours after which a median counts: 6 h of running (DIAGNOSTICS.md)
_DAYS = 7
INTERVAL: Key = ("interval",)  # usual time between readings, µs: median of the 5-minute means of the last hour
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
        self._ringed = sorted({str(key[1]) for key in [*windowed, *own] if key[0] not in ("cv", *KEPT_BY_DAY)})
        self._windowed = sorted(windowed, key=str)
        self.features: list[Key] = [
            INTERVAL,
            HOURS,
            HELD,
            *LEARNED,
            *[("median", name) for name in self._medians],
            *[("habit", name) for name in self._habits],
            *self._windowed,
            *own,
            *slow,
        ]
        self.row = {key: at for at, key in enumerate(self.features)}
        self._place = {name: at for at, name in enumerate(self.signals)}
        self._ring_place = [self._place[name] for name in self._ringed]
        self._square_place = [self._place[name] for name in self._squares]
        self._median_place = [self._place[name] for name in self._medians]
        self._median_rows = np.array([self.row[("median", name)] for name in self._medians])
        self._habit_rows = np.array([self.row[("habit", name)] for name in self._habits], np.intp)
        closing = [INTERVAL, *self._windowed, *(key for key in own if key[0] in EACH_CLOSING)]
        self._each_closing = np.array([self.row[key] for key in closing], np.intp)  # features that each closing makes
        self._habit_of = [self._medians.index(name) for name in self._habits]
        self._state, self._held = state, held
        self._steps = SpeedSteps(state, self._medians)
        self._allocate(state)
        self._own = OwnDays(state, own, self.row)
        self._slow = SlowTrends(state, slow, self._medians, self.row)

    def _allocate(self, state: WellArrays) -> None:
        state.add("bucket", np.int64, NEVER)
        state.add("pace", np.int64, 0, shape=(2,))  # readings, and the time since the one before each
        state.add("sum", np.float64, 0.0, self.signals)
        state.add("n", np.int32, 0, self.signals)
        state.add("square", np.float64, 0.0, self._squares)
        state.add("ring_tag", np.int64, NEVER, shape=(RING,))
        state.add("ring_dt", np.float64, np.nan, shape=(RING,))
        state.add("ring_mean", np.float32, np.nan, self._ringed, (RING,))  # no gauge has more than seven digits
        for name in ("ring_sum", "ring_square"):
            state.add(name, np.float64, 0.0, self._squares, (RING,))
        state.add("ring_n", np.float32, 0.0, self._squares, (RING,))  # whole numbers, exact up to 16 million
        state.add("half_sum", np.float64, 0.0, self._medians)
        state.add("half_n", np.int32, 0, self._medians)
        state.add("long", np.float32, np.nan, self._medians, (_LONG,))
        state.add("long_count", np.int64, 0)
        state.add("days", np.float64, np.nan, self._habits, (_DAYS,))
        state.add("features", np.float64, np.nan, self.features)

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
        plan.closed_sums = runs.before(plan.sums, state["sum"][:, index])
        plan.closed_counts = runs.before(plan.counts, state["n"][:, index])
        plan.closed_squares = runs.before(plan.squares, state["square"][:, index])
        pace = runs.before(plan.pace, state["pace"][:, index])
        plan.means = plan.closed_sums / plan.closed_counts  # 0/0 is NaN: nothing measured
        plan.mean_dt = pace[1] / pace[0]
        settled = (runs.before(running[runs.ends], state["running"][index]) == 1) & (
            runs.before(start_us[runs.ends], state["start_us"][index]) <= runs.closed * BUCKET_US - SETTLE_US
        )
        self._fold(runs, plan, settled, t)
        self._refresh(runs, plan)
        if self._own.is_used:
            means = {name: plan.means[at] for name, at in self._place.items()}
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
        state, slots, first = self._state, runs.slots, runs.first
        there = ~np.isnan(values)
        weights = np.where(there, values, 0.0)
        some = weights[self._square_place]
        goes_on = runs.continuing
        parts: list[Any] = []
        each = (
            ("sum", weights),
            ("n", there),
            ("square", some * some),
            ("pace", np.stack([np.ones_like(dt_us), dt_us])),
        )
        for name, what in each:
            if runs.single and goes_on.all():
                start = state[name][:, runs.index].copy()
            else:
                start = np.zeros((what.shape[0], runs.well.shape[0]), state[name].dtype)
                start[:, first[goes_on]] = state[name][:, slots[goes_on]]
            parts.append(added(start, run, what))
        sums, counts, squares, pace = parts
        features = state["features"][:, runs.index]
        return Plan(sums, counts, squares, pace, np.array(features) if runs.single else features[:, runs.well])

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
        last = np.append(new[1:], True)
        plan.held = slots[last], held[last]
        # Each from its run on, up to the next of its well or the well's last run.
        begin = runs.opening[at]
        end = runs.last[runs.closing_well[at]] + 1
        end[:-1] = np.where(new[1:], end[:-1], begin[1:])
        ahead = np.repeat(begin - np.cumsum(end - begin) + end - begin, end - begin)
        where = np.arange(ahead.shape[0]) + ahead
        plan.features[self.row[HELD], where] = np.repeat(held * _HALF_SECONDS, end - begin)
        return learned, partly

    def _push(self, runs: Runs, plan: Plan, at: Slots, time_us: IntArray, half: Slots, partly: BoolArray) -> None:
        """Half-hours go into the running medians: those at the places ``half`` of those that end at the closings
        ``at``, which the readings at ``time_us`` tell; of those that are ``partly`` learned, not what is moved."""
        assert plan.halves is not None
        at, time_us, partly, means = at[half], time_us[half], partly[half], plan.halves.means[:, half]
        well, run = runs.closing_well[at], runs.opening[at]
        slots, which, ordinal = _places(runs, at)
        number = self._state["long_count"][runs.slots[well]] + ordinal
        for nth in np.flatnonzero(partly).tolist():
            means[self._steps.is_moved, nth] = self._kept(means, nth, int(number[nth]), int(ordinal[nth]), slots[which])
        plan.pushes = Pushes(at, well, run, number, means, time_us, half, partly)
        self._look_for_steps(plan, plan.pushes, slots, which, ordinal)
        if plan.cut_us is not None:
            return
        medians = self._long_medians(slots, which, ordinal, means)
        self._moved(plan.pushes, runs.slots[well], medians)
        hours = np.minimum(number + 1, _LONG) / 2
        habits = self._end_days(runs, plan.pushes, medians)
        newest = np.full(runs.well.shape[0], -1)
        newest[run] = np.arange(at.shape[0])
        newest = np.maximum.accumulate(newest)
        known = np.flatnonzero((newest >= 0) & (well[newest] == runs.well))
        newest = newest[known]
        for row, values in zip(self._median_rows.tolist(), medians, strict=True):
            plan.features[row][known] = values[newest]
        plan.features[self.row[HOURS], known] = hours[newest]
        if habits is not None:
            plan.features[self._habit_rows[:, None], known] = habits[:, newest]
        learned = [self.row[key] for key in LEARNED]
        for step in plan.pushes.steps:
            plan.features[learned, run[step.at] : runs.last[well[step.at]] + 1] = step.learned[:, None]

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

    def _long_medians(self, slots: Slots, which: Slots, ordinal: Slots, means: FloatArray) -> FloatArray:
        """Running medians (medians, pushes) after each push. ``which``: the place in ``slots`` of a push's well."""
        state = self._state
        count = state["long_count"][slots]
        out = np.empty_like(means)
        if which.shape[0] == slots.shape[0]:
            at = count % _LONG
            for place in range(means.shape[0]):
                window = np.ascontiguousarray(state["long"][place][:, slots].T)
                window[which, at] = means[place]
                out[place] = median(window, _KNOWN)
            return out
        # A line a well: its ring, oldest first, then its pushes of this batch.
        back = ((count + np.arange(_LONG)[:, None]) % _LONG).astype(np.intp)
        sizes = np.bincount(which, minlength=slots.shape[0])
        base = np.cumsum(sizes + _LONG) - (sizes + _LONG)
        ring = base + np.arange(_LONG)[:, None]
        position = base[which] + _LONG + ordinal
        line = np.empty(int(sizes.sum()) + _LONG * slots.shape[0], np.float32)  # as the rings and the means are
        windows = np.lib.stride_tricks.sliding_window_view(line, _LONG)
        for place in range(means.shape[0]):
            line[ring] = state["long"][place][back, slots]
            line[position] = means[place]
            out[place] = median(windows[position - _LONG + 1], _KNOWN)
        return out

    def _end_days(self, runs: Runs, pushes: Pushes, medians: FloatArray) -> FloatArray | None:
        """Habits (habits, pushes) after each push, if a day of running ended: one day of each well at a time."""
        ends = np.flatnonzero((pushes.number + 1) % _LONG == 0)
        if not self._habits or not (ends.size or pushes.steps):
            return None
        state = self._state
        pushes.days = days = state["days"][:, :, runs.slots]
        habits = state["features"][self._habit_rows[:, None], runs.slots[pushes.well]]
        for step in pushes.steps:
            factors = step.factors[self._habit_of]
            days[:, :, pushes.well[step.at]] *= factors[:, None]
            habits[:, step.at] *= factors
        after = np.append(np.flatnonzero(np.diff(pushes.well)) + 1, pushes.well.shape[0])
        known: list[FloatArray] = []
        turns = in_turns(pushes.well[ends])
        for turn in turns:
            now = ends[turn]
            wells = pushes.well[now]
            days[:, (pushes.number[now] // _LONG % _DAYS).astype(np.intp), wells] = medians[self._habit_of][:, now]
            known.append(days[:, :, wells])
        if turns:
            now = ends[np.concatenate(turns)]
            found = median(np.concatenate(known, axis=-1).transpose(0, 2, 1), 1)
            until = after[np.searchsorted(after, now, side="right")]
            for place, (end, stop) in enumerate(zip(now.tolist(), until.tolist(), strict=True)):
                habits[:, end:stop] = found[:, place, None]
        return habits

    # -- features over the last hour

    def _refresh(self, runs: Runs, plan: Plan) -> None:
        past = Past(runs, self._state)
        dt = [past.at_closings(column) for column in past.window(self._state["ring_dt"], plan.mean_dt, 12)]
        index = runs.opening_index
        plan.features[0, index] = median(np.stack(dt, axis=-1), 3)
        rings, means = self._state["ring_mean"], plan.means[self._ring_place].astype(np.float32)
        made = {name: past.window(rings[at], means[at], BACK) for at, name in enumerate(self._ringed)}
        for key in self._windowed:
            function, signal, seconds = str(key[0]), str(key[1]), int(str(key[2]))
            k = seconds // 300
            if function == "cv":
                values = self._cv(past, plan, self._squares.index(signal), k)
            else:
                values = past.at_closings(windowed(function, made[signal], k))
                if function == "trend":
                    values = values / plan.features[self.row[("median", signal)], index]
                if function in ("trend", "rate"):
                    values = values / seconds
            plan.features[self.row[key], index] = values
        for name in self._own.lows():
            usual = plan.features[self.row[("median", name)], index]
            plan.features[self.row[("low", name)], index] = past.at_closings(low_mean(made[name])) / usual

    def _cv(self, past: "Past", plan: Plan, place: int, k: int) -> FloatArray:
        state, at = self._state, self._square_place[place]
        n = past.window(state["ring_n"][place], plan.closed_counts[at].astype(np.float64), k, 0.0)
        total = past.window(state["ring_sum"][place], plan.closed_sums[at], k, 0.0)
        square = past.window(state["ring_square"][place], plan.closed_squares[place], k, 0.0)
        return past.at_closings(variation(n, total, square))

    # -- the batch is computed: write the state

    def commit(self, journal: Journal, runs: Runs, plan: Plan) -> None:
        """Write the plan of a batch into the state, with what it overwrites in the journal."""
        state, last = self._state, runs.last
        index = (slice(None), runs.index)
        for name, values in (("sum", plan.sums), ("n", plan.counts), ("square", plan.squares), ("pace", plan.pace)):
            journal.put(state[name], index, values if runs.single else values[:, last])
        if not runs.continuing.all() or not runs.single:
            journal.put(state["bucket"], runs.index, runs.bucket[last])
        if not runs.opening.size:
            return
        self._commit_features(journal, runs, plan)
        wells = (slice(None), runs.closing_index if runs.lone else runs.closing_slot[runs.new])
        journal.put(state["half_sum"], wells, plan.half_sum)
        journal.put(state["half_n"], wells, plan.half_n)
        if plan.held is not None:
            journal.put(state["held"], *plan.held)
        if plan.halves is not None:
            self._steps.commit(journal, plan.halves)
        self._commit_ring(journal, runs, plan)
        if plan.pushes is not None:
            self._commit_pushes(journal, runs, plan.pushes)
        if plan.own is not None:
            self._own.commit(journal, runs, plan.own)
        if plan.slow is not None:
            self._slow.commit(journal, plan.slow)

    def _commit_features(self, journal: Journal, runs: Runs, plan: Plan) -> None:
        """Most of them change only with a half-hour or a day that is over."""
        rows: Any = slice(None)
        if (
            plan.pushes is None
            and plan.held is None
            and plan.slow is None
            and (plan.own is None or plan.own.days is None)
        ):
            rows = self._each_closing
        features = plan.features[rows] if runs.single else plan.features[rows][:, runs.last]
        index = (rows, runs.index)
        if not isinstance(runs.index, slice) and not isinstance(rows, slice):
            index = (rows[:, None], runs.index)
        journal.put(self._state["features"], index, features)

    def _commit_ring(self, journal: Journal, runs: Runs, plan: Plan) -> None:
        """The last 16 buckets; what is older in this batch would be overwritten at once."""
        state, closed, slots = self._state, runs.closed, runs.closing_slot
        some: Any = slice(None)
        if not runs.single:
            recent = closed >= runs.bucket[runs.last][runs.closing_well] - RING
            newest = np.append(runs.new[1:], True)
            some = np.flatnonzero(recent | newest)
            closed, slots = closed[some], slots[some]
        at = (closed % RING).astype(np.intp)
        index: Any = (slice(None), at, slots)
        if (at == at[0]).all():  # a fleet in step: whole rows of the ring
            index = (slice(None), int(at[0]), as_index(slots))
        journal.put(state["ring_tag"], index[1:], closed)
        journal.put(state["ring_dt"], index[1:], plan.mean_dt[some])
        journal.put(state["ring_mean"], index, plan.means[self._ring_place][:, some])
        if self._squares:
            journal.put(state["ring_sum"], index, plan.closed_sums[self._square_place][:, some])
            journal.put(state["ring_n"], index, plan.closed_counts[self._square_place][:, some])
            journal.put(state["ring_square"], index, plan.closed_squares[:, some])

    def _commit_pushes(self, journal: Journal, runs: Runs, pushes: Pushes) -> None:
        state = self._state
        final = np.append(pushes.well[1:] != pushes.well[:-1], True)
        wells = pushes.well[final]
        after = pushes.number[final] + 1
        total = np.zeros(runs.slots.shape[0], np.int64)
        total[wells] = after
        some = np.flatnonzero(pushes.number >= total[pushes.well] - _LONG)
        at = (pushes.number[some] % _LONG).astype(np.intp)
        journal.put(state["long"], (slice(None), at, runs.slots[pushes.well[some]]), pushes.means[:, some])
        journal.put(state["long_count"], runs.slots[wells], after)
        for step in pushes.steps:
            slot = int(runs.slots[pushes.well[step.at]])
            journal.put(state["long"], (slice(None), slice(None), slot), step.ring)
            journal.put(state["exponents"], (slice(None), slot), step.exponents)
            journal.put(state["step_number"], slot, pushes.number[step.at])
        if pushes.days is not None:
            journal.put(state["days"], (slice(None), slice(None), runs.slots), pushes.days)


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
