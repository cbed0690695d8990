"""The loop: how batches are cut, that settling follows safety, and the alarm on rejects."""

import json
from dataclasses import dataclass, field

import pytest

from esp_ingest.config.load import load
from esp_ingest.config.settings import BatchSettings
from esp_ingest.ingest.batch import Batch, Outcome
from esp_ingest.ingest.pipeline import OpenBatch, Pipeline
from esp_ingest.ingest.reject_alarm import RejectAlarm
from esp_ingest.model import Delivery
from esp_ingest.service.metrics import Metrics
from tests.support.fake_clock import FakeClock
from tests.support.fake_source import FakeSource


@dataclass
class StageByHand:
    """A stage that gives a batch back when the test says so."""

    submitted: list[Batch] = field(default_factory=list)
    finished: Outcome | None = None
    hurried: bool = False
    most_waiting: int = 1
    waits: list[float] = field(default_factory=list)

    @property
    def busy(self) -> bool:
        return bool(self.submitted)

    @property
    def has_room(self) -> bool:
        return len(self.submitted) < self.most_waiting

    def submit(self, batch: Batch) -> None:
        self.submitted.append(batch)

    def poll(self, timeout_seconds: float) -> tuple[Batch, Outcome] | None:
        self.waits.append(timeout_seconds)
        if self.finished is None:
            return None
        outcome, self.finished = self.finished, None
        return self.submitted.pop(), outcome

    def hurry(self) -> None:
        self.hurried = True


class Rig:
    def __init__(self, source: type[FakeSource] = FakeSource, **batch: float) -> None:
        bounds = {"max_rows": 3, "max_age_seconds": 1.0, "min_interval_seconds": 1.0}
        settings = load(batch=bounds | batch, mqtt={"receive_maximum": 100})
        self.clock = FakeClock()
        self.source = source(self.clock)
        self.stage = StageByHand()
        self.metrics = Metrics()
        self.pipeline = Pipeline(
            self.source,
            self.stage,
            self.clock,
            self.metrics,
            settings.batch,
            settings.service,
        )

    def publish(self, count: int, payload: bytes | None = None) -> None:
        for _ in range(count):
            reading = {"timestamp": self.clock.now_us() // 1000, "pip": 1}
            self.source.session.publish(b"esp/W1/telemetry", payload or json.dumps(reading).encode())


def test_a_batch_is_cut_by_rows() -> None:
    rig = Rig()
    rig.publish(7)
    rig.pipeline.run_once()
    assert [len(batch.deliveries) for batch in rig.stage.submitted] == [3]


def test_an_idle_stage_gets_what_there_is_after_the_shortest_interval() -> None:
    rig = Rig(min_interval_seconds=0.5)
    rig.clock.advance(0.5)
    rig.publish(1)
    rig.pipeline.run_once(0.1)
    assert [len(batch.deliveries) for batch in rig.stage.submitted] == [1], "nothing was cut lately"
    rig.stage.finished = Outcome(written=1)
    rig.pipeline.run_once(0.1)
    rig.publish(2)
    rig.pipeline.run_once(0.1)
    assert not rig.stage.submitted, "too soon after the one before"
    rig.clock.advance(0.5)
    rig.pipeline.run_once(0.1)
    assert [len(batch.deliveries) for batch in rig.stage.submitted] == [2]


def test_behind_a_batch_that_is_written_the_next_one_is_cut_by_age() -> None:
    rig = Rig(min_interval_seconds=0.0)
    rig.stage.most_waiting = 2
    for _ in range(2):
        rig.publish(1)
        rig.pipeline.run_once(0.1)
    assert len(rig.stage.submitted) == 1, "the stage is busy: it would only get smaller batches"
    rig.clock.advance(1.0)
    rig.pipeline.run_once(0.1)
    assert len(rig.stage.submitted) == 2


def test_the_age_bounds_the_interval() -> None:
    rig = Rig(max_age_seconds=0.2, min_interval_seconds=60.0)
    rig.publish(1)
    rig.pipeline.run_once(0.1)
    assert not rig.stage.submitted
    rig.clock.advance(0.2)
    rig.pipeline.run_once(0.1)
    assert len(rig.stage.submitted) == 1


def test_a_batch_is_cut_by_bytes() -> None:
    rig = Rig(max_rows=50, max_bytes=2_048)
    rig.publish(5, b"x" * 1_000)
    rig.pipeline.run_once()
    rig.pipeline.run_once()
    assert [len(batch.deliveries) for batch in rig.stage.submitted] == [3]


def test_the_readings_of_an_array_count_as_rows() -> None:
    rig = Rig()
    item = {"timestamp": rig.clock.now_us() // 1000, "pip": 1}
    rig.publish(2, json.dumps([item] * 3).encode())
    rig.pipeline.run_once()
    rig.pipeline.run_once()
    assert [len(batch.deliveries) for batch in rig.stage.submitted] == [2], "nobody could know how large they are"


def test_batches_of_arrays_end_near_their_bound_once_it_is_seen_how_large_they_are() -> None:
    rig = Rig(max_rows=6)
    item = {"timestamp": rig.clock.now_us() // 1000, "pip": 1}
    rig.publish(40, json.dumps([item] * 3).encode())
    sizes = []
    while any(rig.source.buffered()) or rig.stage.submitted:
        rig.pipeline.run_once()
        sizes += [len(batch.deliveries) for batch in rig.stage.submitted]
        rig.stage.finished = Outcome(written=1)
        rig.pipeline.run_once()
    assert sizes[0] == 6, "nobody could know how large they are"
    assert set(sizes[1:]) == {2}


def test_nothing_is_acknowledged_before_the_stage_gives_it_back() -> None:
    rig = Rig()
    rig.publish(7)
    for _ in range(5):
        rig.pipeline.run_once()
    assert not rig.source.session.acked
    assert len(rig.stage.submitted) == 1, "one batch in the stage"
    rig.stage.finished = Outcome(written=3)
    rig.pipeline.run_once()
    assert len(rig.source.session.acked) == 3
    rig.pipeline.run_once()
    assert len(rig.stage.submitted) == 1, "the next one"


def test_what_is_new_after_a_reconnect_is_new() -> None:
    rig = Rig(max_rows=1)
    rig.source.break_connection()
    rig.publish(1, b"nonsense")
    rig.pipeline.run_once()
    assert [each.redelivered for batch in rig.stage.submitted for each in batch.deliveries] == [False]


class PartialSource(FakeSource):
    """Of the next message some bytes are here, and the rest does not come."""

    def buffered(self) -> tuple[int, int]:
        messages, size = super().buffered()
        return messages, size + 1_000


def test_beside_a_message_that_is_not_whole_the_loop_waits_for_the_stage() -> None:
    rig = Rig(source=PartialSource)
    rig.publish(3)
    for _ in range(3):
        rig.pipeline.run_once(0.1)
    assert rig.stage.waits == [0.1] * 3, "with 0 it would spin, and keep the interpreter from the stage"


def test_drain_does_not_wait_for_the_rest_of_a_message() -> None:
    rig = Rig(source=PartialSource)
    turns = iter(range(5))
    assert rig.pipeline.drain(lambda: next(turns, None) is None)


def test_drain_settles_what_is_held_and_says_when_it_could_not() -> None:
    rig = Rig()
    rig.publish(2)
    rig.pipeline.run_once()
    turns = iter(range(5))
    assert not rig.pipeline.drain(lambda: next(turns, None) is None), "the stage never gave it back"
    assert rig.stage.hurried
    rig.stage.finished = Outcome(written=2)
    assert rig.pipeline.drain(lambda: False)
    assert len(rig.source.session.acked) == 2


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([(10, 0)], 0),
        ([(0, 1_000)], 1),
        ([(0, 600), (1, 0), (0, 600)], 1),  # the share, though not in a row
        ([(0, 50)], 0),  # too few to say anything
        ([(500, 400)], 0),
        ([(0, 0)], None),
    ],
)
def test_the_alarm_on_rejects(batches: list[tuple[int, int]], expected: int | None) -> None:
    alarm = RejectAlarm(load().service, FakeClock())
    assert [alarm.note(accepted, rejected) for accepted, rejected in batches][-1] == expected


def test_the_alarm_ends_when_the_minute_is_over() -> None:
    clock = FakeClock()
    alarm = RejectAlarm(load().service, clock)
    assert alarm.note(0, 2_000) == 1
    clock.advance(61)
    assert alarm.note(10, 0) == 0


def test_the_alarm_ends_when_traffic_stops() -> None:
    rig = Rig(max_rows=3)
    rig.publish(3, b"nonsense")
    rig.pipeline.run_once()
    rig.stage.finished = Outcome(rejected=2_000)
    rig.pipeline.run_once()
    assert rig.metrics.registry.get_sample_value("esp_ingest_reject_alarm") == 1
    rig.clock.advance(61)
    rig.pipeline.run_once()
    assert rig.metrics.registry.get_sample_value("esp_ingest_reject_alarm") == 0


def test_an_ordinary_backlog_counts_as_its_readings() -> None:
    batch = OpenBatch(BatchSettings(max_rows=5_000), 0.0)
    item = b'{"timestamp":"2026-11-24T21:00:00.000Z","flow_rate":1000.5,"pip":2000,"motor_current":50,"gor":300}'
    batch.add([Delivery(b"esp/w/telemetry", b"[" + b",".join([item] * 50) + b"]", 1, 1, 1, 0)], now=0.0)
    assert batch.room()[0] == (5_000 - 50) // 50, "messages, if they go on as they came"


def test_a_batch_is_cut_by_messages() -> None:
    rig = Rig(max_messages=2)
    rig.publish(5)
    rig.pipeline.run_once()
    rig.pipeline.run_once()
    assert [len(batch.deliveries) for batch in rig.stage.submitted] == [2]


@pytest.mark.parametrize(("item_bytes", "most_rows"), [(20, 1_000), (50, 1_000), (80, 625), (100, 500), (900, 500)])
def test_batches_of_large_readings_are_smaller_so_that_two_fit_into_the_bytes(item_bytes: int, most_rows: int) -> None:
    bounds = BatchSettings(max_rows=1_000, max_bytes=100_000)
    batch = OpenBatch(bounds, 0.0)
    payload = b"[" + b",".join([b'{"a":1}'.ljust(item_bytes - 1)] * 10) + b" "
    batch.add([Delivery(b"esp/w/telemetry", payload, 1, 1, 1, 0)], now=0.0)
    assert len(payload) == 10 * item_bytes + 1
    assert batch.room()[0] == pytest.approx((most_rows - 10) / 10, abs=1)


@pytest.mark.parametrize("item", [b"{}", b'{"\\u0074imestamp":1,"pip":1}', b'{"timestamp" :1,"pip":1}', b"0"])
@pytest.mark.parametrize("before", [b"", b"\n "])
def test_a_backlog_counts_as_the_rows_that_it_may_become(item: bytes, before: bytes) -> None:
    """However it is spelled: rows that are not counted are rows that no bound holds."""
    batch = OpenBatch(BatchSettings(max_rows=5_000), 0.0)
    payload = before + b"[" + b",".join([item] * 100) + b"]"
    batch.add([Delivery(b"esp/w/telemetry", payload, 1, 1, 1, 0)], now=0.0)
    assert (5_000 - 200) // 200 <= batch.room()[0] <= (5_000 - 100) // 100
