"""The rules beside the writes of the writer stage: they advise, and whatever they do wrong costs no reading."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from esp_ingest.diagnostics.service import Diagnosis, DiagnosticsService
from esp_ingest.interfaces import Clock, Refusal, Store, StoreUnavailable
from esp_ingest.model import Checkpoint, DiagnosticRow, Readings
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import Metrics

log = logging.getLogger(__name__)

_FINISH_SECONDS = 5.0  # for the last checkpoints; what is missing is replayed from the table at the next start


class Diagnosing:
    """Runs ``diagnostics`` for the stage, if there are any. Their state advances with the transaction that stores the
    readings, or stays where it was: :meth:`accept` or :meth:`discard` follows each :meth:`evaluate`."""

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
