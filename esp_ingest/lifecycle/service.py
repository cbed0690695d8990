"""`lifecycle run` as a process: one run or many, with metrics and a health check."""

import logging
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg

from esp_ingest.config.settings import HttpSettings, Settings
from esp_ingest.interfaces import Clock
from esp_ingest.lifecycle import observe, runs
from esp_ingest.lifecycle.errors import LifecycleError, Reason
from esp_ingest.model import at_us
from esp_ingest.service import log as logs
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.health import Health
from esp_ingest.service.http import HttpServer
from esp_ingest.service.metrics import LifecycleMetrics
from esp_ingest.store.queries import query

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_LOOP = "lifecycle"
ARCHIVE = "archive"


def run(settings: Settings, every_seconds: float, *, adopt: bool) -> int:
    """Do runs until a signal comes. The first signal ends the run that is in progress between two pages of rows,
    which leaves archive and database as they were before that day. The second signal ends the process at once.
    Returns the exit code."""
    logs.configure(settings.log)
    clock = SystemClock()
    metrics = LifecycleMetrics()
    health = Health(clock, settings.service, {ARCHIVE: "no run has ended yet"})
    loop = Loop(Runner(settings, clock, metrics, _log_action, adopt=adopt), clock, health, every_seconds)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, loop.stop)
    place = HttpSettings(host=settings.lifecycle.http_host, port=settings.lifecycle.http_port)
    http = HttpServer(place, health, metrics)
    http.start()
    log.info("started", extra={"every_seconds": every_seconds, "pid": os.getpid(), "http_port": http.port})
    try:
        loop.run()
    finally:
        http.stop()
    log.info("stopped")
    return 0


class Runner:
    """Does one run, and brings the metrics up to date."""

    def __init__(
        self, settings: Settings, clock: Clock, metrics: LifecycleMetrics, report: runs.Report, *, adopt: bool
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._report = report
        self._adopt = adopt
        archive_is_set = bool(settings.archive.url or settings.lifecycle.drop_without_archive)
        metrics.configured.set(archive_is_set)
        metrics.disk_full_days.set(float("inf"))

    def once(self, beat: Any = lambda: None) -> runs.Outcome:
        """See runs.run_once. Raises Stopped."""
        begun = self._clock.monotonic()
        outcome = runs.run_once(self._settings, self._clock, self._report, adopt=self._adopt, beat=beat)
        if outcome.busy:
            return outcome
        metrics = self._metrics
        metrics.run_seconds.set(self._clock.monotonic() - begun)
        metrics.runs.labels("ok" if outcome.ok else "failed").inc()
        if outcome.ok:
            metrics.last_success.set(self._clock.now_us() / 1e6)
        for counter, days in (
            (metrics.days_archived, outcome.archived),
            (metrics.days_verified, outcome.verified),
            (metrics.days_dropped, outcome.dropped),
        ):
            for table, _ in days:
                counter.labels(table).inc()
        reasons = {problem.reason for problem in outcome.problems}
        for reason in Reason:
            metrics.problem.labels(reason.value).set(reason in reasons)
        self._observe()
        return outcome

    def _observe(self) -> None:
        """Set the gauges. A value that cannot be asked for now stays as it was."""
        settings = self._settings.lifecycle
        try:
            with runs.session(self._settings) as connection:
                connection.execute(query("lifecycle_note_size"))
                observe.export(observe.look(connection, settings, at_us(self._clock.now_us())), self._metrics)
        except (LifecycleError, psycopg.Error, OSError) as error:
            log.warning("the tables could not be looked at", extra={"reason": str(error)})
        if settings.metrics_file:
            self._write(Path(settings.metrics_file))

    def _write(self, path: Path) -> None:
        """Write the metrics to a file for node_exporter, in one step, so that it never reads half a file."""
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            fresh.write_bytes(self._metrics.render())
            fresh.replace(path)
        except OSError as error:
            log.warning("the metrics file could not be written", extra={"file": str(path), "reason": error.strerror})


class Loop:
    """Does one run after the other, with pauses between them. A run that fails is repeated when the next one is due."""

    def __init__(self, runner: Runner, clock: Clock, health: Health, every_seconds: float) -> None:
        self._runner = runner
        self._clock = clock
        self._health = health
        self._every_seconds = every_seconds
        self._stopping = False

    def stop(self, number: int, _frame: FrameType | None = None) -> None:
        """The handler of a signal."""
        if self._stopping:
            os._exit(1)  # a crash at any step leaves the old version of a day or the new one
        self._stopping = True
        log.info("stopping", extra={"signal": signal.Signals(number).name})

    def run(self) -> None:
        """Run until stopped."""
        while not self._stopping:
            due = self._clock.monotonic() + self._every_seconds
            self._health.idle(_LOOP)  # a large day takes as long as it takes
            try:
                outcome = self._runner.once(self._beat)
            except runs.Stopped:
                return
            self._say(outcome)
            while not self._stopping and self._clock.monotonic() < due:
                self._health.beat(_LOOP)
                self._clock.sleep(_LOOK_SECONDS)

    def _say(self, outcome: runs.Outcome) -> None:
        if outcome.busy:
            log.warning("another lifecycle run is at work")
            return
        why = outcome.problems[0].sentence if outcome.problems else "every finished day is archived and proven"
        self._health.set(ARCHIVE, outcome.ok, why)
        counts = {name: len(getattr(outcome, name)) for name in ("archived", "verified", "dropped", "problems")}
        log.info("ran", extra=counts)

    def _beat(self) -> None:
        if self._stopping:
            raise runs.Stopped


def _log_action(event: str, fields: dict[str, Any]) -> None:
    log.log(logging.ERROR if event == "problem" else logging.INFO, event, extra=fields)
