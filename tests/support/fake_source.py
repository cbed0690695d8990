"""A broker's session in memory, and a Source over it, which passes the contract of the real one (contract_source.py).

The session outlives the source, as a broker outlives a daemon: ``FakeSource(clock, session)`` after a crash is a
restart.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from esp_ingest.config.settings import MqttSettings
from esp_ingest.interfaces import Clock
from esp_ingest.model import Delivery
from esp_ingest.mqtt.client_setup import SessionRecord
from esp_ingest.mqtt.packet_ids import PacketIds

WINDOW = 20_000


@dataclass(frozen=True)
class Message:
    topic: bytes
    payload: bytes
    qos: int = 1
    packet_id: int = 0  # the packet id that it was sent under before; 0: never sent
    number: int = 0  # of this session, so that two of the same content are two


class Arrivals:
    """Tells each message a time of its own, also over a restart: none is so quick that two have the same time."""

    def __init__(self) -> None:
        self._last_us = 0

    def next_us(self, now_us: int) -> int:
        """``now_us``, or later."""
        self._last_us = max(now_us, self._last_us + 1)
        return self._last_us


class BrokerSession:
    """What a broker keeps of one client: a queue, and what is under way and not acknowledged, by packet id."""

    def __init__(self, window: int = WINDOW, packet_id_count: int = 0xFFFF, arrivals: Arrivals | None = None) -> None:
        """``arrivals``: shared by sessions whose messages have no time in common, since the clock of a test stands."""
        self.window = window
        self.packet_id_count = packet_id_count
        self.record = SessionRecord(MqttSettings(), None)  # the daemon's, on its disk
        self.is_new = True  # the next connection finds no session
        self._snapshot: tuple[list[Message], list[tuple[int, Message]], int] = ([], [], 0)
        self.queue: deque[Message] = deque()
        self.inflight: OrderedDict[int, Message] = OrderedDict()
        self.acked: list[bytes] = []  # payloads, in the order of their acknowledgements
        self.connections = 0  # ever
        self.arrivals = arrivals or Arrivals()
        self._last_packet_id = 0
        self._published = 0

    def publish(self, topic: bytes | str, payload: bytes, qos: int = 1) -> None:
        self._published += 1
        name = topic.encode() if isinstance(topic, str) else topic
        self.queue.append(Message(name, payload, qos, number=self._published))

    def next_out(self) -> tuple[int, Message] | None:
        """(packet id, message) to send now, None when the queue is empty or the window closed. Packet ids go up and are
        kept with what is sent again; they start at 1 with each session: an old acknowledgement would hit another
        message."""
        if not self.queue or (self.queue[0].qos and len(self.inflight) >= self.window):
            return None
        message = self.queue.popleft()
        if message.qos == 0:
            return 0, message
        packet_id = message.packet_id
        if not packet_id:
            self._last_packet_id = packet_id = self._last_packet_id % self.packet_id_count + 1
        assert packet_id not in self.inflight, "the window is smaller than the packet ids are many"
        self.inflight[packet_id] = message
        return packet_id, message

    def acknowledge(self, packet_id: int) -> bool:
        """Whether it was under way."""
        message = self.inflight.pop(packet_id, None)
        if message is not None:
            self.acked.append(message.payload)
        return message is not None

    def reconnected(self, *, kept: bool = True) -> None:
        """The connection is a new one. Kept: what was under way goes out again, marked DUP. Lost: nothing does."""
        if kept:
            again = [replace(message, packet_id=packet_id) for packet_id, message in self.inflight.items()]
            self.queue.extendleft(reversed(again))
        else:
            self.queue.clear()
            self._last_packet_id = 0
            self.is_new = True
        self.inflight.clear()

    def save(self) -> None:
        """Write a snapshot."""
        self._snapshot = (list(self.queue), list(self.inflight.items()), self._last_packet_id)

    def killed(self) -> tuple[list[bytes], list[bytes]]:
        """The broker is as its last snapshot says. Returns payloads: what is lost to it, and what it sends again though
        it may not be marked DUP."""
        held = self._held()
        queue, inflight, self._last_packet_id = self._snapshot
        self.queue, self.inflight = deque(queue), OrderedDict(inflight)
        again = {message.number for message in self._held()}
        return [message.payload for message in held if message.number not in again], self.holds()

    def holds(self) -> list[bytes]:
        """Payloads that the broker still answers for."""
        return [message.payload for message in self._held()]

    def _held(self) -> list[Message]:
        return [message for message in (*self.inflight.values(), *self.queue) if message.qos]


class FakeSource:
    """interfaces.Source without a socket; what is published to the session arrives at the next ``take``. For one
    thread."""

    def __init__(self, clock: Clock, session: BrokerSession | None = None, record: SessionRecord | None = None) -> None:
        """``record``: what this daemon knows of the session; None: the one kept with the session."""
        self._clock = clock
        self.session = session if session is not None else BrokerSession()
        self.connected = self.subscribed = False
        self.last_error = ""
        self._buffer: deque[Delivery] = deque()
        self._unsettled: deque[float] = deque()
        self._is_receiving = True
        self._packet_ids = PacketIds(record or self.session.record, self.session.window, self.session.packet_id_count)
        self.connect()

    # -- The seam.

    def take(self, max_messages: int, max_bytes: int, timeout_seconds: float, *, at_least: int = 1) -> list[Delivery]:
        self._receive()
        if len(self._buffer) < at_least:
            self._clock.sleep(timeout_seconds)
            self._receive()
        taken: list[Delivery] = []
        size = 0
        while self._buffer and len(taken) < max_messages:
            size += len(self._buffer[0].payload)
            if taken and size > max_bytes:
                break
            taken.append(self._buffer.popleft())
        return taken

    def settle(self, deliveries: Sequence[Delivery]) -> int:
        queued = 0
        for delivery in deliveries:
            self._unsettled.popleft()
            if delivery.qos and delivery.connection == self.connection:
                assert self.session.acknowledge(delivery.packet_id), (
                    f"packet id {delivery.packet_id} acknowledged twice"
                )
                queued += 1
        return queued

    @property
    def connection(self) -> int:
        """The connection that stands now, 0 where none does."""
        return self.session.connections if self.connected else 0

    def buffered(self) -> tuple[int, int]:
        self._receive()
        return len(self._buffer), sum(len(delivery.payload) for delivery in self._buffer)

    # -- What the daemon asks of the real one.

    def start(self) -> None:
        """It is connected from the start."""

    def stop_receiving(self) -> None:
        self._is_receiving = False

    def close(self) -> None:
        self.disconnect()

    def unacked(self) -> int:
        return len(self._unsettled)

    def oldest_unacked_seconds(self) -> float:
        return self._clock.monotonic() - self._unsettled[0] if self._unsettled else 0.0

    def network_thread_alive(self) -> bool:
        return True

    def network_idle_seconds(self) -> float:
        return 0.0

    # -- What a test does to it.

    def connect(self) -> None:
        self.session.connections += 1
        self._packet_ids.connected(self.session.connections, is_new_session=self.session.is_new)
        self.session.is_new = False
        self.connected = self.subscribed = True

    def disconnect(self) -> None:
        """The broker is away; what was received stays in memory."""
        self.connected = self.subscribed = False

    def break_connection(self, *, session_kept: bool = True) -> None:
        """Lost, and there again."""
        self.disconnect()
        self.session.reconnected(kept=session_kept)
        self.connect()

    def _receive(self) -> None:
        while self.connected and self._is_receiving and (out := self.session.next_out()):
            packet_id, message = out
            now_us = self.session.arrivals.next_us(self._clock.now_us())
            came = [
                Delivery(
                    message.topic,
                    message.payload,
                    message.qos,
                    packet_id,
                    self.connection,
                    now_us,
                    message.packet_id > 0,
                )
            ]
            self._packet_ids.follow(came, unusual=1)
            self._buffer += came
            self._unsettled.append(self._clock.monotonic())
