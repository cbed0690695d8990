"""Every command that prints does so on a terminal of any encoding: what it does not have comes as words or escapes."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from esp_ingest.store.schema import migrate
from esp_ingest.store.write.writer import PostgresStore
from tests.support.databases import Database
from tests.support.store_data import readings, reject

ENCODINGS = ["ascii", "latin-1", "cp437", "utf-8"]


def printed(encoding: str, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ESP_INGEST_")}
    environment |= {"PYTHONIOENCODING": f"{encoding}:strict", "PYTHONUTF8": "0"}
    environment |= {f"ESP_INGEST_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "esp_ingest", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, encoding=encoding, errors="replace", timeout=120, check=False
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rules_are_explained(encoding: str) -> None:
    done = printed(encoding, "rules", "explain")
    assert (done.returncode, done.stderr) == (0, "")
    assert ("deg F" if encoding == "ascii" else "°F") in done.stdout
    assert printed(encoding, "rules", "check").returncode == 0


@pytest.mark.parametrize("name", ["", "demo", "rules explain"])
def test_help_is_printed(name: str) -> None:
    done = printed("ascii", *name.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def stored(timescaledb_apache: Database) -> Database:
    migrate(timescaledb_apache.settings)
    with timescaledb_apache.connect() as connection:
        connection.execute(
            "INSERT INTO diagnostic_results (timestamp, well_id, diagnosis, severity, state, value, threshold, peak,"
            " occurrences, confidence, message, actions, telemetry_snapshot) VALUES (now(), 'W1', 'motor_hot', 'high',"
            " 'unacknowledged', 1, 1, 1, 1, 1, 'Motor at 312 °F – above 300 °F, ☃', '[]', '{}')"
        )
    malformed = replace(
        reject(),
        topic="esp/Brunnen-Ä☃/telemetry".encode(),
        detail="the topic Ä☃ – is not one of ours",
        payload='{"ä": "☃", "\ud83d"}'.encode("utf-8", "surrogatepass"),
    )
    store = PostgresStore(timescaledb_apache.settings)
    store.write(readings([]), [malformed], [])
    store.close()
    return timescaledb_apache


@pytest.mark.parametrize("encoding", ["ascii", "cp437"])
def test_what_the_database_holds_is_printed(stored: Database, encoding: str) -> None:
    dsn = stored.settings.dsn.get_secret_value()

    def lines(*arguments: str) -> list[str]:
        done = printed(encoding, *arguments, DATABASE__DSN=dsn)
        assert (done.returncode, done.stderr) == (0, ""), arguments
        return done.stdout.splitlines()

    assert any("W1" in line for line in lines("alarms", "list"))
    (alarm,) = map(json.loads, lines("alarms", "list", "--json"))
    assert alarm["message"] == "Motor at 312 °F – above 300 °F, ☃"
    reject = next(line for line in lines("rejects", "list") if "invalid_json" in line)
    assert lines("rejects", "show", reject.split()[0])
    done = printed(encoding, "check", DATABASE__DSN=dsn, MQTT__PORT="1", MQTT__CONNECT_TIMEOUT_SECONDS="1")
    assert (done.returncode, done.stderr) == (1, "")
    assert "schema         ok" in done.stdout


@pytest.mark.parametrize("arguments", [["simulate", "--duration", "1"], ["rules", "explain", "nichts-Ä☃"]])
def test_errors_are_printed(arguments: list[str]) -> None:
    done = printed("ascii", *arguments, MQTT__PORT="1", MQTT__CONNECT_TIMEOUT_SECONDS="1")
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("esp-ingest: ")
    assert done.stderr.count("\n") == 1


def test_a_demo_is_printed() -> None:
    pytest.importorskip("iotcore")
    done = printed("ascii", "demo", "--duration", "3", "--wells", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
