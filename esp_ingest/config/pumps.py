"""The pumps' curves: head over flow, as the maker's catalogue has them, well by well."""

import re
from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, model_validator

from esp_ingest.config.section import WELL_ID_PATTERN, Section

Amount = Annotated[float, Field(ge=0)]


class Pump(Section):
    """The pump of a well. ``curve`` is [flow in bbl/d, head in ft] of one stage at ``reference_hz``, by rising flow;
    with ``stages`` left at 1 it is of the whole pump."""

    curve: list[tuple[Amount, Amount]] = Field(min_length=2, max_length=100)
    stages: int = Field(1, ge=1, le=2_000)
    reference_hz: float = Field(60.0, ge=10, le=90)
    recommended_bpd: tuple[Amount, Amount] | None = None
    gradient_psi_per_ft: float | None = Field(None, ge=0.05, le=1.0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(before[0] >= after[0] for before, after in pairwise(self.curve)):
            raise ValueError("curve must be by rising flow: [[flow in bbl/d, head in ft], …]")
        if not any(head for _, head in self.curve):
            raise ValueError("curve must have a head above 0 somewhere")
        if self.recommended_bpd is not None and self.recommended_bpd[0] >= self.recommended_bpd[1]:
            raise ValueError("recommended_bpd must be [low, high] with low below high")
        return self


class PumpsSettings(Section):
    """The pumps' curves, for the operating point in the API and the console."""

    gradient_psi_per_ft: float = Field(
        0.4, ge=0.05, le=1.0, description="gradient of the fluid in a pump whose table has none; fresh water has 0.433"
    )
    by_well: dict[str, Pump] = Field(
        default_factory=dict,
        description="pump by well: curve as [flow in bbl/d, head in ft] of a stage at reference_hz (60), number of "
        "stages (1: the curve is of the whole pump), recommended_bpd and gradient_psi_per_ft if known",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for well in self.by_well:
            if not re.fullmatch(WELL_ID_PATTERN, well):
                raise ValueError(f"by_well.{well!r} is no well id (letters, digits, . _ -, at most 64)")
        return self
