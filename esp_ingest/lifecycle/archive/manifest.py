"""The manifest of an archived day says what its files hold. It is written last and read first."""

import json
from dataclasses import asdict, dataclass
from datetime import date
from typing import Annotated

import msgspec

from esp_ingest.lifecycle.archive.checksum import Content
from esp_ingest.lifecycle.errors import LifecycleError, Reason

FORMAT = 1
FILE_NAME = "manifest.json"
MAX_BYTES = 1_048_576


@dataclass(frozen=True)
class File:
    """A Parquet file beside the manifest."""

    name: Annotated[str, msgspec.Meta(pattern=r"\A[\w.-]{1,200}\.parquet\Z")]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """``first`` and ``last`` are the earliest and the latest time of the day's rows, RFC 3339 in UTC with microseconds.

    ``id`` identifies this version of the day; ``database`` is the identity of the database that it came from."""

    table: str
    day: str
    version: int
    rows: int
    first: str
    last: str
    checksum: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    files: tuple[File, ...]
    schema_version: int
    program_version: str
    database: str
    id: str
    written_at: str
    format: int = FORMAT

    @property
    def content(self) -> Content:
        """Rows and checksum of the day, to compare with what is read back or what the database holds."""
        return Content(self.rows, self.checksum)

    @property
    def size_bytes(self) -> int:
        """Size of the day's files together, in bytes."""
        return sum(file.bytes for file in self.files)

    def encoded(self) -> bytes:
        """The manifest as JSON, as it lies in the archive."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"


def folder(table: str, day: date) -> str:
    """The folder of a day, relative to the archive, with a slash at the end."""
    return f"{table}/day={day.isoformat()}/"


def decode(data: bytes, table: str, day: date) -> Manifest:
    """Read the manifest of this table and day. Raises LifecycleError: DAMAGED, or NEWER if a newer version of this
    program wrote it."""
    place = folder(table, day) + FILE_NAME

    def damaged(why: str) -> LifecycleError:
        return LifecycleError(Reason.DAMAGED, f"The manifest {place} is damaged ({why}): restore it from a backup.")

    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        raise damaged("it is not JSON") from None
    if not isinstance(found, dict):
        raise damaged("it is not an object")
    if isinstance(found.get("format"), int) and found["format"] > FORMAT:
        raise LifecycleError(
            Reason.NEWER,
            f"The manifest {place} was written by a newer esp-ingest ({str(found.get('program_version'))[:40]}): "
            "install that one or a newer one.",
        )
    try:
        manifest = msgspec.convert(found, Manifest)
    except msgspec.ValidationError as error:
        raise damaged(str(error)[:160]) from None
    if (manifest.table, manifest.day) != (table, day.isoformat()):
        raise damaged(f"it is of {manifest.table[:40]} {manifest.day[:10]}")
    return manifest
