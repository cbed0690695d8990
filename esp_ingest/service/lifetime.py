"""What a signal does from the first line of the program on, and how the program says its last words.

``__main__.py`` calls :func:`begin` before it imports anything else, so this module imports nothing heavy. Before its
first line the interpreter itself is starting, and a signal ends it as it ends any program: nothing of ours can answer.
"""

import _signal as signal  # type: ignore[import-not-found]  # the module `signal` imports enum: 10 ms without an answer
import os
import sys

MYPY = False  # what mypy takes as typing.TYPE_CHECKING, without 10 ms for importing typing
if MYPY:
    from types import FrameType

# A supervisor's request to drain. Asking twice, or after SIGTERM, is no second signal: who stops a supervisor with its
# whole process group (Ctrl-C at a terminal, systemd with KillMode=control-group) has asked the workers already.
ASK = signal.SIGUSR1
REQUESTS = (signal.SIGINT, ASK, signal.SIGTERM)  # SIGTERM is last: who sees it caught knows that all of them are
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"  # in whose frames every module is loaded
_LONG_RUNNING = {"run", "simulate", "demo", "api"}  # stopping one of these is its regular end


class Interrupted(KeyboardInterrupt):
    """A command is to end. A class of its own: of KeyboardInterrupt itself the interpreter remembers that it passed
    through code compiled from text, such as a dataclass, and ends by SIGINT later although it was caught."""


def begin(command: str) -> None:
    """Answer signals from now on, for the command that is being loaded, named ``command``.

    A command that runs until it is stopped ends at once with 0: it holds nothing yet. It installs its own handlers when
    it begins. Any other command ends with 1, since it has not done its work: at once while it is loading, and through
    :class:`Interrupted` once it :func:`has_loaded`. Signals that the parent process held back
    for us (:func:`hold_back`) arrive here."""
    if command in _LONG_RUNNING:
        for number in REQUESTS:
            signal.signal(number, end_at_once)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a request to read the rules again: they are not read yet
    else:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell script has it for what it starts with &
                signal.signal(number, _fail_at_once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)


def end_at_once(_number: int, _frame: object) -> None:
    """The handler of a command that is still loading, which holds nothing: the process ends here, with 0."""
    os._exit(0)


def _fail_at_once(_number: int, _frame: object) -> None:
    os._exit(interrupted())


def _interrupt(number: int, frame: "FrameType | None") -> None:
    """The handler of a command that has an end of its own: it may tidy up, unless it is asked a second time, or loads a
    module just now. What is raised there can meet code that does not pass it on: an extension in Rust panics."""
    _replace(_interrupt, _fail_at_once)
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_SYSTEM:
            _fail_at_once(number, frame)
        frame = frame.f_back
    raise Interrupted


def has_loaded() -> None:
    """The command begins: :class:`Interrupted` has somebody who catches it."""
    sys.unraisablehook = _end_although_nobody_caught_it
    _replace(_fail_at_once, _interrupt)


def _end_although_nobody_caught_it(what: "sys.UnraisableHookArgs") -> None:
    """In place of :func:`sys.unraisablehook`: Python drops what is raised in a finalizer or in the callback of a weak
    reference, and a signal that arrives there would be answered by nobody. The command ends at once instead."""
    if issubclass(what.exc_type, Interrupted):
        os._exit(interrupted())
    sys.__unraisablehook__(what)


def is_over() -> None:
    """The command has ended, and its exit status is known: a signal no longer changes it, not even while the
    interpreter shuts down, which puts the default in the place of every handler that is a function."""
    for number in REQUESTS:
        if signal.getsignal(number) is not signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)


def interrupted() -> int:
    """Say that the command was stopped; its exit status."""
    say("Stopped by a signal before the command was done.")
    return 1


def _replace(old: object, new: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is old:
            signal.signal(number, new)


def hold_back() -> None:
    """In a child process before it executes this program: the kernel keeps requests until :func:`begin` can answer."""
    signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def say(sentence: str) -> None:
    """A last word on stderr, from a signal handler too: one system call, left out where it would have to wait."""
    import select

    try:
        if select.select([], [2], [], 0)[1]:
            os.write(2, f"esp-ingest: {sentence}\n".encode("ascii", "backslashreplace"))
    except (OSError, ValueError):
        return
