"""Changes of speed: what a well is used to goes along, and each change teaches how its current follows the speed.

A change is seen on half-hour means of the frequency: two steady ones, one in which it happened, two steady ones at
another speed. Then the running medians of flow and pressures are multiplied by what the change made of their signals,
as far as a change of speed can: the affinity laws (flow with f, head with f²) hold along the pump's own curve alone, so
that each signal has a range of exponents. What goes beyond it is not the change of speed.

From the current on both sides of each change comes the exponent of this well's current, n in A ~ fⁿ. The median of its
last changes is used once there are three; until then anything between 0 and 2 is possible. The medians of load and
current are left to learn the new speed: columns.py compares with what is possible at it.
"""

from dataclasses import dataclass, field

import numpy as np

from esp_ingest.diagnostics.engine.buckets import Key, Slots
from esp_ingest.diagnostics.engine.well_state import NEVER, Journal, WellArrays
from esp_ingest.diagnostics.language.evaluation import BoolArray
from esp_ingest.diagnostics.language.functions import LOAD_EXPONENTS
from esp_ingest.model import FloatArray, IntArray

FREQUENCY, CURRENT = "vsd_frequency", "motor_current"
STEP_HZ = 2.0
_STEADY_HZ = 0.5
_AGO = 5  # half-hour means that are looked at, the newest first
_KEPT_STEPS = 7
_KNOWN_STEPS = 3
_LEAST_BAND = 0.3
_EXPONENTS = (0.0, 3.0)  # what is beyond is not the change of speed
# What a change of speed can make of a signal: f to the power of these. Of intake pressure there is no law, only a
# direction, and it depends on the well how far it goes. Other signals stay as they are.
_RANGES = {
    "flow_rate": (0.5, 3.0),
    "pump_head": (0.0, 2.5),
    "discharge_pressure": (-0.5, 2.0),
    "pip": (-4.0, 0.0),
    "vibration": (-2.0, 4.0),
}
_NOTHING = (0.0, 0.0)
_SAME_STEP = 3  # half-hours within which it is seen again

LEARNED: tuple[Key, ...] = tuple((name,) for name in LOAD_EXPONENTS)


@dataclass(slots=True)
class SpeedStep:
    """A change of speed at one well, told by the push ``at`` (its place in the plan). ``factors`` (medians,) for the
    half-hours before it; ``exponents`` (7,) of the well's current, the newest first; ``learned``: see LOAD_EXPONENTS;
    ``ring`` (medians, 48): the half-hours as they are after it."""

    at: int
    factors: FloatArray
    exponents: FloatArray
    learned: FloatArray
    ring: FloatArray = field(default_factory=lambda: np.empty(0))


@dataclass(slots=True)
class HalfHours:
    """Half-hours of a batch that are over, learned or not, in order of wells and time. ``means`` (medians, n);
    ``which`` (n,): the place of each one's well in ``slots``; ``ordinal`` (n,): the how manieth of its well."""

    means: FloatArray
    slots: Slots
    which: Slots
    ordinal: Slots


class SpeedSteps:
    """``names``: the signals of the running medians, FREQUENCY and CURRENT among them. ``is_moved`` (names,): a change
    of speed moves the median. The newest half-hours of each well are kept whether they were learned or not: what a
    change of speed made of a signal is told from them."""

    def __init__(self, state: WellArrays, names: list[str]) -> None:
        self._state = state
        self.frequency = names.index(FREQUENCY)
        self._current = names.index(CURRENT)
        self._ranges = [_RANGES.get(name, _NOTHING) for name in names]
        self.is_moved = np.array([name in _RANGES for name in names])
        state.add("halves", np.float32, np.nan, names, (_AGO,))
        state.add("half_count", np.int64, 0)
        state.add("exponents", np.float32, np.nan, shape=(_KEPT_STEPS,))
        state.add("step_number", np.int64, NEVER)  # of the push that told of the last change

    def recent(self, halves: HalfHours, place: int) -> FloatArray:
        """(5, half-hours): the means of the signal ``place`` up to each half-hour, the newest first."""
        which, ordinal, means = halves.which, halves.ordinal, halves.means[place]
        ring, count = self._state["halves"][place], self._state["half_count"][halves.slots][which]
        out = np.empty((_AGO, which.shape[0]))
        out[0] = means
        for ago in range(1, _AGO):
            out[ago, ago:] = means[:-ago]
        # The first ones of a well in the batch look back into its ring.
        early = np.flatnonzero(ordinal < _AGO - 1)
        back = np.arange(1, _AGO)[:, None]
        kept = ring[(count[early] + ordinal[early] - back) % _AGO, halves.slots[which[early]]]
        out[1:, early] = np.where(ordinal[early] < back, kept, out[1:, early])
        return out

    def commit(self, journal: Journal, halves: HalfHours) -> None:
        """Keep the newest half-hours."""
        counts, before = np.bincount(halves.which, minlength=halves.slots.shape[0]), self._state["half_count"]
        some = np.flatnonzero(halves.ordinal >= counts[halves.which] - _AGO)
        slots = halves.slots[halves.which[some]]
        at = (before[slots] + halves.ordinal[some]) % _AGO
        journal.put(self._state["halves"], (slice(None), at, slots), halves.means[:, some])
        journal.put(before, halves.slots, before[halves.slots] + counts)

    def seen(self, frequency: FloatArray, number: IntArray, slots: Slots) -> BoolArray:
        """Whether a change of speed lies behind each push (pushes,), from half-hour means (5, pushes) of the frequency,
        the number of the push among its well's, and the well's slot."""
        steady = (np.abs(frequency[0] - frequency[1]) < _STEADY_HZ) & (np.abs(frequency[3] - frequency[4]) < _STEADY_HZ)
        is_new = number - self._state["step_number"][slots] >= _SAME_STEP
        return np.asarray(steady & is_new & (np.abs(frequency[0] - frequency[3]) >= STEP_HZ))

    def step(self, at: int, slot: int, means: FloatArray) -> SpeedStep:
        """The change behind the push ``at`` at ``slot``; ``means`` (medians, 5), the newest half-hour first."""
        after, before = _mean(means[:, :2]), _mean(means[:, 3:])
        made = after / before
        speed = made[self.frequency]
        bounds = np.sort(speed ** np.array(self._ranges), axis=1)
        factors = np.clip(np.where(np.isfinite(made), made, 1.0), bounds[:, 0], bounds[:, 1])
        exponents = self._state["exponents"][:, slot].astype(np.float64)
        exponent = np.log(made[self._current]) / np.log(speed)
        if _EXPONENTS[0] <= exponent <= _EXPONENTS[1]:
            exponents = np.append(exponent, exponents[:-1]).astype(np.float32).astype(np.float64)
        return SpeedStep(at, factors, exponents, learned(exponents))


def learned(exponents: FloatArray) -> FloatArray:
    """(exponent, least, greatest) from the exponents of a well's last changes, NaN while there are too few."""
    some = np.sort(exponents[~np.isnan(exponents)])
    if some.shape[0] < _KNOWN_STEPS:
        return np.full(3, np.nan)
    middle = float(np.median(some))
    band = max(_LEAST_BAND, float(np.median(np.abs(some - middle))) * 1.5)
    return np.array([middle, max(middle - band, _EXPONENTS[0]), min(middle + band, _EXPONENTS[1])])


def _mean(halves: FloatArray) -> FloatArray:
    first, second = halves[:, 0], halves[:, 1]
    both = (first + second) / 2
    return np.where(np.isnan(both), np.where(np.isnan(first), second, first), both)
