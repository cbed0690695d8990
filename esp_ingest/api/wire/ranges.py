"""Reads the parameters `from` and `to` of a request, and limits the length of a range."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from esp_ingest.api.wire.problems import Problem, invalid
from esp_ingest.model import at_us
from esp_ingest.telemetry.timestamps import lacks_offset, parse_moment


class Range(NamedTuple):
    """From a time up to, but not including, another; both UTC."""

    start: datetime
    end: datetime

    @property
    def seconds(self) -> float:
        """Length of the range in seconds."""
        return (self.end - self.start).total_seconds()


def moment(name: str, text: str | None, now_us: int) -> datetime | None:
    """The time in the parameter ``name``: RFC 3339 with an offset, or an age such as 2h. None if it is left out.
    Raises Problem 422."""
    if text is None:
        return None
    spelled = text.strip()
    if len(spelled) > 6 and spelled[-6] == " " and spelled[-3] == ":":
        spelled = f"{spelled[:-6]}+{spelled[-5:]}"  # a plus that was not percent-encoded
    try:
        return at_us(parse_moment(spelled, now_us))
    except (ValueError, OverflowError):
        hint = ": it lacks its offset, such as Z" if lacks_offset(spelled) else ""
        raise invalid(
            name,
            f"{name} is not a time{hint}: write RFC 3339 with an offset, such as 2026-11-24T06:00:00Z, or an age such "
            "as 2h.",
        ) from None


def days_before(moment: datetime, days: int) -> datetime:
    """So many days before ``moment``, or the beginning of the calendar."""
    beginning = datetime.min.replace(tzinfo=UTC)
    return moment - min(timedelta(days=days), moment - beginning)


def is_fixed(*texts: str | None) -> bool:
    """Whether each of these spellings stands for one moment for ever: a time, and neither an age nor nothing."""
    return all(text is not None and text.strip()[:4].isdigit() and text.strip()[4:5] == "-" for text in texts)


def range_of(start: str | None, end: str | None, now_us: int, max_days: int, default: timedelta) -> Range:
    """The range from ``start`` (or else ``default`` before its end) to ``end`` (or else now). Raises Problem 422."""
    last = moment("to", end, now_us) or at_us(now_us)
    try:
        first = moment("from", start, now_us) or last - default
    except OverflowError:
        raise invalid("to", "to lies before all data: write a later time.") from None
    _check(first, last, max_days)
    return Range(first, last)


def bounds_of(
    start: str | None, end: str | None, now_us: int, max_days: int
) -> tuple[datetime | None, datetime | None]:
    """``from`` and ``to``, None for what is left out. Raises Problem 422."""
    first, last = moment("from", start, now_us), moment("to", end, now_us)
    if first is not None and last is not None:
        _check(first, last, max_days)
    return first, last


def _check(first: datetime, last: datetime, max_days: int) -> None:
    """Raises Problem 422 for a range that is reversed or longer than ``max_days``."""
    if first >= last:
        raise invalid("from", "from must lie before to.")
    if last - first > timedelta(days=max_days):
        raise Problem(
            422,
            "range-too-long",
            f"A question spans at most {max_days} days (api.max_range_days): ask for one piece after the other.",
            errors=[{"parameter": "from", "detail": f"more than {max_days} days before to"}],
        )
