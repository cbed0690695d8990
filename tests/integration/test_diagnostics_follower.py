"""In a share group one member follows the table: the same rows as one daemon that sees all, whoever leads."""

import numpy as np
import pytest

from esp_ingest.diagnostics import follower as following
from esp_ingest.diagnostics.follower import Follower
from esp_ingest.diagnostics.service import DiagnosticsService
from esp_ingest.service.metrics import Metrics
from esp_ingest.store.diagnostics.checkpoints import PostgresDiagnosticsStore
from esp_ingest.store.diagnostics.leader import PostgresFeed
from esp_ingest.store.schema import migrate
from esp_ingest.store.write.writer import PostgresStore
from tests.integration.test_diagnostics_restart import expected, stream, table
from tests.property.test_diagnostics_engine import LIMITED, START_US
from tests.support.databases import Database
from tests.support.fake_clock import FakeClock


@pytest.fixture
def database(timescaledb_apache: Database) -> Database:
    migrate(timescaledb_apache.settings)
    return timescaledb_apache


class Member:
    """A daemon of the group: writes what it is dealt, and follows when it may."""

    def __init__(self, database: Database, clock: FakeClock) -> None:
        self.metrics = Metrics()
        self.store = PostgresStore(database.settings)
        self.feed = PostgresFeed(database.settings)
        self.results = PostgresStore(database.settings)
        self.read = PostgresDiagnosticsStore(database.settings)
        self.follower = Follower(
            lambda until: DiagnosticsService(
                lambda: LIMITED, self.read, clock, self.metrics, lambda: False, replay_until=until
            ),
            self.results,
            self.feed,
            clock,
            self.metrics,
        )

    def kill(self) -> None:
        """As a kill -9 would: its connections end, nothing is written."""
        self.store.close()
        self.feed.close()
        self.results.close()
        self.read.close()


def until(clock: FakeClock, us: int) -> None:
    clock.step_wall((us - clock.now_us()) / 1e6)


def test_the_same_rows_as_one_daemon_whoever_leads(database: Database) -> None:
    readings = stream(31, 5, 300)
    clock = FakeClock(START_US)
    members = [Member(database, clock) for _ in range(3)]
    members[0].follower.run_once()
    for number, begin in enumerate(range(0, len(readings), 60)):
        rows = np.arange(begin, min(begin + 60, len(readings)))
        for at, member in enumerate(members):  # dealt in turns, so that each has a part of each well
            member.store.write(readings.select(rows[at::3]), [], [])
        until(clock, int(readings.received_us[rows[-1]]) + following.LAG_US)
        clock.advance(20)
        for member in members:
            member.follower.run_once()
        assert sum(member.follower.leads for member in members) == 1
        if number % 6 == 5:
            leader = next(member for member in members if member.follower.leads)
            leader.kill()
            members[members.index(leader)] = Member(database, clock)
    for member in members:
        member.follower.run_once()
        member.kill()
    assert len(table(database)) > 10
    assert table(database) == expected(readings)


def test_one_that_lost_the_lead_without_knowing_writes_nothing(database: Database) -> None:
    readings = stream(31, 2, 60)
    clock = FakeClock(START_US)
    old, new = Member(database, clock), Member(database, clock)
    old.follower.run_once()
    old.store.write(readings, [], [])
    until(clock, int(readings.received_us[-1]) + following.LAG_US)
    with database.connect() as connection:  # the lock goes, and with it only the lead
        connection.execute("UPDATE diagnostics_cursor SET received_at = received_at + interval '1 second'")
    old.follower.run_once()
    assert not old.follower.leads
    assert table(database) == {}
    assert old.metrics.registry.get_sample_value("esp_ingest_diagnostics_running") == 0
    new.follower.run_once()
    assert new.follower.leads
    for member in (old, new):
        member.kill()


def test_what_is_not_old_enough_waits(database: Database) -> None:
    readings = stream(31, 2, 60)
    clock = FakeClock(START_US)
    member = Member(database, clock)
    member.follower.run_once()
    member.store.write(readings, [], [])
    until(clock, int(readings.received_us[59]) + following.LAG_US)
    member.follower.run_once()
    place = database.value("SELECT (extract(epoch FROM received_at) * 1000000)::bigint FROM diagnostics_cursor")
    assert place == readings.received_us[59]
    member.kill()
