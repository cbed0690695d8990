"""The exact reader: one message at a time, number by number as it was sent. It decides what a reading is.

decode.py reads clean messages in bulk and hands everything else here: whatever is refused, out of range or merely
unusual. So there is one place that gives reasons, and speed never changes an outcome. About 10 µs a reading.

Numbers stay the text they were sent as (``bytes``, where JSON strings are ``str``): 1e400, a 30-digit integer and NaN
keep their spelling in ``quality`` and ``extra``.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from esp_ingest.config.settings import TelemetrySettings
from esp_ingest.model import SIGNAL_NAMES, SIGNAL_ROW, IntArray, RejectReason, whole_bytes_of
from esp_ingest.telemetry.limits import HardLimits
from esp_ingest.telemetry.timestamps import NO_TIME, from_number, lacks_offset, parse_rfc3339

KNOWN_KEYS = frozenset((*SIGNAL_NAMES, "timestamp", "well_id"))

LONGEST_NUMBER = 400
"""Characters of a number that is kept as a number. jsonb's numeric ends at 131 072 digits before the point and 16 383
after it, and beyond that the database would refuse the row; such numbers are kept as strings, spelled as sent."""

MOST_REJECTS = 100
"""Items of one message that become rejects of their own. Of a message with more bad ones, its good items are stored and
all its bad ones are one reject, the whole message: 4 MB of ``[{},{},…]`` would otherwise become a million rejects."""

LARGE_ARRAY = 64  # items
SHORTEST_READING = len('{"timestamp":0,"gor":0},')
"""In larger arrays whose items are shorter than that on average, the bad ones are one reject from the first on."""

_TOGETHER = 1024  # items of an array that are parsed in one go

_SPACE = b" \t\n\r"  # JSON's white space; bytes.strip() alone would take more
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,3})?")
# An unclosed string runs to the end of the payload, so that the pattern never fails and stays linear.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bytes: "a number",
    bool: "a boolean",
    type(None): "null",
}


class Refused(Exception):
    """It cannot be a reading: why, and a sentence of at most 200 printable characters, safe for a log."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail[:200]


class ExactReading(NamedTuple):
    """One reading. ``extra`` and ``quality`` are JSON objects as text; ``out_of_range``: the keys of quality."""

    timestamp_us: int
    values: list[float]
    extra: str | None
    quality: str | None
    out_of_range: list[str]


@dataclass(slots=True)
class Judged:
    """What became of a message's items: (place in the array, reading), and (place, why, bytes) of what is refused."""

    readings: list[tuple[int, ExactReading]] = field(default_factory=list)
    rejects: list[tuple[int, Refused, bytes]] = field(default_factory=list)


class _Pieces(NamedTuple):
    """An array taken apart: item k stands in ``body`` after ``edges[k]`` and ends before ``edges[k + 1]``; ``depth`` is
    how many brackets are open after each byte. ``crowded``: most of the items are too short to be readings."""

    body: bytes
    edges: IntArray
    depth: IntArray
    crowded: bool

    def item(self, place: int) -> bytes:
        return self.body[int(self.edges[place]) + 1 : int(self.edges[place + 1])].strip(_SPACE)


class _TwiceWithDifferentValues(dict[str, Any]):
    """An object in which a key stands twice and says different things. JSON libraries would silently keep one."""

    key = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) == len(pairs):
        return tree
    for key, value in pairs:
        if type(tree[key]) is not type(value) or tree[key] != value:
            ambiguous = _TwiceWithDifferentValues(tree)
            ambiguous.key = key
            return ambiguous
    return tree


_JSON = json.JSONDecoder(
    parse_float=str.encode, parse_int=str.encode, parse_constant=str.encode, object_pairs_hook=_object
)


class ExactReader:
    """Reads messages one at a time. Stateless after construction."""

    def __init__(self, settings: TelemetrySettings, limits: HardLimits) -> None:
        self._max_payload_bytes = settings.max_payload_bytes
        self._max_depth = settings.max_depth
        self._max_ahead_us = round(settings.max_ahead_seconds * 1e6)
        self._max_age_us = round(settings.max_age_days * 86_400e6)
        self._limits = limits

    def judge(self, payload: bytes, well: str, received_us: int, only: Sequence[int] | None = None) -> Judged:
        """Every item of a message; of a message known to be JSON, those at ``only`` suffice.

        Raises Refused for what concerns the message as a whole."""
        body = self._body(payload)
        judged = Judged()
        if body[:1] != b"[":
            if body.count(b"[") + body.count(b"{") > self._max_depth:
                self._refuse_depth(int(_depth(_without_strings(body)).max()))
            tree = _parse(body, "")
            try:
                judged.readings.append((0, self.read(tree, well, received_us)))
            except Refused as refused:
                judged.rejects.append((0, refused, payload))
            return judged
        pieces = self._take_apart(body)
        most = 0 if pieces.crowded else MOST_REJECTS
        first: tuple[int, Refused] | None = None
        bad = 0
        for place, tree in self._trees(pieces, only):
            if bad > most and not isinstance(tree, dict):
                bad += 1  # certainly no reading, and its reason is not told
                continue
            try:
                judged.readings.append((place, self.read(tree, well, received_us)))
            except Refused as refused:
                first = first or (place, refused)
                bad += 1
                if bad <= most:
                    judged.rejects.append((place, refused, pieces.item(place)))
        if first is not None and bad > most:
            judged.rejects = [(0, _together(bad, len(pieces.edges) - 1, *first), payload)]
        return judged

    def _body(self, payload: bytes) -> bytes:
        """The payload without white space around it. Raises Refused where it is no UTF-8 text of a sensible size."""
        if len(payload) > self._max_payload_bytes:
            raise Refused(
                RejectReason.PAYLOAD_TOO_LARGE,
                f"{len(payload)} bytes are more than telemetry.max_payload_bytes = {self._max_payload_bytes}.",
            )
        whole_bytes = whole_bytes_of(payload)
        if whole_bytes is not None:
            raise Refused(
                RejectReason.PAYLOAD_TOO_LARGE,
                f"{whole_bytes} bytes are more than mqtt.max_packet_bytes lets in: the beginning is kept.",
            )
        body = payload.strip(_SPACE)
        if not body:
            raise Refused(RejectReason.EMPTY_PAYLOAD, "The payload is empty.")
        try:
            body.decode("utf-8")
        except UnicodeDecodeError as error:
            at = error.start + len(payload) - len(payload.lstrip(_SPACE))
            raise Refused(RejectReason.INVALID_UTF8, f"Byte {at} is not valid UTF-8.") from None
        return body

    def _take_apart(self, body: bytes) -> _Pieces:
        """By the array's own commas, so that each item keeps its bytes and a bad one is refused alone."""
        structure = _without_strings(body)
        depth = _depth(structure)
        if not (body[-1:] == b"]" and depth[-1] == 0 and bool((depth[:-1] > 0).all())):
            self._refuse_depth(int(depth.max()))
            _parse(body, "")  # says what is wrong
            raise Refused(RejectReason.INVALID_JSON, "Not JSON: the brackets do not match.")
        if not body[1:-1].strip(_SPACE):
            raise Refused(RejectReason.NOT_AN_OBJECT, "An empty array holds no reading.")
        commas = np.flatnonzero((structure == ord(",")) & (depth == 1))
        edges = np.concatenate([[0], commas, [len(body) - 1]])
        return _Pieces(body, edges, depth, is_crowded(len(commas) + 1, len(body)))

    def _trees(self, pieces: _Pieces, only: Sequence[int] | None) -> Iterator[tuple[int, Any]]:
        """(place, JSON tree, or what stands against it). Raises Refused where an item is not JSON."""
        if only is not None:
            for place in only:
                yield place, self._tree(pieces, place)
            return
        count = len(pieces.edges) - 1
        for start in range(0, count, _TOGETHER):
            end = min(start + _TOGETHER, count)
            trees = self._trees_together(pieces, start, end)
            if trees is not None:
                yield from enumerate(trees, start)
                continue
            for place in range(start, end):
                yield place, self._tree(pieces, place)

    def _trees_together(self, pieces: _Pieces, start: int, end: int) -> list[Any] | None:
        """The items ``start`` … ``end`` parsed in one go; None where they have to be looked at one by one."""
        first, last = int(pieces.edges[start]), int(pieces.edges[end])
        if int(pieces.depth[first : last + 1].max()) > self._max_depth:
            return None
        try:
            trees = _parse(b"[" + pieces.body[first + 1 : last] + b"]", "")
        except Refused:
            return None
        return trees if isinstance(trees, list) and len(trees) == end - start else None

    def _tree(self, pieces: _Pieces, place: int) -> Any:
        start, end = int(pieces.edges[place]), int(pieces.edges[place + 1])
        deepest = int(pieces.depth[start : end + 1].max())
        return self._too_deep(deepest) if deepest > self._max_depth else _parse(pieces.item(place), f" in item {place}")

    def _refuse_depth(self, deepest: int) -> None:
        if deepest > self._max_depth:
            raise self._too_deep(deepest)

    def _too_deep(self, deepest: int) -> Refused:
        return Refused(RejectReason.TOO_DEEP, f"Nested {deepest} levels deep; telemetry.max_depth = {self._max_depth}.")

    def read(self, tree: Any, well: str, received_us: int) -> ExactReading:
        """An item's tree → a reading of ``well``. Raises Refused, for the first of these that holds: no object, a key
        twice, timestamp, well_id, a wrong type, no signal, text that cannot be stored, too far ahead, too old."""
        if isinstance(tree, Refused):
            raise tree
        if not isinstance(tree, dict):
            raise Refused(RejectReason.NOT_AN_OBJECT, f"A reading is an object; this is {_NAMES[type(tree)]}.")
        _refuse_ambiguous(tree)
        timestamp_us = _timestamp(tree)
        _check_well(tree, well)
        values, extra, quality = self._signals(tree, well)
        extra_text = _dump(extra) if extra else None
        self._check_age(timestamp_us, received_us)
        quality_text = _quality(quality) if quality else None
        return ExactReading(timestamp_us, values, extra_text, quality_text, list(quality))

    def _signals(self, tree: dict[str, Any], well: str) -> tuple[list[float], dict[str, Any], dict[str, bytes]]:
        """(values, extra, quality). Extra signals that are configured stay in extra unless they are out of range."""
        values = [math.nan] * len(SIGNAL_NAMES)
        extra: dict[str, Any] = {}
        quality: dict[str, bytes] = {}
        limits = self._limits.of(well)
        seen = False
        for key, token in tree.items():
            row = SIGNAL_ROW.get(key)
            declared = self._limits.extra.get(key)
            if row is None and declared is None:
                if key not in KNOWN_KEYS:
                    extra[key] = token
                continue
            if token is None:
                continue
            value = _float(key, token)
            seen = True
            low, high = limits[row] if row is not None else declared or (-math.inf, math.inf)
            if not low <= value <= high:
                quality[key] = token
            elif row is not None:
                values[row] = value
            else:
                extra[key] = token
        if not seen:
            raise Refused(RejectReason.NO_SIGNAL, "None of its keys is a signal with a value.")
        return values, extra, quality

    def _check_age(self, timestamp_us: int, received_us: int) -> None:
        ahead_us = timestamp_us - received_us
        if ahead_us > self._max_ahead_us:
            raise Refused(
                RejectReason.TIMESTAMP_AHEAD,
                f"The timestamp lies {ahead_us / 1e6:.0f} s ahead; telemetry.max_ahead_seconds = "
                f"{self._max_ahead_us / 1e6:g}.",
            )
        if self._max_age_us and -ahead_us > self._max_age_us:
            raise Refused(
                RejectReason.TIMESTAMP_TOO_OLD,
                f"The timestamp is {-ahead_us / 86_400e6:.1f} days old; telemetry.max_age_days = "
                f"{self._max_age_us / 86_400e6:g}.",
            )


def is_crowded(items: int, size_bytes: int) -> bool:
    """Whether so many items in so few bytes are not worth a reject each."""
    return items > LARGE_ARRAY and items * SHORTEST_READING > size_bytes


def _together(bad: int, items: int, place: int, first: Refused) -> Refused:
    """Why the bad items of a message are one reject; its reason is that of the first of them."""
    return Refused(first.reason, f"{bad} of {items} items are no readings, kept as one. Item {place}: {first.detail}")


def _parse(text: bytes, where: str) -> Any:
    try:
        return _JSON.decode(text.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise Refused(RejectReason.INVALID_JSON, f"Not JSON: {error.msg} at character {error.pos}{where}.") from None
    except RecursionError:
        raise Refused(RejectReason.TOO_DEEP, "Nested too deeply to be read.") from None


def _without_strings(body: bytes) -> npt.NDArray[np.uint8]:
    """The bytes (n,) with each string, quotes included, blanked out: brackets and commas left are structure."""
    return np.frombuffer(_STRING.sub(lambda match: b'"' * len(match.group()), body), np.uint8)


def _depth(structure: npt.NDArray[np.uint8]) -> IntArray:
    """How many brackets are open after each byte (n,)."""
    opening = (structure == ord("[")) | (structure == ord("{"))
    closing = (structure == ord("]")) | (structure == ord("}"))
    return np.cumsum(opening.astype(np.int64) - closing)


def _refuse_ambiguous(tree: dict[str, Any]) -> None:
    if isinstance(tree, _TwiceWithDifferentValues):
        raise Refused(RejectReason.INVALID_JSON, f"The key {_shown(tree.key)} stands twice, with different values.")


def _timestamp(tree: dict[str, Any]) -> int:
    sent = tree.get("timestamp")
    if sent is None:
        raise Refused(RejectReason.MISSING_TIMESTAMP, "There is no timestamp.")
    if isinstance(sent, str):
        micros = parse_rfc3339(sent)
        hint = "it has no offset" if micros == NO_TIME and lacks_offset(sent) else "it is not RFC 3339 with an offset"
    elif isinstance(sent, bytes):
        micros = from_number(_milliseconds(sent))
        hint = "as epoch milliseconds it lies outside the years 1 to 9999"
    else:
        raise Refused(
            RejectReason.WRONG_TYPE, f"timestamp is {_NAMES.get(type(sent), 'an object')}, not a string or a number."
        )
    if micros == NO_TIME:
        raise Refused(RejectReason.INVALID_TIMESTAMP, f"The timestamp {_shown(sent)} is not valid: {hint}.")
    return micros


def _milliseconds(token: bytes) -> float:
    """An integer stays an int, exact; anything of 20 digits or more is far outside any year and may be a float."""
    return int(token) if len(token) < 20 and token.lstrip(b"-").isdigit() else float(token)


def _check_well(tree: dict[str, Any], well: str) -> None:
    if "well_id" not in tree:
        return
    sent = tree["well_id"]
    if not isinstance(sent, str):
        raise Refused(RejectReason.WRONG_TYPE, f"well_id is {_NAMES.get(type(sent), 'an object')}, not a string.")
    if sent != well:
        raise Refused(RejectReason.WELL_ID_MISMATCH, f"well_id {_shown(sent)} is not the topic's {_shown(well)}.")


def _float(key: str, token: Any) -> float:
    if not isinstance(token, bytes):
        kind = _NAMES.get(type(token), "an object")
        raise Refused(RejectReason.WRONG_TYPE, f"{_shown(key)} is {kind}, not a number.")
    # The integer -0 is 0, as it is for every JSON library; the real number -0.0 keeps its sign.
    return 0.0 if token == b"-0" else float(token)


def _dump(tree: Any) -> str:
    """A tree as JSON text that jsonb takes. Raises Refused for text that PostgreSQL cannot store."""
    if isinstance(tree, dict):
        _refuse_ambiguous(tree)
        return "{" + ", ".join(f"{_text(key)}: {_dump(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(_dump, tree)) + "]"
    if isinstance(tree, bytes):
        return _number(tree)
    return _text(tree) if isinstance(tree, str) else json.dumps(tree)


def _quality(tokens: dict[str, bytes]) -> str:
    """The values as sent. What no double can hold (NaN, Infinity, 1e400) is a string, as readers would make it inf."""
    parts = []
    for key, sent in tokens.items():
        value = _number(sent) if math.isfinite(float(sent)) else f'"{sent.decode()}"'
        parts.append(f"{_text(key)}: {value}")
    return "{" + ", ".join(parts) + "}"


def _number(token: bytes) -> str:
    """Verbatim where jsonb can hold it as a number, else (NaN, 500 digits) as a string."""
    text = token.decode("ascii")
    storable = len(token) <= LONGEST_NUMBER and _NUMBER.fullmatch(token) is not None
    return text if storable else f'"{text}"'


def _text(text: str) -> str:
    """A text as JSON string. Raises Refused for what PostgreSQL cannot store."""
    if "\0" in text:
        raise Refused(RejectReason.UNSTORABLE_TEXT, "A text holds a NUL character, which PostgreSQL cannot store.")
    try:
        if not text.isascii():
            text.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused(
            RejectReason.UNSTORABLE_TEXT, "A text holds half a surrogate pair, which is no character."
        ) from None
    return encode_basestring(text)


def _shown(sent: str | bytes) -> str:
    """Something from outside, made safe for a log: printable ASCII, at most 60 characters."""
    text = sent.decode("ascii", "replace") if isinstance(sent, bytes) else sent
    shown = text[:60].encode("unicode_escape").decode("ascii")[:60]
    return f'"{shown}"' if isinstance(sent, str) else shown
