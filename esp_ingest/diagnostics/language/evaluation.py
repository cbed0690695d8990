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
        ...

    def previous(self, signal: str) -> FloatArray:
        """The value one sample before, NaN if that is more than 10 minutes old."""
        ...

    def at_this_speed(self, ratio: FloatArray) -> FloatArray:
        """``ratio`` of the load to its median, where the well runs at another speed than that of its median: to the
        nearest load that is possible at this speed."""
        ...

    def within(self, site: int, yes: BoolArray, window_us: int) -> BoolArray:
        """Whether ``yes`` was true at any row of the last ``window_us``. ``site`` numbers the use in the rule set."""
        ...


Numeric = Callable[[Columns], FloatArray]
Logical = Callable[[Columns], Truth]


def both(left: Logical, right: Logical) -> Logical:
    """``and``: true if both are surely true, false if one is surely false."""

    def joined(columns: Columns) -> Truth:
        a, b = left(columns), right(columns)
        return Truth(a.yes & b.yes, a.no | b.no)

    return joined


def both_in_turn(left: Logical, right: Logical) -> Logical:
    """``and`` whose right side is left out if the left side is surely false at every row, as it mostly is. Not for a
    right side that remembers (within())."""

    def joined(columns: Columns) -> Truth:
        a = left(columns)
        if a.no.all():
            return a
        b = right(columns)
        return Truth(a.yes & b.yes, a.no | b.no)

    return joined


def either(left: Logical, right: Logical) -> Logical:
    """``or``: true if one is surely true, false if both are surely false."""

    def joined(columns: Columns) -> Truth:
        a, b = left(columns), right(columns)
        return Truth(a.yes | b.yes, a.no & b.no)

    return joined


def fact_of(key: tuple[object, ...]) -> Logical:
    """The truth of a column of 1, 0 and NaN."""

    def fact(columns: Columns) -> Truth:
        value = columns.column(key)
        return Truth(value > 0, value <= 0)

    return fact


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

    def compared(columns: Columns) -> Truth:
        value, threshold = left(columns), right(columns)
        edge = threshold
        if amount:
            edge = threshold + sign * (amount * np.abs(threshold) if relative else amount)
        return Truth(holds(value, threshold), fails(value, edge))

    return compared
