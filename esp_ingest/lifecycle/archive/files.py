"""Parquet files of a day: written from raw rows, in row groups of bounded size, and read back as Arrow batches."""

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from esp_ingest.lifecycle.archive.checksum import Content, Summing
from esp_ingest.lifecycle.archive.columns import Column, column_of, schema, to_arrow, to_raw
from esp_ingest.lifecycle.errors import LifecycleError, Reason

BATCH_ROWS = 10_000
GROUP_ROWS = 120_000
GROUP_BYTES = 33_554_432  # as Arrow holds it: a reader has one group in memory
_DICTIONARY = frozenset(("well_id", "diagnosis", "severity", "state", "topic", "reason"))


class Writer:
    """Writes the file ``path``. Use it as a context manager; without :meth:`finish` the file is incomplete."""

    def __init__(self, path: Path, table: str, columns: list[Column], time: str) -> None:
        self.path = path
        self._table = table
        self._columns = columns
        self._time = [each.name for each in columns].index(time)
        self._schema = schema(columns)
        floats = [each.name for each in columns if each.kind.name in ("double precision", "real")]
        self._parquet = pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            use_dictionary=[each.name for each in columns if each.name in _DICTIONARY] or False,
            use_byte_stream_split=floats or False,
            write_page_checksum=True,
            store_schema=True,
        )
        self._sums = Summing(columns)
        self._held: list[Any] = []
        self._held_rows = self._held_bytes = 0
        self._first: int | None = None
        self._last: int | None = None

    def add(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Append rows of raw values, in the order of the columns, at most some thousands at a time."""
        batch = batch_of(self._table, self._columns, rows)
        self._sums.add(batch)
        span = pc.min_max(batch.column(self._time).cast(pa.int64())).as_py()
        self._first = span["min"] if self._first is None else min(self._first, span["min"])
        self._last = span["max"] if self._last is None else max(self._last, span["max"])
        self._held.append(batch)
        self._held_rows += batch.num_rows
        self._held_bytes += batch.nbytes
        if self._held_rows >= GROUP_ROWS or self._held_bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._parquet.write_table(pa.Table.from_batches(self._held), row_group_size=self._held_rows)
        self._held, self._held_rows, self._held_bytes = [], 0, 0

    def finish(self) -> tuple[Content, int, int]:
        """Complete the file. Returns its content, and the first and the last time in it, µs since 1970. There must
        have been a row."""
        self._flush()
        self._parquet.close()
        assert self._first is not None
        assert self._last is not None
        return self._sums.content, self._first, self._last

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._parquet.close()
        self._held = []


def batch_of(table: str, columns: list[Column], rows: Sequence[tuple[Any, ...]]) -> Any:
    """Rows of raw values as an Arrow RecordBatch. Raises LifecycleError for a value that the archive cannot hold."""
    arrays = [to_arrow(table, column, values) for column, values in zip(columns, zip(*rows, strict=True), strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema(columns))


def new_name(version: int, identity: str) -> str:
    """A file name that has never been used before."""
    return f"v{version:04d}-{identity[:8]}-{uuid.uuid4().hex[:4]}.parquet"


def batches(path: Path, where: str) -> Iterator[tuple[list[Column], Any]]:
    """Yields the columns and a RecordBatch, through the whole file in its order. Raises LifecycleError if the file
    cannot be read."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            columns = [column_of(field) for field in file.schema_arrow]
            for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                yield columns, batch
    except (pa.ArrowException, OSError, ValueError) as error:
        raise LifecycleError(
            Reason.DAMAGED, f"The archived file {where} cannot be read ({str(error).splitlines()[0][:120]})."
        ) from None


def raw_rows(columns: list[Column], batch: Any) -> list[tuple[Any, ...]]:
    """The rows of a batch as raw values."""
    return list(zip(*(to_raw(column, batch.column(at)) for at, column in enumerate(columns)), strict=True))
