"""Start-up: how long the import takes, and how soon the process answers that it is live with nothing at hand."""

import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tests.bench.processes import installed_environment, rss_bytes
from tests.support.databases import free_port

_PROGRAM = """
import time
wall, cpu = time.perf_counter(), time.process_time()
import esp_ingest.daemon
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


@dataclass(frozen=True, slots=True)
class Startup:
    """Medians of the rounds, in seconds (``import_cpu_seconds`` does not suffer from a busy machine); memory of an idle
    daemon in bytes."""

    import_seconds: float
    import_cpu_seconds: float
    live_seconds: float
    idle_rss_bytes: int


def measure(rounds: int = 5) -> Startup:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _import(folder)  # compiles
        imports = [_import(folder) for _ in range(rounds)]
        _time_to_live(folder)
        lives = [_time_to_live(folder) for _ in range(rounds)]
    return Startup(
        statistics.median(wall for wall, _ in imports),
        statistics.median(cpu for _, cpu in imports),
        statistics.median(seconds for seconds, _ in lives),
        round(statistics.median(rss for _, rss in lives)),
    )


def _import(folder: Path) -> tuple[float, float]:
    command = [sys.executable, "-c", _PROGRAM]
    wall, cpu = subprocess.check_output(command, env=installed_environment(folder / "pycache"), text=True).split()
    return float(wall), float(cpu)


def _time_to_live(folder: Path) -> tuple[float, int]:
    """From the start of the process to the first 200 of /health/live, with no broker and no database."""
    port = free_port()
    environment = installed_environment(folder / "pycache") | {
        "ESP_INGEST_HTTP__PORT": str(port),
        "ESP_INGEST_MQTT__PORT": str(free_port()),
        "ESP_INGEST_DATABASE__DSN": f"postgresql://nobody@127.0.0.1:{free_port()}/nothing",
        "ESP_INGEST_SPOOL__PATH": str(folder / "spool"),
    }
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "esp_ingest", "run"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not _live(port):
            if process.poll() is not None or time.monotonic() - began > 30:
                raise RuntimeError("the daemon did not get live without a broker and a database")
            time.sleep(0.005)
        return time.monotonic() - began, rss_bytes(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def _live(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=1) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
