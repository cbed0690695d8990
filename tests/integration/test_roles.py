"""The roles of sql/roles: what each may do, and what it may not."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from esp_ingest import cli
from esp_ingest.resources import sql_folder
from esp_ingest.store.schema import check_database, migrate
from tests.support.databases import Database, Postgres15
from tests.support.store_data import DIAGNOSIS, readings, reject

WRITER, READER, OPERATOR, OWNER = "esp_ingest", "esp_ingest_reader", "esp_ingest_operator", "esp_ingest_owner"
API = "esp_ingest_api"
# Nobody but the owner may do any of it.
NEVER = (
    "CREATE TABLE mine (a int)",
    "DROP TABLE esp_telemetry",
    "TRUNCATE esp_telemetry",
    "ALTER TABLE esp_telemetry ADD COLUMN mine int",
    "UPDATE esp_telemetry SET pip = 1",
    "DELETE FROM esp_telemetry",
    "DELETE FROM ingest_rejects",
    "DELETE FROM diagnostic_results",
    "DELETE FROM alarm_actions",
    "UPDATE alarm_actions SET by_whom = 'somebody else'",
    "UPDATE ingest_rejects SET payload = ''",
    "SELECT lo_from_bytea(0, 'x')",
    "UPDATE esp_ingest_migrations SET checksum = ''",
    "SELECT * FROM api_users",
    "SELECT * FROM api_tokens",
    "UPDATE api_users SET role = 'admin'",
    "INSERT INTO archive_days DEFAULT VALUES",
    "CREATE ROLE mine",
    "SELECT pg_read_file('/etc/passwd')",
    "COPY esp_telemetry TO PROGRAM 'cat'",
)
MAY_NOT = {
    WRITER: (*NEVER, "UPDATE ingest_rejects SET reason = 'x'", "INSERT INTO alarm_actions DEFAULT VALUES"),
    OPERATOR: (
        *NEVER,
        "UPDATE diagnostic_results SET severity = 'low'",
        "DELETE FROM diagnostics_outbox",
        "SET ROLE esp_ingest",
    ),
    API: (
        *(each for each in NEVER if not each.startswith("SELECT * FROM api_")),  # it checks logins
        "INSERT INTO esp_telemetry (timestamp, well_id, received_at) VALUES (now(), 'w', now())",
        "UPDATE diagnostic_results SET severity = 'low'",
        "DELETE FROM api_audit",
        "CREATE TEMP TABLE mine (a int)",
    ),
    READER: (
        *NEVER,
        "SELECT * FROM ingest_rejects",
        "INSERT INTO esp_telemetry (timestamp, well_id, received_at) VALUES (now(), 'w', now())",
        "CREATE TEMP TABLE mine (a int)",
        "SELECT * FROM diagnostics_outbox",
    ),
}


def run(database: Database, role: str) -> None:
    """The role's file, as a superuser's psql would."""
    database.run((sql_folder() / f"roles/{role}.sql").read_text(encoding="utf-8"))


def of(database: Database, role: str) -> Database:
    return replace(database, dsn=make_conninfo("", **(conninfo_to_dict(database.dsn) | {"user": role})))


@pytest.fixture(scope="module")
def owned() -> Iterator[Database]:
    """A server of its own, since roles are of the whole server; migrated by the owner's role, each role made twice."""
    with Postgres15.start() as server:
        database = server.create_database()
        run(database, "owner")
        migrate(of(database, OWNER).settings)
        for name in ("writer", "api", "operator", "reader") * 2:
            run(database, name)
        run(of(database, OWNER), "writer")  # as the owner, where the role is there
        with database.connect() as connection:
            connection.execute(
                "INSERT INTO esp_telemetry (timestamp, well_id, pip, received_at) VALUES (now(), 'w1', 5, now())"
            )
        yield database


@pytest.mark.parametrize("role", MAY_NOT)
def test_what_a_role_may_not_do(owned: Database, role: str) -> None:
    with of(owned, role).connect() as connection:
        connection.execute("SET default_transaction_read_only = off")  # as each may: rights have to do without it
        for statement in MAY_NOT[role]:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def test_an_operator_of_an_earlier_version_loses_the_daemons_rights(owned: Database) -> None:
    owned.run(f"GRANT {WRITER} TO {OPERATOR}; GRANT UPDATE ON ingest_rejects TO {OPERATOR}")
    run(owned, "operator")
    test_what_a_role_may_not_do(owned, OPERATOR)


def test_the_reader_sees_readings_diagnoses_and_sums(owned: Database) -> None:
    reader = of(owned, READER)
    for relation in (
        "esp_telemetry", "diagnostic_results", "well_latest", "active_diagnostics", "esp_telemetry_hourly",
        "esp_telemetry_daily", "alarm_actions",
    ):  # fmt: skip
        reader.all(f"SELECT * FROM {relation} LIMIT 1")
    assert reader.value("SELECT count(*) FROM well_latest") == 1
    assert reader.value("SHOW statement_timeout") == "1min"
    assert reader.value("SHOW jit") == "off"


def test_the_owner_is_no_superuser_and_names_resolve_to_its_schema_first(owned: Database) -> None:
    owner = of(owned, OWNER)
    assert (
        owner.value("SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = current_user")
        is False
    )
    assert owner.value("SELECT tableowner FROM pg_tables WHERE tablename = 'esp_telemetry'") == OWNER
    for role in (OWNER, WRITER, READER, OPERATOR):
        assert of(owned, role).value("SHOW search_path") == "public, pg_temp"
    with owner.connect() as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("SELECT * FROM pg_authid")


def test_the_operator_replays_rejects_and_deals_with_alarms(
    owned: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from esp_ingest.store.write.writer import PostgresStore

    store = PostgresStore(of(owned, WRITER).settings)
    usable = replace(reject(1), payload=b'{"timestamp":"2025-11-24T16:00:00Z","pip":7}')
    store.write(readings([("w2", 0)]), [usable], [replace(DIAGNOSIS, state="unacknowledged")])
    store.close()
    operator = of(owned, OPERATOR)
    assert check_database(operator.settings)[0].ok
    monkeypatch.setenv("ESP_INGEST_DATABASE__DSN", operator.dsn)
    for command in (["rejects", "list"], ["rejects", "replay", "--trust-timestamps"], ["alarms", "list"]):
        assert cli.main(command) == 0, capsys.readouterr()
    assert owned.value("SELECT pip FROM esp_telemetry WHERE well_id = 'w1' AND pip = 7") == 7
    assert owned.value("SELECT replay_outcome FROM ingest_rejects") == "stored"
    with operator.connect() as connection:
        connection.execute("SELECT * FROM esp_telemetry, alarm_verdicts LIMIT 1")
    why = ["--by", "ada", "--why", "x"]
    for action, *more in (["shelve", "--for", "1h"], ["unshelve"], ["ack"]):
        assert cli.main(["alarms", action, "w1", "gas_lock", *more, *why]) == 0, capsys.readouterr()
    assert capsys.readouterr().err == ""
    assert owned.value("SELECT state FROM diagnostic_results") == "acknowledged"
    assert owned.all("SELECT action, by_whom FROM alarm_actions ORDER BY id") == [
        ("shelve", "ada"), ("unshelve", "ada"), ("ack", "ada"),
    ]  # fmt: skip
    owned.run("UPDATE alarm_actions SET why = 'corrected'")  # the owner may


def test_a_temporary_table_does_not_stand_in_for_a_table_of_the_owners(owned: Database) -> None:
    """The trigger on esp_telemetry runs as the owner. A writer's temporary table in the place of the one that it fills
    would have had the owner run the writer's code."""
    owned.run("DELETE FROM well_newest_stale")
    with of(owned, WRITER).connect() as connection:
        connection.execute("CREATE TEMP TABLE found (who text)")
        connection.execute("GRANT ALL ON found TO PUBLIC")
        connection.execute(
            "CREATE FUNCTION pg_temp.who() RETURNS timestamptz LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO pg_temp.found VALUES (current_user); RETURN now(); END $$"
        )
        connection.execute("CREATE TEMP TABLE well_newest_stale (since timestamptz DEFAULT pg_temp.who())")
        connection.execute("GRANT ALL ON pg_temp.well_newest_stale TO PUBLIC")
        connection.execute("INSERT INTO esp_telemetry (timestamp, well_id, received_at) VALUES (now(), 'w3', now())")
        assert connection.execute("SELECT who FROM found").fetchall() == []
    assert owned.value("SELECT count(*) FROM public.well_newest_stale") == 1


def test_composes_script_makes_the_roles_and_sets_their_passwords(owned: Database, tmp_path: Path) -> None:
    names = ("superuser", "owner", "writer", "api", "reader")
    for name in names:
        (tmp_path / f"{name}_password").write_text(f"it's {name}\n")
    said = conninfo_to_dict(owned.dsn)
    environment = {
        "PATH": f"/usr/lib/postgresql/15/bin:{os.environ['PATH']}",
        "PGHOST": str(said["host"]),
        "PGPORT": str(said["port"]),
        "PGDATABASE": str(said["dbname"]),
        "SECRETS": str(tmp_path),
        "ROLES": str(sql_folder() / "roles"),
    }
    script = Path(__file__).parents[2] / "config/compose/roles.sh"
    for step in ("owner", "others"):
        done = subprocess.run([script, step], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    with_password = owned.all("SELECT rolname FROM pg_authid WHERE rolpassword LIKE 'SCRAM-SHA-256%' ORDER BY 1")
    assert with_password == [(WRITER,), ("esp_ingest_api",), (OWNER,), (READER,)]
    assert subprocess.run([script], env=environment, capture_output=True, check=False).returncode == 2


def test_each_query_of_the_engineers_board_runs_as_the_reader(owned: Database) -> None:
    board = json.loads((Path(__file__).parents[2] / "config/grafana/esp-ingest-wells.json").read_text(encoding="utf-8"))
    statements = [target["rawSql"] for panel in board["panels"] for target in panel["targets"]]
    statements += [each["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    reader = of(owned, READER)
    for statement in statements:
        macro = r"\1 BETWEEN now() - interval '1 day' AND now()"
        asked = re.sub(r"\$__timeFilter\((\w+)\)", macro, statement).replace("$well", "w1")
        assert "$" not in asked
        reader.all(asked)
    assert reader.all(statements[0])[0][0] == "w1"
