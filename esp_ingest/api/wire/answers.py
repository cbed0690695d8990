"""Builds answers: JSON, and lists also CSV or Arrow as the Accept header asks, with an ETag over the bytes and a Link
to the next page."""

import base64
import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from functools import cache
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin
from urllib.parse import urlencode

import msgspec
from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel

from esp_ingest.api.wire.problems import Problem
from esp_ingest.service.text import rfc3339_of

JSON, CSV, ARROW = "application/json", "text/csv", "application/vnd.apache.arrow.stream"
Kind = Literal["time", "day", "text", "number", "count", "flag", "json", "bytes"]
_NO_ARROW = "Arrow needs pyarrow on the API's host (`pip install pyarrow`): ask for application/json or text/csv."


class Column(NamedTuple):
    """A column of a table in CSV and Arrow. ``unit`` goes into the metadata of the Arrow field."""

    name: str
    kind: Kind
    unit: str = ""


class Table(NamedTuple):
    """Rows of values, in the order of the columns."""

    columns: Sequence[Column]
    rows: Iterable[Sequence[Any]]


_KINDS: dict[Any, Kind] = {
    datetime: "time", date: "day", str: "text", float: "number", int: "count", bool: "flag", bytes: "bytes",
}  # fmt: skip


@cache
def columns_of(model: type[BaseModel]) -> list[Column]:
    """The columns of a list of items of this shape. What is neither text nor number nor time is JSON in its cell."""
    return [Column(name, _kind(field.annotation)) for name, field in model.model_fields.items()]


def _kind(annotation: Any) -> Kind:
    of = get_args(annotation)
    if get_origin(annotation) is Literal:
        return _KINDS[type(of[0])]
    if NoneType in of:
        return _kind(of[0])
    return _KINDS.get(annotation, "json")


def accepted(request: Request) -> str:
    """The media type that the client prefers among those that a list can have. Raises Problem 406."""
    header = ",".join(request.headers.getlist("accept"))
    best, quality = "", 0.0
    for part in header.split(",") if header.strip() else ["*/*"]:
        media, _, parameters = part.partition(";")
        found = _FORMATS.get(media.strip().lower())
        weight = _weight(parameters)
        if found is not None and weight > quality:
            best, quality = found, weight
    if not best:
        raise Problem(406, "not-acceptable", f"This list comes as {JSON}, {CSV} or {ARROW}: name one in Accept.")
    return best


_FORMATS = {
    "*/*": JSON,
    "application/*": JSON,
    JSON: JSON,
    "text/*": CSV,
    CSV: CSV,
    ARROW: ARROW,
    "application/vnd.apache.arrow.file": "",
}


def _weight(parameters: str) -> float:
    for each in parameters.split(";"):
        name, _, value = each.strip().partition("=")
        if name.lower() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0


def link(request: Request, **changes: str | None) -> str:
    """The path of the request with changed query parameters; a parameter that is None is left out."""
    kept = [(name, value) for name, value in request.query_params.multi_items() if name not in changes]
    kept += [(name, value) for name, value in changes.items() if value is not None]
    return f"{request.url.path}?{urlencode(kept)}" if kept else request.url.path


def respond(
    request: Request,
    document: Any,
    *,
    table: Table | None = None,
    following: str | None = None,
    is_final: bool = False,
) -> Response:
    """The answer to a request: ``document`` as JSON, or ``table`` in the format that the Accept header names.
    ``following`` is the address of the next page. ``is_final``: the data cannot change any more, so that clients may
    cache it without asking again."""
    chosen = accepted(request) if table is not None else JSON
    headers = {"Vary": "Accept, Authorization"}
    if following is not None:
        headers["Link"] = f'<{following}>; rel="next"'
    if chosen == JSON or table is None:
        body = msgspec.json.encode(document)
    else:
        body = _csv(table) if chosen == CSV else _arrow(table)
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers["ETag"] = tag
    headers["Cache-Control"] = "private, max-age=86400, immutable" if is_final else "private, no-cache"
    if request.method in ("GET", "HEAD") and _matches(request.headers.get("if-none-match"), tag):
        return Response(None, 304, headers=headers)
    media = f"{CSV}; charset=utf-8; header=present" if chosen == CSV else chosen
    return Response(body, 200, headers=headers, media_type=media)


def respond_list(
    request: Request, items: Sequence[Mapping[str, Any]], model: type[BaseModel], following: str | None = None
) -> Response:
    """The answer with a list of items of this shape. ``following`` is the address of the next page."""
    columns = columns_of(model)
    table = Table(columns, ([item[column.name] for column in columns] for item in items))
    return respond(request, {"items": items, "next": following}, table=table, following=following)


def fresh(document: Any, status: int = 200) -> Response:
    """An answer that nobody may keep: it is made anew for each request and has no ETag."""
    return Response(msgspec.json.encode(document), status, headers={"Cache-Control": "no-store"}, media_type=JSON)


def _matches(header: str | None, tag: str) -> bool:
    return header is not None and any(each.strip().removeprefix("W/") in (tag, "*") for each in header.split(","))


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _csv(table: Table) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([column.name for column in table.columns])
    writer.writerows([[_cell(value) for value in row] for row in table.rows])
    return out.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return rfc3339_of(value)
    if isinstance(value, dict | list):
        return msgspec.json.encode(value).decode()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"  # a spreadsheet would run it, and whoever publishes chooses topics
    return value


def _arrow(table: Table) -> bytes:
    try:
        import pyarrow as pa
    except ImportError:
        raise Problem(406, "no-arrow", _NO_ARROW) from None
    types: Mapping[str, Any] = {
        "time": pa.timestamp("us", tz="UTC"),
        "day": pa.date32(),
        "text": pa.string(),
        "number": pa.float64(),
        "count": pa.int64(),
        "flag": pa.bool_(),
        "json": pa.string(),
        "bytes": pa.binary(),
    }
    rows = list(table.rows)
    arrays, fields = [], []
    for place, column in enumerate(table.columns):
        values = [row[place] for row in rows]
        if column.kind == "json":
            values = [None if value is None else msgspec.json.encode(value).decode() for value in values]
        arrays.append(pa.array(values, types[column.kind]))
        metadata = {"unit": column.unit} if column.unit else None
        fields.append(pa.field(column.name, types[column.kind], metadata=metadata))
    batch = pa.record_batch(arrays, schema=pa.schema(fields))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    found: bytes = sink.getvalue().to_pybytes()
    return found
