"""Fresh or suspect: which readings may go by plain COPY, and which may be stored already.

Nothing here decides whether a row is stored twice, the primary key does. A wrong mark costs time: too low, and a COPY
ends with a duplicate key and the batch goes through the staging table; too high, and fresh rows take the slower way.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from esp_ingest.model import PlacesByNumber, Readings

_NEVER = np.iinfo(np.int64).min


class HighWaterMarks:
    """The newest committed timestamp of each well, as far as this process knows: a place in an array a well, and place
    0 for wells that are not known. Topics come from outside, so no more than ``max_wells`` are held."""

    def __init__(self, *, max_wells: int = 200_000) -> None:
        self._max_wells = max_wells
        self._forget()

    def _forget(self) -> None:
        self._place_of: dict[str, int] = {}
        self._newest = np.full(1, _NEVER, np.int64)
        self._by_number = PlacesByNumber()

    def __len__(self) -> int:
        return len(self._place_of)

    def fresh(self, readings: Readings) -> npt.NDArray[np.bool_]:
        """Which readings are newer than all that is known to be stored of their well; (n,)."""
        places = self._by_number.of(readings.wells)
        if places is None:
            get = self._place_of.get
            places = np.array([get(well, 0) for well in readings.wells], np.intp)
            if places.all():
                self._by_number.keep(readings.wells, places)
        newer: npt.NDArray[np.bool_] = readings.timestamp_us > self._newest[places][readings.well_index]
        return newer

    def committed(self, readings: Readings) -> None:
        """These are stored now."""
        if len(readings) == 0:
            return
        places = self._by_number.of(readings.wells)
        if places is None:
            present = np.unique(readings.well_index)
            places = np.zeros(len(readings.wells), np.intp)
            places[present] = self._places([readings.wells[at] for at in present.tolist()])
        np.maximum.at(self._newest, places[readings.well_index], readings.timestamp_us)

    def raise_to(self, found: Iterable[tuple[str, int]]) -> None:
        """The database holds readings up to these timestamps (µs)."""
        for well, at in found:
            (place,) = self._places([well])
            self._newest[place] = max(int(self._newest[place]), at)

    def _places(self, wells: list[str]) -> npt.NDArray[np.intp]:
        """Where the marks of these are; room is made for new ones, and all are forgotten where they are too many."""
        if len(self._place_of) + len(wells) > self._max_wells:
            self._forget()
        place_of = self._place_of
        places = np.array([place_of.setdefault(well, len(place_of) + 1) for well in wells], np.intp)
        if (more := len(place_of) + 1 - len(self._newest)) > 0:
            self._newest = np.append(self._newest, np.full(more + len(place_of) // 2, _NEVER, np.int64))
        return places


def first_of_each(readings: Readings) -> npt.NDArray[np.bool_] | None:
    """Which readings are the first with their (well, timestamp) in the batch, (n,); None where all are."""
    count = len(readings)
    if count < 2:
        return None
    wells = len(readings.wells)
    start = int(readings.timestamp_us.min())
    if (int(readings.timestamp_us.max()) - start + 1) * wells < 2**63:
        keys = (readings.timestamp_us - start) * wells + readings.well_index
        in_order = np.sort(keys)
        if not (in_order[1:] == in_order[:-1]).any():
            return None
        order = np.argsort(keys, kind="stable")
        same = in_order[1:] == in_order[:-1]
    else:  # centuries apart: one integer cannot hold both
        order = np.lexsort((readings.timestamp_us, readings.well_index))
        at, well = readings.timestamp_us[order], readings.well_index[order]
        same = (at[1:] == at[:-1]) & (well[1:] == well[:-1])
        if not same.any():
            return None
    first = np.ones(count, np.bool_)
    first[order[1:][same]] = False
    return first
