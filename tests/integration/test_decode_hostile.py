"""Messages made to be dear: decoding one takes little memory, and no call of it is long."""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from esp_ingest.config.settings import TelemetrySettings
from esp_ingest.service import memory
from esp_ingest.telemetry import slices
from esp_ingest.telemetry.decode import DECODE_BYTES_PER_PAYLOAD_BYTE, Decoder
from tests.support.databases import unavailable
from tests.support.shipped import ROOT
from tests.unit.test_decode_large import deliver, reading


def array(item: bytes, size: int) -> bytes:
    return b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]"


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
from tests.integration.test_decode_hostile import HOSTILE, deliver
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
        unavailable("this system does not let a process clear its peak of memory (/proc/self/clear_refs)")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", MEASURE], cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.stdin.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", MEASURED)
def test_memory_is_a_small_multiple_of_the_payload(measuring: "subprocess.Popen[str]", kind: str) -> None:
    """Four messages in one batch."""
    measuring.stdin.write(f"{kind}\n")
    measuring.stdin.flush()
    assert float(measuring.stdout.readline()) < DECODE_BYTES_PER_PAYLOAD_BYTE <= memory.DECODE_FACTOR
