"""From what a well sent to what can be believed: held values, gauge dropouts, failed and frozen gauges, run state.

Each step takes columns and state and gives columns; all of it is vectorised over the batch, whatever its shape.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from esp_ingest.diagnostics.baseline import BUCKET_US, SETTLE_US, Baselines, Slots
from esp_ingest.diagnostics.conditions import BoolArray
from esp_ingest.diagnostics.frame import Rows
from esp_ingest.diagnostics.state import NEVER, Array, Journal, WellArrays
from esp_ingest.telemetry.model import FloatArray, IntArray

HOLD_US = 60_000_000  # controllers that send signals in separate messages: a value counts for a minute
RECOVER_US = 3_600_000_000  # a failed gauge is believed again after an hour without a bad value
FAIL_SAMPLES = 3
FROZEN_SAMPLES = 12
MIN_FREQUENCY_HZ = 5.0
MIN_LOAD = 0.05
GAUGE = ("pip", "discharge_pressure", "motor_temp", "intake_temp")
# Not intake_temp: on a real well it stood still to 0.01 °F for hours while all was well.
FREEZABLE = ("flow_rate", "pip", "discharge_pressure", "motor_current", "motor_temp", "vibration")
PRESSURE_ORDER = "pressure_order"  # the channel "discharge below intake pressure while pumping"


@dataclass(slots=True)
class Measured:
    """Columns (n,) by signal. ``raw`` as sent, ``held`` with short gaps closed, ``usable`` without failed gauges and
    dropouts; ``seen``: see BatchFrame; ``dropped``: the row is a gauge dropout; ``failed`` by channel, where any."""

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
        state.add("bad_count", np.int64, 0, [*names, PRESSURE_ORDER])
        state.add("bad_us", np.int64, NEVER, [*names, PRESSURE_ORDER])
        state.add("moved_us", np.int64, NEVER, FREEZABLE)
        state.add("moved_n", np.int64, 0, FREEZABLE)

    def forget_shortcuts(self) -> None:
        """After a restore: any channel may have been bad."""
        self._ever_bad = {*self._names, PRESSURE_ORDER}

    def measure(self, journal: Journal, rows: Rows, values: FloatArray, bad: dict[str, BoolArray]) -> Measured:
        """``values`` (names, n) in the order of the rows; ``bad``: where a value was outside its hard limits."""
        raw, held, seen = {}, {}, {}
        for at, name in enumerate(self._names):
            raw[name] = values[at]
            held[name], seen[name] = self._hold(journal, rows, at, values[at], bad.get(name))
        dropped = self._dropouts(held, seen)
        failed = self._failures(journal, rows, held, bad, dropped)
        usable = dict(held)
        for name in GAUGE:
            if dropped.any():
                usable[name] = np.where(dropped, np.nan, usable[name])
        for channel, mask in failed.items():
            for name in ("pip", "discharge_pressure") if channel == PRESSURE_ORDER else (channel,):
                usable[name] = np.where(mask, np.nan, usable[name])
        return Measured(raw, held, usable, seen, dropped, failed)

    def _hold(
        self, journal: Journal, rows: Rows, at: int, raw: FloatArray, bad: BoolArray | None
    ) -> tuple[FloatArray, tuple[FloatArray, IntArray, FloatArray, IntArray]]:
        old = self._state["value"][at][rows.slots]
        old_us = self._state["value_us"][at][rows.slots]
        valid = ~np.isnan(raw)
        if valid.all():
            value, when, held = raw, rows.t, raw
        elif not valid.any() and old_us.max() == NEVER:
            return raw, (raw, np.full(len(rows), NEVER), old, old_us)
        else:
            newest, found = rows.latest(valid)
            value = np.where(found, raw[newest], old[rows.group])
            when = np.where(found, rows.t[newest], old_us[rows.group])
            fresh = rows.t - when <= HOLD_US
            held = np.where(fresh if bad is None else fresh & ~bad, value, np.nan)
        journal.put(self._state["value"], (at, rows.slots), value[rows.last])
        journal.put(self._state["value_us"], (at, rows.slots), when[rows.last])
        return held, (value, when, old, old_us)

    def _dropouts(self, held: dict[str, FloatArray], seen: dict[str, Any]) -> BoolArray:
        """Every gauge channel 0 or missing, on a well that has a gauge."""
        empty: BoolArray = np.logical_and.reduce([~(held[name] > 0) for name in GAUGE])
        if empty.any():
            empty &= np.logical_or.reduce([seen[name][1] != NEVER for name in GAUGE])
        return empty

    # -- gauges that lie

    def _failures(
        self,
        journal: Journal,
        rows: Rows,
        held: dict[str, FloatArray],
        bad: dict[str, BoolArray],
        dropped: BoolArray,
    ) -> dict[str, BoolArray]:
        failed = {}
        any_dropped = bool(dropped.any())
        for at, channel in enumerate((*self._names, PRESSURE_ORDER)):
            good, wrong = self._judge(channel, held, bad, dropped if any_dropped else None)
            if wrong is None or not wrong.any():
                if channel not in self._ever_bad:
                    continue
                wrong = np.zeros(len(rows), np.bool_)
            self._ever_bad.add(channel)
            mask = self._failed(journal, rows, at, good, wrong)
            if mask.any():
                failed[channel] = mask
        return failed

    def _judge(
        self, channel: str, held: dict[str, FloatArray], bad: dict[str, BoolArray], dropped: BoolArray | None
    ) -> tuple[BoolArray, BoolArray | None]:
        """(surely good, surely wrong) rows of a channel.

        A dropout is wrong for each gauge channel: three in a row make a failure."""
        if channel == PRESSURE_ORDER:
            pumping = (held["vsd_frequency"] > MIN_FREQUENCY_HZ) & (held["motor_current"] > 0)
            wrong = pumping & (held["discharge_pressure"] < held["pip"])
            good = pumping & (held["discharge_pressure"] >= held["pip"])
            return good, wrong if dropped is None else wrong & ~dropped
        out = bad.get(channel)
        good = ~np.isnan(held[channel])
        if dropped is not None and channel in GAUGE:
            return good & ~dropped, dropped if out is None else dropped | out
        return good, out

    def _failed(self, journal: Journal, rows: Rows, at: int, good: BoolArray, wrong: BoolArray) -> BoolArray:
        count_state, time_state = self._state["bad_count"], self._state["bad_us"]
        old_count, old_us = count_state[at][rows.slots], time_state[at][rows.slots]
        total = np.cumsum(wrong)
        newest, found = rows.latest(good)
        before: IntArray = total[rows.first] - wrong[rows.first]
        count = np.where(found, total - total[newest], total - before + old_count[rows.group])
        failing = wrong & (count >= FAIL_SAMPLES)
        when = rows.carry(failing, rows.t, old_us)
        journal.put(count_state, (at, rows.slots), count[rows.last])
        journal.put(time_state, (at, rows.slots), when[rows.last])
        return np.asarray((count >= FAIL_SAMPLES) | (rows.t - when < RECOVER_US))

    def frozen(self, journal: Journal, rows: Rows, measured: Measured) -> dict[str, FloatArray]:
        """Seconds for which a signal has not moved at all over 12 samples, while another has; by signal, where any."""
        moved, counts = {}, {}
        for at, name in enumerate(FREEZABLE):
            value, when, old, _ = measured.seen[name]
            if when.max() == NEVER:
                continue
            changed = (when == rows.t) & (value != rows.shifted(value, old))
            moved_old = self._state["moved_us"][at][rows.slots]
            newest, found = rows.latest(changed)
            moved[name] = np.where(found, rows.t[newest], moved_old[rows.group])
            n_old = self._state["moved_n"][at][rows.slots]
            counts[name] = np.where(found, rows.at - newest, rows.at - rows.first + 1 + n_old[rows.group])
            journal.put(self._state["moved_us"], (at, rows.slots), moved[name][rows.last])
            journal.put(self._state["moved_n"], (at, rows.slots), counts[name][rows.last])
        if not moved:
            return {}
        newest_move = np.maximum.reduce(list(moved.values()))
        out = {}
        for name, when in moved.items():
            frozen = (counts[name] >= FROZEN_SAMPLES) & (newest_move > when) & (measured.held[name] != 0)
            frozen &= ~np.isnan(measured.held[name])
            if frozen.any():
                out[name] = np.where(frozen, (rows.t - when) / 1e6, 0.0)
        return out


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
    features: FloatArray
    run: Slots
    interval: FloatArray  # µs, as known before the row


class RunState:
    """Running or stopped, and the walk through the buckets: the only part that goes round by round."""

    def __init__(self, state: WellArrays, baselines: Baselines) -> None:
        self._state = state
        self._baselines = baselines
        state.add("running", np.int8, -1)
        state.add("tripped", np.int8, 0)
        state.add("start_us", np.int64, NEVER)
        state.add("stop_us", np.int64, NEVER)
        state.add("starts", np.int64, NEVER, shape=(3,))
        state.add("stopped_for", np.int64, -1)

    def walk(self, journal: Journal, rows: Rows, usable: dict[str, FloatArray], last_us: IntArray) -> Running:
        """Bring baselines and run state forward over the rows; ``last_us`` (wells,): the reading before the batch."""
        count = len(rows)
        bucket = rows.t // BUCKET_US
        opens = rows.at == rows.first
        opens[1:] |= bucket[1:] != bucket[:-1]
        begins = np.flatnonzero(opens)
        run = np.cumsum(opens) - 1
        before = self._state["features"][0][rows.slots]
        out = Running(
            running=np.empty(count, np.int8),
            settled=np.empty(count, np.bool_),
            tripped=np.empty(count, np.int8),
            start_us=np.empty(count, np.int64),
            stop_us=np.empty(count, np.int64),
            starts=np.empty((3, count), np.int64),
            stopped_for=np.empty(count, np.int64),
            features=np.empty((len(self._baselines.features), begins.shape[0])),
            run=run,
            interval=np.empty(0),
        )
        values = np.stack([self._column(name, usable) for name in self._baselines.signals])
        dt = rows.t - rows.shifted(rows.t, last_us)
        dt = np.where(dt < -NEVER // 2, dt, 0)
        ordinal = run[begins] - run[rows.first[begins]]
        if not ordinal.any():
            self._round(journal, rows, out, usable, values, dt, begins, rows.at, bucket, opens)
        else:
            row_ordinal = ordinal[run]
            run_order, row_order = np.argsort(ordinal, kind="stable"), np.argsort(row_ordinal, kind="stable")
            run_ends = np.cumsum(np.bincount(ordinal))
            row_ends = np.cumsum(np.bincount(row_ordinal))
            run_at = row_at = 0
            for run_end, row_end in zip(run_ends, row_ends, strict=True):
                some, those = begins[run_order[run_at:run_end]], row_order[row_at:row_end]
                self._round(journal, rows, out, usable, values, dt, some, those, bucket, opens)
                run_at, row_at = run_end, row_end
        out.interval = rows.shifted(out.features[0][run], before)
        return out

    def _column(self, name: str, usable: dict[str, FloatArray]) -> FloatArray:
        if name == "current_load":
            frequency = usable["vsd_frequency"]
            return usable["motor_current"] / np.where(frequency > 5, frequency * frequency, np.nan)
        if name == "pump_head":
            return usable["discharge_pressure"] - usable["pip"]
        return usable[name]

    def _round(
        self,
        journal: Journal,
        rows: Rows,
        out: Running,
        usable: dict[str, FloatArray],
        values: FloatArray,
        dt: IntArray,
        begins: Slots,
        those: Slots,
        bucket: IntArray,
        opens: BoolArray,
    ) -> None:
        """One bucket of each well: ``begins`` are its first rows, ``those`` all its rows, well after well."""
        state, baselines = self._state, self._baselines
        slots, runs = rows.slot[begins], out.run[begins]
        baselines.advance(journal, slots, bucket[begins])
        features = state["features"][:, slots]
        out.features[:, runs] = features
        place = np.cumsum(opens[those]) - 1 if those.shape != begins.shape else None
        median = features[baselines.row[("median", "motor_current")]]
        median = median if place is None else median[place]
        running = _is_running(usable["vsd_frequency"][those], usable["motor_current"][those], median)
        self._transitions(journal, rows, out, slots, those, place, running)
        settled = (out.running[those] == 1) & (rows.t[those] - out.start_us[those] >= SETTLE_US)
        out.settled[those] = settled
        counted = np.where(out.running[those] == 1, values[:, those], np.nan)
        baselines.add(journal, slots, rows.slot[those], counted, dt[those])

    def _transitions(
        self, journal: Journal, rows: Rows, out: Running, slots: Slots, those: Slots, place: Any, running: Array
    ) -> None:
        """Python only where a well starts or stops."""
        state = self._state
        group = np.arange(slots.shape[0]) if place is None else place
        old = state["running"][slots]
        first = np.empty(group.shape[0], np.bool_)
        first[0] = True
        np.not_equal(group[1:], group[:-1], out=first[1:])
        running = _held_run_state(running, old, group, first)
        previous = np.empty_like(running)
        previous[1:] = running[:-1]
        previous[first] = old
        out.running[those] = running
        for name in ("tripped", "start_us", "stop_us", "stopped_for"):
            now = state[name][slots]
            getattr(out, name)[those] = now if place is None else now[place]
        starts = state["starts"][:, slots]
        out.starts[:, those] = starts if place is None else starts[:, place]
        changes = np.flatnonzero(running != previous)
        for change in changes.tolist():
            end = int(np.searchsorted(group, group[change], side="right"))
            self._change(rows, out, those[change:end], int(previous[change]), int(running[change]))
        if changes.size:
            ends = those[np.append(np.flatnonzero(first)[1:], group.shape[0]) - 1]
            for name in ("running", "tripped", "start_us", "stop_us", "stopped_for"):
                journal.put(state[name], slots, getattr(out, name)[ends])
            journal.put(state["starts"], (slice(None), slots), out.starts[:, ends])

    @staticmethod
    def _change(rows: Rows, out: Running, those: Slots, previous: int, now: int) -> None:
        at = those[0]
        t = rows.t[at]
        if now == 1 and previous == 0:
            stop = out.stop_us[at]
            out.stopped_for[those] = t - stop if stop != NEVER else -1
            out.starts[:, those] = np.array([[t], [out.starts[0, at]], [out.starts[1, at]]])
            out.start_us[those] = t
            out.tripped[those] = 0
        elif now == 0 and previous == 1:
            out.stop_us[those] = t
            out.tripped[those] = 1


def _is_running(frequency: FloatArray, current: FloatArray, median: FloatArray) -> Array:
    """1, 0, or −1 where nothing tells. f > 5 Hz and A > 5 % of the running median (DIAGNOSTICS.md); a signal that is
    missing does not decide, and before the median is known any current above 0 counts."""
    floor = np.where(np.isnan(median), 0.0, MIN_LOAD * median)
    stopped = (frequency <= MIN_FREQUENCY_HZ) | (current <= floor)
    known = (frequency > MIN_FREQUENCY_HZ) | (current > floor)
    return np.where(stopped, 0, np.where(known, 1, -1)).astype(np.int8)


def _held_run_state(running: Array, old: Array, group: Slots, first: BoolArray) -> Array:
    """What is not known stays as it was."""
    if (running >= 0).all():
        return running
    at = np.arange(running.shape[0])
    newest = np.maximum.accumulate(np.where(running >= 0, at, -1))
    start = np.maximum.accumulate(np.where(first, at, 0))
    return np.where(newest >= start, running[newest], old[group])
