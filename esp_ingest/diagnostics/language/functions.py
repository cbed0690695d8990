"""The vocabulary of the rule language in one table: functions, derived signals and facts.

Whoever adds a function adds one entry here. The parser (conditions.py) reads its form and unit, the columns of a batch
(columns.py) call ``evaluate``, the baseline (baseline.py) keeps what ``needs`` names, and `esp-ingest rules explain`
says ``words``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from esp_ingest.diagnostics.language.evaluation import Columns
from esp_ingest.diagnostics.language.units import NAMED, NONE, SECOND, Unit
from esp_ingest.model import MIN_FREQUENCY_HZ, FloatArray

WINDOWS_SECONDS = tuple(300 * k for k in range(1, 13))  # the windows that a function may take: 5, 10, 15 … 60 minutes


class Form(Enum):
    """What a function takes: ``median(pip)``, ``trend(pip, 30 min)``, or one of the forms with a grammar of its own."""

    SIGNAL = "a signal"
    WINDOW = "a signal and a window"
    WITHIN = "a condition and a duration"
    MEASURED = "a signal that may be missing"
    KNOWN = "a quantity that may be missing"
    ABS = "a quantity"
    CHOOSE = "a condition and two quantities"


class Need(Enum):
    """What has to be kept of a signal, beside its newest value, so that a function can be evaluated."""

    MEDIAN = "running median over 24 h of running"
    HABIT = "median of the last 7 daily medians"
    MEANS = "5-minute means of the last hour"
    SQUARES = "5-minute sums of squares of the last hour"


@dataclass(frozen=True, slots=True)
class Function:
    """One function of the language.

    ``unit`` maps the unit of the signal to the unit of the result. ``words`` is a phrase with {0} and {1} for the
    arguments. ``evaluate`` makes the column of a signal from other columns, each (n,); None: the baseline keeps it as a
    feature, or the form is evaluated by the parser's closure. ``measured_only``: derived signals are refused.
    """

    form: Form
    help: str
    words: str
    unit: Callable[[Unit], Unit] = Unit.base
    needs: frozenset[Need] = frozenset()
    evaluate: Callable[[Columns, str], FloatArray] | None = None
    measured_only: bool = False


def _no_unit(_: Unit) -> Unit:
    return NONE


def _a_time(_: Unit) -> Unit:
    return SECOND


def _per_time(unit: Unit) -> Unit:
    return unit.base().times(SECOND, -1)


def _signal(columns: Columns, name: str) -> FloatArray:
    return columns.column(("signal", name))


def _over(function: str) -> Callable[[Columns, str], FloatArray]:
    return lambda columns, name: np.divide(_signal(columns, name), columns.column((function, name)))


def _ratio(columns: Columns, name: str) -> FloatArray:
    ratio = np.divide(_signal(columns, name), columns.column(("median", name)))
    return columns.at_this_speed(ratio) if name == "current_load" else ratio


_MEDIAN = frozenset({Need.MEDIAN})
_HABIT = frozenset({Need.MEDIAN, Need.HABIT})  # a habit is made of medians
_MEANS = frozenset({Need.MEANS})

FUNCTIONS: dict[str, Function] = {
    "median": Function(
        Form.SIGNAL,
        "running median over the last 24 h of running; known after 6 h",
        "the 24-hour median of {0}",
        needs=_MEDIAN,
    ),
    "ratio": Function(
        Form.SIGNAL,
        "value ÷ median(value)",
        "{0} ÷ its 24-hour median",
        unit=_no_unit,
        needs=_MEDIAN,
        evaluate=_ratio,
    ),
    "deviation": Function(
        Form.SIGNAL,
        "value − median(value), without its sign",
        "{0} away from its 24-hour median",
        needs=_MEDIAN,
        evaluate=lambda columns, name: np.abs(_signal(columns, name) - columns.column(("median", name))),
    ),
    "habit": Function(
        Form.SIGNAL,
        "median of the medians at the end of each of the last 7 days of running",
        "the 7-day baseline of {0}",
        needs=_HABIT,
    ),
    "habit_ratio": Function(
        Form.SIGNAL,
        "value ÷ habit(value)",
        "{0} ÷ its 7-day baseline",
        unit=_no_unit,
        needs=_HABIT,
        evaluate=_over("habit"),
    ),
    "low": Function(
        Form.SIGNAL,
        "mean of the last 15 minutes ÷ median(value)",
        "{0} over 15 min ÷ its 24-hour median",
        unit=_no_unit,
        needs=_MEANS | _MEDIAN,
    ),
    "low_time": Function(
        Form.SIGNAL,
        "time since the 5-minute mean was last at 90 % of median(value) or above",
        "the time since {0} was at 90 % of its 24-hour median",
        unit=_a_time,
        needs=_MEANS | _MEDIAN,
    ),
    "usual_low": Function(
        Form.SIGNAL,
        "the lowest low(value) of a day, median of the last 5 days; known where the value drops at least 3 times a day",
        "how low {0} usually drops",
        unit=_no_unit,
        needs=_MEANS | _MEDIAN,
    ),
    "usual_low_time": Function(
        Form.SIGNAL,
        "the longest low_time(value) of a day, median of the last 5 days; known where usual_low(value) is",
        "how long {0} usually drops",
        unit=_a_time,
        needs=_MEANS | _MEDIAN,
    ),
    "drops": Function(
        Form.SIGNAL,
        "falls of the 5-minute mean from 90 % to below 80 % of median(value) a day, median of the last 5 days",
        "the number of drops of {0} a day",
        unit=lambda _: NAMED["drops"],
        needs=_MEANS | _MEDIAN,
    ),
    "recent_drops": Function(
        Form.SIGNAL,
        "drops in a row that recovered by themselves, each within 12 h of the one before; 0 after 12 h without one",
        "the number of drops of {0} in a row",
        unit=lambda _: NAMED["drops"],
        needs=_MEANS | _MEDIAN,
    ),
    "drops_trend": Function(
        Form.SIGNAL,
        "median drops a day of the last 7 days of running ÷ that of the 7 before; known where that was at least 3",
        "the drops of {0} this week ÷ those of the week before",
        unit=_no_unit,
        needs=_MEANS | _MEDIAN,
    ),
    "drops_rise": Function(
        Form.SIGNAL,
        "median drops a day of the last 7 days of running ÷ that of 3 weeks before; known where that was at least 3",
        "the drops of {0} this week ÷ those of three weeks before",
        unit=_no_unit,
        needs=_MEANS | _MEDIAN,
    ),
    "slow_ratio": Function(
        Form.SIGNAL,
        "median of the last 3 days of running ÷ that of the first 9 at this speed, moved to equal speed",
        "{0} over 3 days ÷ its start",
        unit=_no_unit,
        needs=_MEDIAN,
    ),
    "slow_rate": Function(
        Form.SIGNAL,
        "slope of the 3-day medians of the last 72 days of running ÷ the start, per time; known after 15 days",
        "the slow trend of {0}",
        unit=lambda _: _per_time(NONE),
        needs=_MEDIAN,
    ),
    "slow_confidence": Function(
        Form.SIGNAL,
        "1 − the probability that the 3-day medians rise or fall so steadily by chance; 0 for a single step",
        "the confidence of the slow trend of {0}",
        unit=_no_unit,
        needs=_MEDIAN,
    ),
    "previous": Function(
        Form.SIGNAL,
        "value one sample before",
        "{0} one sample before",
        evaluate=lambda columns, name: columns.previous(name),
        measured_only=True,
    ),
    "step_ratio": Function(
        Form.SIGNAL,
        "value ÷ value one sample before",
        "{0} ÷ its value one sample before",
        unit=_no_unit,
        evaluate=_over("previous"),
        measured_only=True,
    ),
    "cv": Function(
        Form.WINDOW,
        "standard deviation ÷ mean over the window",
        "the variation of {0} over {1}",
        unit=_no_unit,
        needs=_MEANS | {Need.SQUARES},
    ),
    "spread": Function(
        Form.WINDOW,
        "greatest − least of the 5-minute means over the window",
        "the spread of {0} over {1}",
        needs=_MEANS,
    ),
    "mean": Function(
        Form.WINDOW,
        "mean of the 5-minute means over the window",
        "the mean of {0} over {1}",
        needs=_MEANS,
    ),
    "change": Function(
        Form.WINDOW,
        "last 5-minute mean − the one a window earlier",
        "the change of {0} over {1}",
        needs=_MEANS,
    ),
    "trend": Function(
        Form.WINDOW,
        "change over the window ÷ median, per time",
        "the trend of {0} over {1}, against its median,",
        unit=lambda _: _per_time(NONE),
        needs=_MEANS | _MEDIAN,
    ),
    "rate": Function(
        Form.WINDOW,
        "change over the window, per time",
        "the change of {0} over {1} in time",
        unit=_per_time,
        needs=_MEANS,
    ),
    "usual_cv": Function(
        Form.WINDOW,
        "the greatest cv over the window of a day of running, median of the last 5 days",
        "how much {0} usually varies over {1}",
        unit=_no_unit,
        needs=_MEANS | {Need.SQUARES},
    ),
    "usual_fall": Function(
        Form.WINDOW,
        "the steepest fall in trend over the window of a day of running, median of the last 5 days",
        "how fast {0} usually falls over {1}",
        unit=lambda _: _per_time(NONE),
        needs=_MEANS | _MEDIAN,
    ),
    "within": Function(
        Form.WITHIN, "true if the condition was true at any row of that time", "{0} at some time in the last {1}"
    ),
    "measured": Function(Form.MEASURED, "true if the signal came within the last hour", "{0} is measured"),
    "known": Function(Form.KNOWN, "true if the quantity has a value", "{0} is known"),
    "abs": Function(Form.ABS, "the quantity without its sign", "the distance {0}"),
    "choose": Function(
        Form.CHOOSE, "the first quantity where the condition is true, else the second", "({1} if {0}, else {2})"
    ),
}


def needs_of(key: tuple[object, ...]) -> frozenset[Need]:
    """What the column ``key`` needs to have kept of its signal; nothing for signals, limits, parameters and facts."""
    function = FUNCTIONS.get(str(key[0]))
    return function.needs if function is not None else frozenset()


@dataclass(frozen=True, slots=True)
class Derived:
    """A signal made of others, row by row. ``evaluate`` takes the parts in their order, each (n,)."""

    unit: Unit
    parts: tuple[str, str]
    help: str
    words: str
    evaluate: Callable[[FloatArray, FloatArray], FloatArray]


def _current_load(current: FloatArray, frequency: FloatArray) -> FloatArray:
    """Of a drive that is stopped or ramping A/f² says nothing."""
    return current / np.where(frequency > MIN_FREQUENCY_HZ, frequency * frequency, np.nan)


DERIVED: dict[str, Derived] = {
    "current_load": Derived(
        Unit((("A", 1), ("Hz", -2))),
        ("motor_current", "vsd_frequency"),
        "motor_current / vsd_frequency²",
        "motor load (A/f²)",
        _current_load,
    ),
    "pump_head": Derived(
        Unit((("psi", 1),)),
        ("discharge_pressure", "pip"),
        "discharge_pressure − pip",
        "pump head",
        np.subtract,
    ),
}


def parts_of(signal: str) -> tuple[str, ...]:
    """The measured signals that ``signal`` is made of: itself, unless it is derived."""
    return DERIVED[signal].parts if signal in DERIVED else (signal,)


# Features of a well that say how its current follows the speed, n in A ~ fⁿ: the exponent, and the least and greatest
# that is possible; not known before three changes of speed.
LOAD_EXPONENTS = ("load_exponent", "load_exponent_least", "load_exponent_greatest")

# What the engine knows about a well beyond its signals; None: true or false.
FACTS: dict[str, Unit | None] = {
    "running": None,
    "settled": None,
    "stopped": None,
    "tripped": None,
    "gauge_dropped": None,
    "since_start": SECOND,
    "since_stop": SECOND,
    "starts_in_24h": NONE,
    "stopped_before_start": SECOND,
    "ran_before_stop": SECOND,
    "load_at_stop": NONE,
    "stop_ramped": None,
    "stop_commanded": None,
    "stopped_together": NAMED["wells"],
    "leads_stop": None,
    "most_are_back": None,
    "failed_signals": NONE,
    "frozen_for": SECOND,
    "clock_ahead": SECOND,
    "clock_behind": SECOND,
    "baseline_held": SECOND,
}
