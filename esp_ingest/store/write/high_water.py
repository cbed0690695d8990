"""Fresh or suspect: which readings may go by plain COPY, and which may be stored already.

Nothing here decides whether a row is stored twice, the primary key does. A wrong mark costs time: too low, and a COPY
ends with a duplicate key and the batch goes through the staging table; too high, and fresh rows take the slower way.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from esp_ingest.model import Readings

_NEVER = np.iinfo(np.int64).min
_MAX_WELLS = 200_000  # topics come from outside, so this map is bounded


class HighWaterMarks:
    """The newest committed timestamp of each well, as far as this process knows."""

    def __init__(self) -> None:
        self._newest: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._newest)

    def fresh(self, readings: Readings) -> npt.NDArray[np.bool_]:
        """Which readings are newer than all that is known to be stored of their well; (n,)."""
        get = self._newest.get
        marks = np.array([get(well, _NEVER) for well in readings.wells], np.int64)
        newer: npt.NDArray[np.bool_] = readings.timestamp_us > marks[readings.well_index]
        return newer

    def committed(self, readings: Readings) -> None:
        """These are stored now."""
        if len(readings) == 0:
            return
        newest = np.full(len(readings.wells), _NEVER, np.int64)
        np.maximum.at(newest, readings.well_index, readings.timestamp_us)
        self.raise_to((well, at) for well, at in zip(readings.wells, newest.tolist(), strict=True) if at != _NEVER)

    def raise_to(self, found: Iterable[tuple[str, int]]) -> None:
        """The database holds readings up to these timestamps (µs)."""
        newest = self._newest
        for well, at in found:
            if at > newest.get(well, _NEVER):
                newest[well] = at
        if len(newest) > _MAX_WELLS:
            newest.clear()


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
