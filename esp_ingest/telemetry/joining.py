"""Readings put together: parts of a batch one after the other, or two kinds of rows merged in the order received."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from esp_ingest.model import Decoded, Readings

Places = npt.NDArray[np.intp]


def joined(parts: Sequence[Decoded]) -> Decoded:
    """One after the other; a well has one place in the sum."""
    parts = [part for part in parts if part.items]
    if len(parts) == 1:
        return parts[0]
    whole = Decoded(Readings.empty(), [reject for part in parts for reject in part.rejects])
    rows = [part.readings for part in parts if len(part.readings)]
    if not rows:
        return whole
    for part in parts:
        for name, count in part.out_of_range.items():
            whole.out_of_range[name] = whole.out_of_range.get(name, 0) + count
        for key, count in part.unusable.items():
            whole.unusable[key] = whole.unusable.get(key, 0) + count
    places: dict[str, int] = {}
    indexes = [np.array([places.setdefault(well, len(places)) for well in each.wells], np.int32) for each in rows]
    wells = list(places)
    whole.readings = stacked(
        [
            replace(readings, wells=wells, well_index=index[readings.well_index])
            for readings, index in zip(rows, indexes, strict=True)
        ]
    )
    return whole


def stacked(parts: Sequence[Readings]) -> Readings:
    """One after the other; all of them have the same list of wells."""
    extra: dict[int, str] = {}
    quality: dict[int, str] = {}
    offset = 0
    for part in parts:
        extra.update((offset + row, text) for row, text in part.extra.items())
        quality.update((offset + row, text) for row, text in part.quality.items())
        offset += len(part)
    return Readings(
        wells=parts[0].wells,
        well_index=np.concatenate([part.well_index for part in parts]),
        timestamp_us=np.concatenate([part.timestamp_us for part in parts]),
        received_us=np.concatenate([part.received_us for part in parts]),
        values=np.concatenate([part.values for part in parts], axis=1),
        extra=extra,
        quality=quality,
    )


def merged(first: Readings, first_place: Places, second: Readings, second_place: Places) -> Readings:
    """Both, in the order of their places; at one place those of ``second`` stay in their order."""
    order = np.argsort(np.concatenate([first_place, second_place]), kind="stable")
    return stacked([first, second]).select(order)
