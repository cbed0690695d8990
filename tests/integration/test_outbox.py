"""The outbox and the advisory locks on a real database: who publishes, what is set aside, and who waits for whom."""

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from esp_ingest.model import Change, Readings
from esp_ingest.store.diagnostics.outbox import PostgresOutbox
from esp_ingest.store.schema import migrate
from esp_ingest.store.write.writer import PostgresStore
from tests.support.databases import Database
from tests.support.store_data import DIAGNOSIS, cleared, reject


@pytest.fixture
def database(timescaledb_apache: Database) -> Database:
    migrate(timescaledb_apache.settings)
    return timescaledb_apache


@pytest.fixture
def outbox(database: Database) -> Iterator[PostgresOutbox]:
    made = PostgresOutbox(database.settings, "one-publish")
    yield made
    made.close()


def announce(database: Database, *wells: str) -> None:
    for well in wells:
        database.run(f"INSERT INTO diagnostics_outbox (well_id, occurrence) VALUES ('{well}', '{{}}')")


def wells(changes: list[Change]) -> list[str]:
    return [each.well_id for each in changes]


def test_one_has_the_turn_until_it_ends_or_runs_out(database: Database, outbox: PostgresOutbox) -> None:
    other = PostgresOutbox(database.settings, "other-publish")
    assert outbox.take_turn(30)
    assert outbox.take_turn(0.3), "renewed"
    assert not other.take_turn(30)
    time.sleep(0.4)
    assert other.take_turn(30), "the first one was killed"
    assert not outbox.take_turn(30)
    other.end_turn()
    assert outbox.take_turn(30)
    other.close()


def test_a_restarted_daemon_has_its_turn_at_once(database: Database, outbox: PostgresOutbox) -> None:
    assert outbox.take_turn(30)
    again = PostgresOutbox(database.settings, "one-publish")
    assert again.take_turn(30)
    again.close()


def test_what_is_set_aside_holds_its_well_until_it_is_tried_again(database: Database, outbox: PostgresOutbox) -> None:
    announce(database, "w1", "w1", "w2")
    first, second, third = outbox.read(10)
    outbox.set_aside(first.revision, "Not authorized", for_good=False)
    assert wells(outbox.read(10)) == ["w2"]
    assert outbox.waiting() == (3, 1)
    database.run("UPDATE diagnostics_outbox SET retry_at = now() WHERE set_aside_at IS NOT NULL")
    assert [(each.revision, each.refusals) for each in outbox.read(10)] == [
        (first.revision, 1),
        (second.revision, 0),
        (third.revision, 0),
    ]


def test_the_pause_grows_up_to_an_hour(database: Database, outbox: PostgresOutbox) -> None:
    announce(database, "w1")
    (change,) = outbox.read(1)
    pauses = []
    for _ in range(10):
        outbox.set_aside(change.revision, "Not authorized", for_good=False)
        pauses.append(
            float(database.value("SELECT extract(epoch FROM retry_at - set_aside_at) FROM diagnostics_outbox"))
        )
    assert pauses[:3] == [30, 60, 120]
    assert max(pauses) == pauses[-1] == 3_600


def test_what_no_broker_takes_holds_nothing_and_is_forgotten_after_a_month(
    database: Database, outbox: PostgresOutbox
) -> None:
    announce(database, "w1", "w1")
    large, small = outbox.read(10)
    outbox.set_aside(large.revision, "too large", for_good=True)
    assert [each.revision for each in outbox.read(10)] == [small.revision]
    assert outbox.waiting() == (1, 1)
    database.run(
        "UPDATE diagnostics_outbox SET set_aside_at = now() - interval '31 days' WHERE set_aside_at IS NOT NULL"
    )
    outbox.set_aside(small.revision, "too large", for_good=True)
    assert outbox.waiting() == (0, 1)


def test_the_publisher_holds_nothing_while_it_waits_for_the_broker(database: Database, outbox: PostgresOutbox) -> None:
    """Rejects and the outbox took the same advisory lock: a transaction with a reject stood still meanwhile."""
    announce(database, "w1")
    outbox.take_turn(30)
    assert outbox.read(10)
    # The publisher waits for the broker here.
    assert (
        database.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL "
            "AND pid <> pg_backend_pid() AND application_name = 'esp-ingest'"
        )
        == 0
    )
    store = PostgresStore(database.settings, publish=True)
    started = time.monotonic()
    stored = store.write(Readings.empty(), [reject(1), reject(2, redelivered=True)], [DIAGNOSIS])
    assert time.monotonic() - started < 2
    assert stored.rejected == 2
    store.close()


def test_the_backlog_is_right_while_a_transaction_with_rejects_is_open(
    database: Database, outbox: PostgresOutbox
) -> None:
    announce(database, "w1", "w2")
    with psycopg.connect(database.dsn) as busy:
        busy.execute("SELECT pg_advisory_xact_lock_shared(7046029254386353132)")
        assert outbox.waiting() == (2, 0)
        assert outbox.take_turn(30)
        assert wells(outbox.read(10)) == ["w1", "w2"]


def test_revisions_of_an_occurrence_are_in_commit_order(database: Database, outbox: PostgresOutbox) -> None:
    """The row of the occurrence makes two transactions take turns, and the revision is taken after it."""
    store = PostgresStore(database.settings, publish=True)
    store.write(Readings.empty(), [], [DIAGNOSIS])
    with psycopg.connect(database.dsn) as operator:
        operator.execute("UPDATE diagnostic_results SET state = 'acknowledged'")
        late = threading.Thread(target=lambda: store.write(Readings.empty(), [], [cleared(DIAGNOSIS, 5)]))
        late.start()
        time.sleep(0.5)
        assert late.is_alive(), "it waits for the operator"
        operator.execute(
            "INSERT INTO diagnostics_outbox (well_id, occurrence) "
            "SELECT well_id, diagnostics_message(d) FROM diagnostic_results d"
        )
        operator.commit()
    late.join(10)
    states = [row[0] for row in database.all("SELECT occurrence ->> 'state' FROM diagnostics_outbox ORDER BY revision")]
    assert states == [DIAGNOSIS.state, "acknowledged", cleared(DIAGNOSIS, 5).state], "cleared after the operator"
    store.close()
