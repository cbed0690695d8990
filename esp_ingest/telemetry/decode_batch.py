"""The columns of a batch while telemetry/decode.py decodes it."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from esp_ingest.model import SIGNAL_NAMES, Delivery, FloatArray, IntArray, Readings, Wells
from esp_ingest.telemetry.exact import BadItems, ExactReading

Bools = npt.NDArray[np.bool_]

Places = npt.NDArray[np.intp]
ROWS_TOGETHER = 8_192  # rows that one call turns into columns, in 2 ms


class DecodeBatch:
    """What is known of a batch while it is decoded: m deliveries, n rows (items)."""

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        self.deliveries = deliveries
        topics, payloads, _, _, _, received, _ = zip(*deliveries, strict=True)
        self.topics: tuple[bytes, ...] = topics
        self.payloads: tuple[bytes, ...] = payloads
        self.longest = max(map(len, payloads))  # bytes
        self.piece: tuple[int, BadItems] | None = None  # of a large array: its first item, and the message's bad ones
        self.received_us: IntArray = np.array(received, np.int64)  # (m,)
        self.doubt: Bools = np.zeros(len(deliveries), np.bool_)  # (m,) deliveries to be read exactly, as a whole
        self.wells: list[str] = []  # "" stands for an impossible topic
        self.numbers: Places = np.empty(0, np.intp)  # of the wells, places in ``register``: see model.Wells
        self.register: list[str] = []
        self.delivery_well: npt.NDArray[np.int32] = np.empty(0, np.int32)  # (m,)
        self.valid_wells = 0  # impossible topics come last in wells
        self.rows: list[Any] = []  # (n,) structs
        self.one_each = True  # no arrays: row k is delivery k
        self.source: Places = np.empty(0, np.intp)  # (n,) the delivery of each row, ascending
        self.well_index: npt.NDArray[np.int32] = np.empty(0, np.int32)  # (n,)
        self.timestamp_us: IntArray = np.empty(0, np.int64)  # (n,)
        self.values = np.empty((len(SIGNAL_NAMES), 0), np.float64)  # (signals, n)
        self.wrong: Bools = np.empty(0, np.bool_)  # (n,) rows to be read exactly
        self.quotes_read: IntArray = np.empty(0, np.int64)  # (n,)
        self.extra: dict[int, str] = {}  # by row

    def doubt_everything(self) -> None:
        """As if nothing had been read in bulk: no rows, and every delivery in doubt."""
        self.doubt[:] = True
        self.rows, self.one_each, self.extra = [], False, {}
        self.source, self.wrong = np.empty(0, np.intp), np.empty(0, np.bool_)
        self.well_index, self.timestamp_us = np.empty(0, np.int32), np.empty(0, np.int64)
        self.values = np.empty((len(SIGNAL_NAMES), 0), np.float64)

    def row_received_us(self) -> IntArray:
        """When each row's delivery was received (n,)."""
        return self.received_us if self.one_each else self.received_us[self.source]

    def readings(self) -> Readings:
        """The rows as they were read, each in its place."""
        return Readings(
            wells=Wells(self.wells[: self.valid_wells], self.numbers[: self.valid_wells], self.register),
            well_index=self.well_index,
            timestamp_us=self.timestamp_us,
            received_us=self.row_received_us(),
            values=self.values,
            extra=self.extra,
        )


def values_of(found: list[ExactReading]) -> FloatArray:
    """(signals, n), in blocks: numpy takes 1 µs a reading, and holds the interpreter for all of a block."""
    blocks = [
        np.array([reading.values for reading in found[at : at + ROWS_TOGETHER // 4]], np.float64).T
        for at in range(0, len(found), ROWS_TOGETHER // 4)
    ]
    return np.concatenate(blocks, axis=1)


def floats(column: tuple[float | None, ...]) -> FloatArray:
    """(n,); None becomes NaN. By way of struct, which takes a third of numpy's time."""
    try:
        return np.frombuffer(struct.pack(f"{len(column)}d", *column), np.float64)
    except struct.error:
        return np.array(column, np.float64)
