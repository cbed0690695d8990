"""Copies archived rows back into the database. Rows that are there already stay as they are, so restoring twice does
no harm."""

from collections.abc import Iterator
from datetime import date
from typing import Any

import psycopg
from psycopg import sql
from psycopg.adapt import Dumper
from psycopg.pq import Format

from esp_ingest.lifecycle.archive import verify
from esp_ingest.lifecycle.archive.columns import Column, to_arrow, wire
from esp_ingest.lifecycle.archive.export import Row, archived_rows, pages
from esp_ingest.lifecycle.archive.manifest import folder
from esp_ingest.lifecycle.archive.storage import Storage
from esp_ingest.lifecycle.archive.verify import Origin
from esp_ingest.lifecycle.days import Days, identifiers
from esp_ingest.lifecycle.errors import LifecycleError, Reason
from esp_ingest.lifecycle.tables import TABLE_NAMES, Table

_PAGE_ROWS, _PAGE_BYTES = 500, 262_144  # about 100 kB of telemetry a statement


class _Array:
    """A one-dimensional array of PostgreSQL in its binary form."""

    def __init__(self, column: Column, values: list[Any]) -> None:
        self.oid = psycopg.adapters.types[column.kind.oid].array_oid
        head = [b"\0\0\0\1\0\0\0\1", column.kind.oid.to_bytes(4, "big"), len(values).to_bytes(4, "big"), b"\0\0\0\1"]
        lengths, values_bytes = wire(column, to_arrow("", column, values))
        parts, place, data = head, 0, values_bytes.tobytes()
        for length in lengths.tolist():
            parts.append(length.to_bytes(4, "big", signed=True))
            if length > 0:
                parts.append(data[place : place + length])
                place += length
        self.data = b"".join(parts)


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Any) -> bytes:
        return bytes(obj.data)

    def get_key(self, obj: Any, format: Any) -> Any:  # noqa: ARG002 - the names are psycopg's
        return (type(obj), obj.oid)

    def upgrade(self, obj: Any, format: Any) -> "Dumper":  # noqa: ARG002 - the names are psycopg's
        made = type(self)(type(obj))
        made.oid = obj.oid
        return made


def restore_day(
    days: Days, storage: Storage, origin: Origin, table: Table, day: date, well: str | None, into: str | None
) -> int:
    """Copy one archived day into its table, or into the table ``into``: either all of it or nothing. The day is read
    back and compared with its manifest before any row is written. Returns how many rows were not there before. Raises
    LifecycleError and psycopg.Error."""
    found = verify.read_manifest(storage, origin, table, day)
    if found is None:
        raise LifecycleError(
            Reason.DAMAGED, f"The archive has no manifest in {folder(table.name, day)}: nothing to restore."
        )
    verify.read_back(storage, found, table, day)
    columns = days.columns(table)
    target = sql.Identifier(*(into or table.name).split("."))
    rows = _of_well(columns, archived_rows(storage, found, table, day, columns), well)
    arrays = sql.SQL(", ").join([sql.SQL("%b")] * len(columns))
    statement = days.statement("lifecycle_restore", table, target=target, columns=identifiers(columns), arrays=arrays)
    inserted = 0
    with days.connection.transaction(), days.connection.cursor() as cursor:
        cursor.adapters.register_dumper(_Array, _ArrayDumper)
        for page in pages(rows, _PAGE_ROWS, _PAGE_BYTES):
            of_each = zip(columns, zip(*page, strict=True), strict=True)
            cursor.execute(statement, [_Array(column, list(values)) for column, values in of_each])
            inserted += cursor.rowcount
    return inserted


def make_table(days: Days, table: Table, into: str) -> None:
    """Make a table like the source, unless it exists. Raises LifecycleError for a name that cannot be used."""
    if into in TABLE_NAMES:
        raise LifecycleError(Reason.SCHEMA, f"--into {into} is a table of the program: leave it out, or name another.")
    try:
        days.connection.execute(
            days.statement("lifecycle_restore_into", table, target=sql.Identifier(*into.split(".")))
        )
    except psycopg.errors.SyntaxError:
        raise LifecycleError(Reason.SCHEMA, f"--into {into} is not the name of a table.") from None


def _of_well(columns: list[Column], rows: Iterator[Row], well: str | None) -> Iterator[Row]:
    if well is None:
        return rows
    place, wanted = [each.name for each in columns].index("well_id"), well.encode()
    return (row for row in rows if row[place] == wanted)
