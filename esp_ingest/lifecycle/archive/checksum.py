"""The content of a day as one number that depends on no order of rows.

A row's hash is the MD5 of what PostgreSQL's ``record_send(ROW(…))`` gives: the count of columns, then of each its
type, its length and its bytes. A day's checksum is the sum of these hashes, each half of them modulo 2^64, in
hexadecimal. The server computes it (``lifecycle_day_checksum`` in sql/queries.sql) without sending a row; this module
does the same from Arrow batches. It is a sum and not an exclusive or, so that two equal rows do not cancel each other.
It guards against loss and damage, not against somebody who forges rows on purpose; the files have SHA-256 for that."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esp_ingest.lifecycle.archive.columns import Column, wire

_MODULUS = 2**64


@dataclass(frozen=True)
class Content:
    """The number of rows and their checksum, which is 32 hexadecimal digits."""

    rows: int
    checksum: str

    @staticmethod
    def of(rows: int, high: int, low: int) -> "Content":
        """The content for the two sums of hashes, which may have any size and sign."""
        return Content(rows, f"{high % _MODULUS:016x}{low % _MODULUS:016x}")


NOTHING = Content.of(0, 0, 0)


class Summing:
    """Adds up the hashes of rows in Arrow batches."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = tuple(columns)
        self._rows = self._high = self._low = 0

    def add(self, batch: Any) -> None:
        """Add a RecordBatch that has these columns in this order. Takes about 3 µs a row of 18 columns."""
        if not batch.num_rows:
            return
        rows = row_bytes(self._columns, batch)
        sums = np.frombuffer(b"".join(hashlib.md5(row, usedforsecurity=False).digest() for row in rows), ">u8")
        high, low = sums.reshape(-1, 2).astype(np.uint64).sum(axis=0, dtype=np.uint64)
        self._rows += batch.num_rows
        self._high += int(high)
        self._low += int(low)

    @property
    def content(self) -> Content:
        """Rows and checksum of all batches so far."""
        return Content.of(self._rows, self._high, self._low)


def row_bytes(columns: Sequence[Column], batch: Any) -> list[memoryview]:
    """The bytes of each row, as PostgreSQL's ``record_send`` writes them."""
    count = batch.num_rows
    fields = [wire(column, batch.column(at)) for at, column in enumerate(columns)]
    sizes = np.full(count, 4 + 8 * len(columns), np.int64)
    for lengths, _ in fields:
        sizes += np.maximum(lengths, 0)
    ends = np.cumsum(sizes)
    out = np.empty(int(ends[-1]), np.uint8)
    place = ends - sizes
    _put(out, place, np.full(count, len(columns), ">i4").view(np.uint8).reshape(count, 4))
    place = place + 4
    for column, (lengths, data) in zip(columns, fields, strict=True):
        head = np.empty((count, 2), ">i4")
        head[:, 0], head[:, 1] = column.kind.oid, lengths
        _put(out, place, head.view(np.uint8))
        place = place + 8
        held = np.maximum(lengths, 0)
        before = np.cumsum(held) - held
        out[np.repeat(place - before, held) + np.arange(len(data))] = data
        place = place + held
    whole = memoryview(out.data)
    starts = (ends - sizes).tolist()
    return [whole[start:end] for start, end in zip(starts, ends.tolist(), strict=True)]


def _put(out: np.ndarray[Any, Any], place: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
    """Write the rows of ``values`` (n, k) at ``place`` (n,)."""
    out[place[:, None] + np.arange(values.shape[1])] = values
