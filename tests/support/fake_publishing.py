"""The publisher's two neighbours in memory: the outbox, and an MQTT connection whose broker is told what to answer."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.model import Answer, Change, Ending
from esp_ingest.store.queries import query
from tests.support.fake_clock import FakeClock
from tests.support.fake_store import FakeStore


class FakeOutbox:
    """The outbox of one publisher, and what became of its changes."""

    def __init__(self, *changes: tuple[int, str]) -> None:
        self.rows = [Change(revision, well, f'{{"n": {revision}}}') for revision, well in changes]
        self.refused: dict[int, tuple[str, bool]] = {}
        self.away = False
        self.turn = True
        self.turns_taken = 0

    def waiting(self) -> tuple[int, int]:
        if self.away:
            raise StoreUnavailable("told to be away")
        for_good = sum(each[1] for each in self.refused.values())
        return len(self.rows) - for_good, len(self.refused)

    def take_turn(self, seconds: float) -> bool:
        self.turns_taken += 1
        return self.turn

    def end_turn(self) -> None:
        self.turn = False

    def read(self, limit: int) -> list[Change]:
        held = {row.well_id for row in self.rows if row.revision in self.refused and not self.refused[row.revision][1]}
        return [row for row in self.rows if row.revision not in self.refused and row.well_id not in held][:limit]

    def remove(self, revisions: list[int]) -> None:
        self.rows[:] = [row for row in self.rows if row.revision not in revisions]

    def set_aside(self, revision: int, reason: str, *, for_good: bool) -> None:
        self.refused[revision] = (reason, for_good)
        self.rows[:] = [row._replace(refusals=row.refusals + (row.revision == revision)) for row in self.rows]

    def retry(self) -> None:
        """The time of what was set aside for a while has come."""
        for revision in [revision for revision, (_, for_good) in self.refused.items() if not for_good]:
            del self.refused[revision]

    def close(self) -> None:
        pass


@dataclass
class Sent:
    """A publication as it was handed over."""

    topic: str
    payload: bytes


class FakeConnection:
    """Answers each publication as ``answers_to`` says, by revision: an Answer, or "open" for none, or "drop": it hangs
    up. Others get ``answer``, which is to confirm at first. While it waits for the broker, ``meanwhile`` is called:
    what other threads do then."""

    def __init__(self, clock: FakeClock, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.clock = clock
        self.meanwhile = meanwhile
        self.answer: Answer | str = Answer()
        self.up = True
        self.last_error = ""
        self.sent: list[Sent] = []
        self.together: list[set[int]] = []  # what was under way at each publication
        self.answers_to: dict[int, Answer | str] = {}
        self.open: dict[int, None] = {}
        self.connections = 0
        self._ready: dict[int, Answer] = {}
        self._ended: Ending | None = None
        self._is_there = False

    def connect(self) -> bool:
        if self.up and not self._is_there:
            self._is_there = True
            self.connections += 1
        self.last_error = "" if self.up else "the broker is away"
        return self._is_there

    def has_room(self) -> bool:
        return self._is_there and len(self.open) < 20

    def under_way(self) -> int:
        return len(self.open)

    def publish(self, key: int, topic: str, payload: bytes) -> None:
        self.sent.append(Sent(topic, payload))
        self.open[key] = None
        self.together.append(set(self.open))

    def turn(self, seconds: float) -> None:
        self.clock.advance(min(seconds, 0.25))
        self.meanwhile()
        for key in list(self.open):
            answer = self.answers_to.get(key, self.answer)
            if answer == "drop":
                self.hang_up()
                return
            if isinstance(answer, Answer):
                del self.open[key]
                self._ready[key] = answer

    def hang_up(self, *, blame: Answer | None = None, is_innocent: bool = False) -> None:
        self._ended = Ending("the connection was lost", frozenset(self.open), blame, is_innocent)
        self.open.clear()
        self._is_there = False

    def answers(self) -> dict[int, Answer]:
        ready, self._ready = self._ready, {}
        return ready

    def ending(self) -> Ending | None:
        ended, self._ended = self._ended, None
        return ended

    def close(self) -> None:
        self.open.clear()
        self._is_there = False


class StoreOutbox(FakeOutbox):
    """Over the outbox of a FakeStore, which several daemons share; ``holder`` is one of them. It locks what the
    statements of sql/queries.sql lock beyond their own transaction, so a publisher that would hold back the writer
    while it waits for the broker does so here."""

    def __init__(self, store: FakeStore, holder: str, clock: FakeClock) -> None:
        super().__init__()
        self.rows, self.refused = store.outbox, store.set_aside
        self._store, self._holder, self._clock = store, holder, clock

    def waiting(self) -> tuple[int, int]:
        self.away = self._store.away
        return super().waiting()

    def take_turn(self, seconds: float) -> bool:
        turn, now = self._store.publishing_turn, self._clock.monotonic()
        if turn and turn[0] != self._holder and turn[1] > now:
            return False
        self._store.publishing_turn[:] = [self._holder, now + seconds]
        for name in ("take_publishing_turn", "read_outbox"):
            for key in re.findall(rb"pg_(?:try_)?advisory_lock\((\d+)\)", query(name)):
                self._store.locks[int(key)] = self._holder
        return True

    def end_turn(self) -> None:
        if self._store.publishing_turn[:1] == [self._holder]:
            self._store.publishing_turn.clear()
        self.process_ended()

    def process_ended(self) -> None:
        """The database has seen the end of this holder's connection."""
        for key in [key for key, holder in self._store.locks.items() if holder == self._holder]:
            del self._store.locks[key]
