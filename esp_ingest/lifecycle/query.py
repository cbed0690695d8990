"""`lifecycle query`: runs one SELECT over the archive and the database together. DuckDB answers it in this process.

Each table is a view with the table's own name and columns. The rows of a day come from the archive if its archived
version holds everything that the database holds. Otherwise they come from the database; and if the archive has
further rows of that day, from both, each key once. DuckDB reads the archived files through the storage, and only the
columns and row groups that it needs. What comes from the database is kept in temporary files meanwhile, so memory
stays bounded. DuckDB's own extensions for PostgreSQL and for object stores are not used, because DuckDB would
download them."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.dataset as ds
from psycopg import sql

from esp_ingest.config.settings import ConfigError, Settings
from esp_ingest.lifecycle import reading
from esp_ingest.lifecycle.archive import export, files, verify
from esp_ingest.lifecycle.archive.columns import schema
from esp_ingest.lifecycle.archive.manifest import folder
from esp_ingest.lifecycle.archive.storage import Storage
from esp_ingest.lifecycle.archive.verify import Origin
from esp_ingest.lifecycle.days import Days, identifiers
from esp_ingest.lifecycle.tables import TABLES, Table
from esp_ingest.store.queries import composed

_MEMORY = "1GB"
_ROWS = 1_000
Answer = tuple[list[str], list[tuple[Any, ...]]]


def ask(settings: Settings, text: str) -> Iterator[Answer]:
    """Yields column names with some rows, at least once, until all rows have come. Raises LifecycleError, and
    ConfigError for a query that cannot be answered."""
    wanted = [table for table in TABLES if re.search(rf"\b{table.name}\b", text, re.IGNORECASE)]
    with tempfile.TemporaryDirectory(prefix="esp-ingest-query-") as scratch, reading.opened(settings) as here:
        options: dict[str, Any] = {
            "memory_limit": _MEMORY,
            "temp_directory": scratch,
            "python_enable_replacements": "false",
        }
        with duckdb.connect(config=options) as engine:
            for table in wanted:
                _view(engine, *here, table, Path(scratch))
            engine.execute("SET TimeZone = 'UTC'")
            engine.execute("SET python_enable_replacements = false")
            engine.execute("SET enable_external_access = false")
            try:
                yield from _answers(engine, text)
            except duckdb.Error as error:
                raise ConfigError(f"The query failed: {' '.join(str(error).split())[:300]}") from None


def _answers(engine: duckdb.DuckDBPyConnection, text: str) -> Iterator[Answer]:
    relation = engine.sql(text)
    if relation is None:
        raise ConfigError("The query is not a SELECT: only questions are answered.")
    reader = relation.to_arrow_reader(_ROWS)
    names = list(reader.schema.names)
    yield names, []
    for batch in reader:
        yield names, list(zip(*(column.to_pylist() for column in batch.columns), strict=True))


def _view(
    engine: duckdb.DuckDBPyConnection, days: Days, storage: Storage, origin: Origin, table: Table, scratch: Path
) -> None:
    """Make the view of ``table`` in DuckDB, as described above."""
    held, records = days.held(table), days.records(table)
    archived = [day for day, record in records.items() if record.version]
    stored = [day for day, found in held.items() if day not in records or not records[day].is_current(found)]
    columns = days.columns(table)
    paths = []
    for day in archived:
        found = verify.expected_manifest(storage, origin, table, day, records[day])
        paths += [folder(table.name, day) + file.name for file in found.files]
    local = []
    for day in stored:
        path = scratch / f"{table.name}-{day}.parquet"
        if _export(days, table, path, day):
            local.append(str(path))
    arrow = schema(columns)
    engine.register(
        f"{table.name}_archived", ds.dataset(paths, schema=arrow, filesystem=storage.arrow(), format="parquet")
    )
    engine.register(f"{table.name}_stored", ds.dataset(local, schema=arrow, format="parquet"))
    names = {
        "view": sql.Identifier(table.name),
        "archived": sql.Identifier(f"{table.name}_archived"),
        "stored": sql.Identifier(f"{table.name}_stored"),
        "columns": identifiers(columns),
        "key": sql.SQL(", ").join(map(sql.Identifier, table.key)),
    }
    name = "lifecycle_view_of_both" if set(archived) & set(stored) else "lifecycle_view"
    engine.execute(composed(name, **names).as_string(None))


def _export(days: Days, table: Table, path: Path, day: Any) -> bool:
    """Write what the database holds of the day to a file. Returns whether there was a row."""
    columns = days.columns(table)
    rows = 0
    with (
        closing(export.stored_rows(days, table, day, None)) as here,
        files.Writer(path, table.name, columns, table.time) as writer,
    ):
        for page in export.pages(here):
            writer.add(page)
            rows += len(page)
        if rows:
            writer.finish()
    return rows > 0
