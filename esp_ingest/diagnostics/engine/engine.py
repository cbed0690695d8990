"""Columns in, transitions out: the rules run over a batch of readings, in event time, well by well.

One batch is in flight: ``evaluate`` works on the state in place and notes in a journal what it overwrites; ``accept``
drops the journal once the batch is committed, ``discard`` plays it back. What a batch raises is a function of each
well's readings in the order received, however they are cut into batches (tests/property/test_diagnostics_engine.py).
"""

import logging
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np

from esp_ingest.diagnostics.alarm import Occurrence
from esp_ingest.diagnostics.engine.baseline import Baselines, Key
from esp_ingest.diagnostics.engine.columns import BatchFrame, Rows, grouped
from esp_ingest.diagnostics.engine.facts import facts_of, historical, keys_of, pick
from esp_ingest.diagnostics.engine.open_occurrences import Book
from esp_ingest.diagnostics.engine.rule_step import (
    ACTIVE,
    APART,
    DUE_OFF,
    DUE_ON,
    HELD_SHELVED,
    NORMAL,
    RETURNING,
    SKIP,
    WALK,
    WHAT,
    Lane,
    Pass,
    lanes_of,
    site_labels,
)
from esp_ingest.diagnostics.engine.signals import RunState, SignalState
from esp_ingest.diagnostics.engine.silence import Silence
from esp_ingest.diagnostics.engine.transitions import Walk
from esp_ingest.diagnostics.engine.well_state import NEVER, Array, Journal, WellArrays
from esp_ingest.diagnostics.language.conditions import BoolArray, Truth
from esp_ingest.diagnostics.language.rules import Rule, RuleSet
from esp_ingest.model import SIGNAL_NAMES, DiagnosticRow, FloatArray, Readings

log = logging.getLogger(__name__)

_pack = msgspec.msgpack.Encoder().encode


class EngineMetrics(Protocol):
    """The part of service.metrics that the engine feeds (prometheus objects, or a fake's)."""

    diagnostics_raised: Any
    diagnostics_active: Any
    diagnostics_late_readings: Any
    diagnostics_rule_failures: Any
    diagnostics_rules_disabled: Any


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


class _Exported(msgspec.Struct):
    version: int
    arrays: dict[str, list[Any]]
    open: list[tuple[str, Occurrence]]


class Engine:
    """Driven by one thread. ``metrics`` may be None (tests, `rules test`)."""

    def __init__(self, rules: RuleSet, metrics: EngineMetrics | None = None) -> None:
        self.rules = rules
        self._metrics = metrics
        self._names = [*SIGNAL_NAMES, *rules.extra_signals]
        self._slots: dict[str, int] = {}
        self._wells: list[str] = []
        self._journal = Journal()
        self._in_flight = 0
        self._number = 0
        self._lanes, self._stale = lanes_of(rules)
        columns = {key for lane in self._lanes for key in lane.condition.columns}
        self._has_frozen = ("fact", "frozen_for") in columns
        self._state = self._allocate(columns)
        self._config = self._allocate_config()
        self._book = Book(rules, self._wells, self._journal, self._state, self._baselines)
        self._silence = Silence(self._stale, len(self._lanes), self._book, self._state, self._baselines)

    def _allocate(self, columns: set[Key]) -> WellArrays:
        state = WellArrays()
        names = [lane.name for lane in self._lanes]
        state.add("last_us", np.int64, NEVER)
        state.add("received_us", np.int64, NEVER)
        state.add("phase", np.int8, 0, names)
        state.add("since", np.int64, NEVER, names)
        state.add("peak", np.float64, np.nan, names)
        state.add("active_us", np.int64, NEVER, names)
        state.add("within_us", np.int64, NEVER, site_labels(self._lanes, self.rules.sites))
        self._signal_state = SignalState(state, self._names)
        self._baselines = Baselines(state, columns)
        self._run_state = RunState(state, self._baselines)
        return state

    # -- the batch

    def evaluate(self, readings: Readings) -> Evaluation:
        """Run the rules over a batch; ``accept`` or ``discard`` must follow before the next one."""
        self._begin()
        try:
            with np.errstate(all="ignore"):
                late = self._evaluate(readings)
        except BaseException:
            self._journal.undo()
            self._in_flight = 0
            raise
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

    def _begin(self) -> None:
        if self._in_flight:
            raise RuntimeError("the batch before was neither accepted nor discarded")
        self._number += 1
        self._in_flight = self._number
        self._book.begin()

    def _end(self, late: int) -> Evaluation:
        book = self._book
        return Evaluation(list(book.changed.values()), book.raised, late, self._number, book.shown)

    def _settle(self, evaluation: Evaluation) -> None:
        if evaluation.number != self._in_flight:
            raise RuntimeError("this evaluation is not the one in flight")
        self._in_flight = 0

    def _count(self, metrics: EngineMetrics, evaluation: Evaluation) -> None:
        for (diagnosis, severity), count in evaluation.raised.items():
            metrics.diagnostics_raised.labels(diagnosis=diagnosis, severity=severity).inc(count)
        if evaluation.late:
            metrics.diagnostics_late_readings.inc(evaluation.late)
        if evaluation.rows:
            for (diagnosis, severity), count in self._book.counts.items():
                metrics.diagnostics_active.labels(diagnosis=diagnosis, severity=severity).set(count)

    def _evaluate(self, readings: Readings) -> int:
        rows = self._rows(readings)
        late = len(readings) - len(rows)
        if not len(rows):
            return late
        journal, state = self._journal, self._state
        values = self._values(readings, rows)
        last_us, last_received = state["last_us"][rows.slots], state["received_us"][rows.slots]
        measured = self._signal_state.measure(journal, rows, values, self._bad(readings, rows))
        running = self._run_state.walk(journal, rows, measured.usable, last_us)
        frozen = self._signal_state.frozen(journal, rows, measured) if self._has_frozen else {}
        journal.put(state["last_us"], rows.slots, rows.t[rows.last])
        journal.put(state["received_us"], rows.slots, rows.received[rows.last])
        facts = facts_of(rows, measured, running, frozen, last_us, last_received)
        frame = BatchFrame(
            rows=rows,
            signals=measured.usable,
            facts=facts,
            features=running.features,
            feature_row=self._baselines.row,
            run=running.run,
            config=self._config_columns(rows),
            seen=measured.seen,
            within_us=state["within_us"],
            journal=journal,
        )
        batch = Pass(
            rows,
            frame,
            measured,
            running,
            frozen,
            dropped=bool(measured.dropped.any()),
            not_running=running.running != 1,
            not_settled=~running.settled,
        )
        self._silence.passed(batch, last_us)
        for lane in self._lanes:
            self._run_lane(batch, lane)
        return late

    def _rows(self, readings: Readings) -> Rows:
        found = list(map(self._slots.get, readings.wells))
        if None in found:
            found = [self._slot(well) for well in readings.wells]
        slot_of = np.array(found, np.intp)
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
        values = readings.values[:, rows.source]
        if not self.rules.extra_signals:
            return values
        more = np.full((len(self.rules.extra_signals), len(rows)), np.nan)
        if readings.extra:
            place = {int(source): at for at, source in enumerate(rows.source)}
            for source, text in readings.extra.items():
                if source in place:
                    pick(text, list(self.rules.extra_signals), more[:, place[source]])
        more *= np.array([unit.factor for unit in self.rules.extra_signals.values()])[:, None]
        return np.concatenate([values, more])

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

    # -- wells and what is configured for them

    def _allocate_config(self) -> WellArrays:
        config = WellArrays()
        names = [lane.name for lane in self._lanes]
        config.add("enabled", np.bool_, True, names)
        config.add("on_us", np.int64, 0, names)
        config.add("off_us", np.int64, 0, names)
        config.add("shelved_us", np.int64, NEVER, names)
        config.add("limits", np.float64, np.nan, list(self.rules.limits))
        self._per_well = {
            (rule.name, name)
            for rule in self.rules.rules
            for name in rule.parameters
            for override in self.rules.overrides
            if name in override.rules.get(rule.name, {})
        }
        config.add("parameters", np.float64, np.nan, sorted(self._per_well))
        self._limits_set = bool(self.rules.limit_defaults) or any(o.limits for o in self.rules.overrides)
        self._fixed_on = np.array([self._lane_delay(lane) for lane in self._lanes], np.int64)
        self._fixed_off = np.array([0 if lane.parent else lane.rule.off_delay_us for lane in self._lanes], np.int64)
        self._any_disabled = False
        return config

    @staticmethod
    def _lane_delay(lane: Lane) -> int:
        return lane.rule.escalation.on_delay_us if lane.parent and lane.rule.escalation else lane.rule.on_delay_us

    def _slot(self, well: str) -> int:
        slot = self._slots.get(well)
        if slot is not None:
            return slot
        slot = self._state.new_slot()
        self._config.new_slot()
        self._slots[well] = slot
        if slot < len(self._wells):
            self._wells[slot] = well
        else:
            self._wells.append(well)
        self._configure(slot, well)
        return slot

    def _configure(self, slot: int, well: str) -> None:
        config = self._config
        config["on_us"][:, slot] = self._fixed_on
        config["off_us"][:, slot] = self._fixed_off
        config["enabled"][:, slot] = [lane.rule.enabled for lane in self._lanes]
        limits = self.rules.limits_of(well)
        config["limits"][:, slot] = [limits.get(name, np.nan) for name in self.rules.limits]
        if any(override.covers(well) for override in self.rules.overrides):
            self._configure_overrides(slot, well)
        self._any_disabled |= not bool(config["enabled"][:, slot].all())

    def _configure_overrides(self, slot: int, well: str) -> None:
        config = self._config
        for lane in self._lanes:
            settings = self.rules.settings_of(lane.rule, well)
            config["enabled"][lane.index, slot] = settings["enabled"]
            if not lane.parent:
                config["off_us"][lane.index, slot] = settings["off_delay_us"]
                config["on_us"][lane.index, slot] = settings["on_delay_us"]
        for at, (rule, name) in enumerate(sorted(self._per_well)):
            config["parameters"][at, slot] = self.rules.settings_of(self.rules.rule(rule), well)[name]

    def _config_columns(self, rows: Rows) -> dict[Key, Any]:
        """Limits a row. Parameters depend on the rule that is running: see :meth:`_parameters`."""
        if not self._limits_set:
            return {("limit", name): np.full(len(rows), np.nan) for name in self.rules.limits}
        limits = self._config["limits"][:, rows.slots]
        return {("limit", name): limits[at][rows.group] for at, name in enumerate(self.rules.limits)}

    def _parameters(self, batch: Pass, rule: Rule) -> None:
        overridden = sorted(self._per_well)
        for name, value in rule.parameters.items():
            column: Any = np.float64(value)
            if (rule.name, name) in self._per_well:
                at = overridden.index((rule.name, name))
                column = self._config["parameters"][at][batch.rows.slot]
            batch.frame.set_parameter(name, column)

    # -- one lane

    def _run_lane(self, batch: Pass, lane: Lane) -> None:
        """A condition that fails is switched off and counted; it never holds back a batch."""
        if lane.failed:
            return
        try:
            self._parameters(batch, lane.rule)
            truth = lane.condition.evaluate(batch.frame)
        except Exception as error:
            self._fail(lane, error)
            return
        self._apply(batch, lane, truth)

    def _fail(self, lane: Lane, error: Exception) -> None:
        lane.failed = f"{type(error).__name__}: {error}"
        log.exception("rule %s failed and is switched off until the rules are read again", lane.rule.name)
        if self._metrics is not None:
            self._metrics.diagnostics_rule_failures.labels(diagnosis=lane.rule.name).inc()
            self._metrics.diagnostics_rules_disabled.set(len(self.failed_rules()))

    def failed_rules(self) -> dict[str, str]:
        """Rules switched off by a failure at run time, with the reason."""
        return {lane.rule.name: lane.failed for lane in self._lanes if lane.failed}

    def _apply(self, batch: Pass, lane: Lane, truth: Truth) -> None:
        rows = batch.rows
        phases = self._state["phase"][lane.index][rows.slots]
        any_yes = bool(np.any(truth.yes))
        busy = bool(phases.any())
        if not busy and not any_yes and lane.escalation is None:
            if lane.exposes:
                batch.active[lane.index] = np.zeros(len(rows), np.bool_)
            return
        code = self._code(batch, lane, truth)
        phase = phases[rows.group]
        what = WHAT[phase * 5 + code]
        walk = what == WALK
        if busy:
            self._due(lane, rows, what, walk)
        wells = set(rows.group[walk].tolist()) if walk.any() else set()
        for other in (*lane.suppressors, *([lane.escalation] if lane.escalation else [])):
            wells |= {well for well in batch.walked.get(other.index, ()) if phases[well] or other is lane.escalation}
        if busy and not lane.parent:
            wells |= self._unshelved(lane, rows, phases)
        batch.walked[lane.index] = wells
        if lane.exposes or lane.parent:
            batch.active[lane.index] = phase >= ACTIVE  # what is latched holds back its consequences too
        if wells:
            self._walk_all(batch, lane, code, sorted(wells))
        if busy and not lane.parent:
            self._peaks(batch, lane, phase, code, wells)
        if lane.exposes:
            self._note_active(batch, lane)

    def _code(self, batch: Pass, lane: Lane, truth: Truth) -> Array:
        """Off, on, neither, skip (a gauge dropout) or apart (stopped, starting, disabled) for each row."""
        count = len(batch.rows)
        yes, no = np.broadcast_to(truth.yes, count), np.broadcast_to(truth.no, count)
        code = 2 - yes.view(np.int8) - 2 * no.view(np.int8)
        rule = lane.rule
        if batch.dropped and rule.skip_dropouts:
            code[batch.measured.dropped] = SKIP
        if rule.applies == "settled":
            code[batch.not_settled] = APART
        elif rule.applies == "running":
            code[batch.not_running] = APART
        if self._any_disabled:
            code[~self._config["enabled"][lane.index][batch.rows.slot]] = APART
        return code

    def _due(self, lane: Lane, rows: Rows, what: Array, walk: BoolArray) -> None:
        """Add to ``walk`` the rows at which a running delay is over."""
        for kind, name in ((DUE_ON, "on_us"), (DUE_OFF, "off_us")):
            waiting = np.flatnonzero(what == kind)
            if waiting.size:
                slot = rows.slot[waiting]
                elapsed = rows.t[waiting] - self._state["since"][lane.index][slot]
                walk[waiting[elapsed >= self._config[name][lane.index][slot]]] = True

    def _unshelved(self, lane: Lane, rows: Rows, phases: Array) -> set[int]:
        """Wells whose open occurrence may stop being shelved."""
        until = self._config["shelved_us"][lane.index][rows.slots]
        shelved = np.flatnonzero((until != NEVER) & (phases != NORMAL))
        return set(shelved.tolist())

    def _peaks(self, batch: Pass, lane: Lane, phase: Array, code: Array, walked: set[int]) -> None:
        """Peaks of open occurrences whose wells were not walked."""
        headline = lane.condition.headline
        if headline is None:
            return
        some = ((phase == ACTIVE) | (phase == RETURNING)) & (code < SKIP)
        if walked:
            some &= ~np.isin(batch.rows.group, list(walked))
        at = np.flatnonzero(some)
        if not at.size:
            return
        values = np.broadcast_to(headline.value(batch.frame), len(batch.rows))[at]
        slots = batch.rows.slot[at]
        peak = self._state["peak"][lane.index]
        self._journal.keep(peak, np.unique(slots))
        (np.fmin if headline.below else np.fmax).at(peak, slots, values)

    def _note_active(self, batch: Pass, lane: Lane) -> None:
        active = batch.active[lane.index]
        if active.any():
            rows, times = batch.rows, self._state["active_us"]
            before = times[lane.index][rows.slots]
            newest = rows.carry(active, rows.t, before)
            batch.frame.recent[lane.index] = newest
            self._journal.put(times, (lane.index, rows.slots), newest[rows.last])

    # -- where something changes: Python, a stretch of equal rows at a time

    def _walk_all(self, batch: Pass, lane: Lane, code: Array, wells: Sequence[int]) -> None:
        rows = batch.rows
        forced = batch.active.get(lane.escalation.index) if lane.escalation else None
        held = self._held(batch, lane)
        headline = lane.condition.headline
        values = thresholds = None
        if headline is not None and not lane.parent:
            values = np.broadcast_to(headline.value(batch.frame), len(rows))
            thresholds = np.broadcast_to(headline.threshold(batch.frame), len(rows))
        for well in wells:
            Walk(self._book, self._config, batch, lane, well, code, forced, held, values, thresholds).go()

    def _held(self, batch: Pass, lane: Lane) -> Array | None:
        """Bits by row: a suppressor is active, or the lane is shelved."""
        held: Array | None = None
        for other in lane.suppressors:
            active = batch.active.get(other.index)
            if active is not None and active.any():
                held = active.astype(np.int8) if held is None else held | active.astype(np.int8)
        until = self._config["shelved_us"][lane.index][batch.rows.slots]
        if (until != NEVER).any():
            shelved = (batch.rows.t < until[batch.rows.group]).astype(np.int8) * np.int8(HELD_SHELVED)
            held = shelved if held is None else held | shelved
        return held

    # -- silence, by the clock

    def tick(self, now_us: int, listening_since_us: int = NEVER) -> Evaluation:
        """Wells that have fallen silent by ``now_us`` (wall time). Call it only while nothing waits in the spool.
        Before ``listening_since_us`` nobody listened, so nothing counts as silence.

        Silence is judged by when readings were received, but dated in event time, last reading + delay: the row that
        the next reading would have raised for the same gap has the same key."""
        self._begin()
        self._silence.at_clock(now_us, listening_since_us)
        return self._end(0)

    # -- state over restarts

    def export(self, wells: Sequence[str] | None = None) -> dict[str, bytes]:
        """The whole state by well (None: all): what :meth:`restore` takes. Only between batches."""
        if self._in_flight:
            raise RuntimeError("a batch is in flight")
        chosen = self._wells if wells is None else [well for well in wells if well in self._slots]
        opened: dict[int, list[list[Any]]] = {}
        names = [lane.name for lane in self._lanes] + [rule.name for rule in self._stale]
        for (lane, slot), occurrence in [*self._book.open.items(), *self._book.silent.items()]:
            opened.setdefault(slot, []).append([names[lane], occurrence])
        return {
            well: zlib.compress(
                _pack({"version": 1, "arrays": self._state.export(slot), "open": opened.get(slot, [])}), 1
            )
            for well in chosen
            for slot in (self._slots[well],)
        }

    def restore(self, states: Mapping[str, bytes]) -> list[str]:
        """Put back what :meth:`export` gave, also under other rules: by name of rule and signal.

        Returns the wells whose state could not be read; they start anew."""
        unread = []
        lanes = {lane.name: lane.index for lane in self._lanes}
        lanes |= {rule.name: len(self._lanes) + at for at, rule in enumerate(self._stale)}
        for well, data in states.items():
            try:
                found = msgspec.msgpack.decode(zlib.decompress(data), type=_Exported)
            except (zlib.error, msgspec.MsgspecError):
                unread.append(well)
                continue
            slot = self._slot(well)
            self._state.restore(slot, found.arrays)
            for name, occurrence in found.open:
                self._reopen(lanes.get(name), slot, occurrence)
        self._signal_state.forget_shortcuts()
        return unread

    def _reopen(self, lane: int | None, slot: int, occurrence: Occurrence) -> None:
        if lane is None:
            return
        (self._book.open if lane < len(self._lanes) else self._book.silent)[lane, slot] = occurrence
        self._book.counts[occurrence.diagnosis, occurrence.severity.value] += 1

    # -- what is open

    def open_occurrences(self) -> list[Occurrence]:
        return [*self._book.open.values(), *self._book.silent.values()]

    def wells(self) -> list[str]:
        return list(self._slots)

    @property
    def bytes_a_well(self) -> int:
        """Memory that the arrays take for each well, without its open occurrences."""
        return self._state.bytes_a_slot + self._config.bytes_a_slot

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
        for opened in (self._book.open, self._book.silent):
            for key in [key for key in opened if key[1] in slots]:
                gone = opened.pop(key)
                self._book.counts[gone.diagnosis, gone.severity.value] -= 1
        for slot in slots:
            self._state.free_slot(slot)
            self._config.free_slot(slot)
            self._wells[slot] = ""

    def newest_us(self, well: str) -> int | None:
        """Event time of the newest reading taken into the well's state, µs; None for a well without one."""
        slot = self._slots.get(well)
        newest = NEVER if slot is None else int(self._state["last_us"][slot])
        return None if newest == NEVER else newest

    # -- what operators did. Between batches; the database has it already, so no rows come of it.

    def open_at(self, well: str, diagnosis: str) -> Occurrence | None:
        return self._found(well, diagnosis)[1]

    def put(self, occurrence: Occurrence) -> bool:
        """The open occurrence of this well and diagnosis is this one. False where there is none, but for silence."""
        key, before = self._found(occurrence.well_id, occurrence.diagnosis)
        if key is None or (before is None and key[0] < len(self._lanes)):
            return False
        if before is not None:
            self._book.counts[before.diagnosis, before.severity.value] -= 1
        self._reopen(*key, occurrence)
        return True

    def end_latched(self, well: str, diagnosis: str) -> bool:
        """Acknowledged after its return: a latched occurrence is over. False where it is none."""
        key, occurrence = self._found(well, diagnosis)
        if key is None or occurrence is None or occurrence.latched_us is None:
            return False
        self._state["phase"][key] = NORMAL
        del self._book.open[key]
        self._book.counts[occurrence.diagnosis, occurrence.severity.value] -= 1
        return True

    def shelve(self, well: str, diagnosis: str, until_us: int | None) -> None:
        """Hold the diagnosis back until then, in event time; None ends it."""
        slot = self._slot(well)
        for lane in self._lanes:
            if lane.rule.name == diagnosis:
                self._config["shelved_us"][lane.index, slot] = NEVER if until_us is None else until_us

    def _found(self, well: str, diagnosis: str) -> tuple[tuple[int, int] | None, Occurrence | None]:
        slot = self._slots.get(well)
        lanes = [lane.index for lane in self._lanes if lane.rule.name == diagnosis and not lane.parent]
        lanes += [len(self._lanes) + at for at, rule in enumerate(self._stale) if rule.name == diagnosis]
        if slot is None or not lanes:
            return None, None
        key = (lanes[0], slot)
        return key, (self._book.open if lanes[0] < len(self._lanes) else self._book.silent).get(key)
