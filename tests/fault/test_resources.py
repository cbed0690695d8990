"""Disks that fill, a clock that jumps, memory in an outage, and a second daemon: the rest of the short selection."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.databases import TRIXIE, Database, NativeTimescale, unavailable
from tests.support.rig import Process, Rig, say

pytestmark = [pytest.mark.fault, pytest.mark.timeout(240)]

MIB = 1_048_576


def fill(disk: Path) -> Path:
    """Leave no byte free; returns the file to delete."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4_096)
        except OSError:
            return filler


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder]).returncode:
        unavailable("a small disk needs root and leave to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_disk_full_under_the_spool(small_disk: Path, rig: Rig) -> None:
    """The database is away and the spool's disk fills: nothing more is acknowledged, and it says so."""
    rig.settings |= {"SPOOL__PATH": str(small_disk / "spool"), "SPOOL__AFTER_SECONDS": "0.5"}
    rig.settings["SPOOL__SEGMENT_BYTES"] = "524288"
    rig.start_daemon()
    rig.publish(rate=1_500)
    rig.database.server.halt()
    rig.await_that(lambda: rig.metric("spool_full") == 1, "the spool says that it is full", 60)
    rig.await_that(lambda: "is full" in str(rig.health("ready")), "readiness says so too", 10)
    assert rig.health("ready")[0] == 503
    rig.await_that(lambda: acknowledges_nothing(rig, 2.0), "what is not safe is not acknowledged", 20)
    assert rig.health("live")[0] == 200
    rig.database.server.launch()
    rig.healed()
    rig.finish()


def acknowledges_nothing(rig: Rig, seconds: float) -> bool:
    """For so long, while messages are waiting."""
    acknowledged = rig.metric("messages_acked_total")
    time.sleep(seconds)
    return rig.metric("unacked_messages") > 0 and rig.metric("messages_acked_total") == acknowledged


@pytest.fixture
def database_on_small_disk(durable_server: NativeTimescale) -> Iterator[tuple[Database, Path]]:
    """A database whose tables lie on a file system of 48 MiB."""
    folder = TRIXIE / "tmp" / f"small-{os.getpid()}"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=0777", "tmpfs", folder]).returncode:
        unavailable("a small disk needs leave to mount a tmpfs")
    data = folder / "data"
    data.mkdir()
    os.chown(data, *durable_server.ids())
    admin = Database(durable_server.dsn, durable_server)
    admin.run(f"CREATE TABLESPACE small LOCATION '/{data.relative_to(TRIXIE)}'")
    database = durable_server.create_database(tablespace="small")
    yield database, folder
    durable_server.drop_database(database)
    admin.run("DROP TABLESPACE small")
    subprocess.run(["umount", "--lazy", folder], check=True)
    folder.rmdir()


def test_disk_full_under_the_database(database_on_small_disk: tuple[Database, Path], rig: Rig) -> None:
    """SQLSTATE 53100 is a reason to wait: the spool takes over, and everything arrives when there is room again."""
    database, disk = database_on_small_disk
    rig.database = database
    rig.settings["SPOOL__AFTER_SECONDS"] = "1"
    rig.run("migrate", dsn=database.dsn)
    rig.start_daemon()
    rig.publish(rate=600)
    filler = fill(disk)
    rig.await_that(lambda: rig.metric("spool_messages") > 0, "spooling because the database's disk is full", 60)
    time.sleep(3)
    filler.unlink()
    rig.healed()
    rig.finish()


@pytest.mark.parametrize("step_seconds", [-3_600, 86_400])
def test_clock_stepped(rig: Rig, step_seconds: int, tmp_path: Path) -> None:
    """Wall time jumps under the running daemon: durations do not follow it, and a restart may come on top."""
    offset = tmp_path / "offset"
    offset.write_text("0")
    os.environ["STEPPED_CLOCK"] = str(offset)
    # The publisher's timestamps are an hour old: stepping back must not push them out of the allowed future.
    rig.settings["TELEMETRY__MAX_AHEAD_SECONDS"] = "7200"
    rig.daemon_command = [sys.executable, "-m", "tests.fault.stepped_clock"]
    rig.start_daemon()
    rig.publish()
    time.sleep(1.5)
    offset.write_text(str(step_seconds))
    time.sleep(1.5)
    assert rig.health("live")[0] == 200
    rig.healed()
    span = rig.database.value("SELECT extract(epoch FROM max(received_at) - min(received_at)) FROM esp_telemetry")
    assert span > abs(step_seconds) - 60, "the daemon saw the step"
    rig.kill_daemon()
    offset.write_text("0")
    rig.start_daemon()
    rig.healed()
    rig.finish()


def test_memory_is_bounded_in_an_outage(rig: Rig) -> None:
    """No spool, no database, full rate: the window closes, the broker queues, and the daemon does not grow."""
    rig.settings |= {"SPOOL__ENABLED": "false", "MQTT__RECEIVE_MAXIMUM": "10000"}
    daemon = rig.start_daemon()
    rig.publish(rate=2_000)
    time.sleep(1)
    rig.database.server.halt()
    time.sleep(2)
    before = daemon.memory_bytes()
    rig.await_that(lambda: rig.confirmed() > 40_000, "many more messages than the window", 60)
    grown = daemon.memory_bytes() - before
    held = rig.metric("unacked_messages")
    assert held <= 10_000
    assert grown < 40 * MIB, f"{grown / MIB:.0f} MiB for a window of 10 000 messages of 70 bytes"
    assert rig.health("live")[0] == 200
    rig.database.server.launch()
    rig.healed()
    rig.finish()


def outage_at_full_rate(rig: Rig, messages: int, rate: float) -> None:
    """The spool takes over, is full, and then only the window holds: acknowledgements stop, readiness says why, memory
    stays, and the broker queues the rest."""
    rig.settings |= {"MQTT__RECEIVE_MAXIMUM": "10000", "SPOOL__AFTER_SECONDS": "0.5"}
    rig.settings |= {"SPOOL__MAX_BYTES": "4194304", "SPOOL__SEGMENT_BYTES": "524288"}
    daemon = rig.start_daemon()
    rig.publish(rate=rate)
    time.sleep(1)
    rig.database.server.halt()
    rig.await_that(lambda: rig.metric("spool_full") == 1, "the spool says that it is full", 60)
    rig.await_that(lambda: "bytes in use" in rig.health("ready")[1]["checks"]["spool"]["detail"], "and why", 10)
    assert rig.health("ready")[0] == 503
    rig.await_that(lambda: acknowledges_nothing(rig, 2.0), "what is not safe is not acknowledged", 20)
    before, most = daemon.memory_bytes(), 0
    goal = rig.confirmed() + messages
    while rig.confirmed() < goal:
        most = max(most, daemon.memory_bytes())
        assert rig.metric("unacked_messages") <= 20_000, "a window of this connection and one of the last"
        assert rig.health("live")[0] == 200
        time.sleep(0.5)
    say(f"{rig.name}: {(most - before) / MIB:+.1f} MiB over {messages} messages, {most / MIB:.0f} MiB at most")
    assert most - before < 15 * MIB, "what does not fit the window stays at the broker"
    rig.database.server.launch()
    rig.healed()
    rig.await_that(lambda: rig.metric("spool_messages") == 0, "the spool is empty", 30)
    assert rig.metric("spool_full") == 0
    rig.finish()


def test_back_pressure_with_a_full_spool(rig: Rig) -> None:
    outage_at_full_rate(rig, 20_000, 1_500)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_back_pressure_over_half_an_hour(rig: Rig) -> None:
    """What a fleet of 300 wells at 1 Hz sends in 30 minutes of outage, as fast as the publisher goes."""
    outage_at_full_rate(rig, 540_000, 3_000)


def test_a_second_daemon_with_the_same_client_id(rig: Rig, tmp_path: Path) -> None:
    """They take the session from each other: an error in the configuration that still loses and doubles nothing."""
    rig.start_daemon()
    rig.publish()
    environment = rig.environment() | {"ESP_INGEST_HTTP__PORT": "0", "ESP_INGEST_SPOOL__PATH": str(tmp_path / "other")}
    second = Process([*rig.daemon_command, "run"], rig.folder / "second.log", environment)
    try:
        time.sleep(6)
        assert second.running
    finally:
        second.kill()
    rig.healed()
    rig.finish()
