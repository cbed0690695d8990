"""What waits until the tables of the diagnostics work again, while readings go on being stored.

Two things can wait. Rows of occurrences that the tables did not take: they are kept here, the last state of each
occurrence, and handed in again. And wells that were not evaluated, since their state could not be read or too many rows
waited already: their readings are in the table, from where they are evaluated later, as after a restart.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from esp_ingest.interfaces import Clock, StoreUnavailable
from esp_ingest.model import DiagnosticRow, Readings
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import Metrics

log = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
_MOST_OF_THE_TIME = 10  # a try that took a second is followed by ten seconds without one

# What is tried, each by itself: what operators did, the states of wells, the work between batches, and writing.
OPERATORS, STATES, ROUND, WRITE = "operators", "states", "round", "write"


class Deferred:
    """For one thread; :attr:`reason` may be read by others. ``wells`` maps each well that waits to the event time, µs,
    of the first of its readings that was not evaluated."""

    def __init__(self, clock: Clock, metrics: Metrics, max_wells: int, most_rows: int) -> None:
        self._clock = clock
        self._metrics = metrics
        self._max_wells = max_wells
        self._most_rows = most_rows
        self._trouble: dict[str, tuple[str, float]] = {}  # what → why, and when it is tried again
        self._log = Repeated(
            log, "diagnostics wait, their tables refuse; readings are stored", "diagnostics are stored again"
        )
        self.rows: dict[tuple[str, str, int], DiagnosticRow] = {}
        self.wells: dict[str, int] = {}

    @property
    def reason(self) -> str | None:
        """Why the diagnostics wait, for people; None while they do not."""
        found = next(iter(list(self._trouble.values())), None)
        return None if found is None else found[0]

    def is_holding(self, what: str) -> bool:
        """It has not worked, and another try is not due yet."""
        found = self._trouble.get(what)
        return found is not None and self._clock.monotonic() < found[1]

    @property
    def is_full(self) -> bool:
        """No more rows are to be kept."""
        return len(self.rows) >= self._most_rows

    def failed(self, what: str, error: StoreUnavailable, begun: float) -> bool:
        """It has not worked. ``begun``: monotonic seconds at which it was tried. Returns whether that is new."""
        now = self._clock.monotonic()
        is_news = what not in self._trouble
        self._trouble[what] = str(error), now + max(_RETRY_SECONDS, _MOST_OF_THE_TIME * (now - begun))
        self._log.failed(now, error.reason, detail=error.detail)
        self._measure()
        return is_news

    def worked(self, what: str) -> None:
        """It works again, or still does."""
        if self._trouble.pop(what, None) is not None and not self._trouble:
            self._log.ended(self._clock.monotonic())
            self._measure()

    def try_again(self) -> None:
        """Whatever stood in the way may be over."""
        self._trouble = {what: (why, 0.0) for what, (why, _) in self._trouble.items()}

    def owe(self, row: DiagnosticRow) -> None:
        """Keep this row: it is the newest state of its occurrence. A row without a peak leaves the one from before."""
        key = (row.well_id, row.diagnosis, row.raised_us)
        before = self.rows.get(key)
        if before is not None and row.peak is None:
            row = replace(row, peak=before.peak)
        if before is not None and before.reminded:
            row = replace(row, reminded=True)
        self.rows[key] = row
        self._metrics.diagnostics_rows_waiting.set(len(self.rows))

    def rows_before(self, rows: Sequence[DiagnosticRow]) -> list[DiagnosticRow]:
        """The rows that are owed, to be stored before ``rows``. An end is not among them where ``rows`` raise the same
        occurrence: it was owed for want of the reading that raised it, which the table had refused and which has come
        again."""
        raised = {(row.well_id, row.diagnosis, row.raised_us) for row in rows if row.cleared_us is None}
        return [row for key, row in self.rows.items() if row.cleared_us is None or key not in raised]

    def clear_rows(self) -> None:
        """They are stored."""
        if self.rows:
            self.rows.clear()
            self._metrics.diagnostics_rows_waiting.set(0)

    def defer(self, readings: Readings, wells: frozenset[str]) -> None:
        """The readings of these wells are stored without being evaluated. Beyond the limit of wells, one is forgotten
        here; it is restored like any that is new."""
        oldest = np.full(len(readings.wells), np.iinfo(np.int64).max, np.int64)
        np.minimum.at(oldest, readings.well_index, readings.timestamp_us)
        for well, at_us in zip(readings.wells, oldest.tolist(), strict=True):
            if well in wells and (well in self.wells or len(self.wells) < self._max_wells):
                self.wells[well] = min(self.wells.get(well, at_us), at_us)
        self._measure()

    def restored(self, well: str) -> None:
        """``well`` does not wait any more."""
        if self.wells.pop(well, None) is not None:
            self._measure()

    def _measure(self) -> None:
        self._metrics.diagnostics_refused.set(bool(self._trouble))
        self._metrics.diagnostics_wells_waiting.set(len(self.wells))
