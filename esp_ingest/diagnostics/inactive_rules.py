"""Which rules do not run at a well, and why: a rule that is silent for being blind must not look like a calm well."""

import math

from esp_ingest.diagnostics.engine.baseline import HOURS
from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.engine.well_state import NEVER
from esp_ingest.diagnostics.language.functions import parts_of
from esp_ingest.diagnostics.language.rules import Rule

BASELINE_HOURS = 6.0  # of running, after which a median counts (DIAGNOSTICS.md)


def rules_off(engine: Engine, well: str) -> dict[str, str]:
    """Diagnosis → reason, of the rules that cannot raise anything at ``well`` as things are; "in part" where another
    alternative of the condition still can. 0.1 ms."""
    slot = engine._slots.get(well)
    if slot is None:
        return {}
    sent = {name for name, at in zip(engine._names, engine._state["value_us"][:, slot], strict=True) if at != NEVER}
    hours = float(engine._state["features"][engine._baselines.row[HOURS], slot])
    limits = engine.rules.limits_of(well)
    failed = engine.failed_rules()
    found = {}
    for rule in engine.rules.rules:
        if rule.name in failed:
            found[rule.name] = f"failed at run time: {failed[rule.name]}"
        elif reason := _reason(engine, rule, well, sent, limits, hours):
            found[rule.name] = reason
    return found


def _reason(engine: Engine, rule: Rule, well: str, sent: set[str], limits: dict[str, float], hours: float) -> str:
    if not engine.rules.settings_of(rule, well)["enabled"]:
        return "switched off in the rules"
    if rule.when is None:
        return ""
    words = rule.when.text.replace("(", " ( ").split()
    partly = "in part: " if "or" in words or "choose" in words else ""
    if missing := sorted(rule.when.limits - limits.keys()):
        return f"{partly}no limit is configured: {', '.join(missing)}"
    needed = {part for name in rule.when.signals for part in parts_of(name)}
    if missing := sorted(needed - sent):
        return f"{partly}the well has not sent {', '.join(missing)}"
    if rule.needs_baseline and not hours >= BASELINE_HOURS:
        return f"the baseline needs {BASELINE_HOURS:g} hours of running and has {0 if math.isnan(hours) else hours:g}"
    return ""
