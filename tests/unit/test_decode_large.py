"""Large messages are decoded in slices: the same outcome as in one piece, little memory, and never long in one call."""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from esp_ingest.config.settings import TelemetrySettings
from esp_ingest.model import SIGNAL_ROW, Decoded, Delivery
from esp_ingest.service import memory
from esp_ingest.telemetry import slices
from esp_ingest.telemetry.decode import DECODE_BYTES_PER_PAYLOAD_BYTE, Decoder

NOW_US = 1_795_554_000_000_000  # 2026-11-24T21:00:00Z
TIME = b'"timestamp":1795553999500'
SIZE = 4_000_000
_ROOT = Path(__file__).parent.parent.parent


def array(item: bytes, size: int = SIZE) -> bytes:
    return b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]"


def reading(extra: bytes) -> bytes:
    return b"{%s,%s}" % (TIME, extra)


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "quotes": lambda size: b'["' + b'"' * size,
    "empty texts": lambda size: array(b'""', size),
    "lists": lambda size: b'{"a":[' + b",".join([b"[]"] * (size // 3)) + b"]}",
    "null timestamps": lambda size: array(b'{"timestamp":null}', size),
    "null timestamps, padded": lambda size: array(b'{"timestamp":null       }', size),
    "deep": lambda size: b"[" * size,
    "deep items": lambda size: array(reading(b'"pip":1,"a":' + b"[" * 30 + b"]" * 30), size),
    "many keys": lambda size: reading(b",".join(b'"%d":1' % key for key in range(size // 12)) + b',"pip":1'),
    "escapes": lambda size: reading(b'"pip":1,"a":"' + b'\\"' * (size // 2) + b'"'),
    "backslashes": lambda size: b'["' + b"\\" * size,
    "one text": lambda size: reading(b'"pip":1,"a":"' + b"x" * size + b'"'),
    "a wide text": lambda size: reading(b'"pip":1,"a":"' + b"x" * min(size, 1_000_000) + '😀"'.encode()),
    "spaces": lambda size: b" " * size + reading(b'"pip":1'),
    "marks": lambda size: b"\xef\xbb\xbf" * (size // 3),
    "words": lambda size: b'{"a":' + b"x " * min(size // 2, 500_000),
    "numbers": lambda size: array(b"1", size),
    "bare tokens": lambda size: array(b"nan", size),
    "bare values": lambda size: array(reading(b'"pip":nan'), size),
    "short readings": lambda size: array(b'{"timestamp":1795554e6,"gor":0}', size),
    "out of range": lambda size: array(reading(b'"gor":-1'), size),
    "shortest out of range": lambda size: array(b'{"timestamp":1795554e6,"gor":-1}', size),
    "unknown keys": lambda size: array(reading(b'"gor":1,"":0'), size),
    "unstorable": lambda size: array(reading(b'"gor":1,"":"\\u0000"'), size),
    "a long number": lambda size: reading(b'"pip":0.' + b"3" * min(size, 1_000_000)),
    "a long timestamp": lambda size: b'{"timestamp":"' + b"1" * min(size, 1_000_000) + b'","pip":1}',
}
# The densest of each kind; the others are measured in the soak, since each takes seconds.
WORST = {
    "quotes",
    "lists",
    "null timestamps",
    "many keys",
    "bare values",
    "short readings",
    "out of range",
    "unstorable",
}
MEASURED = [pytest.param(kind, marks=() if kind in WORST else pytest.mark.soak) for kind in HOSTILE]


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


def longest_call_seconds(work: Callable[[], object]) -> float:
    """CPU time of the longest stretch of ``work`` in which this thread ran no Python code, and so could not have
    handed over the interpreter."""
    thread_time = time.thread_time
    longest, last = 0.0, thread_time()

    def note(_frame: FrameType, _event: str, _argument: object) -> None:
        nonlocal longest, last
        now = thread_time()  # one system call an event: two of them took most of the test
        if now - last > longest:
            longest = now - last
        last = now

    gc.disable()  # the daemon's collector has thresholds of its own
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return longest


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", MEASURED)
def test_no_call_holds_the_interpreter_for_long(kind: str) -> None:
    """Compared with one slice of the densest JSON, which takes this machine 1 to 2 ms: a whole message of 4 MB in one
    call took 100 times that."""
    slice_of_lists = "[" + "[]," * (slices.SLICE_BYTES // 3 - 1) + "[]]"
    deliveries = deliver(HOSTILE[kind](500_000))
    decoder = Decoder(TelemetrySettings(), "esp")
    decoder.decode(deliveries)
    found = []
    for _ in range(3):
        started = time.thread_time()
        for _ in range(5):
            json.loads(slice_of_lists)
        unit = (time.thread_time() - started) / 5
        found.append(longest_call_seconds(lambda: decoder.decode(deliveries)) / unit)
        if found[-1] < 4:
            break
    assert min(found) < 4


MEASURE = """
import gc, os, sys
from tests.unit.test_decode_large import HOSTILE, deliver
from esp_ingest.config.settings import TelemetrySettings
from esp_ingest.telemetry.decode import Decoder

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

def measure(kind):
    decoder.decode(deliver(b"[nan]", b'{"timestamp":1795553999500,"pip":nan}'))
    payload = HOSTILE[kind](1_000_000)
    deliveries = deliver(*[payload] * 4)
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    decoded = decoder.decode(deliveries)
    print((status("VmHWM") - before) / len(payload) / len(deliveries), flush=True)

gc.freeze()  # as the daemon
gc.set_threshold(200_000, 10, 10)
decoder = Decoder(TelemetrySettings(), "esp")
for line in sys.stdin:
    if not os.fork():
        measure(line.strip())
        os._exit(0)
    if os.wait()[1]:
        print("failed", flush=True)
"""


@pytest.fixture(scope="module")
def measuring() -> Iterator["subprocess.Popen[str]"]:
    """Measures each kind that is written to it in a process of its own: freed memory that stays with one would hide a
    peak."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not let a process clear its peak of memory (/proc/self/clear_refs)")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", MEASURE], cwd=_ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.stdin.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", MEASURED)
def test_memory_is_a_small_multiple_of_the_payload(measuring: "subprocess.Popen[str]", kind: str) -> None:
    """Four messages in one batch."""
    measuring.stdin.write(f"{kind}\n")
    measuring.stdin.flush()
    assert float(measuring.stdout.readline()) < DECODE_BYTES_PER_PAYLOAD_BYTE <= memory.DECODE_FACTOR
