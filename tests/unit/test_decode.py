"""Decoding, case by case, with the outcome written out. What holds in general: tests/property/test_decode.py."""

import gc
import json
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp_ingest.config.settings import TelemetrySettings
from esp_ingest.model import SIGNAL_NAMES, SIGNAL_ROW, Decoded, Delivery, RejectReason, Wells, cut_off
from esp_ingest.telemetry.decode import Decoder
from esp_ingest.telemetry.timestamps import NO_TIME, lacks_offset, parse_column, parse_rfc3339

NOW_US = 1_795_554_000_000_000  # 2026-11-24T21:00:00Z
TIME = b'"timestamp":"2026-11-24T20:59:59.5Z"'
TOPIC = b"esp/w1/telemetry"


def delivery(payload: bytes, topic: bytes = TOPIC, packet_id: int = 1) -> Delivery:
    return Delivery(topic, payload, 1, packet_id, 1, NOW_US + packet_id)


def decode(*payloads: bytes, topic: bytes = TOPIC, **config: Any) -> Decoded:
    decoder = Decoder(TelemetrySettings.model_validate(config), "esp")
    decoded = decoder.decode([delivery(payload, topic, packet_id) for packet_id, payload in enumerate(payloads)])
    assert decoder.fallbacks == 0
    return decoded


def values(decoded: Decoded, row: int = 0) -> dict[str, float]:
    column = decoded.readings.values[:, row]
    return {name: float(column[at]) for at, name in enumerate(SIGNAL_NAMES) if not np.isnan(column[at])}


def test_a_full_message() -> None:
    sent = {name: 100.0 + at / 7 if name not in ("vibration", "vsd_frequency", "leakage_current") else at / 7
            for at, name in enumerate(SIGNAL_NAMES)}  # fmt: skip
    payload = json.dumps({"timestamp": 1_795_553_999_500, "well_id": "w1", **sent}).encode()
    decoded = decode(payload)
    assert values(decoded) == sent
    assert decoded.readings.timestamp_us.tolist() == [NOW_US - 500_000]
    assert decoded.readings.received_us.tolist() == [NOW_US]
    assert decoded.readings.well_of(0) == "w1"
    assert (decoded.rejects, decoded.readings.extra, decoded.readings.quality) == ([], {}, {})


def test_no_deliveries() -> None:
    decoded = decode()
    assert decoded.items == 0
    assert decoded.readings.values.shape == (len(SIGNAL_NAMES), 0)


def test_null_is_absent() -> None:
    assert values(decode(b'{%s,"pip":5,"gor":null,"x":null}' % TIME)) == {"pip": 5}
    assert json.loads(decode(b'{%s,"pip":5,"x":null}' % TIME).readings.extra[0]) == {"x": None}


def test_unknown_keys_are_kept_as_sent() -> None:
    decoded = decode(
        b'{%s,"pip":5,"id":123456789012345678901234567890,"f":1.10,"s":"\xc3\xa9","o":{"a":[1e400]}}' % TIME
    )
    assert json.loads(decoded.readings.extra[0], parse_float=str, parse_int=str) == {
        "id": "123456789012345678901234567890",
        "f": "1.10",
        "s": "é",
        "o": {"a": ["1e400"]},
    }


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"7000", "7000"),
        (b"6000.0000000001", "6000.0000000001"),
        (b"-1E0", "-1E0"),
        (b"NaN", '"NaN"'),
        (b"-Infinity", '"-Infinity"'),
        (b"1e400", '"1e400"'),
        (b"123456789012345678901234567890", "123456789012345678901234567890"),
    ],
)
def test_out_of_range_costs_only_its_own_signal(sent: bytes, kept: str) -> None:
    decoded = decode(b'{%s,"pip":%s,"motor_temp":200.5}' % (TIME, sent))
    assert values(decoded) == {"motor_temp": 200.5}
    assert decoded.readings.quality == {0: '{"pip": ' + kept + "}"}
    assert decoded.out_of_range == {"pip": 1}


def test_a_limit_is_inside_and_wells_have_their_own() -> None:
    config = {"limits": {"pip": {"high": 500}}, "wells": {"w2": {"pip": {"low": 10, "high": 9000}}}}
    payload = b'{%s,"pip":500,"flow_rate":0}' % TIME
    assert values(decode(payload, **config)) == {"pip": 500, "flow_rate": 0}
    over = b'{%s,"pip":8999,"flow_rate":1}' % TIME
    assert values(decode(over, **config)) == {"flow_rate": 1}
    assert values(decode(over, topic=b"esp/w2/telemetry", **config)) == {"pip": 8999, "flow_rate": 1}
    under = b'{%s,"pip":9,"flow_rate":1}' % TIME
    assert values(decode(under, topic=b"esp/w2/telemetry", **config)) == {"flow_rate": 1}


def test_extra_signals_are_signals() -> None:
    config = {"extra_signals": {"torque": {"low": 0, "high": 50}}}
    assert json.loads(decode(b'{%s,"torque":50}' % TIME, **config).readings.extra[0]) == {"torque": 50}
    over = decode(b'{%s,"torque":51,"pip":5,"n":1}' % TIME, **config)
    assert (over.readings.extra, over.readings.quality) == ({0: '{"n": 1}'}, {0: '{"torque": 51}'})
    assert over.out_of_range == {"torque": 1}
    text = decode(b'{%s,"torque":"9"}' % TIME, **config)
    assert (text.readings.extra, text.readings.quality) == ({}, {0: '{"torque": "9"}'})


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty_payload"),
        (b" \n", "empty_payload"),
        (b"not json", "invalid_json"),
        (b'{"pip":1}{"pip":2}', "invalid_json"),
        (b"\0\xef", "invalid_utf8"),
        (b"\xef\xbb\xbf \0", "empty_payload"),
        (b"{%s,nan:1}" % TIME, "invalid_json"),
        (b'{%s,"pip":1nan}' % TIME, "invalid_json"),
        (b'{%s,"pip":nan 1}' % TIME, "invalid_json"),
        (b'{%s,"pip":nanx}' % TIME, "invalid_json"),
        (b'{"pip":1,"timestamp":nan}', "invalid_timestamp"),
        (b'{"pip":1,"timestamp":1}', "invalid_timestamp"),
        (b'{"\xff":1}', "invalid_utf8"),
        (b"[" * 1_000_000, "too_deep"),
        (b"[]", "not_an_object"),
        (b"[ ]", "not_an_object"),
        (b"3", "not_an_object"),
        (b'{"pip":1}', "missing_timestamp"),
        (b'{"pip":1,"timestamp":null}', "missing_timestamp"),
        (b'{"pip":1,"timestamp":true}', "wrong_type"),
        (b'{"pip":1,"timestamp":"2026-11-24T20:59:59"}', "invalid_timestamp"),
        (b'{"pip":1,"timestamp":"1795553999500"}', "invalid_timestamp"),
        (b'{"pip":1,"timestamp":1e400}', "invalid_timestamp"),
        (b'{"pip":1,"timestamp":"9999-12-31T23:59:59Z"}', "timestamp_ahead"),
        (b'{"pip":1,"timestamp":"2026-11-24T21:05:00.000001Z"}', "timestamp_ahead"),
        (b'{"pip":1,"timestamp":"2026-10-25T20:59:59Z"}', "timestamp_too_old"),
        (b'{"pip":1,"timestamp":"0001-01-01T00:00:00Z"}', "timestamp_too_old"),
        (b'{%s,"pip":1,"well_id":"w2"}' % TIME, "well_id_mismatch"),
        (b'{%s,"pip":1,"well_id":null}' % TIME, "wrong_type"),
        (b'{%s,"pip":1,"well_id":17}' % TIME, "well_id_mismatch"),
        (b'{%s,"pip":1,"well_id":true}' % TIME, "wrong_type"),
        (b"{%s}" % TIME, "no_signal"),
        (b'{%s,"pip":null,"x":1}' % TIME, "no_signal"),
        (b'{%s,"pip":1,"pip":2}' % TIME, "invalid_json"),
        (b'{%s,"pip":1,"x":{"a":1,"a":2}}' % TIME, "invalid_json"),
        (b'{"x":"' + b"a" * 4_194_304 + b'"}', "payload_too_large"),
    ],
)
def test_rejects_keep_the_payload(payload: bytes, reason: str) -> None:
    decoded = decode(payload)
    assert [(reject.reason, reject.payload, reject.item) for reject in decoded.rejects] == [(reason, payload, 0)]
    assert decoded.rejects[0].topic == TOPIC
    assert len(decoded.readings) == 0


@pytest.mark.parametrize(
    "topic",
    [
        b"esp/w1",
        b"esp//telemetry",
        b"esp/w 1/telemetry",
        b"esp/\xff/telemetry",
        b"",
        b"esp/w1/telemetry\n",
        b"x/esp/w1/telemetry",
        b"esp/" + b"a" * 65 + b"/telemetry",
    ],
)
def test_impossible_topics(topic: bytes) -> None:
    good = b'{%s,"pip":1}' % TIME
    decoder = Decoder(TelemetrySettings(), "esp")
    decoded = decoder.decode([delivery(good, topic), delivery(good, b"esp/w9/telemetry"), delivery(good, topic)])
    assert [(r.reason, r.topic, r.payload) for r in decoded.rejects] == [("invalid_topic", topic, good)] * 2
    assert decoded.readings.wells == ["w9"]


def test_the_bad_items_of_an_array_alone_are_rejected() -> None:
    items = [b'{%s,"pip":1}' % TIME, b'{%s,"pip":1,"pip":2}' % TIME, b' {%s,"pip":7000,"gor":3} ' % TIME, b"4",
             b'{"x":' + b"[" * 40 + b"]" * 40 + b"}", b'{%s,"pip":6,"n":"},{"}' % TIME]  # fmt: skip
    decoded = decode(b'{%s,"pip":0}' % TIME, b"[" + b",".join(items) + b"]", b'{%s,"pip":9}' % TIME)
    assert [(r.reason, r.item, r.payload) for r in decoded.rejects] == [
        ("invalid_json", 1, items[1]),
        ("not_an_object", 3, b"4"),
        ("too_deep", 4, items[4]),
    ]
    assert [values(decoded, row) for row in range(5)] == [{"pip": 0}, {"pip": 1}, {"gor": 3}, {"pip": 6}, {"pip": 9}]
    assert decoded.readings.quality == {2: '{"pip": 7000}'}
    assert {row: json.loads(text) for row, text in decoded.readings.extra.items()} == {3: {"n": "},{"}}
    assert (decoded.readings.received_us - NOW_US).tolist() == [0, 1, 1, 1, 2]


def test_one_late_item_does_not_disturb_a_clean_array() -> None:
    old = b'{"timestamp":"2020-01-01T00:00:00Z","pip":2}'
    decoded = decode(b"[" + b",".join([b'{%s,"pip":1}' % TIME, old, b'{%s,"pip":3,"n":1}' % TIME]) + b"]")
    assert [(r.reason, r.item, r.payload) for r in decoded.rejects] == [("timestamp_too_old", 1, old)]
    assert decoded.readings.values[SIGNAL_ROW["pip"]].tolist() == [1, 3]
    assert decoded.readings.extra == {1: '{"n":1}'}


def test_one_broken_gauge_keeps_its_place_in_a_clean_array() -> None:
    items = [b'{%s,"gor":%d}' % (TIME, n) for n in range(6)]
    items[3] = b'{%s,"gor":3,"pip":9000}' % TIME
    items[5] = b'{%s,"gor":5,"pip":9001}' % TIME
    decoded = decode(b'{%s,"gor":99}' % TIME, b"[" + b",".join(items) + b"]", b'{%s,"gor":99}' % TIME)
    assert decoded.readings.values[SIGNAL_ROW["gor"]].tolist() == [99, 0, 1, 2, 3, 4, 5, 99]
    assert decoded.readings.quality == {4: '{"pip": 9000}', 6: '{"pip": 9001}'}


@pytest.mark.parametrize("beside", [b"", b',"gor":NaN', b',"x":1', b',"gor":null'])
def test_zeros_keep_their_sign_on_every_way(beside: bytes) -> None:
    config = {"limits": {"pip": {"low": -1}}}
    for sent, negative in ((b"-0", False), (b"-0.0", True), (b"0", False), (b"-0e1", True)):
        pip = decode(b'{%s,"pip":%s%s}' % (TIME, sent, beside), **config).readings.values[SIGNAL_ROW["pip"], 0]
        assert (pip == 0, bool(np.signbit(pip))) == (True, negative)


def test_any_age_where_the_limit_is_zero() -> None:
    decoded = decode(b'{"timestamp":"0001-01-01T00:00:00Z","pip":2}', max_age_days=0)
    assert decoded.readings.timestamp_us.tolist() == [-62_135_596_800_000_000]


def test_payloads_cannot_be_glued_together() -> None:
    """Parsed as one array these three would be a reading of w2 with someone else's pip."""
    decoded = decode(b'{"x":[0', b'{%s,"pip":1}' % TIME, b"0]}")
    assert [reject.payload for reject in decoded.rejects] == [b'{"x":[0', b"0]}"]
    assert values(decoded) == {"pip": 1}


@pytest.mark.parametrize("filler", [b'\\"', b'"', b"[", b'["', b"{", b'"\\', b"[{", b"1,", b"\\"])
def test_four_megabytes_of_anything_take_no_more_than_a_moment(filler: bytes) -> None:
    payload = (b'[{"x":"' + filler * 4_000_000)[:4_000_000]
    started = time.process_time()
    assert len(decode(payload).rejects) == 1
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (b"0", "not_an_object"),
        (b"{}", "missing_timestamp"),
        (b'{"pip":1}', "missing_timestamp"),
        (b"[]", "not_an_object"),
    ],
)
def test_a_flood_of_items_is_one_reject(item: bytes, reason: str) -> None:
    payload = b"[" + b",".join([item] * (4_000_000 // (len(item) + 1))) + b"]"
    started = time.process_time()
    decoded = decode(b'{%s,"pip":1}' % TIME, payload)
    assert [(reject.reason, reject.payload) for reject in decoded.rejects] == [(reason, payload)]
    assert values(decoded) == {"pip": 1}
    assert time.process_time() - started < 5


def test_a_refusal_that_is_kept_does_not_keep_its_message() -> None:
    """A traceback holds the frames of the reader, in a circle that only the garbage collector opens: 160 kB each."""
    payload = b"[" + b",".join([b"1"] * 10_000) + b"]"
    decode(payload, b"1")
    gc.collect()
    gc.disable()
    try:
        decode(payload, b"1")
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_many_messages_of_tiny_items_cost_no_more_than_one_reject_each() -> None:
    """100 messages of 10 000 numbers took gigabytes and stopped all wells: a million rejects in one batch. Here
    it is a quarter of them."""
    payloads = [b"[" + b",".join([b"%d" % (100 + n)] * 10_000) + b"]" for n in range(25)]
    tracemalloc.start()
    started = time.process_time()
    decoded = decode(*payloads, b'{%s,"pip":1}' % TIME)
    took, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [reject.payload for reject in decoded.rejects] == payloads
    assert len(decoded.readings) == 1
    assert took < 5  # under tracemalloc; 0.1 without
    assert peak < 16_000_000


@pytest.mark.parametrize("beside", [b"{}", b"7", b'{"timestamp":"2020-01-01T00:00:00Z","pip":2}', b'{"x":[[[[]]]]}'])
@pytest.mark.parametrize("most", [100, 101])
def test_beyond_a_hundred_bad_items_are_one_reject_and_the_good_ones_are_stored(beside: bytes, most: int) -> None:
    good = [b'{%s,"pip":%d,"gor":7}' % (TIME, n) for n in range(200)]
    payload = b"[" + b",".join([*good, *[beside] * most, b'{%s,"pip":7000,"gor":1}' % TIME]) + b"]"
    decoded = decode(payload)
    assert decoded.readings.values[SIGNAL_ROW["pip"], :200].tolist() == list(range(200))
    assert (len(decoded.readings), decoded.readings.quality) == (201, {200: '{"pip": 7000}'})
    if most == 100:
        assert [(reject.payload, reject.item) for reject in decoded.rejects] == [(beside, 200 + n) for n in range(100)]
    else:
        assert [(reject.payload, reject.item) for reject in decoded.rejects] == [(payload, 0)]
        assert decoded.rejects[0].detail.startswith("101 of 302 items are no readings, kept as one. Item 200: ")


def test_an_array_of_tiny_items_keeps_its_good_ones() -> None:
    payload = b"[" + b",".join([b"0"] * 70 + [b'{%s,"pip":1}' % TIME, b'{%s,"pip":9000}' % TIME]) + b"]"
    decoded = decode(payload)
    assert [(reject.reason, reject.payload) for reject in decoded.rejects] == [("not_an_object", payload)]
    assert len(decoded.readings) == 2


@pytest.mark.parametrize("hidden", [b"x", b"[", b'"', b"", b"0 0", b"\xff"])
def test_a_flood_that_is_no_json_is_refused_as_a_whole(hidden: bytes) -> None:
    payload = b"[" + b",".join([b'{%s,"pip":1}' % TIME] + [b"0"] * 5_000 + [hidden] + [b"0"] * 5_000) + b"]"
    decoded = decode(payload)
    expected = "invalid_utf8" if hidden == b"\xff" else "invalid_json"
    assert [(reject.reason, reject.payload) for reject in decoded.rejects] == [(expected, payload)]
    assert len(decoded.readings) == 0


def test_a_large_backlog_is_no_flood() -> None:
    payload = b"[" + b",".join(b'{"timestamp":%d,"gor":%d}' % (1_795_500_000_000 + n, n % 9) for n in range(20_000))
    decoded = decode(payload + b',3,{"timestamp":1795500000000,"gor":-1}]')
    assert len(decoded.readings) == 20_001
    assert [reject.item for reject in decoded.rejects] == [20_000]


def test_a_fault_of_the_bulk_way_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(TelemetrySettings(), "esp")

    def fault(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(decoder, "_account_for_strings", fault)
    payloads = [b'{%s,"pip":1}' % TIME, b"x", b'[{%s,"pip":2},{%s,"pip":3,"n":1}]' % (TIME, TIME)]
    decoded = decoder.decode([delivery(payload) for payload in payloads])
    assert decoder.fallbacks == 1
    assert decoded.readings.values[SIGNAL_ROW["pip"]].tolist() == [1, 2, 3]
    assert decoded.readings.extra == {2: '{"n": 1}'}
    assert [reject.payload for reject in decoded.rejects] == [b"x"]


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01 00:00:00.000001z", 1),
        ("1969-12-31T23:59:59.9999999Z", -1),
        ("2000-02-29T12:00:00+12:30", 951_780_600_000_000),
        ("2026-11-24T21:00:00-00:00", NOW_US),
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
        ("1900-02-29T00:00:00Z", NO_TIME),
        ("2026-11-24T23:59:60Z", NO_TIME),
        ("9999-12-31T23:59:59-00:01", NO_TIME),
        ("0001-01-01T00:00:00+00:01", NO_TIME),
        ("2026-11-24T21:00Z", NO_TIME),
        ("2026-11-24T21:00:00,5Z", NOW_US + 500_000),
        ("2026-11-24T22:00:00+0100", NOW_US),
        ("2026-11-24T22:00:00.25+01", NOW_US + 250_000),
        ("2026-11-24 19:30:00,000001-0130", NOW_US + 1),
        ("2026-11-24T22:00:00,+01", NO_TIME),
        ("2026-11-24T21:00:+01", NO_TIME),
        ("2026-11-24T21:00:00+1", NO_TIME),
        ("2026-11-24T21:00:00+010", NO_TIME),
        ("2026-11-24T21:00:00+0160", NO_TIME),
        ("2026-11-24T21:00:00+24", NO_TIME),
        ("2026-11-24T21:00:00+01-00", NO_TIME),
        ("2026-11-24_21:00:00Z", NO_TIME),
        ("", NO_TIME),
    ],
)
def test_timestamps(text: str, micros: int) -> None:
    assert parse_rfc3339(text) == micros
    assert parse_column([text] * 50).tolist() == [micros] * 50
    assert parse_column([text, 946_684_800_000, 1e12 + 0.5, 946_684_799_999, None, True]).tolist() == [
        micros,
        946_684_800_000_000,
        1_000_000_000_000_500,
        *[NO_TIME] * 3,
    ]


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"1795553999", "epoch seconds; send epoch milliseconds"),
        (b"1795553999.5", "epoch seconds"),
        (b"1795553999500000", "epoch microseconds"),
        (b"1795553999500000000", "epoch nanoseconds"),
        (b"0", "before 2000-01-01"),
        (b"-5", "before 2000-01-01"),
        (b"946684799999", "before 2000-01-01"),
        (b"1e300", "after the year 9999"),
        (b'"1795553999500"', "a quoted number; send epoch milliseconds as a number"),
        (b'"1795553999"', "a quoted number, and it looks like epoch seconds"),
        (b"-nan", "it is not a number"),
        (b'"yesterday"', "not RFC 3339"),
    ],
)
@pytest.mark.parametrize("max_age_days", [0, 30])
def test_a_wrong_timestamp_is_refused_with_what_it_looks_like(sent: bytes, said: str, max_age_days: int) -> None:
    decoded = decode(b'{"pip":1,"timestamp":%s}' % sent, max_age_days=max_age_days)
    assert [reject.reason for reject in decoded.rejects] == [RejectReason.INVALID_TIMESTAMP]
    assert said in decoded.rejects[0].detail


def test_a_missing_offset_is_named() -> None:
    assert lacks_offset("2026-11-24T21:00:00")
    assert not lacks_offset("2026-11-24")
    assert "no offset" in decode(b'{"pip":1,"timestamp":"2026-11-24T21:00:00"}').rejects[0].detail


def test_a_message_that_was_cut_off_is_a_reject_whatever_its_head_says() -> None:
    """Its size is told, and its head is kept with the mark: a spool and a replay tell the same."""
    payload = cut_off(b'{%s,"pip":1}' % TIME + b" " * 1_000, 209_715_200)
    (reject,) = decode(payload).rejects
    assert reject.reason == "payload_too_large"
    assert "209715200 bytes" in reject.detail
    assert reject.payload == payload
    assert decode(payload[:-20]).rejects[0].reason == "invalid_utf8"


def test_topics_that_no_well_has_are_not_remembered_at_any_length() -> None:
    decoder = Decoder(TelemetrySettings(), "esp")
    message = Delivery(b"esp/" + b"w" * 60_000 + b"/telemetry", b"{}", 1, 1, 1, 0)
    assert [each.reason for each in decoder.decode([message]).rejects] == ["invalid_topic"]
    assert sum(map(len, decoder._number_of)) < 1_000


@given(st.lists(st.lists(st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"!"]), min_size=1, max_size=6), max_size=8))
def test_a_number_means_one_well_for_as_long_as_its_register_lasts(batches: list[list[bytes]]) -> None:
    """However many topics come: the register begins anew before it has more than it may."""
    decoder = Decoder(TelemetrySettings(), "esp", max_topics=4)
    for names in batches:
        topics = [b"esp/%b/telemetry" % name for name in names]
        decoded = decoder.decode([Delivery(topic, b'{%s,"pip":1}' % TIME, 1, 1, 1, NOW_US) for topic in topics])
        wells, rows = decoded.readings.wells, range(len(decoded.readings))
        assert isinstance(wells, Wells)
        assert [wells.register[number] for number in wells.numbers] == wells
        assert [decoded.readings.well_of(row) for row in rows] == [name.decode() for name in names if name != b"!"]
        assert len(wells.register) <= 1 + max(4, *(len(set(each)) for each in batches))
