"""No loop turns without a reason. Turns are counted against what could cause them, so that the machine does not matter:
a loop that asks again and again for work makes hundreds of thousands in the time that one of these tests takes."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp_ingest.config.load import load
from esp_ingest.config.settings import MqttSettings
from esp_ingest.ingest.batch import Batch, Outcome
from esp_ingest.ingest.pipeline import BatchQueue, Pipeline
from esp_ingest.ingest.writer_stage import Stage
from esp_ingest.ingest.writer_thread import WriterThread
from esp_ingest.model import Delivery
from esp_ingest.mqtt.network import TURN_SECONDS
from esp_ingest.mqtt.source import MqttSource
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.metrics import Metrics
from esp_ingest.store.spool.spool import Spool
from esp_ingest.telemetry.decode import Decoder
from tests.support.fake_broker import PUBACK, SUBSCRIBE, Connection, FakeBroker, Packet, publish
from tests.support.fake_clock import FakeClock
from tests.support.fake_source import FakeSource
from tests.support.fake_store import FakeStore

IDLE_SECONDS = 0.1  # what a turn of the pipeline waits if nothing happens
REAL_SECONDS = 0.5


# -- The pipeline in time that the test makes: whatever happens, and in whatever order.


class Source(FakeSource):
    """Counts what it gives; ``partial_bytes`` are here of a message whose rest does not come."""

    partial_bytes = 0
    moved = 0

    def buffered(self) -> tuple[int, int]:
        messages, size = super().buffered()
        return messages, size + self.partial_bytes

    def take(self, max_messages: int, max_bytes: int, timeout_seconds: float, *, at_least: int = 1) -> list[Delivery]:
        taken = super().take(max_messages, max_bytes, timeout_seconds, at_least=at_least)
        self.moved += bool(taken)
        return taken


class StageByHand:
    """Gives back its oldest batch when it is told to. Who polls it before waits, in time of ``clock``."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.waiting: list[Batch] = []
        self.finished = self.moved = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    @property
    def has_room(self) -> bool:
        return len(self.waiting) < 3

    def submit(self, batch: Batch) -> None:
        self.waiting.append(batch)
        self.moved += 1

    def poll(self, timeout_seconds: float) -> tuple[Batch, Outcome] | None:
        if not self.finished:
            self._clock.sleep(timeout_seconds)
            return None
        self.finished -= 1
        self.moved += 1
        return self.waiting.pop(0), Outcome()


HAPPENS = st.lists(
    st.one_of(
        st.tuples(st.just("published"), st.integers(1, 30)),
        st.tuples(st.just("partial"), st.sampled_from([0, 1, 70_000])),
        st.tuples(st.just("finished"), st.just(1)),
        st.tuples(st.just("seconds"), st.sampled_from([0, 1, 60])),
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(
    happens=HAPPENS,
    max_rows=st.sampled_from([1, 7, 1_000]),
    max_bytes=st.sampled_from([1_024, 1_000_000]),
    min_interval_seconds=st.sampled_from([0.0, 0.3, 5.0]),
)
def test_each_turn_of_the_pipeline_moves_something_or_waits(
    happens: list[tuple[str, int]], max_rows: int, max_bytes: int, min_interval_seconds: float
) -> None:
    bounds = {"max_rows": max_rows, "max_bytes": max_bytes, "min_interval_seconds": min_interval_seconds}
    given = load(batch=bounds)
    clock = FakeClock()
    source, stage = Source(clock), StageByHand(clock)
    pipeline = Pipeline(source, stage, clock, Metrics(), given.batch, given.service)
    turns, started = 0, clock.monotonic()
    for what, number in happens:
        until = clock.monotonic()
        if what == "published":
            for _ in range(number):
                source.session.publish(b"esp/W1/telemetry", b"x" * 300)
        elif what == "partial":
            source.partial_bytes = number
        elif what == "finished":
            stage.finished += len(stage.waiting) > stage.finished
        else:
            until += number
        most = turns + 1_000
        while turns < most and (clock.monotonic() < until or stage.finished or not clock.slept or clock.slept[-1] == 0):
            clock.slept.clear()
            pipeline.run_once(IDLE_SECONDS)
            turns += 1
    # A turn may wait for less, until a batch is due: that batch is then cut.
    allowed = source.moved + 2 * stage.moved + (clock.monotonic() - started) / IDLE_SECONDS + 2
    assert turns <= allowed, f"{turns} turns, {source.moved} takes, {stage.moved} batches"


# -- Real threads, sockets and time: in half a second there is time for a handful of turns, or for a spin.


class CountedSource(MqttSource):
    """``turns`` of the network thread."""

    turns = 0

    def on_turn(self, partial_bytes: int) -> None:
        self.turns += 1
        super().on_turn(partial_bytes)


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as fake:
        yield fake


@pytest.fixture
def source(broker: FakeBroker) -> Iterator[CountedSource]:
    chosen = MqttSettings(
        host=broker.host,
        port=broker.port,
        buffer_max_bytes=1_048_576,
        receive_maximum=1_000,
        reconnect_min_seconds=0.2,
        reconnect_max_seconds=0.4,
    )
    made = CountedSource(chosen, SystemClock(), Metrics())
    made.start()
    yield made
    made.close()


def turns_of_network(source: CountedSource) -> int:
    """In half a second."""
    before = source.turns
    time.sleep(REAL_SECONDS)
    return source.turns - before


def turns_of_pipeline(source: MqttSource, queue: BatchQueue) -> int:
    """In half a second."""
    given = load()
    pipeline = Pipeline(source, queue, SystemClock(), Metrics(), given.batch, given.service)
    turns, until = 0, time.monotonic() + REAL_SECONDS
    while time.monotonic() < until:
        pipeline.run_once(IDLE_SECONDS)
        turns += 1
    return turns


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def fill(broker: FakeBroker, source: MqttSource) -> None:
    """Send more than the buffer takes, in whole messages and part of one."""
    until(lambda: source.subscribed)
    for packet_id in range(1, 150):
        broker.connection().send(publish(b"esp/W1/telemetry", b"x" * 10_000, packet_id=packet_id))
    until(source.is_full)
    time.sleep(0.05)


MOST_NETWORK_TURNS = 2 + REAL_SECONDS / TURN_SECONDS
MOST_PIPELINE_TURNS = 2 + REAL_SECONDS / IDLE_SECONDS
BATCH = Batch([Delivery(b"esp/W1/telemetry", b"{}", 0, 0, 1, 1_700_000_000_000_000)], 2)


@pytest.mark.parametrize("is_busy", [False, True])
@pytest.mark.parametrize("is_partial", [False, True])
def test_nothing_to_do_is_no_reason_to_turn(
    broker: FakeBroker, source: CountedSource, is_busy: bool, is_partial: bool
) -> None:
    """Also while a batch is written, and with part of a message here."""
    until(lambda: source.subscribed)
    if is_partial:
        broker.connection().send(publish(b"esp/W1/telemetry", b"x" * 10_000, packet_id=1)[:9_000])
    time.sleep(0.05)
    queue = BatchQueue()
    if is_busy:
        queue.submit(BATCH)
    before = source.turns
    assert turns_of_pipeline(source, queue) <= MOST_PIPELINE_TURNS
    assert source.turns - before <= MOST_NETWORK_TURNS


def test_a_full_buffer_is_no_reason_to_turn(broker: FakeBroker, source: CountedSource) -> None:
    """There is more to read than there is room for: the network waits for the pipeline, which waits for the stage."""
    fill(broker, source)
    assert turns_of_network(source) <= MOST_NETWORK_TURNS


def test_a_broker_that_does_not_answer_is_no_reason_to_turn(broker: FakeBroker, source: CountedSource) -> None:
    broker.suback = lambda _, __: None
    broker.connection().wait_for(SUBSCRIBE)
    assert turns_of_network(source) <= MOST_NETWORK_TURNS


def test_a_broker_that_hangs_up_is_no_reason_to_turn(broker: FakeBroker, source: CountedSource) -> None:
    """With a full buffer too: there is nobody to read its end."""
    fill(broker, source)
    broker.connection().sock.shutdown(socket.SHUT_WR)
    assert turns_of_network(source) <= MOST_NETWORK_TURNS + REAL_SECONDS / 0.2  # a connection every 0.2 s at most


def test_a_broker_that_reads_nothing_is_no_reason_to_turn(broker: FakeBroker, source: CountedSource) -> None:
    """More acknowledgements are on their way than its socket takes."""
    until(lambda: source.subscribed)
    broker.connection().sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    reads_on = threading.Event()

    def read_no_more(_: Connection, received: Packet) -> None:
        if received.kind == PUBACK:
            reads_on.wait(10)

    broker.on_packet = read_no_more
    deliveries = [Delivery(b"t", b"", 1, number, source.connection, 1) for number in range(1, 65_536)]
    for _ in range(40):
        source.settle(deliveries)
    time.sleep(0.3)
    assert turns_of_network(source) <= MOST_NETWORK_TURNS
    broker.connection().sock.shutdown(socket.SHUT_RDWR)
    reads_on.set()


@pytest.mark.parametrize("is_away", [False, True])
@pytest.mark.parametrize("has_backlog", [False, True])
def test_the_writer_waits_if_it_has_nothing_to_write(tmp_path: Path, is_away: bool, has_backlog: bool) -> None:
    """Also while the database is away, with a spool that waits for it."""
    given = load(database={"retry_min_seconds": 0.2})
    spool = Spool(tmp_path, 1_048_576, 65_536)
    if has_backlog:
        spool.append(BATCH.deliveries)
    store, queue, beats = FakeStore(), BatchQueue(), 0
    store.away = is_away

    def beat() -> None:
        nonlocal beats
        beats += 1

    decode = Decoder(given.telemetry, "esp").decode
    stage = Stage(given, store, spool, None, decode, SystemClock(), Metrics(), queue, beat)
    writer = WriterThread(stage, queue)
    writer.start()
    time.sleep(REAL_SECONDS)
    queue.hurry()
    assert writer.close(10)
    spool.close()
    assert 1 <= beats <= 8


@pytest.mark.parametrize("has_backlog", [False, True])
def test_in_an_outage_the_writer_looks_once_a_second_and_at_each_try(tmp_path: Path, has_backlog: bool) -> None:
    given, clock, store = load(), FakeClock(), FakeStore()
    spool = Spool(tmp_path, 1_048_576, 65_536)
    if has_backlog:
        spool.append(BATCH.deliveries)
    store.away = True
    decode = Decoder(given.telemetry, "esp").decode
    metrics = Metrics()
    stage = Stage(given, store, spool, None, decode, clock, metrics, BatchQueue())
    turns, until = 0, clock.monotonic() + 300
    while clock.monotonic() < until:
        clock.sleep(stage.idle())
        turns += 1
    spool.close()
    tries = metrics.registry.get_sample_value("esp_ingest_database_retries_total") or 0
    assert turns <= 300 + 2 * tries + 2
