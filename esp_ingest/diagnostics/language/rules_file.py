"""Reads rules.toml and checks it whole, before one of its rules runs.

An error names file, place and key, says what is wrong and, for a wrong name, the nearest valid one.
"""

import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from esp_ingest.diagnostics.language.conditions import Compiler, Condition, Vocabulary
from esp_ingest.diagnostics.language.functions import DERIVED, FACTS, FUNCTIONS
from esp_ingest.diagnostics.language.rules import (
    APPLIES,
    SEVERITIES,
    Escalation,
    Override,
    Rule,
    RulesError,
    RuleSet,
    Stale,
    Upgrade,
)
from esp_ingest.diagnostics.language.units import ConditionError, Unit, duration_us, nearest, quantity, unit_named
from esp_ingest.model import SIGNAL_NAMES, SIGNALS, Severity

Read = TypeVar("Read")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_MAX_DELAY_US = 7 * 86_400_000_000


def load(path: str | Path) -> RuleSet:
    """Read and check a rules file. Raises RulesError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RulesError(f"The rules file {path} cannot be read: {reason}.") from None
    return parse(text, str(path))


def parse(text: str, name: str = "rules.toml") -> RuleSet:
    """As :func:`load`, from a text. ``name`` stands in messages."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RulesError(f"{name}: not valid TOML: {error}.") from None
    return _Reader(name, document).read()


class _Table:
    """One table of the file, read key by key; whatever was not asked for is an unknown key."""

    def __init__(self, file: str, place: str, data: Any) -> None:
        self.file = file
        self.place = place
        if not isinstance(data, dict):
            raise RulesError(f"{file}: {place}: must be a table.")
        self._data: dict[str, Any] = data
        self._asked: set[str] = set()

    def fail(self, key: str, what: str) -> RulesError:
        return RulesError(f"{self.file}: {self.place}: {key}: {what}.")

    def names(self) -> Iterable[str]:
        return self._data.keys()

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        self._asked.add(key)
        if key not in self._data:
            if default is None:
                raise self.fail(key, "is missing")
            return default
        value = self._data[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
            raise self.fail(key, f"must be {names}, not {type(value).__name__}")
        return value

    def has(self, key: str) -> bool:
        self._asked.add(key)
        return key in self._data

    def table(self, key: str) -> "_Table":
        self._asked.add(key)
        return _Table(self.file, f"{self.place}.{key}" if self.place else key, self._data.get(key, {}))

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.get(key, list, [])
        if not all(isinstance(item, str) for item in value):
            raise self.fail(key, "must be a list of texts")
        return tuple(value)

    def choice(self, key: str, choices: Iterable[str], default: str | None = None) -> str:
        value = str(self.get(key, str, default))
        known = list(choices)
        if value not in known:
            raise self.fail(key, f"{value!r} is not valid{nearest(value, known)}")
        return value

    def delay(self, key: str, default: str) -> int:
        value = self.get(key, (str, int), default)
        try:
            delay = duration_us(str(value))
        except ConditionError as error:
            raise self.fail(key, str(error)) from None
        if delay > _MAX_DELAY_US:
            raise self.fail(key, f"{value!r} is longer than 7 d, in which no alarm is of use")
        return delay

    def finish(self) -> None:
        for key in self._data:
            if key not in self._asked:
                raise self.fail(key, f"is no key here{nearest(key, self._asked)}")


class _Reader:
    def __init__(self, file: str, document: dict[str, Any]) -> None:
        self._file = file
        self._top = _Table(file, "", document)
        self._site = 0
        self._warnings: list[str] = []

    def read(self) -> RuleSet:
        top = self._top
        if top.get("version", int) != 1:
            raise RulesError(f"{self._file}: version: must be 1.")
        defaults = top.table("defaults")
        self._signals = self._read_signals(top.table("signals"))
        self._limits, limit_defaults = self._read_limits(top.table("limits"))
        rules_table = top.table("rules")
        names = list(rules_table.names())
        rules = self._each(names, lambda name: self._read_rule(name, rules_table.table(name), defaults, names))
        if not rules:
            raise RulesError(f"{self._file}: rules: there is no rule.")
        self._check_defaults(defaults)
        by_name = {rule.name: rule for rule in rules}
        overrides = [*self._read_overrides("groups", by_name), *self._read_overrides("wells", by_name)]
        top.finish()
        ordered = self._in_order(by_name)
        self._check_limits_used(rules)
        return RuleSet(
            path=self._file,
            rules=tuple(ordered),
            limits=self._limits,
            limit_defaults=limit_defaults,
            extra_signals={name: unit for name, unit in self._signals.items() if name not in SIGNAL_NAMES},
            overrides=tuple(overrides),
            sites=self._site,
            warnings=tuple(self._warnings),
        )

    def _each(self, names: Iterable[str], read: Callable[[str], Read]) -> list[Read]:
        """``read`` of each name. Raises RulesError with the mistakes of all of them."""
        found: list[Read] = []
        mistakes: list[str] = []
        for name in names:
            try:
                found.append(read(name))
            except RulesError as error:
                mistakes += error.mistakes
        if mistakes:
            more = f" (And {len(mistakes) - 1} more: esp-ingest rules check lists them.)" if len(mistakes) > 1 else ""
            raise RulesError(mistakes[0] + more, mistakes)
        return found

    # -- signals and limits

    def _read_signals(self, table: _Table) -> dict[str, Unit]:
        found = {signal.name: unit_named(signal.unit) for signal in SIGNALS}
        for name in table.names():
            entry = table.table(name)
            if name in found or name in DERIVED or not _NAME.fullmatch(name):
                raise RulesError(f"{self._file}: signals.{name}: is built in or no valid name (a-z, 0-9, _).")
            found[name] = self._unit(entry, "unit")
            entry.get("description", str, "")
            entry.finish()
        return found

    def _unit(self, table: _Table, key: str) -> Unit:
        try:
            return unit_named(table.get(key, str))
        except ConditionError as error:
            raise table.fail(key, str(error)) from None

    def _read_limits(self, table: _Table) -> tuple[dict[str, Unit], dict[str, float]]:
        units: dict[str, Unit] = {}
        values: dict[str, float] = {}
        for name in table.names():
            entry = table.table(name)
            units[name] = self._unit(entry, "unit")
            entry.get("description", str, "")
            if entry.has("default"):
                values[name] = self._quantity(entry, "default", units[name])
            entry.finish()
        return units, values

    def _quantity(self, table: _Table, key: str, unit: Unit | None) -> float:
        try:
            return quantity(table.get(key, (str, int, float)), unit)[0]
        except ConditionError as error:
            raise table.fail(key, str(error)) from None

    # -- one rule

    def _read_rule(self, name: str, table: _Table, defaults: _Table, names: list[str]) -> Rule:
        if not _NAME.fullmatch(name):
            raise RulesError(f"{self._file}: rules.{name}: a rule's name is made of a-z, 0-9 and _.")
        parameters, units = self._read_parameters(table.table("parameters"), table)
        stale = self._read_stale(table) if table.has("stale") else None
        deadband_text = str(table.get("deadband", (str, int), defaults.get("deadband", (str, int), "0 %")))
        when = None if stale else self._condition(table, "when", units, deadband_text)
        rule = Rule(
            name=name,
            title=table.get("title", str),
            severity=Severity(table.choice("severity", SEVERITIES)),
            when=when,
            on_delay_us=table.delay("on_delay", defaults.get("on_delay", str, "0 s")),
            off_delay_us=table.delay("off_delay", defaults.get("off_delay", str, "0 s")),
            applies=table.choice("applies", APPLIES, defaults.get("applies", str, "settled")),
            latching=table.get("latching", bool, defaults.get("latching", bool, False)),
            skip_dropouts=table.get("skip_dropouts", bool, True),
            enabled=table.get("enabled", bool, True),
            suppressed_by=self._names(table, "suppressed_by", names),
            parameters=parameters,
            parameter_units=units,
            escalation=self._read_escalation(table.table("escalation"), units, deadband_text)
            if table.has("escalation")
            else None,
            upgrade=self._read_upgrade(table.table("upgrade"), names) if table.has("upgrade") else None,
            stale=stale,
            confidence=float(table.get("confidence", (int, float), defaults.get("confidence", (int, float), 0.8))),
            seen=table.get("seen", str),
            cause=table.get("cause", str),
            consequence=table.get("consequence", str),
            actions=table.texts("actions"),
            source=table.get("source", str, "default of esp-ingest"),
            deadband=deadband_text,
        )
        self._check_rule(rule, table)
        table.finish()
        return rule

    def _read_parameters(self, table: _Table, rule: _Table) -> tuple[dict[str, float], dict[str, Unit]]:
        values: dict[str, float] = {}
        units: dict[str, Unit] = {}
        for name in table.names():
            if name in self._signals or name in FACTS or name in DERIVED or not _NAME.fullmatch(name):
                raise rule.fail(f"parameters.{name}", "is the name of a signal or fact, or no valid name")
            try:
                values[name], units[name] = quantity(table.get(name, (str, int, float)))
            except ConditionError as error:
                raise table.fail(name, str(error)) from None
        return values, units

    def _condition(self, table: _Table, name: str, parameters: dict[str, Unit], deadband_text: str) -> Condition:
        derived = {name: signal.unit for name, signal in DERIVED.items()}
        vocabulary = Vocabulary({**self._signals, **derived}, self._limits, parameters, FACTS)
        compiler = Compiler(vocabulary, self._site)
        try:
            deadband = quantity(deadband_text)
        except ConditionError as error:
            raise table.fail("deadband", str(error)) from None
        if deadband[0] < 0:
            raise table.fail("deadband", "must not be negative")
        try:
            condition = compiler.compile(table.get(name, str), deadband)
        except ConditionError as error:
            raise table.fail(name, str(error)) from None
        self._site = compiler.next_site
        for key in condition.columns:
            function = FUNCTIONS.get(str(key[0]))
            if function is not None and function.measured_only and key[1] in DERIVED:
                raise table.fail(name, f"{key[0]}() takes a measured signal, not {key[1]}")
        return condition

    def _names(self, table: _Table, key: str, known: Iterable[str]) -> tuple[str, ...]:
        names = table.texts(key)
        for name in names:
            if name not in known:
                raise table.fail(key, f"{name} is no rule{nearest(name, known)}")
        return names

    def _read_escalation(self, table: _Table, parameters: dict[str, Unit], deadband: str) -> Escalation:
        escalation = Escalation(
            when=self._condition(table, "when", parameters, deadband),
            on_delay_us=table.delay("on_delay", "0 s"),
            severity=Severity(table.choice("severity", SEVERITIES)),
        )
        table.finish()
        return escalation

    def _read_upgrade(self, table: _Table, names: list[str]) -> Upgrade:
        upgrade = Upgrade(
            severity=Severity(table.choice("severity", SEVERITIES)),
            after=self._names(table, "after", names),
            within_us=table.delay("within", "10 min"),
        )
        table.finish()
        return upgrade

    def _read_stale(self, table: _Table) -> Stale:
        entry = table.table("stale")
        if table.has("when"):
            raise table.fail("when", "a rule on silence has no condition: its stale table says when")
        stale = Stale(
            after=float(entry.get("after", (int, float))),
            escalate_after=float(entry.get("escalate_after", (int, float))),
            escalate_severity=Severity(entry.choice("escalate_severity", SEVERITIES)),
            minimum_us=entry.delay("minimum", "2 min"),
        )
        if not 1 < stale.after < stale.escalate_after:
            raise entry.fail("after", "must be above 1 and below escalate_after")
        entry.finish()
        return stale

    def _check_rule(self, rule: Rule, table: _Table) -> None:
        if not 0 < rule.confidence <= 1:
            raise table.fail("confidence", "must be above 0 and at most 1")
        if rule.severity is not Severity.INFO and not rule.actions:
            raise table.fail("actions", "an alarm says what to do; without an action it is an event (severity info)")
        if rule.name in rule.suppressed_by:
            raise table.fail("suppressed_by", "a rule cannot suppress itself")
        escalation = rule.escalation
        if escalation and SEVERITIES.index(escalation.severity) > SEVERITIES.index(rule.severity):
            raise table.fail("escalation.severity", f"{escalation.severity} is below the rule's own {rule.severity}")
        try:
            rule.seen.format(value="", threshold="", signals="", well="", duration="")
        except (KeyError, IndexError, ValueError) as error:
            raise table.fail(
                "seen", f"{error} is no placeholder (known: value, threshold, signals, well, duration)"
            ) from None

    def _check_defaults(self, defaults: _Table) -> None:
        for key in ("on_delay", "off_delay", "deadband", "applies", "latching", "confidence"):
            defaults.has(key)
        defaults.finish()

    # -- groups and wells

    def _read_overrides(self, section: str, rules: dict[str, Rule]) -> list[Override]:
        table = self._top.table(section)
        return self._each(table.names(), lambda name: self._read_override(section, name, table.table(name), rules))

    def _read_override(self, section: str, name: str, entry: _Table, rules: dict[str, Rule]) -> Override:
        wells = entry.texts("wells") if section == "groups" else (name,)
        if not wells:
            raise entry.fail("wells", 'a group names its wells, for example ["ESP-1*"]')
        limits = entry.table("limits")
        values = {limit: self._limit_value(limits, limit) for limit in limits.names()}
        changes = entry.table("rules")
        by_rule = {rule: self._read_changes(changes, rule, rules) for rule in changes.names()}
        entry.get("description", str, "")
        entry.finish()
        return Override(f"{section}.{name}", wells, values, by_rule)

    def _limit_value(self, table: _Table, name: str) -> float:
        if name not in self._limits:
            raise table.fail(name, f"is no limit{nearest(name, self._limits)}")
        return self._quantity(table, name, self._limits[name])

    def _read_changes(self, table: _Table, name: str, rules: dict[str, Rule]) -> dict[str, Any]:
        if name not in rules:
            raise table.fail(name, f"is no rule{nearest(name, rules)}")
        rule, entry = rules[name], table.table(name)
        changes: dict[str, Any] = {}
        if entry.has("enabled"):
            changes["enabled"] = entry.get("enabled", bool)
        if entry.has("severity"):
            changes["severity"] = Severity(entry.choice("severity", SEVERITIES))
        for key in ("on_delay", "off_delay"):
            if entry.has(key):
                changes[f"{key}_us"] = entry.delay(key, "0 s")
        for parameter, unit in rule.parameter_units.items():
            if entry.has(parameter):
                changes[parameter] = self._quantity(entry, parameter, unit)
        entry.finish()
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
                raise RulesError(f"{self._file}: rules.{name}: suppressed_by: goes in a circle: {circle}.")
            state[name] = 1
            rule = rules[name]
            for before in (*rule.suppressed_by, *(rule.upgrade.after if rule.upgrade else ())):
                visit(before, (*path, name))
            state[name] = 2
            ordered.append(rule)

        for name in rules:
            visit(name, ())
        return ordered

    def _check_limits_used(self, rules: list[Rule]) -> None:
        used: set[str] = set()
        for rule in rules:
            for condition in (rule.when, rule.escalation.when if rule.escalation else None):
                used.update(str(key[1]) for key in (condition.columns if condition else ()) if key[0] == "limit")
        self._warnings += [
            f"{self._file}: limits.{name}: no rule reads it." for name in self._limits if name not in used
        ]
