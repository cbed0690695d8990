"""The packet walk and the reader, packet by packet. Any cut of any stream: tests/property/test_packets.py."""

import struct

import pytest
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.exception import MalformedPacket

from esp_ingest.model import Delivery, weight_of, whole_bytes_of
from esp_ingest.mqtt.client import RECV_BYTES, BulkClient
from esp_ingest.mqtt.publish_packets import walk
from tests.support.fake_broker import (
    CONNACK,
    DISCONNECT,
    PINGRESP,
    PUBLISH,
    PUBREL,
    FakeBroker,
    packet,
    publish,
    varint,
)
from tests.support.fake_clock import FakeClock
from tests.support.mqtt_clients import ReadingClient

TOPIC = b"esp/W1/telemetry"


def walked(data: bytes, *, is_mqtt5: bool = True) -> tuple[list[Delivery], int]:
    deliveries: list[Delivery] = []
    at, _, _ = walk(data, 0, deliveries, 3, 77, is_mqtt5)
    return deliveries, at


def test_a_message_becomes_a_delivery_with_all_its_fields() -> None:
    deliveries, at = walked(data := publish(TOPIC, b"{}", packet_id=513))
    assert deliveries == [Delivery(TOPIC, b"{}", 1, 513, 3, 77, False)]
    assert type(deliveries[0]) is Delivery
    assert at == len(data)


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("dup", [False, True])
@pytest.mark.parametrize("is_mqtt5", [False, True])
def test_qos_dup_and_version(qos: int, dup: bool, is_mqtt5: bool) -> None:
    data = publish(TOPIC, b"x", qos=qos, packet_id=9, dup=dup, properties=b"" if is_mqtt5 else None)
    (delivery,), _ = walked(data, is_mqtt5=is_mqtt5)
    assert (delivery.qos, delivery.packet_id, delivery.redelivered) == (qos, 9 if qos else 0, dup)
    assert (delivery.topic, delivery.payload) == (TOPIC, b"x")


@pytest.mark.parametrize("size", [0, 1, 7, 127, 128, 300, 16_383, 16_384, 70_000])
def test_property_blocks_of_any_size_are_skipped(size: int) -> None:
    (delivery,), _ = walked(publish(TOPIC, b"payload", properties=bytes(size)))
    assert delivery.payload == b"payload"


@pytest.mark.parametrize("size", [0, 1, 102, 103, 104, 16_356, 16_357, 16_358, 2_097_124, 2_097_125, 2_097_126])
def test_payloads_on_both_sides_of_each_length_form(size: int) -> None:
    (delivery,), _ = walked(publish(TOPIC, b"p" * size))
    assert len(delivery.payload) == size


def test_a_topic_that_is_not_utf8_is_kept_as_bytes() -> None:
    (delivery,), _ = walked(publish(b"esp/\xff\xfe/telemetry", b"{}"))
    assert delivery.topic == b"esp/\xff\xfe/telemetry"


def test_the_walk_stops_before_another_packet_and_before_half_a_packet() -> None:
    first = publish(TOPIC, b"1")
    assert walked(first + packet(PINGRESP, b""))[1] == len(first)
    for cut in range(1, len(first)):
        deliveries, at = walked(first + first[:cut])
        assert (len(deliveries), at) == (1, len(first))


@pytest.mark.parametrize(
    "data",
    [
        packet(PUBLISH, b"", 2),
        packet(PUBLISH, b"\0", 2),
        packet(PUBLISH, b"\0\5ab", 2),
        packet(PUBLISH, b"\0\2ab", 2),
        packet(PUBLISH, b"\0\2ab\0\1", 2),
        packet(PUBLISH, b"\0\2ab\0\1\5x", 2),
        packet(PUBLISH, b"\0\2ab\0\1\x80", 2),
        packet(PUBLISH, b"\0\2ab\0\1\xff\xff\xff\xff\x01", 2),
        packet(PUBLISH, b"\0\2ab\0\0\0", 2),
        packet(PUBLISH, b"\0\2ab\0\1\0", 6),
        packet(PUBLISH, b"\0\0\0\1\3\x23\0\1", 2),
        b"\x32\xff\xff\xff\xff\x01",
    ],
    ids=[
        "empty", "half a topic length", "topic beyond the end", "no packet id", "no properties",
        "properties beyond the end",
        "property length cut off", "property length of five bytes", "packet id 0", "qos 3", "topic alias",
        "remaining length of five bytes",
    ],
)  # fmt: skip
@pytest.mark.parametrize("rest", [b"", publish(TOPIC, b"next") * 3], ids=["alone", "with more behind"])
def test_malformed_messages_are_refused_and_never_read_into_the_next(data: bytes, rest: bytes) -> None:
    good = publish(TOPIC, b"good")
    deliveries: list[Delivery] = []
    with pytest.raises(MalformedPacket):
        walk(good + data + rest, 0, deliveries, 1, 0, True)
    assert [each.payload for each in deliveries] == [b"good"]


def test_what_came_before_a_malformed_packet_is_handed_over_and_the_connection_ends() -> None:
    with ReadingClient() as reading:
        outcome = reading.feed(publish(TOPIC, b"good") + packet(PUBLISH, b"", 2))
        assert outcome == MQTTErrorCode.MQTT_ERR_PROTOCOL
        assert not reading.is_open
        assert [each.payload for each in reading.deliveries] == [b"good"]


def test_byte_by_byte() -> None:
    stream = b"".join(publish(TOPIC, b"%d" % packet_id, packet_id=packet_id) for packet_id in range(1, 20)) + packet(
        PINGRESP, b""
    )
    with ReadingClient() as reading:
        reading.client._ping_t = 1.0
        reading.feed(*(bytes([byte]) for byte in stream))
        assert [each.packet_id for each in reading.deliveries] == list(range(1, 20))
        assert reading.client._ping_t == 0


def test_many_messages_come_in_one_hand_off() -> None:
    with ReadingClient() as reading:
        reading.feed(b"".join(publish(TOPIC, b"x", packet_id=packet_id) for packet_id in range(1, 501)))
        assert (len(reading.deliveries), reading.chunks) == (500, 1)


def test_a_huge_message_in_pieces_is_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with ReadingClient() as reading:
        keeps = 0
        keep = reading.client._keep_partial_packet

        def counted(data: bytes, need_bytes: int) -> None:
            nonlocal keeps
            keeps += 1
            keep(data, need_bytes)

        monkeypatch.setattr(reading.client, "_keep_partial_packet", counted)
        payload = bytes(8 * RECV_BYTES)
        reading.feed(publish(TOPIC, payload) + publish(TOPIC, b"next", packet_id=2))
        assert [len(each.payload) for each in reading.deliveries] == [len(payload), 4]
        assert keeps == 1


@pytest.mark.parametrize(("several_reads", "has_read_all"), [(False, [False, False, True]), (True, [False, True])])
def test_a_turn_says_whether_it_has_read_all(
    monkeypatch: pytest.MonkeyPatch, several_reads: bool, has_read_all: list[bool]
) -> None:
    monkeypatch.setattr("esp_ingest.mqtt.client.RECV_BYTES", 1_000)
    monkeypatch.setattr("esp_ingest.mqtt.client.READS_PER_TURN", 2)
    with ReadingClient(several_reads=several_reads) as reading:
        reading.put(publish(TOPIC, bytes(2_500)))
        for expected in has_read_all:
            reading.client.loop_read()
            assert reading.client.has_read_all == expected
        assert len(reading.deliveries) == 1


def test_packets_of_paho_in_between_keep_their_place() -> None:
    with ReadingClient() as reading:
        seen: list[tuple[str, int]] = []
        reading.client.on_subscribe = lambda *arguments: seen.append(("suback", arguments[2]))
        reading.feed(publish(TOPIC, b"a", packet_id=1) + packet(9, b"\0\7\0\1") + publish(TOPIC, b"b", packet_id=2))
        assert seen == [("suback", 7)]
        assert [each.packet_id for each in reading.deliveries] == [1, 2]


def test_nothing_after_a_disconnect_of_the_broker_is_read() -> None:
    with ReadingClient() as reading:
        reading.feed(publish(TOPIC, b"a") + packet(DISCONNECT, b"\x8e\0") + publish(TOPIC, b"b"))
        assert [each.payload for each in reading.deliveries] == [b"a"]
        assert not reading.is_open


def test_a_message_before_connack_ends_the_connection() -> None:
    with ReadingClient(is_accepted=False) as reading:
        assert reading.feed(publish(TOPIC, b"x")) == MQTTErrorCode.MQTT_ERR_PROTOCOL
        assert reading.deliveries == []


def test_a_message_right_behind_connack_is_taken() -> None:
    with ReadingClient(is_accepted=False) as reading:
        reading.feed(packet(CONNACK, b"\1\0\0") + publish(TOPIC, b"x"))
        assert len(reading.deliveries) == 1


def test_a_second_connack_ends_the_connection() -> None:
    with ReadingClient() as reading:
        assert reading.feed(packet(CONNACK, b"\0\0\0")) == MQTTErrorCode.MQTT_ERR_PROTOCOL


def test_an_error_in_a_callback_ends_the_connection_and_not_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    with ReadingClient() as reading:
        reading.client.on_subscribe = lambda *_: 1 / 0
        assert reading.feed(packet(9, b"\0\7\0\1")) == MQTTErrorCode.MQTT_ERR_PROTOCOL
        assert "mqtt packet not handled" in caplog.messages


def test_the_end_of_the_stream_is_a_lost_connection() -> None:
    with ReadingClient() as reading:
        reading.hang_up()
        assert reading.client.loop_read() == MQTTErrorCode.MQTT_ERR_CONN_LOST


def test_acknowledgements_leave_as_one_packet_in_the_order_given() -> None:
    with ReadingClient() as reading:
        plain, exactly_once = publish(TOPIC, b"", packet_id=5), publish(TOPIC, b"", packet_id=6, qos=2)
        reading.feed(plain + exactly_once + publish(TOPIC, b"", qos=0) + publish(TOPIC, b"", packet_id=0xFFFF))
        assert reading.client.acknowledge(reading.deliveries) == 3
        assert len(reading.client._out_packet) == 1
        assert reading.written() == struct.pack(">HHHHHH", 0x4002, 5, 0x5002, 6, 0x4002, 0xFFFF)


def test_pubrel_is_answered_at_once() -> None:
    with ReadingClient() as reading:
        reading.feed(packet(PUBREL, b"\0\6", 2))
        assert reading.written() == b"\x70\x02\x00\x06"


def test_a_delivery_of_an_old_connection_is_never_acknowledged() -> None:
    with ReadingClient() as reading:
        reading.feed(publish(TOPIC, b"", packet_id=5))
        old = reading.deliveries[0]
        reading.client.connection += 1
        reading.feed(publish(TOPIC, b"", packet_id=6))
        assert reading.client.acknowledge([old, reading.deliveries[1]]) == 1
        assert reading.written() == b"\x40\x02\x00\x06"


def test_nothing_is_acknowledged_without_a_connection() -> None:
    with ReadingClient() as reading:
        reading.feed(publish(TOPIC, b"", packet_id=5))
        reading.client.abort()
        assert reading.client.acknowledge(reading.deliveries) == 0
        assert not reading.client.want_write()


def test_reading_counts_as_a_sign_of_life() -> None:
    with ReadingClient() as reading:
        reading.client._last_bytes_received = 0.0
        reading.feed(publish(TOPIC, b"")[:3])
        assert reading.client._last_bytes_received > 0


def test_varint_of_the_helper_is_that_of_the_standard() -> None:
    """MQTT 5, table 1-1."""
    assert [varint(n) for n in (0, 127, 128, 16_383, 16_384, 268_435_455)] == [
        b"\x00", b"\x7f", b"\x80\x01", b"\xff\x7f", b"\x80\x80\x01", b"\xff\xff\xff\x7f",
    ]  # fmt: skip


def partial(reading: ReadingClient, data: bytes, step: int = 50_000) -> int:
    """Feed it in pieces; returns the most that was held of a packet at any time."""
    most = 0
    for at in range(0, len(data), step):
        reading.feed(data[at : at + step])
        most = max(most, reading.client.partial_bytes)
    return most


@pytest.mark.parametrize("is_mqtt5", [False, True])
@pytest.mark.parametrize("step", [50_000, 262_144, 3_000_000])
@pytest.mark.parametrize(("qos", "dup"), [(0, False), (1, False), (1, True), (2, False)])
def test_a_packet_that_is_too_large_is_never_held(is_mqtt5: bool, step: int, qos: int, dup: bool) -> None:
    """Its head is kept and says how much was sent; it is settled as any other, and its neighbours are whole."""
    payload = b'{"timestamp": ' + b"x" * 3_000_000
    properties = b"p" * 300 if is_mqtt5 else None
    large = publish(TOPIC, payload, qos=qos, packet_id=77, dup=dup, properties=properties)
    before, after = (
        publish(TOPIC, b"%d" % packet_id, packet_id=packet_id, properties=properties) for packet_id in (76, 78)
    )
    with ReadingClient(is_mqtt5=is_mqtt5, max_packet_bytes=1_000_000) as reading:
        most = partial(reading, before + large + after + large, step)
        assert most <= 131_072 + RECV_BYTES
        first, cut, last, again = reading.deliveries
        assert (first.payload, last.payload) == (b"76", b"78")
        assert (cut.topic, cut.qos, cut.packet_id, cut.redelivered) == (TOPIC, qos, 77 if qos else 0, dup)
        assert cut.payload.startswith(payload[:16_384])
        assert len(cut.payload) < 17_000
        assert whole_bytes_of(cut.payload) == len(payload)
        assert again.payload == cut.payload
        assert first.received_us < cut.received_us < last.received_us < again.received_us
        assert reading.client.partial_bytes == 0


@pytest.mark.parametrize("properties", [b"", b"p" * 1_500_000])
def test_the_longest_topic_and_properties_without_end_are_not_held_either(properties: bytes) -> None:
    topic = b"t" * 65_535
    with ReadingClient(max_packet_bytes=1_000_000) as reading:
        most = partial(reading, publish(topic, b"x" * 2_000_000, packet_id=5, properties=properties))
        assert most <= 131_072 + RECV_BYTES
        (cut,) = reading.deliveries
        assert (cut.topic, cut.packet_id, whole_bytes_of(cut.payload)) == (topic, 5, 2_000_000)


def test_what_was_left_of_a_packet_goes_with_its_connection() -> None:
    with ReadingClient(max_packet_bytes=1_000_000) as reading:
        reading.feed(publish(TOPIC, b"x" * 2_000_000, packet_id=5)[:1_500_000])
        assert reading.client._discard_bytes
        reading.client._forget_partial_packet()
        reading.feed(publish(TOPIC, b"1", packet_id=6))
        assert [each.packet_id for each in reading.deliveries] == [6]


def test_another_packet_that_is_too_large_ends_the_connection() -> None:
    with ReadingClient(max_packet_bytes=1_000_000) as reading:
        reading.feed(packet(CONNACK, b"x" * 2_000_000)[:100_000])
        assert not reading.is_open


def test_a_long_topic_counts_among_the_bytes() -> None:
    deliveries: list[Delivery] = []
    _, size, _ = walk(publish(b"t" * 65_535, b"12") + publish(TOPIC, b"345"), 0, deliveries, 3, 77, True)
    assert size == 65_535 + 2 + 3 == sum(map(weight_of, deliveries))


def test_of_two_clients_that_take_turns_the_later_connection_has_the_greater_number() -> None:
    """store/write/redelivery.py tells by it which of two deliveries came first, whichever daemon had it."""
    clock = FakeClock()
    first, second = (
        BulkClient("both", MQTTProtocolVersion.MQTTv5, clock, lambda *_: None, least_connection=least)
        for least in (1, 9)
    )
    numbers = []
    with FakeBroker() as broker:
        for client in (first, second, first, first, second):
            client.connect_async(broker.host, broker.port, clean_start=False)
            client.reconnect()
            numbers.append(client.connection)
            client.abort()
            clock.advance(0.001)
    assert numbers == sorted(set(numbers))


def test_connections_are_numbered_upwards_on_a_clock_that_stands_still_or_was_set_back() -> None:
    clock = FakeClock(now_us=5)
    client = BulkClient("one", MQTTProtocolVersion.MQTTv5, clock, lambda *_: None, least_connection=7)
    numbers = []
    with FakeBroker() as broker:
        client.connect_async(broker.host, broker.port, clean_start=False)
        for _ in range(3):
            client.reconnect()
            numbers.append(client.connection)
            client.abort()
    assert numbers == [7, 8, 9]
