"""THE loop: take → decode → write + diagnose → acknowledge.

The main thread collects deliveries into a batch, decodes it and hands it to the writer stage; when the stage gives it
back it is safe, and it is settled. Everything that may wait for the database waits in the stage, so the loop keeps
moving in every outage.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np

from esp_ingest.config import BatchSettings, ServiceSettings
from esp_ingest.seams import Clock, Source
from esp_ingest.service.metrics import Metrics, observe_many
from esp_ingest.stage import Batch, Outcome
from esp_ingest.telemetry.exact import MOST_REJECTS
from esp_ingest.telemetry.model import Decoded, Delivery

log = logging.getLogger(__name__)

_SPACE = b" \t\n\r"  # JSON's white space
_RESUMED_SECONDS = 60.0  # for so long a resumed session may bring what it brought before
_IDLE_SECONDS = 0.1  # longest wait of one turn: bounds the reaction to signals and the pulse of the health check


class WriterStage(Protocol):
    """Takes batches and gives them back, in order, when they are safe. stage.py: in a thread, or inline for tests."""

    @property
    def busy(self) -> bool: ...
    @property
    def has_room(self) -> bool: ...
    @property
    def spooling(self) -> bool:
        """Batches go to the spool undecoded just now, so decoding them in advance would be wasted."""
        ...

    def submit(self, batch: Batch) -> None: ...
    def poll(self, timeout_seconds: float) -> tuple[Batch, Outcome] | None: ...
    def hurry(self) -> None:
        """Draining: wait for nothing that a spool can hold."""
        ...


class Pipeline:
    """Owns control flow and nothing else: every part is handed in."""

    def __init__(
        self,
        source: Source,
        decode: Callable[[list[Delivery]], Decoded],
        stage: WriterStage,
        clock: Clock,
        metrics: Metrics,
        batch: BatchSettings,
        service: ServiceSettings,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._decode = decode
        self._stage = stage
        self._clock = clock
        self._metrics = metrics
        self._bounds = batch
        self._beat = beat
        self._open = _OpenBatch(batch)
        self._ready: Batch | None = None  # decoded, waiting for the stage
        self._alarm = RejectAlarm(service, clock)
        self._epoch = 0
        self._epoch_since = 0.0

    def run(self, stopping: Callable[[], bool]) -> None:
        """Run until ``stopping``; what is held stays held, :meth:`drain` writes it."""
        while not stopping():
            self.run_once()

    def run_once(self, timeout_seconds: float = _IDLE_SECONDS) -> None:
        """One turn; waits at most ``timeout_seconds`` for something to do."""
        self._beat()
        self._collect(timeout_seconds)
        if self._ready is None and self._open.due(self._clock.monotonic()):
            self._ready = self._cut()
        self._turn_stage(timeout_seconds)

    def drain(self, expired: Callable[[], bool]) -> bool:
        """The source has stopped: write and settle all that is held. False when ``expired`` came first."""
        self._stage.hurry()
        while self.held or any(self._source.buffered()):
            if expired():
                return False
            self._beat()
            self._collect(0.0)
            if self._ready is None and self._open.deliveries:
                self._ready = self._cut()
            self._turn_stage(_IDLE_SECONDS)
        return True

    @property
    def held(self) -> bool:
        """Deliveries were taken that are not settled yet."""
        return bool(self._open.deliveries) or self._ready is not None or self._stage.busy

    def _collect(self, timeout_seconds: float) -> None:
        room_messages, room_bytes = self._open.room()
        if room_messages <= 0 or room_bytes <= 0:
            return
        waiting = self._ready is not None or self._stage.busy
        patience = 0.0 if waiting else self._open.patience(self._clock.monotonic(), timeout_seconds)
        deliveries = self._source.take(room_messages, room_bytes, patience)
        if deliveries:
            self._open.add(deliveries, self._clock.monotonic())

    def _cut(self) -> Batch:
        batch = Batch(deliveries=self._open.take())
        may_repeat = self._may_repeat(batch.deliveries)
        if not self._stage.spooling:
            try:
                batch.decoded = self._decode(batch.deliveries)
                if may_repeat:
                    batch.decoded.rejects = [replace(each, redelivered=True) for each in batch.decoded.rejects]
                self._metrics.readings_received.inc(batch.decoded.items)
                self._metrics.readings_held.inc(batch.decoded.items)
            except Exception:  # the stage isolates the message at fault; one message must not stop the rest
                log.exception("decode failed")
        return batch

    def _may_repeat(self, deliveries: list[Delivery]) -> bool:
        """Some of these may be stored already, or by another daemon meanwhile, whatever their DUP flags say: their
        connection has ended, or it has just resumed a session. Readings have a key that tells; rejects have not."""
        now, epoch = self._clock.monotonic(), self._source.epoch
        if epoch != self._epoch:
            self._epoch, self._epoch_since = epoch, now
        has_ended = deliveries[0].epoch != epoch  # epochs only grow
        return has_ended or (self._source.resumed and now - self._epoch_since < _RESUMED_SECONDS)

    def _turn_stage(self, timeout_seconds: float) -> None:
        """Hand over what is ready, settle what has come back. Waits for the stage only where there is no other work."""
        self._submit_ready()
        if self._stage.busy:
            idle = self._ready is not None or not any(self._source.buffered())
            finished = self._stage.poll(timeout_seconds if idle else 0.0)
            if finished is not None:
                self._settle(*finished)
                self._submit_ready()

    def _submit_ready(self) -> None:
        if self._ready is not None and self._stage.has_room:
            self._stage.submit(self._ready)
            self._ready = None

    def _settle(self, batch: Batch, outcome: Outcome) -> None:
        self._source.settle(batch.deliveries)
        if batch.decoded is not None:
            self._metrics.readings_held.dec(batch.decoded.items)
        now_us = self._clock.now_us()
        for readings in outcome.committed:
            observe_many(self._metrics.ingest_latency_seconds, (now_us - readings.received_us) / 1e6)
            observe_many(self._metrics.reading_age_seconds, np.maximum(now_us - readings.timestamp_us, 0) / 1e6)
        alarm = self._alarm.note(outcome.written + outcome.duplicates, outcome.rejected)
        if alarm is not None:
            self._metrics.reject_alarm.set(alarm)


class _OpenBatch:
    """Deliveries collected for the next batch, and how far it is from its bounds."""

    def __init__(self, bounds: BatchSettings) -> None:
        self._bounds = bounds
        self.deliveries: list[Delivery] = []
        self._rows = 0
        self._bytes = 0
        self._since = 0.0

    def add(self, deliveries: list[Delivery], now: float) -> None:
        if not self.deliveries:
            self._since = now
            self.deliveries = deliveries
        else:
            self.deliveries += deliveries
        self._rows += len(deliveries)
        for delivery in deliveries:
            payload = delivery[1]
            self._bytes += len(payload)
            if payload[:1] != b"{" and payload.lstrip(_SPACE)[:1] == b"[":
                self._rows += _most_items(payload) - 1

    def room(self) -> tuple[int, int]:
        """(messages, bytes) that still fit."""
        return self._bounds.max_rows - self._rows, self._bounds.max_bytes - self._bytes

    def due(self, now: float) -> bool:
        return bool(self.deliveries) and (min(self.room()) <= 0 or now - self._since >= self._bounds.max_age_seconds)

    def patience(self, now: float, timeout_seconds: float) -> float:
        """How long to wait for more: not past the batch's age."""
        if not self.deliveries:
            return timeout_seconds
        return min(timeout_seconds, max(self._since + self._bounds.max_age_seconds - now, 0.0))

    def take(self) -> list[Delivery]:
        deliveries = self.deliveries
        self.deliveries = []
        self._rows = self._bytes = 0
        return deliveries


def _most_items(payload: bytes) -> int:
    """About so many readings, each an object, and rejects (MOST_REJECTS at most) are made of an array.

    Between objects of f fields stand f - 1 commas and f colons (more, in timestamps), so commas that no colon explains
    stand between items that are no objects."""
    others = payload.count(b",") + 1 - payload.count(b":")
    return payload.count(b"{") + min(max(others, 0), MOST_REJECTS)


class RejectAlarm:
    """A circuit breaker that only warns: too many rejects in a row, or too large a share of the last minute."""

    _WINDOW_SECONDS = 60.0
    _LEAST_ITEMS = 100  # a share of fewer items says nothing

    def __init__(self, settings: ServiceSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._consecutive = 0
        self._window: list[tuple[float, int, int]] = []

    def note(self, accepted: int, rejected: int) -> int | None:
        """Count a batch. Returns 1 while the alarm stands, 0 when not, None for an empty batch."""
        if accepted + rejected == 0:
            return None
        self._consecutive = 0 if accepted else self._consecutive + rejected
        now = self._clock.monotonic()
        self._window.append((now, accepted, rejected))
        while self._window[0][0] < now - self._WINDOW_SECONDS:
            self._window.pop(0)
        total = sum(a + r for _, a, r in self._window)
        share = sum(r for _, _, r in self._window) / total
        in_a_row = self._consecutive >= self._settings.reject_alarm_consecutive
        return int(in_a_row or (total >= self._LEAST_ITEMS and share >= self._settings.reject_alarm_ratio))
