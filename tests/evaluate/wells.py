"""Each recorded well judged by itself: what an operator of that well would say of the rules.

A rule is judged by its lift: how much more often a stop follows its alarms than it follows any moment of that well.
Most stops have nothing to see before them (power, people), so no rule is judged by all stops. Parts of a recording that
rules were tuned on are told apart from those that they were not.
"""

import functools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esp_ingest.model import SIGNAL_ROW, DiagnosticRow, IntArray, Severity
from tests.evaluate.recorded import DAY_US, ESP01, ESP02, MINUTE_US, Played, decoded

ALARMS = (Severity.CRITICAL, Severity.HIGH, Severity.MEDIUM)
WARNINGS = (Severity.CRITICAL, Severity.HIGH)
AGAIN_US = 120 * MINUTE_US
BEFORE_US = 120 * MINUTE_US
_DAY_SAMPLES = 288
_VISIBLE_LOAD = 0.9


@dataclass(frozen=True)
class Part:
    """Days of a recording, counted from its start. ``tuned``: figures of rules were chosen with a look at them."""

    well: str
    recording: str
    first_day: float
    last_day: float
    tuned: bool

    @property
    def name(self) -> str:
        last = "the end" if self.last_day == float("inf") else f"day {self.last_day:g}"
        whole = self.first_day == 0 and self.last_day == float("inf")
        return f"{self.well}, " + ("whole" if whole else f"day {self.first_day:g} to {last}")


PARTS = (
    Part("A", ESP01, 0, float("inf"), True),
    Part("A", ESP01, 0, 227, True),
    Part("A", ESP01, 227, float("inf"), False),
    Part("B", ESP02, 0, float("inf"), True),
    Part("B", ESP02, 0, 20, True),
    Part("B", ESP02, 20, float("inf"), False),
)


@dataclass(frozen=True)
class Record:
    """When a well ran (µs, a time a sample), when it stopped, and the load before each stop as a share of its median
    over the day of running before (NaN where there was not yet a day)."""

    running_us: IntArray
    stops_us: IntArray
    load: tuple[float, ...]


@functools.cache
def record(recording: str) -> Record:
    batches = decoded(recording)
    t = np.concatenate([batch.timestamp_us for batch in batches])
    values = np.concatenate([batch.values for batch in batches], axis=1)
    current, frequency = values[SIGNAL_ROW["motor_current"]], values[SIGNAL_ROW["vsd_frequency"]]
    runs = (frequency > 5) & (current > 10)
    stops = np.flatnonzero(runs[:-1] & ~runs[1:]) + 1
    load = np.where(runs, current / np.where(runs, frequency, 1.0) ** 2, np.nan)
    found = []
    for stop in stops.tolist():
        day = load[:stop][~np.isnan(load[:stop])][-_DAY_SAMPLES - 4 : -4]
        # The last sample may be of a drive that is running down.
        found.append(float(np.mean(load[stop - 4 : stop - 1]) / np.median(day)) if len(day) >= 72 else float("nan"))
    return Record(t[runs], t[stops], tuple(found))


@dataclass(frozen=True)
class Ruled:
    """One diagnosis at one well. ``followed``: the share of its occurrences with a stop within 24 hours; ``lift``: over
    the share of all running time of the well; ``lead_minutes``: medians, from raised to those stops."""

    diagnosis: str
    severities: str
    occurrences: int
    per_day: float
    in_alarm: float
    again: float
    followed: float
    lift: float
    lead_minutes: float


@dataclass(frozen=True)
class Figures:
    """What an operator has of the rules at one well. Shares are of time, of alarms or of stops; ``…_chance``: what any
    running moment has. ``in_alarm`` leaves out ``trip``, which stands as long as the pump is down; ``visible`` are the
    stops with a load below 90 % of its median before them, ``visible_warned`` those of them with a warning."""

    part: Part
    days: float
    alarms_per_day: float
    in_alarm: float
    again: float
    followed: float
    followed_chance: float
    stops: int
    warned: float
    warned_chance: float
    visible: int
    visible_warned: int
    rules: tuple[Ruled, ...]


def figures(each: Played, part: Part) -> Figures:
    """``each`` is the whole recording: what lies before the part is what the well is used to."""
    since = each.first_us + round(part.first_day * DAY_US)
    until = min(each.first_us + part.last_day * DAY_US, each.last_us)
    whole = record(part.recording)
    running = whole.running_us[(whole.running_us >= since) & (whole.running_us < until)]
    inside = [at for at, stop in enumerate(whole.stops_us.tolist()) if since <= stop < until]
    stops = whole.stops_us
    rows = [row for row in each.dry_run.seen() if since <= row.raised_us < until]
    alarms = [row for row in rows if row.severity in ALARMS]
    warnings = [row for row in each.dry_run.seen() if row.severity in WARNINGS and row.diagnosis != "trip"]
    judged = [row for row in warnings if since <= row.raised_us < until]
    chance = float(_soon(running, stops).mean()) if len(running) else float("nan")
    warned = [_warned(warnings, int(stops[at])) for at in inside]
    visible = [whole.load[at] < _VISIBLE_LOAD for at in inside]
    days = (until - since) / DAY_US
    return Figures(
        part,
        days,
        len(alarms) / days,
        _share([row for row in alarms if row.diagnosis != "trip"], since, until),
        _share_again(alarms),
        _mean(_soon(_raised(judged), stops)),
        chance,
        len(inside),
        _mean(warned),
        _mean([_warned(warnings, at) for at in running[:: max(1, len(running) // 4_000)].tolist()]),
        sum(visible),
        sum(w for w, seen in zip(warned, visible, strict=True) if seen),
        tuple(_ruled(rows, stops, chance, since, until)),
    )


def _ruled(
    rows: Sequence[DiagnosticRow], stops: IntArray, chance: float, since: float, until: float
) -> Iterator[Ruled]:
    for name in sorted({row.diagnosis for row in rows} - {"trip", "planned_stop"}):
        some = [row for row in rows if row.diagnosis == name]
        soon = _soon(_raised(some), stops)
        following = stops[np.minimum(np.searchsorted(stops, _raised(some)), len(stops) - 1)]
        leads = [
            (stop - row.raised_us) / MINUTE_US
            for row, stop, yes in zip(some, following.tolist(), soon, strict=True)
            if yes
        ]
        followed = _mean(soon)
        severities = sorted({row.severity.value for row in some})
        yield Ruled(
            name,
            ", ".join(severities),
            len(some),
            len(some) / ((until - since) / DAY_US),
            _share(some, since, until),
            _share_again(some),
            followed,
            followed / chance if chance else float("nan"),
            statistics.median(leads) if leads else float("nan"),
        )


def _raised(rows: Sequence[DiagnosticRow]) -> IntArray:
    return np.array([row.raised_us for row in rows], np.int64)


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _soon(at_us: IntArray, stops: IntArray) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Whether a stop follows each moment within 24 hours."""
    if not len(stops):
        return np.zeros(len(at_us), np.bool_)
    place = np.searchsorted(stops, at_us, side="left")
    following = stops[np.minimum(place, len(stops) - 1)]
    return (place < len(stops)) & (following - at_us <= DAY_US)


def _warned(warnings: Sequence[DiagnosticRow], at_us: int) -> bool:
    """A warning stood before ``at_us`` at some time of the 2 hours before it."""
    return any(
        row.raised_us < at_us and (row.cleared_us is None or row.cleared_us >= at_us - BEFORE_US) for row in warnings
    )


def _share(rows: Sequence[DiagnosticRow], since: float, until: float) -> float:
    """The share of time in which one of these stood; a time that two of them stood counts once."""
    covered, reached = 0.0, since
    for row in sorted(rows, key=lambda row: row.raised_us):
        end = min(until, row.cleared_us if row.cleared_us is not None else until)
        covered += max(0.0, end - max(reached, row.raised_us))
        reached = max(reached, end)
    return covered / (until - since)


def _share_again(rows: Sequence[DiagnosticRow]) -> float:
    """The share of occurrences that were raised within 2 hours after the one before of their kind was over."""
    last: dict[str, int] = {}
    again = []
    for row in sorted(rows, key=lambda row: row.raised_us):
        before = last.get(row.diagnosis)
        again.append(before is not None and row.raised_us - before <= AGAIN_US)
        last[row.diagnosis] = row.cleared_us if row.cleared_us is not None else row.raised_us
    return _mean(again)
