"""What every Source does, fake and real: subclass SourceContract with a ``harness`` fixture, as test_mqtt_source.py."""

import time
from typing import Protocol

import pytest

from esp_ingest.interfaces import Source
from esp_ingest.model import Delivery
from tests.support.fake_source import BrokerSession

TOPIC = "esp/W1/telemetry"
LARGE = 1 << 30
PATIENCE_SECONDS = 10.0


class Harness(Protocol):
    """A source on a broker that is a BrokerSession."""

    source: Source
    session: BrokerSession

    def publish(self, *payloads: bytes, topic: bytes | str = TOPIC, qos: int = 1) -> None: ...
    def break_connection(self, *, session_kept: bool = True) -> None: ...
    def stop_receiving(self) -> None: ...


def take(source: Source, count: int, max_messages: int = LARGE, max_bytes: int = LARGE) -> list[Delivery]:
    """``count`` deliveries, however many takes it needs."""
    taken: list[Delivery] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(taken) < count and time.monotonic() < deadline:
        taken += source.take(min(max_messages, count - len(taken)), max_bytes, 0.2)
    assert len(taken) == count
    return taken


def eventually(harness: Harness, acked: list[bytes]) -> None:
    """The broker has these acknowledgements, in this order."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while harness.session.acked != acked and time.monotonic() < deadline:
        time.sleep(0.005)
    assert harness.session.acked == acked


def payloads(deliveries: list[Delivery]) -> list[bytes]:
    return [delivery.payload for delivery in deliveries]


@pytest.mark.usefixtures("harness")
class SourceContract:
    def test_nothing_there_is_an_empty_list(self, harness: Harness) -> None:
        assert harness.source.take(10, LARGE, 0.01) == []
        assert harness.source.buffered() == (0, 0)

    def test_deliveries_come_in_order_with_their_fields(self, harness: Harness) -> None:
        harness.publish(b"a", b"b", b"c")
        taken = take(harness.source, 3)
        assert payloads(taken) == [b"a", b"b", b"c"]
        assert {(d.topic, d.qos, d.redelivered) for d in taken} == {(TOPIC.encode(), 1, False)}
        assert len({d.packet_id for d in taken}) == 3
        assert {d.connection for d in taken} == {harness.source.connection}
        received = [d.received_us for d in taken]
        assert received == sorted(set(received)), "a time of its own for each: equal rejects must not look like one"

    def test_max_messages_bounds_a_take(self, harness: Harness) -> None:
        harness.publish(*(b"%d" % n for n in range(10)))
        first = take(harness.source, 3)
        assert payloads(first + take(harness.source, 7)) == [b"%d" % n for n in range(10)]
        assert len(harness.source.take(5, LARGE, 0.01)) == 0

    def test_max_bytes_bounds_a_take_but_one_message_always_comes(self, harness: Harness) -> None:
        harness.publish(b"x" * 100, b"y" * 100, b"z" * 100)
        take_all = [take(harness.source, 1, max_bytes=250)]
        take_all.append(take(harness.source, 1, max_bytes=10))
        take_all.append(take(harness.source, 1))
        assert [payloads(each)[0][:1] for each in take_all] == [b"x", b"y", b"z"]

    def test_buffered_counts_what_was_not_taken(self, harness: Harness) -> None:
        harness.publish(b"12", b"345", b"6789")
        take(harness.source, 1)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while harness.source.buffered() != (2, 7) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert harness.source.buffered() == (2, 7)

    def test_settling_acknowledges_in_the_order_given(self, harness: Harness) -> None:
        harness.publish(b"a", b"b", b"c")
        taken = take(harness.source, 3)
        assert harness.source.settle(taken[:2]) == 2
        assert harness.source.settle(taken[2:]) == 1
        eventually(harness, [b"a", b"b", b"c"])
        assert harness.session.holds() == []

    def test_settling_nothing_does_nothing(self, harness: Harness) -> None:
        assert harness.source.settle([]) == 0

    def test_nothing_is_acknowledged_before_it_is_settled(self, harness: Harness) -> None:
        harness.publish(b"a")
        take(harness.source, 1)
        harness.source.take(1, LARGE, 0.05)
        assert harness.session.acked == []

    def test_qos_0_is_settled_without_an_acknowledgement(self, harness: Harness) -> None:
        harness.publish(b"a", qos=0)
        harness.publish(b"b")
        taken = take(harness.source, 2)
        assert [(d.qos, d.packet_id > 0) for d in taken] == [(0, False), (1, True)]
        assert harness.source.settle(taken) == 1
        eventually(harness, [b"b"])

    def test_settled_messages_open_the_window_again(self, harness: Harness) -> None:
        harness.session.window = 5
        sent = [b"%d" % n for n in range(12)]
        harness.publish(*sent)
        came: list[bytes] = []
        for count in (5, 5, 2):
            taken = take(harness.source, count)
            assert harness.source.take(1, LARGE, 0.02) == [], "more came than the window allows"
            came += payloads(taken)
            assert harness.source.settle(taken) == count
        assert came == sent
        eventually(harness, sent)

    def test_unsettled_messages_come_again_on_the_next_connection(self, harness: Harness) -> None:
        harness.publish(b"a", b"b")
        first = take(harness.source, 2)
        harness.source.settle(first[:1])
        eventually(harness, [b"a"])
        harness.break_connection()
        (again,) = take(harness.source, 1)
        assert (again.payload, again.redelivered > 0) == (b"b", True)
        assert again.connection == harness.source.connection > first[1].connection

    def test_an_old_delivery_is_never_acknowledged_on_a_new_connection(self, harness: Harness) -> None:
        harness.publish(b"a", b"b")
        old = take(harness.source, 2)
        harness.break_connection()
        new = take(harness.source, 2)
        assert new[0].packet_id == old[0].packet_id, "the packet id must be reused for this test to mean anything"
        assert harness.source.settle(old) == 0
        harness.source.take(1, LARGE, 0.05)
        assert harness.session.acked == []
        assert harness.source.settle(new) == 2
        eventually(harness, [b"a", b"b"])

    def test_what_was_received_survives_a_session_that_the_broker_lost(self, harness: Harness) -> None:
        harness.publish(b"a")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while harness.source.buffered()[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.005)
        harness.break_connection(session_kept=False)
        assert payloads(take(harness.source, 1)) == [b"a"]

    def test_a_topic_need_not_be_utf8(self, harness: Harness) -> None:
        harness.publish(b"a", topic=b"esp/\xff/telemetry")
        assert take(harness.source, 1)[0].topic == b"esp/\xff/telemetry"

    def test_no_new_work_after_stop_receiving_but_old_work_is_settled(self, harness: Harness) -> None:
        harness.publish(b"a")
        taken = take(harness.source, 1)
        harness.stop_receiving()
        harness.publish(b"b")
        assert harness.source.take(10, LARGE, 0.05) == []
        assert harness.source.settle(taken) == 1
        eventually(harness, [b"a"])
        assert harness.session.holds() == [b"b"]
