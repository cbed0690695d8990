"""The writer stage without its thread."""

from collections import deque

from esp_ingest.ingest.batch import Batch, Outcome
from esp_ingest.ingest.writer_stage import Stage
from esp_ingest.ingest.writer_thread import MOST_WAITING


class InlineStage:
    """The stage without a thread, for tests and for run_once(): a batch is processed when another waits behind it, as
    with the thread, or when none has come between two polls."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        stage.next_batch = lambda: self._queue[0] if self._queue else None
        self._queue: deque[Batch] = deque()
        self._polled = False

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    @property
    def has_room(self) -> bool:
        return len(self._queue) <= MOST_WAITING

    def submit(self, batch: Batch) -> None:
        assert self.has_room, "two batches wait at most"
        self._queue.append(batch)
        self._polled = False

    def poll(self, timeout_seconds: float) -> tuple[Batch, Outcome] | None:
        del timeout_seconds
        if not self._queue or (len(self._queue) == 1 and not self._polled and not self._stage.hurrying):
            self._polled = True
            return None
        batch = self._queue.popleft()
        return batch, self._stage.process(batch)

    def hurry(self) -> None:
        self._stage.hurrying = True
