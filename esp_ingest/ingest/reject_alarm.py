"""Whether so much is rejected that somebody should look."""

from collections import deque

from esp_ingest.config.settings import ServiceSettings
from esp_ingest.interfaces import Clock


class RejectAlarm:
    """A circuit breaker that only warns: too many rejects in a row, or too large a share of the last minute."""

    _WINDOW_SECONDS = 60.0
    _LEAST_ITEMS = 100  # a share of fewer items says nothing

    def __init__(self, settings: ServiceSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._consecutive = 0
        self._window: deque[tuple[float, int, int]] = deque()
        self._total = self._rejected = 0  # items of the window
        self.is_raised = False

    def note(self, accepted: int, rejected: int) -> int | None:
        """Count a batch. Returns 1 while the alarm stands, 0 when not, None for an empty batch."""
        if accepted + rejected == 0:
            return None
        self._consecutive = 0 if accepted else self._consecutive + rejected
        self._window.append((self._clock.monotonic(), accepted + rejected, rejected))
        self._total += accepted + rejected
        self._rejected += rejected
        return self.look()

    def look(self) -> int:
        """1 while the alarm stands, 0 when not: also when nothing has come for a minute."""
        since = self._clock.monotonic() - self._WINDOW_SECONDS
        while self._window and self._window[0][0] < since:
            _, total, rejected = self._window.popleft()
            self._total -= total
            self._rejected -= rejected
        if not self._window:
            self._consecutive = 0
        in_a_row = self._consecutive >= self._settings.reject_alarm_consecutive
        many = self._total >= self._LEAST_ITEMS and self._rejected >= self._settings.reject_alarm_ratio * self._total
        self.is_raised = in_a_row or many
        return int(self.is_raised)
