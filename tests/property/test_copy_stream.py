"""Our binary COPY streams, bit for bit: read by an independent reader, and compared with psycopg's own dumpers."""

import json
import math
import struct
from typing import Any
from uuid import UUID

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import PyFormat, Transformer
from psycopg.types.json import Jsonb

from esp_ingest.model import SIGNALS, Readings, Reject, RejectReason, at_us
from esp_ingest.store.write.copy_format import (
    HEADER,
    POSTGRES_EPOCH_US,
    REJECT_COLUMNS,
    TELEMETRY_COLUMNS,
    TRAILER,
    Buffer,
    TelemetryStream,
    digest_of,
    rejects_stream,
    storable,
    telemetry_stream,
)

_LAST_US = 253_402_300_799_999_999  # the end of year 9999
_times = st.integers(-62_135_596_800_000_000, _LAST_US)
_wells = st.lists(st.text("abcXYZ0189._-", min_size=1, max_size=64), min_size=1, max_size=5, unique=True)
_values = st.one_of(st.just(math.nan), st.floats(allow_nan=False, width=64), st.sampled_from([-0.0, 5e-324, 1.8e308]))
_json = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])), st.integers() | st.text('aé€😀\\"'), max_size=3
)


def rows_of(stream: TelemetryStream) -> list[dict[str, bytes | None]]:
    """Each row with a value, or None, for each column of the table: what is not sent is NULL there."""
    assert [name for name in TELEMETRY_COLUMNS if name in stream.columns] == list(stream.columns)
    absent = dict.fromkeys(TELEMETRY_COLUMNS)
    return [absent | dict(zip(stream.columns, fields, strict=True)) for fields in fields_of(stream.pieces)]


def fields_of(stream: list[Buffer]) -> list[list[bytes | None]]:
    """A reader of the format as PostgreSQL's manual describes it."""
    data = b"".join(stream)
    assert data.startswith(HEADER)
    assert data.endswith(TRAILER)
    at, rows = len(HEADER), []
    while at < len(data) - 2:
        (count,) = struct.unpack_from(">h", data, at)
        at += 2
        row: list[bytes | None] = []
        for _ in range(count):
            (length,) = struct.unpack_from(">i", data, at)
            at += 4
            row.append(None if length < 0 else data[at : at + length])
            at += max(length, 0)
        rows.append(row)
    assert at == len(data) - 2
    return rows


def dumped(value: Any) -> bytes | None:
    """As psycopg's own binary dumpers write it."""
    if value is None:
        return None
    data = Transformer().get_dumper(value, PyFormat.BINARY).dump(value)
    assert data is not None
    return bytes(data)


@st.composite
def some_readings(draw: st.DrawFn) -> Readings:
    wells, count = draw(_wells), draw(st.integers(1, 12))
    absent = draw(st.sets(st.integers(0, len(SIGNALS) - 1)))  # signals that nobody sends
    values = np.array(
        [[math.nan if signal in absent else draw(_values) for _ in range(count)] for signal in range(len(SIGNALS))]
    )
    texts = st.dictionaries(st.integers(0, count - 1), _json.map(json.dumps), max_size=count)
    return Readings(
        wells=wells,
        well_index=np.array([draw(st.integers(0, len(wells) - 1)) for _ in range(count)], np.int32),
        timestamp_us=np.array([draw(_times) for _ in range(count)], np.int64),
        received_us=np.array([draw(_times) for _ in range(count)], np.int64),
        values=values,
        extra=draw(texts),
        quality=draw(texts),
    )


def expected(readings: Readings, row: int) -> dict[str, bytes | None]:
    values = readings.values[:, row].tolist()
    signals = [None if math.isnan(value) else struct.pack(">d", value) for value in values]
    texts = (readings.extra.get(row), readings.quality.get(row))
    jsons = [None if text is None else b"\x01" + text.encode() for text in texts]
    times = [
        struct.pack(">q", int(at[row]) - POSTGRES_EPOCH_US) for at in (readings.timestamp_us, readings.received_us)
    ]
    return dict(zip(TELEMETRY_COLUMNS, [*times, *signals, readings.well_of(row).encode(), *jsons], strict=True))


@given(some_readings(), st.data())
def test_every_row_is_there_to_the_last_bit(readings: Readings, data: st.DataObject) -> None:
    every = list(range(len(readings)))
    assert rows_of(telemetry_stream(readings)) == [expected(readings, row) for row in every]
    some = data.draw(st.lists(st.sampled_from(every)))
    always = data.draw(st.sets(st.sampled_from(TELEMETRY_COLUMNS)))
    stream = telemetry_stream(readings, np.array(some, np.intp), always)
    assert rows_of(stream) == [expected(readings, row) for row in some]
    assert always <= set(stream.columns)


@given(some_readings())
def test_no_column_is_sent_that_no_row_has_a_value_for(readings: Readings) -> None:
    stream = telemetry_stream(readings)
    rows = rows_of(stream)
    for name in stream.columns:
        if name not in ("extra", "quality"):  # these two go together
            assert any(row[name] is not None for row in rows)


@given(some_readings())
def test_it_is_what_psycopg_would_send(readings: Readings) -> None:
    for row, named in enumerate(rows_of(telemetry_stream(readings))):
        assert named["timestamp"] == dumped(at_us(int(readings.timestamp_us[row])))
        assert named["received_at"] == dumped(at_us(int(readings.received_us[row])))
        assert named["well_id"] == dumped(readings.well_of(row))
        for signal, value in zip(SIGNALS, readings.values[:, row].tolist(), strict=True):
            assert named[signal.name] == (None if math.isnan(value) else dumped(value))
        extra = readings.extra.get(row)
        if extra is not None:
            assert named["extra"] == dumped(Jsonb(json.loads(extra), dumps=json.dumps))


@given(
    topic=st.binary(max_size=40),
    payload=st.binary(max_size=200),
    detail=st.text(),
    item=st.integers(0, 2**31 - 1),
    received_us=_times,
    redelivered=st.integers(0, 2**62),
)
def test_a_reject_is_there_byte_for_byte(
    topic: bytes, payload: bytes, detail: str, item: int, received_us: int, redelivered: int
) -> None:
    reject = Reject(received_us, topic, RejectReason.INVALID_JSON, detail, payload, item, redelivered)
    (fields,) = fields_of(rejects_stream([(reject, digest_of(reject))]))
    named = dict(zip(REJECT_COLUMNS, fields, strict=True))
    assert named["received_at"] == dumped(at_us(received_us))
    assert named["digest"] == dumped(UUID(bytes=digest_of(reject)))
    assert named["item"] == struct.pack(">i", item)
    assert named["payload"] == payload
    assert named["reason"] == b"invalid_json"
    assert named["redelivered"] == dumped(redelivered > 0)
    assert named["since"] == struct.pack(">q", redelivered)
    text = named["topic"]
    assert text is not None
    assert b"\0" not in text + (named["detail"] or b"")
    text.decode()
    assert (text if named["topic_bytes"] is None else named["topic_bytes"]) == topic


@given(st.text())
def test_storable_text_can_be_stored_and_good_text_is_left_alone(text: str) -> None:
    good = "\0" not in text and not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)
    made = storable(text)
    assert "\0" not in made
    made.encode()
    assert (made == text) == good


def test_an_empty_batch_is_an_empty_stream() -> None:
    assert telemetry_stream(Readings.empty()).pieces == [HEADER, TRAILER]
    assert fields_of(rejects_stream([])) == []


@given(st.binary(max_size=20), st.binary(max_size=20), st.integers(0, 5))
def test_a_digest_tells_topic_item_and_payload_apart(topic: bytes, payload: bytes, item: int) -> None:
    here = Reject(0, topic, RejectReason.INVALID_JSON, "", payload, item)
    later = Reject(9, topic, RejectReason.EMPTY_PAYLOAD, "other", payload, item, redelivered=True)
    assert digest_of(here) == digest_of(later)
    assert digest_of(here) != digest_of(Reject(0, topic, here.reason, "", payload, item + 1))
    if payload:  # the same bytes, cut elsewhere
        shifted = Reject(0, topic + payload[:1], here.reason, "", payload[1:], item)
        assert digest_of(here) != digest_of(shifted)
