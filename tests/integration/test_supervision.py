"""What supervisors and operators see of a daemon in trouble: health, watchdog, alarm; as processes with real parts."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.brokers import Mosquitto
from tests.support.databases import Database
from tests.support.fake_broker import SUBACK, SUBSCRIBE, FakeBroker, packet
from tests.support.rig import Rig

TOPIC = "esp/W1/telemetry"
STUCK_SECONDS = 5.0  # liveness turns red half as long again later


@pytest.fixture
def rig(tmp_path: Path, timescaledb_apache: Database, request: pytest.FixtureRequest) -> Iterator[Rig]:
    with (
        Mosquitto(tmp_path / "mosquitto") as broker,
        Rig(tmp_path, broker, timescaledb_apache, request.node.name) as rig,
    ):
        rig.settings |= {
            "DATABASE__STATEMENT_TIMEOUT_SECONDS": "2",
            "SERVICE__STUCK_AFTER_SECONDS": f"{STUCK_SECONDS:g}",
        }
        yield rig


class Systemd:
    """The socket of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.said: list[str] = []

    def hear(self, seconds: float) -> list[str]:
        """What is said in the ``seconds`` to come; what was said before is forgotten."""
        self._read(0.0)
        self.said = []
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._read(left)
        return self.said

    def until(self, line: str, seconds: float) -> None:
        """Wait for what begins with ``line``, if it was not said already."""
        deadline = time.monotonic() + seconds
        while not any(said.startswith(line) for said in self.said):
            assert time.monotonic() < deadline, f"{line} was not said: {self.said[-5:]}"
            self._read(0.2)

    def _read(self, seconds: float) -> None:
        self._socket.settimeout(seconds)
        try:
            while True:
                self.said += self._socket.recv(4_096).decode().split("\n")
                self._socket.settimeout(0.0)
        except (TimeoutError, BlockingIOError):
            pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    made = Systemd(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    yield made
    made.close()


@pytest.fixture
def hanging(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says which part of the rig's daemon stands still."""
    file = tmp_path / "hanging"
    file.write_text("")
    monkeypatch.setenv("HANGING", str(file))
    rig.daemon_command = [sys.executable, "-m", "tests.support.hanging"]
    return file


def say_in(file: Path, text: str) -> None:
    """Atomically: the daemon reads it all the time."""
    draft = file.with_suffix(".new")
    draft.write_text(text)
    draft.replace(file)


def red(rig: Rig, which: str, check: str) -> str:
    """Why ``check`` is red in /health/``which``; empty where it is not."""
    status, answer = rig.health(which)
    found = answer.get("checks", {}).get(check, {})
    return str(found["detail"]) if status == 503 and found.get("ok") is False else ""


def test_systemd_hears_ready_then_the_watchdog_then_stopping(rig: Rig, systemd: Systemd) -> None:
    rig.start_daemon()
    systemd.until("READY=1", 5)
    systemd.until("STATUS=Ready", 5)
    assert systemd.hear(3.0).count("WATCHDOG=1") >= 3, "it pings while it lives"
    rig.to_database.stop()
    rig.await_that(lambda: red(rig, "ready", "database"), "the outage is seen", 20)
    systemd.until("STATUS=Not ready: ", 5)
    assert systemd.hear(2.0).count("WATCHDOG=1") >= 2, "an outage of the database is no reason to restart"
    rig.to_database.start()
    rig.stop_daemon()
    systemd.until("STOPPING=1", 2)
    assert "READY=1" not in systemd.said[systemd.said.index("STOPPING=1") :]


@pytest.mark.parametrize("part", ["writer", "pipeline"])
def test_a_loop_that_stands_still_is_restarted(rig: Rig, systemd: Systemd, hanging: Path, part: str) -> None:
    """Readiness red with the reason, then liveness, and the watchdog falls silent: systemd would restart it now."""
    rig.start_daemon()
    rig.publish(rate=50)
    say_in(hanging, part)
    rig.await_that(lambda: red(rig, "ready", f"{part}_loop"), "readiness is red", STUCK_SECONDS + 5)
    assert "has not moved for" in red(rig, "ready", f"{part}_loop")
    assert rig.health("live")[0] == 200, "people may look before the supervisor acts"
    rig.await_that(lambda: red(rig, "live", f"{part}_loop"), "liveness is red", STUCK_SECONDS)
    assert "WATCHDOG=1" not in systemd.hear(2.0)
    assert rig.metric("loop_idle_seconds") >= STUCK_SECONDS
    rig.kill_daemon()
    say_in(hanging, "")
    rig.start_daemon()
    rig.healed()
    rig.finish()


def test_a_dead_network_thread_is_restarted(rig: Rig, systemd: Systemd, hanging: Path) -> None:
    rig.start_daemon()
    rig.publish(rate=50)
    say_in(hanging, "network")
    rig.await_that(lambda: "thread has ended" in red(rig, "ready", "mqtt_thread"), "readiness is red", 5)
    rig.await_that(lambda: red(rig, "live", "mqtt_thread"), "liveness is red", STUCK_SECONDS + 3)
    assert "WATCHDOG=1" not in systemd.hear(2.0)
    rig.kill_daemon()
    say_in(hanging, "")
    rig.start_daemon()
    rig.healed()
    rig.finish()


def test_a_daemon_that_is_stopped_pings_no_watchdog(rig: Rig, systemd: Systemd) -> None:
    daemon = rig.start_daemon()
    systemd.until("WATCHDOG=1", 5)
    daemon.send(signal.SIGSTOP)
    time.sleep(0.2)
    assert "WATCHDOG=1" not in systemd.hear(2.0)
    daemon.send(signal.SIGCONT)
    systemd.until("WATCHDOG=1", 5)
    rig.stop_daemon()


def test_a_backend_that_stands_still(rig: Rig) -> None:
    """SIGSTOP to the database's processes that serve us: readiness says what stands, and liveness stays green, for the
    daemon gives such a connection up by itself, and goes on: it spools if a batch was on that connection, and writes on
    a new one if it was only what is done between batches."""
    rig.settings |= {
        "DATABASE__STATEMENT_TIMEOUT_SECONDS": "5",
        "SERVICE__STUCK_AFTER_SECONDS": "8",
        "SPOOL__AFTER_SECONDS": "1",
    }
    rig.start_daemon()
    rig.publish(rate=100)
    rows = rig.database.all(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend'"
    )
    assert rows
    try:
        for (pid,) in rows:
            os.kill(pid, signal.SIGSTOP)
        rig.await_that(lambda: red(rig, "ready", "writer_loop"), "readiness says which loop", 15)
        written = rig.metric("readings_written_total")
        rig.await_that(
            lambda: rig.metric("spool_messages") > 0 or rig.metric("readings_written_total") > written,
            "given up, and going on",
            20,
        )
        assert rig.health("live")[0] == 200
    finally:
        for (pid,) in rows:
            os.kill(pid, signal.SIGCONT)
    rig.healed()
    rig.finish()


def test_too_many_rejects_raise_an_alarm_and_stop_nothing(rig: Rig) -> None:
    rig.settings["SERVICE__REJECT_ALARM_CONSECUTIVE"] = "50"
    rig.start_daemon()
    assert rig.metric("reject_alarm") == 0
    with rig.broker.publisher("W1") as controller:
        controller.publish_many(TOPIC, [b"no reading %d" % number for number in range(90)])
        rig.await_that(lambda: rig.metric("reject_alarm") == 1, "the alarm stands", 10)
        assert rig.metric("readings_rejected_total") == 90
        assert (rig.health("live")[0], rig.health("ready")[0]) == (200, 200)
        now_ms = time.time_ns() // 1_000_000
        good = [b'{"timestamp":%d,"pip":%d}' % (now_ms - number, number) for number in range(300)]
        controller.publish_many(TOPIC, good)
        rig.await_that(lambda: rig.metric("readings_written_total") == 300, "it goes on", 10)
        rig.await_that(lambda: rig.metric("reject_alarm") == 0, "the alarm is over", 10)
    rig.stop_daemon()


def test_damage_in_the_spool_is_set_aside_and_told(rig: Rig) -> None:
    folder = rig.folder / "spool"
    folder.mkdir()
    name = "segment-0000000000000001-0011223344556677.db"
    (folder / name).write_bytes(b"no database " * 5_000)
    rig.start_daemon()
    assert rig.metric("spool_set_aside_total") == 1, "how much was in it nobody knows"
    (line,) = [json.loads(line) for line in rig.daemon_log().splitlines() if "spool damage set aside" in line]
    assert (line["file"], line["lost"], line["exact"], line["salvaged"]) == (name, 0, False, 0)
    assert line["reason"]
    rig.publish(rate=50)
    rig.healed()
    rig.finish()
    assert (folder / "set-aside" / name).exists()


# -- The session at the broker (docs/operations.md has a line for each).


def test_a_session_that_the_broker_lost_is_told_and_new_data_flows(rig: Rig) -> None:
    rig.start_daemon()
    rig.broker.kill()
    (rig.broker.folder / "data" / "mosquitto.db").unlink(missing_ok=True)
    rig.broker.start()
    rig.await_that(lambda: rig.metric("mqtt_sessions_lost_total") == 1, "the loss is counted", 20)
    assert rig.daemon_log().count("mqtt session lost on the broker") == 1
    rig.await_that(lambda: rig.health("ready")[0] == 200, "subscribed anew", 10)
    rig.publish(rate=50)
    rig.healed()
    rig.finish()


def test_a_changed_topic_root_ends_the_old_subscription(rig: Rig) -> None:
    """The session at the broker would keep the old filter, and its messages, for ever."""
    (rig.broker.folder / "acl").write_text("pattern readwrite #\n")
    rig.broker.restart()
    rig.start_daemon()
    rig.stop_daemon()
    rig.settings["MQTT__TOPIC_ROOT"] = "plant"
    body = b'{"timestamp":%d,"pip":1}' % (time.time_ns() // 1_000_000)
    with rig.broker.publisher("W1") as controller:
        controller.publish(TOPIC, body)
        rig.start_daemon()
        rig.await_that(lambda: rig.metric("readings_rejected_total") == 1, "what was queued is kept as a reject", 10)
        rig.await_that(lambda: '"esp/' not in session_record(rig), "the broker has ended the old filter", 10)
        controller.publish(TOPIC, body)
        controller.publish("plant/W1/telemetry", body)
        rig.await_that(lambda: rig.metric("readings_written_total") == 1, "the new one is read", 10)
    assert rig.metric("messages_received_total") == 2, "nothing more comes under the old one"
    assert rig.database.all("SELECT topic, reason, payload FROM ingest_rejects") == [(TOPIC, "invalid_topic", body)]
    rig.stop_daemon()


def session_record(rig: Rig) -> str:
    """What the daemon has written down of its session."""
    (file,) = (rig.folder / "spool").glob("mqtt-session-*")
    return file.read_text()


def test_a_refused_subscription_keeps_it_unready_and_is_tried_again(rig: Rig) -> None:
    with FakeBroker() as broker:
        codes = [b"\x87"]
        broker.suback = lambda _, received: packet(SUBACK, received.body[:2] + b"\0" + codes[-1])
        rig.settings |= {"MQTT__HOST": "127.0.0.1", "MQTT__PORT": str(broker.port)}
        rig.start_daemon(wait=False)
        rig.await_that(lambda: "was refused (Not authorized)" in red(rig, "ready", "mqtt"), "the reason is told", 15)
        assert rig.health("live")[0] == 200
        codes.append(b"\x01")
        rig.await_that(lambda: rig.health("ready")[0] == 200, "tried again by itself", 20)
        assert max(len(each.of(SUBSCRIBE)) for each in broker.connections) >= 2  # the publisher has one of its own
        rig.stop_daemon()
