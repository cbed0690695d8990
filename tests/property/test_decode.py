"""decode.py against a plain reference decoder written here, on anything Hypothesis can think of."""

import json
import math
import re
import struct
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st

from esp_ingest.config.settings import TelemetrySettings
from esp_ingest.model import SIGNAL_NAMES, SIGNALS, Decoded, Delivery
from esp_ingest.telemetry import timestamps
from esp_ingest.telemetry.decode import Decoder

NOW = datetime(2026, 11, 24, 21, 0, 0, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOW_US = (NOW - EPOCH) // timedelta(microseconds=1)
CONFIG = TelemetrySettings.model_validate(
    {
        "max_depth": 6,
        "max_payload_bytes": 6_000,
        "limits": {"gor": {"high": 1_000}},
        "wells": {"w2": {"pip": {"low": 10, "high": 500}}},
        "extra_signals": {"torque": {"low": 0, "high": 50}},
    }
)
SIGNALS_OF_ALL = {*SIGNAL_NAMES, "torque"}
Outcome = tuple[Any, ...]


# --- the reference: one payload at a time, no speed, no shared code -------------------------------------------------


class Bad(Exception):
    pass


def reference(delivery: Delivery) -> list[Outcome]:
    def refuse(reason: str, payload: bytes, item: int = 0) -> list[Outcome]:
        return [("reject", reason, payload, item, delivery.topic)]

    topic = re.fullmatch(rb"esp/([A-Za-z0-9._-]{1,64})/telemetry", delivery.topic)
    payload = delivery.payload
    if not topic:
        return refuse("invalid_topic", payload)
    if len(payload) > CONFIG.max_payload_bytes:
        return refuse("payload_too_large", payload)
    try:
        body = unpadded(payload).decode()
    except UnicodeDecodeError:
        return refuse("invalid_utf8", payload)
    if not body:
        return refuse("empty_payload", payload)
    well = topic.group(1).decode()
    if body[0] == "[":
        try:
            pieces = split(body)
        except Bad as bad:
            return refuse(str(bad), payload)
        if not pieces:
            return refuse("not_an_object", payload)
        out: list[Outcome] = []
        for place, (piece, tree) in enumerate(pieces):
            try:
                out.append(judge(tree, well, depth(piece) + 1))
            except Bad as bad:
                out += refuse(str(bad), piece.encode(), place)
        return together(out, payload, crowded=len(pieces) > 64 and len(pieces) * 24 > len(body.encode()))
    try:
        if depth(body) > CONFIG.max_depth:
            raise Bad("too_deep")
        return [judge(parse(body), well, depth(body))]
    except Bad as bad:
        return refuse(str(bad), payload)


def unpadded(payload: bytes) -> bytes:
    """Byte by byte: white space and NULs at both ends, and one byte order mark after those in front."""
    nothing = {0, 9, 10, 11, 12, 13, 32}
    while payload and payload[-1] in nothing:
        payload = payload[:-1]
    for mark in (b"\xef\xbb\xbf", b""):
        while payload and payload[0] in nothing:
            payload = payload[1:]
        payload = payload[len(mark) :] if payload.startswith(mark) else payload
    return payload


def together(out: list[Outcome], payload: bytes, crowded: bool) -> list[Outcome]:
    """More than 100 bad items, or any among many that are too short, are one reject of the whole message."""
    bad = [outcome for outcome in out if outcome[0] == "reject"]
    if len(bad) <= (0 if crowded else 100):
        return out
    good = [outcome for outcome in out if outcome[0] != "reject"]
    return [*good, ("reject", bad[0][1], payload, 0, bad[0][4])]


class Num(str):
    pass


class Odd(Num):
    """A number that is none: NaN or an infinity."""


class Raw(str):
    """The inside of a string as it stands in the text, escapes and all."""

    def plain(self) -> str:
        try:
            return str(json.loads(f'"{self}"'))
        except json.JSONDecodeError:
            raise Bad("invalid_json") from None


ODD = (
    "nan",
    "-nan",
    "NaN",
    "+Inf",
    "-inf",
    "Infinity",
    "-Infinity",
    "1.#QNAN",
    "-1.#IND",
    "-1.#IND00",
    "-1.#IND",
    "nan(ind)",
    "∞",
    "n. def.",
)
BLANK = " \t\r\n"


def parse(text: str) -> Any:
    tree, end = value(text, 0)
    if text[end:].strip(BLANK):
        raise Bad("invalid_json")
    return tree


def value(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at or after ``at``, and where it ends: a parser by recursive descent."""
    at = after_blanks(text, at)
    first = text[at : at + 1]
    if first == '"':
        return string(text, at)
    if first == "{":
        return members(text, at)
    if first == "[":
        return items(text, at)
    for word, meaning in (("true", True), ("false", False), ("null", None)):
        if text.startswith(word, at):
            return meaning, at + len(word)
    for odd in sorted(ODD, key=len, reverse=True):
        if text[at : at + len(odd)].lower() == odd.lower():
            end = at + len(odd)
            if text[end : end + 1] not in ("", *BLANK, ",", "]", "}"):
                raise Bad("invalid_json")
            return Odd(text[at:end]), end
    number = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?").match(text, at)
    if not number:
        raise Bad("invalid_json")
    return Num(number.group()), number.end()


def after_blanks(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in BLANK:
        at += 1
    return at


def string(text: str, at: int) -> tuple[Raw, int]:
    end = at + 1
    while text[end : end + 1] != '"':
        if end >= len(text):
            raise Bad("invalid_json")
        end += 2 if text[end] == "\\" else 1
    raw = Raw(text[at + 1 : end])
    raw.plain()
    return raw, end + 1


def items(text: str, at: int) -> tuple[list[Any], int]:
    out: list[Any] = []
    at = after_blanks(text, at + 1)
    if text[at : at + 1] == "]":
        return out, at + 1
    while True:
        item, at = value(text, at)
        out.append(item)
        at = after_blanks(text, at)
        if text[at : at + 1] == "]":
            return out, at + 1
        if text[at : at + 1] != ",":
            raise Bad("invalid_json")
        at += 1


def members(text: str, at: int) -> tuple[Any, int]:
    out: list[tuple[Raw, Any]] = []
    at = after_blanks(text, at + 1)
    if text[at : at + 1] == "}":
        return ("object", out), at + 1
    while True:
        at = after_blanks(text, at)
        if text[at : at + 1] != '"':
            raise Bad("invalid_json")
        key, at = string(text, at)
        at = after_blanks(text, at)
        if text[at : at + 1] != ":":
            raise Bad("invalid_json")
        item, at = value(text, at + 1)
        out.append((key, item))
        at = after_blanks(text, at)
        if text[at : at + 1] == "}":
            return ("object", out), at + 1
        if text[at : at + 1] != ",":
            raise Bad("invalid_json")
        at += 1


def split(body: str) -> list[tuple[str, Any]]:
    """Items of an array with their text."""
    if depth(body) > CONFIG.max_depth:
        with suppress(Bad):
            parse(body)
            return split_valid(body)
        reject()  # too deep and no JSON besides: which of the two is said first is nobody's business
    return split_valid(body)


def split_valid(body: str) -> list[tuple[str, Any]]:
    parse(body)
    out: list[tuple[str, Any]] = []
    at = after_blanks(body, 1)
    while body[at] != "]":
        start = after_blanks(body, at)
        tree, end = value(body, start)
        out.append((body[start:end], tree))
        at = after_blanks(body, end)
        at += body[at] == ","
    return out


def depth(text: str) -> int:
    now = most = 0
    inside = escaped = False
    for char in text:
        if inside:
            escaped, inside = (not escaped and char == "\\"), not (char == '"' and not escaped)
        elif char == '"':
            inside = True
        elif char in "[{":
            now += 1
            most = max(most, now)
        elif char in "]}":
            now -= 1
    return most


def plain(tree: Any) -> Any:
    """Pairs → dict, of what PostgreSQL can hold; refuses keys that stand twice and differ."""
    if isinstance(tree, tuple):
        out: dict[str, Any] = {}
        for key, item in fields_of(tree).items():
            kept = storable(key)
            if kept in out and repr(out[kept]) != repr(item):
                raise Bad("invalid_json")
            out[kept] = item
        return {key: plain(item) for key, item in out.items()}
    if isinstance(tree, list):
        return [plain(item) for item in tree]
    return storable(tree) if isinstance(tree, Raw) else tree


def fields_of(tree: Any) -> dict[Raw, Any]:
    """The members of an object by the text of their key."""
    out: dict[Raw, Any] = {}
    spelled: dict[str, Raw] = {}
    for key, item in tree[1]:
        first = spelled.setdefault(key.plain(), key)
        if first in out and meaning(out[first]) != meaning(item):
            raise Bad("invalid_json")
        out[first] = item
    return out


def meaning(tree: Any) -> str:
    if isinstance(tree, tuple):
        return repr({key.plain(): meaning(item) for key, item in tree[1]})
    if isinstance(tree, list):
        return repr([meaning(item) for item in tree])
    return repr(("text", tree.plain()) if isinstance(tree, Raw) else (type(tree).__name__, tree))


def cannot_be_stored(text: str) -> bool:
    return "\0" in text or any(0xD800 <= ord(char) < 0xE000 for char in text)


def storable(raw: Raw) -> str:
    return str(raw) if cannot_be_stored(raw.plain()) else raw.plain()


def is_escaped(tree: Any) -> bool:
    if isinstance(tree, tuple):
        return any(is_escaped(key) or is_escaped(item) for key, item in tree[1])
    if isinstance(tree, list):
        return any(map(is_escaped, tree))
    return isinstance(tree, Raw) and cannot_be_stored(tree.plain())


def number(token: Num) -> Any:
    big = (
        isinstance(token, Odd)
        or len(token) > 400
        or re.search(r"[eE][+-]?\d{4}", token)
        or not token.strip("-")[:1].isdigit()
    )
    return str(token) if big else token


def numbers(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: numbers(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [numbers(item) for item in tree]
    return number(tree) if isinstance(tree, Num) else tree


def moment(sent: Any) -> int:
    if sent is None:
        raise Bad("missing_timestamp")
    if isinstance(sent, Odd):
        raise Bad("invalid_timestamp")
    if isinstance(sent, Num):
        milliseconds = int(sent) if re.fullmatch(r"-?\d{1,19}", sent) else float(sent)
        if not 946684800000 <= milliseconds <= 253402300799999:
            raise Bad("invalid_timestamp")
        return milliseconds * 1000 if isinstance(milliseconds, int) else round(milliseconds * 1000)
    if not isinstance(sent, str):
        raise Bad("wrong_type")
    match = re.fullmatch(
        r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:[.,]([0-9]+))?"
        r"([Zz]|[+-][0-9]{2}(?::[0-9]{2}|[0-9]{2}|))",
        sent.plain() if isinstance(sent, Raw) else sent,
    )
    if not match:
        raise Bad("invalid_timestamp")
    date, clock, fraction, zone = match.groups()
    try:
        local = datetime.strptime(f"{date} {clock} +0000", "%Y-%m-%d %H:%M:%S %z")
        if clock.endswith((":60", ":61")):
            raise ValueError
        hours, minutes = (0, 0) if zone in "Zz" else (int(zone[1:3]), int(zone[3:].strip(":") or "0"))
        if hours > 23 or minutes > 59:
            raise ValueError
        offset = timedelta(hours=hours, minutes=minutes) * (-1 if zone[0] == "-" else 1)
        utc = local - offset + timedelta(microseconds=int((fraction or "0")[:6].ljust(6, "0")))
    except (ValueError, OverflowError):
        raise Bad("invalid_timestamp") from None
    return (utc - EPOCH) // timedelta(microseconds=1)


def judge(tree: Any, well: str, deep: int) -> Outcome:
    if deep > CONFIG.max_depth:
        raise Bad("too_deep")
    if not isinstance(tree, tuple):
        raise Bad("not_an_object")
    fields = {key.plain(): (key, item) for key, item in fields_of(tree).items()}
    at = moment(fields.pop("timestamp", (None, None))[1])
    named = fields.pop("well_id", (None, Raw(well)))[1]
    if not isinstance(named, Num | Raw):
        raise Bad("wrong_type")
    if (named.plain() if isinstance(named, Raw) else named) != well:
        raise Bad("well_id_mismatch")
    limits = {signal.name: (signal.low, signal.high) for signal in SIGNALS} | {"gor": (0, 1_000), "torque": (0, 50)}
    if well == "w2":
        limits["pip"] = (10, 500)
    values: dict[str, float] = {}
    extra: list[tuple[Raw, Any]] = []
    quality: dict[str, Any] = {}
    seen = False
    for key, (raw, sent) in fields.items():
        if key not in limits:
            extra.append((raw, sent))
        elif sent is not None:
            seen = True
            as_float = math.nan if not isinstance(sent, Num) or isinstance(sent, Odd) else float(sent)
            if sent == "-0" and isinstance(sent, Num):
                as_float = 0.0
            if not limits[key][0] <= as_float <= limits[key][1]:
                quality[key] = str(sent) if isinstance(sent, Num) and not math.isfinite(as_float) else sent
            elif key == "torque":
                extra.append((raw, sent))
            else:
                values[key] = as_float
    if not seen:
        raise Bad("no_signal")
    kept = numbers(plain(("object", extra)))
    quality = {key: item if type(item) is str else numbers(plain(item)) for key, item in quality.items()}
    named_in_quality = {storable(key): "escaped as sent" for key, item in extra if is_escaped(key) or is_escaped(item)}
    if at - NOW_US > 300e6:
        raise Bad("timestamp_ahead")
    if NOW_US - at > 30 * 86_400e6:
        raise Bad("timestamp_too_old")
    return ("reading", well, at, bits(values), shape(kept) if kept else None, shape(quality | named_in_quality))


def bits(values: dict[str, float]) -> dict[str, bytes]:
    return {key: struct.pack("<d", value) for key, value in values.items()}


def shape(tree: Any) -> Any:
    """Comparable, with numbers as their text apart from strings."""
    if isinstance(tree, dict):
        return {key: shape(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [shape(item) for item in tree]
    return ("number", str(tree)) if isinstance(tree, Num) else tree


# --- what decode.py made of it, in the same words --------------------------------------------------------------------


def outcomes(decoded: Decoded) -> tuple[list[Outcome], list[Outcome]]:
    readings = decoded.readings
    rows: list[Outcome] = []
    for row in range(len(readings)):
        values = {
            name: float(readings.values[at, row])
            for at, name in enumerate(SIGNAL_NAMES)
            if not np.isnan(readings.values[at, row])
        }
        texts = [readings.extra.get(row), readings.quality.get(row)]
        trees = [
            shape(json.loads(text, parse_float=Num, parse_int=Num, parse_constant=fail)) if text else None
            for text in texts
        ]
        trees[1] = trees[1] or {}
        rows.append(("reading", readings.well_of(row), int(readings.timestamp_us[row]), bits(values), *trees))
    for refused in decoded.rejects:
        assert 0 < len(refused.detail) <= 200
        assert refused.detail.isprintable()
        assert refused.received_us > NOW_US
    rejects = [("reject", str(r.reason), r.payload, r.item, r.topic) for r in decoded.rejects]
    return rows, rejects


def fail(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


def decode(deliveries: list[Delivery]) -> Decoded:
    decoder = Decoder(CONFIG, "esp")
    decoded = decoder.decode(deliveries)
    assert decoder.fallbacks == 0
    return decoded


# --- inputs ----------------------------------------------------------------------------------------------------------

GOOD_TIME = '"2026-11-24T20:59:59.123456Z"'
TIMES = st.sampled_from(
    [
        *[GOOD_TIME] * 6,
        '"2026-11-24T20:59:59Z"',
        '"2026-11-24t20:59:59.5z"',
        '"2026-11-24 22:59:59.1234567890123+02:00"',
        '"2026-11-24T00:00:00-23:59"',
        '"2026-11-24T20:59:59"',
        '"2026-13-24T20:59:59Z"',
        '"2025-02-29T20:59:59Z"',
        '"2026-11-24T20:59:60Z"',
        '"2026-11-24T24:00:00Z"',
        '"2026-11-24T20:59:59+24:00"',
        '"9999-12-31T23:59:59-12:00"',
        '"0001-01-01T00:00:00+12:00"',
        '"0000-01-01T00:00:00Z"',
        '"2026-11-24T20:59:59.Z"',
        '"２026-11-24T20:59:59Z"',
        '"2026-11-24T20:59:59Z\\n"',
        "1795553999123",
        "1795553999123.456",
        "1.795553999123e12",
        "1e400",
        "99999999999999999999999",
        "-62135596800001",
        '"2026-11-24T21:59:59+0100"',
        '"2026-11-24T21:59:59,5+01"',
        "946684799999",
        "946684800000",
        "1795553999",
        "nan",
        "-1.#IND",
        "NaN",
        "null",
        "true",
        "{}",
        '""',
        '"\\ud800"',
        '"\\""',
    ]
)
VALUES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(0, 400).map(repr),
    st.integers(-(10**25), 10**25).map(str),
    st.integers(0, 300).map(str),
    st.sampled_from(
        """1 2.50 -0 -0.0 0e5 1E2 1e-400 1e400 -1e400 7000 1e20000 1e0005 NaN Infinity -Infinity null true false {} []
        [[1],2] "x" "5" "\\u0000" "\\ud800" "\\u00e9" "é\\"\\\\" "[{" {"a":1,"a":2} {"a":[NaN,1e400,"e9999"]}
        01 1. +1 'x' tru {"a":1,} nan -nan +Inf -inf 1.#QNAN -1.#IND00 nan(ind) ∞ [nan,-Infinity] {"nan":-nan} nanx
        "nan" "1.#INF" "a\\u0000\\n" ["\\uD800"] {"\\u0000":1}""".split()  # noqa: SIM905 - a list of forty quoted strings is harder to read
    ),
    st.sampled_from(["[" * 5 + "]" * 5, "[" * 9 + "]" * 9, "1" * 401, "0." + "3" * 420, '"\t"']),
)
KEYS = st.one_of(
    st.sampled_from([*SIGNAL_NAMES[:4], "gor", "torque", "seq", "é", "p\\u0069p", "a\\u0000", "x"]),
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), max_size=4),
)
SPACE = st.sampled_from(["", "", "", " ", "\n\t\r "])
PADDING = st.sampled_from([b""] * 6 + [b"\0", b"\xef\xbb\xbf", b"\v\0\xef\xbb\xbf\f"])


@st.composite
def objects(draw: st.DrawFn) -> str:
    fields = [(draw(KEYS), draw(VALUES)) for _ in range(draw(st.integers(0, 4)))]
    if draw(st.integers(0, 9)):
        fields.insert(draw(st.integers(0, len(fields))), ("timestamp", draw(TIMES)))
    if draw(st.integers(0, 3)):
        fields.append(("pip", draw(st.sampled_from(["100", "100.25", "20"]))))
    if not draw(st.integers(0, 3)):
        fields.append(("well_id", draw(st.sampled_from(['"w1"', '"w1"', '"w2"', "null", "1", '"\\u0000"']))))
    if fields and not draw(st.integers(0, 7)):
        fields.append(draw(st.sampled_from(fields)))
    gap = draw(SPACE)
    return "{" + f"{gap},{gap}".join(f'"{key}"{gap}:{gap}{value}' for key, value in fields) + gap + "}"


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    kind = draw(st.integers(0, 11))
    if kind == 0:
        return draw(st.binary(max_size=40))
    if kind < 7:
        text = draw(objects())
    else:
        items = draw(st.lists(st.one_of(objects(), objects(), VALUES), max_size=4))
        gap = draw(SPACE)
        text = f"[{gap}" + f"{gap},{gap}".join(items) + f"{gap}]"
    payload = draw(PADDING) + (draw(SPACE) + text + draw(SPACE)).encode() + draw(PADDING)
    if not draw(st.integers(0, 5)):
        at = draw(st.integers(0, len(payload)))
        end = draw(st.integers(at, min(len(payload), at + 3)))
        noise = draw(st.sampled_from([b"", b"\xff", b"\xed\xa0\x80", b'"', b"[", b"]", b"{", b"}", b",", b"\0", b"\\"]))
        payload = payload[:at] + noise + payload[end:]
    return payload


TOPICS = st.sampled_from(
    [b"esp/w1/telemetry"] * 6 + [b"esp/w2/telemetry", b"esp/w1/telemetry\n", b"esp//telemetry", b"\xff"]
)
DELIVERIES = st.lists(st.tuples(TOPICS, payloads()), min_size=1, max_size=8).map(
    lambda messages: [
        Delivery(topic, payload, 1, packet_id, 1, NOW_US + packet_id, packet_id % 2 == 0)
        for packet_id, (topic, payload) in enumerate(messages, 1)
    ]
)


def message(payload: bytes) -> list[Delivery]:
    return [Delivery(b"esp/w1/telemetry", payload, 1, 1, 1, NOW_US + 1)]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DELIVERIES)
@example(message(b'{"timestamp":%s,"pip":5,"pip":6}' % GOOD_TIME.encode()))
@example(message(b'[{"pip":5},{"timestamp":%s,"pip":5,"pip":6}]' % GOOD_TIME.encode()))  # two gaps that even out
@example(message(b'[{"timestamp":null,"pip":null},{"timestamp":%s,"pip":5,"pip":6}]' % GOOD_TIME.encode()))
@example(message(b'{"x":[0'))
def test_every_tier_agrees_with_the_reference(deliveries: list[Delivery]) -> None:
    expected = [outcome for delivery in deliveries for outcome in reference(delivery)]
    decoded = decode(deliveries)
    assert outcomes(decoded) == (
        [outcome for outcome in expected if outcome[0] == "reading"],
        [outcome for outcome in expected if outcome[0] == "reject"],
    )
    qualities = [outcome[5] for outcome in expected if outcome[0] == "reading"]
    counted = sum(key in SIGNALS_OF_ALL for quality in qualities for key in quality)
    assert sum(decoded.unusable.values()) == counted


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DELIVERIES, st.integers(0, 8))
def test_the_cut_of_a_batch_changes_nothing(deliveries: list[Delivery], cut: int) -> None:
    whole = outcomes(decode(deliveries))
    decoder = Decoder(CONFIG, "esp")
    halves = [outcomes(decoder.decode(part)) for part in (deliveries[:cut], deliveries[cut:])]
    assert whole == (halves[0][0] + halves[1][0], halves[0][1] + halves[1][1])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=200), st.binary(max_size=30).map(lambda b: b'{"pip":' + b)), max_size=6),
    st.binary(max_size=20),
)
def test_any_bytes_are_accounted_for(blobs: list[bytes], topic: bytes) -> None:
    deliveries = [
        Delivery(topic if n % 2 else b"esp/w/telemetry", blob, 1, n, 1, NOW_US + 1) for n, blob in enumerate(blobs)
    ]
    decoded = decode(deliveries)
    settled = {refused.payload for refused in decoded.rejects}
    assert decoded.items >= len(deliveries)
    assert all(delivery.payload in settled for delivery in deliveries if not delivery.payload.startswith(b"["))


STAMP = r"[0-9]{4}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-5][0-9]:[0-6][0-9](\.[0-9]{0,9})?"
STAMPS = st.one_of(
    st.from_regex(STAMP + r"([Zz]|[+-][0-2][0-9]:[0-6][0-9])?", fullmatch=True),
    st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat),
    st.text(max_size=26),
)


def clock_time(number: int) -> str:
    """Each text of [0-2][0-9]:[0-6][0-9]:[0-6][0-9], by its number: a draw where a regex takes one a character."""
    minutes, seconds = divmod(number, 70)
    return "{:02}:{:02}:{:02}".format(*divmod(minutes, 70), seconds)


@settings(max_examples=300, deadline=None)
@given(
    st.from_regex(r"([0-9]{4}|0000|0001|9999)-[01][0-9]-[0-3][0-9]", fullmatch=True),
    st.lists(st.integers(0, 30 * 70 * 70 - 1).map(clock_time), min_size=24, max_size=40),
    st.sampled_from(["Z", ".1Z", ".123456Z", "+00:30", ".5-00:30", "+14:00"]),
)
def test_timestamps_of_one_day_are_those_read_one_by_one(date: str, times: list[str], end: str) -> None:
    column = [f"{date}T{time}{end}" for time in times]
    assert timestamps.parse_column(column).tolist() == [timestamps.parse_rfc3339(text) for text in column]


@settings(max_examples=300, deadline=None)
@given(st.lists(STAMPS, min_size=1, max_size=6))
def test_timestamps_in_columns_are_those_read_one_by_one(texts: list[str]) -> None:
    column = [text for text in texts for _ in range(30)]  # enough of each length for the numpy way
    expected = [timestamps.parse_rfc3339(text) for text in column]
    assert timestamps.parse_column(column).tolist() == expected
    for text, micros in zip(column, expected, strict=True):
        try:
            assert micros == moment(text)
        except Bad:
            assert micros == timestamps.NO_TIME
