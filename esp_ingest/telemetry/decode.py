"""Deliveries → readings in columns, and rejects. Pure: no clock, no I/O; it never raises for what was received.

Each payload is parsed by itself, in one of three ways that agree on every outcome:

1. Clean messages (known keys, values in range) by msgspec into a struct without a Python object a key; all checks are
   numpy expressions over the batch.
2. With keys that nobody declared: their raw text goes to ``extra`` as it was sent.
3. Whatever is left, by exact.py: it alone writes rejects, ``quality``, and decides what is doubtful.

How 1 knows that it has seen everything: the quotes in a payload are counted, and those of the keys and strings that it
read must account for all of them. An unknown key, a key that stands twice, an escaped quote or a null leaves a
difference, and the message takes the next way. So no key is dropped, and of two ``pip`` in one object none wins in
silence. Why msgspec and not pydantic: docs/decisions/0005-dependencies.md.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

import msgspec
import numpy as np

from esp_ingest.config.section import WELL_ID_PATTERN
from esp_ingest.config.settings import TelemetrySettings
from esp_ingest.model import (
    SIGNAL_NAMES,
    Decoded,
    Delivery,
    IntArray,
    Readings,
    Reject,
    RejectReason,
    Unusable,
)
from esp_ingest.telemetry import slices
from esp_ingest.telemetry.decode_batch import ROWS_TOGETHER, Bools, DecodeBatch, Places, floats, values_of
from esp_ingest.telemetry.exact import (
    KNOWN_KEYS,
    LONGEST_NUMBER,
    BadItems,
    ExactReader,
    ExactReading,
    is_crowded,
    most_rejects,
)
from esp_ingest.telemetry.joining import joined, merged
from esp_ingest.telemetry.json_text import SPACE, Refused
from esp_ingest.telemetry.limits import HardLimits
from esp_ingest.telemetry.timestamps import NO_TIME, parse_column

_ABSENT = float("nan")
# No well can be called so; a payload that says so all the same does not pass the count of quotes.
_NO_WELL = "\0"

_Message = msgspec.defstruct(
    "_Message",
    [
        ("timestamp", str | int | float | None, _ABSENT),
        ("well_id", str, _NO_WELL),
        *((name, float | None, _ABSENT) for name in SIGNAL_NAMES),
    ],
    gc=False,
)
_BLANK = _Message()

_LONGEST_CACHED_TOPIC = 256  # no well has a longer one, and a topic may have 64 KiB
_SMALL_BYTES = 1024  # what is smaller cannot hold enough items to matter
_TOGETHER_BYTES = 2_097_152  # what is read in bulk at once: its objects take up to 25 times that
_LARGE_EXPONENT = re.compile(rb"[eE][+-]?\d{4}")
# Only from where a number begins: tried at each of its characters, 4 MB of numbers just short enough took 2.7 s.
_LONG_NUMBER = re.compile(rb"(?<![0-9.eE+-])[0-9.eE+-]{%d}" % (LONGEST_NUMBER + 1))

DECODE_BYTES_PER_PAYLOAD_BYTE = 20
"""Memory that decoding takes at most, its outcome included, for each byte of the payloads that are decoded together."""


class Decoder:
    """Decodes batches. It holds compiled decoders and remembers ``max_topics``, by default as many as there are
    high-water marks: with one more all are read anew each round. Not for two threads at once.

    ``fallbacks`` counts batches that the bulk way could not read and that were read exactly throughout: 0, or there
    is a fault in this program, worth a warning."""

    def __init__(self, settings: TelemetrySettings, topic_root: str, *, max_topics: int = 200_000) -> None:
        self._max_topics = max_topics
        self._max_payload_bytes = settings.max_payload_bytes
        self._max_reading_bytes = settings.max_reading_bytes
        self._max_depth = settings.max_depth
        self._max_ahead_us = round(settings.max_ahead_seconds * 1e6)
        self._max_age_us = round(settings.max_age_days * 86_400e6)
        self._limits = HardLimits(settings)
        self._exact = ExactReader(settings, self._limits)
        self._struct_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Message | list[_Message])  # type: ignore[valid-type]  # made at run time
        self._raw_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
            dict[str, msgspec.Raw] | list[dict[str, msgspec.Raw]]
        )
        self._encode = msgspec.json.Encoder().encode
        self._topic = re.compile(rb"%s/(%s)/telemetry" % (re.escape(topic_root.encode()), WELL_ID_PATTERN.encode()))
        self._topic_shape = f"{topic_root}/{{well_id}}/telemetry"
        self._number_of: dict[bytes, int] = {}  # by topic, a place in the register
        self._register = [""]  # wells by number, 0 for topics that are impossible
        self.fallbacks = 0

    def decode(self, deliveries: Sequence[Delivery]) -> Decoded:
        """Every item of every delivery becomes a reading or a reject, in the order received; each delivery yields at
        least one of them. The time it was received decides what is too far ahead or too old: a stay in the spool or a
        replay changes no verdict."""
        if not deliveries:
            return Decoded(Readings.empty(), [])
        batch = DecodeBatch(deliveries)
        if batch.longest * len(deliveries) <= _TOGETHER_BYTES and batch.longest <= slices.SLICE_BYTES:
            return self._decode_together(batch)
        return joined([self._decode_run(run) for run in slices.runs(deliveries, _TOGETHER_BYTES)])

    def _decode_run(self, run: Sequence[Delivery]) -> Decoded:
        """What slices.runs() cut: small messages together, or one that is large."""
        first = run[0]
        if len(first.payload) > slices.SLICE_BYTES and self._topic.fullmatch(first.topic):
            return self._decode_large(first)
        return self._decode_together(DecodeBatch(run))

    def _decode_large(self, delivery: Delivery) -> Decoded:
        """As any other message, but its items in pieces: see slices.py."""
        try:
            self._exact.refuse_size(delivery.payload)
            body, outline = slices.take_apart(delivery.payload)
            if outline is not None and body[:1] == b"[":
                return self._decode_array(delivery, body, outline)
            slices.refuse_large_reading(body, outline, self._max_reading_bytes, self._max_depth)
            decoded = self._decode_together(DecodeBatch([delivery._replace(payload=body)]))
            decoded.rejects = [replace(reject, payload=delivery.payload) for reject in decoded.rejects]
            return decoded
        except Refused as refused:
            return Decoded(Readings.empty(), [_reject(delivery, refused, delivery.payload)])

    def _decode_array(self, delivery: Delivery, body: bytes, outline: slices.Outline) -> Decoded:
        """A large array, piece by piece. Raises Refused where it is not JSON."""
        if outline.closed_at < 0 or body[-1:] != b"]":
            self._exact.refuse_depth(outline.deepest)
            raise Refused(RejectReason.INVALID_JSON, "Not JSON: the brackets do not match.")
        items = len(outline.commas) + 1
        bad = BadItems(most_rejects(items, len(body)))
        parts: list[Decoded] = []
        for piece in slices.pieces(body, outline.commas):
            try:
                if piece.items == 1 and len(piece.payload) > slices.SLICE_BYTES:
                    item = piece.payload[1:-1].strip(SPACE)
                    slices.refuse_large_reading(item, None, self._max_reading_bytes, self._max_depth - 1)
            except Refused as refused:
                bad.add(piece.first, refused, item)
                continue
            batch = DecodeBatch([delivery._replace(payload=piece.payload)])
            batch.piece = piece.first, bad
            parts.append(self._decode_together(batch))
        settled = bad.settled(items, delivery.payload)
        rejects = [_reject(delivery, why, payload, place) for place, why, payload in settled]
        return joined([*parts, Decoded(Readings.empty(), rejects)])

    def _decode_together(self, batch: DecodeBatch) -> Decoded:
        self._name_wells(batch)
        try:
            self._read_structs(batch)
            self._tabulate(batch)
            self._account_for_strings(batch)
        except Exception:  # a fault of ours must not become a message that stops the daemon again and again
            self.fallbacks += 1
            batch.doubt_everything()
        return self._settle(batch)

    def _name_wells(self, batch: DecodeBatch) -> None:
        topics = list(dict.fromkeys(batch.topics))
        numbers = np.fromiter(map(self._number_of.get, topics, repeat(0)), np.intp, len(topics))
        impossible = 0
        if not numbers.all():  # a topic is new, or impossible
            new = sum(topic not in self._number_of for topic in topics)
            if len(self._number_of) + new > self._max_topics:
                self._number_of, self._register = {}, [""]
            numbers = np.array([self._number(topic) for topic in topics], np.intp)
            impossible = len(topics) - int(np.count_nonzero(numbers))
        if impossible:
            order = np.argsort(numbers == 0, kind="stable")  # impossible ones last
            topics, numbers = [topics[at] for at in order.tolist()], numbers[order]
        batch.wells = list(map(self._register.__getitem__, numbers.tolist()))
        batch.numbers, batch.register = numbers, self._register
        batch.valid_wells = len(topics) - impossible
        if len(topics) == len(batch.topics) and not impossible:  # a message a well, in this order
            batch.delivery_well = np.arange(len(topics), dtype=np.int32)
            return
        place = {topic: at for at, topic in enumerate(topics)}
        batch.delivery_well = np.fromiter(map(place.__getitem__, batch.topics), np.int32, len(batch.topics))
        if impossible:
            batch.doubt |= batch.delivery_well >= batch.valid_wells

    def _number(self, topic: bytes) -> int:
        """The number of the topic's well, 0 for an impossible topic."""
        number = self._number_of.get(topic)
        if number is None:
            match = self._topic.fullmatch(topic)
            number = len(self._register) if match else 0
            if match:
                self._register.append(match.group(1).decode("ascii"))
            if match or len(topic) <= _LONGEST_CACHED_TOPIC:
                self._number_of[topic] = number
        return number

    def _read_structs(self, batch: DecodeBatch) -> None:
        """Fills ``rows`` with a struct an item and ``source`` with each row's delivery; doubts what msgspec refuses."""
        payloads: Iterable[bytes] = batch.payloads
        if batch.longest > min(self._max_payload_bytes, _SMALL_BYTES):
            payloads = [b"" if self._is_excessive(p) else p for p in batch.payloads]  # not to be read in bulk
        messages: list[Any] = []
        # One `map` over the batch and one `try` a refusal: no Python code of ours runs for a clean message.
        decoding = map(self._struct_decoder.decode, payloads)
        while len(messages) < len(batch.payloads):
            try:
                for message in decoding:
                    messages.append(message)  # not extend(): what was read before a refusal must stay
            except Exception:  # msgspec's errors, RecursionError and UnicodeDecodeError alike
                batch.doubt[len(messages)] = True
                messages.append(_BLANK)
        batch.rows = messages
        batch.source = np.arange(len(messages))
        if list in set(map(type, messages)):
            batch.one_each = False
            self._flatten(batch, messages)

    def _is_excessive(self, payload: bytes) -> bool:
        size = len(payload)
        return size > self._max_payload_bytes or (size > _SMALL_BYTES and is_crowded(payload.count(b"{"), size))

    @staticmethod
    def _flatten(batch: DecodeBatch, messages: list[Any]) -> None:
        rows: list[Any] = []
        counts: list[int] = []
        for at, message in enumerate(messages):
            if type(message) is not list:
                rows.append(message)
                counts.append(1)
            else:
                if not message:
                    batch.doubt[at] = True
                rows += message
                counts.append(len(message))
        batch.rows = rows
        batch.source = np.repeat(np.arange(len(messages)), counts)

    def _tabulate(self, batch: DecodeBatch) -> None:
        """Structs → columns. A row that fails a check is wrong here; what it really is, exact.py finds out."""
        n = len(batch.rows)
        batch.well_index = batch.delivery_well[batch.source]
        if not n:
            return
        batch.values = np.empty((len(SIGNAL_NAMES), n), np.float64)
        batch.timestamp_us = np.empty(n, np.int64)
        batch.quotes_read = np.empty(n, np.int64)
        named, other_well = np.empty(n, np.bool_), np.empty(n, np.bool_)
        for start in range(0, n, ROWS_TOGETHER):
            part = slice(start, min(start + ROWS_TOGETHER, n))
            timestamps, sent_wells, *signals = zip(*map(msgspec.structs.astuple, batch.rows[part]), strict=True)
            for row, column in enumerate(signals):
                # By identity: half of the signals are never sent.
                if column[0] is _ABSENT and column.count(_ABSENT) == len(column):
                    batch.values[row, part] = np.nan
                else:
                    batch.values[row, part] = floats(column)
            batch.timestamp_us[part] = parse_column(timestamps)
            batch.quotes_read[part] = _quotes_of(timestamps)
            named[part], other_well[part] = self._compare_wells(batch, sent_wells, part)
        present = ~np.isnan(batch.values)
        wrong = batch.timestamp_us == NO_TIME
        received_us = batch.row_received_us()
        wrong |= batch.timestamp_us > received_us + self._max_ahead_us
        if self._max_age_us:
            wrong |= batch.timestamp_us < received_us - self._max_age_us
        wrong |= ~present.any(axis=0)
        wrong |= self._limits.rows_outside(batch.values, batch.well_index, batch.wells)
        batch.wrong = wrong | other_well
        batch.quotes_read += 2 * present.sum(axis=0) + 4 * named

    @staticmethod
    def _compare_wells(batch: DecodeBatch, sent: tuple[str, ...], part: slice) -> tuple[Bools | bool, Bools | bool]:
        """Which rows of ``part`` name a well, and which name another than the topic's."""
        if sent[0] == _NO_WELL and sent.count(_NO_WELL) == len(sent):
            return False, False
        wells = batch.wells
        expected = tuple([wells[at] for at in batch.well_index[part].tolist()])
        if sent == expected:
            return True, False
        named = np.fromiter((well != _NO_WELL for well in sent), np.bool_, len(sent))
        return named, named & np.fromiter(map(str.__ne__, sent, expected), np.bool_, len(sent))

    def _account_for_strings(self, batch: DecodeBatch) -> None:
        """Deliveries with more quotes than were read hold something else: nulls, keys for ``extra``, or a doubt."""
        n = len(batch.payloads)
        sent = np.fromiter(map(bytes.count, batch.payloads, repeat(b'"')), np.int64, n)
        read = batch.quotes_read
        if not batch.one_each:
            read = np.bincount(batch.source, batch.quotes_read, n).astype(np.int64)
        unsettled = np.flatnonzero((sent != read) & ~batch.doubt)
        if not len(unsettled):
            return
        starts = np.searchsorted(batch.source, unsettled)
        ends = np.searchsorted(batch.source, unsettled, "right")
        missing = (sent - read)[unsettled]
        for at, start, end, quotes in zip(
            unsettled.tolist(), starts.tolist(), ends.tolist(), missing.tolist(), strict=True
        ):
            if not self._read_extras(batch, batch.payloads[at], start, end, quotes):
                batch.doubt[at] = True

    def _read_extras(self, batch: DecodeBatch, payload: bytes, start: int, end: int, quotes: int) -> bool:
        """Keeps the unknown keys of rows ``start`` … ``end`` as text. False where exact.py has to look: the ``quotes``
        not accounted for are not all theirs, or their text needs a closer look."""
        for row in range(start, end):
            quotes -= 2 * msgspec.structs.astuple(batch.rows[row]).count(None)  # the keys of nulls
        if not quotes:
            return True
        # Escapes may hide a NUL or half a surrogate pair, inner objects a key that stands twice, brackets depth.
        if b"\\" in payload or payload.count(b"{") != end - start or payload.count(b"[") >= self._max_depth:
            return False
        try:
            objects = self._raw_decoder.decode(payload)
            if end - start == 1 and type(objects) is dict:
                objects = [objects]
            texts: dict[int, str] = {}
            for row, tree in enumerate(objects, start):
                extra = {key: raw for key, raw in tree.items() if key not in KNOWN_KEYS}
                if not extra:
                    continue
                if self._limits.extra and not self._extra_in_range(extra):
                    return False
                text = self._encode(extra)
                if len(text) > slices.SLICE_BYTES:
                    return False
                if _LARGE_EXPONENT.search(text) or (len(text) > LONGEST_NUMBER and _LONG_NUMBER.search(text)):
                    return False
                quotes -= text.count(b'"')
                texts[row] = text.decode("utf-8")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        batch.extra.update(texts)
        return quotes == 0

    def _extra_in_range(self, extra: dict[str, msgspec.Raw]) -> bool:
        for name, (low, high) in self._limits.extra.items():
            raw = extra.get(name)
            if raw is not None:
                try:
                    if not low <= float(bytes(raw)) <= high:
                        return False
                except ValueError:
                    return False
        return True

    def _settle(self, batch: DecodeBatch) -> Decoded:
        clean = ~(batch.wrong | batch.doubt[batch.source])
        to_judge = batch.doubt.copy()
        to_judge[batch.source[~clean]] = True
        deliveries = np.flatnonzero(to_judge).tolist()
        readings = batch.readings()
        if not deliveries:
            return Decoded(readings, [])
        return self._settle_doubts(batch, deliveries, readings, np.flatnonzero(clean))

    def _settle_doubts(self, batch: DecodeBatch, deliveries: list[int], rows: Readings, clean: Places) -> Decoded:
        """Reads the doubtful items exactly and merges them with the clean rows, in the order received."""
        found: list[ExactReading] = []
        source: list[int] = []
        order: list[int] = []
        decoded = Decoded(rows.select(clean), [])
        starts = np.searchsorted(batch.source, deliveries).tolist()
        for at, start in zip(deliveries, starts, strict=True):
            for place, outcome in self._judge(batch, at, start):
                if isinstance(outcome, Reject):
                    decoded.rejects.append(outcome)
                    continue
                found.append(outcome)
                source.append(at)
                # A delivery that is doubtful as a whole has no clean rows; where it starts is order enough.
                order.append(start if batch.doubt[at] else start + place)
                for name, kind in outcome.unusable:
                    decoded.unusable[name, kind] = decoded.unusable.get((name, kind), 0) + 1
                    if kind in (Unusable.OUT_OF_RANGE, Unusable.NOT_FINITE):
                        decoded.out_of_range[name] = decoded.out_of_range.get(name, 0) + 1
        if found:
            at_delivery = np.array(source, np.intp)
            exact = Readings(
                wells=rows.wells,
                well_index=batch.delivery_well[at_delivery],
                timestamp_us=np.array([reading.timestamp_us for reading in found], np.int64),
                received_us=batch.received_us[at_delivery],
                values=values_of(found),
                extra={row: reading.extra for row, reading in enumerate(found) if reading.extra is not None},
                quality={row: reading.quality for row, reading in enumerate(found) if reading.quality is not None},
            )
            decoded.readings = merged(decoded.readings, clean, exact, np.array(order, np.intp))
        return decoded

    def _judge(self, batch: DecodeBatch, at: int, start: int) -> Iterator[tuple[int, ExactReading | Reject]]:
        """Outcomes of a delivery's items, or, if it is in order as a whole, only of those that are wrong."""
        delivery = batch.deliveries[at]
        well = batch.wells[batch.delivery_well[at]]
        only: list[int] | None = None
        if not (batch.doubt[at] or batch.one_each):
            end = int(np.searchsorted(batch.source, at, "right"))
            only = np.flatnonzero(batch.wrong[start:end]).tolist()
        if not well:
            detail = f"The topic is not {self._topic_shape} with a well id of [A-Za-z0-9._-], 1 to 64 of them."
            yield 0, _reject(delivery, Refused(RejectReason.INVALID_TOPIC, detail), delivery.payload)
            return
        if batch.piece is not None:
            first, bad = batch.piece
            yield from self._exact.judge_piece(delivery.payload, first, well, delivery.received_us, only, bad)
            return
        try:
            judged = self._exact.judge(delivery.payload, well, delivery.received_us, only)
        except Refused as refused:
            yield 0, _reject(delivery, refused, delivery.payload)
            return
        yield from judged.readings
        for place, why, payload in judged.rejects:
            yield place, _reject(delivery, why, payload, place)


def _quotes_of(timestamps: Sequence[Any]) -> IntArray:
    """Quotes (n,) that a timestamp takes, its key included. The keys of nulls are counted elsewhere."""
    if set(map(type, timestamps)) == {str}:
        return np.full(len(timestamps), 4)
    counts = (4 if type(t) is str else 0 if t is None or t is _ABSENT else 2 for t in timestamps)
    return np.fromiter(counts, np.int64, len(timestamps))


def _reject(delivery: Delivery, refused: Refused, payload: bytes, item: int = 0) -> Reject:
    return Reject(
        received_us=delivery.received_us,
        topic=delivery.topic,
        reason=refused.reason,
        detail=refused.detail,
        payload=payload,
        item=item,
        redelivered=delivery.redelivered,
        connection=delivery.connection,
        packet_id=delivery.packet_id,
    )
