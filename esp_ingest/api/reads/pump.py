"""The operating point of a pump beside its curve. The curve in the catalogue is for one frequency, and the affinity
laws move it to another: the flow is proportional to the frequency, the head to its square (API RP 11S2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from esp_ingest.api.reads.fleet import MIN_FREQUENCY_HZ
from esp_ingest.config.pumps import Pump, PumpsSettings


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
    curve = scaled(pump.curve, pump.stages, ratio)
    gradient = pump.gradient_psi_per_ft or pumps.gradient_psi_per_ft
    return OperatingPoint(
        curve_hz=hz,
        curve=curve,
        recommended=None
        if pump.recommended_bpd is None
        else (pump.recommended_bpd[0] * ratio, pump.recommended_bpd[1] * ratio),
        gradient_psi_per_ft=gradient,
        flow_rate=flow_rate,
        head=None if intake is None or discharge is None else (discharge - intake) / gradient,
        curve_head=None if flow_rate is None or not turns else head_at(curve, flow_rate),
    )


def scaled(curve: Sequence[tuple[float, float]], stages: int, ratio: float) -> list[tuple[float, float]]:
    """The curve of the whole pump, all stages together, at ``ratio`` times the frequency of the catalogue."""
    return [(flow * ratio, head * stages * ratio**2) for flow, head in curve]


def head_at(curve: Sequence[tuple[float, float]], flow: float) -> float | None:
    """The head at this flow, interpolated between two points of the curve; None outside the curve."""
    for (low, high_head), (high, low_head) in pairwise(curve):
        if low <= flow <= high:
            return high_head + (low_head - high_head) * (flow - low) / (high - low)
    return None
