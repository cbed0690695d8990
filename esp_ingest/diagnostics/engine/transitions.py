"""Where something changes: one lane at one well through one batch, in Python, a stretch of equal rows at a time."""

from dataclasses import replace

import numpy as np

from esp_ingest.diagnostics.engine.messages import held_by_of, number_of, told_of
from esp_ingest.diagnostics.engine.open_occurrences import Book
from esp_ingest.diagnostics.engine.rule_step import (
    ACTIVE,
    APART,
    HOLD,
    LATCHED,
    NORMAL,
    OFF,
    ON,
    PENDING,
    RETURNING,
    SKIP,
    Lane,
    Pass,
)
from esp_ingest.diagnostics.engine.well_state import Array, WellArrays
from esp_ingest.diagnostics.language.conditions import BoolArray
from esp_ingest.model import FloatArray


class Walk:
    """One lane at one well through one batch: the timer's transitions, a stretch of equal rows at a time."""

    def __init__(
        self,
        book: Book,
        config: WellArrays,
        batch: Pass,
        lane: Lane,
        well: int,
        code: Array,
        forced: BoolArray | None,
        held: Array | None,
        values: FloatArray | None,
        thresholds: FloatArray | None,
    ) -> None:
        self._book, self._batch, self._lane = book, batch, lane
        rows = batch.rows
        self._from, self._to = int(rows.starts[well]), int(rows.ends[well])
        self._slot = int(rows.slots[well])
        self._t = rows.t
        self._code, self._forced, self._held = code, forced, held
        self._values, self._thresholds = values, thresholds
        state = book.state
        self._phase = int(state["phase"][lane.index, self._slot])
        self._since = int(state["since"][lane.index, self._slot])
        self._on = int(config["on_us"][lane.index, self._slot])
        self._off = int(config["off_us"][lane.index, self._slot])
        self._active_from = self._from

    def go(self) -> None:
        lane, slot = self._lane, self._slot
        for begin, end in self._stretches():
            self._stretch(begin, end)
        if self._phase in (ACTIVE, RETURNING):
            self._peak(self._active_from, self._to)
        journal, state = self._book.journal, self._book.state
        journal.put(state["phase"], (lane.index, slot), np.int8(self._phase))
        journal.put(state["since"], (lane.index, slot), np.int64(self._since))

    def _stretches(self) -> list[tuple[int, int]]:
        begin, end = self._from, self._to
        key = self._code[begin:end].astype(np.int16)
        if self._forced is not None:
            key = key + 8 * self._forced[begin:end]
        if self._held is not None:
            key = key + 16 * self._held[begin:end]
        breaks = (np.flatnonzero(key[1:] != key[:-1]) + 1 + begin).tolist()
        return list(zip([begin, *breaks], [*breaks, end], strict=True))

    def _stretch(self, begin: int, end: int) -> None:
        code = int(self._code[begin])
        forced = self._forced is not None and bool(self._forced[begin])
        held = int(self._held[begin]) if self._held is not None else 0
        if self._phase in (ACTIVE, RETURNING, LATCHED):
            self._hold(begin, held, condition_holds=code == ON or forced)
        if code == APART:
            self._apart(begin)
            return
        if forced:
            self._force(begin, held)
            return
        if code == ON:
            self._turned_on(begin, end, held)
        elif code == OFF:
            self._turned_off(begin, end)
        elif code == HOLD and self._phase == PENDING:
            self._phase = NORMAL

    def _turned_on(self, begin: int, end: int, held: int) -> None:
        if self._phase == NORMAL:
            self._phase, self._since = PENDING, int(self._t[begin])
        if self._phase == PENDING:
            at = begin + int(np.searchsorted(self._t[begin:end], self._since + self._on))
            if at < end:
                self._raise(at, False, held)
        elif self._phase in (RETURNING, LATCHED):
            latched = self._phase == LATCHED
            self._phase = ACTIVE
            self._active_from = begin if latched else self._active_from
            self._again(latched)

    def _turned_off(self, begin: int, end: int) -> None:
        if self._phase == PENDING:
            self._phase = NORMAL
        if self._phase == ACTIVE:
            self._phase, self._since = RETURNING, int(self._t[begin])
        if self._phase == RETURNING:
            at = begin + int(np.searchsorted(self._t[begin:end], self._since + self._off))
            if at < end:
                self._clear(at)

    def _apart(self, begin: int) -> None:
        """Stopped, starting or switched off: process alarms are suppressed by design, open ones end here."""
        if self._phase == PENDING:
            self._phase = NORMAL
        elif self._phase in (ACTIVE, RETURNING):
            self._clear(begin)

    def _force(self, begin: int, held: int) -> None:
        """The graver step is active: raised at once if it is not, else escalated."""
        if self._phase in (NORMAL, PENDING):
            if self._phase == NORMAL:
                self._since = int(self._t[begin])
            self._raise(begin, True, held)
            return
        if self._phase == RETURNING:
            self._phase = ACTIVE
            self._again(False)
        self._catch_up(begin)
        self._book.escalate(self._batch, self._lane, begin, int(self._t[begin]))

    # -- transitions

    def _raise(self, at: int, forced: bool, held: int) -> None:
        lane, book = self._lane, self._book
        self._phase, self._active_from = ACTIVE, at
        self._expose(at, True)
        if lane.parent:
            return
        book.journal.put(book.state["peak"], (lane.index, self._slot), np.nan)
        self._peak(at, at + 1)
        told: tuple[float | None, float | None] = (None, None)
        if forced and lane.escalation is not None:
            told = told_of(lane.escalation, self._batch, at)
        elif self._values is not None and self._thresholds is not None:
            told = number_of(self._values[at]), number_of(self._thresholds[at])
        book.raise_(self._batch, lane, at, self._since, forced, held, told)

    def _again(self, latched: bool) -> None:
        if not self._lane.parent:
            book, key = self._book, (self._lane.index, self._slot)
            occurrence = book.open.get(key)
            if occurrence is not None:
                book.journal.put_key(book.open, key, occurrence.again())
                if latched:
                    book.store(*key, occurrence.again())

    def _hold(self, begin: int, held: int, condition_holds: bool) -> None:
        """Held back, or let go: what is over already when its cause goes is never let go."""
        if self._lane.parent or not (held or condition_holds):
            return
        book, key = self._book, (self._lane.index, self._slot)
        occurrence = book.open.get(key)
        by = held_by_of(held)
        if occurrence is not None and occurrence.held_by != by:
            self._catch_up(begin)
            book.store(*key, replace(occurrence, held_by=by), new=not by)

    def _clear(self, at: int) -> None:
        self._peak(self._active_from, at)
        lane, book = self._lane, self._book
        self._phase = NORMAL
        if lane.parent:
            self._expose(at, False)
            return
        occurrence = book.open[lane.index, self._slot]
        t = int(self._t[at])
        if lane.rule.latching and not occurrence.acknowledged and not occurrence.held_by:
            self._phase, self._since = LATCHED, t
            book.store(lane.index, self._slot, replace(occurrence, latched_us=t))
        else:
            self._expose(at, False)
            book.store(lane.index, self._slot, occurrence.cleared(t))

    def _peak(self, begin: int, end: int) -> None:
        headline = self._lane.condition.headline
        if headline is None or self._values is None or begin >= end:
            return
        some = self._values[begin:end][self._code[begin:end] < SKIP]
        some = some[~np.isnan(some)]
        if not some.size:
            return
        peak = self._book.state["peak"]
        old = peak[self._lane.index, self._slot]
        extreme = some.min() if headline.below else some.max()
        new = (np.fmin if headline.below else np.fmax)(old, extreme)
        self._book.journal.put(peak, (self._lane.index, self._slot), new)

    def _catch_up(self, begin: int) -> None:
        """The peak up to the row before ``begin``, for a row that is written now."""
        if self._phase in (ACTIVE, RETURNING):
            self._peak(self._active_from, begin)
            self._active_from = begin

    def _expose(self, at: int, active: bool) -> None:
        mask = self._batch.active.get(self._lane.index)
        if mask is not None:
            mask[at : self._to] = active
