"""What an occurrence says of a slow trend: slope, confidence, and the days until a limit is reached at this slope."""

from dataclasses import dataclass

from esp_ingest.diagnostics.engine.buckets import Key
from esp_ingest.diagnostics.engine.features import Features
from esp_ingest.diagnostics.language.rules import Rule

_DAY_SECONDS = 86_400.0
_LONGEST_DAYS = 3_650.0  # what lies further off is no forecast


@dataclass(frozen=True, slots=True)
class Trend:
    """Of one signal: ``ratio`` to the well's own start, ``slope`` (of the start, a day), ``confidence`` (0 … 1), and
    the days until the ratio reaches ``limit`` (None: no limit, it leads away from it, or over ten years off)."""

    signal: str
    ratio: float
    slope: float
    confidence: float
    limit: float | None
    days: float | None

    @property
    def words(self) -> str:
        """For people, such as: flow_rate −0.35 % a day (confidence 99.9 %), 75 % of its start in 43 days."""
        text = f"{self.signal} {100 * self.slope:+.2g} % a day (confidence {min(99.9, 100 * self.confidence):.1f} %)"
        if self.limit is None or self.days is None:
            return text
        return f"{text}, {100 * self.limit:.3g} % of its start in {self.days:.0f} days"

    def figures(self) -> dict[str, float]:
        """For programs: in the snapshot of the occurrence."""
        found = {
            "ratio_to_start": round(self.ratio, 4),
            "slope_a_day": float(f"{self.slope:.3g}"),
            "confidence": round(self.confidence, 4),
        }
        if self.limit is not None and self.days is not None:
            found |= {"limit": self.limit, "days_until_limit": round(self.days, 1)}
        return found


def trends_of(rule: Rule, row: dict[Key, int], features: Features, run: int) -> list[Trend]:
    """The known trends (``features`` during ``run``) whose confidence ``rule`` reads; the days are counted to its
    parameter ``limit``."""
    if rule.when is None:
        return []
    found = []
    for key in sorted((key for key in rule.when.columns if key[0] == "slow_confidence"), key=str):
        signal = key[1]
        ratio, slope, confidence = (
            features.one(row[function, signal], run) if (function, signal) in row else float("nan")
            for function in ("slow_ratio", "slow_rate", "slow_confidence")
        )
        if ratio == ratio and slope == slope and confidence == confidence:
            limit = rule.parameters.get("limit")
            found.append(Trend(str(signal), ratio, slope * _DAY_SECONDS, confidence, limit, _days(ratio, slope, limit)))
    return found


def _days(ratio: float, slope: float, limit: float | None) -> float | None:
    if limit is None or slope == 0:
        return None
    days = (limit - ratio) / (slope * _DAY_SECONDS)
    return days if 0 <= days <= _LONGEST_DAYS else None
