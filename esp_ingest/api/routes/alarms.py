"""/api/v1/alarms: occurrences, what operators did about them, and how well the alarm system does."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from esp_ingest.api.context import Parts, Viewer
from esp_ingest.api.reads.fleet import SEVERITIES
from esp_ingest.api.routes.operations import without_nul
from esp_ingest.api.routes.telemetry import FromQuery, ToQuery
from esp_ingest.api.routes.wells import CursorQuery, LimitQuery
from esp_ingest.api.wire import cursors, models
from esp_ingest.api.wire.answers import respond, respond_list
from esp_ingest.api.wire.ranges import bounds_of, days_before, range_of
from esp_ingest.api.wire.schema import OCCURRENCE_EXAMPLE, answers
from esp_ingest.config.section import WELL_ID_PATTERN

router = APIRouter(prefix="/api/v1/alarms", tags=["alarms"])

STATES = (
    "unacknowledged", "acknowledged", "returned-unacknowledged", "normal", "latched", "shelved", "suppressed",
    "out_of_service",
)  # fmt: skip
StateFilter = Literal[
    "open", "cleared", "active", "waiting", "unacknowledged", "acknowledged", "returned-unacknowledged", "normal",
    "latched", "shelved", "suppressed", "out_of_service",
]  # fmt: skip
WellQuery = Annotated[
    list[Annotated[str, Query(pattern=f"^{WELL_ID_PATTERN}$")]] | None, Query(description="any of these wells")
]
_KPIS = {
    "from": "2026-11-24T12:00:00Z", "to": "2026-11-25T12:00:00Z", "alarms": 31, "wells": 6, "alarms_per_hour": 1.292,
    "alarms_per_10_minutes": 0.215, "peak_10_minutes": 4, "flood_share": 0.0, "acknowledged": 22,
    "median_seconds_to_acknowledge": 312.5,
    "by_severity": {"critical": 0, "high": 4, "medium": 19, "low": 8},
    "loudest": [{"well_id": "ESP-01", "diagnosis": "gas_lock", "alarms": 9, "occurrences": 12}], "loudest_share": 1.0,
    "chattering": [{"well_id": "ESP-01", "diagnosis": "cycling", "per_minute": 3.5}],
    "stale": [
        {"well_id": "ESP-07", "diagnosis": "leakage", "timestamp": "2026-11-20T01:00:00Z", "severity": "medium"}
    ],
}  # fmt: skip
_ACTION = {
    "id": 7, "at": "2026-11-25T11:50:00Z", "well_id": "ESP-01", "diagnosis": "gas_lock", "action": "ack",
    "by_whom": "ada", "why": "choke opened", "raised_at": "2026-11-25T11:42:10Z", "shelved_to": None, "detail": {},
}  # fmt: skip
_PRECISION = {
    "diagnosis": "gas_lock", "judged": 14, "true_alarms": 11, "false_alarms": 2, "unclear": 1, "precision": 0.846,
}  # fmt: skip


@router.get(
    "",
    summary="Occurrences, newest first",
    responses=answers(models.AlarmPage, {"items": [OCCURRENCE_EXAMPLE], "next": None}, formats=True),
)
async def alarms(
    request: Request,
    api: Parts,
    principal: Viewer,
    well_id: WellQuery = None,
    severity: Annotated[list[models.Severity] | None, Query(description="any of these")] = None,
    state: Annotated[
        list[StateFilter] | None,
        Query(
            description="any of these; open and cleared stand for all that are so, active for what is open and not "
            "held back (suppressed, shelved, out of service), waiting for what is open, to be acknowledged and no event"
        ),
    ] = None,
    diagnosis: Annotated[list[str] | None, Query(description="any of these rules", max_length=100)] = None,
    verdict: Annotated[
        Literal["true", "false", "unclear", "none"] | None, Query(description="what an operator said of it")
    ] = None,
    start: FromQuery = None,
    to: ToQuery = None,
    limit: LimitQuery = 100,
    cursor: CursorQuery = None,
) -> Response:
    """`from` and `to` are of when an occurrence was raised, in event time."""
    first, last = bounds_of(start, to, api.clock.now_us(), api.settings.api.max_range_days)
    after = cursors.decode("alarms", cursor, (datetime, str, str))
    for each in diagnosis or ():
        without_nul("diagnosis", each)
    rows = await api.database.fetch_dicts(
        "api_alarms",
        _states(state)
        | {
            "wells": principal.like,
            "well": well_id or None,
            "severity": severity or None,
            "diagnosis": diagnosis or None,
            "verdict": verdict,
            "from": first,
            "to": last,
            "after": after[0] if after else None,
            "after_well": after[1] if after else None,
            "after_diagnosis": after[2] if after else None,
            "limit": limit + 1,
        },
    )
    page, following = cursors.page(
        request, rows, limit, "alarms", lambda row: (row["timestamp"], row["well_id"], row["diagnosis"])
    )
    return respond_list(request, page, models.Alarm, following)


def _states(given: list[StateFilter] | None) -> dict[str, Any]:
    """``open`` and ``cleared`` are of the end of an occurrence, ``active`` and ``waiting`` of end and state as the sums
    of the fleet count them, the others of its state; any of them may hold."""
    chosen = set(given or ())
    states = [each for each in STATES if each in chosen]
    whole = chosen & {"open", "cleared"}
    is_any = not chosen or whole == {"open", "cleared"}
    return {
        "open": None if is_any or not whole else whole == {"open"},
        "active": "active" in chosen,
        "waiting": "waiting" in chosen,
        "state": None if is_any else states,
    }


@router.get(
    "/kpis",
    summary="Performance of the alarm system (ISA-18.2)",
    responses=answers(models.Kpis, _KPIS),
)
async def kpis(
    request: Request, api: Parts, principal: Viewer, start: FromQuery = None, to: ToQuery = None
) -> Response:
    """Over any range (the last 24 h, if left out). Events (info) and what was suppressed or shelved are no alarms."""
    settings = api.settings.api
    asked = range_of(start, to, api.clock.now_us(), settings.max_range_days, timedelta(days=1))
    parameters: Mapping[str, Any] = {
        "from": asked.start,
        "to": asked.end,
        "oldest": days_before(asked.start, settings.max_range_days),
        "wells": principal.like,
    }
    sums, loudest, chattering, stale = await api.database.ask(
        *((name, parameters) for name in ("api_kpis", "api_kpi_loudest", "api_kpi_chattering", "api_kpi_stale"))
    )
    count, wells, peak, floods, acknowledged, median, by_severity = sums[0]
    hours = asked.seconds / 3_600
    intervals = max(1.0, hours * 6)
    loud = sum(row[2] for row in loudest)
    document = {
        "from": asked.start,
        "to": asked.end,
        "alarms": count,
        "wells": wells,
        "alarms_per_hour": round(count / hours, 3),
        "alarms_per_10_minutes": round(count / intervals, 3),
        "peak_10_minutes": peak,
        "flood_share": round(min(1.0, floods / intervals), 4),
        "acknowledged": acknowledged,
        "median_seconds_to_acknowledge": None if median is None else round(float(median), 1),
        "by_severity": {each: (by_severity or {}).get(each, 0) for each in SEVERITIES[:4]},
        "loudest": [{"well_id": w, "diagnosis": d, "alarms": n, "occurrences": times} for w, d, n, times in loudest],
        "loudest_share": round(loud / count, 4) if count else 0.0,
        "chattering": [
            {"well_id": w, "diagnosis": d, "per_minute": round(float(times), 1)} for w, d, times in chattering
        ],
        "stale": [{"well_id": w, "diagnosis": d, "timestamp": at, "severity": s} for w, d, at, s in stale],
    }
    return respond(request, document)


@router.get(
    "/history",
    summary="What operators did, newest first",
    responses=answers(models.AlarmActionPage, {"items": [_ACTION], "next": None}, formats=True),
)
async def history(
    request: Request,
    api: Parts,
    principal: Viewer,
    well_id: Annotated[str | None, Query(pattern=f"^{WELL_ID_PATTERN}$", description="only this well")] = None,
    diagnosis: Annotated[str | None, Query(max_length=100, description="only this rule")] = None,
    limit: LimitQuery = 100,
    cursor: CursorQuery = None,
) -> Response:
    """Who did what to which alarm, and why: from here and from `esp-ingest alarms`."""
    before = cursors.decode_id("history", cursor)
    asked = {"well": well_id, "diagnosis": without_nul("diagnosis", diagnosis), "wells": principal.like}
    rows = await api.database.fetch_dicts("api_alarm_history", asked | {"before": before, "limit": limit + 1})
    page, following = cursors.page(request, rows, limit, "history", lambda row: (row["id"],))
    return respond_list(request, page, models.AlarmAction, following)


@router.get(
    "/precision",
    summary="How often each rule was right",
    responses=answers(models.PrecisionPage, {"items": [_PRECISION], "next": None}, formats=True),
)
async def precision(
    request: Request, api: Parts, principal: Viewer, start: FromQuery = None, to: ToQuery = None
) -> Response:
    """Of the occurrences that an operator gave a verdict on; unclear ones count for neither side."""
    first, last = bounds_of(start, to, api.clock.now_us(), api.settings.api.max_range_days)
    rows = await api.database.fetch_dicts("api_precision", {"wells": principal.like, "from": first, "to": last})
    return respond_list(request, rows, models.Precision)
