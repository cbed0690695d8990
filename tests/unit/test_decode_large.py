"""Large messages are decoded in slices, with the same outcome as in one piece."""

import json
from typing import Any

import numpy as np
import pytest

from esp_ingest.config.settings import TelemetrySettings
from esp_ingest.model import SIGNAL_ROW, Decoded, Delivery
from esp_ingest.telemetry import slices
from esp_ingest.telemetry.decode import Decoder

NOW_US = 1_795_554_000_000_000  # 2026-11-24T21:00:00Z
TIME = b'"timestamp":1795553999500'


def reading(extra: bytes) -> bytes:
    return b"{%s,%s}" % (TIME, extra)


def deliver(*payloads: bytes) -> list[Delivery]:
    return [Delivery(b"esp/w1/telemetry", payload, 1, mid, 1, NOW_US) for mid, payload in enumerate(payloads)]


def outcome(decoded: Decoded) -> tuple[Any, ...]:
    """All but the details, which may name another place."""
    readings = decoded.readings
    return (
        readings.wells,
        readings.well_index.tolist(),
        readings.timestamp_us.tolist(),
        readings.values.tobytes(),
        {row: json.loads(text) for row, text in readings.extra.items()},
        readings.quality,
        [(reject.reason, reject.item, reject.payload) for reject in decoded.rejects],
        decoded.out_of_range,
        decoded.unusable,
    )


PARTS = [
    reading(b'"pip":5'),
    reading(b'"pip":6,"n":"a,b]"'),
    reading(b'"pip":nan,"t":"\\"[,\\\\"'),
    reading(b'"pip":9000, "gor" : 1'),
    b"nan",
    b"{}",
    b'{"timestamp":7,"pip":1}',
    reading(b'"pip":1,"pip":2'),
    reading(b'"pip":7,"a":' + b"[" * 40 + b"]" * 40),
    reading(b'"pip":8,"t":"\\u0000\xc3\xa9"'),
    reading(b'"gor":2,"w":"' + b"z" * 200 + b'"'),
]


@pytest.mark.parametrize("seed", range(20))
def test_an_array_in_slices_is_the_array_in_one_piece(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(seed)
    items = [PARTS[at] for at in random.integers(0, len(PARTS), int(random.integers(1, 300)))]
    payload = b"\xef\xbb\xbf [" + b" ,\n".join(items) + b"]\0"
    if seed % 4 == 3:  # and where it is not JSON
        at = int(random.integers(0, len(payload)))
        payload = payload[:at] + bytes(random.choice(list(b'"[]{},x\\'), 1).astype(np.uint8)) + payload[at:]
    whole = Decoder(TelemetrySettings(), "esp").decode(deliver(PARTS[0], payload, PARTS[1]))
    monkeypatch.setattr(slices, "SLICE_BYTES", int(random.integers(60, 2_000)))
    decoder = Decoder(TelemetrySettings(), "esp")
    cut = decoder.decode(deliver(PARTS[0], payload, PARTS[1]))
    assert decoder.fallbacks == 0
    if seed % 4 == 3 and len(whole.rejects) == 1 and whole.rejects[0].item == 0:
        assert [reject.payload for reject in cut.rejects] == [payload]  # which reason is said first may differ
        assert len(cut.readings) == len(whole.readings)
    else:
        assert outcome(cut) == outcome(whole)


def test_an_honest_backlog_of_a_hundred_thousand_readings_is_stored() -> None:
    items = [b'{"timestamp":%d,"gor":%d}' % (1_795_000_000_000 + at, at % 9) for at in range(100_000)]
    decoded = Decoder(TelemetrySettings(), "esp").decode(deliver(PARTS[0], b"[" + b",".join(items) + b"]", PARTS[1]))
    assert decoded.rejects == []
    assert decoded.readings.timestamp_us[1:-1].tolist() == [(1_795_000_000_000 + at) * 1_000 for at in range(100_000)]
    assert decoded.readings.values[SIGNAL_ROW["pip"], [0, -1]].tolist() == [5, 6]
    assert decoded.readings.extra == {100_001: '{"n":"a,b]"}'}


@pytest.mark.parametrize(
    ("payload", "reason", "said"),
    [
        (reading(b'"pip":1,"a":"' + b"x" * 1_048_576 + b'"'), "payload_too_large", "telemetry.max_reading_bytes"),
        (reading(b'"pip":1,"a":[' + b"1," * 60_000 + b"1]"), "payload_too_large", "at most 50000"),
        (reading(b'"pip":1,"a":"' + b"\\n" * 60_000 + b'"'), "payload_too_large", "at most 50000"),
        (b'{"a":' * 40 + b'"' + b"x" * 100_000 + b'"' + b"}" * 40, "too_deep", "max_depth"),
    ],
)
def test_a_reading_that_would_take_too_long_is_refused_alone(payload: bytes, reason: str, said: str) -> None:
    alone = Decoder(TelemetrySettings(), "esp").decode(deliver(PARTS[0], payload, PARTS[0]))
    assert [(reject.reason, reject.payload) for reject in alone.rejects] == [(reason, payload)]
    assert said in alone.rejects[0].detail
    assert len(alone.readings) == 2
    in_array = b"[" + PARTS[0] + b"," + payload + b" ," + PARTS[1] + b"]"
    decoded = Decoder(TelemetrySettings(), "esp").decode(deliver(in_array))
    assert [(reject.reason, reject.item, reject.payload) for reject in decoded.rejects] == [(reason, 1, payload)]
    assert len(decoded.readings) == 2
