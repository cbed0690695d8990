"""The lifecycle while rows arrive, into today and into days that are being dropped: none is lost, none is twice."""

import threading
import time
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from tests.fault.test_lifecycle_kill import archived_keys, stored_keys
from tests.support.databases import Database
from tests.support.lifecycle_data import fill, midnight, migrated, run, settings_for

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

SECONDS = 12.0


class LateRows(threading.Thread):
    """Writes a reading into one of three old days again and again; ``confirmed`` is what the server committed."""

    def __init__(self, database: Database) -> None:
        super().__init__(daemon=True)
        self._database = database
        self.confirmed: set[tuple[object, ...]] = set()
        self.refused = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        insert = "INSERT INTO esp_telemetry (timestamp, well_id, pip, received_at) VALUES (%s, %s, %s, now())"
        number = 0
        with self._database.connect() as connection:
            while not self.stopped.is_set():
                number += 1
                at = midnight(40 + number % 3) + timedelta(seconds=number)
                try:
                    connection.execute(insert.encode(), (at, "LATE", number))
                except psycopg.Error:  # the chunk is gone from under it: the daemon writes such a batch again
                    self.refused += 1
                else:
                    self.confirmed.add(("LATE", at))
                time.sleep(0.001)


def test_late_rows_into_days_that_are_dropped_are_all_archived(native_database: Database, tmp_path: Path) -> None:
    database = migrated(native_database)
    for days_ago in (40, 41, 42):
        fill(database, days_ago)
    keys = stored_keys(database)
    settings = settings_for(database, tmp_path)
    writer = LateRows(database)
    writer.start()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        run(settings)
    writer.stopped.set()
    writer.join()
    assert len(writer.confirmed) > 500
    for _ in range(3):
        outcome, _ = run(settings)
    assert outcome.ok, outcome.problems
    assert stored_keys(database) == set()
    assert archived_keys(tmp_path) == keys | writer.confirmed
