"""How long a reading waits while the lifecycle archives, proves and drops days of the same database, and without it.

    python -m tests.bench.archiving [--case c] [--rounds 3] [--paste]

Both in turns on one server. Beside the daemon runs ``esp-ingest lifecycle run`` as its unit starts it (nice 10), again
and again: after each run what it knows of its days and hours is forgotten, so that the next one gathers and archives
them anew. Days that are old enough are there from the start, and the first run drops them. At least one whole run must
end while the daemon is measured, or the bench fails. The harness compares what is stored with what was published, so a
lost reading ends the bench too. The ratio is that of the steady part (runs.py). Native TimescaleDB, Apache edition. Not
for CI."""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import runs
from tests.bench.cases import CASES
from tests.bench.paste import paste
from tests.bench.turns import in_turns
from tests.support.databases import Database

_ROOT = Path(__file__).resolve().parents[2]
_DAYS = (2, 3, 4, 40, 41)  # ago; the last two are old enough to be dropped
_FILL = """
INSERT INTO esp_telemetry ("timestamp", well_id, flow_rate, pip, motor_current, motor_temp, vibration, vsd_frequency,
    gor, received_at)
SELECT at, 'W-' || lpad(w::text, 3, '0'), 1800 + n % 97, 600 + n % 13, 40, 250 + n % 7, 0.1, 52, 420, at
FROM generate_series(0, 1439) AS n, generate_series(1, {wells}) AS w,
    LATERAL (SELECT date_trunc('day', now(), 'UTC') - INTERVAL '{day} days' + n * INTERVAL '1 minute' AS at) AS t
ON CONFLICT DO NOTHING
"""
# The days were stored by nobody who keeps well_newest: it is made right before the daemon is measured.
_FILLED = "SELECT refresh_well_newest()"
_AGAIN = "DELETE FROM archive_days; DELETE FROM aggregate_seen"


@dataclass
class Archiving:
    """The lifecycle beside a run of the daemon, and what it did meanwhile, in all rounds."""

    wells: int = 50
    ended: int = 0
    archived: int = 0
    dropped: int = 0
    failure: str = ""
    _stopped: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def on(self, database: Database) -> Iterator[None]:
        """Archive again and again while the block runs. Raises runs.Failed if a run failed, or if no run that archived,
        proved and dropped days came to its end meanwhile."""
        for day in _DAYS:
            database.run(_FILL.format(wells=self.wells, day=day))
        database.run(_FILLED)
        self._stopped.clear()
        ended, dropped = self.ended, self.dropped
        with tempfile.TemporaryDirectory(prefix="esp-bench-archive-") as folder:
            thread = threading.Thread(target=self._go_on, args=(database, Path(folder) / "archive"))
            thread.start()
            try:
                yield
            finally:
                self._stopped.set()
                thread.join()
        if self.failure:
            raise runs.Failed(self.failure)
        if self.ended == ended or self.dropped == dropped:
            raise runs.Failed(
                "no lifecycle run ended while the daemon was measured: the machine is too busy, or _DAYS are too many"
            )

    def _go_on(self, database: Database, archive: Path) -> None:
        command = [sys.executable, "-m", "esp_ingest", "lifecycle", "run", "--once"]
        environment = os.environ | {
            "ESP_INGEST_DATABASE__DSN": database.dsn,
            "ESP_INGEST_ARCHIVE__URL": str(archive),
            "OPENBLAS_NUM_THREADS": "1",
        }
        while not self._stopped.is_set():
            process = subprocess.Popen(
                ["nice", "-n", "10", *command],
                cwd=_ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            with process:
                while process.poll() is None and not self._stopped.wait(0.05):
                    pass
                has_ended = process.poll() is not None
                process.terminate()  # without effect on one that has ended
                said, _ = process.communicate(timeout=60)
            if not has_ended:
                return
            if process.returncode:
                self.failure = f"the lifecycle ended with {process.returncode}: {said[-300:]}"
                return
            self.archived += said.count("archived")
            self.dropped += said.count("dropped")
            self.ended += 1
            database.run(_AGAIN)
            shutil.rmtree(archive)


def measure(key: str, rounds: int) -> Iterator[str]:
    """Run both in turns and give the lines of the report."""
    case = next(each for each in CASES if each.key == key)
    lifecycle = Archiving()
    alone, beside = in_turns(case, rounds, lifecycle.on)
    yield "| | readings/s | p50 received → committed | p99 | of each round | p99 of whole runs | idle | load before |"
    yield "|---|---:|---:|---:|---|---:|---:|---:|"
    yield _row("alone", alone)
    yield _row("beside the archive", beside)
    ratios = [_p99(one) / _p99(other) for one, other in zip(beside, alone, strict=True)]
    listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    yield ""
    yield f"p99 beside the archive ÷ alone, within a round: median {statistics.median(ratios):.2f} ({listed})."
    yield f"p50 and p99 are those of the steady part, {runs.STEADY}."
    yield (
        f"Meanwhile {lifecycle.archived} days of {lifecycle.wells * 1440:,} readings were archived and proven, and "
        f"{lifecycle.dropped} dropped, in {lifecycle.ended} whole runs. Every published reading is stored."
    )


def _p99(found: runs.Measured) -> float:
    assert found.steady_seconds is not None
    return found.steady_seconds[1]


def _row(label: str, found: list[runs.Measured]) -> str:
    p50 = statistics.median((each.steady_seconds or (0.0, 0.0))[0] for each in found)
    whole = statistics.median((each.committed_seconds or (0.0, 0.0))[1] for each in found)
    cells = [
        f"{statistics.median(each.rate for each in found):,.0f}",
        f"{p50 * 1e3:.0f} ms",
        f"{statistics.median(map(_p99, found)) * 1e3:.0f} ms",
        ", ".join(f"{_p99(each) * 1e3:.0f}" for each in found),
        f"{whole * 1e3:.0f} ms",
        f"{statistics.median(each.idle_share for each in found):.0%}",
        f"{statistics.median(each.load_before for each in found):.1f}",
    ]
    return f"| {label} | {' | '.join(cells)} |"


def main() -> int:
    """Measure and print. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.archiving")
    parser.add_argument("--case", choices=("a", "c"), default="c", help="a: as fast as it goes; c: 10 000 readings/s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--paste", action="store_true", help="put the table into docs/performance.md")
    options = parser.parse_args()
    text = "\n".join(measure(options.case, options.rounds)) + "\n"
    sys.stdout.write(text)
    if options.paste:
        paste(text, f"archiving-{options.case}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
