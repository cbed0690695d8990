"""Rules on dry_run: the engine over any readings, nothing written, every occurrence kept in its last state."""

import numpy as np

from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.language.rules import RuleSet
from esp_ingest.model import DiagnosticRow, Readings

_BATCH_ROWS = 5_000


class DryRun:
    """Feed it readings in the order received; ``occurrences`` is what diagnostic_results would hold after them."""

    def __init__(self, rules: RuleSet) -> None:
        self.engine = Engine(rules)
        self.readings = 0
        self.late = 0
        self._rows: dict[tuple[str, str, int], DiagnosticRow] = {}
        self._shown: set[tuple[str, str, int]] = set()

    def feed(self, readings: Readings) -> None:
        """A batch as large as the daemon's at a time."""
        for start in range(0, len(readings), _BATCH_ROWS):
            part = readings
            if len(readings) > _BATCH_ROWS:
                part = readings.select(np.arange(start, min(start + _BATCH_ROWS, len(readings))))
            evaluation = self.engine.evaluate(part)
            self.engine.accept(evaluation)
            self.readings += len(part)
            self.late += evaluation.late
            for row in evaluation.rows:
                self._rows[row.well_id, row.diagnosis, row.raised_us] = row
            self._shown.update(evaluation.shown)

    def occurrences(self) -> list[DiagnosticRow]:
        """In order of time, well and diagnosis."""
        return sorted(self._rows.values(), key=lambda row: (row.raised_us, row.well_id, row.diagnosis))

    def was_shown(self, row: DiagnosticRow) -> bool:
        """Did it stand before an operator at any time, or was it held back all its life?"""
        return (row.well_id, row.diagnosis, row.raised_us) in self._shown

    def seen(self) -> list[DiagnosticRow]:
        """The occurrences that were not held back all their life."""
        return [row for row in self.occurrences() if self.was_shown(row)]
