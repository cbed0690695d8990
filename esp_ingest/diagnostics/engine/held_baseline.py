"""A baseline does not learn a fault: while an alarm of a rule that ``baseline = "held"`` stands, nothing is learned.

An alarm that has stood for two hours holds the running medians as they were, until it returns, until an operator says
that it is false, or until it has stood for 14 days of running: then what the well does is taken for its habit, and the
fact ``baseline_held`` lets a rule say so.

Whether a half-hour is learned depends on alarms, and alarms depend on medians. A batch is evaluated with the alarms
that stood before it; where an alarm of the batch itself would have held or freed a later half-hour of the batch,
:meth:`HeldBaseline.conflict` says when, and the batch is evaluated in two parts that meet there.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np

from esp_ingest.diagnostics import alarm as alarms
from esp_ingest.diagnostics.alarm import Occurrence
from esp_ingest.diagnostics.engine.buckets import Slots
from esp_ingest.diagnostics.engine.well_state import NEVER, Journal, WellArrays
from esp_ingest.diagnostics.language.evaluation import BoolArray
from esp_ingest.model import IntArray

Place = tuple[int, int]  # (step, slot of the well)

Events = dict[int, list[tuple[int, int]]]  # by step: since when it stands, from some time on
NO_ALARM = -NEVER  # a time after every other
HELD_AFTER_US = 2 * 3_600_000_000
LEARNED_AFTER = 14 * 48  # held half-hours after which what stands is a habit


class HeldBaseline:
    """By slot ``alarm_us``: since when an alarm has stood that holds the baseline; ``held``: how many half-hours were
    held in a row. ``steps`` and ``freeing``: the places of the rules whose occurrences hold it, and free it whatever
    holds."""

    def __init__(self, state: WellArrays, steps: Iterable[int], freeing: Iterable[int]) -> None:
        state.add("alarm_us", np.int64, NO_ALARM)
        state.add("held", np.int16, 0)
        self._state = state
        self._holding, self._freeing = frozenset(steps), frozenset(freeing)
        # By slot and step: what stood at which time, of the part of the batch that is evaluated.
        self._events: dict[int, Events] = {}

    # -- what stands

    def note(self, key: Place, before: Occurrence | None, after: Occurrence, at_us: int | None) -> None:
        """An occurrence changed at ``at_us`` of event time; None: when it was raised or cleared."""
        step, slot = key
        if step not in self._holding and step not in self._freeing:
            return
        old, new = _stands_since(before), _stands_since(after)
        if old == new:
            return
        if at_us is None:
            at_us = after.cleared_us if after.cleared_us is not None else after.raised_us
        self._events.setdefault(slot, {}).setdefault(step, [(NEVER, old)]).append((at_us, new))

    def recount(self, slot: int, opened: Mapping[Place, Occurrence]) -> int:
        """Since when something holds the baseline of ``slot``, from the open occurrences."""
        return self._holds(lambda step: _stands_since(opened.get((step, slot))))

    def _holds(self, since: Callable[[int], int]) -> int:
        """Since when something holds a baseline, from ``since`` when each step stands."""
        if any(since(step) != NO_ALARM for step in self._freeing):
            return NO_ALARM
        return min(map(since, self._holding), default=NO_ALARM)

    # -- a part of a batch

    def learned(self, slots: Slots, end_us: IntArray, new: BoolArray) -> tuple[BoolArray, IntArray]:
        """By half-hour that ends at ``end_us`` at ``slots``, in order of wells and time, ``new`` for the first of a
        well: whether it is learned, and how many were held up to it."""
        standing = end_us >= self._state["alarm_us"][slots] + HELD_AFTER_US
        before = self._state["held"][slots].astype(np.int64)
        if not standing.any():
            return np.ones(slots.shape[0], np.bool_), np.zeros(slots.shape[0], np.int64)
        first = np.flatnonzero(new)[np.cumsum(new) - 1]
        total = np.cumsum(standing)
        count = total - total[first] + standing[first] + np.where(standing[first], before, 0)
        held = np.where(standing, np.minimum(count, LEARNED_AFTER + 1), 0)
        return ~standing | (held > LEARNED_AFTER), held

    def is_quiet(self, slots: Slots) -> bool:
        """Nothing stands at ``slots`` and nothing was held."""
        return bool((self._state["alarm_us"][slots] == NO_ALARM).all()) and not self._state["held"][slots].any()

    def begin(self) -> None:
        """A part of a batch begins."""
        self._events = {}

    def conflict(
        self, slots: Slots, end_us: IntArray, at_us: IntArray, opened: Mapping[Place, Occurrence]
    ) -> int | None:
        """The event time of the first reading of this part at which a half-hour was learned or held by mistake, None if
        there is none. Half-hours of the part: they end at ``end_us``, which the readings at ``at_us`` tell."""
        found = []
        for slot, by_step in self._events.items():
            before = int(self._state["alarm_us"][slot])
            for place in np.flatnonzero(slots == slot).tolist():
                stands = self._holds(partial(_before, int(at_us[place]), slot, by_step, opened))
                end = int(end_us[place])
                if (end >= stands + HELD_AFTER_US) != (end >= before + HELD_AFTER_US):
                    found.append(int(at_us[place]))
                    break
        return min(found, default=None)

    def end(self, journal: Journal, opened: Mapping[Place, Occurrence]) -> None:
        """The part of the batch stays: what stands now is what the next one begins with."""
        for slot in self._events:
            journal.put(self._state["alarm_us"], slot, np.int64(self.recount(slot, opened)))
        self._events = {}


def _stands_since(occurrence: Occurrence | None) -> int:
    """Since when the occurrence holds the baseline. One that is held back by another does not: that one does, or what
    it stands for is no fault."""
    if occurrence is None or occurrence.cleared_us is not None or occurrence.latched_us is not None:
        return NO_ALARM
    if occurrence.is_false or occurrence.held_by == alarms.SUPPRESSED:
        return NO_ALARM
    return occurrence.raised_us


def _before(at_us: int, slot: int, events: Events, opened: Mapping[Place, Occurrence], step: int) -> int:
    """Since when ``step`` stood before the reading at ``at_us``."""
    if step in events:
        return [since for time, since in events[step] if time < at_us][-1]
    return _stands_since(opened.get((step, slot)))
