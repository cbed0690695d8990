"""The HTTP port: the contract's answers, and bounds against clients that are slow, large, many or hostile."""

import contextlib
import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp_ingest.config.settings import HttpSettings, ServiceSettings
from esp_ingest.service import http as port
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.health import Health
from esp_ingest.service.http import HttpError, HttpServer
from esp_ingest.service.metrics import Metrics


@pytest.fixture
def health() -> Health:
    made = Health(SystemClock(), ServiceSettings())
    made.beat("pipeline")
    return made


@pytest.fixture
def server(health: Health) -> Iterator[HttpServer]:
    made = HttpServer(HttpSettings(port=0), health, Metrics())
    made.start()
    yield made
    assert made.alive, "whatever a test did to it, the thread is still there"
    made.stop()
    assert not made.alive


def ask(
    server: HttpServer, path: str, method: str = "GET", body: bytes | None = None
) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request(method, path, body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    is_json = answer.headers["Content-Type"] == "application/json" and content
    return answer.status, json.loads(content) if is_json else content.decode(), dict(answer.headers)


def raw(server: HttpServer, *pieces: bytes, timeout: float = 5.0) -> bytes:
    """What comes back for these bytes, up to the end of the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout) as client:
        with contextlib.suppress(OSError):  # refused before it was all sent: the answer is there to read
            for piece in pieces:
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while piece := client.recv(65_536):
                received += piece
        except ConnectionResetError:
            pass
    return received


def test_the_index_lists_every_path(server: HttpServer) -> None:
    status, content, _ = ask(server, "/")
    assert status == 200
    for path in content["paths"]:
        assert ask(server, path)[0] in (200, 503)


def test_health_says_why_in_json(server: HttpServer, health: Health) -> None:
    assert ask(server, "/health/live")[0] == 200
    status, content, headers = ask(server, "/health/ready")
    assert status == 503
    assert content["status"] == "failing"
    assert content["checks"]["database"] == {"ok": False, "detail": "not reached yet"}
    assert headers["Cache-Control"] == "no-store"
    for name in ("mqtt", "database", "schema"):
        health.set(name, True, "fine")
    assert ask(server, "/health/startup")[:2][0] == 200
    status, content, _ = ask(server, "/health/ready")
    assert (status, content["status"]) == (200, "ok")


def test_metrics_are_prometheus_text_with_the_state_of_now(server: HttpServer, health: Health) -> None:
    status, content, headers = ask(server, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "esp_ingest_ready 0.0\n" in content
    assert 'esp_ingest_loop_idle_seconds{loop="pipeline"}' in content
    for name in ("mqtt", "database", "schema"):
        health.set(name, True, "fine")
    assert "esp_ingest_ready 1.0\n" in ask(server, "/metrics")[1]


def test_before_there_are_metrics_the_rest_answers(health: Health) -> None:
    server = HttpServer(HttpSettings(port=0), health)
    server.start()
    try:
        assert ask(server, "/health/live")[0] == 200
        assert ask(server, "/metrics")[0] == 503
        server.metrics = Metrics()
        assert ask(server, "/metrics")[0] == 200
    finally:
        server.stop()


def test_head_is_get_without_its_body(server: HttpServer) -> None:
    answer = raw(server, b"HEAD /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert body == b""


@pytest.mark.parametrize("path", ["/nothing", "/health", "/health/live/", "//", "/metrics/../etc/passwd", "/%2e%2e"])
def test_other_paths_are_404_in_json(server: HttpServer, path: str) -> None:
    status, content, _ = ask(server, path)
    assert status == 404
    assert "/health/live" in content["paths"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
def test_other_methods_are_405(server: HttpServer, method: str) -> None:
    status, content, headers = ask(server, "/health/live", method)
    assert status == 405
    assert headers["Allow"] == "GET, HEAD"
    assert content["status"] == "error"


def test_a_body_nobody_asked_for_does_not_lose_the_answer(server: HttpServer) -> None:
    assert ask(server, "/metrics", "POST", b"x" * 50_000)[0] == 405


def test_queries_and_absolute_targets_are_understood(server: HttpServer) -> None:
    assert ask(server, "/health/live?verbose=1")[0] == 200
    assert raw(server, b"GET http://any.host/health/live HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_a_request_may_come_a_byte_at_a_time(server: HttpServer) -> None:
    pieces = [bytes([byte]) for byte in b"GET /health/live HTTP/1.0\r\nA: b\r\n\r\n"]
    assert raw(server, *pieces).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET / SPDY/9\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\n\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", b"431"),
        (b"G" * 100_000, b"431"),
    ],
)
def test_nonsense_is_refused(server: HttpServer, request_bytes: bytes, status: bytes) -> None:
    assert raw(server, request_bytes).startswith(b"HTTP/1.1 " + status)


@given(st.lists(st.one_of(st.binary(max_size=300), st.sampled_from([b"GET ", b"/metrics", b" HTTP/1.1", b"\r\n\r\n"]))))
@settings(max_examples=60, deadline=None)
def test_any_bytes_leave_it_answering(fuzzed: HttpServer, pieces: list[bytes]) -> None:
    raw(fuzzed, *pieces)
    assert fuzzed.alive
    assert raw(fuzzed, b"GET /health/live HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[HttpServer]:
    server = HttpServer(HttpSettings(port=0), Health(SystemClock(), ServiceSettings()), Metrics())
    server.start()
    yield server
    server.stop()


def test_silent_and_trickling_clients_do_not_keep_others_out(server: HttpServer) -> None:
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3 * port.MAX_CONNECTIONS)]
    try:
        for client in clients:
            client.send(b"GET /metr")
        assert ask(server, "/health/live")[0] == 200
        assert len(server.connections) <= port.MAX_CONNECTIONS
    finally:
        for client in clients:
            client.close()


def _wait_until_forgotten(server: HttpServer) -> None:
    deadline = time.monotonic() + 4
    while server.connections:
        assert time.monotonic() < deadline, "a connection is still held"
        time.sleep(0.02)


def test_a_trickling_client_is_cut_off(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "CONNECTION_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        started = time.monotonic()
        while time.monotonic() - started < 4:
            try:
                client.sendall(b"x")
            except OSError:
                return
            time.sleep(0.05)
    pytest.fail("it may trickle on")


def test_a_client_that_does_not_read_its_answer_is_cut_off(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "CONNECTION_SECONDS", 0.3)
    assert server.metrics is not None
    page = server.metrics.render() * 1_000  # far more than socket buffers take
    monkeypatch.setattr(server.metrics, "render", lambda: page)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert client.recv(1, socket.MSG_PEEK) == b"H"
        assert ask(server, "/health/live")[0] == 200
        _wait_until_forgotten(server)


def test_a_large_answer_arrives_whole(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server.metrics is not None
    page = server.metrics.render() * 500
    monkeypatch.setattr(server.metrics, "render", lambda: page)
    assert ask(server, "/metrics")[1].encode() == page


def test_clients_that_reset_are_forgotten(server: HttpServer) -> None:
    for _ in range(50):
        client = socket.create_connection(("127.0.0.1", server.port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.send(b"GET /metrics HTTP/1.1\r\n\r\n")
        client.close()
    assert ask(server, "/health/live")[0] == 200
    _wait_until_forgotten(server)


def test_a_page_that_fails_is_500_and_the_others_go_on(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bytes:
        raise RuntimeError("broken")

    monkeypatch.setattr(server.metrics, "render", fail)
    assert ask(server, "/metrics")[0] == 500
    assert ask(server, "/health/live")[0] == 200


def test_a_port_in_use_is_one_plain_sentence(server: HttpServer, health: Health) -> None:
    second = HttpServer(HttpSettings(port=server.port), health)
    with pytest.raises(HttpError, match=rf"The HTTP port 127\.0\.0\.1:{server.port} cannot be opened"):
        second.start()
    second.stop()


def test_a_wrong_host_is_one_plain_sentence(health: Health) -> None:
    server = HttpServer(HttpSettings(host="no.such.host.invalid", port=0), health)
    with pytest.raises(HttpError, match=r"set http\.host"):
        server.start()
    server.stop()


def test_ipv6_is_served(health: Health) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    server = HttpServer(HttpSettings(host="::1", port=0), health)
    try:
        server.start()
    except HttpError:
        server.stop()
        pytest.skip("no IPv6 loopback here")
    with socket.create_connection(("::1", server.port)) as client:
        client.sendall(b"GET /health/live HTTP/1.1\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    server.stop()


def test_it_can_be_stopped_twice_and_unstarted(health: Health) -> None:
    server = HttpServer(HttpSettings(port=0), health)
    server.stop()
    server.stop()


def test_a_burst_of_clients_connects_while_the_server_is_busy(
    server: HttpServer, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system completes their connections ahead of us. Where its queue is short they wait a second for a SYN."""
    entered, release = threading.Event(), threading.Event()

    def busy() -> tuple[bool, dict[str, dict[str, object]]]:
        entered.set()
        release.wait(10)
        return True, {}

    monkeypatch.setattr(health, "live", busy)
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        held.sendall(b"GET /health/live HTTP/1.1\r\n\r\n")
        assert entered.wait(5)
        clients = [stack.enter_context(socket.socket()) for _ in range(300)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", server.port))
        time.sleep(0.3)
        sent = 0
        for client in clients:
            with contextlib.suppress(OSError):
                sent += client.send(b"G")
        release.set()
        assert sent == len(clients), "each is connected though nobody has accepted it"


def test_a_flood_of_scrapes_renders_a_few_pages_a_second(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server.metrics is not None
    rendered: list[float] = []
    render = server.metrics.render

    def counted() -> bytes:
        rendered.append(time.monotonic())
        return render()

    monkeypatch.setattr(server.metrics, "render", counted)
    started = time.monotonic()
    for _ in range(100):
        assert ask(server, "/metrics")[0] == 200
    seconds = time.monotonic() - started
    assert len(rendered) <= port.RENDERS_AT_ONCE + port.RENDERS_A_SECOND * seconds + 1


def test_a_scraper_alone_gets_the_state_of_now(server: HttpServer) -> None:
    assert server.metrics is not None
    for number in range(int(port.RENDERS_AT_ONCE)):
        server.metrics.buffer_messages.set(number)
        assert f"esp_ingest_buffer_messages {number}.0\n" in ask(server, "/metrics")[1]


def test_localhost_is_served_on_both_families(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of 127.0.0.1 and ::1 a client tries first is its own choice."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 loopback here")
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    server = HttpServer(HttpSettings(host="localhost", port=0), health)
    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        server.start()
    try:
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, server.port), 5) as client:
                client.sendall(b"GET /health/live HTTP/1.1\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 200")
    finally:
        server.stop()


def test_a_family_that_is_not_there_is_passed_over(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    server = HttpServer(HttpSettings(host="localhost", port=0), health)
    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        server.start()
    try:
        assert ask(server, "/health/live")[0] == 200
    finally:
        server.stop()
