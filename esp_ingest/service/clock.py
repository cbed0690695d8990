"""The only place that reads the computer's clocks: everyone else is handed a Clock, so that tests own the time."""

import time


class SystemClock:
    """interfaces.Clock on this machine's clocks."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never steps back, whatever is done to the wall clock."""
        return time.monotonic()

    def now_us(self) -> int:
        """Wall time, microseconds since the Unix epoch. From integer nanoseconds: a float would round to 0.2 µs."""
        return time.time_ns() // 1_000

    def sleep(self, seconds: float) -> None:
        """Block the calling thread; zero or less returns at once, as what is left of a passed deadline does."""
        if seconds > 0:
            time.sleep(seconds)
