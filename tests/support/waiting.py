"""Waiting for something that happens in another thread or process."""

import time
from collections.abc import Callable


def until(condition: Callable[[], object], timeout_seconds: float = 15.0) -> None:
    """Return once ``condition`` is true. Raises AssertionError if that takes longer than ``timeout_seconds``."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
