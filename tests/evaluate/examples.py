"""An example a rule, simulated: what the page of the rule shows, and what the rule says of it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from esp_ingest.config.pumps import Pump, PumpsSettings
from esp_ingest.demo.fleet import Fault, FaultName, Fleet
from esp_ingest.diagnostics.dry_run import DryRun
from esp_ingest.diagnostics.pump_limits import with_pumps
from esp_ingest.model import SIGNAL_ROW, DiagnosticRow, FloatArray, Readings
from tests.evaluate.simulated import in_batches, rule_set

HOUR = 3_600.0
Change = Callable[[FloatArray, FloatArray], FloatArray]  # (values, hours since onset) → values


@dataclass(frozen=True)
class Example:
    """A simulated well at 5-minute samples that goes wrong at ``onset_hours``, by a fault of the simulator or by
    ``changes`` to its signals; ``panels`` are drawn."""

    panels: tuple[str, ...]
    fault: FaultName | None = None
    changes: Mapping[str, Change] = field(default_factory=dict)
    extra: str = ""  # name of an extra signal, which is 12 from the onset on and 2 before
    pumps: PumpsSettings = field(default_factory=PumpsSettings)  # for the rules on the operating point
    ahead_seconds: float = 0.0  # of the device's clock, from the onset on
    wells: int = 1  # that all change so; the first is shown
    onset_hours: float = 10.0
    hours: float = 15.0


@dataclass(frozen=True)
class Shown:
    """An example played: hours since its start, its readings, and the rule's occurrences."""

    hours: FloatArray
    readings: Readings
    occurrences: list[DiagnosticRow]
    start_us: int

    def hour_of(self, at_us: int) -> float:
        return (at_us - self.start_us) / 3.6e9


def scaled(factor: float, over_hours: float = 0.0, until: float = float("inf")) -> Change:
    """By ``factor`` from the onset on, reached in ``over_hours``; as before after ``until`` hours."""

    def change(values: FloatArray, t: FloatArray) -> FloatArray:
        share = np.clip(t / over_hours, 0, 1) if over_hours else (t >= 0).astype(float)
        return np.where(t < until, values * (1 + (factor - 1) * share), values)

    return change


def shifted(by: float, over_hours: float = 0.0) -> Change:
    def change(values: FloatArray, t: FloatArray) -> FloatArray:
        return values + by * (np.clip(t / over_hours, 0, 1) if over_hours else (t >= 0))

    return change


def crept(factor: float) -> Change:
    """To ``factor`` in 60 days."""
    return scaled(factor, 60 * 24)


def hunting(values: FloatArray, t: FloatArray) -> FloatArray:
    return np.where(t >= 0, values * (1 + 0.16 * np.sin(t * 2 * np.pi / 0.37)), values)


def slugs(values: FloatArray, t: FloatArray) -> FloatArray:
    """The load drops to 70 % for half an hour, eight times a day."""
    return np.where((t >= 0) & (t % 3 < 0.5), values * 0.7, values)


def more_slugs(values: FloatArray, t: FloatArray) -> FloatArray:
    """Four times a day, and from the ninth day on twelve times."""
    every = np.where(t < 9 * 24, 6.0, 2.0)
    return np.where((t >= 0) & (t % every < 0.5), values * 0.7, values)


def stops(values: FloatArray, t: FloatArray) -> FloatArray:
    """Stopped for 20 minutes of every 80."""
    return np.where((t >= 0) & (t % (4 / 3) < 1 / 3), 0.0, values)


def ramped_stop(power: int) -> Change:
    """Run down in a quarter of an hour, and started again after two hours; current goes with the speed's square."""

    def change(values: FloatArray, t: FloatArray) -> FloatArray:
        return np.where(t < 2, values * (1 - np.clip(t / 0.25, 0, 1)) ** power, values)

    return change


def short_stop(values: FloatArray, t: FloatArray) -> FloatArray:
    """Stopped for ten minutes, as by a dip of the power."""
    return np.where((t >= 0) & (t < 1 / 6), 0.0, values)


def short_run(values: FloatArray, t: FloatArray) -> FloatArray:
    """Stopped for an hour, started, and stopped again after another."""
    return np.where((t >= 0) & ((t < 1) | (t > 2)), 0.0, values)


# The pump of the simulated well: 2 100 psi at shut-in, 1 500 psi at 1 000 bbl/d (see esp_ingest/demo/fleet.py).
PUMP = Pump(
    coefficients=[5_250, 0, -0.0015],
    coefficients_to_bpd=1_800,
    recommended_bpd=(700, 1_250),
    bubble_point_psi=1_700,
    reservoir_pressure_psi=3_200,
    max_drawdown_psi=1_500,
)
PUMPS = PumpsSettings(by_well={"sim-00000": PUMP})


def reversed_start(share: float) -> Change:
    """Stopped for an hour, and from the start on at ``share`` of before: the pump turns backwards."""

    def change(values: FloatArray, t: FloatArray) -> FloatArray:
        return np.where(t < 0, values, np.where(t < 1, 0.0, values * share))

    return change


EXAMPLES: dict[str, Example] = {
    "gas_lock": Example(("motor_current", "flow_rate", "pip"), FaultName.GAS_LOCK),
    "underload": Example(("motor_current", "vsd_frequency"), changes={"motor_current": scaled(0.76, 0.5, 3)}),
    "no_flow": Example(
        ("motor_current", "flow_rate", "intake_temp"),
        changes={"motor_current": scaled(0.82, 0.4), "flow_rate": scaled(0.1, 0.4), "intake_temp": shifted(24, 0.5)},
    ),
    "gas_interference": Example(("motor_current", "vsd_frequency"), changes={"motor_current": hunting}),
    "slugging": Example(("motor_current",), changes={"motor_current": slugs}, hours=5 * 24.0),
    "slugging_begun": Example(("motor_current",), changes={"motor_current": slugs}, onset_hours=48.0, hours=96.0),
    "slugging_spell": Example(("motor_current",), changes={"motor_current": slugs}, onset_hours=48.0, hours=96.0),
    "hunting": Example(("motor_current",), changes={"motor_current": hunting}, hours=4 * 24.0),
    "slugging_worse": Example(("motor_current",), changes={"motor_current": more_slugs}, hours=21 * 24.0),
    "pump_off": Example(("motor_current", "pip", "flow_rate"), FaultName.PUMP_OFF),
    "low_flow": Example(("flow_rate",), changes={"flow_rate": scaled(0.7, 1)}),
    "high_gor": Example(("gor",), changes={"gor": scaled(2.4, 1)}),
    "dead_head": Example(("flow_rate", "pip", "discharge_pressure"), FaultName.DEAD_HEAD),
    "broken_shaft": Example(("motor_current", "flow_rate", "pip"), FaultName.BROKEN_SHAFT),
    "tubing_leak": Example(("flow_rate", "motor_current", "pip"), FaultName.TUBING_LEAK),
    "blocked_intake": Example(
        ("flow_rate", "motor_current", "pip"),
        changes={"flow_rate": scaled(0.78, 36), "motor_current": scaled(0.88, 36), "pip": scaled(1.03, 36)},
        onset_hours=7 * 24.0,
        hours=11 * 24.0,
    ),
    "solids": Example(
        ("motor_current", "vibration"), changes={"motor_current": scaled(1.22, 1), "vibration": scaled(1.8, 1)}
    ),
    "overload": Example(("motor_current",), FaultName.OVERLOAD),
    "motor_hot": Example(("motor_temp",), FaultName.MOTOR_HOT),
    "motor_heating": Example(("motor_temp", "vsd_frequency"), changes={"motor_temp": shifted(60, 1.0)}),
    "vibration": Example(("vibration",), FaultName.VIBRATION),
    "frequency_deviation": Example(("vsd_frequency",), changes={"vsd_frequency": shifted(-4)}),
    "current_imbalance": Example(("current_imbalance",), extra="current_imbalance"),
    "leakage": Example(("leakage_current",), changes={"leakage_current": scaled(2.2, 1)}),
    "trip": Example(("motor_current", "vsd_frequency"), FaultName.TRIP),
    "common_stop": Example(
        ("motor_current", "vsd_frequency"),
        changes={"motor_current": short_stop, "vsd_frequency": short_stop, "flow_rate": short_stop},
        wells=20,
    ),
    "planned_stop": Example(
        ("motor_current", "vsd_frequency"),
        changes={"motor_current": ramped_stop(2), "vsd_frequency": ramped_stop(1), "flow_rate": ramped_stop(1)},
    ),
    "cycling": Example(
        ("motor_current", "vsd_frequency"),
        changes={"motor_current": stops, "vsd_frequency": stops, "flow_rate": stops},
    ),
    "early_restart": Example(
        ("motor_current", "vsd_frequency"),
        changes={"motor_current": short_stop, "vsd_frequency": short_stop, "flow_rate": short_stop},
    ),
    "failed_start": Example(
        ("motor_current", "vsd_frequency"),
        changes={"motor_current": short_run, "vsd_frequency": short_run, "flow_rate": short_run},
    ),
    "speed_step": Example(
        ("vsd_frequency", "flow_rate"),
        changes={
            "vsd_frequency": scaled(50 / 60),
            "motor_current": scaled((50 / 60) ** 2),
            "flow_rate": scaled(0.7, 0.5),
        },
    ),
    "pump_wear": Example(
        ("flow_rate", "pip", "discharge_pressure"),
        changes={
            "flow_rate": crept(0.8),
            "pip": crept(1.1),
            "discharge_pressure": crept(0.96),
            "motor_current": crept(0.93),
        },
        onset_hours=9 * 24.0,
        hours=40 * 24.0,
    ),
    "scale_or_sand": Example(
        ("motor_current", "vibration"),
        changes={"motor_current": crept(1.2), "vibration": crept(1.6)},
        onset_hours=9 * 24.0,
        hours=45 * 24.0,
    ),
    "inflow_decline": Example(
        ("pip", "flow_rate"),
        changes={"pip": crept(0.75), "flow_rate": crept(0.8), "motor_current": crept(0.93)},
        onset_hours=9 * 24.0,
        hours=45 * 24.0,
    ),
    "insulation_decline": Example(
        ("leakage_current",), changes={"leakage_current": crept(2.0)}, onset_hours=9 * 24.0, hours=40 * 24.0
    ),
    "gauge_drift": Example(("pip", "flow_rate"), changes={"pip": crept(1.2)}, onset_hours=9 * 24.0, hours=45 * 24.0),
    "downthrust": Example(("flow_rate", "vsd_frequency"), changes={"flow_rate": scaled(0.6, 0.5)}, pumps=PUMPS),
    "upthrust": Example(("flow_rate", "vsd_frequency"), changes={"flow_rate": scaled(1.4, 0.5)}, pumps=PUMPS),
    "below_bubble_point": Example(("pip",), changes={"pip": scaled(0.8, 1)}, pumps=PUMPS),
    "high_drawdown": Example(("pip",), changes={"pip": scaled(0.8, 1)}, pumps=PUMPS),
    "frequency_tag": Example(("vsd_frequency", "motor_current", "pip"), changes={"vsd_frequency": shifted(-5)}),
    "start_without_flow": Example(
        ("motor_current", "vsd_frequency", "flow_rate"),
        changes={
            "motor_current": reversed_start(0.6),
            "vsd_frequency": reversed_start(1),
            "flow_rate": reversed_start(0.2),
        },
    ),
    "back_pressure": Example(
        ("flow_rate", "discharge_pressure"),
        changes={"flow_rate": scaled(0.75, 0.2), "discharge_pressure": scaled(1.11, 0.5), "pip": scaled(1.1, 1)},
    ),
    "new_habit": Example(
        ("flow_rate", "pip"),
        changes={"flow_rate": scaled(0.7, 1), "pip": scaled(1.12, 2)},
        onset_hours=24.0,
        hours=17 * 24.0,
    ),
    "gauge_dropout": Example(("pip", "motor_temp"), FaultName.GAUGE_DROPOUT),
    "gauge_failure": Example(("pip", "discharge_pressure"), changes={"pip": shifted(2_500)}),
    "frozen_signal": Example(("pip", "motor_current"), FaultName.FROZEN_SIGNAL),
    "stale_well": Example(("motor_current",), FaultName.STALE),
    "clock_skew": Example(("motor_current",), ahead_seconds=150),
}


def play(rule: str) -> Shown:
    """The example of ``rule``, with the occurrences that it raised."""
    example = EXAMPLES[rule]
    planned = [] if example.fault is None else [Fault(example.fault, 0, example.onset_hours * HOUR, _length(example))]
    fleet = Fleet(example.wells, 3, 300.0, planned, spread=False)
    readings = next(in_batches(fleet.run(round(example.hours * 12)), rows=10**9))
    start = int(readings.timestamp_us[0])
    hours = (readings.timestamp_us - start) / 3.6e9
    since = hours - example.onset_hours
    for name, change in example.changes.items():
        row = SIGNAL_ROW[name]
        readings.values[row] = change(readings.values[row], since)
    if example.extra:
        readings.extra = {at: json.dumps({example.extra: 12 if t >= 0 else 2}) for at, t in enumerate(since.tolist())}
    ahead_us = np.where(since >= 0, example.ahead_seconds * 1e6, 0).astype(np.int64)
    readings.received_us = readings.timestamp_us + 1_000_000 - ahead_us
    dry_run = DryRun(with_pumps(rule_set(), example.pumps))
    dry_run.feed(readings)
    first = np.flatnonzero(readings.well_index == 0)
    rows = [row for row in dry_run.seen() if row.diagnosis == rule and row.well_id == fleet.wells[0]]
    return Shown(hours[first], readings.select(first), rows, start)


def _length(example: Example) -> float:
    return HOUR if example.fault is FaultName.STALE else float("inf")
