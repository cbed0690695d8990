"""The features of the wells of a batch, as they stand during each of its runs (see buckets.py).

Most of them are what the state has of the well. What the batch changes lies over it: values at the closings of buckets,
and values from one run on. A row is made when it is read, since rules read few of them as long as all is well."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from esp_ingest.diagnostics.engine.buckets import Key, Runs, Slots, as_index
from esp_ingest.diagnostics.engine.well_state import Array, Index, Journal, WellArrays
from esp_ingest.model import FloatArray


@dataclass(slots=True)
class _Change:
    """Values of some ``rows``, each from a run on up to the next one of the same well. ``values`` (rows, changes +
    wells) ends with what stood before the batch; ``place`` is which of them is in force in each stretch of runs,
    ``begins`` with which run that begins, and ``lengths`` how many runs it has. ``count``: of the changes."""

    rows: list[int]
    values: FloatArray
    place: Slots
    begins: Slots
    lengths: Slots
    count: int

    def by_run(self, values: FloatArray) -> FloatArray:
        """``values`` (changes + wells,), each in force where that of ``place`` is, (runs,)."""
        return values[self.place].repeat(self.lengths)

    def at(self, run: Slots) -> Slots:
        """Which of the values are in force during each of ``run``."""
        return self.place[self.begins.searchsorted(run, side="right") - 1]


class Features:
    """``state`` (features, slots) is what stood before the batch, until :meth:`commit`."""

    def __init__(self, state: Array, runs: Runs) -> None:
        self._state, self._runs = state, runs
        self._made: dict[int, FloatArray] = {}
        self._closings: dict[int, tuple[FloatArray, FloatArray]] = {}  # (closings,), and what stood before (wells,)
        self._changed: list[_Change] = []
        self._changes: dict[int, tuple[_Change, int]] = {}  # by row, with its place among the rows of the change
        self._is_committed = False
        # What makes the rows beyond those of the state, by run.
        self.read: Callable[[int], FloatArray] | None = None

    # -- reading

    def of(self, row: int) -> FloatArray:
        """The feature ``row`` by run, (runs,); not to be changed."""
        made = self._made.get(row)
        if made is None:
            is_kept = row < self._state.shape[0]
            made = self._made[row] = self._make(row) if is_kept or self.read is None else self.read(row)
        return made

    def at_closings(self, row: int) -> FloatArray:
        """The feature ``row`` at the runs before which a bucket closes, (closings,); not to be changed."""
        closings = self._closings.get(row)
        return self.of(row)[self._runs.opening_index] if closings is None else closings[0]

    def one(self, row: int, run: int) -> float:
        """The feature ``row`` during ``run``."""
        change, nth = self._changes.get(row, (None, 0))
        if change is not None:
            return float(change.values[nth, change.at(np.array([run]))[0]])
        if row in self._made or row in self._closings or row >= self._state.shape[0]:
            return float(self.of(row)[run])
        return float(self._state[row, self._runs.slots[self._runs.well[run]]])

    def _make(self, row: int) -> FloatArray:
        runs = self._runs
        if runs.single and self._is_committed and row < self._state.shape[0]:
            return np.asarray(self._state[row, runs.index])
        if row in self._closings:
            values, before = self._closings[row]
            out = np.array(before) if runs.single else before[runs.well]
            out[runs.opening_index] = values
            return out
        change, nth = self._changes.get(row, (None, 0))
        if change is not None:
            return change.by_run(change.values[nth])
        before = self._state[row, runs.index]
        return before if runs.single else np.asarray(before[runs.well])

    # -- what the batch changes

    def close(self, row: int, values: FloatArray) -> None:
        """At the runs before which a bucket closes, the feature ``row`` is ``values`` (closings,)."""
        self._closings[row] = values, self._before(row)
        self._made.pop(row, None)

    def change(self, rows: Iterable[int], run: Slots, values: FloatArray) -> None:
        """From each of the runs ``run`` (changes,) on, in any order, up to the next one of the same well, the features
        ``rows`` are ``values`` (rows, changes). If a run stands there twice, the last one counts. A row changes in one
        call a batch."""
        runs, rows, count = self._runs, list(rows), run.shape[0]
        place = count + runs.well
        place[run] = np.arange(count)
        is_begin = np.zeros(place.shape[0], np.bool_)
        is_begin[runs.first] = is_begin[run] = True
        begins = np.flatnonzero(is_begin)
        lengths = np.empty_like(begins)
        np.subtract(begins[1:], begins[:-1], out=lengths[:-1])
        lengths[-1] = place.shape[0] - begins[-1]
        values = np.concatenate([values, self._state[_rows_at(rows, runs.index)]], axis=1)
        change = _Change(rows, values, place[begins], begins, lengths, count)
        self._changed.append(change)
        for nth, row in enumerate(rows):
            self._changes[row] = change, nth
            self._made.pop(row, None)

    def along(self, row: int, values: FloatArray, before: FloatArray) -> FloatArray:
        """By run, (runs,): ``values`` (changes,) from where the feature ``row`` changed, ``before`` (wells,) there."""
        change, _ = self._changes[row]
        return change.by_run(np.concatenate([values, before]))

    def _before(self, row: int) -> FloatArray:
        """What the state has of the wells. With one run a well, nobody asks for it once it is overwritten."""
        before = self._state[row, self._runs.index]
        return before if self._runs.single else np.array(before)

    def commit(self, journal: Journal) -> None:
        """Write into the state what stands at the end of the batch."""
        runs = self._runs
        for row, (values, _) in self._closings.items():
            journal.put(self._state[row], runs.closers, values[runs.last_closing])
        for change in self._changed:
            place = change.at(runs.last)
            some = np.flatnonzero(place < change.count)
            index = _rows_at(change.rows, as_index(runs.slots[some]))
            journal.put(self._state, index, change.values.take(place[some], axis=1))
        self._is_committed = True

    def release(self) -> None:
        """Nobody reads any more. What makes features refers to the batch, and the batch to this: a cycle, whose arrays
        the garbage collector, which counts objects and not bytes, would leave for thousands of batches."""
        self.read = None


def _rows_at(rows: list[int], index: Index) -> Index:
    """The index of ``rows`` at each of ``index``, slots or a slice of them."""
    return (rows, index) if isinstance(index, slice) else (np.array(rows)[:, None], index)


class OnDemand:
    """Features that are made when they are read, and kept until what they are made of changes. That is a cache: it is
    part of no checkpoint. ``keys`` have the rows from ``first`` on."""

    def __init__(self, state: WellArrays, keys: Sequence[Key], first: int) -> None:
        self._state, self._first, self.keys = state, first, keys
        state.add("on_demand", np.float64, np.nan, keys, is_cache=True)
        state.add("is_made", np.bool_, False, keys, is_cache=True)

    def key_of(self, row: int) -> Key:
        """The key of the feature ``row``."""
        return self.keys[row - self._first]

    def by_well(self, row: int, index: Index, make: Callable[[], FloatArray], journal: Journal | None) -> FloatArray:
        """The feature ``row`` of the wells at ``index``, not to be changed. With a ``journal``, it is kept."""
        made, kept = (self._state[name][row - self._first] for name in ("is_made", "on_demand"))
        if made[index].all():
            return np.asarray(kept[index])
        values = make()
        if journal is not None:
            journal.put(kept, index, values)
            journal.put(made, index, True)
        return values

    def forget(self, journal: Journal, keys: slice, index: Index) -> None:
        """What the ``keys`` are made of has changed at the wells at ``index``."""
        journal.put(self._state["is_made"][keys], (slice(None), index), False)
