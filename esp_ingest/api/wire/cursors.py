"""Cursors of pages: the sort key of the last row, encoded so that clients need not understand it. A page is found by
this key and not by an offset, so that rows which come or go in between are neither repeated nor skipped."""

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from fastapi import Request

from esp_ingest.api.wire.answers import link
from esp_ingest.api.wire.problems import Problem, invalid

T = TypeVar("T")
_LONGEST = 2_000


def encode(tag: str, *values: Any) -> str:
    """The cursor of the list called ``tag`` after a row with these key values: texts, numbers and datetimes."""
    return base64.urlsafe_b64encode(msgspec.json.encode([tag, *values])).rstrip(b"=").decode()


def decode(tag: str, text: str | None, kinds: Sequence[type]) -> list[Any] | None:
    """The key values in a cursor, None without a cursor. Raises Problem 422 for a cursor of another list."""
    if text is None:
        return None
    try:
        if len(text) > _LONGEST:
            raise ValueError
        raw = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        found = msgspec.json.decode(raw)
        if not isinstance(found, list) or len(found) != 1 + len(kinds) or found[0] != tag:
            raise ValueError
        return [_value(value, kind) for value, kind in zip(found[1:], kinds, strict=True)]
    except (ValueError, binascii.Error, msgspec.MsgspecError, UnicodeEncodeError):
        raise bad() from None


def decode_id(tag: str, text: str | None) -> int | None:
    """Like :func:`decode`, for a list whose key is one number of 64 bits. None for a number that no row can have."""
    found = decode(tag, text, (int,))
    return found[0] if found and 0 <= found[0] < 2**63 else None


def page(
    request: Request, rows: Sequence[T], limit: int, tag: str, key: Callable[[T], Sequence[Any]]
) -> tuple[Sequence[T], str | None]:
    """The rows of a page, and the address of the next page, None at the end. ``rows`` are what was found when one
    row more than ``limit`` was asked for. ``key`` gives the key values of a row."""
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], link(request, cursor=encode(tag, *key(rows[limit - 1])))


def bad() -> Problem:
    """The problem for a cursor that cannot be used."""
    return invalid("cursor", "The cursor is not one of this list: follow the next link as it is, or leave it out.")


def _value(value: Any, kind: type) -> Any:
    found: Any = msgspec.convert(value, kind)
    if isinstance(found, datetime) and found.tzinfo is None:
        raise ValueError
    if isinstance(found, str) and "\0" in found:
        raise ValueError
    return found
