"""Columns in, transitions out: the rules run over a batch of readings, in event time, well by well.

One batch is in flight: ``evaluate`` works on the state in place and notes in a journal what it overwrites; ``accept``
drops the journal once the batch is committed, ``discard`` plays it back. What a batch raises is a function of each
well's readings in the order received, however they are cut into batches (tests/property/test_diagnostics_engine.py).
"""

import logging
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec
import numpy as np

from esp_ingest.diagnostics import alarms
from esp_ingest.diagnostics.alarms import Occurrence
from esp_ingest.diagnostics.baseline import HOURS, INTERVAL, Baselines, Key
from esp_ingest.diagnostics.conditions import NONE, BoolArray, Condition, Truth, Unit
from esp_ingest.diagnostics.frame import BatchFrame, Rows, grouped
from esp_ingest.diagnostics.rules import Rule, RuleSet
from esp_ingest.diagnostics.signals import Measured, Running, RunState, SignalState
from esp_ingest.diagnostics.state import NEVER, Array, Journal, WellArrays
from esp_ingest.telemetry.model import SIGNAL_NAMES, DiagnosticRow, FloatArray, IntArray, Readings, Severity

log = logging.getLogger(__name__)

# What a row says to a lane, and the phases of a lane.
_OFF, _ON, _HOLD, _SKIP, _APART = range(5)
_NORMAL, _PENDING, _ACTIVE, _RETURNING, _LATCHED = range(5)
_QUIET, _WALK, _DUE_ON, _DUE_OFF = range(4)
# [phase][code]: nothing happens, something does, or it does once the delay is over.
_WHAT = np.array(
    [
        [_QUIET, _WALK, _QUIET, _QUIET, _QUIET],
        [_WALK, _DUE_ON, _WALK, _QUIET, _WALK],
        [_WALK, _QUIET, _QUIET, _QUIET, _WALK],
        [_DUE_OFF, _WALK, _QUIET, _QUIET, _WALK],
        [_QUIET, _WALK, _QUIET, _QUIET, _QUIET],
    ],
    np.int8,
).ravel()
_HELD_SUPPRESSED, _HELD_SHELVED = 1, 2
_HISTORICAL_KEYS = ("historical", "backlog")
_PACE = 0.5


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


@dataclass(slots=True)
class _Lane:
    """One condition with its timer: a rule, or the graver step of one (``parent`` set)."""

    index: int
    rule: Rule
    condition: Condition
    severity: Severity
    parent: bool = False
    escalation: "_Lane | None" = None
    suppressors: list["_Lane"] = field(default_factory=list)
    upgraders: list["_Lane"] = field(default_factory=list)
    exposes: bool = False  # another lane reads whether this one is active
    failed: str = ""

    @property
    def name(self) -> str:
        return f"{self.rule.name}!" if self.parent else self.rule.name


@dataclass(slots=True)
class _Pass:
    """What one batch carries from step to step."""

    readings: Readings
    rows: Rows
    frame: BatchFrame
    measured: Measured
    running: Running
    frozen: dict[str, FloatArray]
    dropped: bool
    not_running: BoolArray
    not_settled: BoolArray
    active: dict[int, BoolArray] = field(default_factory=dict)
    walked: dict[int, set[int]] = field(default_factory=dict)


class Engine:
    """Driven by one thread. ``metrics`` may be None (tests, `rules test`)."""

    def __init__(self, rules: RuleSet, metrics: EngineMetrics | None = None) -> None:
        self.rules = rules
        self._metrics = metrics
        self._names = [*SIGNAL_NAMES, *rules.extra_signals]
        self._slots: dict[str, int] = {}
        self._wells: list[str] = []
        self._open: dict[tuple[int, int], Occurrence] = {}
        self._silent: dict[tuple[int, int], Occurrence] = {}
        self._active_counts: Counter[tuple[str, str]] = Counter()
        self._journal = Journal()
        self._in_flight = 0
        self._number = 0
        self._changed: dict[tuple[str, str, int], DiagnosticRow] = {}
        self._raised: Counter[tuple[str, str]] = Counter()
        self._shown: list[tuple[str, str, int]] = []
        self._lanes, self._stale = _lanes(rules)
        columns = {key for lane in self._lanes for key in lane.condition.columns}
        self._has_frozen = ("fact", "frozen_for") in columns
        self._state = self._allocate(columns)
        self._config = self._allocate_config()

    def _allocate(self, columns: set[Key]) -> WellArrays:
        state = WellArrays()
        names = [lane.name for lane in self._lanes]
        state.add("last_us", np.int64, NEVER)
        state.add("received_us", np.int64, NEVER)
        state.add("phase", np.int8, 0, names)
        state.add("since", np.int64, NEVER, names)
        state.add("peak", np.float64, np.nan, names)
        state.add("active_us", np.int64, NEVER, names)
        state.add("within_us", np.int64, NEVER, _site_labels(self._lanes, self.rules.sites))
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
        self._changed = {}
        self._raised = Counter()
        self._shown = []

    def _end(self, late: int) -> Evaluation:
        return Evaluation(list(self._changed.values()), self._raised, late, self._number, self._shown)

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
            for (diagnosis, severity), count in self._active_counts.items():
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
        facts = _facts(rows, measured, running, frozen, last_us, last_received)
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
        batch = _Pass(
            readings,
            rows,
            frame,
            measured,
            running,
            frozen,
            dropped=bool(measured.dropped.any()),
            not_running=running.running != 1,
            not_settled=~running.settled,
        )
        for rule in self._stale:
            self._silences(batch, rule, last_us)
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
        marked = _historical(readings.extra) if readings.extra else []
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
                    _pick(text, list(self.rules.extra_signals), more[:, place[source]])
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
            for name in _keys(text):
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
    def _lane_delay(lane: _Lane) -> int:
        return lane.rule.escalation.on_delay_us if lane.parent and lane.rule.escalation else lane.rule.on_delay_us

    def _slot(self, well: str) -> int:
        slot = self._slots.get(well)
        if slot is not None:
            return slot
        slot = self._state.new_slot()
        self._config.new_slot()
        self._slots[well] = slot
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

    def _parameters(self, batch: _Pass, rule: Rule) -> None:
        overridden = sorted(self._per_well)
        for name, value in rule.parameters.items():
            column: Any = np.float64(value)
            if (rule.name, name) in self._per_well:
                at = overridden.index((rule.name, name))
                column = self._config["parameters"][at][batch.rows.slot]
            batch.frame.set_parameter(name, column)

    # -- one lane

    def _run_lane(self, batch: _Pass, lane: _Lane) -> None:
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

    def _fail(self, lane: _Lane, error: Exception) -> None:
        lane.failed = f"{type(error).__name__}: {error}"
        log.exception("rule %s failed and is switched off until the rules are read again", lane.rule.name)
        if self._metrics is not None:
            self._metrics.diagnostics_rule_failures.labels(diagnosis=lane.rule.name).inc()
            self._metrics.diagnostics_rules_disabled.set(len(self.failed_rules()))

    def failed_rules(self) -> dict[str, str]:
        """Rules switched off by a failure at run time, with the reason."""
        return {lane.rule.name: lane.failed for lane in self._lanes if lane.failed}

    def _apply(self, batch: _Pass, lane: _Lane, truth: Truth) -> None:
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
        what = _WHAT[phase * 5 + code]
        walk = what == _WALK
        if busy:
            self._due(lane, rows, what, walk)
        wells = set(rows.group[walk].tolist()) if walk.any() else set()
        for other in (*lane.suppressors, *([lane.escalation] if lane.escalation else [])):
            wells |= {well for well in batch.walked.get(other.index, ()) if phases[well] or other is lane.escalation}
        if busy and not lane.parent:
            wells |= self._unshelved(lane, rows, phases)
        batch.walked[lane.index] = wells
        if lane.exposes or lane.parent:
            batch.active[lane.index] = phase >= _ACTIVE  # what is latched holds back its consequences too
        if wells:
            self._walk_all(batch, lane, code, sorted(wells))
        if busy and not lane.parent:
            self._peaks(batch, lane, phase, code, wells)
        if lane.exposes:
            self._note_active(batch, lane)

    def _code(self, batch: _Pass, lane: _Lane, truth: Truth) -> Array:
        """Off, on, neither, skip (a gauge dropout) or apart (stopped, starting, disabled) for each row."""
        count = len(batch.rows)
        yes, no = np.broadcast_to(truth.yes, count), np.broadcast_to(truth.no, count)
        code = 2 - yes.view(np.int8) - 2 * no.view(np.int8)
        rule = lane.rule
        if batch.dropped and rule.skip_dropouts:
            code[batch.measured.dropped] = _SKIP
        if rule.applies == "settled":
            code[batch.not_settled] = _APART
        elif rule.applies == "running":
            code[batch.not_running] = _APART
        if self._any_disabled:
            code[~self._config["enabled"][lane.index][batch.rows.slot]] = _APART
        return code

    def _due(self, lane: _Lane, rows: Rows, what: Array, walk: BoolArray) -> None:
        """Add to ``walk`` the rows at which a running delay is over."""
        for kind, name in ((_DUE_ON, "on_us"), (_DUE_OFF, "off_us")):
            waiting = np.flatnonzero(what == kind)
            if waiting.size:
                slot = rows.slot[waiting]
                elapsed = rows.t[waiting] - self._state["since"][lane.index][slot]
                walk[waiting[elapsed >= self._config[name][lane.index][slot]]] = True

    def _unshelved(self, lane: _Lane, rows: Rows, phases: Array) -> set[int]:
        """Wells whose open occurrence may stop being shelved."""
        until = self._config["shelved_us"][lane.index][rows.slots]
        shelved = np.flatnonzero((until != NEVER) & (phases != _NORMAL))
        return set(shelved.tolist())

    def _peaks(self, batch: _Pass, lane: _Lane, phase: Array, code: Array, walked: set[int]) -> None:
        """Peaks of open occurrences whose wells were not walked."""
        headline = lane.condition.headline
        if headline is None:
            return
        some = ((phase == _ACTIVE) | (phase == _RETURNING)) & (code < _SKIP)
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

    def _note_active(self, batch: _Pass, lane: _Lane) -> None:
        active = batch.active[lane.index]
        if active.any():
            rows, times = batch.rows, self._state["active_us"]
            before = times[lane.index][rows.slots]
            newest = rows.carry(active, rows.t, before)
            batch.frame.recent[lane.index] = newest
            self._journal.put(times, (lane.index, rows.slots), newest[rows.last])

    def _recently(self, batch: _Pass, lane: _Lane, row: int, within_us: int) -> bool:
        newest = batch.frame.recent.get(lane.index)
        when = self._state["active_us"][lane.index, batch.rows.slot[row]] if newest is None else newest[row]
        return bool(batch.rows.t[row] - when <= within_us)

    # -- where something changes: Python, a stretch of equal rows at a time

    def _walk_all(self, batch: _Pass, lane: _Lane, code: Array, wells: Sequence[int]) -> None:
        rows = batch.rows
        forced = batch.active.get(lane.escalation.index) if lane.escalation else None
        held = self._held(batch, lane)
        headline = lane.condition.headline
        values = thresholds = None
        if headline is not None and not lane.parent:
            values = np.broadcast_to(headline.value(batch.frame), len(rows))
            thresholds = np.broadcast_to(headline.threshold(batch.frame), len(rows))
        for well in wells:
            _Walk(self, batch, lane, well, code, forced, held, values, thresholds).go()

    def _held(self, batch: _Pass, lane: _Lane) -> Array | None:
        """Bits by row: a suppressor is active, or the lane is shelved."""
        held: Array | None = None
        for other in lane.suppressors:
            active = batch.active.get(other.index)
            if active is not None and active.any():
                held = active.astype(np.int8) if held is None else held | active.astype(np.int8)
        until = self._config["shelved_us"][lane.index][batch.rows.slots]
        if (until != NEVER).any():
            shelved = (batch.rows.t < until[batch.rows.group]).astype(np.int8) * np.int8(_HELD_SHELVED)
            held = shelved if held is None else held | shelved
        return held

    # -- occurrences

    def _raise(self, batch: _Pass, lane: _Lane, row: int, since: int, forced: bool, held: int, told: Any) -> None:
        rule, rows = lane.rule, batch.rows
        well = self._wells[int(rows.slot[row])]
        settings = self.rules.settings_of(rule, well) if self.rules.overrides else None
        severity = settings["severity"] if settings else rule.severity
        if forced and rule.escalation:
            severity = rule.escalation.severity
        elif rule.upgrade and any(
            self._recently(batch, other, row, rule.upgrade.within_us) for other in lane.upgraders
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
            message=_sentence(lane, value, threshold, since, self._signals_at(batch, rule, row), well),
            actions_json=_json(list(rule.actions)),
            snapshot_json=self._snapshot(batch, row),
            confidence=self._confidence(batch, rule, row),
            held_by=_held_by(held),
        )
        self._store(lane.index, int(rows.slot[row]), occurrence, new=True)

    def _escalate(self, batch: _Pass, lane: _Lane, row: int, since: int) -> None:
        slot = int(batch.rows.slot[row])
        occurrence, step = self._open[lane.index, slot], lane.escalation
        if step is None or occurrence.severity is step.severity or occurrence.cleared_us is not None:
            return
        told = _told(step, batch, row)
        message = _sentence(step, *told, since, self._signals_at(batch, lane.rule, row), occurrence.well_id)
        graver = replace(
            occurrence, severity=step.severity, message=message, value=told[0], threshold=told[1], acknowledged=False
        )
        self._store(lane.index, slot, graver)

    def _store(self, lane: int, slot: int, occurrence: Occurrence, new: bool = False) -> None:
        """The new state of an occurrence, in memory and in what the batch will write."""
        key = (lane, slot)
        before = self._open.get(key)
        if before is not None:
            self._tally(before, -1)
        gone = occurrence.cleared_us is not None
        if not gone:
            self._tally(occurrence, 1)
        if new and not occurrence.held_by:
            self._show(occurrence)
        self._journal.put_key(self._open, key, None if gone else occurrence)
        self._changed[occurrence.well_id, occurrence.diagnosis, occurrence.raised_us] = alarms.to_row(
            occurrence, _number(self._state["peak"][lane, slot]) if occurrence.value is not None else None
        )

    def _show(self, occurrence: Occurrence) -> None:
        self._raised[occurrence.diagnosis, occurrence.severity.value] += 1
        self._shown.append((occurrence.well_id, occurrence.diagnosis, occurrence.raised_us))

    def _tally(self, occurrence: Occurrence, by: int) -> None:
        key = (occurrence.diagnosis, occurrence.severity.value)
        self._journal.put_key(self._active_counts, key, self._active_counts.get(key, 0) + by)

    def _snapshot(self, batch: _Pass, row: int) -> str:
        """The signals as sent, what the well is used to, and whether it runs."""
        signals = {
            name: float(values[row]) for name, values in batch.measured.raw.items() if values[row] == values[row]
        }
        run = batch.running.run[row]
        medians = {
            str(key[1]): _round(batch.running.features[at, run])
            for key, at in self._baselines.row.items()
            if key[0] == "median" and batch.running.features[at, run] == batch.running.features[at, run]
        }
        state = {1: "running", 0: "stopped"}.get(int(batch.running.running[row]), "not known")
        return _json({**signals, "median_24h": medians, "well": state})

    def _signals_at(self, batch: _Pass, rule: Rule, row: int) -> str:
        """Which signals a rule on gauges is about."""
        keys = rule.when.columns if rule.when else frozenset()
        if ("fact", "frozen_for") in keys:
            return ", ".join(name for name, seconds in batch.frozen.items() if seconds[row] > 0)
        if ("fact", "failed_signals") in keys:
            names = [name for name, mask in batch.measured.failed.items() if mask[row]]
            return ", ".join("pip or discharge_pressure" if name == "pressure_order" else name for name in names)
        return ""

    def _confidence(self, batch: _Pass, rule: Rule, row: int) -> float:
        """The rule's own confidence, less where the baseline is younger than a day of running."""
        if not rule.needs_baseline:
            return rule.confidence
        hours = batch.running.features[self._baselines.row[HOURS], batch.running.run[row]]
        return round(rule.confidence * float(np.nan_to_num(hours)) / 24, 3)

    # -- silence

    def _silences(self, batch: _Pass, rule: Rule, last_us: IntArray) -> None:
        """Readings after a gap: the silence before them is over, and was raised by the clock or is raised now."""
        rows, stale = batch.rows, rule.stale
        if stale is None:
            return
        lane = len(self._lanes) + self._stale.index(rule)
        delay = np.maximum(batch.running.interval * stale.after, stale.minimum_us)
        previous = rows.shifted(rows.t, last_us)
        silent = np.flatnonzero((rows.t - previous > delay) & (previous != NEVER))
        for row in silent.tolist():
            gap = int(rows.t[row] - previous[row])
            raised = int(previous[row] + delay[row])
            occurrence = self._silence(rule, int(rows.slot[row]), raised, gap, float(delay[row]))
            new = (lane, int(rows.slot[row])) not in self._silent
            self._store_silence(lane, int(rows.slot[row]), occurrence.cleared(int(rows.t[row])), gap, new)
        self._clear_silences(rows, lane, set(silent.tolist()))

    def _clear_silences(self, rows: Rows, lane: int, done: set[int]) -> None:
        """An open one whose gap turns out shorter in event time (late delivery) is cleared by data all the same."""
        if not self._silent:
            return
        for slot, start in zip(rows.slots.tolist(), rows.starts.tolist(), strict=True):
            occurrence = self._silent.get((lane, slot))
            if occurrence is not None and start not in done:
                at = max(int(rows.t[start]), occurrence.raised_us)
                gap = at - occurrence.raised_us
                self._store_silence(lane, slot, occurrence.cleared(at), gap, False)

    def _silence(self, rule: Rule, slot: int, raised: int, gap: int, delay: float) -> Occurrence:
        stale = rule.stale
        if stale is None:
            raise AssertionError("a rule on silence has a stale table")
        grave = gap > delay * stale.escalate_after / stale.after
        well = self._wells[slot]
        seen = rule.seen.format(value="", threshold=alarms.span(delay / 1e6), signals="", well=well, duration="")
        return Occurrence(
            well_id=well,
            diagnosis=rule.name,
            raised_us=raised,
            severity=stale.escalate_severity if grave else rule.severity,
            value=gap / 1e6,
            threshold=round(delay / 1e6, 3),
            message=_compose(well, seen, raised - round(delay), rule),
            actions_json=_json(list(rule.actions)),
            snapshot_json=_json({"last_reading": alarms.moment(raised - round(delay))}),
            confidence=rule.confidence,
        )

    def _store_silence(self, lane: int, slot: int, occurrence: Occurrence, gap: int, new: bool) -> None:
        key = (lane, slot)
        before = self._silent.get(key)
        if before is not None:
            self._tally(before, -1)
        gone = occurrence.cleared_us is not None
        if not gone:
            self._tally(occurrence, 1)
        if new:
            self._show(occurrence)
        self._journal.put_key(self._silent, key, None if gone else occurrence)
        row = alarms.to_row(occurrence, gap / 1e6)
        self._changed[occurrence.well_id, occurrence.diagnosis, occurrence.raised_us] = row

    def tick(self, now_us: int, listening_since_us: int = NEVER) -> Evaluation:
        """Wells that have fallen silent by ``now_us`` (wall time). Call it only while nothing waits in the spool.
        Before ``listening_since_us`` nobody listened, so nothing counts as silence.

        Silence is judged by when readings were received, but dated in event time, last reading + delay: the row that
        the next reading would have raised for the same gap has the same key."""
        self._begin()
        state, count = self._state, self._state.count
        silent = now_us - np.maximum(state["received_us"][:count], listening_since_us)
        known = state["last_us"][:count] != NEVER
        for at, rule in enumerate(self._stale):
            if rule.stale is None:
                continue
            delay = np.maximum(state["features"][self._baselines.row[INTERVAL], :count] * rule.stale.after, 0)
            delay = np.where(np.isnan(delay), np.inf, np.maximum(delay, rule.stale.minimum_us))
            for slot in np.flatnonzero(known & (silent > delay)).tolist():
                self._fall_silent(rule, len(self._lanes) + at, slot, int(silent[slot]), float(delay[slot]))
        return self._end(0)

    def _fall_silent(self, rule: Rule, lane: int, slot: int, silent: int, delay: float) -> None:
        raised = int(self._state["last_us"][slot] + delay)
        occurrence = self._silence(rule, slot, raised, silent, delay)
        before = self._silent.get((lane, slot))
        if before is None or before.severity is not occurrence.severity:
            self._store_silence(lane, slot, occurrence, silent, before is None)

    # -- state over restarts

    def export(self, wells: Sequence[str] | None = None) -> dict[str, bytes]:
        """The whole state by well (None: all): what :meth:`restore` takes. Only between batches."""
        if self._in_flight:
            raise RuntimeError("a batch is in flight")
        chosen = self._wells if wells is None else [well for well in wells if well in self._slots]
        opened: dict[int, list[list[Any]]] = {}
        names = [lane.name for lane in self._lanes] + [rule.name for rule in self._stale]
        for (lane, slot), occurrence in [*self._open.items(), *self._silent.items()]:
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
        (self._open if lane < len(self._lanes) else self._silent)[lane, slot] = occurrence
        self._active_counts[occurrence.diagnosis, occurrence.severity.value] += 1

    # -- what is open

    def open_occurrences(self) -> list[Occurrence]:
        return [*self._open.values(), *self._silent.values()]

    def wells(self) -> list[str]:
        return list(self._wells)

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
            self._active_counts[before.diagnosis, before.severity.value] -= 1
        self._reopen(*key, occurrence)
        return True

    def end_latched(self, well: str, diagnosis: str) -> bool:
        """Acknowledged after its return: a latched occurrence is over. False where it is none."""
        key, occurrence = self._found(well, diagnosis)
        if key is None or occurrence is None or occurrence.latched_us is None:
            return False
        self._state["phase"][key] = _NORMAL
        del self._open[key]
        self._active_counts[occurrence.diagnosis, occurrence.severity.value] -= 1
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
        return key, (self._open if lanes[0] < len(self._lanes) else self._silent).get(key)


class _Walk:
    """One lane at one well through one batch: the timer's transitions, a stretch of equal rows at a time."""

    def __init__(
        self,
        engine: Engine,
        batch: _Pass,
        lane: _Lane,
        well: int,
        code: Array,
        forced: BoolArray | None,
        held: Array | None,
        values: FloatArray | None,
        thresholds: FloatArray | None,
    ) -> None:
        self._engine, self._batch, self._lane = engine, batch, lane
        rows = batch.rows
        self._from, self._to = int(rows.starts[well]), int(rows.ends[well])
        self._slot = int(rows.slots[well])
        self._t = rows.t
        self._code, self._forced, self._held = code, forced, held
        self._values, self._thresholds = values, thresholds
        state, config = engine._state, engine._config
        self._phase = int(state["phase"][lane.index, self._slot])
        self._since = int(state["since"][lane.index, self._slot])
        self._on = int(config["on_us"][lane.index, self._slot])
        self._off = int(config["off_us"][lane.index, self._slot])
        self._active_from = self._from

    def go(self) -> None:
        lane, slot = self._lane, self._slot
        for begin, end in self._stretches():
            self._stretch(begin, end)
        if self._phase in (_ACTIVE, _RETURNING):
            self._peak(self._active_from, self._to)
        journal, state = self._engine._journal, self._engine._state
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
        if self._phase in (_ACTIVE, _RETURNING, _LATCHED):
            self._hold(begin, held, condition_holds=code == _ON or forced)
        if code == _APART:
            self._apart(begin)
            return
        if forced:
            self._force(begin, held)
            return
        if code == _ON:
            self._turned_on(begin, end, held)
        elif code == _OFF:
            self._turned_off(begin, end)
        elif code == _HOLD and self._phase == _PENDING:
            self._phase = _NORMAL

    def _turned_on(self, begin: int, end: int, held: int) -> None:
        if self._phase == _NORMAL:
            self._phase, self._since = _PENDING, int(self._t[begin])
        if self._phase == _PENDING:
            at = begin + int(np.searchsorted(self._t[begin:end], self._since + self._on))
            if at < end:
                self._raise(at, False, held)
        elif self._phase in (_RETURNING, _LATCHED):
            latched = self._phase == _LATCHED
            self._phase = _ACTIVE
            self._active_from = begin if latched else self._active_from
            self._again(latched)

    def _turned_off(self, begin: int, end: int) -> None:
        if self._phase == _PENDING:
            self._phase = _NORMAL
        if self._phase == _ACTIVE:
            self._phase, self._since = _RETURNING, int(self._t[begin])
        if self._phase == _RETURNING:
            at = begin + int(np.searchsorted(self._t[begin:end], self._since + self._off))
            if at < end:
                self._clear(at)

    def _apart(self, begin: int) -> None:
        """Stopped, starting or switched off: process alarms are suppressed by design, open ones end here."""
        if self._phase == _PENDING:
            self._phase = _NORMAL
        elif self._phase in (_ACTIVE, _RETURNING):
            self._clear(begin)

    def _force(self, begin: int, held: int) -> None:
        """The graver step is active: raised at once if it is not, else escalated."""
        if self._phase in (_NORMAL, _PENDING):
            if self._phase == _NORMAL:
                self._since = int(self._t[begin])
            self._raise(begin, True, held)
            return
        if self._phase == _RETURNING:
            self._phase = _ACTIVE
            self._again(False)
        self._catch_up(begin)
        self._engine._escalate(self._batch, self._lane, begin, int(self._t[begin]))

    # -- transitions

    def _raise(self, at: int, forced: bool, held: int) -> None:
        lane, engine = self._lane, self._engine
        self._phase, self._active_from = _ACTIVE, at
        self._expose(at, True)
        if lane.parent:
            return
        engine._journal.put(engine._state["peak"], (lane.index, self._slot), np.nan)
        self._peak(at, at + 1)
        told: tuple[float | None, float | None] = (None, None)
        if forced and lane.escalation is not None:
            told = _told(lane.escalation, self._batch, at)
        elif self._values is not None and self._thresholds is not None:
            told = _number(self._values[at]), _number(self._thresholds[at])
        engine._raise(self._batch, lane, at, self._since, forced, held, told)

    def _again(self, latched: bool) -> None:
        if not self._lane.parent:
            engine, key = self._engine, (self._lane.index, self._slot)
            occurrence = engine._open.get(key)
            if occurrence is not None:
                engine._journal.put_key(engine._open, key, occurrence.again())
                if latched:
                    engine._store(*key, occurrence.again())

    def _hold(self, begin: int, held: int, condition_holds: bool) -> None:
        """Held back, or let go: what is over already when its cause goes is never let go."""
        if self._lane.parent or not (held or condition_holds):
            return
        engine, key = self._engine, (self._lane.index, self._slot)
        occurrence = engine._open.get(key)
        by = _held_by(held)
        if occurrence is not None and occurrence.held_by != by:
            self._catch_up(begin)
            engine._store(*key, replace(occurrence, held_by=by), new=not by)

    def _clear(self, at: int) -> None:
        self._peak(self._active_from, at)
        lane, engine = self._lane, self._engine
        self._phase = _NORMAL
        if lane.parent:
            self._expose(at, False)
            return
        occurrence = engine._open[lane.index, self._slot]
        t = int(self._t[at])
        if lane.rule.latching and not occurrence.acknowledged and not occurrence.held_by:
            self._phase, self._since = _LATCHED, t
            engine._store(lane.index, self._slot, replace(occurrence, latched_us=t))
        else:
            self._expose(at, False)
            engine._store(lane.index, self._slot, occurrence.cleared(t))

    def _peak(self, begin: int, end: int) -> None:
        headline = self._lane.condition.headline
        if headline is None or self._values is None or begin >= end:
            return
        some = self._values[begin:end][self._code[begin:end] < _SKIP]
        some = some[~np.isnan(some)]
        if not some.size:
            return
        peak = self._engine._state["peak"]
        old = peak[self._lane.index, self._slot]
        extreme = some.min() if headline.below else some.max()
        new = (np.fmin if headline.below else np.fmax)(old, extreme)
        self._engine._journal.put(peak, (self._lane.index, self._slot), new)

    def _catch_up(self, begin: int) -> None:
        """The peak up to the row before ``begin``, for a row that is written now."""
        if self._phase in (_ACTIVE, _RETURNING):
            self._peak(self._active_from, begin)
            self._active_from = begin

    def _expose(self, at: int, active: bool) -> None:
        mask = self._batch.active.get(self._lane.index)
        if mask is not None:
            mask[at : self._to] = active


# --- pieces -------------------------------------------------------------------------------------------------------


def _lanes(rules: RuleSet) -> tuple[list[_Lane], list[Rule]]:
    """Lanes in the order in which they run (a graver step before its rule), and the rules on silence."""
    lanes: list[_Lane] = []
    stale: list[Rule] = []
    main: dict[str, _Lane] = {}
    for rule in rules.rules:
        if rule.when is None:
            stale.append(rule)
            continue
        step = None
        if rule.escalation:
            step = _Lane(len(lanes), rule, rule.escalation.when, rule.escalation.severity, parent=True)
            lanes.append(step)
        lane = _Lane(len(lanes), rule, rule.when, rule.severity, escalation=step)
        lanes.append(lane)
        main[rule.name] = lane
        lane.suppressors = [main[name] for name in rule.suppressed_by if name in main]
        lane.upgraders = [main[name] for name in rule.upgrade.after if name in main] if rule.upgrade else []
        for other in (*lane.suppressors, *lane.upgraders):
            other.exposes = True
    return lanes, stale


def _site_labels(lanes: list[_Lane], count: int) -> list[str]:
    """Names for the uses of within(), so that their state survives a change elsewhere in the rules."""
    labels = [f"unused {site}" for site in range(count)]
    for lane in lanes:
        for nth, site in enumerate(lane.condition.sites):
            labels[site] = f"{lane.name} {nth}"
    return labels


def _facts(
    rows: Rows,
    measured: Measured,
    running: Running,
    frozen: Mapping[str, FloatArray],
    last_us: IntArray,
    last_received: IntArray,
) -> dict[str, Array]:
    t = rows.t
    is_running, known = running.running == 1, running.running >= 0
    ahead = (t - rows.received) / 1e6
    step, arrived = t - rows.shifted(t, last_us), rows.received - rows.shifted(rows.received, last_received)
    # A backlog is behind too, but catches up: its event time runs faster than the clock it arrives by.
    in_step = (step < -NEVER // 2) & (arrived >= _PACE * step)
    day = 86_400_000_000
    return {
        "running": np.where(known, is_running, np.nan),
        "settled": running.settled.view(np.int8),
        "stopped": np.where(known, running.running == 0, np.nan),
        "tripped": running.tripped,
        "gauge_dropped": measured.dropped.view(np.int8),
        "since_start": np.where(running.start_us == NEVER, np.inf, (t - running.start_us) / 1e6),
        "since_stop": np.where(running.stop_us == NEVER, np.inf, (t - running.stop_us) / 1e6),
        "starts_in_24h": (t - running.starts <= day).sum(axis=0).astype(np.float64),
        "stopped_before_start": np.where(running.stopped_for < 0, np.inf, running.stopped_for / 1e6),
        "failed_signals": _count(list(measured.failed.values()), len(rows)),
        "frozen_for": np.maximum.reduce([np.zeros(len(rows)), *frozen.values()]),
        "clock_ahead": ahead,
        "clock_behind": np.where(in_step, -ahead, 0.0),
    }


def _count(masks: list[BoolArray], count: int) -> FloatArray:
    total = np.zeros(count)
    for mask in masks:
        total += mask
    return total


def _historical(extra: Mapping[int, str]) -> list[int]:
    """Rows that their sender marked as not live."""
    found = []
    for row, text in extra.items():
        if any(key in text for key in _HISTORICAL_KEYS):
            data = msgspec.json.decode(text)
            if any(data.get(key) is True for key in _HISTORICAL_KEYS):
                found.append(row)
    return found


def _pick(text: str, names: list[str], into: FloatArray) -> None:
    if any(name in text for name in names):
        data = msgspec.json.decode(text)
        for at, name in enumerate(names):
            value = data.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                into[at] = value


def _keys(text: str) -> list[str]:
    data = msgspec.json.decode(text)
    return list(data) if isinstance(data, dict) else []


def _told(lane: _Lane, batch: _Pass, row: int) -> tuple[float | None, float | None]:
    headline = lane.condition.headline
    if headline is None:
        return None, None
    count = len(batch.rows)
    pick: Callable[[Any], float | None] = lambda column: _number(np.broadcast_to(column, count)[row])  # noqa: E731
    return pick(headline.value(batch.frame)), pick(headline.threshold(batch.frame))


def _held_by(held: int) -> str:
    if held & _HELD_SHELVED:
        return alarms.SHELVED
    return alarms.SUPPRESSED if held & _HELD_SUPPRESSED else ""


def _number(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None


def _round(value: Any) -> float:
    return float(f"{float(value):.6g}")


_pack = msgspec.msgpack.Encoder().encode


def _json(data: Any) -> str:
    return msgspec.json.encode(data).decode()


def _sentence(lane: _Lane, value: float | None, threshold: float | None, since: int, signals: str, well: str) -> str:
    unit = lane.condition.headline.unit if lane.condition.headline else NONE
    told, limit = amount(value, unit), amount(threshold, unit)
    seen = lane.rule.seen.format(value=told, threshold=limit, signals=signals, well=well, duration=told)
    return _compose(well, seen, since, lane.rule)


def _compose(well: str, seen: str, since: int, rule: Rule) -> str:
    """One sentence: what was seen, against what, since when, what it likely means, and what to do."""
    parts = [f"{well}: {seen} since {alarms.moment(since)}", f"likely {rule.cause}"]
    if rule.actions:
        parts.append(f"to do: {'; '.join(rule.actions)}")
    return f"{' — '.join(parts)}."


def amount(value: float | None, unit: Unit) -> str:
    """A quantity for people: ``80 %``, ``12 min``, ``220 °F``."""
    if value is None:
        return "not known"
    if unit.same_kind(NONE):
        return f"{100 * value:.3g} %"
    if unit.powers == (("s", 1),):
        return alarms.span(value)
    if unit.powers == (("s", -1),):
        return f"{360_000 * value:.3g} %/h"
    return f"{value:.4g} {unit}"
