"""THE loop: take → decode → write + diagnose → acknowledge.

The main thread collects deliveries into a batch and hands it to the writer stage, which decodes, diagnoses and
writes; when the stage gives it back it is safe, and it is settled. Everything that may wait for the database waits in
the stage, so the loop keeps moving in every outage.
"""

import threading
from collections import deque
from collections.abc import Callable

import numpy as np

from esp_ingest.config.settings import BatchSettings, ServiceSettings
from esp_ingest.ingest.batch import Batch, Outcome
from esp_ingest.ingest.reject_alarm import RejectAlarm
from esp_ingest.interfaces import Clock, Source
from esp_ingest.model import LONG_TOPIC_BYTES, Delivery
from esp_ingest.service.metrics import Metrics, observe_many
from esp_ingest.telemetry.exact import MOST_REJECTS
from esp_ingest.telemetry.json_text import SPACE

_IDLE_SECONDS = 0.1  # longest wait of one turn: bounds the reaction to signals and the pulse of the health check
_MOST_WAITING = 2  # batches behind the one that is worked on: the second keeps the stage from idling


class Pipeline:
    """Owns control flow and nothing else: every part is handed in."""

    def __init__(
        self,
        source: Source,
        stage: "BatchQueue",
        clock: Clock,
        metrics: Metrics,
        batch: BatchSettings,
        service: ServiceSettings,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._stage = stage
        self._clock = clock
        self._metrics = metrics
        self._bounds = batch
        self._beat = beat
        self._open = OpenBatch(batch, clock.monotonic())
        self._alarm = RejectAlarm(service, clock)

    def run(self, stopping: Callable[[], bool]) -> None:
        """Run until ``stopping``; what is held stays held, :meth:`drain` writes it."""
        while not stopping():
            self.run_once()

    def run_once(self, timeout_seconds: float = _IDLE_SECONDS) -> None:
        """One turn; waits at most ``timeout_seconds`` for something to do."""
        self._beat()
        self._collect(timeout_seconds)
        if self._open.due(self._clock.monotonic(), self._stage.busy):
            self._submit()
        self._turn_stage(timeout_seconds)
        if self._alarm.is_raised:  # where nothing comes any more, no batch would end it
            self._metrics.reject_alarm.set(self._alarm.look())

    def drain(self, expired: Callable[[], bool]) -> bool:
        """The source has stopped: write and settle all that is held. False when ``expired`` came first."""
        self._stage.hurry()
        while self.held or self._source.buffered()[0]:
            if expired():
                return False
            self._beat()
            self._collect(0.0)
            if self._open.deliveries:
                self._submit()
            self._turn_stage(_IDLE_SECONDS)
        return True

    @property
    def held(self) -> bool:
        """Deliveries were taken that are not settled yet."""
        return bool(self._open.deliveries) or self._stage.busy

    def _collect(self, timeout_seconds: float) -> None:
        if self._open.full:
            return
        patience = 0.0 if self._stage.busy else self._open.patience(self._clock.monotonic(), timeout_seconds)
        messages, size = self._open.room()
        # Once the first is here, the rest of the batch need not wake this thread before it is due.
        deliveries = self._source.take(messages, size, patience, at_least=messages if self._open.deliveries else 1)
        if deliveries:
            self._open.add(deliveries, self._clock.monotonic())

    def _submit(self) -> None:
        if self._stage.has_room:
            size = self._open.bytes
            self._stage.submit(Batch(self._open.take(self._clock.monotonic()), size))

    def _turn_stage(self, timeout_seconds: float) -> None:
        """Settle what has come back. Waits for the stage only where there is no other work."""
        if self._stage.busy:
            messages, _ = self._source.buffered()
            idle = self._open.full or not messages
            finished = self._stage.poll(timeout_seconds if idle else 0.0)
            if finished is not None:
                self._settle(*finished)

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


class BatchQueue:
    """Bounded: the pipeline asks :attr:`has_room` first. Any thread may call any method; each side is one thread.

    A safe batch is kept until the stage calls :meth:`give_back`, which it does when the database is busy with the next
    one or no other waits: to settle a batch is Python's work, and would hold up the next one on its way to the
    database."""

    def __init__(self, most_waiting: int = _MOST_WAITING) -> None:
        self._most_waiting = most_waiting
        self._changed = threading.Condition()
        self._waiting: deque[Batch] = deque()
        self._safe: list[tuple[Batch, Outcome]] = []  # not given back yet
        self._given_back: deque[tuple[Batch, Outcome]] = deque()
        self._error: BaseException | None = None
        self._held = 0  # submitted, and not yet returned by poll()
        self._is_closing = False
        self.is_hurrying = False  # the process wants to end: wait for nothing that the spool can hold

    # -- The pipeline's side.

    @property
    def busy(self) -> bool:
        """Batches were submitted that have not come back."""
        return self._held > 0

    @property
    def has_room(self) -> bool:
        """A batch may be submitted."""
        return len(self._waiting) < self._most_waiting

    def submit(self, batch: Batch) -> None:
        """Hand a batch to the stage. Never blocks."""
        with self._changed:
            assert self.has_room, f"{self._most_waiting} batches wait at most"
            self._held += 1
            self._waiting.append(batch)
            self._changed.notify_all()

    def poll(self, timeout_seconds: float) -> tuple[Batch, Outcome] | None:
        """The next batch that is safe, or None after ``timeout_seconds``. Raises the error that ended the stage."""
        with self._changed:
            if not self._given_back and self._error is None and timeout_seconds > 0:
                self._changed.wait(timeout_seconds)
                if not self._given_back:  # the next batch keeps the stage busy in other ways: wait no longer for it
                    self._hand_over()
            if self._error is not None:
                raise self._error
            if not self._given_back:
                return None
            self._held -= 1
            return self._given_back.popleft()

    def hurry(self) -> None:
        """The process wants to end; see :attr:`is_hurrying`."""
        with self._changed:
            self.is_hurrying = True
            self._changed.notify_all()

    def close(self) -> None:
        """No batch follows: :meth:`take` returns None once none waits."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()

    # -- The stage's side.

    @property
    def is_closed(self) -> bool:
        """No batch waits, and none follows."""
        return self._is_closing and not self._waiting

    @property
    def next_batch(self) -> Batch | None:
        """The batch that :meth:`take` would return; None if none waits."""
        with self._changed:
            return self._waiting[0] if self._waiting else None

    def take(self, timeout_seconds: float) -> Batch | None:
        """The oldest batch that waits; None if none came in ``timeout_seconds``, or none follows."""
        with self._changed:
            if not self._waiting and not self._is_closing and timeout_seconds > 0:
                self._changed.wait(timeout_seconds)
            return self._waiting.popleft() if self._waiting else None

    def put_safe(self, batch: Batch, outcome: Outcome) -> None:
        """``batch`` is safe, and may be settled after :meth:`give_back`."""
        with self._changed:
            self._safe.append((batch, outcome))

    def give_back(self) -> None:
        """Let the pipeline have what is safe."""
        with self._changed:
            self._hand_over()
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Wait before another try; cut short when the process wants to end."""
        self.give_back()
        with self._changed:
            if not self.is_hurrying:
                self._changed.wait_for(lambda: self.is_hurrying or self._is_closing, seconds)
            else:
                self._changed.wait(min(seconds, 0.2))

    def fail(self, error: BaseException) -> None:
        """The stage has ended: :meth:`poll` raises ``error`` from now on."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _hand_over(self) -> None:
        self._given_back.extend(self._safe)
        self._safe.clear()


class OpenBatch:
    """Deliveries collected for the next batch, and how far it is from its bounds."""

    def __init__(self, bounds: BatchSettings, now: float) -> None:
        self._bounds = bounds
        self.deliveries: list[Delivery] = []
        self._rows = 0
        self.bytes = 0
        self._since = 0.0
        self._cut_at = now  # the batch before this one
        # Of those that came last, so that a batch of arrays ends near its bound.
        self._rows_a_message = 1.0
        self._bytes_a_row = 0.0

    def add(self, deliveries: list[Delivery], now: float) -> None:
        """Put these behind what is here already. The batch owns the list from now on."""
        if not self.deliveries:
            self._since = now
            self.deliveries = deliveries
        else:
            self.deliveries += deliveries
        rows_before, bytes_before = self._rows, self.bytes
        self._rows += len(deliveries)
        for delivery in deliveries:
            payload = delivery[1]
            self.bytes += len(payload)
            if len(delivery[0]) > LONG_TOPIC_BYTES:
                self.bytes += len(delivery[0])
            if payload[:1] != b"{" and payload.lstrip(SPACE)[:1] == b"[":
                self._rows += _most_items(payload) - 1
        rows = self._rows - rows_before
        self._rows_a_message = max(rows / len(deliveries), 1.0)
        self._bytes_a_row = (self.bytes - bytes_before) / rows

    @property
    def full(self) -> bool:
        """A bound is reached."""
        return (
            self._rows >= self._most_rows
            or len(self.deliveries) >= self._bounds.max_messages
            or self.bytes >= self._bounds.max_bytes
        )

    def room(self) -> tuple[int, int]:
        """(messages, bytes) that still fit, if messages go on as they came."""
        messages = int((self._most_rows - self._rows) / self._rows_a_message)
        messages = min(messages, self._bounds.max_messages - len(self.deliveries))
        return max(messages, 1), self._bounds.max_bytes - self.bytes

    @property
    def _most_rows(self) -> float:
        """``max_rows``, or where readings are large fewer, down to half of it, so that two such batches fit into
        ``max_bytes``: then one is decoded while the other is written."""
        most, half = self._bounds.max_rows, self._bounds.max_rows / 2
        return min(most, max(half, self._bounds.max_bytes / 2 / self._bytes_a_row)) if self._bytes_a_row else most

    def due(self, now: float, stage_is_busy: bool) -> bool:
        """Whether to cut it now. A stage without work gets what there is, but not so often that the cost of a
        transaction counts; a busy one would only get smaller batches by it."""
        if not self.deliveries:
            return False
        return self.full or now >= (self._oldest_until if stage_is_busy else self._idle_until)

    def patience(self, now: float, timeout_seconds: float) -> float:
        """How long to wait for more while the stage has no work: not past the moment at which it is due."""
        if not self.deliveries:
            return timeout_seconds
        return min(timeout_seconds, max(self._idle_until - now, 0.0))

    @property
    def _oldest_until(self) -> float:
        return self._since + self._bounds.max_age_seconds

    @property
    def _idle_until(self) -> float:
        return min(self._oldest_until, self._cut_at + self._bounds.min_interval_seconds)

    def take(self, now: float) -> list[Delivery]:
        """Cut it: what it holds, and the next one begins."""
        deliveries = self.deliveries
        self.deliveries = []
        self._rows = self.bytes = 0
        self._cut_at = now
        return deliveries


def _most_items(payload: bytes) -> int:
    """About so many readings, each an object, and rejects (MOST_REJECTS at most) are made of an array.

    Between objects of f fields stand f - 1 commas and f colons (more, in timestamps), so commas that no colon explains
    stand between items that are no objects."""
    others = payload.count(b",") + 1 - payload.count(b":")
    return payload.count(b"{") + min(max(others, 0), MOST_REJECTS)
