"""A session is as this program needs it, whatever role, database, environment and connection string say, and one that
cannot be so is refused with a sentence."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

from esp_ingest.commands import check
from esp_ingest.commands import rejects as rejects_command
from esp_ingest.commands.alarms import alarm_lines
from esp_ingest.config.settings import DatabaseSettings, Settings
from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.model import Reject, RejectReason
from esp_ingest.store import alarms
from esp_ingest.store.capabilities import SchemaError
from esp_ingest.store.connection import connect
from esp_ingest.store.diagnostics.checkpoints import PostgresDiagnosticsStore
from esp_ingest.store.schema import check_database, migrate
from esp_ingest.store.write.writer import PostgresStore
from tests.support.databases import Database
from tests.support.store_data import DIAGNOSIS, START_US, readings, reject

ROLE = "bent"
BENT = {
    "client_encoding": "LATIN1",
    "DateStyle": "'German, DMY'",
    "TimeZone": "'America/Los_Angeles'",
    "IntervalStyle": "iso_8601",
    "search_path": "elsewhere, public",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "jit": "on",
    "standard_conforming_strings": "off",
    "transform_null_equals": "on",
    "array_nulls": "off",
    "default_transaction_isolation": "serializable",
    "synchronous_commit": "off",
    "statement_timeout": "0",
}
DEGREES = '{"unit":"°F €"}'


def name_of(database: Database) -> str:
    return str(database.value("SELECT current_database()"))


def as_user(database: Database, user: str) -> Database:
    return replace(database, dsn=make_conninfo("", **(conninfo_to_dict(database.dsn) | {"user": user})))


@pytest.fixture(params=["role", "database", "environment", "connection string"])
def bent(request: pytest.FixtureRequest, postgres15: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A migrated database whose sessions begin with other settings than ours; the tables are in another schema too."""
    migrate(postgres15.settings)
    postgres15.run(f"CREATE ROLE {ROLE} SUPERUSER LOGIN")
    for table in ("esp_telemetry", "ingest_rejects", "diagnostic_results", "esp_ingest_migrations"):
        postgres15.run(f"CREATE SCHEMA IF NOT EXISTS elsewhere; CREATE TABLE elsewhere.{table} (LIKE public.{table})")
    options = " ".join(f"-c {key}={value}".replace("'", "").replace(", ", ",") for key, value in BENT.items())
    database = as_user(postgres15, ROLE)
    if request.param == "role":
        for key, value in BENT.items():
            postgres15.run(f"ALTER ROLE {ROLE} SET {key} = {value}")
    elif request.param == "database":
        for key, value in BENT.items():
            postgres15.run(f"ALTER DATABASE {name_of(postgres15)} SET {key} = {value}")
    elif request.param == "environment":
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
        monkeypatch.setenv("PGDATESTYLE", "German")
        monkeypatch.setenv("PGTZ", "America/Los_Angeles")
        monkeypatch.setenv("PGOPTIONS", options)
    else:
        parts = conninfo_to_dict(database.dsn) | {"client_encoding": "LATIN1", "options": options}
        database = replace(database, dsn=make_conninfo("", **parts))
    yield database
    monkeypatch.undo()
    postgres15.run(f"DROP OWNED BY {ROLE}")
    postgres15.run(f"DROP ROLE {ROLE}")


def settings_of(database: Database) -> Settings:
    return Settings(database=database.settings)


class TestBentSessions:
    def test_every_setting_is_ours(self, bent: Database) -> None:
        for autocommit in (True, False):
            with connect(bent.settings, autocommit=autocommit) as connection:
                found = {
                    key: connection.execute("SELECT current_setting(%s)", (key,)).fetchone()
                    for key in (*BENT, "transaction_isolation")
                }
                if autocommit:
                    del found["transaction_isolation"]
        wanted = {
            "client_encoding": "UTF8",
            "DateStyle": "ISO, MDY",
            "TimeZone": "UTC",
            "IntervalStyle": "postgres",
            "search_path": "public",
            "bytea_output": "hex",
            "extra_float_digits": "1",
            "standard_conforming_strings": "on",
            "transform_null_equals": "off",
            "array_nulls": "on",
            "jit": "off",
            "synchronous_commit": "on",
            "statement_timeout": "1min",
            "transaction_isolation": "read committed",
        }
        assert {key: value and value[0] for key, value in found.items() if key in wanted} == wanted

    def test_what_is_stored_reads_back_and_stands_where_it_belongs(self, bent: Database) -> None:
        store = PostgresStore(bent.settings)
        strange = Reject(START_US, b"esp/w1/telemetry", RejectReason.INVALID_JSON, "no °F", "°F".encode())
        store.write(readings([("w1", 0)], extra={0: DEGREES}), [strange], [replace(DIAGNOSIS, message="98 °F, 5 €")])
        store.write(readings([("w1", 0), ("w1", 1)], extra={0: DEGREES}), [reject(1, redelivered=True)], [])
        store.close()
        owner = replace(bent, dsn=bent.server.dsn_of(str(conninfo_to_dict(bent.dsn)["dbname"])))
        with psycopg.connect(owner.dsn, client_encoding="UTF8", options="-c search_path=public") as plain:
            stored = plain.execute("SELECT extra::text FROM esp_telemetry ORDER BY timestamp").fetchall()
            assert [text and json.loads(text) for (text,) in stored] == [json.loads(DEGREES), None]
            assert plain.execute("SELECT detail, payload FROM ingest_rejects ORDER BY received_at").fetchall()[0] == (
                "no °F",
                "°F".encode(),
            )
            assert plain.execute("SELECT message FROM diagnostic_results").fetchall() == [("98 °F, 5 €",)]
            assert plain.execute("SELECT count(*) FROM elsewhere.esp_telemetry").fetchall() == [(0,)]

    def test_commands_say_the_right_text_and_time(self, bent: Database) -> None:
        store = PostgresStore(bent.settings)
        store.write(readings([("w1", 0)]), [reject(1)], [replace(DIAGNOSIS, message="98 °F, 5 €")])
        store.close()
        listing = argparse.Namespace(
            action="list", reason=None, topic=None, since=None, until=None, limit=10, pending=False, id=None
        )
        lines = list(rejects_command.run(settings_of(bent), listing))
        assert "2025-11-24T16:00:00.000Z" in lines[0]
        (line, count) = alarm_lines(settings_of(bent), alarm_list(), START_US)
        assert "2025-11-24 16:00:00 UTC" in line
        assert "98 °F, 5 €" in line
        assert count == "1 alarms"

    def test_migrate_puts_the_tables_where_the_setting_says(self, bent: Database) -> None:
        bent.run("CREATE SCHEMA ours")
        ours = bent.settings.model_copy(update={"schema_name": "ours"})
        migrate(ours)
        assert check_database(ours)[0].ok
        store = PostgresStore(ours)
        store.write(readings([("w1", 0)]), [], [])
        store.close()
        assert bent.value("SELECT count(*) FROM ours.esp_telemetry") == 1
        assert bent.value("SELECT count(*) FROM public.esp_telemetry") == 0


def alarm_list(as_json: bool = False) -> argparse.Namespace:
    return argparse.Namespace(action="list", well=None, all=True, json=as_json)


class TestSchemaSetting:
    def test_tables_elsewhere_and_a_missing_schema_are_said(self, postgres15: Database) -> None:
        postgres15.run("CREATE SCHEMA ours")
        migrate(postgres15.settings.model_copy(update={"schema_name": "ours"}))
        assert "not in the schema public but in ours: set database.schema_name" in (
            check_database(postgres15.settings)[0].detail
        )
        nowhere = postgres15.settings.model_copy(update={"schema_name": "nowhere"})
        assert check_database(nowhere)[0].detail.startswith("There is no schema nowhere: create it")
        with pytest.raises(SchemaError, match="no schema nowhere: create it"):
            migrate(nowhere)

    def test_beside_the_extension(self, timescaledb_apache: Database) -> None:
        """The functions of TimescaleDB are in another schema than the tables."""
        timescaledb_apache.run("CREATE EXTENSION timescaledb")
        timescaledb_apache.run("CREATE SCHEMA ours")
        ours = timescaledb_apache.settings.model_copy(update={"schema_name": "ours"})
        migrate(ours)
        assert check_database(ours)[0].ok
        hypertables = "SELECT DISTINCT hypertable_schema FROM timescaledb_information.hypertables"
        assert timescaledb_apache.all(hypertables) == [("ours",)]


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
def narrow(request: pytest.FixtureRequest, postgres15: Database) -> Iterator[Database]:
    """A database of an encoding that cannot hold all that controllers send."""
    name = f"narrow_{request.param.lower()}"
    postgres15.run(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{request.param}' LOCALE 'C'")
    database = Database(postgres15.server.dsn_of(name), postgres15.server)
    yield database
    postgres15.server.drop_database(database)


class TestNarrowDatabases:
    def test_migrate_check_and_start_refuse_it_with_a_sentence(self, narrow: Database) -> None:
        with pytest.raises(StoreUnavailable, match=r"cannot hold UTF-8 text: its encoding is (LATIN1|SQL_ASCII)"):
            migrate(narrow.settings)
        assert narrow.value("SELECT to_regclass('esp_ingest_migrations')") is None
        first, *_ = check.database(settings_of(narrow))
        assert not first.ok
        assert "The database cannot hold UTF-8 text (its encoding is" in first.detail
        assert "create another with ENCODING 'UTF8' TEMPLATE template0" in first.detail
        store = PostgresStore(narrow.settings)
        with pytest.raises(StoreUnavailable, match="cannot hold UTF-8 text"):
            store.ping()
        with pytest.raises(StoreUnavailable, match="cannot hold UTF-8 text"):
            store.write(readings([("w1", 0)]), [], [])


class TestReplacedSessions:
    """What ends with ALTER DATABASE … RESET ends for new sessions only."""

    @pytest.mark.parametrize("how", ["ping", "write"])
    def test_read_only_and_back(self, postgres15: Database, how: str) -> None:
        migrate(postgres15.settings)
        name = name_of(postgres15)
        store = PostgresStore(postgres15.settings)

        def use() -> None:
            store.ping() if how == "ping" else store.write(readings([("w1", 0)]), [], [])

        postgres15.run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        with pytest.raises(StoreUnavailable, match=r"only reads|read-only"):
            use()
        with psycopg.connect(postgres15.server.dsn, autocommit=True) as elsewhere:
            elsewhere.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
        use()
        store.write(readings([("w1", 0)]), [], [])
        store.close()

    def test_a_setting_that_a_trigger_needs(self, postgres15: Database) -> None:
        migrate(postgres15.settings)
        postgres15.run(
            "CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "PERFORM current_setting('site.name'); RETURN NEW; END $$; "
            "CREATE TRIGGER audited BEFORE INSERT ON esp_telemetry FOR EACH ROW EXECUTE FUNCTION audited()"
        )
        store = PostgresStore(postgres15.settings)
        with pytest.raises(StoreUnavailable, match="unrecognized configuration parameter"):
            store.write(readings([("w1", 0)]), [], [])
        postgres15.run(f"ALTER DATABASE {name_of(postgres15)} SET site.name = 'north'")
        assert store.write(readings([("w1", 0)]), [], []).written == 1
        store.close()


@pytest.mark.parametrize("zone", ["America/Los_Angeles", "Asia/Tokyo"])
def test_times_that_python_cannot_hold(postgres15: Database, zone: str) -> None:
    """A year-1 alarm west of UTC, infinity, and a time before the common era, wherever times come out."""
    migrate(postgres15.settings)
    postgres15.run(f"ALTER DATABASE {name_of(postgres15)} SET TimeZone = '{zone}'")
    times = ("0001-01-01 00:00:00Z", "infinity", "-infinity", "0044-03-15 12:00:00Z BC", "20000-01-01 00:00:00Z")
    for number, at in enumerate(times):
        postgres15.run(
            'INSERT INTO diagnostic_results ("timestamp", well_id, diagnosis, severity, state, occurrences, message, '
            f"actions, telemetry_snapshot, confidence) VALUES ('{at}', 'w1', 'd{number}', 'high', 'unacknowledged', 1, "
            "'m', '[]', '{}', 1)"
        )
        postgres15.run(f"INSERT INTO esp_telemetry (\"timestamp\", well_id, received_at) VALUES ('{at}', 'w1', '{at}')")
        postgres15.run(
            "INSERT INTO ingest_rejects (received_at, digest, item, topic, reason, detail, payload, redelivered) "
            f"VALUES ('{at}', gen_random_uuid(), 0, 't', 'invalid_json', '', '', false)"
        )
        postgres15.run(
            "INSERT INTO alarm_actions (well_id, diagnosis, action, by_whom, why, raised_at, shelved_to) "
            f"VALUES ('w1', 'd', 'ack', 'x', 'x', '{at}', '{at}')"
        )
    postgres15.run("INSERT INTO alarm_shelves VALUES ('w1', 'd9', 'infinity', 'x', 'x')")
    postgres15.run("INSERT INTO alarm_shelves VALUES ('w1', 'd1', 'infinity', 'x', 'x')")

    lines = list(alarm_lines(settings_of(postgres15), alarm_list(), START_US))
    assert lines[-1] == "5 alarms"
    for at in ("0001-01-01 00:00:00 UTC", "  infinity  ", "  -infinity  ", "0044-03-15 12:00:00+00 BC", "20000-01-01"):
        assert any(at in line for line in lines), at
    rows = [json.loads(line) for line in alarm_lines(settings_of(postgres15), alarm_list(as_json=True), START_US)]
    assert {row["timestamp"] for row in rows} >= {"infinity", "0001-01-01T00:00:00+00:00"}

    listing = argparse.Namespace(action="list", reason=None, topic=None, since=None, until=None, limit=10, id=None)
    assert list(rejects_command.run(settings_of(postgres15), listing))[-1] == "5 rejects"

    diagnostics = PostgresDiagnosticsStore(postgres15.settings)
    assert [row.diagnosis for row in diagnostics.open_rows(["w1"])] == ["d0"]
    assert len(diagnostics.actions_after(0)) == len(times)
    assert len(diagnostics.shelves(["w1"])) == 2
    assert sum(len(page) for page in diagnostics.readings_after({"w1": START_US}, 10)) == 0
    diagnostics.close()

    store = PostgresStore(postgres15.settings)
    assert store.write(readings([("w1", 0), ("w1", 1)]), [], []).written == 2
    assert store.write(readings([("w1", 0), ("w1", 1)]), [], []).duplicates == 2
    store.close()
    with connect(postgres15.settings, autocommit=True) as connection:
        request = alarms.Request("w1", "d0", "me", "")
        assert len(alarms.acknowledge(connection, request)) == 1


def test_a_missing_role_is_no_missing_database(postgres15: Database) -> None:
    detail = check_database(as_user(postgres15, "nobody_here").settings)[0].detail
    assert detail.startswith("The database refuses this login (")
    missing = DatabaseSettings(dsn=SecretStr(postgres15.server.dsn_of("not_there")))
    assert check_database(missing)[0].detail.startswith("There is no such database")
