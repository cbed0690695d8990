"""A rule set: rules, limits, and what groups and wells change of them.

A rule set is immutable. A reload builds a new one, and a file that cannot be used leaves the old one in force.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from esp_ingest.diagnostics.language.conditions import Condition
from esp_ingest.diagnostics.language.functions import Need, needs_of
from esp_ingest.diagnostics.language.units import Unit
from esp_ingest.errors import UsageError
from esp_ingest.model import Severity

SEVERITIES = tuple(severity.value for severity in Severity)
BASELINES = ("learns", "held", "free")
APPLIES = ("settled", "running", "always")


class RulesError(UsageError):
    """The rules cannot be used. The message is one sentence that names file, place and key; ``mistakes`` has one for
    each rule, group or well that is wrong, so that a file is put right in one go."""

    def __init__(self, message: str, mistakes: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.mistakes = tuple(mistakes) or (message,)


@dataclass(frozen=True, slots=True)
class Escalation:
    """A second, more severe step of the same occurrence."""

    when: Condition
    on_delay_us: int
    severity: Severity


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Raised as ``severity`` where one of ``after`` was active in the ``within_us`` before."""

    severity: Severity
    after: tuple[str, ...]
    within_us: int


@dataclass(frozen=True, slots=True)
class Stale:
    """The rule on silence: ``after`` and ``escalate_after`` are multiples of the usual interval between readings."""

    after: float
    escalate_after: float
    escalate_severity: Severity
    minimum_us: int


@dataclass(frozen=True, slots=True)
class Rule:
    """One diagnosis. Texts are for people; everything else is in microseconds and base units."""

    name: str
    title: str
    severity: Severity
    when: Condition | None
    on_delay_us: int
    off_delay_us: int
    remind_us: int
    applies: str
    latching: bool
    skip_dropouts: bool
    baseline: str
    enabled: bool
    suppressed_by: tuple[str, ...]
    parameters: Mapping[str, float]
    parameter_units: Mapping[str, Unit]
    escalation: Escalation | None
    upgrade: Upgrade | None
    stale: Stale | None
    confidence: float
    seen: str
    cause: str
    consequence: str
    actions: tuple[str, ...]
    source: str
    deadband: str
    summary: str = ""  # one sentence for people, with {parameters} and {on_delay}; empty: the condition in words

    @property
    def needs_baseline(self) -> bool:
        """Whether the condition reads what is known only after hours of running."""
        if self.when is None:
            return False
        return any(Need.MEDIAN in needs_of(key) for key in self.when.columns)


@dataclass(frozen=True, slots=True)
class Override:
    """What a group or a well changes: limits by name, and by rule its delays, severity, parameters, or enabled."""

    where: str
    wells: tuple[str, ...]
    limits: Mapping[str, float]
    rules: Mapping[str, Mapping[str, Any]]

    def covers(self, well: str) -> bool:
        """Whether these settings apply to ``well``."""
        return any(fnmatch.fnmatchcase(well, pattern) for pattern in self.wells)


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Every rule, in an order in which each comes after the ones it depends on."""

    path: str
    rules: tuple[Rule, ...]
    limits: Mapping[str, Unit]
    limit_defaults: Mapping[str, float]
    extra_signals: Mapping[str, Unit]
    overrides: tuple[Override, ...]
    sites: int
    warnings: tuple[str, ...] = field(default=())

    def rule(self, name: str) -> Rule:
        """The rule called ``name``. Raises KeyError if there is none."""
        for rule in self.rules:
            if rule.name == name:
                return rule
        raise KeyError(name)

    def limits_of(self, well: str) -> dict[str, float]:
        """The limits in force for ``well``, in base units: defaults, then groups, then the well's own."""
        found = dict(self.limit_defaults)
        for override in self.overrides:
            if override.covers(well):
                found.update(override.limits)
        return found

    def settings_of(self, rule: Rule, well: str) -> dict[str, Any]:
        """Delays (µs), severity, enabled and parameters of ``rule`` for ``well``."""
        found: dict[str, Any] = {
            "enabled": rule.enabled,
            "on_delay_us": rule.on_delay_us,
            "off_delay_us": rule.off_delay_us,
            "severity": rule.severity,
            **rule.parameters,
        }
        for override in self.overrides:
            if override.covers(well):
                found.update(override.rules.get(rule.name, {}))
        return found
