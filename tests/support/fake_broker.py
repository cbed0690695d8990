"""A scripted MQTT broker in a thread of the test: says what the test tells it, in the cuts the test wants.

It answers CONNECT, SUBSCRIBE, UNSUBSCRIBE and PINGREQ by itself (each answer can be replaced), and records every packet
it gets. Messages go out with ``send``, whole, byte by byte, or in given pieces. With ``websockets=True`` the same over
RFC 6455 frames.
"""

import base64
import contextlib
import hashlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Self

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 1, 2, 3, 4, 5, 6, 7
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT = 8, 9, 10, 11, 12, 13, 14
_WAIT_SECONDS = 10.0
_WEBSOCKET_KEY = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def varint(value: int) -> bytes:
    """A remaining length or property length."""
    encoded = bytearray()
    while True:
        value, low = divmod(value, 128)
        encoded.append(low | (0x80 if value else 0))
        if not value:
            return bytes(encoded)


def packet(kind: int, body: bytes, flags: int = 0) -> bytes:
    return bytes([kind << 4 | flags]) + varint(len(body)) + body


def publish(
    topic: bytes,
    payload: bytes,
    *,
    qos: int = 1,
    packet_id: int = 1,
    dup: bool = False,
    retain: bool = False,
    properties: bytes | None = b"",
) -> bytes:
    """PUBLISH as a broker sends it; ``properties`` None is MQTT 3.1.1."""
    body = struct.pack(">H", len(topic)) + topic
    if qos:
        body += struct.pack(">H", packet_id)
    if properties is not None:
        body += varint(len(properties)) + properties
    return packet(PUBLISH, body + payload, dup << 3 | qos << 1 | retain)


@dataclass
class Packet:
    kind: int
    flags: int
    body: bytes

    @property
    def packet_id(self) -> int:
        return int.from_bytes(self.body[:2], "big")


@dataclass
class Connection:
    """One client connection: what it sent, and the means to send."""

    number: int
    sock: socket.socket
    websockets: bool
    packets: list[Packet] = field(default_factory=list)
    is_open: bool = True
    version: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def send(self, data: bytes, pieces: Iterable[int] | None = None, pause_seconds: float = 0.0) -> None:
        """Send ``data`` at once, or cut after each of ``pieces`` bytes (the last size repeats)."""
        sizes = list(pieces) if pieces is not None else [len(data) or 1]
        at = 0
        while at < len(data):
            size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
            piece = data[at : at + size]
            self.sock.sendall(_frame(piece) if self.websockets else piece)
            at += size
            if pause_seconds:
                time.sleep(pause_seconds)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def wait_until(self, condition: Callable[[], bool], timeout_seconds: float = _WAIT_SECONDS) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, timeout_seconds)

    def wait_for(self, kind: int, count: int = 1, timeout_seconds: float = _WAIT_SECONDS) -> list[Packet]:
        """The packets of ``kind``, once there are ``count``."""
        found = self.wait_until(lambda: len(self.of(kind)) >= count, timeout_seconds)
        assert found, f"{len(self.of(kind))} of {count} packets of kind {kind} came"
        return self.of(kind)

    def of(self, kind: int) -> list[Packet]:
        return [each for each in self.packets if each.kind == kind]

    def acknowledged(self) -> list[int]:
        """Packet ids of PUBACK and PUBREC, in the order they came."""
        return [each.packet_id for each in self.packets if each.kind in (PUBACK, PUBREC)]

    def _note(self, received: Packet | None) -> None:
        with self._changed:
            if received is None:
                self.is_open = False
            else:
                self.packets.append(received)
            self._changed.notify_all()


class FakeBroker:
    """Listens on a free port of loopback. Replace ``connack``, ``suback``, ``unsuback`` or ``pingresp`` by a function
    of the connection and the packet that returns the bytes to answer with, or None to stay silent."""

    def __init__(self, *, websockets: bool = False) -> None:
        self._websockets = websockets
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listener.getsockname()
        self.connections: list[Connection] = []
        self.session_present = False
        self.connack: Callable[[Connection, Packet], bytes | None] = self._default_connack
        self.suback: Callable[[Connection, Packet], bytes | None] = self._default_suback
        self.unsuback: Callable[[Connection, Packet], bytes | None] = self._default_unsuback
        self.pingresp: Callable[[Connection, Packet], bytes | None] = lambda _, __: packet(PINGRESP, b"")
        self.on_packet: Callable[[Connection, Packet], None] = lambda _, __: None
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    # -- What a test asks.

    def connection(self, number: int = 1) -> Connection:
        """The ``number``-th connection since the start, once its CONNECT is here."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.connections) >= number, _WAIT_SECONDS), "nobody connected"
        connection = self.connections[number - 1]
        connection.wait_for(CONNECT)
        return connection

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            connection.close()
        for thread in self._threads:
            thread.join(_WAIT_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- Answers.

    def _default_connack(self, connection: Connection, _: Packet) -> bytes:
        return packet(CONNACK, bytes([self.session_present, 0]) + (b"\0" if connection.version == 5 else b""))

    def _default_suback(self, connection: Connection, received: Packet) -> bytes:
        return packet(SUBACK, received.body[:2] + (b"\0\1" if connection.version == 5 else b"\1"))

    def _default_unsuback(self, connection: Connection, received: Packet) -> bytes:
        count = len(filters_of(received, connection.version == 5, options=False))
        return packet(UNSUBACK, received.body[:2] + (b"\0" + bytes(count) if connection.version == 5 else b""))

    # -- Threads.

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                connection = Connection(len(self.connections) + 1, sock, self._websockets)
                self.connections.append(connection)
                self._changed.notify_all()
            self._start(self._serve, connection)

    def _serve(self, connection: Connection) -> None:
        with contextlib.suppress(OSError, EOFError):
            reader = _Reader(connection.sock, self._websockets)
            while True:
                received = reader.packet()
                if received.kind == CONNECT:
                    connection.version = received.body[6]
                connection._note(received)
                self.on_packet(connection, received)
                self._answer(connection, received)
                if received.kind == DISCONNECT:
                    break
        connection._note(None)
        connection.close()

    def _answer(self, connection: Connection, received: Packet) -> None:
        answers = {
            CONNECT: self.connack,
            SUBSCRIBE: self.suback,
            UNSUBSCRIBE: self.unsuback,
            PINGREQ: self.pingresp,
        }
        if received.kind in answers:
            answer = answers[received.kind](connection, received)
            if answer is not None:
                connection.send(answer)


def filters_of(received: Packet, is_mqtt5: bool, *, options: bool = True) -> list[str]:
    """The topic filters of SUBSCRIBE, or without ``options`` of UNSUBSCRIBE. No properties longer than 127 bytes."""
    at = 2 + (1 + received.body[2] if is_mqtt5 else 0)
    filters = []
    while at < len(received.body):
        length = int.from_bytes(received.body[at : at + 2], "big")
        filters.append(received.body[at + 2 : at + 2 + length].decode())
        at += 2 + length + options
    return filters


class _Reader:
    """Whole packets from a socket, with or without websocket frames around the bytes."""

    def __init__(self, sock: socket.socket, websockets: bool) -> None:
        self._sock = sock
        self._websockets = websockets
        self._bytes = bytearray()
        if websockets:
            _upgrade(sock)

    def packet(self) -> Packet:
        first = self._take(1)[0]
        length = shift = 0
        while True:
            byte = self._take(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        return Packet(first >> 4, first & 15, self._take(length))

    def _take(self, count: int) -> bytes:
        while len(self._bytes) < count:
            self._bytes += self._read_frame() if self._websockets else self._read_some()
        taken = bytes(self._bytes[:count])
        del self._bytes[:count]
        return taken

    def _read_some(self) -> bytes:
        data = self._sock.recv(65_536)
        if not data:
            raise EOFError
        return data

    def _read_frame(self) -> bytes:
        _, second = self._exactly(2)
        length = second & 127
        if length == 126:
            length = int.from_bytes(self._exactly(2), "big")
        elif length == 127:
            length = int.from_bytes(self._exactly(8), "big")
        mask = self._exactly(4)
        return bytes(byte ^ mask[at % 4] for at, byte in enumerate(self._exactly(length)))

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            more = self._sock.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return bytes(data)


def _upgrade(sock: socket.socket) -> None:
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            raise EOFError
        head += byte
    key = next(
        line.split(b":")[1].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")
    )
    accept = base64.b64encode(hashlib.sha1(key + _WEBSOCKET_KEY).digest())
    sock.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def _frame(data: bytes) -> bytes:
    length = len(data)
    if length < 126:
        return bytes([0x82, length]) + data
    if length < 65_536:
        return b"\x82\x7e" + struct.pack(">H", length) + data
    return b"\x82\x7f" + struct.pack(">Q", length) + data
