"""What an occurrence says: one sentence of what was seen, against what, since when, what it means and what to do."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from esp_ingest.diagnostics import alarm as alarms
from esp_ingest.diagnostics.engine.rule_step import HELD_SHELVED, HELD_SUPPRESSED, BatchContext, RuleStep
from esp_ingest.diagnostics.engine.signals import PRESSURE_ORDER
from esp_ingest.diagnostics.language.rules import Rule
from esp_ingest.diagnostics.language.units import NONE, Unit
from esp_ingest.service.text import moment, span


def told_of(step: RuleStep, batch: BatchContext, row: int) -> tuple[float | None, float | None]:
    """(value, threshold) that the first comparison of the condition has at ``row``; None if there is none or it is
    not finite."""
    headline = step.condition.headline
    if headline is None:
        return None, None
    count = len(batch.rows)
    value, threshold = headline.value(batch.columns), headline.threshold(batch.columns)
    return number_of(np.broadcast_to(value, count)[row]), number_of(np.broadcast_to(threshold, count)[row])


def held_by_of(held: int) -> str:
    """What holds an occurrence back, in the words of alarm.py, from the bits of a row; empty if nothing does."""
    if held & HELD_SHELVED:
        return alarms.SHELVED
    return alarms.SUPPRESSED if held & HELD_SUPPRESSED else ""


def number_of(value: Any) -> float | None:
    """``value`` as a float, None if it is NaN or infinite."""
    number = float(value)
    return number if np.isfinite(number) else None


def failed_gauges(channels: Sequence[str]) -> str:
    """What is wrong with these channels, for people."""
    names = [name for name in channels if name != PRESSURE_ORDER]
    said = (
        [f"{', '.join(names)} outside what an instrument can measure, or gone, on 3 samples in a row"] if names else []
    )
    if PRESSURE_ORDER in channels:
        said.append("pip or discharge_pressure wrong (discharge below intake pressure while pumping)")
    return " and ".join(said)


def rounded(value: Any) -> float:
    """``value`` with six significant digits."""
    return float(f"{float(value):.6g}")


def as_json(data: Any) -> str:
    """``data`` as JSON text."""
    return msgspec.json.encode(data).decode()


def sentence(
    step: RuleStep,
    value: float | None,
    threshold: float | None,
    since_us: int,
    signals: str,
    well: str,
    words: Mapping[str, str] | None = None,
) -> str:
    """The message of an occurrence: ``value`` and ``threshold`` in base units, ``words`` by their place in it."""
    unit = step.condition.headline.unit if step.condition.headline else NONE
    told, limit = amount(value, unit), amount(threshold, unit)
    others = {"trend": "", "drops": "", **(words or {})}
    seen = step.rule.seen.format(value=told, threshold=limit, signals=signals, well=well, duration=told, **others)
    return compose(well, seen, since_us, step.rule)


def compose(well: str, seen: str, since_us: int, rule: Rule) -> str:
    """One sentence: what was seen, against what, since when, what it likely means, and what to do."""
    parts = [f"{well}: {seen} since {moment(since_us)}", f"likely {rule.cause}"]
    if rule.actions:
        parts.append(f"to do: {'; '.join(rule.actions)}")
    return f"{' — '.join(parts)}."


def amount(value: float | None, unit: Unit) -> str:
    """A quantity for people: ``80 %``, ``12 min``, ``220 °F``."""
    if value is None:
        return "not known"
    if unit.same_kind(NONE):
        return f"{100 * value:.3g} %"
    if unit.powers == (("s", 1),):
        return span(value)
    if unit.powers == (("s", -1),):
        return f"{360_000 * value:.3g} %/h"
    return f"{value:.4g} {unit}"
