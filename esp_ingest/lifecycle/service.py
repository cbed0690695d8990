"""The loop beside the daemon: a run every so often, until SIGTERM or SIGINT."""

import logging
import os
import signal
from types import FrameType
from typing import Any

from esp_ingest.config.settings import Settings
from esp_ingest.interfaces import Clock
from esp_ingest.lifecycle import runs
from esp_ingest.service import log as logs
from esp_ingest.service.clock import SystemClock

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5


def run(settings: Settings, every_seconds: float, *, adopt: bool) -> int:
    """Run until a signal. The first one ends the run that is under way between two pages of rows, which leaves the
    archive and the database as they were before that day; the second one ends the process. Returns the exit code."""
    logs.configure(settings.log)
    loop = Loop(settings, SystemClock(), every_seconds, adopt=adopt)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, loop.stop)
    log.info("started", extra={"every_seconds": every_seconds, "pid": os.getpid()})
    loop.run()
    log.info("stopped")
    return 0


class Loop:
    """Runs, and pauses between them. A run that fails is tried again at the next one's time."""

    def __init__(self, settings: Settings, clock: Clock, every_seconds: float, *, adopt: bool) -> None:
        self._settings = settings
        self._clock = clock
        self._every_seconds = every_seconds
        self._adopt = adopt
        self._stopping = False

    def stop(self, number: int, _frame: FrameType | None = None) -> None:
        """Handler of a signal."""
        if self._stopping:
            os._exit(1)  # a crash at any step leaves the old version of a day or the new one
        self._stopping = True
        log.info("stopping", extra={"signal": signal.Signals(number).name})

    def run(self) -> None:
        """Return when stopped."""
        while not self._stopping:
            due = self._clock.monotonic() + self._every_seconds
            try:
                self._once()
            except runs.Stopped:
                return
            while not self._stopping and self._clock.monotonic() < due:
                self._clock.sleep(_LOOK_SECONDS)

    def _once(self) -> None:
        outcome = runs.run_once(self._settings, self._clock, _log_action, adopt=self._adopt, beat=self._beat)
        if outcome.busy:
            log.warning("another lifecycle run is at work")
        counts = {name: len(getattr(outcome, name)) for name in ("archived", "verified", "dropped", "problems")}
        log.info("ran", extra=counts)

    def _beat(self) -> None:
        if self._stopping:
            raise runs.Stopped


def _log_action(event: str, fields: dict[str, Any]) -> None:
    log.log(logging.ERROR if event == "problem" else logging.INFO, event, extra=fields)
