"""Checks that the archive holds what it should. A day is read back from where it is stored, every byte and every
row."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from esp_ingest.lifecycle.archive import files, manifest
from esp_ingest.lifecycle.archive.checksum import Summing
from esp_ingest.lifecycle.archive.manifest import Manifest, folder
from esp_ingest.lifecycle.archive.storage import Storage
from esp_ingest.lifecycle.days import Record
from esp_ingest.lifecycle.errors import LifecycleError, Reason
from esp_ingest.lifecycle.tables import Table
from esp_ingest.service.text import rfc3339


@dataclass(frozen=True)
class Origin:
    """The database that a manifest must belong to, and the version of its schema."""

    database: str
    schema_version: int


def read_manifest(storage: Storage, origin: Origin, table: Table, day: date) -> Manifest | None:
    """The manifest of a day, None if there is none. Raises LifecycleError if it is damaged, comes from a newer
    program or schema or from another database, and StorageError."""
    data = storage.read(folder(table.name, day) + manifest.FILE_NAME, manifest.MAX_BYTES)
    if data is None:
        return None
    found = manifest.decode(data, table.name, day)
    place = folder(table.name, day)
    if found.database != origin.database:
        raise LifecycleError(
            Reason.FOREIGN,
            f"The archive's {place} belongs to another database: give each database an archive.url of its own.",
        )
    if found.schema_version > origin.schema_version:
        raise LifecycleError(
            Reason.NEWER,
            f"The archive's {place} has schema version {found.schema_version} and this database "
            f"{origin.schema_version}: run esp-ingest migrate with a newer esp-ingest.",
        )
    return found


def expected_manifest(storage: Storage, origin: Origin, table: Table, day: date, record: Record) -> Manifest:
    """The manifest of a day, which must be the one that the database remembers. Raises LifecycleError."""
    found = read_manifest(storage, origin, table, day)
    place = folder(table.name, day) + manifest.FILE_NAME
    if found is None:
        raise LifecycleError(Reason.DAMAGED, f"The manifest {place} is gone: restore it from a backup of the archive.")
    refuse_newer(found, record)
    if (found.id, found.content) != (str(record.id), record.content):
        raise LifecycleError(
            Reason.DAMAGED, f"The manifest {place} is not the one that was written last: restore it from a backup."
        )
    return found


def refuse_newer(found: Manifest, record: Record | None) -> None:
    """Raises LifecycleError if the archive has a newer version of a day than this database remembers."""
    version = record.version if record is not None else 0
    is_our_pending = record is not None and found.id == str(record.pending_id)
    if found.version > version and not is_our_pending:
        raise LifecycleError(
            Reason.NEWER,
            f"The archive has version {found.version} of {found.table} {found.day} and this database knows "
            f"{version or 'none'}: a copy of this database writes there too, or this one was restored from a backup; "
            "stop the copy, then run esp-ingest lifecycle run --adopt.",
        )


def read_back(storage: Storage, found: Manifest, table: Table, day: date) -> None:
    """Read every file of the day and compare it with the manifest: size, SHA-256, rows, first and last time, and
    checksum. All of it is read from the storage; one row group is in memory at a time. Raises LifecycleError."""
    place = folder(table.name, day)
    sums: Summing | None = None
    times: list[int] = []
    for file in found.files:
        with opened(storage, place, file) as path:
            for columns, batch in files.batches(path, place + file.name):
                sums = sums or Summing(columns)
                sums.add(batch)
                at = batch.column([each.name for each in columns].index(table.time)).cast(pa.int64())
                span = pc.min_max(at).as_py()
                times += [span["min"], span["max"]]
                times = [min(times), max(times)]
    if sums is None or sums.content != found.content:
        raise LifecycleError(Reason.DAMAGED, f"The rows archived in {place} are not those of its manifest: restore it.")
    if (rfc3339(times[0]), rfc3339(times[1])) != (found.first, found.last):
        raise LifecycleError(
            Reason.DAMAGED, f"The times archived in {place} are not those of its manifest: restore it."
        )


@contextlib.contextmanager
def opened(storage: Storage, place: str, file: manifest.File) -> Iterator[Path]:
    """A file of the archive as a local path, after its size and SHA-256 were compared with the manifest. Raises
    LifecycleError."""
    name = place + file.name
    try:
        with storage.opened(name) as (path, digest, size):
            if (digest, size) != (file.sha256, file.bytes):
                raise LifecycleError(
                    Reason.DAMAGED,
                    f"The archived file {name} is not what was written ({size} bytes, {file.bytes} expected"
                    f"{', another SHA-256' if size == file.bytes else ''}): restore it from a backup of the archive.",
                )
            yield path
    except FileNotFoundError:
        raise LifecycleError(
            Reason.DAMAGED, f"The archived file {name} is gone: restore it from a backup of the archive."
        ) from None
