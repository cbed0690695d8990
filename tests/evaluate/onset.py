"""Slugging that begins at a simulated well that was quiet for weeks: a few alarms, and a stop is still announced."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from esp_ingest.demo.fleet import DEFAULT_START_US, Fleet
from esp_ingest.diagnostics.dry_run import DryRun
from esp_ingest.diagnostics.language.rules import RuleSet
from esp_ingest.model import SIGNAL_ROW, DiagnosticRow, FloatArray, Readings, Severity
from tests.evaluate.operations import ALARMS
from tests.evaluate.simulated import in_batches, rule_set

QUIET_HOURS, SLUGGING_HOURS = 30 * 24.0, 72.0
SEEDS = (1, 2, 3, 4, 5, 6)
INTERVALS = (60.0, 300.0)
_EVERY_HOURS = 3.0
_STOP_HOURS = 1.5  # from the begin of the drop that goes on into the stop


@dataclass(frozen=True)
class Onset:
    """``drops`` of 25 to 40 % for 20 to 30 minutes, 8 a day. If it ``stops``, the last one goes on: the intake falls,
    the load falls further after an hour, and after another half the pump trips. At most ``most`` alarms in three days,
    that stop and its warnings included."""

    name: str
    drops: int
    stops: bool
    most: int


ONSETS = (
    Onset("drops 8 times a day from then on", 24, False, 7),
    Onset("the 12th drop goes on into a stop", 12, True, 10),
    Onset("three drops, and then nothing", 3, False, 4),
)


@dataclass(frozen=True)
class Judged:
    """What an operator saw of one case, from the first drop on. ``stop_us``: of the pump, None if it does not stop."""

    onset: Onset
    seed: int
    interval_seconds: float
    flow_is_measured: bool
    before: list[DiagnosticRow]
    seen: list[DiagnosticRow]
    stop_us: int | None

    @property
    def alarms(self) -> list[DiagnosticRow]:
        return [row for row in self.seen if row.severity in ALARMS]

    @property
    def lead_minutes(self) -> float:
        """From the first warning in the last drop to the stop; 0 if there is none or no stop."""
        if self.stop_us is None:
            return 0.0
        warnings = [row.raised_us for row in self.alarms if row.severity is not Severity.MEDIUM]
        since = self.stop_us - round(_STOP_HOURS * 3.6e9)
        return (self.stop_us - min((at for at in warnings if since <= at < self.stop_us), default=self.stop_us)) / 6e7

    @property
    def faults(self) -> list[str]:
        found = [f"{row.diagnosis} before it" for row in self.before]
        if len(self.alarms) > self.onset.most:
            found.append(f"{len(self.alarms)} alarms, at most {self.onset.most}")
        begun = sum(row.diagnosis == "slugging_begun" for row in self.seen)
        if begun != (self.onset.drops > 3):
            found.append(f"{begun} times said that it has begun")
        if self.onset.stops and not self.lead_minutes:
            found.append("no warning of the stop")
        return found


def judged(onset: Onset, seed: int, interval_seconds: float, flow_is_measured: bool, using: RuleSet) -> Judged:
    random = np.random.default_rng(seed)
    drops = [
        (
            QUIET_HOURS + _EVERY_HOURS * nth + random.uniform(0, 1.5),
            random.uniform(1 / 3, 1 / 2),
            random.uniform(0.6, 0.75),
        )
        for nth in range(onset.drops)
    ]
    fleet, dry_run = Fleet(1, seed, interval_seconds, spread=False), DryRun(using)
    for batch in in_batches(fleet.run(round((QUIET_HOURS + SLUGGING_HOURS) * 3_600 / interval_seconds))):
        hours = (batch.timestamp_us - DEFAULT_START_US) / 3.6e9
        for begin, length, load in drops[: -1 if onset.stops else None]:
            _scale(batch, (hours >= begin) & (hours < begin + length), motor_current=load, flow_rate=load)
        if onset.stops:
            _stop(batch, hours - drops[-1][0])
        if not flow_is_measured:
            batch.values[SIGNAL_ROW["flow_rate"]] = np.nan
        dry_run.feed(batch)
    assert not dry_run.engine.failed_rules(), dry_run.engine.failed_rules()
    since = DEFAULT_START_US + round(QUIET_HOURS * 3.6e9)
    before = [row for row in dry_run.seen() if row.raised_us < since]
    seen = [row for row in dry_run.seen() if row.raised_us >= since]
    trips = [row.raised_us for row in seen if row.diagnosis == "trip"]
    return Judged(onset, seed, interval_seconds, flow_is_measured, before, seen, trips[0] if trips else None)


def _stop(batch: Readings, hours: FloatArray) -> None:
    """Pump-off, then a gas lock, then a trip, from the begin of a drop on."""
    lasts = (hours >= 0) & (hours < _STOP_HOURS)
    _scale(batch, lasts, motor_current=0.7, flow_rate=0.65, pip=1 - 0.12 * np.clip(hours, 0, 1)[lasts])
    _scale(batch, lasts & (hours >= 1), motor_current=0.8, flow_rate=0.5)
    _scale(batch, hours >= _STOP_HOURS, motor_current=0.0, flow_rate=0.0, vsd_frequency=0.0)


def _scale(batch: Readings, some: "np.ndarray[tuple[int], np.dtype[np.bool_]]", **factors: float | FloatArray) -> None:
    for name, factor in factors.items():
        batch.values[SIGNAL_ROW[name], some] *= factor


def every(
    seeds: Sequence[int] = SEEDS, intervals: Sequence[float] = INTERVALS, using: RuleSet | None = None
) -> Iterator[Judged]:
    rules = using or rule_set()
    for onset in ONSETS:
        for interval in intervals:
            for seed in seeds if interval == max(INTERVALS) else seeds[:1]:
                for flow_is_measured in (True, False):
                    yield judged(onset, seed, interval, flow_is_measured, rules)
