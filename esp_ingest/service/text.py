"""Times and durations as text for people and machines, and the nearest valid word for a wrong one."""

import difflib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1)  # naive, so that isoformat() writes no offset: it is UTC throughout


def rfc3339(time_us: int, *, digits: str = "microseconds") -> str:
    """Microseconds since the epoch as RFC 3339 in UTC: ``2026-11-24T06:00:00.000000Z``. ``digits`` is the timespec of
    datetime.isoformat. Raises OverflowError outside the years 1 to 9999."""
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat(timespec=digits) + "Z"


def rfc3339_of(at: datetime) -> str:
    """As :func:`rfc3339`, of a datetime with a zone, with as many digits as there are."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def moment(time_us: int) -> str:
    """For people: ``2013-06-12 03:45 UTC``, with seconds if they are not 0."""
    at = datetime.fromtimestamp(time_us // 1_000_000, UTC)
    return at.strftime("%Y-%m-%d %H:%M UTC" if at.second == 0 else "%Y-%m-%d %H:%M:%S UTC")


def span(seconds: float) -> str:
    """For people: ``45 s``, ``12 min``, ``3.5 h``, ``2.1 d``."""
    for size, name in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size or (size == 60.0 and seconds >= 60):
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} s"


def closest(wrong: str, known: Iterable[str]) -> str | None:
    """The valid word that ``wrong`` was probably meant to be, or None if none comes close."""
    found = difflib.get_close_matches(wrong, sorted(known), n=1, cutoff=0.5)
    return found[0] if found else None


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`` (did you mean …?)`` to append to a clause, or `` (known: …)`` if nothing comes close."""
    words = sorted(known)
    found = closest(wrong, words)
    return f" (did you mean {found}?)" if found else f" (known: {', '.join(words)})"
