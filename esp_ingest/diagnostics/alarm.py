"""The life of an occurrence: raised, escalated, held back, latched, acknowledged, cleared (ISA-18.2 words).

Pure: an occurrence is immutable, each step gives a new one, and :func:`to_row` is what the database gets.
"""

from dataclasses import dataclass, replace

from esp_ingest.model import DiagnosticRow, Severity

ACTIVE = "unacknowledged"
ACKNOWLEDGED = "acknowledged"
RETURNED = "returned-unacknowledged"
NORMAL = "normal"
LATCHED = "latched"
SHELVED = "shelved"
SUPPRESSED = "suppressed"


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One occurrence of one diagnosis at one well. ``held_by``: '', 'shelved' or 'suppressed'. ``is_false``: an
    operator said that this is no fault, so it does not hold the well's baseline."""

    well_id: str
    diagnosis: str
    raised_us: int
    severity: Severity
    value: float | None
    threshold: float | None
    message: str
    actions_json: str
    snapshot_json: str
    confidence: float
    occurrences: int = 1
    held_by: str = ""
    acknowledged: bool = False
    latched_us: int | None = None
    cleared_us: int | None = None
    is_false: bool = False

    @property
    def state(self) -> str:
        """Its state in the words of ISA-18.2: active, acknowledged, latched, shelved, suppressed, returned or
        normal."""
        if self.cleared_us is not None:
            plain = self.acknowledged or self.held_by or self.severity is Severity.INFO
            return NORMAL if plain else RETURNED
        if self.held_by:
            return self.held_by
        if self.latched_us is not None:
            return LATCHED
        return ACKNOWLEDGED if self.acknowledged else ACTIVE

    def again(self) -> "Occurrence":
        """The condition came back before the occurrence was over: it counts once more."""
        return replace(self, occurrences=self.occurrences + 1, latched_us=None)

    def reminded(self, reminder: str) -> "Occurrence":
        """Told again while it stands: no longer acknowledged, and ``reminder`` ends its message."""
        message = self.message.split(" Reminder: ")[0]
        return replace(self, message=f"{message} {reminder}", acknowledged=False)

    def cleared(self, at_us: int) -> "Occurrence":
        """The occurrence with its end at ``at_us``, µs of event time."""
        return replace(self, cleared_us=at_us)


def to_row(occurrence: Occurrence, peak: float | None, reminded: bool = False) -> DiagnosticRow:
    """The row of diagnostic_results. ``peak`` None leaves the stored one; ``reminded``: see DiagnosticRow."""
    return DiagnosticRow(
        well_id=occurrence.well_id,
        diagnosis=occurrence.diagnosis,
        raised_us=occurrence.raised_us,
        severity=occurrence.severity,
        state=occurrence.state,
        cleared_us=occurrence.cleared_us,
        value=occurrence.value,
        threshold=occurrence.threshold,
        peak=peak,
        occurrences=occurrence.occurrences,
        confidence=occurrence.confidence,
        message=occurrence.message,
        actions_json=occurrence.actions_json,
        snapshot_json=occurrence.snapshot_json,
        reminded=reminded,
    )


def from_row(row: DiagnosticRow) -> Occurrence:
    """The occurrence of an open row. When a latched one returned is not in the table: as good as when it was raised."""
    return Occurrence(
        well_id=row.well_id,
        diagnosis=row.diagnosis,
        raised_us=row.raised_us,
        severity=row.severity,
        value=row.value,
        threshold=row.threshold,
        message=row.message,
        actions_json=row.actions_json,
        snapshot_json=row.snapshot_json,
        confidence=row.confidence if row.confidence is not None else 1.0,
        occurrences=row.occurrences,
        held_by=row.state if row.state in (SHELVED, SUPPRESSED) else "",
        acknowledged=row.state == ACKNOWLEDGED,
        latched_us=row.raised_us if row.state == LATCHED else None,
        cleared_us=row.cleared_us,
        is_false=row.is_false,
    )
