"""One file of the spool: a SQLite database of records numbered without a gap, with a checksum of its own on each.

SQLite gives the atomic append and survives a torn write; what it does not give is told apart here:
- It does not notice most bit rot. Each record carries a CRC-32, and numbers that must follow one another, so a flipped
  byte, a lost leaf or a repeated page cannot pass as data.
- A log (WAL) whose tail is unreadable is cut off in silence. So an append copies the log into the database file before
  it returns (checkpoint): at rest, the log never holds the only copy of anything confirmed.
- A file with a smashed header is refused whole. So a record lies in one piece inside its page, behind a random tag that
  stands in the file's name, and :meth:`Segment.salvage` finds it by looking at the bytes alone. The tag is random so
  that a payload cannot imitate a record.

sqlite3 is imported where it is used: a daemon whose database never goes away does not pay for it.
"""

import contextlib
import os
import re
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from esp_ingest.model import Delivery

if TYPE_CHECKING:
    import sqlite3

# A record of up to about 16 KiB lies in one piece, so that salvage finds it; a small append still writes little.
PAGE_BYTES = 16_384
_PAGE_USABLE_BYTES = PAGE_BYTES - 8
_CELL_OVERHEAD_BYTES = 24  # SQLite's cell pointer, lengths, row id and record header, at most
_WAL_HEADER_BYTES, _FRAME_HEADER_BYTES = 32, 24
_DISCARDS_PER_CHECKPOINT = 32
_FILE_MODE = 0o600

# tag | crc32 of the rest | number | received_us | topic length | payload length | qos | origin | topic | payload
_HEAD = struct.Struct(">8sIQqIIB")
_ORIGIN = struct.Struct(">qHq")  # connection | packet id | redelivered, as in Delivery
_OLD_ORIGIN = struct.Struct(">qH?")  # of schema 10; records of before have none
_HAS_ORIGIN, _HAS_OLD_ORIGIN = 0x40, 0x80  # in the byte of the qos
_CRC_END = 12
_NAME = re.compile(r"segment-(\d{16})-([0-9a-f]{16})\.db")

_SCHEMA = """
CREATE TABLE message (seq INTEGER PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE mark (name TEXT PRIMARY KEY, seq INTEGER NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
"""


class SegmentDamaged(Exception):
    """The file does not hold what was put there; the message says what was noticed."""


@dataclass(frozen=True, slots=True)
class Torn:
    """What the log held beyond the last whole append: ``deliveries`` that can still be read, ``log`` as found."""

    deliveries: list[Delivery]
    log: bytes


def errors() -> tuple[type[Exception], ...]:
    """What sqlite3 raises over a bad file or disk. Its message may quote the file's bytes, which need not be UTF-8:
    then the error is a UnicodeDecodeError, and no sqlite3.Error."""
    import sqlite3

    return sqlite3.Error, UnicodeDecodeError


def encode(delivery: Delivery, seq: int, tag: bytes) -> bytes:
    """The record of ``delivery`` under the number ``seq``."""
    topic, payload, qos = delivery.topic, delivery.payload, delivery.qos | _HAS_ORIGIN
    rest = struct.pack(">QqIIB", seq, delivery.received_us, len(topic), len(payload), qos)
    rest += _ORIGIN.pack(delivery.connection, delivery.packet_id, delivery.redelivered) + topic + payload
    return b"%b%b%b" % (tag, zlib.crc32(rest).to_bytes(4, "big"), rest)


def decode(record: bytes, tag: bytes) -> tuple[int, Delivery] | None:
    """Number and delivery of a whole record, None where a byte of it is wrong. One without an origin is taken for a new
    message, which it may be."""
    if len(record) < _HEAD.size:
        return None
    found, crc, seq, received_us, topic_bytes, payload_bytes, qos = _HEAD.unpack_from(record)
    origin = _origin(qos)
    begin = _HEAD.size + (0 if origin is None else origin.size)
    middle = begin + topic_bytes
    if found != tag or len(record) != middle + payload_bytes or zlib.crc32(memoryview(record)[_CRC_END:]) != crc:
        return None
    connection, packet_id, redelivered = (-1, 0, 0) if origin is None else origin.unpack_from(record, _HEAD.size)
    qos &= ~(_HAS_ORIGIN | _HAS_OLD_ORIGIN)
    return seq, Delivery(record[begin:middle], record[middle:], qos, packet_id, connection, received_us, redelivered)


def _origin(qos: int) -> struct.Struct | None:
    """How the origin of a record is written, by the byte of its QoS."""
    if qos & _HAS_ORIGIN:
        return _ORIGIN
    return _OLD_ORIGIN if qos & _HAS_OLD_ORIGIN else None


def scan(data: bytes, tag: bytes) -> dict[int, Delivery]:
    """Every whole record in ``data``, whatever surrounds it, by number in ascending order."""
    found: dict[int, Delivery] = {}
    at = data.find(tag)
    while at >= 0:
        step = 1
        if at + _HEAD.size <= len(data):
            _, _, _, _, topic_bytes, payload_bytes, qos = _HEAD.unpack_from(data, at)
            origin = _origin(qos)
            size = _HEAD.size + (0 if origin is None else origin.size) + topic_bytes + payload_bytes
            whole = decode(data[at : at + size], tag)
            if whole is not None:
                found[whole[0]] = whole[1]
                step = size
        at = data.find(tag, at + step)
    return dict(sorted(found.items()))


def disk_bytes(deliveries: Sequence[Delivery]) -> int:
    """An upper bound of what appending ``deliveries`` adds to the database file; the log takes as much for a moment."""
    pages, used = 4, _PAGE_USABLE_BYTES  # header, both roots and an inner page may be written along
    for delivery in deliveries:
        size = len(delivery.topic) + len(delivery.payload) + _HEAD.size + _ORIGIN.size + _CELL_OVERHEAD_BYTES
        used += size
        if used > _PAGE_USABLE_BYTES:
            pages += 1 + size // (_PAGE_USABLE_BYTES - 4)
            used = size % _PAGE_USABLE_BYTES
    return pages * PAGE_BYTES


def fsync_folder(folder: Path) -> None:
    """Make new and vanished names in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(slots=True)
class Segment:
    """One file. Numbers ``first`` … ``last`` are in it, those up to ``drained`` are done with.

    ``last`` is exact once the segment was opened or appended to; the spool sets it for those in the middle, from the
    name of the next file. ``salvaged`` is what is left of a damaged file, None while the file is whole."""

    path: Path
    first: int
    tag: bytes
    last: int
    drained: int
    disk_bytes: int = 0
    sealed: bool = False
    salvaged: deque[tuple[int, Delivery]] | None = None
    _connection: "sqlite3.Connection | None" = field(default=None, repr=False)
    _discards: int = 0

    @staticmethod
    def found(path: Path) -> "Segment | None":
        """The segment that ``path`` names, unopened; None for any other file."""
        match = _NAME.fullmatch(path.name)
        if match is None:
            return None
        first = int(match[1])
        segment = Segment(path, first, bytes.fromhex(match[2]), first - 1, first - 1)
        segment.measure()
        return segment

    @staticmethod
    def create(folder: Path, first: int) -> "Segment":
        """A new empty file, durable under its name before this returns: a file of that name was whole once, so that an
        empty one is damage and not a beginning. Raises OSError or errors()."""
        tag = os.urandom(8)
        path = folder / f"segment-{first:016}-{tag.hex()}.db"
        draft = path.with_suffix(".new")
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _FILE_MODE))
        try:
            segment = Segment(draft, first, tag, first - 1, first - 1)
            connection = segment._connect()
            connection.executescript(_SCHEMA)
            for name in ("appended", "drained"):
                row = (name, first - 1, segment._mark_crc(name, first - 1))
                connection.execute("INSERT INTO mark VALUES (?, ?, ?)", row)
            segment.close()
            draft.rename(path)
        except BaseException:
            segment.close()
            _unlink(draft)
            raise
        fsync_folder(folder)
        segment.path = path
        segment.measure()
        return segment

    @property
    def left(self) -> int:
        """Messages not drained yet."""
        return self.last - self.drained if self.salvaged is None else len(self.salvaged)

    @property
    def log(self) -> Path:
        """SQLite's write-ahead log of this file."""
        return self.path.with_name(self.path.name + "-wal")

    def measure(self) -> None:
        """Bring ``disk_bytes`` up to date."""
        self.disk_bytes = sum(_size(path) for path in (self.path, self.log))

    def open(self) -> Torn | None:
        """Open the file and learn ``last`` and ``drained``. Returns what the log held beyond the last whole append.

        Raises SegmentDamaged."""
        log = self.log.read_bytes() if self.log.exists() else b""
        with self._damage():
            connection = self._connect()
            _, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            (highest,) = connection.execute("SELECT max(seq) FROM message").fetchone()
            marks = {name: (seq, crc) for name, seq, crc in connection.execute("SELECT name, seq, crc FROM mark")}
            self._checkpoint()
        self.measure()
        self.drained = self._mark(marks, "drained")
        last = max(self._mark(marks, "appended"), highest or self.first - 1)
        if last - self.first >= self.disk_bytes // _HEAD.size:  # no checksum covers the number of a row
            raise SegmentDamaged(f"it claims {last - self.first + 1} messages, more than its size can hold")
        self.last = last
        whole_bytes = _WAL_HEADER_BYTES + max(frames, 0) * (_FRAME_HEADER_BYTES + PAGE_BYTES)
        if len(log) <= whole_bytes:
            return None
        return Torn([delivery for seq, delivery in scan(log, self.tag).items() if seq > self.last], log)

    def append(self, deliveries: Sequence[Delivery]) -> None:
        """Add ``deliveries`` in one transaction, durable on return. Raises errors() with nothing added."""
        connection = self._connect()
        first, last = self.last + 1, self.last + len(deliveries)
        tag = self.tag
        rows = [(seq, encode(delivery, seq, tag)) for seq, delivery in enumerate(deliveries, first)]
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO message VALUES (?, ?)", rows)
            self._set_mark(connection, "appended", last)
            connection.execute("COMMIT")
        except BaseException:
            self._roll_back(connection)
            raise
        self.last = last
        self._checkpoint()
        self.measure()

    def read(self, max_messages: int, max_bytes: int) -> list[Delivery]:
        """The oldest messages left, at least one if there is any. Raises SegmentDamaged."""
        deliveries: list[Delivery] = []
        room, expected = max_bytes, self.drained
        with self._damage():
            rows = self._connect().execute(
                "SELECT seq, record FROM message WHERE seq > ? ORDER BY seq LIMIT ?",
                (self.drained, min(max_messages, self.left)),
            )
            for seq, record in rows:
                expected += 1
                whole = decode(record, self.tag) if isinstance(record, bytes) else None
                if whole is None or seq != expected or whole[0] != expected:
                    raise SegmentDamaged(f"record {expected} fails its checksum or is missing")
                room -= len(whole[1].topic) + len(whole[1].payload)
                if deliveries and room < 0:
                    break
                deliveries.append(whole[1])
            else:
                if len(deliveries) < min(max_messages, self.left):
                    raise SegmentDamaged(f"records {expected + 1} to {self.last} are missing")
        return deliveries

    def mark_drained(self, seq: int) -> None:
        """Messages up to ``seq`` need not come again. Where that cannot be written (disk full, damage), they do after a
        restart, which is harmless."""
        self.drained = seq
        with contextlib.suppress(*errors()):
            connection = self._connect()
            self._set_mark(connection, "drained", seq)
            self._discards += 1
            if self._discards % _DISCARDS_PER_CHECKPOINT == 0:
                self._checkpoint()
        self.measure()

    def salvage(self) -> int:
        """Collect what can still be read into ``salvaged`` and seal the file. Returns how many of the records
        ``drained`` + 1 … ``last`` are not among them."""
        self.sealed = True
        found = {seq: delivery for seq, delivery in self._readable() if seq > self.drained}
        self.close()
        lost = self.last - self.drained - sum(seq <= self.last for seq in found)
        self.salvaged = deque(sorted(found.items()))
        if found:
            self.last = max(self.last, max(found))
        return lost

    def close(self) -> None:
        """Let go of the file; it opens again by itself."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*errors()):  # what was confirmed is safe; a damaged file may refuse
                connection.close()

    def remove(self) -> None:
        """Delete the file, durably, so that the files left are always the youngest of a row without a gap."""
        self.close()
        for path in (self.log, self.path):
            _unlink(path)
        fsync_folder(self.path.parent)

    def move_to(self, folder: Path) -> None:
        """Put the file, as it is, into ``folder``."""
        self.close()
        for path in (self.log, self.path):
            with contextlib.suppress(FileNotFoundError):
                path.rename(folder / path.name)
        fsync_folder(folder)
        fsync_folder(self.path.parent)

    def _readable(self) -> Iterator[tuple[int, Delivery]]:
        """Every record that the bytes show, then those that only SQLite can put together (longer than a page)."""
        seen: set[int] = set()
        for path in (self.path, self.log):
            with contextlib.suppress(OSError):
                found = scan(path.read_bytes(), self.tag)
                seen |= found.keys()
                yield from found.items()
        at_most = self.drained + self.disk_bytes // _HEAD.size  # a bent name may claim any number
        for seq in range(self.drained + 1, min(self.last, at_most) + 1):
            if seq in seen:
                continue
            try:
                connection = self._connect()
            except errors():
                return
            with contextlib.suppress(*errors()):
                row = connection.execute("SELECT record FROM message WHERE seq = ?", (seq,)).fetchone()
                whole = decode(row[0], self.tag) if row and isinstance(row[0], bytes) else None
                if whole is not None:
                    yield whole

    def _connect(self) -> "sqlite3.Connection":
        if self._connection is None:
            import sqlite3

            connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
            try:
                connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # no shared-memory file beside it
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
                connection.execute("PRAGMA synchronous = FULL")
                # _checkpoint decides when: a log that SQLite began anew over old frames would look torn.
                connection.execute("PRAGMA wal_autocheckpoint = 0")
                connection.execute("PRAGMA cell_size_check = ON")
                connection.execute("PRAGMA cache_size = -4096")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _checkpoint(self) -> None:
        """Copy the log into the database file and cut it to nothing. Failing (disk full, damage) costs nothing that is
        committed: the log is fsynced, the next call tries again, and damage shows when it is read."""
        with contextlib.suppress(*errors()):
            self._connect().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def _roll_back(self, connection: "sqlite3.Connection") -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._checkpoint()  # give back the space that the attempt took
        except errors():
            self.close()
        self.measure()

    def _mark_crc(self, name: str, seq: int) -> int:
        return zlib.crc32(b"%b %b %d" % (self.tag, name.encode(), seq))

    def _set_mark(self, connection: "sqlite3.Connection", name: str, seq: int) -> None:
        connection.execute("UPDATE mark SET seq = ?, crc = ? WHERE name = ?", (seq, self._mark_crc(name, seq), name))

    def _mark(self, marks: dict[object, tuple[object, object]], name: str) -> int:
        seq, crc = marks.get(name, (None, None))
        if not isinstance(seq, int) or crc != self._mark_crc(name, seq):
            raise SegmentDamaged(f"the mark {name!r} is unreadable")
        return seq

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        """Whatever SQLite finds wrong with the file is damage."""
        try:
            yield
        except errors() as error:
            raise SegmentDamaged(str(error)) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
