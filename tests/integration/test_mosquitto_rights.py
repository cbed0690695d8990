"""Who may do what at the broker: the shipped acl, and the alternative that binds client ids to users."""

import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from esp_ingest.model import Delivery
from esp_ingest.mqtt.publishing_connection import PublishingConnection
from esp_ingest.mqtt.source import MqttSource
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.metrics import Metrics
from tests.support.brokers import DAEMON, ROOT, Mosquitto
from tests.support.databases import free_port
from tests.support.waiting import until

PAYLOAD = b'{"timestamp":1764000000000,"pip":5}'


class TwoListeners(Mosquitto):
    """mosquitto.conf as it ships. ``port`` is the daemons'."""

    def __init__(self, folder: Path) -> None:
        self.controllers_port = free_port()
        super().__init__(folder)
        lines = (folder / "passwords").read_text(encoding="utf-8").splitlines(keepends=True)
        for name, is_daemon in (("passwords", False), ("passwords-daemons", True)):
            kept = [line for line in lines if line.startswith(f"{DAEMON}:") == is_daemon]
            (folder / name).write_text("".join(kept), encoding="utf-8")
            (folder / name).chmod(0o600)

    def _shipped(self) -> str:
        text = (ROOT / "mosquitto.conf").read_text(encoding="utf-8")
        for old, new, times in [
            (r"^listener 1883 127\.0\.0\.1$", f"listener {self.controllers_port} 127.0.0.1", 1),
            (r"^listener 1884 127\.0\.0\.1$", f"listener {self.port} 127.0.0.1", 1),
            (r"^(password_file|acl_file) /mosquitto/config/", rf"\1 {self.folder}/", 4),
            (r"^persistence_location /mosquitto/data/", f"persistence_location {self.folder}/data/", 1),
        ]:
            text, count = re.subn(old, new, text, flags=re.MULTILINE)
            assert count == times, old
        return text + ("\nuser root\n" if os.geteuid() == 0 else "\n")


@pytest.fixture
def two_listeners(tmp_path: Path) -> Iterator[TwoListeners]:
    with TwoListeners(tmp_path / "mosquitto") as broker:
        yield broker


class Client:
    """A client of some user on some port, under some id; ``refusal`` is why the broker did not let it in."""

    def __init__(self, broker: Mosquitto, port: int, user: str, client_id: str, *, clean: bool) -> None:
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5)
        self.client.username_pw_set(user, broker.password_of(user))
        self.received: list[bytes] = []
        self.answer: Any = None
        self.client.on_connect = self._connected
        self.client.on_message = lambda _client, _data, message: self.received.append(bytes(message.payload))
        self.client.connect(broker.host, port, clean_start=clean)
        self.client.loop_start()
        until(lambda: self.answer is not None)

    def _connected(self, _client: object, _data: object, _flags: object, reason: Any, _properties: object) -> None:
        self.answer = reason

    def publish(self, topic: str) -> None:
        self.client.publish(topic, PAYLOAD, 1).wait_for_publish(10)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def new_daemon(broker: Mosquitto, metrics: Metrics | None = None) -> MqttSource:
    source = MqttSource(broker.settings(), SystemClock(), metrics or Metrics())
    source.start()
    until(lambda: source.subscribed)
    return source


def has_found_its_session(caplog: pytest.LogCaptureFixture) -> bool:
    """Whether the newest connection of a daemon found its session at the broker."""
    return [record for record in caplog.records if record.msg == "mqtt connected"][-1].session_present


def payloads_of(source: MqttSource, count: int) -> list[bytes]:
    return [each.payload for each in taken_of(source, count)]


def taken_of(source: MqttSource, count: int) -> list[Delivery]:
    """At least so many, and what comes in the moment after them."""
    taken: list[Delivery] = []
    deadline = time.monotonic() + 10
    while len(taken) < count and time.monotonic() < deadline:
        taken += source.take(1000, 1_000_000, 0.05)
    return taken + source.take(1000, 1_000_000, 0.2)


@pytest.mark.parametrize("user", ["viewer", DAEMON])
def test_readers_write_no_telemetry_not_even_of_a_well_called_like_them(mosquitto: Mosquitto, user: str) -> None:
    daemon = new_daemon(mosquitto)
    reader = Client(mosquitto, mosquitto.port, user, "reader", clean=True)
    for topic in (f"esp/{user}/telemetry", "esp/W1/telemetry"):
        reader.publish(topic)
    reader.close()
    controller = Client(mosquitto, mosquitto.port, "W1", "W1", clean=True)
    controller.publish("esp/W2/telemetry")
    controller.publish("esp/W1/telemetry")
    controller.close()
    assert [each.topic for each in taken_of(daemon, 1)] == [b"esp/W1/telemetry"]
    daemon.close()


def test_a_controller_cannot_take_the_session_of_the_daemon(
    two_listeners: TwoListeners, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    broker = two_listeners
    new_daemon(broker).close()
    well = Client(broker, broker.controllers_port, "W1", "", clean=True)
    well.publish("esp/W1/telemetry")
    thief = Client(broker, broker.controllers_port, "W2", DAEMON, clean=True)
    assert not thief.answer.is_failure, "it is let in, as W2"
    time.sleep(0.3)
    assert thief.received == []
    thief.close()
    well.publish("esp/W1/telemetry")
    well.close()
    daemon = new_daemon(broker)
    assert has_found_its_session(caplog)
    assert payloads_of(daemon, 2) == [PAYLOAD, PAYLOAD]
    daemon.close()


def test_no_listener_takes_the_users_of_the_other(two_listeners: TwoListeners) -> None:
    broker = two_listeners
    for port, user in ((broker.port, "W2"), (broker.controllers_port, DAEMON)):
        client = Client(broker, port, user, DAEMON, clean=True)
        assert client.answer.is_failure, (port, user)
        client.close()


def test_with_two_listeners_the_queue_of_an_absent_daemon_outlives_the_broker(
    two_listeners: TwoListeners, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    broker = two_listeners
    new_daemon(broker).close()
    for _ in range(2):
        well = Client(broker, broker.controllers_port, "W1", "", clean=True)
        well.publish("esp/W1/telemetry")
        well.close()
        broker.restart()
    daemon = new_daemon(broker)
    assert has_found_its_session(caplog)
    assert payloads_of(daemon, 2) == [PAYLOAD, PAYLOAD]
    daemon.close()


def test_what_the_broker_dropped_is_a_metric_by_the_shipped_acl(tmp_path: Path) -> None:
    """A viewer that never comes back for its queue: Mosquitto drops what does not fit, and says so under $SYS."""
    metrics = Metrics()

    def dropped() -> float:
        labels = {"broker": f"{broker.host}:{broker.port}"}
        return metrics.registry.get_sample_value("esp_ingest_broker_messages_dropped", labels) or 0

    with Mosquitto(tmp_path / "mosquitto", extra="sys_interval 1\nmax_queued_messages 1\n") as broker:
        viewer = paho.Client(
            CallbackAPIVersion.VERSION2, "idle", clean_session=False, protocol=MQTTProtocolVersion.MQTTv311
        )
        viewer.username_pw_set("viewer", broker.password_of("viewer"))
        subscribed: list[object] = []
        viewer.on_subscribe = lambda *arguments: subscribed.append(arguments)
        viewer.on_connect = lambda *_: viewer.subscribe("esp/+/telemetry", qos=1)
        viewer.connect(broker.host, broker.port)
        viewer.loop_start()
        until(lambda: subscribed)
        viewer.disconnect()
        viewer.loop_stop()
        connection = PublishingConnection(broker.settings(), SystemClock(), metrics, lambda: "5")
        assert connection.connect()
        with broker.publisher() as well:
            well.publish_many("esp/W1/telemetry", [PAYLOAD] * 5)
        until(lambda: connection.turn(0.1) or dropped() >= 4)
        connection.close()
