"""/api/v1/rejects, /archive, /daemon, /audit, /users: what an operations page shows."""

from datetime import date, datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from esp_ingest.api.context import Admin, Parts, Viewer
from esp_ingest.api.routes.telemetry import FromQuery, ToQuery
from esp_ingest.api.routes.wells import CursorQuery, LimitQuery
from esp_ingest.api.wire import cursors, models
from esp_ingest.api.wire.answers import respond, respond_list
from esp_ingest.api.wire.problems import invalid
from esp_ingest.api.wire.ranges import bounds_of
from esp_ingest.api.wire.schema import answers
from esp_ingest.model import RejectReason, us_of
from esp_ingest.store.queries import like

router = APIRouter(prefix="/api/v1", tags=["operations"])

_REJECT = {
    "id": "1764072000250000-1f0e3dad99908345f7439f8ffabdffc4", "received_at": "2026-11-25T12:00:00.250Z",
    "topic": "esp/ESP-01/telemetry", "reason": "invalid_json", "detail": "not JSON: expected a value at byte 0",
    "item": 0, "redelivered": False, "payload": "cGlwPTYxMg==", "replayed_at": None, "replay_outcome": None,
}  # fmt: skip
_ARCHIVE = {
    "table": "esp_telemetry", "day": "2026-10-20", "rows_database": 0, "rows_archived": 8_640_000,
    "verified_at": "2026-11-20T02:10:00Z", "dropped_at": "2026-11-20T02:12:00Z", "bytes": 71_303_168, "problem": "",
}  # fmt: skip
_DAEMON = {
    "status": "ok", "checks": {"mqtt": {"ok": True, "detail": "subscribed"}}, "figures": {"spool_bytes": 0.0},
    "rates": {"readings_written": 812.5},
}  # fmt: skip
_AUDIT = {
    "id": 12, "at": "2026-11-25T12:00:00Z", "who": "ada", "address": "10.1.2.3", "action": "signed in", "detail": {}
}  # fmt: skip
_USER = {
    "name": "ada", "role": "operator", "wells": ["A-*"], "created_at": "2026-11-01T08:00:00Z", "disabled_at": None,
    "tokens": 1,
}  # fmt: skip


def without_nul(name: str, text: str | None) -> str | None:
    """Raises Problem for text that PostgreSQL cannot hold."""
    if text is not None and "\0" in text:
        raise invalid(name, f"{name} holds a NUL, which no stored text has: leave it out.")
    return text


@router.get(
    "/rejects",
    summary="What could not be a reading, newest first",
    responses=answers(models.RejectPage, {"items": [_REJECT], "next": None}, formats=True),
)
async def rejects(
    request: Request,
    api: Parts,
    principal: Viewer,
    reason: Annotated[list[RejectReason] | None, Query(description="any of these")] = None,
    topic: Annotated[str | None, Query(max_length=500, description="the topic; * stands for any text")] = None,
    start: FromQuery = None,
    to: ToQuery = None,
    limit: LimitQuery = 100,
    cursor: CursorQuery = None,
) -> Response:
    """The payload byte for byte (base64). `esp-ingest rejects replay` puts them through the pipeline again."""
    first, last = bounds_of(start, to, api.clock.now_us(), api.settings.api.max_range_days)
    after = cursors.decode("rejects", cursor, (datetime, UUID))
    rows = await api.database.fetch_dicts(
        "api_rejects",
        {
            "all_wells": principal.sees_everything,
            "wells": principal.like,
            "reason": [each.value for each in reason] if reason else None,
            "topic": like(topic) if (topic := without_nul("topic", topic)) else None,
            "from": first,
            "to": last,
            "after": after[0] if after else None,
            "after_digest": after[1] if after else None,
            "limit": limit + 1,
        },
    )
    page, following = cursors.page(request, rows, limit, "rejects", lambda row: (row["received_at"], row["digest"]))
    for row in page:  # the id is that of the command line: the received time in µs and the digest
        row["id"] = f"{us_of(row['received_at'])}-{row['digest'].hex}"
    names = list(models.Reject.model_fields)
    items = [{name: row[name] for name in names} for row in page]
    return respond_list(request, items, models.Reject, following)


@router.get(
    "/archive",
    summary="What is archived of each table and day",
    responses=answers(models.ArchivePage, {"items": [_ARCHIVE], "next": None}, formats=True),
)
async def archive(
    request: Request, api: Parts, principal: Viewer, limit: LimitQuery = 1_000, cursor: CursorQuery = None
) -> Response:
    """As `esp-ingest lifecycle status --json`, newest day first, from what the lifecycle remembers: `rows_database` is
    what a day held when it was looked at last. Empty where the lifecycle has never run."""
    after = cursors.decode("archive", cursor, (date, str))
    asked = {"before": after[0] if after else None, "after": after[1] if after else None, "limit": limit + 1}
    rows = await api.database.fetch_dicts("api_archive", asked)
    page, following = cursors.page(request, rows, limit, "archive", lambda row: (row["day"], row["table"]))
    return respond_list(request, page, models.ArchiveDay, following)


@router.get("/daemon", summary="What the daemon says of itself", responses=answers(models.Daemon, _DAEMON))
async def daemon(request: Request, api: Parts, principal: Viewer) -> Response:
    """Health and some figures of the daemon beside this API (api.daemon_url), some seconds old at most."""
    return respond(request, await api.monitor.daemon())


@router.get(
    "/audit",
    summary="Who signed in, was refused, or changed something",
    responses=answers(models.AuditPage, {"items": [_AUDIT], "next": None}, problems=(403,), formats=True),
)
async def audit(
    request: Request,
    api: Parts,
    principal: Admin,
    who: Annotated[str | None, Query(max_length=200, description="user name")] = None,
    action: Annotated[str | None, Query(max_length=100, description="as it stands in the list")] = None,
    limit: LimitQuery = 100,
    cursor: CursorQuery = None,
) -> Response:
    """Newest first."""
    before = cursors.decode_id("audit", cursor)
    asked = {"who": without_nul("who", who), "action": without_nul("action", action)}
    rows = await api.database.fetch_dicts("api_audit_page", asked | {"before": before, "limit": limit + 1})
    page, following = cursors.page(request, rows, limit, "audit", lambda row: (row["id"],))
    return respond_list(request, page, models.AuditLine, following)


@router.get(
    "/users",
    summary="Local users",
    responses=answers(models.UserPage, {"items": [_USER], "next": None}, problems=(403,), formats=True),
)
async def users(request: Request, api: Parts, principal: Admin) -> Response:
    """All of them; `esp-ingest users` makes and changes them."""
    return respond_list(request, await api.database.fetch_dicts("api_list_users"), models.UserLine)
