"""What the commands' arguments have in common."""

import argparse
from collections.abc import Callable
from typing import Any

AddAction = Callable[[str, str], argparse.ArgumentParser]
"""Makes the parser of an action of a command, from its name and what it does."""


class Given(argparse.Action):
    """Stores the value, and notes that the option was given, since a default value does not tell that."""

    def __call__(
        self, _parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _option: str | None = None
    ) -> None:
        if self.dest == "fault":
            values = [*namespace.fault, values]
        setattr(namespace, self.dest, values if self.nargs != 0 else True)
        namespace.given = [*getattr(namespace, "given", ()), self.dest]


def number(text: str, low: float, high: float, what: str) -> float:
    """``text`` as a number from ``low`` to ``high``. Raises argparse.ArgumentTypeError: it is not ``what``."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def seconds(text: str) -> float:
    """A duration in seconds."""
    return number(text, 0, 1e9, "a number of at least 0")


def whole(text: str, low: int, high: float, what: str) -> int:
    """``text`` as a whole number, in digits alone. Raises as :func:`number`."""
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return int(text)


def count(text: str) -> int:
    """A whole number from 1 to 10 000 000."""
    return whole(text, 1, 10_000_000, "a whole number above 0")
