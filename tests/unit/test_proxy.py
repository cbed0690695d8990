"""The proxy does to a connection what it says: a fault suite on a tame proxy would prove nothing."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.proxy import ProxyFactory, TcpProxy


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(sock: socket.socket) -> None:
        with sock:
            try:
                while data := sock.recv(65_536):
                    sock.sendall(data)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: tuple[str, int], proxy_to: ProxyFactory) -> TcpProxy:
    return proxy_to(*echo)


def connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=2)


def exchange(sock: socket.socket, data: bytes) -> bytes:
    sock.sendall(data)
    return receive(sock, len(data))


def receive(sock: socket.socket, size: int) -> bytes:
    """``size`` bytes, less at the end of the stream."""
    data = b""
    while len(data) < size and (part := sock.recv(size - len(data))):
        data += part
    return data


def test_passes_bytes_and_counts_them(proxy: TcpProxy) -> None:
    with connect(proxy) as sock:
        assert exchange(sock, b"x" * 100_000) == b"x" * 100_000
    assert (proxy.bytes_up, proxy.bytes_down, proxy.connections_total) == (100_000, 100_000, 1)


def test_stop_resets_and_refuses_and_restart_keeps_the_port(proxy: TcpProxy) -> None:
    with connect(proxy) as sock:
        exchange(sock, b"hello")
        port = proxy.port
        proxy.stop()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.start()
    assert proxy.port == port
    with connect(proxy) as sock:
        assert exchange(sock, b"again") == b"again"


def test_fin_is_an_orderly_end(proxy: TcpProxy) -> None:
    with connect(proxy) as sock:
        exchange(sock, b"hello")
        proxy.cut("fin")
        assert sock.recv(1) == b""


def test_cuts_in_the_middle(proxy: TcpProxy) -> None:
    with connect(proxy) as sock:
        exchange(sock, b"hello")
        proxy.cut_after(7, "down", "fin")
        sock.sendall(b"0123456789")
        assert receive(sock, 100) == b"0123456"
    with connect(proxy) as sock:
        assert exchange(sock, b"0123456789") == b"0123456789", "once"


@pytest.mark.parametrize("direction", ["up", "down"])
def test_deaf_swallows_and_a_stream_with_a_hole_is_reset(proxy: TcpProxy, direction: str) -> None:
    with connect(proxy) as sock:
        exchange(sock, b"hello")
        sock.settimeout(0.2)
        proxy.deafen("up" if direction == "up" else "down")
        sock.sendall(b"lost")
        with pytest.raises(TimeoutError):
            sock.recv(1)
        proxy.hear()
        sock.settimeout(2)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_a_deaf_proxy_still_takes_connections(proxy: TcpProxy) -> None:
    proxy.deafen()
    with connect(proxy) as sock:
        sock.settimeout(0.2)
        sock.sendall(b"anyone?")
        with pytest.raises(TimeoutError):
            sock.recv(1)


def test_hold_loses_nothing(proxy: TcpProxy) -> None:
    with connect(proxy) as sock:
        exchange(sock, b"hello")
        proxy.hold()
        sock.sendall(b"first")  # a read already waiting may take this one
        sock.sendall(b"second")
        time.sleep(0.1)
        proxy.release()
        assert receive(sock, 11) == b"firstsecond"


def test_delay(proxy: TcpProxy) -> None:
    proxy.delay_seconds["down"] = 0.15
    with connect(proxy) as sock:
        started = time.monotonic()
        exchange(sock, b"hello")
        assert time.monotonic() - started >= 0.15


def test_a_watch_acts_before_the_pattern_goes_on_even_when_it_comes_in_pieces(proxy: TcpProxy) -> None:
    seen: list[int] = []
    proxy.watch(b"COMMIT", "up", lambda: seen.append(proxy.bytes_up))
    with connect(proxy) as sock:
        assert exchange(sock, b"COM") == b"COM"
        assert seen == []
        assert exchange(sock, b"MIT") == b"MIT"
        assert exchange(sock, b"COMMIT") == b"COMMIT"
    assert seen == [3], "once, and before the last bytes passed"


def test_a_watch_can_cut(proxy: TcpProxy) -> None:
    proxy.watch(b"answer", "down", lambda: proxy.cut("rst"))
    with connect(proxy) as sock:
        sock.sendall(b"the answer is lost")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_a_dead_server_is_a_reset(proxy_to: ProxyFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    proxy = proxy_to("127.0.0.1", port)
    with pytest.raises(ConnectionResetError), connect(proxy) as sock:
        sock.recv(1)
