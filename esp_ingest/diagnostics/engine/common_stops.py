"""Stops of many wells at once, as by a dip of the power: one cause, and not a trip of each.

Where enough wells stop within a few minutes of each other (by event time, and not by command), their stops belong to
one common stop. Each tells of it while it is down; the first of them leads it, and tells of it for as long as half of
its wells are down, also if it runs again itself. A start that ends such a stop is not counted as the well's own.

Stops and starts are followed in the order in which their readings were received, over all wells, so that it does not
matter how readings are cut into batches. What is remembered stands in the state of each well: a well that comes back
after a restart of the process brings its part of it.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from esp_ingest.diagnostics.engine.buckets import Slots
from esp_ingest.diagnostics.engine.columns import Rows
from esp_ingest.diagnostics.engine.well_state import NEVER, Array, Journal, WellArrays

FACT, LEADS, BACK = "stopped_together", "leads_stop", "most_are_back"
FACTS = (FACT, LEADS, BACK)
_LAST = 2**62  # a slot after every other


@dataclass(frozen=True, slots=True)
class CommonStopLimits:
    """How many wells make a common stop: ``least``, or ``share`` of those that run if that is more; ``apart_us``: how
    far apart two of its stops may be."""

    least: int = 5
    share: float = 0.01
    apart_us: int = 360_000_000


def limits_from(parameters: Mapping[str, float]) -> CommonStopLimits:
    """From the parameters of the rule that reads the facts; what it does not give is as by default."""
    usual = CommonStopLimits()
    return CommonStopLimits(
        max(2, round(parameters.get("least", usual.least))),
        parameters.get("share", usual.share),
        round(parameters["apart"] * 1e6) if "apart" in parameters else usual.apart_us,
    )


@dataclass(slots=True)
class _Common:
    """A common stop while a batch is followed. ``told``: (place in the order received, how many wells belong to it,
    whether most of them run again), from there on."""

    wells: int
    down: int
    lead: int = -1
    told: list[tuple[int, int, bool]] = field(default_factory=list)
    columns: tuple[Array, Array, Array] | None = None

    def tell(self, place: int) -> None:
        """Something changed at ``place``."""
        self.told.append((place, self.wells, 2 * self.down < self.wells))

    def as_columns(self) -> tuple[Array, Array, Array]:
        """What was told, once nothing more is."""
        if self.columns is None:
            places, wells, back = zip(*self.told, strict=True)
            self.columns = np.array(places), np.array(wells, np.int32), np.array(back, np.int8)
        return self.columns


@dataclass(slots=True)
class Followed:
    """What a batch makes of the common stops: the facts of each row (n,) by name, the rows with ``starts`` that are not
    counted, the slots that have ``joined`` one without a row since, and by slot what is remembered."""

    facts: dict[str, Array]
    starts: set[int] = field(default_factory=set)
    joined: set[int] = field(default_factory=set)
    commons: dict[int, _Common] = field(default_factory=dict)  # by when its first well stopped, µs
    common_us: dict[int, int] = field(default_factory=dict)
    cut_us: dict[int, int] = field(default_factory=dict)


class CommonStops:
    """Common stops of all wells, kept in ``state``; ``wells`` gives the name of a slot."""

    def __init__(self, state: WellArrays, wells: Sequence[str], limits: CommonStopLimits) -> None:
        self._state, self._wells, self._limits = state, wells, limits
        state.add("cut_us", np.int64, NEVER)  # the newest stop, if it was not commanded
        state.add("common_us", np.int64, NEVER)  # the common stop that it belongs to, by when its first well stopped
        state.add(FACT, np.int32, 0)
        state.add(LEADS, np.int8, 0)
        state.add(BACK, np.int8, 0)

    def told(self, rows: Rows) -> Followed:
        """The facts of rows at which no well starts or stops."""
        return Followed({name: rows.of(self._state[name]) for name in FACTS})

    def follow(self, rows: Rows, running: Array, previous: Array, changes: Slots, commanded: Array) -> Followed:
        """The rows at ``changes`` start or stop. ``running`` and ``previous`` (n,): at each row and at the one before;
        ``commanded`` (n,): the drive is told to stop. Nothing is written."""
        state = self._state
        out = self.told(rows)
        stops = changes[(running[changes] == 0) & (previous[changes] == 1)]
        if stops.size or (state["common_us"][rows.slot[changes]] != NEVER).any():
            _Following(state, self._wells, self._limits, rows, out).go(running, previous, changes, commanded, stops)
        return out

    def commit(self, journal: Journal, followed: Followed) -> None:
        """After the run states are written: keep what the batch has made of it."""
        state, count = self._state, self._state.count
        for name, found in (("cut_us", followed.cut_us), ("common_us", followed.common_us)):
            if found:
                slots = np.fromiter(found, np.intp, len(found))
                journal.put(state[name], slots, np.fromiter(found.values(), np.int64, len(found)))
        if followed.common_us:
            slots = np.fromiter(followed.common_us, np.intp, len(followed.common_us))
            for fact in FACTS:
                journal.put(state[fact], slots, 0)
        for common_us, common in followed.commons.items():
            if common.lead >= 0:
                journal.put(state[LEADS], common.lead, 1)
            _, told, back = common.told[-1]
            belongs = np.flatnonzero(state["common_us"][:count] == common_us)
            tells = (state["running"][belongs] == 0) | ((state[LEADS][belongs] == 1) & ~back)
            journal.put(state[FACT], belongs, np.where(tells, told, 0))
            journal.put(state[BACK], belongs, back)


class _Following:
    """One batch, event by event."""

    def __init__(
        self, state: WellArrays, wells: Sequence[str], limits: CommonStopLimits, rows: Rows, out: Followed
    ) -> None:
        self._state, self._wells, self._limits, self._rows, self._out = state, wells, limits, rows, out
        count = state.count
        self._common_us, self._is_down = state["common_us"][:count], state["running"][:count] == 0
        self._runs = int((state["running"][:count] == 1).sum())
        self._stopped: list[tuple[int, int]] = []  # (µs, slot) of stops that may belong together
        self._alone: list[tuple[int, int]] = []  # those of them that still stand and belong to no common stop
        self._joined: list[tuple[int, int]] = []  # those that belong to one
        self._cut_us: dict[int, int] = {}
        self._last = dict(zip(rows.slots.tolist(), rows.source[rows.last].tolist(), strict=True))
        # By slot: from which place on it tells of which common stop (NEVER: of none), and whether it leads it.
        self._spans: dict[int, list[tuple[int, int, bool]]] = {}

    def go(self, running: Array, previous: Array, changes: Slots, commanded: Array, stops: Slots) -> None:
        """Follow the rows at ``changes``, in the order received, and fill the facts of ``out``."""
        rows = self._rows
        self._recall(rows.t[stops])
        order = changes[np.argsort(rows.source[changes], kind="stable")]
        for at in order.tolist():
            slot, place = int(rows.slot[at]), int(rows.source[at])
            if previous[at] == 1:
                self._runs -= 1
                self._stop(slot, int(rows.t[at]), place, bool(commanded[at]))
            if running[at] == 1:
                self._runs += 1
                if previous[at] == 0:
                    self._start(slot, place, at)
        self._fill(running)

    def _recall(self, stops_us: Array) -> None:
        """The stops before the batch that those of the batch may belong to."""
        if not stops_us.size:
            return
        cut_us, apart_us = self._state["cut_us"][: self._state.count], self._limits.apart_us
        near = np.flatnonzero((cut_us >= int(stops_us.min()) - apart_us) & (cut_us <= int(stops_us.max()) + apart_us))
        self._stopped = sorted(zip(cut_us[near].tolist(), near.tolist(), strict=True))
        self._cut_us = {slot: at for at, slot in self._stopped}
        alone = self._is_down[near] & (self._common_us[near] == NEVER)
        self._alone = sorted(zip(cut_us[near[alone]].tolist(), near[alone].tolist(), strict=True))
        self._joined = [each for each in self._stopped if self._common_us[each[1]] != NEVER]

    def _common_us_of(self, slot: int) -> int:
        return self._out.common_us.get(slot, int(self._common_us[slot]))

    def _common(self, common_us: int) -> _Common:
        common = self._out.commons.get(common_us)
        if common is None:
            belongs = self._common_us == common_us
            leads = np.flatnonzero(belongs & (self._state[LEADS][: self._state.count] == 1))
            down = int((belongs & self._is_down).sum())
            common = _Common(int(belongs.sum()), down, int(leads[0]) if leads.size else -1)
            self._out.commons[common_us] = common
        return common

    def _stop(self, slot: int, at_us: int, place: int, commanded: bool) -> None:
        self._leave(slot, place)
        if commanded:
            return
        self._out.cut_us[slot] = self._cut_us[slot] = at_us
        insort(self._stopped, (at_us, slot))
        insort(self._alone, (at_us, slot))
        first, last = self._near(self._stopped, at_us)
        count = last - first
        if count >= max(self._limits.least, np.ceil(self._limits.share * (self._runs + count))):
            self._join(self._stopped[first][0], at_us, place)

    def _leave(self, slot: int, place: int) -> None:
        """A new stop: the one before and what it belonged to are over for this well."""
        cut_us, common_us = self._cut_us.pop(slot, None), self._common_us_of(slot)
        if cut_us is not None:
            for stops in (self._stopped, self._alone, self._joined):
                _remove(stops, (cut_us, slot))
        self._out.cut_us[slot] = NEVER
        if common_us != NEVER:
            common = self._common(common_us)
            common.wells -= 1
            common.lead = -1 if common.lead == slot else common.lead
            common.tell(place)
            self._out.common_us[slot] = NEVER
            self._spans.setdefault(slot, []).append((place, NEVER, False))

    def _near(self, stops: list[tuple[int, int]], at_us: int) -> tuple[int, int]:
        apart_us = self._limits.apart_us
        return bisect_left(stops, (at_us - apart_us, -1)), bisect_right(stops, (at_us + apart_us, _LAST))

    def _join(self, first_us: int, at_us: int, place: int) -> None:
        """Wells around ``at_us`` stopped together, the first at ``first_us``: those that are down and belong nowhere
        belong to the common stop that is nearest, or to a new one."""
        first, last = self._near(self._joined, at_us)
        middle = bisect_left(self._joined, (at_us, -1), first, last)
        nearest = [self._joined[at] for at in (middle - 1, middle) if first <= at < last]
        common_us = first_us
        if nearest:
            common_us = self._common_us_of(min(nearest, key=lambda each: abs(each[0] - at_us))[1])
        common = self._common(common_us)
        first, last = self._near(self._alone, at_us)
        joining = self._alone[first:last]
        del self._alone[first:last]
        common.wells += len(joining)
        common.down += len(joining)
        if common.lead < 0 and joining:
            common.lead = min(joining, key=lambda each: (each[0], self._wells[each[1]]))[1]
        for cut_us, slot in joining:
            insort(self._joined, (cut_us, slot))
            self._out.common_us[slot] = common_us
            if self._last.get(slot, -1) < place:
                self._out.joined.add(slot)
            self._spans.setdefault(slot, []).append((place, common_us, common.lead == slot))
        common.tell(place)

    def _start(self, slot: int, place: int, at: int) -> None:
        _remove(self._alone, (self._cut_us.get(slot, NEVER), slot))
        common_us = self._common_us_of(slot)
        if common_us == NEVER:
            return
        common = self._common(common_us)
        common.down -= 1
        common.tell(place)
        self._out.starts.add(at)
        if common.lead != slot:
            self._spans.setdefault(slot, []).append((place, NEVER, False))

    # -- the facts of each row

    def _fill(self, running: Array) -> None:
        rows, out = self._rows, self._out
        for group, slot in enumerate(rows.slots.tolist()):
            before_us = int(self._common_us[slot])
            spans = self._spans.get(slot, [])
            if not spans and before_us not in out.commons:
                continue
            leads = bool(self._state[LEADS][slot])
            tells = before_us != NEVER and (leads or bool(self._is_down[slot]))
            start, end = int(rows.starts[group]), int(rows.ends[group])
            source = rows.source[start:end]
            edges = [(-1, before_us if tells else NEVER, leads), *spans]
            for (place, common_us, leads), (until, *_) in zip(edges, [*edges[1:], (_LAST,)], strict=True):
                part = slice(start + int(np.searchsorted(source, place)), start + int(np.searchsorted(source, until)))
                wells, back = self._told(common_us, slot, rows.source[part])
                is_told = (running[part] == 0) | (leads & (back == 0))
                out.facts[FACT][part] = np.where(is_told, wells, 0)
                out.facts[BACK][part] = back
                out.facts[LEADS][part] = leads

    def _told(self, common_us: int, slot: int, source: Array) -> tuple[Array, Array]:
        """Of rows received at ``source``: how many wells belong to the common stop, and whether most run again."""
        if common_us == NEVER:
            return np.zeros(source.shape[0], np.int32), np.zeros(source.shape[0], np.int8)
        before = self._state[FACT][slot], self._state[BACK][slot]
        if common_us not in self._out.commons:
            return np.full(source.shape[0], before[0]), np.full(source.shape[0], before[1])
        places, wells, back = self._out.commons[common_us].as_columns()
        nth = np.searchsorted(places, source, side="right") - 1
        return np.where(nth < 0, before[0], wells[nth]), np.where(nth < 0, before[1], back[nth])


def _remove(stops: list[tuple[int, int]], entry: tuple[int, int]) -> None:
    place = bisect_left(stops, entry)
    if place < len(stops) and stops[place] == entry:
        del stops[place]
