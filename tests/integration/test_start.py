"""What a start says about its surroundings, and with which exit code: spool folders, ports and settings."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from esp_ingest.commands import check
from esp_ingest.config.load import load
from esp_ingest.model import Delivery
from esp_ingest.store.spool.spool import Spool
from tests.support.databases import free_port

LEFT = [Delivery(b"esp/W1/telemetry", b"{}", 1, 1, 1, 1_700_000_000_000_000)]


def start(**settings: object) -> "subprocess.Popen[str]":
    """`esp-ingest run` with a broker and a database that are not there."""
    given = {"MQTT__PORT": 1, "DATABASE__DSN": "host=127.0.0.1 port=1", "HTTP__PORT": 0, **settings}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ESP_INGEST_")}
    environment |= {f"ESP_INGEST_{name}": str(value) for name, value in given.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "esp_ingest", "run"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def leave(folder: Path) -> None:
    spool = Spool(folder, 1_048_576, 65_536)
    spool.append(LEFT)
    spool.close()


@pytest.mark.parametrize("where", [".", "worker-0"])
def test_messages_in_a_spool_that_is_switched_off_are_told(tmp_path: Path, where: str) -> None:
    leave(tmp_path / where)
    line = check.spool(load(spool={"path": str(tmp_path), "enabled": False}))
    assert not line.ok
    assert f"{tmp_path} has acknowledged messages in 1 files" in line.detail

    with start(SPOOL__PATH=tmp_path, SPOOL__ENABLED="false") as daemon:
        assert daemon.stdout is not None
        told = []
        for text in daemon.stdout:
            told.append(json.loads(text))
            if told[-1]["event"] == "started":
                break
        with urllib.request.urlopen(f"http://127.0.0.1:{told[-1]['http_port']}/metrics", timeout=5) as answer:
            metrics = answer.read().decode()
        daemon.send_signal(signal.SIGTERM)
        daemon.communicate(timeout=30)
    assert "esp_ingest_spool_orphaned_files 1.0" in metrics
    (error,) = [line for line in told if line["level"] == "error"]
    assert (error["folder"], error["files"]) == (str(tmp_path), 1)


def test_an_empty_spool_that_is_switched_off_is_well(tmp_path: Path) -> None:
    assert check.spool(load(spool={"path": str(tmp_path), "enabled": False})).ok


@pytest.mark.parametrize("kind", ["file", "shared"])
def test_a_spool_folder_that_cannot_be_used_is_wrong_configuration(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "spool"
    if kind == "file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o1777)
    line = check.spool(load(spool={"path": str(folder)}))
    assert not line.ok, line
    with start(SPOOL__PATH=folder) as daemon:
        _, said = daemon.communicate(timeout=30)
    assert daemon.returncode == 2, said
    assert said.startswith(f"esp-ingest: The spool folder {folder} ")
    assert len(said.splitlines()) == 1


def test_a_port_in_use_may_be_free_at_the_next_start(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        start(SPOOL__PATH=tmp_path / "spool", HTTP__PORT=taken.getsockname()[1]) as daemon,
    ):
        _, said = daemon.communicate(timeout=30)
    assert daemon.returncode == 1, said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--since", "--until"])
@pytest.mark.parametrize("action", ["list", "replay"])
def test_a_senseless_time_is_refused_before_connecting(action: str, flag: str) -> None:
    environment = os.environ | {"ESP_INGEST_DATABASE__DSN": "host=127.0.0.1 port=1"}
    command = [sys.executable, "-m", "esp_ingest", "rejects", action, flag, "yesterday"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert found.returncode == 2, found.stderr
    assert "yesterday" in found.stderr


@pytest.mark.parametrize(
    ("setting", "value", "code", "says"),
    [
        ("DATABASE__DSN", "hunter2", 2, "database.dsn is not a connection string"),
        ("DIAGNOSTICS__RULES_FILE", "/nowhere/rules.toml", 2, "The rules file /nowhere/rules.toml cannot be read"),
        ("SPOOL__PATH", "/dev/null/spool", 2, "The spool folder /dev/null/spool cannot be used"),
    ],
)
def test_a_daemon_that_cannot_start_says_why_and_not_that_it_started(
    tmp_path: Path, setting: str, value: str, code: int, says: str
) -> None:
    chosen = {"SPOOL__PATH": str(tmp_path), "HTTP__PORT": "0", setting: value}
    environment = {"PATH": "/usr/bin:/bin"} | {f"ESP_INGEST_{name}": text for name, text in chosen.items()}
    command = [sys.executable, "-m", "esp_ingest", "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert '"started"' not in done.stdout
    assert done.returncode == code


def test_check_says_it_in_lines_and_nothing_beside(tmp_path: Path) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "ESP_INGEST_DATABASE__DSN": "hunter2",
        "ESP_INGEST_MQTT__PORT": str(free_port()),
        "ESP_INGEST_MQTT__CONNECT_TIMEOUT_SECONDS": "1",
        "ESP_INGEST_SPOOL__PATH": "/dev/null/spool",
    }
    command = [sys.executable, "-m", "esp_ingest", "check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.stderr == ""
    assert done.returncode == 2
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert lines["configuration"].split()[1] == "FAIL"
    assert "a writable folder" in lines["spool"]
    assert lines["rules"].split()[1] == "ok"
    assert "hunter2" not in done.stdout
