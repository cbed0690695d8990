"""The place of the archive: a folder here, or an object store (object_storage.py). Names are relative to
``archive.url``.

A file appears under its name complete or not at all. Every method may block for up to ``archive.timeout_seconds`` a
request and a few tries, and raises StorageError, whose message holds no credential."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from esp_ingest.config.settings import ArchiveSettings
from esp_ingest.lifecycle.errors import LifecycleError, Reason
from esp_ingest.store.spool.segment import fsync_folder

PIECE_BYTES = 1_048_576
_SCRATCH = ".writing"


class StorageError(LifecycleError):
    """The storage cannot be used now."""

    def __init__(self, sentence: str) -> None:
        super().__init__(Reason.STORAGE, sentence)


class Storage(Protocol):
    """A place for files. ``scratch`` is a local folder of this process for files that are being written or read."""

    scratch: Path

    def prepare(self) -> None:
        """Make the place if it does not exist and may be made, and remove what an earlier run left in ``scratch``."""

    def read(self, name: str, most: int) -> bytes | None:
        """The content of a file, ``most`` bytes of it at most; None if it does not exist."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless it exists. Returns whether it was written."""

    def write(self, name: str, data: bytes) -> None:
        """Write a small file. It replaces one that exists."""

    def take(self, local: Path, name: str) -> None:
        """Store the finished file ``local`` under ``name``. ``local`` lies in ``scratch`` and is removed."""

    def opened(self, name: str) -> "contextlib.AbstractContextManager[tuple[Path, str, int]]":
        """The file as it is stored: the path of a local copy, its SHA-256 and its size in bytes. Raises
        FileNotFoundError."""

    def arrow(self) -> Any:
        """The archive as a file system of pyarrow, which can read parts of files."""

    def names(self, folder: str) -> list[str]:
        """The names of the files in ``folder`` (which ends with a slash), without those in folders below it."""

    def days(self, table: str) -> set[date]:
        """The days for which ``table`` has a folder."""

    def remove(self, name: str) -> None:
        """Remove a file. It need not exist."""

    def close(self) -> None:
        """Remove ``scratch``."""


def open_storage(settings: ArchiveSettings) -> Storage:
    """The storage that ``archive.url`` names. Nothing is read or written yet. Raises StorageError for a URL that
    cannot be used."""
    url = urlsplit(settings.url)
    if len(url.scheme) < 2:  # none, or a drive letter
        return FolderStorage(Path(settings.url).expanduser(), settings.url)
    if url.scheme == "file":
        return FolderStorage(Path(unquote(url.path)), settings.url)
    from esp_ingest.lifecycle.archive.object_storage import ObjectStorage  # obstore takes its time to load

    return ObjectStorage(settings)


class FolderStorage(Storage):
    """A folder of this machine, or a mounted one. Files are flushed to the disk, and appear by a rename."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        self.scratch = folder / _SCRATCH
        self._is_writer = False

    def prepare(self) -> None:
        with self._explained():
            self._is_writer = True
            self._folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch.mkdir(exist_ok=True)
            probe = self.scratch / "probe"
            probe.write_bytes(b"x")
            probe.unlink()

    def read(self, name: str, most: int) -> bytes | None:
        with self._explained():
            try:
                with (self._folder / name).open("rb") as file:
                    return file.read(most)
            except FileNotFoundError:
                return None

    def create(self, name: str, data: bytes) -> bool:
        with self._explained():
            local = self._local(data)
            target = self._folder / name
            try:
                os.link(local, target)  # fails where the name is taken, which a rename does not
            except FileExistsError:
                return False
            finally:
                local.unlink()
            fsync_folder(target.parent)
            return True

    def write(self, name: str, data: bytes) -> None:
        with self._explained():
            self._place(self._local(data), self._folder / name)

    def take(self, local: Path, name: str) -> None:
        with self._explained():
            with local.open("rb") as file:
                os.fsync(file.fileno())
            self._place(local, self._folder / name)

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[tuple[Path, str, int]]:
        path = self._folder / name
        with self._explained(missing_is_ours=True), path.open("rb") as file:
            # What is in this machine's memory proves nothing about the disk.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            digest, size = hashlib.sha256(), 0
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
        yield path, digest.hexdigest(), size

    def arrow(self) -> Any:
        import pyarrow.fs

        return pyarrow.fs.SubTreeFileSystem(str(self._folder), pyarrow.fs.LocalFileSystem())

    def names(self, folder: str) -> list[str]:
        with self._explained():
            try:
                return sorted(each.name for each in (self._folder / folder).iterdir() if each.is_file())
            except FileNotFoundError:
                return []

    def days(self, table: str) -> set[date]:
        with self._explained():
            try:
                return days_in(each.name for each in (self._folder / table).iterdir())
            except FileNotFoundError:
                return set()

    def remove(self, name: str) -> None:
        with self._explained():
            (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        if self._is_writer:  # a reader has nothing in there, but a run beside it may
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _local(self, data: bytes) -> Path:
        local = self.scratch / "small"
        with local.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return local

    @staticmethod
    def _place(local: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        local.replace(target)
        fsync_folder(target.parent)
        fsync_folder(target.parent.parent)

    @contextlib.contextmanager
    def _explained(self, *, missing_is_ours: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if missing_is_ours and isinstance(error, FileNotFoundError):
                raise
            why = error.strerror or type(error).__name__
            raise StorageError(
                f"The archive {self._url} cannot be used ({why}): set archive.url to a folder that can be written, "
                "with room."
            ) from None


def days_in(names: Iterable[str]) -> set[date]:
    """The days that folders named day=YYYY-MM-DD stand for."""
    found = set()
    for name in names:
        with contextlib.suppress(ValueError):
            found.add(date.fromisoformat(name.removeprefix("day=")))
    return found
