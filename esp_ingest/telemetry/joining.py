"""Readings put together: parts of a batch one after the other, or two kinds of rows merged in the order received."""

from collections.abc import Sequence

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
    wells: dict[str, int] = {}
    indexes: list[npt.NDArray[np.int32]] = []
    extra: dict[int, str] = {}
    quality: dict[int, str] = {}
    offset = 0
    for readings in rows:
        places = np.array([wells.setdefault(well, len(wells)) for well in readings.wells], np.int32)
        indexes.append(places[readings.well_index])
        extra.update((offset + row, text) for row, text in readings.extra.items())
        quality.update((offset + row, text) for row, text in readings.quality.items())
        offset += len(readings)
    for part in parts:
        for name, count in part.out_of_range.items():
            whole.out_of_range[name] = whole.out_of_range.get(name, 0) + count
        for key, count in part.unusable.items():
            whole.unusable[key] = whole.unusable.get(key, 0) + count
    whole.readings = Readings(
        wells=list(wells),
        well_index=np.concatenate(indexes),
        timestamp_us=np.concatenate([readings.timestamp_us for readings in rows]),
        received_us=np.concatenate([readings.received_us for readings in rows]),
        values=np.concatenate([readings.values for readings in rows], axis=1),
        extra=extra,
        quality=quality,
    )
    return whole


def merged(first: Readings, first_place: Places, second: Readings, second_place: Places) -> Readings:
    """Both, in the order of their places; at one place those of ``second`` stay in their order."""
    order = np.argsort(np.concatenate([first_place, second_place]), kind="stable")
    offset = len(first)
    both = Readings(
        wells=first.wells,
        well_index=np.concatenate([first.well_index, second.well_index]),
        timestamp_us=np.concatenate([first.timestamp_us, second.timestamp_us]),
        received_us=np.concatenate([first.received_us, second.received_us]),
        values=np.concatenate([first.values, second.values], axis=1),
        extra=first.extra | {offset + row: text for row, text in second.extra.items()},
        quality=first.quality | {offset + row: text for row, text in second.quality.items()},
    )
    return both.select(order)
