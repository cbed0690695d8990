"""The writer stage: patience, spooling, draining, isolation. Database and clock are fakes, the spool is real."""

import gc
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from esp_ingest.config.load import load
from esp_ingest.config.settings import Settings
from esp_ingest.ingest.batch import Batch, Outcome
from esp_ingest.ingest.pipeline import BatchQueue
from esp_ingest.ingest.writer_stage import Stage
from esp_ingest.ingest.writer_thread import WriterThread
from esp_ingest.interfaces import Store, WriteResult
from esp_ingest.model import Decoded, Delivery, RejectReason
from esp_ingest.service.health import Health
from esp_ingest.service.metrics import Metrics
from esp_ingest.store.spool.spool import Spool, SpoolFull
from esp_ingest.store.write.writer import PostgresStore
from esp_ingest.telemetry.decode import Decoder
from tests.support.fake_clock import FakeClock
from tests.support.fake_store import FakePendingWrite, FakeStore
from tests.support.inline_stage import InlineQueue


class Rig:
    """A stage with everything around it in memory, but for the spool."""

    def __init__(self, folder: Path, *, after_seconds: float = 10.0, spool: bool = True) -> None:
        self.settings: Settings = load(spool={"after_seconds": after_seconds}, batch={"max_rows": 5})
        self.clock = FakeClock()
        self.store = FakeStore()
        self.metrics = Metrics()
        self.spool = Spool(folder / "spool", 10_000_000, 1_000_000) if spool else None
        self.decoder = Decoder(self.settings.telemetry, "esp")
        self.decode: Callable[[list[Delivery]], Decoded] = self.decoder.decode
        self.beat: Callable[[], None] = lambda: None
        self.queue = InlineQueue(lambda seconds: self.pause(seconds))
        self.pause: Callable[[float], None] = self.clock.sleep
        self.stage = self.queue.stage = self.new_stage(self.queue)

    def new_stage(self, queue: BatchQueue, store: Store | None = None, spool: Any = None) -> Stage:
        """A stage on the same parts, but for those that are given."""
        return Stage(
            self.settings,
            store or self.store,
            spool or self.spool,
            None,
            lambda deliveries: self.decode(deliveries),
            self.clock,
            self.metrics,
            queue,
            lambda: self.beat(),
        )

    def threaded(self) -> tuple[BatchQueue, WriterThread]:
        """A stage in a thread that has not started yet, and its queue."""
        queue = BatchQueue()
        self.stage = self.new_stage(queue)
        return queue, WriterThread(self.stage, queue)

    def batch(self, first: int, count: int) -> Batch:
        now_us = self.clock.now_us()
        return Batch(
            [
                Delivery(
                    b"esp/W1/telemetry",
                    json.dumps({"timestamp": now_us // 1000 - 10_000 + number, "pip": number}).encode(),
                    1,
                    number + 1,
                    1,
                    now_us,
                )
                for number in range(first, first + count)
            ]
        )

    def value(self, name: str, **labels: str) -> float:
        found = self.metrics.registry.get_sample_value(f"esp_ingest_{name}", labels)
        assert found is not None, name
        return found


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    assert made.spool is not None
    made.spool.close()


def test_a_batch_is_written_and_counted(rig: Rig) -> None:
    outcome = rig.stage.process(rig.batch(0, 3))
    assert (outcome.written, outcome.spooled) == (3, 0)
    assert rig.value("readings_written_total") == 3
    assert rig.value("database_up") == 1


def test_a_short_outage_is_waited_out_with_growing_pauses(rig: Rig) -> None:
    rig.store.failures = ["before"] * 4
    outcome = rig.stage.process(rig.batch(0, 3))
    assert outcome.written == 3
    assert len(rig.clock.slept) == 4
    assert rig.value("database_retries_total") == 4


def test_a_long_outage_goes_to_the_spool_and_drains_in_order(rig: Rig) -> None:
    rig.store.away = True
    assert rig.stage.process(rig.batch(0, 3)).spooled == 3
    assert rig.clock.monotonic() - 1_000.0 >= rig.settings.spool.after_seconds
    before = rig.clock.monotonic()
    assert rig.stage.process(rig.batch(3, 3)).spooled == 3
    assert rig.clock.monotonic() - before < 1, "the second batch does not wait again"
    assert rig.value("spool_messages") == 6

    rig.store.away = False
    rig.clock.sleep(60)
    while rig.stage.spooling:
        rig.stage.idle()
    assert [key[1] for key in rig.store.telemetry] == sorted(key[1] for key in rig.store.telemetry)
    assert len(rig.store.telemetry) == 6
    assert rig.value("spool_messages") == 0
    assert rig.value("spool_drained_total") == 6
    assert rig.stage.process(rig.batch(6, 1)).written == 1, "live again"


def test_while_the_spool_holds_anything_live_messages_go_through_it(rig: Rig) -> None:
    rig.store.away = True
    rig.stage.process(rig.batch(0, 3))
    rig.store.away = False
    assert rig.stage.process(rig.batch(3, 3)).spooled == 3, "first in, first out"


def test_a_commit_whose_outcome_is_unknown_is_written_again_harmlessly(rig: Rig) -> None:
    rig.store.failures = ["after"]
    outcome = rig.stage.process(rig.batch(0, 3))
    assert (outcome.written, outcome.duplicates) == (0, 3)
    assert len(rig.store.telemetry) == 3


def test_items_add_up_when_a_batch_with_a_reject_is_written_again(rig: Rig) -> None:
    rig.store.failures = ["after"]
    batch = rig.batch(0, 3)
    batch.deliveries.append(Delivery(b"esp/W1/telemetry", b"not json", 1, 9, 1, rig.clock.now_us()))
    assert rig.stage.process(batch).duplicates == 4
    assert rig.value("readings_rejected_total", reason="invalid_json") == 0, "it was stored by the first write"
    assert rig.value("readings_received_total") == rig.value("readings_duplicate_total") == 4
    assert rig.value("batches_written_total", path="staging") == 1


def test_what_drains_in_vain_is_not_received_twice(rig: Rig) -> None:
    rig.store.away = True
    rig.stage.process(rig.batch(0, 3))
    for _ in range(3):
        rig.clock.sleep(60)
        rig.stage.idle()
    assert rig.value("readings_received_total") == rig.value("readings_spooled_total") == 3, (
        "once, before it was spooled"
    )
    rig.store.away = False
    rig.clock.sleep(60)
    rig.stage.idle()
    assert (rig.value("readings_received_total"), rig.value("readings_written_total")) == (6, 3)


class Watched(Decoded):
    """Tells whether anybody still holds it."""

    __slots__ = ("__weakref__",)


def test_failed_tries_leave_nothing_behind(rig: Rig) -> None:
    """A failed connect of psycopg is a cycle that holds the frames below it, and so the batch: a gigabyte an hour."""
    rig.store.away = True
    rig.stage.process(rig.batch(0, 3))
    seen: list[weakref.ref[Watched]] = []

    def decode(deliveries: list[Delivery]) -> Decoded:
        decoded = rig.decoder.decode(deliveries)
        watched = Watched(decoded.readings, decoded.rejects)
        seen.append(weakref.ref(watched))
        return watched

    rig.decode = decode
    absent = PostgresStore(load(database={"dsn": "postgresql://x@127.0.0.1:1/x"}).database)
    rig.stage = rig.new_stage(rig.queue, absent)
    gc.disable()  # what it would do at some time is no bound
    gc.freeze()  # as the daemon does
    try:
        for _ in range(10):
            rig.clock.sleep(60)
            rig.stage.idle()
        assert len(seen) == 10
        assert sum(each() is not None for each in seen) <= 1
    finally:
        gc.unfreeze()
        gc.enable()


def test_a_full_spool_stops_acknowledging_and_loses_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path, after_seconds=0)
    assert rig.spool is not None
    rig.spool.max_bytes = 1
    rig.store.away = True

    def heal_after_three_waits(seconds: float) -> None:
        rig.clock.sleep(seconds)
        rig.store.away = len(rig.clock.slept) < 3

    rig.pause = heal_after_three_waits
    outcome = rig.stage.process(rig.batch(0, 3))
    assert outcome.written == 3, "it waited for the database instead"
    assert rig.value("spool_written_total") == 0
    rig.spool.close()


def test_our_own_failure_on_one_message_costs_only_that_message(rig: Rig) -> None:
    decode = rig.decode

    def fails_on_two(deliveries: list[Delivery]) -> Decoded:
        if any(b'"pip": 2}' in delivery.payload for delivery in deliveries):
            raise ZeroDivisionError
        return decode(deliveries)

    rig.decode = fails_on_two
    outcome = rig.stage.process(rig.batch(0, 5))
    assert (outcome.written, outcome.rejected) == (4, 1)
    assert [reject.reason for reject in rig.store.rejects.values()] == [RejectReason.INTERNAL_ERROR]


def test_hurrying_spools_at_once(rig: Rig) -> None:
    rig.store.away = True
    rig.queue.hurry()
    before = rig.clock.monotonic()
    assert rig.stage.process(rig.batch(0, 3)).spooled == 3
    assert rig.clock.monotonic() - before < 1


def wait_for(queue: BatchQueue) -> tuple[Batch, Outcome]:
    while True:
        finished = queue.poll(5.0)
        if finished is not None:
            return finished


def test_the_threads_error_is_raised_in_its_owner(rig: Rig) -> None:
    queue, thread = rig.threaded()

    def die(_batch: Batch) -> None:
        raise MemoryError

    rig.stage.process = die  # type: ignore[method-assign, assignment]
    thread.start()
    queue.submit(rig.batch(0, 1))
    with pytest.raises(MemoryError):
        wait_for(queue)


def test_a_store_that_never_comes_back_turns_readiness_then_liveness_red(rig: Rig) -> None:
    """The thread is there, and holds a batch, and does not move: only its beat tells."""
    health = Health(rig.clock, rig.settings.service)
    rig.beat = lambda: health.beat("writer")
    released = threading.Event()
    begin = rig.store.begin

    def hangs(*args: Any) -> FakePendingWrite:
        assert released.wait(20.0)
        return begin(*args)

    rig.store.begin = hangs  # type: ignore[method-assign]  # the store does not answer
    queue, thread = rig.threaded()
    thread.start()
    queue.submit(rig.batch(0, 1))
    assert queue.poll(0.2) is None
    stuck = rig.settings.service.stuck_after_seconds
    rig.clock.advance(stuck)
    assert health.ready()[1]["writer_loop"] == {"ok": False, "detail": f"has not moved for {stuck:.0f} s"}
    assert health.live()[0]
    rig.clock.advance(stuck / 2)
    assert health.live()[1]["writer_loop"] == {"ok": False, "detail": f"has not moved for {1.5 * stuck:.0f} s"}
    released.set()
    assert wait_for(queue)[1].written == 1
    assert thread.close(10.0)
    assert health.live()[0]


def test_a_thread_writes_what_is_submitted_and_ends_when_closed(rig: Rig) -> None:
    queue, thread = rig.threaded()
    thread.start()
    batch = rig.batch(0, 4)
    queue.submit(batch)
    finished = wait_for(queue)
    assert finished[0] is batch
    assert finished[1].written == 4
    assert not queue.busy
    assert thread.close(10.0)


def test_the_next_batch_is_decoded_while_the_database_reads_this_one(rig: Rig) -> None:
    first, second = rig.batch(0, 3), rig.batch(3, 2)
    inline = rig.queue
    inline.submit(first)
    inline.submit(second)
    begin, commit = rig.store.begin, rig.store.commit

    def looks_before(*args: Any) -> FakePendingWrite:
        assert second.decoded is None
        return begin(*args)

    def looks_before_the_commit(*args: Any) -> WriteResult:
        assert second.decoded is not None
        return commit(*args)

    rig.store.begin, rig.store.commit = looks_before, looks_before_the_commit  # type: ignore[method-assign]
    assert inline.poll(0.0) == (first, Outcome(written=3, committed=[first.decoded.readings]))  # type: ignore[union-attr]
    rig.store.begin, rig.store.commit = begin, commit  # type: ignore[method-assign]
    assert rig.store.prepared == 1
    rig.decode = lambda _: pytest.fail("it is decoded already")
    assert inline.poll(0.0) is None, "it might not be the last one"
    finished = inline.poll(0.0)
    assert finished is not None
    assert finished[1].written == 2
    assert rig.value("readings_received_total") == 5


def test_what_goes_to_the_spool_is_not_decoded_in_vain(rig: Rig) -> None:
    rig.store.away = True
    rig.stage.process(rig.batch(0, 3))
    batch = rig.batch(3, 3)
    assert rig.stage.process(batch).spooled == 3
    assert batch.decoded is None
    rig.queue.submit(batch)
    rig.store.away = False
    rig.clock.sleep(60)
    rig.stage.drain_step()
    assert rig.stage.spooling
    assert batch.decoded is None, "it waits behind what is spooled"


def test_a_mistake_in_looking_ahead_costs_nothing(rig: Rig) -> None:
    second = rig.batch(3, 2)
    rig.queue.submit(second)
    rig.store.prepare = lambda _: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    assert rig.stage.process(rig.batch(0, 3)).written == 3
    assert rig.stage.process(second).written == 2


def test_what_is_safe_is_given_back_while_the_next_batch_is_written(rig: Rig) -> None:
    """Or its acknowledgements would wait for as long as the database takes for the next one."""
    queue, thread = rig.threaded()
    begun, released = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]
    commit = rig.store.commit

    def slow(*args: Any) -> WriteResult:
        number = rig.store.writes - 1
        begun[number].set()
        assert released[number].wait(20.0)
        return commit(*args)

    rig.store.commit = slow  # type: ignore[method-assign]
    first, second = rig.batch(0, 3), rig.batch(3, 2)
    thread.start()
    queue.submit(first)
    assert begun[0].wait(20.0)
    queue.submit(second)
    released[0].set()
    assert begun[1].wait(20.0)
    assert queue.poll(0.0) == (first, Outcome(written=3, committed=[first.decoded.readings]))  # type: ignore[union-attr]
    released[1].set()
    assert wait_for(queue)[0] is second
    assert thread.close(10.0)


def test_what_is_safe_waits_no_longer_than_a_poll_for_a_next_batch_that_hangs(rig: Rig) -> None:
    queue, thread = rig.threaded()
    second_waits, begun, released = threading.Event(), threading.Event(), threading.Event()
    process = rig.stage.process

    def hangs(batch: Batch) -> Outcome:
        assert second_waits.wait(20.0)
        if batch is second:
            begun.set()
            assert released.wait(20.0)
        return process(batch)

    rig.stage.process = hangs  # type: ignore[method-assign]
    first, second = rig.batch(0, 3), rig.batch(3, 2)
    thread.start()
    queue.submit(first)
    while queue.next_batch:
        pass
    queue.submit(second)
    second_waits.set()
    assert begun.wait(20.0)
    finished = queue.poll(0.01)
    assert finished is not None
    assert finished[0] is first
    released.set()
    assert wait_for(queue)[0] is second
    assert thread.close(10.0)


def test_a_database_that_answers_and_stores_nothing_beside_a_full_spool_is_tried_in_peace(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """One disk for both, and full: 19 000 tries and as many lines in a second."""
    rig.queue.hurry()
    rig.store.failures = ["before"] * 40
    rig.stage = rig.new_stage(rig.queue, spool=FullSpool())
    began = rig.clock.monotonic()
    assert rig.stage.process(rig.batch(0, 3)).written == 3
    assert rig.clock.monotonic() - began > 10
    assert caplog.text.count("database unavailable") + caplog.text.count("database available") < 20


class FullSpool:
    messages = bytes = 0
    oldest_us = None

    def append(self, _deliveries: object) -> None:
        raise SpoolFull("told to be full")


def test_what_is_safe_is_given_back_when_the_database_goes_away_behind_it(rig: Rig) -> None:
    queue, thread = rig.threaded()
    released = threading.Event()
    process = rig.stage.process

    def waits(batch: Batch) -> Outcome:
        assert released.wait(20.0)
        outcome = process(batch)
        rig.store.away = True
        return outcome

    rig.stage.process = waits  # type: ignore[method-assign]
    first, second = rig.batch(0, 3), rig.batch(3, 2)
    thread.start()
    queue.submit(first)
    while queue.next_batch:
        pass
    queue.submit(second)
    released.set()
    assert wait_for(queue) == (first, Outcome(written=3, committed=[first.decoded.readings]))  # type: ignore[union-attr]
    assert queue.busy, "the second one waits for the database"
    rig.clock.advance(60)
    assert wait_for(queue)[1].spooled == 2
    assert thread.close(10.0)


def _backlog(rig: Rig, messages: int) -> Batch:
    """Arrays of four: three readings and an item that is none."""
    now_ms = rig.clock.now_us() // 1000
    batch = Batch(
        [
            Delivery(
                b"esp/W1/telemetry",
                json.dumps([{"timestamp": now_ms - 3 * at - k, "pip": at} for k in range(3)] + [at]).encode(),
                1,
                at + 1,
                1,
                now_ms * 1000,
            )
            for at in range(messages)
        ]
    )
    batch.decoded = rig.decoder.decode(batch.deliveries)
    rig.metrics.readings_received.inc(batch.decoded.items)
    return batch


@pytest.mark.parametrize(
    "failures", [[], ["after"], [None, "before"], [None, None, "after", "before"], [None] * 5 + ["before"]]
)
def test_a_batch_of_many_items_is_several_transactions(rig: Rig, failures: list[str | None]) -> None:
    rig.store.failures = list(failures)
    outcome = rig.stage.process(_backlog(rig, 9))
    assert outcome.stored == 36
    assert len(rig.store.telemetry) == 27
    assert len(rig.store.rejects) == 9
    assert rig.store.writes == 8 + failures.count("after"), "27 readings in sixes of five, 9 rejects in two"
    settled = sum(rig.value(f"readings_{name}_total") for name in ("written", "duplicate"))
    assert settled + rig.value("readings_rejected_total", reason="not_an_object") == rig.value(
        "readings_received_total"
    )


def test_what_is_stored_of_a_batch_that_is_spooled_is_counted_once(rig: Rig) -> None:
    rig.store.failures = [None, None, *["before"] * 100]
    assert rig.stage.process(_backlog(rig, 9)).spooled == 9
    assert (rig.value("readings_written_total"), rig.value("readings_spooled_total")) == (10, 26)
    rig.store.failures = []
    rig.clock.sleep(60)
    while rig.stage.spooling:
        rig.stage.idle()
    assert (len(rig.store.telemetry), len(rig.store.rejects)) == (27, 9)
    assert rig.value("readings_received_total") == 72
    assert (rig.value("readings_written_total"), rig.value("readings_duplicate_total")) == (27, 10)


def test_two_large_batches_are_not_decoded_at_once(rig: Rig) -> None:
    """What decoding takes is many times the payload, so the second waits for the first."""
    decoded: list[int] = []
    decode = rig.decode

    def noted(deliveries: list[Delivery]) -> Decoded:
        decoded.append(len(deliveries))
        return decode(deliveries)

    rig.decode = noted
    most = rig.settings.batch.max_bytes
    first, second = rig.batch(0, 1), rig.batch(1, 2)
    rig.queue.submit(second)
    for size, expected in ((most // 2 + 1, [1]), (most // 2, [1, 2])):
        decoded.clear()
        first.bytes = second.bytes = size
        first.decoded = second.decoded = None
        rig.stage.process(first)
        assert decoded == expected
