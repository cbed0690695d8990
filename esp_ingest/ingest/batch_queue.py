"""The hand-off between the pipeline and the writer stage: batches one way, safe batches the other, both in order."""

import threading
from collections import deque

from esp_ingest.ingest.batch import Batch, Outcome

_MOST_WAITING = 2  # batches behind the one that is worked on: the second keeps the stage from idling


class BatchQueue:
    """Bounded: the pipeline asks :attr:`has_room` first. Any thread may call any method; each side is one thread.

    A safe batch is kept until the stage calls :meth:`give_back`, which it does when the database is busy with the next
    one or no other waits: to settle a batch is Python's work, and would hold up the next one on its way to the
    database."""

    def __init__(self, most_waiting: int = _MOST_WAITING) -> None:
        self._most_waiting = most_waiting
        self._changed = threading.Condition()
        self._waiting: deque[Batch] = deque()
        self._safe: list[tuple[Batch, Outcome]] = []  # not given back yet
        self._given_back: deque[tuple[Batch, Outcome]] = deque()
        self._error: BaseException | None = None
        self._held = 0  # submitted, and not yet returned by poll()
        self._is_closing = False
        self.is_hurrying = False  # the process wants to end: wait for nothing that the spool can hold

    # -- The pipeline's side.

    @property
    def busy(self) -> bool:
        """Batches were submitted that have not come back."""
        return self._held > 0

    @property
    def has_room(self) -> bool:
        """A batch may be submitted."""
        return len(self._waiting) < self._most_waiting

    def submit(self, batch: Batch) -> None:
        """Hand a batch to the stage. Never blocks."""
        with self._changed:
            assert self.has_room, f"{self._most_waiting} batches wait at most"
            self._held += 1
            self._waiting.append(batch)
            self._changed.notify_all()

    def poll(self, timeout_seconds: float) -> tuple[Batch, Outcome] | None:
        """The next batch that is safe, or None after ``timeout_seconds``. Raises the error that ended the stage."""
        with self._changed:
            if not self._given_back and self._error is None and timeout_seconds > 0:
                self._changed.wait(timeout_seconds)
                if not self._given_back:  # the next batch keeps the stage busy in other ways: wait no longer for it
                    self._hand_over()
            if self._error is not None:
                raise self._error
            if not self._given_back:
                return None
            self._held -= 1
            return self._given_back.popleft()

    def hurry(self) -> None:
        """The process wants to end; see :attr:`is_hurrying`."""
        with self._changed:
            self.is_hurrying = True
            self._changed.notify_all()

    def close(self) -> None:
        """No batch follows: :meth:`take` returns None once none waits."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()

    # -- The stage's side.

    @property
    def is_closed(self) -> bool:
        """No batch waits, and none follows."""
        return self._is_closing and not self._waiting

    @property
    def next_batch(self) -> Batch | None:
        """The batch that :meth:`take` would return; None if none waits."""
        with self._changed:
            return self._waiting[0] if self._waiting else None

    def take(self, timeout_seconds: float) -> Batch | None:
        """The oldest batch that waits; None if none came in ``timeout_seconds``, or none follows."""
        with self._changed:
            if not self._waiting and not self._is_closing and timeout_seconds > 0:
                self._changed.wait(timeout_seconds)
            return self._waiting.popleft() if self._waiting else None

    def put_safe(self, batch: Batch, outcome: Outcome) -> None:
        """``batch`` is safe, and may be settled after :meth:`give_back`."""
        with self._changed:
            self._safe.append((batch, outcome))

    def give_back(self) -> None:
        """Let the pipeline have what is safe."""
        with self._changed:
            self._hand_over()
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Wait before another try; cut short when the process wants to end."""
        self.give_back()
        with self._changed:
            if not self.is_hurrying:
                self._changed.wait_for(lambda: self.is_hurrying or self._is_closing, seconds)
            else:
                self._changed.wait(min(seconds, 0.2))

    def fail(self, error: BaseException) -> None:
        """The stage has ended: :meth:`poll` raises ``error`` from now on."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _hand_over(self) -> None:
        self._given_back.extend(self._safe)
        self._safe.clear()
