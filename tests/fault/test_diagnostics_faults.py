"""An occurrence over the death of the daemon and of the broker: raised once, told to consumers in order, never lost."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import PacketTypes, Properties

from esp_ingest.resources import config_file
from tests.support.brokers import Mosquitto
from tests.support.rig import Rig

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]


class Consumer:
    """A SCADA system: a persistent session on all diagnoses. ``heard``: what it was told, as it came."""

    def __init__(self, broker: Mosquitto, name: str = "scada") -> None:
        self.heard: list[dict[str, Any]] = []
        self._client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.username_pw_set("viewer", broker.password_of("viewer"))
        self._client.reconnect_delay_set(1, 1)
        self._client.on_message = lambda _, __, message: self.heard.append(json.loads(message.payload))
        self._client.on_connect = lambda client, *_: client.subscribe("esp/+/diagnostics", qos=1)
        kept = Properties(PacketTypes.CONNECT)
        kept.SessionExpiryInterval = 600
        self._client.connect(broker.host, broker.port, clean_start=False, properties=kept)
        self._client.loop_start()

    def states(self, diagnosis: str = "vibration") -> list[str]:
        """Each change once, by its id and revision, in the order in which it was heard first."""
        seen: dict[tuple[str, int], str] = {}
        for each in self.heard:
            if each["diagnosis"] == diagnosis:
                seen.setdefault((each["id"], each["revision"]), each["state"])
        return list(seen.values())

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Story:
    """A well whose recent past arrives at once, ten seconds a sample: rules run on the time of the samples."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._at_ms = time.time_ns() // 1_000_000 - 3_600_000

    def send(self, vibration: float, minutes: float) -> None:
        sender = self._rig.broker.publisher("W1")
        payloads = []
        for number in range(round(minutes * 6)):
            self._at_ms += 10_000
            signals = {
                "motor_current": 45 + number % 3 / 10,
                "vsd_frequency": 50,
                "vibration": vibration + number / 1e4,
            }
            payloads.append(json.dumps({"timestamp": self._at_ms} | signals))
        with sender:
            sender.publish_many("esp/W1/telemetry", payloads)


@pytest.fixture
def consumer(rig: Rig) -> Iterator[Consumer]:
    made = Consumer(rig.broker)
    yield made
    made.close()


def vibration(rig: Rig) -> list[tuple[Any, ...]]:
    return rig.database.all(
        "SELECT state, cleared_at IS NOT NULL FROM diagnostic_results WHERE diagnosis = 'vibration'"
    )


@pytest.mark.parametrize("share_group", ["", "group"])
def test_killed_between_raise_and_clear(rig: Rig, consumer: Consumer, share_group: str) -> None:
    rig.settings["MQTT__SHARE_GROUP"] = share_group
    rig.start_daemon()
    story = Story(rig)
    story.send(0.1, 3)
    story.send(0.6, 3)
    rig.await_that(lambda: vibration(rig), "raised", 20)
    rig.kill_daemon()
    assert vibration(rig) == [("unacknowledged", False)]
    story.send(0.6, 1)
    story.send(0.1, 20)
    rig.start_daemon()
    rig.await_that(lambda: vibration(rig) == [("returned-unacknowledged", True)], "cleared", 20)
    rig.await_that(lambda: len(consumer.states()) == 2, "told", 20)
    rig.run("alarms", "ack", "W1", "vibration", "--by", "operator", "--why", "bearing known")
    rig.await_that(lambda: len(consumer.states()) == 3, "told", 20)
    assert consumer.states() == ["unacknowledged", "returned-unacknowledged", "normal"]
    assert len({each["id"] for each in consumer.heard if each["diagnosis"] == "vibration"}) == 1
    late = Consumer(rig.broker, "latecomer")
    rig.await_that(lambda: late.heard, "retained", 10)
    late.close()
    assert [(each["state"], each["active"]) for each in late.heard] == [("normal", [])]
    rig.stop_daemon()
    assert rig.database.value("SELECT count(*) FROM diagnostics_outbox") == 0
    assert rig.database.value("SELECT count(*) FROM diagnostic_state") == 1


def test_broker_away_while_something_is_to_be_told(rig: Rig, consumer: Consumer) -> None:
    rig.start_daemon()
    story = Story(rig)
    story.send(0.1, 3)
    story.send(0.6, 3)
    rig.await_that(lambda: consumer.states() == ["unacknowledged"], "told", 20)
    rig.broker.stop()
    rig.run("alarms", "ack", "W1", "vibration", "--by", "operator")
    time.sleep(1)
    assert rig.database.value("SELECT count(*) FROM diagnostics_outbox") == 1
    rig.kill_daemon()
    rig.broker.start()
    rig.start_daemon()
    rig.await_that(lambda: consumer.states() == ["unacknowledged", "acknowledged"], "told", 30)
    rig.await_that(lambda: rig.database.value("SELECT count(*) FROM diagnostics_outbox") == 0, "confirmed", 20)
    rig.stop_daemon()


def test_rules_read_again_on_sighup(rig: Rig, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    text = config_file("rules.toml").read_text(encoding="utf-8")
    rules.write_text(text, encoding="utf-8")
    rig.settings["DIAGNOSTICS__RULES_FILE"] = str(rules)
    daemon = rig.start_daemon()
    rules.write_text(text + "[rules.nonsense]\nwhen = 'wind > 3'\n", encoding="utf-8")
    daemon.send(1)
    rig.await_that(lambda: "not reloaded" in rig.daemon_log(), "refused", 20)
    rules.write_text(text.replace('level = "0.5 in/s"', 'level = "0.3 in/s"'), encoding="utf-8")
    daemon.send(1)
    rig.await_that(lambda: '"rules reloaded"' in rig.daemon_log(), "reloaded", 20)
    assert rig.metric("diagnostics_reloads_total") == 2
    story = Story(rig)
    story.send(0.1, 3)
    story.send(0.4, 3)
    rig.await_that(lambda: vibration(rig), "raised by the new rule", 20)
    rig.stop_daemon()
