"""Who runs: the daemon, and what one would use instead. All are a command that takes a broker and a database."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.bench.servers import Broker, environment
from tests.support.brokers import DAEMON as USER
from tests.support.databases import Database

_HERE = Path(__file__).parent
_ROOT = _HERE.parent.parent
MQ_BRIDGE_VERSION = "1.2.0"


@dataclass(frozen=True, slots=True)
class Competitor:
    """``share`` of the input that it gets, so that slow ones end in reasonable time; the rate does not depend on it.

    ``settles_bad_input``: it can live with rejects and duplicates."""

    name: str
    kind: str
    workers: int = 1
    share: float = 1.0
    settles_bad_input: bool = True
    writes_received_at: bool = True
    folder: Path = _ROOT  # whose program runs: another checkout is another competitor
    settings: tuple[tuple[str, str], ...] = ()  # environment overrides

    @property
    def answers_http(self) -> bool:
        """It has health checks and metrics on the port it was given; several workers have one each."""
        return self.kind == "daemon" and self.workers == 1

    def start(self, broker: Broker, database: Database) -> subprocess.Popen[bytes]:
        """The process, started. Its log is in the broker's folder."""
        log = (broker.folder / f"{self.kind}.log").open("ab")
        with log:
            chosen = environment(broker, database) | dict(self.settings)
            return subprocess.Popen(
                self._command(broker, database), cwd=self.folder, env=chosen, stdout=log, stderr=log
            )

    def _command(self, broker: Broker, database: Database) -> list[str]:
        if self.kind == "daemon":
            workers = ["--workers", str(self.workers)] if self.workers > 1 else []
            return [sys.executable, "-m", "esp_ingest", "run", *workers]
        where = ["--port", str(broker.port), "--dsn", database.dsn]
        where += ["--user", USER, "--password", broker.password_of(USER)]
        if self.kind == "baseline":
            return [sys.executable, "-m", "tests.bench.baseline", *where]
        return [str(mq_bridge_python()), str(_HERE / "mqbridge.py"), *where]


DAEMON = Competitor("esp-ingest", "daemon")
TWO_WORKERS = Competitor("esp-ingest --workers 2", "daemon", workers=2)
MQ_BRIDGE = Competitor(
    f"mq-bridge {MQ_BRIDGE_VERSION}",
    "mq-bridge",
    settles_bad_input=False,
    writes_received_at=False,
)
BASELINE = Competitor("obvious design", "baseline", share=0.2)


def mq_bridge_python() -> Path:
    """An interpreter that has mq-bridge: this one, else an environment of its own, made once."""
    try:
        import mq_bridge  # noqa: F401 - asked for its presence

        return Path(sys.executable)
    except ImportError:
        pass
    folder = Path.home() / ".cache" / "esp-ingest-bench" / f"mq-bridge-{MQ_BRIDGE_VERSION}"
    python = folder / "bin" / "python"
    if not (folder / ".complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", f"mq-bridge=={MQ_BRIDGE_VERSION}"]
        subprocess.run(install, check=True)
        (folder / ".complete").touch()
    return python
