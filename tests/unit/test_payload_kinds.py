"""What devices send in place of a good message, kind by kind: only what is wrong is lost, and it is named."""

import base64
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esp_ingest.config.settings import TelemetrySettings
from esp_ingest.model import SIGNAL_NAMES, Decoded, Delivery, Unusable
from esp_ingest.telemetry.decode import Decoder

NOW_US = 1_795_554_000_000_000  # 2026-11-24T21:00:00Z
TIME = b'"timestamp":"2026-11-24T20:59:59.5Z"'
GOOD = b'{%s,"pip":5}' % TIME

NOT_FINITE = [
    sign + spelling
    for sign in ("", "-", "+")
    for spelling in """nan NaN NAN nan(ind) NAN(IND) nan(snan) nan(0x8000000000000) NaNQ NaNS QNAN snan inf Inf INF
    Infinity INFINITY infinity ovf ∞ 1.#QNAN 1.#QNAN0 1.#SNAN 1.#IND 1.#IND00 1.#INF 1.#INF00 1.#inf 1.#J 1.#R 1.#QO 1.$
    1,#QNAN 1.#INF00e+000 unendlich Infini Infinito бесконечность""".split()  # noqa: SIM905 - quotes hide them
] + ["n. def.", "Non Numérique", "не число", "NaN (非数値)"]


def decode(*payloads: bytes, topic: bytes = b"esp/w1/telemetry", **config: Any) -> Decoded:
    decoder = Decoder(TelemetrySettings.model_validate(config), "esp")
    decoded = decoder.decode([Delivery(topic, payload, 1, mid, 1, NOW_US) for mid, payload in enumerate(payloads)])
    assert decoder.fallbacks == 0
    return decoded


def values(decoded: Decoded, row: int = 0) -> dict[str, float]:
    column = decoded.readings.values[:, row]
    return {name: float(column[at]) for at, name in enumerate(SIGNAL_NAMES) if not np.isnan(column[at])}


def quality(decoded: Decoded, row: int = 0) -> Any:
    return json.loads(decoded.readings.quality[row])


@pytest.mark.parametrize("spelling", NOT_FINITE)
def test_no_number_costs_its_signal_alone_bare_or_quoted(spelling: str) -> None:
    bare = b'{%s,"pip":%s,"gor":1}' % (TIME, spelling.encode())
    quoted = b'{%s,"pip":"%s","gor":1}' % (TIME, spelling.encode())
    decoded = decode(bare, quoted, b"[" + bare + b" , " + GOOD + b"]")
    assert decoded.rejects == []
    assert [values(decoded, row) for row in range(4)] == [{"gor": 1}, {"gor": 1}, {"gor": 1}, {"pip": 5}]
    assert [quality(decoded, row) for row in range(3)] == [{"pip": spelling}] * 3
    assert decoded.unusable == {("pip", Unusable.NOT_FINITE): 3}
    assert decoded.out_of_range == {"pip": 3}


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (b'"N/A"', "string"),
        (b'""', "string"),
        (b'"Bad"', "string"),
        (b'"1994.12"', "string"),
        (b'"nane"', "string"),
        (b'"\\u0022,\\\\"', "string"),
        (b"true", "boolean"),
        (b"false", "boolean"),
        (b"[]", "array"),
        (b"[1,[2]]", "array"),
        (b"{}", "object"),
        (b'{"value":1,"unit":"psi"}', "object"),
        (b"7000", "out_of_range"),
    ],
)
def test_a_value_that_is_no_usable_number_costs_its_signal_alone(sent: bytes, kind: str) -> None:
    decoded = decode(b'{%s,"pip":%s,"gor":1}' % (TIME, sent), b'{%s,"pip":%s}' % (TIME, sent))
    assert decoded.rejects == []
    assert [values(decoded), values(decoded, 1)] == [{"gor": 1}, {}]
    assert quality(decoded) == quality(decoded, 1) == {"pip": json.loads(sent)}
    assert decoded.unusable == {("pip", kind): 2}


def test_bare_tokens_in_unknown_keys_and_as_items_keep_their_spelling() -> None:
    decoded = decode(b'[{%s,"pip":1,"x":{"a":[-inf,"nan, -inf",1.#IND,nan]},"nan":nan},nan,1.#QNAN]' % TIME)
    assert json.loads(decoded.readings.extra[0]) == {"x": {"a": ["-inf", "nan, -inf", "1.#IND", "nan"]}, "nan": "nan"}
    assert [(reject.item, reject.payload) for reject in decoded.rejects] == [(1, b"nan"), (2, b"1.#QNAN")]


def test_bare_tokens_put_no_messages_together() -> None:
    parts = [b'{%s,"pip":nan,"x":[nan' % TIME, GOOD, b"nan]}"]
    decoded = decode(*parts)
    assert [reject.payload for reject in decoded.rejects] == [parts[0], parts[2]]
    assert values(decoded) == {"pip": 5}


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"\0", b" \t\r\n\v\f", b"\0 \xef\xbb\xbf \0"])
@pytest.mark.parametrize("after", [b"", b"\0", b"\0\0\r\n", b" \v\f\0"])
@pytest.mark.parametrize("payload", [GOOD, b"[" + GOOD + b"]"])
def test_padding_is_passed_over(before: bytes, after: bytes, payload: bytes) -> None:
    assert values(decode(before + payload + after)) == {"pip": 5}


@pytest.mark.parametrize(
    ("key", "value", "kept_key", "kept_value"),
    [
        ("tag", r'"a\u0000b"', "tag", r"a\u0000b"),
        ("tag", r'"\uD800 \n \u00e9"', "tag", r"\uD800 \n \u00e9"),
        ("tag", r'["ok",{"a":"\udc00\ud800"}]', "tag", ["ok", {"a": r"\udc00\ud800"}]),
        ("tag", r'{"\u0000":nan}', "tag", {r"\u0000": "nan"}),
        (r"t\u0000", r'"é\ud83d\ude00"', r"t\u0000", "é😀"),
    ],
)
def test_text_that_postgresql_cannot_hold_costs_nothing(
    key: str, value: str, kept_key: str, kept_value: object
) -> None:
    item = b'{%s,"pip":5,"other":"a\\nb","%s":%s}' % (TIME, key.encode(), value.encode())
    decoded = decode(item, b"[" + GOOD + b"," + item + b"]")
    assert decoded.rejects == []
    assert [values(decoded, row) for row in range(3)] == [{"pip": 5}] * 3
    for row in (0, 2):
        assert json.loads(decoded.readings.extra[row]) == {"other": "a\nb", kept_key: kept_value}
        assert quality(decoded, row) == {kept_key: "escaped as sent"}
    assert decoded.unusable == {}


def test_a_signal_with_such_a_text_is_a_string_like_any_other() -> None:
    decoded = decode(rb'{%s,"pip":"\u0000","gor":1}' % TIME)
    assert quality(decoded) == {"pip": r"\u0000"}
    assert decoded.unusable == {("pip", Unusable.STRING): 1}


@pytest.mark.parametrize(("well", "sent"), [("17", b"17"), ("-3.50", b"-3.50"), ("1e5", b"1e5"), ("17", b'"17"')])
def test_a_well_id_may_be_a_number_that_is_spelled_as_in_the_topic(well: str, sent: bytes) -> None:
    decoded = decode(b'{%s,"pip":5,"well_id":%s}' % (TIME, sent), topic=f"esp/{well}/telemetry".encode())
    assert (values(decoded), decoded.readings.wells) == ({"pip": 5}, [well])
    other = decode(b'{%s,"pip":5,"well_id":%s}' % (TIME, sent), topic=b"esp/017/telemetry")
    assert [reject.reason for reject in other.rejects] == ["well_id_mismatch"]


@pytest.mark.parametrize("between", [b"\n", b"\r\n", b"", b",", b" ,\n"])
@pytest.mark.parametrize("one", [GOOD, b"[" + GOOD + b"]"])
@pytest.mark.parametrize("count", [2, 3_000])
def test_several_texts_are_one_reject_that_says_what_to_do(between: bytes, one: bytes, count: int) -> None:
    payload = between.join([one] * count)
    (reject,) = decode(payload).rejects
    assert (reject.reason, reject.payload) == ("invalid_json", payload)
    assert "array" in reject.detail
    assert "mapping of lines" in reject.detail


CASES = Path(os.environ.get("ESP_INGEST_PAYLOAD_CASES", "/work/shared/cases/payloads.jsonl"))


@pytest.mark.skipif(not CASES.exists(), reason=f"{CASES} is not there: set ESP_INGEST_PAYLOAD_CASES")
def test_cases_from_the_field() -> None:
    for line in CASES.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        expect = case["expect"]
        settings = {key.removeprefix("telemetry."): value for key, value in case.get("settings", {}).items()}
        decoded = decode(base64.b64decode(case["payload_base64"]), topic=case["topic"].encode(), **settings)
        assert (len(decoded.readings), len(decoded.rejects)) == (expect.get("stored", 0), expect.get("rejected", 0)), (
            line
        )
        for signal, value in expect.get("values", {}).items():
            assert values(decoded).get(signal) == value, line
        for key, value in expect.get("quality", {}).items():
            assert quality(decoded)[key] == value, line
        assert set(expect.get("quality_keys", [])) <= set(quality(decoded) if decoded.readings.quality else []), line
        assert set(expect.get("extra_keys", [])) <= set(json.loads(decoded.readings.extra.get(0, "{}"))), line
        if "timestamp" in expect:
            at = datetime.fromisoformat(expect["timestamp"])
            assert decoded.readings.timestamp_us.tolist() == [round(at.timestamp() * 1e6)], line
        if "detail_has" in expect:
            assert expect["detail_has"] in decoded.rejects[0].detail, line
