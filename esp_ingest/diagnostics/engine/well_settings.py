"""What is configured for each well: delays, limits, parameters, what is switched off, what is shelved."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from esp_ingest.diagnostics.engine.buckets import Key
from esp_ingest.diagnostics.engine.columns import Rows
from esp_ingest.diagnostics.engine.rule_step import BatchContext, RuleStep
from esp_ingest.diagnostics.engine.well_state import Array, WellArrays
from esp_ingest.diagnostics.language.rules import Rule, RuleSet


class WellSettings:
    """The settings in force. Most wells have the same ones, so they are kept once for all wells that share them, as
    ``tables`` over (step, profile): ``enabled``, ``on_us`` and ``off_us``; ``limits`` over (limit, profile) in base
    units. ``arrays`` has the ``profile`` of each slot. ``shelved_us``: by step and slot until when it is shelved, in µs
    of event time."""

    def __init__(self, rules: RuleSet, steps: Sequence[RuleStep]) -> None:
        self._rules = rules
        self._steps = steps
        self.any_disabled = False  # some rule is switched off at some well
        self.shelved_us: list[dict[int, int]] = [{} for _ in steps]
        self.arrays = WellArrays()
        self.arrays.add("profile", np.int32, 0)
        self.tables = config = WellArrays(1)
        names = [step.name for step in steps]
        config.add("enabled", np.bool_, True, names)
        config.add("on_us", np.int64, 0, names)
        config.add("off_us", np.int64, 0, names)
        config.add("limits", np.float64, np.nan, list(self._rules.limits))
        self._profiles: dict[bytes, int] = {}
        self._common: int | None = None  # the profile of all wells that no override covers
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
        if any(override.covers(well) for override in self._rules.overrides):
            profile = self._profile_of(well)
        else:
            if self._common is None:
                self._common = self._profile_of(well)
            profile = self._common
        self.arrays["profile"][slot] = profile

    def _profile_of(self, well: str) -> int:
        """The profile with the settings in force for ``well``, made if there is none yet."""
        config, at = self.tables, self.tables.new_slot()
        config["on_us"][:, at] = self._fixed_on
        config["off_us"][:, at] = self._fixed_off
        config["enabled"][:, at] = [step.rule.enabled for step in self._steps]
        limits = self._rules.limits_of(well)
        config["limits"][:, at] = [limits.get(name, np.nan) for name in self._rules.limits]
        self._configure_overrides(at, well)
        self.any_disabled |= not bool(config["enabled"][:, at].all())
        profile = self._profiles.setdefault(config.values_of(at), at)
        if profile != at:
            config.free_slot(at)
        return profile

    def free(self, slot: int) -> None:
        """The well at ``slot`` has given it up."""
        self.arrays.free_slot(slot)
        for shelved in self.shelved_us:
            shelved.pop(slot, None)

    def of(self, name: str, step: RuleStep, slots: Any) -> Array:
        """The setting ``name`` of ``step`` at each of ``slots``."""
        return np.asarray(self.tables[name][step.index][self.arrays["profile"][slots]])

    def _configure_overrides(self, slot: int, well: str) -> None:
        config = self.tables
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
        limits, profile = self.tables["limits"], self.arrays["profile"][rows.slot]
        return {
            ("limit", name): limits[at][profile] if name in self._limits_set else np.float64(np.nan)
            for at, name in enumerate(self._rules.limits)
        }

    def set_parameters(self, batch: BatchContext, rule: Rule) -> None:
        """Make the parameters of ``rule`` columns of the batch: scalars, or (n,) if wells have values of their own."""
        if rule.parameters:
            batch.columns.set_parameters(self._parameters[rule.name])
        own = self._own_parameters.get(rule.name)
        if own is None:
            return
        profile = self.arrays["profile"][batch.rows.slot]
        for key, at in own:
            batch.columns.set_parameters({key: self.tables["parameters"][at][profile]})

    def shelve(self, slot: int, diagnosis: str, until_us: int | None) -> None:
        """Hold back the rule ``diagnosis`` at a well until then, in event time; None ends it."""
        for step in self._steps:
            if step.rule.name == diagnosis and until_us is not None:
                self.shelved_us[step.index][slot] = until_us
            elif step.rule.name == diagnosis:
                self.shelved_us[step.index].pop(slot, None)
