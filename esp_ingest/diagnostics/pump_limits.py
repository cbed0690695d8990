"""What ``[pumps]`` of the configuration says of a well's pump, as limits of the rules: one home for both.

Limits that a rules file gives the same well win: the pumps' stand before them.
"""

from collections.abc import Iterator
from dataclasses import replace

from esp_ingest.config.pumps import Pump, PumpsSettings, head_at
from esp_ingest.diagnostics.language.rules import Override, RuleSet


def with_pumps(rules: RuleSet, pumps: PumpsSettings) -> RuleSet:
    """``rules`` with the limits that the configured pumps give their wells. What a rules file does not declare under
    ``[limits]`` is left out."""
    found = []
    for well, pump in pumps.by_well.items():
        limits = {name: value for name, value in _limits(pump, pumps) if name in rules.limits}
        if limits:
            found.append(Override(f"pumps.by_well.{well}", (well,), limits, {}))
    return replace(rules, overrides=(*found, *rules.overrides)) if found else rules


def _limits(pump: Pump, pumps: PumpsSettings) -> Iterator[tuple[str, float]]:
    """In base units: bbl/d, psi, Hz. Heads become pressures by the gradient of the fluid."""
    if pump.recommended_bpd is not None:
        gradient = pump.gradient_psi_per_ft or pumps.gradient_psi_per_ft
        yield "pump_hz", pump.reference_hz
        low, high = pump.recommended_bpd
        for name, flow in (("low", low), ("high", high)):
            yield f"pump_flow_{name}", flow
            head = head_at(pump.points, flow)
            if head is not None:
                yield f"pump_lift_at_flow_{name}", head * pump.stages * gradient
    for name, value in (
        ("bubble_point", pump.bubble_point_psi),
        ("reservoir_pressure", pump.reservoir_pressure_psi),
        ("drawdown", pump.max_drawdown_psi),
    ):
        if value is not None:
            yield name, value
