"""Rows as PostgreSQL's binary COPY format, built in bulk.

psycopg's write_row costs 1 µs a row, and more with many columns; here a batch is one numpy matrix of bytes, a line a
row, out of which absent values are masked. Format: PostgreSQL manual, "COPY, Binary Format": a 16-bit
count of fields, then for each a 32-bit length (-1 for NULL) and the value, all big-endian.
"""

import struct
from collections.abc import Container, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from esp_ingest.model import SIGNAL_NAMES, Readings, Reject

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # signature, no flags, no header extension
TRAILER = b"\xff\xff"
POSTGRES_EPOCH_US = 946_684_800_000_000  # 2000-01-01, where timestamptz counts from

TELEMETRY_COLUMNS = ("timestamp", "received_at", *SIGNAL_NAMES, "well_id", "extra", "quality")
REJECT_COLUMNS = (
    "received_at", "digest", "item", "topic", "topic_bytes", "reason", "detail", "payload", "redelivered", "connection",
    "packet_id", "since",
)  # fmt: skip

Buffer = bytes | memoryview
_Rows = npt.NDArray[np.intp]
JSONB_VERSION = b"\x01"
_NULL = b"\xff\xff\xff\xff"


class TelemetryStream(NamedTuple):
    """A complete COPY stream: the columns it writes, and its bytes in pieces, to be sent one after the other (joining
    them would copy a megabyte for nothing)."""

    columns: tuple[str, ...]
    pieces: list[Buffer]


def telemetry_stream(readings: Readings, rows: _Rows | None = None, always: Container[str] = ()) -> TelemetryStream:
    """The readings at ``rows`` (None: all), in that order. Of TELEMETRY_COLUMNS those that one of them has a value for,
    and those in ``always``: a NULL that is not sent is work that the database is spared.

    NaN becomes NULL; every other float64 keeps its bits. Text is encoded as it is, so that what the database cannot
    hold (a lone surrogate, a NUL) is refused by the database, where the writer finds the row at fault."""
    if rows is not None:
        well_index, values = readings.well_index[rows], readings.values[:, rows]
        timestamp_us, received_us = readings.timestamp_us[rows], readings.received_us[rows]
        json_rows = _json_rows(readings, rows)
    else:
        well_index, values = readings.well_index, readings.values
        timestamp_us, received_us = readings.timestamp_us, readings.received_us
        json_rows = [(row, row) for row in sorted(readings.extra.keys() | readings.quality.keys())]
    if len(timestamp_us) == 0:
        return TelemetryStream(TELEMETRY_COLUMNS, [HEADER, TRAILER])

    wells = _padded(readings.wells)
    present: npt.NDArray[np.bool_] = ~np.isnan(values)
    layout = _Layout.of(present, wells.texts.dtype, has_json=bool(json_rows), always=always)
    lines: Any = layout.blank(len(timestamp_us))
    lines["timestamp"] = timestamp_us - POSTGRES_EPOCH_US
    lines["received_at"] = received_us - POSTGRES_EPOCH_US
    for signal in layout.sent:
        lines[f"value{signal}"] = values[signal]
    for signal in layout.mixed:
        lines[f"length{signal}"] = np.where(present[signal], 8, -1)
    lengths = wells.lengths[well_index]
    lines["well_length"] = lengths
    lines["well_id"] = wells.texts[well_index]

    mask = layout.mask(present, lengths, [place for place, _ in json_rows])
    body = lines.view(np.uint8)
    if mask is None:
        return TelemetryStream(layout.columns, [HEADER, body.data, TRAILER])
    spliced = _splice(body.reshape(mask.shape)[mask].data, mask, json_rows, readings)
    return TelemetryStream(layout.columns, [HEADER, *spliced, TRAILER])


@dataclass(frozen=True)
class _Layout:
    """Where each field stands in a line of ``columns``. Of the signals that are ``named`` there, those ``sent`` have a
    value in some row, ``mixed`` ones not in all; of another stands a NULL of four bytes in each line."""

    dtype: np.dtype[np.void]
    columns: tuple[str, ...]
    named: list[int]
    sent: list[int]
    mixed: list[int]
    has_json: bool

    @staticmethod
    def of(
        present: npt.NDArray[np.bool_], well_type: np.dtype[Any], *, has_json: bool, always: Container[str]
    ) -> "_Layout":
        counts: list[int] = np.count_nonzero(present, axis=1).tolist()
        sent = [signal for signal, count in enumerate(counts) if count]
        named = [signal for signal, name in enumerate(SIGNAL_NAMES) if counts[signal] or name in always]
        has_json = has_json or "extra" in always or "quality" in always
        fields: list[tuple[str, Any]] = [
            ("fields", ">i2"),
            ("timestamp_length", ">i4"),
            ("timestamp", ">i8"),
            ("received_length", ">i4"),
            ("received_at", ">i8"),
        ]
        for signal in named:
            fields.append((f"length{signal}", ">i4"))
            if counts[signal]:
                fields.append((f"value{signal}", ">f8"))
        fields += [("well_length", ">i4"), ("well_id", well_type)]
        columns = ["timestamp", "received_at", *(SIGNAL_NAMES[signal] for signal in named), "well_id"]
        if has_json:
            fields.append(("json", ">i8"))
            columns += ["extra", "quality"]
        mixed = [signal for signal in sent if counts[signal] < present.shape[1]]
        return _Layout(np.dtype(fields), tuple(columns), named, sent, mixed, has_json)

    def blank(self, count: int) -> npt.NDArray[Any]:
        """``count`` lines with what is the same in all of them."""
        line: Any = np.zeros((), self.dtype)
        line["fields"] = len(self.columns)
        line["timestamp_length"] = line["received_length"] = 8
        for signal in self.named:
            line[f"length{signal}"] = 8 if signal in self.sent else -1
        if self.has_json:
            line["json"] = -1  # two NULLs
        return np.frombuffer(bytearray(line.tobytes()) * count, self.dtype)  # a third of what np.full takes

    def mask(
        self, present: npt.NDArray[np.bool_], well_lengths: npt.NDArray[np.int32], json_rows: list[int]
    ) -> npt.NDArray[np.bool_] | None:
        """Which bytes of the lines count, (n, width); None where all do."""
        width = self._width("well_id")
        ragged = bool((well_lengths != width).any())
        if not (self.mixed or ragged or json_rows):
            return None
        mask = np.ones((present.shape[1], self.dtype.itemsize), np.bool_)
        for signal in self.mixed:
            mask[:, self._bytes(f"value{signal}")] = present[signal][:, None]
        if ragged:
            mask[:, self._bytes("well_id")] = np.arange(width) < well_lengths[:, None]
        if json_rows:
            mask[json_rows, self._bytes("json")] = False
        return mask

    def _bytes(self, field: str) -> slice:
        assert self.dtype.fields is not None
        offset = self.dtype.fields[field][1]
        return slice(offset, offset + self._width(field))

    def _width(self, field: str) -> int:
        assert self.dtype.fields is not None
        return int(self.dtype.fields[field][0].itemsize)


@dataclass(frozen=True)
class _Wells:
    """UTF-8 of each well, padded with zeros to the longest, and its true length."""

    texts: npt.NDArray[np.bytes_]
    lengths: npt.NDArray[np.int32]


def _padded(wells: Sequence[str]) -> _Wells:
    encoded = [well.encode("utf-8", "surrogatepass") for well in wells]
    lengths = np.fromiter(map(len, encoded), np.int32, len(encoded))
    return _Wells(np.array(encoded, f"S{max(int(lengths.max()), 1)}"), lengths)


def _json_rows(readings: Readings, rows: _Rows) -> list[tuple[int, int]]:
    """(place among ``rows``, row) of those with an ``extra`` or a ``quality``."""
    if not readings.extra and not readings.quality:
        return []
    have = readings.extra.keys() | readings.quality.keys()
    return [(place, row) for place, row in enumerate(rows.tolist()) if row in have]


def _splice(
    body: memoryview, mask: npt.NDArray[np.bool_], json_rows: list[tuple[int, int]], readings: Readings
) -> list[Buffer]:
    """``body`` with the JSON fields of ``json_rows`` at the ends of their lines."""
    if not json_rows:
        return [body]
    ends = np.cumsum(mask.sum(axis=1)).tolist()
    parts: list[Buffer] = []
    at = 0
    for place, row in json_rows:
        parts += (body[at : ends[place]], _jsonb(readings.extra.get(row)), _jsonb(readings.quality.get(row)))
        at = ends[place]
    parts.append(body[at:])
    return [b"".join(parts)]


def _jsonb(text: str | None) -> bytes:
    return _NULL if text is None else _field(JSONB_VERSION + text.encode("utf-8", "surrogatepass"))


def _field(value: bytes) -> bytes:
    return struct.pack(">i", len(value)) + value


# ------------------------------------------------------------------------------------------------------------ rejects


def digest_of(reject: Reject) -> bytes:
    """16 bytes over topic, item and payload: the same content has the same digest, whenever it came."""
    prefix = struct.pack(">II", len(reject.topic), reject.item)
    return blake2b(prefix + reject.topic + reject.payload, digest_size=16).digest()


def topic_text(topic: bytes) -> tuple[str, bytes | None]:
    """The topic as the database can hold it, and its bytes where the text cannot say them."""
    text = topic.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
    return text, None if text.encode() == topic else topic


_REJECT_HEAD = struct.Struct(">hiqi16sii")  # count, then received_at, digest and item with their lengths
_REJECT_TAIL = struct.Struct(">i?iqiiiq")  # redelivered, connection, packet id and since with their lengths


def rejects_stream(rejects: Sequence[tuple[Reject, bytes]]) -> list[Buffer]:
    """(reject, its digest) as one complete COPY stream of REJECT_COLUMNS. Nothing in it can be refused as text."""
    parts: list[bytes] = [HEADER]
    for reject, digest in rejects:
        topic, topic_bytes = topic_text(reject.topic)
        parts += (
            _REJECT_HEAD.pack(
                len(REJECT_COLUMNS), 8, reject.received_us - POSTGRES_EPOCH_US, 16, digest, 4, reject.item
            ),
            _field(topic.encode()),
            _NULL if topic_bytes is None else _field(topic_bytes),
            _field(reject.reason.value.encode()),
            _field(storable(reject.detail).encode()),
            _field(reject.payload),
            _REJECT_TAIL.pack(1, reject.redelivered, 8, reject.connection, 4, reject.packet_id, 8, reject.redelivered),
        )
    parts.append(TRAILER)
    return [b"".join(parts)]


def storable(text: str) -> str:
    """``text`` without what PostgreSQL cannot hold: NUL and lone surrogates become escapes."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
