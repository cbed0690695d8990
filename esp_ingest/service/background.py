"""A thread that does something again and again."""

import threading
from collections.abc import Callable

from esp_ingest.interfaces import Clock


class Background:
    """Calls ``turn`` in a thread of its own, which returns how many seconds to wait until the next call; ``end`` is the
    last that is called there. An error of either ends the thread, so they handle their own.

    ``rest`` is how it waits, if not idly: it is called until the time has passed, with what is left of it in seconds,
    and may return earlier."""

    def __init__(
        self,
        name: str,
        turn: Callable[[], float],
        end: Callable[[], None],
        clock: Clock,
        rest: Callable[[float], object] | None = None,
    ) -> None:
        self._turn = turn
        self._end = end
        self._clock = clock
        self._stopping = threading.Event()
        self._rest = rest or self._stopping.wait
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def stop(self, timeout_seconds: float) -> None:
        """Have ``end`` called, and wait for it ``timeout_seconds`` at most. Does nothing if it was never started."""
        self._stopping.set()
        if self.alive:
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._stopping.is_set():
            until = self._clock.monotonic() + self._turn()
            while not self._stopping.is_set() and (left := until - self._clock.monotonic()) > 0:
                self._rest(left)
        self._end()
