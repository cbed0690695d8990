"""`migrate` on every kind of database: what comes out, and that it may be run again, at once, and late."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest
from pydantic import SecretStr

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.model import SIGNAL_NAMES
from esp_ingest.store import schema
from esp_ingest.store.capabilities import SchemaError
from esp_ingest.store.queries import query
from esp_ingest.store.schema import Migration, check_database, migrate, migrations
from tests.support.databases import Database
from tests.support.schema_dump import dump

NEWEST = max(step.number for step in migrations())
TELEMETRY = (
    [("timestamp", "timestamp with time zone", "NO"), ("well_id", "text", "NO")]
    + [(name, "double precision", "YES") for name in SIGNAL_NAMES]
    + [("extra", "jsonb", "YES"), ("quality", "jsonb", "YES"), ("received_at", "timestamp with time zone", "NO")]
)


def without_extension(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A server that has no TimescaleDB yet; call the result when it gets one."""
    monkeypatch.setattr(schema, "_create_extension", lambda settings: "")
    return monkeypatch.undo


class TestEveryKind:
    def test_the_tables_are_those_of_the_contract(self, any_database: Database) -> None:
        report = migrate(any_database.settings)
        assert report.version == NEWEST
        assert set(report.applied) == {
            step.label for step in migrations() if not step.feature or step.feature in report.capabilities.features
        }
        columns = any_database.all(
            "SELECT column_name, data_type, is_nullable FROM information_schema.columns "
            "WHERE table_name = 'esp_telemetry' ORDER BY ordinal_position"
        )
        assert columns == TELEMETRY
        keys = any_database.all(
            "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE contype = 'p' AND connamespace = 'public'::regnamespace"
        )
        assert {
            ("esp_telemetry", 'PRIMARY KEY (well_id, "timestamp")'),
            ("diagnostic_results", 'PRIMARY KEY (well_id, diagnosis, "timestamp")'),
            ("ingest_rejects", "PRIMARY KEY (digest, received_at)"),
        } <= set(keys)
        assert check_database(any_database.settings)[0].ok

    def test_every_time_is_timestamptz(self, any_database: Database) -> None:
        migrate(any_database.settings)
        assert not any_database.all(
            "SELECT table_name, column_name FROM information_schema.columns "
            "WHERE table_schema = 'public' AND data_type = 'timestamp without time zone'"
        )

    def test_no_index_is_covered_by_another(self, any_database: Database) -> None:
        migrate(any_database.settings)
        # Covered: the same table, no predicate of its own, and its columns are the first ones of the other.
        covered = any_database.all(
            "SELECT a.indexrelid::regclass::text, b.indexrelid::regclass::text FROM pg_index a JOIN pg_index b "
            "ON a.indrelid = b.indrelid AND a.indexrelid <> b.indexrelid AND a.indpred IS NULL AND b.indpred IS NULL "
            "AND a.indexprs IS NULL AND b.indexprs IS NULL "
            "AND (b.indkey::int2[])[0:array_length(a.indkey::int2[], 1) - 1] = a.indkey::int2[] "
            "JOIN pg_class c ON c.oid = a.indrelid WHERE c.relnamespace = 'public'::regnamespace"
        )
        assert covered == []
        names = {
            row[0] for row in any_database.all("SELECT indexname FROM pg_indexes WHERE tablename = 'esp_telemetry'")
        }
        assert names == {"esp_telemetry_pkey", "esp_telemetry_timestamp_idx", "esp_telemetry_received_at_idx"}

    def test_twice_is_once(self, any_database: Database) -> None:
        migrate(any_database.settings)
        before = dump(any_database)
        report = migrate(any_database.settings)
        assert report.applied == ()
        assert report.notes == ()
        assert "nothing to do" in report.lines()
        assert dump(any_database) == before

    def test_earlier_versions_plus_migrations_give_the_fresh_schema(self, any_database: Database) -> None:
        """Each step on its own, with rows in the tables from the first one on."""
        for target in range(1, NEWEST + 1):
            migrate(any_database.settings, target=target)
            if target == 1:
                _fill(any_database)
        stepwise = dump(any_database)
        any_database.drop_everything()
        migrate(any_database.settings)
        assert dump(any_database) == stepwise

    @pytest.mark.parametrize("kind", ["timescaledb_apache", "postgres15", "pglite_fresh"])
    def test_a_database_that_gains_the_extension_says_so_and_can_adopt_it(
        self, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        any_database: Database = request.getfixturevalue(kind)
        gain = without_extension(monkeypatch)
        assert migrate(any_database.settings).notes == ()
        _fill(any_database)
        gain()
        report = migrate(any_database.settings)
        if not report.capabilities.timescaledb:
            assert report.notes == ()
            return
        assert report.applied == ()
        assert "migrate --adopt" in report.notes[0]
        assert "hypertables" in report.notes[0]
        assert check_database(any_database.settings)[0].ok  # it works as it is
        adopted = migrate(any_database.settings, adopt=True)
        assert "0002_hypertables.timescaledb" in adopted.applied
        assert adopted.notes == ()
        assert any_database.value("SELECT count(*) FROM esp_telemetry") == 3
        late = dump(any_database)
        any_database.drop_everything()
        migrate(any_database.settings)
        assert dump(any_database) == late


def _fill(database: Database) -> None:
    database.run(
        'INSERT INTO esp_telemetry ("timestamp", well_id, received_at) '
        "SELECT now() - n * interval '3 days', 'w', now() FROM generate_series(1, 3) n"
    )
    database.run(
        "INSERT INTO ingest_rejects (received_at, digest, item, topic, reason, detail, payload, redelivered) "
        "VALUES (now(), gen_random_uuid(), 0, 't', 'invalid_json', '', '', false)"
    )
    database.run(
        'INSERT INTO diagnostic_results ("timestamp", well_id, diagnosis, severity, state, occurrences, message, '
        "actions, telemetry_snapshot) VALUES (now(), 'w', 'gas_lock', 'high', 'active', 1, '', '[]', '{}')"
    )


class TestTrouble:
    """What goes wrong says what to do, and leaves the database as it was."""

    def test_from_two_places_at_once(self, native_database: Database) -> None:
        with ThreadPoolExecutor(4) as pool:
            reports = list(pool.map(lambda _: migrate(native_database.settings), range(4)))
        applied = [label for report in reports for label in report.applied]
        assert len(applied) == len(set(applied))
        assert {report.version for report in reports} == {NEWEST}

    def test_a_newer_database_is_refused(self, postgres15: Database) -> None:
        newer = (*migrations(), Migration(NEWEST + 1, "", "later", "CREATE TABLE later ()"))
        migrate(postgres15.settings, known=newer)
        with pytest.raises(SchemaError, match="newer than this program"):
            migrate(postgres15.settings)
        check, _ = check_database(postgres15.settings)
        assert (check.status, check.ok) == ("unusable", False)

    def test_an_edited_migration_is_refused(self, postgres15: Database) -> None:
        migrate(postgres15.settings)
        first, *others = migrations()
        edited = (replace(first, sql=first.sql + "\n-- edited"), *others)
        with pytest.raises(SchemaError, match=f"{first.label} differs"):
            migrate(postgres15.settings, known=edited)

    def test_an_older_database_needs_migrate(self, postgres15: Database) -> None:
        assert check_database(postgres15.settings)[0].status == "needs migrate"
        migrate(postgres15.settings, target=1)
        check, _ = check_database(postgres15.settings)
        assert check.status == "needs migrate"
        assert "run esp-ingest migrate" in check.detail

    def test_a_step_that_fails_is_rolled_back_and_named(self, postgres15: Database) -> None:
        migrate(postgres15.settings)
        broken = Migration(NEWEST + 1, "", "broken", "CREATE TABLE half (); SELECT 1 / 0;")
        with pytest.raises(SchemaError, match=f"{broken.label} failed and was rolled back: division by zero"):
            migrate(postgres15.settings, known=(*migrations(), broken))
        assert postgres15.value("SELECT to_regclass('half')") is None
        assert check_database(postgres15.settings)[0].ok

    def test_a_lost_edition_is_said(self, postgres15: Database) -> None:
        migrate(postgres15.settings)
        postgres15.run(
            "INSERT INTO esp_ingest_migrations (number, feature, name, checksum, applied_by) "
            f"VALUES (2, 'timescaledb', 'hypertables', '{migrations()[1].checksum}', 'test')"
        )
        (note,) = migrate(postgres15.settings).notes
        assert "was migrated with timescaledb, which it lacks now" in note

    def test_a_user_without_rights_is_told(self, timescaledb_apache: Database) -> None:
        timescaledb_apache.run("DROP ROLE IF EXISTS poor")
        timescaledb_apache.run("CREATE ROLE poor LOGIN")
        try:
            dsn = timescaledb_apache.dsn.replace("postgres@", "poor@")
            with pytest.raises(StoreUnavailable, match="lacks a permission"):
                migrate(DatabaseSettings(dsn=SecretStr(dsn)))
            migrate(timescaledb_apache.settings)
            check, _ = check_database(DatabaseSettings(dsn=SecretStr(dsn)))
            assert check.status == "unusable"
            assert "GRANT SELECT ON esp_ingest_migrations TO poor" in check.detail
        finally:
            timescaledb_apache.run("DROP ROLE poor")

    def test_an_extension_that_may_not_be_installed_is_said(
        self, timescaledb_apache: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The tables are made all the same: a plain database works."""
        text = b"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = 'permission denied'; END $$"
        monkeypatch.setattr(schema, "query", lambda name: text if name == "create_extension" else query(name))
        report = migrate(timescaledb_apache.settings)
        assert "CREATE EXTENSION timescaledb" in report.notes[0]
        assert "permission denied" in report.notes[0]
        assert check_database(timescaledb_apache.settings)[0].ok

    def test_a_lock_held_by_another_ends_in_a_sentence_and_not_in_a_hang(self, postgres15: Database) -> None:
        migrate(postgres15.settings)
        step = Migration(NEWEST + 1, "", "alter", "ALTER TABLE esp_telemetry ADD COLUMN x int")
        impatient = postgres15.settings.model_copy(update={"lock_timeout_seconds": 0.2})
        with psycopg.connect(postgres15.dsn) as holder:
            holder.execute("LOCK TABLE esp_telemetry IN ACCESS SHARE MODE")
            with pytest.raises(SchemaError, match="lock timeout"):
                migrate(impatient, known=(*migrations(), step))
        assert migrate(impatient, known=(*migrations(), step)).applied == (step.label,)
