"""Which occurrences are open, and what a batch changes in them."""

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from esp_ingest.diagnostics import alarm as alarms
from esp_ingest.diagnostics.alarm import Occurrence
from esp_ingest.diagnostics.engine.baseline import HOURS, Baselines
from esp_ingest.diagnostics.engine.held_baseline import HeldBaseline
from esp_ingest.diagnostics.engine.messages import (
    as_json,
    failed_gauges,
    held_by_of,
    number_of,
    rounded,
    sentence,
    told_of,
)
from esp_ingest.diagnostics.engine.rule_step import BatchContext, RuleStep
from esp_ingest.diagnostics.engine.signals import GAUGE
from esp_ingest.diagnostics.engine.trend_words import trends_of
from esp_ingest.diagnostics.engine.well_state import NEVER, Journal, WellArrays
from esp_ingest.diagnostics.language.rules import Rule, RuleSet
from esp_ingest.model import DiagnosticRow
from esp_ingest.service.text import span

Place = tuple[int, int]  # (step, slot of the well)


class OpenOccurrences:
    """``open``: occurrences of steps, ``silent``: of rules on silence; both by (step, slot). What a batch has written
    into it since :meth:`begin`: ``changed`` rows, ``raised`` counts, ``shown`` keys."""

    def __init__(
        self,
        rules: RuleSet,
        wells: list[str],
        journal: Journal,
        state: WellArrays,
        baselines: Baselines,
        baseline: HeldBaseline,
    ):
        self.open: dict[Place, Occurrence] = {}
        self.silent: dict[Place, Occurrence] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.journal, self.state = journal, state
        self._rules, self._wells, self._baselines, self.baseline = rules, wells, baselines, baseline
        self._medians = sorted((str(key[1]), at) for key, at in baselines.row.items() if key[0] == "median")
        self._needing_baseline = {rule.name for rule in rules.rules if rule.needs_baseline}
        self.begin()

    def begin(self) -> None:
        """A new batch begins: nothing is changed, raised or shown yet."""
        self.changed: dict[tuple[str, str, int], DiagnosticRow] = {}
        self.raised: Counter[tuple[str, str]] = Counter()
        self.shown: list[tuple[str, str, int]] = []
        self._reminded: set[tuple[str, str, int]] = set()

    def mark(self) -> tuple[Any, ...] | None:
        """What a batch has written so far, for :meth:`back_to`; None if it is nothing."""
        return (dict(self.changed), Counter(self.raised), list(self.shown)) if self.changed else None

    def back_to(self, mark: tuple[Any, ...] | None) -> None:
        """Only what was written up to ``mark``, which is used once."""
        self.begin()
        if mark is not None:
            self.changed, self.raised, self.shown = mark

    def well(self, slot: int) -> str:
        """The well that has ``slot``."""
        return self._wells[slot]

    # -- raised, made more severe

    def raise_(
        self, batch: BatchContext, step: RuleStep, row: int, since: int, forced: bool, held: int, told: Any
    ) -> None:
        """Open an occurrence of ``step`` at ``row``; ``since`` is when its condition began, µs."""
        rule, rows = step.rule, batch.rows
        well = self._wells[int(rows.slot[row])]
        settings = self._rules.settings_of(rule, well) if self._rules.overrides else None
        severity = settings["severity"] if settings else rule.severity
        if forced and rule.escalation:
            severity = rule.escalation.severity
        elif rule.upgrade and any(
            self._recently(batch, other, row, rule.upgrade.within_us) for other in step.upgraders
        ):
            severity = rule.upgrade.severity
        value, threshold = told
        occurrence = Occurrence(
            well_id=well,
            diagnosis=rule.name,
            raised_us=int(rows.t[row]),
            severity=severity,
            value=value,
            threshold=threshold,
            message=sentence(
                step,
                value,
                threshold,
                since,
                self._signals_at(batch, rule, row),
                well,
                self._words_at(batch, rule, row),
            ),
            actions_json=as_json(list(rule.actions)),
            snapshot_json=self._snapshot(batch, rule, row),
            confidence=self._confidence(batch, rule, row),
            held_by=held_by_of(held),
        )
        self.store(step.index, int(rows.slot[row]), occurrence, new=True)

    def again(self, batch: BatchContext, step: RuleStep, row: int) -> None:
        """The condition came back at ``row`` before the open occurrence was over: it counts once more, and a message
        that tells a trend or drops tells the present ones."""
        slot = int(batch.rows.slot[row])
        occurrence = self.open.get((step.index, slot))
        if occurrence is None:
            return
        occurrence = occurrence.again()
        if "{trend}" in step.rule.seen or "{drops}" in step.rule.seen:
            value, threshold = told_of(step, batch, row)
            signals, words = self._signals_at(batch, step.rule, row), self._words_at(batch, step.rule, row)
            message = sentence(step, value, threshold, occurrence.raised_us, signals, occurrence.well_id, words)
            occurrence = replace(occurrence, value=value, threshold=threshold, message=message)
        self.store(step.index, slot, occurrence, at_us=int(batch.rows.t[row]))

    def remind(self, step: RuleStep, slot: int, at_us: int) -> None:
        """Tell an open occurrence again: it is unacknowledged once more. What is held back is not told."""
        occurrence = self.open.get((step.index, slot))
        if occurrence is None or occurrence.held_by:
            return
        self._reminded.add((occurrence.well_id, occurrence.diagnosis, occurrence.raised_us))
        stood = (at_us - occurrence.raised_us) / 1e6
        self.store(step.index, slot, occurrence.reminded(f"Reminder: it has stood for {span(stood)}."))

    def escalate(self, batch: BatchContext, step: RuleStep, row: int, since: int) -> None:
        """Make the open occurrence as severe as the escalation of its rule, if it is not."""
        slot = int(batch.rows.slot[row])
        occurrence, escalation = self.open[step.index, slot], step.escalation
        if escalation is None or occurrence.severity is escalation.severity or occurrence.cleared_us is not None:
            return
        told = told_of(escalation, batch, row)
        message = sentence(escalation, *told, since, self._signals_at(batch, step.rule, row), occurrence.well_id)
        escalated = replace(
            occurrence,
            severity=escalation.severity,
            message=message,
            value=told[0],
            threshold=told[1],
            acknowledged=False,
        )
        self.store(step.index, slot, escalated)

    def hold_back(self, steps: Iterable[int], slots: Iterable[int]) -> None:
        """Suppress the open occurrences of ``steps`` at ``slots`` that nothing holds back yet."""
        for step, slot in itertools.product(steps, sorted(slots)):
            occurrence = self.open.get((step, slot))
            if occurrence is not None and not occurrence.held_by:
                self.store(step, slot, replace(occurrence, held_by=alarms.SUPPRESSED))

    def store(self, step: int, slot: int, occurrence: Occurrence, new: bool = False, at_us: int | None = None) -> None:
        """The new state of an occurrence, in memory and in what the batch will write. ``at_us``: when it changed, if it
        was neither raised nor cleared."""
        key = (step, slot)
        before = self.open.get(key)
        self.baseline.note(key, before, occurrence, at_us)
        if before is not None:
            self.tally(before, -1)
        gone = occurrence.cleared_us is not None
        if not gone:
            self.tally(occurrence, 1)
        if new and not occurrence.held_by:
            self.show(occurrence)
        self.journal.put_key(self.open, key, None if gone else occurrence)
        peak = number_of(self.state["peak"][step, slot]) if occurrence.value is not None else None
        name = (occurrence.well_id, occurrence.diagnosis, occurrence.raised_us)
        self.changed[name] = alarms.to_row(occurrence, peak, reminded=name in self._reminded)

    def show(self, occurrence: Occurrence) -> None:
        """Count an occurrence that is raised or let go, and not held back."""
        self.raised[occurrence.diagnosis, occurrence.severity.value] += 1
        self.shown.append((occurrence.well_id, occurrence.diagnosis, occurrence.raised_us))

    def tally(self, occurrence: Occurrence, by: int) -> None:
        """Change the number of open occurrences of its diagnosis and severity by ``by``."""
        key = (occurrence.diagnosis, occurrence.severity.value)
        self.journal.put_key(self.counts, key, self.counts.get(key, 0) + by)

    def _snapshot(self, batch: BatchContext, rule: Rule, row: int) -> str:
        """The signals as sent, what the well is used to, whether it runs, and the slow trends that ``rule`` reads."""
        signals = {
            name: float(values[row]) for name, values in batch.measured.raw.items() if values[row] == values[row]
        }
        features, run = batch.running.features, batch.running.run[row]
        usual = {name: features.one(at, run) for name, at in self._medians}
        medians = {name: rounded(value) for name, value in usual.items() if value == value}
        state = {1: "running", 0: "stopped"}.get(int(batch.running.running[row]), "not known")
        slow = trends_of(rule, self._baselines.row, features, run)
        trends = {"trends": {trend.signal: trend.figures() for trend in slow}} if slow else {}
        return as_json({**signals, "median_24h": medians, "well": state, **trends})

    def _signals_at(self, batch: BatchContext, rule: Rule, row: int) -> str:
        """Which signals a rule on gauges is about."""
        keys = rule.when.columns if rule.when else frozenset()
        if ("fact", "frozen_for") in keys:
            return ", ".join(name for name, seconds in batch.frozen.items() if seconds[row] > 0)
        if ("fact", "failed_signals") in keys:
            names = [name for name, mask in batch.measured.failed.items() if mask[row]]
            return failed_gauges(names)
        if ("fact", "gauge_dropped") in keys:
            return ", ".join(name for name in GAUGE if batch.measured.seen[name][1][row] != NEVER)
        return ""

    def _words_at(self, batch: BatchContext, rule: Rule, row: int) -> dict[str, str]:
        """What the message of ``rule`` says of trends and drops, by its place there."""
        words = {}
        if "{trend}" in rule.seen:
            words["trend"] = self._trend_at(batch, rule, row)
        if "{drops}" in rule.seen:
            words["drops"] = self._drops_at(batch, row)
        return words

    def _drops_at(self, batch: BatchContext, row: int) -> str:
        """For people: how low and for how long the motor load usually drops."""
        features, run, place = batch.running.features, batch.running.run[row], self._baselines.row
        usual = [
            features.one(place[function, "current_load"], run) if (function, "current_load") in place else float("nan")
            for function in ("usual_low", "usual_low_time")
        ]
        low, seconds = map(number_of, usual)
        if low is None or seconds is None:
            return "how low and how long is not known"
        return f"down to {100 * low:.0f} % and for some {span(seconds)}"

    def _trend_at(self, batch: BatchContext, rule: Rule, row: int) -> str:
        """For people: the slow trend that ``rule`` reads, else how the drops of this week stand to the week before."""
        features, run = batch.running.features, batch.running.run[row]
        slow = trends_of(rule, self._baselines.row, features, run)
        if slow:
            return "; ".join(trend.words for trend in slow)
        at = self._baselines.row.get(("drops_trend", "current_load"))
        trend = number_of(features.one(at, run)) if at is not None else None
        if trend is None:
            return "too early to compare with the week before"
        return f"{100 * trend:.0f} % of those of the week before"

    def _confidence(self, batch: BatchContext, rule: Rule, row: int) -> float:
        """The rule's own confidence, less where the baseline is younger than a day of running."""
        if rule.name not in self._needing_baseline:
            return rule.confidence
        hours = batch.running.features.one(self._baselines.row[HOURS], batch.running.run[row])
        return round(rule.confidence * (hours if hours == hours else 0.0) / 24, 3)

    def _recently(self, batch: BatchContext, step: RuleStep, row: int, within_us: int) -> bool:
        newest = batch.columns.recent.get(step.index)
        when = self.state["active_us"][step.active_row, batch.rows.slot[row]] if newest is None else newest[row]
        return bool(batch.rows.t[row] - when <= within_us)

    def store_silence(self, step: int, slot: int, occurrence: Occurrence, gap: int, new: bool) -> None:
        """Put an occurrence of a rule on silence; ``gap`` is the silence so far, µs."""
        key = (step, slot)
        before = self.silent.get(key)
        if before is not None:
            self.tally(before, -1)
        gone = occurrence.cleared_us is not None
        if not gone:
            self.tally(occurrence, 1)
        if new:
            self.show(occurrence)
        self.journal.put_key(self.silent, key, None if gone else occurrence)
        row = alarms.to_row(occurrence, gap / 1e6)
        self.changed[occurrence.well_id, occurrence.diagnosis, occurrence.raised_us] = row
