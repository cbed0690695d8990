"""Open occurrences as the table and the operators have them, brought to the engine: who acknowledged, who shelved, and
which occurrence is which after a restart. Rows that follow from it are owed (diagnostics/deferred.py)."""

from collections.abc import Sequence
from dataclasses import replace

from esp_ingest.diagnostics import alarm as alarms
from esp_ingest.diagnostics.alarm import Occurrence
from esp_ingest.diagnostics.deferred import Deferred
from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.model import AlarmAction, DiagnosticRow


def obey(engine: Engine, deferred: Deferred, action: AlarmAction) -> None:
    """An operator acknowledged, shelved, ended a shelving or gave a verdict. An alarm that is false no longer holds the
    well's baseline: what the well does is its habit."""
    if action.action in ("shelve", "unshelve"):
        engine.shelve(action.well_id, action.diagnosis, action.until_us)
        return
    occurrence = engine.open_at(action.well_id, action.diagnosis)
    if occurrence is None or occurrence.raised_us != action.raised_us:
        return
    if action.action == "ack":
        _acknowledge(engine, deferred, replace(occurrence, acknowledged=True))
    elif action.action == "verdict":
        engine.put(replace(occurrence, is_false=action.verdict == "false"))


def _acknowledge(engine: Engine, deferred: Deferred, occurrence: Occurrence) -> None:
    """An open one goes on; a latched one had returned to normal and is over."""
    if occurrence.latched_us is None:
        engine.put(occurrence)
    elif engine.end_latched(occurrence.well_id, occurrence.diagnosis):
        ended = replace(occurrence, latched_us=None).cleared(occurrence.latched_us)
        deferred.owe(alarms.to_row(ended, None))


def reconcile(engine: Engine, deferred: Deferred, wells: Sequence[str], stored_rows: Sequence[DiagnosticRow]) -> None:
    """The table tells which occurrence is which and who acknowledged it; the engine tells whether it holds."""
    owed = {key[:2] for key in deferred.rows}  # of these the table does not know yet how they stand
    told = {(row.well_id, row.diagnosis): alarms.from_row(row) for row in stored_rows}
    for (well, diagnosis), stored in told.items():
        mine = engine.open_at(well, diagnosis)
        if mine is not None and mine.raised_us == stored.raised_us:
            _confirm(engine, deferred, replace(mine, is_false=stored.is_false), stored.acknowledged)
        elif (well, diagnosis) in owed:
            continue
        elif mine is not None:
            engine.put(replace(stored, held_by=mine.held_by, latched_us=mine.latched_us))
        elif not engine.put(stored):  # silence is put back as it is
            owe_end(engine, deferred, stored)
    here = set(wells)
    for mine in engine.open_occurrences():
        key = (mine.well_id, mine.diagnosis)
        if mine.well_id in here and key not in told and key not in owed:
            _miss(engine, deferred, mine)


def _confirm(engine: Engine, deferred: Deferred, mine: Occurrence, acknowledged: bool) -> None:
    if acknowledged and mine.state not in (alarms.SHELVED, alarms.SUPPRESSED):
        _acknowledge(engine, deferred, replace(mine, acknowledged=True))
    else:
        engine.put(replace(mine, acknowledged=acknowledged))


def _miss(engine: Engine, deferred: Deferred, mine: Occurrence) -> None:
    """Open in the engine only: acknowledged after its return, or raised by rules that are new."""
    if not engine.end_latched(mine.well_id, mine.diagnosis):
        deferred.owe(alarms.to_row(mine, None))


def owe_end(engine: Engine, deferred: Deferred, occurrence: Occurrence) -> None:
    """Open in the table only: its rule is gone, or the state was lost."""
    newest_us = engine.newest_us(occurrence.well_id) or occurrence.raised_us
    ended = replace(occurrence, latched_us=None).cleared(max(newest_us, occurrence.raised_us))
    deferred.owe(alarms.to_row(ended, None))
