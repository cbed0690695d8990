"""Several API processes on one database: a session is the same at each, a stolen refresh token is noticed whichever of
them it comes to, and what is new reaches those who watch at either."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from esp_ingest.store.schema import migrate
from tests.integration.test_api_stream import has_alarm, has_reading, until
from tests.support.api import ApiProcess, insert_alarm, insert_reading
from tests.support.databases import Database, Server


@pytest.fixture(scope="module")
def database(timescaledb_apache_server: Server) -> Iterator[Database]:
    made = timescaledb_apache_server.create_database()
    migrate(made.settings)
    insert_reading(made, "A-1", datetime.now(UTC))
    yield made
    timescaledb_apache_server.drop_database(made)


@pytest.fixture(scope="module")
def two(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiProcess, ApiProcess]]:
    """Two that start at once with an empty state folder, which they share, and so agree on one key."""
    folder = tmp_path_factory.mktemp("state")
    first, second = (
        ApiProcess(
            tmp_path_factory.mktemp(name),
            database.dsn,
            {"SPOOL__PATH": str(folder / "spool"), "API__SIGN_IN_PER_MINUTE": "1000"},
        )
        for name in ("first", "second")
    )
    first.add_user("olga", "operator")
    try:
        first.start(wait=False)
        second.start()
        first.await_health("ready")
        yield first, second
    finally:
        for each in (first, second):
            each.__exit__()


def refreshed(api: ApiProcess, token: str) -> Any:
    with api.client() as client:
        return client.post("/api/v1/auth/refresh", json={"refresh_token": token})


def me(api: ApiProcess, tokens: dict[str, Any]) -> int:
    with api.client(tokens["access_token"]) as client:
        return client.get("/api/v1/me").status_code


def test_a_session_begun_at_one_goes_on_at_the_other(two: tuple[ApiProcess, ApiProcess]) -> None:
    first, second = two
    tokens = first.sign_in("olga")
    assert (me(first, tokens), me(second, tokens)) == (200, 200)
    following = refreshed(second, tokens["refresh_token"])
    assert following.status_code == 200, following.text
    assert (me(first, following.json()), me(second, following.json())) == (200, 200)
    again = refreshed(first, following.json()["refresh_token"])
    assert again.status_code == 200, again.text
    with second.client() as client:
        body = {"refresh_token": again.json()["refresh_token"]}
        assert client.post("/api/v1/auth/logout", json=body).status_code == 204
    assert refreshed(first, again.json()["refresh_token"]).status_code == 401


def test_a_refresh_token_used_at_both_ends_the_session(two: tuple[ApiProcess, ApiProcess], database: Database) -> None:
    first, second = two
    tokens = first.sign_in("olga")
    following = refreshed(first, tokens["refresh_token"])
    assert following.status_code == 200
    assert refreshed(second, tokens["refresh_token"]).status_code == 401
    for api in two:
        assert refreshed(api, following.json()["refresh_token"]).status_code == 401, "whoever has it is signed out"
    assert me(second, following.json()) == 401
    assert database.value("SELECT count(*) FROM api_audit WHERE action LIKE '%used twice%'") >= 1
    assert "a refresh token was used twice" in second.log()


def test_what_is_new_reaches_both(two: tuple[ApiProcess, ApiProcess], database: Database) -> None:
    first, second = two
    at = datetime.now(UTC).replace(microsecond=0)
    item = {"well_id": "A-1", "diagnosis": "gas_lock", "timestamp": at.isoformat()}
    with (
        first.signed_in("olga") as one,
        second.signed_in("olga") as other,
        first.events(one) as at_first,
        second.events(other) as at_second,
    ):
        for events in (at_first, at_second):
            until(events, "hello")
        insert_reading(database, "A-1", at, 1234.5)
        for events in (at_first, at_second):
            until(events, "readings", has_reading("A-1", 1234.5))
        with database.connect() as connection:
            insert_alarm(connection, "A-1", "gas_lock", at)
        for events in (at_first, at_second):
            until(events, "alarms", has_alarm("gas_lock", "unacknowledged"))
        with first.signed_in("olga") as actor:
            assert actor.post("/api/v1/alarms/ack", json={"items": [item], "why": "x"}).status_code == 200
        for events in (at_first, at_second):
            until(events, "alarms", has_alarm("gas_lock", "acknowledged"))
