"""Reads rules.toml and checks it whole, before one of its rules runs.

pydantic checks the tables (rules_tables.py); what depends on other tables, such as the names in a condition, is checked
here. An error names file, place and key, says what is wrong and, for a wrong name, the nearest valid one.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from esp_ingest.config import toml_text
from esp_ingest.config.sentences import what_is_wrong
from esp_ingest.diagnostics.language.conditions import Compiler, Condition, Vocabulary
from esp_ingest.diagnostics.language.functions import DERIVED, FACTS, FUNCTIONS
from esp_ingest.diagnostics.language.rules import Escalation, Override, Rule, RulesError, RuleSet, Upgrade
from esp_ingest.diagnostics.language.rules_tables import (
    NAME,
    ChangesTable,
    DefaultsTable,
    DocumentTable,
    GroupTable,
    LimitTable,
    RuleTable,
    SignalTable,
    UpgradeTable,
    WellTable,
)
from esp_ingest.diagnostics.language.units import ConditionError, Unit, quantity, unit_named
from esp_ingest.model import SIGNAL_NAMES, SIGNALS
from esp_ingest.service.text import did_you_mean

Read = TypeVar("Read")
Table = TypeVar("Table", bound=BaseModel)


def load(path: str | Path) -> RuleSet:
    """Read and check a rules file. Raises RulesError."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RulesError(f"The rules file {path} cannot be read: {error.strerror}.") from None
    return parse(data, str(path))


def parse(text: str | bytes, name: str = "rules.toml") -> RuleSet:
    """As :func:`load`, from a text. ``name`` stands in messages."""
    try:
        document = toml_text.parse(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    except toml_text.TomlError as error:
        raise RulesError(f"{name}: not valid TOML: {error}.") from None
    return _Reader(name, document).read()


class _Reader:
    """One file on its way to a rule set. Every method raises RulesError."""

    def __init__(self, file: str, document: dict[str, Any]) -> None:
        self._file = file
        self._data = document
        self._next_site = 0
        self._signals = {signal.name: unit_named(signal.unit) for signal in SIGNALS}
        self._limits: dict[str, Unit] = {}
        self._limit_defaults: dict[str, float] = {}

    def read(self) -> RuleSet:
        """The whole file."""
        self._top = self._table(DocumentTable, "", self._data)
        self._defaults = self._table(DefaultsTable, "defaults", self._top.defaults).model_dump(exclude_unset=True)
        for name, data in self._top.signals.items():
            self._read_signal(name, self._table(SignalTable, f"signals.{name}", data))
        for name, data in self._top.limits.items():
            limit = self._table(LimitTable, f"limits.{name}", data)
            self._limits[name] = limit.unit
            if limit.default is not None:
                self._limit_defaults[name] = self._quantity(f"limits.{name}", "default", limit.default, limit.unit)
        rules = {rule.name: rule for rule in self._each(self._top.rules, self._read_rule)}
        if not rules:
            raise RulesError(f"{self._file}: rules: there is not a single rule.")
        groups = self._each(self._top.groups, lambda name, data: self._read_group(name, data, rules))
        wells = self._each(self._top.wells, lambda name, data: self._read_well(name, data, rules))
        return RuleSet(
            path=self._file,
            rules=tuple(self._in_order(rules)),
            limits=self._limits,
            limit_defaults=self._limit_defaults,
            extra_signals={name: unit for name, unit in self._signals.items() if name not in SIGNAL_NAMES},
            overrides=(*groups, *wells),
            sites=self._next_site,
            warnings=tuple(self._unused_limits(rules.values())),
        )

    def _each(self, tables: Mapping[str, Any], read: Callable[[str, Any], Read]) -> list[Read]:
        """``read`` of each table. Raises RulesError with the mistakes of all of them."""
        found: list[Read] = []
        mistakes: list[str] = []
        for name, data in tables.items():
            try:
                found.append(read(name, data))
            except RulesError as error:
                mistakes += error.mistakes
        if mistakes:
            more = f" (And {len(mistakes) - 1} more: esp-ingest rules check lists them.)" if len(mistakes) > 1 else ""
            raise RulesError(mistakes[0] + more, mistakes)
        return found

    def _table(self, model: type[Table], place: str, data: Any) -> Table:
        """``data`` checked against ``model``; the first mistake is raised with its place."""
        try:
            return model.model_validate(data)
        except ValidationError as error:
            location, words = what_is_wrong(error, model)
            raise self._mistake(".".join([place, *location[:-1]]).strip("."), location[-1:], words) from None

    def _mistake(self, place: str, key: list[str] | str, what: str) -> RulesError:
        keys = [key] if isinstance(key, str) else key
        return RulesError(": ".join([self._file, *([place] if place else []), *keys, what]) + ".")

    def _quantity(self, place: str, key: str, text: str | float, unit: Unit | None) -> float:
        try:
            return quantity(text, unit)[0]
        except ConditionError as error:
            raise self._mistake(place, key, str(error)) from None

    # -- signals

    def _read_signal(self, name: str, table: SignalTable) -> None:
        if name in self._signals or name in DERIVED or not NAME.fullmatch(name):
            raise self._mistake(f"signals.{name}", [], "is built in, or not a valid name (a-z, 0-9, _)")
        self._signals[name] = table.unit

    # -- one rule

    def _read_rule(self, name: str, data: Any) -> Rule:
        place = f"rules.{name}"
        if not NAME.fullmatch(name):
            raise self._mistake(place, [], "the name of a rule is made of a-z, 0-9 and _")
        table = self._table(RuleTable, place, {**self._defaults, **data} if isinstance(data, dict) else data)
        parameters, units = self._read_parameters(place, table.parameters)
        rule = Rule(
            name=name,
            title=table.title,
            severity=table.severity,
            when=None if table.when is None else self._condition(place, table.when, units, table.deadband),
            on_delay_us=table.on_delay,
            off_delay_us=table.off_delay,
            remind_us=table.remind,
            applies=table.applies,
            latching=table.latching,
            skip_dropouts=table.skip_dropouts,
            baseline=table.baseline,
            enabled=table.enabled,
            suppressed_by=self._rule_names(place, "suppressed_by", table.suppressed_by),
            parameters=parameters,
            parameter_units=units,
            escalation=self._read_escalation(place, table, units),
            upgrade=self._read_upgrade(place, table.upgrade),
            stale=None if table.stale is None else table.stale.as_stale(),
            confidence=table.confidence,
            seen=table.seen,
            cause=table.cause,
            consequence=table.consequence,
            actions=tuple(table.actions),
            source=table.source,
            deadband=table.deadband,
            summary=self._summary(place, table, parameters),
        )
        if name in rule.suppressed_by:
            raise self._mistake(place, "suppressed_by", "a rule cannot suppress itself")
        return rule

    def _summary(self, place: str, table: RuleTable, parameters: Mapping[str, float]) -> str:
        text = table.summary
        of_silence = ["after", "escalate_after", "minimum"] if table.stale else []
        known = [*parameters, "on_delay", "off_delay", *of_silence]
        try:
            text.format(**dict.fromkeys(known, ""))
        except (KeyError, IndexError, ValueError) as error:
            raise self._mistake(place, "summary", f"{error} is not a placeholder (known: {', '.join(known)})") from None
        return text

    def _read_parameters(
        self, place: str, texts: Mapping[str, str | float]
    ) -> tuple[dict[str, float], dict[str, Unit]]:
        values: dict[str, float] = {}
        units: dict[str, Unit] = {}
        for name, text in texts.items():
            if name in self._signals or name in FACTS or name in DERIVED or not NAME.fullmatch(name):
                raise self._mistake(
                    place, f"parameters.{name}", "is the name of a signal or fact, or not a valid name (a-z, 0-9, _)"
                )
            try:
                values[name], units[name] = quantity(text)
            except ConditionError as error:
                raise self._mistake(f"{place}.parameters", name, str(error)) from None
        return values, units

    def _condition(self, place: str, text: str, parameters: dict[str, Unit], deadband: str) -> Condition:
        derived = {name: signal.unit for name, signal in DERIVED.items()}
        compiler = Compiler(Vocabulary({**self._signals, **derived}, self._limits, parameters, FACTS), self._next_site)
        try:
            condition = compiler.compile(text, quantity(deadband))
        except ConditionError as error:
            raise self._mistake(place, "when", str(error)) from None
        self._next_site = compiler.next_site
        for key in condition.columns:
            function = FUNCTIONS.get(str(key[0]))
            if function is not None and function.measured_only and key[1] in DERIVED:
                raise self._mistake(place, "when", f"{key[0]}() takes a measured signal, not {key[1]}")
        return condition

    def _rule_names(self, place: str, key: str, names: Iterable[str]) -> tuple[str, ...]:
        for name in names:
            if name not in self._top.rules:
                raise self._mistake(place, key, f"{name} is not a rule{did_you_mean(name, self._top.rules)}")
        return tuple(names)

    def _read_escalation(self, place: str, rule: RuleTable, parameters: dict[str, Unit]) -> Escalation | None:
        table = rule.escalation
        if table is None:
            return None
        condition = self._condition(f"{place}.escalation", table.when, parameters, rule.deadband)
        return Escalation(condition, table.on_delay, table.severity)

    def _read_upgrade(self, place: str, table: UpgradeTable | None) -> Upgrade | None:
        if table is None:
            return None
        after = self._rule_names(f"{place}.upgrade", "after", table.after)
        return Upgrade(severity=table.severity, after=after, within_us=table.within)

    # -- groups and wells

    def _read_group(self, name: str, data: Any, rules: dict[str, Rule]) -> Override:
        table = self._table(GroupTable, f"groups.{name}", data)
        return self._override(f"groups.{name}", tuple(table.wells), table, rules)

    def _read_well(self, name: str, data: Any, rules: dict[str, Rule]) -> Override:
        return self._override(f"wells.{name}", (name,), self._table(WellTable, f"wells.{name}", data), rules)

    def _override(self, place: str, wells: tuple[str, ...], table: WellTable, rules: dict[str, Rule]) -> Override:
        limits = {}
        for limit, text in table.limits.items():
            if limit not in self._limits:
                raise self._mistake(f"{place}.limits", limit, f"is not a limit{did_you_mean(limit, self._limits)}")
            limits[limit] = self._quantity(f"{place}.limits", limit, text, self._limits[limit])
        changes = {name: self._read_changes(f"{place}.rules", name, of, rules) for name, of in table.rules.items()}
        return Override(place, wells, limits, changes)

    def _read_changes(self, place: str, name: str, data: Any, rules: dict[str, Rule]) -> dict[str, Any]:
        if name not in rules:
            raise self._mistake(place, name, f"is not a rule{did_you_mean(name, rules)}")
        units = rules[name].parameter_units
        here = f"{place}.{name}"
        if not isinstance(data, dict):
            raise self._mistake(place, name, "must be a table")
        own = {key: value for key, value in data.items() if key in units}
        table = self._table(ChangesTable, here, {key: value for key, value in data.items() if key not in units})
        changes: dict[str, Any] = table.in_force()
        for key, text in own.items():
            if not isinstance(text, str | int | float):
                raise self._mistake(here, key, "must be a number or a text with a unit")
            changes[key] = self._quantity(here, key, text, units[key])
        return changes

    # -- the whole

    def _in_order(self, rules: dict[str, Rule]) -> list[Rule]:
        """Each rule after those it depends on. A circle is an error that names it."""
        ordered: list[Rule] = []
        state: dict[str, int] = {}

        def visit(name: str, path: tuple[str, ...]) -> None:
            if state.get(name) == 2:
                return
            if state.get(name) == 1:
                circle = " → ".join([*path[path.index(name) :], name])
                raise self._mistake(f"rules.{name}", "suppressed_by", f"goes in a circle: {circle}")
            state[name] = 1
            rule = rules[name]
            for before in (*rule.suppressed_by, *(rule.upgrade.after if rule.upgrade else ())):
                visit(before, (*path, name))
            state[name] = 2
            ordered.append(rule)

        for name in rules:
            visit(name, ())
        return ordered

    def _unused_limits(self, rules: Iterable[Rule]) -> Iterable[str]:
        used: set[str] = set()
        for rule in rules:
            for condition in (rule.when, rule.escalation.when if rule.escalation else None):
                used.update(str(key[1]) for key in (condition.columns if condition else ()) if key[0] == "limit")
        return [f"{self._file}: limits.{name}: is not read by any rule." for name in self._limits if name not in used]
