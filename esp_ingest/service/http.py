"""Health and metrics over HTTP: one thread, one selector, one answer a connection.

http.server was refused: a thread a connection without bounds, 30 ms of import, and a client that trickles its request
holds a thread for ever. Here everything is bounded: connections (the oldest gives way), bytes of a request, seconds for
everything. Under load the time of an answer is the wait for the GIL, once for each system call before the answer is
out; hence TCP_DEFER_ACCEPT and reading at once: three calls in place of seven.
"""

import contextlib
import errno
import json
import logging
import selectors
import socket
import threading
from enum import Enum, auto
from typing import TYPE_CHECKING

from esp_ingest import __version__
from esp_ingest.service.health import Checks, Health
from esp_ingest.service.log import Repeated

if TYPE_CHECKING:
    from esp_ingest.config import HttpSettings
    from esp_ingest.service.metrics import Metrics

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 32
MAX_REQUEST_BYTES = 8_192
MAX_IGNORED_BYTES = 65_536  # of a body that nobody asked for, read so that the answer is not lost in a reset
CONNECTION_SECONDS = 5.0  # for the request and its answer
PROCESS_SECONDS = 5.0  # how old process_* metrics may be
LINGER_SECONDS = 1.0  # for the client to close after its answer

PATHS = {
    "/": "this index",
    "/health/live": "200 while the loops move, else 503: restart it",
    "/health/startup": "200 once configured, schema checked and first subscribed",
    "/health/ready": "200 while subscribed, database reachable and nothing stuck",
    "/metrics": "metrics for Prometheus",
}
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_JSON = "application/json"


class HttpError(Exception):
    """The port cannot be opened. The message is one sentence that says what to do."""


class _State(Enum):
    READING = auto()  # the request
    SENDING = auto()  # the answer
    LINGERING = auto()  # until the client has closed: closing on unread bytes would reset it, and lose the answer


class _Connection:
    """A client on its way from request to answer to goodbye."""

    def __init__(self, client: socket.socket, deadline: float) -> None:
        self.client = client
        self.deadline = deadline
        self.request = b""
        self.answer = b""
        self.state = _State.READING
        self.ignored_bytes = 0
        self.events = 0  # what the selector watches for, 0 before it was told of this client


class HttpServer:
    """The HTTP port of a daemon. ``start`` binds (HttpError when it cannot), ``stop`` ends it within two seconds."""

    def __init__(self, settings: "HttpSettings", health: Health, metrics: "Metrics | None" = None) -> None:
        """``metrics`` may be set later: until then /metrics answers 503."""
        self._settings = settings
        self._health = health
        self.metrics = metrics
        self._clock = health.clock
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, _Connection] = {}  # by file descriptor, oldest first
        self._listener: socket.socket | None = None
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._stopping = False
        self._troubles = Repeated(log, "an HTTP request failed inside", "HTTP requests work again")

    @property
    def port(self) -> int:
        """The port it listens on, which with http.port = 0 the system has chosen."""
        assert self._listener is not None, "start() comes first"
        return int(self._listener.getsockname()[1])

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._listener = _listen(self._settings.host, self._settings.port)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """End it; clients that wait are cut off. Harmless when called again or never started."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")
        if self._thread.ident is not None:
            self._thread.join(timeout=2.0)
        for connection in list(self._connections.values()):
            self._close(connection)
        for end in (self._listener, self._wake, self._woken):
            if end is not None:
                end.close()
        self._selector.close()

    def _run(self) -> None:
        refresh_at = 0.0
        while not self._stopping:
            for key, _ in self._selector.select(1.0):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fd in self._connections:
                    self._guarded(self._connections[key.fd])
            self._close_overdue()
            if self.metrics is not None and self._clock.monotonic() >= refresh_at:
                refresh_at = self._clock.monotonic() + PROCESS_SECONDS
                self._refresh(self.metrics)

    def _refresh(self, metrics: "Metrics") -> None:
        try:
            metrics.refresh_process()
        except Exception as error:
            self._troubles.failed(self._clock.monotonic(), repr(error))

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._clock.sleep(0.05)  # it stays readable: without a pause this would spin until some are freed
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            self._close(next(iter(self._connections.values())))
        connection = _Connection(client, self._clock.monotonic() + CONNECTION_SECONDS)
        self._connections[client.fileno()] = connection
        self._guarded(connection)

    def _guarded(self, connection: _Connection) -> None:
        """One step of a connection. What goes wrong with a client ends that client, never the thread."""
        try:
            self._step(connection)
        except OSError:
            self._close(connection)
        except Exception as error:
            self._troubles.failed(self._clock.monotonic(), repr(error))
            self._close(connection)

    def _step(self, connection: _Connection) -> None:
        try:
            if connection.state is _State.READING:
                self._read(connection)
            if connection.state is _State.SENDING:
                self._send(connection)
            if connection.state is _State.LINGERING:
                self._linger(connection)
        except BlockingIOError:
            self._watch(connection)

    def _read(self, connection: _Connection) -> None:
        """Read until the answer is known. Raises BlockingIOError when more has to come."""
        while connection.state is _State.READING:
            piece = connection.client.recv(MAX_REQUEST_BYTES, socket.MSG_DONTWAIT)
            if not piece:
                raise ConnectionResetError
            connection.request += piece
            whole = b"\r\n\r\n" in connection.request or b"\n\n" in connection.request
            if whole or len(connection.request) >= MAX_REQUEST_BYTES:
                connection.answer = self._answer(connection.request, whole)
                connection.state = _State.SENDING

    def _send(self, connection: _Connection) -> None:
        while connection.answer:
            sent = connection.client.send(connection.answer, socket.MSG_DONTWAIT)
            connection.answer = connection.answer[sent:]
        connection.client.shutdown(socket.SHUT_WR)
        connection.state = _State.LINGERING
        connection.deadline = self._clock.monotonic() + LINGER_SECONDS

    def _linger(self, connection: _Connection) -> None:
        while connection.ignored_bytes <= MAX_IGNORED_BYTES:
            piece = connection.client.recv(MAX_REQUEST_BYTES, socket.MSG_DONTWAIT)
            connection.ignored_bytes += len(piece)
            if not piece:
                break
        self._close(connection)

    def _watch(self, connection: _Connection) -> None:
        """Have the selector tell when this connection can go on."""
        events = selectors.EVENT_WRITE if connection.state is _State.SENDING else selectors.EVENT_READ
        if connection.events == 0:
            self._selector.register(connection.client, events)
        elif connection.events != events:
            self._selector.modify(connection.client, events)
        connection.events = events

    def _close(self, connection: _Connection) -> None:
        self._connections.pop(connection.client.fileno(), None)
        if connection.events:
            self._selector.unregister(connection.client)
        connection.client.close()

    def _close_overdue(self) -> None:
        now = self._clock.monotonic()
        for connection in [each for each in self._connections.values() if each.deadline <= now]:
            self._close(connection)

    def _answer(self, request: bytes, whole: bool) -> bytes:
        """The whole response to a request's head."""
        if not whole:
            return _response(431, {"status": "error", "detail": f"a request has at most {MAX_REQUEST_BYTES} bytes"})
        parts = request.split(b"\n", 1)[0].rstrip(b"\r").split(b" ")
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
            return _response(400, {"status": "error", "detail": "not an HTTP/1.1 request"})
        method, path = parts[0], _path(parts[1])
        if path not in PATHS:
            return _response(404, {"status": "error", "detail": "no such path", "paths": list(PATHS)})
        if method not in (b"GET", b"HEAD"):
            return _response(405, {"status": "error", "detail": "only GET and HEAD"})
        try:
            answer = self._page(path)
        except Exception as error:
            self._troubles.failed(self._clock.monotonic(), repr(error), path=path)
            return _response(500, {"status": "error", "detail": "this page failed: see the log"})
        self._troubles.ended(self._clock.monotonic())
        return answer if method == b"GET" else answer[: answer.index(b"\r\n\r\n") + 4]

    def _page(self, path: str) -> bytes:
        if path == "/metrics":
            return self._metrics_page()
        if path == "/":
            return _response(200, {"service": "esp-ingest", "version": __version__, "paths": PATHS})
        ok, checks = self._probe(path.removeprefix("/health/"))
        return _response(200 if ok else 503, {"status": "ok" if ok else "failing", "checks": checks})

    def _probe(self, question: str) -> tuple[bool, Checks]:
        return {"live": self._health.live, "startup": self._health.startup, "ready": self._health.ready}[question]()

    def _metrics_page(self) -> bytes:
        if self.metrics is None:
            return _response(503, {"status": "error", "detail": "starting: no metrics yet"})
        self.metrics.ready.set(self._health.ready()[0])
        for loop, seconds in self._health.idle_seconds().items():
            self.metrics.loop_idle_seconds.labels(loop).set(seconds)
        return _framed(200, "text/plain; version=0.0.4; charset=utf-8", self.metrics.render())


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. SO_REUSEADDR, so that a restart need not wait for old connections to be forgotten."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise HttpError(f"The HTTP address {host} cannot be used ({error.strerror}): set http.host.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_DEFER_ACCEPT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        listener.bind(address)
        listener.listen(MAX_CONNECTIONS)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise HttpError(
            f"The HTTP port {host}:{port} cannot be opened ({error.strerror}): free it, or set http.port."
        ) from None
    return listener


def _path(target: bytes) -> str:
    """The path of a request target, in origin form (/a?b) or absolute form (http://host/a?b)."""
    text = target.decode("latin-1").split("?", 1)[0].split("#", 1)[0]
    if text.lower().startswith("http://"):
        text = "/" + text[len("http://") :].partition("/")[2]
    return text


def _response(status: int, content: dict[str, object]) -> bytes:
    return _framed(status, _JSON, json.dumps(content).encode() + b"\n")


def _framed(status: int, content_type: str, body: bytes) -> bytes:
    allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        f"{allow}Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
