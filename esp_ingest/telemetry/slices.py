"""Large messages, cut at the commas of their array, so that no single call holds the interpreter for long.

A call into C holds the interpreter until it returns, and what a parser builds can be 30 times as large as its text. So
nothing here, and nothing that is called for a piece, handles more than SLICE_BYTES in one go, with one exception: a
single reading that is larger, up to ``telemetry.max_reading_bytes``.

Cutting never makes two texts of one that a parser would have read otherwise: each piece is parsed by itself, and if all
pieces are lists of JSON values, their concatenation is one. Where the cuts stand does not matter for that.
"""

import codecs
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from esp_ingest.model import Delivery, IntArray, RejectReason
from esp_ingest.telemetry.json_text import BYTE_ORDER_MARK, PADDING, Refused, not_utf8, several_texts

SLICE_BYTES = 65_536
"""What is parsed in one go, at most: about 2 ms of parsing in the worst case."""

MOST_VALUES = 50_000
"""Values, containers, texts and escapes in a reading of more than SLICE_BYTES. A smaller one takes no longer."""

Bools = npt.NDArray[np.bool_]


class Outline(NamedTuple):
    """What a scan of a JSON text finds without parsing it, of its outermost container.

    ``commas`` (n,) are the places of the commas between its items; ``deepest`` is how many brackets are open at once,
    ``closed_at`` the place of the bracket that closes it (-1: none does), and ``values`` counts all commas, opening
    brackets, strings and backslashes."""

    commas: IntArray
    deepest: int
    closed_at: int
    values: int


class Piece(NamedTuple):
    """Items ``first`` … ``first + items`` of an array, as an array of their own."""

    first: int
    items: int
    payload: bytes


def runs(deliveries: Sequence[Delivery], together_bytes: int) -> Iterator[Sequence[Delivery]]:
    """Deliveries cut, in their order, into runs of ``together_bytes`` at most; a large one is a run of its own."""
    run: list[Delivery] = []
    size = 0
    for delivery in deliveries:
        length = len(delivery.payload)
        is_large = length > SLICE_BYTES
        if run and (is_large or size + length > together_bytes):
            yield run
            run, size = [], 0
        run.append(delivery)
        size += length
        if is_large:
            yield run
            run, size = [], 0
    if run:
        yield run


def outline(body: bytes) -> Outline:
    """Scan a text that begins with a bracket. Takes about 10 ns a byte, and 8 bytes an item."""
    commas: list[IntArray] = []
    open_brackets = deepest = values = 0
    in_string = is_escaped = False
    for start in range(0, len(body), SLICE_BYTES):
        chars = np.frombuffer(body, np.uint8, min(SLICE_BYTES, len(body) - start), start)
        quotes = chars == ord('"')
        backslashes = chars == ord("\\")
        if is_escaped or backslashes.any():
            escaped, is_escaped = _escaped(backslashes, is_escaped)
            quotes &= ~escaped
            values += int(np.count_nonzero(backslashes))
        outside = (np.cumsum(quotes, dtype=np.uint8) + np.uint8(in_string)) & 1 == 0
        in_string = not outside[-1]
        brackets = chars | 0x20  # makes the square ones curly, and nothing else
        opening = (brackets == ord("{")) & outside
        closing = (brackets == ord("}")) & outside
        separators = (chars == ord(",")) & outside
        depth = open_brackets + np.cumsum(opening.astype(np.int32) - closing)
        open_brackets = int(depth[-1])
        deepest = max(deepest, int(depth.max()))
        values += int(np.count_nonzero(quotes)) // 2
        values += int(np.count_nonzero(opening)) + int(np.count_nonzero(separators))
        closed = np.flatnonzero(depth <= 0)
        end = int(closed[0]) if len(closed) else len(chars)
        commas.append(np.flatnonzero(separators[:end] & (depth[:end] == 1)) + start)
        if len(closed):
            return Outline(np.concatenate(commas), deepest, start + end, values)
    return Outline(np.concatenate(commas), deepest, -1, values)


def take_apart(payload: bytes) -> tuple[bytes, Outline | None]:
    """A large payload without its padding, and its outline if it begins with a bracket. Raises Refused for what is
    empty, not UTF-8, or several JSON texts."""
    body = _without_padding(payload)
    if not body:
        raise Refused(RejectReason.EMPTY_PAYLOAD, "The payload is empty.")
    _check_utf8(body)
    if body[:1] not in (b"{", b"["):
        return body, None
    found = outline(body)
    if 0 <= found.closed_at < len(body) - 1:
        rest = body[found.closed_at + 1 : found.closed_at + 1 + SLICE_BYTES].lstrip(b" \t\r\n,")
        if rest[:1] in (b"{", b"["):
            raise several_texts()
        raise Refused(RejectReason.INVALID_JSON, f"Not JSON: Extra data at byte {found.closed_at + 1}.")
    return body, found


def refuse_large_reading(body: bytes, found: Outline | None, max_bytes: int, max_depth: int) -> None:
    """Raises Refused for a reading that is parsed by itself and would take too long: more than ``max_bytes`` or
    MOST_VALUES, or deeper than ``max_depth``."""
    if found is None and body[:1] in (b"{", b"["):
        found = outline(body)
    if found is not None and found.deepest > max_depth:
        raise Refused(RejectReason.TOO_DEEP, f"Nested {found.deepest} levels deep; telemetry.max_depth = {max_depth}.")
    if len(body) > max_bytes:
        raise Refused(
            RejectReason.PAYLOAD_TOO_LARGE,
            f"A reading of {len(body)} bytes is longer than telemetry.max_reading_bytes = {max_bytes}.",
        )
    if found is not None and found.values > MOST_VALUES:
        raise Refused(
            RejectReason.PAYLOAD_TOO_LARGE,
            f"A reading of {len(body)} bytes holds {found.values} values, texts and escapes; at most {MOST_VALUES}.",
        )
    if found is None and len(body) > MOST_VALUES:
        raise Refused(RejectReason.INVALID_JSON, "Not JSON: it begins with neither { nor [.")


def pieces(body: bytes, commas: IntArray) -> Iterator[Piece]:
    """An array cut into pieces of whole items, each of SLICE_BYTES at most, or one item."""
    edges = np.concatenate([[0], commas, [len(body) - 1]])
    first, last = 0, len(edges) - 1
    while first < last:
        end = int(np.searchsorted(edges, edges[first] + SLICE_BYTES, "right")) - 1
        end = min(max(end, first + 1), last)
        inside = body[int(edges[first]) + 1 : int(edges[end])]
        yield Piece(first, end - first, b"[" + inside + b"]")
        first = end


def _escaped(backslashes: Bools, is_first_escaped: bool) -> tuple[Bools, bool]:
    """Which characters (n,) are escaped by an odd number of backslashes before them, and whether the next one is."""
    places = np.arange(len(backslashes))
    last_other = np.maximum.accumulate(np.where(backslashes, -1, places))
    is_odd = ((places - last_other + (is_first_escaped & (last_other == -1))) & 1).astype(np.bool_)
    escaped = np.empty(len(backslashes), np.bool_)
    escaped[0] = is_first_escaped
    escaped[1:] = is_odd[:-1]
    return escaped, bool(is_odd[-1])


def _without_padding(payload: bytes) -> bytes:
    """As :func:`json_text.without_padding`, in slices: stripping 4 MB of spaces in one go takes 20 ms."""
    body = _strip(payload)
    return _strip(body[len(BYTE_ORDER_MARK) :]) if body.startswith(BYTE_ORDER_MARK) else body


def _strip(payload: bytes) -> bytes:
    start, end = 0, len(payload)
    while start < end and not payload[start : start + SLICE_BYTES].strip(PADDING):
        start += SLICE_BYTES
    while end > start and not payload[max(start, end - SLICE_BYTES) : end].strip(PADDING):
        end -= SLICE_BYTES
    return payload[start : max(start, end)].strip(PADDING)


def _check_utf8(body: bytes) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(body), SLICE_BYTES):
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(body[start : start + SLICE_BYTES], final=start + SLICE_BYTES >= len(body))
        except UnicodeDecodeError as error:
            raise not_utf8(body, start - pending + error.start) from None
