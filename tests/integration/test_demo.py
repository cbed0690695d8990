"""The demo on its real parts: servers, daemon, simulator, and nothing left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import paho.mqtt.client as paho
import psycopg
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from esp_ingest.demo.servers import EmbeddedBroker, EmbeddedPostgres

CONSOLE = re.compile(r"console: (http://\S+?)/  user (\S+), password (\S+)")


def demo(*arguments: str, temporary: Path) -> "subprocess.Popen[str]":
    """The command in a process of its own, with a temporary folder of its own, so that we see what it leaves."""
    temporary.chmod(0o755)  # PostgreSQL runs as nobody when the tests run as root
    return subprocess.Popen(
        [sys.executable, "-m", "esp_ingest", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary), "ESP_INGEST_MQTT__HOST": "must.not.be.used.invalid"},
    )


@pytest.fixture
def temporary() -> Any:
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="esp-demo-test-"))  # pytest's own folders are closed to other users
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def nothing_left(temporary: Path) -> bool:
    """No file, and no process that was started from there or points at it."""
    mine = [
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and str(temporary).encode() in _command_line(entry)
    ]
    return not list(temporary.iterdir()) and not mine


def _command_line(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def eventually(condition: Any, seconds: float = 15.0) -> bool:
    for _ in range(int(seconds / 0.05)):
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())


def test_a_short_demo_adds_up_and_leaves_nothing(temporary: Path) -> None:
    process = demo("--duration", "10", "--wells", "4", "--json", temporary=temporary)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    totals = json.loads(output.strip().rpartition("\n")[2])
    assert set(totals) == {"published", "written", "duplicates", "rejected", "diagnostics"}
    assert totals["published"] == totals["written"] + totals["duplicates"] + totals["rejected"]
    assert totals["written"] > 3 * 22 * 60 * 0.9, "three wells, 22 hours, a sample a minute"
    assert totals["diagnostics"] > 0
    assert "gas_lock well-00001" in output or "well-00001 gas_lock" in output
    assert eventually(lambda: nothing_left(temporary))


def test_the_console_is_there_while_it_plays(temporary: Path) -> None:
    process = demo("--duration", "30", "--wells", "4", temporary=temporary)
    assert process.stdout is not None
    found = next((match for line in process.stdout if (match := CONSOLE.search(line))), None)
    assert found is not None, "its first lines say where"
    url, user, password = found.groups()
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        assert "<title>esp-ingest</title>" in client.get("/").text
        signed = client.post("/api/v1/auth/token", data={"username": user, "password": password}).json()
        client.headers["Authorization"] = f"Bearer {signed['access_token']}"
        assert client.get("/api/v1/me").json()["role"] == "operator"
        assert eventually(lambda: client.get("/api/v1/fleet").json()["wells"] == 4, 30)
        assert client.get("/api/v1/fleet").json()["states"]["silent"] == 0, "a day in fast motion is not silent"
        assert client.get("/api/v1/daemon").json()["status"] == "ok"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert eventually(lambda: nothing_left(temporary))


def test_a_recording_is_replayed_and_adds_up(temporary: Path, tmp_path: Path) -> None:
    recording = tmp_path / "recording.csv"
    lines = [
        f"2013-06-11T{hour:02}:{minute:02}:00Z,W1,{500 + minute},6200.5" for hour in range(3) for minute in range(60)
    ]
    recording.write_text("timestamp,well_id,pip,motor_temp\n" + "\n".join(lines) + "\n")
    process = demo("--duration", "4", "--csv", str(recording), "--json", temporary=temporary)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    totals = json.loads(output.strip().rpartition("\n")[2])
    assert (totals["published"], totals["written"], totals["rejected"]) == (180, 180, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_clean_with_a_summary(temporary: Path, number: signal.Signals) -> None:
    process = demo("--duration", "600", "--wells", "2", temporary=temporary)
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if " s a calm day" in line or "fast motion" in line:
            break
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, seen + output
    assert "Everything adds up" in output
    assert eventually(lambda: nothing_left(temporary))


def test_sigkill_leaves_no_process_behind(temporary: Path) -> None:
    process = demo("--duration", "600", "--wells", "2", temporary=temporary)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready"):
            break
    process.kill()
    process.communicate(timeout=60)
    # The demo's own folder cannot be removed by a process that was killed; the servers' folders are.
    assert eventually(lambda: [path.name[:16] for path in temporary.iterdir()] == ["esp-ingest-demo-"], 40)


def test_postgres_is_of_this_process_alone() -> None:
    with EmbeddedPostgres() as server:
        with psycopg.connect(server.dsn) as connection:
            version, listening = connection.execute(
                "SELECT current_setting('server_version_num')::int, current_setting('listen_addresses')"
            ).fetchone() or (0, "?")
        folder = Path(psycopg.conninfo.conninfo_to_dict(server.dsn)["host"])  # type: ignore[arg-type]
        assert folder.exists()
    assert version >= 180_000
    assert listening == ""
    assert not folder.exists()


@pytest.mark.parametrize("protocol", [MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311])
def test_the_broker_speaks_both_versions_and_takes_large_payloads(protocol: MQTTProtocolVersion) -> None:
    got: list[int] = []
    with EmbeddedBroker() as broker:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="test", protocol=protocol)
        client.on_message = lambda _client, _data, message: got.append(len(message.payload))
        client.on_connect = lambda client, *_: client.subscribe("esp/+/telemetry", 1)
        client.on_subscribe = lambda client, *_: client.publish("esp/w/telemetry", b"x" * 1_000_000, 1)
        client.connect(broker.host, broker.port if protocol == MQTTProtocolVersion.MQTTv5 else broker.port_v311)
        client.loop_start()
        assert eventually(lambda: got == [1_000_000])
        client.disconnect()
        client.loop_stop()
