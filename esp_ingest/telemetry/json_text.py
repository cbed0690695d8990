"""JSON as devices send it → a tree whose numbers are the text that was sent: ``bytes``, and JSON strings ``str``.

JSON has no NaN and no infinity, but the number formatters of most languages print them, and firmware prints what its
formatter gives. Such a token is accepted wherever a value may stand and becomes a :class:`NotFinite`. Everything else
that is not JSON is refused.
"""

import json
import re
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any, Self

from esp_ingest.model import RejectReason

SPACE = b" \t\n\r"
"""JSON's white space; bytes.strip() alone would take more."""

PADDING = b" \t\n\r\v\f\0"
"""NULs and white space: nobody can mean anything by them at the ends of a payload."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# What the .NET Framework prints for NaN and infinity in the languages of Windows, besides NaN, INF and the sign ∞.
_LOCALISED = (
    r"n\. def\.|unendlich|Non Numérique|Infini|NeuN|Infinito|Non un numero reale|NaN \(Não é um número\)|не число|"
    r"бесконечность|NaN \(非数値\)|非数字|非數值|正无穷大|负无穷大|正無窮大|負無窮大|nie jest liczbą|nieskończoność|"
    r"Není číslo|nekonečno|NaN \(Niet-een-getal\)|Oneindig|Icke-numeriskt"
)
# The Microsoft runtime before 2015 prints 1.#INF, 1.#QNAN, 1.#SNAN or -1.#IND, fills up with zeros, and rounds the
# letters as if they were digits: infinity with two decimals is 1.#J, with one decimal 1.$. Some locales print a comma.
_OLD_MICROSOFT = r"1[.,](?:#[A-Z]+0*|\$0*)(?:E[+-]?\d+)?"
_NOT_FINITE = re.compile(
    # nan(ind), nan(0x8000000000000) of C; NaNQ, NaNS, QNAN, SNAN of AIX and Fortran; ovf of Arduino.
    r"[+-]?(?:[QS]?NAN[QS]?(?:\(\w*\))?|INF(?:INITY)?|OVF|∞|" + f"{_OLD_MICROSOFT}|{_LOCALISED})",
    re.ASCII | re.IGNORECASE,
)
# An unclosed string runs to the end of the text, so that the pattern never fails and stays linear.
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
# Strings are matched to be left alone. Long white space is matched so that no single call scans it for long.
_WORDS = re.compile(
    rf"{_STRING}|[ \t\r\n]{{1024}}|(?P<word>[+-]?(?:{_LOCALISED}|(?i:{_OLD_MICROSOFT}))"
    r'(?=[\s,\]}]|\Z)|[^\s\[\]{},:"]+)',
    re.DOTALL,
)
_STRINGS = re.compile(_STRING, re.DOTALL)
_UNSTORABLE_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
# Before the text of a string that stays escaped; no other string of a tree can begin with it.
_ESCAPED = "\0"
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class Refused(Exception):
    """It cannot be a reading: why, and a sentence of at most 200 printable characters, safe for a log."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail[:200]

    def kept(self) -> Self:
        """Itself, to be kept: without the frames that it was raised in, which would keep the message and its arrays."""
        self.__traceback__ = self.__context__ = None
        return self


class NotFinite(bytes):
    """NaN or an infinity, as it was spelled, in UTF-8."""


class AmbiguousObject(dict[str, Any]):
    """An object in which a key stands twice and says different things. JSON libraries would silently keep one."""

    key = ""


def is_not_finite(text: str) -> bool:
    """Whether a text is a spelling of NaN or of an infinity."""
    return _NOT_FINITE.fullmatch(text) is not None


def is_escaped(text: str) -> bool:
    """Whether a string of a tree stands there escaped as it was sent: PostgreSQL cannot hold it otherwise."""
    return text.startswith(_ESCAPED)


def as_stored(text: str) -> str:
    """The text of a tree's string as PostgreSQL is to hold it."""
    return text[1:] if is_escaped(text) else text


def without_padding(payload: bytes) -> bytes:
    """The payload without a byte order mark in front, and without NULs and white space at either end."""
    body = payload.strip(PADDING)
    return body[len(BYTE_ORDER_MARK) :].lstrip(PADDING) if body.startswith(BYTE_ORDER_MARK) else body


def parse(text: bytes, where: str = "") -> Any:
    """A JSON text, in UTF-8, as a tree. A string that PostgreSQL cannot hold stays escaped as it was sent: for those
    ask is_escaped() and as_stored(). Raises Refused, whose detail names the place, followed by ``where``."""
    decoded = text.decode("utf-8")
    if _UNSTORABLE_ESCAPE.search(decoded) is not None:
        decoded = _STRINGS.sub(_escaped_if_unstorable, decoded)
    try:
        try:
            return _STANDARD.decode(decoded)
        except json.JSONDecodeError:
            standard, spellings = _with_standard_spellings(decoded)
            if not spellings:
                raise
            in_order = iter(spellings)
            return _decoder(lambda _: NotFinite(next(in_order).encode())).decode(standard)
    except json.JSONDecodeError as error:
        rest = error.doc[error.pos :].lstrip(" \t\r\n,")
        if error.msg == "Extra data" and rest[:1] in ("{", "["):
            raise several_texts() from None
        raise Refused(RejectReason.INVALID_JSON, f"Not JSON: {error.msg} at character {error.pos}{where}.") from None
    except RecursionError:
        raise Refused(RejectReason.TOO_DEEP, "Nested too deeply to be read.") from None


def not_utf8(body: bytes, at: int) -> Refused:
    """Why a payload is refused whose byte ``at``, padding not counted, does not belong to UTF-8."""
    looks = "; it looks like UTF-16, send UTF-8" if body[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
    return Refused(RejectReason.INVALID_UTF8, f"Byte {at} is not valid UTF-8{looks}.")


def several_texts() -> Refused:
    """Why a payload with one object after the other is refused, and what to do."""
    return Refused(
        RejectReason.INVALID_JSON,
        "Not JSON: one object after another. Send them as one array, [{...}, {...}], or, if each stands on a line, use "
        "a mapping of lines.",
    )


def _escaped_if_unstorable(match: re.Match[str]) -> str:
    string = match.group()
    if _UNSTORABLE_ESCAPE.search(string) is None:
        return string
    try:
        is_storable = _UNSTORABLE.search(json.loads(string)) is None
    except json.JSONDecodeError:
        return string
    return string if is_storable else encode_basestring(_ESCAPED + string[1:-1])


def _with_standard_spellings(text: str) -> tuple[str, list[str]]:
    """The text with every NaN and infinity outside strings spelled NaN, and how they were spelled, in their order."""
    parts: list[str] = []
    spellings: list[str] = []
    at = 0
    for match in _WORDS.finditer(text):
        word = match["word"]
        if word is not None and is_not_finite(word):
            spellings.append(word)
            parts += (text[at : match.start()], "NaN")
            at = match.end()
    return "".join([*parts, text[at:]]), spellings


def _decoder(constant: Callable[[str], Any]) -> json.JSONDecoder:
    return json.JSONDecoder(
        parse_float=str.encode, parse_int=str.encode, parse_constant=constant, object_pairs_hook=_object
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) == len(pairs):
        return tree
    for key, value in pairs:
        if type(tree[key]) is not type(value) or tree[key] != value:
            ambiguous = AmbiguousObject(tree)
            ambiguous.key = key
            return ambiguous
    return tree


_STANDARD = _decoder(lambda text: NotFinite(text.encode()))
