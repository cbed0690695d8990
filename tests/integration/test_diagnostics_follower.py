"""In a share group one member follows the table: the same rows as one daemon that sees all, whoever leads."""

from dataclasses import replace

import numpy as np
import pytest

from esp_ingest.diagnostics import follower as following
from esp_ingest.diagnostics.follower import Follower
from esp_ingest.diagnostics.service import DiagnosticsService
from esp_ingest.model import Readings
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

    def __init__(self, database: Database, clock: FakeClock, name: str = "a") -> None:
        self.oldest_uncommitted_us: int | None = None
        self.metrics = Metrics()
        self.store = PostgresStore(database.settings)
        self.feed = PostgresFeed(database.settings, name)
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
            lambda: self.oldest_uncommitted_us,
        )

    def kill(self) -> None:
        """As a kill -9 would: its connections end, nothing is written."""
        self.store.close()
        self.feed.close()
        self.results.close()
        self.read.close()


def until(clock: FakeClock, us: int) -> None:
    clock.step_wall((us - clock.now_us()) / 1e6)


def shifted(readings: Readings) -> Readings:
    """The same a day later."""
    day = 86_400_000_000
    return replace(readings, timestamp_us=readings.timestamp_us + day, received_us=readings.received_us + day)


def look(members: list[Member]) -> None:
    """Each looks twice: whoever leads may have looked before the others reported."""
    for _ in range(2):
        for member in members:
            member.follower.run_once()


def place(database: Database) -> int:
    return database.value("SELECT (extract(epoch FROM received_at) * 1000000)::bigint FROM diagnostics_cursor")


def behind_seconds(member: Member) -> float:
    return member.metrics.registry.get_sample_value("esp_ingest_diagnostics_behind_seconds") or 0.0


def test_the_same_rows_as_one_daemon_whoever_leads(database: Database) -> None:
    readings = stream(31, 5, 300)
    clock = FakeClock(START_US)
    members = [Member(database, clock, name) for name in "abc"]
    members[0].follower.run_once()
    for number, begin in enumerate(range(0, len(readings), 60)):
        rows = np.arange(begin, min(begin + 60, len(readings)))
        for at, member in enumerate(members):  # dealt in turns, so that each has a part of each well
            member.store.write(readings.select(rows[at::3]), [], [])
        until(clock, int(readings.received_us[rows[-1]]) + following.LAG_US)
        clock.advance(20)
        look(members)
        assert sum(member.follower.leads for member in members) == 1
        if number % 6 == 5:
            leader = next(member for member in members if member.follower.leads)
            leader.kill()
            at = members.index(leader)
            members[at] = Member(database, clock, "abc"[at])
    look(members)
    for member in members:
        member.kill()
    assert len(table(database)) > 10
    assert table(database) == expected(readings)


def distinct(readings: Readings) -> Readings:
    """Without second readings of a well and moment: of those the one that is committed first stays."""
    _, first = np.unique(np.stack([readings.well_index, readings.timestamp_us]), axis=1, return_index=True)
    return readings.select(np.sort(first))


def test_what_an_outage_held_up_in_one_spool_is_evaluated_in_its_place(database: Database) -> None:
    readings = distinct(stream(31, 5, 300))
    readings.received_us = START_US + 12_000_000 * np.arange(1, len(readings) + 1)  # members report by their clocks
    clock = FakeClock(START_US)
    members = [Member(database, clock, name) for name in "abc"]
    slow = members[1]
    look(members)
    held = []  # what the slow member has in its spool
    for number, begin in enumerate(range(0, len(readings), 60)):
        rows = np.arange(begin, min(begin + 60, len(readings)))
        for at, member in enumerate(members):
            if member is slow and 3 <= number < 12:
                held.append(rows[at::3])
            else:
                member.store.write(readings.select(rows[at::3]), [], [])
        if held and number > 8:  # the others have long emptied theirs
            slow.store.write(readings.select(held.pop(0)), [], [])
        slow.oldest_uncommitted_us = int(readings.received_us[held[0][0]]) if held else None
        until(clock, int(readings.received_us[rows[-1]]) + following.LAG_US)
        clock.advance(following.SILENT_SECONDS / 8)
        look(members)
    for piece in held:
        slow.store.write(readings.select(piece), [], [])
    slow.oldest_uncommitted_us = None
    clock.advance(3)
    look(members)
    for member in members:
        member.kill()
    assert table(database) == expected(readings)


def test_a_member_that_comes_no_further_is_waited_for_a_minute(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    readings = stream(31, 2, 60)
    clock = FakeClock(START_US)
    leader, dead = Member(database, clock, "leader"), Member(database, clock, "dead")
    dead.oldest_uncommitted_us = START_US
    look([leader, dead])
    assert leader.follower.leads
    leader.store.write(readings, [], [])
    until(clock, int(readings.received_us[-1]) + following.LAG_US)
    for _ in range(6):
        clock.advance(following.SILENT_SECONDS / 6)
        leader.follower.run_once()
        assert place(database) < readings.received_us[0]
    assert behind_seconds(leader) > 60
    clock.advance(1)
    leader.follower.run_once()
    assert place(database) == readings.received_us[-1]
    assert "is not waited for" in caplog.text
    dead.follower.run_once()  # it reports again, but has come no further
    more = shifted(readings)
    leader.store.write(more, [], [])
    until(clock, int(more.received_us[-1]) + following.LAG_US)
    leader.follower.run_once()
    assert place(database) == more.received_us[-1]
    dead.oldest_uncommitted_us = int(more.received_us[-1]) + 2_000_000
    clock.advance(3)
    dead.follower.run_once()
    leader.store.write(shifted(more), [], [])
    until(clock, int(shifted(more).received_us[-1]) + following.LAG_US)
    leader.follower.run_once()
    assert place(database) == more.received_us[-1], "it moves, so it is waited for again"
    assert caplog.text.count("is not waited for") == 1
    for member in (leader, dead):
        member.kill()


def test_a_leader_that_cannot_commit_what_it_holds_follows_the_others_after_a_minute(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    readings = stream(31, 2, 60)
    clock = FakeClock(START_US)
    leader = Member(database, clock)
    leader.oldest_uncommitted_us = START_US
    leader.follower.run_once()
    leader.store.write(readings, [], [])
    until(clock, int(readings.received_us[-1]) + following.LAG_US)
    leader.follower.run_once()
    assert place(database) < readings.received_us[0]
    clock.advance(following.SILENT_SECONDS + 1)
    leader.follower.run_once()
    assert place(database) == readings.received_us[-1]
    assert [record.member for record in caplog.records if hasattr(record, "member")] == ["this one"]
    leader.kill()


def test_nobody_waits_for_a_member_that_ended_with_everything_committed(database: Database) -> None:
    clock = FakeClock(START_US)
    members = [Member(database, clock, name) for name in ("done", "holding", "unheard")]
    members[1].oldest_uncommitted_us = START_US
    look(members[:2])
    for member in members:
        member.follower.start()
        member.follower.stop(10)
    assert database.all("SELECT member FROM share_group_members") == [("holding",)]
    for member in members:
        member.kill()


def test_one_that_lost_the_lead_without_knowing_writes_nothing(database: Database) -> None:
    readings = stream(31, 2, 60)
    clock = FakeClock(START_US)
    old, new = Member(database, clock, "old"), Member(database, clock, "new")
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
    assert place(database) == readings.received_us[59]
    member.kill()
