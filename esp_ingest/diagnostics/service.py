"""The engine inside the daemon: what it remembers outlives the process, and its rules can be read again.

Checkpoints of a few wells go along in each batch's transaction, so that the whole fleet is checkpointed every few
minutes. A well is restored when its first reading arrives: its checkpoint, then what it sent after that, out of the
table. Whatever that raises was written by the transaction that stored the reading, so a kill -9 raises nothing twice.

Everything here but :meth:`ask_reload` is called by the writer's thread.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, filterfalse, islice

import numpy as np

from esp_ingest.diagnostics import operators
from esp_ingest.diagnostics.active_gauge import ActiveGauge
from esp_ingest.diagnostics.deferred import OPERATORS, ROUND, STATES, WRITE, Deferred
from esp_ingest.diagnostics.engine.engine import Engine, Evaluation
from esp_ingest.diagnostics.inactive_rules import InactiveRules
from esp_ingest.diagnostics.language.rules import RulesError, RuleSet
from esp_ingest.diagnostics.limit_scopes import limit_scopes
from esp_ingest.interfaces import Clock, DiagnosticsStore, Refusal, StoreUnavailable
from esp_ingest.model import Checkpoint, DiagnosticRow, Readings
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import Metrics

log = logging.getLogger(__name__)

CYCLE_SECONDS = 240.0  # in this time every well with new readings is checkpointed once
_MOST_A_BATCH = 100  # a checkpoint is 0.1 to 0.2 ms of CPU and up to 4 kB
_BETWEEN_CHECKPOINTS_SECONDS = 0.5  # three statements more in a batch that carries some
_MOST_AT_THE_END = 500
_RESTORED_AT_ONCE = 1_000
_REPLAYED_ROWS = 20_000  # newest readings of a well that are replayed: more than five hours at 1 Hz
_REPLAYED_WITHOUT = 600  # of a well without a checkpoint: killed in its first minutes, or new to the diagnostics
_NEVER_US = -62_135_596_800_000_000  # the year 1
_TICK_SECONDS = 5.0
_GAUGES_SECONDS = 60.0
_MOST_SCOPES_LOGGED = 5
EVICTED_AT_ONCE = 200  # a well that goes is 0.2 ms of CPU
_SLOW_SECONDS = 4.0
_CATCH_UP_SECONDS = 0.2  # between two turns while wells wait to be evaluated
_CAUGHT_UP_AT_ONCE = 5  # wells a turn, so that no batch waits long for 20 000 readings of each
_GATHERED_WELLS = 100  # wells that have not sent yet, restored at each tick


@dataclass(slots=True)
class Diagnosis:
    """What one transaction has to write beside the readings. ``rows``: of this batch, and owed from before."""

    evaluation: Evaluation
    rows: list[DiagnosticRow]
    checkpoints: list[Checkpoint] = field(default_factory=list)
    wells: Sequence[str] = ()
    held: list[DiagnosticRow] = field(default_factory=list)  # to be kept, not written now
    begun: float = 0.0  # monotonic seconds


class DiagnosticsService:
    """The stage's Diagnostics. ``load_rules`` is called again for a reload and may raise RulesError; ``listening``
    tells whether the broker would bring readings now, since only then does silence mean anything; ``replay_until``: up
    to what was received when a well is restored, None for all; ``kept_us``: a well that sent so lately keeps its place;
    ``most_rows``, of about 2 kB, wait at most. ``engine`` judges the wells that are held: another one after a reload.

    ``readings_first``: what the tables of the diagnostics refuse waits (diagnostics/deferred.py), and the readings of
    the batch are stored without it. StoreUnavailable leaves :meth:`prepare` and :meth:`maintain` then only once for a
    trouble, and only if it took seconds to find out."""

    def __init__(
        self,
        load_rules: Callable[[], RuleSet],
        store: DiagnosticsStore,
        clock: Clock,
        metrics: Metrics,
        listening: Callable[[], bool] = lambda: True,
        replay_until: Callable[[], int | None] = lambda: None,
        max_wells: int = 1_000_000,
        kept_us: int = 3_600_000_000,
        most_rows: int = 5_000,
        readings_first: bool = True,
    ) -> None:
        self._load_rules = load_rules
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._listening = listening
        self._replay_until = replay_until
        self._max_wells = max_wells
        self._kept_us = kept_us
        self._outside: frozenset[str] = frozenset()  # wells of the batch that comes for which there is no room
        self._readings_first = readings_first
        self._deferred = Deferred(clock, metrics, max_wells, most_rows)
        self._holds = False  # the tables refused lately: nothing is written with the batch that comes
        self._all_known = False  # of the batch that comes
        self._full_log = Repeated(log, "diagnostics hold no more wells", "diagnostics have room for every well again")
        self._active = ActiveGauge(metrics)
        self.engine = self._new_engine(load_rules())
        self._active.show(self.engine)
        self._known: set[str] = set()
        self._dirty: dict[str, None] = {}  # wells by how long they have waited for a checkpoint
        self._unsaved: dict[str, None] = {}  # wells that have never had one: they come first
        self._parting: dict[str, Checkpoint] = {}  # of evicted wells, not written yet
        self._reload_asked = False
        self._allowance = 0.0
        self._allowed_at = clock.monotonic()
        self._next_tick = self._next_follow = self._next_gauges = self._next_checkpoints = 0.0
        self._newest_action: int | None = None  # None: nothing of the database was read yet
        self._limits_recorded = False
        self._listening_since_us: int | None = None
        self._gathered_to: str | None = ""

    # -- the batch

    def prepare(self, wells: Sequence[str] = ()) -> None:
        """Everything that has to be known before these wells' readings. May raise StoreUnavailable, unless readings
        come first: then wells whose state could not be read are evaluated later."""
        self._outside = frozenset()
        self._try(OPERATORS, self._follow_operators)
        self._all_known = self._known.issuperset(wells)
        waiting = self._deferred.wells
        if not self._all_known and any(well not in self._known and well not in waiting for well in wells):
            self._try(STATES, lambda: self._admit(wells))
        self._holds = self._deferred.is_holding(WRITE)

    def _try(self, what: str, work: Callable[[], None]) -> None:
        """Do it unless it has failed lately. Raises StoreUnavailable, but where readings come first only for what took
        long and had not failed before."""
        if self._deferred.is_holding(what):
            return
        begun = self._clock.monotonic()
        try:
            work()
        except StoreUnavailable as error:
            is_news = self._deferred.failed(what, error, begun)
            is_slow = self._clock.monotonic() - begun >= _SLOW_SECONDS
            if not self._readings_first or (is_news and is_slow):
                raise  # what took long is perhaps an outage of the whole database, which the caller is to look at
        else:
            self._deferred.worked(what)

    def evaluate(self, readings: Readings) -> Diagnosis:
        """Run the rules; ``accept`` or ``discard`` must follow."""
        begun = self._clock.monotonic()
        if self._outside:
            count = len(readings)
            readings = _without(readings, self._outside)
            self._metrics.diagnostics_readings_unjudged.inc(count - len(readings))
        if self._holds or not self._all_known:
            readings = self._defer(readings)
        checkpoints = [] if self._holds else self._due_checkpoints()
        with self._metrics.diagnostics_evaluate_seconds.time():
            evaluation = self.engine.evaluate(readings)
        return self._diagnosis(evaluation, checkpoints, readings.wells, begun)

    def _diagnosis(
        self, evaluation: Evaluation, checkpoints: list[Checkpoint], wells: Sequence[str], begun: float
    ) -> Diagnosis:
        if self._holds:
            return Diagnosis(evaluation, [], [], wells, evaluation.rows, begun)
        rows = [*self._deferred.rows_before(evaluation.rows), *evaluation.rows]
        return Diagnosis(evaluation, rows, checkpoints, wells, [], begun)

    def _defer(self, readings: Readings) -> Readings:
        """What of them is evaluated now: the rest later, from the table."""
        wells = frozenset(readings.wells)
        if not (self._holds and self._deferred.is_full):
            wells -= self._known
        if not wells:
            return readings
        self._deferred.defer(readings, wells)
        self._known.difference_update(wells)
        return _without(readings, wells)

    def accept(self, diagnosis: Diagnosis, refusal: Refusal | None = None) -> None:
        """The transaction is committed, but for what was refused of this."""
        deferred = self._deferred
        self.engine.accept(diagnosis.evaluation)
        for row in diagnosis.held:
            deferred.owe(row)
        if not diagnosis.held and (diagnosis.rows or diagnosis.checkpoints):
            deferred.clear_rows()
            if refusal is None:
                deferred.worked(WRITE)
            else:
                for row in refusal.rows:
                    deferred.owe(row)
                deferred.failed(WRITE, refusal.error, diagnosis.begun)
        for checkpoint in diagnosis.checkpoints:
            if refusal is None or checkpoint.well_id not in refusal.wells:
                self._dirty.pop(checkpoint.well_id, None)
                self._unsaved.pop(checkpoint.well_id, None)
                self._parting.pop(checkpoint.well_id, None)
        self._dirty.update(dict.fromkeys(filterfalse(self._dirty.__contains__, diagnosis.wells)))

    def discard(self, diagnosis: Diagnosis) -> None:
        """Nothing of it was stored."""
        self.engine.discard(diagnosis.evaluation)

    # -- between batches

    def maintain(self) -> Diagnosis | None:
        """At most every few seconds: wells that have fallen silent, checkpoints that are due. None: nothing to write.
        Must not be called while readings wait elsewhere (the spool). May raise StoreUnavailable."""
        now = self._clock.monotonic()
        if now < self._next_tick:
            return None
        deferred = self._deferred
        self._next_tick = now + (_CATCH_UP_SECONDS if deferred.wells and deferred.reason is None else _TICK_SECONDS)
        self.prepare()
        self._try(ROUND, lambda: self._look_round(now))
        checkpoints = [] if self._holds else self._due_checkpoints()
        evaluation = self._tick()
        wells = sorted({row.well_id for row in evaluation.rows})
        diagnosis = self._diagnosis(evaluation, checkpoints, wells, self._clock.monotonic())
        if diagnosis.rows or diagnosis.checkpoints:
            return diagnosis
        self.accept(diagnosis)
        return None

    def _look_round(self, now: float) -> None:
        """What the database is asked between batches. Raises StoreUnavailable."""
        self._catch_up()
        self._gather()
        self._measure(now)
        if not self._deferred.wells:
            self._deferred.worked(STATES)  # no batch may come to show it

    def _catch_up(self) -> None:
        """Wells that wait to be evaluated, a few at a time. One for which there is no room is from now on what a new
        one is."""
        waiting = list(islice(self._deferred.wells, _CAUGHT_UP_AT_ONCE))
        if len(waiting) > self._room():
            self._evict(len(waiting) - self._room(), frozenset(waiting))
        for well in waiting[self._room() :]:
            self._deferred.restored(well)
        if waiting := waiting[: self._room()]:
            self._restore(waiting)

    def finish(self) -> Iterator[Diagnosis]:
        """At the end of the process: checkpoints of all that is left, in pieces; each must be accepted, or the caller
        stops. Ends with the first piece that is refused."""
        self._deferred.try_again()
        self._holds = False
        while (self._dirty or self._deferred.rows or self._parting) and not self._deferred.is_holding(WRITE):
            checkpoints = [*self._parting.values(), *self._checkpoints(list(islice(self._dirty, _MOST_AT_THE_END)))]
            evaluation = self.engine.evaluate(Readings.empty())
            yield self._diagnosis(evaluation, checkpoints, (), self._clock.monotonic())

    def try_again(self) -> None:
        """The database was away and is back."""
        self._deferred.try_again()

    @property
    def trouble(self) -> str | None:
        """Why diagnoses wait while readings are stored, for people; None while they do not. From any thread."""
        return self._deferred.reason

    def close(self) -> None:
        """Close the connection of the diagnostics store."""
        self._store.close()

    def _tick(self) -> Evaluation:
        # Of a well that waits to be evaluated the newest reading is not known, so it is not known to be silent.
        waits = any(self.engine.newest_us(well) is not None for well in self._deferred.wells)
        if waits or not self._listening():
            self._listening_since_us = None
            return self.engine.evaluate(Readings.empty())
        if self._listening_since_us is None:
            self._listening_since_us = self._clock.now_us()
        return self.engine.tick(self._clock.now_us(), self._listening_since_us)

    def _gather(self) -> None:
        """Wells that have a state and have not sent since the start: a few at a time, for silence is theirs to tell."""
        if self._gathered_to is None:
            return
        wells = self._store.wells_with_state(self._gathered_to, _GATHERED_WELLS)
        waiting = self._deferred.wells
        missing = [well for well in wells if well not in self._known and well not in waiting][: self._room()]
        if missing:
            self._restore(missing)
        self._gathered_to = wells[-1] if wells and self._room() else None

    def _measure(self, now: float) -> None:
        if now < self._next_gauges:
            return
        self._metrics.diagnostics_wells.set(len(self._known))
        self._active.look_elsewhere(self._store, self._known)
        if self._gathered_to is None:
            self._active.gathered()
        self._active.show(self.engine)
        self._store.end_shelvings()
        stale, shelved, unacknowledged = self._store.alarm_gauges()
        self._metrics.diagnostics_stale.set(stale)
        self._metrics.diagnostics_shelved.set(shelved)
        self._metrics.diagnostics_unacknowledged.set(unacknowledged)
        self._next_gauges = now + _GAUGES_SECONDS

    # -- operators. A row without a peak leaves the stored one.

    def _follow_operators(self) -> None:
        """The rules, if they were asked for. Every few seconds: what was acknowledged and shelved, and once per rules:
        the limits now in force."""
        if self._reload_asked:
            self._reload_asked = False
            self._reload()
        now = self._clock.monotonic()
        if now < self._next_follow:
            return
        if not self._limits_recorded:
            rules = self.engine.rules
            changed = self._store.record_limits(limit_scopes(rules), rules.path)
            if len(changed) > _MOST_SCOPES_LOGGED:  # the first start: alarm_limits_history tells which
                log.info("limits recorded", extra={"scopes": len(changed), "rules": rules.path})
            elif changed:
                log.info("limits changed", extra={"scopes": changed, "rules": rules.path})
            self._limits_recorded = True
        if self._newest_action is None:
            self._newest_action = self._store.newest_action()
        for action in self._store.actions_after(self._newest_action):
            if action.well_id in self._known:  # another well learns of it when it is restored
                operators.obey(self.engine, self._deferred, action)
            self._newest_action = action.id
        self._next_follow = now + _TICK_SECONDS

    # -- checkpoints

    def _due_checkpoints(self) -> list[Checkpoint]:
        """As many as keep the whole fleet within a cycle, those without any first, then the longest waiting."""
        now = self._clock.monotonic()
        parting = list(self._parting.values())
        self._allowance += (now - self._allowed_at) * len(self._dirty) / CYCLE_SECONDS
        self._allowed_at = now
        count = int(min(self._allowance, _MOST_A_BATCH, len(self._dirty)))
        if count == 0 or now < self._next_checkpoints:
            return parting
        self._next_checkpoints = now + _BETWEEN_CHECKPOINTS_SECONDS
        self._allowance = min(self._allowance - count, _MOST_A_BATCH)
        first = islice((well for well in self._unsaved if well in self._dirty), count)
        return parting + self._checkpoints(list(islice(dict.fromkeys(chain(first, islice(self._dirty, count))), count)))

    def _checkpoints(self, wells: Sequence[str]) -> list[Checkpoint]:
        found = []
        for well, state in self.engine.export(wells).items():
            newest_us = self.engine.newest_us(well)
            if newest_us is not None:
                found.append(Checkpoint(well, newest_us, state, self._inactive.as_json(well)))
            else:  # it has sent nothing live yet
                del self._dirty[well]
        return found

    # -- room for wells

    def _room(self) -> int:
        return max(self._max_wells - len(self._known), 0)

    def _admit(self, wells: Sequence[str]) -> None:
        """Restore the wells of a batch that are new, as far as there is room. Wells that have long been silent make
        room; where there are none, the new ones are stored unjudged until one is."""
        new = [well for well in dict.fromkeys(wells) if well not in self._known and well not in self._deferred.wells]
        if len(new) > self._room():
            self._evict(len(new) - self._room(), frozenset(wells))
        room = self._room()
        self._outside = frozenset(new[room:])
        if new[:room]:
            self._restore(new[:room])
        self._metrics.diagnostics_wells.set(len(self._known))
        now = self._clock.monotonic()
        if self._outside:
            why = f"diagnostics.max_wells = {self._max_wells} are held and none has been silent for an hour"
            self._full_log.failed(now, why, wells=len(self._outside))
        elif self._full_log.active:
            self._full_log.ended(now)

    def _evict(self, count: int, needed: frozenset[str]) -> None:
        """Some of the longest silent wells go to their checkpoints, from which they come back with their next reading,
        as after a restart."""
        before_us = self._clock.now_us() - self._kept_us
        silent = self.engine.longest_silent(min(count, EVICTED_AT_ONCE) + len(needed), before_us)
        gone = [well for well in silent if well in self._known and well not in needed][: min(count, EVICTED_AT_ONCE)]
        if not gone:
            return
        changed = [well for well in gone if well in self._dirty]
        self._parting.update((each.well_id, each) for each in self._checkpoints(changed))
        self.engine.forget(gone)
        self._active.is_complete = False
        self._known.difference_update(gone)
        for well in gone:
            self._dirty.pop(well, None)
            self._unsaved.pop(well, None)
        self._metrics.diagnostics_wells_evicted.inc(len(gone))
        self._active.show(self.engine)

    # -- restore

    def _restore(self, wells: Sequence[str]) -> None:
        """Where it was interrupted it goes on: what was replayed is late the second time."""
        for begin in range(0, len(wells), _RESTORED_AT_ONCE):
            some = wells[begin : begin + _RESTORED_AT_ONCE]
            self._restore_states(some)
            for shelf in self._store.shelves(some):
                self.engine.shelve(shelf.well_id, shelf.diagnosis, shelf.until_us)
            self._replay(some)
            operators.reconcile(self.engine, self._deferred, some, self._store.open_rows(some))
            self._known.update(some)
            self._active.held(some)
            for well in some:
                self._parting.pop(well, None)
                self._deferred.restored(well)
        self._active.show(self.engine)

    def _restore_states(self, wells: Sequence[str]) -> None:
        fresh = [well for well in wells if self.engine.newest_us(well) is None]
        states = {each.well_id: each.state for each in self._store.states(fresh)}
        self._unsaved.update(dict.fromkeys(well for well in fresh if well not in states))
        for well in self.engine.restore(states):
            log.error("diagnostic state cannot be read, the well starts anew", extra={"well_id": well})

    def _replay(self, wells: Sequence[str]) -> None:
        newest = {well: self.engine.newest_us(well) for well in wells}
        known = {well: at_us for well, at_us in newest.items() if at_us is not None}
        count = self._replay_after(known, _REPLAYED_ROWS)
        deferred = {well: at - 1 for well, at in self._deferred.wells.items() if well in newest and well not in known}
        count += self._replay_after(deferred, _REPLAYED_ROWS)
        fresh = {well: _NEVER_US for well in wells if well not in known and well not in deferred}
        count += self._replay_after(fresh, _REPLAYED_WITHOUT)
        if count:
            log.info("diagnostics replayed", extra={"wells": len(wells), "readings": count})

    def _replay_after(self, since_us: dict[str, int], limit: int) -> int:
        count = 0
        for page in self._store.readings_after(since_us, limit, self._replay_until()) if since_us else ():
            count += len(page)
            try:
                evaluation = self.engine.evaluate(page)
            except Exception:  # as for a live batch: its readings are stored, and the rules go on after them
                log.exception("diagnostics failed on a replay")
                self._metrics.diagnostics_rule_failures.labels(diagnosis="engine").inc()
            else:
                # Whatever a well has raised before it was restored is in the table; of one that was deferred it is not.
                is_late = bool(self._deferred.wells) and not self._deferred.wells.keys().isdisjoint(page.wells)
                self.engine.accept(evaluation, replayed=not is_late)
                for row in evaluation.rows:
                    if row.well_id in self._deferred.wells:
                        self._deferred.owe(row)
            self._dirty.update(dict.fromkeys(page.wells))
        return count

    # -- rules

    def ask_reload(self) -> None:
        """From any thread: read the rules again before the next batch."""
        self._reload_asked = True

    def _reload(self) -> None:
        """A file that cannot be used leaves the rules in force."""
        try:
            rules = self._load_rules()
        except RulesError as error:
            self._metrics.diagnostics_reloads.labels(outcome="failed").inc()
            log.error("rules not reloaded, the old ones stay in force", extra={"error": str(error)})
            return
        try:
            shelves = self._store.shelves(sorted(self._known))
        except StoreUnavailable:
            self._reload_asked = True
            raise
        # The old engine goes before the new one comes: both at once would be twice the memory.
        states, opened = self.engine.export(), self.engine.open_occurrences()
        self.engine = self._new_engine(rules)
        self.engine.restore(states)
        for shelf in shelves:
            self.engine.shelve(shelf.well_id, shelf.diagnosis, shelf.until_us)
        self._limits_recorded = False
        for occurrence in opened:
            if self.engine.open_at(occurrence.well_id, occurrence.diagnosis) is None:
                operators.owe_end(self.engine, self._deferred, occurrence)
        self._active.show(self.engine)
        self._metrics.diagnostics_rules_disabled.set(0)
        self._metrics.diagnostics_reloads.labels(outcome="ok").inc()
        log.info("rules reloaded", extra={"rules": len(rules.rules), "path": rules.path})

    def _new_engine(self, rules: RuleSet) -> Engine:
        for warning in rules.warnings:
            log.warning("rules", extra={"warning": warning})
        self._active.expect(rules)
        engine = Engine(rules, self._metrics)
        self._inactive = InactiveRules(engine)
        return engine


def _without(readings: Readings, wells: frozenset[str]) -> Readings:
    """Readings of all other wells."""
    inside = np.array([well not in wells for well in readings.wells], np.bool_)
    kept = readings.select(np.flatnonzero(inside[readings.well_index]))
    kept.wells = [well for well in readings.wells if well not in wells]
    kept.well_index = (np.cumsum(inside) - 1)[kept.well_index].astype(np.int32)
    return kept
