"""The operating point of a pump beside its curve. The curve in the catalogue is for one frequency, and the affinity
laws move it to another: the flow is proportional to the frequency, the head to its square (API RP 11S2)."""

from collections.abc import Sequence
from dataclasses import dataclass

from esp_ingest.config.pumps import Pump, PumpsSettings, flow_at, head_at
from esp_ingest.model import MIN_FREQUENCY_HZ


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Flows in bbl/d, heads in ft. ``curve`` and ``recommended`` hold at ``curve_hz``."""

    curve_hz: float
    curve: list[tuple[float, float]]
    recommended: tuple[float, float] | None
    gradient_psi_per_ft: float
    flow_rate: float | None
    head: float | None  # None if a pressure is missing
    curve_head: float | None  # what the curve gives at this flow, None beside its ends
    virtual_flow_rate: float | None  # where the curve gives this head: the rate of a pump that is as new
    thrust: str | None  # "down", "normal" or "up": the flow beside the recommended range; None if not known
    drawdown: float | None  # psi, reservoir less intake pressure
    bubble_point_margin: float | None  # psi, intake pressure less bubble point


def operating_point(
    pump: Pump,
    pumps: PumpsSettings,
    *,
    frequency: float | None,
    flow_rate: float | None,
    intake: float | None,
    discharge: float | None,
) -> OperatingPoint:
    """The operating point for a reading (Hz, bbl/d, psi). The curve is moved to the frequency of the reading. If the
    pump stands still or its frequency is not known, it is the catalogue's own curve, which then says nothing about
    the present head."""
    turns = frequency is not None and frequency > MIN_FREQUENCY_HZ
    hz = frequency if frequency is not None and turns else pump.reference_hz
    ratio = hz / pump.reference_hz
    curve = scaled(pump.points, pump.stages, ratio)
    gradient = pump.gradient_psi_per_ft or pumps.gradient_psi_per_ft
    recommended = pump.recommended_bpd
    if recommended is not None:
        recommended = (recommended[0] * ratio, recommended[1] * ratio)
    head = None if intake is None or discharge is None else (discharge - intake) / gradient
    virtual = None if head is None or not turns else flow_at(curve, head)
    return OperatingPoint(
        curve_hz=hz,
        curve=curve,
        recommended=recommended,
        gradient_psi_per_ft=gradient,
        flow_rate=flow_rate,
        head=head,
        curve_head=None if flow_rate is None or not turns else head_at(curve, flow_rate),
        virtual_flow_rate=virtual,
        thrust=thrust_of(flow_rate if flow_rate is not None else virtual, recommended) if turns else None,
        drawdown=_difference(pump.reservoir_pressure_psi, intake),
        bubble_point_margin=_difference(intake, pump.bubble_point_psi),
    )


def thrust_of(flow: float | None, recommended: tuple[float, float] | None) -> str | None:
    """On which side the flow leaves the recommended range; None if one of the two is not known."""
    if flow is None or recommended is None:
        return None
    return "down" if flow < recommended[0] else "up" if flow > recommended[1] else "normal"


def _difference(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def scaled(curve: Sequence[tuple[float, float]], stages: int, ratio: float) -> list[tuple[float, float]]:
    """The curve of the whole pump, all stages together, at ``ratio`` times the frequency of the catalogue."""
    return [(flow * ratio, head * stages * ratio**2) for flow, head in curve]
