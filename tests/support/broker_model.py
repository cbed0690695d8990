"""A broker and the client's end of its session, as one object in memory: what MQTT promises, and nothing more.

It is the `Source` that the state machine drives the pipeline with. QoS 1 messages stay in the session until they are
acknowledged on the connection that delivered them; a new connection gets all of those again, with DUP set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from esp_ingest.telemetry.model import Delivery
from tests.support.fake_clock import FakeClock


@dataclass(slots=True)
class Published:
    """A QoS 1 message that the broker has taken responsibility for."""

    topic: bytes
    payload: bytes
    sent: bool = False  # handed to a connection at least once


class BrokerModel:
    """One subscriber's session. ``window`` is the client's Receive Maximum."""

    def __init__(self, clock: FakeClock, window: int) -> None:
        self._clock = clock
        self._window = window
        self.session: list[Published] = []
        self.connected = True
        self.epoch = 1
        self.acknowledged: list[Published] = []
        self.stale_acknowledgements = 0
        self._inflight: dict[int, Published] = {}
        self._buffer: list[Delivery] = []
        self._taken_unsettled = 0
        self._free_mids = list(range(1, window + 1))

    # -- The broker's side.

    def publish(self, topic: bytes, payload: bytes) -> None:
        self.session.append(Published(topic, payload))

    def deliver(self) -> None:
        """Send what the window allows."""
        if not self.connected:
            return
        waiting = [each for each in self.session if each not in self._inflight.values()]
        for message in waiting[: self._window - len(self._inflight)]:
            mid = self._free_mids.pop(0)
            self._inflight[mid] = message
            self._buffer.append(
                Delivery(message.topic, message.payload, 1, mid, self.epoch, self._clock.now_us(), message.sent)
            )
            message.sent = True

    def drop(self, *, session_kept: bool) -> None:
        """The connection is gone, and with it what was received and not taken."""
        self.connected = False
        self._inflight.clear()
        self._free_mids = list(range(1, self._window + 1))
        self._buffer.clear()
        if not session_kept:
            self.session.clear()

    def reconnect(self) -> None:
        self.connected = True
        self.epoch += 1

    # -- The client's side: seams.Source.

    def take(self, max_messages: int, max_bytes: int, timeout_seconds: float) -> list[Delivery]:
        if not self._buffer:
            self._clock.sleep(timeout_seconds)
        taken: list[Delivery] = []
        size = 0
        while self._buffer and len(taken) < max_messages and (not taken or size < max_bytes):
            delivery = self._buffer.pop(0)
            size += len(delivery.payload)
            taken.append(delivery)
        self._taken_unsettled += len(taken)
        return taken

    def settle(self, deliveries: Sequence[Delivery]) -> int:
        queued = 0
        for delivery in deliveries:
            self._taken_unsettled -= 1
            if delivery.epoch != self.epoch or not self.connected:
                continue
            message = self._inflight.pop(delivery.mid)
            assert message.payload == delivery.payload, "an acknowledgement freed another message"
            self._free_mids.append(delivery.mid)
            self.session.remove(message)
            self.acknowledged.append(message)
            queued += 1
        assert self._taken_unsettled >= 0, "settled more than was taken"
        return queued

    def buffered(self) -> tuple[int, int]:
        return len(self._buffer), sum(len(each.payload) for each in self._buffer)

    def held(self) -> int:
        """Messages in the client's memory: what the window bounds."""
        return len(self._buffer) + self._taken_unsettled

    def forget_client(self) -> None:
        """The client process is gone: its memory too."""
        self._taken_unsettled = 0
        self._buffer.clear()
