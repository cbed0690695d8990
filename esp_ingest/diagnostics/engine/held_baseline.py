"""A baseline does not learn a fault: while an alarm of a rule that ``baseline = "held"`` stands, nothing is learned.

An alarm that has stood for two hours holds the running medians as they were, until it returns, until an operator says
that it is false, or until it has stood for 14 days of running: then what the well does is taken for its habit, and the
fact ``baseline_held`` lets a rule say so.

A rule that ``baseline = "free"`` (a change of speed) frees it. If an alarm stood when that began, it is freed in part:
the medians that a change of speed moves (speed_steps.py) are moved and still not learned, since the well does at the
new speed what the alarm was about; load, current and frequency are learned.

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
    """By slot ``alarm_us``: since when an alarm has stood that holds the baseline, negative while it holds it in part;
    ``held``: how many half-hours were held in a row, wholly or in part. ``steps`` and ``freeing``: the places of the
    rules whose occurrences hold it, and free it whatever holds."""

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

    def recount(self, slot: int, opened: Mapping[Place, Occurrence], afresh: bool = False) -> int:
        """Since when something holds the baseline of ``slot``, from the open occurrences. ``afresh``: whatever held it
        when a change of speed began is no fault."""
        before_us = NO_ALARM if afresh else int(self._state["alarm_us"][slot])
        return self._holds(before_us, lambda step: _stands_since(opened.get((step, slot))))

    def _holds(self, before_us: int, since_us: Callable[[int], int]) -> int:
        """Since when something holds a baseline, from what held it just before and ``since`` when each step stands."""
        if any(since_us(step) != NO_ALARM for step in self._freeing):
            return before_us if before_us < 0 or before_us == NO_ALARM else -before_us
        return min(map(since_us, self._holding), default=NO_ALARM)

    # -- a part of a batch

    def learned(self, slots: Slots, end_us: IntArray, new: BoolArray) -> tuple[BoolArray, IntArray, BoolArray]:
        """By half-hour that ends at ``end_us`` at ``slots``, in order of wells and time, ``new`` for the first of a
        well: whether it is learned, how many were held up to it, and whether it is learned in part only."""
        since_us = self._state["alarm_us"][slots]
        standing = end_us >= np.abs(since_us) + HELD_AFTER_US
        before = self._state["held"][slots].astype(np.int64)
        if not standing.any():
            nothing = np.zeros(slots.shape[0], np.bool_)
            return ~nothing, np.zeros(slots.shape[0], np.int64), nothing
        first = np.flatnonzero(new)[np.cumsum(new) - 1]
        total = np.cumsum(standing)
        count = total - total[first] + standing[first] + np.where(standing[first], before, 0)
        held = np.where(standing, np.minimum(count, LEARNED_AFTER + 1), 0)
        whole = ~standing | (held > LEARNED_AFTER)
        partly = ~whole & (since_us < 0)
        return whole | partly, held, partly

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
        for slot in self._events:
            before_us = int(self._state["alarm_us"][slot])
            held = self._followed(slot, opened)
            for place in np.flatnonzero(slots == slot).tolist():
                stands_us = [since_us for time_us, since_us in held if time_us < at_us[place]][-1]
                if _how(int(end_us[place]), stands_us) != _how(int(end_us[place]), before_us):
                    found.append(int(at_us[place]))
                    break
        return min(found, default=None)

    def _followed(self, slot: int, opened: Mapping[Place, Occurrence]) -> list[tuple[int, int]]:
        """(from when on, since when the baseline of ``slot`` is held), through the events of this part."""
        by_step = self._events[slot]
        since_us = int(self._state["alarm_us"][slot])
        found = [(NEVER, since_us)]
        for time_us in sorted({time_us for events in by_step.values() for time_us, _ in events[1:]}):
            since_us = self._holds(since_us, partial(_at, time_us, slot, by_step, opened))
            found.append((time_us, since_us))
        return found

    def end(self, journal: Journal, opened: Mapping[Place, Occurrence]) -> None:
        """The part of the batch stays: what stands now is what the next one begins with."""
        for slot in self._events:
            journal.put(self._state["alarm_us"], slot, np.int64(self._followed(slot, opened)[-1][1]))
        self._events = {}


def _stands_since(occurrence: Occurrence | None) -> int:
    """Since when the occurrence holds the baseline. One that is held back by another does not: that one does, or what
    it stands for is no fault."""
    if occurrence is None or occurrence.cleared_us is not None or occurrence.latched_us is not None:
        return NO_ALARM
    if occurrence.is_false or occurrence.held_by == alarms.SUPPRESSED:
        return NO_ALARM
    return occurrence.raised_us


def _at(at_us: int, slot: int, events: Events, opened: Mapping[Place, Occurrence], step: int) -> int:
    """Since when ``step`` stands after what happened at ``at_us``."""
    if step in events:
        return [since_us for time_us, since_us in events[step] if time_us <= at_us][-1]
    return _stands_since(opened.get((step, slot)))


def _how(end_us: int, since_us: int) -> int:
    """How a half-hour that ends then is held: not, wholly or in part."""
    if end_us < abs(since_us) + HELD_AFTER_US:
        return 0
    return 1 if since_us > 0 else 2
