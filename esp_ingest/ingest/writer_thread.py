"""The writer stage in a thread of its own."""

import threading

from esp_ingest.ingest.pipeline import BatchQueue
from esp_ingest.ingest.writer_stage import Stage


class WriterThread:
    """Takes batches from ``queue``, has ``stage`` make them safe, and puts them back. An error that ends it is raised
    by the queue's poll()."""

    def __init__(self, stage: Stage, queue: BatchQueue) -> None:
        self._stage = stage
        self._queue = queue
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """The thread runs."""
        return self._thread.is_alive()

    def close(self, timeout_seconds: float) -> bool:
        """End the thread after the batches that wait. Returns whether it ended in ``timeout_seconds``."""
        self._queue.close()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._queue.is_closed:
                self._turn()
            self._stage.finish()
        except BaseException as error:
            self._queue.fail(error)

    def _turn(self) -> None:
        """One batch, and what is done behind each."""
        queue, stage = self._queue, self._stage
        batch = queue.take(0.0)
        while batch is None:
            if queue.is_closed:
                return
            batch = queue.take(stage.idle())
        queue.put_safe(batch, stage.process(batch))
        if queue.next_batch is None or stage.spooling:
            queue.give_back()
        stage.after_batch()
