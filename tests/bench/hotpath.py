"""The hot path of a batch on a fixed input, stage by stage as the daemon runs it: what guard.py counts.

python -m tests.bench.hotpath REPEATS     (guard.py runs it under callgrind)
"""

import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from esp_ingest.config.settings import TelemetrySettings
from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.model import Delivery
from esp_ingest.mqtt.publish_packets import walk
from esp_ingest.resources import config_file
from esp_ingest.store.write.copy_format import telemetry_stream
from esp_ingest.store.write.high_water import HighWaterMarks
from esp_ingest.telemetry.decode import Decoder
from tests.bench.workload import Shape, after_header, encode_length, generate

READINGS = 5_000
WELLS = 500
FIRST_US = 1_767_225_600_000_000  # 2026-01-01
_RECV_BYTES = 262_144


def fixed_input(folder: Path) -> list[bytes]:
    """What the socket hands over: MQTT 5 PUBLISH packets of one reading each, in pieces of about a recv, each of whole
    packets (one cut at the end of a recv is another path, and rare)."""
    generate(Shape("hot path", WELLS, READINGS // WELLS), folder, FIRST_US)
    packets = (folder / "packets.bin").read_bytes()
    offsets = np.load(folder / "offsets.npy").tolist()
    pieces, piece = [], bytearray()
    for at, end in itertools.pairwise(offsets):
        piece += _with_properties(packets[at:end])
        if len(piece) > _RECV_BYTES:
            pieces.append(bytes(piece))
            piece.clear()
    return [*pieces, bytes(piece)]


def _with_properties(packet: bytes) -> bytes:
    """The MQTT 3.1.1 PUBLISH of a workload as MQTT 5, with no property."""
    start = after_header(packet)
    topic_end = start + 2 + int.from_bytes(packet[start : start + 2], "big")
    body = packet[start : topic_end + 2] + b"\0" + packet[topic_end + 2 :]
    return packet[:1] + encode_length(len(body)) + body


class HotPath:
    """Each stage takes what the one before gave."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._decoder = Decoder(TelemetrySettings(), "esp")
        self._engine = Engine(rules_file.load(config_file("rules.toml")))
        self._batches = 0
        self.stages: dict[str, Callable[[], None]] = {
            "walk": self.walk,
            "decode": self.decode,
            "rules": self.rules,
            "copy": self.copy,
        }

    def walk(self) -> None:
        """Socket bytes → deliveries."""
        self._deliveries: list[Delivery] = []
        for piece in self._pieces:
            at, _, unusual = walk(piece, 0, self._deliveries, 1, FIRST_US, True)
            assert at == len(piece)
            assert not unusual

    def decode(self) -> None:
        """Deliveries → columns."""
        decoded = self._decoder.decode(self._deliveries)
        assert (len(decoded.readings), decoded.rejects) == (READINGS, [])
        self._readings = decoded.readings

    def rules(self) -> None:
        """Columns → what the rules that ship say. Later each time, or all of it would be late the second time."""
        later_us = self._batches * (READINGS // WELLS) * 1_000_000
        self._batches += 1
        readings = replace(self._readings, timestamp_us=self._readings.timestamp_us + later_us)
        evaluation = self._engine.evaluate(readings)
        assert evaluation.late == 0
        self._engine.accept(evaluation)

    def copy(self) -> None:
        """Columns → what is new by the marks → the bytes of a COPY. Fresh marks each time, or nothing would be new."""
        marks = HighWaterMarks()
        assert marks.fresh(self._readings).all()
        self._stream = telemetry_stream(self._readings)
        marks.committed(self._readings)

    def run(self) -> None:
        for stage in self.stages.values():
            stage()


def main() -> None:
    """Under callgrind two counts come out, of the start with one run and of that with REPEATS runs more: the child
    ends where the parent goes on."""
    with tempfile.TemporaryDirectory() as name:
        path = HotPath(fixed_input(Path(name)))
    path.run()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    for _ in range(int(sys.argv[1])):
        path.run()
    os._exit(0)  # as the child: taking the interpreter down is not the hot path


if __name__ == "__main__":
    main()
