"""Slow faults of simulated wells, each to be named by its rule in time; what operators do over months, and wells in
good health, which are to be left in peace."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from esp_ingest.demo.fleet import DEFAULT_START_US, Fleet
from esp_ingest.diagnostics.dry_run import DryRun
from esp_ingest.diagnostics.language.rules import RuleSet
from esp_ingest.model import SIGNAL_ROW, DiagnosticRow, FloatArray, Severity
from tests.evaluate.examples import Change
from tests.evaluate.simulated import Health, in_batches, rule_set

DAY_SECONDS = 86_400.0
SLOW_RULES = (
    "pump_wear",
    "scale_or_sand",
    "inflow_decline",
    "insulation_decline",
    "gauge_drift",
    "frequency_tag",
)
_INTERVAL_SECONDS = 900.0
_HEALTHY_INTERVAL_SECONDS = 1_800.0  # a sample each half-hour is the least that the trends of a day can be made of
_DAYS = 60.0


class WearingFleet(Fleet):
    """A fleet whose pumps lose ``share`` of their head at equal flow in ``days``; the rate follows from the balance."""

    share, days = 0.25, _DAYS

    def _conditions(self, seconds: FloatArray) -> Any:
        conditions, silent, effects = super()._conditions(seconds)
        conditions.head *= 1 - self.share * np.clip(seconds / DAY_SECONDS / self.days, 0, 1)[:, None]
        return conditions, silent, effects


def creep(factor: float, from_day: float = 0.0) -> Change:
    """To ``factor`` in 60 days; the time is in hours."""
    return lambda values, hours: values * (1 + (factor - 1) * np.clip((hours / 24 - from_day) / _DAYS, 0, None))


def at_once(factor: float, day: float = 20.0) -> Change:
    return lambda values, hours: np.where(hours >= 24 * day, values * factor, values)


def steps(factor: float, every_days: float) -> Change:
    """By ``factor`` again after each so many days."""
    return lambda values, hours: values * factor ** np.floor(hours / 24 / every_days)


def hopping(values: FloatArray, hours: FloatArray) -> FloatArray:
    """From one frequency to another and back, a day each, from the sixth day on."""
    return np.where((hours > 6 * 24) & (hours // 24 % 2 == 1), values - 5, values)


def frozen(values: FloatArray, hours: FloatArray) -> FloatArray:
    return np.where(hours >= 5 * 24, 2_000.0, values)


@dataclass(frozen=True, eq=False)
class Slow:
    """A slow fault: ``rule`` is to name it by ``by_day``; an operation has no rule. ``changes`` are to the signals of a
    healthy fleet, ``fleet`` is the fleet."""

    name: str
    rule: str
    by_day: float
    changes: Mapping[str, Change] = field(default_factory=dict)
    fleet: type[Fleet] = Fleet


SLOW = (
    Slow("wear of 25 % of the head in 60 days", "pump_wear", 30, fleet=WearingFleet),
    Slow("the same without a flow meter", "pump_wear", 30, {"flow_rate": lambda v, _: v * np.nan}, WearingFleet),
    Slow(
        "scale: load +20 %, vibration +60 %",
        "scale_or_sand",
        36,
        {"motor_current": creep(1.2), "vibration": creep(1.6)},
    ),
    Slow(
        "reservoir: intake −25 %, rate −20 %",
        "inflow_decline",
        42,
        {"pip": creep(0.75), "flow_rate": creep(0.8), "motor_current": creep(0.93)},
    ),
    Slow("insulation: leakage ×2", "insulation_decline", 36, {"leakage_current": creep(2.0)}),
    Slow("gauge: intake pressure +20 %", "gauge_drift", 42, {"pip": creep(1.2), "discharge_pressure": creep(1.0)}),
    Slow("gauge frozen from day 5 on", "frozen_signal", 6.2, {"pip": frozen}),
    Slow("frequency tag of another pump", "frequency_tag", 8, {"vsd_frequency": hopping}),
)
# A pump at another speed gives another flow, head and current: the affinity laws.
OPERATIONS = (
    Slow(
        "slower by 10 % on day 20",
        "",
        0,
        {
            "vsd_frequency": at_once(0.9),
            "flow_rate": at_once(0.85),
            "motor_current": at_once(0.81),
            "pip": at_once(1.1),
            "discharge_pressure": at_once(0.97),
        },
    ),
    Slow(
        "choke pinched on day 20",
        "",
        0,
        {"flow_rate": at_once(0.85), "pip": at_once(1.06), "discharge_pressure": at_once(1.08)},
    ),
    Slow(
        "faster by half a hertz every 10 days, to keep the rate",
        "",
        0,
        {"vsd_frequency": steps(1.0083, 10), "motor_current": steps(1.0167, 10), "pip": steps(0.99, 10)},
    ),
    Slow("water breaks through: rate kept, load +8 % at once", "", 0, {"motor_current": at_once(1.08)}),
)


@dataclass(frozen=True)
class Found:
    """What the rules said of one fault at one well: days from its start."""

    slow: Slow
    well: str
    rows: list[DiagnosticRow]

    @property
    def named_day(self) -> float:
        days = [day_of(row) for row in self.rows if row.diagnosis == self.slow.rule and self._is_right(row)]
        return min(days, default=float("inf"))

    def _is_right(self, row: DiagnosticRow) -> bool:
        """A frozen gauge is named low after an hour; that it stays in use is the more severe step."""
        return self.slow.rule != "frozen_signal" or row.severity is Severity.MEDIUM

    @property
    def others(self) -> list[str]:
        """Other slow rules that spoke, and other alarms."""
        return sorted(
            {row.diagnosis for row in self.rows if row.diagnosis in SLOW_RULES and row.diagnosis != self.slow.rule}
        )

    @property
    def faults(self) -> list[str]:
        found = [f"{name} spoke too" for name in self.others]
        if self.slow.rule and self.named_day > self.slow.by_day:
            found.append(f"named on day {self.named_day:.1f}, allowed is {self.slow.by_day:g}")
        return found


def day_of(row: DiagnosticRow) -> float:
    return (row.raised_us - DEFAULT_START_US) / DAY_SECONDS / 1e6


def played(slow: Slow, wells: int = 3, seed: int = 1, days: float = _DAYS, using: RuleSet | None = None) -> list[Found]:
    """The fault at each of some wells, at 15-minute samples."""
    fleet = slow.fleet(wells, seed, _INTERVAL_SECONDS)
    dry_run = DryRun(using or rule_set())
    for batch in in_batches(fleet.run(round(days * DAY_SECONDS / _INTERVAL_SECONDS))):
        hours = (batch.timestamp_us - DEFAULT_START_US) / 3.6e9
        for name, change in slow.changes.items():
            batch.values[SIGNAL_ROW[name]] = change(batch.values[SIGNAL_ROW[name]], hours)
        dry_run.feed(batch)
    assert not dry_run.engine.failed_rules(), dry_run.engine.failed_rules()
    return [Found(slow, well, [row for row in dry_run.seen() if row.well_id == well]) for well in fleet.wells]


def every(
    kinds: Sequence[Slow] = (*SLOW, *OPERATIONS), seeds: Sequence[int] = (1, 2, 3), using: RuleSet | None = None
) -> Iterator[Found]:
    for slow in kinds:
        for seed in seeds:
            yield from played(slow, seed=seed, using=using)


def healthy(wells: int = 100, days: float = 365.0, seed: int = 1, using: RuleSet | None = None) -> Health:
    """What the slow rules raise over a fleet in good health."""
    fleet = Fleet(wells, seed, _HEALTHY_INTERVAL_SECONDS)
    dry_run = DryRun(using or rule_set())
    for batch in in_batches(fleet.run(round(days * DAY_SECONDS / _HEALTHY_INTERVAL_SECONDS))):
        dry_run.feed(batch)
    assert not dry_run.engine.failed_rules(), dry_run.engine.failed_rules()
    raised = Counter((row.diagnosis, row.severity.value) for row in dry_run.seen() if row.diagnosis in SLOW_RULES)
    return Health(wells, days, raised)
