"""The rows of a batch, well after well in event time, and the columns that conditions read.

Everything here is a function of a well's readings in the order received, never of how they were cut into batches: where
a column looks back past the start of the batch, it continues from the state.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from esp_ingest.diagnostics.engine.buckets import Key, Slots, as_index, until
from esp_ingest.diagnostics.engine.features import Features
from esp_ingest.diagnostics.engine.well_state import Array, Journal
from esp_ingest.diagnostics.language.evaluation import BoolArray
from esp_ingest.diagnostics.language.functions import DERIVED, FUNCTIONS, LOAD_EXPONENTS, parts_of
from esp_ingest.model import FloatArray, IntArray

SPEED_HZ = 2.0  # away from its median: another speed than that of the well's habits
STEP_US = 600_000_000  # a value older than this is not "one sample before"
MEASURED_US = 3_600_000_000


@dataclass(slots=True)
class Rows:
    """n accepted readings grouped by well, each group in time order.

    ``slot``, ``t`` (event time, µs) and ``received`` are (n,); ``group`` (n,) numbers the wells of the batch,
    ``first`` (n,) is the first row of a row's group; ``starts`` and ``ends`` (wells,) bound the groups, ``slots``
    (wells,) are their slots. ``single``: one row a well.
    """

    source: Slots
    slot: Slots
    t: IntArray
    received: IntArray
    group: Slots
    first: Slots
    starts: Slots
    ends: Slots
    slots: Slots
    at: Slots = field(init=False)
    single: bool = field(init=False)
    index: Any = field(init=False)  # ``slots``, as a slice if they follow each other
    last: Slots = field(init=False)  # the last row of each group, (wells,)
    counts: Slots = field(init=False)  # of rows of each group, (wells,)

    def __post_init__(self) -> None:
        self.index = as_index(self.slots)
        self.last = self.ends - 1
        self.counts = self.ends - self.starts
        self.at = np.arange(self.t.shape[0])
        self.single = self.starts.shape[0] == self.t.shape[0]

    def __len__(self) -> int:
        return int(self.t.shape[0])

    def part(self, kept: BoolArray) -> "Rows":
        """The rows that are ``kept`` (n,), of which there must be one at least."""
        slot = self.slot[kept]
        boundary = np.ones(slot.shape[0], np.bool_)
        np.not_equal(slot[1:], slot[:-1], out=boundary[1:])
        return _rows(self.source[kept], slot, self.t[kept], self.received[kept], boundary)

    def take(self, received: Array, out: Array) -> None:
        """Put what was ``received`` (…, readings) into ``out`` (…, n), in the order of the rows."""
        if received.shape[-1] == len(self) and (self.source == self.at).all():
            out[...] = received
        else:
            np.take(received, self.source, axis=-1, out=out, mode="clip")

    def latest(self, flag: BoolArray) -> tuple[Slots, BoolArray]:
        """(row, found): the newest row of the same well, up to and with each row, where ``flag`` holds."""
        rows = np.where(flag, self.at, -1)
        if self.single:
            return rows, flag
        rows = np.maximum.accumulate(rows, axis=-1)
        return rows, rows >= self.first

    def carry(self, flag: BoolArray, values: Array, before: Array) -> Array:
        """``values`` (n,) at the newest row so far where ``flag`` (…, n) holds, or ``before`` (…, wells) if the batch
        has none yet."""
        if self.single:
            return np.where(flag, values, before)
        rows, found = self.latest(flag)
        return np.where(found, values[rows], self.spread(before))

    def shifted(self, values: Array, before: Array) -> Array:
        """The row before's value of ``values`` (…, n); ``before`` (…, wells) for a well's first row."""
        if self.single:
            return before.copy()
        out = np.empty_like(values)
        out[..., 1:] = values[..., :-1]
        out[..., self.starts] = before
        return out

    def of(self, state: Array) -> Array:
        """What ``state`` (…, slots) has of the well of each row, (…, n), a copy."""
        return self.spread(self.before(state))

    def spread(self, by_well: Array) -> Array:
        """``by_well`` (…, wells) at each row of the well, (…, n)."""
        return by_well if self.single else by_well.repeat(self.counts, axis=-1)

    def seen(self, state: Array) -> Array:
        """As :meth:`of`, but not to be changed: it may be a part of the state."""
        if self.single and isinstance(self.index, slice):
            return np.asarray(state[..., self.index])
        return self.of(state)

    def newest(self, values: Array) -> Array:
        """``values`` (…, n) at the last row of each well, (…, wells); not to be changed."""
        return values if self.single else np.take(values, self.last, axis=-1)

    def before(self, state: Array) -> Array:
        """What ``state`` (…, slots) has of the wells of the batch, (…, wells), a copy."""
        if isinstance(self.index, slice):
            return np.array(state[..., self.index])
        return _gathered(state, self.index)


def _gathered(state: Array, slots: Slots) -> Array:
    """``state`` (…, slots) at ``slots`` (n,), as (…, n). Not state[..., slots]: that lays the columns out well by well,
    and rows of them are slow to read. Row by row, since np.take() copies all of an array first that is not in one
    piece, as those of the state are not: 1 ms a batch with 100 000 wells."""
    if state.ndim == 1:
        return np.asarray(state[slots])
    out = np.empty((*state.shape[:-1], slots.shape[0]), state.dtype)
    for row, to in zip(state, out, strict=True):
        to[...] = _gathered(row, slots)
    return out


def grouped(slot: Slots, t: IntArray, received: IntArray, last_us: IntArray) -> Rows:
    """Rows whose time is above everything received before for the same well, grouped by well. ``last_us`` by slot."""
    order = np.arange(slot.shape[0])
    if (slot[1:] < slot[:-1]).any():
        # 16 bits are sorted by their digits, twelve times as fast as 64 bits by comparing them.
        order = np.argsort(slot.astype(np.uint16) if slot.max() < 1 << 16 else slot, kind="stable")
        slot, t, received = slot[order], t[order], received[order]
    newer = t > last_us[slot]
    boundary = np.empty(slot.shape[0], np.bool_)
    if slot.shape[0]:
        boundary[0] = True
        np.not_equal(slot[1:], slot[:-1], out=boundary[1:])
    if not (boundary[1:] | (t[1:] > t[:-1])).all():
        newer &= _record_highs(t, np.cumsum(boundary) - 1)
    if not newer.all():
        order, slot, t, received = order[newer], slot[newer], t[newer], received[newer]
        boundary = boundary[newer]
        if slot.shape[0]:
            boundary[0] = True
            np.not_equal(slot[1:], slot[:-1], out=boundary[1:])
    return _rows(order, slot, t, received, boundary)


def _rows(source: Slots, slot: Slots, t: IntArray, received: IntArray, boundary: BoolArray) -> Rows:
    starts = np.flatnonzero(boundary)
    ends = until(starts, slot.shape[0])
    counts, wells = ends - starts, np.arange(starts.shape[0])
    is_single = starts.shape[0] == slot.shape[0]
    return Rows(
        source=source,
        slot=slot,
        t=t,
        received=received,
        group=wells if is_single else wells.repeat(counts),
        first=starts if is_single else starts.repeat(counts),
        starts=starts,
        ends=ends,
        slots=slot[starts],
    )


def _record_highs(t: IntArray, group: Slots) -> BoolArray:
    """True where a row's time is above all earlier ones of its group. Ranks in place of times cannot overflow."""
    _, rank = np.unique(t, return_inverse=True)
    key = group * (int(rank.max()) + 2) + rank + 1
    high = np.maximum.accumulate(key)
    before = np.empty_like(high)
    before[0] = -1
    before[1:] = high[:-1]
    return np.asarray(key > before)


class BatchColumns:
    """Columns on demand, each made once a batch: the Columns of language/evaluation.py."""

    def __init__(
        self,
        rows: Rows,
        signals: dict[str, FloatArray],
        facts: Mapping[str, Callable[[], Array]],
        features: Features,
        feature_row: dict[Key, int],
        run: Slots,
        config: dict[Key, Any],
        seen: dict[str, tuple[FloatArray, IntArray, FloatArray, IntArray]],
        within_us: IntArray,
        journal: Journal,
    ) -> None:
        """``signals``: usable values by name; ``facts``: by name, made when they are read, true/false as 1/0;
        ``features`` by run, with ``run`` (n,); ``config``: limits and parameters by key, scalar or (n,);
        ``seen``: by signal (value, time) of the newest valid reading at each row, and (value, time) by well before the
        batch; ``within_us`` (sites, slots)."""
        self.rows = rows
        self.features = features
        self.feature_row = feature_row
        self.run = run
        self._signals = signals
        self._config = config
        self._seen = seen
        self._within_us = within_us
        self._journal = journal
        self._facts = facts
        self._made: dict[Key, Any] = {}
        self.recent: dict[int, IntArray] = {}  # by step: when it was last active, up to each row

    def set_parameters(self, parameters: Mapping[Key, Any]) -> None:
        """Parameters belong to the rule that runs next."""
        self._made.update(parameters)

    def column(self, key: Key) -> FloatArray:
        """The column of ``key``, (n,) or a scalar that broadcasts; made at its first use in a batch."""
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = self._make(key)
        return made  # type: ignore[no-any-return]  # columns of several dtypes share the cache

    def _make(self, key: Key) -> Any:
        function = key[0]
        if function == "limit":
            return self._config[key]
        if len(key) == 1:
            return self._feature(key)
        name = str(key[1])
        if function == "fact":
            return self._facts[name]()
        if function == "signal":
            return derived_or_sent(name, self._signals)
        if function == "measured":
            return self._measured(name)
        evaluate = FUNCTIONS[str(function)].evaluate
        return self._feature(key) if evaluate is None else evaluate(self, name)

    def _feature(self, key: Key) -> FloatArray:
        by_run = self.features.of(self.feature_row[key])
        return by_run if by_run.shape[0] == len(self.rows) else by_run[self.run]

    def previous(self, name: str) -> FloatArray:
        """The value of signal ``name`` one sample before, NaN where that is more than 10 minutes old."""
        value, time, old_value, old_time = self._seen[name]
        before = self.rows.shifted(value, old_value)
        when = self.rows.shifted(time, old_time)
        return np.where(self.rows.t - when <= STEP_US, before, np.nan)

    def at_this_speed(self, ratio: FloatArray) -> FloatArray:
        """See language/evaluation.py. The load is A/f², and the current follows the speed with an exponent between two
        of LOAD_EXPONENTS; 0 and 2 while they are not known."""
        frequency, usual = self.column(("signal", "vsd_frequency")), self.column(("median", "vsd_frequency"))
        away = np.flatnonzero(np.abs(frequency - usual) > SPEED_HZ)
        if not away.size:
            return ratio
        _, least, greatest = (self.column((name,))[away] for name in LOAD_EXPONENTS)
        speed = frequency[away] / usual[away]
        one = speed ** (np.where(np.isnan(least), 0.0, least) - 2)
        other = speed ** (np.where(np.isnan(greatest), 2.0, greatest) - 2)
        low, high, load = np.minimum(one, other), np.maximum(one, other), ratio[away]
        out = ratio.copy()
        out[away] = np.where(load < low, load / low, np.where(load > high, load / high, load * 0 + 1))
        return out

    def _measured(self, name: str) -> Any:
        t = self.rows.t
        times_us = [self._seen[part][1] for part in parts_of(name)]
        ages = [t - time_us <= MEASURED_US for time_us in times_us if time_us is not t]  # with each reading: no age
        return np.logical_and.reduce(ages).view(np.int8) if ages else np.ones(len(self.rows), np.int8)

    def within(self, site: int, yes: Callable[[], BoolArray], window_us: int) -> BoolArray:
        """Was what ``yes`` gives true at any row of the last ``window_us``, this one included?"""
        made = self._made.get(("within", site))
        if made is None:
            made = self._made["within", site] = self._within(site, yes(), window_us)
        return np.asarray(made)

    def _within(self, site: int, yes: BoolArray, window_us: int) -> BoolArray:
        rows = self.rows
        before = self._within_us[site][rows.slots]
        if not np.count_nonzero(yes):
            if not rows.single and not (rows.t[rows.starts] - before <= window_us).any():  # of each well, the first row
                return np.zeros(len(rows), np.bool_)
            return np.asarray(rows.t - rows.spread(before) <= window_us)
        newest = rows.carry(yes, rows.t, before)
        self._journal.put(self._within_us, (site, rows.slots), newest[rows.last])
        return np.asarray(rows.t - newest <= window_us)


def derived_or_sent(name: str, signals: dict[str, FloatArray]) -> FloatArray:
    """The column of a signal as it was sent, or computed from its parts if it is a derived one, and kept."""
    if name not in signals:
        derived = DERIVED[name]
        signals[name] = derived.evaluate(*(signals[part] for part in derived.parts))
    return signals[name]
