"""The simulator against a real broker: each message acknowledged and received once, and refusals are not success."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from esp_ingest.config.settings import Settings
from esp_ingest.demo.fleet import Fleet
from esp_ingest.demo.simulator import Publisher, SimulatorError, Totals, fleet_messages, publish, run_simulate
from esp_ingest.service.clock import SystemClock
from tests.support.brokers import DAEMON, Mosquitto
from tests.unit.test_simulator import arguments


class Listener:
    """Reads all telemetry of a broker as the daemon would; ``received`` holds (topic, payload)."""

    def __init__(self, broker: Mosquitto) -> None:
        self.received: list[tuple[str, bytes]] = []
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.username_pw_set(DAEMON, broker.password_of(DAEMON))
        self._client.on_message = lambda _c, _u, message: self.received.append((message.topic, message.payload))
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        self._client.subscribe("esp/+/telemetry", 1)
        assert self._subscribed.wait(10)

    def wait_for(self, count: int) -> list[tuple[str, bytes]]:
        deadline = time.monotonic() + 20
        while len(self.received) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # one too many would show
        return self.received

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker(tmp_path: Any) -> Iterator[Mosquitto]:
    """One at which a single login may publish for a whole fleet."""
    broker = Mosquitto(tmp_path / "mosquitto")
    (tmp_path / "mosquitto" / "acl").write_text("pattern readwrite #\n")
    with broker:
        yield broker


@pytest.fixture
def listener(broker: Mosquitto) -> Iterator[Listener]:
    listener = Listener(broker)
    yield listener
    listener.close()


@pytest.mark.parametrize("protocol", ["auto", "3.1.1"])
def test_each_message_arrives_once(
    broker: Mosquitto, listener: Listener, protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(mqtt=broker.settings(protocol=protocol))
    given = arguments(wells=50, rate=20.0, duration=1.0, fault=["gas_lock"], malformed=0.05, duplicates=0.05, late=0.1)
    started = time.monotonic()
    assert run_simulate(settings, given) == 0
    assert 0.8 < time.monotonic() - started < 10  # paced, and late ones do not hold up the end
    out = capsys.readouterr().out
    published = int(out.split("published ")[1].split(",")[0])
    duplicates = int(out.split("duplicates ")[1].split(",")[0])
    assert published == 1_000 + duplicates
    assert f"acknowledged {published}, refused 0" in out
    assert "sim-00000: gas_lock" in out
    received = listener.wait_for(published)
    assert len(received) == published
    assert len({topic for topic, _ in received}) == 50


def test_as_fast_as_the_broker_takes_it(broker: Mosquitto, listener: Listener) -> None:
    messages = [message._replace(due_seconds=0.0) for message in fleet_messages(Fleet(100), 60)]
    totals = Totals()
    clock = SystemClock()
    with Publisher(broker.settings(), clock) as publisher:
        assert publish(messages, publisher, totals, clock)
    assert (totals.published, totals.acknowledged) == (6_000, 6_000)
    received = listener.wait_for(6_000)
    assert sorted(received) == sorted((message.topic, message.payload) for message in messages)


def test_a_broker_that_refuses_is_an_error(tmp_path: Any) -> None:
    with Mosquitto(tmp_path / "mosquitto") as broker:
        settings = Settings(mqtt=broker.settings(username="W1", password=broker.password_of("W1")))
        with pytest.raises(SimulatorError, match=r"refused 20 of 20 messages \(Not authorized\): check mqtt.username"):
            run_simulate(settings, arguments())


def test_the_shipped_rights_have_lines_for_the_simulator(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """As config/mosquitto/README.md says: the comment signs off, and a user."""
    broker = Mosquitto(tmp_path / "mosquitto", users=("simulator",))
    acl = tmp_path / "mosquitto" / "acl"
    shipped = acl.read_text(encoding="utf-8")
    lines = "#user simulator\n#topic write esp/+/telemetry\n"
    assert lines in shipped
    acl.write_text(shipped.replace(lines, lines.replace("#", "")), encoding="utf-8")
    with broker:
        listener = Listener(broker)
        settings = Settings(mqtt=broker.settings(username="simulator", password=broker.password_of("simulator")))
        assert run_simulate(settings, arguments()) == 0
        assert "acknowledged 20, refused 0" in capsys.readouterr().out
        assert len(listener.wait_for(20)) == 20
        listener.close()


def test_a_wrong_password_is_an_error(broker: Mosquitto) -> None:
    settings = Settings(mqtt=broker.settings(password="wrong"))  # type: ignore[arg-type]
    with pytest.raises(SimulatorError, match=r"No connection to the broker .*Not authorized"):
        run_simulate(settings, arguments())


def test_a_broker_that_restarts_gets_the_rest(broker: Mosquitto) -> None:
    clock = SystemClock()
    totals = Totals()
    messages = list(fleet_messages(Fleet(20, interval_seconds=0.1), 20))
    with Publisher(broker.settings(), clock) as publisher:
        restart = threading.Timer(0.5, broker.restart)
        restart.start()
        assert publish(messages, publisher, totals, clock)
        restart.join()
    assert totals.acknowledged == totals.published == 400


def test_it_can_be_stopped(broker: Mosquitto) -> None:
    clock = SystemClock()
    totals = Totals()
    with Publisher(broker.settings(), clock) as publisher:
        until = clock.monotonic() + 0.5
        assert not publish(
            fleet_messages(Fleet(20), 1_000), publisher, totals, clock, stop=lambda: clock.monotonic() > until
        )
    assert 0 < totals.published < 40
    assert totals.acknowledged == totals.published
