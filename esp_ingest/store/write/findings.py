"""What the rules found, in the transaction of a batch, and without harm to it.

Readings come first. Rows of occurrences and checkpoints are each written behind a savepoint. Whatever their tables
refuse (a trigger raises, a table is gone, a right was revoked, a lock, a full disk) is rolled back alone,
and the batch is committed without it. The caller keeps what was refused and hands it in again with a later batch.

A row that is at fault by itself (its data) becomes a reject, as a reading does. One that a trigger refuses is not: it
may be the row or the moment. It is refused alone, so that it does not hold back the others.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from esp_ingest.interfaces import Refusal
from esp_ingest.model import Checkpoint, DiagnosticRow, Reject, at_us
from esp_ingest.store import sqlstate
from esp_ingest.store.queries import query
from esp_ingest.store.write.copy_format import storable
from esp_ingest.store.write.rejects import refused_diagnostic

log = logging.getLogger(__name__)

_MOST_REFUSED = 20  # rows one by one, with none stored in between: then the rest is not tried
_TRIGGER = "P0"  # SQLSTATE class of RAISE EXCEPTION

_Cursor = psycopg.Cursor[tuple[Any, ...]]


@dataclass(slots=True)
class Written:
    """``rejects`` are rows at fault, to be stored as rejects; ``refusal`` is what else was not stored."""

    rejects: list[Reject]
    refusal: Refusal | None


def write_diagnostics(
    cursor: _Cursor,
    rows: Sequence[DiagnosticRow],
    checkpoints: Sequence[Checkpoint],
    *,
    publish: bool,
    topic_root: str,
    must: bool,
) -> Written:
    """Write them in the open transaction of ``cursor``, which goes on whatever becomes of them. ``publish``: changes go
    to the outbox. ``must``: a refusal raises instead. Waits for a lock for two seconds at most.

    Raises psycopg.Error if the connection is lost, and StoreUnavailable for a refusal with ``must``."""
    rejects: list[Reject] = []
    refused: list[DiagnosticRow] = []
    error: BaseException | None = None

    def write(some: Sequence[DiagnosticRow]) -> BaseException | None:
        parameters = [_parameters(row) | {"publish": publish} for row in some]
        return _attempt(cursor, lambda: cursor.executemany(query("upsert_diagnostic"), parameters))

    if rows and (error := write(rows)) is not None:
        refused = list(rows)
        if _may_be_a_row(error):
            error, refused = _one_by_one(rows, write, rejects, topic_root)
    # The state of a well must not be newer than its rows: what is replayed from a checkpoint finds them in the table.
    without = {row.well_id for row in refused}
    given = [each for each in checkpoints if each.well_id not in without]
    wells = {each.well_id for each in checkpoints} & without
    if given:
        failed = _attempt(cursor, lambda: cursor.execute(query("upsert_states"), _columns(given)))
        if failed is not None:
            error = error or failed
            wells |= {each.well_id for each in given}
    if not (refused or wells):
        return Written(rejects, None)
    assert error is not None
    reason = sqlstate.unavailable(error)
    if must:
        raise reason
    return Written(rejects, Refusal(reason, tuple(refused), frozenset(wells)))


def _one_by_one(
    rows: Sequence[DiagnosticRow],
    write: Callable[[Sequence[DiagnosticRow]], BaseException | None],
    rejects: list[Reject],
    topic_root: str,
) -> tuple[BaseException | None, list[DiagnosticRow]]:
    """What the last refused row failed by, and the refused ones, those first that were not tried."""
    last: BaseException | None = None
    refused: list[DiagnosticRow] = []
    in_a_row = 0
    for at, row in enumerate(rows):
        error = write([row])
        if error is None:
            in_a_row = 0
        elif sqlstate.is_a_row(error):
            log.error("diagnosis refused by the database", extra={"diagnosis": row.diagnosis, "error": str(error)})
            rejects.append(refused_diagnostic(row, error, topic_root))
        else:
            last = error
            refused.append(row)
            in_a_row += 1
            if in_a_row >= _MOST_REFUSED or not _may_be_a_row(error):
                return last, [*rows[at + 1 :], *refused]
    return last, refused


def _attempt(cursor: _Cursor, work: Callable[[], object]) -> BaseException | None:
    """``work`` behind a savepoint: None, or the error that undid it. Raises psycopg.Error if the connection is lost."""
    cursor.execute(query("begin_findings"), prepare=False)  # two statements at once
    try:
        work()
    except (psycopg.Error, UnicodeError) as error:
        if cursor.connection.closed or cursor.connection.broken:
            raise
        cursor.execute(query("undo_findings"), prepare=False)
        return error
    cursor.execute(query("end_findings"))
    return None


def _may_be_a_row(error: BaseException) -> bool:
    """Other rows may be stored."""
    raised = isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(_TRIGGER)
    return raised or sqlstate.is_a_row(error)


def _columns(checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    return {
        "wells": [each.well_id for each in checkpoints],
        "times": [at_us(each.event_us) for each in checkpoints],
        "states": [each.state for each in checkpoints],
        "off": [each.off_json for each in checkpoints],
    }


def _parameters(row: DiagnosticRow) -> dict[str, Any]:
    return {
        "well_id": row.well_id,
        "diagnosis": row.diagnosis,
        "raised_at": at_us(row.raised_us),
        "severity": row.severity.value,
        "state": row.state,
        "cleared_at": None if row.cleared_us is None else at_us(row.cleared_us),
        "value": row.value,
        "threshold": row.threshold,
        "peak": row.peak,
        "occurrences": row.occurrences,
        "confidence": row.confidence,
        "message": storable(row.message),
        "actions": row.actions_json,
        "snapshot": row.snapshot_json,
        "reminded": row.reminded,
    }
