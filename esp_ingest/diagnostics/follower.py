"""The rules of a share group: one daemon of it, the leader, follows the table (decision 0009).

Members receive a well's readings in turns, so none of them sees a well whole. The table does: the leader reads what was
received a few seconds ago, in the order received, evaluates it, and writes results, checkpoints and its place in one
transaction. Its place is also the fence: who finds that another has moved it, lets go.
"""

import logging
from collections.abc import Callable

from esp_ingest.diagnostics.language.rules import RulesError
from esp_ingest.diagnostics.service import Diagnosis, DiagnosticsService
from esp_ingest.interfaces import Clock, Feed, Store, StoreUnavailable
from esp_ingest.model import Readings
from esp_ingest.service.background import Background
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import Metrics

log = logging.getLogger(__name__)

LAG_US = 5_000_000  # what members commit later than this after receiving it (from their spools) is never evaluated
_MOST_READINGS = 10_000
_LOOK_SECONDS = 0.5
_STAND_BY_SECONDS = 2.0  # how often one that does not lead asks whether it may


class Follower:
    """Leads when it can. ``build`` makes diagnostics that replay up to a received time; ``store`` is for this thread
    alone, as the feed is."""

    def __init__(
        self,
        build: Callable[[Callable[[], int | None]], DiagnosticsService],
        store: Store,
        feed: Feed,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._build = build
        self._store = store
        self._feed = feed
        self._clock = clock
        self._metrics = metrics
        self._service: DiagnosticsService | None = None  # there while this one leads
        self._cursor_us = 0
        self._trouble = Repeated(log, "diagnostics cannot follow the table", "diagnostics follow the table again")
        self._thread = Background("follower", self._guarded, self._end, clock)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """Write the last checkpoints and let go, so that another member goes on at once."""
        self._thread.stop(timeout_seconds)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.alive

    @property
    def leads(self) -> bool:
        """Whether this daemon runs the rules for its share group."""
        return self._service is not None

    def ask_reload(self) -> None:
        """From any thread. One that does not lead reads the rules when it begins to."""
        service = self._service
        if service is not None:
            service.ask_reload()

    def run_once(self) -> float:
        """Evaluate what there is. Returns how long to wait before the next look, in seconds."""
        now = self._clock.monotonic()
        try:
            wait_seconds = self._follow()
        except StoreUnavailable as error:
            self._trouble.failed(now, error.reason, detail=error.detail)
            self._let_go()
            return _STAND_BY_SECONDS
        self._trouble.ended(now)
        return wait_seconds

    def _follow(self) -> float:
        service = self._service or self._take_the_lead()
        if service is None:
            return _STAND_BY_SECONDS
        readings = self._feed.received(self._cursor_us, self._clock.now_us() - LAG_US, _MOST_READINGS)
        if not len(readings):
            self._metrics.diagnostics_behind_seconds.set(LAG_US / 1e6)
            self._maintain(service)
            return _LOOK_SECONDS
        service.prepare(readings.wells)
        to_us = int(readings.received_us[-1])
        try:
            diagnosis = service.evaluate(readings)
        except Exception:  # as in the stage: what the rules cannot digest must not stop them for ever
            log.exception("diagnostics failed on a batch, which is passed over")
            self._metrics.diagnostics_rule_failures.labels(diagnosis="engine").inc()
            self._store.write(Readings.empty(), (), (), (), (self._cursor_us, to_us))
        else:
            self._write(service, diagnosis, to_us)
        self._cursor_us = to_us
        self._metrics.diagnostics_behind_seconds.set(self._behind_seconds())
        return 0.0 if len(readings) >= _MOST_READINGS else _LOOK_SECONDS

    def _write(self, service: DiagnosticsService, diagnosis: Diagnosis, to_us: int) -> None:
        try:
            self._store.write(
                Readings.empty(), (), diagnosis.rows, diagnosis.checkpoints, cursor_us=(self._cursor_us, to_us)
            )
        except BaseException:
            service.discard(diagnosis)
            raise
        service.accept(diagnosis)

    def _take_the_lead(self) -> DiagnosticsService | None:
        if not self._feed.lead():
            return None
        self._cursor_us = self._feed.cursor(self._clock.now_us() - LAG_US)
        try:
            service = self._build(lambda: self._cursor_us)
        except RulesError as error:  # the file was fine when the daemon started
            raise StoreUnavailable("the rules cannot be used", str(error)) from None
        log.info("diagnostics lead the share group", extra={"behind_seconds": self._behind_seconds()})
        self._metrics.diagnostics_running.set(1)
        self._service = service
        return service

    def _behind_seconds(self) -> float:
        return max(self._clock.now_us() - self._cursor_us, 0) / 1e6

    def _maintain(self, service: DiagnosticsService) -> None:
        diagnosis = service.maintain()
        if diagnosis is not None:
            self._write(service, diagnosis, self._cursor_us)

    def _let_go(self) -> None:
        """Another may lead now; what this one remembers is in the checkpoints and the table."""
        service, self._service = self._service, None
        self._metrics.diagnostics_running.set(0)
        self._feed.close()
        if service is not None:
            service.close()

    def _end(self) -> None:
        self._finish()
        self._store.close()

    def _guarded(self) -> float:
        try:
            return self.run_once()
        except Exception:  # a mistake of ours must not end it for good; the next try begins from the checkpoints
            log.exception("diagnostics failed on what they follow")
            self._metrics.diagnostics_rule_failures.labels(diagnosis="engine").inc()
            self._let_go()
            return _STAND_BY_SECONDS

    def _finish(self) -> None:
        service = self._service
        try:
            if service is not None:
                for diagnosis in service.finish():
                    self._write(service, diagnosis, self._cursor_us)
        except StoreUnavailable as error:
            log.warning("last checkpoints not written", extra={"reason": str(error)})
        finally:
            self._let_go()
