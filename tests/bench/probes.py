"""What Prometheus and an orchestrator see of the daemon during a run: how long its HTTP answers take."""

import http.client
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

PATHS = ("/health/live", "/health/ready", "/metrics")
BARE = "limit: a process of its own"  # in ``seconds``, beside the paths
_ROOT = Path(__file__).parent.parent.parent
_ROUNDS_A_SECOND = 5
_TIMEOUT_SECONDS = 5.0


class HttpWatch:
    """Asks each of PATHS a few times a second, each on a connection of its own as probes and scrapers do, from a thread
    of the bench. ``seconds`` by path, from before the connection to the last byte: what the asker waits for a core of a
    full machine is in it; so BARE has the same of a process that does nothing else (bare.py). ``refused``: no answer,
    or one that says 503."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="http-watch", daemon=True)
        self.seconds: dict[str, list[float]] = {path: [] for path in (*PATHS, BARE)}
        self.refused = 0

    def __enter__(self) -> "HttpWatch":
        if self._port:
            self._bare = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.bare"], cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert self._bare.stdout is not None
            self._bare_port = int(self._bare.stdout.readline())
            self._thread.start()
        return self

    def stop(self) -> None:
        """Enough: what comes after the load would only flatter. Does not wait."""
        self._ended.set()

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._port:
            self._thread.join()
            self._bare.communicate()

    def _watch(self) -> None:
        while not self._ended.wait(1 / _ROUNDS_A_SECOND):
            for path in PATHS:
                self.seconds[path].append(self._ask(self._port, path))
            self.seconds[BARE].append(self._ask(self._bare_port, "/"))

    def _ask(self, port: int, path: str) -> float:
        """Seconds that the answer took."""
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
        status = 0
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            status = answer.status
        connection.close()
        self.refused += status != 200
        return time.monotonic() - began
