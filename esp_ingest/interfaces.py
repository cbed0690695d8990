"""The seams of the house. Each has one real implementation and a fake in tests/support.

Four fakes pass the same contract suite as what they stand for (tests/…/contract_*.py): Clock (service/clock.py), Source
(mqtt/source.py), Store (store/write/writer.py) and Metrics (service/metrics.py, whose fake is the same class on a
private registry). Where rooms beside each other meet, what the diagnostics want of store and broker stands here too."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from esp_ingest.errors import Error
from esp_ingest.model import (
    NOTHING_ARRIVED,
    AlarmAction,
    Answer,
    Arrival,
    Change,
    Checkpoint,
    Delivery,
    DiagnosticRow,
    Ending,
    Readings,
    Reject,
)


class Clock(Protocol):
    """Monotonic time for durations, wall time for timestamps."""

    def monotonic(self) -> float:
        """Seconds since some moment, never less than before."""

    def now_us(self) -> int:
        """Wall time, microseconds since the Unix epoch."""

    def sleep(self, seconds: float) -> None:
        """Block for so long."""


class Source(Protocol):
    """Where deliveries come from. All methods are called from the pipeline's thread."""

    def take(self, max_messages: int, max_bytes: int, timeout_seconds: float, *, at_least: int = 1) -> list[Delivery]:
        """Deliveries in the order received, oldest first; waits up to ``timeout_seconds`` for ``at_least`` of them or
        for ``max_bytes``, and returns with what is there."""

    def settle(self, deliveries: Sequence[Delivery]) -> int:
        """These are safe: acknowledge them to the broker, in the order given. Deliveries of an earlier connection are
        skipped (the broker sends them again). Returns how many acknowledgements were queued to the socket. Every
        delivery that ``take`` returned is settled exactly once, QoS 0 included, so that its window slot comes back."""

    def buffered(self) -> tuple[int, int]:
        """(messages, bytes) received and not yet taken. The bytes count what is here of a message that is not whole,
        which :meth:`take` does not give."""


class StoreUnavailable(Error):
    """The database cannot take this now; the same batch may be written again later, as often as needed.

    ``reason`` is a short fixed phrase for logs and health. Also raised when the outcome of a commit is unknown:
    writing again is harmless."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Refusal:
    """Diagnostics that their tables did not take, while the batch was committed without them: these rows, and the
    checkpoints of these wells. ``error`` says why."""

    error: StoreUnavailable
    rows: tuple[DiagnosticRow, ...]
    wells: frozenset[str]  # without a checkpoint, of those that were given one


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of the items of a batch: written + duplicates + rejected == readings + rejects handed in.

    ``refused`` are the readings that were stored as rejects instead: the database refused them, or one with other
    content has their place. ``reasons`` are the newly stored rejects by reason, together ``rejected``. ``path`` is how
    the batch went, of WRITE_PATHS. ``refusal``: diagnostics that were not stored, None if all were."""

    written: int
    duplicates: int
    rejected: int
    refused: tuple[Reject, ...] = ()
    reasons: Mapping[str, int] = field(default_factory=dict)
    path: str = "direct"
    refusal: Refusal | None = None


class PendingWrite(Protocol):
    """A write between :meth:`Store.begin` and its end, in a with-statement. If the block is left without
    :meth:`finish`, by an error or not, nothing of the write is stored, and the next one finds no trace of it."""

    def __enter__(self) -> "PendingWrite": ...
    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Undo what was not finished. Raises nothing, and suppresses nothing."""

    def finish(self, diagnostics: Sequence[DiagnosticRow], checkpoints: Sequence[Checkpoint]) -> WriteResult:
        """Store all of it, with what the rules made of the readings: rows of occurrences, and checkpoints of their
        state. Once at most. Blocks while the database works. Raises StoreUnavailable if it makes sense to try again
        from :meth:`Store.begin`; never raises for bad data."""


class Store(Protocol):
    """The database. Called from one thread at a time."""

    def begin(self, readings: Readings, rejects: Sequence[Reject], arrival: Arrival = NOTHING_ARRIVED) -> PendingWrite:
        """Begin to store a batch: send its readings, and return while the database reads them. What the caller does
        until :meth:`PendingWrite.finish` goes on beside that, so the rules run and the next batch is decoded there.
        One write is pending at a time; until it ends, only :meth:`prepare` may be called. Blocks while connecting and
        until the readings are sent. Raises StoreUnavailable with nothing pending.

        ``arrival``: the messages that all of it came from. A reject that the broker delivers again is recognized by
        the rule in store/write/redelivery.py, for which the messages of a session are counted.

        All of it is stored in one transaction, or nothing; what is too much for one, in parts: the readings, then the
        rejects, and diagnostics and checkpoints in the last of them. Storing the same again stores nothing twice.
        Readings come first: if only the tables of the diagnostics refuse, the rest is committed without them, and the
        result says so in ``refusal``."""

    def write(
        self,
        readings: Readings,
        rejects: Sequence[Reject],
        diagnostics: Sequence[DiagnosticRow],
        checkpoints: Sequence[Checkpoint] = (),
        cursor_us: tuple[int, int] | None = None,
        arrival: Arrival = NOTHING_ARRIVED,
    ) -> WriteResult:
        """:meth:`begin` and :meth:`PendingWrite.finish` in one.

        ``cursor_us``: where the rules that follow the table stood and now stand; StoreUnavailable if they do not stand
        there, because another daemon has moved them, and if the tables of the diagnostics refuse."""

    def prepare(self, readings: Readings) -> None:
        """These will be written next, most likely: what needs no database is done now, so that it need not be done
        then. May be called while a write is pending."""

    def idle(self) -> None:
        """No batch waits: do what can wait. Raises nothing."""

    def ping(self) -> None:
        """Is the database there and its schema the one this program writes? Raises StoreUnavailable where it is not."""

    def close(self) -> None:
        """Close the connection; a later call opens another."""


class DiagnosticsStore(Protocol):
    """What the diagnostics read of the database, on a connection of their own (store/diagnostics/checkpoints.py). Every
    method may raise StoreUnavailable; called from the writer's thread alone."""

    def states(self, wells: Sequence[str]) -> list[Checkpoint]:
        """The checkpoints of these wells, of those that have one."""

    def wells_with_state(self, after: str, limit: int) -> list[str]:
        """The next wells in order that have a checkpoint."""

    def readings_after(
        self, since_us: Mapping[str, int], limit: int, until_us: int | None = None
    ) -> Iterator[Readings]:
        """What these wells sent with a later event time, in the order received, in pages; the newest ``limit`` each,
        of those received up to ``until_us``."""

    def open_rows(self, wells: Sequence[str]) -> list[DiagnosticRow]:
        """The occurrences that the table holds open."""

    def open_anywhere(self, limit: int) -> list[tuple[str, str, str]]:
        """(well, diagnosis, severity) of the occurrences that the table holds open, ``limit`` of them at most."""

    def newest_action(self) -> int:
        """The id of the newest operator's action, 0 with none."""

    def actions_after(self, newest: int) -> list[AlarmAction]:
        """What operators did since, oldest first."""

    def shelves(self, wells: Sequence[str]) -> list[AlarmAction]:
        """What is shelved at these wells."""

    def end_shelvings(self) -> None:
        """What was shelved and whose time is over is heard again."""

    def alarm_gauges(self) -> tuple[int, int, int]:
        """Occurrences open for more than a day, diagnoses shelved, open occurrences that nobody acknowledged."""

    def record_limits(self, scopes: Mapping[str, str], rules: str) -> list[str]:
        """Keep what came into force: scope → JSON object, for those that are not as they were. Returns them."""

    def close(self) -> None:
        """Close the connection; a later call opens another."""


class Feed(Protocol):
    """The table as a stream, for the one daemon of a share group that runs the rules (store/diagnostics/leader.py).
    Every method may raise StoreUnavailable, and then the lead is lost. For one thread."""

    def lead(self) -> bool:
        """Whether this daemon leads now. Only to be asked by one that does not."""

    def cursor(self, first_us: int) -> int:
        """How far the rules have come, received time, µs; ``first_us`` where they have not begun."""

    def received(self, after_us: int, until_us: int, limit: int) -> Readings:
        """What was received after ``after_us`` and up to ``until_us``, oldest first, about ``limit`` readings. Without
        what was more than six days old on arrival: a backlog, which raises nothing live."""

    def report(self, committed_us: int) -> None:
        """What this daemon received before ``committed_us`` is committed. Whether it leads or not."""

    def committed_by_others(self) -> Mapping[str, int]:
        """What the other members reported last, µs, by their names."""

    def withdraw(self) -> None:
        """Nobody waits for this daemon until it reports again."""

    def close(self) -> None:
        """Let go of the lead."""


class Outbox(Protocol):
    """Changes of occurrences that wait for the broker (store/diagnostics/outbox.py). Every method may raise
    StoreUnavailable. For one thread."""

    def waiting(self) -> tuple[int, int]:
        """How many changes wait to be published, and how many the broker has refused, whichever daemon has the turn;
        what is tried again is in both."""

    def take_turn(self, seconds: float) -> bool:
        """Whether this daemon may publish for the next ``seconds``; renews a turn that it has. One daemon may at a
        time."""

    def end_turn(self) -> None:
        """Another may publish."""

    def read(self, limit: int) -> Sequence[Change]:
        """The oldest ``limit`` changes that may go out now."""

    def remove(self, revisions: Sequence[int]) -> None:
        """The broker has confirmed these."""

    def set_aside(self, revision: int, reason: str, *, for_good: bool) -> None:
        """The broker refused this one. Unless ``for_good`` it is tried again later, and what follows it at its well
        waits for it."""

    def close(self) -> None:
        """Close the connection; the next call opens another."""


class PublisherConnection(Protocol):
    """A connection to the broker for publishing alone (mqtt/publishing_connection.py). For one thread; raises
    nothing."""

    last_error: str

    def connect(self) -> bool:
        """Whether there is a connection; attempts one when its time has come. Blocks up to ``connect_timeout_seconds``
        an address, and as long for CONNACK."""

    def has_room(self) -> bool:
        """Whether another publication may be handed over."""

    def under_way(self) -> int:
        """How many publications the broker has yet to answer."""

    def publish(self, key: int, topic: str, payload: bytes) -> None:
        """Hand over a retained QoS 1 publication, or what comes next to it at this broker; only with :meth:`has_room`.
        Its answer comes under ``key`` from :meth:`answers`, at once if the broker would not take so large a packet."""

    def answers(self) -> Mapping[int, Answer]:
        """What the broker has said since the last call, by key."""

    def ending(self) -> Ending | None:
        """The end of an accepted connection since the last call, if there was one."""

    def turn(self, seconds: float) -> None:
        """Let the network do something, for at most ``seconds``; without a connection, wait."""

    def close(self) -> None:
        """Send what is queued and leave. Takes a second at most."""
