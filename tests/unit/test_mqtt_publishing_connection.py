"""The connection for publishing against a scripted broker that refuses, punishes and drops."""

import time
from collections.abc import Callable, Iterator

import pytest

from esp_ingest.config.settings import MqttSettings
from esp_ingest.diagnostics.publisher import Publisher
from esp_ingest.model import Answer
from esp_ingest.mqtt import publishing_connection
from esp_ingest.mqtt.publishing_connection import PublishingConnection
from esp_ingest.mqtt.source import MqttSource
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.metrics import Metrics
from tests.support.fake_broker import (
    CONNACK,
    CONNECT,
    DISCONNECT,
    PUBACK,
    PUBLISH,
    SUBSCRIBE,
    Connection,
    FakeBroker,
    Packet,
    packet,
    publish,
)
from tests.unit.test_diagnostics_publishing import FakeOutbox

TOPIC = "esp/W1/diagnostics"


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as fake:
        yield fake


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


New = Callable[..., PublishingConnection]


@pytest.fixture
def new(broker: FakeBroker, metrics: Metrics) -> Iterator[New]:
    made: list[PublishingConnection] = []

    def build(protocol: str = "5", **overrides: object) -> PublishingConnection:
        given = {
            "host": broker.host,
            "port": broker.port,
            "connect_timeout_seconds": 0.5,
            "reconnect_min_seconds": 0.01,
            "reconnect_max_seconds": 0.02,
        }
        connection = PublishingConnection(MqttSettings(**(given | overrides)), SystemClock(), metrics, lambda: protocol)
        made.append(connection)
        return connection

    yield build
    for connection in made:
        connection.close()


def turn_until(connection: PublishingConnection, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        connection.turn(0.01)


def answered(connection: PublishingConnection) -> dict[int, Answer]:
    """The next answers."""
    answers: dict[int, Answer] = {}

    def any_answer() -> bool:
        answers.update(connection.answers())
        return bool(answers)

    turn_until(connection, any_answer)
    return answers


def acknowledging(reason: bytes = b"") -> Callable[[Connection, Packet], None]:
    """Answers each QoS 1 publication, with ``reason``."""

    def answer(connection: Connection, received: Packet) -> None:
        if received.kind == PUBLISH and received.flags & 0x06:
            at = 2 + int.from_bytes(received.body[:2], "big")
            connection.send(packet(PUBACK, received.body[at : at + 2] + reason))

    return answer


def connack(properties: bytes) -> Callable[[Connection, Packet], bytes]:
    return lambda _, __: packet(CONNACK, b"\0\0" + bytes([len(properties)]) + properties)


def test_a_clean_session_under_an_id_of_its_own_that_subscribes_to_no_readings(
    broker: FakeBroker, new: New, metrics: Metrics
) -> None:
    connection = new(client_id="north", share_group="g")
    broker.on_packet = acknowledging()
    assert connection.connect()
    body = broker.connection().of(CONNECT)[0].body
    assert body[7] & 0x02, "clean start"
    assert body[10] == 0, "no session expiry"
    assert b"\0\x0dnorth-publish" in body
    connection.publish(7, TOPIC, b"{}")
    assert answered(connection) == {7: Answer()}
    (sent,) = broker.connection().of(PUBLISH)
    assert (sent.flags, sent.body[2:20]) == (0x03, TOPIC.encode()), "QoS 1, retained"
    (asked,) = broker.connection().of(SUBSCRIBE)
    assert asked.body.endswith(b"$SYS/broker/publish/messages/dropped\0"), "at QoS 0"
    assert metrics.registry.get_sample_value("esp_ingest_mqtt_publisher_connected") == 1
    assert metrics.registry.get_sample_value("esp_ingest_mqtt_connected") == 0, "that is the connection for readings"


def test_retain_available_is_obeyed_and_told(broker: FakeBroker, new: New, caplog: pytest.LogCaptureFixture) -> None:
    broker.connack, broker.on_packet = connack(b"\x25\0"), acknowledging()
    connection = new()
    connection.connect()
    connection.publish(1, TOPIC, b"{}")
    assert answered(connection) == {1: Answer()}
    assert broker.connection().of(PUBLISH)[0].flags == 0x02
    assert caplog.messages.count("diagnoses published with less than promised") == 1


def test_maximum_qos_is_obeyed(broker: FakeBroker, new: New) -> None:
    broker.connack = connack(b"\x24\0")
    connection = new()
    connection.connect()
    connection.publish(1, TOPIC, b"{}")
    assert answered(connection) == {1: Answer()}
    assert broker.connection().wait_for(PUBLISH)[0].flags == 0x01


@pytest.mark.parametrize("size", [100, 5_000])
def test_maximum_packet_size_is_obeyed_to_the_byte(broker: FakeBroker, new: New, size: int) -> None:
    broker.connack, broker.on_packet = connack(b"\x27" + size.to_bytes(4, "big")), acknowledging()
    connection = new()
    connection.connect()
    header = 1 + (1 if size < 128 else 2) + 2 + len(TOPIC) + 2 + 1
    connection.publish(1, TOPIC, bytes(size - header + 1))
    (answer,) = connection.answers().values()
    assert answer.is_of_message
    assert f"a packet of {size + 1} bytes is more than the broker's maximum packet size of {size}" in answer.refusal
    connection.publish(2, TOPIC, bytes(size - header))
    assert answered(connection) == {2: Answer()}
    (sent,) = broker.connection().of(PUBLISH)
    assert 1 + (1 if size < 128 else 2) + len(sent.body) == size


def test_the_receive_maximum_bounds_what_is_under_way(broker: FakeBroker, new: New) -> None:
    broker.connack = connack(b"\x21\0\2")
    connection = new()
    connection.connect()
    for key in (1, 2):
        assert connection.has_room()
        connection.publish(key, TOPIC, b"{}")
    assert not connection.has_room()


def test_a_refusal_by_puback_says_why(broker: FakeBroker, new: New) -> None:
    broker.on_packet = acknowledging(b"\x87")
    connection = new()
    connection.connect()
    connection.publish(1, TOPIC, b"{}")
    assert answered(connection) == {1: Answer("the broker refused it: Not authorized")}


@pytest.mark.parametrize(
    ("goodbye", "blamed", "is_innocent"),
    [
        (b"", None, False),
        (packet(DISCONNECT, b"\x87\0"), "the broker refused it: Not authorized", False),
        (packet(DISCONNECT, b"\x95\0"), "the broker refused it: Packet too large", False),
        (packet(DISCONNECT, b"\x8b\0"), None, True),
        (packet(DISCONNECT, b"\x8e\0"), None, True),
    ],
)
def test_an_end_of_the_connection_says_what_was_under_way(
    broker: FakeBroker, new: New, goodbye: bytes, blamed: str | None, is_innocent: bool
) -> None:
    def hang_up(connection: Connection, received: Packet) -> None:
        if received.kind == PUBLISH:
            connection.send(goodbye)
            connection.close()

    broker.on_packet = hang_up
    connection = new()
    connection.connect()
    connection.publish(5, TOPIC, b"{}")
    turn_until(connection, lambda: connection.under_way() == 0)
    ending = connection.ending()
    assert ending is not None
    assert ending.unanswered == {5}
    assert (ending.blame.refusal if ending.blame else None) == blamed
    assert ending.is_innocent == is_innocent
    assert ("Another client with the id esp-ingest-publish" in ending.reason) == (b"\x8e" in goodbye)
    assert connection.ending() is None


def test_a_broker_that_refuses_retained_messages_only_when_one_comes(broker: FakeBroker, new: New) -> None:
    def punish(connection: Connection, received: Packet) -> None:
        if received.kind == PUBLISH and received.flags & 1:
            connection.send(packet(DISCONNECT, b"\x9a\0"))
            connection.close()
        else:
            acknowledging()(connection, received)

    broker.on_packet = punish
    connection = new()
    connection.connect()
    connection.publish(1, TOPIC, b"{}")
    turn_until(connection, lambda: connection.under_way() == 0)
    turn_until(connection, connection.connect)
    connection.publish(1, TOPIC, b"{}")
    assert answered(connection) == {1: Answer()}


def test_a_publication_that_is_never_answered_ends_the_connection(
    broker: FakeBroker, new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing_connection, "ANSWER_SECONDS", 0.1)
    connection = new()
    connection.connect()
    connection.publish(1, TOPIC, b"{}")
    turn_until(connection, lambda: connection.under_way() == 0)
    ending = connection.ending()
    assert ending is not None
    assert "did not answer a publication in time" in ending.reason


def test_without_a_broker_there_is_a_sentence_and_a_pause(new: New, metrics: Metrics) -> None:
    with FakeBroker() as gone:
        port = gone.port
    connection = new(port=port, reconnect_min_seconds=5.0, reconnect_max_seconds=6.0)
    assert not connection.connect()
    assert "cannot be reached" in connection.last_error
    started = time.monotonic()
    assert not connection.connect(), "its time has not come"
    assert time.monotonic() - started < 0.1


@pytest.mark.parametrize("connack", [None, packet(CONNACK, b"\0\x87\0")])
def test_a_broker_that_does_not_let_it_in(broker: FakeBroker, new: New, connack: bytes | None) -> None:
    broker.connack = lambda _, __: connack
    connection = new()
    assert not connection.connect()
    expected = "refused the login" if connack else "did not answer CONNECT in time"
    assert expected in connection.last_error
    assert connection.ending() is None


def test_it_speaks_what_the_other_connection_has_found(broker: FakeBroker, new: New) -> None:
    broker.connack = lambda _, __: packet(CONNACK, b"\0\0")
    broker.on_packet = acknowledging()
    connection = new(protocol="3.1.1")
    assert connection.connect()
    assert broker.connection().version == 4
    connection.publish(1, TOPIC, b"{}")
    assert answered(connection) == {1: Answer()}


def test_a_broker_that_disconnects_on_deny_never_touches_the_connection_for_readings(
    broker: FakeBroker, new: New, metrics: Metrics
) -> None:
    """As EMQX does with `deny_action = disconnect`: a hang-up without an answer."""

    def deny_one_well(connection: Connection, received: Packet) -> None:
        if received.kind == PUBLISH and b"esp/W3/" in received.body:
            connection.close()
        else:
            acknowledging()(connection, received)

    broker.on_packet = deny_one_well
    settings = MqttSettings(host=broker.host, port=broker.port)
    source = MqttSource(settings, SystemClock(), metrics)
    source.start()
    outbox = FakeOutbox(*((number, f"W{number % 6}") for number in range(1, 13)))
    publisher = Publisher(outbox, new(), "esp", SystemClock(), metrics)
    turn_until(new(), lambda: source.subscribed)
    readings = broker.connection()
    publisher.start()
    sent = 0
    deadline = time.monotonic() + 15
    while not (outbox.refused and len(outbox.rows) == 2) and time.monotonic() < deadline:
        sent += 1
        readings.send(publish(b"esp/W1/telemetry", b"{}", packet_id=sent))
        taken = source.take(10, 1 << 20, 2.0)
        assert len(taken) == 1
        assert source.settle(taken) == 1
        readings.wait_for(PUBACK, sent, timeout_seconds=1)
        time.sleep(0.05)
    publisher.stop(5)
    assert [row.well_id for row in outbox.rows] == ["W3", "W3"], "the other wells' changes went out"
    assert outbox.refused[3][0].startswith("the connection ends when it is sent")
    assert (source.subscribed, source.last_error, readings.is_open) == (True, "", True)
    assert sent > 5
    source.close()


DROPPED = b"$SYS/broker/publish/messages/dropped"


def test_what_the_broker_says_it_has_dropped_is_a_metric_while_the_connection_stands(
    broker: FakeBroker, new: New, metrics: Metrics
) -> None:
    def dropped() -> float | None:
        labels = {"broker": f"{broker.host}:{broker.port}"}
        return metrics.registry.get_sample_value("esp_ingest_broker_messages_dropped", labels)

    connection = new()
    connection.connect()
    assert dropped() is None, "the broker has not said anything yet"
    for payload in (b"rubbish", b"41", b"42"):
        broker.connection().send(publish(DROPPED, payload, qos=0))
    turn_until(connection, lambda: dropped() == 42)
    connection.close()
    assert dropped() is None


def test_a_broker_that_hangs_up_on_the_question_what_it_dropped_is_asked_twice_and_then_left_alone(
    broker: FakeBroker, new: New
) -> None:
    def punish(connection: Connection, received: Packet) -> None:
        if received.kind == SUBSCRIBE:
            connection.send(packet(DISCONNECT, b"\x87\0"))
            connection.close()
        else:
            acknowledging()(connection, received)

    broker.on_packet = punish
    broker.suback = lambda _, __: None
    connection = new()
    for _ in range(2):
        turn_until(connection, connection.connect)
        connection.publish(1, TOPIC, b"{}")
        turn_until(connection, lambda: connection.under_way() == 0)
        ending = connection.ending()
        assert ending is not None
        assert (ending.blame, ending.is_innocent) == (None, True), "the publication was not what it refused"
    turn_until(connection, connection.connect)
    connection.publish(1, TOPIC, b"{}")
    assert answered(connection) == {1: Answer()}
