"""A daemon with no more rights than sql/roles/writer.sql gives it, and what `check` says where one is missing."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from esp_ingest.commands import check
from esp_ingest.commands.checks.line import Line
from esp_ingest.config.settings import Settings
from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.model import Checkpoint, Readings
from esp_ingest.resources import sql_folder
from esp_ingest.store.diagnostics.checkpoints import PostgresDiagnosticsStore
from esp_ingest.store.diagnostics.leader import PostgresFeed
from esp_ingest.store.diagnostics.outbox import PostgresOutbox
from esp_ingest.store.schema import check_database, migrate
from esp_ingest.store.write.writer import PostgresStore
from tests.support.databases import Database, Missing, NativeTimescale, unavailable
from tests.support.store_data import DIAGNOSIS, START_US, cleared, readings, reject

ROLE = "esp_ingest"


def documented_grants() -> str:
    return (sql_folder() / "roles/writer.sql").read_text(encoding="utf-8")


@pytest.fixture
def owner(timescaledb_apache: Database) -> Iterator[Database]:
    """Migrated, with the documented role and nothing for anybody else."""
    migrate(timescaledb_apache.settings)
    name = timescaledb_apache.value("SELECT current_database()")
    timescaledb_apache.run(f'REVOKE ALL ON DATABASE "{name}" FROM PUBLIC; GRANT CONNECT ON DATABASE "{name}" TO PUBLIC')
    timescaledb_apache.run(documented_grants())
    yield timescaledb_apache
    timescaledb_apache.run(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")


@pytest.fixture
def daemon(owner: Database) -> Database:
    return replace(owner, dsn=make_conninfo("", **(conninfo_to_dict(owner.dsn) | {"user": ROLE})))


def test_the_documented_rights_are_enough_for_all_that_the_daemon_does(owner: Database, daemon: Database) -> None:
    assert check_database(daemon.settings)[0].ok
    store = PostgresStore(daemon.settings, publish=True)
    store.ping()
    first = readings([("w1", 0), ("w1", 1)])
    checkpoint = Checkpoint("w1", START_US, b"state")
    assert store.write(first, [reject(1)], [DIAGNOSIS], [checkpoint]).written == 2
    again = store.write(
        first, [reject(1, redelivered=True)], [cleared(DIAGNOSIS, 5)], [checkpoint]
    )  # by staging tables
    assert (again.written, again.duplicates, again.rejected) == (0, 3, 0)  # two readings and the reject
    store.close()

    outbox = PostgresOutbox(daemon.settings, "esp-ingest-publish")
    assert outbox.take_turn(5)
    first_change, second_change = outbox.read(10)
    outbox.set_aside(first_change.revision, "refused", for_good=True)
    outbox.remove([second_change.revision])
    assert outbox.waiting() == (0, 1)
    outbox.end_turn()
    outbox.close()

    diagnostics = PostgresDiagnosticsStore(daemon.settings, publish=True)
    assert [state.well_id for state in diagnostics.states(["w1"])] == ["w1"]
    assert diagnostics.wells_with_state("", 10) == ["w1"]
    assert diagnostics.open_rows(["w1"]) == []
    assert diagnostics.open_anywhere(10) == []
    assert diagnostics.newest_action() == 0
    assert diagnostics.actions_after(0) == []
    assert diagnostics.shelves(["w1"]) == []
    diagnostics.end_shelvings()
    assert diagnostics.alarm_gauges()[1] == 0
    assert diagnostics.record_limits({"*": "{}"}, "rules") in ([], ["*"])
    assert sum(len(page) for page in diagnostics.readings_after({"w1": START_US - 1}, 10)) == 2
    diagnostics.close()

    feed = PostgresFeed(daemon.settings, "a")
    assert feed.lead()
    assert feed.cursor(START_US - 1) == START_US - 1
    assert len(feed.received(START_US - 1, START_US, 10)) == 2
    feed.report(START_US)
    feed.report(START_US + 1)
    assert feed.committed_by_others() == {}
    feed.withdraw()
    follower = PostgresStore(daemon.settings)
    follower.write(Readings.empty(), [], [], [], (START_US - 1, START_US))
    follower.close()
    assert feed.cursor(0) == START_US
    feed.close()
    assert owner.value("SELECT count(*) FROM esp_telemetry") == 2


def lacking(owner: Database, daemon: Database, revoke: str) -> str:
    owner.run(revoke)
    store = PostgresStore(daemon.settings)
    with pytest.raises(StoreUnavailable) as caught:
        store.ping()
    store.close()
    found, _ = check_database(daemon.settings)
    assert not found.ok
    assert found.detail in str(caught.value)
    return found.detail


@pytest.mark.parametrize(
    ("revoke", "grant"),
    [
        (f"REVOKE INSERT ON esp_telemetry FROM {ROLE}", f"GRANT INSERT ON esp_telemetry TO {ROLE}"),
        (f"REVOKE UPDATE ON mqtt_sessions FROM {ROLE}", f"GRANT UPDATE ON mqtt_sessions TO {ROLE}"),
        (f"REVOKE DELETE ON reject_origins FROM {ROLE}", f"GRANT DELETE ON reject_origins TO {ROLE}"),
        (f"REVOKE SELECT ON esp_ingest_migrations FROM {ROLE}", f"GRANT SELECT ON esp_ingest_migrations TO {ROLE}"),
        (f'REVOKE TEMPORARY ON DATABASE "{{}}" FROM {ROLE}', f"GRANT TEMPORARY ON DATABASE {{}} TO {ROLE}"),
    ],
)
def test_a_missing_right_is_named_as_its_grant_which_mends_it(
    owner: Database, daemon: Database, revoke: str, grant: str
) -> None:
    name = owner.value("SELECT current_database()")
    detail = lacking(owner, daemon, revoke.format(name))
    assert grant.format(name) in detail
    owner.run(detail.partition(" run ")[2].rstrip("."))
    assert check_database(daemon.settings)[0].ok


def test_without_the_schema_or_the_database_it_is_a_grant_too(owner: Database, daemon: Database) -> None:
    name = owner.value("SELECT current_database()")
    owner.run("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    found, _ = check_database(daemon.settings)
    assert found.detail.endswith(f"GRANT USAGE ON SCHEMA public TO {ROLE}.")
    owner.run("GRANT USAGE ON SCHEMA public TO PUBLIC")
    owner.run(f'REVOKE CONNECT ON DATABASE "{name}" FROM PUBLIC, {ROLE}')
    found, _ = check_database(daemon.settings)
    assert found.detail.endswith(f'GRANT CONNECT ON DATABASE "{name}" TO "{ROLE}".')
    owner.run(found.detail.partition(" run ")[2].rstrip("."))
    assert check_database(daemon.settings)[0].ok


def test_what_check_may_not_read_of_the_lifecycle_is_a_grant(owner: Database, daemon: Database) -> None:
    def lifecycle() -> list[Line]:
        found = check.lifecycle(Settings(database=daemon.settings.model_dump()))
        return [line for line in found if line.subject == "lifecycle"]

    (line,) = lifecycle()
    grant = f"GRANT SELECT ON archive_days, archive_sizes, backup_drills TO {ROLE}"
    assert line.detail == f"not looked at: let the owner of the tables run {grant}"
    owner.run(grant)
    assert not any("not looked at" in line.detail for line in lifecycle())


def test_without_a_right_on_the_newest_readings_it_is_a_grant_too(owner: Database, daemon: Database) -> None:
    def newest() -> list[str]:
        found = check.database(Settings(database=daemon.settings.model_dump()))
        return [line.detail for line in found if line.subject == "newest"]

    assert newest() == []
    owner.run(f"REVOKE DELETE ON well_newest FROM {ROLE}; REVOKE ALL ON well_newest_now FROM {ROLE}")
    (detail,) = newest()
    grants = f"GRANT DELETE ON well_newest TO {ROLE}; GRANT SELECT ON well_newest_now TO {ROLE}"
    assert detail == f"well_latest is slow: let the owner of the tables run {grants}"
    owner.run(grants)
    assert newest() == []


@pytest.mark.parametrize(
    ("breaks", "mends"),
    [
        (
            f"REVOKE ALL ON diagnostic_state FROM {ROLE}",
            f"run GRANT SELECT, INSERT, UPDATE ON diagnostic_state TO {ROLE}",
        ),
        (f"REVOKE DELETE ON diagnostics_outbox FROM {ROLE}", f"run GRANT DELETE ON diagnostics_outbox TO {ROLE}"),
        ("ALTER TABLE alarm_shelves RENAME TO away", "restore alarm_shelves"),
    ],
)
def test_what_only_diagnoses_lack_is_said_and_readings_are_stored(
    owner: Database, daemon: Database, breaks: str, mends: str
) -> None:
    owner.run(breaks)
    found, _ = check_database(daemon.settings)
    assert found.ok
    assert mends in found.without_diagnostics
    store = PostgresStore(daemon.settings)
    store.ping()
    assert store.without_diagnostics == found.without_diagnostics
    checkpoint = Checkpoint("w1", START_US, b"state")
    assert store.write(readings([("w1", 0)]), [reject(1)], [DIAGNOSIS], [checkpoint]).written == 1
    owner.run(mends.removeprefix("run ") if mends.startswith("run") else "ALTER TABLE away RENAME TO alarm_shelves")
    store.ping()
    assert store.without_diagnostics == ""
    assert store.write(Readings.empty(), [], [DIAGNOSIS], [checkpoint]).refusal is None
    store.close()


def test_a_database_that_only_reads_is_not_ready(owner: Database, daemon: Database) -> None:
    detail = lacking(owner, daemon, f"ALTER ROLE {ROLE} SET default_transaction_read_only = on")
    assert "default_transaction_read_only" in detail


def test_jsonb_spells_numbers_as_payloads_says(owner: Database) -> None:
    """docs/payloads.md"""
    assert owner.all("SELECT '1E+2'::jsonb::text, '-0.0'::jsonb::text") == [("100", "0.0")]


def test_the_daemon_waits_for_a_right_and_goes_on_when_it_is_there(owner: Database, daemon: Database) -> None:
    owner.run(f"REVOKE INSERT ON esp_telemetry FROM {ROLE}")
    store = PostgresStore(daemon.settings)
    with pytest.raises(StoreUnavailable, match="GRANT INSERT ON esp_telemetry"):
        store.ping()
    owner.run(f"GRANT INSERT ON esp_telemetry TO {ROLE}")
    store.ping()
    assert store.write(readings([("w1", 0)]), [], []).written == 1
    store.close()


def test_a_standby_is_not_ready() -> None:
    try:
        started = NativeTimescale.start()
    except Missing as missing:
        unavailable(str(missing))
        raise
    with started as server:
        database = server.create_database()
        migrate(database.settings)
        server.halt()
        (server.folder / "standby.signal").touch()
        server.launch()
        found, _ = check_database(database.settings)
        assert (found.ok, found.status) == (False, "unusable")
        assert "is a standby" in found.detail
        store = PostgresStore(database.settings)
        with pytest.raises(StoreUnavailable, match="target_session_attrs=read-write"):
            store.ping()
        store.close()
