"""The world of the pipeline's state machine: a broker, a database, one daemon or two, and what must be true of them."""

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from esp_ingest.config.load import load
from esp_ingest.model import Answer
from tests.support.fake_clock import FakeClock
from tests.support.fake_daemon import CrashingStore, FakeDaemon, MqttClients, value_of
from tests.support.fake_source import BrokerSession

WINDOW = 12
PACKET_IDS = 97  # more than the store remembers (4 windows) and 1.5 windows
BATCH = 4
MEMORY = Path("/dev/shm")
SPOOL_BYTES = 1_048_576
POISON = '{"poison":true}'
SAME = b"the same each time"
SAME_TOPIC = b"esp/W0/telemetry"


class World:
    """``kind``: "one" daemon, two that take one session over from each other ("takeover"), or two of a share group
    ("share"), where each message goes to one session or the other and the rules are not run in the stage."""

    def __init__(self, kind: str, *, with_spool: bool, after_seconds: float) -> None:
        self.kind = kind
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))  # an fsync costs nothing there
        self.clock = FakeClock()
        self.store = CrashingStore(WINDOW)
        self.store.poison_texts = {POISON}
        self.clients = MqttClients()
        first = BrokerSession(WINDOW, PACKET_IDS)
        self.sessions = [first, BrokerSession(WINDOW, PACKET_IDS, first.arrivals)] if kind == "share" else [first]
        self.daemons: list[FakeDaemon] = []
        for number in range(1 if kind == "one" else 2):
            settings = load(
                batch={"max_rows": BATCH, "max_age_seconds": 0.5},
                mqtt={"receive_maximum": WINDOW, "client_id": f"esp-{number * (kind == 'share')}"},
                spool={"after_seconds": after_seconds, "max_bytes": SPOOL_BYTES, "segment_bytes": 65_536},
            )
            daemon = FakeDaemon(
                settings,
                self.store.of_another_session() if kind == "share" and number else self.store,
                self.sessions[-1] if number else first,
                self.clients,
                self.clock,
                self.folder / f"spool{number}" if with_spool else None,
                has_diagnostics=kind != "share",
            )
            self.daemons.append(daemon)
        self.number = 0
        self.ids_began_anew = False  # the packet ids of a session have
        self.have_refused = False  # the tables of the diagnostics have, so a process may have died with what it owed
        self.published: list[tuple[bytes, bytes]] = []
        self.topic_of: dict[bytes, bytes] = {}
        self.lost_with_session: set[bytes] = set()
        self.same = 0  # times that SAME was published
        self.unlike = 0  # malformed messages that are like no other
        self.may_miss: Counter[bytes] = Counter()  # what a broker lost, by payload: so many may be in no table
        self.sent_again: Counter[str] = Counter()  # readings more, by well
        self.may_repeat: Counter[bytes] = Counter()  # what a snapshot sends again without DUP or long after: or twice

    # -- What the world does.

    def publish(self, count: int, kind: str) -> None:
        """Messages arrive at the broker: ``kind`` is same, reading, poison, malformed or array. At least
        half of the malformed ones are the same."""
        for _ in range(count):
            self.number += 1
            session = self.sessions[self.number % len(self.sessions)]
            if kind == "same" or (kind == "malformed" and self.same <= self.unlike):
                self.same += 1
                self.topic_of[SAME] = SAME_TOPIC
                session.publish(SAME_TOPIC, SAME)
                continue
            self.unlike += kind == "malformed"
            topic = b"esp/W%d/telemetry" % self.number  # a well a message: every item has a key of its own
            payload = self._payload(kind)
            self.published.append((topic, payload))
            self.topic_of[payload] = topic
            session.publish(topic, payload)

    def _payload(self, kind: str) -> bytes:
        now_ms = self.clock.now_us() // 1000
        if kind == "malformed":
            return b"not json %d" % self.number
        if kind == "array":
            items = [{"timestamp": now_ms - self.number * 10 + k, "pip": 100 + self.number + k / 4} for k in range(3)]
            return json.dumps([*items, {"pip": self.number}]).encode()
        reading = {"timestamp": now_ms - self.number * 10, "pip": 100.0 + self.number}
        return json.dumps(reading | ({"poison": True} if kind == "poison" else {})).encode()

    def lose_session(self, daemon: FakeDaemon) -> None:
        """The broker forgets the session, and the daemon connects to a new one."""
        self.ids_began_anew = True
        lost = daemon.session.holds()
        self.may_miss.update(lost)
        self.lost_with_session.update(lost)
        daemon.reconnect(session_kept=False)

    def take_over(self, daemon: FakeDaemon) -> None:
        """The daemon connects, perhaps to the session that another had."""
        self.note_takeover(daemon)
        daemon.reconnect()

    def note_takeover(self, daemon: FakeDaemon) -> None:
        """What another daemon holds of a session that this one is about to take over may be stored by both."""
        if not daemon.source.connected:
            self.may_repeat.update(daemon.session.holds())
        self._note_spooled()

    def _note_spooled(self) -> None:
        """A reject that one daemon spooled before another took its session over may be stored by both."""
        for daemon in self.daemons if self.kind == "takeover" else ():
            if daemon.spool is not None:
                self.may_repeat.update(each.payload for each in daemon.spool.peek(10_000, SPOOL_BYTES).deliveries)

    def kill_broker(self) -> None:
        """It goes back to its last snapshot: packet ids too. New messages come under ids that were used before."""
        self.ids_began_anew = True
        for session in self.sessions:
            lost, again = session.killed()
            self.may_miss.update(lost)
            self.lost_with_session.update(lost)
            self.may_repeat.update(again)
        self._note_spooled()
        for daemon in self.daemons:
            if self.kind == "share" or daemon.source.connected or daemon is self.daemons[0]:
                daemon.reconnect()

    def heal_database(self) -> None:
        """The database is there and takes everything."""
        for daemon in self.daemons:
            daemon.store.away, daemon.store.failures, daemon.store.crash = False, [], "none"
        self.diagnostics_refuse(write=False, read=False)

    def diagnostics_refuse(self, *, write: bool, read: bool) -> None:
        """Whether the tables of the diagnostics, and they alone, refuse to be written and to be read."""
        for daemon in self.daemons:
            daemon.store.refuses_diagnostics, daemon.store.refuses_reading_diagnostics = write, read
        self.have_refused |= write or read

    def settle(self) -> None:
        """Heal everything, and run the daemons until nothing is under way."""
        self.heal_database()
        for daemon in self.daemons:
            daemon.link.answer = Answer()
            if self.kind == "share" and not daemon.source.connected:
                daemon.reconnect()
        if not any(daemon.source.connected for daemon in self.daemons):
            self.take_over(self.daemons[0])
        for _ in range(1_000):
            if not any(session.holds() for session in self.sessions) and not any(d.is_busy for d in self.daemons):
                break
            for daemon in self.daemons:
                daemon.turn(0.6)
                daemon.idle()
            self.clock.sleep(1.0)

    def end(self) -> None:
        """Everything is healed, and everything is where it belongs."""
        self.settle()
        self.send_again()
        self.settle()
        self.publish_occurrences()
        self.check_all()

    def publish_occurrences(self) -> None:
        """The publishers run until the outbox is empty, with what was set aside tried again."""
        for _ in range(60):
            for daemon in self.daemons:
                daemon.outbox.retry()
                self.clock.advance(daemon.publisher.run_once())
            if len(self.store.outbox) == len(self.store.set_aside):
                return
            self.clock.advance(31.0)  # the turn of one that died is over

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.close()
        shutil.rmtree(self.folder)

    # -- What must be true at every moment.

    def check_acknowledged_is_safe(self) -> None:
        stored = self._stored_wells() | self._rejected_topics()
        acked = {payload for session in self.sessions for payload in session.acked}
        elsewhere = {payload for payload in acked if self.topic_of[payload] not in stored}
        spooled = sum(daemon.spool.messages for daemon in self.daemons if daemon.spool is not None)
        assert len(elsewhere) <= spooled, f"acknowledged and nowhere: {sorted(elsewhere)[:5]}"

    def check_items_add_up(self) -> None:
        """received = written + duplicate + rejected + spooled + held, of each process."""
        for daemon in self.daemons:
            names = ("received", "written", "duplicate", "rejected", "spooled", "held")
            count = {name: value_of(getattr(daemon.metrics, f"readings_{name}")) for name in names}
            received = count.pop("received")
            assert received == sum(count.values()), count

    # -- After healing.

    def check_all(self) -> None:
        """Everything published is where it belongs, and everything stored was judged and its occurrence published."""
        assert not any(daemon.store.waits_for_locks for daemon in self.daemons), "a write waited for the publisher"
        assert not any(session.holds() for session in self.sessions), "a message was never acknowledged"
        assert not any(daemon.is_busy for daemon in self.daemons), "a daemon never comes to rest"
        self._check_messages()
        for daemon in self.daemons:
            assert value_of(daemon.metrics.reconciliation_failures) == 0
        if self.kind != "share":
            self._check_diagnoses()

    def _check_messages(self) -> None:
        stored = Counter(well for well, _ in self.store.telemetry)
        rejected = Counter(reject.topic for reject in self.store.rejects.values())
        least, most = self.same - self.may_miss[SAME], self.same + self.may_repeat[SAME]
        if self.kind == "takeover" and self.ids_began_anew:
            least = 0  # docs/architecture.md: the other daemon does not know of it
        assert least <= rejected[SAME_TOPIC] <= most, f"{least} … {most} of the same, {rejected[SAME_TOPIC]} stored"
        for topic, payload in self.published:
            found = (stored[_well(topic)] - self.sent_again[_well(topic)], rejected[topic])
            more = self.may_repeat[payload]
            readings, least, most = 1, 0, 0
            if payload.startswith(b"["):
                readings, least, most = 3, 1, 1 + more
            elif payload.startswith(b"not"):
                readings, least, most = 0, 1, 1 + more
            elif b"poison" in payload:
                readings, least, most = 0, 1, 1
            if payload in self.lost_with_session:
                # The broker lost the session with it, before we had it, or had all of it: of an array that takes
                # several transactions some may be stored.
                assert found[0] <= readings, topic
                assert found[1] <= most, topic
            else:
                assert found[0] == readings, topic
                assert least <= found[1] <= most, topic

    def _check_diagnoses(self) -> None:
        raised = [well for well, _, _ in self.store.diagnostics]
        assert self.unjudged() == set(), "a reading is stored and its rules were not run"
        twice = {well: count for well, count in Counter(raised).items() if count > 1}
        assert not twice, f"a well's occurrence was raised twice: {twice}"
        # The rules run while the database reads, so a reading that it then refuses has been evaluated.
        received = {well for well, _ in self.store.telemetry} | {_well(topic) for topic in self._rejected_topics()}
        assert set(raised) <= received, "an occurrence of readings that are not stored"
        assert len(self.store.revisions) == len(self.store.diagnostics), "an occurrence was changed twice"
        left = {change.revision for change in self.store.outbox}
        assert left <= set(self.store.set_aside), "an occurrence was never published"

    def unjudged(self) -> set[str]:
        """Wells without the occurrence that their first reading raises."""
        return {well for well, _ in self.store.telemetry} - {well for well, _, _ in self.store.diagnostics}

    def send_again(self) -> None:
        """What a process owed when it died is evaluated when the well sends its next reading."""
        for well in sorted(self.unjudged()) if self.have_refused else ():
            topic = f"esp/{well}/telemetry".encode()
            payload = json.dumps({"timestamp": self.clock.now_us() // 1000, "well_id": well, "pip": 100.0}).encode()
            self.topic_of[payload] = topic
            self.sessions[0].publish(topic, payload)
            self.sent_again[well] += 1

    def _stored_wells(self) -> set[bytes]:
        return {f"esp/{well}/telemetry".encode() for well, _ in self.store.telemetry}

    def _rejected_topics(self) -> set[bytes]:
        return {reject.topic for reject in self.store.rejects.values()}


def _well(topic: bytes) -> str:
    return topic.split(b"/")[1].decode()
