"""PostgreSQL types as the archive holds them: raw values of a binary COPY ↔ Arrow arrays ↔ the bytes that are hashed.

A *raw* value is what psycopg returns from a binary COPY with the loaders named here: float, int, bool or bytes, and
None for NULL. Times are microseconds since 2000-01-01 (PostgreSQL's own), text and JSON are UTF-8 bytes; jsonb has its
version byte in front. So nothing is converted twice, and what is hashed is what the server would send."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from esp_ingest.lifecycle.errors import LifecycleError, Reason
from esp_ingest.model import SIGNALS
from esp_ingest.store.write.copy_format import JSONB_VERSION, POSTGRES_EPOCH_US

Bytes = npt.NDArray[np.uint8]
Lengths = npt.NDArray[np.int64]

_INFINITE = (-(2**63), 2**63 - 1)
_UNITS = {signal.name: signal.unit for signal in SIGNALS}


@dataclass(frozen=True)
class Kind:
    """A type of PostgreSQL. ``loader`` is the type as which psycopg reads a binary COPY. ``width`` is the length of
    its binary form in bytes, 0 if the length varies."""

    name: str
    oid: int
    loader: str
    arrow: Any
    width: int


_KINDS = {
    kind.oid: kind
    for kind in (
        Kind("boolean", 16, "bool", pa.bool_(), 1),
        Kind("bytea", 17, "bytea", pa.binary(), 0),
        Kind("bigint", 20, "int8", pa.int64(), 8),
        Kind("smallint", 21, "int2", pa.int16(), 2),
        Kind("integer", 23, "int4", pa.int32(), 4),
        Kind("text", 25, "bytea", pa.string(), 0),
        Kind("json", 114, "bytea", pa.string(), 0),
        Kind("real", 700, "float4", pa.float32(), 4),
        Kind("double precision", 701, "float8", pa.float64(), 8),
        Kind("character", 1042, "bytea", pa.string(), 0),
        Kind("character varying", 1043, "bytea", pa.string(), 0),
        Kind("timestamp with time zone", 1184, "int8", pa.timestamp("us", tz="UTC"), 8),
        Kind("uuid", 2950, "bytea", pa.uuid(), 16),
        Kind("jsonb", 3802, "bytea", pa.string(), 0),
    )
}
_BY_NAME = {kind.name: kind for kind in _KINDS.values()}


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    kind: Kind

    def field(self) -> Any:
        """The Arrow field, with unit and PostgreSQL type in its metadata."""
        metadata = {"postgresql_type": self.kind.name}
        if self.name in _UNITS:
            metadata["unit"] = _UNITS[self.name]
        return pa.field(self.name, self.kind.arrow, metadata=metadata)


def column(table: str, name: str, oid: int, type_name: str) -> Column:
    """The column called ``name``. Raises LifecycleError if the archive cannot hold its type."""
    if oid not in _KINDS:
        raise LifecycleError(
            Reason.SCHEMA,
            f"Column {table}.{name} has the type {type_name}, which the archive cannot hold: "
            "change it to one of " + ", ".join(sorted(_BY_NAME)) + ".",
        )
    return Column(name, _KINDS[oid])


def column_of(field: Any) -> Column:
    """The column that an Arrow field of an archived file stands for. Raises LifecycleError."""
    name = (field.metadata or {}).get(b"postgresql_type", b"").decode()
    if name not in _BY_NAME or field.type != _BY_NAME[name].arrow:
        raise LifecycleError(
            Reason.DAMAGED, f"Column {field.name} of an archived file has no type that this program knows: restore it."
        )
    return Column(field.name, _BY_NAME[name])


def schema(columns: list[Column]) -> Any:
    """The Arrow schema of ``columns``."""
    return pa.schema([each.field() for each in columns])


def to_arrow(table: str, each: Column, values: tuple[Any, ...] | list[Any]) -> Any:
    """Convert raw values to an Arrow array. Raises LifecycleError for a value that the archive cannot hold."""
    kind = each.kind
    if kind.name == "timestamp with time zone":
        array = pa.array(values, pa.int64())
        known = array.drop_null().to_numpy()
        if known.size and (known.min() in _INFINITE or known.max() > _INFINITE[1] - POSTGRES_EPOCH_US):
            raise LifecycleError(
                Reason.SCHEMA,
                f"Column {table}.{each.name} holds an infinite time, which a file cannot: correct the row.",
            )
        shifted = np.asarray(array.fill_null(0)) + POSTGRES_EPOCH_US
        mask = np.asarray(array.is_null())
        return pa.array(shifted, pa.int64(), mask=mask).cast(kind.arrow)
    if kind.name == "uuid":
        return pa.ExtensionArray.from_storage(kind.arrow, pa.array(values, pa.binary(16)))
    if kind.name == "jsonb":
        values = [None if value is None else bytes(value[1:]) for value in values]
    if kind.arrow == pa.string():
        try:
            return pa.array(values, pa.binary()).cast(pa.string())
        except pa.ArrowInvalid:
            raise LifecycleError(
                Reason.SCHEMA, f"Column {table}.{each.name} holds text that is not UTF-8: correct the row."
            ) from None
    return pa.array(values, kind.arrow)


def to_raw(each: Column, array: Any) -> list[Any]:
    """Convert an Arrow array to raw values: the opposite of :func:`to_arrow`."""
    kind = each.kind
    if kind.name == "timestamp with time zone":
        return [None if value is None else value - POSTGRES_EPOCH_US for value in array.cast(pa.int64()).to_pylist()]
    if kind.name == "uuid":
        return list(array.storage.to_pylist())
    if kind.arrow == pa.string():
        values = array.cast(pa.binary()).to_pylist()
        if kind.name == "jsonb":
            return [None if value is None else JSONB_VERSION + value for value in values]
        return list(values)
    return list(array.to_pylist())


def wire(each: Column, array: Any) -> tuple[Lengths, Bytes]:
    """The values in the binary form of PostgreSQL's send functions: their lengths (n,), -1 for NULL, and the bytes
    of all values joined."""
    valid = np.asarray(array.is_valid())
    if each.kind.width:
        lengths = np.where(valid, each.kind.width, -1)
        return lengths, _fixed(each.kind, array)[valid].reshape(-1)
    plain = array.cast(pa.binary()) if array.type == pa.string() else array
    if plain.null_count:
        plain = plain.fill_null(b"")
    offsets = np.frombuffer(plain.buffers()[1], np.int32, len(plain) + 1, plain.offset * 4).astype(np.int64)
    buffer = plain.buffers()[2]
    data = np.frombuffer(buffer, np.uint8) if buffer is not None else np.empty(0, np.uint8)
    data, lengths = data[offsets[0] : offsets[-1]], np.diff(offsets)
    if each.kind.name == "jsonb":
        starts = (offsets[:-1] - offsets[0])[valid]
        data = np.insert(data, starts, JSONB_VERSION[0])
        lengths = lengths + 1
    return np.where(valid, lengths, -1), data


def _fixed(kind: Kind, array: Any) -> Bytes:
    """The values of a type of fixed width as bytes (n, width), most significant first. The bytes of NULL values have
    no meaning."""
    count, width = len(array), kind.width
    if kind.name == "boolean":
        return np.asarray(array.fill_null(False)).astype(np.uint8).reshape(count, 1)
    if kind.name == "uuid":
        storage = array.storage
        if storage.buffers()[1] is None:
            return np.zeros((count, 16), np.uint8)
        return np.frombuffer(storage.buffers()[1], np.uint8, count * 16, storage.offset * 16).reshape(count, 16)
    values = np.frombuffer(array.buffers()[1], f"<i{width}", count, array.offset * width)
    if kind.name == "timestamp with time zone":
        values = values - POSTGRES_EPOCH_US
    return values.astype(f">i{width}").view(np.uint8).reshape(count, width)
