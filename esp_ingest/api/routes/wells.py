"""/api/v1/fleet, /wells and /signals: what is there now."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from esp_ingest.api.access.principal import Principal
from esp_ingest.api.context import Api, Parts, Viewer
from esp_ingest.api.reads.fleet import SEVERITIES, STATES, Well, alarm
from esp_ingest.api.wire import cursors, models
from esp_ingest.api.wire.answers import Column, Table, respond, respond_list
from esp_ingest.api.wire.problems import Problem
from esp_ingest.api.wire.schema import WELL_EXAMPLE, answers
from esp_ingest.api.wire.units import System, convert, unit, units
from esp_ingest.config.section import WELL_ID_PATTERN
from esp_ingest.model import SIGNAL_NAMES, SIGNALS

router = APIRouter(prefix="/api/v1", tags=["wells"])

WellIdPath = Annotated[str, Path(pattern=f"^{WELL_ID_PATTERN}$", description="well id", examples=["ESP-01"])]
UnitsQuery = Annotated[System, Query(description="field: as stored; metric: converted")]
LimitQuery = Annotated[int, Query(ge=1, le=1_000, description="most items in a page")]
CursorQuery = Annotated[str | None, Query(max_length=2_000, description="out of a next link")]
_UNITS = {signal.name: signal.unit for signal in SIGNALS}
_FLEET = {
    "wells": 12, "states": {"running": 10, "stopped": 1, "unknown": 0, "silent": 1},
    "alarms": {"critical": 0, "high": 1, "medium": 2, "low": 0, "info": 0}, "unacknowledged": 2, "shelved": 1,
    "alarms_24h": 7, "rejects_24h": 3, "flow_rate": 18_400.0, "last_seen": "2026-11-25T12:00:00Z",
    "silent_after_seconds": 900.0, "units": {"flow_rate": "bbl/d"},
}  # fmt: skip
Sort = Literal["well_id", "-well_id", "need", "last_seen", "-last_seen", "flow_rate", "-flow_rate"]


def no_such_well(well_id: str) -> Problem:
    """The same whether there is none or one that may not be seen."""
    return Problem(404, "no-such-well", f"There is no well {well_id} that you may see: /api/v1/wells lists them.")


def refuse_foreign(principal: Principal, well_id: str) -> None:
    """Raises Problem 404 for a well that this one may not see."""
    if not principal.sees(well_id):
        raise no_such_well(well_id)


@router.get("/fleet", summary="Sums over the wells", responses=answers(models.Fleet, _FLEET))
async def fleet(request: Request, api: Parts, principal: Viewer, units: UnitsQuery = "field") -> Response:
    """How many wells are in which state, what is open, and what the running ones produce."""
    wells = [well for well in await api.fleet.wells() if principal.sees(well.well_id)]
    ((rejects, alarms, shelved, waiting, *active),) = await api.database.fetch("api_counts", {"wells": principal.like})
    now, silent = api.fleet.now(), api.settings.api.silent_after_seconds
    states = [well.state(now, silent) for well in wells]
    rates = [well.values[0] for well, state in zip(wells, states, strict=True) if state == "running"]
    known = [rate for rate in rates if rate is not None]
    document = {
        "wells": len(wells),
        "states": {state: states.count(state) for state in STATES},
        "alarms": dict(zip(SEVERITIES, active, strict=True)),
        "unacknowledged": waiting,
        "shelved": shelved,
        "alarms_24h": alarms,
        "rejects_24h": rejects if principal.sees_everything else None,
        "flow_rate": convert(sum(known), "flow_rate", units) if known else None,
        "last_seen": max((well.at for well in wells), default=None),
        "silent_after_seconds": silent,
        "units": {"flow_rate": unit("flow_rate", units)},
    }
    return respond(request, document)


@router.get(
    "/wells",
    summary="Wells with their newest reading, state and open alarms",
    responses=answers(
        models.WellPage, {"items": [WELL_EXAMPLE], "next": None, "total": 1, "units": _UNITS}, formats=True
    ),
)
async def wells(
    request: Request,
    api: Parts,
    principal: Viewer,
    q: Annotated[str | None, Query(max_length=64, description="part of the well id; * stands for any text")] = None,
    state: Annotated[list[models.State] | None, Query(description="any of these")] = None,
    severity: Annotated[list[models.Severity] | None, Query(description="of the worst alarm: any of these")] = None,
    sort: Annotated[
        Sort, Query(description="need: the worst alarm first, then who has been silent longest")
    ] = "well_id",
    units: UnitsQuery = "field",
    limit: LimitQuery = 100,
    cursor: CursorQuery = None,
) -> Response:
    """The newest reading counts, however old it is: `state` is silent where that is long ago."""
    now, silent = api.fleet.now(), api.settings.api.silent_after_seconds
    wanted = re.compile(".*".join(map(re.escape, q.split("*"))), re.IGNORECASE) if q else None
    found = [
        well
        for well in await api.fleet.wells()
        if principal.sees(well.well_id)
        and (wanted is None or wanted.search(well.well_id))
        and (not state or well.state(now, silent) in state)
        and (not severity or _severity(well) in severity)
    ]
    is_turned = sort == "-well_id"
    keyed = sorted(((_key(well, sort), well.well_id) for well in found), reverse=is_turned)
    after = cursors.decode(f"wells {sort}", cursor, (float, str))
    if after is not None:
        last = (after[0], after[1])
        keyed = [key for key in keyed if (key < last if is_turned else key > last)]
    page, following = cursors.page(request, keyed, limit, f"wells {sort}", lambda key: key)
    by_id = {well.well_id: well for well in found}
    items = [_document(by_id[well_id], now, silent, units) for _, well_id in page]
    document = {"items": items, "next": following, "total": len(found), "units": _units(units)}
    return respond(request, document, table=_table(items, units), following=following)


def _key(well: Well, sort: Sort) -> float:
    """What is sorted by, lowest first; then by id."""
    seen, rate = well.at.timestamp(), well.values[0]
    if sort == "need":
        return -well.need * 1e12 + seen
    if sort in ("last_seen", "-last_seen"):
        return seen if sort == "last_seen" else -seen
    if sort in ("flow_rate", "-flow_rate"):
        return 1e12 if rate is None else (rate if sort == "flow_rate" else -rate)
    return 0.0


def _severity(well: Well) -> str | None:
    return SEVERITIES[5 - well.need] if well.need else None


def _units(system: System) -> dict[str, str]:
    return units(SIGNAL_NAMES, system)


def _document(well: Well, now: datetime, silent_after_seconds: float, system: System) -> dict[str, Any]:
    values = {name: convert(value, name, system) for name, value in zip(SIGNAL_NAMES, well.values, strict=True)}
    return {
        "well_id": well.well_id,
        "state": well.state(now, silent_after_seconds),
        "last_seen": well.at,
        "severity": _severity(well),
        "reading": {"timestamp": well.at, **values},
        "alarms": well.alarms,
    }


def _table(items: list[dict[str, Any]], system: System) -> Table:
    columns = [
        Column("well_id", "text"),
        Column("state", "text"),
        Column("last_seen", "time"),
        Column("severity", "text"),
    ]
    columns += [Column(name, "number", unit(name, system)) for name in SIGNAL_NAMES]
    columns.append(Column("alarms", "json"))
    rows = [
        [i["well_id"], i["state"], i["last_seen"], i["severity"], *list(i["reading"].values())[1:], i["alarms"]]
        for i in items
    ]
    return Table(columns, rows)


@router.get(
    "/wells/{well_id}",
    summary="A well as it is now",
    responses=answers(
        models.WellDetail,
        WELL_EXAMPLE
        | {
            "units": _UNITS, "received_at": "2026-11-25T12:00:00.250Z", "extra": None, "quality": None,
            "limits": {"pip": {"low": 0.0, "high": 6000.0}}, "shelved": [], "rules_off": [],
            "has_pump": False, "silent_after_seconds": 900.0,
        },
        problems=(404,),
    ),
)  # fmt: skip
async def well(
    request: Request, api: Parts, principal: Viewer, well_id: WellIdPath, units: UnitsQuery = "field"
) -> Response:
    """Its newest reading with all that came with it, open alarms, what is shelved, and rules that cannot run."""
    refuse_foreign(principal, well_id)
    asked = {"well": well_id}
    newest, alarms, shelved, off = await api.database.ask(
        ("api_newest_of_well", asked), ("api_open_alarms", asked), ("api_shelved", asked), ("api_rules_off", asked)
    )
    if not newest:
        raise no_such_well(well_id)
    at, received, *rest = newest[0]
    values, extra, quality = tuple(rest[:-2]), rest[-2], rest[-1]
    found = Well(well_id, at, values, [alarm(row) for row in alarms])
    document = _document(found, api.fleet.now(), api.settings.api.silent_after_seconds, units)
    document |= {
        "units": _units(units),
        "received_at": received,
        "extra": extra,
        "quality": quality,
        "limits": _limits(api, well_id, units),
        "shelved": [{"diagnosis": d, "shelved_to": to, "by_whom": by, "why": why} for d, to, by, why in shelved],
        "rules_off": [{"diagnosis": diagnosis, "reason": reason} for diagnosis, reason in off],
        "has_pump": well_id in api.settings.pumps.by_well,
        "silent_after_seconds": api.settings.api.silent_after_seconds,
    }
    return respond(request, document)


def _limits(api: Api, well_id: str, system: System) -> dict[str, dict[str, float | None]]:
    pairs = zip(SIGNAL_NAMES, api.limits.of(well_id), strict=True)
    return {
        name: {"low": convert(low, name, system), "high": convert(high, name, system)} for name, (low, high) in pairs
    }


@router.get(
    "/signals",
    summary="Signals with their units and hard limits",
    responses=answers(
        models.SignalPage,
        {
            "items": [
                {
                    "name": "pip", "unit": "psi", "unit_metric": "bar", "low": 0.0, "high": 6000.0,
                    "description": "pump intake pressure",
                }
            ],
            "next": None,
        },
        formats=True,
    ),
)  # fmt: skip
async def signals(request: Request, principal: Viewer) -> Response:
    """All that telemetry can be asked for."""
    items = [
        {
            "name": signal.name,
            "unit": signal.unit,
            "unit_metric": unit(signal.name, "metric"),
            "low": signal.low,
            "high": signal.high,
            "description": signal.description,
        }
        for signal in SIGNALS
    ]
    return respond_list(request, items, models.Signal)
