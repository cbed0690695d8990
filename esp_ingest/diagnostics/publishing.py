"""Occurrences on their way out: from the outbox to ``{topic_root}/{well_id}/diagnostics``, in a thread of its own.

A change is removed from the outbox when the broker has confirmed it, so neither an outage nor a kill loses one. What is
sent twice carries the same id and revision. Within a well, changes go out in order: the retained one is the newest.
docs/diagnostics-topics.md tells consumers about it.
"""

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from esp_ingest.seams import Clock, StoreUnavailable
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import Metrics

log = logging.getLogger(__name__)

_MOST_AT_ONCE = 100
_LOOK_SECONDS = 0.5  # how long a change waits at most until somebody looks
_AWAY_SECONDS = 5.0  # pause after an error of database or broker
_CONFIRM_SECONDS = 5.0
_LAST_CONFIRM_SECONDS = 1.0  # at the end of the process; what is not confirmed goes out after the next start


class Publication(Protocol):
    """mqtt/publication.py: one message under way."""

    @property
    def done(self) -> bool: ...
    @property
    def confirmed(self) -> bool: ...
    def wait(self, timeout_seconds: float) -> bool: ...


class Change(Protocol):
    """store/outbox.py: an occurrence after a change, as JSON."""

    @property
    def revision(self) -> int: ...
    @property
    def well_id(self) -> str: ...
    @property
    def payload(self) -> str: ...


class Outbox(Protocol):
    def deliver(self, send: Callable[[Sequence[Change]], Collection[int]], limit: int) -> tuple[int, int]: ...
    def close(self) -> None: ...


Publish = Callable[[str, bytes, int, bool], Publication]


class Publisher:
    """Empties the outbox. ``publish`` takes topic, payload, QoS and retain, and must not block."""

    def __init__(self, outbox: Outbox, publish: Publish, topic_root: str, clock: Clock, metrics: Metrics) -> None:
        self._outbox = outbox
        self._publish = publish
        self._topic_root = topic_root
        self._clock = clock
        self._metrics = metrics
        self._under_way: dict[int, Publication] = {}
        self._confirm_seconds = _CONFIRM_SECONDS
        self._trouble = Repeated(log, "occurrences cannot be published", "occurrences are published again")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="publisher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self, timeout_seconds: float) -> None:
        """One last look, then the end. The source must still be there."""
        self._confirm_seconds = _LAST_CONFIRM_SECONDS
        self._stopping.set()
        if self._thread.is_alive():  # it may never have been started
            self._thread.join(timeout_seconds)

    def run_once(self) -> float:
        """Publish what is there. Returns how long to wait before the next look, in seconds."""
        now = self._clock.monotonic()
        try:
            removed, left = self._outbox.deliver(self._send, _MOST_AT_ONCE)
        except StoreUnavailable as error:
            self._trouble.failed(now, error.reason, detail=error.detail)
            return _AWAY_SECONDS
        self._metrics.diagnostics_published.inc(removed)
        self._metrics.diagnostics_publish_backlog.set(left)
        if left and not removed:
            self._trouble.failed(now, "the broker does not confirm", waiting=left)
            return _AWAY_SECONDS
        self._trouble.ended(now)
        return 0.0 if left else _LOOK_SECONDS

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._stopping.wait(self._guarded())
        self._guarded()
        self._outbox.close()

    def _guarded(self) -> float:
        try:
            return self.run_once()
        except Exception:  # a mistake of ours must not end publishing for good
            log.exception("publishing failed")
            return _AWAY_SECONDS

    def _send(self, changes: Sequence[Change]) -> list[int]:
        """Publish what is not under way yet, wait for the broker, and give what it has confirmed."""
        self._under_way = {
            each.revision: self._under_way[each.revision]
            for each in changes
            if each.revision in self._under_way and not _failed(self._under_way[each.revision])
        }
        for each in changes:
            if each.revision in self._under_way:
                continue
            topic = f"{self._topic_root}/{each.well_id}/diagnostics"
            publication = self._publish(topic, each.payload.encode(), 1, True)
            if _failed(publication):
                break  # what comes after it must not overtake it
            self._under_way[each.revision] = publication
        deadline = self._clock.monotonic() + self._confirm_seconds
        for publication in self._under_way.values():
            publication.wait(max(deadline - self._clock.monotonic(), 0.0))
        return self._confirmed(changes)

    def _confirmed(self, changes: Sequence[Change]) -> list[int]:
        """Up to the first of its well that is not: whatever goes out again, goes out before the newer ones."""
        held: set[str] = set()
        confirmed: list[int] = []
        for each in changes:
            publication = self._under_way.get(each.revision)
            if each.well_id not in held and publication is not None and publication.confirmed:
                confirmed.append(each.revision)
                continue
            held.add(each.well_id)
            if publication is not None and publication.done:  # confirmed, but overtaken: once more after the older one
                del self._under_way[each.revision]
        return confirmed


def _failed(publication: Publication) -> bool:
    return publication.done and not publication.confirmed
