"""From what a well sent to what can be believed: held values, gauge dropouts, failed and frozen gauges, run state.

Each step takes columns and state and gives columns; all of it is vectorised over the batch, whatever its shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from esp_ingest.diagnostics.engine.baseline import SETTLE_US, Baselines
from esp_ingest.diagnostics.engine.buckets import BUCKET_US, Runs, Slots
from esp_ingest.diagnostics.engine.columns import Rows, derived_or_sent
from esp_ingest.diagnostics.engine.common_stops import CommonStops, Followed
from esp_ingest.diagnostics.engine.features import Features
from esp_ingest.diagnostics.engine.well_state import NEVER, Array, Journal, WellArrays
from esp_ingest.diagnostics.engine.windows import INTERVAL
from esp_ingest.diagnostics.language.evaluation import BoolArray
from esp_ingest.model import MIN_FREQUENCY_HZ, FloatArray, IntArray

HOLD_US = 60_000_000  # controllers that send signals in separate messages: a value counts for a minute
RECOVER_US = 3_600_000_000  # a failed gauge is believed again after an hour without a bad value
FAIL_SAMPLES = 3
FROZEN_SAMPLES = 12
DISTRUST_SECONDS = 86_400.0  # a signal that has stood still for so long is left out
SETPOINT = "frequency_setpoint"
MIN_LOAD = 0.05
# A gauge without supply reads the zero of its own scale: 0 psi, and 0 °C. Seen on a real well with some noise on it, up
# to 40 °F; no pump that lifts is as cold as 41 °F (5 °C).
GAUGE_ZERO = {"pip": 1.0, "discharge_pressure": 1.0, "motor_temp": 41.0, "intake_temp": 41.0}
GAUGE_AT_ZERO = {"pip": 0.5, "discharge_pressure": 0.5, "motor_temp": 41.0, "intake_temp": 41.0}
GAUGE = tuple(GAUGE_ZERO)
ORDER_MARGIN_PSI = 50.0  # two gauges of 0.5 % of 5 000 psi: with no head, as after a start, either may read higher
# Not intake_temp: on a real well it stood still to 0.01 °F for hours while all was well.
FREEZABLE = ("flow_rate", "pip", "discharge_pressure", "motor_current", "motor_temp", "vibration")
# By signal: value and time (n,) of the newest valid reading up to each row, and (wells,) of that before the batch.
Seen = tuple[FloatArray, IntArray, FloatArray, IntArray]
PRESSURE_ORDER = "pressure_order"  # the channel "discharge below intake pressure while pumping"


@dataclass(slots=True)
class Measured:
    """Columns (n,) by signal. ``raw`` as sent, ``held`` with short gaps closed, ``usable`` without failed gauges and
    dropouts; ``seen``: see BatchColumns; ``dropped``: the row is a gauge dropout; ``failed`` by channel, where any."""

    raw: dict[str, FloatArray]
    held: dict[str, FloatArray]
    usable: dict[str, FloatArray]
    seen: dict[str, tuple[FloatArray, IntArray, FloatArray, IntArray]]
    dropped: BoolArray
    failed: dict[str, BoolArray]


class SignalState:
    """The newest values of each well, and the health of its gauges."""

    def __init__(self, state: WellArrays, names: list[str]) -> None:
        self._names = names
        self._state = state
        self._ever_bad: set[str] = set()
        state.add("value", np.float64, np.nan, names)
        state.add("value_us", np.int64, NEVER, names)
        state.add("bad_count", np.int32, 0, [*names, PRESSURE_ORDER])
        state.add("bad_us", np.int64, NEVER, [*names, PRESSURE_ORDER])
        state.add("moved_us", np.int64, NEVER, FREEZABLE)
        state.add("moved_n", np.int32, 0, FREEZABLE)

    def forget_shortcuts(self) -> None:
        """After a restore: channels that have been bad are those whose state says so."""
        bad = (self._state["bad_count"] > 0) | (self._state["bad_us"] != NEVER)
        channels = (*self._names, PRESSURE_ORDER)
        self._ever_bad = {name for name, any_well in zip(channels, bad.any(axis=1).tolist(), strict=True) if any_well}

    def measure(self, journal: Journal, rows: Rows, values: FloatArray, bad: dict[str, BoolArray]) -> Measured:
        """``values`` (names, n) in the order of the rows; ``bad``: where a value was outside its hard limits."""
        held, seen = self._hold(journal, rows, values, bad)
        raw = dict(zip(self._names, values, strict=True))
        dropped = self._dropouts(held, seen)
        failed = self._failures(journal, rows, held, seen, bad, dropped)
        usable = dict(held)
        if dropped.any():
            for name in GAUGE:
                usable[name] = np.where(dropped, np.nan, usable[name])
        for channel, mask in failed.items():
            for name in ("pip", "discharge_pressure") if channel == PRESSURE_ORDER else (channel,):
                usable[name] = np.where(mask, np.nan, usable[name])
        return Measured(raw, held, usable, seen, dropped, failed)

    def _hold(
        self, journal: Journal, rows: Rows, values: FloatArray, bad: dict[str, BoolArray]
    ) -> tuple[dict[str, FloatArray], dict[str, Seen]]:
        """By signal: its values with short gaps closed, and what was seen of it. Mostly each signal is in every reading
        or in none, so that only the others take work."""
        state = self._state
        old, old_us = rows.before(state["value"]), rows.before(state["value_us"])
        valid = ~np.isnan(values)
        is_whole: BoolArray = np.asarray(valid.all(axis=1))
        is_sent: BoolArray = np.asarray(is_whole | valid.any(axis=1))
        is_sent[~is_sent] = (old_us[~is_sent] != NEVER).any(axis=1)
        index = (slice(None), rows.index)
        journal.put_over(state["value"], index, old, rows.newest(values))
        journal.put_over(state["value_us"], index, old_us, rows.newest(rows.t))
        held, seen = {}, {}
        for at, (name, whole, sent) in enumerate(zip(self._names, is_whole.tolist(), is_sent.tolist(), strict=True)):
            raw = values[at]
            value, when_us, held[name] = raw, rows.t, raw
            if not sent:
                when_us = np.full(len(rows), NEVER)
                state["value_us"][at, rows.index] = NEVER
            elif not whole:
                value, when_us = rows.carry(valid[at], raw, old[at]), rows.carry(valid[at], rows.t, old_us[at])
                fresh = rows.t - when_us <= HOLD_US
                held[name] = np.where(fresh & ~bad[name] if name in bad else fresh, value, np.nan)
                state["value"][at, rows.index] = rows.newest(value)
                state["value_us"][at, rows.index] = rows.newest(when_us)
            seen[name] = value, when_us, old[at], old_us[at]
        return held, seen

    def _dropouts(self, held: dict[str, FloatArray], seen: dict[str, Any]) -> BoolArray:
        """Every gauge channel that the well has ever sent is near its zero or missing. One channel that reads near
        zero while the others are missing may be the well: that is a dropout only at zero itself."""
        empty = np.ones(next(iter(held.values())).shape[0], np.bool_)
        for name, zero in GAUGE_ZERO.items():
            empty &= ~(held[name] > zero)
            if not empty.any():
                break
        else:
            near = np.sum([~np.isnan(held[name]) for name in GAUGE], axis=0)
            at_zero = np.logical_or.reduce([held[name] <= zero for name, zero in GAUGE_AT_ZERO.items()])
            empty &= np.logical_or.reduce([seen[name][1] != NEVER for name in GAUGE]) & ((near != 1) | at_zero)
        return empty

    # -- gauges that lie

    def _failures(
        self,
        journal: Journal,
        rows: Rows,
        held: dict[str, FloatArray],
        seen: dict[str, Any],
        bad: dict[str, BoolArray],
        dropped: BoolArray,
    ) -> dict[str, BoolArray]:
        failed = {}
        any_dropped = bool(dropped.any())
        for at, channel in enumerate((*self._names, PRESSURE_ORDER)):
            if not (any_dropped or channel in bad or channel in self._ever_bad or channel == PRESSURE_ORDER):
                continue
            lost = dropped if any_dropped else None
            if lost is not None and channel in GAUGE:
                lost = lost & (seen[channel][1] != NEVER)  # what a well never sent cannot fail
            wrong = self._wrong(channel, held, bad, lost)
            if wrong is None or not wrong.any():
                if channel not in self._ever_bad:
                    continue
                wrong = np.zeros(len(rows), np.bool_)
            self._ever_bad.add(channel)
            good = self._good(channel, held, lost)
            mask = self._failed(journal, rows, at, good, wrong)
            if mask.any():
                failed[channel] = mask
        return failed

    def _wrong(
        self, channel: str, held: dict[str, FloatArray], bad: dict[str, BoolArray], dropped: BoolArray | None
    ) -> BoolArray | None:
        """Rows in which a channel is surely wrong; None if it cannot be in any.

        A dropout is wrong for each gauge channel: three in a row make a failure."""
        if channel == PRESSURE_ORDER:
            wrong = held["discharge_pressure"] < held["pip"] - ORDER_MARGIN_PSI
            if not wrong.any():
                return None
            wrong &= _is_pumping(held)
            return wrong if dropped is None else wrong & ~dropped
        out = bad.get(channel)
        if dropped is not None and channel in GAUGE:
            return dropped if out is None else dropped | out
        return out

    def _good(self, channel: str, held: dict[str, FloatArray], dropped: BoolArray | None) -> BoolArray:
        """Rows in which a channel is surely good."""
        if channel == PRESSURE_ORDER:
            return _is_pumping(held) & (held["discharge_pressure"] >= held["pip"])
        good = ~np.isnan(held[channel])
        return good & ~dropped if dropped is not None and channel in GAUGE else good

    def _failed(self, journal: Journal, rows: Rows, at: int, good: BoolArray, wrong: BoolArray) -> BoolArray:
        count_state, time_state = self._state["bad_count"], self._state["bad_us"]
        old_count, old_us = count_state[at][rows.slots], time_state[at][rows.slots]
        total = np.cumsum(wrong)
        newest, found = rows.latest(good)
        before: IntArray = total[rows.first] - wrong[rows.first]
        count = np.where(found, total - total[newest], total - before + old_count[rows.group])
        failing = wrong & (count >= FAIL_SAMPLES)
        when_us = rows.carry(failing, rows.t, old_us)
        journal.put(count_state, (at, rows.slots), count[rows.last])
        journal.put(time_state, (at, rows.slots), when_us[rows.last])
        return np.asarray((count >= FAIL_SAMPLES) | (rows.t - when_us < RECOVER_US))

    def frozen(self, journal: Journal, rows: Rows, measured: Measured) -> dict[str, FloatArray]:
        """Seconds for which a signal has not moved at all over 12 samples, while another has; by signal, where any.

        After a day of it the signal is no longer usable: neither rules nor what the well is used to read it."""
        times_us = {name: measured.seen[name][1] for name in FREEZABLE}
        sent = [name for name, when_us in times_us.items() if when_us is rows.t or when_us.max() != NEVER]
        if not sent:
            return {}
        state, which = self._state, np.array([FREEZABLE.index(name) for name in sent])
        changed = self._changed(rows, [measured.seen[name] for name in sent])
        index = (which, rows.index) if isinstance(rows.index, slice) else (which[:, None], rows.slots)
        old_moved_us, n_old = np.array(state["moved_us"][index]), np.array(state["moved_n"][index])
        if rows.single:
            counts = np.where(changed, 0, n_old + 1)
            newest_moved_us = np.where(changed, rows.t, old_moved_us)
            journal.put_over(state["moved_n"], index, n_old, counts)
        else:
            unmoved = _Unmoved(rows, changed, n_old)
            counts = unmoved.counts
            newest_moved_us = np.where(unmoved.has_moved, rows.t[unmoved.moved], old_moved_us)
            journal.put_over(state["moved_n"], index, n_old, unmoved.newest)
        journal.put_over(state["moved_us"], index, old_moved_us, newest_moved_us)
        if not (counts >= FROZEN_SAMPLES).any():
            return {}
        newest, found = rows.latest(changed)
        if not rows.single:
            counts = np.where(found, rows.at - newest, rows.at - rows.first + 1 + rows.spread(n_old))
        still = counts >= FROZEN_SAMPLES
        moved_us = np.where(found, rows.t[newest], rows.spread(old_moved_us))
        held = np.stack([measured.held[name] for name in sent])
        still &= (moved_us.max(axis=0) > moved_us) & (held != 0) & ~np.isnan(held)
        out = {}
        for at, name in enumerate(sent):
            if still[at].any():
                out[name] = np.where(still[at], (rows.t - moved_us[at]) / 1e6, 0.0)
                if (out[name] >= DISTRUST_SECONDS).any():
                    measured.usable[name] = np.where(out[name] >= DISTRUST_SECONDS, np.nan, measured.usable[name])
        return out

    @staticmethod
    def _changed(rows: Rows, seen: Sequence[Seen]) -> BoolArray:
        """By signal of ``seen`` (signals, n): the row has another value of it than the row before."""
        changed = np.empty((len(seen), len(rows)), np.bool_)
        for (value, when_us, old, _), out in zip(seen, changed, strict=True):
            if rows.single:
                np.not_equal(value, old, out=out)
            else:
                np.not_equal(value[1:], value[:-1], out=out[1:])
                out[rows.starts] = value[rows.starts] != old
            if when_us is not rows.t:
                out &= when_us == rows.t
        return changed


class _Unmoved:
    """Rows in which a signal has not changed, which are few. ``counts``: how many samples it has not moved for, by such
    row. By signal and well, (signals, wells): ``newest``, the count at the last row; ``has_moved``, whether it has in
    this batch, and then in the row ``moved`` at last. ``before`` (signals, wells): the count before the batch."""

    def __init__(self, rows: Rows, changed: BoolArray, before: Array) -> None:
        signal, at = np.divmod(np.flatnonzero(~changed), changed.shape[1])
        first, group = rows.first[at], rows.group[at]
        begins = np.ones(at.shape[0], np.bool_)
        begins[1:] = (at[1:] != at[:-1] + 1) | (signal[1:] != signal[:-1]) | (first[1:] != first[:-1])
        begin = at[np.flatnonzero(begins)[begins.cumsum() - 1]]
        is_first = begin == first
        self.counts = at - begin + 1
        self.counts += np.where(is_first, before[signal, group], 0)
        self.newest = np.zeros(before.shape, before.dtype)
        self.has_moved = np.ones(before.shape, np.bool_)
        self.moved = np.empty(before.shape, np.intp)
        self.moved[:] = rows.last
        newest = np.flatnonzero(at == rows.last[group])
        place = signal[newest], group[newest]
        self.newest[place] = self.counts[newest]
        self.has_moved[place] = ~is_first[newest]
        self.moved[place] = np.maximum(begin[newest] - 1, 0)


def _is_pumping(held: dict[str, FloatArray]) -> BoolArray:
    return np.asarray((held["vsd_frequency"] > MIN_FREQUENCY_HZ) & (held["motor_current"] > 0))


@dataclass(slots=True)
class Running:
    """Run state a row: ``running`` 1, 0 or −1 (not known), ``settled``; times in µs (NEVER: none); features by run."""

    running: Array
    settled: BoolArray
    tripped: Array
    start_us: IntArray
    stop_us: IntArray
    starts: Array  # (3, n), newest first
    stopped_for: Array  # µs stopped before the newest start, −1 for none
    features: Features = field(init=False)
    run: Slots
    interval_us: FloatArray  # as known before the row
    changed: bool = False  # some well started or stopped
    opened: Slots = field(default_factory=lambda: np.empty(0, np.intp))  # rows with which a 5-minute bucket was closed
    half_hours: tuple[Slots, IntArray, IntArray] | None = None  # see baseline.Plan
    cut_us: int | None = None  # nothing was written: the batch has to be cut here
    common: Followed | None = None  # if a rule reads it


class RunState:
    """Running or stopped, and what the well is used to while it runs."""

    def __init__(self, state: WellArrays, baselines: Baselines, common_stops: CommonStops | None) -> None:
        self._state = state
        self._baselines = baselines
        self._common_stops = common_stops
        state.add("running", np.int8, -1)
        state.add("tripped", np.int8, 0)
        state.add("start_us", np.int64, NEVER)
        state.add("stop_us", np.int64, NEVER)
        state.add("starts", np.int64, NEVER, shape=(3,))
        state.add("stopped_for", np.int64, -1)

    def advance(self, journal: Journal, rows: Rows, usable: dict[str, FloatArray], last_us: IntArray) -> Running:
        """Bring baselines and run state forward over the rows; ``last_us`` (wells,): the reading before the batch.

        Whether a well runs depends on its running median, which depends on when it ran. So the batch is computed with
        the medians that stand, and again wherever a new median says otherwise: what lies before the first row that
        differs is right for good, so this ends. In practice once is enough."""
        bucket = rows.t // BUCKET_US
        opens = rows.at == rows.first
        opens[1:] |= bucket[1:] != bucket[:-1]
        begins = np.flatnonzero(opens)
        run = np.cumsum(opens) - 1
        baselines, state = self._baselines, self._state
        runs = Runs(state, rows.slots, rows.group[begins], bucket[begins], begins, len(rows))
        values = np.stack([derived_or_sent(name, usable) for name in baselines.signals])
        dt_us = rows.t - rows.shifted(rows.t, last_us)
        dt_us = np.where(dt_us < -NEVER // 2, dt_us, 0)
        at, interval = baselines.row["median", "motor_current"], baselines.row[INTERVAL]
        running = self._running(rows, usable, rows.seen(state["features"][at]))
        while True:
            out = self._transitions(rows, running, usable.get(SETPOINT))
            runs_now = running == 1
            values_running = values if runs_now.all() else np.where(runs_now, values, np.nan)
            plan = baselines.plan(runs, run, rows.t, values_running, dt_us, running, out.start_us)
            if plan.cut_us is not None:
                out.cut_us = plan.cut_us
                return out
            if plan.pushes is None:
                break
            again = self._running(rows, usable, plan.features.of(at)[run])
            if np.array_equal(again, running):
                break
            running = again
        out.features, out.run, out.half_hours = plan.features, run, plan.half_hours
        out.opened = begins[runs.opening]
        out.interval_us = rows.before(state["features"][interval])
        if not rows.single:
            out.interval_us = rows.shifted(plan.features.of(interval)[run], out.interval_us)
        baselines.commit(journal, runs, plan)
        self._commit(journal, rows, out)
        return out

    def _running(self, rows: Rows, usable: dict[str, FloatArray], median: FloatArray) -> Array:
        """1, 0, or −1 as long as nothing has told; what is not known stays as it was."""
        frequency, current = usable["vsd_frequency"], usable["motor_current"]
        # A fleet that runs whole: no median asks for more than the greatest one does.
        floor = MIN_LOAD * np.fmax.reduce(median)
        if frequency.min() > MIN_FREQUENCY_HZ and current.min() > (floor if floor > 0 else 0.0):
            return np.ones(len(rows), np.int8)
        running = _is_running(frequency, current, median)
        known = running >= 0
        return running if known.all() else rows.carry(known, running, self._state["running"][rows.slots])

    def _transitions(self, rows: Rows, running: Array, setpoint: FloatArray | None) -> Running:
        """Python only where a well starts or stops."""
        state = self._state
        previous = rows.shifted(running, state["running"][rows.slots])
        changed = running != previous
        is_changed = bool(changed.any())
        of = rows.of if is_changed else rows.seen
        out = Running(
            running=running,
            settled=np.empty(0, np.bool_),
            tripped=of(state["tripped"]),
            start_us=of(state["start_us"]),
            stop_us=of(state["stop_us"]),
            starts=of(state["starts"]),
            stopped_for=of(state["stopped_for"]),
            run=np.empty(0, np.intp),
            interval_us=np.empty(0),
            changed=is_changed,
        )
        changes = np.flatnonzero(changed) if is_changed else np.empty(0, np.intp)
        if self._common_stops is not None and out.changed:
            told = np.zeros(len(rows), np.bool_) if setpoint is None else setpoint <= MIN_FREQUENCY_HZ
            out.common = self._common_stops.follow(rows, running, previous, changes, told)
        elif self._common_stops is not None:
            out.common = self._common_stops.told(rows)
        if out.changed:
            self._changes(rows, out, changes, previous)
        out.settled = (running == 1) & (rows.t - out.start_us >= SETTLE_US)
        return out

    @staticmethod
    def _changes(rows: Rows, out: Running, changes: Slots, previous: Array) -> None:
        """Each change holds until the next one of the same well. A start after a common stop is none of its own."""
        common = frozenset[int]() if out.common is None else out.common.starts
        until = np.minimum(np.append(changes[1:], len(rows)), rows.ends[rows.group[changes]])
        for at, end in zip(changes.tolist(), until.tolist(), strict=True):
            part, t, before = slice(at, end), rows.t[at], previous[at]
            if at > rows.first[at]:  # what stood just before, which an earlier change may have set
                for column in (out.tripped, out.start_us, out.stop_us, out.stopped_for):
                    column[part] = column[at - 1]
                out.starts[:, part] = out.starts[:, at - 1, None]
            if out.running[at] == 1 and before == 0:
                stop = out.stop_us[at]
                out.stopped_for[part] = t - stop if stop != NEVER and at not in common else -1
                if at not in common:
                    out.starts[:, part] = np.array([[t], [out.starts[0, at]], [out.starts[1, at]]])
                out.start_us[part] = t
                out.tripped[part] = 0
            elif out.running[at] == 0 and before == 1:
                out.stop_us[part] = t
                out.tripped[part] = 1

    def _commit(self, journal: Journal, rows: Rows, out: Running) -> None:
        if not out.changed:
            return
        for name in ("running", "tripped", "start_us", "stop_us", "stopped_for"):
            journal.put(self._state[name], rows.slots, getattr(out, name)[rows.last])
        journal.put(self._state["starts"], (slice(None), rows.slots), out.starts[:, rows.last])
        if self._common_stops is not None and out.common is not None:
            self._common_stops.commit(journal, out.common)


def _is_running(frequency: FloatArray, current: FloatArray, median: FloatArray) -> Array:
    """1, 0, or −1 where nothing tells. f > 5 Hz and A > 5 % of the running median (DIAGNOSTICS.md); a signal that is
    missing does not decide, and before the median is known any current above 0 counts."""
    floor = np.where(np.isnan(median), 0.0, MIN_LOAD * median)
    stopped = (frequency <= MIN_FREQUENCY_HZ) | (current <= floor)
    known = (frequency > MIN_FREQUENCY_HZ) | (current > floor)
    return np.asarray((2 * known.view(np.int8) - 1) * ~stopped)
