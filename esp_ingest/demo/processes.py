"""Runs the parts of the demo (broker, database, daemon, simulators), and reads what they do.

Daemon and simulators are the real commands, in processes of their own, configured by environment variables alone."""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import sys
import tempfile
import urllib.error
import urllib.request
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from esp_ingest.config.settings import ENV_PREFIX, DatabaseSettings
from esp_ingest.demo.console import DemoConsole
from esp_ingest.demo.screen import Alarm, Picture, Well
from esp_ingest.demo.servers import EmbeddedBroker, EmbeddedError, EmbeddedPostgres, free_ports, last_line, wait_until
from esp_ingest.resources import config_file
from esp_ingest.service import extra
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.guard import GuardedProcess
from esp_ingest.store import schema
from esp_ingest.store.connection import connect, only_row
from esp_ingest.store.queries import query

_PREFIX = "esp-ingest-demo-"
_OWNER = "owner"  # a file that the demo holds a lock on: the kernel drops it, however the demo ends
_READY_SECONDS = 30.0
_GRACE_SECONDS = 30.0  # longer than the daemon's own drain deadline
_RATE_SECONDS = 2.0  # rates and lag are means over at least so long


def sweep(temporary: Path) -> None:
    """Remove the folders of demos that were killed and could not remove them: folders of ours whose owner no longer
    runs."""
    for folder in temporary.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another's, in use, or gone meanwhile
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            with (folder / _OWNER).open("r+") as owner:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)


class Processes:
    """Broker, database and daemon. They are started and ready inside the with-statement, and are stopped and removed
    when it is left, however that happens."""

    def __init__(
        self, clock: SystemClock, settings: Mapping[str, str], more_rules: str = "", config: Path | None = None
    ) -> None:
        """``settings``: environment overrides for the daemon, on top of where broker and database are; ``more_rules``
        is appended to the rules that ship; ``config``: a file with further settings, below all of these."""
        self._clock = clock
        self._config = [] if config is None else ["--config", str(config.absolute())]
        self._more_rules = more_rules
        self._extra = dict(settings)
        self._stack = ExitStack()
        self._before: tuple[float, float, float, float] | None = None
        self._rate, self._lag_seconds = 0.0, 0.0

    def __enter__(self) -> Self:
        with self._stack:
            sweep(Path(tempfile.gettempdir()))
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix=_PREFIX))
            self.folder = Path(folder)
            fcntl.flock(self._stack.enter_context((self.folder / _OWNER).open("w")), fcntl.LOCK_EX)
            rules = config_file("rules.toml").read_text(encoding="utf-8") + self._more_rules
            (self.folder / "rules.toml").write_text(rules, encoding="utf-8")
            self._database = self._stack.enter_context(EmbeddedPostgres())
            self._broker = self._stack.enter_context(EmbeddedBroker())
            settings = DatabaseSettings(dsn=SecretStr(self._database.dsn))
            self.schema_lines = schema.migrate(settings).lines()
            self._connection = self._stack.enter_context(connect(settings, autocommit=True))
            (port,) = free_ports(1)
            self.console = self._start_console(port)
            self._http = f"http://127.0.0.1:{port}"
            self._start_daemon(port)
            if self.console is not None:
                self.console.await_ready()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # -- Processes

    def environment(self) -> dict[str, str]:
        """The environment of the commands. ESP_INGEST_ variables of the caller are left out: they belong to other
        brokers and databases."""
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(ENV_PREFIX)}
        return kept | {
            "ESP_INGEST_MQTT__HOST": self._broker.host,
            "ESP_INGEST_MQTT__PORT": str(self._broker.port),
            "ESP_INGEST_DATABASE__DSN": self._database.dsn,
            "ESP_INGEST_SPOOL__PATH": str(self.folder / "spool"),
            "ESP_INGEST_DIAGNOSTICS__RULES_FILE": str(self.folder / "rules.toml"),
            "ESP_INGEST_LOG__FORMAT": "json",
            # rumqttd has no more than 100 messages under way to a subscriber, whatever window it is offered: a larger
            # batch would never fill, and would wait for its age each time.
            "ESP_INGEST_BATCH__MAX_ROWS": "100",
            "PYTHONUNBUFFERED": "1",
            **self._extra,
        }

    def _start_console(self, daemon_port: int) -> DemoConsole | None:
        """Start the console beside the daemon. None if its extra is not installed: the demo works without it."""
        if extra.missing("api"):
            return None
        console = DemoConsole(self._stack, self.folder, self.environment(), daemon_port)
        console.add_user(self._connection)
        return console

    def _start_daemon(self, port: int) -> None:
        with (self.folder / "daemon.log").open("wb") as log:
            self._daemon = self._stack.enter_context(
                GuardedProcess(
                    [sys.executable, "-P", "-m", "esp_ingest", "run", *self._config],
                    output=log,
                    grace_seconds=_GRACE_SECONDS,
                    environment=self.environment() | {"ESP_INGEST_HTTP__PORT": str(port)},
                )
            )
        address, log_file = f"http://127.0.0.1:{port}/health/ready", self.folder / "daemon.log"
        wait_until(lambda: _fetch(address) is not None, self._daemon, "The daemon", log_file, _READY_SECONDS)

    def start_simulator(self, name: str, arguments: Sequence[str]) -> "Simulator":
        """Run ``esp-ingest simulate`` with ``arguments``. Its output goes to a file named after ``name``."""
        path = self.folder / f"{name}.out"
        with path.open("wb") as output:
            guarded = self._stack.enter_context(
                GuardedProcess(
                    [sys.executable, "-P", "-m", "esp_ingest", "simulate", *arguments],
                    output=output,
                    stop_signal=signal.SIGINT,
                    environment=self.environment(),
                )
            )
        return Simulator(name, guarded, path)

    def stop_daemon(self) -> int:
        """Ask the daemon to drain (SIGTERM), and wait until it has ended. Returns its exit status."""
        return self._daemon.stop()

    @property
    def daemon_ended(self) -> bool:
        """Whether the daemon is no longer running."""
        return self._daemon.poll() is not None

    # -- Looking

    def look(self) -> Picture:
        """The counters from /metrics, the wells and the alarms from the database."""
        picture = Picture(wells=self._wells(), alarms=self._alarms())
        page = _fetch(f"{self._http}/metrics")
        if page is None:
            picture.trouble = "the daemon does not answer"
            return picture
        sums = _sums(page)
        picture.received = int(sums["esp_ingest_readings_received_total"])
        picture.written = int(sums["esp_ingest_readings_written_total"])
        picture.duplicates = int(sums["esp_ingest_readings_duplicate_total"])
        picture.reasons = _by_label(page, "esp_ingest_readings_rejected_total", "reason")
        picture.rejected = picture.reasons.total()
        picture.raised = int(sums["esp_ingest_diagnostics_raised_total"])
        picture.unacked = int(sums["esp_ingest_unacked_messages"])
        self._note_rates(sums)
        picture.rate, picture.lag_seconds = self._rate, self._lag_seconds
        return picture

    def _note_rates(self, sums: Mapping[str, float]) -> None:
        now = (
            self._clock.monotonic(),
            sums["esp_ingest_readings_written_total"],
            sums["esp_ingest_ingest_latency_seconds_sum"],
            sums["esp_ingest_ingest_latency_seconds_count"],
        )
        if self._before is None:
            self._before = now
        seconds, written, latency, count = (new - old for new, old in zip(now, self._before, strict=True))
        if seconds >= _RATE_SECONDS:
            self._rate = written / seconds
            self._lag_seconds = latency / count if count else 0.0
            self._before = now

    def _wells(self) -> list[Well]:
        rows = self._connection.execute(query("demo_wells")).fetchall()
        return [Well(well_id, time, tuple(values)) for well_id, time, *values in rows]

    def _alarms(self) -> list[Alarm]:
        return [Alarm(*row) for row in self._connection.execute(query("demo_alarms")).fetchall()]

    def stored(self) -> "Stored":
        """How many rows the tables hold."""
        row = only_row(self._connection.execute(query("demo_totals")))
        return Stored(*row)

    def diagnoses(self) -> list[tuple[str, str, int]]:
        """Diagnosis, severity and number of occurrences, the most severe first."""
        return self._connection.execute(query("demo_diagnoses")).fetchall()


@dataclass(frozen=True, slots=True)
class Stored:
    """How many rows the tables hold."""

    readings: int
    rejects: int
    diagnostics: int


@dataclass(frozen=True, slots=True)
class Simulator:
    """A running ``esp-ingest simulate``."""

    name: str
    guarded: GuardedProcess
    output: Path

    @property
    def running(self) -> bool:
        """Whether the simulator is still running."""
        return self.guarded.poll() is None

    def finish(self) -> int:
        """Stop it if it is still running. Returns how many messages it published, each of which is one reading or is
        broken. Raises EmbeddedError if it failed or did not say how many."""
        ran = self.running
        status = self.guarded.stop()
        text = self.output.read_text(errors="replace")
        match = _PUBLISHED.search(text)
        if match is None and ran and not _BEGUN.search(text) and status in _INTERRUPTED:
            return 0  # stopped while it was still loading
        if match is None or status not in (0, 128 + signal.SIGINT):  # asked to stop after its last word
            raise EmbeddedError(f"The simulator ({self.name}) ended with {status}: {last_line(self.output)}")
        return int(match["messages"])


# What `simulate` says: when it begins, and at its end.
_BEGUN = re.compile(r" to [\w.]+:\d+$", re.MULTILINE)
_PUBLISHED = re.compile(r"^published (?P<messages>\d+),", re.MULTILINE)
_INTERRUPTED = (0, 1, 128 + signal.SIGINT)


def _fetch(address: str) -> str | None:
    """The page, None if it cannot be had yet. The address is that of our own daemon on loopback."""
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:  # noqa: S310 - http, by our own making
            return str(answer.read().decode())
    except (urllib.error.URLError, OSError):
        return None


def _samples(page: str) -> Iterable[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def _sums(page: str) -> defaultdict[str, float]:
    """Metrics summed over their labels; 0 for a metric that is not there."""
    sums: defaultdict[str, float] = defaultdict(float)
    for name, _, value in _samples(page):
        sums[name] += value
    return sums


def _by_label(page: str, metric: str, label: str) -> Tally[str]:
    return Tally({labels[label]: int(value) for name, labels, value in _samples(page) if name == metric and value})
