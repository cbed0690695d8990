"""The hand-off from the network thread to the pipeline: interfaces.Source over the session on the broker.

Rules that this file keeps:
- a delivery is acknowledged on the connection that brought it, or not at all;
- what was received stays in memory over a lost connection. The broker delivers it again as a rule, but a broker that
  came back from an old snapshot would not; stored twice it counts as a duplicate, lost it is lost.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from esp_ingest.config.settings import MqttSettings
from esp_ingest.interfaces import Clock, Source
from esp_ingest.model import Delivery
from esp_ingest.mqtt.buffer import Buffer
from esp_ingest.mqtt.network import Network
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import Metrics

logger = logging.getLogger(__name__)


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
