"""The promise of the product as a state machine: whatever happens in whatever order, after healing every QoS 1 message
is stored exactly once, or stands in the rejects once, and is acknowledged; its diagnosis is published, and no trouble
with that ever delays an acknowledgement.

The pipeline, the stage, the spool and the publisher are the real ones; broker, database, diagnostics and clock keep
their contracts as models (tests/support/pipeline_world.py).
"""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from esp_ingest.model import Answer
from tests.support.fake_daemon import FakeDaemon
from tests.support.pipeline_world import PACKET_IDS, WINDOW, World

ANSWERS: list[Answer | str] = [
    Answer(),
    Answer("the broker refused it: Not authorized"),
    Answer("the packet is too large for the broker", is_of_message=True),
    "drop",
    "open",
]
WHICH = st.integers(0, 1)


class PipelineMachine(RuleBasedStateMachine):
    world: World | None = None

    @initialize(
        kind=st.sampled_from(["one", "one", "takeover", "share"]),
        with_spool=st.sampled_from([True, True, False]),
        after_seconds=st.sampled_from([0.0, 5.0]),
    )
    def begin(self, kind: str, with_spool: bool, after_seconds: float) -> None:
        self.world = self.w = World(kind, with_spool=with_spool, after_seconds=after_seconds)

    def teardown(self) -> None:
        if self.world is not None:
            try:
                self.w.end()
            finally:
                self.w.close()

    def daemon(self, which: int) -> FakeDaemon:
        return self.w.daemons[which % len(self.w.daemons)]

    # -- Messages, and the daemons at work.

    @rule(count=st.integers(1, 6), kind=st.sampled_from(["reading", "poison", "malformed", "array", "same"]))
    def publish(self, count: int, kind: str) -> None:
        self.w.publish(count, kind)

    @rule(turns=st.integers(1, 4), which=WHICH)
    def turn(self, turns: int, which: int) -> None:
        for _ in range(turns):
            self.daemon(which).turn()

    @rule(which=WHICH)
    def idle(self, which: int) -> None:
        self.daemon(which).idle()

    @rule(seconds=st.floats(0.1, 20))
    def tick(self, seconds: float) -> None:
        self.w.clock.sleep(seconds)

    @rule(when=st.sampled_from(["before", "midway", "after"]), which=WHICH)
    def process_will_die(self, when: str, which: int) -> None:
        self.daemon(which).store.crash = when

    @rule(which=WHICH)
    def process_dies(self, which: int) -> None:
        self.w.take_over(self.daemon(which))
        self.daemon(which).restart()

    @rule(which=WHICH)
    def process_drains(self, which: int) -> None:
        self.w.take_over(self.daemon(which))
        self.daemon(which).drain()

    # -- The broker.

    @rule(which=WHICH)
    def broker_goes(self, which: int) -> None:
        self.daemon(which).source.disconnect()

    @rule(session_kept=st.sampled_from([True, True, True, False]), which=WHICH)
    def broker_returns(self, session_kept: bool, which: int) -> None:
        daemon = self.daemon(which)
        if daemon.source.unacked() >= WINDOW:  # the real one does not connect with a full buffer
            return
        if session_kept:
            self.w.take_over(daemon)
        else:
            self.w.lose_session(daemon)

    @rule()
    def broker_saves(self) -> None:
        for session in self.w.sessions:
            session.save()

    @rule(count=st.integers(0, 6))
    def broker_killed(self, count: int) -> None:
        if all(daemon.source.unacked() < WINDOW for daemon in self.w.daemons):
            self.w.kill_broker()
            self.w.publish(count, "same")

    @rule(count=st.integers(1, 4))
    def broker_gives_packet_ids_again(self, count: int) -> None:
        """After a snapshot malformed messages are stored, the broker goes back to it, new ones get the same packet ids,
        and the process dies with them."""
        self.w.settle()
        for session in self.w.sessions:
            session.save()
        self.w.publish(count * len(self.w.sessions), "same")
        self.w.settle()
        self.w.kill_broker()
        self.w.publish(count * len(self.w.sessions), "same")
        daemon = self.daemon(0)
        daemon.source.buffered()  # they are under way now
        self.w.note_takeover(daemon)
        daemon.restart()

    @rule(count=st.integers(1, 6), dies=st.booleans())
    def packet_ids_come_round(self, count: int, dies: bool) -> None:
        """Malformed messages, many readings, malformed messages again: the last ones have packet ids of the first. If
        the process dies, they come again."""
        sessions = len(self.w.sessions)
        self.w.publish(count * sessions, "same")
        left = (PACKET_IDS - count) * sessions
        while left > 0:
            self.w.publish(min(WINDOW, left), "reading")
            left -= WINDOW
            self.w.clock.sleep(1.0)
            for _ in range(4):
                for daemon in self.w.daemons:
                    daemon.turn()
        self.w.publish(count * sessions, "same")
        if dies:
            daemon = self.daemon(0)
            daemon.source.buffered()  # they are under way now
            self.w.note_takeover(daemon)
            daemon.restart()

    # -- The database.

    @rule(failures=st.lists(st.sampled_from([None, "before", "after"]), min_size=1, max_size=4), which=WHICH)
    def database_stumbles(self, failures: list[str | None], which: int) -> None:
        self.daemon(which).store.failures = failures

    @rule(away=st.booleans())
    def database_away(self, away: bool) -> None:
        for daemon in self.w.daemons:
            daemon.store.away = away

    @rule(messages=st.integers(4, 12), pieces=st.integers(0, 4), which=WHICH)
    def long_outage(self, messages: int, pieces: int, which: int) -> None:
        """What single steps seldom reach: a spool that fills and is drained in vain."""
        self.database_away(True)
        self.w.publish(messages, "reading")
        for _ in range(4):
            self.w.clock.sleep(2.0)
            self.daemon(which).turn()
        for _ in range(pieces):
            self.w.clock.sleep(20.0)
            self.daemon(which).idle()

    # -- Diagnoses, and their way out.

    @rule(write=st.booleans(), read=st.booleans())
    def diagnostics_refuse(self, write: bool, read: bool) -> None:
        self.w.diagnostics_refuse(write=write, read=read)

    @rule(refuses=st.sampled_from([(True, True), (True, False), (False, True)]), which=WHICH, count=st.integers(1, 4))
    def readings_go_on_while_diagnostics_refuse(self, refuses: tuple[bool, bool], which: int, count: int) -> None:
        """New wells and malformed messages, while the tables of the diagnostics alone refuse."""
        self.w.settle()
        daemon = self.daemon(which)
        if not daemon.source.connected:
            return
        self.w.diagnostics_refuse(write=refuses[0], read=refuses[1])
        self.w.publish(count * len(self.w.sessions), "reading")
        self.w.publish(count * len(self.w.sessions), "same")
        for _ in range(8):  # the first ones may still end an earlier outage
            daemon.turn(0.6)
            daemon.idle()
        assert not daemon.stage.spooling, "readings are spooled though the database takes them"
        assert not daemon.session.holds(), "the diagnostics delayed an acknowledgement"

    @rule(answer=st.sampled_from(ANSWERS), which=WHICH)
    def publisher_looks(self, answer: Answer | str, which: int) -> None:
        daemon = self.daemon(which)
        daemon.link.answer = answer
        self.w.clock.advance(daemon.publisher.run_once())

    @rule(answer=st.sampled_from(ANSWERS), which=WHICH, count=st.integers(1, 3))
    def readings_go_on_whatever_becomes_of_a_publication(self, answer: Answer | str, which: int, count: int) -> None:
        """While the publisher waits for a broker that refuses, hangs up or says nothing, the writer goes on."""
        self.w.settle()
        daemon = self.daemon(which)
        if not daemon.source.connected:
            return
        receivers = [each for each in self.w.daemons if each.source.connected]
        self.w.publish(4 * len(self.w.sessions), "reading")
        self.w.settle()
        connection = daemon.source.connection
        self.w.publish(count * len(self.w.sessions), "same")
        self.w.publish(count * len(self.w.sessions), "reading")
        daemon.link.answer = answer
        daemon.link.meanwhile = lambda: [each.turn() for each in receivers] and None
        daemon.publisher.run_once()
        daemon.link.meanwhile = lambda: None
        assert daemon.store.waits_for_locks == 0, "a write waited for the publisher"
        if self.w.kind == "share":
            return  # the follower of a share group has the diagnoses
        for _ in range(3):
            daemon.turn(0.6)
        assert daemon.source.connection == connection, "a publication cost the connection of the readings"
        assert not daemon.session.holds(), "a publication delayed an acknowledgement"

    # -- What must be true at every moment.

    @invariant()
    def acknowledged_is_safe(self) -> None:
        if self.world is not None:
            self.w.check_acknowledged_is_safe()

    @invariant()
    def memory_is_bounded(self) -> None:
        for daemon in self.w.daemons if self.world is not None else ():
            assert daemon.source.unacked() < WINDOW * 2, "more held than one window of each of two connections"

    @invariant()
    def items_add_up(self) -> None:
        if self.world is not None:
            self.w.check_items_add_up()

    @invariant()
    def no_write_waits_for_the_publisher(self) -> None:
        for daemon in self.w.daemons if self.world is not None else ():
            assert daemon.store.waits_for_locks == 0, "a write waited for the publisher"


DEFAULT = settings(max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
PipelineMachine.TestCase.settings = DEFAULT
TestPipelineMachine = PipelineMachine.TestCase


def test_an_occurrence_of_a_refused_reading_is_told_once_although_the_process_died_after_the_commit() -> None:
    """The machine found it: the table had the open occurrence and not its reading. So nothing was there to evaluate
    again, and the occurrence was ended and raised anew."""
    machine = PipelineMachine()
    machine.begin("one", with_spool=True, after_seconds=0.0)
    machine.publish(1, "poison")
    machine.process_will_die("after", which=0)
    machine.packet_ids_come_round(1, dies=False)
    machine.teardown()


@pytest.mark.soak
@pytest.mark.timeout(3_600)  # 20 minutes on a quiet core
def test_the_pipeline_machine_for_long() -> None:
    run_state_machine_as_test(PipelineMachine, settings=settings(DEFAULT, max_examples=2_000))
