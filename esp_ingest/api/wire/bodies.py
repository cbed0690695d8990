"""The bodies of requests: what a client may send. Unknown fields are refused."""

from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
)

from esp_ingest.config.section import WELL_ID_PATTERN

WellId = Annotated[str, StringConstraints(pattern=f"^{WELL_ID_PATTERN}$")]
_LONGEST_TEXT = 2_000
_LONGEST_SECRET = 8_000  # refresh tokens of OpenID providers are often JWTs


def _only_text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("must be RFC 3339 text with an offset, such as 2026-11-24T06:00:00Z")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_only_text)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _text(most: int, least: int = 0, description: str = "", default: Any = ...) -> Any:
    """A text that PostgreSQL can hold: it has no NUL."""
    return Field(default, min_length=least, max_length=most, pattern=r"^[^\x00]*$", description=description)


class RefreshBody(_Body):
    """A refresh token, to be exchanged or to be ended."""

    refresh_token: str = Field(min_length=1, max_length=_LONGEST_SECRET)


class OidcBody(_Body):
    """What the browser brings back from the OpenID provider."""

    code: str = Field(min_length=1, max_length=_LONGEST_SECRET, description="that the provider gave")
    code_verifier: str = Field(
        pattern=r"^[A-Za-z0-9._~-]{43,128}$", description="whose SHA-256 was the code_challenge (PKCE, RFC 7636)"
    )
    redirect_uri: str = Field(max_length=2_000, description="as it was sent to the provider: the console's own address")
    nonce: str | None = Field(
        None, min_length=1, max_length=200, description="as it was sent to the provider; its ID token must have it"
    )


class AlarmItem(_Body):
    """One alarm. Shelving is of a diagnosis at a well, so it needs no time."""

    well_id: WellId
    diagnosis: str = _text(100, 1)
    timestamp: Moment | None = Field(None, description="when it was raised; all that wait, if left out")


class OccurrenceItem(_Body):
    """One occurrence."""

    well_id: WellId
    diagnosis: str = _text(100, 1)
    timestamp: Moment = Field(description="when it was raised")


_MOST_ITEMS = 500


class AckBody(_Body):
    """Which alarms to acknowledge or to unshelve."""

    items: list[AlarmItem] = Field(min_length=1, max_length=_MOST_ITEMS)
    why: str = _text(_LONGEST_TEXT, description="the reason, kept", default="")


class NoteBody(_Body):
    """A remark on each of these alarms."""

    items: list[AlarmItem] = Field(min_length=1, max_length=_MOST_ITEMS)
    why: str = _text(_LONGEST_TEXT, 1, "the remark")

    @field_validator("why")
    @classmethod
    def _says_something(cls, why: str) -> str:
        if not why.strip():
            raise ValueError("A remark says something: write it in why.")
        return why


class ShelveBody(_Body):
    """Which alarms to hold back, until when and why. Either `until` or `duration` must be given."""

    items: list[AlarmItem] = Field(min_length=1, max_length=_MOST_ITEMS)
    why: str = _text(_LONGEST_TEXT, 1, "the reason, kept")
    until: Moment | None = Field(
        None,
        validation_alias=AliasChoices("until", "shelved_to"),
        description="the end, at most 30 days from now; this or duration",
    )
    duration: str | None = Field(
        None,
        max_length=20,
        validation_alias=AliasChoices("duration", "for"),
        description="such as 8h or 3d; this or until",
    )


class VerdictBody(_Body):
    """Whether these alarms were right, and what was found at the well."""

    items: list[OccurrenceItem] = Field(min_length=1, max_length=_MOST_ITEMS)
    verdict: Literal["true", "false", "unclear"]
    cause: str = _text(_LONGEST_TEXT, description="what it was", default="")
    stop_reason: str = _text(_LONGEST_TEXT, description="why the well stopped, if it did", default="")
    why: str = _text(_LONGEST_TEXT, description="how one knows", default="")
