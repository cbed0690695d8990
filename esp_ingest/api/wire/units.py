"""Units of the signals: oil-field units as stored, metric ones by ``?units=metric``."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from esp_ingest.model import SIGNALS

System = Literal["field", "metric"]

_BARREL_M3 = 0.158987294928  # 42 US gallons, exact
_FOOT3_M3 = 0.028316846592  # exact


class Conversion(NamedTuple):
    """``metric = value * factor + offset``."""

    unit: str
    factor: float
    offset: float = 0.0


CONVERSIONS: dict[str, Conversion] = {
    "bbl/d": Conversion("m³/d", _BARREL_M3),
    "psi": Conversion("bar", 0.0689475729316836),
    "°F": Conversion("°C", 5.0 / 9.0, -32.0 * 5.0 / 9.0),
    "in/s": Conversion("mm/s", 25.4),
    "scf/bbl": Conversion("m³/m³", _FOOT3_M3 / _BARREL_M3),
    "ft": Conversion("m", 0.3048),
}
HEAD = "head"  # of a pump: no signal, but what two pressures say
_UNIT = {signal.name: signal.unit for signal in SIGNALS} | {HEAD: "ft"}


def unit(signal: str, system: System) -> str:
    """The unit of a signal in this system of units."""
    stored = _UNIT[signal]
    return CONVERSIONS[stored].unit if system == "metric" and stored in CONVERSIONS else stored


def units(signals: Sequence[str], system: System) -> dict[str, str]:
    """A dictionary of the units of these signals."""
    return {signal: unit(signal, system) for signal in signals}


def convert(value: float | None, signal: str, system: System) -> float | None:
    """Convert one value; None stays None."""
    if value is None or system == "field" or _UNIT[signal] not in CONVERSIONS:
        return value
    _, factor, offset = CONVERSIONS[_UNIT[signal]]
    return value * factor + offset


def convert_rows(rows: list[list[Any]], columns: Sequence[str | None], system: System) -> None:
    """Convert the values of rows in place. ``columns`` names the signal of each column, None for a column without a
    unit."""
    if system == "field":
        return
    for place, signal in enumerate(columns):
        if signal is None or _UNIT[signal] not in CONVERSIONS:
            continue
        _, factor, offset = CONVERSIONS[_UNIT[signal]]
        for row in rows:
            if row[place] is not None:
                row[place] = row[place] * factor + offset
