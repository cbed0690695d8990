"""The live stream of changes. The database is asked once a second by each process, however many clients watch, and not
at all if nobody watches.

Polling was chosen over LISTEN/NOTIFY (decision 0013): it costs the daemon nothing, works behind a connection pooler and
with several daemons, and misses nothing that was committed while a connection was down. Each look asks for the newest
reading of each well among those received since the last look, with an overlap because batches are committed after they
were received (in a small fleet it reads well_newest); for the open occurrences; and for what operators did. Whatever
differs from what is known is sent as an event.

Events are numbered and kept in a ring. A watcher is a position in the ring and nothing else: a client that reads
slowly delays nobody, and one that has fallen behind the ring is disconnected."""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec
import psycopg
from psycopg_pool import PoolTimeout

from esp_ingest.api.access.principal import Principal
from esp_ingest.api.database import Database, Rows, Snapshot
from esp_ingest.api.monitor import Monitor
from esp_ingest.api.reads.fleet import state_of
from esp_ingest.interfaces import Clock, StoreUnavailable
from esp_ingest.model import SIGNAL_NAMES, at_us
from esp_ingest.service.log import Repeated

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
_SHARE = 0.05  # of the time that looks may take: readings come first
_LONGEST_PAUSE_SECONDS = 30.0
LINGER_SECONDS = 60.0  # after the last watcher has gone, so that he can come back
MOST_EVENTS, MOST_ITEMS = 2_000, 100_000
_ITEMS_AN_EVENT = 1_000
_MONITOR_BEATS = 5
_BACKLOG = timedelta(days=2)
_LEAST_OVERLAP, _MOST_OVERLAP = timedelta(seconds=2), timedelta(seconds=60)
_FEW_WELLS = 2_000  # of so many the daemon writes the newest readings within 3 s (decision 0015)
_QUICK_SECONDS, _SLOW_SECONDS = 0.01, 0.05
READING_COLUMNS = ("well_id", "timestamp", *SIGNAL_NAMES, "state")
ALARM_FIELDS = (
    "well_id", "diagnosis", "timestamp", "severity", "state", "cleared_at", "value", "threshold", "peak", "occurrences",
    "message",
)  # fmt: skip
_READINGS_HEAD = b'{"columns":' + msgspec.json.encode(READING_COLUMNS) + b',"rows":['
_ALARMS_HEAD = b'{"items":['


class _Seen(NamedTuple):
    """What a look found. ``overlap_cost_seconds``: what reading the overlap took, None where there is none.
    ``ended``: the rows of occurrences that have ended or that somebody did something to. ``action``: the number of the
    last action on an alarm."""

    readings: Rows
    overlap_cost_seconds: float | None
    alarms: dict[tuple[str, str, datetime], tuple[Any, ...]]
    ended: Rows
    action: int


@dataclass(slots=True)
class Event:
    """One event. ``items`` are JSON texts, each with the id of its well; the id is empty for what belongs to no
    well."""

    number: int
    kind: str
    head: bytes
    items: list[tuple[str, bytes]]
    _frames: dict[Any, bytes] = field(default_factory=dict)

    def frame(self, generation: str, key: Any, wanted: Callable[[str], bool] | None) -> bytes:
        """The event in the format text/event-stream, made once for all clients that want the same wells (``key``);
        empty if it holds nothing for them."""
        found = self._frames.get(key)
        if found is None:
            texts = [text for well, text in self.items if wanted is None or not well or wanted(well)]
            data = b",".join(texts)
            if self.head:
                data = self.head + data + b"]}"
            prefix = f"event: {self.kind}\nid: {generation}-{self.number}\ndata: ".encode()
            found = prefix + data + b"\n\n" if texts else b""
            self._frames[key] = found
        return found


class Ring:
    """The newest events, numbered from 1. ``generation`` names this ring: what came before another one is not known to
    it. ``position`` is the number that the next event will have, ``items`` how many are held."""

    def __init__(self) -> None:
        self.generation = secrets.token_hex(4)
        self.position = 1
        self.items = 0
        self._events: deque[Event] = deque()

    @property
    def oldest(self) -> int:
        """The number of the first event that is still here."""
        return self._events[0].number if self._events else self.position

    def add(self, kind: str, head: bytes, items: list[tuple[str, bytes]]) -> None:
        """An event more. The oldest go when there are too many events or items."""
        self._events.append(Event(self.position, kind, head, items))
        self.position += 1
        self.items += len(items)
        while len(self._events) > MOST_EVENTS or (self.items > MOST_ITEMS and len(self._events) > 1):
            self.items -= len(self._events.popleft().items)

    def after(self, last_event_id: str) -> int | None:
        """The position of a client that has seen every event up to this one; None if the ring no longer holds what
        follows, or never did."""
        generation, _, number = last_event_id.partition("-")
        if generation != self.generation or not number.isdecimal() or len(number) > 15:
            return None
        position = int(number) + 1
        return position if self.oldest <= position <= self.position else None

    def events(self, position: int) -> list[Event] | None:
        """The events from this position on; None if not all of them are here any more."""
        if position < self.oldest:
            return None
        return [self._events[at] for at in range(position - self.oldest, len(self._events))]


class Feed:
    """The stream of changes in this process. To be used in the event loop. ``ring`` holds the events; another takes its
    place where what comes cannot be put behind what was."""

    def __init__(self, database: Database, monitor: Monitor, clock: Clock, silent_after_seconds: float) -> None:
        self._silent_after_seconds = silent_after_seconds
        self._database = database
        self._monitor = monitor
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self.watchers = 0  # clients that watch now
        self._idle_since = 0.0
        self._trouble = Repeated(log, "the live feed cannot read the database", "the live feed reads again")
        self.stopping = False
        self._clear()

    def _clear(self) -> None:
        """Begin anew."""
        self.ring = Ring()
        self.primed = asyncio.Event()
        self.changed = asyncio.Event()
        self._newest: dict[str, datetime] = {}
        self._received: datetime | None = None
        self._overlap = timedelta(seconds=30)
        self._open: dict[tuple[str, str, datetime], tuple[Any, ...]] | None = None
        self._action = 0
        self.health: dict[str, Any] = {}  # of the database and of the daemon, as last seen

    # -- For watchers.

    def join(self) -> None:
        """A client begins to watch."""
        self.watchers += 1
        if self._task is None or self._task.done():
            self._clear()
            self._task = asyncio.create_task(self._run())

    def leave(self) -> None:
        """A client has stopped watching."""
        self.watchers -= 1
        self._idle_since = self._clock.monotonic()

    # -- The loop.

    async def stop(self) -> None:
        """End all streams and stop looking."""
        self.stopping = True
        self.changed.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        beat = 0
        before = 0.0  # what the last look took
        while self.watchers or self._clock.monotonic() - self._idle_since < LINGER_SECONDS:
            started = self._clock.monotonic()
            try:
                is_first = self._open is None
                await self._look()
                self._trouble.ended(self._clock.monotonic())
                if is_first and self.primed.is_set():
                    self._tell("reset", b"", [("", b'{"reason":"the database is back"}')])
                database = "ok"
            except (psycopg.Error, PoolTimeout, StoreUnavailable) as error:
                self._trouble.failed(self._clock.monotonic(), repr(error))
                database = "unavailable"
            took = self._clock.monotonic() - started
            if beat % _MONITOR_BEATS == 0 or self.health.get("database") != database:
                daemon = await self._monitor.daemon()
                self._tell_health(
                    {"database": database, "daemon": {"status": daemon["status"], "checks": daemon["checks"]}}
                )
            self.primed.set()
            beat += 1
            # A failed look was no work. One that is slow by itself met a hiccup, which is no reason for a long pause.
            cost = min(took, before) if database == "ok" else 0.0
            before = took
            await asyncio.sleep(min(max(BEAT_SECONDS - cost, cost / _SHARE - cost), _LONGEST_PAUSE_SECONDS))

    async def _look(self) -> None:
        seen = await self._database.read(self._see)
        if seen.overlap_cost_seconds is not None:
            self._adapt_overlap(seen.overlap_cost_seconds)
        self._tell_of_readings(seen.readings)
        self._tell_of_alarms(seen)

    async def _see(self, snapshot: Snapshot) -> _Seen:
        """It may be called twice for one look, so nothing is noted here."""
        now = at_us(self._clock.now_us())
        ((is_kept,),) = await snapshot.fetch("api_live_is_kept", {"few": _FEW_WELLS})
        after = (self._received or now) - (_MOST_OVERLAP if is_kept else self._overlap)
        started = self._clock.monotonic()
        readings = await snapshot.fetch(
            "api_live_kept" if is_kept else "api_live_readings", {"after": after, "oldest": now - _BACKLOG}
        )
        cost = None if is_kept else self._clock.monotonic() - started
        alarms = {(row[0], row[1], row[2]): row for row in await snapshot.fetch("api_live_alarms")}
        if self._open is None:  # the first look: this is what is known, not news
            ((newest,),) = await snapshot.fetch("newest_action")
            return _Seen(readings, cost, alarms, [], int(newest))
        actions = await snapshot.fetch("api_live_actions", {"after": self._action})
        ended = [key for key in self._open if key not in alarms]
        touched = [(a[1], a[2], a[7]) for a in actions if a[7] is not None and (a[1], a[2], a[7]) not in alarms]
        news: Rows = []
        if keys := list(dict.fromkeys(ended + touched)):
            wells, diagnoses, times = (list(each) for each in zip(*keys, strict=True))
            news = await snapshot.fetch("api_live_ended", {"wells": wells, "diagnoses": diagnoses, "times": times})
        return _Seen(readings, cost, alarms, news, actions[-1][0] if actions else self._action)

    def _adapt_overlap(self, took_seconds: float) -> None:
        if took_seconds > _SLOW_SECONDS:
            self._overlap = max(self._overlap / 2, _LEAST_OVERLAP)
        elif took_seconds < _QUICK_SECONDS:
            self._overlap = min(self._overlap * 2, _MOST_OVERLAP)

    def _tell_of_readings(self, rows: Iterable[tuple[Any, ...]]) -> None:
        items = []
        now = at_us(self._clock.now_us())
        for row in rows:
            well, at, received = row[0], row[1], row[-1]
            if self._received is None or received > self._received:
                self._received = received
            known = self._newest.get(well)
            if known is None or at > known:
                self._newest[well] = at
                state = state_of(at, row[2:-1], now, self._silent_after_seconds)
                items.append((well, msgspec.json.encode((*row[:-1], state))))
        self._tell_in_parts("readings", _READINGS_HEAD, items)

    def _tell_of_alarms(self, seen: _Seen) -> None:
        known = seen.alarms if self._open is None else self._open
        news = [row for key, row in seen.alarms.items() if known.get(key) != row] + seen.ended
        self._open, self._action = seen.alarms, seen.action
        items = [(row[0], msgspec.json.encode(dict(zip(ALARM_FIELDS, row, strict=True)))) for row in news]
        self._tell_in_parts("alarms", _ALARMS_HEAD, items)

    def _tell_health(self, health: dict[str, Any]) -> None:
        if _without_ages(health) != _without_ages(self.health):
            self._tell("health", b"", [("", msgspec.json.encode(health))])
        self.health = health

    def _tell_in_parts(self, kind: str, head: bytes, items: list[tuple[str, bytes]]) -> None:
        for start in range(0, len(items), _ITEMS_AN_EVENT):
            self._tell(kind, head, items[start : start + _ITEMS_AN_EVENT])

    def _tell(self, kind: str, head: bytes, items: list[tuple[str, bytes]]) -> None:
        self.ring.add(kind, head, items)
        self.changed.set()
        self.changed = asyncio.Event()


def _without_ages(health: dict[str, Any]) -> dict[str, Any]:
    """The health without its details, which say how long ago something moved and would be news at every look."""
    daemon = health.get("daemon", {})
    checks = {name: check.get("ok", check.get("status")) for name, check in daemon.get("checks", {}).items()}
    return {"database": health.get("database"), "daemon": daemon.get("status"), "checks": checks}


def wants(principal: Principal, well_ids: frozenset[str]) -> tuple[Any, Callable[[str], bool] | None]:
    """A client's filter of wells, None if it lets everything through, and a key that is equal for equal filters."""
    if principal.sees_everything and not well_ids:
        return "", None
    return (principal.wells, well_ids), lambda well: principal.sees(well) and (not well_ids or well in well_ids)
