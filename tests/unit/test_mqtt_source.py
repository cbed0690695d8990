"""The session against a scripted broker: the contract of every Source, and what no real broker does on request."""

import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from esp_ingest.config.settings import ConfigError, MqttSettings
from esp_ingest.mqtt import network
from esp_ingest.mqtt.client_setup import session_file
from esp_ingest.mqtt.source import MqttSource
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.metrics import Metrics
from tests.support.fake_broker import (
    CONNACK,
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PUBACK,
    SUBACK,
    SUBSCRIBE,
    UNSUBSCRIBE,
    Connection,
    FakeBroker,
    Packet,
    filters_of,
    packet,
    publish,
)
from tests.support.fake_clock import FakeClock
from tests.support.fake_source import BrokerSession, FakeSource
from tests.unit.contract_source import LARGE, TOPIC, Harness, SourceContract, take

SourceFactory = Callable[..., MqttSource]


def mqtt(broker: FakeBroker, **overrides: object) -> MqttSettings:
    given = {
        "host": broker.host,
        "port": broker.port,
        "connect_timeout_seconds": 2.0,
        "reconnect_min_seconds": 0.01,
        "reconnect_max_seconds": 0.05,
    }
    return MqttSettings(**(given | overrides))


def until(condition: Callable[[], object], timeout_seconds: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as fake:
        yield fake


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def new_source(broker: FakeBroker, metrics: Metrics) -> Iterator[SourceFactory]:
    made: list[MqttSource] = []

    def new(*, state_folder: Path | None = None, on: FakeBroker = broker, **overrides: object) -> MqttSource:
        source = MqttSource(mqtt(on, **overrides), SystemClock(), metrics, state_folder)
        made.append(source)
        source.start()
        return source

    yield new
    for source in made:
        source.close()


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"esp_ingest_{name}", labels) or 0.0


# -- The contract, twice.


class FakeHarness:
    def __init__(self) -> None:
        self.session = BrokerSession()
        self.fake = FakeSource(FakeClock(), self.session)
        self.source = self.fake
        self.break_connection = self.fake.break_connection
        self.stop_receiving = self.fake.stop_receiving

    def publish(self, *payloads: bytes, topic: bytes | str = TOPIC, qos: int = 1) -> None:
        for payload in payloads:
            self.session.publish(topic, payload, qos)


class TestFakeSource(SourceContract):
    @pytest.fixture
    def harness(self) -> Harness:
        return FakeHarness()


class RealHarness:
    """MqttSource on a FakeBroker that serves a BrokerSession."""

    def __init__(self, broker: FakeBroker, source: MqttSource) -> None:
        self.session = BrokerSession()
        self.source = source
        self._broker = broker
        broker.on_packet = self._note
        self.stop_receiving = source.stop_receiving

    def publish(self, *payloads: bytes, topic: bytes | str = TOPIC, qos: int = 1) -> None:
        for payload in payloads:
            self.session.publish(topic, payload, qos)
        until(lambda: self.source.subscribed)
        self._pump(self._broker.connections[-1])

    def break_connection(self, *, session_kept: bool = True) -> None:
        old = self._broker.connections[-1]
        self._broker.session_present = session_kept
        old.close()
        until(lambda: len(self._broker.connections) > old.number and self.source.subscribed)
        self.session.reconnected(kept=session_kept)
        self._pump(self._broker.connections[-1])

    def _note(self, connection: Connection, received: Packet) -> None:
        if received.kind == PUBACK and connection is self._broker.connections[-1]:
            assert self.session.acknowledge(received.packet_id)
            self._pump(connection)

    def _pump(self, connection: Connection) -> None:
        while out := self.session.next_out():
            packet_id, message = out
            connection.send(
                publish(message.topic, message.payload, qos=message.qos, packet_id=packet_id, dup=message.packet_id > 0)
            )


class TestMqttSource(SourceContract):
    @pytest.fixture
    def harness(self, broker: FakeBroker, new_source: SourceFactory) -> Harness:
        source = new_source()
        until(lambda: source.subscribed)
        return RealHarness(broker, source)


# -- What goes out.


def test_connect_keeps_the_session_and_sets_the_window(broker: FakeBroker, new_source: SourceFactory) -> None:
    new_source(client_id="the-daemon", receive_maximum=1_234, session_expiry_seconds=3_600, keepalive_seconds=7)
    body = broker.connection().of(CONNECT)[0].body
    assert body[6] == 5
    assert body[7] & 0x02 == 0, "clean start would wipe the session"
    assert int.from_bytes(body[8:10], "big") == 7
    assert b"\x11\x00\x00\x0e\x10" in body, "session expiry interval"
    assert b"\x21\x04\xd2" in body, "receive maximum"
    assert b"\x22" not in body[11 : 11 + body[10]], "a topic alias maximum would allow aliases"
    assert b"the-daemon" in body


def test_the_subscription_asks_for_qos_1_and_no_retained_messages(
    broker: FakeBroker, new_source: SourceFactory
) -> None:
    new_source(topic_root="field")
    (subscribe,) = broker.connection().wait_for(SUBSCRIBE)
    assert filters_of(subscribe, True) == ["field/+/telemetry"]
    assert subscribe.body[-1] == 0x21, "QoS 1, retain handling 2"


def test_a_share_group_is_in_the_filter(broker: FakeBroker, new_source: SourceFactory) -> None:
    new_source(share_group="ingest")
    (subscribe,) = broker.connection().wait_for(SUBSCRIBE)
    assert filters_of(subscribe, True) == ["$share/ingest/esp/+/telemetry"]


def test_close_says_goodbye_and_keeps_the_session(broker: FakeBroker, new_source: SourceFactory) -> None:
    source = new_source()
    until(lambda: source.subscribed)
    connection = broker.connection()
    connection.send(publish(TOPIC.encode(), b"a", packet_id=3))
    assert source.settle(take(source, 1)) == 1
    source.close()
    assert [each.kind for each in connection.packets] == [CONNECT, SUBSCRIBE, PUBACK, DISCONNECT]
    assert connection.of(DISCONNECT)[0].body == b"", "no session expiry of its own: that of CONNECT stays"
    assert not source.network_thread_alive()
    source.close()


def test_the_last_acknowledgements_arrive_while_messages_pour_in(broker: FakeBroker, new_source: SourceFactory) -> None:
    source = new_source()
    until(lambda: source.subscribed)
    connection = broker.connection()
    connection.send(b"".join(publish(TOPIC.encode(), b"x" * 500, packet_id=packet_id) for packet_id in range(1, 2_001)))
    taken = take(source, 2_000)
    source.stop_receiving()
    connection.send(
        b"".join(publish(TOPIC.encode(), b"x" * 500, packet_id=packet_id) for packet_id in range(2_001, 4_001))
    )
    assert source.settle(taken) == 2_000
    source.close()
    connection.wait_until(lambda: not connection.is_open)
    assert connection.acknowledged() == list(range(1, 2_001))
    assert connection.packets[-1].kind == DISCONNECT


# -- The broker refuses.


def test_a_refused_subscription_is_told_and_tried_again(
    broker: FakeBroker, new_source: SourceFactory, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answers = [b"\x87", b"\x80", b"\x00", b"\x01"]
    broker.suback = lambda _, received: packet(SUBACK, received.body[:2] + b"\0" + answers[0])
    source = new_source(username="someone", password=SecretStr("x"))
    until(lambda: source.last_error)
    assert not source.subscribed
    assert source.connected
    assert source.last_error == (
        "The subscription to esp/+/telemetry was refused (Not authorized): "
        "let user someone read it at QoS 1 in the broker's access list."
    )
    answers.pop(0)
    answers.pop(0)
    until(lambda: "QoS 0 only" in source.last_error)
    assert not source.subscribed
    assert value(metrics, "mqtt_subscribed") == 0
    answers.pop(0)
    until(lambda: source.subscribed and source.last_error == "")  # another thread sets both
    assert value(metrics, "mqtt_subscribed") == 1
    assert caplog.messages.count("mqtt subscription accepted") == 1
    assert len(broker.connections) == 1


@pytest.mark.parametrize(("share_group", "is_subscribed"), [("esp", False), ("", True)])
def test_a_broker_that_says_it_has_no_share_groups_and_grants_one(
    broker: FakeBroker, new_source: SourceFactory, metrics: Metrics, share_group: str, is_subscribed: bool
) -> None:
    """RabbitMQ 4.0 does, and delivers nothing."""
    broker.connack = lambda _, __: packet(CONNACK, b"\0\0\2\x2a\0")
    source = new_source(share_group=share_group)
    until(lambda: source.subscribed if is_subscribed else source.last_error)
    assert source.subscribed == is_subscribed
    assert value(metrics, "mqtt_subscribed") == is_subscribed
    assert ("has no share groups" in source.last_error) == (not is_subscribed)


def test_a_refused_login_is_one_sentence(broker: FakeBroker, new_source: SourceFactory) -> None:
    broker.connack = lambda _, __: packet(CONNACK, b"\0\x86\0")
    source = new_source(username="esp-ingest", password=SecretStr("wrong"))
    until(lambda: source.last_error)
    assert "refused the login of user esp-ingest (Bad user name or password)" in source.last_error
    assert "wrong" not in source.last_error
    until(lambda: len(broker.connections) >= 3)


@pytest.mark.parametrize("answer", [b"\0\x84\0", b"\0\1"], ids=["reason code 0x84", "return code 1 of 3.1.1"])
def test_a_broker_without_mqtt_5_gets_3_1_1_and_one_warning(
    broker: FakeBroker, new_source: SourceFactory, caplog: pytest.LogCaptureFixture, answer: bytes
) -> None:
    broker.connack = lambda connection, _: packet(CONNACK, answer if connection.version == 5 else b"\0\0")
    source = new_source()
    until(lambda: source.subscribed)
    assert source.protocol == "3.1.1"
    connection = broker.connections[-1]
    assert connection.of(CONNECT)[0].body[6] == 4
    assert connection.of(CONNECT)[0].body[7] & 0x02 == 0, "clean session would wipe the session"
    connection.send(publish(TOPIC.encode(), b"a", packet_id=8, properties=None))
    assert source.settle(take(source, 1)) == 1
    connection.wait_for(PUBACK)
    connection.close()
    until(lambda: source.subscribed and broker.connections[-1] is not connection)
    assert caplog.messages.count("mqtt 3.1.1 in use, the broker refuses 5") == 1


def test_a_broker_that_hangs_up_on_mqtt_5_gets_3_1_1(broker: FakeBroker, new_source: SourceFactory) -> None:
    def connack(connection: Connection, _: Packet) -> bytes | None:
        if connection.version == 5:
            connection.close()
            return None
        return packet(CONNACK, b"\0\0")

    broker.connack = connack
    source = new_source()
    until(lambda: source.subscribed)
    assert [each.version for each in broker.connections] == [5, 5, 4]


def test_a_fixed_protocol_stays(broker: FakeBroker, new_source: SourceFactory) -> None:
    broker.connack = lambda _, __: packet(CONNACK, b"\0\x84\0")
    source = new_source(protocol="5")
    until(lambda: len(broker.connections) >= 4)
    assert {each.version for each in broker.connections if each.version} == {5}
    assert source.last_error.startswith("The broker does not speak MQTT 5:")


def test_a_broker_that_does_not_answer_connect_is_left(broker: FakeBroker, new_source: SourceFactory) -> None:
    broker.connack = lambda _, __: None
    source = new_source(connect_timeout_seconds=0.1)
    until(lambda: len(broker.connections) >= 2)
    assert "did not answer CONNECT in time" in source.last_error


def test_a_broker_that_does_not_answer_subscribe_is_left(broker: FakeBroker, new_source: SourceFactory) -> None:
    broker.suback = lambda _, __: None
    source = new_source(connect_timeout_seconds=0.1)
    until(lambda: len(broker.connections) >= 2)
    assert "did not answer SUBSCRIBE in time" in source.last_error


class NotingClock(SystemClock):
    """Keeps what it was asked to sleep, seconds."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        super().sleep(seconds)


def test_what_comes_in_small_pieces_is_gathered_for_longer_than_what_comes_in_large_ones(
    broker: FakeBroker, metrics: Metrics
) -> None:
    clock = NotingClock()
    slept = clock.slept
    source = MqttSource(mqtt(broker), clock, metrics)
    source.start()
    try:
        until(lambda: source.subscribed)
        at = len(slept)
        for packet_id, size in ((1, 10), (2, 10), (3, network.LITTLE_BYTES), (4, 10), (5, 10)):
            broker.connection().send(publish(b"esp/w/telemetry", b"x" * size, packet_id=packet_id))
            until(lambda: source.take(10, 1_000_000, 0.05))
        little, much = network.GATHER_LITTLE_SECONDS, network.GATHER_SECONDS
        assert slept[at:] == [little, little, little, much, little]
    finally:
        source.close()


def test_after_a_turn_that_left_something_unread_nothing_is_waited_for(
    broker: FakeBroker, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esp_ingest.mqtt.client.RECV_BYTES", 2_000)
    clock = NotingClock()
    slept = clock.slept
    source = MqttSource(mqtt(broker), clock, metrics)
    source.start()
    try:
        until(lambda: source.subscribed)
        at = len(slept)
        broker.connection().send(publish(b"esp/w/telemetry", b"x" * 200_000))
        until(lambda: source.take(10, 1_000_000, 0.05))
        assert 1 <= len(slept) - at < 20, "a hundred reads, of which few found the socket empty"
    finally:
        source.close()


@pytest.mark.parametrize(
    ("size", "seconds", "gathered"),
    [
        (0, 0.0, network.GATHER_LITTLE_SECONDS),
        (200, 1.0, network.GATHER_LITTLE_SECONDS),  # a message now and then
        (2_000, 0.008, network.GATHER_LITTLE_SECONDS),  # 1 200 messages a second
        (16_400, 0.008, network.GATHER_STREAM_SECONDS),  # 10 000
        (32_800, 0.016, network.GATHER_STREAM_SECONDS),  # and they go on
        (40_000, 0.008, 0.00983),  # 24 000: so that LITTLE_BYTES come
        (40_000, 0.002, network.GATHER_SECONDS),
        (network.LITTLE_BYTES, 1.0, network.GATHER_SECONDS),  # a burst
    ],
)
def test_the_faster_bytes_come_the_sooner_they_are_read(size: int, seconds: float, gathered: float) -> None:
    assert network.gather_seconds(size, seconds) == pytest.approx(gathered, rel=1e-3)


def test_a_session_taken_over_is_said_and_not_fought_for(broker: FakeBroker, new_source: SourceFactory) -> None:
    source = new_source(client_id="twin", reconnect_min_seconds=0.01, reconnect_max_seconds=0.8)
    until(lambda: source.subscribed)
    broker.connection().send(packet(DISCONNECT, b"\x8e\0"))
    until(lambda: source.last_error)
    assert source.last_error.startswith("Another client with the id twin took over the session:")
    time.sleep(0.3)
    assert len(broker.connections) == 1
    broker.connection(2)


def test_a_connection_that_comes_and_goes_does_not_flood_the_log(
    broker: FakeBroker, new_source: SourceFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    broker.suback = lambda connection, received: (
        packet(SUBACK, received.body[:2] + b"\0\1") + packet(DISCONNECT, b"\x8e\0")
    )
    new_source(reconnect_min_seconds=0.001, reconnect_max_seconds=0.02)
    until(lambda: len(broker.connections) > 20)
    assert len(caplog.messages) < 12


def test_a_connection_is_restored_when_it_has_stood_for_a_while(
    broker: FakeBroker, new_source: SourceFactory, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these outlasts the longest pause; told at each CONNACK, they were two lines each."""
    monkeypatch.setattr(network, "SETTLED_SECONDS", 0.5)
    caplog.set_level(logging.INFO)
    source = new_source(reconnect_min_seconds=0.001, reconnect_max_seconds=0.02)
    for number in range(1, 7):
        until(lambda number=number: len(broker.connections) == number and source.subscribed)  # type: ignore[misc]
        time.sleep(0.05)
        assert "mqtt connection restored" not in caplog.messages
        broker.connection(number).close()
    assert caplog.messages.count("mqtt connection failed") <= 2  # as one that was lost, then as one that comes and goes
    until(lambda: "mqtt connection restored" in caplog.messages)


def test_starts_without_a_broker(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    with FakeBroker() as gone:
        settings = mqtt(gone)
    source = MqttSource(settings, SystemClock(), metrics)
    source.start()
    until(lambda: source.last_error)
    assert "cannot be reached" in source.last_error
    assert source.network_thread_alive()
    assert source.take(10, LARGE, 0.01) == []
    time.sleep(0.2)
    assert caplog.messages.count("mqtt connection failed") == 1
    source.close()


def test_unusable_tls_files_are_a_configuration_error(broker: FakeBroker, metrics: Metrics) -> None:
    with pytest.raises(ConfigError, match=r"mqtt\.ca_file.*/nowhere/ca\.pem"):
        MqttSource(mqtt(broker, tls=True, ca_file="/nowhere/ca.pem"), SystemClock(), metrics)


def test_the_network_thread_survives_an_error_of_ours(
    broker: FakeBroker, new_source: SourceFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = new_source()
    until(lambda: source.subscribed)
    monkeypatch.setattr(source, "on_turn", lambda *_: 1 / 0)
    broker.connection(2)
    assert source.network_thread_alive()
    assert "mqtt network thread failed, and goes on" in caplog.messages
    monkeypatch.undo()
    until(lambda: source.subscribed)


# -- Sessions.


def test_a_session_lost_on_the_broker_is_told(
    broker: FakeBroker, new_source: SourceFactory, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    source = new_source()
    until(lambda: source.subscribed)
    assert "mqtt session lost on the broker" not in caplog.messages
    broker.connection().close()
    broker.connection(2).wait_for(SUBSCRIBE)
    until(lambda: source.subscribed)
    assert caplog.messages.count("mqtt session lost on the broker") == 1
    assert value(metrics, "mqtt_sessions_lost_total") == 1
    assert value(metrics, "mqtt_reconnects_total") == 1


def test_old_filters_are_ended_after_a_change_of_configuration(
    broker: FakeBroker, new_source: SourceFactory, tmp_path: Path
) -> None:
    broker.session_present = True
    first = new_source(state_folder=tmp_path, topic_root="old", share_group="g1")
    until(lambda: first.subscribed)
    first.close()
    second = new_source(state_folder=tmp_path, topic_root="new", share_group="g2")
    until(lambda: second.subscribed)
    (unsubscribe,) = broker.connection(2).wait_for(UNSUBSCRIBE)
    assert filters_of(unsubscribe, True, options=False) == ["$share/g1/old/+/telemetry", "new/+/telemetry"]
    until(lambda: "old" not in (tmp_path / session_file("esp-ingest")).read_text())
    second.close()
    third = new_source(state_folder=tmp_path, topic_root="new", share_group="g2")
    until(lambda: third.subscribed)
    third.close()
    assert [filters_of(each, True, options=False) for each in broker.connection(3).of(UNSUBSCRIBE)] == [
        ["new/+/telemetry"]
    ]


def test_an_old_filter_without_a_record_is_found_by_its_messages(broker: FakeBroker, new_source: SourceFactory) -> None:
    broker.session_present = True
    source = new_source(topic_root="new")
    until(lambda: source.subscribed)
    connection = broker.connection()
    connection.send(publish(b"old/W1/telemetry", b"a", packet_id=1) + publish(b"old/W2/telemetry", b"b", packet_id=2))
    taken = take(source, 2)
    assert source.settle(taken) == 2, "it is settled like any other"
    (unsubscribe,) = connection.wait_for(UNSUBSCRIBE)
    assert filters_of(unsubscribe, True, options=False) == ["old/+/telemetry"]
    connection.send(publish(b"old/W1/telemetry", b"c", packet_id=3))
    source.settle(take(source, 1))
    connection.wait_for(PUBACK, 3)
    assert len(connection.of(UNSUBSCRIBE)) == 1


def test_a_damaged_record_is_survived(broker: FakeBroker, new_source: SourceFactory, tmp_path: Path) -> None:
    (tmp_path / session_file("esp-ingest")).write_text('{"session": ')
    source = new_source(state_folder=tmp_path)
    until(lambda: source.subscribed)


def test_leaving_a_share_group(broker: FakeBroker, new_source: SourceFactory) -> None:
    source = new_source(share_group="g")
    until(lambda: source.subscribed)
    source.stop_subscribing()
    (unsubscribe,) = broker.connection().wait_for(UNSUBSCRIBE)
    assert filters_of(unsubscribe, True, options=False) == ["$share/g/esp/+/telemetry"]
    assert source.forget_session()
    body = broker.connection(2).of(CONNECT)[0].body
    assert body[7] & 0x02, "clean start"
    assert body[10] == 0, "no session expiry: the session ends with the connection"
    assert broker.connection(2).wait_for(DISCONNECT)


# -- Back-pressure.


def test_a_full_buffer_pauses_reading_and_keeps_the_connection(broker: FakeBroker, new_source: SourceFactory) -> None:
    source = new_source(keepalive_seconds=5, buffer_max_bytes=1_048_576)
    until(lambda: source.subscribed)
    connection = broker.connection()
    large = bytes(600_000)
    for packet_id in range(1, 4):
        connection.send(publish(TOPIC.encode(), large, packet_id=packet_id))
    until(lambda: source.buffered()[1] >= 1_048_576)
    # Two keep alives of silence, as paho sees it: what the broker sends is not read.
    client = source._client
    client._ping_t = client._last_msg_out - 100.0
    client._last_bytes_received -= 100.0
    client._last_msg_out -= 100.0
    connection.wait_for(PINGREQ)
    assert len(broker.connections) == 1
    assert source.connected
    taken = take(source, 3, max_messages=1)
    assert source.settle(taken) == 3
    connection.wait_for(PUBACK, 3)
    assert len(broker.connections) == 1


def test_qos_0_that_finds_a_full_buffer_is_dropped_and_counted(
    broker: FakeBroker, new_source: SourceFactory, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    source = new_source(receive_maximum=10)
    until(lambda: source.subscribed)
    connection = broker.connection()
    connection.send(b"".join(publish(TOPIC.encode(), b"1", packet_id=packet_id) for packet_id in range(1, 11)))
    until(lambda: source.buffered()[0] == 10)
    for _ in range(5):
        connection.send(publish(TOPIC.encode(), b"0", qos=0))
        time.sleep(0.01)
    until(lambda: value(metrics, "messages_dropped_total", qos="0") == 5)
    assert value(metrics, "messages_received_total", qos="0") == 5
    assert caplog.messages.count("mqtt messages dropped") == 1
    assert [d.qos for d in take(source, 10)] == [1] * 10
    connection.send(publish(TOPIC.encode(), b"0", qos=0))
    assert take(source, 1)[0].qos == 0


@pytest.mark.parametrize("session_kept", [True, False])
def test_dup_says_since_which_connection_packet_ids_count(
    broker: FakeBroker, new_source: SourceFactory, metrics: Metrics, session_kept: bool
) -> None:
    """A new session begins them anew; what is not marked DUP is new, whatever its packet id."""
    broker.session_present = True
    source = new_source()
    until(lambda: source.subscribed)
    topic = TOPIC.encode()
    broker.connection().send(
        b"".join(publish(topic, b"x", packet_id=packet_id) for packet_id in (65_533, 65_534, 65_535, 1))
    )
    assert [each.redelivered for each in take(source, 4)] == [0] * 4
    broker.session_present = session_kept
    broker.connection().close()
    until(lambda: len(broker.connections) == 2 and source.subscribed)
    again = [
        publish(topic, b"x", packet_id=65_535, dup=True),
        publish(topic, b"x", qos=0),
        publish(topic, b"x", packet_id=1),
    ]
    broker.connections[1].send(b"".join(again))
    taken = take(source, 3)
    assert [each.redelivered for each in taken] == [1 if session_kept else taken[0].connection, 0, 0]
    assert value(metrics, "messages_redelivered_total") == 1


def test_received_is_acked_and_unacked_and_stale(
    broker: FakeBroker, new_source: SourceFactory, metrics: Metrics
) -> None:
    source = new_source()
    until(lambda: source.subscribed)
    connection = broker.connection()
    connection.send(
        b"".join(publish(TOPIC.encode(), b"x", packet_id=packet_id, dup=packet_id == 3) for packet_id in range(1, 6))
    )
    taken = take(source, 5)
    assert (source.unacked(), source.oldest_unacked_seconds() > 0) == (5, True)
    source.settle(taken[:2])
    connection.close()
    until(lambda: len(broker.connections) == 2 and source.subscribed)
    source.settle(taken[2:4])
    assert value(metrics, "messages_received_total", qos="1") == 5
    assert value(metrics, "messages_redelivered_total") == 1
    assert value(metrics, "messages_acked_total") == 2
    assert value(metrics, "messages_stale_total") == 2
    assert source.unacked() == 1
    source.settle(taken[4:])
    assert (source.unacked(), source.oldest_unacked_seconds()) == (0, 0.0)


def test_reconnecting_waits_for_room_in_the_buffer(broker: FakeBroker, new_source: SourceFactory) -> None:
    source = new_source(receive_maximum=5)
    for number in (1, 2):
        until(lambda number=number: len(broker.connections) == number and source.subscribed)  # type: ignore[misc]
        broker.connections[-1].send(
            b"".join(publish(TOPIC.encode(), b"x", packet_id=packet_id) for packet_id in range(1, 6))
        )
        until(lambda number=number: source.buffered()[0] == 5 * number)  # type: ignore[misc]
        broker.connections[-1].close()
        if number == 1:
            continue
        until(lambda: not source.connected)
        time.sleep(0.2)
        assert len(broker.connections) == 2
        assert "the buffer is full" in source.last_error
        source.settle(take(source, 10))
        broker.connection(3)


# -- Transports.


def test_websockets() -> None:
    with FakeBroker(websockets=True) as broker:
        source = MqttSource(mqtt(broker, transport="websockets"), SystemClock(), Metrics())
        source.start()
        until(lambda: source.subscribed)
        connection = broker.connection()
        stream = b"".join(
            publish(TOPIC.encode(), b"%d" % packet_id + b"x" * packet_id, packet_id=packet_id)
            for packet_id in range(1, 301)
        )
        connection.send(stream, pieces=[1, 2, 3, 1_000, 70_000])
        taken = take(source, 300)
        assert [d.packet_id for d in taken] == list(range(1, 301))
        assert source.settle(taken) == 300
        connection.wait_for(PUBACK, 300)
        assert connection.acknowledged() == list(range(1, 301))
        source.close()


def test_the_path_of_websockets_is_a_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = MqttSettings(
            port=listener.getsockname()[1], transport="websockets", websocket_path="/ws/mqtt?tenant=7"
        )
        source = MqttSource(settings, SystemClock(), Metrics())
        source.start()
        listener.settimeout(5)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            assert connection.recv(4_096).startswith(b"GET /ws/mqtt?tenant=7 HTTP/1.1\r\n")
        source.close()
