"""A Clock that moves when told to. One contract suite holds it and the real one: tests/unit/test_service_clock.py."""


class FakeClock:
    """Starts at 2026-06-12T04:00:00Z. Monotonic and wall time move together, unless the wall clock is stepped."""

    def __init__(self, now_us: int = 1_781_236_800_000_000, monotonic: float = 1_000.0) -> None:
        self._monotonic = monotonic
        self._now_us = now_us
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self._monotonic

    def now_us(self) -> int:
        return self._now_us

    def sleep(self, seconds: float) -> None:
        """Move on instead of waiting; ``slept`` keeps what was asked for."""
        self.slept.append(seconds)
        if seconds > 0:
            self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass, on both clocks."""
        if seconds < 0:
            raise ValueError("time does not run backwards: use step_wall for a wall clock that is set back")
        self._monotonic += seconds
        self._now_us += round(seconds * 1_000_000)

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as ntpd or an operator does; monotonic time does not notice."""
        self._now_us += round(seconds * 1_000_000)
