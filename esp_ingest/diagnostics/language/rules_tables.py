"""The tables of rules.toml as pydantic models: keys, types, bounds and defaults of each.

What depends on another table (a rule's name, a limit's unit) is checked by rules_file.py.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StrictBool,
    StrictStr,
    WrapValidator,
    model_validator,
)

from esp_ingest.diagnostics.language.rules import APPLIES, BASELINES, SEVERITIES, Stale
from esp_ingest.diagnostics.language.units import ConditionError, Unit, duration_us, quantity, unit_named
from esp_ingest.model import Severity
from esp_ingest.service.text import did_you_mean

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_MAX_DELAY_US = 7 * 86_400_000_000


def _delay(value: Any) -> int:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError("must be a duration, for example 10 min")
    try:
        delay = duration_us(str(value))
    except ConditionError as error:
        raise ValueError(str(error)) from None
    if delay > _MAX_DELAY_US:
        raise ValueError(f"{value!r} is longer than 7 d, in which no alarm is of use")
    return delay


def _amount(value: Any) -> str | float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be a number, or a text with a number and a unit")
    return value


def _one_of(value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is not valid{did_you_mean(str(value), known)}")
    return str(value)


def _unit(value: Any) -> Unit:
    if not isinstance(value, str):
        raise ValueError("must be text")
    try:
        return unit_named(value)
    except ConditionError as error:
        raise ValueError(str(error)) from None


def _deadband(value: Any) -> str:
    try:
        amount, _ = quantity(value)
    except ConditionError as error:
        raise ValueError(str(error)) from None
    if amount < 0:
        raise ValueError("must not be negative")
    return str(value)


def _template(text: str) -> str:
    known = ("value", "threshold", "signals", "well", "duration", "trend", "drops")
    try:
        text.format(**dict.fromkeys(known, ""))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{error} is not a placeholder (known: {', '.join(known)})") from None
    return text


Delay = Annotated[int, BeforeValidator(_delay)]  # as text in the file, in microseconds here
SeverityName = Annotated[Severity, BeforeValidator(lambda value: Severity(_one_of(value, SEVERITIES)))]
Baseline = Annotated[str, BeforeValidator(lambda value: _one_of(value, BASELINES))]
Applies = Annotated[str, BeforeValidator(lambda value: _one_of(value, APPLIES))]
UnitName = Annotated[Unit, BeforeValidator(_unit)]
Deadband = Annotated[str, BeforeValidator(_deadband)]
Amount = Annotated[str | float, WrapValidator(lambda value, _: _amount(value))]  # with a unit, or without
Number = Annotated[float, Strict()]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class DocumentTable(_Table):
    """The whole file. The tables in it are checked one by one, so that each mistake is found."""

    version: Literal[1]
    defaults: dict[str, Any] = {}
    signals: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    rules: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    wells: dict[str, Any] = {}


class DefaultsTable(_Table):
    """``[defaults]``: what holds for a rule that does not say otherwise."""

    on_delay: StrictStr = "0 s"
    off_delay: StrictStr = "0 s"
    deadband: Amount = "0 %"
    applies: Applies = "settled"
    latching: StrictBool = False
    confidence: Number = 0.8


class SignalTable(_Table):
    """``[signals.x]``: a number that controllers send beyond the built-in ones."""

    unit: UnitName
    description: StrictStr = ""


class LimitTable(_Table):
    """``[limits] x = {…}``: a limit of the equipment, with the value that holds for all wells, if there is one."""

    unit: UnitName
    description: StrictStr = ""
    default: Amount | None = None


class EscalationTable(_Table):
    """A second, more severe step of the same occurrence."""

    when: StrictStr
    on_delay: Delay = 0
    severity: SeverityName


class UpgradeTable(_Table):
    """More severe if one of the rules ``after`` was active in the time ``within`` before."""

    severity: SeverityName
    after: list[StrictStr] = []
    within: Delay = 600_000_000


class StaleTable(_Table):
    """Silence, in place of a condition: multiples of the usual interval between readings."""

    after: Number = Field(gt=1)
    escalate_after: Number
    escalate_severity: SeverityName
    minimum: Delay = 120_000_000

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.after >= self.escalate_after:
            raise ValueError("after must be below escalate_after")
        return self

    def as_stale(self) -> Stale:
        """As the rule has it."""
        return Stale(self.after, self.escalate_after, self.escalate_severity, self.minimum)


class RuleTable(_Table):
    """``[rules.x]``: one diagnosis."""

    title: StrictStr
    severity: SeverityName
    when: StrictStr | None = None
    on_delay: Delay = 0
    off_delay: Delay = 0
    remind: Delay = 0
    deadband: Deadband = "0 %"
    applies: Applies = "settled"
    latching: StrictBool = False
    skip_dropouts: StrictBool = True
    baseline: Baseline = "learns"
    enabled: StrictBool = True
    suppressed_by: list[StrictStr] = []
    parameters: dict[str, Amount] = {}
    escalation: EscalationTable | None = None
    upgrade: UpgradeTable | None = None
    stale: StaleTable | None = None
    confidence: Number = Field(0.8, gt=0, le=1)
    seen: Annotated[StrictStr, AfterValidator(_template)]
    cause: StrictStr
    consequence: StrictStr
    actions: list[StrictStr] = []
    source: StrictStr = "default of esp-ingest"
    summary: StrictStr = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stale is not None and self.when is not None:
            raise ValueError("when cannot stand beside stale: the stale table of a rule on silence says when")
        if self.stale is None and self.when is None:
            raise ValueError("when is missing")
        if self.severity is not Severity.INFO and not self.actions:
            raise ValueError(
                "actions must name one at least: an alarm says what to do; without an action it is an event "
                "(severity info)"
            )
        if self.escalation is not None and _is_below(self.escalation.severity, self.severity):
            raise ValueError(f"escalation must not be less severe ({self.escalation.severity}) than its rule")
        return self


class WellTable(_Table):
    """``[wells.x]``: what a well changes of limits and rules."""

    limits: dict[str, Amount] = {}
    rules: dict[str, Any] = {}
    description: StrictStr = ""


class GroupTable(WellTable):
    """``[groups.x]``: what the wells of a group change."""

    wells: list[StrictStr] = []

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.wells:
            raise ValueError('wells a group names its wells, for example ["ESP-1*"]')
        return self


class ChangesTable(_Table):
    """What a group or a well changes of one rule, beside the rule's own parameters."""

    enabled: StrictBool | None = None
    severity: SeverityName | None = None
    on_delay: Delay | None = None
    off_delay: Delay | None = None

    def in_force(self) -> dict[str, Any]:
        """What is changed, by the names of :meth:`RuleSet.settings_of`."""
        names = {"on_delay": "on_delay_us", "off_delay": "off_delay_us"}
        return {names.get(key, key): value for key, value in self if value is not None}


def _is_below(severity: Severity, other: Severity) -> bool:
    every = tuple(Severity)
    return every.index(severity) > every.index(other)
