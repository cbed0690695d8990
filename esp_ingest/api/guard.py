"""ASGI middleware around every request: it limits the size of bodies, adds security headers, counts requests, and
turns every error into a problem document."""

import logging
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from esp_ingest.api.wire.problems import Problem, answer, from_error
from esp_ingest.interfaces import Clock
from esp_ingest.service.metrics import API_METHODS, ApiMetrics

log = logging.getLogger(__name__)

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
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
            if body.is_too_large and not status:  # whatever was made of a body that was cut off
                raise _BodyTooLarge
            if message["type"] == "http.response.start":
                status = message["status"]
                is_stream = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        body = _Body(receive, self._max_body_bytes)
        try:
            if _declared_bytes(scope) > self._max_body_bytes:
                raise self._too_large()
            await self._app(scope, body.receive, sending)
        except Exception as error:
            problem = self._too_large() if body.is_too_large else from_error(error)
            if problem.status == 500:
                log.error("a request failed inside", exc_info=error, extra={"path": scope["path"]})
            if status:  # too late for an answer: the connection ends in the middle, which the client notices
                raise _Cut from None
            body.is_too_large = False
            await answer(problem, Request(scope).url.path)(scope, receive, sending)
        finally:
            method = scope["method"] if scope["method"] in API_METHODS else "OTHER"
            self._metrics.requests.labels(method, f"{status // 100 or 5}xx").inc()
            if not is_stream:
                self._metrics.request_seconds.observe(self._clock.monotonic() - started)

    def _too_large(self) -> Problem:
        return Problem(
            413,
            "body-too-large",
            f"A body has at most {self._max_body_bytes} bytes (api.max_body_bytes): send it in parts.",
            headers={"Connection": "close"},
        )


class _Cut(Exception):
    """An answer had begun and could not be completed: the connection is closed."""


class _BodyTooLarge(Exception):
    pass


class _Body:
    """Counts the bytes of a body while it is received, because a client need not declare its length."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._most = most
        self._bytes = 0
        self.is_too_large = False

    async def receive(self) -> Any:
        message = await self._receive()
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            if self._bytes > self._most:
                self.is_too_large = True
                raise _BodyTooLarge
        return message


def _declared_bytes(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0
