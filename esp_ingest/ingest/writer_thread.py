"""The writer stage in a thread of its own."""

import threading
from collections import deque

from esp_ingest.ingest.batch import Batch, Outcome
from esp_ingest.ingest.writer_stage import Stage

_DRAIN_STEPS = 2  # pieces of the spool drained for each batch that arrives: the backlog shrinks even at full load
MOST_WAITING = 2  # batches behind the one that is worked on


class ThreadedStage:
    """The stage in a thread of its own. An error in it is raised again in the caller of `poll`.

    What is safe is given back while the database is busy with the next batch, or at once where none waits: settling is
    Python's work, and would hold up the next batch on its way to the database."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        stage.pause = self._pause
        stage.next_batch = self._give_back_and_look
        self._changed = threading.Condition()
        self._waiting: deque[Batch] = deque()
        self._safe: list[tuple[Batch, Outcome]] = []  # not given back yet
        self._finished: deque[tuple[Batch, Outcome]] = deque()
        self._error: BaseException | None = None
        self._held = 0  # submitted and not given back
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def busy(self) -> bool:
        """Batches were submitted that have not come back."""
        return self._held > 0

    @property
    def has_room(self) -> bool:
        """A batch may be submitted."""
        return len(self._waiting) < MOST_WAITING

    def submit(self, batch: Batch) -> None:
        with self._changed:
            assert self.has_room, "two batches wait at most"
            self._held += 1
            self._waiting.append(batch)
            self._changed.notify_all()

    def poll(self, timeout_seconds: float) -> tuple[Batch, Outcome] | None:
        """The batch that is safe now, or None after ``timeout_seconds``. Raises what ended the thread."""
        with self._changed:
            if not self._finished and self._error is None and timeout_seconds > 0:
                self._changed.wait(timeout_seconds)
                if not self._finished:  # the next batch keeps the thread busy in other ways: wait no longer for it
                    self._hand_over()
            if self._error is not None:
                raise self._error
            if not self._finished:
                return None
            self._held -= 1
            return self._finished.popleft()

    def hurry(self) -> None:
        with self._changed:
            self._stage.hurrying = True
            self._changed.notify_all()

    def close(self, timeout_seconds: float) -> bool:
        """End the thread after its batch. False when it did not end in time."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        try:
            while True:
                batch = self._next_batch()
                if batch is None:
                    self._stage.finish()
                    return
                outcome = self._stage.process(batch)
                with self._changed:
                    self._safe.append((batch, outcome))
                if not self._waiting or self._stage.spooling:
                    self._give_back()
                for _ in range(_DRAIN_STEPS):
                    if self._stage.spooling:
                        self._stage.drain_step()
                self._stage.maintain()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next_batch(self) -> Batch | None:
        wait_seconds = 0.0
        while True:
            with self._changed:
                if not self._waiting and not self._closing and wait_seconds > 0:
                    self._changed.wait(wait_seconds)
                if self._waiting:
                    return self._waiting.popleft()  # its owner learns of the room when a batch is given back
                if self._closing:
                    return None
            wait_seconds = self._stage.idle()

    def _give_back(self) -> None:
        with self._changed:
            self._hand_over()
            self._changed.notify_all()

    def _hand_over(self) -> None:
        self._finished.extend(self._safe)
        self._safe.clear()

    def _give_back_and_look(self) -> Batch | None:
        self._give_back()
        return self._waiting[0] if self._waiting else None

    def _pause(self, seconds: float) -> None:
        """Wait for another try; cut short when the process wants to end."""
        self._give_back()
        with self._changed:
            if not self._stage.hurrying:
                self._changed.wait_for(lambda: self._stage.hurrying or self._closing, seconds)
            else:
                self._changed.wait(min(seconds, 0.2))
