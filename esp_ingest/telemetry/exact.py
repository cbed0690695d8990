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
from esp_ingest.model import SIGNAL_NAMES, SIGNAL_ROW, IntArray, RejectReason, Unusable, whole_bytes_of
from esp_ingest.telemetry.json_text import (
    SPACE,
    AmbiguousObject,
    NotFinite,
    Refused,
    as_stored,
    is_escaped,
    is_not_finite,
    not_utf8,
    parse,
    without_padding,
)
from esp_ingest.telemetry.limits import HardLimits
from esp_ingest.telemetry.timestamps import (
    NO_TIME,
    from_number,
    parse_rfc3339,
    what_it_looks_like,
    what_the_text_looks_like,
)

KNOWN_KEYS = frozenset((*SIGNAL_NAMES, "timestamp", "well_id"))

LONGEST_NUMBER = 400
"""Characters of a number that is kept as a number. jsonb's numeric ends at 131 072 digits before the point and 16 383
after it, and beyond that the database would refuse the row; such numbers are kept as strings, spelled as sent."""

ESCAPED = "escaped as sent"
"""What ``quality`` says of an unknown key in which a text is kept escaped, because PostgreSQL cannot hold it."""

MOST_REJECTS = 100
"""Items of one message that become rejects of their own. Of a message with more bad ones, its good items are stored and
all its bad ones are one reject, the whole message: 4 MB of ``[{},{},…]`` would otherwise become a million rejects."""

LARGE_ARRAY = 64  # items
SHORTEST_READING = len('{"timestamp":0,"gor":0},')
"""In larger arrays whose items are shorter than that on average, the bad ones are one reject from the first on."""

_TOGETHER = 1024  # items of an array that are parsed in one go

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,3})?")
# An unclosed string runs to the end of the payload, so that the pattern never fails and stays linear.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NAMES = (
    (dict, "an object"),
    (list, "an array"),
    (str, "a string"),
    (bytes, "a number"),
    (bool, "a boolean"),
    (type(None), "null"),
)
_KINDS = ((dict, Unusable.OBJECT), (list, Unusable.ARRAY), (bool, Unusable.BOOLEAN))
_TEXT_TOGETHER = 65_536  # characters of a text that are escaped in one go


class ExactReading(NamedTuple):
    """One reading. ``extra`` and ``quality`` are JSON objects as text; ``unusable`` are the declared signals that have
    no value because what was sent is none, and why."""

    timestamp_us: int
    values: list[float]
    extra: str | None
    quality: str | None
    unusable: list[tuple[str, Unusable]]


@dataclass(slots=True)
class BadItems:
    """The items of one message that are not readings: how many, the first of them, and up to ``most`` as rejects of
    their own: (place in the array, why, bytes)."""

    most: int
    count: int = 0
    first: tuple[int, Refused] | None = None
    rejects: list[tuple[int, Refused, bytes]] = field(default_factory=list)

    def add(self, place: int, refused: Refused, item: bytes) -> None:
        """One more, at ``place`` of its array; the first and a bounded number of others are kept."""
        self.first = self.first or (place, refused.kept())
        self.count += 1
        if self.count <= self.most:
            self.rejects.append((place, refused.kept(), item))

    def settled(self, items: int, payload: bytes) -> list[tuple[int, Refused, bytes]]:
        """The rejects of a message of so many ``items``: one that holds the whole payload if there are too many."""
        if self.first is None or self.count <= self.most:
            return self.rejects
        return [(0, _together(self.count, items, *self.first), payload)]


@dataclass(slots=True)
class Judged:
    """What became of a message's items: (place in the array, reading), and (place, why, bytes) of what is refused."""

    readings: list[tuple[int, ExactReading]] = field(default_factory=list)
    rejects: list[tuple[int, Refused, bytes]] = field(default_factory=list)


class _Pieces(NamedTuple):
    """An array taken apart: item k stands in ``body`` after ``edges[k]`` and ends before ``edges[k + 1]``; ``depth`` is
    how many brackets are open after each byte. ``first`` is the place of the first item in the message."""

    body: bytes
    edges: IntArray
    depth: IntArray
    first: int

    def item(self, place: int) -> bytes:
        return self.body[int(self.edges[place]) + 1 : int(self.edges[place + 1])].strip(SPACE)


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
                self.refuse_depth(int(_depth(_without_strings(body)).max()))
            tree = parse(body)
            try:
                judged.readings.append((0, self.read(tree, well, received_us)))
            except Refused as refused:
                judged.rejects.append((0, refused.kept(), payload))
            return judged
        pieces = self._take_apart(body)
        items = len(pieces.edges) - 1
        bad = BadItems(most_rejects(items, len(body)))
        judged.readings = list(self._items(pieces, well, received_us, only, bad))
        judged.rejects = bad.settled(items, payload)
        return judged

    def judge_piece(
        self, piece: bytes, first: int, well: str, received_us: int, only: Sequence[int] | None, bad: BadItems
    ) -> list[tuple[int, ExactReading]]:
        """Items of a large array, cut out as an array of their own that begins with item ``first``: readings, with
        their places in the piece; what is not one is added to ``bad``. Raises Refused for what is not JSON."""
        return list(self._items(self._take_apart(piece, first), well, received_us, only, bad))

    def _items(
        self, pieces: _Pieces, well: str, received_us: int, only: Sequence[int] | None, bad: BadItems
    ) -> Iterator[tuple[int, ExactReading]]:
        for place, tree in self._trees(pieces, only):
            if bad.count > bad.most and not (isinstance(tree, dict) and tree.get("timestamp")):
                bad.count += 1  # certainly not a reading, and its reason is not told
                continue
            try:
                yield place, self.read(tree, well, received_us)
            except Refused as refused:
                bad.add(pieces.first + place, refused, pieces.item(place) if bad.count < bad.most else b"")

    def _body(self, payload: bytes) -> bytes:
        """The payload without padding. Raises Refused where it is no UTF-8 text of a sensible size."""
        self.refuse_size(payload)
        body = without_padding(payload)
        if not body:
            raise Refused(RejectReason.EMPTY_PAYLOAD, "The payload is empty.")
        try:
            body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(body, error.start) from None
        return body

    def refuse_size(self, payload: bytes) -> None:
        """Raises Refused for a payload of more than ``telemetry.max_payload_bytes``, and for one that was cut off."""
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

    def _take_apart(self, body: bytes, first: int = 0) -> _Pieces:
        """By the array's own commas, so that each item keeps its bytes and a bad one is refused alone."""
        structure = _without_strings(body)
        depth = _depth(structure)
        if not (body[-1:] == b"]" and depth[-1] == 0 and bool((depth[:-1] > 0).all())):
            self.refuse_depth(int(depth.max()))
            parse(body)  # says what is wrong
            raise Refused(RejectReason.INVALID_JSON, "Not JSON: the brackets do not match.")
        if not body[1:-1].strip(SPACE):
            raise Refused(RejectReason.NOT_AN_OBJECT, "An empty array holds no reading.")
        commas = np.flatnonzero((structure == ord(",")) & (depth == 1))
        edges = np.concatenate([[0], commas, [len(body) - 1]])
        return _Pieces(body, edges, depth, first)

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
            trees = parse(b"[" + pieces.body[first + 1 : last] + b"]")
        except Refused:
            return None
        return trees if isinstance(trees, list) and len(trees) == end - start else None

    def _tree(self, pieces: _Pieces, place: int) -> Any:
        start, end = int(pieces.edges[place]), int(pieces.edges[place + 1])
        deepest = int(pieces.depth[start : end + 1].max())
        if deepest > self._max_depth:
            return self._too_deep(deepest)
        return parse(pieces.item(place), f" in item {pieces.first + place}")

    def refuse_depth(self, deepest: int) -> None:
        """Raises Refused for more than ``telemetry.max_depth`` levels."""
        if deepest > self._max_depth:
            raise self._too_deep(deepest)

    def _too_deep(self, deepest: int) -> Refused:
        return Refused(RejectReason.TOO_DEEP, f"Nested {deepest} levels deep; telemetry.max_depth = {self._max_depth}.")

    def read(self, tree: Any, well: str, received_us: int) -> ExactReading:
        """An item's tree → a reading of ``well``. Raises Refused, for the first of these that holds: no object, a key
        twice, timestamp, well_id, no signal, too far ahead, too old, a key twice in an object of ``extra``. Unknown
        keys with strings that stay escaped as they were sent are named in ``quality``."""
        if isinstance(tree, Refused):
            raise tree
        if not isinstance(tree, dict):
            raise Refused(RejectReason.NOT_AN_OBJECT, f"A reading is an object; this is {_name(tree)}.")
        _refuse_ambiguous(tree)
        timestamp_us = _timestamp(tree)
        _check_well(tree, well)
        values, extra, quality, unusable = self._signals(tree, well)
        self._check_age(timestamp_us, received_us)
        quality.update({key: ESCAPED for key, value in extra.items() if _holds_escaped(key, value)})
        extra_text = _dump(extra) if extra else None
        return ExactReading(timestamp_us, values, extra_text, _dump(quality) if quality else None, unusable)

    def _signals(
        self, tree: dict[str, Any], well: str
    ) -> tuple[list[float], dict[str, Any], dict[str, Any], list[tuple[str, Unusable]]]:
        """(values, extra, quality, unusable). Extra signals that are configured stay in extra if they are usable."""
        values = [math.nan] * len(SIGNAL_NAMES)
        extra: dict[str, Any] = {}
        quality: dict[str, Any] = {}
        unusable: list[tuple[str, Unusable]] = []
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
            seen = True
            low, high = limits[row] if row is not None else declared or (-math.inf, math.inf)
            value = _float(token)
            if not low <= value <= high:
                quality[key] = token if math.isfinite(value) or not isinstance(token, bytes) else token.decode("utf-8")
                unusable.append((key, _kind(token)))
            elif row is not None:
                values[row] = value
            else:
                extra[key] = token
        if not seen:
            raise Refused(RejectReason.NO_SIGNAL, "None of its keys is a signal with a value.")
        return values, extra, quality, unusable

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


def most_rejects(items: int, size_bytes: int) -> int:
    """How many bad items of a message may become rejects of their own."""
    return 0 if is_crowded(items, size_bytes) else MOST_REJECTS


def _together(bad: int, items: int, place: int, first: Refused) -> Refused:
    """Why the bad items of a message are one reject; its reason is that of the first of them."""
    return Refused(first.reason, f"{bad} of {items} items are no readings, kept as one. Item {place}: {first.detail}")


def _without_strings(body: bytes) -> npt.NDArray[np.uint8]:
    """The bytes (n,) with each string, quotes included, blanked out: brackets and commas left are structure."""
    return np.frombuffer(_STRING.sub(lambda match: b'"' * len(match.group()), body), np.uint8)


def _depth(structure: npt.NDArray[np.uint8]) -> IntArray:
    """How many brackets are open after each byte (n,)."""
    opening = (structure == ord("[")) | (structure == ord("{"))
    closing = (structure == ord("]")) | (structure == ord("}"))
    return np.cumsum(opening.astype(np.int64) - closing)


def _refuse_ambiguous(tree: dict[str, Any]) -> None:
    if isinstance(tree, AmbiguousObject):
        raise _twice(tree.key)


def _twice(key: str) -> Refused:
    return Refused(RejectReason.INVALID_JSON, f"The key {_shown(key)} stands twice, with different values.")


def _timestamp(tree: dict[str, Any]) -> int:
    sent = tree.get("timestamp")
    if sent is None:
        raise Refused(RejectReason.MISSING_TIMESTAMP, "There is no timestamp.")
    if isinstance(sent, str):
        micros = parse_rfc3339(sent)
        hint = what_the_text_looks_like(sent) if micros == NO_TIME else ""
    elif isinstance(sent, NotFinite):
        micros, hint = NO_TIME, "it is not a number"
    elif isinstance(sent, bytes):
        milliseconds = _milliseconds(sent)
        micros = from_number(milliseconds)
        hint = what_it_looks_like(milliseconds) if micros == NO_TIME else ""
    else:
        raise Refused(RejectReason.WRONG_TYPE, f"timestamp is {_name(sent)}, not a string or a number.")
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
    if not isinstance(sent, str | bytes):
        raise Refused(RejectReason.WRONG_TYPE, f"well_id is {_name(sent)}, not a string.")
    if (sent if isinstance(sent, str) else sent.decode("utf-8")) != well:
        raise Refused(RejectReason.WELL_ID_MISMATCH, f"well_id {_shown(sent)} is not the topic's {_shown(well)}.")


def _float(token: Any) -> float:
    """A number; NaN for everything else."""
    if not isinstance(token, bytes) or isinstance(token, NotFinite):
        return math.nan
    # The integer -0 is 0, as it is for every JSON library; the real number -0.0 keeps its sign.
    return 0.0 if token == b"-0" else float(token)


def _kind(token: Any) -> Unusable:
    """Why a value that was sent for a signal is not stored."""
    if isinstance(token, str):
        return Unusable.NOT_FINITE if is_not_finite(token.strip()) else Unusable.STRING
    if isinstance(token, bytes):
        return Unusable.NOT_FINITE if isinstance(token, NotFinite) else Unusable.OUT_OF_RANGE
    return next(kind for of_type, kind in _KINDS if isinstance(token, of_type))


def _name(tree: Any) -> str:
    return next(name for of_type, name in _NAMES if isinstance(tree, of_type))


def _holds_escaped(key: str, value: Any) -> bool:
    """Whether a key, its value or anything inside that is a string that stays escaped."""
    if is_escaped(key) or (isinstance(value, str) and is_escaped(value)):
        return True
    if isinstance(value, dict):
        return any(_holds_escaped(inner, each) for inner, each in value.items())
    return isinstance(value, list) and any(_holds_escaped("", each) for each in value)


def _dump(tree: Any) -> str:
    """A tree as JSON text that jsonb takes. Raises Refused for a key that stands twice with different values."""
    if isinstance(tree, dict):
        _refuse_ambiguous(tree)
        for key in tree:
            if is_escaped(key) and as_stored(key) in tree:  # two keys as sent, and one in the database
                raise _twice(as_stored(key))
        return "{" + ", ".join(f"{_text(key)}: {_dump(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(_dump, tree)) + "]"
    if isinstance(tree, bytes):
        return _number(tree)
    return _text(tree) if isinstance(tree, str) else json.dumps(tree)


def _number(token: bytes) -> str:
    """Verbatim where jsonb can hold it as a number, else (NaN, 500 digits) as a string."""
    storable = len(token) <= LONGEST_NUMBER and _NUMBER.fullmatch(token) is not None
    return token.decode("ascii") if storable else encode_basestring(token.decode("utf-8"))


def _text(text: str) -> str:
    """A string of a tree as JSON text."""
    text = as_stored(text)
    if len(text) <= _TEXT_TOGETHER:
        return encode_basestring(text)
    parts = [text[at : at + _TEXT_TOGETHER] for at in range(0, len(text), _TEXT_TOGETHER)]
    return '"' + "".join([encode_basestring(part)[1:-1] for part in parts]) + '"'


def _shown(sent: str | bytes) -> str:
    """Something from outside, made safe for a log: printable ASCII, at most 60 characters."""
    text = sent[:400].decode("utf-8", "replace") if isinstance(sent, bytes) else as_stored(sent[:400])
    shown = text[:60].encode("unicode_escape").decode("ascii")[:60]
    return f'"{shown}"' if isinstance(sent, str) else shown
