"""Archives one day: export it, upload it, and write the manifest last. A crash at any step leaves either the old
version or the new one.

A new version of a day merges the previous version with what the database holds now. So late rows are added, and rows
that were dropped from the database, or deleted by somebody, stay in the archive. Both are read in the sort order of
the file, so only a few thousand rows of each are in memory."""

import contextlib
import hashlib
import uuid
from collections.abc import Callable, Generator, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from psycopg import sql

from esp_ingest import __version__
from esp_ingest.lifecycle.archive import files, verify
from esp_ingest.lifecycle.archive.checksum import Content, Summing
from esp_ingest.lifecycle.archive.columns import Column
from esp_ingest.lifecycle.archive.manifest import FILE_NAME, File, Manifest, folder
from esp_ingest.lifecycle.archive.storage import Storage, StorageError
from esp_ingest.lifecycle.archive.verify import Origin
from esp_ingest.lifecycle.days import Days, Held, Record
from esp_ingest.lifecycle.errors import LifecycleError, Reason
from esp_ingest.lifecycle.tables import Table, bounds
from esp_ingest.service.text import rfc3339

Row = tuple[Any, ...]
_PAGE = 5_000
_PAGE_BYTES = 8_388_608


class _Export(NamedTuple):
    """The content of a file, and what of it the database held."""

    content: Content
    first_us: int
    last_us: int
    held: Content


def archive_day(
    days: Days,
    storage: Storage,
    origin: Origin,
    table: Table,
    day: date,
    held: Held,
    record: Record | None,
    now_us: int,
    *,
    adopt: bool = False,
    beat: Callable[[], None] = lambda: None,
) -> Manifest:
    """Write the day to the archive as a new version, unless the version that lies there has exactly the content of
    the database. Ingest goes on meanwhile: no lock is taken that a writer would wait for. ``held`` is what the day
    looked like when it was found to be due. ``beat`` is called every few thousand rows. Returns the manifest. Raises
    LifecycleError and psycopg.Error."""
    place = folder(table.name, day)
    before = _before(storage, origin, table, day, record, adopt)
    if before is not None and (record is None or before.id != str(record.id)):
        # Written by a run that was killed before it could remember it, or adopted.
        content = days.checksum(table, day)
        days.begin(table, day, uuid.UUID(before.id))
        days.archived(table, day, before, content, held.changed)
        if content == before.content:
            clean(storage, before, table, day)
            return before
    version = max(record.version if record else 0, before.version if before else 0) + 1
    identity = uuid.uuid4()
    is_dropped = record is not None and record.dropped_at is not None
    local = storage.scratch / files.new_name(version, identity.hex)
    try:
        export = _export(
            days, storage, table, day, before, local, beat, archived_wins=is_dropped and table.archived_wins
        )
        stored = File(local.name, local.stat().st_size, _sha256(local))
        beat()
        found = Manifest(
            table=table.name,
            day=day.isoformat(),
            version=version,
            rows=export.content.rows,
            first=rfc3339(export.first_us),
            last=rfc3339(export.last_us),
            checksum=export.content.checksum,
            files=(stored,),
            schema_version=origin.schema_version,
            program_version=__version__,
            database=origin.database,
            id=str(identity),
            written_at=rfc3339(now_us),
        )
        storage.take(local, place + stored.name)
        days.begin(table, day, identity)
        storage.write(place + FILE_NAME, found.encoded())
        days.archived(table, day, found, export.held, held.changed)
    except OSError as error:
        raise StorageError(
            f"The day could not be written to {storage.scratch} ({error.strerror or error}): make room there."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            local.unlink(missing_ok=True)
    clean(storage, found, table, day)
    return found


def clean(storage: Storage, found: Manifest, table: Table, day: date) -> None:
    """Remove files of the day that the manifest does not name: those of an older version, or of a run that was
    killed."""
    place = folder(table.name, day)
    ours = {file.name for file in found.files} | {FILE_NAME}
    for name in storage.names(place):
        if name not in ours and name.endswith(".parquet"):
            storage.remove(place + name)


def _before(
    storage: Storage, origin: Origin, table: Table, day: date, record: Record | None, adopt: bool
) -> Manifest | None:
    """The version that the new one must contain, read back and found complete. None if there is none, or if it is
    damaged while the database still holds the whole day. Raises LifecycleError."""
    try:
        found = verify.read_manifest(storage, origin, table, day)
        if found is None and record is not None and record.version and record.dropped_at is not None:
            raise LifecycleError(
                Reason.DAMAGED,
                f"The manifest {folder(table.name, day)}{FILE_NAME} is gone, and so is the day in the database: "
                "restore it from a backup of the archive.",
            )
        if found is not None:
            if not adopt:
                verify.refuse_newer(found, record)
            verify.read_back(storage, found, table, day)
    except LifecycleError as error:
        whole = record is not None and record.version and record.dropped_at is None and record.held == record.content
        if error.reason is Reason.DAMAGED and whole:
            return None
        raise
    return found


def _export(
    days: Days,
    storage: Storage,
    table: Table,
    day: date,
    before: Manifest | None,
    local: Path,
    beat: Callable[[], None],
    *,
    archived_wins: bool,
) -> _Export:
    """Write the file ``local``: what the database holds, merged with the previous version."""
    columns = days.columns(table)
    sums = None if before is None else Summing(columns)
    with (
        contextlib.closing(stored_rows(days, table, day, sums)) as here,
        files.Writer(local, table.name, columns, table.time) as writer,
    ):
        rows: Iterator[Row] = here
        if before is not None:
            archived = archived_rows(storage, before, table, day, columns)
            rows = _merged(table, columns, here, archived, archived_wins=archived_wins)
        for page in pages(rows):
            writer.add(page)
            beat()
        content, first, last = writer.finish()
    return _Export(content, first, last, content if sums is None else sums.content)


def stored_rows(days: Days, table: Table, day: date, sums: Summing | None) -> Generator[Row]:
    """The day's rows from the database as raw values (see columns.py), in the sort order of the file. They are added
    to ``sums`` too."""
    start, end = bounds(day)
    columns = days.columns(table)
    by_name = {each.name: each for each in columns}
    order = sql.SQL(", ").join(
        sql.SQL('{} COLLATE "C"').format(sql.Identifier(name))
        if by_name[name].kind.name in ("text", "character varying")
        else sql.Identifier(name)
        for name in table.key
    )
    statement = days.statement("lifecycle_export", table, start=sql.Literal(start), end=sql.Literal(end), order=order)
    with days.connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types([each.kind.loader for each in columns])
        for page in pages(copy.rows()):
            if sums is not None:
                sums.add(files.batch_of(table.name, columns, page))
            yield from page


def archived_rows(storage: Storage, before: Manifest, table: Table, day: date, columns: list[Column]) -> Iterator[Row]:
    """The rows of an archived version, in the sort order of the file, with the columns that the table has today."""
    place = folder(table.name, day)
    for file in before.files:
        with verify.opened(storage, place, file) as path:
            for archived, batch in files.batches(path, place + file.name):
                yield from fitted(table, columns, archived, files.raw_rows(archived, batch))


def fitted(table: Table, columns: list[Column], archived: list[Column], rows: list[Row]) -> list[Row]:
    """Rows with the columns that the table has today; columns that were added since are NULL. Raises LifecycleError
    if the table has lost a column or changed its type."""
    if archived == columns:
        return rows
    places = {each: at for at, each in enumerate(archived)}
    if lost := [each.name for each in archived if each not in columns]:
        raise LifecycleError(
            Reason.SCHEMA,
            f"The archive of {table.name} has the column {lost[0]}, which the table lacks or has with another type: "
            "add it to the table, so that the archived values have a place.",
        )
    return [tuple(row[places[each]] if each in places else None for each in columns) for row in rows]


def _merged(
    table: Table, columns: list[Column], here: Iterator[Row], archived: Iterator[Row], *, archived_wins: bool
) -> Iterator[Row]:
    """Both, sorted, with one row a key: the archived row if ``archived_wins``, else the row of the database."""
    names = [each.name for each in columns]
    places = [names.index(name) for name in table.key]

    def key(row: Row) -> tuple[Any, ...]:
        return tuple(row[at] for at in places)

    mine, other = next(here, None), next(archived, None)
    while mine is not None or other is not None:
        if other is None or (mine is not None and key(mine) < key(other)):
            assert mine is not None
            yield mine
            mine = next(here, None)
        elif mine is None or key(other) < key(mine):
            yield other
            other = next(archived, None)
        else:
            yield other if archived_wins else mine
            mine, other = next(here, None), next(archived, None)


def pages(rows: Iterator[Row], most_rows: int = _PAGE, most_bytes: int = _PAGE_BYTES) -> Iterator[list[Row]]:
    """Lists of rows, bounded by their number and, roughly, by their size in bytes."""
    page: list[Row] = []
    size = 0
    for row in rows:
        page.append(row)
        size += sum(len(value) for value in row if isinstance(value, bytes))
        if len(page) >= most_rows or size >= most_bytes:
            yield page
            page, size = [], 0
    if page:
        yield page


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
