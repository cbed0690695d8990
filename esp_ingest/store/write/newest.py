"""Keeps the table well_newest, which the view well_latest reads, in step with what this process stores (decision 0015).

After a batch is committed its newest readings are remembered, one a well, and written from time to time, in a
transaction of its own: no reading ever depends on it. Two daemons lock rows in the same order, that of their wells, so
they cannot end in a deadlock. Whoever else writes readings leaves a mark (a trigger does), with which the view goes by
the readings until :meth:`WellNewest.keep` has made the table right again."""

import logging
import math

import numpy as np
import numpy.typing as npt
import psycopg

from esp_ingest.interfaces import Clock
from esp_ingest.model import SIGNALS, PlacesByNumber, Readings
from esp_ingest.store.connection import Connection, is_pooled, only_row, staging
from esp_ingest.store.queries import copy_of, query
from esp_ingest.store.write.copy_format import telemetry_stream

log = logging.getLogger(__name__)

_BEAT_SECONDS = 1.0  # between two writes, at least
_PIECE_ROWS = 1_000  # a write, at most: the next batch waits for it, some 10 ms
_ROWS_PER_SECOND = 700  # on average, at most: a row costs the database about 10 µs, so 0.7 % of a core
_BUSY_SECONDS = 30.0  # so long another session may have the table to itself, before the view goes by the readings
_REFRESH_SECONDS = 600.0  # marks are looked for so often, since making all right again may take seconds
_NEVER = np.iinfo(np.int64).min


def refresh_where_stale(connection: Connection) -> None:
    """Where there is a mark, make the table right again, which may take seconds. Raises psycopg.Error."""
    if is_stale(connection):
        connection.execute(query("refresh_well_newest"))


def is_stale(connection: Connection) -> bool:
    """Whether there is a mark. Raises psycopg.Error."""
    row = connection.execute(query("well_newest_is_stale")).fetchone()
    return row is not None and bool(row[0])


class WellNewest:
    """What is to be written. For one thread. Topics come from outside, so no more than about ``max_wells`` are
    remembered."""

    def __init__(self, clock: Clock, *, max_wells: int = 200_000) -> None:
        self._clock = clock
        self._max_wells = max_wells
        self._keeps = False  # in this connection
        self._has_begun = False
        self._begin_at = 0.0
        self._refresh_at = 0.0
        self._next = 0.0
        self._last_batch = 0.0
        self._busy_since: float | None = None
        self._forget()

    def _forget(self) -> None:
        self._slot_of: dict[str, int] = {}
        self._by_number = PlacesByNumber()
        self._wells: list[str] = []  # by slot: to list the keys takes milliseconds with 100 000 of them
        self._timestamp_us = np.empty(0, np.int64)
        self._received_us = np.empty(0, np.int64)
        self._values = np.empty((len(SIGNALS), 0), np.float64)
        self._texts: tuple[dict[int, str], dict[int, str]] = ({}, {})  # extra, quality
        self._changed = np.empty(0, np.bool_)
        self._unsure: set[str] = set()  # wells whose newest reading the database has to be asked for
        self._turn = 0  # the slot that comes next

    def reconnected(self) -> None:
        """The connection is a new one."""
        self._keeps = False
        if self._begin_at == math.inf:  # a pause after a failure goes on
            self._begin_at = 0.0

    def _begin(self, connection: Connection) -> None:
        """Nothing is kept over a pooled connection, whose settings are not ours alone, or where this user lacks the
        rights: then each batch leaves the mark."""
        self._begin_at = math.inf
        if is_pooled(connection):
            return
        (lacking,) = only_row(connection.execute(query("newest_rights")))
        if not lacking:
            if not self._has_begun:
                connection.execute(query("mark_well_newest_stale"))
            connection.execute(query("keeps_well_newest"), {"keeps": "on"})
            connection.commit()
            self._keeps = self._has_begun = True
            self._refresh_at = 0.0

    def committed(self, readings: Readings, rows: npt.NDArray[np.intp] | None) -> None:
        """``readings`` are stored now: those at ``rows`` as they are; None: the database knows which."""
        if not self._keeps or not len(readings):
            return
        self._last_batch = self._clock.monotonic()
        if rows is None:
            self._unsure.update(readings.wells[at] for at in np.unique(readings.well_index).tolist())
            return
        newest = np.full(len(readings.wells), _NEVER, np.int64)
        np.maximum.at(newest, readings.well_index[rows], readings.timestamp_us[rows])
        rows = rows[readings.timestamp_us[rows] == newest[readings.well_index[rows]]]
        well = readings.well_index[rows]
        known = self._by_number.of(readings.wells)
        if known is not None:
            slots = known[well]
        else:
            slots = self._slots([readings.wells[at] for at in well.tolist()])
            self._by_number.keep(readings.wells, slots, well)
        is_newer = readings.timestamp_us[rows] > self._timestamp_us[slots]
        rows, slots = rows[is_newer], slots[is_newer]
        self._timestamp_us[slots] = readings.timestamp_us[rows]
        self._received_us[slots] = readings.received_us[rows]
        self._values[:, slots] = readings.values[:, rows]
        self._changed[slots] = True
        for kept, texts in zip(self._texts, (readings.extra, readings.quality), strict=True):
            if kept or texts:
                for row, slot in zip(rows.tolist(), slots.tolist(), strict=True):
                    kept.pop(slot, None)
                    if row in texts:
                        kept[slot] = texts[row]

    def _slots(self, wells: list[str]) -> npt.NDArray[np.intp]:
        """The place of each well; room is made for new ones."""
        slot_of = self._slot_of
        if len(slot_of) > self._max_wells:
            unsure = self._unsure | {well for well, slot in slot_of.items() if self._changed[slot]}
            self._forget()
            slot_of, self._unsure = self._slot_of, unsure
        known = len(slot_of)
        slots = np.array([slot_of.setdefault(well, len(slot_of)) for well in wells], np.intp)
        if len(slot_of) > known:
            self._wells += dict.fromkeys(wells[at] for at in np.flatnonzero(slots >= known).tolist())
        more = len(slot_of) - len(self._timestamp_us)
        if more > 0:
            more += len(slot_of) // 2
            self._timestamp_us = np.append(self._timestamp_us, np.full(more, _NEVER, np.int64))
            self._received_us = np.append(self._received_us, np.zeros(more, np.int64))
            self._values = np.append(self._values, np.full((len(SIGNALS), more), np.nan), axis=1)
            self._changed = np.append(self._changed, np.zeros(more, np.bool_))
        return slots

    def is_due(self) -> bool:
        """It is time for :meth:`keep`: once a beat while readings come slowly or not at all, else more seldom."""
        now = self._clock.monotonic()
        if not self._keeps:
            return now >= self._begin_at
        waiting = self.waiting
        is_quiet = now - self._last_batch >= _BEAT_SECONDS
        rows = min(waiting, _PIECE_ROWS)
        wait_seconds = 0.0 if is_quiet else max(rows / _ROWS_PER_SECOND - _BEAT_SECONDS, 0.0)
        return now >= self._refresh_at or (waiting > 0 and now >= self._next + wait_seconds)

    @property
    def waiting(self) -> int:
        """So many wells are to be written."""
        return int(np.count_nonzero(self._changed)) + len(self._unsure)

    def keep(self, connection: Connection, *, at_end: bool = False) -> None:
        """Write what has changed, a piece at a time, in transactions of its own, and make all right again where a mark
        says so. Does not wait while another session makes the table right, which takes seconds, in which no batch would
        be written. ``at_end``: writes all of it, and waits for a second. Raises psycopg.Error; then :meth:`failed`
        follows, after a rollback."""
        if not self._keeps:
            self._begin(connection)
        if not self._keeps:
            return
        now = self._clock.monotonic()
        slots, unsure = self._piece(len(self._slot_of) + len(self._unsure) if at_end else _PIECE_ROWS)
        connection.execute(query("be_brief"))
        connection.execute(query("need_not_be_durable"))
        if self.waiting:
            self._next = now + _BEAT_SECONDS
        refreshes = now >= self._refresh_at and is_stale(connection)
        if not at_end:
            connection.execute(query("lock_well_newest_to_refresh" if refreshes else "lock_well_newest"))
        if self.waiting:
            connection.execute(staging(connection, "create_staging"))
            stream = telemetry_stream(self._remembered(slots))
            with connection.cursor() as cursor, cursor.copy(copy_of("copy_staging", stream.columns)) as copy:
                for piece in stream.pieces:
                    copy.write(piece)
            if unsure:
                connection.execute(query("stage_newest_of_wells"), (unsure,))
            connection.execute(query("keep_well_newest"))
        if refreshes:
            connection.execute(query("refresh_well_newest"))
        connection.commit()
        if now >= self._refresh_at:
            self._refresh_at = now + _REFRESH_SECONDS
        self._busy_since = None
        self._changed[slots] = False
        self._unsure.difference_update(unsure)
        self._turn = int(slots[-1]) + 1 if len(slots) else 0

    def _piece(self, most: int) -> tuple[npt.NDArray[np.intp], list[str]]:
        """``most`` of what is to be written: slots, each in its turn, and wells to ask the database for."""
        unsure = sorted(self._unsure)[:most]
        slots = np.flatnonzero(self._changed)
        slots = np.roll(slots, -int(np.searchsorted(slots, self._turn)))
        return slots[: most - len(unsure)], unsure

    def _remembered(self, slots: npt.NDArray[np.intp]) -> Readings:
        """The wells at ``slots``, one reading each."""
        extra, quality = (
            {at: kept[slot] for at, slot in enumerate(slots.tolist()) if slot in kept} for kept in self._texts
        )
        return Readings(
            wells=[self._wells[slot] for slot in slots.tolist()],
            well_index=np.arange(len(slots), dtype=np.int32),
            timestamp_us=self._timestamp_us[slots],
            received_us=self._received_us[slots],
            values=np.ascontiguousarray(self._values[:, slots]),
            extra=extra,
            quality=quality,
        )

    def failed(self, connection: Connection | None, error: psycopg.Error) -> None:
        """:meth:`keep` raised ``error``: for some minutes each batch leaves the mark. If another session only has the
        table to itself at this moment, it is tried again soon. ``connection``: after a rollback, None if it was lost.
        """
        now = self._clock.monotonic()
        if isinstance(error, psycopg.errors.LockNotAvailable) and connection is not None:
            self._busy_since = now if self._busy_since is None else self._busy_since
            if now - self._busy_since < _BUSY_SECONDS:
                self._refresh_at = max(self._refresh_at, now + _BEAT_SECONDS)
                return
        self._busy_since = None
        log.warning("well_newest is not kept: well_latest goes by the readings", extra={"error": str(error)})
        self._keeps = False
        self._begin_at = now + _REFRESH_SECONDS
        if connection is not None:
            try:
                connection.execute(query("keeps_well_newest"), {"keeps": "off"})
                connection.commit()
            except psycopg.Error:
                connection.close()  # with it goes the setting
