"""The session against Mosquitto, on the mosquitto.conf that ships."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.enums import MQTTProtocolVersion
from pydantic import SecretStr

from esp_ingest.model import Answer, Delivery
from esp_ingest.mqtt.client_setup import session_file
from esp_ingest.mqtt.publishing_connection import PublishingConnection
from esp_ingest.mqtt.source import MqttSource
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.metrics import Metrics
from tests.support.brokers import Mosquitto, Publisher
from tests.support.proxy import TcpProxy
from tests.support.waiting import until

TOPIC = "esp/W1/telemetry"
LARGE = 1 << 30
Start = Callable[..., MqttSource]


def take(source: MqttSource, count: int, *, settle: bool = True) -> list[Delivery]:
    taken: list[Delivery] = []
    deadline = time.monotonic() + 15
    while len(taken) < count and time.monotonic() < deadline:
        part = source.take(count - len(taken), LARGE, 0.2)
        if settle:
            source.settle(part)
        taken += part
    assert len(taken) == count
    return taken


def payloads(deliveries: list[Delivery]) -> list[bytes]:
    return [delivery.payload for delivery in deliveries]


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def start(mosquitto: Mosquitto, metrics: Metrics) -> Iterator[Start]:
    """A connected and subscribed source on the broker."""
    made: list[MqttSource] = []

    def new(*, wait: bool = True, state_folder: Path | None = None, **overrides: Any) -> MqttSource:
        source = MqttSource(mosquitto.settings(**overrides), SystemClock(), metrics, state_folder)
        made.append(source)
        source.start()
        if wait:
            until(lambda: source.subscribed)
        return source

    yield new
    for source in made:
        source.close()


@pytest.fixture
def well(mosquitto: Mosquitto) -> Iterator[Publisher]:
    with mosquitto.publisher("W1") as publisher:
        yield publisher


@pytest.fixture
def cable(mosquitto: Mosquitto) -> Iterator[TcpProxy]:
    """To the broker; for one source."""
    with TcpProxy(mosquitto.host, mosquitto.port) as proxy:
        yield proxy


def crash(source: MqttSource, cable: TcpProxy) -> None:
    """As kill -9 looks to the broker: the socket closes without a DISCONNECT, and nothing is sent again."""
    cable.stop("fin")
    source.close()
    cable.start()


def settle_for_sure(source: MqttSource, deliveries: list[Delivery], cable: TcpProxy) -> None:
    """Return when the broker has the PUBACKs, of four bytes each."""
    before = cable.bytes_up
    source.settle(deliveries)
    until(lambda: cable.bytes_up >= before + 4 * len(deliveries))
    time.sleep(0.1)


# -- Delivery.


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_ten_thousand_messages_in_order(start: Start, well: Publisher, protocol: str) -> None:
    source = start(protocol=protocol)
    sent = numbered(10_000)
    for at in range(0, len(sent), 2_000):
        well.publish_many(TOPIC, sent[at : at + 2_000])
    assert payloads(take(source, len(sent))) == sent
    assert source.unacked() == 0


def test_settled_messages_never_come_again(start: Start, well: Publisher) -> None:
    first = start()
    well.publish_many(TOPIC, numbered(3_000))
    take(first, 3_000)
    first.stop_receiving()
    first.close()
    second = start()
    assert second.take(1, LARGE, 0.5) == []


def test_the_session_survives_a_restart_of_the_daemon(start: Start, well: Publisher) -> None:
    start().close()
    well.publish_many(TOPIC, numbered(500))
    again = start()
    assert payloads(take(again, 500)) == numbered(500)


def test_unsettled_messages_come_again_with_dup_after_a_crash(start: Start, well: Publisher, cable: TcpProxy) -> None:
    first = start(port=cable.port)
    well.publish_many(TOPIC, numbered(100))
    taken = take(first, 100, settle=False)
    settle_for_sure(first, taken[:40], cable)
    crash(first, cable)
    again = take(start(), 60)
    assert payloads(again) == numbered(60, 40)
    assert all(delivery.redelivered for delivery in again)


def test_the_window_bounds_what_is_unsettled(start: Start, well: Publisher) -> None:
    source = start(receive_maximum=50)
    well.publish_many(TOPIC, numbered(200))
    held = take(source, 50, settle=False)
    assert source.take(1, LARGE, 0.3) == []
    source.settle(held)
    assert payloads(take(source, 150)) == numbered(150, 50)


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_each_qos_of_a_publisher(start: Start, well: Publisher, qos: int, protocol: str) -> None:
    """QoS 2 comes at the subscription's QoS 1."""
    source = start(protocol=protocol)
    well.publish_many(TOPIC, numbered(50), qos=qos)
    taken = take(source, 50)
    assert payloads(taken) == numbered(50)
    assert {delivery.qos for delivery in taken} == {min(qos, 1)}


def test_a_subscription_at_qos_2_from_other_days_loses_nothing(
    start: Start, well: Publisher, cable: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Received at QoS 2, crashed before it was safe, received again; PUBREC and PUBCOMP give each slot back."""
    monkeypatch.setattr("esp_ingest.mqtt.subscription.QOS", 2)
    first = start(port=cable.port, receive_maximum=10)
    well.publish_many(TOPIC, numbered(10), qos=2)
    taken = take(first, 10, settle=False)
    assert {delivery.qos for delivery in taken} == {2}
    first.settle(taken[:4])
    time.sleep(0.1)
    crash(first, cable)
    second = start(receive_maximum=10)
    assert payloads(take(second, 6)) == numbered(6, 4)
    well.publish_many(TOPIC, numbered(100, 10), qos=2)
    assert payloads(take(second, 100)) == numbered(100, 10)


def test_a_payload_of_four_mebibytes_and_an_empty_one(start: Start, well: Publisher) -> None:
    source = start()
    large = bytes(range(256)) * 16_384
    well.publish(TOPIC, large)
    well.publish(TOPIC, b"")
    well.publish(TOPIC, b"small")
    assert payloads(take(source, 3)) == [large, b"", b"small"]


def test_properties_of_publishers_are_skipped(start: Start, well: Publisher) -> None:
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    source = start()
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = "application/json"
    properties.MessageExpiryInterval = 1_000
    properties.UserProperty = [("key", "value" * 100)]
    well.client.publish(TOPIC, b"payload", 1, properties=properties).wait_for_publish(5)
    assert payloads(take(source, 1)) == [b"payload"]


def test_retained_messages_are_not_replayed_on_each_subscription(start: Start, well: Publisher) -> None:
    first = start()
    well.publish(TOPIC, b"retained", retain=True)
    assert payloads(take(first, 1)) == [b"retained"], "as it is published it comes"
    first.close()
    second = start()
    assert second.take(1, LARGE, 0.3) == []


def test_retained_messages_under_3_1_1_come_again_and_are_settled(start: Start, well: Publisher) -> None:
    first = start(protocol="3.1.1")
    well.publish(TOPIC, b"retained", retain=True)
    take(first, 1)
    first.close()
    second = start(protocol="3.1.1")
    assert payloads(take(second, 1)) == [b"retained"]
    assert second.unacked() == 0


# -- Rights, as shipped.


def test_a_controller_publishes_its_own_topic_only(start: Start, well: Publisher) -> None:
    source = start()
    well.publish("esp/W2/telemetry", b"as another well")
    well.publish(TOPIC, b"mine")
    assert payloads(take(source, 1)) == [b"mine"]
    assert source.take(1, LARGE, 0.2) == []


def test_nobody_connects_without_a_password(mosquitto: Mosquitto, start: Start) -> None:
    source = start(wait=False, username="", password=SecretStr(""))
    until(lambda: source.last_error)
    assert "refused the login of user (none)" in source.last_error


def test_a_wrong_password_is_told(start: Start) -> None:
    source = start(wait=False, password=SecretStr("wrong"))
    until(lambda: source.last_error)
    assert "refused the login of user esp-ingest (Not authorized)" in source.last_error
    assert source.network_thread_alive()


def test_the_daemon_publishes_diagnostics_and_no_telemetry(mosquitto: Mosquitto) -> None:
    connection = PublishingConnection(mosquitto.settings(), SystemClock(), Metrics(), lambda: "5")
    assert connection.connect()
    connection.publish(1, "esp/W1/diagnostics", b"{}")
    connection.publish(2, TOPIC, b"{}")
    answers: dict[int, Answer] = {}

    def both_are_answered() -> bool:
        connection.turn(0.1)
        answers.update(connection.answers())
        return len(answers) == 2

    until(both_are_answered)
    assert answers == {1: Answer(), 2: Answer("the broker refused it: Not authorized")}
    connection.close()


def test_a_user_without_rights_is_subscribed_and_gets_nothing(start: Start, well: Publisher) -> None:
    """Mosquitto's ACL file never refuses a SUBSCRIBE, it filters at delivery: operations.md has to say so. That a
    refusal is read and told: tests/unit/test_mqtt_source.py."""
    source = start(username="W2", password=SecretStr(Mosquitto.password_of("W2")))
    well.publish(TOPIC, b"not for W2")
    assert source.subscribed
    assert source.take(1, LARGE, 0.3) == []


def test_a_topic_that_is_not_utf8(start: Start, mosquitto: Mosquitto) -> None:
    """Mosquitto hangs up on a publisher of such a topic, and everybody else goes on."""
    source = start()
    with socket.create_connection((mosquitto.host, mosquitto.port)) as raw:
        user, password = b"W1", mosquitto.password_of("W1").encode()
        body = b"\0\4MQTT\4\xc2\0\x3c\0\3bad" + b"".join(
            len(each).to_bytes(2, "big") + each for each in (user, password)
        )
        raw.sendall(b"\x10" + bytes([len(body)]) + body)
        assert raw.recv(4)[3] == 0
        raw.sendall(b"\x30\x0a\0\x07esp/\xff\xfe/x")
        raw.settimeout(5)
        assert raw.recv(1) == b""
    with mosquitto.publisher("W1") as well:
        well.publish(TOPIC, b"after")
    assert payloads(take(source, 1)) == [b"after"]


# -- Sessions.


def test_a_second_daemon_with_the_same_id_is_not_fought_each_second(start: Start, mosquitto: Mosquitto) -> None:
    """Mosquitto 2.0.11 closes the old connection without the DISCONNECT that MQTT 5 wants. Connections are lost in
    a row for other reasons as well, so nothing is guessed: the broker's log knows."""
    twins = [start(wait=False, reconnect_min_seconds=0.02, reconnect_max_seconds=5.0) for _ in range(2)]
    until(lambda: any("look for the client id esp-ingest in the broker's log" in twin.last_error for twin in twins))
    time.sleep(3.0)
    assert mosquitto.log().count("as esp-ingest (") < 30
    twins[0].close()
    until(lambda: twins[1].subscribed)
    with mosquitto.publisher("W1") as well:
        well.publish_many(TOPIC, numbered(10))
    assert payloads(take(twins[1], 10)) == numbered(10)


def test_acknowledgements_of_an_old_connection_free_nothing(start: Start, well: Publisher, cable: TcpProxy) -> None:
    source = start(port=cable.port)
    well.publish_many(TOPIC, numbered(20))
    old = take(source, 20, settle=False)
    cable.cut("fin")
    until(lambda: source.connection > old[0].connection and source.subscribed)
    assert source.settle(old) == 0
    again = take(source, 20, settle=False)
    assert payloads(again) == numbered(20)
    crash(source, cable)
    assert len(take(start(), 20)) == 20, "the broker still held them all"


def test_a_changed_topic_root_ends_the_old_subscription(
    start: Start, mosquitto: Mosquitto, tmp_path: Path, well: Publisher
) -> None:
    (mosquitto.folder / "acl").write_text("pattern readwrite #\n")
    mosquitto.restart()
    start(state_folder=tmp_path, topic_root="old").close()
    with mosquitto.publisher("W2") as other:
        other.publish("old/W2/telemetry", b"queued under the old filter")
        source = start(state_folder=tmp_path)
        assert payloads(take(source, 1)) == [b"queued under the old filter"]
        until(lambda: "old" not in (tmp_path / session_file("esp-ingest")).read_text())
        other.publish("old/W2/telemetry", b"too late")
        other.publish(TOPIC, b"new")
        assert payloads(take(source, 1)) == [b"new"]
        assert source.unacked() == 0


def test_shared_subscriptions_deal_each_message_once(start: Start, well: Publisher) -> None:
    members = [start(client_id=f"member-{n}", share_group="ingest") for n in range(2)]
    well.publish_many(TOPIC, numbered(400))
    got: list[list[bytes]] = [[], []]
    until(lambda: sum(_collect(members, got)) == 400)
    assert sorted(got[0] + got[1], key=int) == numbered(400)
    assert min(len(each) for each in got) > 100


def _collect(members: list[MqttSource], got: list[list[bytes]]) -> list[int]:
    for member, into in zip(members, got, strict=True):
        taken = member.take(1_000, LARGE, 0.01)
        member.settle(taken)
        into += payloads(taken)
    return [len(each) for each in got]


def test_a_member_that_leaves_for_good_is_dealt_nothing(start: Start, well: Publisher) -> None:
    stays, leaves = (start(client_id=name, share_group="ingest") for name in ("stays", "leaves"))
    leaves.stop_subscribing()
    until(lambda: leaves.has_left)
    assert leaves.forget_session()
    well.publish_many(TOPIC, numbered(50))
    assert payloads(take(stays, 50)) == numbered(50)


# -- Outages.


def test_starts_before_the_broker_and_connects_by_itself(start: Start, mosquitto: Mosquitto) -> None:
    mosquitto.stop()
    source = start(wait=False)
    until(lambda: "cannot be reached" in source.last_error)
    mosquitto.start()
    until(lambda: source.subscribed)
    assert source.last_error == ""


def test_broker_killed_and_restarted_with_persistence(
    start: Start, mosquitto: Mosquitto, well: Publisher, metrics: Metrics, cable: TcpProxy
) -> None:
    source = start(port=cable.port)
    well.publish_many(TOPIC, numbered(300))
    taken = take(source, 300, settle=False)
    settle_for_sure(source, taken[:100], cable)
    mosquitto.save()
    mosquitto.kill()
    until(lambda: not source.connected)
    assert source.settle(taken[100:150]) == 0
    mosquitto.start()
    until(lambda: source.subscribed)
    again = take(source, 200)
    assert payloads(again) == numbered(200, 100)
    assert all(delivery.connection > taken[0].connection for delivery in again)
    assert metrics.registry.get_sample_value("esp_ingest_mqtt_sessions_lost_total") == 0


def test_broker_restarted_without_its_memory(
    start: Start, mosquitto: Mosquitto, well: Publisher, metrics: Metrics
) -> None:
    source = start()
    well.publish_many(TOPIC, numbered(10))
    until(lambda: source.buffered()[0] == 10)
    first = source.connection
    mosquitto.kill()
    (mosquitto.folder / "data" / "mosquitto.db").unlink(missing_ok=True)
    mosquitto.start()
    until(lambda: source.subscribed and source.connection > first)
    assert payloads(take(source, 10)) == numbered(10), "what was in memory is not lost with the session"
    assert metrics.registry.get_sample_value("esp_ingest_mqtt_sessions_lost_total") == 1


def test_keepalive_while_nothing_is_taken_or_settled(start: Start, mosquitto: Mosquitto, well: Publisher) -> None:
    """The broker hangs up after 1.5 keep alives of silence; the network thread does not wait for the pipeline."""
    source = start(keepalive_seconds=5, receive_maximum=20)
    well.publish_many(TOPIC, numbered(100))
    first = source.connection
    time.sleep(9.0)
    assert source.connection == first > 0, "connected, and never again"
    assert payloads(take(source, 100)) == numbered(100)
    assert mosquitto.log().count("as esp-ingest (") == 1


def test_a_paused_broker_is_noticed_and_left(start: Start, mosquitto: Mosquitto) -> None:
    source = start(keepalive_seconds=5)
    mosquitto.pause()
    try:
        until(lambda: not source.connected, 20)
    finally:
        mosquitto.resume()
    until(lambda: source.subscribed)


# -- The file that ships.


def test_the_queue_holds_more_than_mosquittos_default_of_a_thousand(
    start: Start, mosquitto: Mosquitto, well: Publisher
) -> None:
    start().close()
    sent = numbered(5_000)
    well.publish_many(TOPIC, sent)
    mosquitto.restart()
    assert payloads(take(start(), 5_000)) == sent


def test_a_packet_above_the_limit_ends_the_publishers_connection(mosquitto: Mosquitto) -> None:
    with mosquitto.publisher("W1", MQTTProtocolVersion.MQTTv311) as well:
        lost: list[object] = []
        well.client.on_disconnect = lambda *arguments: lost.append(arguments[3])
        well.client.publish(TOPIC, bytes(6_000_000), 1)
        until(lambda: lost)
