"""Rule steps: each condition with its timer, in the order in which they run, and the context of a batch."""

from dataclasses import dataclass, field

import numpy as np

from esp_ingest.diagnostics.engine.columns import BatchColumns, Rows
from esp_ingest.diagnostics.engine.signals import Measured, Running
from esp_ingest.diagnostics.language.conditions import Condition
from esp_ingest.diagnostics.language.evaluation import BoolArray
from esp_ingest.diagnostics.language.functions import FUNCTIONS
from esp_ingest.diagnostics.language.rules import Rule, RuleSet
from esp_ingest.model import FloatArray, Severity

# What a row says to a step, the phases of a step, and what a row does in a phase.
OFF, ON, HOLD, SKIP, APART = range(5)
NORMAL, PENDING, ACTIVE, RETURNING, LATCHED = range(5)
QUIET, CHANGE, DUE_ON, DUE_OFF = range(4)
# [phase][code]: nothing happens, something does, or it does once the delay is over.
WHAT = np.array(
    [
        [QUIET, CHANGE, QUIET, QUIET, QUIET],
        [CHANGE, DUE_ON, CHANGE, QUIET, CHANGE],
        [CHANGE, QUIET, QUIET, QUIET, CHANGE],
        [DUE_OFF, CHANGE, QUIET, QUIET, CHANGE],
        [QUIET, CHANGE, QUIET, QUIET, QUIET],
    ],
    np.int8,
).ravel()
HELD_SUPPRESSED, HELD_SHELVED = 1, 2


@dataclass(slots=True)
class RuleStep:
    """One condition with its timer: a rule, or the more severe step of one (``is_escalation``)."""

    index: int
    rule: Rule
    condition: Condition
    severity: Severity
    is_escalation: bool = False
    escalation: "RuleStep | None" = None
    suppressors: list["RuleStep"] = field(default_factory=list)
    upgraders: list["RuleStep"] = field(default_factory=list)
    is_read: bool = False  # another step reads whether this one is active
    active_row: int | None = None  # of "active_us", if another step reads when this one was last active
    by_bucket: bool = False  # all that it reads changes only when a 5-minute bucket is closed: judged then
    failed: str = ""

    def __post_init__(self) -> None:
        self.by_bucket = not self.condition.sites and all(map(_changes_by_bucket, self.condition.columns))

    @property
    def name(self) -> str:
        """The name of the rule, with ``!`` for its more severe step."""
        return f"{self.rule.name}!" if self.is_escalation else self.rule.name


@dataclass(slots=True)
class BatchContext:
    """What one batch carries from step to step."""

    rows: Rows
    columns: BatchColumns
    measured: Measured
    running: Running
    frozen: dict[str, FloatArray]
    dropped: bool
    not_running: BoolArray
    not_settled: BoolArray
    not_opened: BoolArray  # the row is not the first of its 5-minute bucket
    busy: list[bool]  # by step: it is pending, active or returning at some well of the batch
    active: dict[int, BoolArray] = field(default_factory=dict)
    changed_wells: dict[int, set[int]] = field(default_factory=dict)


def _changes_by_bucket(key: tuple[object, ...]) -> bool:
    """Whether a column is made when buckets close, or is configured, or tells what is measured at all."""
    name = str(key[0])
    if name in ("limit", "parameter", "measured"):
        return True
    return name in FUNCTIONS and FUNCTIONS[name].evaluate is None


def steps_of(rules: RuleSet) -> tuple[list[RuleStep], list[Rule]]:
    """The steps in the order in which they run (a more severe step before its rule), and the rules on silence."""
    steps: list[RuleStep] = []
    stale: list[Rule] = []
    main: dict[str, RuleStep] = {}
    for rule in rules.rules:
        if rule.when is None:
            stale.append(rule)
            continue
        escalation = None
        if rule.escalation:
            escalation = RuleStep(len(steps), rule, rule.escalation.when, rule.escalation.severity, is_escalation=True)
            steps.append(escalation)
        step = RuleStep(len(steps), rule, rule.when, rule.severity, escalation=escalation)
        steps.append(step)
        main[rule.name] = step
        step.suppressors = [main[name] for name in rule.suppressed_by if name in main]
        step.upgraders = [main[name] for name in rule.upgrade.after if name in main] if rule.upgrade else []
        for other in (*step.suppressors, *step.upgraders):
            other.is_read = True
    for row, step in enumerate(noted_of(steps)):
        step.active_row = row
    return steps, stale


def noted_of(steps: list[RuleStep]) -> list[RuleStep]:
    """The steps of which another one reads when they were last active, in order."""
    read = {id(other) for step in steps for other in step.upgraders}
    return [step for step in steps if id(step) in read]


def site_labels(steps: list[RuleStep], count: int) -> list[str]:
    """Names for the uses of within(), so that their state survives a change elsewhere in the rules."""
    labels = [f"unused {site}" for site in range(count)]
    for step in steps:
        for nth, site in enumerate(step.condition.sites):
            labels[site] = f"{step.name} {nth}"
    return labels
