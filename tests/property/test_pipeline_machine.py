"""The promise of the product as a state machine: whatever happens in whatever order, after healing every QoS 1 message
is stored exactly once, or stands in the rejects once, and is acknowledged.

The pipeline, the stage and the spool are the real ones; broker, database and clock keep their contracts as models.
"""

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from esp_ingest.config.load import load
from esp_ingest.ingest.pipeline import Pipeline
from esp_ingest.ingest.writer_stage import InlineStage, Stage
from esp_ingest.service.metrics import Metrics
from esp_ingest.store.spool.spool import Spool
from esp_ingest.telemetry.decode import Decoder
from tests.support.fake_clock import FakeClock
from tests.support.fake_source import BrokerSession, FakeSource
from tests.support.fake_store import FakeStore

WINDOW = 12
PACKET_IDS = 97  # more than the store remembers (4 windows) and 1.5 windows
BATCH = 4
SPOOL_BYTES = 1_048_576
POISON = '{"poison":true}'
SAME = b"the same each time"
SAME_TOPIC = b"esp/W0/telemetry"


class Crash(BaseException):
    """The process dies here: nothing after this line runs, memory is gone, disk and database stay."""


class CrashingStore(FakeStore):
    """Dies at a write when told to: before the transaction, or after its commit."""

    def __init__(self) -> None:
        super().__init__(WINDOW)
        self.crash = "none"

    def write(self, *args, **options):  # type: ignore[no-untyped-def]
        crash, self.crash = self.crash, "none"
        if crash == "before":
            raise Crash
        result = super().write(*args, **options)
        if crash == "after":
            raise Crash
        return result


class GivesUp(BaseException):
    """The inline stage would wait for the database for ever: the test goes on as if the process were killed."""


class PipelineMachine(RuleBasedStateMachine):
    @initialize(with_spool=st.sampled_from([True, True, False]), after_seconds=st.sampled_from([0.0, 5.0]))
    def begin(self, with_spool: bool, after_seconds: float) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.settings = load(
            batch={"max_rows": BATCH, "max_age_seconds": 0.5},
            mqtt={"receive_maximum": WINDOW},
            spool={"after_seconds": after_seconds, "max_bytes": SPOOL_BYTES, "segment_bytes": 65_536},
        )
        self.with_spool = with_spool
        self.clock = FakeClock()
        self.store = CrashingStore()
        self.store.poison_texts = {POISON}
        self.session = BrokerSession(WINDOW, PACKET_IDS)
        self.number = 0
        self.published: list[tuple[bytes, bytes]] = []
        self.topic_of: dict[bytes, bytes] = {}
        self.lost_with_session: set[bytes] = set()
        self.same = 0  # times that SAME was published
        self.may_miss: Counter[bytes] = Counter()  # what a broker lost, by payload: so many may be in no table
        self.may_repeat: Counter[bytes] = Counter()  # what a snapshot sends again without DUP or long after: or twice
        self.start_process()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.heal_and_compare()
            self.close_spool()
            shutil.rmtree(self.folder)

    # -- The process.

    def start_process(self) -> None:
        decoder = Decoder(self.settings.telemetry, "esp")

        self.source = FakeSource(self.clock, self.session)
        self.metrics = Metrics()
        self.spool = Spool(self.folder / "spool", SPOOL_BYTES, 65_536) if self.with_spool else None
        self.stage = Stage(self.settings, self.store, self.spool, None, decoder.decode, self.clock, self.metrics)
        self.stage.pause = self.wait_for_database
        self.pipeline = Pipeline(
            self.source,
            InlineStage(self.stage),
            self.clock,
            self.metrics,
            self.settings.batch,
            self.settings.service,
        )
        self.waits = 0

    def wait_for_database(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        self.waits += 1
        if self.waits > 30:
            raise GivesUp

    def close_spool(self) -> None:
        if self.spool is not None:
            self.spool.close()

    def restart_process(self) -> None:
        """kill -9 and a start: memory and connection are gone; disk, database and the broker's session stay."""
        self.close_spool()
        self.session.reconnected()
        self.start_process()

    def guarded(self, step) -> None:  # type: ignore[no-untyped-def]
        self.waits = 0
        try:
            step()
        except (Crash, GivesUp):
            self.restart_process()

    # -- What the world does.

    @rule(count=st.integers(1, 6), kind=st.sampled_from(["reading", "poison", "malformed", "array", "same", "same"]))
    def publish(self, count: int, kind: str) -> None:
        for _ in range(count):
            if kind == "same":
                self.same += 1
                self.topic_of[SAME] = SAME_TOPIC
                self.session.publish(SAME_TOPIC, SAME)
                continue
            self.number += 1
            now_ms = self.clock.now_us() // 1000
            payload: bytes
            if kind == "malformed":
                payload = b"not json %d" % self.number
            elif kind == "array":
                items = [{"timestamp": now_ms - self.number * 10 - k, "pip": self.number + k / 4} for k in range(3)]
                payload = json.dumps([*items, {"pip": self.number}]).encode()
            else:
                reading = {"timestamp": now_ms - self.number * 10, "pip": float(self.number)}
                payload = json.dumps(reading | ({"poison": True} if kind == "poison" else {})).encode()
            topic = b"esp/W%d/telemetry" % self.number  # a well a message: every item has a key of its own
            self.published.append((topic, payload))
            self.topic_of[payload] = topic
            self.session.publish(topic, payload)

    @rule(turns=st.integers(1, 4))
    def turn(self, turns: int) -> None:
        for _ in range(turns):
            self.guarded(lambda: self.pipeline.run_once(0.2))

    @rule()
    def idle(self) -> None:
        self.guarded(lambda: self.stage.idle())

    @rule(seconds=st.floats(0.1, 20))
    def tick(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    @rule()
    def broker_goes(self) -> None:
        self.source.disconnect()

    @precondition(lambda self: self.source.unacked() < WINDOW)  # the real one does not connect with a full buffer
    @rule(session_kept=st.sampled_from([True, True, True, False]))
    def broker_returns(self, session_kept: bool) -> None:
        if not session_kept:
            self.may_miss.update(self.session.holds())
            self.lost_with_session.update(self.session.holds())
        self.source.break_connection(session_kept=session_kept)

    @rule()
    def broker_saves(self) -> None:
        self.session.save()

    @precondition(lambda self: self.source.unacked() < WINDOW)
    @rule(count=st.integers(0, 6))
    def broker_killed(self, count: int) -> None:
        """It goes back to its last snapshot: packet ids too. New messages come under ids that were used before."""
        lost, again = self.session.killed()
        self.may_miss.update(lost)
        self.lost_with_session.update(lost)
        self.may_repeat.update(again)
        self.source.break_connection()
        self.publish(count, "same")

    @rule(count=st.integers(1, 6), rounds=st.integers(4, 16))
    def packet_ids_come_round(self, count: int, rounds: int) -> None:
        """Malformed messages, many readings, malformed messages again: the last ones have packet ids of the first."""
        self.publish(count, "same")
        for _ in range(rounds):
            self.publish(6, "reading")
            self.clock.sleep(1.0)
            for _ in range(3):
                self.guarded(lambda: self.pipeline.run_once(0.2))
        self.publish(count, "same")

    @rule(failures=st.lists(st.sampled_from([None, "before", "after"]), min_size=1, max_size=4))
    def database_stumbles(self, failures: list[str | None]) -> None:
        self.store.failures = failures

    @rule(away=st.booleans())
    def database_away(self, away: bool) -> None:
        self.store.away = away

    @rule(messages=st.integers(4, 12), pieces=st.integers(0, 4))
    def long_outage(self, messages: int, pieces: int) -> None:
        """What single steps seldom reach: a spool that fills and is drained in vain."""
        self.store.away = True
        self.publish(messages, "reading")
        for _ in range(4):
            self.clock.sleep(2.0)
            self.guarded(lambda: self.pipeline.run_once(0.2))
        for _ in range(pieces):
            self.clock.sleep(20.0)
            self.guarded(lambda: self.stage.idle())

    @rule(when=st.sampled_from(["before", "after"]))
    def process_will_die(self, when: str) -> None:
        self.store.crash = when

    @rule()
    def process_dies(self) -> None:
        self.restart_process()

    @rule()
    def process_drains(self) -> None:
        """SIGTERM and a new start."""
        turns = iter(range(200))
        self.guarded(lambda: self.pipeline.drain(lambda: next(turns, None) is None))
        self.restart_process()

    # -- What must be true at every moment.

    @invariant()
    def acknowledged_is_safe(self) -> None:
        if not hasattr(self, "folder"):
            return
        stored = self.stored_wells() | self.rejected_topics()
        elsewhere = {payload for payload in self.session.acked if self.topic_of[payload] not in stored}
        spooled = self.spool.messages if self.spool is not None else 0
        assert len(elsewhere) <= spooled, f"acknowledged and nowhere: {sorted(elsewhere)[:5]}"

    @invariant()
    def memory_is_bounded(self) -> None:
        if hasattr(self, "folder"):
            assert self.source.unacked() < WINDOW * 2, "more held than one window of each of two connections"

    @invariant()
    def items_add_up(self) -> None:
        """received = written + duplicate + rejected + spooled + held, of this process."""
        if not hasattr(self, "folder"):
            return
        count = dict.fromkeys(("received", "written", "duplicate", "rejected", "spooled", "held"), 0.0)
        for family in self.metrics.registry.collect():
            name = family.name.removeprefix("esp_ingest_readings_")
            if name in count:
                count[name] = sum(sample.value for sample in family.samples)
        received = count.pop("received")
        assert received == sum(count.values()), count

    # -- After healing.

    def heal_and_compare(self) -> None:
        self.store.away, self.store.failures, self.store.crash = False, [], "none"
        if not self.source.connected:
            self.source.break_connection()
        for _ in range(1_000):
            if not self.session.holds() and not self.pipeline.held and not self.stage.spooling:
                break
            self.guarded(lambda: self.pipeline.run_once(0.6))
            self.guarded(lambda: self.stage.idle())
            self.clock.sleep(1.0)
        assert not self.session.holds(), "a message was never acknowledged"
        assert not self.pipeline.held
        assert not self.stage.spooling
        self.compare()

    def compare(self) -> None:
        stored = Counter(well for well, _ in self.store.telemetry)
        rejected = Counter(reject.topic for reject in self.store.rejects.values())
        least, most = self.same - self.may_miss[SAME], self.same + self.may_repeat[SAME]
        assert least <= rejected[SAME_TOPIC] <= most, "each time is a message"
        for topic, payload in self.published:
            twice = self.may_repeat[payload]
            if payload in self.lost_with_session:
                # The broker lost the session with it, before we had it, or had all of it: of an array that takes
                # several transactions some may be stored.
                whole = (3, 1 + twice) if payload.startswith(b"[") else (1, 1 + twice)
                assert stored[self.well(topic)] <= whole[0], topic
                assert rejected[topic] <= whole[1], topic
                continue
            if payload.startswith(b"["):
                assert stored[self.well(topic)] == 3, topic
                assert 1 <= rejected[topic] <= 1 + twice, topic
            elif payload.startswith(b"not"):
                assert stored[self.well(topic)] == 0, topic
                assert 1 <= rejected[topic] <= 1 + twice, topic
            elif b"poison" in payload:
                assert (stored[self.well(topic)], rejected[topic]) == (0, 1), topic
            else:
                assert (stored[self.well(topic)], rejected[topic]) == (1, 0), topic
        assert self.metrics.registry.get_sample_value("esp_ingest_reconciliation_failures_total") == 0

    def stored_wells(self) -> set[bytes]:
        return {f"esp/{well}/telemetry".encode() for well, _ in self.store.telemetry}

    def rejected_topics(self) -> set[bytes]:
        return {reject.topic for reject in self.store.rejects.values()}

    @staticmethod
    def well(topic: bytes) -> str:
        return topic.split(b"/")[1].decode()


PipelineMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPipelineMachine = PipelineMachine.TestCase
