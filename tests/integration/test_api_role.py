"""The API with no more rights in the database than sql/roles/api.sql gives it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from esp_ingest.resources import sql_folder
from esp_ingest.store.schema import migrate
from tests.support.api import PASSWORD, ApiProcess, insert_alarm, insert_reading
from tests.support.databases import Database

ROLE = "esp_ingest_api"


def documented_grants() -> str:
    return (sql_folder() / "roles/api.sql").read_text(encoding="utf-8")


@pytest.fixture
def limited(timescaledb_apache: Database) -> Iterator[str]:
    """The connection string of the documented role."""
    migrate(timescaledb_apache.settings)
    timescaledb_apache.run(documented_grants())
    yield make_conninfo("", **(conninfo_to_dict(timescaledb_apache.dsn) | {"user": ROLE}))
    timescaledb_apache.run(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")


def test_it_can_do_all_that_the_api_does_and_nothing_else(
    timescaledb_apache: Database, limited: str, tmp_path: Path
) -> None:
    at = datetime.now(UTC).replace(microsecond=0)
    insert_reading(timescaledb_apache, "A-1", at)
    with timescaledb_apache.connect() as connection:
        insert_alarm(connection, "A-1", "gas_lock", at)
    process = ApiProcess(tmp_path, timescaledb_apache.dsn)
    process.add_user("ada", "admin")
    process.dsn = limited
    with process, process.signed_in("ada") as client:
        paths = "me fleet wells wells/A-1 wells/A-1/telemetry wells/A-1/telemetry?resolution=1h alarms alarms/kpis"
        paths += " alarms/history alarms/precision losses rejects archive audit users"
        for path in paths.split():
            answer = client.get(f"/api/v1/{path}")
            assert answer.status_code == 200, answer.text
        item = {"well_id": "A-1", "diagnosis": "gas_lock", "timestamp": at.isoformat()}
        for action, more in (
            ("ack", {}),
            ("shelve", {"duration": "1h"}),
            ("unshelve", {}),
            ("note", {}),
            ("verdict", {"verdict": "true"}),
        ):
            answer = client.post(f"/api/v1/alarms/{action}", json={"items": [item], "why": "x", **more})
            assert answer.status_code == 200, answer.text
            assert answer.json()["items"][0]["outcome"] == "done"
        tokens = process.sign_in("ada")
        body = {"refresh_token": tokens["refresh_token"]}
        fresh = client.post("/api/v1/auth/refresh", json=body)
        assert fresh.status_code == 200, fresh.text
        body = {"refresh_token": fresh.json()["refresh_token"]}
        assert client.post("/api/v1/auth/logout", json=body).status_code == 204
        with process.events(client) as events:
            assert next(events)[2]["database"] == "ok"
    with psycopg.connect(limited, autocommit=True) as connection:
        for statement in (
            "DELETE FROM esp_telemetry",
            "UPDATE diagnostic_results SET severity = 'low'",
            "DELETE FROM alarm_actions",
            "UPDATE api_users SET role = 'admin'",
            "DELETE FROM api_audit",
            "INSERT INTO api_users (name, password_hash, role) VALUES ('eve', 'x', 'admin')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
    assert PASSWORD not in process.log()
