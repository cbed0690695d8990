"""The rig of the fault suite: a real broker, a real TimescaleDB, the daemon as a process between two proxies, and a
publisher whose journal says what must be there at the end.

    publisher ──► Mosquitto ◄── proxy ◄── esp-ingest ──► proxy ──► TimescaleDB

A test breaks something, heals it, and calls :meth:`Rig.finish`, which waits until all that the broker acknowledged is
in the tables, ends the daemon, compares, and prints a line of counts. What is random comes from ``rig.random``, whose
seed is printed: ``FAULT_SEED=… pytest …`` repeats it.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from esp_ingest.store.schema import migrate
from tests.support.brokers import ROOT, WELLS, Mosquitto
from tests.support.databases import Database, free_port
from tests.support.fault_publisher import Comparison, compare, confirmed
from tests.support.proxy import TcpProxy

READY_SECONDS = 30.0
CATCH_UP_SECONDS = 90.0
_POLL_SECONDS = 0.1


def say(line: str) -> None:
    """To the test's output: pytest shows it with -s, and with every failure."""
    sys.stdout.write(f"{line}\n")


class Process:
    """A process of ours: ended by its id, whatever the test does."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=environment)
        self.pid = self._process.pid

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout_seconds: float) -> int:
        return self._process.wait(timeout_seconds)

    def kill(self) -> None:
        if self.running:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        self._process.wait()

    def memory_bytes(self) -> int:
        """Resident memory now."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
        return int(found[1]) * 1024 if found else 0


class Rig:
    """See the module. ``settings`` are further environment overrides of the daemon, as ``SPOOL__AFTER_SECONDS``."""

    def __init__(self, folder: Path, broker: Mosquitto, database: Database, name: str) -> None:
        self.seed = int(os.environ.get("FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
        self.random = random.Random(self.seed)
        self.name = name
        self.folder = folder
        self.broker = broker
        self.database = database
        self.to_broker = TcpProxy(broker.host, broker.port)
        self.to_database = TcpProxy("127.0.0.1", database.server.port)
        self.http_port = free_port()
        self.settings: dict[str, str] = {}
        self.daemon_command = [sys.executable, "-m", "esp_ingest"]
        self.daemon: Process | None = None
        self.publisher: Process | None = None
        self.starts = 0
        self.duplicates = 0
        self.rejected = 0
        self.recovery_seconds: float | None = None
        self._journal = folder / "journal"
        self._journal.mkdir()

    def __enter__(self) -> "Rig":
        say(f"\n{self.name}: seed {self.seed}")
        self.to_broker.start()
        self.to_database.start()
        migrate(self.database.settings)  # as the command does, without the second that its process takes to begin
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self.publisher, self.daemon):
            if process is not None:
                process.kill()
        for proxy in (self.to_broker, self.to_database):
            proxy.__exit__()

    # -- The daemon.

    def environment(self, dsn: str | None = None) -> dict[str, str]:
        through_proxy = self.database.dsn.replace(f":{self.database.server.port}/", f":{self.to_database.port}/")
        chosen = {
            "MQTT__HOST": self.to_broker.host,
            "MQTT__PORT": str(self.to_broker.port),
            "MQTT__USERNAME": "esp-ingest",
            "MQTT__PASSWORD": self.broker.password_of("esp-ingest"),
            "MQTT__KEEPALIVE_SECONDS": "5",
            "MQTT__RECONNECT_MIN_SECONDS": "0.1",
            "MQTT__RECONNECT_MAX_SECONDS": "1",
            "DATABASE__DSN": dsn or through_proxy,
            "DATABASE__RETRY_MAX_SECONDS": "1",
            "DATABASE__CONNECT_TIMEOUT_SECONDS": "2",
            "DATABASE__STATEMENT_TIMEOUT_SECONDS": "5",
            "DATABASE__LOCK_TIMEOUT_SECONDS": "2",
            "SPOOL__PATH": str(self.folder / "spool"),
            "HTTP__PORT": str(self.http_port),
            **self.settings,
        }
        # The home folder of the password: a command of an unrelated configuration must not leak in.
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ESP_INGEST_")}
        return kept | {f"ESP_INGEST_{key}": value for key, value in chosen.items()}

    def run(self, *arguments: str, dsn: str | None = None) -> None:
        """A command of esp-ingest that ends by itself."""
        command = [sys.executable, "-m", "esp_ingest", *arguments]
        done = subprocess.run(command, env=self.environment(dsn), cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def start_daemon(self, wait: bool = True) -> Process:
        self.daemon = Process([*self.daemon_command, "run"], self.folder / "daemon.log", self.environment())
        self.starts += 1
        if wait:
            self.await_that(lambda: self.health("ready")[0] == 200, "the daemon is ready", READY_SECONDS)
        return self.daemon

    def kill_daemon(self) -> None:
        """SIGKILL. Safe from a proxy's thread."""
        assert self.daemon is not None
        self.daemon.kill()

    def stop_daemon(self, timeout_seconds: float = 30.0) -> None:
        """SIGTERM must end it with 0."""
        assert self.daemon is not None
        self._note_counts()
        self.daemon.send(signal.SIGTERM)
        code = self.daemon.wait(timeout_seconds)
        assert code == 0, f"SIGTERM ended the daemon with {code}: {self.daemon_log()[-2000:]}"

    def health(self, which: str) -> tuple[int, dict[str, Any]]:
        """(status, answer) of /health/…; (0, {}) where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/health/{which}", timeout=2) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except OSError:
            return 0, {}

    def metric(self, name: str) -> float:
        """The sum of a metric of the running daemon over its labels, 0 where there is none."""
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
            found = re.findall(rf"^esp_ingest_{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
            return sum(float(value) for value in found)
        return 0.0

    def daemon_log(self) -> str:
        path = self.folder / "daemon.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # -- The publisher.

    def publish(self, rate: float = 300.0, reject_every: int = 7, wells: int = 3, port: int | None = None) -> None:
        """Start publishing, ``rate`` messages a second and well, until :meth:`finish`."""
        assert self.starts, "without a session on the broker, what is published is nobody's"
        command = [sys.executable, "-m", "tests.support.fault_publisher", str(self._journal)]
        command += ["--port", str(port or self.broker.port), "--wells", ",".join(WELLS[:wells]), "--rate", str(rate)]
        command += ["--reject-every", str(reject_every)]
        self.publisher = Process(command, self.folder / "publisher.log")
        self.await_that(lambda: confirmed(self._journal) > 0, "the first acknowledgement", 10)

    def confirmed(self) -> int:
        return confirmed(self._journal)

    def await_new_connection(self, proxy: TcpProxy, before: int) -> None:
        """The daemon came back through ``proxy``, which had seen ``before`` connections."""
        self.await_that(lambda: proxy.connections_total > before, "connected again", 20)

    # -- Waiting and judging.

    def await_that(self, condition: Callable[[], object], what: str, seconds: float) -> float:
        """Wait for ``condition``; returns how long it took. Fails with the daemon's log."""
        started = time.monotonic()
        while not condition():
            waited = time.monotonic() - started
            assert waited < seconds, f"not within {seconds} s: {what}\n{self.daemon_log()[-3000:]}"
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - started

    def stored(self) -> int:
        """Readings and rejects in the database; -1 while it does not answer."""
        try:
            return int(
                self.database.value(
                    "SELECT (SELECT count(*) FROM esp_telemetry) + (SELECT count(*) FROM ingest_rejects)"
                )
            )
        except psycopg.Error:
            return -1

    def healed(self) -> float:
        """The fault is over: wait until all that was confirmed by now is stored. Returns the seconds it took."""
        goal = self.confirmed()
        self.recovery_seconds = self.await_that(lambda: self.stored() >= goal, f"{goal} stored", CATCH_UP_SECONDS)
        return self.recovery_seconds

    def finish(self) -> Comparison:
        """Stop publishing, wait for the rest, end the daemon, compare, print the line, and require a clean result."""
        assert self.publisher is not None
        self.publisher.send(signal.SIGTERM)
        assert self.publisher.wait(150) == 0, (self.folder / "publisher.log").read_text()
        goal = self.confirmed()
        with contextlib.suppress(AssertionError):  # the comparison says it better
            self.await_that(lambda: self.stored() >= goal, f"{goal} stored", CATCH_UP_SECONDS)
        self.stop_daemon()
        result = compare(self._journal, self.database.dsn)
        recovery = "" if self.recovery_seconds is None else f", recovered in {self.recovery_seconds:.1f} s"
        line = f"{self.name}: {result}, duplicates refused {self.duplicates}, starts {self.starts}{recovery}"
        say(line)
        if table := os.environ.get("FAULT_TABLE"):
            with Path(table).open("a") as file:
                file.write(f"{line} (seed {self.seed})\n")
        assert result.clean, line
        assert result.stored + result.rejects == result.confirmed == result.published
        return result

    def _note_counts(self) -> None:
        self.duplicates += int(self.metric("readings_duplicate_total"))

    def keep_failure(self) -> None:
        """What a failure needs to be understood, with its seed, where the next run does not delete it."""
        kept = Path(os.environ.get("FAULT_KEEP", "/tmp/esp-ingest-faults")) / f"{self.name}-{self.seed}"
        kept.mkdir(parents=True, exist_ok=True)
        for path in (self.folder / "daemon.log", self.folder / "publisher.log", self.broker.folder / "log"):
            if path.exists():
                shutil.copy(path, kept / f"{path.parent.name}-{path.name}")
        say(f"{self.name}: FAULT_SEED={self.seed}, logs in {kept}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A fixture does not learn that its test failed; this does, before the rig is taken down."""
    report = yield
    rig = getattr(item, "funcargs", {}).get("rig")
    if report.failed and call.when == "call" and isinstance(rig, Rig):
        rig.keep_failure()
    return report


@contextlib.contextmanager
def paused(process: Process) -> Iterator[None]:
    """SIGSTOP, and SIGCONT at the end."""
    process.send(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send(signal.SIGCONT)
