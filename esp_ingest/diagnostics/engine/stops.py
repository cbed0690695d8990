"""How a well stopped: commanded, ramped down, or neither, and with which load at that moment.

A stop that an operator commands, or that the drive ramps down, is planned; a trip cuts the frequency off. Both are
seen at the stop itself: at the reading with which the well stands still and the one before it. At 5-minute samples a
ramp of a minute mostly falls between two of them, and the stop counts as not planned.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from esp_ingest.diagnostics.engine.baseline import SETTLE_US, Baselines
from esp_ingest.diagnostics.engine.buckets import BUCKET_US, Key
from esp_ingest.diagnostics.engine.columns import STEP_US, Rows
from esp_ingest.diagnostics.engine.facts import as_it_is
from esp_ingest.diagnostics.engine.signals import SETPOINT, Measured, Running
from esp_ingest.diagnostics.engine.well_state import Array, Journal, WellArrays
from esp_ingest.model import MIN_FREQUENCY_HZ

FACTS = ("load_at_stop", "stop_ramped", "stop_commanded")
_SPEED: Key = ("mean", "vsd_frequency", 900)
_LOAD: Key = ("mean", "current_load", 900)
_USUAL: Key = ("median", "current_load")
_USUAL_SPEED: Key = ("median", "vsd_frequency")
_RAMPED_SHARE = 0.9  # of the speed of the last 15 minutes: slower than that, the drive was running down


def columns_of(columns: set[Key]) -> set[Key]:
    """The features that the facts need, if ``columns`` read one of them."""
    return {_SPEED, _LOAD, _USUAL, _USUAL_SPEED} if any(("fact", name) in columns for name in FACTS) else set()


class StopGrades:
    """The newest stop of each well, kept in ``state``: the load as a share of its running median (NaN if not known),
    and whether it was ramped down or commanded."""

    def __init__(self, state: WellArrays, baselines: Baselines) -> None:
        self._state = state
        self._row = baselines.row
        self.is_used = _SPEED in baselines.row
        state.add("load_at_stop", np.float64, np.nan)
        state.add("stop_ramped", np.int8, 0)
        state.add("stop_commanded", np.int8, 0)

    def advance(
        self, journal: Journal, rows: Rows, measured: Measured, running: Running
    ) -> dict[str, Callable[[], Array]]:
        """The facts by name, each made when a rule reads it, (n,). Python only where a well stops."""
        if not running.changed:
            return {name: partial(self._kept, name, rows) for name in FACTS}
        facts = {name: self._kept(name, rows) for name in FACTS}
        stops = np.flatnonzero((running.running == 0) & (running.stop_us == rows.t))
        for at, end in zip(stops.tolist(), rows.ends[rows.group[stops]].tolist(), strict=True):
            for name, value in self._graded(rows, measured, running, at).items():
                facts[name][at:end] = value
        if stops.size:
            for name, column in facts.items():
                journal.put(self._state[name], rows.slots, column[rows.last])
        return {name: partial(as_it_is, column) for name, column in facts.items()}

    def _kept(self, name: str, rows: Rows) -> Array:
        return rows.of(self._state[name])

    def _graded(self, rows: Rows, measured: Measured, running: Running, at: int) -> dict[str, float]:
        speed, usual_load, usual_hertz, load_before = (
            running.features.one(self._row[key], running.run[at]) for key in (_SPEED, _USUAL, _USUAL_SPEED, _LOAD)
        )
        reach_us = np.fmax(STEP_US, 2 * running.interval_us[at])
        current, hertz = (_before(rows, measured, name, at, reach_us) for name in ("motor_current", "vsd_frequency"))
        ramped = bool(hertz < _RAMPED_SHARE * speed)
        load = current / hertz**2
        if ramped:
            load = self._before_ramp(load_before, load, running.interval_us[at])
        setpoint = measured.usable.get(SETPOINT)
        told = np.nan if setpoint is None else np.fmin(setpoint[at], _before(rows, measured, SETPOINT, at, reach_us))
        steady = ramped or abs(hertz - usual_hertz) <= (1 - _RAMPED_SHARE) * usual_hertz
        if not steady or rows.t[at] - running.start_us[at] < SETTLE_US:
            load = np.nan  # A/f² compares only loads of a settled pump at about its usual speed
        return {
            "load_at_stop": float(load / usual_load),
            "stop_ramped": ramped,
            "stop_commanded": bool(told <= MIN_FREQUENCY_HZ),
        }

    @staticmethod
    def _before_ramp(mean: float, ramping: float, interval_us: float) -> float:
        """The load before a ramp: the mean of the last three 5-minute buckets, without the last if it is the ramp."""
        return (3 * mean - ramping) / 2 if interval_us >= BUCKET_US / 2 else mean


def _before(rows: Rows, measured: Measured, name: str, at: int, reach_us: float) -> float:
    """The value of a signal at the reading before row ``at``; NaN if it is older than ``reach_us``."""
    value, when_us, old, old_us = measured.seen[name]
    group = rows.group[at]
    before, before_us = (value[at - 1], when_us[at - 1]) if at > rows.first[at] else (old[group], old_us[group])
    return float(before) if rows.t[at] - before_us <= reach_us else float("nan")
