"""The database is killed under the writer, with fsync on: what was reported as written is there, and all of it once."""

import threading
import time
from collections.abc import Iterator

import pytest

from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.model import Readings
from esp_ingest.store.schema import migrate
from esp_ingest.store.write.writer import PostgresStore
from tests.support.databases import Database, NativeTimescale, Server, start_server
from tests.support.store_data import DIAGNOSIS, START_US, readings, reject

ROWS = 200
BATCHES = 80


@pytest.fixture
def server() -> Iterator[Server]:
    with start_server(NativeTimescale, fsync=True) as server:
        yield server


def batch(number: int) -> Readings:
    return readings([(f"w{row % 9}", number * ROWS + row) for row in range(ROWS)])


class Writer(threading.Thread):
    """Writes the batches in order, each until it is stored."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._store = PostgresStore(database.settings)
        self.reported = 0  # batches that write() returned for
        self.failures: list[str] = []
        self.written = self.duplicates = 0

    def run(self) -> None:
        for number in range(BATCHES):
            while True:
                try:
                    result = self._store.write(batch(number), [reject(number)], [DIAGNOSIS])
                    break
                except StoreUnavailable as error:
                    self.failures.append(error.reason)
                    time.sleep(0.02)
            self.written += result.written
            self.duplicates += result.duplicates
            self.reported = number + 1
        self._store.close()


def test_killed_three_times_under_load(server: Server) -> None:
    database = server.create_database()
    migrate(database.settings)
    writer = Writer(database)
    writer.start()
    for quarter in (1, 2, 3):
        while writer.reported < BATCHES * quarter // 4:
            time.sleep(0.005)
        server.kill()
        reported = writer.reported
        server.launch()
        kept = {row[0] for row in database.all('SELECT DISTINCT extract(epoch FROM "timestamp") FROM esp_telemetry')}
        first_second = START_US // 1_000_000
        assert {first_second + second for second in range(reported * ROWS)} <= {int(second) for second in kept}
    writer.join(60)
    assert not writer.is_alive()
    assert database.value("SELECT count(*) FROM esp_telemetry") == BATCHES * ROWS
    assert database.value("SELECT count(*) FROM ingest_rejects") == BATCHES
    assert database.value("SELECT count(*) FROM diagnostic_results") == 1
    # Whole batches only: a commit that was lost from sight comes back as duplicates, its reject included.
    assert (writer.written + writer.duplicates) >= BATCHES * ROWS
    assert writer.failures
    # A backend whose postmaster is gone says that it shuts down, if it gets to saying anything.
    words = ("connection", "answer", "starting", "crash", "shutting down")
    assert not [why for why in writer.failures if not any(word in why for word in words)]
