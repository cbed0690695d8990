"""What is configured for each well: delays, limits, parameters, what is switched off, what is shelved."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from esp_ingest.diagnostics.engine.buckets import Key
from esp_ingest.diagnostics.engine.columns import Rows
from esp_ingest.diagnostics.engine.rule_step import BatchContext, RuleStep
from esp_ingest.diagnostics.engine.well_state import NEVER, WellArrays
from esp_ingest.diagnostics.language.rules import Rule, RuleSet


class WellSettings:
    """The settings in force, as ``arrays`` over (step, slot of the well): ``enabled``, ``on_us``, ``off_us`` and
    ``shelved_us`` (µs of event time, NEVER if not shelved); ``limits`` over (limit, slot) in base units."""

    def __init__(self, rules: RuleSet, steps: Sequence[RuleStep]) -> None:
        self._rules = rules
        self._steps = steps
        self.any_disabled = False  # some rule is switched off at some well
        self.arrays = config = WellArrays()
        names = [step.name for step in steps]
        config.add("enabled", np.bool_, True, names)
        config.add("on_us", np.int64, 0, names)
        config.add("off_us", np.int64, 0, names)
        config.add("shelved_us", np.int64, NEVER, names)
        config.add("limits", np.float64, np.nan, list(self._rules.limits))
        self._per_well = {
            (rule.name, name)
            for rule in self._rules.rules
            for name in rule.parameters
            for override in self._rules.overrides
            if name in override.rules.get(rule.name, {})
        }
        config.add("parameters", np.float64, np.nan, sorted(self._per_well))
        self._parameters: dict[str, dict[Key, Any]] = {
            rule.name: {("parameter", name): np.float64(value) for name, value in rule.parameters.items()}
            for rule in self._rules.rules
        }
        self._own_parameters: dict[str, list[tuple[Key, int]]] = {}
        for at, (diagnosis, name) in enumerate(sorted(self._per_well)):
            self._own_parameters.setdefault(diagnosis, []).append((("parameter", name), at))
        self._limits_set = set(self._rules.limit_defaults).union(*(o.limits for o in self._rules.overrides))
        self._fixed_on = np.array([self._step_delay(step) for step in steps], np.int64)
        self._fixed_off = np.array([0 if step.is_escalation else step.rule.off_delay_us for step in steps], np.int64)

    @staticmethod
    def _step_delay(step: RuleStep) -> int:
        return (
            step.rule.escalation.on_delay_us if step.is_escalation and step.rule.escalation else step.rule.on_delay_us
        )

    def add(self, slot: int, well: str) -> None:
        """``well`` has got ``slot``, the next one of the arrays: put the settings in force for it there."""
        config = self.arrays
        config["on_us"][:, slot] = self._fixed_on
        config["off_us"][:, slot] = self._fixed_off
        config["enabled"][:, slot] = [step.rule.enabled for step in self._steps]
        limits = self._rules.limits_of(well)
        config["limits"][:, slot] = [limits.get(name, np.nan) for name in self._rules.limits]
        if any(override.covers(well) for override in self._rules.overrides):
            self._configure_overrides(slot, well)
        self.any_disabled |= not bool(config["enabled"][:, slot].all())

    def _configure_overrides(self, slot: int, well: str) -> None:
        config = self.arrays
        for step in self._steps:
            settings = self._rules.settings_of(step.rule, well)
            config["enabled"][step.index, slot] = settings["enabled"]
            if not step.is_escalation:
                config["off_us"][step.index, slot] = settings["off_delay_us"]
                config["on_us"][step.index, slot] = settings["on_delay_us"]
        for at, (rule, name) in enumerate(sorted(self._per_well)):
            config["parameters"][at, slot] = self._rules.settings_of(self._rules.rule(rule), well)[name]

    def limit_columns(self, rows: Rows) -> dict[Key, Any]:
        """The limits of each row's well, by key, each (n,), or a scalar NaN where no well has one."""
        limits = self.arrays["limits"]
        return {
            ("limit", name): limits[at][rows.slots][rows.group] if name in self._limits_set else np.float64(np.nan)
            for at, name in enumerate(self._rules.limits)
        }

    def set_parameters(self, batch: BatchContext, rule: Rule) -> None:
        """Make the parameters of ``rule`` columns of the batch: scalars, or (n,) if wells have values of their own."""
        batch.columns.set_parameters(self._parameters[rule.name])
        for key, at in self._own_parameters.get(rule.name, ()):
            batch.columns.set_parameters({key: self.arrays["parameters"][at][batch.rows.slot]})

    def shelve(self, slot: int, diagnosis: str, until_us: int | None) -> None:
        """Hold back the rule ``diagnosis`` at a well until then, in event time; None ends it."""
        for step in self._steps:
            if step.rule.name == diagnosis:
                self.arrays["shelved_us"][step.index, slot] = NEVER if until_us is None else until_us
