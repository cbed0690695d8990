"""BulkClient on one end of a socket pair: the packet reader alone, without a broker or a thread."""

import socket
from types import TracebackType
from typing import Self

from paho.mqtt.client import _ConnectionState
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion

from esp_ingest.model import Delivery, weight_of
from esp_ingest.mqtt.client import MOST_PACKET_BYTES, BulkClient
from tests.support.fake_clock import FakeClock


class _OtherSocket(socket.socket):
    """Not of Python's own class, as that of TLS."""


class ReadingClient:
    """Connected as far as it knows; ``feed`` hands it bytes as the socket would. ``several_reads``: a turn, as of
    TLS."""

    def __init__(
        self,
        *,
        is_mqtt5: bool = True,
        is_accepted: bool = True,
        max_packet_bytes: int = MOST_PACKET_BYTES,
        several_reads: bool = False,
    ) -> None:
        self.deliveries: list[Delivery] = []
        self.chunks = 0
        version = MQTTProtocolVersion.MQTTv5 if is_mqtt5 else MQTTProtocolVersion.MQTTv311
        self.client = BulkClient("test", version, FakeClock(), self._arrived, max_packet_bytes=max_packet_bytes)
        ours, self._theirs = socket.socketpair()
        ours.setblocking(False)
        self._theirs.setblocking(False)
        self.client._sock = _OtherSocket(fileno=ours.detach()) if several_reads else ours
        self.client.connection = 1
        if is_accepted:
            self.client._state = _ConnectionState.MQTT_CS_CONNECTED
            self.client._accepted = True

    def _arrived(self, deliveries: list[Delivery], size: int, unusual: int) -> None:
        assert deliveries
        assert size == sum(map(weight_of, deliveries))
        assert unusual >= sum(1 for each in deliveries if each.qos != 1 or each.redelivered or _is_retained(each))
        self.chunks += 1
        self.deliveries += deliveries

    def feed(self, *pieces: bytes) -> MQTTErrorCode:
        """Each piece is there when the client reads. Stops at the first error, which ends the connection."""
        outcome = MQTTErrorCode.MQTT_ERR_SUCCESS
        for piece in pieces:
            at = 0
            while at < len(piece) and self.is_open:
                at += self._theirs.send(piece[at : at + 65_536])
                outcome = self.client.loop_read()
            if not self.is_open:
                break
        return outcome

    def put(self, data: bytes) -> None:
        """Send, and let nothing be read yet."""
        self._theirs.sendall(data)

    def hang_up(self) -> None:
        """Close the broker's end."""
        self._theirs.close()

    @property
    def is_open(self) -> bool:
        return self.client.socket() is not None

    def written(self) -> bytes:
        """What the client sends once it may."""
        self.client.loop_write()
        try:
            return self._theirs.recv(1_000_000)
        except BlockingIOError:
            return b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.client.abort()
        self._theirs.close()


def _is_retained(delivery: Delivery) -> bool:
    """The tests mark retained messages in the payload: a Delivery does not carry the flag."""
    return delivery.payload.startswith(b"retained")
