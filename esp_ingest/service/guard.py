"""A child process that cannot outlive its owner, whatever ends the owner.

The owner holds the write end of a pipe. A small guard process, in a session of its own so that Ctrl-C at the terminal
does not reach it, starts the real command and waits for the pipe to close. It then asks the command to stop, kills it
after a grace time and removes its folder. The kernel closes the pipe for an owner that was killed too, which is what
an atexit hook cannot do. Refused: PDEATHSIG alone, because it leaves the folder behind and gives no time to stop.
"""

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class GuardedProcess:
    """Starts ``command`` under a guard. ``stop()``, or the end of this process, ends it.

    ``stop_signal`` asks the command to end and SIGKILL follows after ``grace_seconds``; ``remove`` is a folder that
    goes with it; ``user`` is whom it runs as (only root may set it). Raises OSError where no process can be started."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        output: IO[bytes] | int,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace_seconds: float = 10.0,
        remove: Path | None = None,
        user: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        guard = [
            sys.executable,
            "-I",
            "-S",
            __file__,
            str(int(stop_signal)),
            str(grace_seconds),
            str(remove or ""),
            user,
        ]
        self._grace_seconds = grace_seconds
        self._process = subprocess.Popen(  # noqa: S603 - the command is ours
            [*guard, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=dict(environment) if environment is not None else None,
        )

    def poll(self) -> int | None:
        """The command's exit status, None while it runs, 128 + n when signal n ended it."""
        return self._process.poll()

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Wait for the command to end by itself; its exit status. Raises subprocess.TimeoutExpired."""
        status = self._process.wait(timeout_seconds)
        self.stop()  # closes the pipe
        return status

    def stop(self) -> int:
        """End the command and wait for it; its exit status. Safe to call twice."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(self._grace_seconds + 10.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """While this lasts, further requests to end are passed over: something is being tidied up. For the main thread."""
    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _guard(stop_signal: int, grace_seconds: float, remove: str, user: str, command: list[str]) -> int:
    """The guard's whole life; runs in its own interpreter, without site packages."""
    child = subprocess.Popen(  # noqa: S603 - the owner's command
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_guard,  # safe here: this interpreter has one thread so far
        user=user or None,
        group=pwd.getpwnam(user).pw_gid if user else None,
        extra_groups=[] if user else None,
    )

    def stop() -> None:
        with contextlib.suppress(OSError):
            sys.stdin.buffer.read()  # until the owner closes the pipe, or is gone
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(stop_signal)
        try:
            child.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            child.kill()

    threading.Thread(target=stop, daemon=True).start()
    status: int = child.wait()
    if remove:
        shutil.rmtree(remove, ignore_errors=True)
    return status if status >= 0 else 128 - status


def _die_with_guard() -> None:
    """Should the guard itself be killed, the kernel kills the command. What the guard ignores, the command does not."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the pipe decides
    _code = _guard(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])
    sys.stdout.flush()
    os._exit(_code)  # not sys.exit: the thread that waits on stdin holds its lock
