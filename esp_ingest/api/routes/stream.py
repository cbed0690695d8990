"""GET /api/v1/stream: server-sent events."""

import asyncio
import contextlib
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from esp_ingest.api.access.principal import Principal
from esp_ingest.api.context import Api, Parts, Viewer
from esp_ingest.api.reads.live import wants
from esp_ingest.api.routes.alarms import WellQuery
from esp_ingest.api.routes.wells import no_such_well
from esp_ingest.api.wire.problems import Problem, from_error
from esp_ingest.api.wire.schema import problem_answers

router = APIRouter(prefix="/api/v1", tags=["live"])

PING_SECONDS = 15.0
SLOW_SECONDS = 20.0  # for a client to take what is on its way
PRIME_SECONDS = 5.0  # for the first look at the database
_RETRY = b"retry: 2000\n\n"
_EXAMPLE = """\
event: hello
id: 5f3a9c01-41
data: {"database": "ok", "daemon": {"status": "ok", "checks": {}}}

event: readings
id: 5f3a9c01-42
data: {"columns": ["well_id", "timestamp", "flow_rate", "state"],
data: "rows": [["ESP-01", "2026-11-25T12:00:00Z", 1850.0, "running"]]}

event: alarms
id: 5f3a9c01-43
data: {"items": [{"well_id": "ESP-01", "diagnosis": "gas_lock", "state": "acknowledged"}]}
"""


@router.get(
    "/stream",
    summary="What changes, as it changes",
    responses={
        200: {
            "description": "server-sent events",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _EXAMPLE}},
        },
        **problem_answers(401, 404, 422, 503),
    },
)
async def stream(
    request: Request,
    api: Parts,
    principal: Viewer,
    well_id: WellQuery = None,
    last_event_id: Annotated[str | None, Header(max_length=100, description="of the last event that was seen")] = None,
) -> Response:
    """Events: `hello` first, with the health of database and daemon; `readings` (columns and rows: the newest
    reading of each well that has a new one, and the state that it shows), `alarms` (occurrences whose row changed),
    `health` where it changes, and `reset`: what was missed is not known, read the lists again. A line `: ping`
    comes every 15 s. With Last-Event-ID the stream goes on behind that event, if this process still has it; else it
    begins with `reset`. It ends with the access token: come again with a new one. Who reads too slowly is cut
    off."""
    for each in well_id or ():
        if not principal.sees(each):
            raise no_such_well(each)
    if api.feed.watchers >= api.settings.api.max_streams:
        raise Problem(
            503,
            "too-many-streams",
            "As many watch as this process serves (api.max_streams): try again later, or ask for lists.",
            headers={"Retry-After": "30"},
        )
    return EventStream(request, api, principal, frozenset(well_id or ()), last_event_id)


class EventStream(Response):
    """Sends from the ring of the feed, until the client goes, is too slow or may no longer watch."""

    media_type = "text/event-stream"

    def __init__(
        self, request: Request, api: Api, principal: Principal, well_ids: frozenset[str], last_event_id: str | None
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._authorization = request.headers.get("authorization")
        self._api, self._feed = api, api.feed
        self._principal = principal
        self._key, self._wanted = wants(principal, well_ids)
        self._last_event_id = last_event_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        self._feed.join()
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._run(send, gone)
            await _sent(send, b"", more=False)
        except TimeoutError:
            self._api.metrics.streams_cut.inc()
            abort = scope.get("state", {}).get("abort")
            if abort is not None:
                abort()
        finally:
            self._feed.leave()
            gone.cancel()

    async def _run(self, send: Send, gone: "asyncio.Task[None]") -> None:
        feed = self._feed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PRIME_SECONDS):
                await feed.primed.wait()
        ring = feed.ring
        position = None if self._last_event_id is None else ring.after(self._last_event_id)
        if position is None:
            position = ring.position
            kind = "hello" if self._last_event_id is None else "reset"
            await _sent(send, _RETRY + self._greeting(kind, position - 1))
        else:
            await _sent(send, _RETRY + b": resumed\n\n")
        look_at = self._now() + PING_SECONDS
        while not gone.done() and not feed.stopping and feed.ring is ring:
            if self._now() >= look_at:
                if not await self._still_welcome():
                    return
                await _sent(send, b": ping\n\n")
                look_at = self._now() + PING_SECONDS
            changed = feed.changed
            events = ring.events(position)
            if events is None:  # fell out of the ring
                raise TimeoutError
            if events:
                position = events[-1].number + 1
                frames = b"".join(event.frame(ring.generation, self._key, self._wanted) for event in events)
                if frames:
                    await _sent(send, frames)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, look_at - self._now())):
                    await changed.wait()

    def _now(self) -> float:
        return self._api.clock.monotonic()

    def _greeting(self, kind: str, number: int) -> bytes:
        """It has an id, so that whoever is cut off before the first event can come back to this place."""
        data: dict[str, Any] = self._feed.health if kind == "hello" else {"reason": "what was missed is not known"}
        return (
            f"event: {kind}\nid: {self._feed.ring.generation}-{number}\ndata: ".encode()
            + msgspec.json.encode(data)
            + b"\n\n"
        )

    async def _still_welcome(self) -> bool:
        try:
            found = await self._api.auth.principal(self._authorization)
        except Exception as error:
            status = from_error(error).status
            if status == 500:  # a fault of ours, which the guard logs
                raise
            return status == 503  # nobody can be asked: an outage sends nobody home
        return (found.role, found.wells) == (self._principal.role, self._principal.wells)


async def _sent(send: Send, body: bytes, more: bool = True) -> None:
    """Raises TimeoutError where the client takes nothing."""
    async with asyncio.timeout(SLOW_SECONDS):
        await send({"type": "http.response.body", "body": body, "more_body": more})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
