"""What the OpenAPI schema says about the answers of each operation: their model, an example, the formats, and the
problems that may be returned."""

from typing import Any

from esp_ingest.api.wire.models import ProblemDocument
from esp_ingest.api.wire.problems import MEDIA_TYPE
from esp_ingest.model import SIGNAL_NAMES

_CSV = {"schema": {"type": "string"}}
_ARROW = {"schema": {"type": "string", "format": "binary"}}
_PROBLEM_TEXTS = {
    400: "the request cannot be read",
    401: "not signed in",
    403: "the role does not allow it",
    404: "there is no such thing, or none that one may see",
    406: "not in that format",
    413: "the body is too large",
    415: "the body is not of the type that this takes",
    422: "a parameter or field cannot be used",
    429: "too many attempts",
    503: "the database is away, or the question takes too long",
}


def answers(
    model: type[Any], example: Any, *, problems: tuple[int, ...] = (), formats: bool = False, cached: bool = True
) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route. ``formats``: it can also return CSV and Arrow. ``cached``: its answers have an
    ETag."""
    content: dict[str, Any] = {"application/json": {"example": example}}
    if formats:
        content |= {"text/csv": _CSV, "application/vnd.apache.arrow.stream": _ARROW}
    found: dict[int | str, dict[str, Any]] = {200: {"model": model, "description": "as asked for", "content": content}}
    if cached:
        found[304] = {"description": "unchanged since the ETag of If-None-Match"}
    return found | problem_answers(401, 422, 503, *problems, *((406,) if formats else ()))


def takes(example: Any, media: str = "application/json") -> dict[str, Any]:
    """The ``openapi_extra`` of a route: an example of the body that it takes."""
    return {"requestBody": {"content": {media: {"example": example}}}}


def problem_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` for problem documents with these statuses."""
    schema = {"$ref": f"#/components/schemas/{ProblemDocument.__name__}"}
    return {
        status: {"description": _PROBLEM_TEXTS[status], "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in sorted(set(statuses))
    }


PROBLEM_EXAMPLE = {
    "type": "urn:esp-ingest:problem:no-such-well",
    "title": "Not found",
    "status": 404,
    "detail": "There is no well ESP-99 that you may see: /api/v1/wells lists them.",
    "instance": "/api/v1/wells/ESP-99",
}
READING_EXAMPLE: dict[str, Any] = dict.fromkeys(SIGNAL_NAMES) | {
    "timestamp": "2026-11-25T12:00:00Z", "flow_rate": 1850.0, "pip": 612.4, "motor_current": 41.2, "motor_temp": 248.9,
    "vibration": 0.11, "vsd_frequency": 52.0, "gor": 420.0, "discharge_pressure": 2810.0, "wellhead_pressure": 240.0,
    "casing_pressure": 180.0, "intake_temp": 176.0, "leakage_current": 0.4, "drive_voltage": 1180.0,
}  # fmt: skip
ALARM_EXAMPLE = {
    "diagnosis": "gas_lock", "timestamp": "2026-11-25T11:42:10Z", "severity": "high", "state": "unacknowledged",
    "value": 23.1, "threshold": 28.8, "message": "Motor current fell to 56 % of normal while the pump runs",
}  # fmt: skip
WELL_EXAMPLE = {
    "well_id": "ESP-01", "state": "running", "last_seen": "2026-11-25T12:00:00Z", "severity": "high",
    "reading": READING_EXAMPLE, "alarms": [ALARM_EXAMPLE],
}  # fmt: skip
OCCURRENCE_EXAMPLE = {
    "well_id": "ESP-01", **ALARM_EXAMPLE, "cleared_at": None, "peak": 21.7, "occurrences": 2, "confidence": 0.9,
    "actions": ["Lower the frequency by 2 Hz and watch the intake pressure"], "telemetry_snapshot": {"pip": 612.4},
    "shelved_to": None, "verdict": None, "cause": None, "stop_reason": None,
}  # fmt: skip
OUTCOME_EXAMPLE = {
    "items": [
        {
            "well_id": "ESP-01", "diagnosis": "gas_lock", "timestamp": "2026-11-25T11:42:10Z", "outcome": "done",
            "state": "acknowledged",
        }
    ]
}  # fmt: skip
ITEM_EXAMPLE = {"well_id": "ESP-01", "diagnosis": "gas_lock", "timestamp": "2026-11-25T11:42:10Z"}
