"""The writer stage: decode, diagnose and write one batch, retry what is transient, spool what has to wait too long.

One batch is worked on at a time, and two may wait behind it. While the database reads the rows of a batch, its rules
are run and the next one is decoded; the other is there so that the next is there in time. That is one thread's work:
where another decoded, the two fought for the interpreter lock, and the database waited for both (decision 0001).

A batch comes back when it is safe: committed, or fsynced in the spool. While the spool holds anything, batches go
through it (first in, first out), and the stage drains it between them.

`Stage` is the logic and needs no thread; `ThreadedStage` (writer_thread.py) runs it.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from esp_ingest.config.settings import Settings
from esp_ingest.diagnostics.service import Diagnosis
from esp_ingest.ingest.batch import Batch, Outcome, needs_slices, slices
from esp_ingest.ingest.outage import Outage
from esp_ingest.interfaces import Clock, Findings, Refusal, Store, StoreUnavailable, WriteResult
from esp_ingest.model import Arrival, Decoded, Delivery, Readings, Reject, RejectReason
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import Metrics
from esp_ingest.store.spool.spool import Spool, SpoolError, SpoolFull

log = logging.getLogger(__name__)
T = TypeVar("T")

_PING_SECONDS = 5.0  # an idle stage asks this often whether the database is still there
_FINISH_SECONDS = 5.0  # for the last checkpoints; what is missing is replayed from the table at the next start


class Diagnostics(Protocol):
    """diagnostics/service.py as the stage drives it. An error of any method costs no reading."""

    def prepare(self, wells: Sequence[str] = ()) -> None: ...
    def evaluate(self, readings: Readings) -> Diagnosis: ...
    def accept(self, diagnosis: Diagnosis, refusal: Refusal | None = None) -> None: ...
    def discard(self, diagnosis: Diagnosis) -> None: ...
    def maintain(self) -> Diagnosis | None:
        """Between batches, while nothing is in the spool: what there is to write, every few seconds."""
        ...

    def try_again(self) -> None: ...
    def finish(self) -> Iterator[Diagnosis]:
        """What is left to write at the end of the process, in pieces."""
        ...


class Stage:
    """All waiting for the database is in here; ``pause`` is how it waits (it returns early when a batch arrives).
    ``next_batch`` is asked while the database is busy: the one that waits, if one does."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        spool: Spool | None,
        diagnostics: Diagnostics | None,
        decode: Callable[[list[Delivery]], Decoded],
        clock: Clock,
        metrics: Metrics,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._spool = spool
        self._diagnostics = diagnostics
        self._decode = decode
        self._clock = clock
        self._metrics = metrics
        self._beat = beat
        self.pause: Callable[[float], None] = clock.sleep
        self.next_batch: Callable[[], Batch | None] = lambda: None
        self.hurrying = False
        self._underway_bytes = 0
        self._wait = wait_random_exponential(
            multiplier=settings.database.retry_min_seconds,
            min=settings.database.retry_min_seconds / 2,
            max=settings.database.retry_max_seconds,
        )
        self._outage = Outage(self._wait, clock, metrics)
        self._spool_log = Repeated(log, "spool takes nothing, acknowledgements stop", "spool takes messages again")
        self._rules_log = Repeated(log, "diagnostics fail between batches", "diagnostics work between batches again")
        self.spool_detail: str | None = None  # why the spool takes nothing just now
        self._next_ping = 0.0
        self._meanwhile_seconds = 0.0  # of this write, for the rules and the next batch while the database read
        if spool is not None and spool.messages:
            log.info("spool holds messages of an earlier run", extra={"messages": spool.messages, "bytes": spool.bytes})

    @property
    def spooling(self) -> bool:
        """The spool holds something: first in, first out, so everything goes through it."""
        return self._spool is not None and self._spool.messages > 0

    @property
    def database_detail(self) -> str | None:
        """Why the database cannot be used just now; None where it can."""
        return self._outage.reason

    def process(self, batch: Batch) -> Outcome:
        """Make the batch safe. Returns when it is, however long that takes."""
        self._underway_bytes = batch.bytes
        if not self.spooling:
            self._decode_batch(batch)
        spool_takes_it = self._spool is not None
        while True:
            self._beat()
            is_patient = not self._outage.lasting(self._patience_seconds())
            if not self.spooling and (is_patient or not spool_takes_it):
                try:
                    return self._write_patiently(batch)
                except StoreUnavailable:
                    pass  # the patience is over: to the spool
            spooled = self._append(batch.deliveries)
            if spooled is not None:
                if batch.decoded is not None:
                    self._metrics.readings_spooled.inc(batch.decoded.items - batch.done.stored)
                return spooled
            spool_takes_it = False
            self._drain_and_pause()

    def idle(self) -> float:
        """Between batches: drain a piece of the spool, or see whether the database is there. Returns how long the next
        call may wait, in seconds."""
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
        return min(max(self._next_ping - now, 0.05), 1.0)

    def maintain(self) -> None:
        """What the diagnostics do between batches. Silence means nothing while readings wait in the spool."""
        if self._diagnostics is None or self.spooling or self._outage.reason is not None:
            return
        try:
            diagnosis = self._diagnostics.maintain()
            if diagnosis is not None:
                self._write_diagnosis(self._diagnostics, diagnosis)
        except StoreUnavailable as error:
            self._outage.failed(error)
        except Exception as error:  # they advise; they never stop the writer
            self._metrics.diagnostics_rule_failures.labels(diagnosis="engine").inc()
            self._rules_log.failed(self._clock.monotonic(), type(error).__name__, detail=str(error))
        else:
            self._rules_log.ended(self._clock.monotonic())

    def finish(self) -> None:
        """The last checkpoints of the diagnostics. Not having them costs the next start a replay, and nothing else."""
        if self._diagnostics is None or self._outage.reason is not None:
            return
        deadline = self._clock.monotonic() + _FINISH_SECONDS
        try:
            for diagnosis in self._diagnostics.finish():
                self._write_diagnosis(self._diagnostics, diagnosis)
                self._beat()
                if self._clock.monotonic() >= deadline:
                    break
        except StoreUnavailable as error:
            log.warning("last checkpoints not written", extra={"reason": str(error)})
        except Exception:
            log.exception("last checkpoints not written")

    def drain_step(self) -> None:
        """Write the oldest piece of the spool, if the database is due for another try."""
        if self._spool is None or not self._outage.due():
            return
        bounds = self._settings.batch
        try:
            piece = self._spool.peek(bounds.max_rows, bounds.max_bytes)
            if piece.deliveries:
                self._store_isolating(piece.deliveries, None, Outcome())
            self._spool.discard(piece)
            self._metrics.spool_drained.inc(len(piece))
        except StoreUnavailable as error:
            self._outage.failed(error)
        except SpoolError as error:
            self._metrics.spool_failures.inc()
            self._outage.failed(StoreUnavailable("the spool cannot be read", str(error)))
        self._note_spool()
        if not self.spooling:
            log.info("spool drained")

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

    def _look_ahead(self) -> None:
        """The database is busy with a batch: time to make the next one ready for it. Does not raise."""
        batch = self.next_batch()
        if batch is None or self.spooling:
            return
        if self._underway_bytes + batch.bytes > self._settings.batch.max_bytes:
            return  # what decoding takes is many times the payload: two large batches at once are too much
        self._decode_batch(batch)
        if batch.decoded is not None and not needs_slices(batch.decoded, self._settings.batch.max_rows):
            try:
                self._store.prepare(batch.decoded.readings)
            except Exception:  # it comes again when it is written, and is isolated there
                log.exception("batch not prepared")

    def _patience_seconds(self) -> float:
        """How long a batch may wait for the database before it is spooled."""
        if self._spool is None:
            return float("inf")
        return 0.0 if self.hurrying else self._settings.spool.after_seconds

    def _write_patiently(self, batch: Batch) -> Outcome:
        """Write, again and again while the database is away. Raises StoreUnavailable when the patience is over."""

        def give_up(_state: RetryCallState) -> bool:
            return self._outage.lasting(self._patience_seconds())

        for attempt in Retrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=self._wait,
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
        self.pause(seconds)

    def _append(self, deliveries: list[Delivery]) -> Outcome | None:
        """Spool the messages; None where the spool cannot take them now."""
        assert self._spool is not None
        was_empty = not self.spooling
        try:
            self._spool.append(deliveries)
        except SpoolError as error:
            self._metrics.spool_full.set(1)
            if not isinstance(error, SpoolFull):
                self._metrics.spool_failures.inc()
            self.spool_detail = str(error)
            self._spool_log.failed(self._clock.monotonic(), "spool takes nothing", detail=str(error))
            return None
        self._metrics.spool_full.set(0)
        self._metrics.spool_written.inc(len(deliveries))
        self.spool_detail = None
        self._spool_log.ended(self._clock.monotonic())
        self._note_spool()
        if was_empty:
            log.warning("database away, spooling to disk", extra={"reason": self._outage.reason})
        return Outcome(spooled=len(deliveries))

    def _drain_and_pause(self) -> None:
        """The spool takes nothing more: only the database can make room."""
        if self.spooling:
            self.drain_step()
        if self._outage.reason is not None:
            self._pause_alive(min(self._outage.seconds_to_next(), 1.0))

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

    def _store_once(self, decoded: Decoded, arrival: Arrival) -> Outcome:
        """One transaction: readings, rejects and what the rules made of the readings."""
        started = self._clock.monotonic()
        self._meanwhile_seconds = 0.0
        result = self._write_batch(decoded, arrival)
        self._outage.ended()
        settled = result.written + result.duplicates + result.rejected
        if settled != decoded.items:
            self._metrics.reconciliation_failures.inc()
            log.error("items do not add up", extra={"items": decoded.items, "accounted": settled})
        self._count(decoded, result, self._clock.monotonic() - started - self._meanwhile_seconds)
        return Outcome(result.written, result.duplicates, result.rejected, 0, [decoded.readings])

    def _write_batch(self, decoded: Decoded, arrival: Arrival) -> WriteResult:
        """The transaction of a batch. The rules run in the middle of it, while the database reads; their state advances
        with it or stays where it was."""
        diagnostics, readings = self._diagnostics, decoded.readings
        made: Diagnosis | None = None
        if diagnostics is not None and self._outage.reason is not None:
            self._store.ping()  # if the database is away, the diagnostics need not find out
            diagnostics.try_again()
        ready = diagnostics is not None and self._advised(lambda: self._prepare(diagnostics, readings))

        def meanwhile() -> Findings:
            nonlocal made
            begun = self._clock.monotonic()
            if diagnostics is not None and ready:
                made = self._advised(lambda: diagnostics.evaluate(readings))
            self._look_ahead()
            self._meanwhile_seconds = self._clock.monotonic() - begun
            return ((), ()) if made is None else (made.rows, made.checkpoints)

        try:
            result = self._store.write(readings, decoded.rejects, (), meanwhile=meanwhile, arrival=arrival)
        except BaseException:
            if diagnostics is not None and made is not None:
                diagnostics.discard(made)
            raise
        if diagnostics is not None and made is not None:
            diagnostics.accept(made, result.refusal)
        return result

    @staticmethod
    def _prepare(diagnostics: Diagnostics, readings: Readings) -> bool:
        diagnostics.prepare(readings.wells)
        return True

    def _write_diagnosis(self, diagnostics: Diagnostics, diagnosis: Diagnosis) -> None:
        """A transaction without readings."""
        try:
            result = self._store.write(Readings.empty(), (), diagnosis.rows, diagnosis.checkpoints)
        except BaseException:
            diagnostics.discard(diagnosis)
            raise
        diagnostics.accept(diagnosis, result.refusal)

    def _advised(self, ask: Callable[[], T]) -> T | None:
        """Diagnostics advise; they never hold back a reading: None where they fail. StoreUnavailable passes: it may be
        an outage of the database."""
        try:
            return ask()
        except StoreUnavailable:
            raise
        except Exception:
            log.exception("diagnostics failed on a batch, its readings are stored without")
            self._metrics.diagnostics_rule_failures.labels(diagnosis="engine").inc()
            return None

    def _count(self, decoded: Decoded, result: WriteResult, seconds: float) -> None:
        metrics = self._metrics
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

    def _ping(self) -> None:
        try:
            self._store.ping()
        except StoreUnavailable as error:
            self._outage.failed(error)
        else:
            self._outage.ended()

    def _note_spool(self) -> None:
        assert self._spool is not None
        self._metrics.spool_messages.set(self._spool.messages)
        self._metrics.spool_bytes.set(self._spool.bytes)
        oldest_us = self._spool.oldest_us
        age_us = 0 if oldest_us is None else self._clock.now_us() - oldest_us
        self._metrics.spool_oldest_seconds.set(max(age_us, 0) / 1e6)


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
