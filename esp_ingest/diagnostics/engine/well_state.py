"""State of all wells as arrays over slots, with a journal that can take a batch back.

Every array has the wells as its last axis, so that a batch gathers and scatters whole columns. The first axis may carry
labels (signal, rule or feature names): a snapshot is put back by label, so it survives a change of the rules.
"""

import mmap
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Index = Any

NEVER = np.iinfo(np.int64).min // 4  # a time before every other, from which differences do not overflow


_LEAST_GROWTH = 128  # slots
_ODD_LINES = 24  # slots, three cache lines of 8-byte values
_FILLED_AT_ONCE = 128  # slots that get the values of a new one together


_FEW = 8  # an array of which at most one label in so many has a value is exported by those labels alone


class _Spec(NamedTuple):
    labels: list[str] | None
    shape: tuple[int, ...]
    dtype: npt.DTypeLike
    fill: float | int
    newest_first: bool
    is_cache: bool


class Exported(NamedTuple):
    """An array of one well: ``data`` has the values of each of ``labels`` (None: an array without labels)."""

    labels: list[str] | None
    dtype: str
    data: bytes


class WellArrays:
    """Arrays by name that grow together, and whose slots can be given back. Not safe for threads: the engine is driven
    by one."""

    def __init__(self, capacity: int = 64) -> None:
        self._specs: dict[str, _Spec] = {}
        self._memory: dict[str, Array] = {}  # with room for more wells
        self._arrays: dict[str, Array] = {}  # the part of it that has values
        self.capacity = capacity
        self.count = 0  # slots that have been in use, also those given back
        self._filled = 0  # slots that have values, the first ones
        self._free: list[int] = []

    def add(
        self,
        name: str,
        dtype: npt.DTypeLike,
        fill: float | int,
        labels: Sequence[Hashable] | None = None,
        shape: tuple[int, ...] = (),
        newest_first: bool = False,
        is_cache: bool = False,
    ) -> None:
        """``shape`` and labels stand before the axis of wells: (len(labels), *shape, wells). ``newest_first``: if
        another version exported a longer series, the first part of it is put back; a shorter one is the first part.
        ``is_cache``: it can be made of other arrays again, so it is not exported."""
        full = (*((len(labels),) if labels is not None else ()), *shape)
        names = [_plain(label) for label in labels] if labels is not None else None
        self._specs[name] = _Spec(names, full, dtype, fill, newest_first, is_cache)
        self._memory[name] = _untouched((*full, self.capacity), dtype)
        self._arrays[name] = self._memory[name][..., : self._filled]
        self._arrays[name][...] = fill

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def new_slot(self) -> int:
        """A slot for another well: one that was given up, or the next. Arrays grow if they have to."""
        if self._free:
            return self._free.pop()
        if self.count == self.capacity:
            self._grow()
        if self.count == self._filled:
            self._fill()
        self.count += 1
        return self.count - 1

    def free_slot(self, slot: int) -> None:
        """Give it back, empty as a new one."""
        for name, spec in self._specs.items():
            self._arrays[name][..., slot] = spec.fill
        self._free.append(slot)

    @property
    def bytes_a_slot(self) -> int:
        """Bytes that the arrays take for each slot."""
        return sum(array.nbytes for array in self._memory.values()) // self.capacity

    def _grow(self) -> None:
        """To twice as much, of which nothing is touched before it is used. A row is an odd number of cache lines, so
        that what a well has in one row after the other does not compete for the same place in the cache."""
        capacity = self.capacity + max(self.capacity, _LEAST_GROWTH) + _ODD_LINES
        for name, spec in self._specs.items():
            wider = _untouched((*spec.shape, capacity), spec.dtype)
            if spec.fill:
                wider[..., : self._filled] = self._arrays[name]
            else:
                self._copy_what_is_used(self._arrays[name], wider)
            self._memory[name], self._arrays[name] = wider, wider[..., : self._filled]
        self.capacity = capacity

    @staticmethod
    def _copy_what_is_used(before: Array, after: Array) -> None:
        """Rows with nothing but zeros stay untouched."""
        for old, new in zip(before.reshape(-1, before.shape[-1]), after.reshape(-1, after.shape[-1]), strict=True):
            if old.any():
                new[: old.shape[0]] = old

    def _fill(self) -> None:
        """The next slots get the values of new ones, which is when they take memory."""
        filled = min(self._filled + _FILLED_AT_ONCE, self.capacity)
        for name, spec in self._specs.items():
            if spec.fill:  # zeros are there, and take memory only where something else is written
                self._memory[name][..., self._filled : filled] = spec.fill
            self._arrays[name] = self._memory[name][..., :filled]
        self._filled = filled

    def export(self, slots: Sequence[int]) -> list[dict[str, Exported]]:
        """The state of each of these wells as plain values, by name. What is as in a new slot is left out. Takes all
        wells through one array after the other, which is many times faster than a well at a time."""
        found: list[dict[str, Exported]] = [{} for _ in slots]
        columns = np.asarray(slots, np.intp)
        for name, spec in self._specs.items():
            dtype, count = np.dtype(spec.dtype).str, 1 if spec.labels is None else len(spec.labels)
            if not count or spec.is_cache:
                continue
            rows = np.ascontiguousarray(
                self._arrays[name][..., columns].reshape(count, -1, len(slots)).transpose(2, 0, 1)
            )
            is_value = ~np.isnan(rows) if spec.fill != spec.fill else rows != spec.fill
            if not np.count_nonzero(is_value):
                continue
            has_value = is_value.any(axis=2)
            for at, some in enumerate(np.count_nonzero(has_value, axis=1).tolist()):
                if not some:
                    continue
                if spec.labels is None or some * _FEW > count:
                    found[at][name] = Exported(spec.labels, dtype, rows[at].tobytes())
                else:
                    labels = [spec.labels[label] for label in np.flatnonzero(has_value[at]).tolist()]
                    found[at][name] = Exported(labels, dtype, rows[at][has_value[at]].tobytes())
        return found

    def values_of(self, slot: int) -> bytes:
        """What all arrays have of a slot: the same bytes for the same values."""
        return b"".join(array[..., slot].tobytes() for array in self._arrays.values())

    def restore(self, slot: int, exported: Mapping[str, Exported]) -> None:
        """Put back what :meth:`export` gave into a slot that is new, by label; what no longer exists is dropped, what
        was left out or did not exist stays as new."""
        for name, (labels, dtype, data) in exported.items():
            spec = self._specs.get(name)
            if spec is None or np.dtype(spec.dtype).kind != np.dtype(dtype).kind:
                continue
            target = self._arrays[name]
            if spec.labels is None:
                flat = np.frombuffer(data, dtype)
                if flat.size == int(np.prod(spec.shape, dtype=np.int64)):
                    target[..., slot] = flat.reshape(spec.shape)
                continue
            rest = spec.shape[1:]
            rows = np.frombuffer(data, dtype)
            if spec.newest_first and labels and rows.size % len(labels) == 0:
                series = rows.reshape(len(labels), -1)[:, : rest[0]]
                missing = np.full((len(labels), rest[0] - series.shape[1]), spec.fill, series.dtype)
                rows = np.concatenate([series, missing], axis=1).ravel()
            if not labels or rows.size != len(labels) * int(np.prod(rest, dtype=np.int64)):
                continue
            rows = rows.reshape((len(labels), *rest))
            if labels == spec.labels:
                target[..., slot] = rows
                continue
            place = {label: at for at, label in enumerate(spec.labels)}
            for at, label in enumerate(labels):
                if label in place:
                    target[place[label], ..., slot] = rows[at]


def _untouched(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """An array of zeros whose memory is the process's only where it is written, in pages, and the system's again when
    it goes. What numpy would take comes from the allocator in part, which keeps what an array leaves when it grows."""
    count = int(np.prod(shape, dtype=np.int64))
    memory = mmap.mmap(-1, max(count * np.dtype(dtype).itemsize, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, dtype, count).reshape(shape)


def _plain(label: Hashable) -> str:
    return label if isinstance(label, str) else "|".join(str(part) for part in label)  # type: ignore[attr-defined]  # a key is a text or a tuple


class Journal:
    """What a batch has overwritten, newest last."""

    def __init__(self) -> None:
        self._entries: list[tuple[Array, Index, Any]] = []
        self._mapped: list[tuple[dict[Any, Any], Any, Any]] = []

    def put(self, array: Array, index: Index, value: Any) -> None:
        """``array[index] = value``, remembered."""
        self.keep(array, index)
        array[index] = value

    def put_over(self, array: Array, index: Index, old: Array, value: Any) -> None:
        """``array[index] = value``, where ``old`` is what stands there. It must not be changed afterwards."""
        self._entries.append((array, index, old))
        array[index] = value

    def keep(self, array: Array, index: Index) -> None:
        """Remember ``array[index]`` before it is changed in place."""
        old = array[index]
        self._entries.append((array, index, old if old.base is None else old.copy()))

    def put_key(self, mapping: dict[Any, Any], key: Any, value: Any) -> None:
        """``mapping[key] = value`` (None: removed), remembered."""
        self._mapped.append((mapping, key, mapping.get(key)))
        if value is None:
            mapping.pop(key, None)
        else:
            mapping[key] = value

    def mark(self) -> tuple[int, int]:
        """How much was overwritten so far, for :meth:`back_to`."""
        return len(self._entries), len(self._mapped)

    def back_to(self, mark: tuple[int, int]) -> None:
        """Put back what was overwritten since ``mark``, newest first."""
        for array, index, old in reversed(self._entries[mark[0] :]):
            array[index] = old
        for mapping, key, old in reversed(self._mapped[mark[1] :]):
            if old is None:
                mapping.pop(key, None)
            else:
                mapping[key] = old
        del self._entries[mark[0] :], self._mapped[mark[1] :]

    def undo(self) -> None:
        """Put back everything that was overwritten, newest first."""
        self.back_to((0, 0))

    def clear(self) -> None:
        """Forget what was overwritten: it stays as it is now."""
        self._entries.clear()
        self._mapped.clear()
