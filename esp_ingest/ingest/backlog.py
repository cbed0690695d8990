"""The spool as the writer stage uses it: with logs and metrics, and with an append that reports failure instead of
raising."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from esp_ingest.interfaces import Clock, StoreUnavailable
from esp_ingest.model import Delivery
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import Metrics
from esp_ingest.store.spool.spool import Spool, SpoolBatch, SpoolError, SpoolFull

log = logging.getLogger(__name__)


class Backlog:
    """A queue on disk, first in, first out: while it holds messages, all new messages go through it too. Without a
    spool it is always empty and takes nothing."""

    def __init__(self, spool: Spool | None, clock: Clock, metrics: Metrics) -> None:
        self._spool = spool
        self._clock = clock
        self._metrics = metrics
        self._log = Repeated(log, "spool takes nothing, acknowledgements stop", "spool takes messages again")
        self.detail: str | None = None  # why the spool takes nothing just now
        if spool is not None and spool.messages:
            log.info("spool holds messages of an earlier run", extra={"messages": spool.messages, "bytes": spool.bytes})

    @property
    def exists(self) -> bool:
        """Whether there is a spool."""
        return self._spool is not None

    @property
    def waits(self) -> bool:
        """Whether the spool holds messages that are not stored in the database yet."""
        return self._spool is not None and self._spool.messages > 0

    def append(self, deliveries: list[Delivery], reason: str | None) -> bool:
        """Append the messages; they are safe on disk when this returns True. Blocks while the disk writes.
        ``reason``: why the database cannot take them, for the log. Returns False if the spool cannot take them now."""
        assert self._spool is not None
        was_empty = not self.waits
        try:
            self._spool.append(deliveries)
        except SpoolError as error:
            self._metrics.spool_full.set(1)
            if not isinstance(error, SpoolFull):
                self._metrics.spool_failures.inc()
            self.detail = str(error)
            self._log.failed(self._clock.monotonic(), "spool takes nothing", detail=str(error))
            return False
        self._metrics.spool_full.set(0)
        self._metrics.spool_written.inc(len(deliveries))
        self.detail = None
        self._log.ended(self._clock.monotonic())
        self._note()
        if was_empty:
            log.warning("database away, spooling to disk", extra={"reason": reason})
        return True

    def oldest(self, max_messages: int, max_bytes: int) -> SpoolBatch:
        """The oldest messages within both bounds, at least one. Raises StoreUnavailable if they cannot be read now."""
        assert self._spool is not None
        with self._readable():
            return self._spool.peek(max_messages, max_bytes)

    def discard(self, piece: SpoolBatch) -> None:
        """Remove ``piece``, which is stored in the database. Raises StoreUnavailable if this cannot be recorded;
        then the same messages come again."""
        assert self._spool is not None
        with self._readable():
            self._spool.discard(piece)
        self._metrics.spool_drained.inc(len(piece))

    def after_drain(self) -> None:
        """Bring the gauges up to date, and log when nothing waits any more."""
        self._note()
        if not self.waits:
            log.info("spool drained")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except SpoolError as error:
            self._metrics.spool_failures.inc()
            raise StoreUnavailable("the spool cannot be read", str(error)) from None

    def _note(self) -> None:
        assert self._spool is not None
        self._metrics.spool_messages.set(self._spool.messages)
        self._metrics.spool_bytes.set(self._spool.bytes)
        oldest_us = self._spool.oldest_us
        age_us = 0 if oldest_us is None else self._clock.now_us() - oldest_us
        self._metrics.spool_oldest_seconds.set(max(age_us, 0) / 1e6)
