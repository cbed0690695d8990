"""What the database refused, as rejects."""

import json
import math
from typing import Any

from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.model import SIGNAL_NAMES, DiagnosticRow, Readings, Reject, RejectReason, at_us
from esp_ingest.store import sqlstate


def refused_reading(readings: Readings, row: int, error: BaseException, topic_root: str) -> Reject:
    """A reading that the database refused, as a reject whose payload is a message with the same content."""
    return _reject_of(readings, row, RejectReason.REFUSED_BY_DATABASE, _say(error), topic_root)


def conflicting_reading(readings: Readings, row: int, topic_root: str) -> Reject:
    """A reading whose place another one has that says something else, as a reject whose payload is a message with the
    same content."""
    detail = "Another reading of this well with this timestamp is stored, with other content; the first one stays."
    return _reject_of(readings, row, RejectReason.CONFLICTING_DUPLICATE, detail, topic_root)


def _reject_of(readings: Readings, row: int, reason: RejectReason, detail: str, topic_root: str) -> Reject:
    """Marked as redelivered: its content alone tells whether it is stored already, since a reading does not know
    whether it came before."""
    well = readings.well_of(row)
    members: dict[str, Any] = {"timestamp": at_us(int(readings.timestamp_us[row])).isoformat(), "well_id": well}
    for name, value in zip(SIGNAL_NAMES, readings.values[:, row].tolist(), strict=True):
        if not math.isnan(value):
            members[name] = value
    # What was refused may be no JSON at all, so the texts are joined as texts: nothing of them is changed.
    texts = [json.dumps(members, ensure_ascii=False)[1:-1]]
    texts += [text.strip()[1:-1] for text in (readings.extra.get(row), readings.quality.get(row)) if text is not None]
    payload = "{" + ", ".join(text for text in texts if text.strip()) + "}"
    return Reject(
        received_us=int(readings.received_us[row]),
        topic=f"{topic_root}/{well}/telemetry".encode("utf-8", "surrogatepass"),
        reason=reason,
        detail=detail,
        payload=payload.encode("utf-8", "surrogatepass"),
        redelivered=1,
    )


def refused_diagnostic(row: DiagnosticRow, error: BaseException, topic_root: str) -> Reject:
    """An occurrence that the database refused, as a reject that shows all of it."""
    return Reject(
        received_us=row.raised_us,
        topic=f"{topic_root}/{row.well_id}/diagnostics".encode("utf-8", "surrogatepass"),
        reason=RejectReason.REFUSED_BY_DATABASE,
        detail=_say(error),
        payload=repr(row).encode("utf-8", "backslashreplace"),
        redelivered=1,
    )


def _say(error: BaseException) -> str:
    if isinstance(error, StoreUnavailable):
        return str(error)
    decision = sqlstate.decide(error)
    return f"{decision.reason}: {sqlstate.unavailable(error).detail}"
