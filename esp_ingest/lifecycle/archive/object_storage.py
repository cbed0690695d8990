"""An archive in an object store, reached through obstore."""

import contextlib
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import obstore
import pyarrow.fs
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import AzureStore, GCSStore, S3Store

from esp_ingest.config.settings import ArchiveSettings
from esp_ingest.lifecycle.archive.arrow_files import ObjectFiles
from esp_ingest.lifecycle.archive.storage import PIECE_BYTES, Storage, StorageError, days_in

_SECRET = re.compile(r"(?i)(\?\S*|(?:sig|key|token|signature|credential|secret)\w*[=:]\s*\S+|[\w+/]{40,}={0,2})")


class ObjectStorage(Storage):
    """Azure Blob Storage, Amazon S3 and whatever speaks its protocol, Google Cloud Storage."""

    def __init__(self, settings: ArchiveSettings) -> None:
        self._settings = settings
        self._url = settings.url
        self._store = _object_store(settings)
        self.scratch = Path(tempfile.mkdtemp(prefix="esp-ingest-archive-"))

    def prepare(self) -> None:
        self.read("archive.json", 1)  # unreachable or refused is found before a day is exported

    def read(self, name: str, most: int) -> bytes | None:
        with self._explained():
            try:
                size = int(obstore.head(self._store, name)["size"])
                if size == 0:
                    return b""
                return bytes(obstore.get_range(self._store, name, start=0, end=min(size, most)))
            except FileNotFoundError:
                return None

    def create(self, name: str, data: bytes) -> bool:
        with self._explained():
            try:
                obstore.put(self._store, name, data, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

    def write(self, name: str, data: bytes) -> None:
        with self._explained():
            obstore.put(self._store, name, data)

    def take(self, local: Path, name: str) -> None:
        with self._explained():
            obstore.put(self._store, name, local, max_concurrency=2)
        local.unlink()

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[tuple[Path, str, int]]:
        local = self.scratch / "fetched"
        digest, size = hashlib.sha256(), 0
        try:
            with self._explained(missing_is_ours=True), local.open("wb") as file:
                for piece in obstore.get(self._store, name).stream(min_chunk_size=PIECE_BYTES):
                    digest.update(piece)
                    size += len(piece)
                    file.write(piece)
            yield local, digest.hexdigest(), size
        finally:
            local.unlink(missing_ok=True)

    def arrow(self) -> Any:
        return pyarrow.fs.PyFileSystem(ObjectFiles(self._store))

    def names(self, folder: str) -> list[str]:
        with self._explained():
            listed = obstore.list_with_delimiter(self._store, folder.rstrip("/"))
            return sorted(str(each["path"]).rsplit("/", 1)[1] for each in listed["objects"])

    def days(self, table: str) -> set[date]:
        with self._explained():
            return days_in(
                str(each).rsplit("/", 1)[-1]
                for each in obstore.list_with_delimiter(self._store, table)["common_prefixes"]
            )

    def remove(self, name: str) -> None:
        with self._explained(), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, name)

    def close(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)

    @contextlib.contextmanager
    def _explained(self, *, missing_is_ours: bool = False) -> Iterator[None]:
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
    """The reason for an error of obstore or of the local disk, and what to do about it, without keys and without the
    query part of URLs."""
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
    """The object store that the URL names. What the settings leave out, obstore takes from the environment
    (AZURE_STORAGE_…, AWS_…, GOOGLE_…) or from the identity of the machine."""

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
