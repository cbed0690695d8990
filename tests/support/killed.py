"""Runs `esp-ingest lifecycle` in a process that kills itself at one step: before or after the n-th call of a function.

``python -m tests.support.killed MODULE:NAME before|after N ARGUMENTS…``"""

import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def kill_at(where: str, when: str, number: int) -> None:
    """Patch the function so that its ``number``-th call ends this process by SIGKILL."""
    module, _, path = where.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    @functools.wraps(original)
    def patched(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **options)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, patched)


if __name__ == "__main__":
    from esp_ingest import cli

    kill_at(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.exit(cli.main(sys.argv[4:]))
