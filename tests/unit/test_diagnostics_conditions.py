"""The language of conditions: what it means, and what it refuses."""

from collections.abc import Callable

import numpy as np
import pytest

from esp_ingest.diagnostics.language.conditions import Compiler, Condition, Vocabulary
from esp_ingest.diagnostics.language.evaluation import Truth
from esp_ingest.diagnostics.language.functions import FUNCTIONS, Form, Need
from esp_ingest.diagnostics.language.units import NONE, ConditionError, duration_us, quantity, unit_named
from esp_ingest.model import FloatArray

WORDS = Vocabulary(
    signals={"pip": unit_named("psi"), "motor_current": unit_named("A"), "flow_rate": unit_named("bbl/d")},
    limits={"motor_current": unit_named("A")},
    parameters={"load": NONE},
    facts={"stopped": None, "since_start": unit_named("s")},
)


class Columns:
    """A frame of fixed columns; within() sees the batch alone, rows a minute apart."""

    def __init__(self, **columns: list[float]) -> None:
        self._columns = {tuple(key.split("__")): np.array(values) for key, values in columns.items()}

    def column(self, key: tuple[object, ...]) -> FloatArray:
        return self._columns[tuple(str(part) for part in key)]

    def within(self, site: int, yes: Callable[[], np.ndarray], window_us: int) -> np.ndarray:
        window, mask = window_us // 60_000_000, yes()
        return np.array([bool(mask[max(0, at - window) : at + 1].any()) for at in range(len(mask))])


def compiled(text: str, deadband: str = "0 %") -> Condition:
    return Compiler(WORDS).compile(text, quantity(deadband))


def told(truth: Truth) -> str:
    """y, n or - a row."""
    return "".join("y" if yes else "n" if no else "-" for yes, no in zip(truth.yes, truth.no, strict=True))


NAN = float("nan")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pip < 100 psi", "ynn-"),
        ("pip <= 100 psi", "yyn-"),
        ("not pip < 100 psi", "nyy-"),
        ("pip < 100 psi and flow_rate > 10 bbl/d", "ynnn"),
        ("pip < 100 psi or flow_rate > 10 bbl/d", "yn--"),
        ("pip * 2 - 50 psi < 100 psi", "ynn-"),
        ("-pip > -100 psi", "ynn-"),
        ("pip < 6.8948 bar", "yyn-"),
        ("(pip < 100 psi)", "ynn-"),
    ],
)
def test_truth_has_three_values(text: str, expected: str) -> None:
    frame = Columns(signal__pip=[50, 100, 200, NAN], signal__flow_rate=[20, 5, NAN, 5])
    assert told(compiled(text).evaluate(frame)) == expected


@pytest.mark.parametrize(
    ("text", "deadband", "expected"),
    [
        ("pip < 100 psi", "5 %", "y--n"),
        ("pip > 100 psi", "5 %", "--yy"),
        ("pip < 100 psi", "20 psi", "y--n"),
        ("motor_current > 1 A", "20 psi", "nnyy"),
    ],
)
def test_deadband_widens_only_the_side_that_clears(text: str, deadband: str, expected: str) -> None:
    frame = Columns(signal__pip=[99, 100, 104.9, 120], signal__motor_current=[0, 1, 2, 3])
    assert told(compiled(text, deadband).evaluate(frame)) == expected


def test_within_looks_back() -> None:
    frame = Columns(signal__pip=[50, 200, 200, 200])
    assert told(compiled("within(pip < 100 psi, 2 min)").evaluate(frame)) == "yyyn"


def test_known_and_facts_are_never_in_between() -> None:
    frame = Columns(limit__motor_current=[5, NAN], fact__stopped=[1, 0])
    assert told(compiled("known(limit.motor_current)").evaluate(frame)) == "yn"
    assert told(compiled("stopped").evaluate(frame)) == "yn"


def test_the_headline_is_the_first_comparison() -> None:
    condition = compiled("pip < 100 psi and flow_rate > 10 bbl/d")
    assert condition.headline is not None
    assert condition.headline.below
    assert str(condition.headline.unit) == "psi"
    assert condition.signals == {"pip", "flow_rate"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("pip < 100 A", "compares psi with A"),
        ("pip < 0.8", "compares psi with no unit"),
        ("pip + 1 A < 3 psi", "joins psi and A"),
        ("pipp < 100 psi", "did you mean pip?"),
        ("pip < limit.motor_curent", "did you mean motor_current?"),
        ("ratoi(pip) < 80 %", "did you mean ratio?"),
        ("ratio(load) < 80 %", "takes a signal"),
        ("trend(pip) < 1 %/h", "expected ','"),
        ("trend(pip, 7 min) < 1 %/h", "5, 10, 15"),
        ("trend(pip, 30 min) < -10 psi/h", "compares"),
        ("pip < 100 psy", "did you mean psi?"),
        ("pip < 30 °C", "°F"),
        ("pip < 100 psi and", "found the end"),
        ("pip < 100 psi pip", "expected the end or and/or"),
        ("pip", "not a condition"),
        ("pip and stopped", "joins conditions"),
        ("stopped < 3", "compares quantities"),
        ("__import__('os')", "cannot read"),
        ("pip.__class__ < 3", "no signal"),
        ("pip < 100 psi; stopped", "cannot read"),
        ("within(stopped, pip)", "duration"),
        ("", "found the end"),
        ("()", "expected a number"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_hint(text: str, complaint: str) -> None:
    with pytest.raises(ConditionError, match=r".") as error:
        compiled(text)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("text", "us"), [("10 min", 600_000_000), ("1.5 h", 5_400_000_000), ("0", 0), ("15 s", 15_000_000)]
)
def test_durations(text: str, us: int) -> None:
    assert duration_us(text) == us


@pytest.mark.parametrize("text", ["-5 min", "10", "ten min", "10 psi"])
def test_no_duration(text: str) -> None:
    with pytest.raises(ConditionError):
        duration_us(text)


def test_choose_takes_the_side_that_its_condition_says() -> None:
    frame = Columns(
        signal__pip=[90, 90, 70, 90, NAN],
        measured__flow_rate=[1, 0, 0, NAN, 1],
    )
    condition = compiled("pip < choose(measured(flow_rate), 100 psi, 80 psi)", "10 %")
    assert told(condition.evaluate(frame)) == "yny--"
    assert condition.headline is not None
    assert condition.headline.threshold(frame)[:3].tolist() == [100, 80, 80]
    assert condition.signals == {"pip"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("pip < choose(stopped, 80 psi, 60 %)", "between psi and no unit: they are different kinds"),
        ("pip < choose(pip, 80 psi, 60 psi)", "a condition and two quantities"),
        ("pip < choose(stopped, 80 psi)", "expected ','"),
    ],
)
def test_choose_refuses(text: str, complaint: str) -> None:
    with pytest.raises(ConditionError) as error:
        compiled(text)
    assert complaint in str(error.value)


def test_each_function_that_reads_a_running_median_says_that_it_needs_one() -> None:
    medians = {name for name, function in FUNCTIONS.items() if Need.MEDIAN in function.needs}
    own = {"low", "low_time", "usual_low", "usual_low_time", "usual_fall", "drops", "drops_trend", "drops_rise"}
    own |= {"recent_drops", "slow_ratio", "slow_rate", "slow_confidence"}
    assert medians == {"median", "ratio", "deviation", "habit", "habit_ratio", "trend", *own}
    assert all(Need.MEANS in function.needs for function in FUNCTIONS.values() if function.form is Form.WINDOW)
