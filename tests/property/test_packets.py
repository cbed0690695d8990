"""Any stream of valid packets, cut anywhere, gives the same deliveries; no bytes at all raise out of the reader."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fake_broker import PINGRESP, PUBACK, PUBREL, SUBACK, packet, publish
from tests.support.mqtt_clients import ReadingClient


@dataclass(frozen=True)
class Message:
    topic: bytes
    payload: bytes
    qos: int
    packet_id: int
    dup: bool
    retain: bool
    properties: bytes

    def encoded(self, is_mqtt5: bool) -> bytes:
        return publish(
            self.topic,
            self.payload,
            qos=self.qos,
            packet_id=self.packet_id,
            dup=self.dup,
            retain=self.retain,
            properties=self.properties if is_mqtt5 else None,
        )


payloads = st.one_of(st.binary(max_size=40), st.integers(90, 20_000).map(bytes))


@st.composite
def messages(draw: st.DrawFn) -> Message:
    qos = draw(st.integers(0, 2))
    retain = draw(st.booleans())
    payload = draw(payloads)
    return Message(
        topic=draw(st.one_of(st.just(b"esp/W1/telemetry"), st.binary(min_size=1, max_size=200))),
        payload=b"retained" + payload if retain else b"." + payload,
        qos=qos,
        packet_id=draw(st.integers(1, 0xFFFF)),
        dup=draw(st.booleans()),
        retain=retain,
        properties=draw(st.one_of(st.just(b""), st.binary(max_size=300))),
    )


others = st.sampled_from(
    [packet(PINGRESP, b""), packet(PUBACK, b"\x12\x34"), packet(PUBREL, b"\x00\x01", 2), packet(SUBACK, b"\0\1\0\1")]
)
streams = st.lists(st.one_of(messages(), others), max_size=12)
cuts = st.lists(st.one_of(st.integers(1, 6), st.integers(1, 3_000)), min_size=1, max_size=60)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    cut = []
    at = 0
    for size in sizes:
        cut.append(data[at : at + size])
        at += size
    return [*cut, data[at:]]


@given(streams, cuts, st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_cut_gives_the_same_deliveries(stream: list[Message | bytes], sizes: list[int], is_mqtt5: bool) -> None:
    data = b"".join(each.encoded(is_mqtt5) if isinstance(each, Message) else each for each in stream)
    with ReadingClient(is_mqtt5=is_mqtt5) as reading:
        reading.feed(*pieces(data, sizes))
        assert reading.is_open
        assert [(d.topic, d.payload, d.qos, d.packet_id, d.redelivered) for d in reading.deliveries] == [
            (m.topic, m.payload, m.qos, m.packet_id if m.qos else 0, m.dup) for m in stream if isinstance(m, Message)
        ]


@given(st.lists(st.one_of(st.binary(max_size=60), others), max_size=8), cuts, st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_garbage_never_raises(parts: list[bytes], sizes: list[int], is_mqtt5: bool, is_accepted: bool) -> None:
    with ReadingClient(is_mqtt5=is_mqtt5, is_accepted=is_accepted) as reading:
        reading.feed(*pieces(b"".join(parts), sizes))
        for delivery in reading.deliveries:
            assert delivery.topic
            assert delivery.qos in (0, 1, 2)
            assert (delivery.packet_id > 0) == (delivery.qos > 0)


@given(messages(), st.data(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_damaged_message_never_takes_bytes_of_its_neighbour(
    message: Message, data: st.DataObject, is_mqtt5: bool
) -> None:
    """One byte of a message's body changed: it may be refused or read differently, but the neighbour is itself or not
    delivered at all."""
    body = bytearray(message.encoded(is_mqtt5))
    start = 1 + next(at for at, byte in enumerate(body[1:], 1) if byte < 128)
    body[data.draw(st.integers(start, len(body) - 1))] = data.draw(st.integers(0, 255))
    neighbour = publish(b"esp/W2/telemetry", b".neighbour", packet_id=4_242, properties=b"" if is_mqtt5 else None)
    with ReadingClient(is_mqtt5=is_mqtt5) as reading:
        reading.feed(bytes(body) + neighbour)
        seen = reading.deliveries
        assert len(seen) in (0, 2)
        if seen:
            assert (seen[1].topic, seen[1].payload) == (b"esp/W2/telemetry", b".neighbour")
            assert b"neighbour" not in seen[0].payload or b"neighbour" in message.payload
