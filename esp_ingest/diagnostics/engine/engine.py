"""Columns in, transitions out: the rules run over a batch of readings, in event time, well by well.

One batch is in flight: ``evaluate`` works on the state in place and notes in a journal what it overwrites; ``accept``
drops the journal once the batch is committed, ``discard`` plays it back. What a batch raises is a function of each
well's readings in the order received, however they are cut into batches (tests/property/test_diagnostics_engine.py).
"""

import contextlib
import logging
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from esp_ingest.diagnostics.alarm import Occurrence
from esp_ingest.diagnostics.engine import stops
from esp_ingest.diagnostics.engine.baseline import HELD, Baselines
from esp_ingest.diagnostics.engine.buckets import Key, Slots
from esp_ingest.diagnostics.engine.columns import BatchColumns, Rows, grouped
from esp_ingest.diagnostics.engine.common_stops import FACT, CommonStops, limits_from
from esp_ingest.diagnostics.engine.facts import facts_of, historical, keys_of, pick
from esp_ingest.diagnostics.engine.held_baseline import HeldBaseline
from esp_ingest.diagnostics.engine.open_occurrences import OpenOccurrences
from esp_ingest.diagnostics.engine.rule_step import NORMAL, BatchContext, noted_of, site_labels, steps_of
from esp_ingest.diagnostics.engine.signals import RunState, SignalState
from esp_ingest.diagnostics.engine.silence import Silence
from esp_ingest.diagnostics.engine.speed_steps import learned
from esp_ingest.diagnostics.engine.step_runner import StepRunner
from esp_ingest.diagnostics.engine.well_settings import WellSettings
from esp_ingest.diagnostics.engine.well_state import NEVER, Exported, Journal, WellArrays
from esp_ingest.diagnostics.language.evaluation import BoolArray
from esp_ingest.diagnostics.language.rules import RuleSet
from esp_ingest.model import SIGNAL_NAMES, DiagnosticRow, FloatArray, PlacesByNumber, Readings

if TYPE_CHECKING:
    from esp_ingest.service.metrics import Metrics

log = logging.getLogger(__name__)

_EXPORTED_AT_ONCE = 256  # wells, 2 MB of arrays

_pack = msgspec.msgpack.Encoder().encode


@dataclass(slots=True)
class Evaluation:
    """What a batch changed. ``rows``: the present state of each occurrence it touched; ``raised``: counts by
    (diagnosis, severity); ``late``: readings not newer than their well's state; ``shown``: keys (well, diagnosis,
    raised) of occurrences that were raised or let go, not held back."""

    rows: list[DiagnosticRow] = field(default_factory=list)
    raised: Counter[tuple[str, str]] = field(default_factory=Counter)
    late: int = 0
    number: int = 0
    shown: list[tuple[str, str, int]] = field(default_factory=list)


def _place(item: tuple[tuple[int, int], Occurrence]) -> tuple[int, int]:
    return item[0]


class _Exported(msgspec.Struct):
    version: int
    arrays: dict[str, Exported]
    open: list[tuple[str, Occurrence]]


class Engine:
    """Driven by one thread. ``metrics`` may be None (tests, `rules test`)."""

    def __init__(self, rules: RuleSet, metrics: "Metrics | None" = None) -> None:
        self.rules = rules
        self._metrics = metrics
        self._names = [*SIGNAL_NAMES, *rules.extra_signals]
        self._slots: dict[str, int] = {}
        self._wells: list[str] = []
        self._by_number = PlacesByNumber()
        self.elsewhere: Counter[tuple[str, str]] = Counter()  # open at wells that are not here, for the gauge
        self._journal = Journal()
        self._in_flight = 0
        self._number = 0
        self._steps, self._stale = steps_of(rules)
        columns = {key for step in self._steps for key in step.condition.columns}
        self._has_frozen = ("fact", "frozen_for") in columns
        # What a common stop suppresses: held back at once, also at wells of which no further reading has come.
        self._stop_steps = [
            step.index
            for step in self._steps
            if any(("fact", FACT) in other.condition.columns for other in step.suppressors)
        ]
        self._state = self._allocate(columns)
        self._settings = WellSettings(rules, self._steps)
        self._occurrences = OpenOccurrences(
            rules, self._wells, self._journal, self._state, self._baselines, self._held_baseline
        )
        self._silence = Silence(self._stale, len(self._steps), self._occurrences, self._state, self._baselines)
        self._runner = StepRunner(self._steps, self._state, self._settings, self._occurrences, self._journal, metrics)

    def _allocate(self, columns: set[Key]) -> WellArrays:
        state = WellArrays()
        names = [step.name for step in self._steps]
        state.add("last_us", np.int64, NEVER)
        state.add("received_us", np.int64, NEVER)
        state.add("phase", np.int8, 0, names)
        # Set when a step leaves its normal phase, and read in no other: zeros take no memory before.
        state.add("since", np.int64, 0, names)
        state.add("peak", np.float64, 0, names)
        state.add("active_us", np.int64, NEVER, [step.name for step in noted_of(self._steps)])
        state.add("within_us", np.int64, NEVER, site_labels(self._steps, self.rules.sites))
        self._signal_state = SignalState(state, self._names)
        rules = [(step.index, step.rule) for step in self._steps if not step.is_escalation]
        holding = [at for at, rule in rules if rule.baseline == "held"]
        freeing = [at for at, rule in rules if rule.baseline == "free"]
        self._held_baseline = HeldBaseline(state, holding, freeing)
        self._baselines = Baselines(state, columns | stops.columns_of(columns), self._held_baseline)
        self._run_state = RunState(state, self._baselines, self._common_stops(state))
        self._stop_grades = stops.StopGrades(state, self._baselines)
        return state

    def _common_stops(self, state: WellArrays) -> CommonStops | None:
        """None if no rule reads of them. The limits are the parameters of the first that does."""
        for step in self._steps:
            if ("fact", FACT) in step.condition.columns:
                return CommonStops(state, self._wells, limits_from(step.rule.parameters))
        return None

    # -- the batch

    def evaluate(self, readings: Readings) -> Evaluation:
        """Run the rules over a batch; ``accept`` or ``discard`` must follow before the next one."""
        with self._begun(), np.errstate(all="ignore"):
            late = self._evaluate(readings)
        return self._end(late)

    def accept(self, evaluation: Evaluation, replayed: bool = False) -> None:
        """The batch is committed: what it changed stays. ``replayed``: it was committed before, and counted then."""
        self._settle(evaluation)
        self._journal.clear()
        if self._metrics is not None and not replayed:
            self._count(self._metrics, evaluation)

    def discard(self, evaluation: Evaluation) -> None:
        """The batch was not stored: as if it had never been here."""
        self._settle(evaluation)
        self._journal.undo()

    @contextlib.contextmanager
    def _begun(self) -> Iterator[None]:
        """An evaluation begins; what an error leaves of it is undone, so that the next one can begin."""
        if self._in_flight:
            raise RuntimeError("the batch before was neither accepted nor discarded")
        self._number += 1
        self._in_flight = self._number
        self._occurrences.begin()
        try:
            yield
        except BaseException:
            self._journal.undo()
            self._in_flight = 0
            raise

    def _end(self, late: int) -> Evaluation:
        made = self._occurrences
        return Evaluation(list(made.changed.values()), made.raised, late, self._number, made.shown)

    def _settle(self, evaluation: Evaluation) -> None:
        if evaluation.number != self._in_flight:
            raise RuntimeError("this evaluation is not the one in flight")
        self._in_flight = 0

    def _count(self, metrics: "Metrics", evaluation: Evaluation) -> None:
        for (diagnosis, severity), count in evaluation.raised.items():
            metrics.diagnostics_raised.labels(diagnosis=diagnosis, severity=severity).inc(count)
        if evaluation.late:
            metrics.diagnostics_late_readings.inc(evaluation.late)
        if evaluation.rows:
            for (diagnosis, severity), count in self._occurrences.counts.items():
                metrics.diagnostics_active.labels(diagnosis=diagnosis, severity=severity).set(
                    count + self.elsewhere[diagnosis, severity]
                )

    def _evaluate(self, readings: Readings) -> int:
        rows = self._rows(readings)
        late = len(readings) - len(rows)
        if not len(rows):
            return late
        self._in_parts(rows, self._values(readings, rows), self._bad(readings, rows))
        return late

    def _in_parts(self, rows: Rows, values: FloatArray, bad: dict[str, BoolArray]) -> None:
        """Evaluate ``rows``, in two parts where what comes to light at one moment changes what the medians were after
        it. That is rare, and only where a batch spans hours of a well."""
        waiting = [np.ones(len(rows), np.bool_)]
        while waiting:
            kept = waiting.pop()
            is_whole = bool(kept.all())
            part = rows if is_whole else rows.part(kept)
            mark = self._journal.mark(), self._occurrences.mark()
            cut_us = self._evaluate_part(
                part,
                values if is_whole else np.ascontiguousarray(values[:, kept]),
                bad if is_whole else {name: mask[kept] for name, mask in bad.items()},
            )
            if cut_us is not None:
                self._journal.back_to(mark[0])
                self._occurrences.back_to(mark[1])
                waiting += [kept & (rows.t >= cut_us), kept & (rows.t < cut_us)]

    def _evaluate_part(self, rows: Rows, values: FloatArray, bad: dict[str, BoolArray]) -> int | None:
        """Run the rules over ``rows``. If that has to be done in two parts: the event time, µs, at which the second one
        begins."""
        journal, state = self._journal, self._state
        self._held_baseline.begin()
        last_us, last_received = state["last_us"][rows.slots], state["received_us"][rows.slots]
        measured = self._signal_state.measure(journal, rows, values, bad)
        frozen = self._signal_state.frozen(journal, rows, measured) if self._has_frozen else {}
        running = self._run_state.advance(journal, rows, measured.usable, last_us)
        if running.cut_us is not None:
            return running.cut_us
        journal.put(state["last_us"], rows.slots, rows.t[rows.last])
        journal.put(state["received_us"], rows.slots, rows.received[rows.last])
        facts = facts_of(rows, measured, running, frozen, last_us, last_received)
        facts["baseline_held"] = lambda: running.features.of(self._baselines.row[HELD])[running.run]
        if self._stop_grades.is_used:
            facts |= self._stop_grades.advance(journal, rows, measured, running)
        frame = BatchColumns(
            rows=rows,
            signals=measured.usable,
            facts=facts,
            features=running.features,
            feature_row=self._baselines.row,
            run=running.run,
            config=self._settings.limit_columns(rows),
            seen=measured.seen,
            within_us=state["within_us"],
            journal=journal,
        )
        batch = BatchContext(
            rows,
            frame,
            measured,
            running,
            frozen,
            dropped=bool(measured.dropped.any()),
            not_running=running.running != 1,
            not_settled=~running.settled,
            not_opened=np.ones(len(rows), np.bool_),
            busy=np.asarray(state["phase"][:, rows.index].any(axis=1)).tolist(),
        )
        batch.not_opened[running.opened] = False
        self._silence.passed(batch, last_us)
        for step in self._steps:
            self._runner.run(batch, step)
        if running.common is not None and running.common.joined:
            self._occurrences.hold_back(self._stop_steps, running.common.joined)
        half_hours = running.half_hours
        cut_us = None
        if half_hours is not None:
            cut_us = self._held_baseline.conflict(*half_hours, self._occurrences.open)
        if cut_us is None:
            self._held_baseline.end(journal, self._occurrences.open)
        running.features.release()
        return cut_us

    def _rows(self, readings: Readings) -> Rows:
        slot_of = self._slots_of(readings.wells)
        slot = slot_of[readings.well_index] if len(readings) else np.empty(0, np.intp)
        t, received = readings.timestamp_us, readings.received_us
        marked = historical(readings.extra) if readings.extra else []
        if not marked:
            return grouped(slot, t, received, self._state["last_us"])
        live = np.ones(len(readings), np.bool_)
        live[marked] = False
        kept = np.flatnonzero(live)
        rows = grouped(slot[kept], t[kept], received[kept], self._state["last_us"])
        rows.source = kept[rows.source]
        return rows

    def _values(self, readings: Readings, rows: Rows) -> FloatArray:
        sent, more = readings.values.shape[0], list(self.rules.extra_signals)
        values = np.empty((sent + len(more), len(rows)))
        rows.take(readings.values, values[:sent])
        values[sent:] = np.nan
        if more and readings.extra:
            place = {int(source): at for at, source in enumerate(rows.source)}
            for source, text in readings.extra.items():
                if source in place:
                    pick(text, more, values[sent:, place[source]])
            values[sent:] *= np.array([unit.factor for unit in self.rules.extra_signals.values()])[:, None]
        return values

    def _bad(self, readings: Readings, rows: Rows) -> dict[str, BoolArray]:
        """Rows whose signal was outside its hard limits: the reading's quality names it."""
        found: dict[str, BoolArray] = {}
        if not readings.quality:
            return found
        place = {int(source): at for at, source in enumerate(rows.source)}
        for source, text in readings.quality.items():
            at = place.get(source)
            if at is None:
                continue
            for name in keys_of(text):
                if name in self._names:
                    found.setdefault(name, np.zeros(len(rows), np.bool_))[at] = True
        return found

    # -- wells

    def _slots_of(self, wells: Sequence[str]) -> Slots:
        """The slot of each of ``wells``; a new one gets its slot."""
        slots = self._by_number.of(wells)
        if slots is None:
            slots = np.array([self._slot(well) for well in wells], np.intp)
            self._by_number.keep(wells, slots)
        return slots

    def _slot(self, well: str) -> int:
        slot = self._slots.get(well)
        if slot is not None:
            return slot
        slot = self._state.new_slot()
        self._settings.arrays.new_slot()
        self._slots[well] = slot
        if slot < len(self._wells):
            self._wells[slot] = well
        else:
            self._wells.append(well)
        self._settings.add(slot, well)
        return slot

    def failed_rules(self) -> dict[str, str]:
        """Rules switched off by a failure at run time, with the reason."""
        return {step.rule.name: step.failed for step in self._steps if step.failed}

    # -- silence, by the clock

    def tick(self, now_us: int, listening_since_us: int = NEVER) -> Evaluation:
        """Wells that have fallen silent by ``now_us`` (wall time). Call it only while nothing waits in the spool.
        Before ``listening_since_us`` nobody listened, so nothing counts as silence.

        Silence is judged by when readings were received, but dated in event time, last reading + delay: the row that
        the next reading would have raised for the same gap has the same key."""
        with self._begun():
            self._silence.at_clock(now_us, listening_since_us)
        return self._end(0)

    # -- state over restarts

    def export(self, wells: Sequence[str] | None = None) -> dict[str, bytes]:
        """The whole state by well (None: all): what :meth:`restore` takes. Only between batches."""
        if self._in_flight:
            raise RuntimeError("a batch is in flight")
        chosen = [well for well in (self._slots if wells is None else wells) if well in self._slots]
        slots = [self._slots[well] for well in chosen]
        opened: dict[int, list[list[Any]]] = {slot: [] for slot in slots}
        names = [step.name for step in self._steps] + [rule.name for rule in self._stale]
        everywhere = chain(self._occurrences.open.items(), self._occurrences.silent.items())
        for (step, slot), occurrence in sorted((item for item in everywhere if item[0][1] in opened), key=_place):
            opened[slot].append([names[step], occurrence])
        states: dict[str, bytes] = {}
        for begin in range(0, len(chosen), _EXPORTED_AT_ONCE):
            some = slice(begin, begin + _EXPORTED_AT_ONCE)
            for well, slot, arrays in zip(chosen[some], slots[some], self._state.export(slots[some]), strict=True):
                packed = _pack({"version": 1, "arrays": arrays, "open": opened[slot]})
                states[well] = zlib.compress(packed, 1)
        return states

    def restore(self, states: Mapping[str, bytes]) -> list[str]:
        """Put back what :meth:`export` gave, also under other rules: by name of rule and signal.

        Returns the wells whose state could not be read; they start anew."""
        unread = []
        steps = {step.name: step.index for step in self._steps}
        steps |= {rule.name: len(self._steps) + at for at, rule in enumerate(self._stale)}
        for well, data in states.items():
            try:
                found = msgspec.msgpack.decode(zlib.decompress(data), type=_Exported)
            except (zlib.error, msgspec.MsgspecError):
                unread.append(well)
                continue
            slot = self._slot(well)
            self._state.restore(slot, found.arrays)
            for name, occurrence in found.open:
                self._reopen(steps.get(name), slot, occurrence)
            self._recount(slot)
        self._signal_state.forget_shortcuts()
        return unread

    def _reopen(self, step: int | None, slot: int, occurrence: Occurrence) -> None:
        if step is None:
            return
        (self._occurrences.open if step < len(self._steps) else self._occurrences.silent)[step, slot] = occurrence
        self._occurrences.counts[occurrence.diagnosis, occurrence.severity.value] += 1

    def _recount(self, slot: int, afresh: bool = False) -> None:
        self._state["alarm_us"][slot] = self._held_baseline.recount(slot, self._occurrences.open, afresh)

    # -- what is open

    def open_occurrences(self) -> list[Occurrence]:
        """Every occurrence that is open, silence included."""
        return [*self._occurrences.open.values(), *self._occurrences.silent.values()]

    def wells(self) -> list[str]:
        """The wells that have state here."""
        return list(self._slots)

    @property
    def bytes_a_well(self) -> int:
        """Memory that the arrays take for each well, without its open occurrences."""
        return self._state.bytes_a_slot + self._settings.arrays.bytes_a_slot

    # -- wells that give up their place. Between batches.

    def longest_silent(self, most: int, before_us: int) -> list[str]:
        """Up to ``most`` wells of which nothing was received since ``before_us``, the longest silent first."""
        slots = np.fromiter(self._slots.values(), np.intp, len(self._slots))
        received = self._state["received_us"][slots]
        silent = np.flatnonzero(received < before_us)
        order = silent[np.argsort(received[silent], kind="stable")][:most]
        return [self._wells[slot] for slot in slots[order].tolist()]

    def forget(self, wells: Sequence[str]) -> None:
        """Nothing is known of these wells any more, their open occurrences included: :meth:`export` them before."""
        if self._in_flight:
            raise RuntimeError("a batch is in flight")
        slots = {self._slots.pop(well) for well in wells if well in self._slots}
        self._by_number.forget()
        for opened in (self._occurrences.open, self._occurrences.silent):
            for key in [key for key in opened if key[1] in slots]:
                gone = opened.pop(key)
                self._occurrences.counts[gone.diagnosis, gone.severity.value] -= 1
        for slot in slots:
            self._state.free_slot(slot)
            self._settings.free(slot)
            self._wells[slot] = ""

    def newest_us(self, well: str) -> int | None:
        """Event time of the newest reading taken into the well's state, µs; None for a well without one."""
        slot = self._slots.get(well)
        newest = NEVER if slot is None else int(self._state["last_us"][slot])
        return None if newest == NEVER else newest

    def load_exponents(self, well: str) -> tuple[list[float], list[float]]:
        """How the current of ``well`` follows its speed, n in A ~ fⁿ: (of its last changes of speed, the newest first;
        the exponent, the least and the greatest that is possible, empty while they are not known)."""
        slot = self._slots.get(well)
        if slot is None:
            return [], []
        changes = self._state["exponents"][:, slot]
        found = learned(changes.astype(np.float64))
        return [float(each) for each in changes if each == each], [] if np.isnan(found[0]) else found.tolist()

    # -- what operators did. Between batches; the database has it already, so no rows come of it.

    def open_at(self, well: str, diagnosis: str) -> Occurrence | None:
        """The open occurrence of this well and diagnosis, None if there is none."""
        return self._found(well, diagnosis)[1]

    def put(self, occurrence: Occurrence) -> bool:
        """The open occurrence of this well and diagnosis is this one. False where there is none, but for silence."""
        key, before = self._found(occurrence.well_id, occurrence.diagnosis)
        if key is None or (before is None and key[0] < len(self._steps)):
            return False
        if before is not None:
            self._occurrences.counts[before.diagnosis, before.severity.value] -= 1
        self._reopen(*key, occurrence)
        self._recount(key[1], afresh=occurrence.is_false)
        return True

    def end_latched(self, well: str, diagnosis: str) -> bool:
        """Acknowledged after its return: a latched occurrence is over. False where it is none."""
        key, occurrence = self._found(well, diagnosis)
        if key is None or occurrence is None or occurrence.latched_us is None:
            return False
        self._state["phase"][key] = NORMAL
        del self._occurrences.open[key]
        self._recount(key[1])
        self._occurrences.counts[occurrence.diagnosis, occurrence.severity.value] -= 1
        return True

    def shelve(self, well: str, diagnosis: str, until_us: int | None) -> None:
        """Hold the diagnosis back until then, in event time; None ends it."""
        self._settings.shelve(self._slot(well), diagnosis, until_us)

    def _found(self, well: str, diagnosis: str) -> tuple[tuple[int, int] | None, Occurrence | None]:
        slot = self._slots.get(well)
        steps = [step.index for step in self._steps if step.rule.name == diagnosis and not step.is_escalation]
        steps += [len(self._steps) + at for at, rule in enumerate(self._stale) if rule.name == diagnosis]
        if slot is None or not steps:
            return None, None
        key = (steps[0], slot)
        return key, (self._occurrences.open if steps[0] < len(self._steps) else self._occurrences.silent).get(key)
