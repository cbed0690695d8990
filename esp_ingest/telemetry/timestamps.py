"""Timestamps as controllers send them → microseconds since the Unix epoch (UTC), or not at all.

Two forms, from CONTRACT.md: RFC 3339 with an offset, and epoch milliseconds as a number. Nothing is guessed: a text
without an offset, a date that does not exist or an instant outside the years 1 … 9999 (UTC) is not a timestamp, nor is
a number before 2000-01-01, which is rather a count of seconds. Three near misses of ISO 8601 have only one meaning and
are read: the offsets ``+0100`` and ``+01``, and a comma before the fraction.

- Digits beyond microseconds are cut off, as the unit of timestamptz is the microsecond.
- A number with a fraction is rounded to the nearest microsecond: the double nearest to 1370044800000.123 lies a little
  below it, and cutting would turn 123 µs into 122.
- Second 60 (a leap second) is refused. timestamptz has no place for it, and moving it onto the next second would make
  the real reading of that second a duplicate.

There are two implementations of the same grammar: :func:`parse_rfc3339` for one text, and a numpy one that takes texts
of one length at a time. A property test holds them together.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from esp_ingest.model import IntArray

Characters = npt.NDArray[np.uint8]
NO_TIME = -(2**63)
"""What stands for "no timestamp" in an int64 array; no instant of the years 1 … 9999 has this value."""

MIN_US = -62_135_596_800_000_000  # 0001-01-01T00:00:00Z
MAX_US = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z
_MIN_MS, _MAX_MS = 946_684_800_000, MAX_US // 1000  # 2000-01-01T00:00:00Z
_UNITS = (("seconds", 1e-3), ("microseconds", 1e3), ("nanoseconds", 1e6))  # and how many are a millisecond
_MAX_LIKELY_MS = 4_102_444_800_000  # 2100-01-01T00:00:00Z

# Below this many texts of one length the numpy calls cost more than parsing each.
_VECTOR_FROM = 24
_VECTOR_LENGTHS = range(len("2026-11-24T21:00:00Z"), len("2026-11-24T21:00:00.123456789+01:00") + 1)

_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:[.,](\d+))?(?:[Zz]|([+-])(\d\d)(?::?(\d\d))?)", re.ASCII
)
_QUOTED_NUMBER = re.compile(r"\s*[+-]?\d{1,40}(?:\.\d{0,40})?\s*", re.ASCII)
_MONTH_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])


def from_number(number: float) -> int:
    """Epoch milliseconds (int or float, not bool) → µs, or NO_TIME outside the years 2000 … 9999 (NaN too)."""
    if not _MIN_MS <= number <= _MAX_MS:
        return NO_TIME
    return number * 1000 if isinstance(number, int) else round(number * 1000.0)


def what_it_looks_like(number: float) -> str:
    """What is wrong with a number that is not a timestamp, as the end of a sentence."""
    for unit, per_millisecond in _UNITS:
        if _MIN_MS <= number / per_millisecond <= _MAX_LIKELY_MS:
            return f"it looks like epoch {unit}; send epoch milliseconds"
    if number < _MIN_MS:
        return "as epoch milliseconds it lies before 2000-01-01; is the device's clock set?"
    return "as epoch milliseconds it lies after the year 9999"


def what_the_text_looks_like(text: str) -> str:
    """What is wrong with a text that is not a timestamp, as the end of a sentence."""
    if lacks_offset(text):
        return "it has no offset"
    if _QUOTED_NUMBER.fullmatch(text) is None:
        return "it is not RFC 3339 with an offset"
    number = float(text)
    if from_number(number) != NO_TIME:
        return "it is a quoted number; send epoch milliseconds as a number, without quotes"
    return f"it is a quoted number, and {what_it_looks_like(number)}, without quotes"


def parse_rfc3339(text: str) -> int:
    """RFC 3339 with offset, or one of its three near misses → µs, or NO_TIME if it is anything else."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        return NO_TIME
    year, month, day, hour, minute, second = map(int, match.group(1, 2, 3, 4, 5, 6))
    fraction, sign, offset_hour, offset_minute = match.group(7, 8, 9, 10)
    if not (1 <= month <= 12 and 1 <= day <= _days_in_month(year, month) and hour < 24 and minute < 60 and second < 60):
        return NO_TIME
    seconds = _days_since_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second
    if sign is not None:
        if int(offset_hour) > 23 or int(offset_minute or 0) > 59:
            return NO_TIME
        offset_seconds = int(offset_hour) * 3600 + int(offset_minute or 0) * 60
        seconds += offset_seconds if sign == "-" else -offset_seconds
    micros = seconds * 1_000_000 + (int(fraction[:6].ljust(6, "0")) if fraction else 0)
    return micros if MIN_US <= micros <= MAX_US else NO_TIME


_AGE = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)([smhdw])", re.ASCII)
_AGE_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def parse_duration(text: str) -> float:
    """A duration as an operator types it, such as 90s, 2h or 7d, in seconds. Raises ValueError."""
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no duration: write a number and s, m, h, d or w, such as 2h")
    return float(match[1]) * _AGE_SECONDS[match[2]]


def parse_moment(text: str, now_us: int) -> int:
    """A time as an operator types it: RFC 3339 with an offset, or an age such as 2h, → µs. Raises ValueError."""
    found = parse_rfc3339(text.strip())
    if found != NO_TIME:
        return found
    try:
        return now_us - round(parse_duration(text) * 1e6)
    except ValueError:
        raise ValueError(
            f"{text!r} is no time: write RFC 3339 with an offset, such as 2026-11-24T06:00:00Z, or an age such as 2h"
        ) from None


def lacks_offset(text: str) -> bool:
    """Whether an offset is all that is missing: the likeliest mistake, and worth a sentence of its own."""
    return parse_rfc3339(text) == NO_TIME and parse_rfc3339(text + "Z") != NO_TIME


def parse_column(column: Sequence[Any]) -> IntArray:
    """A column of str, int, float or anything else → µs (n,), NO_TIME wherever there is no valid timestamp."""
    kinds = set(map(type, column))
    if kinds == {str}:
        return _parse_texts(column)
    if kinds == {int} and min(column) >= _MIN_MS and max(column) <= _MAX_MS:
        return np.array(column, np.int64) * 1000
    out = np.full(len(column), NO_TIME, np.int64)
    texts: list[int] = []
    for at, value in enumerate(column):
        kind = type(value)
        if kind is str:
            texts.append(at)
        elif kind is int or kind is float:
            out[at] = from_number(value)
    if texts:
        out[texts] = _parse_texts([column[at] for at in texts])
    return out


def _parse_texts(texts: Sequence[str]) -> IntArray:
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    first = int(lengths[0])
    if len(texts) >= _VECTOR_FROM and first in _VECTOR_LENGTHS and bool((lengths == first).all()):
        joined = "".join(texts)
        if joined.isascii():
            return _parse_block(joined, first)
    out = np.empty(len(texts), np.int64)
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length).tolist()
        joined = "".join(texts[row] for row in rows)
        if len(rows) >= _VECTOR_FROM and length in _VECTOR_LENGTHS and joined.isascii():
            out[rows] = _parse_block(joined, length)
        else:
            out[rows] = [parse_rfc3339(texts[row]) for row in rows]
    return out


def _parse_block(joined: str, length: int) -> IntArray:
    """Texts of one length, end to end, ASCII. Those with the same form of offset are laid out alike: Z, ±hh:mm, or
    ±hhmm and ±hh, which are completed first."""
    chars = np.frombuffer(joined.encode("ascii"), np.uint8).reshape(-1, length)
    zulu = (chars[:, -1] | 0x20) == ord("z")
    if zulu.all():
        return _parse_layout(chars, length - 20, zulu=True)
    out = np.full(len(chars), NO_TIME, np.int64)
    out[zulu] = _parse_layout(chars[zulu], length - 20, zulu=True)
    for offset_width, missing in ((6, b""), (5, b":"), (3, b":00")):
        fraction_width = length + len(missing) - len("2026-11-24T21:00:00+00:00")
        sign = chars[:, -offset_width]
        rows = ~zulu & ((sign == ord("+")) | (sign == ord("-")))
        if fraction_width < 0 or not rows.any():
            continue
        minutes = length - offset_width + len("+00")
        filling = np.broadcast_to(np.frombuffer(missing, np.uint8), (int(np.count_nonzero(rows)), len(missing)))
        complete = np.concatenate([chars[rows, :minutes], filling, chars[rows, minutes:]], axis=1)
        out[rows] = _parse_layout(complete, fraction_width, zulu=False)
    return out


def _parse_layout(chars: Characters, fraction_width: int, *, zulu: bool) -> IntArray:
    """Rows of characters (n, length) whose fraction, with its point, takes ``fraction_width`` characters."""
    if fraction_width == 1:  # a point without a digit
        return np.full(len(chars), NO_TIME, np.int64)
    columns = np.ascontiguousarray(chars.T)
    digits = columns - np.uint8(48)  # wraps: anything but a digit is > 9
    date_separator, time_separator = columns[10] | 0x20, ord(":")
    valid = (columns[4] == ord("-")) & (columns[7] == ord("-"))
    valid &= (date_separator == ord("t")) | (columns[10] == ord(" "))
    valid &= (columns[13] == time_separator) & (columns[16] == time_separator)
    places = [11, 12, 14, 15, 17, 18, *range(20, 19 + fraction_width)]
    if fraction_width:
        valid &= (columns[19] == ord(".")) | (columns[19] == ord(","))
    if not zulu:
        places += [-5, -4, -2, -1]
    valid &= (digits[places] <= 9).all(axis=0)

    hour, minute, second = (digits[at] * np.uint8(10) + digits[at + 1] for at in (11, 14, 17))
    valid &= (hour < 24) & (minute < 60) & (second < 60)
    if len(chars) and (chars[:, :10] == chars[0, :10]).all():  # one day, as in most batches: worked out once
        exists = np.ones(1, np.bool_)
        days = _days(digits[:, :1], exists)
        valid &= exists
    else:
        days = _days(digits, valid)
    seconds = days * 86_400 + (hour * np.int32(3600) + minute * np.int32(60) + second)
    if not zulu:
        seconds -= _offset_seconds(columns, digits, valid)
    micros = seconds * 1_000_000
    micros += _fraction_us(digits[20 : min(26, 19 + fraction_width)])
    valid &= (micros >= MIN_US) & (micros <= MAX_US)
    return np.where(valid, micros, NO_TIME)


def _days(digits: Characters, valid: npt.NDArray[np.bool_]) -> IntArray:
    """Days since the epoch (n,) of dates, their first ten characters; clears ``valid`` where there is no such date."""
    valid &= (digits[[0, 1, 2, 3, 5, 6, 8, 9]] <= 9).all(axis=0)
    wide = digits[:10].astype(np.int64)
    year = wide[0] * 1000 + wide[1] * 100 + wide[2] * 10 + wide[3]
    month, day = wide[5] * 10 + wide[6], wide[8] * 10 + wide[9]
    valid &= (month >= 1) & (month <= 12)
    safe_month = np.where(valid, month, 1)
    leap = (safe_month == 2) & (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    valid &= (day >= 1) & (day <= _MONTH_DAYS[safe_month] + leap)
    days: IntArray = _days_since_epoch(year, safe_month, day)
    return days


def _fraction_us(digits: Characters) -> npt.NDArray[np.int32]:
    """The digits of a fraction (up to six rows, n) as microseconds."""
    micros = np.zeros(digits.shape[1], np.int32)
    scale = 100_000
    for row in digits:
        micros += row * np.int32(scale)
        scale //= 10
    return micros


def _offset_seconds(columns: Characters, digits: Characters, valid: npt.NDArray[np.bool_]) -> IntArray:
    """The last six characters, ±hh:mm, as seconds; clears ``valid`` where they are anything else."""
    hour, minute = (digits[at].astype(np.int64) * 10 + digits[at + 1] for at in (-5, -2))
    sign, colon = columns[-6], columns[-3]
    valid &= (colon == ord(":")) & ((sign == ord("+")) | (sign == ord("-"))) & (hour < 24) & (minute < 60)
    seconds: IntArray = (hour * 60 + minute) * 60
    return np.where(sign == ord("-"), -seconds, seconds)


def _days_in_month(year: int, month: int) -> int:
    leap = month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return int(_MONTH_DAYS[month]) + leap


def _days_since_epoch(year: Any, month: Any, day: Any) -> Any:
    """Days from 1970-01-01 in the proleptic Gregorian calendar; ints or int arrays.

    Source: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil."""
    year = year - (month <= 2)
    era_year = year % 400
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    day_of_era = era_year * 365 + era_year // 4 - era_year // 100 + day_of_year
    return (year // 400) * 146_097 + day_of_era - 719_468
