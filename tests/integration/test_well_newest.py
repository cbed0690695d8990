"""The newest reading of each well: kept beside the batches, right whoever writes, and soon there."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest

from esp_ingest.model import SIGNALS, Readings
from esp_ingest.store.schema import migrate
from esp_ingest.store.write.newest import WellNewest
from esp_ingest.store.write.writer import PostgresStore
from tests.support.databases import Database
from tests.support.fake_clock import FakeClock
from tests.support.lifecycle_data import fill, midnight, run, settings_for

HOUR_US = 3_600_000_000
START_US = int(midnight(3).timestamp()) * 1_000_000
LOOKED_FOR = "SELECT * FROM well_newest_now ORDER BY well_id"
SHOWN = "SELECT * FROM well_latest ORDER BY well_id"
MARKS = "SELECT count(*) FROM well_newest_stale"


def batch(*rows: tuple[str, int, float]) -> Readings:
    """(well, minute, flow rate); what is odd has further keys."""
    wells = sorted({well for well, *_ in rows})
    values = np.full((len(SIGNALS), len(rows)), np.nan)
    values[0] = [flow for *_, flow in rows]
    at = np.array([START_US + minute * 60_000_000 for _, minute, _ in rows], np.int64)
    index = np.array([wells.index(well) for well, *_ in rows], np.int32)
    extra = {row: f'{{"minute": {minute}}}' for row, (_, minute, _) in enumerate(rows) if minute % 2}
    return Readings(wells, index, at, at + 5, values, extra)


class Daemon:
    """A store as the daemon has it, on a clock that stands still."""

    def __init__(self, database: Database, **bounds: int) -> None:
        self.clock = FakeClock()
        self.store = PostgresStore(database.settings, newest=WellNewest(self.clock, **bounds))
        self.store.idle()
        self.store.ping()
        self.store.idle()

    def write(self, *rows: tuple[str, int, float]) -> None:
        self.store.write(batch(*rows), [], [])
        self.store.idle()

    def wait(self, seconds: float = 1.0) -> None:
        self.clock.advance(seconds)
        self.store.idle()


@pytest.fixture
def database(native_database: Database) -> Database:
    migrate(native_database.settings)
    return native_database


@pytest.fixture
def daemon(database: Database) -> Iterator[Daemon]:
    started = Daemon(database)
    yield started
    started.store.close()


def assert_kept(database: Database, wells: dict[str, float]) -> None:
    """Without a look at the readings, and as they say."""
    assert database.value(MARKS) == 0
    shown = database.all(SHOWN)
    assert {row[1]: row[2] for row in shown} == wells
    assert shown == database.all(LOOKED_FOR) == database.all("SELECT * FROM well_newest ORDER BY well_id")


def test_it_follows_the_batches_and_older_readings_change_nothing(database: Database, daemon: Daemon) -> None:
    daemon.write(("a", 1, 10), ("b", 2, 20), ("a", 3, 11))
    assert_kept(database, {"a": 11, "b": 20})
    daemon.wait()
    daemon.write(("b", 1, 21), ("c", 9, 30), ("c", 8, 29))
    assert_kept(database, {"a": 11, "b": 20, "c": 30})
    daemon.wait()
    daemon.write(("a", 4, 12), ("a", 3, 99))  # the second is refused: another reading has its place
    assert_kept(database, {"a": 12, "b": 20, "c": 30})


def test_wells_that_had_to_be_forgotten_before_the_beat_are_written_all_the_same(database: Database) -> None:
    daemon = Daemon(database, max_wells=1)
    daemon.write(("a", 1, 10))
    daemon.write(("a", 2, 11), ("b", 2, 20))
    daemon.write(("c", 3, 30))
    daemon.wait()
    assert_kept(database, {"a": 11, "b": 20, "c": 30})
    daemon.store.close()


def test_what_came_meanwhile_waits_for_the_next_beat_and_for_the_end(database: Database, daemon: Daemon) -> None:
    daemon.write(("a", 1, 10))
    daemon.write(("a", 2, 11), ("b", 2, 20))
    assert {row[1]: row[2] for row in database.all(SHOWN)} == {"a": 10}
    daemon.wait()
    assert_kept(database, {"a": 11, "b": 20})
    daemon.write(("a", 3, 12))
    daemon.write(("b", 3, 21))
    daemon.store.end()
    assert_kept(database, {"a": 12, "b": 21})


def test_a_large_fleet_is_written_in_pieces_while_it_sends(database: Database, daemon: Daemon) -> None:
    """No more than 1 000 rows at once, since the next batch waits for them, and no more than 700 a second on average;
    each well comes in its turn."""
    fleet = [f"w{number:04d}" for number in range(2_100)]
    seen: set[str] = set()
    for half_second in range(14):
        before = set(database.all("SELECT well_id, flow_rate FROM well_newest"))
        daemon.write(*((well, 1 + half_second, 1.0 + half_second) for well in fleet))
        written = set(database.all("SELECT well_id, flow_rate FROM well_newest")) - before
        assert len(written) <= 1_000
        seen |= {well for well, _ in written}
        assert len(seen) <= 1_000 + 350 * half_second
        daemon.clock.advance(0.5)
    assert seen == set(fleet)
    daemon.store.end()
    assert_kept(database, dict.fromkeys(fleet, 14.0))


def test_readings_of_others_show_at_once_and_are_kept_later(database: Database, daemon: Daemon) -> None:
    daemon.write(("a", 1, 10))
    database.run("INSERT INTO esp_telemetry (well_id, timestamp, flow_rate, received_at) VALUES ('z', now(), 7, now())")
    assert database.value(MARKS) == 1
    assert [(row[1], row[2]) for row in database.all(SHOWN)] == [("a", 10), ("z", 7)]
    daemon.wait(600)
    assert_kept(database, {"a": 10, "z": 7})
    database.run("UPDATE esp_telemetry SET flow_rate = 8 WHERE well_id = 'z'")
    assert database.value("SELECT flow_rate FROM well_latest WHERE well_id = 'z'") == 8
    database.run("DELETE FROM esp_telemetry WHERE well_id = 'z'")
    assert [row[1] for row in database.all(SHOWN)] == ["a"]
    daemon.wait(600)
    assert_kept(database, {"a": 10})


def test_what_a_killed_daemon_still_had_to_write_is_found_by_the_next(database: Database) -> None:
    killed = Daemon(database)
    killed.write(("a", 1, 10))
    killed.write(("a", 2, 11))
    killed.store.close()
    assert database.value("SELECT flow_rate FROM well_latest") == 10
    again = Daemon(database)
    assert_kept(database, {"a": 11})
    again.store.close()


def test_a_failure_costs_no_reading_and_the_view_goes_by_the_readings(database: Database) -> None:
    other = Daemon(database)
    other.write(("a", 1, 10))
    database.run("ALTER TABLE well_newest ADD CONSTRAINT never CHECK (flow_rate < 12)")
    other.wait()
    other.write(("a", 2, 13))
    other.write(("b", 1, 13))
    assert database.value("SELECT count(*) FROM esp_telemetry") == 3
    assert {row[1]: row[2] for row in database.all(SHOWN)} == {"a": 13, "b": 13}
    database.run("ALTER TABLE well_newest DROP CONSTRAINT never")
    other.wait(600)
    assert_kept(database, {"a": 13, "b": 13})
    other.store.close()


def test_no_batch_waits_while_another_session_makes_it_right(database: Database, daemon: Daemon) -> None:
    daemon.write(("a", 1, 10))
    daemon.wait()
    with database.connect() as other, other.transaction():
        other.execute("SELECT refresh_well_newest()")
        begun = time.monotonic()
        for minute in range(2, 6):
            daemon.write(("a", minute, 10.0 + minute))
            daemon.wait()
        assert time.monotonic() - begun < 0.8  # it used to wait for a second, and to keep nothing for ten minutes
        assert database.value("SELECT flow_rate FROM well_newest") == 10
    daemon.wait()
    assert_kept(database, {"a": 15})


def test_the_view_goes_by_the_readings_if_it_is_locked_for_long(database: Database, daemon: Daemon) -> None:
    daemon.write(("a", 1, 10))
    with database.connect() as other, other.transaction():
        other.execute("LOCK TABLE well_newest IN SHARE ROW EXCLUSIVE MODE")
        for minute in (2, 3, 4):
            daemon.write(("a", minute, 10.0 + minute))
            daemon.wait(30)
        daemon.write(("a", 5, 15))
        assert database.value("SELECT flow_rate FROM well_latest") == 15
    daemon.wait(600)
    assert_kept(database, {"a": 15})


def test_two_daemons_at_once(database: Database) -> None:
    """The same wells in opposite orders, with a refresh in between: no deadlock, nothing lost."""
    wells = [f"w{number:03d}" for number in range(200)]
    trouble: list[BaseException] = []

    def send(parity: int) -> None:
        try:
            daemon = Daemon(database)
            order = wells if parity else wells[::-1]
            for at in range(12):
                daemon.write(*((well, 2 * at + parity, at + parity / 2) for well in order))
                daemon.wait(1.0 if at % 5 else 700.0)
            daemon.store.end()
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=send, args=(parity,)) for parity in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trouble == []
    assert_kept(database, dict.fromkeys(wells, 11.5))


def test_a_silent_well_stays_when_its_readings_are_dropped_and_restored_ones_do_not_come_first(
    database: Database, tmp_path: Any
) -> None:
    fill(database, 40, rows=30)  # silent since
    daemon = Daemon(database)
    kept: list[Any] = database.all(SHOWN)
    daemon.write(("ESP-00", 0, 1.0))
    settings = settings_for(database, tmp_path)
    assert run(settings)[0].dropped
    assert database.value("SELECT count(*) FROM esp_telemetry") == 1
    assert len(database.all(SHOWN)) == 7
    database.run("INSERT INTO esp_telemetry (well_id, timestamp, received_at) VALUES ('ESP-00', '2020-01-01Z', now())")
    assert database.all(SHOWN)[1:] == kept[1:]
    daemon.wait(600)
    assert database.value("SELECT flow_rate FROM well_latest WHERE well_id = 'ESP-00'") == 1.0
    assert database.all(SHOWN)[1:] == kept[1:]
    assert database.value(MARKS) == 0
    daemon.store.close()


def test_one_well_is_read_from_the_table_alone(database: Database, daemon: Daemon) -> None:
    daemon.write(("a", 1, 10))
    plan = [
        row[0] for row in database.all("EXPLAIN (ANALYZE, COSTS OFF) SELECT * FROM well_latest WHERE well_id = 'a'")
    ]
    assert any("well_newest" in line and "loops=1" in line for line in plan)
    assert all("never executed" in line for line in plan if "well_newest_of_readings" in line), plan
    with database.connect(autocommit=False) as holder, database.connect() as connection:
        holder.execute("LOCK TABLE esp_telemetry IN ACCESS EXCLUSIVE MODE")
        connection.execute("SET lock_timeout = '100ms'")
        assert connection.execute("SELECT flow_rate FROM well_latest").fetchall() == [(10,)]
        with pytest.raises(psycopg.errors.LockNotAvailable):
            connection.execute("SELECT 1 FROM esp_telemetry")
