"""Behind a real PgBouncer, with more clients than server connections: settings hold in each transaction, nothing of
ours stays on a server connection that others use, and one daemon leads."""

import threading
from collections.abc import Callable

import psycopg
import pytest

from esp_ingest.commands import check
from esp_ingest.config.settings import Settings
from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.model import Checkpoint, Readings
from esp_ingest.store import alarms
from esp_ingest.store.connection import connect, is_pooled
from esp_ingest.store.diagnostics.checkpoints import PostgresDiagnosticsStore
from esp_ingest.store.diagnostics.history import readings_between, reporting_wells
from esp_ingest.store.diagnostics.leader import PostgresFeed
from esp_ingest.store.diagnostics.outbox import PostgresOutbox
from esp_ingest.store.schema import check_database, migrate
from esp_ingest.store.write.writer import PostgresStore
from tests.support.databases import Database
from tests.support.poolers import Mode, PgBouncer
from tests.support.store_data import DIAGNOSIS, START_US, cleared, readings, reject
from tests.support.waiting import until

Pooler = Callable[[Database, Mode, int], PgBouncer]

_WATCHED = "client_encoding", "search_path", "synchronous_commit", "statement_timeout", "lock_timeout", "TimeZone"
# What each write transaction ran with, by a trigger; SET LOCAL does not show outside.
_RECORD = """
    CREATE TABLE ran_with (synchronous_commit text, statement_timeout text, search_path text, isolation text);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.ran_with VALUES (current_setting('synchronous_commit'), current_setting('statement_timeout'),
            current_setting('search_path'), current_setting('transaction_isolation'));
        RETURN NULL;
    END $$;
    CREATE TRIGGER note AFTER INSERT ON esp_telemetry FOR EACH STATEMENT EXECUTE FUNCTION note()
"""


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_each_transaction_has_our_settings_and_leaves_none(postgres15: Database, pooler: Pooler, mode: Mode) -> None:
    migrate(postgres15.settings)
    postgres15.run(_RECORD)
    postgres15.run("ALTER ROLE postgres SET synchronous_commit = off")
    postgres15.run("ALTER ROLE postgres SET default_transaction_isolation = serializable")
    clients, writers, batches = (6, 4, 12) if mode == "transaction" else (1, 1, 12)
    bouncer = pooler(postgres15, mode, 2)
    database = bouncer.database
    stop = threading.Event()
    leaked: list[object] = []
    errors: list[BaseException] = []

    def stranger() -> None:
        """Another program behind the same pooler: looks at what it is given."""
        while not stop.is_set():
            with database.connect() as connection:
                found = {key: connection.execute("SELECT current_setting(%s)", (key,)).fetchone() for key in _WATCHED}
                tables = connection.execute("SELECT count(*) FROM pg_class WHERE relpersistence = 't'").fetchone()
                values = [found["synchronous_commit"], found["statement_timeout"], found["lock_timeout"]]
                if values != [("off",), ("0",), ("0",)] or found["search_path"] != ('"$user", public',):
                    leaked.append(found)
                if mode == "transaction" and tables != (0,):
                    leaked.append(tables)

    def write(number: int) -> None:
        try:
            store = PostgresStore(database.settings)
            for batch in range(batches):
                keys = [(f"w{number}", at) for at in range(batch, batch + 3)]  # two of them are there already
                store.write(readings(keys), [reject(number * 100 + batch, redelivered=batch % 2 == 0)], [])
            store.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    watchers = [threading.Thread(target=stranger) for _ in range(clients)] if mode == "transaction" else []
    try:
        for thread in (*threads, *watchers):
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        for thread in watchers:
            thread.join()
        assert errors == []
        assert leaked == []
        assert postgres15.all("SELECT DISTINCT * FROM ran_with") == [("on", "1min", "public", "read committed")]
        assert postgres15.value("SELECT count(*) FROM esp_telemetry") == writers * (batches + 2)
    finally:
        stop.set()
        postgres15.run("ALTER ROLE postgres RESET ALL")


def test_all_that_the_program_does_goes_through_it(postgres15: Database, pooler: Pooler) -> None:
    """migrate, check, the store with every kind of row, and each connection of its own, on one server connection."""
    database = pooler(postgres15, "transaction", 1).database
    migrate(database.settings)
    lines = list(check.database(Settings(database=database.settings)))
    assert all(line.ok for line in lines)
    assert any("behind a connection pooler" in line.detail for line in lines)
    store = PostgresStore(database.settings, publish=True)
    store.ping()
    checkpoint = Checkpoint("w1", START_US, b"state")
    assert store.write(readings([("w1", 0), ("w1", 1)]), [reject(1)], [DIAGNOSIS], [checkpoint]).written == 2
    # Occurrences alone: the transaction begins in a pipeline.
    store.write(Readings.empty(), [], [cleared(DIAGNOSIS, 5), cleared(DIAGNOSIS, 6)])
    store.close()
    diagnostics = PostgresDiagnosticsStore(database.settings, publish=True)
    assert [state.well_id for state in diagnostics.states(["w1"])] == ["w1"]
    assert sum(len(page) for page in diagnostics.readings_after({"w1": START_US - 1}, 10)) == 2
    assert diagnostics.record_limits({"*": "{}"}, "rules") in ([], ["*"])
    diagnostics.end_shelvings()
    diagnostics.close()
    outbox = PostgresOutbox(database.settings, "me")
    assert outbox.take_turn(30)
    outbox.remove([change.revision for change in outbox.read(10)])
    assert outbox.waiting() == (0, 0)
    outbox.close()
    assert reporting_wells(database.settings) == ["w1"]
    assert sum(len(page) for page in readings_between(database.settings, ["w1"], START_US, START_US + 9**9)) == 2
    with connect(database.settings, autocommit=True) as connection:
        assert is_pooled(connection)
        assert len(alarms.list_alarms(connection, None, everything=True)) == 1
        alarms.shelve(connection, alarms.Request("w1", "gas_lock", "me", "why"), START_US)
        assert connection.execute("SHOW statement_timeout").fetchone() == ("1min",)
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    with database.connect() as plain:
        assert plain.execute("SHOW statement_timeout").fetchone() == ("0",)


def test_one_leads_and_the_lock_ends_with_it(postgres15: Database, pooler: Pooler) -> None:
    migrate(postgres15.settings)
    bouncer = pooler(postgres15, "transaction", 5)
    first, second, direct = (
        PostgresFeed(bouncer.database.settings, "first"),
        PostgresFeed(bouncer.database.settings, "second"),
        PostgresFeed(postgres15.settings, "direct"),
    )
    assert first.lead()
    for _ in range(3):
        assert not second.lead()
        assert not direct.lead()
        assert first.cursor(START_US) == START_US
        second.report(START_US)
        assert first.committed_by_others() == {"second": START_US}
        assert len(first.received(START_US, START_US + 1, 10)) == 0
    held = postgres15.all(
        "SELECT l.locktype, s.backend_xmin IS NULL FROM pg_locks l JOIN pg_stat_activity s USING (pid) "
        "WHERE s.state = 'idle in transaction' AND l.locktype <> 'virtualxid'"
    )
    assert held == [("advisory", True)]  # no table, no snapshot
    first.close()
    until(second.lead)  # a server process lets go of its locks when it ends, a moment after its client has gone
    # The server connection that holds the lock ends: the lead is lost, and said to be.
    postgres15.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction' AND pid <> "
        "pg_backend_pid()"
    )
    with pytest.raises(StoreUnavailable):
        second.received(START_US, START_US + 1, 10)
    assert direct.lead()
    assert not second.lead()
    direct.close()
    second.close()
    until(lambda: postgres15.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0)


def test_statement_mode_is_refused_with_a_sentence(postgres15: Database, pooler: Pooler) -> None:
    migrate(postgres15.settings)
    found, _ = check_database(pooler(postgres15, "statement", 2).database.settings)
    assert found.detail.startswith("The connection pooler is in statement mode, which has no transactions")
    assert "set pool_mode to transaction or session there" in found.detail


def test_without_a_pooler_nothing_is_paid(postgres15: Database) -> None:
    with connect(postgres15.settings) as connection:
        assert not is_pooled(connection)
        connection.execute("SELECT 1")
        connection.commit()
        assert connection.execute("SHOW statement_timeout").fetchone() == ("1min",)
