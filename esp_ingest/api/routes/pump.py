"""/api/v1/wells/{well_id}/pump: the operating point beside the pump's curve."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from esp_ingest.api.context import Parts, Viewer
from esp_ingest.api.reads.pump import operating_point
from esp_ingest.api.routes.wells import UnitsQuery, WellIdPath, no_such_well, refuse_foreign
from esp_ingest.api.wire import models
from esp_ingest.api.wire.answers import respond
from esp_ingest.api.wire.problems import Problem
from esp_ingest.api.wire.schema import answers
from esp_ingest.api.wire.units import HEAD, convert, unit
from esp_ingest.model import SIGNAL_NAMES

router = APIRouter(prefix="/api/v1", tags=["wells"])
_PUMP = {
    "well_id": "ESP-01", "timestamp": "2026-11-25T12:00:00Z", "vsd_frequency": 52.0, "curve_hz": 52.0,
    "curve": [[0.0, 4686.9], [1300.0, 3965.9], [2600.0, 721.1]], "recommended": [953.3, 1820.0],
    "gradient_psi_per_ft": 0.4, "flow_rate": 1300.0, "head": 3900.0, "curve_head": 3965.9,
    "virtual_flow_rate": 1326.4, "thrust": "normal", "drawdown": 850.0, "bubble_point_margin": 120.0,
    "units": {"flow_rate": "bbl/d", "head": "ft", "pip": "psi"},
}  # fmt: skip


@router.get(
    "/wells/{well_id}/pump",
    summary="A pump's curve and operating point",
    responses=answers(models.PumpPoint, _PUMP, problems=(404,)),
)
async def pump(
    request: Request, api: Parts, principal: Viewer, well_id: WellIdPath, units: UnitsQuery = "field"
) -> Response:
    """The curve of `pumps.by_well` in the configuration, moved to the newest frequency by the affinity laws, and where
    the newest reading lies beside it. What the reading does not say is null."""
    refuse_foreign(principal, well_id)
    newest = await api.database.fetch_one("api_newest_of_well", {"well": well_id})
    if newest is None:
        raise no_such_well(well_id)
    configured = api.settings.pumps.by_well.get(well_id)
    if configured is None:
        raise Problem(
            404, "no-pump", f"No pump curve is configured for {well_id}: set pumps.by_well in the configuration."
        )
    reading = dict(zip(SIGNAL_NAMES, newest[2:-2], strict=True))
    found = operating_point(
        configured,
        api.settings.pumps,
        frequency=reading["vsd_frequency"],
        flow_rate=reading["flow_rate"],
        intake=reading["pip"],
        discharge=reading["discharge_pressure"],
    )

    def flow(value: float | None) -> float | None:
        return convert(value, "flow_rate", units)

    def head(value: float | None) -> float | None:
        return convert(value, HEAD, units)

    document = {
        "well_id": well_id,
        "timestamp": newest[0],
        "vsd_frequency": reading["vsd_frequency"],
        "curve_hz": found.curve_hz,
        "curve": [[flow(each), head(of_it)] for each, of_it in found.curve],
        "recommended": None if found.recommended is None else [flow(each) for each in found.recommended],
        "gradient_psi_per_ft": found.gradient_psi_per_ft,
        "flow_rate": flow(found.flow_rate),
        "head": head(found.head),
        "curve_head": head(found.curve_head),
        "virtual_flow_rate": flow(found.virtual_flow_rate),
        "thrust": found.thrust,
        "drawdown": convert(found.drawdown, "pip", units),
        "bubble_point_margin": convert(found.bubble_point_margin, "pip", units),
        "units": {name: unit(name, units) for name in ("flow_rate", HEAD, "pip")},
    }
    return respond(request, document)
