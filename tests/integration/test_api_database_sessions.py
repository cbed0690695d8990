"""The API's sessions in the database are as the daemon's: whatever the role's own settings say, text is UTF-8, times
are UTC, and the tables are those of ``database.schema_name``."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

from esp_ingest.api.database import Database as ApiDatabase
from esp_ingest.api.database import Snapshot
from esp_ingest.config.settings import Settings
from esp_ingest.store.connection import connect
from esp_ingest.store.schema import migrate
from tests.support.api import ApiProcess, insert_alarm, insert_reading
from tests.support.databases import Database

T = TypeVar("T")
ROLE = "bent_api"
BENT = {
    "client_encoding": "LATIN1",
    "DateStyle": "'German, DMY'",
    "TimeZone": "'America/Los_Angeles'",
    "IntervalStyle": "iso_8601",
    "search_path": "public",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "jit": "on",
    "standard_conforming_strings": "off",
    "statement_timeout": "0",
}
TEXT = "98 °F, 5 €"


@pytest.fixture
def bent(postgres15: Database) -> Iterator[str]:
    """The connection string of a role that has settings of its own. The schema ``ours`` has the tables to be used, and
    ``public``, which the role's search_path names, has empty ones."""
    migrate(postgres15.settings)
    postgres15.run(f"CREATE SCHEMA ours; CREATE ROLE {ROLE} SUPERUSER LOGIN")
    migrate(postgres15.settings.model_copy(update={"schema_name": "ours"}))
    for key, value in BENT.items():
        postgres15.run(f"ALTER ROLE {ROLE} SET {key} = {value}")
    yield make_conninfo("", **(conninfo_to_dict(postgres15.dsn) | {"user": ROLE}))
    postgres15.run(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}; DROP SCHEMA ours CASCADE")


def with_api(settings: Settings, work: Callable[[ApiDatabase], Awaitable[T]]) -> T:
    """What ``work`` makes of the API's database."""

    async def run() -> T:
        database = ApiDatabase(settings)
        await database.open()
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())


def asked(settings: Settings, names: list[str]) -> tuple[list[str], list[str]]:
    """What these settings are in a question of the API, and in a change that it makes."""
    statement = sql.SQL("SELECT {}").format(
        sql.SQL(", ").join(sql.SQL("current_setting({})").format(sql.Literal(name)) for name in names)
    )

    async def ask(database: ApiDatabase) -> tuple[list[str], list[str]]:
        rows = await database.read(lambda snapshot: snapshot.fetch(statement))
        written = await database.write(lambda connection: connection.execute(statement).fetchall())
        return list(rows[0]), list(written[0])

    return with_api(settings, ask)


def test_questions_and_changes_have_the_settings_of_the_daemon(bent: str) -> None:
    settings = Settings.model_validate({"database": {"dsn": SecretStr(bent), "schema_name": "ours"}})
    names = [name for name in BENT if name != "statement_timeout"]
    with connect(settings.database, autocommit=True) as daemon:
        wanted = [str(daemon.execute("SELECT current_setting(%s)", (name,)).fetchone()[0]) for name in names]  # type: ignore[index]
    assert wanted[:5] == ["UTF8", "ISO, MDY", "UTC", "postgres", "ours"]
    reading, writing = asked(settings, names)
    assert reading == wanted
    assert writing == wanted


def test_texts_times_and_tables_are_right_over_http(bent: str, postgres15: Database, tmp_path: Path) -> None:
    at = datetime(2026, 7, 25, 6, 30, tzinfo=UTC)
    ours = Database(make_conninfo(postgres15.dsn, options="-c search_path=ours"), postgres15.server)
    insert_reading(ours, "A-1", at)
    insert_reading(ours, "A-1", at + timedelta(minutes=5))
    with ours.connect() as connection:
        insert_alarm(connection, "A-1", "gas_lock", at)
        connection.execute("UPDATE diagnostic_results SET message = %s", (TEXT,))
    process = ApiProcess(tmp_path, bent, {"DATABASE__SCHEMA_NAME": "ours"})
    process.add_user("ada", "operator")
    assert postgres15.value("SELECT count(*) FROM ours.api_users") == 1
    with process, process.signed_in("ada") as client:

        def get(path: str, **parameters: str) -> Any:
            answer = client.get(f"/api/v1/{path}", params=parameters)
            assert answer.status_code == 200, answer.text
            return answer.json()

        assert [well["well_id"] for well in get("wells")["items"]] == ["A-1"]
        assert get("wells/A-1")["last_seen"] == "2026-07-25T06:35:00Z"
        day = {"from": "2026-07-25T00:00:00Z", "to": "2026-07-26T00:00:00Z"}
        for resolution, first in (("raw", "06:30"), ("1h", "06:00"), ("1d", "00:00")):
            rows = get("wells/A-1/telemetry", resolution=resolution, **day)["rows"]
            assert rows[0][0] == f"2026-07-25T{first}:00Z"
        (alarm,) = get("alarms")["items"]
        assert (alarm["timestamp"], alarm["message"]) == ("2026-07-25T06:30:00Z", TEXT)
        item = {"well_id": "A-1", "diagnosis": "gas_lock", "timestamp": alarm["timestamp"]}
        done = client.post("/api/v1/alarms/ack", json={"items": [item], "why": TEXT})
        assert done.json()["items"][0]["outcome"] == "done", done.text
        assert get("alarms/history")["items"][0]["why"] == TEXT
        with process.events(client) as events:
            assert next(events)[2]["database"] == "ok"
    assert postgres15.value("SELECT why FROM ours.alarm_actions") == TEXT
    assert postgres15.value("SELECT count(*) FROM public.alarm_actions") == 0


@pytest.fixture(params=["direct", "pooled"])
def reached(request: pytest.FixtureRequest, postgres15: Database) -> Settings:
    """A database with its schema, and the settings of an API with one connection to it: its own, or one of a pooler
    in transaction mode."""
    migrate(postgres15.settings)
    database = postgres15
    if request.param == "pooled":
        database = request.getfixturevalue("pooler")(postgres15, "transaction", 1).database
    return Settings.model_validate({"database": {"dsn": SecretStr(database.dsn)}, "api": {"pool_size": 1}})


def test_what_one_request_reads_is_of_one_moment(reached: Settings, postgres15: Database) -> None:
    async def read(database: ApiDatabase) -> tuple[Any, Any, Any]:
        async def work(snapshot: Snapshot) -> tuple[Any, Any]:
            before = await snapshot.fetch("api_well_known", {"well": "A-1"})
            insert_reading(postgres15, "A-1", datetime(2026, 7, 25, tzinfo=UTC))
            return before, await snapshot.fetch("api_well_known", {"well": "A-1"})

        return *await database.read(work), await database.fetch("api_well_known", {"well": "A-1"})

    assert with_api(reached, read) == ([(False,)], [(False,)], [(True,)])


def test_a_question_changes_nothing_and_leaves_the_connection_fit_for_the_next(reached: Settings) -> None:
    async def read(database: ApiDatabase) -> Any:
        forget = "api_forget_sessions"  # a DELETE
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await database.fetch(forget)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await database.ask((forget, {}), ("api_well_known", {"well": "A-1"}))
        with pytest.raises(KeyError):
            await database.read(lambda snapshot: snapshot.fetch("no such query"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await database.read(lambda snapshot: snapshot.fetch(sql.SQL("SELECT pg_sleep(5)")))
        return await database.fetch("api_well_known", {"well": "A-1"})

    assert with_api(reached, read) == [(False,)]


def test_one_statement_has_the_time_limit_of_a_request(reached: Settings) -> None:
    hurried = reached.model_copy(update={"api": reached.api.model_copy(update={"request_timeout_seconds": 1.5})})
    statement = "SELECT current_setting('statement_timeout'), current_setting('TimeZone'), current_setting('jit')"

    async def read(database: ApiDatabase) -> Any:
        return await database.read(lambda snapshot: snapshot.fetch(sql.SQL(statement)))

    assert with_api(hurried, read) == [("1500ms", "UTC", "off")]


def test_the_victim_of_a_deadlock_is_asked_again(reached: Settings, postgres15: Database) -> None:
    """The lifecycle locks a day when it drops it: the server may end a question that has what it wants."""
    tries = []

    async def work(snapshot: Snapshot) -> Any:
        tries.append(1)
        if len(tries) == 1:
            await snapshot.fetch(sql.SQL("DO $$ BEGIN RAISE EXCEPTION SQLSTATE '40P01'; END $$"))
        return await snapshot.fetch("api_well_known", {"well": "A-1"})

    assert with_api(reached, lambda database: database.read(work)) == [(False,)]
    assert len(tries) == 2
