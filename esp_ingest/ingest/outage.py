"""The state of the database as the writer stage sees it: away since when, why, and when to try again."""

import gc
import logging

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.interfaces import Clock, StoreUnavailable
from esp_ingest.service.backoff import Backoff
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import Metrics

log = logging.getLogger(__name__)


class Outage:
    """When the database went away, why, and when to try again. Logs the start, growing intervals and the end."""

    def __init__(self, settings: DatabaseSettings, clock: Clock, metrics: Metrics) -> None:
        self._backoff = Backoff(settings.retry_min_seconds / 2, settings.retry_max_seconds)
        self._clock = clock
        self._metrics = metrics
        self._log = Repeated(log, "database unavailable", "database available")
        self._since: float | None = None
        self._next = 0.0
        self.reason: str | None = "not reached yet"

    def failed(self, error: StoreUnavailable) -> None:
        """A try failed: the next one is due after a pause that grows from try to try."""
        now = self._clock.monotonic()
        if self._since is None:
            self._since = now
            self._backoff.attempts = 0
        self._next = now + self._backoff.next_seconds()
        self.reason = str(error)
        # Errors of psycopg's connect are cycles with their frames, and these hold the ones below, which are ours: one
        # batch a try, which the collector, counting containers and not bytes, would leave for hours. It takes a few
        # milliseconds where the daemon has frozen what it loaded, and half a second where nobody has.
        if gc.get_freeze_count():
            gc.collect()
        self._metrics.database_up.set(0)
        self._metrics.database_retries.inc()
        self._log.failed(now, error.reason, detail=error.detail)

    def ended(self) -> None:
        """The database has answered."""
        self.reason = None
        self._since = None
        self._next = 0.0
        self._metrics.database_up.set(1)
        self._log.ended(self._clock.monotonic())

    def lasting(self, seconds: float) -> bool:
        """The database has been away for at least ``seconds``."""
        return self._since is not None and self._clock.monotonic() - self._since >= seconds

    def due(self) -> bool:
        """It is time for another try."""
        return self._clock.monotonic() >= self._next

    def seconds_to_next(self) -> float:
        """How long until then; never 0, so that nobody turns in circles."""
        return max(self._next - self._clock.monotonic(), 0.01)
