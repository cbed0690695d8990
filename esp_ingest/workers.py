"""`esp-ingest run --workers N`: N daemons on this machine that share the work through a share group (MQTT 5).

The parent only starts, watches and ends them. Each worker is a whole daemon with a client id, a spool and a health port
of its own. Order within a well: docs/decisions/0009-order-in-a-share-group.md.

The broker gives messages to every session of the group, even to that of a worker that is absent, and it queues
messages for a daemon that ran alone before. So a worker of an earlier start that this start does not have is started
once more, to leave for good: it takes what its session and its spool hold, ends the session and removes its files
(daemon.py). This is repeated until it has succeeded, at later starts too."""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from esp_ingest.config.settings import ENV_PREFIX, ConfigError, Settings
from esp_ingest.interfaces import Clock
from esp_ingest.service import lifetime
from esp_ingest.service import log as logs
from esp_ingest.service.backoff import Backoff
from esp_ingest.service.clock import SystemClock

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_POLL_SECONDS = 0.2
# The pause before a worker that died is started again: 2 s, doubled with each death in a row, 60 s at most. A worker
# that lived for 60 s is not one that cannot start.
_RESTART_SECONDS = (1.0, 60.0)
_GRACE_SECONDS = 5.0  # on top of the drain deadline, before a worker is killed
_USAGE = 2  # exit code of a configuration that cannot be used: starting again changes nothing
ALONE = -1  # in place of a worker's number: the daemon without workers, whose spool is the folder around theirs
_OURS = re.compile(r"lock|mqtt-session-.*|segment-.*")  # damaged files (set-aside) are an operator's to remove


def run(settings: Settings, config_file: Path | None, count: int) -> int:
    """Run ``count`` workers until SIGTERM or SIGINT. 0 when all of them drained, 2 when the first start of one shows
    that the configuration cannot be used, 1 otherwise. Raises ConfigError."""
    if settings.mqtt.protocol == "3.1.1":
        raise ConfigError("Workers share the subscription, which needs MQTT 5: set mqtt.protocol to auto or 5.")
    if settings.http.port and settings.http.port + count - 1 > 65_535:
        raise ConfigError(
            f"The health port of worker {count - 1} would be {settings.http.port + count - 1}: set a lower http.port."
        )
    logs.configure(settings.log)
    return Supervisor(settings, config_file, count, SystemClock()).run()


@contextlib.contextmanager
def leaving(settings: Settings, config_file: Path | None) -> Iterator[None]:
    """For a daemon without workers: while it runs, the workers of an earlier start leave for good."""
    logs.configure(settings.log)
    found = [index for index in surplus(settings, 0) if index != ALONE]
    started = [start(settings, config_file, index, leaves=True) for index in found]
    try:
        yield
    finally:
        for worker in started:
            worker.send_signal(lifetime.ASK)
        for worker in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(settings.service.drain_seconds + _GRACE_SECONDS)
            if worker.poll() is None:
                worker.kill()
                worker.wait()


def surplus(settings: Settings, count: int) -> list[int]:
    """The numbers of workers that left something at an earlier start and are not among ``count`` workers now. ALONE
    stands for a daemon without workers."""
    folder = settings.spool.folder()
    if not settings.spool.enabled or not folder.is_dir():
        return []
    found = [ALONE] if _has_leftovers(folder) else []
    for path in folder.glob("worker-*"):
        match = re.fullmatch(r"worker-(\d{1,4})", path.name)
        if match and int(match[1]) >= count and _has_leftovers(path):
            found.append(int(match[1]))
    return sorted(found)


def _has_leftovers(folder: Path) -> bool:
    try:
        return any(_OURS.fullmatch(each.name) for each in folder.iterdir())
    except OSError:
        return False


@dataclass(slots=True)
class _Worker:
    """A running worker, since a monotonic time in seconds."""

    process: subprocess.Popen[bytes]
    since: float


class Supervisor:
    """Keeps the workers running, and ends them together. ``is_stopping``: no worker is started any more.
    ``is_unusable``: a worker said at its first start that it cannot use the configuration."""

    def __init__(self, settings: Settings, config_file: Path | None, count: int, clock: Clock) -> None:
        self._settings = settings
        self._config_file = config_file
        self._clock = clock
        self._count = count
        self._workers: dict[int, _Worker] = {}
        self._leaving = set(surplus(settings, count))
        everybody = (*range(count), *sorted(self._leaving))
        self._starts = dict.fromkeys(everybody, 0.0)  # when those start that do not run, monotonic seconds
        self._backoffs = {index: Backoff(*_RESTART_SECONDS, lambda _, longest: longest) for index in everybody}
        self.is_stopping = False
        self.is_unusable = False

    def run(self) -> int:
        """Start the workers and look after them until all have ended. Returns the exit code."""
        for number in lifetime.REQUESTS:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._forward)
        log.info("supervising", extra={"workers": self._count, "leaving": len(self._leaving)})
        try:
            while not self.is_stopping:
                self.keep_running()
                self._clock.sleep(_POLL_SECONDS)
            code = self._end()
            return _USAGE if self.is_unusable else code
        finally:
            self._kill()

    def keep_running(self) -> None:
        """Start who is due, and note who has ended. Never blocks."""
        now = self._clock.monotonic()
        for index, worker in list(self._workers.items()):
            if worker.process.poll() is not None:
                del self._workers[index]
                self._ended(index, worker, now)
        for index, due in list(self._starts.items()):
            if due <= now and not self.is_stopping:
                del self._starts[index]
                process = start(self._settings, self._config_file, index, leaves=index in self._leaving)
                self._workers[index] = _Worker(process, now)

    def _ended(self, index: int, worker: _Worker, now: float) -> None:
        code = worker.process.returncode
        if index in self._leaving and index not in surplus(self._settings, self._count):
            self._leaving.remove(index)
            log.info("worker has left for good", extra={"worker": index})
            return
        backoff = self._backoffs[index]
        if code == _USAGE and not backoff.attempts and index not in self._leaving:
            log.error("a worker cannot use the configuration", extra={"worker": index})
            self.is_unusable = self.is_stopping = True
            return
        pause = backoff.next_seconds(now - worker.since)
        log.error("worker ended, starting it again", extra={"worker": index, "exit_code": code, "pause_seconds": pause})
        self._starts[index] = now + pause

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.is_stopping and number == lifetime.ASK:
            return
        if self.is_stopping:
            for worker in self._workers.values():  # without waiting: whom this interrupts may hold the lock for it
                worker.process.kill()
            lifetime.say(
                "A second signal ended the workers before they had drained: what is not acknowledged comes again after "
                "the next start."
            )
            os._exit(1)
        self.is_stopping = True

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        for worker in self._workers.values():
            worker.process.send_signal(number)

    def _end(self) -> int:
        deadline = self._clock.monotonic() + self._settings.service.drain_seconds + _GRACE_SECONDS
        processes = [worker.process for worker in self._workers.values()]
        for process in processes:
            process.send_signal(lifetime.ASK)
        while any(process.poll() is None for process in processes):
            if self._clock.monotonic() >= deadline:
                running = [index for index, worker in self._workers.items() if worker.process.poll() is None]
                log.error("workers did not drain in time and are killed", extra={"workers": running})
                lifetime.say(
                    f"{len(running)} workers did not drain within service.drain_seconds and were killed: what is not "
                    "acknowledged comes again after the next start."
                )
                return 1
            self._clock.sleep(_POLL_SECONDS)
        return int(any(process.returncode != 0 for process in processes))

    def _kill(self) -> None:
        for worker in self._workers.values():
            if worker.process.poll() is None:
                worker.process.kill()
                worker.process.wait()


def start(settings: Settings, config_file: Path | None, index: int, *, leaves: bool) -> subprocess.Popen[bytes]:
    """Start a worker as a process of its own. ``leaves``: it leaves for good."""
    command = [sys.executable, "-m", "esp_ingest", "run", *(["--retire"] if leaves else [])]
    if config_file is not None:
        command += ["--config", str(config_file)]
    environment = {} if index == ALONE else worker_environment(settings, index)
    if leaves:  # it needs no known port, and stays out of the election of who runs the rules
        environment |= {f"{ENV_PREFIX}HTTP__PORT": "0", f"{ENV_PREFIX}DIAGNOSTICS__ENABLED": "false"}
    worker = subprocess.Popen(  # noqa: S603 - our own program
        command,
        env=os.environ | environment,
        preexec_fn=_prepare,  # safe: the supervisor has one thread
    )
    log.info("worker leaving" if leaves else "worker started", extra={"worker": index, "pid": worker.pid})
    return worker


def _prepare() -> None:
    """Runs in the new process before the worker's program: a request to drain is held back until the worker can
    answer it, and if the supervisor is killed the kernel sends that request (Linux)."""
    import ctypes

    lifetime.hold_back()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, lifetime.ASK)


def worker_environment(settings: Settings, index: int) -> dict[str, str]:
    """The settings in which workers differ: client id, share group, spool folder and, for all but the first, the
    port of the health check."""
    port = settings.http.port
    return {
        f"{ENV_PREFIX}MQTT__CLIENT_ID": f"{settings.mqtt.client_id}-{index}",
        f"{ENV_PREFIX}MQTT__SHARE_GROUP": settings.mqtt.share_group or settings.mqtt.client_id,
        f"{ENV_PREFIX}SPOOL__PATH": str(settings.spool.folder() / f"worker-{index}"),
        f"{ENV_PREFIX}HTTP__PORT": str(port + index if port else 0),
    }
