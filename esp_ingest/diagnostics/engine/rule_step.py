"""Lanes: each condition with its timer, in the order in which they run, and what one batch carries past them."""

from dataclasses import dataclass, field

import numpy as np

from esp_ingest.diagnostics.engine.columns import BatchFrame, Rows
from esp_ingest.diagnostics.engine.signals import Measured, Running
from esp_ingest.diagnostics.language.conditions import BoolArray, Condition
from esp_ingest.diagnostics.language.rules import Rule, RuleSet
from esp_ingest.model import FloatArray, Severity

# What a row says to a lane, and the phases of a lane.
OFF, ON, HOLD, SKIP, APART = range(5)
NORMAL, PENDING, ACTIVE, RETURNING, LATCHED = range(5)
QUIET, WALK, DUE_ON, DUE_OFF = range(4)
# [phase][code]: nothing happens, something does, or it does once the delay is over.
WHAT = np.array(
    [
        [QUIET, WALK, QUIET, QUIET, QUIET],
        [WALK, DUE_ON, WALK, QUIET, WALK],
        [WALK, QUIET, QUIET, QUIET, WALK],
        [DUE_OFF, WALK, QUIET, QUIET, WALK],
        [QUIET, WALK, QUIET, QUIET, QUIET],
    ],
    np.int8,
).ravel()
HELD_SUPPRESSED, HELD_SHELVED = 1, 2


@dataclass(slots=True)
class Lane:
    """One condition with its timer: a rule, or the graver step of one (``parent`` set)."""

    index: int
    rule: Rule
    condition: Condition
    severity: Severity
    parent: bool = False
    escalation: "Lane | None" = None
    suppressors: list["Lane"] = field(default_factory=list)
    upgraders: list["Lane"] = field(default_factory=list)
    exposes: bool = False  # another lane reads whether this one is active
    failed: str = ""

    @property
    def name(self) -> str:
        return f"{self.rule.name}!" if self.parent else self.rule.name


@dataclass(slots=True)
class Pass:
    """What one batch carries from step to step."""

    rows: Rows
    frame: BatchFrame
    measured: Measured
    running: Running
    frozen: dict[str, FloatArray]
    dropped: bool
    not_running: BoolArray
    not_settled: BoolArray
    active: dict[int, BoolArray] = field(default_factory=dict)
    walked: dict[int, set[int]] = field(default_factory=dict)


def lanes_of(rules: RuleSet) -> tuple[list[Lane], list[Rule]]:
    """Lanes in the order in which they run (a graver step before its rule), and the rules on silence."""
    lanes: list[Lane] = []
    stale: list[Rule] = []
    main: dict[str, Lane] = {}
    for rule in rules.rules:
        if rule.when is None:
            stale.append(rule)
            continue
        step = None
        if rule.escalation:
            step = Lane(len(lanes), rule, rule.escalation.when, rule.escalation.severity, parent=True)
            lanes.append(step)
        lane = Lane(len(lanes), rule, rule.when, rule.severity, escalation=step)
        lanes.append(lane)
        main[rule.name] = lane
        lane.suppressors = [main[name] for name in rule.suppressed_by if name in main]
        lane.upgraders = [main[name] for name in rule.upgrade.after if name in main] if rule.upgrade else []
        for other in (*lane.suppressors, *lane.upgraders):
            other.exposes = True
    return lanes, stale


def site_labels(lanes: list[Lane], count: int) -> list[str]:
    """Names for the uses of within(), so that their state survives a change elsewhere in the rules."""
    labels = [f"unused {site}" for site in range(count)]
    for lane in lanes:
        for nth, site in enumerate(lane.condition.sites):
            labels[site] = f"{lane.name} {nth}"
    return labels
