"""Health and metrics over HTTP: one thread, one selector, one answer a connection.

http.server was refused: a thread a connection without bounds, 30 ms of import, and a client that trickles its request
holds a thread for ever. Here everything is bounded: connections (the oldest gives way), bytes of a request, seconds for
everything, and how often the metrics page is rendered. Under load the time of an answer is the wait for the GIL, once
for each system call before the answer is out; hence TCP_DEFER_ACCEPT, reading at once and closing at once: four calls a
client in place of a dozen.
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
from esp_ingest.service.health import Health
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from esp_ingest.config.settings import HttpSettings
    from esp_ingest.service.metrics import LifecycleMetrics, Metrics

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
BACKLOG = 1_024  # connections that the system completes ahead of us; past it a client waits a second for its next SYN
ACCEPTS_A_TURN = 64
SWEEP_SECONDS = 0.1  # how often overdue connections are looked for
# The metrics page: a lone scraper gets the state of now, a flood of them gets a page that is a quarter of a second old.
RENDERS_A_SECOND = 4.0
RENDERS_AT_ONCE = 4.0
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
    DONE = auto()


class _Connection:
    """A client on its way from request to answer to goodbye."""

    def __init__(self, client: socket.socket, deadline: float) -> None:
        self.client = client
        self.deadline = deadline
        self.request = b""
        self.answer = memoryview(b"")  # a view, since many clients are sent the same page
        self.is_spent = False  # the request had nothing behind its head, so nothing unread can reset the answer
        self.state = _State.READING
        self.ignored_bytes = 0
        self.events = 0  # what the selector watches for, 0 before it was told of this client


class HttpServer:
    """The HTTP port of a daemon. ``start`` binds (HttpError when it cannot), ``stop`` ends it within two seconds."""

    def __init__(
        self, settings: "HttpSettings", health: Health, metrics: "Metrics | LifecycleMetrics | None" = None
    ) -> None:
        """``metrics`` may be set later: until then /metrics answers 503."""
        self._settings = settings
        self._health = health
        self.metrics = metrics
        self._clock = health.clock
        self._selector = selectors.DefaultSelector()
        self.connections: dict[int, _Connection] = {}  # by file descriptor, oldest first
        self._listeners: list[socket.socket] = []
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._stopping = False
        self._page_bytes = b""  # the newest metrics page, as an answer
        self._renders = RENDERS_AT_ONCE  # pages that may be rendered now
        self._renders_at = self._clock.monotonic()
        self._troubles = Repeated(log, "an HTTP request failed inside", "HTTP requests work again")

    @property
    def port(self) -> int:
        """The port it listens on, which with http.port = 0 the system has chosen."""
        assert self._listeners, "start() comes first"
        return int(self._listeners[0].getsockname()[1])

    @property
    def alive(self) -> bool:
        """The thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Listen, and answer in a thread. Raises OSError if the port cannot be had."""
        self._listeners = _listen(self._settings.host, self._settings.port)
        for listener in self._listeners:
            self._selector.register(listener, selectors.EVENT_READ, listener)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """End it; clients that wait are cut off. Harmless when called again or never started."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")
        if self._thread.ident is not None:
            self._thread.join(timeout=2.0)
        for connection in list(self.connections.values()):
            self._close(connection)
        for end in (*self._listeners, self._wake, self._woken):
            end.close()
        self._selector.close()

    def _run(self) -> None:
        refresh_at = sweep_at = 0.0
        while not self._stopping:
            for key, _ in self._selector.select(1.0):
                if key.data is not None:
                    self._accept(key.data)
                elif key.fd in self.connections:
                    self._guarded(self.connections[key.fd])
            now = self._clock.monotonic()
            if now >= sweep_at:
                sweep_at = now + SWEEP_SECONDS
                self._close_overdue(now)
            if self.metrics is not None and now >= refresh_at:
                refresh_at = now + PROCESS_SECONDS
                self._refresh(self.metrics)

    def _refresh(self, metrics: "Metrics | LifecycleMetrics") -> None:
        try:
            metrics.refresh_process()
        except Exception as error:
            self._troubles.failed(self._clock.monotonic(), repr(error))

    def _accept(self, listener: socket.socket) -> None:
        """Take in all that wait, up to a bound. A client whose request is here is answered and gone before the next."""
        for _ in range(ACCEPTS_A_TURN):
            try:
                client, _ = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._make_room()
                    self._clock.sleep(0.05)  # it stays readable: without a pause this would spin until some are freed
                return
            if len(self.connections) >= MAX_CONNECTIONS:
                self._make_room()
            connection = _Connection(client, self._clock.monotonic() + CONNECTION_SECONDS)
            self.connections[client.fileno()] = connection
            self._guarded(connection)

    def _make_room(self) -> None:
        """The oldest client gives way."""
        if self.connections:
            self._close(next(iter(self.connections.values())))

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
                connection.answer = memoryview(self._answer(connection.request, whole))
                connection.is_spent = whole and _has_no_body(connection.request)
                connection.state = _State.SENDING

    def _send(self, connection: _Connection) -> None:
        while connection.answer:
            sent = connection.client.send(connection.answer, socket.MSG_DONTWAIT)
            connection.answer = connection.answer[sent:]
        if connection.is_spent:
            self._close(connection)
            connection.state = _State.DONE
            return
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
        self.connections.pop(connection.client.fileno(), None)
        if connection.events:
            self._selector.unregister(connection.client)
        connection.client.close()

    def _close_overdue(self, now: float) -> None:
        for connection in [each for each in self.connections.values() if each.deadline <= now]:
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
        health = self._health
        probes = {"/health/live": health.live, "/health/startup": health.startup, "/health/ready": health.ready}
        ok, checks = probes[path]()
        return _response(200 if ok else 503, {"status": "ok" if ok else "failing", "checks": checks})

    def _metrics_page(self) -> bytes:
        if self.metrics is None:
            return _response(503, {"status": "error", "detail": "starting: no metrics yet"})
        now = self._clock.monotonic()
        self._renders = min(self._renders + (now - self._renders_at) * RENDERS_A_SECOND, RENDERS_AT_ONCE)
        self._renders_at = now
        if self._renders < 1.0 and self._page_bytes:
            return self._page_bytes
        self._renders -= 1.0
        self._page_bytes = b""
        self.metrics.ready.set(self._health.ready()[0])
        for loop, seconds in self._health.idle_seconds().items():
            self.metrics.loop_idle_seconds.labels(loop).set(seconds)
        self._page_bytes = _framed(200, CONTENT_TYPE, self.metrics.render())
        return self._page_bytes


def _listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets, one for each address of ``host``: ``localhost`` is 127.0.0.1 and ::1, and clients try either
    first. An address family that this machine does not have is passed over while another works. Raises HttpError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise HttpError(f"The HTTP address {host} cannot be used ({error.strerror}): set http.host.") from None
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    for family, address in dict.fromkeys((each[0], each[4]) for each in found):
        if listeners and not port:
            address = (address[0], listeners[0].getsockname()[1], *address[2:])  # all on the port that was chosen
        try:
            listeners.append(_listener(family, address, is_one_of_several=len(found) > 1))
        except OSError as error:
            if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                missing = error
                continue
            for each in listeners:
                each.close()
            raise HttpError(
                f"The HTTP port {host}:{port} cannot be opened ({error.strerror}): free it, or set http.port."
            ) from None
    if not listeners:
        why = missing.strerror if missing is not None else "it has no address"
        raise HttpError(f"The HTTP address {host} cannot be used ({why}): set http.host.")
    return listeners


def _listener(family: int, address: object, *, is_one_of_several: bool) -> socket.socket:
    """SO_REUSEADDR, so that a restart need not wait for old connections to be forgotten. Raises OSError."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and is_one_of_several:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # the other family has its own socket
        if hasattr(socket, "TCP_DEFER_ACCEPT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        listener.bind(address)  # type: ignore[arg-type]  # as getaddrinfo gave it
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _has_no_body(request: bytes) -> bool:
    """The head is all that came, and it announces nothing more."""
    head = request.lower()
    is_whole = request.endswith((b"\r\n\r\n", b"\n\n"))
    return is_whole and b"content-length:" not in head and b"transfer-encoding:" not in head


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
