"""The pumps' curves: head over flow, as the maker's catalogue has them, well by well."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, model_validator

from esp_ingest.config.section import WELL_ID_PATTERN, Section

Amount = Annotated[float, Field(ge=0)]


_POINTS = 41  # of a curve that coefficients give


class Pump(Section):
    """The pump of a well, and what is known of the well at it. The head of one stage at ``reference_hz`` is given by
    points, ``curve`` as [flow in bbl/d, head in ft] by rising flow, or by ``coefficients`` of a polynomial in the flow
    (bbl/d → ft, the constant first) that holds from 0 to ``coefficients_to_bpd``; with ``stages`` left at 1 it is of
    the whole pump. Outside of ``recommended_bpd`` stages wear by down- or upthrust. Pressures in psi, at the intake:
    ``bubble_point_psi``, ``reservoir_pressure_psi``, ``max_drawdown_psi`` (reservoir less intake)."""

    curve: list[tuple[Amount, Amount]] = Field(default_factory=list, max_length=100)
    coefficients: list[float] | None = Field(None, min_length=2, max_length=8)
    coefficients_to_bpd: float | None = Field(None, gt=0)
    stages: int = Field(1, ge=1, le=2_000)
    reference_hz: float = Field(60.0, ge=10, le=90)
    recommended_bpd: tuple[Amount, Amount] | None = None
    gradient_psi_per_ft: float | None = Field(None, ge=0.05, le=1.0)
    bubble_point_psi: float | None = Field(None, gt=0)
    reservoir_pressure_psi: float | None = Field(None, gt=0)
    max_drawdown_psi: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.coefficients is None) != (self.coefficients_to_bpd is None):
            raise ValueError("coefficients and coefficients_to_bpd must be given together")
        if self.coefficients is not None and self.curve:
            raise ValueError("curve and coefficients exclude each other: give one of them")
        if self.coefficients is None and len(self.curve) < 2:
            raise ValueError("curve is missing: give two points at least, or coefficients")
        if any(before[0] >= after[0] for before, after in pairwise(self.curve)):
            raise ValueError("curve must be by rising flow: [[flow in bbl/d, head in ft], …]")
        if not any(head > 0 for _, head in self.points):
            raise ValueError("curve must have a head above 0 somewhere")
        if self.recommended_bpd is not None and self.recommended_bpd[0] >= self.recommended_bpd[1]:
            raise ValueError("recommended_bpd must be [low, high] with low below high")
        if self.max_drawdown_psi is not None and self.reservoir_pressure_psi is None:
            raise ValueError("max_drawdown_psi needs reservoir_pressure_psi")
        return self

    @property
    def points(self) -> list[tuple[float, float]]:
        """The curve of one stage as points, [flow in bbl/d, head in ft]; a head below 0 is 0."""
        if self.coefficients is None or self.coefficients_to_bpd is None:
            return self.curve
        flows = [self.coefficients_to_bpd * at / (_POINTS - 1) for at in range(_POINTS)]
        return [(flow, max(0.0, sum(c * flow**power for power, c in enumerate(self.coefficients)))) for flow in flows]


class PumpsSettings(Section):
    """The pumps' curves, for the operating point in the API, the console and the rules."""

    gradient_psi_per_ft: float = Field(
        0.4, ge=0.05, le=1.0, description="gradient of the fluid in a pump whose table has none; fresh water has 0.433"
    )
    by_well: dict[str, Pump] = Field(
        default_factory=dict,
        description="pump by well: curve as [flow in bbl/d, head in ft] of a stage at reference_hz (60), or "
        "coefficients with coefficients_to_bpd; number of stages (1: the curve is of the whole pump), recommended_bpd, "
        "gradient_psi_per_ft, bubble_point_psi, reservoir_pressure_psi and max_drawdown_psi if known",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for well in self.by_well:
            if not re.fullmatch(WELL_ID_PATTERN, well):
                raise ValueError(f"by_well.{well!r} is no well id (letters, digits, . _ -, at most 64)")
        return self


def head_at(points: Sequence[tuple[float, float]], flow: float) -> float | None:
    """The head at this flow, interpolated between two points of a curve; None outside the curve."""
    for (low, high_head), (high, low_head) in pairwise(points):
        if low <= flow <= high:
            return high_head + (low_head - high_head) * (flow - low) / (high - low)
    return None


def flow_at(points: Sequence[tuple[float, float]], head: float) -> float | None:
    """The flow at which a curve gives this head, the greatest of them where it gives it twice (left of its summit a
    pump does not run steadily); None if the head is above or below the curve."""
    for (low, high_head), (high, low_head) in reversed(list(pairwise(points))):
        if high_head > low_head and low_head <= head <= high_head:
            return low + (high - low) * (high_head - head) / (high_head - low_head)
    return None
