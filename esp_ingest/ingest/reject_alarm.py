"""Whether so much is rejected that somebody should look."""

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
        self._window: list[tuple[float, int, int]] = []
        self.is_raised = False

    def note(self, accepted: int, rejected: int) -> int | None:
        """Count a batch. Returns 1 while the alarm stands, 0 when not, None for an empty batch."""
        if accepted + rejected == 0:
            return None
        self._consecutive = 0 if accepted else self._consecutive + rejected
        self._window.append((self._clock.monotonic(), accepted, rejected))
        return self.look()

    def look(self) -> int:
        """1 while the alarm stands, 0 when not: also when nothing has come for a minute."""
        since = self._clock.monotonic() - self._WINDOW_SECONDS
        while self._window and self._window[0][0] < since:
            self._window.pop(0)
        if not self._window:
            self._consecutive = 0
        total = sum(a + r for _, a, r in self._window)
        rejected = sum(r for _, _, r in self._window)
        in_a_row = self._consecutive >= self._settings.reject_alarm_consecutive
        many = total >= self._LEAST_ITEMS and rejected >= self._settings.reject_alarm_ratio * total
        self.is_raised = in_a_row or many
        return int(self.is_raised)
