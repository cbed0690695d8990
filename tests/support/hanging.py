"""esp-ingest with parts that a test can bring to a stand. While the file named by HANGING says so, the "writer" or the
"pipeline" stands still; "network" ends the network thread.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esp_ingest import cli
from esp_ingest.ingest.pipeline import Pipeline
from esp_ingest.mqtt.source import MqttSource
from esp_ingest.store.write.writer import PostgresStore

_file = Path(os.environ["HANGING"])


def _hang(owner: type, method: str, part: str) -> None:
    """``method`` does not return while the file says ``part``."""
    original: Callable[..., Any] = getattr(owner, method)

    def hangs(*arguments: Any, **options: Any) -> Any:
        while _file.read_text() == part:
            time.sleep(0.05)
        return original(*arguments, **options)

    setattr(owner, method, hangs)


def _end_network_thread(source: MqttSource, *arguments: Any) -> None:
    if _file.read_text() == "network":
        raise SystemExit
    _on_turn(source, *arguments)


if __name__ == "__main__":
    _hang(PostgresStore, "begin", "writer")
    _hang(Pipeline, "run_once", "pipeline")
    _on_turn = MqttSource.on_turn
    setattr(MqttSource, "on_turn", _end_network_thread)  # noqa: B010 - mypy: a method, in this process alone
    raise SystemExit(cli.main())
