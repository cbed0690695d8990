"""The language of conditions: text → checked expression → numpy closure. No eval, no attribute access, no loops.

    ratio(current_load) < 80 % and trend(pip, 30 min) < -10 %/h

Values carry units, and what cannot be compared is refused when the file is read. Truth has three values: a comparison
with a missing value is neither true nor false, and ``and``, ``or``, ``not`` follow Kleene, so that a missing signal can
never raise or clear anything by itself. A deadband widens only the side that says false: between the two the answer is
"neither", and what is active stays so.

Grammar (lowest binding first)::

    condition  = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation   = "not" negation | comparison
    comparison = sum [ ("<" | "<=" | ">" | ">=") sum ]
    sum        = product { ("+" | "-") product }
    product    = factor { ("*" | "/") factor }
    factor     = "-" factor | NUMBER [ UNIT ] | NAME | NAME "(" condition { "," condition } ")" | "(" condition ")"
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from esp_ingest.diagnostics.language.evaluation import (
    BoolArray,
    Columns,
    Logical,
    Numeric,
    Truth,
    both,
    both_in_turn,
    calculate,
    compare,
    either,
    fact_of,
)
from esp_ingest.diagnostics.language.functions import FUNCTIONS, WINDOWS_SECONDS, Form
from esp_ingest.diagnostics.language.units import NONE, SECOND, ConditionError, Unit, in_base, unit_named
from esp_ingest.model import FloatArray
from esp_ingest.service.text import did_you_mean


class Headline(NamedTuple):
    """The first comparison of a condition: what the occurrence reports as value, threshold and peak. ``signal`` is the
    signal that is compared as it is, None for what is calculated."""

    value: Numeric
    threshold: Numeric
    below: bool
    unit: Unit
    text: str
    signal: str | None


@dataclass(frozen=True, slots=True)
class Condition:
    """A compiled condition. ``columns`` are the keys it reads, ``signals`` what it cannot do without, ``limits`` the
    configured limits it reads; ``sites`` counts its uses of within()."""

    text: str
    truth: Logical
    headline: Headline | None
    columns: frozenset[tuple[object, ...]]
    signals: frozenset[str]
    limits: frozenset[str]
    sites: tuple[int, ...]

    def evaluate(self, columns: Columns) -> Truth:
        """Both sides of the truth, each (n,) or a scalar."""
        return Truth(self.truth.yes(columns), self.truth.no(columns))


class Vocabulary(NamedTuple):
    """The names that a condition may use, each with its unit."""

    signals: Mapping[str, Unit]
    limits: Mapping[str, Unit]
    parameters: Mapping[str, Unit]
    facts: Mapping[str, Unit | None]  # None: true or false


# --- parsing ------------------------------------------------------------------------------------------------------


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)?)"
    r"|(?P<operator><=|>=|<|>|\+|-|\*|/|\(|\)|,)|(?P<end>$))"
)
_UNIT = re.compile(r"\s*(%(?:/[a-z]+)?|°[FC](?:/[a-z]+)?|[A-Za-z][A-Za-z0-9]*(?:/[A-Za-z0-9]+)?)")
_WORDS = {"and", "or", "not"}


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while True:
        match = _TOKEN.match(text, at)
        if not match:
            raise ConditionError(f"cannot read {text[at : at + 12].strip()!r} at character {at + 1}")
        kind = match.lastgroup or "end"
        if kind == "end":
            return [*tokens, _Token("end", "", at)]
        tokens.append(_Token("word" if match[kind] in _WORDS else kind, match[kind], match.start(kind)))
        at = match.end()
        if kind == "number":
            unit = _UNIT.match(text, at)
            if unit and unit[1] not in _WORDS:
                tokens.append(_Token("unit", unit[1], unit.start(1)))
                at = unit.end()


@dataclass(slots=True)
class _Node:
    """A checked piece: numeric with a unit, or logical (unit None)."""

    unit: Unit | None
    number: Numeric | None = None
    truth: Logical | None = None
    constant: float | None = None
    signal: str | None = None
    text: str = ""


class Compiler:
    """Compiles conditions against one vocabulary. ``first_site`` numbers the uses of within() over a whole rule set."""

    def __init__(self, vocabulary: Vocabulary, first_site: int = 0) -> None:
        self._vocabulary = vocabulary
        self._next_site = first_site

    @property
    def next_site(self) -> int:
        """The number of the next use of within()."""
        return self._next_site

    def compile(self, text: str, deadband: tuple[float, Unit] = (0.0, NONE)) -> Condition:
        """``deadband``: a share of the threshold (no unit), or an amount for the comparisons in its unit.

        Raises ConditionError with what is wrong and where."""
        parser = _Parser(text, self._vocabulary, deadband, self._next_site)
        node = parser.condition()
        parser.expect_end()
        if node.truth is None:
            raise ConditionError(f"{text!r} is a quantity ({node.unit}), not a condition: compare it with something")
        first = self._next_site
        self._next_site = parser.site
        return Condition(
            text=text,
            truth=node.truth,
            headline=parser.headline,
            columns=frozenset(parser.columns),
            signals=frozenset(parser.required),
            limits=frozenset(parser.limits),
            sites=tuple(range(first, parser.site)),
        )


class _Parser:
    def __init__(self, text: str, vocabulary: Vocabulary, deadband: tuple[float, Unit], site: int) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._at = 0
        self._words = vocabulary
        self._deadband = deadband
        self._optional = 0
        self._forms = {
            Form.WITHIN: self._within,
            Form.MEASURED: self._measured,
            Form.KNOWN: self._known,
            Form.ABS: self._abs,
            Form.CHOOSE: self._choose,
        }
        self.site = site
        self.headline: Headline | None = None
        self.columns: set[tuple[object, ...]] = set()
        self.required: set[str] = set()
        self.limits: set[str] = set()

    # -- tokens

    def _peek(self) -> _Token:
        return self._tokens[self._at]

    def _next(self) -> _Token:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _accept(self, *texts: str) -> _Token | None:
        return self._next() if self._peek().text in texts and self._peek().kind in ("operator", "word") else None

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            self._fail(f"expected {text!r}")

    def _fail(self, what: str) -> None:
        token = self._peek()
        found = f"{token.text!r} at character {token.at + 1}" if token.kind != "end" else "the end"
        raise ConditionError(f"{what}, found {found} in {self._text!r}")

    def expect_end(self) -> None:
        """Raise ConditionError unless the whole text was read."""
        if self._peek().kind != "end":
            self._fail("expected the end or and/or")

    # -- grammar

    def condition(self) -> _Node:
        """Read a condition: conjunctions joined by ``or``."""
        node = self._conjunction()
        while self._accept("or"):
            node = self._join(node, self._conjunction(), either)
        return node

    def _conjunction(self) -> _Node:
        node = self._negation()
        while self._accept("and"):
            site = self.site
            right = self._negation()
            node = self._join(node, right, both_in_turn if self.site == site else both)
        return node

    def _join(self, left: _Node, right: _Node, how: Callable[[Logical, Logical], Logical]) -> _Node:
        if left.truth is None or right.truth is None:
            raise ConditionError(f"and/or joins conditions, not quantities, in {self._text!r}")
        return _Node(None, truth=how(left.truth, right.truth))

    def _negation(self) -> _Node:
        if not self._accept("not"):
            return self._comparison()
        inner = self._negation()
        if inner.truth is None:
            raise ConditionError(f"not needs a condition in {self._text!r}")
        return _Node(None, truth=Logical(inner.truth.no, inner.truth.yes))

    def _comparison(self) -> _Node:
        start = self._peek().at
        left = self._sum()
        operator = self._accept("<", "<=", ">", ">=")
        if operator is None:
            return left
        right = self._sum()
        if left.number is None or right.number is None or left.unit is None or right.unit is None:
            raise ConditionError(f"{operator.text} compares quantities, not conditions, in {self._text!r}")
        if not left.unit.same_kind(right.unit):
            raise ConditionError(
                f"{operator.text} compares {left.unit} with {right.unit} in {self._text!r}: they are different kinds"
            )
        text = self._text[start : self._peek().at].strip()
        below = operator.text.startswith("<")
        if self.headline is None:
            self.headline = Headline(left.number, right.number, below, left.unit, text, left.signal)
        return _Node(None, truth=compare(left.number, right.number, operator.text, self._band(left.unit)))

    def _band(self, unit: Unit) -> tuple[float, bool]:
        """(amount, relative to the threshold?) of the deadband for a comparison in ``unit``."""
        amount, of = self._deadband
        if of.same_kind(NONE):
            return amount, True
        return (amount, False) if of.same_kind(unit) else (0.0, False)

    def _sum(self) -> _Node:
        node = self._product()
        while operator := self._accept("+", "-"):
            right = self._product()
            node = self._arithmetic(node, right, operator.text)
        return node

    def _product(self) -> _Node:
        node = self._factor()
        while operator := self._accept("*", "/"):
            right = self._factor()
            node = self._arithmetic(node, right, operator.text)
        return node

    def _arithmetic(self, left: _Node, right: _Node, operator: str) -> _Node:
        if left.number is None or right.number is None or left.unit is None or right.unit is None:
            raise ConditionError(f"{operator} needs quantities on both sides in {self._text!r}")
        if operator in "+-" and not left.unit.same_kind(right.unit):
            raise ConditionError(f"{operator} joins {left.unit} and {right.unit} in {self._text!r}")
        unit = left.unit
        if operator in "*/":
            unit = left.unit.times(right.unit, 1 if operator == "*" else -1)
        return _Node(unit, number=calculate(left.number, right.number, operator))

    def _factor(self) -> _Node:
        if self._accept("-"):
            inner = self._factor()
            if inner.number is None or inner.unit is None:
                raise ConditionError(f"- needs a quantity in {self._text!r}")
            number = inner.number
            value = None if inner.constant is None else -inner.constant
            return _Node(inner.unit, number=lambda columns: -number(columns), constant=value)
        if self._accept("("):
            node = self.condition()
            self._expect(")")
            return node
        token = self._peek()
        if token.kind == "number":
            return self._number()
        if token.kind == "name":
            self._next()
            return self._call(token) if self._accept("(") else self._name(token.text)
        self._fail("expected a number, a name or (")
        raise AssertionError  # _fail always raises

    def _number(self) -> _Node:
        value = float(self._next().text)
        unit = NONE
        if self._peek().kind == "unit":
            found = unit_named(self._next().text)
            value = in_base(value, found)
            unit = found.base()
        array = np.float64(value)
        return _Node(unit, number=lambda _: array, constant=value)  # type: ignore[arg-type,return-value]  # broadcasts

    def _name(self, name: str) -> _Node:
        words = self._words
        if name.startswith("limit."):
            limit = name.removeprefix("limit.")
            if limit not in words.limits:
                raise ConditionError(f"limit.{limit} is no limit{did_you_mean(limit, words.limits)}")
            if not self._optional:
                self.limits.add(limit)
            return self._column(("limit", limit), words.limits[limit])
        if name in words.parameters:
            return self._column(("parameter", name), words.parameters[name])
        if name in words.signals:
            if not self._optional:
                self.required.add(name)
            node = self._column(("signal", name), words.signals[name])
            node.signal = name
            return node
        if name in words.facts:
            unit = words.facts[name]
            key = ("fact", name)
            if unit is not None:
                return self._column(key, unit)
            self.columns.add(key)
            return _Node(None, truth=fact_of(key))
        known = [*words.signals, *words.parameters, *words.facts, *(f"limit.{limit}" for limit in words.limits)]
        raise ConditionError(f"{name} is no signal, parameter, limit or fact{did_you_mean(name, known)}")

    def _column(self, key: tuple[object, ...], unit: Unit) -> _Node:
        self.columns.add(key)
        return _Node(unit.base(), number=lambda columns: columns.column(key))

    def _call(self, token: _Token) -> _Node:
        name = token.text
        if name not in FUNCTIONS:
            raise ConditionError(f"{name}() is not a function{did_you_mean(name, FUNCTIONS)}")
        function = FUNCTIONS[name]
        if function.form is not Form.SIGNAL and function.form is not Form.WINDOW:
            node = self._forms[function.form]()
            self._expect(")")
            return node
        signal = self._signal_argument(name)
        key: tuple[object, ...] = (name, signal)
        if function.form is Form.WINDOW:
            self._expect(",")
            key = (name, signal, self._window(name))
        self._expect(")")
        if not self._optional:
            self.required.add(signal)
        return self._column(key, function.unit(self._words.signals[signal]))

    def _signal_argument(self, function: str) -> str:
        token = self._next()
        if token.kind != "name" or token.text not in self._words.signals:
            raise ConditionError(f"{function}() takes a signal{did_you_mean(token.text, self._words.signals)}")
        return token.text

    def _window(self, function: str) -> int:
        node = self._sum()
        if node.constant is None or node.unit is None or not node.unit.same_kind(SECOND):
            raise ConditionError(f"{function}() takes a duration as its second argument, for example 30 min")
        if node.constant not in WINDOWS_SECONDS:
            raise ConditionError(f"{function}() takes a window of 5, 10, 15 … 60 min")
        return round(node.constant)

    def _within(self) -> _Node:
        inner = self.condition()
        self._expect(",")
        node = self._sum()
        if inner.truth is None or node.constant is None or node.unit is None or not node.unit.same_kind(SECOND):
            raise ConditionError("within() takes a condition and a duration, for example within(tripped, 30 min)")
        truth, window_us, site = inner.truth, round(node.constant * 1e6), self.site
        self.site += 1

        def recently(columns: Columns) -> BoolArray:
            return columns.within(site, lambda: truth.yes(columns), window_us)

        return _Node(None, truth=Logical(recently, lambda columns: ~recently(columns)))

    def _measured(self) -> _Node:
        signal = self._signal_argument("measured")
        key = ("measured", signal)
        self.columns.add(key)
        return _Node(None, truth=fact_of(key))

    def _known(self) -> _Node:
        self._optional += 1
        node = self._sum()
        self._optional -= 1
        if node.number is None:
            raise ConditionError("known() takes a quantity, for example known(limit.pip_low)")
        number = node.number

        return _Node(
            None, truth=Logical(lambda columns: ~np.isnan(number(columns)), lambda columns: np.isnan(number(columns)))
        )

    def _abs(self) -> _Node:
        node = self._sum()
        if node.number is None or node.unit is None:
            raise ConditionError("abs() takes a quantity")
        number = node.number
        return _Node(node.unit, number=lambda columns: np.abs(number(columns)))

    def _choose(self) -> _Node:
        """choose(condition, a, b): ``a`` where the condition is true, ``b`` where it is false, else not known."""
        chosen = self.condition()
        self._expect(",")
        site = self.site
        first = self._sum()
        self._expect(",")
        second = self._sum()
        is_lazy = self.site == site  # neither of the two remembers (within())
        if chosen.truth is None or first.number is None or second.number is None:
            raise ConditionError("choose() takes a condition and two quantities: choose(measured(gor), 80 %, 70 %)")
        if first.unit is None or second.unit is None or not first.unit.same_kind(second.unit):
            raise ConditionError(f"choose() is between {first.unit} and {second.unit}: they are different kinds")
        truth, a, b = chosen.truth, first.number, second.number

        def choice(columns: Columns) -> FloatArray:
            yes = truth.yes(columns)
            if is_lazy and yes.all():
                return a(columns)
            no = truth.no(columns)
            if is_lazy and no.all():
                return b(columns)
            return np.where(yes, a(columns), np.where(no, b(columns), np.nan))

        return _Node(first.unit, number=choice)
