"""`esp-ingest check` against a broker: it leaves nothing behind, whenever it is killed, and disturbs no daemon."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from pydantic import SecretStr

from esp_ingest import cli
from esp_ingest.commands import check
from esp_ingest.commands.checks import broker as check_broker
from esp_ingest.commands.checks.line import Line
from esp_ingest.config.settings import MqttSettings, Settings
from esp_ingest.mqtt.source import MqttSource
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.health import Health
from esp_ingest.service.http import HttpServer
from esp_ingest.service.metrics import Metrics
from tests.support.brokers import DAEMON, ROOT, Mosquitto
from tests.support.databases import free_port
from tests.support.fake_broker import (
    PUBACK,
    PUBLISH,
    SUBACK,
    Connection,
    FakeBroker,
    Packet,
    filters_of,
    packet,
    publish,
)
from tests.support.proxy import Direction, TcpProxy
from tests.support.waiting import until


def check_process(mosquitto: Mosquitto, port: int) -> "subprocess.Popen[str]":
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ESP_INGEST_")}
    chosen = {
        "MQTT__PORT": str(port),
        "MQTT__USERNAME": DAEMON,
        "MQTT__PASSWORD": mosquitto.password_of(DAEMON),
        "DATABASE__DSN": "host=127.0.0.1 port=1",
    }
    environment = kept | {f"ESP_INGEST_{key}": value for key, value in chosen.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "esp_ingest", "check"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def kept_by(mosquitto: Mosquitto) -> bytes:
    """The snapshot of the broker: sessions, subscriptions, queues."""
    mosquitto.save()
    return (mosquitto.folder / "data" / "mosquitto.db").read_bytes()


@pytest.mark.parametrize(
    ("pattern", "direction"),
    [(b"-check", "up"), (b"\x20", "down"), (b"esp/+/telemetry", "up"), (b"\x90", "down")],
    ids=["CONNECT", "CONNACK", "SUBSCRIBE", "SUBACK"],
)
def test_killed_at_any_packet_it_leaves_no_session(mosquitto: Mosquitto, pattern: bytes, direction: Direction) -> None:
    with TcpProxy(mosquitto.host, mosquitto.port) as proxy:
        process = check_process(mosquitto, proxy.port)
        proxy.watch(pattern, direction, lambda: process.send_signal(signal.SIGKILL))
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL, "the packet did not come by"
    until(lambda: "-check" in mosquitto.log())  # it may read the CONNECT after the process has died
    assert b"-check" not in kept_by(mosquitto)


def test_it_sees_the_broker_and_leaves_the_daemons_session_alone(mosquitto: Mosquitto) -> None:
    daemon = MqttSource(mosquitto.settings(), SystemClock(), Metrics())
    daemon.start()
    until(lambda: daemon.subscribed)
    connection = daemon.connection
    checks = [check_process(mosquitto, mosquitto.port) for _ in range(2)]
    for each in checks:
        said, _ = each.communicate(timeout=30)
        assert "subscription granted" in said, "two at once do not end each other's connection"
    assert daemon.subscribed
    assert daemon.connection == connection
    assert mosquitto.log().count(f"as {DAEMON} (") == 1
    kept = kept_by(mosquitto)
    assert DAEMON.encode() in kept
    assert b"-check" not in kept
    daemon.close()


def lines(settings: MqttSettings) -> dict[str, Line]:
    return {line.subject: line for line in check_broker.look(settings, SystemClock())}


def test_a_message_to_itself_shows_that_messages_come(mosquitto: Mosquitto) -> None:
    found = lines(mosquitto.settings())["delivery"]
    assert (found.state, found.detail.partition(";")[0]) == (
        "ok",
        "a message to itself on esp/esp-ingest/check came back",
    )


def test_a_reading_that_comes_shows_the_rights_on_readings(mosquitto: Mosquitto) -> None:
    with mosquitto.publisher() as well:
        ending = threading.Event()

        def keep_publishing() -> None:
            while not ending.wait(0.02):
                well.publish("esp/W1/telemetry", b"{}")

        thread = threading.Thread(target=keep_publishing)
        thread.start()
        deadline = time.monotonic() + 15  # the message to itself may be faster than the reading
        try:
            while (found := lines(mosquitto.settings())["delivery"]).detail != "readings come (esp/W1/telemetry)":
                assert time.monotonic() < deadline, found
        finally:
            ending.set()
            thread.join()


def test_where_neither_comes_delivery_is_said_to_be_untested(mosquitto: Mosquitto) -> None:
    """Mosquitto grants any subscription and filters at delivery: W2 would get nothing."""
    user = {"username": "W2", "password": SecretStr(mosquitto.password_of("W2"))}
    found = lines(mosquitto.settings(**user))
    assert found["broker"].ok
    assert (found["delivery"].state, found["delivery"].detail[:9]) == ("note", "untested:")
    assert "user W2 may not write and read it" in found["delivery"].detail


def test_with_a_share_group_the_message_to_itself_goes_through_one(mosquitto: Mosquitto) -> None:
    found = lines(mosquitto.settings(share_group="esp"))["delivery"]
    assert (found.state, found.detail.partition(";")[0]) == (
        "ok",
        "a message to itself on esp/esp-ingest/check came back through a share group",
    )


def test_with_a_share_group_and_without_rights_delivery_is_said_to_be_untested(mosquitto: Mosquitto) -> None:
    user = {"username": "W2", "password": SecretStr(mosquitto.password_of("W2"))}
    found = lines(mosquitto.settings(share_group="esp", **user))["delivery"]
    assert (found.state, found.detail[:28]) == ("note", "untested for a share group: ")
    assert "user W2 may not write and read it" in found.detail


@pytest.mark.parametrize(
    ("granted", "answer", "shared_from", "state", "said"),
    [
        (1, "plain", 0, "FAIL", "the broker grants a share group and delivers nothing to it: switch shared"),
        (0x9E, "plain", 0, "FAIL", "the broker refuses a share group (shared subscription not supported): switch"),
        (0x87, "nothing", 0, "note", "untested for a share group: no message to itself"),
        (1, "both", 1, "ok", "a message to itself on esp/esp-ingest/check came back through a share group"),
        (1, "both", 2, "ok", "a message to itself on esp/esp-ingest/check came back through a share group"),
    ],
    ids=["delivers nothing", "refuses", "no rights", "well", "well from the second message on"],
)
def test_a_broker_without_share_groups_is_found(
    granted: int, answer: str, shared_from: int, state: str, said: str
) -> None:
    """rmqtt without its plugin for shared subscriptions grants them, and takes the filter as it stands: no topic."""
    filters: list[str] = []
    published: list[Packet] = []

    def suback(connection: Connection, received: Packet) -> bytes:
        asked = filters_of(received, connection.version == 5)
        filters.extend(asked)
        reasons = bytes(granted if each.startswith("$share/") else 1 for each in asked)
        return packet(SUBACK, received.body[:2] + b"\0" + reasons)

    def hand_out(connection: Connection, received: Packet) -> None:
        if received.kind != PUBLISH:
            return
        published.append(received)
        length = int.from_bytes(received.body[:2], "big")
        topic, rest = received.body[2 : 2 + length], received.body[2 + length :]
        connection.send(packet(PUBACK, rest[:2]))
        copies = [each for each in filters if each.endswith("/check")] if answer != "nothing" else []
        for number, each in enumerate(copies, 1):
            is_shared = each.startswith("$share/esp-check-")
            if is_shared and (answer == "plain" or len(published) < shared_from):
                continue
            connection.send(publish(topic, rest[3:], packet_id=number))

    with FakeBroker() as broker:
        broker.suback, broker.on_packet = suback, hand_out
        settings = MqttSettings(host=broker.host, port=broker.port, protocol="5", share_group="esp")
        started = time.monotonic()
        found = lines(settings)["delivery"]
        assert time.monotonic() - started < 6
    assert (found.state, found.detail[: len(said)]) == (state, said)


def test_a_broker_that_takes_connections_and_says_nothing_costs_less_than_six_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = MqttSettings(host="127.0.0.1", port=silent.getsockname()[1], connect_timeout_seconds=60)
        started = time.monotonic()
        found = lines(settings)
        assert time.monotonic() - started < 6
    assert not found["broker"].ok
    assert "did not answer CONNECT in time" in found["broker"].detail
    assert "delivery" not in found


def test_a_closed_port_is_told_at_once() -> None:
    started = time.monotonic()
    assert "cannot be reached" in lines(MqttSettings(host="127.0.0.1", port=free_port()))["broker"].detail
    assert time.monotonic() - started < 5


def http_line(port: int) -> Line:
    return check.http(Settings(http={"host": "127.0.0.1", "port": port}))


def test_a_port_in_use_by_something_else_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        threading.Thread(target=lambda: other.accept()[0].close(), daemon=True).start()
        found = http_line(port)
    assert (found.ok, "in use by another program" in found.detail) == (False, True)
    assert http_line(port).ok


def test_a_port_in_use_by_a_daemon_that_runs_is_well() -> None:
    health = Health(SystemClock(), Settings().service)
    server = HttpServer(Settings(http={"port": 0}).http, health, Metrics())
    server.start()
    try:
        assert http_line(server.port) == Line("http", True, f"127.0.0.1:{server.port}, in use by a daemon that runs")
    finally:
        server.stop()


def test_json_is_one_object_and_the_exit_code_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ESP_INGEST_MQTT__PORT", str(free_port()))
    monkeypatch.setenv("ESP_INGEST_DATABASE__DSN", f"host=127.0.0.1 port={free_port()}")
    assert cli.main(["check", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    states = {each["subject"]: each["state"] for each in found["checks"]}
    assert (found["ok"], states["configuration"], states["broker"], states["database"]) == (False, "ok", "fail", "fail")
