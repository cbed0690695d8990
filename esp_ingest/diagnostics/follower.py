"""The rules of a share group: one daemon of it, the leader, follows the table (decision 0009).

Members receive a well's readings in turns, so none of them sees a well whole. The table does: the leader reads what was
received a few seconds ago, in the order received, evaluates it, and writes results, checkpoints and its place in one
transaction. Its place is also the fence: who finds that another has moved it, lets go.

After an outage members empty their spools one faster than the other. So each reports how far it has committed what it
received, and the leader goes no further than the last of them.
"""

import logging
import math
from collections.abc import Callable

from esp_ingest.diagnostics.language.rules import RulesError
from esp_ingest.diagnostics.service import Diagnosis, DiagnosticsService
from esp_ingest.interfaces import Clock, Feed, Store, StoreUnavailable
from esp_ingest.model import Readings
from esp_ingest.service.background import Background
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import Metrics

log = logging.getLogger(__name__)

LAG_US = 5_000_000  # between receipt and commit where nothing holds a member up
SILENT_SECONDS = 60.0  # a member that has come no further for so long is no longer waited for
_REPORT_SECONDS = 2.0
_SLACK_US = 1_000_000  # between the receipt of a message and its being counted as uncommitted
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
        oldest_uncommitted_us: Callable[[], int | None],
    ) -> None:
        """``oldest_uncommitted_us``: when the oldest message was received that this daemon has not committed."""
        self._build = build
        self._store = store
        self._feed = feed
        self._clock = clock
        self._metrics = metrics
        self._service: DiagnosticsService | None = None  # there while this one leads
        self._cursor_us = 0
        self._oldest_uncommitted_us = oldest_uncommitted_us
        self._reported_at = -math.inf
        # Of each member, "" for this one: committed to, µs, and since when, by the monotonic clock.
        self._marks: dict[str, tuple[int, float]] = {}
        self._silent: set[str] = set()  # members that are not waited for
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
        committed_us = self._report()
        if service is None:
            return _STAND_BY_SECONDS
        newest_us = self._clock.now_us() - LAG_US
        until_us = min([newest_us, *self._waited_for_us(committed_us)])
        readings = Readings.empty()
        if until_us > self._cursor_us:
            readings = self._feed.received(self._cursor_us, until_us, _MOST_READINGS)
        if not len(readings):
            self._metrics.diagnostics_behind_seconds.set((self._clock.now_us() - until_us) / 1e6)
            if until_us == newest_us:  # or else wells would be called silent whose readings are still in a spool
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

    def _report(self) -> int:
        """Let the others know up to when all that this member received is committed, µs, and return it."""
        now, now_us = self._clock.monotonic(), self._clock.now_us()
        oldest_us = self._oldest_uncommitted_us()
        committed_us = (now_us if oldest_us is None else min(oldest_us, now_us)) - _SLACK_US
        if now - self._reported_at >= _REPORT_SECONDS:
            self._feed.report(committed_us)
            self._reported_at = now
        return committed_us

    def _waited_for_us(self, committed_us: int) -> list[int]:
        """How far the members have come that are waited for, µs; this one to ``committed_us``. A member that does not
        move has ended without a word, or cannot write; what it commits later is stored and not evaluated, until it has
        come further."""
        now = self._clock.monotonic()
        marks = {"": committed_us} | dict(self._feed.committed_by_others())
        self._marks = {
            member: known if (known := self._marks.get(member)) is not None and known[0] == to_us else (to_us, now)
            for member, to_us in marks.items()
        }
        silent = {member for member, (_, since) in self._marks.items() if now - since > SILENT_SECONDS}
        for member in silent - self._silent:
            fields = {"member": member or "this one", "silent_seconds": round(now - self._marks[member][1])}
            log.warning("a member of the share group comes no further and is not waited for", extra=fields)
        self._silent = silent
        return [to_us for member, to_us in marks.items() if member not in silent]

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
        self._marks, self._silent = {}, set()  # each is waited for anew once the database is back
        self._reported_at = -math.inf
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
            if self._reported_at > -math.inf and self._oldest_uncommitted_us() is None:
                self._feed.withdraw()
        except StoreUnavailable as error:
            log.warning("last checkpoints not written", extra={"reason": str(error)})
        finally:
            self._let_go()
