"""The write ladder on real databases: what each trouble leads to, and that nothing is lost or doubled by it."""

import contextlib
import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import psycopg
import pytest
from pydantic import SecretStr

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.model import SIGNAL_NAMES, SIGNALS, Arrival, Checkpoint, Readings, RejectReason
from esp_ingest.store import connection as connections
from esp_ingest.store.schema import migrate
from esp_ingest.store.write.writer import PostgresStore
from tests.support.databases import Database
from tests.support.store_data import DIAGNOSIS, START_US, readings, reject


@pytest.fixture
def database(native_database: Database) -> Database:
    migrate(native_database.settings)
    return native_database


@pytest.fixture
def plain(timescaledb_apache: Database) -> Database:
    """One kind is enough where the answer cannot depend on it."""
    migrate(timescaledb_apache.settings)
    return timescaledb_apache


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Callable[..., PostgresStore]:
    def build(database: Database, **options: Any) -> PostgresStore:
        store = PostgresStore(options.pop("settings", database.settings), **options)
        request.addfinalizer(store.close)
        return store

    return build


Make = Callable[..., PostgresStore]


def count(database: Database, table: str = "esp_telemetry") -> int:
    return int(database.value(f"SELECT count(*) FROM {table}"))


class Opened:
    """Hands a store its connections, and keeps them in sight."""

    def __init__(self) -> None:
        self.connections: list[psycopg.Connection[Any]] = []

    def __call__(self, settings: DatabaseSettings) -> psycopg.Connection[Any]:
        self.connections.append(connections.connect(settings))
        return self.connections[-1]


class TestValues:
    def test_every_value_comes_back_to_the_last_bit(self, database: Database, make: Make) -> None:
        dice = random.Random(4711)
        rows = 500
        special = [0.0, -0.0, 5e-324, 1.7976931348623157e308, 0.1, 1 / 3, float("inf"), float("-inf")]
        values = np.array(
            [
                [dice.choice(special) if dice.random() < 0.2 else dice.uniform(-1e6, 1e6) for _ in range(rows)]
                for _ in SIGNALS
            ]
        )
        values[np.random.default_rng(1).random(values.shape) < 0.3] = np.nan
        values[5] = np.nan
        wells = ["a", "well-longer", "w.e_l-l" * 9, "B2"]
        batch = Readings(
            wells=wells,
            well_index=np.arange(rows, dtype=np.int32) % len(wells),
            timestamp_us=START_US + np.arange(rows) * 999_999,
            received_us=START_US - np.arange(rows),
            values=values,
            extra={row: f'{{"n": {row}}}' for row in range(0, rows, 7)},
            quality={row: f'{{"pip": "{row}é"}}' for row in range(0, rows, 11)},
        )
        assert make(database).write(batch, [], []).written == rows
        stored = database.all(
            'SELECT well_id, (extract(epoch FROM "timestamp") * 1000000)::bigint, '
            "(extract(epoch FROM received_at) * 1000000)::bigint, (extra ->> 'n')::int, quality ->> 'pip', "
            f'{", ".join(f"float8send({name})" for name in SIGNAL_NAMES)} FROM esp_telemetry ORDER BY "timestamp"'
        )
        for row, (well, at, received, number, quality, *bits) in enumerate(stored):
            assert (well, at, received) == (batch.well_of(row), batch.timestamp_us[row], batch.received_us[row])
            assert number == (row if row % 7 == 0 else None)
            assert quality == (f"{row}é" if row % 11 == 0 else None)
            sent = [None if np.isnan(value) else np.array(value, ">f8").tobytes() for value in values[:, row]]
            assert [None if bit is None else bytes(bit) for bit in bits] == sent
        assert len(stored) == rows

    def test_what_no_controller_sent_is_absent_whatever_default_a_column_has(self, plain: Database, make: Make) -> None:
        plain.run("ALTER TABLE esp_telemetry ALTER drive_voltage SET DEFAULT 480, ALTER quality SET DEFAULT '{}'")
        store = make(plain)
        with store.begin(readings([("w1", 0)]), []) as write:
            store.prepare(following := readings([("w1", 1)]))
            write.finish([], [])
        store.write(following, [], [])
        store.write(readings([("w1", 1), ("w1", 2)]), [], [])  # one through the staging table
        assert plain.all("SELECT drive_voltage, quality, extra FROM esp_telemetry") == [(None, None, None)] * 3

    def test_what_was_prepared_before_a_column_got_its_default_is_absent_too(self, plain: Database, make: Make) -> None:
        store = make(plain)
        store.write(readings([("w1", 0)]), [], [])
        store.prepare(following := readings([("w1", 1)]))
        plain.run("ALTER TABLE esp_telemetry ALTER drive_voltage SET DEFAULT 480")
        store.close()  # the next connection finds the default
        store.write(following, [], [])
        assert plain.all("SELECT drive_voltage FROM esp_telemetry") == [(None,)] * 2


class TestDuplicates:
    def test_after_a_restart_the_whole_batch_goes_through_the_staging_table(
        self, database: Database, make: Make
    ) -> None:
        batch = readings([(f"w{at % 5}", at) for at in range(100)])
        make(database).write(batch, [reject()], [DIAGNOSIS])
        restarted = make(database)
        more = readings([(f"w{at % 5}", at) for at in range(50, 150)], list(range(50, 150)))
        result = restarted.write(more, [reject()], [DIAGNOSIS])
        assert (result.written, result.duplicates, result.rejected) == (50, 51, 0)
        assert count(database) == 150

    def test_one_conflict_teaches_how_far_the_database_is(self, plain: Database, make: Make) -> None:
        """After a restart, redelivered messages come oldest first: only their first batch costs a failed COPY."""
        make(plain).write(readings([("w1", at) for at in range(300)]), [], [])
        log = plain.server.folder / "server.log"
        before = log.stat().st_size
        restarted = make(plain)
        for start in (0, 100, 200):
            span = range(start, start + 100)
            result = restarted.write(readings([("w1", at) for at in span], list(span)), [], [])
            assert result.duplicates == 100
        assert log.read_bytes()[before:].count(b"duplicate key value") == 1

    def test_two_writers_of_the_same_data_store_it_once(self, database: Database, make: Make) -> None:
        """Deadlocks and conflicts between them are either's business to try again."""
        batches = [readings([(f"w{n % 7}", 40 * b + n) for n in range(80)]) for b in range(10)]  # they overlap by half

        def run(order: int) -> int:
            store, written = PostgresStore(database.settings), 0
            for batch in batches[::order]:
                while True:
                    try:
                        written += store.write(batch, [], []).written
                        break
                    except StoreUnavailable as error:
                        if "collided" not in error.reason:
                            raise
            store.close()
            return written

        with ThreadPoolExecutor(2) as pool:
            written = sum(pool.map(run, (1, -1)))
        keys = {(b.well_of(r), int(b.timestamp_us[r])) for b in batches for r in range(len(b))}
        assert written == count(database) == len(keys)


class TestBadRows:
    def test_only_the_rows_at_fault_become_rejects(self, database: Database, make: Make) -> None:
        bad = {3: '{"a": "\\u0000"}', 64: "no json", 99: '{"a": "\\ud800"}', 17: "[" * 20_000}
        batch = readings([(f"w{at % 3}", at) for at in range(100)], extra=dict(bad))
        result = make(database).write(batch, [reject()], [])
        assert (result.written, result.duplicates, result.rejected) == (96, 0, 5)
        assert {r.reason for r in result.refused} == {RejectReason.REFUSED_BY_DATABASE}
        payloads = {bytes(row[0]) for row in database.all("SELECT payload FROM ingest_rejects")}
        assert {r.payload for r in result.refused} < payloads
        assert sum(b'"a": "\\u0000"' in payload for payload in payloads) == 1

    def test_a_lone_surrogate_and_a_nul_cost_one_row_each(self, database: Database, make: Make) -> None:
        batch = readings([("w1", at) for at in range(10)], extra={1: '{"a": "\ud800"}', 2: '{"a": "\0"}'})
        result = make(database).write(batch, [], [])
        assert (result.written, result.rejected) == (8, 2)

    def test_a_payload_made_of_a_refused_reading_is_the_reading(self, plain: Database, make: Make) -> None:
        plain.run("ALTER TABLE esp_telemetry ADD CHECK (flow_rate < 100)")
        batch = readings([("w1", 0)], [123.25], extra={0: '{"depth": 7}'}, quality={0: '{"drive_voltage": 1e9}'})
        (refused,) = make(plain).write(batch, [], []).refused
        assert refused.topic == b"esp/w1/telemetry"
        assert "constraint" in refused.detail
        start = b'{"timestamp": "2025-11-24T16:00:00+00:00", "well_id": "w1", "flow_rate": 123.25,'
        assert refused.payload.startswith(start)
        assert refused.payload.endswith(b', "depth": 7, "drive_voltage": 1e9}')
        assert json.loads(refused.payload)["pip"] == batch.values[1, 0]

    def test_all_rows_bad_is_all_rejects(self, database: Database, make: Make) -> None:
        batch = readings([("w1", at) for at in range(30)], extra=dict.fromkeys(range(30), "x"))
        result = make(database).write(batch, [], [])
        assert (result.written, result.rejected) == (0, 30)
        assert count(database, "ingest_rejects") == 30

    def test_a_time_that_the_database_cannot_hold(self, plain: Database, make: Make) -> None:
        batch = readings([("w1", 0), ("w1", 1)])
        batch.timestamp_us[1] = 253_402_300_799_000_000  # year 9999: fine
        assert make(plain).write(batch, [], []).written == 2

    def test_a_diagnosis_that_is_refused_costs_nothing_else(self, database: Database, make: Make) -> None:
        broken = replace(DIAGNOSIS, diagnosis="pump_off", snapshot_json="{")
        nul = replace(DIAGNOSIS, diagnosis="trip", message="a\0b")
        result = make(database).write(readings([("w1", 0)]), [reject()], [DIAGNOSIS, broken, nul])
        assert (result.written, result.duplicates, result.rejected) == (1, 0, 1)
        assert database.all("SELECT diagnosis FROM diagnostic_results ORDER BY 1") == [("gas_lock",), ("trip",)]
        assert count(database, "ingest_rejects WHERE topic = 'esp/w1/diagnostics'") == 1

    def test_five_thousand_refused_rows_settle_with_the_heart_beating(self, plain: Database, make: Make) -> None:
        """They took 60 ms each and no beat in between: the health check ended the daemon, which began anew."""
        plain.run("ALTER TABLE esp_telemetry ADD CHECK (flow_rate < 0)")
        beats: list[float] = []
        store = make(plain, beat=lambda: beats.append(time.monotonic()))
        started = time.monotonic()
        result = store.write(readings([(f"w{at % 3}", at) for at in range(5_000)]), [], [])
        assert (result.written, result.rejected, result.path) == (0, 5_000, "bisect")
        assert time.monotonic() - started < 60  # about 7 alone on this machine
        assert max(np.diff(beats)) < 2

    def test_the_order_received_decides_among_halves(self, plain: Database, make: Make) -> None:
        plain.run("ALTER TABLE esp_telemetry ADD CHECK (flow_rate <> 3)")
        keys = [("w1", at // 2) for at in range(20)]
        result = make(plain).write(readings(keys, extra={8: "no json"}), [], [])
        assert (result.written, result.duplicates, result.rejected) == (10, 0, 10)
        stored = plain.all('SELECT flow_rate FROM esp_telemetry ORDER BY "timestamp"')
        assert [flow for (flow,) in stored] == [0, 2, 4, 6, 9, 10, 12, 14, 16, 18]


# Raises as a database does whose locks or memory do not suffice for more than so many rows in a transaction.
_LIMIT = """
CREATE FUNCTION limited() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE rows integer := coalesce(nullif(current_setting('test.rows', true), ''), '0')::integer + 1;
BEGIN
    PERFORM set_config('test.rows', rows::text, true);
    IF rows > 10 OR NEW.flow_rate = -1 THEN RAISE 'out of shared memory' USING ERRCODE = '53200'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER limited BEFORE INSERT ON esp_telemetry FOR EACH ROW EXECUTE FUNCTION limited();
"""


class TestReadingsFirst:
    """What the tables of the diagnostics refuse costs neither readings nor rejects."""

    RAISES = """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF NEW.well_id LIKE TG_ARGV[0] THEN RAISE 'told to refuse'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON diagnostic_results FOR EACH ROW EXECUTE FUNCTION refuse('{}');
    """
    OTHER = replace(DIAGNOSIS, well_id="w2")
    CHECKPOINTS = (Checkpoint("w1", START_US, b"1"), Checkpoint("w2", START_US, b"2"))

    @pytest.mark.parametrize(
        ("breaks", "rows", "checkpoints", "reason"),
        [
            (RAISES.format("%"), 0, 0, "a trigger or function"),
            (RAISES.format("w1"), 1, 1, "a trigger or function"),
            ("ALTER TABLE diagnostic_results RENAME TO away", 0, 0, "a table is missing"),
            ("DROP TABLE diagnostics_outbox", 0, 0, "a table is missing"),
            ("DROP TABLE diagnostic_state CASCADE", 2, 0, "a table is missing"),
        ],
        ids=["trigger", "trigger for one well", "table of results", "outbox", "table of checkpoints"],
    )
    def test_they_are_stored_without(
        self, plain: Database, make: Make, breaks: str, rows: int, checkpoints: int, reason: str
    ) -> None:
        plain.run(breaks)
        result = make(plain).write(readings([("w1", 0)]), [reject()], [DIAGNOSIS, self.OTHER], self.CHECKPOINTS)
        assert (result.written, result.rejected, result.path) == (1, 1, "direct")
        assert (count(plain), count(plain, "ingest_rejects")) == (1, 1)
        assert result.refusal is not None
        assert reason in result.refusal.error.reason
        assert len(result.refusal.rows) == 2 - rows
        assert len(result.refusal.wells) == 2 - checkpoints
        if rows:
            assert count(plain, "diagnostic_results") == rows
        assert plain.value("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'") == 0

    def test_a_lock_delays_a_batch_by_seconds_at_most(self, plain: Database, make: Make) -> None:
        store = make(plain)
        with plain.connect(autocommit=False) as other:
            other.execute("LOCK TABLE diagnostic_results")
            begun = time.monotonic()
            result = store.write(readings([("w1", 0)]), [reject()], [DIAGNOSIS])
            assert 2 <= time.monotonic() - begun < 10
        assert result.refusal is not None
        assert "a lock on the tables" in result.refusal.error.reason
        assert store.write(readings([("w1", 1)]), [], result.refusal.rows).refusal is None
        assert (count(plain), count(plain, "diagnostic_results")) == (2, 1)

    def test_who_follows_the_table_stays_where_it_was(self, plain: Database, make: Make) -> None:
        plain.run("INSERT INTO diagnostics_cursor (received_at) VALUES (to_timestamp(0));" + self.RAISES.format("%"))
        with pytest.raises(StoreUnavailable, match="told to refuse"):
            make(plain).write(Readings.empty(), [], [DIAGNOSIS], cursor_us=(0, 1))
        assert plain.value("SELECT extract(epoch FROM received_at) FROM diagnostics_cursor") == 0

    def test_a_connection_that_is_lost_meanwhile_is_an_outage(self, plain: Database, make: Make) -> None:
        plain.run(
            self.RAISES.format("%").replace("RAISE 'told to refuse'", "PERFORM pg_terminate_backend(pg_backend_pid())")
        )
        with pytest.raises(StoreUnavailable):
            make(plain).write(readings([("w1", 0)]), [], [DIAGNOSIS])
        assert count(plain) == 0


class TestTooMuchAtOnce:
    def test_the_third_time_it_is_written_in_halves(self, plain: Database, make: Make) -> None:
        plain.run(_LIMIT)
        store, batch = make(plain), readings([(f"w{at % 3}", at) for at in range(100)])
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="out of memory"):
                store.write(batch, [reject()], [DIAGNOSIS])
            assert count(plain) == count(plain, "ingest_rejects") == 0
        result = store.write(batch, [reject()], [DIAGNOSIS])
        assert (result.written, result.duplicates, result.rejected) == (100, 0, 1)
        assert (count(plain), count(plain, "diagnostic_results")) == (100, 1)
        with pytest.raises(StoreUnavailable):  # another batch, another count
            store.write(readings([("w1", at) for at in range(200, 250)]), [], [])

    @pytest.mark.parametrize("among_readings", [False, True])
    def test_rejects_are_halved_as_readings_are(self, plain: Database, make: Make, among_readings: bool) -> None:
        """They all stay, each once, whatever was stored of an earlier try."""
        plain.run(_LIMIT.replace("OR NEW.flow_rate = -1", "").replace("esp_telemetry", "ingest_rejects"))
        batch = readings([("w1", at) for at in range(5 if among_readings else 0)])
        some = [reject(at, connection=1, packet_id=at + 1) for at in range(100)]
        store, arrival = make(plain), Arrival(1, 105)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="out of memory"):
                store.write(batch, some, [], arrival=arrival)
        result = store.write(batch, some, [DIAGNOSIS], arrival=arrival)
        assert (result.written, result.duplicates, result.rejected) == (len(batch), 0, 100)
        assert (count(plain), count(plain, "ingest_rejects")) == (len(batch), 100)
        assert count(plain, "diagnostic_results") == 1
        again = [replace(each, received_us=each.received_us + 1, connection=2, redelivered=1) for each in some]
        results = []
        while not results:
            with contextlib.suppress(StoreUnavailable):
                results.append(store.write(Readings.empty(), again, [], arrival=Arrival(2, 100)))
        assert (results[0].duplicates, results[0].rejected) == (100, 0)
        assert count(plain, "ingest_rejects") == 100

    def test_a_row_that_is_too_much_alone_becomes_a_reject_and_stops_no_other(
        self, plain: Database, make: Make
    ) -> None:
        plain.run(_LIMIT)
        store, batch = make(plain), readings([("w1", at) for at in range(20)], [*range(7), -1, *range(8, 20)])
        tries = 0
        while True:
            tries += 1
            assert tries < 10
            try:
                result = store.write(batch, [reject()], [])
                break
            except StoreUnavailable:
                continue
        assert (tries, result.rejected, result.written + result.duplicates) == (5, 2, 19)
        assert count(plain) == 19
        assert plain.value("SELECT payload FROM ingest_rejects WHERE reason = 'refused_by_database'") is not None

    def test_a_bad_moment_makes_no_rejects(self, plain: Database, make: Make) -> None:
        plain.run(_LIMIT.replace("rows > 10", "true"))
        store, batch = make(plain), readings([("w1", at) for at in range(4)])
        for _ in range(8):
            with pytest.raises(StoreUnavailable):
                store.write(batch, [], [])
        plain.run("DROP TRIGGER limited ON esp_telemetry")
        assert store.write(batch, [], []).written == 4

    def test_a_backlog_of_many_days_is_many_transactions(self, plain: Database, make: Make) -> None:
        """Each day is a chunk with its locks: five thousand of them in one transaction were never stored."""
        batch = readings([(f"w{at % 2}", -at * 86_400) for at in range(150)] * 2, list(range(150)) * 2)
        result = make(plain).write(batch, [reject()], [DIAGNOSIS])
        assert (result.written, result.duplicates, result.rejected) == (150, 150, 1)
        assert plain.value("SELECT count(DISTINCT xmin::text) FROM esp_telemetry") == 3


class _Unlucky:
    """A connection whose commit works or not, and is then lost."""

    def __init__(self, connection: psycopg.Connection[Any], commits: bool) -> None:
        self._connection = connection
        self._commits = commits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def commit(self) -> None:
        if self._commits:
            self._connection.commit()
        self._connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")


class TestConnectionTrouble:
    @pytest.mark.parametrize("commits", [True, False])
    def test_an_unknown_commit_is_harmless(self, database: Database, make: Make, commits: bool) -> None:
        opened: list[Any] = []

        def connect(settings: DatabaseSettings) -> Any:
            connection = connections.connect(settings)
            opened.append(connection)
            return _Unlucky(connection, commits) if len(opened) == 1 else connection

        store = make(database, connect=connect)
        batch, rejects = readings([("w1", at) for at in range(10)]), [reject(1), reject(2, redelivered=True)]
        with pytest.raises(StoreUnavailable, match="lost during a commit"):
            store.write(batch, rejects, [DIAGNOSIS])
        result = store.write(batch, rejects, [DIAGNOSIS])
        assert (result.written, result.duplicates, result.rejected) == ((0, 12, 0) if commits else (10, 0, 2))
        assert count(database) == 10
        assert count(database, "ingest_rejects") == 2
        assert count(database, "diagnostic_results") == 1

    def test_a_terminated_backend_costs_one_try(self, database: Database, make: Make) -> None:
        store = make(database)
        store.write(readings([("w1", 0)]), [], [])
        database.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'esp-ingest'")
        with pytest.raises(StoreUnavailable) as caught:
            store.write(readings([("w1", 1)]), [], [])
        assert "shutting down" in caught.value.reason or "does not answer" in caught.value.reason
        assert store.write(readings([("w1", 1)]), [], []).written == 1
        store.ping()

    @pytest.mark.parametrize("known", [False, True], ids=["direct", "staging"])
    def test_a_backend_that_ends_while_a_write_is_pending_costs_one_try(
        self, plain: Database, make: Make, known: bool
    ) -> None:
        store, batch = make(plain), readings([("w1", 0), ("w1", 1)])
        if known:
            store.write(batch, [], [])
        with store.begin(batch, [reject()]) as write:
            plain.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'esp-ingest'")
            with pytest.raises(StoreUnavailable):
                write.finish([DIAGNOSIS], [])
        assert count(plain, "ingest_rejects") == count(plain, "diagnostic_results") == 0
        result = store.write(batch, [reject()], [DIAGNOSIS])
        assert (result.written, result.duplicates, result.rejected) == ((0, 2, 1) if known else (2, 0, 1))

    def test_a_write_that_is_given_up_keeps_the_connection(self, plain: Database, make: Make) -> None:
        store = make(plain)
        store.write(readings([("w1", 0)]), [], [])
        backend = "SELECT pid FROM pg_stat_activity WHERE application_name = 'esp-ingest'"
        before = plain.all(backend)
        for keys in ([("w1", 0)], [("w1", 1)], []):
            with store.begin(readings(keys), [reject()]):
                pass
            assert plain.value("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'") == 0
        store.ping()
        assert plain.all(backend) == before

    def test_nobody_at_the_address(self, plain: Database, make: Make) -> None:
        store = make(plain, settings=DatabaseSettings(dsn=SecretStr("postgresql://x@127.0.0.1:1/x")))
        for call in (store.ping, lambda: store.write(readings([("w1", 0)]), [], [])):
            with pytest.raises(StoreUnavailable, match="does not answer at its address"):
                call()

    def test_no_such_database(self, plain: Database, make: Make) -> None:
        dsn = plain.dsn.rsplit("/", 1)[0] + "/nowhere"
        with pytest.raises(StoreUnavailable, match="there is no such database"):
            make(plain, settings=DatabaseSettings(dsn=SecretStr(dsn))).ping()


class TestTheMoment:
    def test_a_lock_on_the_table_is_waited_for_and_then_reported(self, database: Database, make: Make) -> None:
        impatient = database.settings.model_copy(update={"lock_timeout_seconds": 0.2})
        store = make(database, settings=impatient)
        with psycopg.connect(database.dsn) as holder:
            holder.execute("LOCK TABLE esp_telemetry IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreUnavailable, match="lock on the tables"):
                store.write(readings([("w1", 0)]), [reject()], [])
        assert store.write(readings([("w1", 0)]), [reject()], []).written == 1
        assert count(database, "ingest_rejects") == 1

    def test_a_statement_that_takes_too_long(self, plain: Database, make: Make) -> None:
        hasty = plain.settings.model_copy(update={"statement_timeout_seconds": 0.2})
        store = make(plain, settings=hasty)
        with psycopg.connect(plain.dsn) as holder:
            holder.execute("LOCK TABLE esp_telemetry IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreUnavailable, match="statement_timeout_seconds"):
                store.write(readings([("w1", 0)]), [], [])
        assert store.write(readings([("w1", 0)]), [], []).written == 1

    def test_a_read_only_database(self, plain: Database, make: Make) -> None:
        name = plain.dsn.rsplit("/", 1)[1]
        plain.run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        with pytest.raises(StoreUnavailable, match="read-only"):
            make(plain).write(readings([("w1", 0)]), [], [])

    def test_two_failures_leave_no_transaction_open(self, plain: Database, make: Make) -> None:
        store = make(plain)
        plain.run("ALTER TABLE esp_telemetry RENAME TO elsewhere")
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="a table is missing: run esp-ingest migrate"):
                store.write(readings([("w1", 0)]), [], [])
        assert plain.value("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'") == 0
        plain.run("ALTER TABLE elsewhere RENAME TO esp_telemetry")
        assert store.write(readings([("w1", 0)]), [], []).written == 1


class TestTheSetUp:
    def test_no_schema_yet(self, native_database: Database, make: Make) -> None:
        store = make(native_database)
        with pytest.raises(StoreUnavailable, match="run esp-ingest migrate"):
            store.ping()
        with pytest.raises(StoreUnavailable, match="run esp-ingest migrate"):
            store.write(readings([("w1", 0)]), [], [])
        assert not store.schema_checked
        migrate(native_database.settings)
        assert store.write(readings([("w1", 0)]), [], []).written == 1
        assert store.schema_checked
        store.ping()

    def test_a_write_that_looks_at_no_schema_does_not_say_so(self, plain: Database) -> None:
        store = PostgresStore(plain.settings.model_copy(update={"skip_init": True}))
        assert store.write(readings([("w1", 0)]), [], []).written == 1
        assert not store.schema_checked
        store.close()

    def test_skip_init_leaves_the_schema_unlooked_at(self, native_database: Database, make: Make) -> None:
        make(native_database, settings=native_database.settings.model_copy(update={"skip_init": True})).ping()

    def test_a_column_of_another_type_keeps_the_batch(self, plain: Database, make: Make) -> None:
        plain.run("DROP VIEW well_latest; DROP FUNCTION aggregated_hours CASCADE")  # what depends on the column
        plain.run("ALTER TABLE esp_telemetry ALTER COLUMN pip TYPE real")
        with pytest.raises(StoreUnavailable, match="column types are not those"):
            make(plain).write(readings([("w1", 0)]), [], [])
        assert count(plain, "ingest_rejects") == 0

    def test_a_required_column_of_a_newer_schema_keeps_the_batch(self, plain: Database, make: Make) -> None:
        plain.run("ALTER TABLE esp_telemetry ADD COLUMN later int NOT NULL")
        with pytest.raises(StoreUnavailable, match="a required column"):
            make(plain).write(readings([("w1", 0)]), [], [])
        assert count(plain, "ingest_rejects") == 0

    def test_a_trigger_that_swallows_rows_does_not_lose_them(self, plain: Database, make: Make) -> None:
        plain.run("CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        plain.run("CREATE TRIGGER swallow BEFORE INSERT ON esp_telemetry FOR EACH ROW EXECUTE FUNCTION swallow()")
        with pytest.raises(StoreUnavailable, match="another number of rows"):
            make(plain).write(readings([("w1", 0)]), [], [])

    def test_a_trigger_that_raises_is_no_reason_to_drop(self, plain: Database, make: Make) -> None:
        plain.run("CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'")
        plain.run("CREATE TRIGGER no BEFORE INSERT ON esp_telemetry FOR EACH ROW EXECUTE FUNCTION no()")
        with pytest.raises(StoreUnavailable, match="a trigger or function"):
            make(plain).write(readings([("w1", 0)]), [], [])
        assert count(plain, "ingest_rejects") == 0

    def test_an_index_that_an_operator_added(self, plain: Database, make: Make) -> None:
        """What it refuses is no duplicate, since it is not stored: a reject, and it costs no more than the row."""
        plain.run('CREATE UNIQUE INDEX mine ON esp_telemetry (flow_rate, "timestamp")')
        store = make(plain)
        batch = readings([("w1", 0), ("w2", 0), ("w3", 0)], [1, 1, 2])
        for outcome in ((2, 0, 1), (0, 3, 0)):
            result = store.write(batch, [], [])
            assert (result.written, result.duplicates, result.rejected) == outcome

    def test_the_decompression_limit_is_lifted_where_there_is_one(self, database: Database) -> None:
        opened = Opened()
        store = PostgresStore(database.settings, connect=opened)
        store.ping()
        name = "timescaledb.max_tuples_decompressed_per_dml_transaction"
        row = opened.connections[0].execute("SELECT current_setting(%s, true)", (name,)).fetchone()
        assert row is not None
        assert row[0] in ("0", None)
        store.close()

    @pytest.mark.parametrize(
        ("theirs", "ours"), [("off", "on"), ("local", "on"), ("on", "on"), ("remote_apply", "remote_apply")]
    )
    def test_a_commit_waits_for_the_disk_whatever_the_default(self, plain: Database, theirs: str, ours: str) -> None:
        """With synchronous_commit = off a power cut costs what was acknowledged in the last half second."""
        plain.run(f"ALTER DATABASE {plain.dsn.rsplit('/', 1)[1]} SET synchronous_commit = {theirs}")
        connection = connections.connect(plain.settings)
        row = connection.execute("SHOW synchronous_commit").fetchone()
        connection.close()
        assert row == (ours,)

    def test_nothing_is_left_open_at_the_end(self, database: Database) -> None:
        store = PostgresStore(database.settings)
        store.write(readings([("w1", 0)]), [], [])
        store.close()
        store.close()
        open_now = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE application_name = 'esp-ingest' AND datname = current_database()"
        )
        for _ in range(50):
            if database.value(open_now) == 0:
                return
            database.run("SELECT pg_sleep(0.05)")
        pytest.fail("the connection is still open")
