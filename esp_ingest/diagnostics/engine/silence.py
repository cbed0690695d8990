"""Silence: wells that send nothing, told by the next reading or by the clock."""

import numpy as np

from esp_ingest.diagnostics.alarm import Occurrence
from esp_ingest.diagnostics.engine.baseline import Baselines
from esp_ingest.diagnostics.engine.columns import Rows
from esp_ingest.diagnostics.engine.messages import as_json, compose
from esp_ingest.diagnostics.engine.open_occurrences import OpenOccurrences
from esp_ingest.diagnostics.engine.rule_step import BatchContext
from esp_ingest.diagnostics.engine.well_state import NEVER, WellArrays
from esp_ingest.diagnostics.engine.windows import INTERVAL
from esp_ingest.diagnostics.language.rules import Rule
from esp_ingest.model import IntArray
from esp_ingest.service.text import moment, span


class Silence:
    """The rules on silence. Each is stored under ``first_step`` + its place."""

    def __init__(
        self, rules: list[Rule], first_step: int, occurrences: OpenOccurrences, state: WellArrays, baselines: Baselines
    ) -> None:
        self._stale, self._first_step = rules, first_step
        self._occurrences, self._state, self._baselines = occurrences, state, baselines

    def passed(self, batch: BatchContext, last_us: IntArray) -> None:
        """``last_us`` (wells,): the reading before the batch."""
        for rule in self._stale:
            self._silences(batch, rule, last_us)

    def at_clock(self, now_us: int, listening_since_us: int) -> None:
        """See Engine.tick."""
        state, count = self._state, self._state.count
        silent_us = now_us - np.maximum(state["received_us"][:count], listening_since_us)
        known = state["last_us"][:count] != NEVER
        for at, rule in enumerate(self._stale):
            if rule.stale is None:
                continue
            delay_us = np.maximum(state["features"][self._baselines.row[INTERVAL], :count] * rule.stale.after, 0)
            delay_us = np.where(np.isnan(delay_us), np.inf, np.maximum(delay_us, rule.stale.minimum_us))
            for slot in np.flatnonzero(known & (silent_us > delay_us)).tolist():
                self._fall_silent(rule, self._first_step + at, slot, int(silent_us[slot]), float(delay_us[slot]))

    def _silences(self, batch: BatchContext, rule: Rule, last_us: IntArray) -> None:
        """Readings after a gap: the silence before them is over, and was raised by the clock or is raised now."""
        rows, stale = batch.rows, rule.stale
        if stale is None:
            return
        step = self._first_step + self._stale.index(rule)
        delay_us = np.maximum(batch.running.interval_us * stale.after, stale.minimum_us)
        previous_us = rows.shifted(rows.t, last_us)
        silent = np.flatnonzero((rows.t - previous_us > delay_us) & (previous_us != NEVER))
        for row in silent.tolist():
            gap_us = int(rows.t[row] - previous_us[row])
            raised_us = int(previous_us[row] + delay_us[row])
            occurrence = self._silence(rule, int(rows.slot[row]), raised_us, gap_us, float(delay_us[row]))
            new = (step, int(rows.slot[row])) not in self._occurrences.silent
            self._occurrences.store_silence(
                step, int(rows.slot[row]), occurrence.cleared(int(rows.t[row])), gap_us, new
            )
        self._clear_silences(rows, step, set(silent.tolist()))

    def _clear_silences(self, rows: Rows, step: int, done: set[int]) -> None:
        """An open one whose gap turns out shorter in event time (late delivery) is cleared by data all the same."""
        if not self._occurrences.silent:
            return
        for slot, start in zip(rows.slots.tolist(), rows.starts.tolist(), strict=True):
            occurrence = self._occurrences.silent.get((step, slot))
            if occurrence is not None and start not in done:
                at_us = max(int(rows.t[start]), occurrence.raised_us)
                gap_us = at_us - occurrence.raised_us
                self._occurrences.store_silence(step, slot, occurrence.cleared(at_us), gap_us, False)

    def _silence(self, rule: Rule, slot: int, raised_us: int, gap_us: int, delay_us: float) -> Occurrence:
        stale = rule.stale
        if stale is None:
            raise AssertionError("a rule on silence has a stale table")
        grave = gap_us > delay_us * stale.escalate_after / stale.after
        well = self._occurrences.well(slot)
        seen = rule.seen.format(value="", threshold=span(delay_us / 1e6), signals="", well=well, duration="", trend="")
        return Occurrence(
            well_id=well,
            diagnosis=rule.name,
            raised_us=raised_us,
            severity=stale.escalate_severity if grave else rule.severity,
            value=gap_us / 1e6,
            threshold=round(delay_us / 1e6, 3),
            message=compose(well, seen, raised_us - round(delay_us), rule),
            actions_json=as_json(list(rule.actions)),
            snapshot_json=as_json({"last_reading": moment(raised_us - round(delay_us))}),
            confidence=rule.confidence,
        )

    def _fall_silent(self, rule: Rule, step: int, slot: int, silent_us: int, delay_us: float) -> None:
        raised_us = int(self._state["last_us"][slot] + delay_us)
        occurrence = self._silence(rule, slot, raised_us, silent_us, delay_us)
        before = self._occurrences.silent.get((step, slot))
        if before is None or before.severity is not occurrence.severity:
            self._occurrences.store_silence(step, slot, occurrence, silent_us, before is None)
