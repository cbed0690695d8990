"""The hand-off, the backoff and the small parts of the session, without a network."""

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp_ingest.config.settings import MqttSettings
from esp_ingest.model import Delivery, weight_of
from esp_ingest.mqtt.client_setup import SessionRecord, Topics, session_file
from esp_ingest.mqtt.source import Buffer
from esp_ingest.service.backoff import Backoff

LARGE = 1 << 30


def delivery(number: int, size: int = 10, qos: int = 1) -> Delivery:
    return Delivery(b"esp/W1/telemetry", bytes(size), qos, number if qos else 0, 1, number)


def put(buffer: Buffer, *chunk: Delivery, now: float = 0.0) -> int:
    return buffer.put(list(chunk), sum(len(each.payload) for each in chunk), now)


class TestBuffer:
    @given(
        st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=20), max_size=12),
        st.lists(st.tuples(st.integers(1, 30), st.integers(1, 300)), min_size=1, max_size=40),
    )
    def test_takes_are_bounded_in_order_and_complete(
        self, chunks: list[list[int]], bounds: list[tuple[int, int]]
    ) -> None:
        buffer = Buffer(10_000, LARGE)
        sent = []
        for chunk in chunks:
            made = [delivery(len(sent) + at, size) for at, size in enumerate(chunk, 1)]
            put(buffer, *made)
            sent += made
        came: list[Delivery] = []
        for max_messages, max_bytes in [*bounds, (LARGE, LARGE)]:
            taken = buffer.take(max_messages, max_bytes, 0)
            size = sum(len(each.payload) for each in taken)
            assert len(taken) <= max_messages
            assert size <= max_bytes or len(taken) == 1
            assert taken or len(came) == len(sent)
            came += taken
            left = sent[len(came) :]
            assert buffer.size() == (len(left), sum(len(each.payload) for each in left))
        assert came == sent
        buffer.settle(len(came))
        assert (buffer.unsettled(), buffer.oldest_seconds(99.0)) == (0, 0.0)

    def test_take_wakes_on_the_first_message(self) -> None:
        buffer = Buffer(10, LARGE)
        threading.Timer(0.05, put, (buffer, delivery(1))).start()
        assert len(buffer.take(10, LARGE, 30.0)) == 1

    def test_wake_ends_a_wait(self) -> None:
        buffer = Buffer(10, LARGE)
        threading.Timer(0.05, buffer.wake).start()
        assert buffer.take(10, LARGE, 30.0) == []

    def test_the_age_is_that_of_the_oldest_unsettled(self) -> None:
        buffer = Buffer(100, LARGE)
        put(buffer, delivery(1), delivery(2), now=100.0)
        put(buffer, delivery(3), now=105.0)
        assert buffer.oldest_seconds(110.0) == 10.0
        buffer.settle(1)
        assert buffer.oldest_seconds(110.0) == 10.0
        buffer.settle(1)
        assert buffer.oldest_seconds(110.0) == 5.0
        buffer.settle(1)
        assert buffer.oldest_seconds(110.0) == 0.0

    def test_qos_1_is_never_dropped(self) -> None:
        buffer = Buffer(3, 50)
        assert put(buffer, *(delivery(n) for n in range(1, 5))) == 0
        assert put(buffer, delivery(5), delivery(0, qos=0), delivery(6, qos=2)) == 1
        assert [each.qos for each in buffer.take(10, LARGE, 0)] == [1, 1, 1, 1, 1, 2]

    @pytest.mark.parametrize(("messages", "max_bytes"), [(6, LARGE), (2, 20)])
    def test_full_by_messages_or_by_bytes(self, messages: int, max_bytes: int) -> None:
        buffer = Buffer(3, max_bytes)
        put(buffer, *(delivery(n) for n in range(1, messages)))
        assert not buffer.is_full()
        put(buffer, delivery(messages))
        assert buffer.is_full()
        buffer.take(1, LARGE, 0)
        assert not buffer.is_full()


class TestBackoff:
    def test_grows_to_the_longest_pause(self) -> None:
        backoff = Backoff(1.0, 30.0, lambda low, high: high)
        assert [backoff.next_seconds() for _ in range(7)] == [2, 4, 8, 16, 30, 30, 30]

    def test_jitter_reaches_down_to_the_shortest_pause(self) -> None:
        backoff = Backoff(1.0, 30.0, lambda low, high: low)
        assert [backoff.next_seconds() for _ in range(5)] == [1.0] * 5

    def test_a_short_connection_resets_nothing_a_lasting_one_does(self) -> None:
        backoff = Backoff(1.0, 30.0, lambda low, high: high)
        assert [backoff.next_seconds(29.0) for _ in range(3)] == [2, 4, 8]
        assert backoff.next_seconds(30.0) == 2

    def test_a_contested_session_is_left_alone_for_long(self) -> None:
        backoff = Backoff(1.0, 30.0, lambda low, high: low)
        assert backoff.next_seconds(5.0, is_contested=True) == 15.0

    @given(st.floats(0.001, 60), st.floats(0.001, 3600), st.integers(1, 200))
    def test_stays_within_its_bounds(self, low: float, more: float, attempts: int) -> None:
        backoff = Backoff(low, low + more)
        assert all(low <= backoff.next_seconds() <= low + more for _ in range(attempts))


class TestTopics:
    @pytest.mark.parametrize(
        ("topic", "stray"),
        [
            (b"esp/W1/telemetry", None),
            (b"old/W1/telemetry", "old/+/telemetry"),
            (b"old/W1/diagnostics", None),
            (b"a/b/W1/telemetry", None),
            (b"\xff/W1/telemetry", None),
            (b"telemetry", None),
        ],
    )
    def test_the_filter_behind_a_stray_message(self, topic: bytes, stray: str | None) -> None:
        assert Topics(MqttSettings()).stray_filter(topic) == stray

    def test_a_share_group_supersedes_the_plain_filter(self) -> None:
        topics = Topics(MqttSettings(share_group="g"))
        assert (topics.wanted, topics.superseded) == ("$share/g/esp/+/telemetry", {"esp/+/telemetry"})
        assert Topics(MqttSettings()).superseded == set()


class TestSessionRecord:
    def test_is_read_again_by_the_next_process(self, tmp_path: Path) -> None:
        SessionRecord(MqttSettings(), tmp_path / "state").keep({"b", "a"})
        assert SessionRecord(MqttSettings(), tmp_path / "state").filters == {"a", "b"}

    def test_belongs_to_one_session(self, tmp_path: Path) -> None:
        SessionRecord(MqttSettings(), tmp_path).keep({"a"})
        assert SessionRecord(MqttSettings(client_id="other"), tmp_path).filters == set()

    @pytest.mark.parametrize(
        "text", ["", "[]", "[" * 100_000, "{}", '{"session": 1}', "\x00", '{"session": "esp-ingest@127.0.0.1:1883"}']
    )
    def test_a_damaged_file_is_survived(self, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / session_file("esp-ingest")).write_text(text)
        assert SessionRecord(MqttSettings(), tmp_path).filters == set()

    def test_a_folder_that_cannot_be_written_is_survived(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").write_text("")
        record = SessionRecord(MqttSettings(), tmp_path / "file" / "below")
        record.keep({"a"})
        assert record.filters == {"a"}
        assert caplog.messages == ["mqtt session file not read", "mqtt session file not written"]


def test_a_packet_that_is_being_received_counts_but_never_stops_its_own_rest() -> None:
    buffer = Buffer(10, 1_000)
    buffer.receiving(5_000)
    assert buffer.size() == (0, 5_000)
    assert not buffer.is_full(), "nothing else is here, so nobody would ever make room"
    put(buffer, delivery(1, 10))
    assert buffer.is_full()
    buffer.receiving(0)
    assert not buffer.is_full()


def test_long_topics_count_among_the_bytes() -> None:
    buffer = Buffer(10, 100_000)
    long = [delivery(packet_id, 10)._replace(topic=b"t" * 60_000) for packet_id in (1, 2)]
    buffer.put(long, sum(map(weight_of, long)), 0.0)
    assert buffer.is_full()
    assert len(buffer.take(10, 100_000, 0)) == 1
    assert buffer.size() == (1, 60_010)
