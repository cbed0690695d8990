"""Runs uvicorn, and adds what it lacks: a socket that is opened before anything else, problem documents for requests
that cannot be parsed, a time limit for the head of a request, room for new clients where old ones send nothing, and an
orderly end of live streams when the process drains."""

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import ssl
from collections.abc import Iterator
from types import FrameType
from typing import Any

import h11
import msgspec
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from esp_ingest.api.app import create_app
from esp_ingest.api.context import Api
from esp_ingest.api.wire.problems import MEDIA_TYPE, Problem, document
from esp_ingest.config import tls_files
from esp_ingest.config.settings import ApiSettings, ConfigError, Settings
from esp_ingest.errors import Error
from esp_ingest.service import log as service_log

log = logging.getLogger(__name__)

HEAD_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 15
_BACKLOG = 1_024


class ServerError(Error):
    """The port cannot be opened. The message is one sentence that says what to do."""


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns 0, or 1 if a second signal or the end of drain_seconds cut requests
    off. Raises ConfigError and ServerError."""
    refuse_to_run_open(settings.api)
    if settings.api.cert_file:
        files = {name: getattr(settings.api, name) for name in ("cert_file", "tls_key_file")}
        tls_files.load_own(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "api", files)
    service_log.configure(settings.log)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    app = create_app(settings)
    listener = listen(settings.api.host, settings.api.port)
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.api.cert_file else "http"
    log.info("the API listens", extra={"url": f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"})
    server = DrainingServer(_config(settings.api, app))
    asyncio.run(server.serve(sockets=[listener]))
    log.info("the API has ended", extra={"cut": server.was_cut})
    return 1 if server.was_cut else 0


def refuse_to_run_open(settings: ApiSettings) -> None:
    """Refuse to send passwords and tokens in plain text over a network: an address other than loopback needs TLS,
    here or in a proxy in front. Raises ConfigError."""
    if settings.cert_file or settings.allow_plain_http or _is_loopback(settings.host):
        return
    raise ConfigError(
        f"api.host {settings.host} is not loopback and there is no TLS: set api.cert_file and api.tls_key_file, or set "
        "api.allow_plain_http = true if a proxy in front has TLS."
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises ServerError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServerError(f"The address {host} cannot be used ({error.strerror}): set api.host.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ServerError(
            f"The port {host}:{port} cannot be opened ({error.strerror}): free it, or set api.port (--port)."
        ) from None
    return listener


def _config(settings: ApiSettings, app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies or None,
        root_path=settings.path_prefix,
        limit_concurrency=settings.max_connections,
        backlog=_BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        h11_max_incomplete_event_size=settings.max_header_bytes,
        ssl_certfile=settings.cert_file or None,
        ssl_keyfile=settings.tls_key_file or None,
    )


class Protocol(H11Protocol):
    """One HTTP connection."""

    def connection_made(self, transport: Any) -> None:
        """See asyncio. A client that does not send the whole head of a request within ten seconds is disconnected."""
        most, self.limit_concurrency = self.limit_concurrency, None  # uvicorn would answer in plain text
        super().connection_made(transport)
        is_crowded = most is not None and len(self.connections) > most and not self._make_room()
        self.app_state = {**self.app_state, "abort": transport.abort, "is_crowded": is_crowded}
        self._waiting_since = self.loop.time()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._cut_if_idle)
        self._status_hint = 400
        next_event = self.conn.next_event

        def noted() -> Any:
            try:
                return next_event()
            except h11.RemoteProtocolError as error:  # uvicorn passes on that there was one, and not what it was
                self._status_hint = error.error_status_hint
                raise

        self.conn.next_event = noted  # type: ignore[method-assign]  # uvicorn has no hook here

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._head_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio. Once a request is answered, the time for the next head begins."""
        if self.cycle is not None and self.cycle.response_complete:
            self._head_timer.cancel()
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._cut_if_idle)
            self._waiting_since = self.loop.time()
        super().data_received(data)

    def _cut_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def _make_room(self) -> bool:
        """Disconnect the client that has kept us waiting for its request the longest. False where all are at work."""
        others = (each for each in self.connections if isinstance(each, Protocol) and each is not self)
        waiting = [each for each in others if each.waits_for_its_client]
        if waiting:
            min(waiting, key=lambda each: each._waiting_since).transport.abort()
        return bool(waiting)

    @property
    def waits_for_its_client(self) -> bool:
        """Head or body of a request are still to come."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or (cycle.more_body and not cycle.response_started)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the signature is the library's
        """Answer with a problem document what is not HTTP/1.1 or has too large a head."""
        problem = Problem(400, "not-http", "This is not an HTTP/1.1 request that can be read.")
        if self._status_hint == 431:
            problem = Problem(
                431, "head-too-large", "The head of the request is too large: send fewer or shorter headers."
            )
        body = msgspec.json.encode(document(problem, ""))
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=problem.status, headers=headers, reason=b"")
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class DrainingServer(uvicorn.Server):
    """Stops on the first signal once the requests under way are answered, and on the second signal at once. Unlike
    uvicorn's server it does not raise the signal again at the end: a process that has drained has succeeded."""

    was_cut = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature is the library's
        """See uvicorn."""
        self.force_exit = self.was_cut = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn. Live streams are ended first, because nothing else would end them."""
        app: Any = self.config.app
        api: Api = app.state.api
        await api.feed.stop()
        await super().shutdown(sockets)
        self.was_cut = self.was_cut or bool(self.server_state.tasks)
