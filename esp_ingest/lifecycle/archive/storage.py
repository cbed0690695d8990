"""Where the archive lies: a folder, or an object store through obstore. Names are relative to ``archive.url``.

Whatever is written under a name is there whole or not at all. Every method may block up to ``archive.timeout_seconds``
a request and a few tries, and raises StorageError, whose sentence holds no credential."""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NoReturn, Protocol
from urllib.parse import unquote, urlsplit

from esp_ingest.config.settings import ArchiveSettings
from esp_ingest.lifecycle.errors import LifecycleError, Reason

_PIECE = 1_048_576
_SCRATCH = ".writing"
_SECRET = re.compile(r"(?i)(\?\S*|(?:sig|key|token|signature|credential|secret)\w*[=:]\s*\S+|[\w+/]{40,}={0,2})")


class StorageError(LifecycleError):
    """The storage cannot be used now."""

    def __init__(self, sentence: str) -> None:
        super().__init__(Reason.STORAGE, sentence)


class Storage(Protocol):
    """A place for files. ``scratch`` is a local folder of our own for what is being written or read."""

    scratch: Path

    def prepare(self) -> None:
        """Make the place where it is missing and may be made, and remove what an earlier run left in ``scratch``."""

    def read(self, name: str, most: int) -> bytes | None:
        """The whole file, at most ``most`` bytes; None where there is none."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless there is one. Returns whether it was written."""

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, in place of one that is there."""

    def take(self, local: Path, name: str) -> None:
        """Put the finished file ``local``, which lies in ``scratch`` and is gone afterwards, under ``name``."""

    def opened(self, name: str) -> "contextlib.AbstractContextManager[tuple[Path, str, int]]":
        """The file as it lies there: a local path to it, its SHA-256 and its size. Raises FileNotFoundError."""

    def arrow(self) -> Any:
        """The archive as a file system of pyarrow, to read parts of files."""

    def names(self, folder: str) -> list[str]:
        """Names of the files right in ``folder`` (which ends with a slash), without the folder."""

    def days(self, table: str) -> set[date]:
        """The days for which ``table`` has a folder."""

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""

    def close(self) -> None:
        """Remove ``scratch``."""


def open_storage(settings: ArchiveSettings) -> Storage:
    """The storage that ``archive.url`` names; nothing is asked of it yet. Raises StorageError for an URL of no use."""
    url = urlsplit(settings.url)
    if len(url.scheme) < 2:  # none, or a drive letter
        return FolderStorage(Path(settings.url).expanduser(), settings.url)
    if url.scheme == "file":
        return FolderStorage(Path(unquote(url.path)), settings.url)
    return ObjectStorage(settings)


class FolderStorage(Storage):
    """A folder of this machine or a mounted one. Files are flushed to the disk, and appear by a rename."""

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
            _flush_folder(target.parent)
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
            while piece := file.read(_PIECE):
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
                return _days(each.name for each in (self._folder / table).iterdir())
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
        _flush_folder(target.parent)
        _flush_folder(target.parent.parent)

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


def _days(names: Iterable[str]) -> set[date]:
    """The days that folders named day=YYYY-MM-DD stand for."""
    found = set()
    for name in names:
        with contextlib.suppress(ValueError):
            found.add(date.fromisoformat(name.removeprefix("day=")))
    return found


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ObjectStorage(Storage):
    """Azure Blob, Amazon S3 or what speaks its protocol, Google Cloud Storage."""

    def __init__(self, settings: ArchiveSettings) -> None:
        self._settings = settings
        self._url = settings.url
        self._store = _object_store(settings)
        self.scratch = Path(tempfile.mkdtemp(prefix="esp-ingest-archive-"))

    def prepare(self) -> None:
        self.read("archive.json", 1)  # unreachable or refused is found before a day is exported

    def read(self, name: str, most: int) -> bytes | None:
        import obstore

        with self._explained():
            try:
                size = int(obstore.head(self._store, name)["size"])
                if size == 0:
                    return b""
                return bytes(obstore.get_range(self._store, name, start=0, end=min(size, most)))
            except FileNotFoundError:
                return None

    def create(self, name: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._explained():
            try:
                obstore.put(self._store, name, data, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

    def write(self, name: str, data: bytes) -> None:
        import obstore

        with self._explained():
            obstore.put(self._store, name, data)

    def take(self, local: Path, name: str) -> None:
        import obstore

        with self._explained():
            obstore.put(self._store, name, local, max_concurrency=2)
        local.unlink()

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[tuple[Path, str, int]]:
        import obstore

        local = self.scratch / "fetched"
        digest, size = hashlib.sha256(), 0
        try:
            with self._explained(missing_is_ours=True), local.open("wb") as file:
                for piece in obstore.get(self._store, name).stream(min_chunk_size=_PIECE):
                    digest.update(piece)
                    size += len(piece)
                    file.write(piece)
            yield local, digest.hexdigest(), size
        finally:
            local.unlink(missing_ok=True)

    def arrow(self) -> Any:
        import pyarrow.fs

        from esp_ingest.lifecycle.archive.arrow_files import ObjectFiles

        return pyarrow.fs.PyFileSystem(ObjectFiles(self._store))

    def names(self, folder: str) -> list[str]:
        import obstore

        with self._explained():
            listed = obstore.list_with_delimiter(self._store, folder.rstrip("/"))
            return sorted(str(each["path"]).rsplit("/", 1)[1] for each in listed["objects"])

    def days(self, table: str) -> set[date]:
        import obstore

        with self._explained():
            return _days(
                str(each).rsplit("/", 1)[-1]
                for each in obstore.list_with_delimiter(self._store, table)["common_prefixes"]
            )

    def remove(self, name: str) -> None:
        import obstore

        with self._explained(), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, name)

    def close(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)

    @contextlib.contextmanager
    def _explained(self, *, missing_is_ours: bool = False) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError:
            if missing_is_ours:
                raise
            self._give_up("there is no such container or bucket", "create it, or set archive.url")
        except (BaseError, ValueError, OSError) as error:
            self._give_up(*_why(error))

    def _give_up(self, why: str, what: str) -> NoReturn:
        raise StorageError(f"The archive {self._url} cannot be used ({why}): {what}.") from None


def _why(error: Exception) -> tuple[str, str]:
    """(reason, what to do) for an error of obstore or of the local disk, without URLs' queries and keys."""
    kind, text = type(error).__name__, str(error)
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or "AuthenticationFailed" in text:
        return "it refuses the key", "check archive.account and archive.key, or the environment's credentials"
    if "NoSuchBucket" in text or "ContainerNotFound" in text:
        return "there is no such container or bucket", "create it, or set archive.url"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror, "make room for temporary files, or set TMPDIR"
    if re.search(r"(?i)connection refused|unreachable|dns error|failed to lookup", text):
        return "it cannot be reached", "check archive.url, archive.endpoint and the network"
    if re.search(r"(?i)timed out|timedout", text):
        return "it does not answer in time", "try again, or raise archive.timeout_seconds"
    brief = _SECRET.sub("***", " ".join(text.split()))[:160]
    return f"{kind}: {brief}", "check archive.url and its settings"


def _object_store(settings: ArchiveSettings) -> Any:
    """The store that the URL names. What the settings leave out obstore takes from the environment (AZURE_STORAGE_…,
    AWS_…, GOOGLE_…) or from the machine's identity."""
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, GCSStore, S3Store

    url = urlsplit(settings.url)
    key = settings.key.get_secret_value()
    seconds = f"{settings.timeout_seconds:g}s"
    common: dict[str, Any] = {
        "prefix": url.path.strip("/") or None,
        "client_options": {
            "timeout": seconds,
            "connect_timeout": "5s",
            **({"allow_http": True} if settings.endpoint.startswith("http://") else {}),
        },
        "retry_config": {"max_retries": 3, "retry_timeout": timedelta(seconds=settings.timeout_seconds)},
    }
    given: dict[str, str] = {}
    try:
        if url.scheme == "az":
            given = {"account_name": settings.account, "account_key": key, "endpoint": settings.endpoint}
            return AzureStore(container_name=url.netloc, **_set(given), **common)
        if url.scheme == "s3":
            given = {"access_key_id": settings.account, "secret_access_key": key, "endpoint": settings.endpoint}
            return S3Store(bucket=url.netloc, **_set(given | {"region": settings.region}), **common)
        if url.scheme == "gs":
            given = {"service_account_key": key}
            return GCSStore(bucket=url.netloc, **_set(given), **common)
    except (BaseError, ValueError) as error:
        why, what = _why(error)
        raise StorageError(f"The archive {settings.url} cannot be used ({why}): {what}.") from None
    raise StorageError(
        f"The archive {settings.url} cannot be used: set archive.url to a folder, or to a URL that begins with "
        "file://, az://, s3:// or gs://."
    )


def _set(given: dict[str, str]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value}
