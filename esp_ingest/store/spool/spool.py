"""The spool: a durable queue of messages on disk, first in, first out, while the database is away.

Appends go to the newest file (:mod:`esp_ingest.store.spool.segment`), the drain reads the oldest, and a drained file is
deleted: the disk shrinks, and damage stays inside one file. A damaged file is drained of all that can still be read,
moved to ``set-aside/`` and reported; it never stops the rest. Why it is built so: docs/decisions/0007-spool.md.

One thread at a time uses a :class:`Spool`; ``messages``, ``bytes``, ``oldest_us`` and ``set_aside_total`` are plain
numbers that any thread may read.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from esp_ingest.errors import Error
from esp_ingest.model import Delivery
from esp_ingest.store.spool.segment import Segment, SegmentDamaged, Torn, disk_bytes, errors, fsync_folder

_FOLDER_MODE = 0o700
_SHARED = stat.S_ISVTX | stat.S_IWOTH  # as /tmp: others may put files beside ours. A volume of a container is 0777.
_REPORTS_KEPT = 100
_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LASTING_ERRNOS = frozenset(
    (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
)


class SpoolError(Error):
    """The spool cannot be used, or did not take an append; the message is one plain sentence."""


class SpoolUnusable(SpoolError):
    """The folder is none that this process may use: a matter of configuration, trying again changes nothing."""


class SpoolFull(SpoolError):
    """No room, by ``max_bytes`` or on the disk. Nothing was kept; a smaller append, or a later one, may fit."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """A report of damage. ``lost`` messages were confirmed and cannot be read any more; where ``exact`` is false, the
    damage hides how many, and ``lost`` is the least. ``salvaged`` ones are drained as usual. ``file`` is the name under
    ``set-aside/`` that the damaged file gets when it is drained."""

    file: str
    reason: str
    lost: int
    exact: bool
    salvaged: int


@dataclass(frozen=True, slots=True)
class SpoolBatch:
    """The oldest messages, in the order they came; hand it to :meth:`Spool.discard` after their commit. ``segment`` and
    ``last`` say to the spool what it was. Empty only when the spool is."""

    deliveries: list[Delivery]
    segment: int = 0
    last: int = 0

    def __len__(self) -> int:
        return len(self.deliveries)


class Spool:
    """See the module's text. ``folder`` is made if need be (mode 0700) and belongs to one process at a time.

    Opening costs a lock and a listing; sqlite3 is only loaded for files left by an earlier run, or by the first append.
    ``max_bytes`` bounds the disk taken, with SQLite's log and all, except what was set aside, which has the same bound
    for itself (the oldest goes first). ``on_set_aside`` is called with every report of damage, from the calling thread.
    Raises SpoolError where the folder cannot be used or another process has it."""

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        segment_bytes: int,
        on_set_aside: Callable[[SetAside], None] | None = None,
    ) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.segment_bytes = segment_bytes
        self.reports: deque[SetAside] = deque(maxlen=_REPORTS_KEPT)
        self.set_aside_total = 0
        self.messages = 0
        self.bytes = 0
        self.oldest_us: int | None = None
        self._on_set_aside = on_set_aside
        self._segments: list[Segment] = []
        self._next = 1
        self._lock: int | None = _lock_folder(folder)
        try:
            self._find_segments()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return self.messages

    def append(self, deliveries: Sequence[Delivery]) -> None:
        """Keep ``deliveries`` behind all others; durable on return (one transaction, fsynced).

        May block for the disk. Raises SpoolFull or SpoolError with nothing kept."""
        if not deliveries:
            return
        size = disk_bytes(deliveries)
        if self.bytes + 2 * size > self.max_bytes:  # twice: the log holds a copy until it is checkpointed
            raise SpoolFull(
                f"The spool {self.folder} has {self.bytes} of {self.max_bytes} bytes in use, no room for {size} more: "
                "bring the database back, or raise spool.max_bytes."
            )
        segment: Segment | None = None
        failures: tuple[type[Exception], ...] = (OSError, *errors())
        try:
            segment = self._newest_with_room(size)
            segment.append(deliveries)
        except failures as error:
            self._after_failed_append(segment, error)
            raise _failed_append(self.folder, error) from error
        self._next = segment.last + 1
        if self.oldest_us is None:
            self.oldest_us = deliveries[0].received_us
        self._count()

    def peek(self, max_messages: int, max_bytes: int) -> SpoolBatch:
        """The oldest messages, at most so many and so many bytes of topic and payload, but at least one if there is
        any. They stay until :meth:`discard`, and are what they were when they were appended.

        Never raises for what is wrong on disk: that is reported and passed over."""
        assert max_messages > 0, "a batch of nothing would drain nothing, for ever"
        while self._segments:
            segment = self._segments[0]
            batch = self._peek_segment(segment, max_messages, max_bytes)
            if batch.deliveries:
                self.oldest_us = batch.deliveries[0].received_us
                return batch
            self._retire(segment)
        return SpoolBatch([])

    def discard(self, batch: SpoolBatch) -> None:
        """Remove what :meth:`peek` gave. A crash before it is durable drains the batch once more, which is harmless."""
        if not batch.deliveries:
            return
        segment = self._segments[0]
        assert segment.first == batch.segment, "discard takes the last peek"
        assert segment.drained < batch.last, "discard takes a batch once"
        if segment.salvaged is not None:
            while segment.salvaged and segment.salvaged[0][0] <= batch.last:
                segment.salvaged.popleft()
            segment.drained = batch.last
        elif segment.last == batch.last:
            segment.drained = batch.last  # the file goes: no need to write it down
        else:
            segment.mark_drained(batch.last)
        if segment.left == 0:
            self._retire(segment)
        self._count()
        self._find_oldest()

    def close(self) -> None:
        """Let go of files and folder. What is held stays on disk for the next run."""
        for segment in self._segments:
            segment.close()
        self._segments = []
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- opening ----------------------------------------------------------------------------------------------------

    def _find_segments(self) -> None:
        for draft in self.folder.glob("segment-*.new*"):
            draft.unlink()
        found = [Segment.found(path) for path in sorted(self.folder.glob("segment-*.db"))]
        self._segments = [segment for segment in found if segment is not None]
        for segment, following in pairwise(self._segments):
            segment.last = following.first - 1
            segment.sealed = True
            if following.first == segment.first:  # left by an append that failed half-way: what is in it, if anything?
                self._open(segment)
                segment.close()
        if not self._segments:
            return
        torn = self._open(self._segments[-1])
        self._next = max(segment.last for segment in self._segments) + 1
        if self._segments[0] is not self._segments[-1]:
            self._open_oldest()
        self._count()
        if torn is not None:
            self._take_torn(self._segments[-1], torn)
        self._find_oldest()

    def _open(self, segment: Segment) -> Torn | None:
        try:
            return segment.open()
        except SegmentDamaged as error:
            # Of the newest file nobody else knows how far it went.
            self._salvage(segment, error, exact=segment.sealed)
            return None

    def _open_oldest(self) -> None:
        """Learn how far the drain got in the oldest file; the name of the next one says how far it goes."""
        segment = self._segments[0]
        expected = segment.last
        torn = self._open(segment)
        if segment.salvaged is None and segment.last < expected:
            segment.last = expected
            self._salvage(segment, SegmentDamaged("it ends before the next file begins"), exact=True)
        if torn is not None:
            self._set_aside_log(segment, torn)

    def _take_torn(self, segment: Segment, torn: Torn) -> None:
        """An append that was cut short (kill -9, power): nobody was told that it is safe, but what is there is kept."""
        if torn.deliveries:
            with contextlib.suppress(SpoolError):  # no room: they are in the log that is set aside, and unconfirmed
                self.append(torn.deliveries)
        self._set_aside_log(segment, torn)

    def _set_aside_log(self, segment: Segment, torn: Torn) -> None:
        name = segment.log.name
        with contextlib.suppress(OSError):  # a copy for people; the report stands without it
            handle = os.open(self._set_aside_folder() / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(torn.log)
        reason = "the end of its log is not whole: an append was cut short, or the log was damaged"
        self._report(SetAside(name, reason, lost=0, exact=False, salvaged=len(torn.deliveries)))

    # -- appending --------------------------------------------------------------------------------------------------

    def _newest_with_room(self, size: int) -> Segment:
        newest = self._segments[-1] if self._segments else None
        if newest is not None and not newest.sealed and newest.disk_bytes + size <= self.segment_bytes:
            return newest
        if newest is not None and newest.left > 0 and newest is not self._segments[0]:
            newest.close()
        if newest is not None:
            newest.sealed = True
        segment = Segment.create(self.folder, self._next)
        self._segments.append(segment)
        return segment

    def _after_failed_append(self, segment: Segment | None, error: Exception) -> None:
        """A full disk leaves the file whole. After anything else it gets no further append, and what is wrong with it
        shows when it is drained."""
        if segment is not None and not _is_full(error):
            segment.sealed = True
            segment.close()
            if segment.left == 0:
                self._retire(segment)
        self._count()

    # -- draining ---------------------------------------------------------------------------------------------------

    def _peek_segment(self, segment: Segment, max_messages: int, max_bytes: int) -> SpoolBatch:
        if segment.salvaged is None and segment.left > 0:
            try:
                deliveries = segment.read(max_messages, max_bytes)
                return SpoolBatch(deliveries, segment.first, segment.drained + len(deliveries))
            except SegmentDamaged as error:
                self._salvage(segment, error, exact=True)
                self._count()
        return _peek_salvaged(segment, max_messages, max_bytes)

    def _salvage(self, segment: Segment, error: SegmentDamaged, exact: bool) -> None:
        lost = segment.salvage()
        self._report(SetAside(segment.path.name, str(error), lost, exact, segment.left))

    def _retire(self, segment: Segment) -> None:
        """The segment is drained: delete it, or set it aside if it was damaged."""
        self._segments.remove(segment)
        self._next = max(self._next, segment.last + 1)
        try:
            if segment.salvaged is None:
                segment.remove()
            else:
                segment.move_to(self._set_aside_folder())
        except OSError as error:
            # It would come back after a restart and be drained again: harmless, but nobody must wonder.
            self._report(SetAside(segment.path.name, f"it cannot be removed: {error.strerror}", 0, True, 0))
        self._count()

    # -- books ------------------------------------------------------------------------------------------------------

    def _count(self) -> None:
        self.messages = sum(segment.left for segment in self._segments)
        self.bytes = sum(segment.disk_bytes for segment in self._segments)
        if not self.messages:
            self.oldest_us = None

    def _find_oldest(self) -> None:
        self.peek(1, 1)

    def _report(self, report: SetAside) -> None:
        self.reports.append(report)
        self.set_aside_total += report.lost
        if self._on_set_aside is not None:
            self._on_set_aside(report)

    def _set_aside_folder(self) -> Path:
        folder = self.folder / "set-aside"
        folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
        while files and sum(path.stat().st_size for path in files) + self.segment_bytes > self.max_bytes:
            files.pop(0).unlink()
        return folder


def is_shared(folder: Path) -> bool:
    """Whether every user may put files into it, as into /tmp: no place for a spool. Raises OSError."""
    return folder.stat().st_mode & _SHARED == _SHARED


def orphans(folder: Path) -> list[Path]:
    """Files with messages in the spool ``folder`` and in those of workers under it, or beside it if it is a worker's:
    acknowledged, and nobody's while no daemon uses these folders."""
    root = folder.parent if re.fullmatch(r"worker-\d+", folder.name) else folder
    return sorted((*root.glob("segment-*.db"), *root.glob("worker-*/segment-*.db")))


def _peek_salvaged(segment: Segment, max_messages: int, max_bytes: int) -> SpoolBatch:
    deliveries: list[Delivery] = []
    room, last = max_bytes, 0
    for seq, delivery in segment.salvaged or ():
        room -= len(delivery.topic) + len(delivery.payload)
        if len(deliveries) == max_messages or (deliveries and room < 0):
            break
        deliveries.append(delivery)
        last = seq
    return SpoolBatch(deliveries, segment.first, last)


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL_ERRNOS
    import sqlite3

    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL


def _failed_append(folder: Path, error: Exception) -> SpoolError:
    if _is_full(error):
        return SpoolFull(f"The disk under the spool {folder} is full: make room on it.")
    return SpoolError(f"The spool {folder} did not take an append: {error}.")


def _lock_folder(folder: Path) -> int:
    """Make ``folder`` and hold the lock on it, which the kernel drops with the process, however that ends.

    A folder that is there keeps its mode: it may be a mount, or not ours. The files in it are for us alone anyway."""
    try:
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        if is_shared(folder):
            raise SpoolUnusable(
                f"The spool folder {folder} is open to every user: give a folder of its own with spool.path."
            )
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        kind = SpoolUnusable if error.errno in _LASTING_ERRNOS else SpoolError
        raise kind(
            f"The spool folder {folder} cannot be used ({error.strerror}): give a writable one with spool.path."
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.write(handle, b"%d\n" % os.getpid())
        fsync_folder(folder)
    except BlockingIOError:
        owner = os.pread(handle, 32, 0).decode(errors="replace").strip()
        os.close(handle)
        raise SpoolError(
            f"The spool folder {folder} is in use by another process (pid {owner}): stop it, or give this one a folder "
            "of its own with spool.path."
        ) from None
    except OSError as error:
        os.close(handle)
        raise SpoolError(f"The spool folder {folder} cannot be locked ({error.strerror}).") from error
    return handle
