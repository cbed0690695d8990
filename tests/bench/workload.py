"""What every competitor is fed: PUBLISH packets, encoded before the clock starts, and the rows they must become.

A workload is a folder of files that publisher, limits and verification share:

* ``packets.bin``  the PUBLISH packets (MQTT 3.1.1 framing, QoS 1) one after another
* ``offsets.npy``  (messages + 1,) int64, where each packet begins
* ``rows.bin``     the readings that must be in the table at the end, as rows of a binary COPY

Values are decimals of a well-behaved fleet: each well wanders a little about its own level, so that validation,
diagnostics and compression see telemetry and not noise over the full range.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

POSTGRES_EPOCH_US = 946_684_800_000_000
ROW_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
ROW_TRAILER = b"\xff\xff"
COLUMNS = (
    "well_id",
    "timestamp",
    "flow_rate",
    "pip",
    "motor_current",
    "motor_temp",
    "vibration",
    "vsd_frequency",
    "gor",
    "received_at",
)
# (low, high) of the fleet's levels and the decimals a controller sends.
_LEVELS = (
    ("flow_rate", 800.0, 1200.0, 1),
    ("pip", 1800.0, 2200.0, 1),
    ("motor_current", 45.0, 55.0, 2),
    ("motor_temp", 180.0, 220.0, 1),
    ("vibration", 0.10, 0.50, 3),
    ("vsd_frequency", 58.0, 62.0, 2),
    ("gor", 200.0, 400.0, 1),
)
_WELL_BYTES = 9
_ROW = np.dtype(
    [
        ("fields", ">i2"),
        ("well_len", ">i4"),
        ("well", f"S{_WELL_BYTES}"),
        ("timestamp_len", ">i4"),
        ("timestamp", ">i8"),
    ]
    + [part for name, *_ in _LEVELS for part in ((f"{name}_len", ">i4"), (name, ">f8"))]
    + [("received_len", ">i4"), ("received", ">i8")]
)
_READING = (
    b'{"well_id":"%b","timestamp":"%b","flow_rate":%.1f,"pip":%.1f,"motor_current":%.2f,"motor_temp":%.1f,'
    b'"vibration":%.3f,"vsd_frequency":%.2f,"gor":%.1f}'
)
# What a broken controller sends: each is one message that cannot be a reading, by a different reason.
_BROKEN = (
    b'{"well_id":"%b","timestamp":"2026-01-01T00:00:',
    b'{"well_id":"%b","flow_rate":912.5,"pip":1870.1}',
    b'{"well_id":"%b","timestamp":1767225600000,"flow_rate":"n/a"}',
    b'{"well_id":"%b","timestamp":"yesterday","flow_rate":912.5}',
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What to generate. ``reject_every`` n: every n-th well sends nothing but rejects, 0 for none."""

    name: str
    wells: int
    rounds: int
    per_message: int = 1
    reject_every: int = 0
    duplicate_share: float = 0.0


class Mark(NamedTuple):
    """Running totals at the end of a round: a workload can be cut there. ``readings`` are distinct and valid."""

    messages: int
    readings: int
    rejects: int
    duplicates: int
    last_well: str
    last_timestamp_us: int

    @property
    def items(self) -> int:
        """What a consumer has to decide on."""
        return self.readings + self.rejects + self.duplicates


@dataclass(frozen=True, slots=True)
class Workload:
    """A generated workload. ``first_us`` is the timestamp of round 0, before each well's own milliseconds."""

    shape: Shape
    folder: Path
    first_us: int
    payload_bytes: float
    marks: tuple[Mark, ...]

    @property
    def whole(self) -> Mark:
        return self.marks[-1]

    def cut(self, messages: int) -> Mark:
        """The first round's end at or after ``messages``, or the whole."""
        return next((mark for mark in self.marks if mark.messages >= messages), self.whole)

    def rows(self) -> npt.NDArray[np.void]:
        """The expected rows, in the order published."""
        return np.memmap(self.folder / "rows.bin", dtype=_ROW, mode="r")


def generate(shape: Shape, folder: Path, first_us: int, seed: int = 1) -> Workload:
    """Write the workload to ``folder``: round k of every well carries first_us + k seconds (and each well its own
    milliseconds), so timestamps of a well only rise. Memory is one round plus the delayed duplicates."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    fleet, writer = _Fleet(shape, first_us, random), _PacketWriter()
    readings = rejects = duplicates = 0
    pending: list[tuple[int, bytes]] = []  # duplicates, by the message count from which they are due
    marks: list[Mark] = []
    with (folder / "packets.bin").open("wb") as packets, (folder / "rows.bin").open("wb") as rows:
        for block in fleet.blocks():
            rows.write(block.rows.tobytes())
            readings += len(block.rows)
            for is_reading, packet in block.packets:
                writer.add(packet)
                rejects += not is_reading
                if is_reading and random.random() < shape.duplicate_share:
                    pending.append((writer.messages + int(random.integers(1, 2_000)), packet))
            reached = 0 if block.last else writer.messages
            for packet in [packet for at, packet in pending if at <= reached]:
                writer.add(packet)
                duplicates += shape.per_message
            pending = [(at, packet) for at, packet in pending if at > reached]
            writer.flush(packets)
            marks.append(
                Mark(writer.messages, readings, rejects, duplicates, fleet.last_well.decode(), fleet.last_timestamp_us)
            )
    np.save(folder / "offsets.npy", writer.offsets())
    return Workload(shape, folder, first_us, fleet.payload_bytes / fleet.payloads, tuple(marks))


@dataclass(frozen=True, slots=True)
class _Block:
    rows: npt.NDArray[np.void]
    packets: list[tuple[bool, bytes]]  # (is a reading, topic and payload without packet id)
    last: bool


class _Fleet:
    def __init__(self, shape: Shape, first_us: int, random: np.random.Generator) -> None:
        if shape.rounds % shape.per_message:
            raise ValueError(f"rounds ({shape.rounds}) must be a multiple of per_message ({shape.per_message})")
        if first_us % 1_000:
            raise ValueError("payloads carry milliseconds: first_us must be a multiple of 1 000")
        if shape.reject_every == 1:
            raise ValueError("reject_every = 1 leaves no reading")
        self._shape, self._first_us, self._random = shape, first_us, random
        self._names = [b"ESP-%05d" % number for number in range(shape.wells)]
        self._low = np.array([low for _, low, _, _ in _LEVELS])[:, None]
        self._span = np.array([high - low for _, low, high, _ in _LEVELS])[:, None]
        self._scale = np.array([10.0**decimals for *_, decimals in _LEVELS])[:, None]
        self._level = random.random((len(_LEVELS), shape.wells))
        self._phase_us = (np.arange(shape.wells, dtype=np.int64) * 7 % 1_000) * 1_000
        self.payload_bytes = self.payloads = 0
        self.last_well, self.last_timestamp_us = b"", 0

    def blocks(self) -> Iterator[_Block]:
        """One block for each ``per_message`` rounds of the whole fleet."""
        count = self._shape.rounds // self._shape.per_message
        for number in range(count):
            yield self._block(number, number == count - 1)

    def _block(self, number: int, last: bool) -> _Block:
        shape, per = self._shape, self._shape.per_message
        steps = range(number * per, (number + 1) * per)
        times = [self._first_us + step * 1_000_000 + self._phase_us for step in steps]
        values = [self._values() for _ in steps]
        texts = [_timestamp_texts(column) for column in times]
        broken = {well for well in range(shape.wells) if shape.reject_every and well % shape.reject_every == 1}
        packets = []
        for well, name in enumerate(self._names):
            if well in broken:
                payload = _BROKEN[(number + well) % len(_BROKEN)] % name
            else:
                items = [_READING % (name, texts[step][well], *values[step][:, well].tolist()) for step in range(per)]
                payload = items[0] if per == 1 else b"[" + b",".join(items) + b"]"
                self.last_well, self.last_timestamp_us = name, int(times[-1][well])
            self.payload_bytes += len(payload)
            self.payloads += 1
            packets.append((well not in broken, _publish(name, payload)))
        kept = np.array([well for well in range(shape.wells) if well not in broken])
        return _Block(self._rows(times, values, kept), packets, last)

    def _values(self) -> npt.NDArray[np.float64]:
        """(signals, wells): the next step of a slow walk about each well's level, in the decimals that are sent."""
        self._level += self._random.normal(0, 0.004, self._level.shape)
        np.clip(self._level, 0.0, 1.0, out=self._level)
        raw = self._low + self._span * self._level
        rounded: npt.NDArray[np.float64] = np.rint(raw * self._scale) / self._scale
        return rounded

    def _rows(
        self, times: list[npt.NDArray[np.int64]], values: list[npt.NDArray[np.float64]], kept: npt.NDArray[np.intp]
    ) -> npt.NDArray[np.void]:
        per = len(times)
        rows = np.zeros((len(kept), per), dtype=_ROW)
        rows["fields"], rows["well_len"] = len(COLUMNS), _WELL_BYTES
        rows["well"] = np.array(self._names)[kept][:, None]
        rows["timestamp_len"] = rows["received_len"] = 8
        for step in range(per):
            rows["timestamp"][:, step] = times[step][kept] - POSTGRES_EPOCH_US
            for row, (name, *_) in enumerate(_LEVELS):
                rows[f"{name}_len"][:, step] = 8
                rows[name][:, step] = values[step][row, kept]
        rows["received"] = rows["timestamp"]
        return rows.reshape(-1)


class _PacketWriter:
    """Gives packets their ids and remembers where each begins."""

    def __init__(self) -> None:
        self._buffer: list[bytes] = []
        self._lengths: list[int] = []
        self.messages = 0

    def add(self, packet: bytes) -> None:
        split = _after_topic(packet)
        packet_id = struct.pack(">H", self.messages % 65_535 + 1)
        self._buffer += (packet[:split], packet_id, packet[split:])
        self._lengths.append(len(packet) + 2)
        self.messages += 1

    def flush(self, file: BinaryIO) -> None:
        file.write(b"".join(self._buffer))
        self._buffer.clear()

    def offsets(self) -> npt.NDArray[np.int64]:
        return np.concatenate(([0], np.cumsum(np.array(self._lengths, dtype=np.int64))))


def _publish(well: bytes, payload: bytes) -> bytes:
    """A QoS 1 PUBLISH without its two bytes of packet id, whose length is counted already."""
    topic = b"esp/" + well + b"/telemetry"
    body = struct.pack(">H", len(topic)) + topic
    return b"\x32" + encode_length(len(body) + 2 + len(payload)) + body + payload


def _after_topic(packet: bytes) -> int:
    start = after_header(packet)
    return start + 2 + int.from_bytes(packet[start : start + 2], "big")


def after_header(packet: bytes) -> int:
    """Where the variable header of an MQTT packet begins."""
    at = 1
    while packet[at] & 0x80:
        at += 1
    return at + 1


def encode_length(length: int) -> bytes:
    """MQTT's variable byte integer."""
    out = bytearray()
    while True:
        length, digit = divmod(length, 128)
        out.append(digit | 0x80 if length else digit)
        if not length:
            return bytes(out)


def _timestamp_texts(times_us: npt.NDArray[np.int64]) -> list[bytes]:
    """RFC 3339 in UTC with milliseconds; all of a round lie in one or two seconds, so the date is made once each."""
    seconds, rest = np.divmod(times_us, 1_000_000)
    heads = {
        int(second): datetime.fromtimestamp(int(second), UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
        for second in np.unique(seconds)
    }
    return [
        b"%b.%03dZ" % (heads[second], milli)
        for second, milli in zip(seconds.tolist(), (rest // 1_000).tolist(), strict=True)
    ]
