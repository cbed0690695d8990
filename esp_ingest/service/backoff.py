"""Pauses between attempts: exponential, with jitter, and not fooled by a connection that does not last."""

import random
from collections.abc import Callable


class Backoff:
    """The pause before the next attempt. Pure: it is told how long the last connection lasted, and knows no clock.

    A CONNACK alone resets nothing. Two clients with one id take the session from each other at every CONNACK, and would
    do so each second; here both back off. Only a connection that lasted ``max_seconds`` counts as a success.
    """

    def __init__(
        self, min_seconds: float, max_seconds: float, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._min_seconds = min_seconds
        self._max_seconds = max_seconds
        self._uniform = uniform
        self.attempts = 0

    def next_seconds(self, lasted_seconds: float = 0.0, *, is_contested: bool = False) -> float:
        """The pause to make now, after a connection of ``lasted_seconds`` (0: none came about). ``is_contested``:
        another client took the session, so leave it the field for long. Full jitter above the shortest pause, so that a
        fleet that lost its broker does not come back as one."""
        if lasted_seconds >= self._max_seconds:
            self.attempts = 0
        self.attempts += 1
        if is_contested:
            return self._uniform(self._max_seconds / 2, self._max_seconds)
        ceiling = min(self._max_seconds, self._min_seconds * 2.0 ** min(self.attempts, 32))
        return self._uniform(self._min_seconds, ceiling)
