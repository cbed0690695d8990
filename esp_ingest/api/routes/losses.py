"""/api/v1/losses: lost hours and lost production of stops, by well and reason."""

from datetime import timedelta

from fastapi import APIRouter, Request
from fastapi.responses import Response

from esp_ingest.api.context import Parts, Viewer
from esp_ingest.api.routes.alarms import WellQuery
from esp_ingest.api.routes.telemetry import FromQuery, ToQuery
from esp_ingest.api.wire import models
from esp_ingest.api.wire.answers import respond_list
from esp_ingest.api.wire.ranges import range_of
from esp_ingest.api.wire.schema import answers

router = APIRouter(prefix="/api/v1", tags=["wells"])
_RANGE = timedelta(days=30)
_LOSS = {
    "well_id": "ESP-01", "planned": False, "reason": "power", "stops": 3, "lost_hours": 7.25, "lost_production": 287.6,
    "without_rate": 0, "down": 0,
}  # fmt: skip


@router.get(
    "/losses",
    summary="Lost hours and production of stops",
    response_model=None,
    responses=answers(models.LossPage, {"items": [_LOSS], "next": None}, formats=True),
)
async def losses(
    request: Request,
    api: Parts,
    principal: Viewer,
    well_id: WellQuery = None,
    start: FromQuery = None,
    to: ToQuery = None,
) -> Response:
    """Stops are occurrences of `trip` and `planned_stop`; a stop that is not over counts until the end of the range.
    The reason is what operators gave with their verdict on the stop; if they gave none, it is `power` for a trip inside
    a common stop."""
    asked = range_of(start, to, api.clock.now_us(), api.settings.api.max_range_days, _RANGE)
    parameters = {"well": well_id, "wells": principal.like, "from": asked.start, "to": asked.end}
    rows = await api.database.fetch_dicts("api_losses", parameters)
    return respond_list(request, rows, models.Loss)
