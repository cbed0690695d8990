"""ASGI middleware around every request: it limits the size of bodies and the time that they take, adds security
headers, answers HEAD where there is a GET, counts requests, and turns every error into a problem document."""

import asyncio
import logging
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from esp_ingest.api.wire.problems import Problem, answer, from_error
from esp_ingest.interfaces import Clock
from esp_ingest.service.metrics import API_METHODS, ApiMetrics

log = logging.getLogger(__name__)

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
BODY_SECONDS = 10.0  # as for the head: server.py
_STREAM = "/api/v1/stream"
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """The outermost middleware of ours."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, is_tls: bool, metrics: ApiMetrics, clock: Clock) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        headers = _HEADERS | ({"Strict-Transport-Security": "max-age=31536000"} if is_tls else {})
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = self._clock.monotonic(), 0
        is_stream = False

        async def sending(message: Message) -> None:
            nonlocal status, is_stream
            if body.refusal is not None and not status:  # whatever was made of a body that was cut off
                raise body.refusal
            if message["type"] == "http.response.start":
                status = message["status"]
                is_stream = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        body = _Body(receive, self._max_body_bytes)
        try:
            if scope.get("state", {}).get("is_crowded"):
                raise _crowded()
            if _declared_bytes(scope) > self._max_body_bytes:
                raise _too_large(self._max_body_bytes)
            await self._app(_as_get(scope), body.receive, sending)
        except ClientDisconnect:
            status = 400  # it went away within its own body: nobody is there to be answered
        except Exception as error:
            problem = body.refusal or from_error(error)
            if problem.status == 500:
                log.error("a request failed inside", exc_info=error, extra={"path": scope["path"]})
            if status:  # too late for an answer: the connection ends in the middle, which the client notices
                raise _Cut from None
            body.refusal = None
            await answer(problem, Request(scope).url.path)(scope, receive, sending)
        finally:
            method = scope["method"] if scope["method"] in API_METHODS else "OTHER"
            self._metrics.requests.labels(method, f"{status // 100 or 5}xx").inc()
            if not is_stream:
                self._metrics.request_seconds.observe(self._clock.monotonic() - started)


def _as_get(scope: Scope) -> Scope:
    """HEAD asks for the head of what GET answers; the server leaves out the body. A stream has no end to wait for."""
    if scope["method"] == "HEAD" and scope["path"].removeprefix(scope["root_path"]) != _STREAM:
        return {**scope, "method": "GET"}
    return scope


def _too_large(most: int) -> Problem:
    detail = f"A body has at most {most} bytes (api.max_body_bytes): send it in parts."
    return Problem(413, "body-too-large", detail, headers={"Connection": "close"})


def _too_slow() -> Problem:
    detail = f"The body of a request comes within {BODY_SECONDS:.0f} s: send it again."
    return Problem(408, "body-too-slow", detail, headers={"Connection": "close"})


def _crowded() -> Problem:
    detail = "As many are connected as this process serves (api.max_connections): try again."
    return Problem(503, "too-many-connections", detail, headers={"Connection": "close"})


class _Cut(Exception):
    """An answer had begun and could not be completed: the connection is closed."""


class _Body:
    """Counts the bytes of a body while it is received, because a client need not declare its length, and the time that
    it takes. ``refusal``: why it was not received to its end."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._most = most
        self._bytes = 0
        self._until: float | None = None  # in the time of the event loop
        self._is_whole = False
        self.refusal: Problem | None = None

    async def receive(self) -> Any:
        if self._is_whole:
            return await self._receive()
        if self._until is None:
            self._until = asyncio.get_running_loop().time() + BODY_SECONDS
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            self.refusal = _too_slow()
            raise self.refusal from None
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
            if self._bytes > self._most:
                self.refusal = _too_large(self._most)
                raise self.refusal
        return message


def _declared_bytes(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0
