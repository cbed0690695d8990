"""What changes over weeks: each signal at equal speed against the well's own start, with slope and confidence.

A running median follows a pump that wears and sees nothing. Here each closed half-hour of settled running adds to a
block of 6 hours; the median of 12 blocks (3 days of running) is a point, and the last 24 points are kept: about ten
weeks. Work is done once a half-hour of event time, and the trend is computed once in 3 days; the state of a signal is a
sum, 12 blocks, 24 points and its start, in single precision.

Equal speed: a point whose frequency is more than 1 Hz off the one of the start is left out; after three of them in a
row (9 days) the well has another operating point, and its start begins anew, as it does after a pause of 14 days, in
which a pump is changed. What is left of the difference is taken out by the affinity laws (flow ~ f, head ~ f²).

* start: the median of the first three points;
* ratio: the newest point ÷ the start;
* rate: the slope of the points, the median over pairs half a series apart (Theil's incomplete method), ÷ the start;
* confidence: 1 − the probability of so many rises or falls among the points by chance (Mann–Kendall, two-sided). It
  is 0 if one step between neighbours makes more than half of the change since the start: that is an event, no trend.

All of it is a function of the sequence of closed half-hours, however the readings are cut into batches.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from esp_ingest.diagnostics.engine.buckets import BUCKET_US, Key, Runs, Slots, added, appended, median, until
from esp_ingest.diagnostics.engine.features import Features
from esp_ingest.diagnostics.engine.well_state import Array, Journal, WellArrays
from esp_ingest.diagnostics.language.evaluation import BoolArray
from esp_ingest.model import FloatArray, IntArray

FUNCTIONS = ("slow_ratio", "slow_rate", "slow_confidence")
SPEED = "vsd_frequency"
_POWER_OF_SPEED = {"flow_rate": 1, "pump_head": 2, "motor_current": 2}  # affinity laws; current_load is A/f² already
_HALVES = 12  # half-hours in a block
_BLOCKS = 12  # blocks in a point: 72 h of running
_POINTS = 24
_LEAST_BLOCKS = 3
_START_POINTS = 3
_LEAST_POINTS = 5
_SAME_SPEED_HZ = 1.0
_AWAY_POINTS = 3
_PAUSE_MINUTES = 14 * 1_440
_STEP_SHARE = 0.5
_OLDER, _NEWER = np.triu_indices(_POINTS, 1)[::-1]  # the newest point is the first
_POINTS_AT_ONCE = 256  # bounds the memory of a fleet whose points fall together


@dataclass(slots=True)
class SlowPlan:
    """What a batch makes of the trends, for the wells with closed half-hours (``slots``): half-hours so far, and sum
    and count of the open block. If a block was closed: the wells of ``block_slots`` with their ``blocks``, and
    ``trends`` if some point was completed."""

    slots: Slots
    halves: IntArray
    sums: FloatArray
    counts: IntArray
    block_slots: Slots | None = None
    blocks: Array | None = None
    trends: "_Trends | None" = None


@dataclass(slots=True)
class _Trends:
    """Of some wells (last axis): ``points`` (signals, 24, wells) newest first with their ``minutes`` since 1970, how
    many are ``known``, the ``start`` (signals, wells), and how many points in a row were ``away`` from its speed."""

    points: Array
    minutes: Array
    known: Array
    start: Array
    away: Array


class SlowTrends:
    """The trends of all wells, kept in ``state``. ``keys``: the features that are made here; ``medians``: the signals
    whose half-hour means are handed in, in their order."""

    def __init__(self, state: WellArrays, keys: Iterable[Key], medians: list[str], row: dict[Key, int]) -> None:
        keys = list(keys)
        self.is_used = bool(keys)
        self._state = state
        self._signals = sorted({str(key[1]) for key in keys} | ({SPEED} if keys else set()))
        self._of = [medians.index(name) for name in self._signals]
        self._speed = self._signals.index(SPEED) if keys else -1
        self._power = np.array([_POWER_OF_SPEED.get(name, 0) for name in self._signals])[:, None]
        self._rows = [(row[key], str(key[0]), self._signals.index(str(key[1]))) for key in keys]
        if not keys:
            return
        state.add("slow_halves", np.int64, 0)
        state.add("slow_sum", np.float64, 0.0, self._signals)
        state.add("slow_count", np.int32, 0, self._signals)
        state.add("slow_blocks", np.float32, np.nan, self._signals, (_BLOCKS,))
        state.add("slow_points", np.float32, np.nan, self._signals, (_POINTS,))
        state.add("slow_minutes", np.int32, 0, shape=(_POINTS,))
        state.add("slow_known", np.int8, 0)
        state.add("slow_start", np.float32, np.nan, self._signals)
        state.add("slow_away", np.int8, 0)

    def plan(self, runs: Runs, at: Slots, means: FloatArray, features: Features) -> SlowPlan:
        """Half-hour ``means`` (medians, h) are over at the closings ``at`` (h,), well after well and in order.
        ``features`` are filled in."""
        state, well = self._state, runs.closing_well[at]
        new = np.ones(at.shape[0], np.bool_)
        new[1:] = well[1:] != well[:-1]
        first = np.flatnonzero(new)
        slots = runs.slots[well[first]]
        which = np.cumsum(new) - 1
        number = state["slow_halves"][slots][which] + np.arange(at.shape[0]) - first[which]
        block = number // _HALVES
        begins = new.copy()
        begins[1:] |= block[1:] != block[:-1]
        starts = np.flatnonzero(begins)
        goes_on = new[starts] & (number[starts] % _HALVES != 0)
        sums = np.zeros((len(self._signals), starts.shape[0]))
        counts = np.zeros(sums.shape, np.int64)
        continued = slots[which[starts[goes_on]]]
        sums[:, goes_on], counts[:, goes_on] = state["slow_sum"][:, continued], state["slow_count"][:, continued]
        part = means[self._of]
        there = ~np.isnan(part)
        group = np.cumsum(begins) - 1
        sums, counts = added(sums, group, np.where(there, part, 0.0)), added(counts, group, there)
        ends = until(starts, at.shape[0]) - 1
        full = (number[ends] + 1) % _HALVES == 0
        last = until(np.flatnonzero(new[starts]), starts.shape[0]) - 1
        plan = SlowPlan(
            slots,
            number[ends][last] + 1,
            np.where(full[last], 0.0, sums[:, last]),
            np.where(full[last], 0, counts[:, last]),
        )
        if full.any():
            over = ends[full]
            self._close(runs, features, plan, at[over], block[over], sums[:, full] / counts[:, full])
        return plan

    def _close(
        self, runs: Runs, features: Features, plan: SlowPlan, at: Slots, block: IntArray, values: FloatArray
    ) -> None:
        """Blocks with ``values`` (signals, blocks) are over at the closings ``at``; some of them complete a point."""
        state, run, well = self._state, runs.opening[at], runs.closing_well[at]
        new = np.ones(at.shape[0], np.bool_)
        np.not_equal(well[1:], well[:-1], out=new[1:])
        last = until(new, True)
        slots = plan.block_slots = runs.slots[well[new]]
        ago, some = np.arange(_BLOCKS)[:, None], np.arange(slots.shape[0])
        blocks = plan.blocks = state["slow_blocks"][:, :, slots]
        done = np.flatnonzero(block % _BLOCKS == _BLOCKS - 1)
        after, newest = appended(blocks[:, (block[new] - 1 - ago) % _BLOCKS, some], new, values, done)
        blocks[:, (block[last] - ago) % _BLOCKS, some] = newest
        if not done.size:
            return
        plan.trends = trends = _Trends(
            state["slow_points"][:, :, slots],
            state["slow_minutes"][:, slots],
            state["slow_known"][slots],
            state["slow_start"][:, slots],
            state["slow_away"][slots],
        )
        which = (np.cumsum(new) - 1)[done]
        minutes = (runs.closed[at[done]] + 1) * (BUCKET_US // 60_000_000)
        made: list[tuple[Slots, FloatArray]] = []
        for begin in range(0, done.shape[0], _POINTS_AT_ONCE):
            part = slice(begin, begin + _POINTS_AT_ONCE)
            known = self._add(trends, which[part], after[:, :, part], minutes[part])
            made.append(self._told([(run[done[part]][points], each) for points, each in known]))
        runs_told, told = (np.concatenate(each, axis=-1) for each in zip(*made, strict=True))
        features.change([row for row, *_ in self._rows], runs_told, told)

    def _told(self, known: list[tuple[Slots, _Trends]]) -> tuple[Slots, FloatArray]:
        """The runs from which on points are ``known``, and what is known of the signals after each of these,
        (features, points)."""
        runs, trends = zip(*known, strict=True)
        made = _judged(_joined(trends))
        return np.concatenate(runs), np.array([made[function][signal] for _, function, signal in self._rows])

    def _add(self, trends: _Trends, which: Slots, blocks: Array, minutes: IntArray) -> list[tuple[Slots, _Trends]]:
        """Points, well after well and in order, each made of its ``blocks`` (signals, 12, points): what is kept of
        their wells, which are at the places ``which`` in ``trends``, after each of them."""
        value = median(blocks.swapaxes(1, 2).astype(np.float64), _LEAST_BLOCKS)
        speed = value[self._speed]
        scale = np.where(np.isnan(speed), 1.0, speed) ** self._power
        value = (value / scale).astype(np.float32)
        new = np.ones(which.shape[0], np.bool_)
        np.not_equal(which[1:], which[:-1], out=new[1:])
        ordinal = np.arange(which.shape[0])
        if new.all():
            return [(ordinal, self._add_one(trends, which, value, minutes))]
        first = np.flatnonzero(new)
        ordinal -= first[np.cumsum(new) - 1]
        steady = self._add_steady(trends, which, value, minutes, new, ordinal)
        if steady is not None:
            return [(np.arange(which.shape[0]), steady)]
        turns = [np.flatnonzero(ordinal == turn) for turn in range(int(ordinal.max()) + 1)]
        return [(some, self._add_one(trends, which[some], value[:, some], minutes[some])) for some in turns]

    def _add_steady(
        self, trends: _Trends, which: Slots, value: Array, minutes: IntArray, new: BoolArray, ordinal: Slots
    ) -> _Trends | None:
        """All points at once, which can be done if each is at the speed of its well's start and no start is set, as it
        mostly is; None if it is not. ``new`` for the first point of a well, ``ordinal``: the how manieth of it."""
        some = which[new]
        start, known = trends.start[:, which], trends.known[which] + ordinal
        moved = np.abs(value[self._speed] - start[self._speed]) > _SAME_SPEED_HZ
        points, newest_points = appended(trends.points[:, :, some], new, value)
        times, newest_times = appended(trends.minutes[None, :, some], new, minutes[None])
        paused = (known > 0) & (minutes - times[0, 1] > _PAUSE_MINUTES)
        if moved.any() or paused.any() or _start_due(points, start, self._speed).any():
            return None
        known = np.minimum(known + 1, _POINTS).astype(np.int8)
        trends.points[:, :, some], trends.minutes[:, some] = newest_points, newest_times[0]
        trends.known[some], trends.away[some] = known[until(new, True)], 0
        return _Trends(points, times[0], known, start, np.zeros(which.shape[0], np.int8))

    def _add_one(self, trends: _Trends, wells: Slots, value: Array, minutes: IntArray) -> _Trends:
        """One more point of each of ``wells``, ``value`` (signals, wells): what is kept of them after it."""
        part = _Trends(
            trends.points[:, :, wells],
            trends.minutes[:, wells],
            trends.known[wells],
            trends.start[:, wells],
            trends.away[wells],
        )
        moved = np.abs(value[self._speed] - part.start[self._speed]) > _SAME_SPEED_HZ
        part.away = np.where(moved, part.away + 1, 0).astype(np.int8)
        paused = (part.known > 0) & (minutes - part.minutes[0] > _PAUSE_MINUTES)
        anew = paused | (part.away >= _AWAY_POINTS)
        part.points[:, :, anew], part.known[anew], part.start[:, anew], part.away[anew] = np.nan, 0, np.nan, 0
        taken = np.flatnonzero(~moved | anew)
        for ring, newest in ((part.points, value[:, taken]), (part.minutes, minutes[taken])):
            ring[..., 1:, taken] = ring[..., :-1, taken]
            ring[..., 0, taken] = newest
        part.known[taken] = np.minimum(part.known[taken] + 1, _POINTS)
        _set_start(part, self._speed)
        for name in ("points", "minutes", "start"):
            getattr(trends, name)[..., wells] = getattr(part, name)
        trends.known[wells], trends.away[wells] = part.known, part.away
        return part

    def commit(self, journal: Journal, plan: SlowPlan) -> None:
        """Write the plan of a batch into the state."""
        state = self._state
        journal.put(state["slow_halves"], plan.slots, plan.halves)
        journal.put(state["slow_sum"], (slice(None), plan.slots), plan.sums)
        journal.put(state["slow_count"], (slice(None), plan.slots), plan.counts)
        trends, slots = plan.trends, plan.block_slots
        if slots is not None:
            journal.put(state["slow_blocks"], (slice(None), slice(None), slots), plan.blocks)
        if trends is None:
            return
        journal.put(state["slow_points"], (slice(None), slice(None), slots), trends.points)
        journal.put(state["slow_minutes"], (slice(None), slots), trends.minutes)
        journal.put(state["slow_start"], (slice(None), slots), trends.start)
        journal.put(state["slow_known"], slots, trends.known)
        journal.put(state["slow_away"], slots, trends.away)


def slow_keys(columns: Iterable[Key]) -> list[Key]:
    """The features to be made here so that ``columns`` can be read: of each signal all three, as messages tell them."""
    signals = {str(key[1]) for key in columns if key[0] in FUNCTIONS}
    return [(function, signal) for function in FUNCTIONS for signal in sorted(signals)]


def _set_start(part: _Trends, speed: int) -> None:
    """The speed of the first point and the median of the first three of each other signal are the start."""
    due = _start_due(part.points, part.start, speed)
    if due.any():
        signal, well = np.nonzero(due)
        part.start[signal, well] = median(part.points[signal, :, well], 1)


def _start_due(points: Array, start: Array, speed: int) -> BoolArray:
    """(signals, wells): there is no start yet, and enough ``points`` (signals, 24, wells) to set it."""
    none = np.isnan(start)
    if not none.any():
        return none
    there = (~np.isnan(points)).sum(axis=1)
    due = none & (there == _START_POINTS)
    due[speed] = none[speed] & (there[speed] >= 1)
    return np.asarray(due)


def _joined(parts: Sequence[_Trends]) -> _Trends:
    """The wells of all ``parts``, one after the other."""
    if len(parts) == 1:
        return parts[0]
    names = [field.name for field in fields(_Trends)]
    return _Trends(*(np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in names))


def _judged(part: _Trends) -> dict[str, FloatArray]:
    """By name of function: ratio, rate (1/s) and confidence, each (signals, wells)."""
    y = part.points.astype(np.float64)
    start = part.start.astype(np.float64)
    n = (~np.isnan(y)).sum(axis=1)
    newest = y[:, 0]
    rise = y[:, _NEWER] - y[:, _OLDER]
    rises = np.abs(np.count_nonzero(rise > 0, axis=1) - np.count_nonzero(rise < 0, axis=1))
    z = np.maximum(rises - 1, 0) / np.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    confidence = _erf(z / math.sqrt(2))
    steps = np.fmax.reduce(np.abs(np.diff(smoothed(y), axis=1)), axis=1)
    confidence[steps > _STEP_SHARE * np.abs(newest - start)] = 0.0
    confidence[(n < _LEAST_POINTS) | np.isnan(newest) | np.isnan(start)] = np.nan
    rate = _slope(y, part.minutes * 60.0, part.known) / start
    rate[np.isnan(confidence)] = np.nan
    return {"slow_ratio": newest / start, "slow_rate": rate, "slow_confidence": confidence}


def smoothed(y: FloatArray) -> FloatArray:
    """The median of each point and its neighbours, where NaN counts as the greatest: a single bad point is no step."""
    a, b, c = y[:, :-2], y[:, 1:-1], y[:, 2:]
    return np.maximum(np.fmin(a, b), np.fmin(np.maximum(a, b), c))


def _slope(y: FloatArray, seconds: FloatArray, known: npt.NDArray[np.int8]) -> FloatArray:
    """Median slope over pairs of points half of the series apart, (signals, wells); NaN with fewer than two points."""
    out = np.full((y.shape[0], y.shape[2]), np.nan)
    for count in np.flatnonzero(np.bincount(known)).tolist():
        if count < 2:
            continue
        wells = np.flatnonzero(known == count)
        apart = count // 2
        rise = y[:, : count - apart, wells] - y[:, apart:count, wells]
        time = seconds[: count - apart, wells] - seconds[apart:count, wells]
        out[:, wells] = median((rise / time).swapaxes(1, 2), 1)
    return out


def _erf(values: FloatArray) -> FloatArray:
    return np.array([math.erf(value) for value in values.ravel().tolist()]).reshape(values.shape)
