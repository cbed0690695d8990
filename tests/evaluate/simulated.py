"""Simulated faults, each to be named by the right rule in time with no other critical; and a fleet in good health."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from esp_ingest.demo.fleet import DEFAULT_START_US, Fault, FaultName, Fleet
from esp_ingest.diagnostics.dry_run import DryRun
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.diagnostics.language.rules import RuleSet
from esp_ingest.model import DiagnosticRow, Readings, Severity
from esp_ingest.resources import config_file
from esp_ingest.telemetry.joining import stacked

MINUTE_US = 60_000_000
SEEDS = (1, 2, 3, 4, 5)
INTERVALS = (1.0, 300.0)
BASELINE_SECONDS = 8 * 3_600.0
FAULT_SECONDS = 3 * 3_600.0
# What the makers of pump and motor would give for the simulated fleet.
LIMITS = """
[groups.simulated]
wells = ["sim-*"]
limits.motor_current = "55 A"
limits.motor_temp = "300 °F"
limits.flow_low = "500 bbl/d"
limits.gor = "600 scf/bbl"
limits.pip_low = "500 psi"
"""


@dataclass(frozen=True)
class Expected:
    """The rule that names a fault, and by when: how long the well itself takes to show it (see docs/simulator.md), the
    rule's on-delay, two samples, and a 5-minute bucket and another sample where the rule reads closed buckets."""

    diagnosis: str
    shows_after_minutes: float
    reads_buckets: bool = False


EXPECTED = {
    FaultName.GAS_LOCK: Expected("gas_lock", 2, True),
    FaultName.PUMP_OFF: Expected("pump_off", 20, True),
    FaultName.BROKEN_SHAFT: Expected("broken_shaft", 0),
    FaultName.DEAD_HEAD: Expected("dead_head", 2),
    FaultName.TUBING_LEAK: Expected("tubing_leak", 15),
    FaultName.OVERLOAD: Expected("overload", 1),
    FaultName.MOTOR_HOT: Expected("motor_hot", 40),
    FaultName.VIBRATION: Expected("vibration", 2),
    FaultName.FROZEN_SIGNAL: Expected("frozen_signal", 60),
    FaultName.GAUGE_DROPOUT: Expected("gauge_dropout", 60),
    FaultName.TRIP: Expected("trip", 0),
    FaultName.STALE: Expected("stale_well", 0),
}


def rule_set() -> RuleSet:
    """The rules that ship, with limits for the simulated fleet."""
    return rules_file.parse(config_file("rules.toml").read_text(encoding="utf-8") + LIMITS)


@dataclass
class Case:
    """One fault at one seed and interval, and what the rules said of it from its onset on."""

    fault: FaultName
    seed: int
    interval_seconds: float
    onset_us: int
    before: list[DiagnosticRow] = field(default_factory=list)
    after: list[DiagnosticRow] = field(default_factory=list)
    held_back: list[DiagnosticRow] = field(default_factory=list)  # all their life, from the onset on

    @property
    def named(self) -> DiagnosticRow | None:
        """The first occurrence of the right diagnosis."""
        return next((row for row in self.after if row.diagnosis == EXPECTED[self.fault].diagnosis), None)

    @property
    def minutes(self) -> float:
        """From onset to its name; infinite if it never got it."""
        return (self.named.raised_us - self.onset_us) / MINUTE_US if self.named else float("inf")

    def allowed_minutes(self, rule_set: RuleSet) -> float:
        expected, rule = EXPECTED[self.fault], rule_set.rule(EXPECTED[self.fault].diagnosis)
        sample = self.interval_seconds / 60
        delay = rule.on_delay_us / MINUTE_US
        if rule.stale:
            delay = max(rule.stale.after * sample, rule.stale.minimum_us / MINUTE_US)
        bucket = 5 + sample if expected.reads_buckets else 0
        return expected.shows_after_minutes + delay + bucket + 2 * sample

    def faults(self, rule_set: RuleSet) -> list[str]:
        """What is wrong with what the rules said; empty where all is as it must be."""
        found = [f"another critical: {name}" for name in self.others(Severity.CRITICAL)]
        if self.minutes > self.allowed_minutes(rule_set):
            found.append(f"named after {self.minutes:.1f} min, allowed are {self.allowed_minutes(rule_set):.1f}")
        return found + [f"{row.diagnosis} before the fault" for row in self.before]

    def others(self, *severities: Severity) -> list[str]:
        """Other diagnoses of these severities that were seen."""
        right = EXPECTED[self.fault].diagnosis
        return sorted({row.diagnosis for row in self.after if row.diagnosis != right and row.severity in severities})


def cases(
    seeds: Sequence[int] = SEEDS,
    intervals: Sequence[float] = INTERVALS,
    faults: Sequence[FaultName] = tuple(FaultName),
    using: RuleSet | None = None,
) -> Iterator[Case]:
    for interval in intervals:
        for seed in seeds:
            yield from _fleet_of_faults(seed, interval, faults, using or rule_set())


def _fleet_of_faults(seed: int, interval: float, faults: Sequence[FaultName], using: RuleSet) -> list[Case]:
    """One fleet with one fault a well, all from the same moment."""
    planned = [
        Fault(name, well, BASELINE_SECONDS, 3_600.0 if name is FaultName.STALE else float("inf"))
        for well, name in enumerate(faults)
    ]
    fleet = Fleet(len(faults), seed, interval, planned)
    dry_run = DryRun(using)
    for block in fleet.run(round((BASELINE_SECONDS + FAULT_SECONDS) / interval)):
        dry_run.feed(block)
    assert not dry_run.engine.failed_rules(), dry_run.engine.failed_rules()
    onset = DEFAULT_START_US + round(BASELINE_SECONDS * 1e6)
    found = {well: Case(name, seed, interval, onset) for well, name in zip(fleet.wells, faults, strict=True)}
    for row in dry_run.occurrences():
        case = found[row.well_id]
        seen = case.after if dry_run.was_shown(row) else case.held_back
        (seen if row.raised_us >= onset else case.before).append(row)
    return list(found.values())


# --- a fleet in good health


@dataclass
class Health:
    """What the rules raised over a healthy fleet, by diagnosis and severity."""

    wells: int
    days: float
    raised: Counter[tuple[str, str]]

    @property
    def alarms_per_10_minutes(self) -> float:
        """Of the whole fleet; events (info) are no alarms."""
        alarms = sum(count for (_, severity), count in self.raised.items() if severity != "info")
        return alarms / (self.days * 144)


def healthy(wells: int = 100, days: float = 365.0, seed: int = 1, using: RuleSet | None = None) -> Health:
    """The fleet at 1-minute samples, through the engine alone."""
    interval_seconds = 60.0
    fleet = Fleet(wells, seed, interval_seconds)
    dry_run = DryRun(using or rule_set())
    for block in in_batches(fleet.run(round(days * 86_400 / interval_seconds))):
        dry_run.feed(block)
    assert not dry_run.engine.failed_rules(), dry_run.engine.failed_rules()
    raised = Counter((row.diagnosis, row.severity.value) for row in dry_run.seen())
    return Health(wells, days, raised)


def in_batches(blocks: Iterator[Readings], rows: int = 5_000) -> Iterator[Readings]:
    """Blocks joined to batches of at least ``rows``."""
    held: list[Readings] = []
    for block in blocks:
        held.append(block)
        if sum(len(each) for each in held) >= rows:
            yield stacked(held)
            held = []
    if held:
        yield stacked(held)
