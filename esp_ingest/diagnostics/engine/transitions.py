"""Where something changes: one step at one well through one batch, in Python, a stretch of equal rows at a time."""

from dataclasses import replace

import numpy as np

from esp_ingest.diagnostics.engine.messages import held_by_of, number_of, told_of
from esp_ingest.diagnostics.engine.open_occurrences import OpenOccurrences
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
    BatchContext,
    RuleStep,
)
from esp_ingest.diagnostics.engine.well_settings import WellSettings
from esp_ingest.diagnostics.engine.well_state import Array
from esp_ingest.diagnostics.language.evaluation import BoolArray
from esp_ingest.model import FloatArray


class Transitions:
    """One step at one well through one batch: the timer's transitions, a stretch of equal rows at a time."""

    def __init__(
        self,
        occurrences: OpenOccurrences,
        settings: WellSettings,
        batch: BatchContext,
        step: RuleStep,
        well: int,
        code: Array,
        forced: BoolArray | None,
        held: Array | None,
        values: FloatArray | None,
        thresholds: FloatArray | None,
    ) -> None:
        self._occurrences, self._batch, self._step = occurrences, batch, step
        rows = batch.rows
        self._from, self._to = int(rows.starts[well]), int(rows.ends[well])
        self._slot = int(rows.slots[well])
        self._time_us = rows.t
        self._code, self._forced, self._held = code, forced, held
        self._values, self._thresholds = values, thresholds
        state = occurrences.state
        self._phase = int(state["phase"][step.index, self._slot])
        self._since_us = int(state["since"][step.index, self._slot])
        self._on_delay_us = int(settings.of("on_us", step, self._slot))
        self._off_delay_us = int(settings.of("off_us", step, self._slot))
        self._active_from = self._from

    def go(self) -> None:
        """Run the timer over the rows of this well and write its state."""
        step, slot = self._step, self._slot
        for begin, end in self._stretches():
            self._stretch(begin, end)
        if self._phase in (ACTIVE, RETURNING):
            self._peak(self._active_from, self._to)
        journal, state = self._occurrences.journal, self._occurrences.state
        journal.put(state["phase"], (step.index, slot), np.int8(self._phase))
        journal.put(state["since"], (step.index, slot), np.int64(self._since_us))

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
        elif code == ON:
            self._turned_on(begin, end, held)
        elif code == OFF:
            self._turned_off(begin, end)
        elif code == HOLD and self._phase == PENDING:
            self._phase = NORMAL
        if self._step.rule.remind_us and self._phase == ACTIVE and not self._step.is_escalation:
            self._remind(begin, end)

    def _remind(self, begin: int, end: int) -> None:
        """Told again each ``remind_us`` while it stands; ``since`` is when it was told last."""
        while True:
            at = begin + int(np.searchsorted(self._time_us[begin:end], self._since_us + self._step.rule.remind_us))
            if at >= end:
                return
            self._since_us = int(self._time_us[at])
            self._catch_up(at)
            self._occurrences.remind(self._step, self._slot, self._since_us)

    def _turned_on(self, begin: int, end: int, held: int) -> None:
        if self._phase == NORMAL:
            self._phase, self._since_us = PENDING, int(self._time_us[begin])
        if self._phase == PENDING:
            at = begin + int(np.searchsorted(self._time_us[begin:end], self._since_us + self._on_delay_us))
            if at < end:
                self._raise(at, False, held)
        elif self._phase in (RETURNING, LATCHED):
            self._catch_up(begin)
            if self._phase == LATCHED:
                self._active_from = begin
            self._phase = ACTIVE
            self._again(begin)

    def _turned_off(self, begin: int, end: int) -> None:
        if self._phase == PENDING:
            self._phase = NORMAL
        if self._phase == ACTIVE:
            self._phase, self._since_us = RETURNING, int(self._time_us[begin])
        if self._phase == RETURNING:
            at = begin + int(np.searchsorted(self._time_us[begin:end], self._since_us + self._off_delay_us))
            if at < end:
                self._clear(at)

    def _apart(self, begin: int) -> None:
        """Stopped, starting or switched off: process alarms are suppressed by design, open ones end here."""
        if self._phase == PENDING:
            self._phase = NORMAL
        elif self._phase in (ACTIVE, RETURNING):
            self._clear(begin)

    def _force(self, begin: int, held: int) -> None:
        """The more severe step is active: raised at once if it is not, else escalated."""
        if self._phase in (NORMAL, PENDING):
            if self._phase == NORMAL:
                self._since_us = int(self._time_us[begin])
            self._raise(begin, True, held)
            return
        self._catch_up(begin)
        if self._phase == RETURNING:
            self._phase = ACTIVE
            self._again(begin)
        self._peak(begin, begin + 1)
        self._occurrences.escalate(self._batch, self._step, begin, int(self._time_us[begin]))

    # -- transitions

    def _raise(self, at: int, forced: bool, held: int) -> None:
        step, occurrences = self._step, self._occurrences
        self._phase, self._active_from = ACTIVE, at
        self._expose(at, True)
        if step.is_escalation:
            return
        occurrences.journal.put(occurrences.state["peak"], (step.index, self._slot), np.nan)
        self._peak(at, at + 1)
        told: tuple[float | None, float | None] = (None, None)
        if forced and step.escalation is not None:
            told = told_of(step.escalation, self._batch, at)
        elif self._values is not None and self._thresholds is not None:
            told = number_of(self._values[at]), number_of(self._thresholds[at])
        occurrences.raise_(self._batch, step, at, self._since_us, forced, held, told)
        self._since_us = int(self._time_us[at])

    def _again(self, at: int) -> None:
        self._since_us = int(self._time_us[at])
        if not self._step.is_escalation:
            self._occurrences.again(self._batch, self._step, at)

    def _hold(self, begin: int, held: int, condition_holds: bool) -> None:
        """Held back, or let go: what is over already when its cause goes is never let go."""
        if self._step.is_escalation or not (held or condition_holds):
            return
        occurrences, key = self._occurrences, (self._step.index, self._slot)
        occurrence = occurrences.open.get(key)
        by = held_by_of(held)
        if occurrence is not None and occurrence.held_by != by:
            self._catch_up(begin)
            occurrences.store(*key, replace(occurrence, held_by=by), new=not by, at_us=int(self._time_us[begin]))

    def _clear(self, at: int) -> None:
        self._peak(self._active_from, at)
        step, occurrences = self._step, self._occurrences
        self._phase = NORMAL
        if step.is_escalation:
            self._expose(at, False)
            return
        occurrence = occurrences.open[step.index, self._slot]
        time_us = int(self._time_us[at])
        if step.rule.latching and not occurrence.acknowledged and not occurrence.held_by:
            self._phase, self._since_us = LATCHED, time_us
            occurrences.store(step.index, self._slot, replace(occurrence, latched_us=time_us), at_us=time_us)
        else:
            self._expose(at, False)
            occurrences.store(step.index, self._slot, occurrence.cleared(time_us))

    def _peak(self, begin: int, end: int) -> None:
        headline = self._step.condition.headline
        if headline is None or self._values is None or begin >= end:
            return
        some = self._values[begin:end][self._code[begin:end] < SKIP]
        some = some[~np.isnan(some)]
        if not some.size:
            return
        peak = self._occurrences.state["peak"]
        old = peak[self._step.index, self._slot]
        extreme = some.min() if headline.below else some.max()
        new = (np.fmin if headline.below else np.fmax)(old, extreme)
        self._occurrences.journal.put(peak, (self._step.index, self._slot), new)

    def _catch_up(self, begin: int) -> None:
        """The peak up to the row before ``begin``, for a row that is written now."""
        if self._phase in (ACTIVE, RETURNING):
            self._peak(self._active_from, begin)
            self._active_from = begin

    def _expose(self, at: int, active: bool) -> None:
        mask = self._batch.active.get(self._step.index)
        if mask is not None:
            mask[at : self._to] = active
