"""Which rules do not run at a well, and why: a rule that is silent for being blind must not look like a calm well."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from esp_ingest.diagnostics.engine.baseline import HOURS
from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.engine.well_state import NEVER
from esp_ingest.diagnostics.language.functions import parts_of
from esp_ingest.diagnostics.language.rules import Rule
from esp_ingest.diagnostics.limit_scopes import to_json

BASELINE_HOURS = 6.0  # of running, after which a median counts (DIAGNOSTICS.md)
_MOST_REMEMBERED = 1_000  # answers; wells that send the same signals and have the same settings share them


class InactiveRules:
    """What each well's checkpoint says of the rules of ``engine``. For one thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._needs = [_Needs.of(rule) for rule in engine.rules.rules]
        self._texts: dict[tuple[object, ...], str] = {}

    def as_json(self, well: str) -> str:
        """:meth:`of` as a JSON object. Mostly an earlier answer: in a fleet many wells are in the same case."""
        slot = self._engine._slots.get(well)
        if slot is None:
            return to_json({})
        sent = np.packbits(self._engine._state["value_us"][:, slot] != NEVER).tobytes()
        profile = int(self._engine._settings.arrays["profile"][slot])
        case = (profile, sent, _said_of(self._hours(slot)), *self._engine.failed_rules().items())
        text = self._texts.get(case)
        if text is None:
            if len(self._texts) >= _MOST_REMEMBERED:
                self._texts.clear()
            text = self._texts[case] = to_json(self.of(well))
        return text

    def of(self, well: str) -> dict[str, str]:
        """Diagnosis → reason, of the rules that cannot raise anything at ``well`` as things are; "in part" where
        another alternative of the condition still can. 0.1 ms."""
        engine, slot = self._engine, self._engine._slots.get(well)
        if slot is None:
            return {}
        times = engine._state["value_us"][:, slot].tolist()
        sent = {name for name, at in zip(engine._names, times, strict=True) if at != NEVER}
        limits, hours, failed = engine.rules.limits_of(well), _said_of(self._hours(slot)), engine.failed_rules()
        found = {}
        for needs in self._needs:
            name = needs.rule.name
            if name in failed:
                found[name] = f"failed at run time: {failed[name]}"
            elif not engine.rules.settings_of(needs.rule, well)["enabled"]:
                found[name] = "switched off in the rules"
            elif reason := needs.missing(sent, limits, hours):
                found[name] = reason
        return found

    def _hours(self, slot: int) -> float:
        return float(self._engine._state["features"][self._engine._baselines.row[HOURS], slot])


def _said_of(hours: float) -> str:
    """Hours of running, as a reason says them; empty if they are enough."""
    return "" if hours >= BASELINE_HOURS else f"{0 if math.isnan(hours) else hours:g}"


@dataclass(frozen=True, slots=True)
class _Needs:
    """What a rule reads. ``partly`` stands before a reason that is one of an alternative."""

    rule: Rule
    partly: str
    limits: frozenset[str]
    signals: frozenset[str]
    baseline: bool

    @staticmethod
    def of(rule: Rule) -> "_Needs":
        if rule.when is None:
            return _Needs(rule, "", frozenset(), frozenset(), baseline=False)
        words = rule.when.text.replace("(", " ( ").split()
        partly = "in part: " if "or" in words or "choose" in words else ""
        signals = frozenset(part for name in rule.when.signals for part in parts_of(name))
        return _Needs(rule, partly, frozenset(rule.when.limits), signals, rule.needs_baseline)

    def missing(self, sent: set[str], limits: Mapping[str, float], hours: str) -> str:
        """What is missing of it at a well; empty if nothing is."""
        if missing := sorted(self.limits - limits.keys()):
            return f"{self.partly}no limit is configured: {', '.join(missing)}"
        if missing := sorted(self.signals - sent):
            return f"{self.partly}the well has not sent {', '.join(missing)}"
        if self.baseline and hours:
            return f"the baseline needs {BASELINE_HOURS:g} hours of running and has {hours}"
        return ""
