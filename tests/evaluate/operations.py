"""What operators and the power supply do, simulated: each operation has its own name, or silence, and is no fault."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from esp_ingest.demo.fleet import Fleet
from esp_ingest.diagnostics.dry_run import DryRun
from esp_ingest.diagnostics.language.rules import RuleSet
from esp_ingest.model import SIGNAL_ROW, DiagnosticRow, FloatArray, Severity
from tests.evaluate.examples import Change, reversed_start, scaled, short_run, short_stop
from tests.evaluate.simulated import in_batches, rule_set

ALARMS = (Severity.CRITICAL, Severity.HIGH, Severity.MEDIUM)
INTERVALS = (60.0, 300.0)
SEEDS = (1, 2, 3)
ONSET_HOURS, _HOURS = 30.0, 48.0
PUMPING = ("motor_current", "vsd_frequency", "flow_rate")

# A pump slowed from 60 to 50 Hz gives more than a sixth less, for the head falls with the square; the well fills up.
SLOWED: dict[str, Change] = {
    "vsd_frequency": scaled(50 / 60),
    "motor_current": scaled((50 / 60) ** 2),
    "flow_rate": scaled(0.7, 0.5),
    "pip": scaled(1.12, 2),
    "discharge_pressure": scaled(0.97, 0.5),
}
PINCHED: dict[str, Change] = {
    "flow_rate": scaled(0.75, 0.2),
    "pip": scaled(1.1, 1),
    "discharge_pressure": scaled(1.11, 0.5),
    "motor_current": scaled(0.97, 0.2),
}


def with_exponent(exponent: float, to_hz: float) -> dict[str, Change]:
    """Another speed, with a current that follows it by this exponent, and the flow with it."""
    speed = to_hz / 60
    return {
        "vsd_frequency": scaled(speed), "motor_current": scaled(speed**exponent), "flow_rate": scaled(speed, 0.2),
        "pip": scaled(speed**-0.5, 1), "discharge_pressure": scaled(speed**0.3, 0.5),
    }  # fmt: skip


def filling(values: FloatArray, t: FloatArray) -> FloatArray:
    return np.where(t >= 0, values * 1.15, values)


REVERSED: dict[str, Change] = {
    "motor_current": reversed_start(0.6), "vsd_frequency": reversed_start(1), "flow_rate": reversed_start(0.2),
    "pip": filling,
}  # fmt: skip
DRY: dict[str, Change] = {
    "motor_current": reversed_start(0.5), "vsd_frequency": reversed_start(1), "flow_rate": reversed_start(0),
    "pip": filling,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Operation:
    """``expected`` is what the rules are to say of it at one of its ``wells`` at least; an alarm that is not
    among them is a fault of the rules. ``most`` alarms may be seen of all wells together."""

    name: str
    changes: Mapping[str, Change]
    expected: Mapping[str, Severity]
    most: int
    wells: int = 1


OPERATIONS = (
    Operation("slowed from 60 to 50 Hz", SLOWED, {"speed_step": Severity.INFO}, 0),
    Operation("choke pinched", PINCHED, {"back_pressure": Severity.INFO}, 0),
    Operation("faster, 60 to 66 Hz, current ~ f²", with_exponent(2, 66), {"speed_step": Severity.INFO}, 0),
    Operation("faster, 60 to 66 Hz, current ~ f^0.6", with_exponent(0.6, 66), {"speed_step": Severity.INFO}, 0),
    Operation(
        "turns backwards after a restart",
        REVERSED,
        {"trip": Severity.MEDIUM, "start_without_flow": Severity.HIGH},
        2,
    ),
    Operation("restart without flow", DRY, {"trip": Severity.MEDIUM, "start_without_flow": Severity.HIGH}, 2),
    Operation(
        "power dip of 10 minutes, 100 wells",
        dict.fromkeys(PUMPING, short_stop),
        {"common_stop": Severity.MEDIUM, "trip": Severity.MEDIUM},
        5,
        wells=100,
    ),
    Operation(
        "one quick restart",
        dict.fromkeys(PUMPING, short_stop),
        {"trip": Severity.MEDIUM, "early_restart": Severity.LOW},
        1,
    ),
    Operation(
        "start that fails after an hour",
        dict.fromkeys(PUMPING, short_run),
        {"trip": Severity.MEDIUM, "failed_start": Severity.LOW},
        2,
    ),
)


@dataclass(frozen=True)
class Judged:
    """What an operator saw of one operation at one seed and interval, from its onset on."""

    operation: Operation
    seed: int
    interval_seconds: float
    before: list[DiagnosticRow]
    seen: list[DiagnosticRow]

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        return Counter((row.diagnosis, row.severity.value) for row in self.seen)

    @property
    def alarms(self) -> list[DiagnosticRow]:
        return [row for row in self.seen if row.severity in ALARMS]

    @property
    def faults(self) -> list[str]:
        """What is wrong with what the rules said; empty where all is as it must be."""
        expected, said = self.operation.expected, self.counts
        found = [f"{row.diagnosis} before it" for row in self.before]
        found += [f"no {name} ({severity})" for name, severity in expected.items() if not said[name, severity.value]]
        found += sorted({f"{row.diagnosis} ({row.severity})" for row in self.alarms if row.diagnosis not in expected})
        if len(self.alarms) > self.operation.most:
            found.append(f"{len(self.alarms)} alarms, at most {self.operation.most}")
        return found


def judged(operation: Operation, seed: int, interval_seconds: float, using: RuleSet) -> Judged:
    fleet = Fleet(operation.wells, seed, interval_seconds, spread=False)
    dry_run = DryRun(using)
    onset_us: int | None = None
    for batch in in_batches(fleet.run(round(_HOURS * 3_600 / interval_seconds))):
        if onset_us is None:
            onset_us = int(batch.timestamp_us[0]) + round(ONSET_HOURS * 3.6e9)
        since = (batch.timestamp_us - onset_us) / 3.6e9
        for name, change in operation.changes.items():
            batch.values[SIGNAL_ROW[name]] = change(batch.values[SIGNAL_ROW[name]], since)
        dry_run.feed(batch)
    assert onset_us is not None
    assert not dry_run.engine.failed_rules(), dry_run.engine.failed_rules()
    rows = dry_run.seen()
    before = [row for row in rows if row.raised_us < onset_us]
    return Judged(operation, seed, interval_seconds, before, [row for row in rows if row.raised_us >= onset_us])


def every(
    operations: Sequence[Operation] = OPERATIONS,
    seeds: Sequence[int] = SEEDS,
    intervals: Sequence[float] = INTERVALS,
    using: RuleSet | None = None,
) -> Iterator[Judged]:
    rules = using or rule_set()
    for operation in operations:
        for interval in intervals:
            for seed in seeds[:1] if operation.wells > 1 else seeds:
                yield judged(operation, seed, interval, rules)
