"""A TCP proxy that a test can make misbehave: stop, delay, go deaf, cut in the middle of a packet, or act at a pattern.

Direction ``up`` is client to server, ``down`` the way back. Each connection has a thread a direction, so that a slow or
deaf one does not hold up the others. Loopback only.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Self

import pytest

Direction = Literal["up", "down"]
Ending = Literal["rst", "fin"]

_READ_BYTES = 65_536
_POLL_SECONDS = 0.02
_CONNECT_SECONDS = 5.0


@dataclass(eq=False)
class _Connection:
    client: socket.socket
    server: socket.socket
    lock: threading.Lock = field(default_factory=threading.Lock)
    swallowed: bool = False
    ended: bool = False

    def end(self, how: Ending) -> None:
        """Close both sides once: a reset, or an orderly end of the stream."""
        with self.lock:
            if self.ended:
                return
            self.ended = True
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                if how == "rst":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    sock.shutdown(socket.SHUT_RDWR)
            if how == "rst":
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RD)  # wakes the thread that reads it
            sock.close()


@dataclass(eq=False)
class _Watch:
    """Calls ``action`` when ``pattern`` comes by, before the bytes that complete it go on. Once."""

    pattern: bytes
    direction: Direction
    action: Callable[[], object]
    seen: dict[int, bytes] = field(default_factory=dict)

    def matches(self, connection: _Connection, data: bytes) -> bool:
        text = self.seen.get(id(connection), b"") + data
        self.seen[id(connection)] = text[-(len(self.pattern) - 1) :] if len(self.pattern) > 1 else b""
        return self.pattern in text


class TcpProxy:
    """``with TcpProxy(host, port) as proxy:``, then connect to 127.0.0.1:``proxy.port``, which stays over a restart."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.host = "127.0.0.1"
        self.port = 0
        self.connections_total = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.delay_seconds: dict[Direction, float] = {"up": 0.0, "down": 0.0}
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._connections: list[_Connection] = []
        self._deaf: set[Direction] = set()
        self._held = threading.Event()
        self._cuts: dict[Direction, tuple[int, Ending]] = {}
        self._watches: list[_Watch] = []

    # -- What a test does to it.

    def start(self) -> Self:
        assert self._listener is None, "it listens already"
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._run(self._accept, listener)
        return self

    def stop(self, how: Ending = "rst") -> None:
        """Refuse connections, and end those there are: the cable is out, and the other end knows."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut(how)

    def restart(self) -> None:
        self.stop()
        self.start()

    def cut(self, how: Ending = "rst") -> None:
        """End all connections; new ones are welcome."""
        for connection in self.connections():
            connection.end(how)

    def cut_after(self, size: int, direction: Direction, how: Ending = "rst") -> None:
        """Let ``size`` more bytes pass in ``direction`` (over all connections), then end the one that carries the next:
        in the middle of a packet, as often as not. Once."""
        with self._lock:
            self._cuts[direction] = (size, how)

    def deafen(self, *directions: Direction) -> None:
        """Half-open: connections are taken and stay up, but bytes in ``directions`` (default both) vanish."""
        self._deaf = set(directions or ("up", "down"))

    def hear(self) -> None:
        """End of ``deafen``. A stream with a hole is of no use: those connections are reset."""
        self._deaf = set()
        for connection in self.connections():
            if connection.swallowed:
                connection.end("rst")

    def hold(self) -> None:
        """Stop reading: senders fill their buffers and wait. Nothing is lost when ``release`` follows."""
        self._held.set()

    def release(self) -> None:
        self._held.clear()

    def watch(self, pattern: bytes, direction: Direction, action: Callable[[], object]) -> None:
        """Call ``action`` from the proxy's thread when ``pattern`` comes by, before its last bytes go on. Once."""
        with self._lock:
            self._watches.append(_Watch(pattern, direction, action))

    def connections(self) -> list[_Connection]:
        with self._lock:
            self._connections = [connection for connection in self._connections if not connection.ended]
            return list(self._connections)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.release()
        self.stop()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive(), "a thread of the proxy does not end"

    # -- How it does it.

    def _run(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="proxy", daemon=True)
        self._threads = [old for old in self._threads if old.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.target, timeout=_CONNECT_SECONDS)
            except OSError:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                continue
            server.settimeout(None)
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(client, server)
            with self._lock:
                self._connections.append(connection)
                self.connections_total += 1
            self._run(self._pump, connection, client, server, "up")
            self._run(self._pump, connection, server, client, "down")

    def _pump(self, connection: _Connection, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        how: Ending = "rst"
        try:
            while not connection.ended:
                while self._held.is_set() and not connection.ended:
                    time.sleep(_POLL_SECONDS)
                data = source.recv(_READ_BYTES)
                if not data:
                    how = "fin"
                    break
                if self.delay_seconds[direction]:
                    time.sleep(self.delay_seconds[direction])
                self._look(connection, direction, data)
                if direction in self._deaf:
                    connection.swallowed = True
                    continue
                data, cut = self._up_to_cut(direction, data)
                self._count(direction, len(data))  # before it arrives: who got an answer may ask for the count
                sink.sendall(data)
                if cut is not None:
                    how = cut
                    break
        except OSError:
            pass
        connection.end(how)

    def _look(self, connection: _Connection, direction: Direction, data: bytes) -> None:
        with self._lock:
            due = [watch for watch in self._watches if watch.direction == direction and watch.matches(connection, data)]
            self._watches = [watch for watch in self._watches if watch not in due]
        for watch in due:
            watch.action()

    def _up_to_cut(self, direction: Direction, data: bytes) -> tuple[bytes, Ending | None]:
        with self._lock:
            if direction not in self._cuts:
                return data, None
            size, how = self._cuts[direction]
            if size >= len(data):
                self._cuts[direction] = (size - len(data), how)
                return data, None
            del self._cuts[direction]
            return data[:size], how

    def _count(self, direction: Direction, size: int) -> None:
        if direction == "up":
            self.bytes_up += size
        else:
            self.bytes_down += size


ProxyFactory = Callable[[str, int], TcpProxy]


@pytest.fixture
def proxy_to() -> Iterator[ProxyFactory]:
    """``proxy_to(host, port)`` gives a running proxy; all of them end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda host, port: stack.enter_context(TcpProxy(host, port))
