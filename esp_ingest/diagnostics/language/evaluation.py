"""How a condition is evaluated: three-valued truth over the columns of a batch, and the closures that compute it."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from esp_ingest.model import FloatArray

BoolArray = npt.NDArray[np.bool_]


class Truth(NamedTuple):
    """Three-valued truth a row: surely true or surely false; neither if a value is missing or inside the deadband."""

    yes: BoolArray
    no: BoolArray


class Columns(Protocol):
    """The rows of a batch as the engine offers them (engine/columns.py). Every column has one value a row, NaN if it is
    not known."""

    def column(self, key: tuple[object, ...]) -> FloatArray:
        """The column of ``key``: (function, signal), (function, signal, window in seconds), ("signal", name) …"""

    def previous(self, signal: str) -> FloatArray:
        """The value one sample before, NaN if that is more than 10 minutes old."""

    def at_this_speed(self, ratio: FloatArray) -> FloatArray:
        """``ratio`` of the load to its median, where the well runs at another speed than that of its median: to the
        nearest load that is possible at this speed."""

    def within(self, site: int, yes: Callable[[], BoolArray], window_us: int) -> BoolArray:
        """Whether what ``yes`` gives was true at any row of the last ``window_us``. ``site`` numbers the use in the
        rule set; ``yes`` is called once a batch."""


Numeric = Callable[[Columns], FloatArray]
Mask = Callable[[Columns], BoolArray]


class Logical(NamedTuple):
    """Two sides of a three-valued truth, each evaluated only if it is asked for: mostly nothing is true, and then
    nobody asks what is surely false."""

    yes: Mask
    no: Mask


def both(left: Logical, right: Logical) -> Logical:
    """``and``: true if both are surely true, false if one is surely false."""
    return Logical(
        lambda columns: left.yes(columns) & right.yes(columns), lambda columns: left.no(columns) | right.no(columns)
    )


def both_in_turn(left: Logical, right: Logical) -> Logical:
    """``and`` whose right side is left out if the left side decides at every row, as it mostly does. Not for a right
    side that remembers (within())."""

    def yes(columns: Columns) -> BoolArray:
        first = left.yes(columns)
        return first & right.yes(columns) if np.count_nonzero(first) else first

    def no(columns: Columns) -> BoolArray:
        first = left.no(columns)
        return first if first.all() else first | right.no(columns)

    return Logical(yes, no)


def either(left: Logical, right: Logical) -> Logical:
    """``or``: true if one is surely true, false if both are surely false."""
    return Logical(
        lambda columns: left.yes(columns) | right.yes(columns), lambda columns: left.no(columns) & right.no(columns)
    )


def fact_of(key: tuple[object, ...]) -> Logical:
    """The truth of a column of 1, 0 and NaN."""
    return Logical(lambda columns: columns.column(key) > 0, lambda columns: columns.column(key) <= 0)


def calculate(left: Numeric, right: Numeric, operator: str) -> Numeric:
    """``left operator right`` of two quantities, row by row."""
    function = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}[operator]
    return lambda columns: function(left(columns), right(columns))


def compare(left: Numeric, right: Numeric, operator: str, band: tuple[float, bool]) -> Logical:
    """``yes`` at the threshold, ``no`` only beyond threshold and deadband."""
    amount, relative = band
    holds, fails = {
        "<": (np.less, np.greater_equal),
        "<=": (np.less_equal, np.greater),
        ">": (np.greater, np.less_equal),
        ">=": (np.greater_equal, np.less),
    }[operator]
    sign = 1.0 if operator.startswith("<") else -1.0

    def no(columns: Columns) -> BoolArray:
        value, edge = left(columns), right(columns)
        if amount:
            edge = edge + sign * (amount * np.abs(edge) if relative else amount)
        return fails(value, edge)

    return Logical(lambda columns: holds(left(columns), right(columns)), no)
