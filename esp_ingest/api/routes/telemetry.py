"""/api/v1/wells/{well_id}/telemetry."""

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from esp_ingest.api.context import Api, Parts, Viewer
from esp_ingest.api.reads.telemetry import Page, Resolution, TelemetryReader
from esp_ingest.api.routes.wells import CursorQuery, UnitsQuery, WellIdPath, no_such_well, refuse_foreign
from esp_ingest.api.wire import cursors, models
from esp_ingest.api.wire.answers import Column, Kind, Table, link, respond
from esp_ingest.api.wire.problems import Problem, invalid
from esp_ingest.api.wire.ranges import Range, is_fixed, range_of
from esp_ingest.api.wire.schema import answers
from esp_ingest.api.wire.units import System, convert_rows, unit
from esp_ingest.api.wire.units import units as units_of
from esp_ingest.model import SIGNAL_NAMES
from esp_ingest.service.text import closest, rfc3339_of

router = APIRouter(prefix="/api/v1", tags=["telemetry"])

LEAST_POINTS = 10
_DAY = timedelta(days=1)
_EXAMPLE = {
    "well_id": "ESP-01", "resolution": "raw", "units": {"pip": "psi", "flow_rate": "bbl/d"},
    "columns": ["timestamp", "pip", "flow_rate"],
    "rows": [["2026-11-25T12:00:00Z", 612.4, 1850.0], ["2026-11-25T12:01:00Z", 612.9, None]], "next": None,
}  # fmt: skip
FromQuery = Annotated[
    str | None,
    Query(alias="from", max_length=64, description="RFC 3339 with an offset, or an age such as 2h or 7d"),
]
ToQuery = Annotated[str | None, Query(max_length=64, description="as from; not included. Now, if left out")]


@router.get(
    "/wells/{well_id}/telemetry",
    summary="A well's readings over time",
    responses=answers(models.Telemetry, _EXAMPLE, problems=(404,), formats=True),
)
async def telemetry(
    request: Request,
    api: Parts,
    principal: Viewer,
    well_id: WellIdPath,
    start: FromQuery = None,
    to: ToQuery = None,
    signals: Annotated[
        list[str] | None, Query(description="names, repeated or with commas between; all, if left out")
    ] = None,
    resolution: Annotated[
        Resolution, Query(description="raw, buckets of 1m, 1h or 1d, or auto: what fits into max_points")
    ] = "auto",
    max_points: Annotated[int, Query(description="most rows in an answer", json_schema_extra={"minimum": 10})] = 2_000,
    units: UnitsQuery = "field",
    cursor: CursorQuery = None,
) -> Response:
    """From `from` (24 h before `to`, if left out) up to, but not including, `to`.

    `raw` gives readings as stored, in pages. `1m`, `1h` and `1d` give buckets, in pages: their count and, of each
    signal, the mean under its name, and `_min` and `_max`. `auto` gives all of the range in one answer: readings as
    stored if they fit into `max_points`; else buckets of equal width with two rows each, the lowest and the highest
    values in the order in which they came, so that no extreme is lost. With one signal these rows are readings at their
    own times. Such buckets up to now may be a twentieth of a bucket old, a minute at most."""
    refuse_foreign(principal, well_id)
    names = _signals(signals)
    _check_points(api, max_points)
    now_us = api.clock.now_us()
    asked = range_of(start, to, now_us, api.settings.api.max_range_days, _DAY)
    after = cursors.decode(f"telemetry {resolution}", cursor, (datetime,))
    rest = asked if after is None else Range(max(asked.start, after[0]), asked.end)

    async def read() -> Page:
        found = await api.database.read(
            lambda snapshot: _read(TelemetryReader(snapshot, well_id, names), rest, resolution, max_points)
        )
        convert_rows(found.rows, found.signals, units)
        return found

    if resolution == "auto" and to is None and cursor is None and not is_fixed(start):
        key = (well_id, start, tuple(names), max_points, units)
        page = await api.recent_pages.page(key, asked.seconds, max_points, read)
    else:
        page = await read()
    if not page.rows and not (await api.database.fetch("api_well_known", {"well": well_id}))[0][0]:
        raise no_such_well(well_id)
    following = None
    if page.following is not None:
        following = link(
            request,
            **{"from": rfc3339_of(asked.start), "to": rfc3339_of(asked.end)},
            cursor=cursors.encode(f"telemetry {resolution}", page.following),
        )
    document = {
        "well_id": well_id,
        "resolution": page.resolution,
        "units": units_of(names, units),
        "columns": page.columns,
        "rows": page.rows,
        "next": following,
    }
    table = Table(_columns(page, units), page.rows)
    is_final = is_fixed(start, to) and _is_final(api, asked, now_us)
    return respond(request, document, table=table, following=following, is_final=is_final)


async def _read(reader: TelemetryReader, asked: Range, resolution: Resolution, max_points: int) -> Page:
    if asked.start >= asked.end:
        raise cursors.bad()
    if resolution == "raw":
        return await reader.raw(asked, max_points)
    if resolution == "auto":
        return await reader.auto(asked, max_points)
    return await reader.fixed(asked, resolution, max_points)


def _signals(given: list[str] | None) -> list[str]:
    """The names, each once, in the order in which they were given. Raises Problem for one that is unknown."""
    names = [name.strip() for each in given or () for name in each.split(",") if name.strip()]
    for name in names:
        if name not in SIGNAL_NAMES:
            close = closest(name, SIGNAL_NAMES)
            hint = f"did you mean {close}?" if close else "/api/v1/signals lists them."
            raise invalid("signals", f"There is no signal {name[:100]!r}: {hint}")
    return list(dict.fromkeys(names)) or list(SIGNAL_NAMES)


def _check_points(api: Api, max_points: int) -> None:
    most = api.settings.api.max_points
    if not LEAST_POINTS <= max_points <= most:
        raise Problem(
            422,
            "too-many-points" if max_points > most else "too-few-points",
            f"max_points is {LEAST_POINTS} to {most}: for more, follow the next links of resolution=raw, or ask for a "
            "coarser resolution.",
            errors=[{"parameter": "max_points", "detail": f"must be {LEAST_POINTS} to {most}"}],
        )


def _columns(page: Page, system: System) -> list[Column]:
    kinds: dict[str, Kind] = {"timestamp": "time", "count": "count"}
    return [
        Column(name, kinds.get(name, "number"), unit(signal, system) if signal else "")
        for name, signal in zip(page.columns, page.signals, strict=True)
    ]


def _is_final(api: Api, asked: Range, now_us: int) -> bool:
    """No reading that is so old is taken any more, so nothing in the range can change."""
    age_days = api.settings.telemetry.max_age_days
    age_us = now_us - round(asked.end.timestamp() * 1e6)
    return age_days > 0 and age_us > (age_days + 1) * 86_400e6
