"""How long a reading waits while the lifecycle archives, proves and drops days of the same database, and without it.

    python -m tests.bench.archiving [--case c] [--rounds 3] [--paste]

Both in turns on one server. Beside the daemon runs ``esp-ingest lifecycle run`` as its unit starts it (nice 10), again
and again: after each run the days are made unarchived, and dropped ones are filled anew. The harness compares what is
stored with what was published, so a lost reading ends the bench. Native TimescaleDB, Apache edition. Not for CI."""

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
_AGAIN = "DELETE FROM archive_days"


@dataclass
class Archiving:
    """The lifecycle beside a run of the daemon, and what it did meanwhile."""

    wells: int = 50
    ended: int = 0
    archived: int = 0
    dropped: int = 0
    _stopped: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def on(self, database: Database) -> Iterator[None]:
        """Archive again and again while the block runs."""
        self._fill(database, _DAYS)
        self._stopped.clear()
        with tempfile.TemporaryDirectory(prefix="esp-bench-archive-") as folder:
            thread = threading.Thread(target=self._go_on, args=(database, Path(folder) / "archive"))
            thread.start()
            try:
                yield
            finally:
                self._stopped.set()
                thread.join()

    def _go_on(self, database: Database, archive: Path) -> None:
        command = [sys.executable, "-m", "esp_ingest", "lifecycle", "run", "--once"]
        environment = os.environ | {
            "ESP_INGEST_DATABASE__DSN": database.dsn,
            "ESP_INGEST_ARCHIVE__URL": str(archive),
            "OPENBLAS_NUM_THREADS": "1",
        }
        while not self._stopped.is_set():
            process = subprocess.Popen(
                ["nice", "-n", "10", *command], cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True
            )
            with process:
                while process.poll() is None and not self._stopped.wait(0.05):
                    pass
                process.terminate()
                said, _ = process.communicate(timeout=60)
            self.archived += said.count("archived")
            self.dropped += said.count("dropped")
            if self._stopped.is_set():
                return
            if process.returncode:
                raise runs.Failed(f"the lifecycle ended with {process.returncode}: {said[-300:]}")
            self.ended += 1
            database.run(_AGAIN)
            shutil.rmtree(archive)
            self._fill(database, _DAYS[3:])

    def _fill(self, database: Database, days: tuple[int, ...]) -> None:
        for day in days:
            database.run(_FILL.format(wells=self.wells, day=day))


def measure(key: str, rounds: int) -> Iterator[str]:
    """Run both in turns and give the lines of the report."""
    case = next(each for each in CASES if each.key == key)
    lifecycle = Archiving()
    alone, beside = in_turns(case, rounds, lifecycle.on)
    yield "| | readings/s | p50 received → committed | p99 | p99 of each round | idle | load before |"
    yield "|---|---:|---:|---:|---|---:|---:|"
    yield _row("alone", alone)
    yield _row("beside the archive", beside)
    ratios = [_p99(one) / _p99(other) for one, other in zip(beside, alone, strict=True)]
    listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    yield ""
    yield f"p99 beside the archive ÷ alone, within a round: median {statistics.median(ratios):.2f} ({listed})."
    yield (
        f"Meanwhile {lifecycle.archived} days of {lifecycle.wells * 1440:,} readings were archived and proven, and "
        f"{lifecycle.dropped} dropped, in {lifecycle.ended} runs. Every published reading is stored, in every round."
    )


def _p99(found: runs.Measured) -> float:
    assert found.committed_seconds is not None
    return found.committed_seconds[1]


def _row(label: str, found: list[runs.Measured]) -> str:
    p50 = statistics.median((each.committed_seconds or (0.0, 0.0))[0] for each in found)
    cells = [
        f"{statistics.median(each.rate for each in found):,.0f}",
        f"{p50 * 1e3:.0f} ms",
        f"{statistics.median(map(_p99, found)) * 1e3:.0f} ms",
        ", ".join(f"{_p99(each) * 1e3:.0f}" for each in found),
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
