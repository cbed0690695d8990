"""The writer stage without its thread."""

from collections.abc import Callable

from esp_ingest.ingest.batch import Batch, Outcome
from esp_ingest.ingest.pipeline import BatchQueue
from esp_ingest.ingest.writer_stage import Stage


class InlineQueue(BatchQueue):
    """The stage works when the pipeline polls: on a batch when another waits behind it, as with the thread, or when
    none has come between two polls. ``pause`` is how the stage waits. ``stage`` is set once it is made."""

    stage: Stage

    def __init__(self, pause: Callable[[float], None]) -> None:
        super().__init__(most_waiting=3)  # two behind the one that the thread would work on
        self._pause = pause
        self._polled = False

    def submit(self, batch: Batch) -> None:
        super().submit(batch)
        self._polled = False

    def poll(self, timeout_seconds: float) -> tuple[Batch, Outcome] | None:
        del timeout_seconds
        if not self._waiting or (len(self._waiting) == 1 and not self._polled and not self.is_hurrying):
            self._polled = True
            return None
        batch = self.take(0.0)
        assert batch is not None
        self.put_safe(batch, self.stage.process(batch))
        self.give_back()
        self.stage.after_batch()
        return super().poll(0.0)

    def pause(self, seconds: float) -> None:
        self._pause(seconds)
