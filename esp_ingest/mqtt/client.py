"""paho's client with bulk reads: one recv and one hand-off for a thousand messages, in place of several calls each.

What stays paho's: connecting, TLS, websockets, CONNECT, SUBSCRIBE, outgoing PUBLISH, keep alive, and every incoming
packet but PUBLISH. What is ours: the read (``_packet_read``), the walk over whole packets, and the acknowledgements, of
which a whole batch leaves as one write. tests/unit/test_mqtt_internals.py fails when a part of paho's that this relies
on moves.

QoS 2 is acknowledged by PUBREC once the message is safe, and by PUBCOMP at once on PUBREL. paho's way, PUBREC at once
and the message in memory until PUBREL, was refused: it loses the message when the process dies in between (paho issue
284). Ours may see it twice, which the tables' key makes harmless.
"""

import logging
import select
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.exception import MalformedPacket

from esp_ingest.interfaces import Clock
from esp_ingest.model import Delivery, cut_off, weight_of
from esp_ingest.mqtt.publish_packets import PUBLISH, PUBLISH_END, head_of, remaining_length, walk

logger = logging.getLogger(__name__)

RECV_BYTES = 262_144
# TLS hands out a record (16 KiB) a recv, websockets a frame: so several a turn, but the other work gets its turn too.
READS_PER_TURN = 16

_CONNACK = 0x20
# An acknowledgement is four bytes: type, remaining length 2, packet id. By QoS: none, PUBACK, PUBREC.
_ACKNOWLEDGEMENT = (0, 0x4002_0000, 0x5002_0000)
MOST_PACKET_BYTES = 268_435_460  # MQTT's own limit, header included
# Of a packet that is too large so much is looked at: the longest topic, and enough to see who sent what.
_CUT_LOOK_BYTES = 131_072
_DISCONNECT = b"\xe0\x00"  # normal, in MQTT 3.1.1 and 5: the session stays as long as CONNECT said
_DEPART_TURNS = 20
_DEPART_MILLISECONDS = 50

OnDeliveries = Callable[[list[Delivery], int, int], None]


class BulkClient(paho.Client):
    """One MQTT connection after another. Driven by one thread through paho's external-loop calls (``reconnect``,
    ``loop_read``, ``loop_write``, ``loop_misc``); only ``acknowledge`` and ``publish`` may be called from others, which
    then wake that thread by themselves.

    Each connection has a number: the time in µs at which it was attempted, but at least ``least_connection`` and more
    than the one before. So of two daemons that take one session from each other, the later connection has the greater.

    A PUBLISH of more than ``max_packet_bytes`` is never held: its head is kept and marked as cut off (model.cut_off),
    the rest is read and thrown away, and it is delivered as any other, so that it is settled and does not come again.

    ``on_deliveries(deliveries, bytes, unusual)`` is called in the network thread, about once a recv;
    ``unusual`` of them, at most, are not plain new QoS 1.
    """

    def __init__(
        self,
        client_id: str,
        protocol: MQTTProtocolVersion,
        clock: Clock,
        on_deliveries: OnDeliveries,
        *,
        transport: Literal["tcp", "websockets"] = "tcp",
        least_connection: int = 1,
        keep_session: bool = True,
        max_packet_bytes: int = MOST_PACKET_BYTES,
    ) -> None:
        is_mqtt5 = protocol == MQTTProtocolVersion.MQTTv5
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if is_mqtt5 else not keep_session,
            protocol=protocol,
            transport=transport,
            reconnect_on_failure=False,
        )
        self.connection = least_connection - 1
        self._is_mqtt5 = is_mqtt5
        self._clock = clock
        self._on_deliveries = on_deliveries
        self._accepted = False
        self._connection_lock = threading.Lock()
        self._opening: socket.socket | None = None
        self._last_received_us = 0
        self._parts: list[bytes] = []
        self._have_bytes = self._need_bytes = 0
        self._max_packet_bytes = max_packet_bytes
        self._cut: Delivery | None = None  # what is kept of the packet whose rest is thrown away now
        self._discard_bytes = 0
        self.new_tls_context: Callable[[], ssl.SSLContext] | None = None  # at each connection: files may be renewed
        self.read_error: OSError | None = None  # what ended the last connection, if a read did
        self.last_read_bytes = 0  # what the last turn of reading brought
        self.has_read_all = True  # in that turn; False: more was there, most likely
        # Merely set, this keeps paho from writing to the socket in the thread that queues a packet.
        self.on_socket_register_write = _leave_writing_to_the_loop

    def reconnect(self) -> MQTTErrorCode:
        """Connect, blocking for up to ``connect_timeout`` an address. The new connection's number counts before paho
        clears its queue, so an acknowledgement of the old connection is either cleared with it or refused. Raises
        OSError, and what ``new_tls_context`` raises."""
        if self.new_tls_context is not None:
            self._ssl_context = self.new_tls_context()
        self.read_error = None
        with self._connection_lock:
            self.connection = max(self.connection + 1, self._clock.now_us())
            self._accepted = False
        self._forget_partial_packet()
        try:
            return super().reconnect()
        except BaseException:
            # paho leaves the socket to the garbage collector when a handshake of TLS or websockets fails.
            if self._opening is not None:
                self._opening.close()
            raise
        finally:
            self._opening = None

    def acknowledge(self, deliveries: Sequence[Delivery]) -> int:
        """Queue the acknowledgements of this connection's deliveries, in the order given, as one write. Those of
        earlier connections are passed over: their packet ids may belong to other messages by now. Returns how many
        were queued."""
        with self._connection_lock:
            if not self._accepted or self._sock is None:
                return 0
            current = self.connection
            codes = [
                _ACKNOWLEDGEMENT[qos] | packet_id
                for _, _, qos, packet_id, connection, _, _ in deliveries
                if qos and connection == current
            ]
            if codes:
                self._packet_queue(paho.PUBACK, np.array(codes, dtype=">u4").tobytes(), 0, 1)
            return len(codes)

    def excuse_silence(self) -> None:
        """Reading is paused on purpose: what the broker sent, PINGRESP too, is not seen, and must not count as silence.
        PINGREQ still goes out, so the broker hears from us."""
        with self._msgtime_mutex:
            self._last_bytes_received = paho.time_func()
        self._ping_t = 0.0

    @property
    def partial_bytes(self) -> int:
        """What is held of a packet that is not all here yet."""
        return self._have_bytes

    def pending(self) -> int:
        """Bytes that TLS has decrypted already, of which poll() cannot know."""
        pending = getattr(self._sock, "pending", None)
        return int(pending()) if pending is not None else 0

    def turn(self, seconds: float) -> bool:
        """Wait ``seconds`` at most for the network, and do what it asks for: read, write, keep alive. For a connection
        whose thread has nothing else to wait for. Returns False if there is no connection."""
        opened = self.socket()
        if opened is None:
            return False
        poll = select.poll()  # paho's own loop() calls select(), which fails beyond 1 024 open files
        poll.register(opened.fileno(), select.POLLIN | (select.POLLOUT if self.want_write() else 0))
        events = dict(poll.poll(0 if self.pending() else 1_000 * seconds))
        if self.pending() or any(event & ~select.POLLOUT for event in events.values()):
            self.loop_read()
        if self.want_write():
            self.loop_write()
        self.loop_misc()
        return True

    def abort(self) -> None:
        """Close the socket without a word."""
        self._sock_close()

    def depart(self) -> None:
        """DISCONNECT after all that is queued, and close. Network thread only; takes 1 s at most.

        Not paho's ``disconnect``: it closes at once, and closing with unread messages in the socket makes the kernel
        reset the connection, so that the broker may never read the last acknowledgements. Here the broker closes."""
        try:
            turns = _DEPART_TURNS
            while turns and self.want_write() and self.loop_write() == MQTTErrorCode.MQTT_ERR_SUCCESS:
                turns -= 1
                self._wait_for(select.POLLOUT)
            if self._sock is not None and not self.want_write():
                self._sock_send(_DISCONNECT)
                while turns and self._discard_input():
                    turns -= 1
        except OSError as error:
            logger.debug("mqtt departure cut short", extra={"error": str(error)})
        self._sock_close()

    def _wait_for(self, events: int) -> None:
        if self._sock is not None:
            poll = select.poll()
            poll.register(self._sock.fileno(), events)
            poll.poll(_DEPART_MILLISECONDS)

    def _discard_input(self) -> bool:
        """Wait for input, read it and forget it: unacknowledged, the broker delivers it again. False when it closed."""
        self._wait_for(select.POLLIN)
        try:
            while self._sock_recv(RECV_BYTES):
                pass
        except BlockingIOError:
            return True
        return False

    # -- paho's inside from here on: network thread only.

    def _create_socket_connection(self) -> socket.socket:
        self._opening = super()._create_socket_connection()
        return self._opening

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> ssl.SSLSocket:
        """As paho's, but the socket is known before the handshake. The context checks the host name."""
        assert self._ssl_context is not None
        wrapped = self._ssl_context.wrap_socket(tcp_sock, server_hostname=self._host, do_handshake_on_connect=False)
        self._opening = wrapped
        wrapped.settimeout(self._connect_timeout)
        wrapped.do_handshake()
        return wrapped

    def _packet_read(self) -> MQTTErrorCode:
        self.last_read_bytes, self.has_read_all = 0, True
        for _ in range(READS_PER_TURN):
            try:
                data = self._sock_recv(RECV_BYTES)
            except BlockingIOError:
                return MQTTErrorCode.MQTT_ERR_AGAIN
            except OSError as error:
                logger.debug("mqtt receive failed", extra={"error": str(error)})
                self.read_error = error
                return MQTTErrorCode.MQTT_ERR_CONN_LOST
            if not data:
                return MQTTErrorCode.MQTT_ERR_CONN_LOST
            self.last_read_bytes += len(data)
            with self._msgtime_mutex:
                self._last_bytes_received = paho.time_func()
            outcome = self._feed(data)
            if outcome != MQTTErrorCode.MQTT_ERR_SUCCESS or self._sock is None:
                return outcome
            if type(self._sock) is socket.socket:
                self.has_read_all = len(data) < RECV_BYTES
                return MQTTErrorCode.MQTT_ERR_AGAIN  # poll() tells of what is left
        self.has_read_all = False
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _feed(self, data: bytes) -> MQTTErrorCode:
        """Take in what was received: any cut of the stream."""
        if self._parts:
            self._parts.append(data)
            self._have_bytes += len(data)
            if self._have_bytes < self._need_bytes:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
            data = b"".join(self._parts)
            self._forget_partial_packet()
        deliveries: list[Delivery] = []
        at = size = unusual = 0
        if self._cut is not None:
            at = min(self._discard_bytes, len(data))
            self._discard_bytes -= at
            if self._discard_bytes:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
            deliveries.append(self._cut._replace(received_us=self._next_received_us()))
            size, unusual = weight_of(self._cut), 1
            self._cut = None
        outcome = MQTTErrorCode.MQTT_ERR_SUCCESS
        received_us = self._next_received_us()
        try:
            while outcome == MQTTErrorCode.MQTT_ERR_SUCCESS:
                at, more, odd = walk(
                    data, at, deliveries, self.connection, received_us + len(deliveries), self._is_mqtt5
                )
                size += more
                unusual += odd
                if deliveries and not self._accepted:
                    raise MalformedPacket("PUBLISH before CONNACK")
                if at >= len(data):
                    break
                length, start = remaining_length(data, at)
                if length < 0 or start + length > len(data):
                    self._begin_partial_packet(data[at:], length, start - at)
                    break
                outcome = self._hand_to_paho(data[at], data[start : start + length])
                at = start + length
                if self._sock is None:
                    break
        except MalformedPacket as error:
            logger.warning("mqtt packet malformed", extra={"error": str(error), "connection": self.connection})
            outcome = MQTTErrorCode.MQTT_ERR_PROTOCOL
            # The walk was cut short, and with it its sums.
            size, unusual = sum(map(weight_of, deliveries)), len(deliveries)
        if deliveries:
            self._last_received_us = deliveries[-1].received_us
        if deliveries and self._accepted:
            self._on_deliveries(deliveries, size, unusual)
        return outcome

    def _next_received_us(self) -> int:
        """Now, or just after the last message, so that their times differ. A clock that was set back is followed."""
        now_us, last_us = self._clock.now_us(), self._last_received_us
        return last_us + 1 if now_us <= last_us < now_us + 1_000_000 else now_us

    def _hand_to_paho(self, command: int, body: bytes) -> MQTTErrorCode:
        if command & 0xF0 == _CONNACK and self._accepted:
            raise MalformedPacket("a second CONNACK")
        packet = self._in_packet
        packet["command"] = command
        packet["have_remaining"] = 1
        packet["remaining_length"] = len(body)
        packet["packet"] = bytearray(body)
        try:
            outcome = self._packet_handle()
        except MalformedPacket:
            raise
        except Exception as error:
            # paho reads some fields unchecked, and an error in a callback must not end the thread either.
            logger.exception("mqtt packet not handled", extra={"command": command})
            raise MalformedPacket(f"packet type {command >> 4}") from error
        finally:
            packet["command"] = packet["have_remaining"] = packet["remaining_length"] = 0
            packet["packet"] = bytearray()
        if command & 0xF0 == _CONNACK and self.is_connected():
            with self._connection_lock:
                self._accepted = True
        return outcome

    def _begin_partial_packet(self, data: bytes, length: int, start: int) -> None:
        """``data`` is the beginning of a packet whose rest begins at ``start`` and has ``length`` bytes (-1: not known
        yet). Raises MalformedPacket for one that is too large and no PUBLISH."""
        if length < 0:
            self._keep_partial_packet(data, start + 1)
        elif start + length <= self._max_packet_bytes:
            self._keep_partial_packet(data, start + length)
        elif not PUBLISH <= data[0] < PUBLISH_END:
            raise MalformedPacket(f"a packet of type {data[0] >> 4} with {length} bytes")
        elif len(data) < min(_CUT_LOOK_BYTES, start + length):
            self._keep_partial_packet(data, min(_CUT_LOOK_BYTES, start + length))
        else:
            topic, first, packet_id, head, whole_bytes = head_of(data, start, length, self._is_mqtt5)
            payload = cut_off(head, whole_bytes)
            self._cut = Delivery(topic, payload, first >> 1 & 3, packet_id, self.connection, 0, first > 0x37)
            self._discard_bytes = start + length - len(data)

    def _keep_partial_packet(self, data: bytes, need_bytes: int) -> None:
        """Parts are joined once, when all is there: a huge packet would be copied at each recv otherwise."""
        self._parts = [data]
        self._have_bytes = len(data)
        self._need_bytes = need_bytes

    def _forget_partial_packet(self) -> None:
        self._parts = []
        self._have_bytes = self._need_bytes = 0
        self._cut = None
        self._discard_bytes = 0


def _leave_writing_to_the_loop(*_: object) -> None:
    pass
