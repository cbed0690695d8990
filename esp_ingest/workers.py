"""`esp-ingest run --workers N`: N daemons on this machine that share the work through a share group (MQTT 5).

The parent only starts, watches and ends them; each worker is a whole daemon with a client id, a spool and a health port
of its own. Order within a well: docs/decisions/0009-order-in-a-share-group.md.
"""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from esp_ingest.config import ENV_PREFIX, ConfigError, Settings
from esp_ingest.seams import Clock
from esp_ingest.service import log as logs
from esp_ingest.service.clock import SystemClock

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_RESTART_SECONDS = 2.0  # pause before a worker that died is started again
_GRACE_SECONDS = 5.0  # on top of the drain deadline, before a worker is killed


def run(settings: Settings, config_file: Path | None, count: int) -> int:
    """Run ``count`` workers until SIGTERM or SIGINT. 0 when all of them drained, 1 otherwise. Raises ConfigError."""
    if settings.mqtt.protocol == "3.1.1":
        raise ConfigError("Workers share the subscription, which needs MQTT 5: set mqtt.protocol to auto or 5.")
    logs.configure(settings.log)
    return Supervisor(settings, config_file, count, SystemClock()).run()


class Supervisor:
    """Keeps the workers running, and ends them together."""

    def __init__(self, settings: Settings, config_file: Path | None, count: int, clock: Clock) -> None:
        self._settings = settings
        self._config_file = config_file
        self._clock = clock
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._restart_at: dict[int, float] = dict.fromkeys(range(count), 0.0)
        self._stopping = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._forward)
        log.info("supervising", extra={"workers": len(self._restart_at)})
        try:
            while not self._stopping:
                self._keep_running()
                self._clock.sleep(_POLL_SECONDS)
            return self._end()
        finally:
            self._kill()

    def _keep_running(self) -> None:
        now = self._clock.monotonic()
        for index, worker in list(self._workers.items()):
            if worker.poll() is not None:
                log.error("worker ended, starting it again", extra={"worker": index, "exit_code": worker.returncode})
                del self._workers[index]
                self._restart_at[index] = now + _RESTART_SECONDS
        for index, at in list(self._restart_at.items()):
            if at <= now:
                del self._restart_at[index]
                self._workers[index] = self._start(index)

    def _start(self, index: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "esp_ingest", "run"]
        if self._config_file is not None:
            command += ["--config", str(self._config_file)]
        worker = subprocess.Popen(command, env=os.environ | worker_environment(self._settings, index))  # noqa: S603 - our own program
        log.info("worker started", extra={"worker": index, "pid": worker.pid})
        return worker

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        if self._stopping:
            self._kill()
            os._exit(1)
        self._stopping = True

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        for worker in self._workers.values():
            worker.send_signal(number)

    def _end(self) -> int:
        deadline = self._clock.monotonic() + self._settings.service.drain_seconds + _GRACE_SECONDS
        for worker in self._workers.values():
            worker.terminate()
        while any(worker.poll() is None for worker in self._workers.values()):
            if self._clock.monotonic() >= deadline:
                return 1
            self._clock.sleep(_POLL_SECONDS)
        return int(any(worker.returncode != 0 for worker in self._workers.values()))

    def _kill(self) -> None:
        for worker in self._workers.values():
            if worker.poll() is None:
                worker.kill()
                worker.wait()


def worker_environment(settings: Settings, index: int) -> dict[str, str]:
    """What differs between workers: client id, share group, spool folder and, from the second on, the health port."""
    port = settings.http.port
    return {
        f"{ENV_PREFIX}MQTT__CLIENT_ID": f"{settings.mqtt.client_id}-{index}",
        f"{ENV_PREFIX}MQTT__SHARE_GROUP": settings.mqtt.share_group or settings.mqtt.client_id,
        f"{ENV_PREFIX}SPOOL__PATH": str(settings.spool.folder() / f"worker-{index}"),
        f"{ENV_PREFIX}HTTP__PORT": str(port + index if port else 0),
    }
