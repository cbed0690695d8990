"""The writer stage: decode, diagnose and write one batch, retry what is transient, spool what has to wait too long.

One batch is worked on at a time, and a few may wait behind it (pipeline.py). While the database reads the rows of a
batch, its rules are run and the next one is decoded. That is one thread's work: if another decoded, the two would fight
for the interpreter lock, and the database would wait for both (decision 0001).

A batch comes back when it is safe: committed, or fsynced in the spool. While the spool holds anything, batches go
through it (first in, first out), and the stage drains it between them.

`Stage` is the logic and needs no thread; writer_thread.py runs it.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tenacity import RetryCallState, Retrying, retry_if_exception_type

from esp_ingest.config.settings import Settings
from esp_ingest.diagnostics.service import Diagnosis, DiagnosticsService
from esp_ingest.ingest.backlog import Backlog
from esp_ingest.ingest.batch import Batch, Outcome, needs_slices, slices
from esp_ingest.ingest.outage import Outage
from esp_ingest.ingest.pipeline import BatchQueue
from esp_ingest.interfaces import Clock, Refusal, Store, StoreUnavailable, WriteResult
from esp_ingest.model import Arrival, Checkpoint, Decoded, Delivery, DiagnosticRow, Readings, Reject, RejectReason
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import Metrics
from esp_ingest.store.spool.spool import Spool

log = logging.getLogger(__name__)

_FINISH_SECONDS = 5.0  # for the last checkpoints; what is missing is replayed from the table at the next start
_DRAIN_STEPS = 2  # pieces of the spool drained for each batch that arrives
_PING_SECONDS = 5.0  # an idle stage asks this often whether the database is still there


class Stage:
    """Makes batches safe. All waiting for the database is in here; ``queue`` is how it waits, where what is safe goes
    back, and where the next batch is looked for."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        spool: Spool | None,
        diagnostics: DiagnosticsService | None,
        decode: Callable[[list[Delivery]], Decoded],
        clock: Clock,
        metrics: Metrics,
        queue: BatchQueue,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._decode = decode
        self._clock = clock
        self._metrics = metrics
        self._queue = queue
        self._beat = beat
        self._backlog = Backlog(spool, clock, metrics)
        self._rules = Rules(diagnostics, store, clock, metrics, beat)
        self._underway_bytes = 0
        self._outage = Outage(settings.database, clock, metrics)
        self._next_ping = 0.0

    @property
    def spooling(self) -> bool:
        """The spool holds something: first in, first out, so everything goes through it."""
        return self._backlog.waits

    @property
    def spool_detail(self) -> str | None:
        """Why the spool takes nothing just now; None if it does, or was not asked."""
        return self._backlog.detail

    @property
    def database_detail(self) -> str | None:
        """Why the database cannot be used just now; None if it can."""
        return self._outage.reason

    # -- A batch.

    def process(self, batch: Batch) -> Outcome:
        """Make the batch safe. Returns when it is, however long that takes."""
        self._underway_bytes = batch.bytes
        if not self.spooling:
            self._decode_batch(batch)
        spool_takes_it = self._backlog.exists
        while True:
            self._beat()
            is_patient = not self._outage.lasting(self._patience_seconds())
            if not self.spooling and (is_patient or not spool_takes_it):
                try:
                    return self._write_patiently(batch)
                except StoreUnavailable:
                    pass  # waited long enough: spool it
            if self._backlog.append(batch.deliveries, self._outage.reason):
                if batch.decoded is not None:
                    self._metrics.readings_spooled.inc(batch.decoded.items - batch.done.stored)
                return Outcome(spooled=len(batch.deliveries))
            spool_takes_it = False
            self._drain_and_pause()

    def _store_once(self, decoded: Decoded, arrival: Arrival) -> Outcome:
        """The middle of the walk: readings, rejects and what the rules made of the readings, in one transaction. What
        stands between ``begin`` and ``finish`` goes on while the database reads the rows."""
        readings = decoded.readings
        started = self._clock.monotonic()
        self._rules.prepare(readings, is_after_outage=self._outage.reason is not None)
        made: Diagnosis | None = None
        try:
            with self._store.begin(readings, decoded.rejects, arrival) as write:
                sent = self._clock.monotonic()
                made = self._rules.evaluate(readings)
                self._queue.give_back()  # the batch before this one: the pipeline acknowledges it
                self._decode_next()
                resumed = self._clock.monotonic()
                result = write.finish(*findings_of(made))
        except BaseException:
            self._rules.discard(made)
            raise
        self._rules.accept(made, result.refusal)
        self._outage.ended()
        self._count(decoded, result, self._clock.monotonic() - resumed + sent - started)
        return Outcome(result.written, result.duplicates, result.rejected, 0, [readings])

    def _decode_next(self) -> None:
        """Make the batch that waits ready for the database. A fault of it is not the fault of the one that is being
        written: it shows again when its own turn comes, and is isolated there."""
        batch = self._queue.next_batch
        if batch is None or self.spooling:
            return
        if self._underway_bytes + batch.bytes > self._settings.batch.max_bytes:
            return  # what decoding takes is many times the payload: two large batches at once are too much
        self._decode_batch(batch)
        if batch.decoded is not None and not needs_slices(batch.decoded, self._settings.batch.max_rows):
            try:
                self._store.prepare(batch.decoded.readings)
            except Exception:
                log.exception("batch not prepared")

    def _decode_batch(self, batch: Batch) -> None:
        """Once a batch, unless our own code fails on it: then the message at fault is looked for when it is stored."""
        if batch.decoded is not None or batch.decode_failed:
            return
        try:
            decoded = self._decode(batch.deliveries)
        except Exception:  # one message must not stop the rest
            batch.decode_failed = True
            log.exception("decode failed")
            return
        self._metrics.readings_received.inc(decoded.items)
        self._metrics.readings_held.inc(decoded.items)
        batch.decoded = decoded

    # -- A batch that the database does not take, or on which our own code fails.

    def _patience_seconds(self) -> float:
        """How long a batch may wait for the database before it is spooled."""
        if not self._backlog.exists:
            return float("inf")
        return 0.0 if self._queue.is_hurrying else self._settings.spool.after_seconds

    def _write_patiently(self, batch: Batch) -> Outcome:
        """Write, again and again while the database is away. Raises StoreUnavailable when it has waited long enough."""

        def give_up(_state: RetryCallState) -> bool:
            return self._outage.lasting(self._patience_seconds())

        for attempt in Retrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=lambda _: self._outage.seconds_to_next(),
            stop=give_up,
            sleep=self._pause_alive,
            reraise=True,
        ):
            with attempt:
                try:
                    return self._store_isolating(batch.deliveries, batch.decoded, batch.done)
                except StoreUnavailable as error:
                    self._outage.failed(error)
                    raise
        raise AssertionError("tenacity returns or raises")

    def _pause_alive(self, seconds: float) -> None:
        self._beat()
        self._queue.pause(seconds)

    def _store_isolating(self, deliveries: Sequence[Delivery], decoded: Decoded | None, done: Outcome) -> Outcome:
        """Store; where our own code fails on a batch, halve it until the one message at fault is a reject.

        ``decoded`` was counted as received where it was decoded. What is decoded here is counted here, once it is
        stored: a try that the database cut short is made again, and would count it again. ``done`` is what an earlier
        try has stored of ``decoded``, and grows."""
        try:
            result = decoded if decoded is not None else self._decode(list(deliveries))
            arrival = Arrival(deliveries[-1].connection, 0 if done.stored else len(deliveries))
            for piece in slices(result, self._settings.batch.max_rows, done.stored):
                self._beat()
                done += self._store_once(piece, arrival)
                arrival = arrival._replace(messages=0)
                if decoded is None:
                    self._metrics.readings_received.inc(piece.items)
            return done
        except StoreUnavailable:
            raise
        except Exception as error:
            log.exception("batch failed in our own code", extra={"messages": len(deliveries)})
            outcome = self._store_halves(deliveries, error)
        if decoded is not None:
            self._metrics.readings_spooled.inc(decoded.items - done.stored)  # left this count, were received again
        return outcome

    def _store_halves(self, deliveries: Sequence[Delivery], error: Exception) -> Outcome:
        """After ``error`` on all of them at once; the last one alone is a reject."""
        if len(deliveries) == 1:
            decoded = Decoded(Readings.empty(), [_internal_error(deliveries[0], error)])
            outcome = self._store_once(decoded, Arrival(deliveries[0].connection, 1))
            self._metrics.readings_received.inc()
            return outcome
        half = len(deliveries) // 2
        outcome = self._store_isolating(deliveries[:half], None, Outcome())
        outcome += self._store_isolating(deliveries[half:], None, Outcome())
        return outcome

    # -- Between batches.

    def after_batch(self) -> None:
        """Drain some pieces of the spool, so that it shrinks even at full load, and do what the diagnostics do between
        batches."""
        for _ in range(_DRAIN_STEPS):
            if self.spooling:
                self.drain_step()
        self.maintain()

    def idle(self) -> float:
        """Drain a piece of the spool, or see whether the database is there. Returns how long the next call may wait, in
        seconds."""
        self._beat()
        if self.spooling:
            self.drain_step()
            return 0.0 if self.spooling and self._outage.reason is None else self._outage.seconds_to_next()
        now = self._clock.monotonic()
        if now >= self._next_ping and self._outage.due():
            self._next_ping = now + _PING_SECONDS
            self._ping()
        self._store.idle()
        self.maintain()
        return min(max(self._next_ping - now, self._outage.seconds_to_next(), 0.05), 1.0)

    def maintain(self) -> None:
        """What the diagnostics do between batches. Silence means nothing while readings wait in the spool."""
        if self.spooling or self._outage.reason is not None:
            return
        try:
            self._rules.maintain()
        except StoreUnavailable as error:
            self._outage.failed(error)

    def finish(self) -> None:
        """The last checkpoints of the diagnostics, unless the database is away."""
        if self._outage.reason is None:
            self._rules.finish()

    def drain_step(self) -> None:
        """Write the oldest piece of the spool, if the database is due for another try."""
        if not (self._backlog.exists and self._outage.due()):
            return
        bounds = self._settings.batch
        try:
            piece = self._backlog.oldest(min(bounds.max_rows, bounds.max_messages), bounds.max_bytes)
            if piece.deliveries:
                self._store_isolating(piece.deliveries, None, Outcome())
            self._backlog.discard(piece)
        except StoreUnavailable as error:
            self._outage.failed(error)
        self._backlog.after_drain()

    def _drain_and_pause(self) -> None:
        """The spool takes nothing more: only the database can make room."""
        if self.spooling:
            self.drain_step()
        if self._outage.reason is not None:
            self._pause_alive(min(self._outage.seconds_to_next(), 1.0))

    def _ping(self) -> None:
        try:
            self._store.ping()
        except StoreUnavailable as error:
            self._outage.failed(error)
        else:
            self._outage.ended()

    def _count(self, decoded: Decoded, result: WriteResult, seconds: float) -> None:
        metrics = self._metrics
        settled = result.written + result.duplicates + result.rejected
        if settled != decoded.items:
            metrics.reconciliation_failures.inc()
            log.error("items do not add up", extra={"items": decoded.items, "accounted": settled})
        metrics.readings_written.inc(result.written)
        metrics.readings_duplicate.inc(result.duplicates)
        for reason, count in result.reasons.items():
            metrics.readings_rejected.labels(reason=reason).inc(count)
        metrics.batches_written.labels(path=result.path).inc()
        for signal, count in decoded.out_of_range.items():
            metrics.values_out_of_range.labels(signal=signal).inc(count)
        for (signal, kind), count in decoded.unusable.items():
            metrics.values_unusable.labels(signal=signal, kind=kind.value).inc(count)
        metrics.batch_rows.observe(decoded.items)
        metrics.batch_write_seconds.observe(seconds)


def _internal_error(delivery: Delivery, error: Exception) -> Reject:
    return Reject(
        received_us=delivery.received_us,
        topic=delivery.topic,
        reason=RejectReason.INTERNAL_ERROR,
        detail=f"esp-ingest failed on this message ({type(error).__name__}): replay it after an upgrade",
        payload=delivery.payload,
        redelivered=delivery.redelivered,
        connection=delivery.connection,
        packet_id=delivery.packet_id,
    )


class Rules:
    """Runs the rules beside the writes of the stage, if there are any. Whatever they do wrong costs no reading.
    Their state advances with the transaction that stores the readings, or stays as it was: :meth:`accept` or
    :meth:`discard` follows each :meth:`evaluate`."""

    def __init__(
        self,
        diagnostics: DiagnosticsService | None,
        store: Store,
        clock: Clock,
        metrics: Metrics,
        beat: Callable[[], None],
    ) -> None:
        self._diagnostics = diagnostics
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._beat = beat
        self._is_ready = False  # for the readings that come
        self._log = Repeated(log, "diagnostics fail between batches", "diagnostics work between batches again")

    def prepare(self, readings: Readings, *, is_after_outage: bool) -> None:
        """Everything that has to be known before these readings. ``is_after_outage``: the database was away, so it is
        asked first, and the diagnostics need not find out. Raises StoreUnavailable if it may be away now."""
        self._is_ready = False
        diagnostics = self._diagnostics
        if diagnostics is None:
            return
        if is_after_outage:
            self._store.ping()
            diagnostics.try_again()
        with self._costing_no_reading():
            diagnostics.prepare(readings.wells)
            self._is_ready = True

    def evaluate(self, readings: Readings) -> Diagnosis | None:
        """Run the rules; None if there are none, or if they failed. Raises StoreUnavailable."""
        if self._diagnostics is not None and self._is_ready:
            with self._costing_no_reading():
                return self._diagnostics.evaluate(readings)
        return None

    def accept(self, diagnosis: Diagnosis | None, refusal: Refusal | None) -> None:
        """The readings are stored, and so is ``diagnosis`` but for ``refusal``."""
        if self._diagnostics is not None and diagnosis is not None:
            self._diagnostics.accept(diagnosis, refusal)

    def discard(self, diagnosis: Diagnosis | None) -> None:
        """Nothing of it was stored."""
        if self._diagnostics is not None and diagnosis is not None:
            self._diagnostics.discard(diagnosis)

    def maintain(self) -> None:
        """What the diagnostics do between batches. Raises StoreUnavailable."""
        if self._diagnostics is None:
            return
        try:
            diagnosis = self._diagnostics.maintain()
            if diagnosis is not None:
                self._write(diagnosis)
        except StoreUnavailable:
            raise
        except Exception as error:  # they never stop the writer
            self._metrics.diagnostics_rule_failures.labels(diagnosis="engine").inc()
            self._log.failed(self._clock.monotonic(), type(error).__name__, detail=str(error))
        else:
            self._log.ended(self._clock.monotonic())

    def finish(self) -> None:
        """The last checkpoints. Not having them costs the next start a replay, and nothing else. Raises nothing."""
        if self._diagnostics is None:
            return
        deadline = self._clock.monotonic() + _FINISH_SECONDS
        try:
            for diagnosis in self._diagnostics.finish():
                self._write(diagnosis)
                self._beat()
                if self._clock.monotonic() >= deadline:
                    break
        except StoreUnavailable as error:
            log.warning("last checkpoints not written", extra={"reason": str(error)})
        except Exception:
            log.exception("last checkpoints not written")

    def _write(self, diagnosis: Diagnosis) -> None:
        """A transaction without readings."""
        try:
            result = self._store.write(Readings.empty(), (), diagnosis.rows, diagnosis.checkpoints)
        except BaseException:
            self.discard(diagnosis)
            raise
        self.accept(diagnosis, result.refusal)

    @contextmanager
    def _costing_no_reading(self) -> Iterator[None]:
        """Log and count an error of our own code. StoreUnavailable passes: it may be an outage of the database."""
        try:
            yield
        except StoreUnavailable:
            raise
        except Exception:
            log.exception("diagnostics failed on a batch, its readings are stored without")
            self._metrics.diagnostics_rule_failures.labels(diagnosis="engine").inc()


def findings_of(diagnosis: Diagnosis | None) -> tuple[Sequence[DiagnosticRow], Sequence[Checkpoint]]:
    """What of it is to be stored."""
    return ((), ()) if diagnosis is None else (diagnosis.rows, diagnosis.checkpoints)
