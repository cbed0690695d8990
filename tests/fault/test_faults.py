"""Nothing lost, nothing twice, whatever breaks: the short selection (docs/faults.md has the table of results)."""

import signal
import time
from collections.abc import Callable

import pytest

from tests.support.rig import Rig, paused

pytestmark = [pytest.mark.fault, pytest.mark.timeout(240)]

COPY_HEADER = b"PGCOPY\n\xff\r\n\x00"
COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"


def test_nothing_breaks(rig: Rig) -> None:
    """The control: the rig itself loses and doubles nothing."""
    rig.start_daemon()
    rig.publish()
    time.sleep(3)
    rig.healed()
    result = rig.finish()
    assert result.rejects > 0


def after_a_batch_commits(rig: Rig, action: Callable[[], object]) -> None:
    """Before the daemon hears of it. Other connections commit too, so a COPY has to come first."""
    rig.to_database.watch(COPY_HEADER, "up", lambda: rig.to_database.watch(COMMITTED, "down", action))


def kill_somewhere(rig: Rig, turn: int) -> None:
    """SIGKILL the daemon in the middle of a COPY, between commit and acknowledgement, or anywhere."""
    assert rig.daemon is not None
    if turn % 3 == 0:
        rig.to_database.watch(COPY_HEADER, "up", rig.kill_daemon)
    elif turn % 3 == 1:
        after_a_batch_commits(rig, rig.kill_daemon)
    else:
        time.sleep(rig.random.uniform(0.0, 0.7))
        rig.kill_daemon()
    rig.await_that(lambda: rig.daemon is not None and not rig.daemon.running, "the daemon is killed", 20)


def killed_often(rig: Rig, times: int) -> None:
    rig.start_daemon()
    rig.publish()
    for turn in range(times):
        kill_somewhere(rig, turn)
        rig.start_daemon(wait=False)
    rig.healed()
    rig.finish()


def test_killed_mid_copy_and_between_commit_and_ack(rig: Rig) -> None:
    killed_often(rig, 6)


@pytest.mark.soak
def test_killed_20_times(rig: Rig) -> None:
    killed_often(rig, 20)


def test_commit_answer_lost(rig: Rig) -> None:
    """The outcome of a commit is unknown: the connection goes after the commit and before its answer."""
    rig.start_daemon()
    rig.publish()
    for _ in range(4):
        before = rig.to_database.connections_total
        after_a_batch_commits(rig, lambda: rig.to_database.cut("rst"))
        rig.await_new_connection(rig.to_database, before)
    rig.healed()
    rig.finish()
    assert rig.duplicates > 0, "what was committed without its knowing was written again"


def test_commit_lost(rig: Rig) -> None:
    """The other way its outcome is unknown: the database never hears of it."""
    rig.start_daemon()
    rig.publish()
    for _ in range(4):
        before = rig.to_database.connections_total
        rig.to_database.watch(
            COPY_HEADER,
            "up",
            lambda: rig.to_database.watch(b"COMMIT\0", "up", lambda: rig.to_database.cut("rst")),
        )
        rig.await_new_connection(rig.to_database, before)
    rig.healed()
    rig.finish()


def test_database_connection_cut_mid_packet(rig: Rig) -> None:
    rig.start_daemon()
    rig.publish()
    for turn in range(6):
        before = rig.to_database.connections_total
        if turn % 2:
            rig.to_database.cut_after(rig.random.randrange(20_000), "up", "rst")
        else:
            rig.to_database.cut_after(rig.random.randrange(200), "down", "fin")
        rig.await_new_connection(rig.to_database, before)
    rig.healed()
    rig.finish()


def test_database_restarted_and_backends_terminated(rig: Rig) -> None:
    rig.start_daemon()
    rig.publish()
    for how in (signal.SIGINT, signal.SIGQUIT):
        time.sleep(rig.random.uniform(0.3, 1.0))
        rig.database.server.restart(how)
    for _ in range(5):
        time.sleep(rig.random.uniform(0.1, 0.6))
        rig.database.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    rig.database.server.kill()
    rig.database.server.launch()
    rig.healed()
    rig.finish()


def database_away(rig: Rig, seconds: float) -> None:
    rig.settings["SPOOL__AFTER_SECONDS"] = "2"
    rig.start_daemon()
    rig.publish()
    rig.database.server.halt()
    time.sleep(seconds)
    assert rig.metric("spool_messages") > 0, "an outage longer than spool.after_seconds goes to disk"
    assert rig.health("ready")[0] == 503
    assert rig.health("live")[0] == 200
    assert rig.metric("unacked_messages") < 5_000, "what is spooled is acknowledged"
    rig.database.server.launch()
    rig.healed()
    rig.await_that(lambda: rig.metric("spool_messages") == 0, "the spool is empty", 20)
    rig.finish()
    assert not list((rig.folder / "spool").glob("segment-*")), "the disk shrinks again"


def test_database_away(rig: Rig) -> None:
    database_away(rig, 8)


@pytest.mark.soak
def test_database_away_60_seconds(rig: Rig) -> None:
    database_away(rig, 60)


def test_killed_while_spooling_and_draining(rig: Rig) -> None:
    rig.settings["SPOOL__AFTER_SECONDS"] = "0.5"
    rig.start_daemon()
    rig.publish()
    rig.database.server.halt()
    rig.await_that(lambda: rig.metric("spool_messages") > 0, "spooling", 20)
    for _ in range(3):
        time.sleep(rig.random.uniform(0.1, 1.0))
        rig.kill_daemon()
        rig.start_daemon(wait=False)
        rig.await_that(lambda: rig.health("live")[0] == 200, "live without a database", 10)
    rig.to_database.watch(COPY_HEADER, "up", rig.kill_daemon)  # the first piece that is drained
    rig.database.server.launch()
    rig.await_that(lambda: rig.daemon is not None and not rig.daemon.running, "killed while draining", 20)
    rig.start_daemon(wait=False)
    for _ in range(2):
        time.sleep(rig.random.uniform(0.1, 0.8))
        rig.kill_daemon()
        rig.start_daemon(wait=False)
    rig.healed()
    rig.finish()


def test_database_half_open(rig: Rig) -> None:
    """Packets vanish, no reset comes: only the daemon's own clock can tell."""
    rig.settings["SPOOL__AFTER_SECONDS"] = "2"
    rig.start_daemon()
    rig.publish()
    rig.to_database.deafen()
    rig.await_that(lambda: rig.metric("spool_messages") > 0, "noticed, and spooling", 30)
    rig.to_database.hear()
    rig.healed()
    rig.finish()


def test_broker_killed_with_persistence(rig: Rig) -> None:
    """What Mosquitto acknowledged and did not save yet is its own loss: publishers stand still while it saves."""
    rig.start_daemon()
    rig.publish()
    assert rig.publisher is not None
    for _ in range(3):
        time.sleep(rig.random.uniform(0.5, 1.5))
        with paused(rig.publisher):
            time.sleep(0.2)
            rig.broker.save()
            rig.broker.kill()
            rig.broker.start()
    rig.healed()
    rig.finish()


def test_broker_restarted(rig: Rig) -> None:
    rig.start_daemon()
    rig.publish()
    for _ in range(3):
        time.sleep(rig.random.uniform(0.5, 1.5))
        rig.broker.restart()
    rig.healed()
    rig.finish()


def test_network_to_broker_cut_mid_packet(rig: Rig) -> None:
    rig.start_daemon()
    rig.publish()
    for turn in range(8):
        before = rig.to_broker.connections_total
        if turn % 2:
            rig.to_broker.cut_after(rig.random.randrange(2_000), "up", "fin")
        else:
            rig.to_broker.cut_after(rig.random.randrange(100_000), "down", "rst")
        rig.await_new_connection(rig.to_broker, before)
    rig.to_broker.stop()
    time.sleep(2)
    rig.to_broker.start()
    rig.healed()
    rig.finish()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_network_to_broker_half_open(rig: Rig, direction: str) -> None:
    """Longer than the keepalive: both ends give up, and the session survives it."""
    rig.start_daemon()
    rig.publish()
    rig.to_broker.deafen("up" if direction == "up" else "down")
    time.sleep(10)
    rig.to_broker.hear()
    rig.healed()
    rig.finish()


def test_stopped_past_the_keepalive(rig: Rig) -> None:
    daemon = rig.start_daemon()
    rig.publish()
    with paused(daemon):
        time.sleep(10)
    rig.healed()
    rig.finish()


def test_sigterm_under_load(rig: Rig) -> None:
    rig.start_daemon()
    rig.publish(rate=1_500)
    for _ in range(3):
        time.sleep(rig.random.uniform(0.2, 1.0))
        rig.stop_daemon()
        rig.start_daemon()
    rig.healed()
    rig.finish()


def test_lock_held_and_partition_dropped(rig: Rig) -> None:
    rig.start_daemon()
    rig.publish()
    rig.database.run(
        "INSERT INTO esp_telemetry (timestamp, well_id, received_at) SELECT now() - interval '9 days', 'OLD', now()"
    )
    with rig.database.connect(autocommit=False) as connection:
        connection.execute("LOCK TABLE esp_telemetry IN ACCESS EXCLUSIVE MODE")
        time.sleep(6)
        connection.rollback()
    rig.database.run("SELECT drop_chunks('esp_telemetry', now() - interval '5 days')")
    assert rig.database.value("SELECT count(*) FROM esp_telemetry WHERE well_id = 'OLD'") == 0
    rig.healed()
    rig.finish()


def test_migration_while_ingesting(rig: Rig) -> None:
    rig.start_daemon()
    rig.publish()
    for _ in range(2):
        rig.run("migrate", dsn=rig.database.dsn)
    rig.healed()
    rig.finish()
