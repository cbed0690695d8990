"""The shapes of answers, for the OpenAPI schema. Answers are encoded from plain data and not through these models,
which would take longer than the query; a test holds the two together (schemathesis reads every answer against the
schema)."""

from datetime import date, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    create_model,
)

from esp_ingest.model import SIGNALS

Severity = Literal["critical", "high", "medium", "low", "info"]
State = Literal["running", "stopped", "unknown", "silent"]
Next = Annotated[str | None, Field(description="address of the next page, null at the end")]
Base64 = Annotated[bytes, WithJsonSchema({"type": "string", "contentEncoding": "base64"})]
Item = TypeVar("Item", bound=BaseModel)


class Page(BaseModel, Generic[Item]):
    """Some of a list, or all of it."""

    items: list[Item]
    next: Next


class ProblemDocument(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(description="urn:esp-ingest:problem:… names the kind of problem")
    title: str
    status: int
    detail: str = Field(description="a sentence that says what to do")
    instance: str = Field(description="the path that was asked for")
    errors: list[dict[str, Any]] = Field(default_factory=list, description="each parameter or field at fault")


class Tokens(BaseModel):
    """A session's tokens. The refresh token is good for one use."""

    access_token: str
    refresh_token: str | None = Field(None, description="left out if an OpenID provider gives none")
    token_type: Literal["bearer"]
    expires_in: int = Field(description="seconds that the access token lives")


class Me(BaseModel):
    """Who sent the request."""

    name: str
    role: Literal["viewer", "operator", "admin"]
    wells: list[str] = Field(description="patterns of the wells that one may see; * stands for any text")
    kind: Literal["user", "token", "oidc"]
    expires_at: datetime = Field(description="when the token ends")


class AuthMethods(BaseModel):
    """How to sign in: the name and password of a local user, or through an OpenID provider."""

    method: Literal["local", "oidc"]
    issuer: str | None = Field(description="of the OpenID provider")
    audience: str | None = Field(description="that its tokens must be for")
    authorization_endpoint: str | None = Field(
        None, description="of the OpenID provider, where a browser signs in; null while the provider does not answer"
    )
    client_id: str | None = Field(None, description="of the console at the provider")
    scope: str | None = Field(None, description="what the console asks the provider for")


_signals: dict[str, Any] = {
    signal.name: (
        float | None,
        Field(description=f"{signal.description}, {signal.unit}", json_schema_extra={"unit": signal.unit}),
    )
    for signal in SIGNALS
}
NewestReading = create_model("NewestReading", timestamp=(datetime, ...), **_signals)


class OpenAlarm(BaseModel):
    """An open occurrence at a well."""

    diagnosis: str
    timestamp: datetime = Field(description="when it was raised, in event time")
    severity: Severity
    state: str
    value: float | None
    threshold: float | None
    message: str


class Well(BaseModel):
    """A well as it is now. ``severity`` is that of its worst alarm that is not suppressed."""

    well_id: str
    state: State
    last_seen: datetime
    severity: Severity | None
    reading: NewestReading
    alarms: list[OpenAlarm]


class WellPage(Page[Well]):
    """A page of wells."""

    total: int = Field(description="wells that fit the filter")
    units: dict[str, str]


class WellDetail(Well):
    """A well with what else is known of its newest reading."""

    units: dict[str, str]
    received_at: datetime
    extra: dict[str, Any] | None = Field(description="keys that nobody declared")
    quality: dict[str, Any] | None = Field(description="values as sent that could not be used")
    limits: dict[str, dict[str, float]] = Field(description="hard limits by signal: low and high")
    shelved: list[dict[str, Any]]
    rules_off: list[dict[str, Any]] = Field(description="rules that cannot run at this well, and why")
    has_pump: bool = Field(description="whether a pump curve is configured: /api/v1/wells/{well_id}/pump")
    silent_after_seconds: float = Field(description="a well that sent nothing for so long is silent")


class PumpPoint(BaseModel):
    """A pump's curve at a frequency, and where the newest reading lies beside it."""

    well_id: str
    timestamp: datetime = Field(description="of the newest reading")
    vsd_frequency: float | None = Field(description="Hz, of the newest reading")
    curve_hz: float = Field(
        description="the frequency that the curve is for: the reading's, or the catalogue's if the pump stands still "
        "or its frequency is not known"
    )
    curve: list[tuple[float, float]] = Field(description="[flow, head] of the whole pump, by rising flow")
    recommended: tuple[float, float] | None = Field(description="recommended flows, from and to, if configured")
    gradient_psi_per_ft: float = Field(description="of the fluid, by which head is made of the pressures")
    flow_rate: float | None
    head: float | None = Field(description="of discharge less intake pressure, null if one of them is missing")
    curve_head: float | None = Field(description="what the curve gives at this flow, null beside its ends")
    virtual_flow_rate: float | None = Field(
        description="the flow at which the curve gives this head: what a pump as new would give, if nothing meters it"
    )
    thrust: Literal["down", "normal", "up"] | None = Field(
        description="flow_rate (without one virtual_flow_rate) beside the recommended range; null if one is not known"
    )
    drawdown: float | None = Field(description="reservoir less intake pressure, null where it is not configured")
    bubble_point_margin: float | None = Field(
        description="intake pressure less bubble point: below 0 gas is free at the intake; null if not configured"
    )
    units: dict[str, str]


class Telemetry(BaseModel):
    """Rows in the order of the columns. The first column is the time, RFC 3339 UTC."""

    well_id: str
    resolution: str = Field(description="raw, or the width of a bucket such as 30s, 15m, 1h, 1d")
    units: dict[str, str]
    columns: list[str]
    rows: list[list[Any]]
    next: Next


class Fleet(BaseModel):
    """Sums over the wells that one may see."""

    wells: int
    states: dict[str, int]
    alarms: dict[str, int] = Field(
        description="open by severity, without what is held back: /api/v1/alarms?state=active"
    )
    unacknowledged: int = Field(description="open, to be acknowledged and no event: /api/v1/alarms?state=waiting")
    shelved: int = Field(description="open and shelved: /api/v1/alarms?state=shelved")
    alarms_24h: int = Field(description="raised in the last 24 h, without events and what was held back")
    rejects_24h: int | None = Field(description="null for a user who may not see all wells")
    flow_rate: float | None = Field(description="sum of the newest rates of the running wells")
    last_seen: datetime | None
    silent_after_seconds: float = Field(description="a well that sent nothing for so long is silent")
    units: dict[str, str]


class Alarm(BaseModel):
    """An occurrence, as in diagnostic_results, with its shelving and verdict."""

    well_id: str
    diagnosis: str
    timestamp: datetime = Field(description="when it was raised, in event time")
    severity: Severity
    state: str
    cleared_at: datetime | None
    value: float | None
    threshold: float | None
    peak: float | None
    occurrences: int
    confidence: float | None
    message: str
    actions: Any
    telemetry_snapshot: Any
    shelved_to: datetime | None
    verdict: Literal["true", "false", "unclear"] | None
    cause: str | None
    stop_reason: str | None


class AlarmPage(Page[Alarm]):
    """A page of occurrences, newest first."""


class AlarmAction(BaseModel):
    """What an operator did."""

    id: int
    at: datetime
    well_id: str
    diagnosis: str
    action: Literal["ack", "shelve", "unshelve", "note", "verdict"]
    by_whom: str
    why: str
    raised_at: datetime | None
    shelved_to: datetime | None
    detail: dict[str, Any]


class AlarmActionPage(Page[AlarmAction]):
    """A page of what operators did, newest first."""


class Outcome(BaseModel):
    """What became of an item. ``unchanged``: there was nothing to do, as somebody was faster."""

    well_id: str
    diagnosis: str
    timestamp: datetime | None
    outcome: Literal["done", "unchanged"]
    state: str | None = Field(description="of the occurrence now, null where none is open")


class Outcomes(BaseModel):
    """One outcome for each item of the body, in the same order."""

    items: list[Outcome]


class Loud(BaseModel):
    """A diagnosis at a well that raised many of the alarms."""

    well_id: str
    diagnosis: str
    alarms: int
    occurrences: int


class Chattering(BaseModel):
    """A diagnosis at a well that was raised three or more times within a minute."""

    well_id: str
    diagnosis: str
    per_minute: float


class Stale(BaseModel):
    """An alarm that had been open for more than 24 hours when the range ended."""

    well_id: str
    diagnosis: str
    timestamp: datetime
    severity: Severity


class Kpis(BaseModel):
    """ISA-18.2 performance of the alarm system over a range. ``flood`` is more than 10 alarms in 10 minutes."""

    model_config = ConfigDict(populate_by_name=True)

    start: datetime = Field(alias="from")
    to: datetime
    alarms: int
    wells: int
    alarms_per_hour: float
    alarms_per_10_minutes: float
    peak_10_minutes: int
    flood_share: float = Field(description="share of the 10-minute intervals that are in flood")
    acknowledged: int
    median_seconds_to_acknowledge: float | None
    by_severity: dict[str, int]
    loudest: list[Loud]
    loudest_share: float = Field(description="share of all alarms that the ten loudest have")
    chattering: list[Chattering]
    stale: list[Stale]


class Precision(BaseModel):
    """How often a rule was right, of the alarms that an operator judged."""

    diagnosis: str
    judged: int
    true_alarms: int
    false_alarms: int
    unclear: int
    precision: float | None = Field(description="true / (true + false)")


class PrecisionPage(Page[Precision]):
    """All rules that were judged; there is only one page."""


class Loss(BaseModel):
    """What the stops of a well for one reason cost within the range."""

    well_id: str
    planned: bool = Field(description="commanded or ramped down: the rule planned_stop, else trip")
    reason: str | None = Field(description="the stop reason of the last verdict on the stop, else its cause")
    stops: int
    lost_hours: float
    lost_production: float | None = Field(
        description="bbl: lost hours at the 24-hour median of the flow before each stop; null if that is not known"
    )
    without_rate: int = Field(description="stops that lost_production leaves out, because their flow is not known")
    down: int = Field(description="stops that are not over")


class LossPage(Page[Loss]):
    """All wells and reasons, the most lost hours first; there is only one page."""


class Reject(BaseModel):
    """A message, or an item of one, that could not be stored as a reading."""

    id: str
    received_at: datetime
    topic: str
    reason: str
    detail: str
    item: int
    redelivered: bool
    payload: Base64 = Field(description="byte for byte, base64")
    replayed_at: datetime | None
    replay_outcome: str | None


class RejectPage(Page[Reject]):
    """A page of rejects, newest first."""


class ArchiveDay(BaseModel):
    """As `lifecycle status --json`."""

    table: str
    day: date
    rows_database: int
    rows_archived: int
    verified_at: datetime | None
    dropped_at: datetime | None
    bytes: int
    problem: str


class ArchivePage(Page[ArchiveDay]):
    """A page of archived days, newest first."""


class Daemon(BaseModel):
    """What the daemon says of itself."""

    status: Literal["ok", "failing", "unreachable", "unknown"]
    checks: dict[str, Any]
    figures: dict[str, float]
    rates: dict[str, float] = Field(description="a second, since the look before")


class AuditLine(BaseModel):
    """Something that a user did, or that was refused to somebody."""

    id: int
    at: datetime
    who: str
    address: str
    action: str
    detail: dict[str, Any]


class AuditPage(Page[AuditLine]):
    """A page of the audit log, newest first."""


class UserLine(BaseModel):
    """A local user."""

    name: str
    role: Literal["viewer", "operator", "admin"]
    wells: list[str]
    created_at: datetime
    disabled_at: datetime | None
    tokens: int = Field(description="machine tokens that hold")


class UserPage(Page[UserLine]):
    """All local users; there is only one page."""


class Signal(BaseModel):
    """A measured quantity, its units, and the limits outside of which the instrument is taken to be wrong."""

    name: str
    unit: str
    unit_metric: str
    low: float
    high: float
    description: str


class SignalPage(Page[Signal]):
    """All signals; there is only one page."""


class Health(BaseModel):
    """Whether the process is well, and each thing that was looked at."""

    status: Literal["ok", "failing"]
    checks: dict[str, Any]
