"""One step over a batch: condition → code of each row → what changes at which well.

Columns do the work; Python runs only at wells where something changes (transitions.py).
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from esp_ingest.diagnostics.engine.columns import Rows
from esp_ingest.diagnostics.engine.open_occurrences import OpenOccurrences
from esp_ingest.diagnostics.engine.rule_step import (
    ACTIVE,
    APART,
    CHANGE,
    DUE_OFF,
    DUE_ON,
    HELD_SHELVED,
    NORMAL,
    RETURNING,
    SKIP,
    WHAT,
    BatchContext,
    RuleStep,
)
from esp_ingest.diagnostics.engine.transitions import Transitions
from esp_ingest.diagnostics.engine.well_settings import WellSettings
from esp_ingest.diagnostics.engine.well_state import NEVER, Array, Journal, WellArrays
from esp_ingest.diagnostics.language.evaluation import BoolArray

if TYPE_CHECKING:
    from esp_ingest.service.metrics import Metrics

log = logging.getLogger(__name__)


class StepRunner:
    """Runs the steps of a rule set, one after the other, over the context of a batch."""

    def __init__(
        self,
        steps: Sequence[RuleStep],
        state: WellArrays,
        settings: WellSettings,
        occurrences: OpenOccurrences,
        journal: Journal,
        metrics: "Metrics | None",
    ) -> None:
        self._steps = steps
        self._state = state
        self._settings = settings
        self._occurrences = occurrences
        self._journal = journal
        self._metrics = metrics

    def run(self, batch: BatchContext, step: RuleStep) -> None:
        """Evaluate the condition over the batch and apply it.

        A condition that fails is switched off and counted; it never holds back a batch."""
        if step.failed:
            return
        if step.by_bucket and not batch.running.opened.size and not batch.busy[step.index]:
            return
        try:
            self._settings.set_parameters(batch, step.rule)
            yes = step.condition.truth.yes(batch.columns)
            if not np.count_nonzero(yes) and self._is_quiet(batch, step):
                return
            no = step.condition.truth.no(batch.columns)
        except Exception as error:
            self._fail(step, error)
            return
        self._apply(batch, step, _by_row(yes, len(batch.rows)), _by_row(no, len(batch.rows)))

    @staticmethod
    def _is_quiet(batch: BatchContext, step: RuleStep) -> bool:
        """Nothing of the step stands at any well of the batch, nor of the more severe one."""
        more_severe = step.escalation
        if more_severe is not None and (batch.busy[more_severe.index] or batch.changed_wells.get(more_severe.index)):
            return False
        return not batch.busy[step.index]

    def _fail(self, step: RuleStep, error: Exception) -> None:
        step.failed = f"{type(error).__name__}: {error}"
        log.exception("rule %s failed and is switched off until the rules are read again", step.rule.name)
        if self._metrics is not None:
            self._metrics.diagnostics_rule_failures.labels(diagnosis=step.rule.name).inc()
            failed = {other.rule.name for other in self._steps if other.failed}
            self._metrics.diagnostics_rules_disabled.set(len(failed))

    def _apply(self, batch: BatchContext, step: RuleStep, yes: BoolArray, no: BoolArray) -> None:
        rows = batch.rows
        busy = batch.busy[step.index]
        phases = self._state["phase"][step.index][rows.slots]
        code = self._code(batch, step, yes, no)
        phase = phases[rows.group]
        what = WHAT[phase * 5 + code]
        changes = what == CHANGE
        if busy:
            self._due(step, rows, phase, what, changes)
        wells = set(rows.group[changes].tolist()) if changes.any() else set()
        for other in (*step.suppressors, *([step.escalation] if step.escalation else [])):
            wells |= {
                well for well in batch.changed_wells.get(other.index, ()) if phases[well] or other is step.escalation
            }
        if busy and not step.is_escalation:
            wells |= self._unshelved(step, rows, phases)
        batch.changed_wells[step.index] = wells
        if step.is_read or step.is_escalation:
            batch.active[step.index] = phase >= ACTIVE  # what is latched holds back its consequences too
        if wells:
            self._make_transitions(batch, step, code, sorted(wells))
        if busy and not step.is_escalation:
            self._peaks(batch, step, phase, code, wells)
        if step.active_row is not None:
            self._note_active(batch, step, step.active_row)

    def _code(self, batch: BatchContext, step: RuleStep, yes: BoolArray, no: BoolArray) -> Array:
        """Of each row: off, on, neither, skip (a gauge dropout, or between buckets) or apart (stopped, starting,
        disabled)."""
        code = 2 - yes.view(np.int8) - 2 * no.view(np.int8)
        rule = step.rule
        if batch.dropped and rule.skip_dropouts:
            code[batch.measured.dropped] = SKIP
        if step.by_bucket:
            code[batch.not_opened] = SKIP
        if rule.applies == "settled":
            code[batch.not_settled] = APART
        elif rule.applies == "running":
            code[batch.not_running] = APART
        if self._settings.any_disabled:
            code[~self._settings.of("enabled", step, batch.rows.slot)] = APART
        return code

    def _due(self, step: RuleStep, rows: Rows, phase: Array, what: Array, changes: BoolArray) -> None:
        """Add to ``changes`` the rows at which a running delay is over, or a reminder is due."""
        if step.rule.remind_us and not step.is_escalation:
            active = np.flatnonzero(phase == ACTIVE)
            told = self._state["since"][step.index][rows.slot[active]]
            changes[active[rows.t[active] - told >= step.rule.remind_us]] = True
        for kind, name in ((DUE_ON, "on_us"), (DUE_OFF, "off_us")):
            waiting = np.flatnonzero(what == kind)
            if waiting.size:
                slot = rows.slot[waiting]
                elapsed = rows.t[waiting] - self._state["since"][step.index][slot]
                changes[waiting[elapsed >= self._settings.of(name, step, slot)]] = True

    def _unshelved(self, step: RuleStep, rows: Rows, phases: Array) -> set[int]:
        """Wells whose open occurrence may stop being shelved."""
        shelved = self._settings.shelved_us[step.index]
        if not shelved:
            return set()
        return {well for well, slot in enumerate(rows.slots.tolist()) if slot in shelved and phases[well] != NORMAL}

    def _peaks(self, batch: BatchContext, step: RuleStep, phase: Array, code: Array, changed: set[int]) -> None:
        """Peaks of open occurrences whose wells have no transition."""
        headline = step.condition.headline
        if headline is None:
            return
        some = ((phase == ACTIVE) | (phase == RETURNING)) & (code < SKIP)
        if changed:
            is_changed = np.zeros(batch.rows.slots.shape[0], np.bool_)
            is_changed[list(changed)] = True
            some &= ~is_changed[batch.rows.group]
        at = np.flatnonzero(some)
        if not at.size:
            return
        values = np.broadcast_to(headline.value(batch.columns), len(batch.rows))[at]
        slots = batch.rows.slot[at]
        peak = self._state["peak"][step.index]
        self._journal.keep(peak, slots)
        (np.fmin if headline.below else np.fmax).at(peak, slots, values)

    def _note_active(self, batch: BatchContext, step: RuleStep, row: int) -> None:
        active = batch.active[step.index]
        if active.any():
            rows, times = batch.rows, self._state["active_us"]
            before = times[row][rows.slots]
            newest = rows.carry(active, rows.t, before)
            batch.columns.recent[step.index] = newest
            self._journal.put(times, (row, rows.slots), newest[rows.last])

    # -- where something changes: Python, a stretch of equal rows at a time

    def _make_transitions(self, batch: BatchContext, step: RuleStep, code: Array, wells: Sequence[int]) -> None:
        rows = batch.rows
        forced = batch.active.get(step.escalation.index) if step.escalation else None
        held = self._held(batch, step)
        headline = step.condition.headline
        values = thresholds = None
        if headline is not None and not step.is_escalation:
            values = np.broadcast_to(headline.value(batch.columns), len(rows))
            thresholds = np.broadcast_to(headline.threshold(batch.columns), len(rows))
        for well in wells:
            Transitions(
                self._occurrences, self._settings, batch, step, well, code, forced, held, values, thresholds
            ).go()

    def _held(self, batch: BatchContext, step: RuleStep) -> Array | None:
        """Bits by row: a suppressor is active, or the step is shelved."""
        held: Array | None = None
        for other in step.suppressors:
            active = batch.active.get(other.index)
            if active is not None and active.any():
                held = active.astype(np.int8) if held is None else held | active.astype(np.int8)
        until_us = self._settings.shelved_us[step.index]
        if until_us:
            until = np.array([until_us.get(slot, NEVER) for slot in batch.rows.slots.tolist()])
            shelved = (batch.rows.t < until[batch.rows.group]).astype(np.int8) * np.int8(HELD_SHELVED)
            held = shelved if held is None else held | shelved
        return held


def _by_row(mask: BoolArray, count: int) -> BoolArray:
    """``mask`` as (count,): a condition that reads no column of rows gives a scalar."""
    return mask if mask.shape else np.full(count, mask)
