"""The files that ship beside the code, and the programs that check them."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from esp_ingest.service.metrics import ApiMetrics, LifecycleMetrics, Metrics
from tests.support.databases import TRIXIE

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config"
RUNBOOKS = ROOT / "docs/runbooks"


def text_of(name: str) -> str:
    """A file of the checkout."""
    return (ROOT / name).read_text(encoding="utf-8")


def panels(board: str) -> list[dict[str, Any]]:
    """Of a board for Grafana."""
    found: list[dict[str, Any]] = json.loads(text_of(f"config/grafana/{board}.json"))["panels"]
    return found


def expressions() -> list[str]:
    """Every query of the operators' board."""
    return [target["expr"] for panel in panels("esp-ingest") for target in panel.get("targets", ())]


def linter(name: str, package: str) -> str:
    """Where the program is: on the path, or in Debian 13's folder. Without it the test is skipped, in CI it fails."""
    found = shutil.which(name) or shutil.which(name, path=str(TRIXIE / "usr/bin"))
    if found is None and os.environ.get("CI") == "true":
        pytest.fail(f"no {name}: apt-get install {package}")
    if found is None:
        pytest.skip(f"no {name}: apt-get install {package}")
    return found


def passes(*command: str, cwd: Path = ROOT) -> str:
    """What the command prints; it has to exit with 0."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def metric_names(expression: str) -> set[str]:
    """The metrics that a PromQL expression asks for."""
    return set(re.findall(r"\b(?:esp_ingest|process)_[a-z_]+", expression))


def existing_names() -> set[str]:
    """Every series name that one of the pages for Prometheus can show, buckets, sums and counts included."""
    names = set(re.findall(r"^(process_\w+)", Metrics().render().decode(), re.MULTILINE))
    for catalogue in (Metrics().catalogue, ApiMetrics().catalogue, LifecycleMetrics().catalogue):
        for info in catalogue:
            ends = ("_bucket", "_sum", "_count") if info.kind == "histogram" else ()
            names |= {info.name, *(info.name + end for end in ends)}
    return names
