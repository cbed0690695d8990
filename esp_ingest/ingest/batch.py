"""A batch on its way to safety, and what became of it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from esp_ingest.model import Decoded, Delivery, Readings


@dataclass(slots=True)
class Outcome:
    """What became of a batch. ``committed`` are the readings of each transaction; a spooled batch has none yet."""

    written: int = 0
    duplicates: int = 0
    rejected: int = 0
    spooled: int = 0
    committed: list[Readings] = field(default_factory=list)

    @property
    def stored(self) -> int:
        """Items that are in the tables."""
        return self.written + self.duplicates + self.rejected

    def __iadd__(self, other: "Outcome") -> "Outcome":
        self.written += other.written
        self.duplicates += other.duplicates
        self.rejected += other.rejected
        self.spooled += other.spooled
        self.committed += other.committed
        return self


@dataclass(slots=True)
class Batch:
    """Deliveries on their way to safety, ``bytes`` of them. ``decoded`` is None until the stage has decoded it, and
    stays so where it goes to the spool or ``decode_failed``. ``done`` is what is stored of it already where it takes
    several transactions."""

    deliveries: list[Delivery]
    bytes: int = 0
    decoded: Decoded | None = None
    decode_failed: bool = False
    done: Outcome = field(default_factory=Outcome)


def needs_slices(decoded: Decoded, most: int) -> bool:
    """So many items that they are written in several transactions."""
    return decoded.items > 2 * most


def slices(decoded: Decoded, most: int, start: int) -> Iterator[Decoded]:
    """All items from ``start`` on, readings first: in one piece, or, where they are more than twice ``most``, in pieces
    of so many. Arrays make of few messages a batch as large as its bytes allow; a transaction stays bounded."""
    if not needs_slices(decoded, most):
        yield decoded
        return
    count = len(decoded.readings)
    for at in range(start, count, most):
        rows = np.arange(at, min(at + most, count))
        counts = (decoded.out_of_range, decoded.unusable) if at == 0 else ({}, {})
        yield Decoded(decoded.readings.select(rows), [], *counts)
    for at in range(max(start - count, 0), len(decoded.rejects), most):
        yield Decoded(Readings.empty(), decoded.rejects[at : at + most])
