"""The daemon as a process on sessions that are not as it left them, not its alone, or not fit for it: of the database
and of the broker."""

import json
import shutil
import signal
import time
from collections.abc import Callable

import psycopg
import pytest

from tests.support.databases import Database, free_port
from tests.support.poolers import Mode, PgBouncer
from tests.support.rig import Process, Rig

pytestmark = [pytest.mark.fault, pytest.mark.timeout(240)]


def outside(rig: Rig, statement: str) -> None:
    """As an operator would from the maintenance database, in a session that no setting of the database reaches."""
    with psycopg.connect(rig.database.server.dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


def test_database_set_to_read_only_and_back(rig: Rig) -> None:
    name = rig.database.value("SELECT current_database()")
    rig.start_daemon()
    rig.publish()
    time.sleep(1)
    outside(rig, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    outside(rig, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    rig.await_that(lambda: "read" in json.dumps(rig.health("ready")[1]).split("database")[1], "it says why", 60)
    rig.await_that(lambda: rig.health("ready")[0] == 503, "ready is red", 20)
    time.sleep(2)
    outside(rig, f"ALTER DATABASE {name} RESET default_transaction_read_only")
    rig.await_that(lambda: rig.health("ready")[0] == 200, "ready again without a restart", 20)
    rig.healed()
    rig.finish()


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_behind_a_pooler(rig: Rig, pooler: Callable[[Database, Mode, int], PgBouncer], mode: Mode) -> None:
    bouncer = pooler(rig.database, mode, 2 if mode == "transaction" else 6)
    rig.settings["DATABASE__DSN"] = bouncer.database.dsn
    rig.start_daemon()
    rig.publish()
    time.sleep(4)
    rig.kill_daemon()
    rig.start_daemon()
    time.sleep(2)
    rig.healed()
    rig.finish()


def test_a_database_that_cannot_hold_utf8(rig: Rig) -> None:
    outside(rig, "CREATE DATABASE narrow TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    try:
        rig.settings["DATABASE__DSN"] = rig.database.server.dsn_of("narrow")
        rig.start_daemon(wait=False)
        rig.await_that(
            lambda: "the database cannot hold UTF-8 text" in json.dumps(rig.health("ready")[1]), "it says why", 60
        )
        assert rig.health("ready")[0] == 503
        assert rig.health("live")[0] == 200
        rig.stop_daemon()
    finally:
        outside(rig, "DROP DATABASE narrow WITH (FORCE)")


def test_two_members_with_one_client_id(rig: Rig) -> None:
    """The broker ends one's connection for the other's, again and again."""
    rig.start_daemon()
    rig.publish(rate=100)
    own = {"ESP_INGEST_HTTP__PORT": str(free_port()), "ESP_INGEST_SPOOL__PATH": str(rig.folder / "spool-of-the-other")}
    environment = rig.environment() | own
    other = Process([*rig.daemon_command, "run"], rig.folder / "daemon.log", environment)
    try:
        rig.await_that(lambda: rig.metric("mqtt_reconnects_total") >= 4, "taken from each other", 60)
        says = (
            "keeps being lost, and the broker does not say why: look for the client id esp-ingest in the broker's log"
        )
        rig.await_that(lambda: says in rig.daemon_log(), "it says where to look", 30)
        other.send(signal.SIGTERM)
        assert other.wait(30) == 0
    finally:
        other.kill()
    rig.await_that(lambda: rig.health("ready")[0] == 200, "ready when it is alone", 30)
    rig.healed()
    rig.finish()


def test_a_node_returns_with_old_state(rig: Rig) -> None:
    """Its folder is restored from a copy of before: the spool is stored by then, the record of the session is old."""
    rig.settings["SPOOL__AFTER_SECONDS"] = "0.5"
    rig.start_daemon()
    rig.publish()
    rig.database.server.halt()
    rig.await_that(lambda: rig.metric("spool_messages") > 300, "spooling", 20)
    rig.kill_daemon()
    spool, copy = rig.folder / "spool", rig.folder / "copy"
    shutil.copytree(spool, copy)
    rig.database.server.launch()
    rig.start_daemon()
    rig.await_that(lambda: rig.metric("spool_messages") == 0, "drained", 60)
    stored = rig.metric("readings_written_total")
    rig.await_that(lambda: rig.metric("readings_written_total") > stored + 100, "the session goes on", 20)
    rig.kill_daemon()
    shutil.rmtree(spool)
    shutil.copytree(copy, spool)
    rig.start_daemon()
    rig.await_that(lambda: rig.metric("spool_messages") == 0, "drained once more", 60)
    assert rig.metric("readings_duplicate_total") > 200, "what it had spooled was stored already"
    rig.healed()
    rig.finish()
