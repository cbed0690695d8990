"""Occurrences on their way out: from the outbox to ``{topic_root}/{well_id}/diagnostics``, in a thread of its own, over
an MQTT connection of its own.

A change is removed from the outbox when the broker has confirmed it, so neither an outage nor a kill loses one. What is
sent twice carries the same id and revision. Within a well one publication is under way at a time, so that the retained
one is the newest. What the broker refuses is set aside, and others go on: docs/diagnostics-topics.md tells about both.
"""

import logging
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from esp_ingest.interfaces import Clock, Outbox, PublisherConnection, StoreUnavailable
from esp_ingest.model import Answer, Change, Ending
from esp_ingest.service.background import Background
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import Metrics

log = logging.getLogger(__name__)

_MOST_AT_ONCE = 100
_LOOK_SECONDS = 0.5  # how long a change waits at most until somebody looks
_STAND_BY_SECONDS = 2.0  # while another daemon publishes
_AWAY_SECONDS = 5.0  # pause after an error of the database
_DELIVER_SECONDS = 5.0
_LAST_DELIVER_SECONDS = 1.0  # at the end of the process; what is not confirmed goes out after the next start
_TURN_SECONDS = 30.0  # of this daemon among those that publish; longer than reading and delivering take together
_STRIKES = 2  # so often alone under way when the connection ended


class Publisher:
    """Empties the outbox. Its thread alone uses ``outbox`` and ``connection``."""

    def __init__(
        self, outbox: Outbox, connection: PublisherConnection, topic_root: str, clock: Clock, metrics: Metrics
    ) -> None:
        self._outbox = outbox
        self._connection = connection
        self._topic_root = topic_root
        self._clock = clock
        self._metrics = metrics
        # Revisions that were under way when the connection ended for no known reason: how often each was alone then.
        self._suspects: dict[int, int] = {}
        self._sent: dict[int, Change] = {}  # under way, by revision
        self._turn_until = 0.0
        self._deliver_seconds = _DELIVER_SECONDS
        self._trouble = Repeated(log, "occurrences cannot be published", "occurrences are published again")
        self._refusals = Repeated(log, "publications set aside", "no publication is set aside any more")
        self._thread = Background("publisher", self._guarded, self._end, clock, connection.turn)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.alive

    def stop(self, timeout_seconds: float) -> None:
        """One last look, then the end."""
        self._deliver_seconds = _LAST_DELIVER_SECONDS
        self._thread.stop(timeout_seconds)

    def run_once(self) -> float:
        """Publish what is there. Returns how long to wait before the next look, in seconds."""
        started = self._clock.monotonic()
        try:
            return self._look(started)
        except StoreUnavailable as error:
            self._start_over()
            self._trouble.failed(started, error.reason, detail=error.detail)
            return _AWAY_SECONDS

    def _look(self, started: float) -> float:
        self._settle()
        backlog = self._tell_of_waiting(started)
        if not self._has_turn(started):
            self._start_over()  # what was still under way is another's to send now
            self._trouble.ended(started)
            return _STAND_BY_SECONDS
        if not self._connection.connect():
            if backlog:
                self._trouble.failed(started, self._connection.last_error, waiting=backlog)
            return _LOOK_SECONDS
        changes = self._outbox.read(_MOST_AT_ONCE) if backlog else ()
        if self._clock.monotonic() - started > _TURN_SECONDS / 3:
            return 0.0  # the database was slow: make sure of the turn before anything is sent
        outcome = self._deliver(changes)
        if outcome.confirmed or outcome.refused:
            self._tell_of_waiting(started)
        if not changes or outcome.confirmed:
            self._trouble.ended(started)
        elif not outcome.refused:
            reason = self._connection.last_error or "the broker does not confirm"
            self._trouble.failed(started, reason, waiting=backlog)
        return 0.0 if len(changes) == _MOST_AT_ONCE and outcome.confirmed else _LOOK_SECONDS

    def _has_turn(self, now: float) -> bool:
        """Whether this daemon publishes now. Asked of the database when half of the turn is over."""
        if now > self._turn_until - _TURN_SECONDS / 2:
            self._turn_until = now + _TURN_SECONDS if self._outbox.take_turn(_TURN_SECONDS) else 0.0
        return now < self._turn_until

    def _tell_of_waiting(self, now: float) -> int:
        backlog, set_aside = self._outbox.waiting()
        self._metrics.diagnostics_publish_backlog.set(backlog)
        self._metrics.diagnostics_publish_set_aside.set(set_aside)
        if not set_aside:
            self._refusals.ended(now)
        return backlog

    def _end(self) -> None:
        self._guarded()
        self._connection.close()
        try:
            self._outbox.end_turn()
        except StoreUnavailable as error:
            log.debug("publishing turn not ended", extra={"reason": str(error)})
        self._outbox.close()

    def _guarded(self) -> float:
        try:
            return self.run_once()
        except Exception:  # a mistake of ours must not end publishing for good
            log.exception("publishing failed")
            self._start_over()
            return _AWAY_SECONDS

    def _start_over(self) -> None:
        """Nothing is under way any more; the outbox knows what has to go out."""
        self._connection.close()
        self._connection.answers()
        self._connection.ending()
        self._sent.clear()

    # -- One look at the outbox.

    def _deliver(self, changes: Sequence[Change]) -> "_Outcome":
        """Send, wait for the broker, and note its answers. What was refused before, or was under way when a connection
        ended, goes last and alone, so that an end of the connection tells which one it was."""
        deadline = self._clock.monotonic() + self._deliver_seconds
        odd = {each.well_id for each in changes if each.refusals or each.revision in self._suspects}
        self._suspects = {
            each.revision: self._suspects[each.revision] for each in changes if each.revision in self._suspects
        }
        outcome = self._send([each for each in changes if each.well_id not in odd], deadline)
        for well_id in sorted(odd):
            if self._connection.under_way():
                break
            head = next(each for each in changes if each.well_id == well_id)
            more = self._send([head], deadline)
            outcome = _Outcome(outcome.confirmed + more.confirmed, outcome.refused + more.refused)
        return outcome

    def _send(self, changes: Sequence[Change], deadline: float) -> "_Outcome":
        """As :meth:`_deliver`, of these, one of each well at a time."""
        queues: dict[str, deque[Change]] = {}
        for each in changes:
            queues.setdefault(each.well_id, deque()).append(each)
        ready = deque(queue for queue in queues.values() if queue[0].revision not in self._sent)
        confirmed = refused = 0
        while self._clock.monotonic() < deadline:
            while ready and self._connection.has_room():
                change = ready.popleft()[0]
                self._sent[change.revision] = change
                topic = f"{self._topic_root}/{change.well_id}/diagnostics"
                self._connection.publish(change.revision, topic, change.payload.encode())
            settled = self._settle()
            confirmed, refused = confirmed + settled.confirmed, refused + settled.refused
            for well_id in settled.free_wells:
                queue = queues.get(well_id)
                if queue is None:  # of an earlier look
                    continue
                queue.popleft()
                if queue:
                    ready.append(queue)
            if not settled.free_wells:
                if not self._connection.under_way():
                    break
                self._connection.turn(deadline - self._clock.monotonic())
        return _Outcome(confirmed, refused)

    def _settle(self) -> "_Outcome":
        """Note what the broker has said since the last call."""
        answers = self._connection.answers()
        free_wells: list[str] = []
        confirmed: list[int] = []
        refused = 0
        for revision, answer in answers.items():
            change = self._sent.pop(revision)
            if answer.refusal:
                refused += 1
                self._set_aside(change, answer)
            else:
                confirmed.append(revision)
                self._suspects.pop(revision, None)
            if not answer.refusal or answer.is_of_message:
                free_wells.append(change.well_id)
        if confirmed:
            self._outbox.remove(confirmed)
            self._metrics.diagnostics_published.inc(len(confirmed))
        ending = self._connection.ending()
        if ending is not None:
            refused += self._find_guilty(ending)
        return _Outcome(len(confirmed), refused, free_wells)

    def _find_guilty(self, ending: Ending) -> bool:
        """The connection ended: was it for what was under way? Returns whether a publication was set aside."""
        under_way = [self._sent.pop(revision) for revision in ending.unanswered]
        if ending.is_innocent or not under_way:
            return False
        for each in under_way:
            self._suspects.setdefault(each.revision, 0)
        if len(under_way) > 1:
            return False
        (change,) = under_way
        self._suspects[change.revision] += 1
        if not (ending.blame or change.refusals or self._suspects[change.revision] >= _STRIKES):
            return False
        self._set_aside(change, ending.blame or Answer(f"the connection ends when it is sent: {ending.reason}"))
        return True

    def _set_aside(self, change: Change, answer: Answer) -> None:
        self._outbox.set_aside(change.revision, answer.refusal, for_good=answer.is_of_message)
        self._suspects.pop(change.revision, None)
        self._metrics.diagnostics_publications_refused.inc()
        fields = {"well_id": change.well_id, "revision": change.revision}
        self._refusals.failed(self._clock.monotonic(), answer.refusal, **fields)


class _Outcome(NamedTuple):
    """How many publications were confirmed and refused; whose wells may send the next."""

    confirmed: int = 0
    refused: int = 0
    free_wells: Sequence[str] = ()
