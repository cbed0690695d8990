"""Chunks, columnstore, policies and views: what is promised is really there."""

from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg
import pytest
from pydantic import SecretStr

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.model import SIGNALS, Readings
from esp_ingest.store.connection import connect
from esp_ingest.store.queries import query
from esp_ingest.store.schema import migrate
from esp_ingest.store.write.writer import PostgresStore
from tests.support.databases import Database, PgLite

WELLS = [f"well-{number}" for number in range(10)]
DAYS = 15
READINGS = 3_600
MIDNIGHT = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)  # once: it may strike between two uses
TABLES = ("esp_telemetry", "diagnostic_results", "ingest_rejects")


def fifteen_days(start: datetime) -> Readings:
    """360 readings of each of 10 wells, evenly over 15 days."""
    step_us = DAYS * 86_400_000_000 // (READINGS // len(WELLS))
    at = int(start.timestamp() * 1e6) + (np.arange(READINGS) // len(WELLS)) * step_us
    values = np.arange(len(SIGNALS) * READINGS, dtype=np.float64).reshape(len(SIGNALS), READINGS)
    return Readings(WELLS, (np.arange(READINGS) % len(WELLS)).astype(np.int32), at, at, values)


def store(database: Database, readings: Readings) -> None:
    """With the writer; where there is no COPY FROM STDIN (WebAssembly), with INSERT."""
    if not isinstance(database.server, PgLite):
        writer = PostgresStore(database.settings)
        assert writer.write(readings, [], []).written == len(readings)
        writer.close()
        return
    start, step = readings.timestamp_us[0] / 1e6, (readings.timestamp_us[len(WELLS)] - readings.timestamp_us[0]) / 1e6
    with database.connect() as connection:
        connection.execute(
            'INSERT INTO esp_telemetry (well_id, "timestamp", received_at, flow_rate) '
            "SELECT 'well-' || n %% %s, to_timestamp(%s + n / %s * %s), now(), n FROM generate_series(0, %s - 1) n",
            (len(WELLS), start, len(WELLS), step, len(readings)),
        )


def days_ago(days: float) -> datetime:
    return MIDNIGHT - timedelta(days=days)


@pytest.fixture(params=["timescaledb_apache", "pglite"])
def timescale(request: pytest.FixtureRequest) -> Database:
    database: Database = request.getfixturevalue(request.param)
    migrate(database.settings)
    return database


def test_fifteen_days_are_fifteen_or_sixteen_chunks(timescale: Database) -> None:
    store(timescale, fifteen_days(days_ago(15.5)))
    assert timescale.value("SELECT count(*) FROM esp_telemetry") == READINGS
    assert timescale.value("SELECT count(*) FROM show_chunks('esp_telemetry')") in (15, 16)


def test_intervals(timescale: Database) -> None:
    rows = timescale.all(
        "SELECT hypertable_name, column_name, time_interval FROM timescaledb_information.dimensions "
        f"WHERE hypertable_name IN {TABLES} ORDER BY 1"
    )
    assert rows == [
        ("diagnostic_results", "timestamp", timedelta(days=7)),
        ("esp_telemetry", "timestamp", timedelta(days=1)),
        ("ingest_rejects", "received_at", timedelta(days=1)),
    ]


def test_migrate_sets_the_days_of_new_chunks(timescale: Database) -> None:
    store(timescale, fifteen_days(days_ago(15.5)))
    settings = DatabaseSettings(dsn=SecretStr(timescale.dsn), chunk_days=7)
    assert any("New chunks of esp_telemetry hold 7 days" in note for note in migrate(settings).notes)
    interval = "SELECT time_interval FROM timescaledb_information.dimensions WHERE hypertable_name = 'esp_telemetry'"
    assert timescale.value(interval) == timedelta(days=7)
    assert timescale.value("SELECT count(*) FROM esp_telemetry") == READINGS
    assert not any("chunk" in note for note in migrate(settings).notes), "once is enough"
    as_it_is = DatabaseSettings(dsn=SecretStr(timescale.dsn))
    migrate(as_it_is)
    assert timescale.value(interval) == timedelta(days=7)


def test_without_timescaledb_migrate_says_that_there_are_no_chunks(postgres15: Database) -> None:
    settings = DatabaseSettings(dsn=SecretStr(postgres15.dsn), chunk_days=7)
    assert any("no chunks" in note for note in migrate(settings).notes)


@pytest.fixture(params=["timescaledb_apache", "postgres15", "pglite"])
def filled(request: pytest.FixtureRequest) -> Database:
    database: Database = request.getfixturevalue(request.param)
    migrate(database.settings)
    store(database, fifteen_days(days_ago(15.5)))
    database.run("ANALYZE esp_telemetry")
    return database


def test_well_latest_is_the_newest_of_each_well(filled: Database) -> None:
    rows = filled.all("SELECT well_id, flow_rate FROM well_latest ORDER BY well_id")
    assert rows == [(well, READINGS - len(WELLS) + at) for at, well in enumerate(WELLS)]


def test_the_newest_readings_are_looked_for_by_the_primary_key(filled: Database) -> None:
    body = filled.value("SELECT prosrc FROM pg_proc WHERE proname = 'well_newest_of_readings'")
    plan = [row[0] for row in filled.all(f"EXPLAIN {body}")]
    assert any("pkey" in line for line in plan)
    assert not [line for line in plan if "Seq Scan" in line], plan


def test_well_latest_of_nothing_is_nothing(any_database: Database) -> None:
    migrate(any_database.settings)
    assert any_database.all("SELECT * FROM well_latest") == []


def test_the_key_tells_the_newest_of_wells_to_the_microsecond(filled: Database) -> None:
    readings = fifteen_days(days_ago(15.5))
    with filled.connect() as connection:
        found = connection.execute(query("newest_of_wells"), (["well-3", "nobody"],)).fetchall()
    newest_us = int(readings.timestamp_us.max())
    # PGlite was filled through to_timestamp(float), which rounds to the microsecond
    assert [(well, abs(at - newest_us) <= 1) for well, at in found] == [("well-3", True)]


INSERT_DIAGNOSIS = (
    'INSERT INTO diagnostic_results ("timestamp", well_id, diagnosis, severity, state, cleared_at, occurrences, '
    "message, actions, telemetry_snapshot) VALUES (date_trunc('day', now()) - %s * interval '1 day', 'w', %s, %s, 'x', "
    "CASE WHEN %s THEN now() END, 1, '', '[]', '{}')"
)


def test_active_diagnostics_are_those_not_cleared(any_database: Database) -> None:
    migrate(any_database.settings)
    with any_database.connect() as connection:
        connection.execute(INSERT_DIAGNOSIS.encode(), (0, "gas_lock", "high", False))
        connection.execute(INSERT_DIAGNOSIS.encode(), (0, "pump_off", "high", True))
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute(INSERT_DIAGNOSIS.encode(), (0, "trip", "urgent", True))
    assert any_database.all("SELECT diagnosis FROM active_diagnostics") == [("gas_lock",)]


class TestCommunity:
    """Columnstore and policies, on the WebAssembly build."""

    @pytest.fixture
    def database(self, pglite: Database) -> Database:
        migrate(pglite.settings)
        return pglite

    def test_columnstore_settings(self, database: Database) -> None:
        rows = database.all(
            "SELECT hypertable::text, segmentby, orderby FROM timescaledb_information.hypertable_columnstore_settings "
            "WHERE segmentby IS NOT NULL ORDER BY 1"
        )
        assert rows == [
            ("diagnostic_results", "well_id,severity", '"timestamp" DESC'),
            ("esp_telemetry", "well_id", '"timestamp" DESC'),
        ]

    def test_policies(self, database: Database) -> None:
        rows = database.all(
            "SELECT hypertable_name, proc_name, coalesce(config ->> 'compress_after', config ->> 'drop_after') "
            f"FROM timescaledb_information.jobs WHERE hypertable_name IN {TABLES} ORDER BY 1, 2"
        )
        assert rows == [
            ("diagnostic_results", "policy_compression", "14 days"),
            ("esp_telemetry", "policy_compression", "7 days"),
        ], "no retention policy: it would not wait for an archive"

    def run_jobs(self, database: Database, procedure: str) -> None:
        jobs = database.all(
            "SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = %s AND hypertable_name IS NOT NULL",
            procedure,
        )
        for (job,) in jobs:
            database.run(f"CALL run_job({job})")

    def test_what_is_older_than_a_week_is_compressed_and_still_takes_late_rows(self, database: Database) -> None:
        readings = fifteen_days(days_ago(15.5))
        store(database, readings)
        self.run_jobs(database, "policy_compression")
        compressed = "SELECT count(*) FROM timescaledb_information.chunks WHERE is_compressed AND hypertable_name = %s"
        assert database.value(compressed, "esp_telemetry") in (8, 9)
        assert database.value("SELECT count(*) FROM well_latest") == len(WELLS)
        again = (
            'INSERT INTO esp_telemetry (well_id, "timestamp", received_at) '
            "SELECT well_id, \"timestamp\" + s * interval '1 second', now() "
            "FROM esp_telemetry, generate_series(0, 1) s WHERE flow_rate < 500 ON CONFLICT DO NOTHING"
        )
        with database.connect() as connection:
            cursor = connection.execute(again.encode())
            assert cursor.rowcount == 500  # every duplicate was found, and no new row was lost to the first one
        assert database.value("SELECT count(*) FROM esp_telemetry") == READINGS + 500

    def test_the_decompression_limit_can_be_lifted(self, database: Database) -> None:
        name = "timescaledb.max_tuples_decompressed_per_dml_transaction"
        with connect(database.settings) as connection:
            assert connection.execute("SELECT current_setting(%s)", (name,)).fetchall() == [("0",)]

    def test_an_open_diagnosis_in_a_compressed_chunk_can_still_be_cleared(self, database: Database) -> None:
        upsert = (
            f'{INSERT_DIAGNOSIS} ON CONFLICT (well_id, diagnosis, "timestamp") '
            "DO UPDATE SET state = excluded.state, cleared_at = excluded.cleared_at"
        )
        with database.connect() as connection:
            for diagnosis in ("gas_lock", "pump_off"):
                connection.execute(upsert.encode(), (40, diagnosis, "high", False))
        self.run_jobs(database, "policy_compression")
        with database.connect() as connection:
            connection.execute(upsert.encode(), (40, "gas_lock", "high", True))
        assert database.all("SELECT diagnosis FROM active_diagnostics") == [("pump_off",)]
        assert database.value("SELECT count(*) FROM diagnostic_results") == 2

    def test_a_migration_removes_the_retention_policies_of_earlier_versions(self, pglite: Database) -> None:
        found = "SELECT count(*) FROM timescaledb_information.jobs WHERE proc_name = 'policy_retention'"
        migrate(pglite.settings, target=10)
        assert pglite.value(found) == 3
        migrate(pglite.settings)
        assert pglite.value(found) == 0


def test_docker_image(timescaledb_docker: str) -> None:
    """TimescaleDB 2.23.1 community edition, where there is a Docker engine: schema and writer."""
    settings = DatabaseSettings(dsn=SecretStr(timescaledb_docker))
    report = migrate(settings)
    assert report.capabilities.features == {"timescaledb", "community", "columnstore"}
    writer = PostgresStore(settings)
    readings = fifteen_days(days_ago(15.5))
    assert writer.write(readings, [], []).written == READINGS
    assert writer.write(readings, [], []).duplicates == READINGS
    writer.close()
