"""Lets a command that prints totals at its end answer Ctrl-C and SIGTERM by stopping in order."""

import signal
from collections.abc import Callable
from types import FrameType

from esp_ingest.service import lifetime


class Stop:
    """The first SIGINT or SIGTERM sets ``asked``, the second one raises lifetime.Interrupted."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise lifetime.Interrupted
        self.asked = True

    def __enter__(self) -> "Stop":
        for number in lifetime.REQUESTS:
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the handlers from before. If a handler belonged to the time while the process was loading, the
        signal is ignored from now on: the process is ending, and nothing should cut it short between its last line
        and its exit status."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if handler is lifetime.end_at_once else handler)
