"""The hand-off from the network thread to the pipeline: interfaces.Source over the session on the broker.

Rules that this file keeps:
- a delivery is acknowledged on the connection that brought it, or not at all;
- what was received stays in memory over a lost connection. The broker delivers it again as a rule, but a broker that
  came back from an old snapshot would not; stored twice it counts as a duplicate, lost it is lost.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from esp_ingest.config.settings import MqttSettings
from esp_ingest.interfaces import Clock, Source
from esp_ingest.model import Delivery, weight_of
from esp_ingest.mqtt.network import Network
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import Metrics

logger = logging.getLogger(__name__)

# Ages are kept a group of messages, not a message: what arrives within so long counts as having arrived together.
AGE_GROUP_SECONDS = 0.05


class MqttSource(Network, Source):
    """Deliveries from the broker. ``take``, ``settle``, ``buffered`` and the lifetime calls belong to the pipeline's
    thread; what health reads may be read from any. See :class:`Network` for the parameters."""

    def __init__(
        self,
        settings: MqttSettings,
        clock: Clock,
        metrics: Metrics,
        state_folder: Path | None = None,
        *,
        keep_session: bool = True,
    ) -> None:
        self._buffer = Buffer(settings.receive_maximum, settings.buffer_max_bytes)
        self._is_discarding = False
        self._received = {str(qos): metrics.messages_received.labels(str(qos)) for qos in range(3)}
        self._dropped = metrics.messages_dropped.labels("0")
        self._drops = Repeated(logger, "mqtt messages dropped", "mqtt messages no longer dropped")
        metrics.window_messages.set(settings.receive_maximum)
        super().__init__(settings, clock, metrics, state_folder, keep_session=keep_session)

    # -- In the network thread.

    def on_deliveries(self, deliveries: list[Delivery], size: int, unusual: int) -> None:
        if self._is_discarding:
            lost = sum(1 for delivery in deliveries if delivery.qos == 0)
            self._received["0"].inc(lost)
            self._dropped.inc(lost)
            return
        if unusual:
            self._count_unusual(deliveries)
        else:
            self._received["1"].inc(len(deliveries))
        self._subscription.end_strays(self._client, deliveries)
        self._packet_ids.follow(deliveries, unusual)
        now = self._clock.monotonic()
        dropped = self._buffer.put(deliveries, size, now)
        if dropped:
            self._dropped.inc(dropped)
            self._drops.failed(now, "the buffer is full, and QoS 0 has no second delivery", messages=dropped)

    def _count_unusual(self, deliveries: list[Delivery]) -> None:
        counts = [0, 0, 0]
        redelivered = 0
        for delivery in deliveries:
            counts[delivery.qos] += 1
            redelivered += delivery.redelivered > 0
        for qos, count in enumerate(counts):
            if count:
                self._received[str(qos)].inc(count)
        if redelivered:
            self._metrics.messages_redelivered.inc(redelivered)

    def is_full(self) -> bool:
        return self._buffer.is_full()

    def on_turn(self, partial_bytes: int) -> None:
        self._buffer.receiving(partial_bytes)
        if self._drops.active and self._buffer.has_room_for_qos0():
            self._drops.ended(self._clock.monotonic())

    # -- In the pipeline's thread.

    def take(self, max_messages: int, max_bytes: int, timeout_seconds: float, *, at_least: int = 1) -> list[Delivery]:
        taken = self._buffer.take(max_messages, max_bytes, timeout_seconds, at_least)
        if self._is_paused and not self._buffer.is_full():
            self._wake()
        return taken

    def settle(self, deliveries: Sequence[Delivery]) -> int:
        if not deliveries:
            return 0
        queued = self._client.acknowledge(deliveries)
        self._buffer.settle(len(deliveries))
        if queued:
            self._wake()
            self._metrics.messages_acked.inc(queued)
        if queued < len(deliveries):
            stale = sum(1 for delivery in deliveries if delivery.qos) - queued
            if stale:
                self._metrics.messages_stale.inc(stale)
        return queued

    def buffered(self) -> tuple[int, int]:
        return self._buffer.size()

    def stop_receiving(self) -> None:
        """No new work: what arrives from now on is not taken in and not acknowledged, so the broker delivers it again
        to the next daemon of this session. Acknowledgements still go out."""
        self._is_discarding = True
        self._buffer.wake()

    def close(self) -> None:
        self._buffer.wake()
        super().close()

    # -- Health.

    def unacked(self) -> int:
        """Messages received and not yet settled."""
        return self._buffer.unsettled()

    def oldest_unacked_seconds(self) -> float:
        """Age of the oldest message that is not settled, 0 with none."""
        return self._buffer.oldest_seconds(self._clock.monotonic())


class Buffer:
    """Messages received and not yet taken, and the ages of those not yet settled.

    Capacity follows from the receive window: the broker cannot have more than ``window_messages`` of QoS 1 and 2 out,
    so none of these is ever refused. A window's worth may be here twice for a while: once from a connection that broke,
    and once delivered again. ``is_full`` then asks the network thread to read no more. QoS 0 knows no window and no
    second delivery: what finds one window's worth, or ``max_bytes``, here already is dropped; the caller counts it.
    """

    def __init__(self, window_messages: int, max_bytes: int) -> None:
        self._window_messages = window_messages
        self._max_bytes = max_bytes
        self._arrived = threading.Condition(threading.Lock())
        self._chunks: deque[tuple[list[Delivery], int]] = deque()
        self._messages = 0
        self._bytes = 0
        self._partial_bytes = 0
        self._wanted_messages = 1  # what the pipeline waits for
        self._wanted_bytes = max_bytes
        self._unsettled = 0
        self._ages: deque[list[float]] = deque()  # [messages, monotonic seconds of the first of them]

    def put(self, chunk: list[Delivery], size: int, now: float) -> int:
        """Append ``chunk`` with ``size`` bytes (model.weight_of). Never blocks; returns how many of QoS 0 it
        dropped."""
        with self._arrived:
            dropped = 0
            if not self._has_room_for_qos0():
                kept = [delivery for delivery in chunk if delivery.qos]
                dropped = len(chunk) - len(kept)
                if dropped:
                    chunk, size = kept, sum(map(weight_of, kept))
                if not chunk:
                    return dropped
            self._chunks.append((chunk, size))
            self._messages += len(chunk)
            self._bytes += size
            self._unsettled += len(chunk)
            if self._ages and now - self._ages[-1][1] < AGE_GROUP_SECONDS:
                self._ages[-1][0] += len(chunk)
            else:
                self._ages.append([len(chunk), now])
            if self._messages >= self._wanted_messages or self._bytes >= self._wanted_bytes:
                self._arrived.notify()
            return dropped

    def take(self, max_messages: int, max_bytes: int, timeout_seconds: float, at_least: int = 1) -> list[Delivery]:
        """The oldest messages within both bounds, and at least one where there is one, however large. Waits up to
        ``timeout_seconds`` for ``at_least`` of them or ``max_bytes``: a wake-up for each chunk costs more than the
        rest. The caller owns the list."""
        with self._arrived:
            if self._messages < at_least and self._bytes < max_bytes and timeout_seconds > 0:
                self._wanted_messages, self._wanted_bytes = at_least, max_bytes
                self._arrived.wait(timeout_seconds)
            taken: list[Delivery] = []
            size = 0
            while self._chunks and len(taken) < max_messages and (not taken or size < max_bytes):
                chunk, chunk_bytes = self._chunks.popleft()
                if len(taken) + len(chunk) > max_messages or size + chunk_bytes > max_bytes:
                    fits, fits_bytes = _fitting(chunk, max_messages - len(taken), max_bytes - size)
                    if not taken and fits == 0:
                        fits, fits_bytes = (
                            1,
                            min(weight_of(chunk[0]), chunk_bytes),
                        )  # larger than max_bytes: it goes alone
                    if fits < len(chunk):
                        self._chunks.appendleft((chunk[fits:], chunk_bytes - fits_bytes))
                    taken += chunk[:fits]
                    size += fits_bytes
                    break
                if taken:
                    taken += chunk
                else:
                    taken = chunk  # the usual case is a swap, not a copy
                size += chunk_bytes
            self._messages -= len(taken)
            self._bytes -= size
            return taken

    def settle(self, messages: int) -> None:
        """``messages`` more are done with, oldest first."""
        with self._arrived:
            self._unsettled -= messages
            while messages > 0 and self._ages:
                group = self._ages[0]
                if group[0] > messages:
                    group[0] -= messages
                    break
                messages -= int(group[0])
                self._ages.popleft()

    def wake(self) -> None:
        """Let a waiting ``take`` return with what is there."""
        with self._arrived:
            self._arrived.notify()

    def size(self) -> tuple[int, int]:
        """(messages, bytes) received and not yet taken; of a packet that is not all here yet its bytes only."""
        with self._arrived:
            return self._messages, self._bytes + self._partial_bytes

    def unsettled(self) -> int:
        """Messages received and not yet settled, taken or not."""
        return self._unsettled

    def oldest_seconds(self, now: float) -> float:
        """Age of the oldest message not yet settled, 0 with none."""
        with self._arrived:
            return max(0.0, now - self._ages[0][1]) if self._ages else 0.0

    def is_full(self) -> bool:
        """Reading has to pause. Without the lock: a stale answer costs one chunk."""
        # What is received of the next packet counts, but alone it never pauses the reading of its own rest.
        held = self._bytes + self._partial_bytes if self._bytes else 0
        return held >= self._max_bytes or self._messages >= 2 * self._window_messages

    def receiving(self, partial_bytes: int) -> None:
        """So much is here of a packet that is not whole yet. Network thread only."""
        self._partial_bytes = partial_bytes

    def has_room_for_qos0(self) -> bool:
        """A message of QoS 0 would not be dropped now."""
        with self._arrived:
            return self._has_room_for_qos0()

    def _has_room_for_qos0(self) -> bool:
        return self._messages < self._window_messages and self._bytes < self._max_bytes


def _fitting(chunk: list[Delivery], max_messages: int, max_bytes: int) -> tuple[int, int]:
    """(messages, bytes) of the head of ``chunk`` that fits both bounds."""
    size = 0
    for count, delivery in enumerate(chunk[:max_messages]):
        weight = weight_of(delivery)
        if size + weight > max_bytes:
            return count, size
        size += weight
    return min(len(chunk), max_messages), size
