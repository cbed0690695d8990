"""`esp-ingest check` against a broker: it leaves nothing behind, whenever it is killed, and disturbs no daemon."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from esp_ingest.mqtt.source import MqttSource
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.metrics import Metrics
from tests.support.brokers import DAEMON, ROOT, Mosquitto
from tests.support.proxy import Direction, TcpProxy


def check(mosquitto: Mosquitto, port: int) -> "subprocess.Popen[str]":
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ESP_INGEST_")}
    chosen = {
        "MQTT__PORT": str(port),
        "MQTT__USERNAME": DAEMON,
        "MQTT__PASSWORD": mosquitto.password_of(DAEMON),
        "DATABASE__DSN": "host=127.0.0.1 port=1",
    }
    environment = kept | {f"ESP_INGEST_{key}": value for key, value in chosen.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "esp_ingest", "check"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )


def until(condition: Callable[[], object], timeout_seconds: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def kept_by(mosquitto: Mosquitto) -> bytes:
    """The snapshot of the broker: sessions, subscriptions, queues."""
    mosquitto.save()
    return (mosquitto.folder / "data" / "mosquitto.db").read_bytes()


@pytest.mark.parametrize(
    ("pattern", "direction"),
    [(b"-check", "up"), (b"\x20", "down"), (b"esp/+/telemetry", "up"), (b"\x90", "down")],
    ids=["CONNECT", "CONNACK", "SUBSCRIBE", "SUBACK"],
)
def test_killed_at_any_packet_it_leaves_no_session(mosquitto: Mosquitto, pattern: bytes, direction: Direction) -> None:
    with TcpProxy(mosquitto.host, mosquitto.port) as proxy:
        process = check(mosquitto, proxy.port)
        proxy.watch(pattern, direction, lambda: process.send_signal(signal.SIGKILL))
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL, "the packet did not come by"
    until(lambda: "-check" in mosquitto.log())  # it may read the CONNECT after the process has died
    assert b"-check" not in kept_by(mosquitto)


def test_it_sees_the_broker_and_leaves_the_daemons_session_alone(mosquitto: Mosquitto) -> None:
    daemon = MqttSource(mosquitto.settings(), SystemClock(), Metrics())
    daemon.start()
    until(lambda: daemon.subscribed)
    checks = [check(mosquitto, mosquitto.port) for _ in range(2)]
    for each in checks:
        said, _ = each.communicate(timeout=30)
        assert "subscription granted" in said, "two at once do not end each other's connection"
    assert daemon.subscribed
    assert daemon._client.connection == daemon.connection
    assert mosquitto.log().count(f"as {DAEMON} (") == 1
    kept = kept_by(mosquitto)
    assert DAEMON.encode() in kept
    assert b"-check" not in kept
    daemon.close()
