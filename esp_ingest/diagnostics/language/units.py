"""Units and quantities of the rule language: ``"80 %"``, ``"-10 %/h"``, ``"30 min"``.

A quantity is kept in base units (psi, A, Hz, °F, seconds …), and two quantities can be compared only if they are of the
same kind.
"""

import re
from dataclasses import dataclass

from esp_ingest.model import SIGNALS
from esp_ingest.service.text import did_you_mean


class ConditionError(Exception):
    """The condition cannot be used. The message is a clause without a full stop; the caller adds file, rule and key."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A product of base units with exponents; ``factor`` turns a number in this unit into base units."""

    powers: tuple[tuple[str, int], ...] = ()
    factor: float = 1.0

    def times(self, other: "Unit", sign: int = 1) -> "Unit":
        """The unit of a product (``sign`` 1) or of a quotient (``sign`` −1)."""
        powers = dict(self.powers)
        for base, power in other.powers:
            powers[base] = powers.get(base, 0) + sign * power
        factor = self.factor * other.factor if sign > 0 else self.factor / other.factor
        return Unit(tuple(sorted((base, power) for base, power in powers.items() if power)), factor)

    def same_kind(self, other: "Unit") -> bool:
        """Whether quantities in these two units can be compared and added."""
        return self.powers == other.powers

    def base(self) -> "Unit":
        """The base unit of the same kind: psi for bar."""
        return Unit(self.powers)

    def __str__(self) -> str:
        up = [_power(base, power) for base, power in self.powers if power > 0]
        down = [_power(base, -power) for base, power in self.powers if power < 0]
        return ("·".join(up) or "1") + "".join(f"/{part}" for part in down) if up or down else "no unit"


def _power(base: str, power: int) -> str:
    return base if power == 1 else f"{base}^{power}"


NONE = Unit()
SECOND = Unit((("s", 1),))
# A factor is exact by definition or by the definition of the inch, the pound and the barrel.
NAMED: dict[str, Unit] = {
    "%": Unit((), 0.01),
    "s": SECOND,
    "min": Unit((("s", 1),), 60.0),
    "h": Unit((("s", 1),), 3600.0),
    "d": Unit((("s", 1),), 86_400.0),
    "psi": Unit((("psi", 1),)),
    "kPa": Unit((("psi", 1),), 0.145_037_737_730_2),
    "bar": Unit((("psi", 1),), 14.503_773_773_02),
    "A": Unit((("A", 1),)),
    "mA": Unit((("mA", 1),)),  # a leakage, never to be compared with a motor current
    "V": Unit((("V", 1),)),
    "Hz": Unit((("Hz", 1),)),
    "°F": Unit((("°F", 1),)),
    "degF": Unit((("°F", 1),)),
    "in/s": Unit((("in/s", 1),)),
    "mm/s": Unit((("in/s", 1),), 1 / 25.4),
    "bbl/d": Unit((("bbl/d", 1),)),
    "m3/d": Unit((("bbl/d", 1),), 6.289_810_770_4),
    "scf/bbl": Unit((("scf/bbl", 1),)),
    "A/Hz2": Unit((("A", 1), ("Hz", -2))),
    "samples": NONE,
    "drops": Unit((("drops", 1),)),  # a day, of a signal that falls by habit
    "wells": Unit((("wells", 1),)),
}
for _signal in SIGNALS:  # a new signal may bring a unit of its own, which is comparable with itself alone
    NAMED.setdefault(_signal.unit, Unit(((_signal.unit, 1),)))
_REFUSED = {
    "°C": "temperatures are in °F here, because a difference and a reading in °C convert differently",
    "g": "vibration is a velocity here (in/s or mm/s); an acceleration in g does not convert without its frequency",
}


def unit_named(text: str) -> Unit:
    """``psi``, ``%/h``, ``°F/min`` …; an empty text is no unit. Raises ConditionError with the nearest known unit."""
    if not text:
        return NONE
    if text in NAMED:
        return NAMED[text]
    if text in _REFUSED:
        raise ConditionError(f"unit {text} cannot be used: {_REFUSED[text]}")
    numerator, slash, denominator = text.rpartition("/")
    if slash and numerator in NAMED and denominator in NAMED:
        return NAMED[numerator].times(NAMED[denominator], -1)
    raise ConditionError(f"unit {text} is not known{did_you_mean(text, NAMED)}")


_QUANTITY = re.compile(r"\s*([+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(\S*)\s*")


def quantity(text: str | float, unit: Unit | None = None) -> tuple[float, Unit]:
    """``"80 %"`` → (0.8, no unit), in base units. ``unit``: refuse any other kind. Raises ConditionError."""
    match = _QUANTITY.fullmatch(str(text))
    if not match:
        raise ConditionError(f"{text!r} is no number with a unit")
    found = unit_named(match[2])
    if unit is not None and not found.same_kind(unit):
        raise ConditionError(f"{text!r} is in {found}, needed is {unit}")
    return in_base(float(match[1]), found), found.base()


def in_base(value: float, unit: Unit) -> float:
    """``value`` of ``unit`` in base units. Dividing keeps 70 % at 0.7, where a product gives 0.7000000000000001."""
    return value / 100 if unit.factor == 0.01 else value * unit.factor


def duration_us(text: str) -> int:
    """``"10 min"`` → microseconds. Raises ConditionError."""
    seconds, _ = quantity(text, SECOND) if str(text) != "0" else (0.0, SECOND)
    if seconds < 0:
        raise ConditionError(f"{text!r} is a negative duration")
    return round(seconds * 1e6)
