"""`run --workers 2`: the work is shared, each reading is stored once, a worker that dies is started again."""

import contextlib
import os
import re
import signal
import socket
import sys
import time
import urllib.request
from pathlib import Path

from esp_ingest.config.load import load
from esp_ingest.workers import ALONE, surplus, worker_environment
from tests.support.databases import free_port
from tests.support.rig import Process, Rig

MESSAGES = 4_000


def two_free_ports_in_a_row() -> int:
    while True:
        port = free_port()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return port


def received(port: int) -> float:
    """Messages that the worker at this health port has received; 0 while it is not there."""
    with contextlib.suppress(OSError):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        return sum(float(found) for found in re.findall(r"^esp_ingest_messages_received_total\S* (\S+)$", text, re.M))
    return 0.0


def ready(port: int) -> bool:
    url = f"http://127.0.0.1:{port}/health/ready"
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def test_two_workers_share_the_work_and_store_each_reading_once(rig: Rig) -> None:
    port = two_free_ports_in_a_row()
    environment = rig.environment() | {"ESP_INGEST_HTTP__PORT": str(port)}
    supervisor = Process([*rig.daemon_command, "run", "--workers", "2"], rig.folder / "daemon.log", environment)
    try:
        rig.await_that(lambda: ready(port) and ready(port + 1), "both workers are ready", 90)
        start_ms = time.time_ns() // 1_000_000 - MESSAGES
        payloads = [b'{"timestamp":%d,"pip":%d}' % (start_ms + at, at) for at in range(MESSAGES)]
        with rig.broker.publisher("W1") as controller:
            controller.publish_many("esp/W1/telemetry", payloads[: MESSAGES // 2])
            rig.await_that(lambda: rig.stored() == MESSAGES // 2, "the first half", 20)
            assert received(port) > 0
            assert received(port + 1) > 0
            workers = [int(pid) for pid in re.findall(r'"event": "worker started".*?"pid": (\d+)', rig.daemon_log())]
            os.kill(workers[1], signal.SIGKILL)
            controller.publish_many("esp/W1/telemetry", payloads[MESSAGES // 2 :])
            rig.await_that(lambda: rig.stored() == MESSAGES, "the second half, over the death of a worker", 30)
        assert rig.database.value("SELECT count(DISTINCT timestamp) FROM esp_telemetry") == MESSAGES
        rig.await_that(lambda: ready(port + 1), "the worker was started again", 20)
        supervisor.send(signal.SIGTERM)
        assert supervisor.wait(40) == 0, rig.daemon_log()[-2_000:]
    finally:
        supervisor.kill()


def in_a_row(count: int) -> int:
    while True:
        port = two_free_ports_in_a_row()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + count - 1)):
            return port


def publish(rig: Rig, first: int, count: int) -> None:
    now_ms = time.time_ns() // 1_000_000 - 100_000
    payloads = [b'{"timestamp":%d,"pip":%d}' % (now_ms - 100_000 + at, at) for at in range(first, first + count)]
    with rig.broker.publisher("W1") as controller:
        controller.publish_many("esp/W1/telemetry", payloads)


def test_workers_that_are_no_longer_there_leave_nothing_at_the_broker(rig: Rig) -> None:
    """One daemon alone, then three workers, then two: what the broker acknowledged while nobody was there, or dealt to
    who is no longer there, is stored all the same."""
    port = in_a_row(3)
    environment = rig.environment() | {"ESP_INGEST_HTTP__PORT": str(port)}
    spool = rig.folder / "spool"
    total = 0
    for workers in (1, 3, 2, 1):
        if total:
            publish(rig, total, 300)  # queued for the sessions of the start before
            total += 300
        command = [*rig.daemon_command, "run", "--workers", str(workers)]
        daemon = Process(command, rig.folder / "daemon.log", environment)
        try:
            ports = range(port, port + workers)
            rig.await_that(lambda: all(map(ready, ports)), f"{workers} workers are ready", 90)  # noqa: B023 - called now
            publish(rig, total, 300)
            total += 300
            rig.await_that(lambda: rig.stored() == total, "all is stored", 60)  # noqa: B023
            expected = {f"worker-{index}" for index in range(workers)} if workers > 1 else set()
            rig.await_that(
                lambda: {path.name for path in spool.glob("worker-*")} == expected,  # noqa: B023
                "the others have left",
                60,
            )
            publish(rig, total, 300)
            total += 300
            rig.await_that(lambda: rig.stored() == total, "what came after that is stored", 10)  # noqa: B023
            daemon.send(signal.SIGTERM)
            assert daemon.wait(40) == 0, rig.daemon_log()[-2_000:]
        finally:
            daemon.kill()


def test_who_has_to_leave(tmp_path: Path) -> None:
    settings = load(spool={"path": str(tmp_path)})
    assert surplus(settings, 2) == []
    for folder in ("worker-0", "worker-2", "worker-3", "worker-4", "worker-x"):
        (tmp_path / folder).mkdir()
    (tmp_path / "worker-0" / "lock").touch()
    (tmp_path / "worker-2" / "mqtt-session-esp-ingest-2.json").touch()
    (tmp_path / "worker-3" / "set-aside").mkdir()
    (tmp_path / "worker-x" / "lock").touch()
    assert surplus(settings, 2) == [2]
    assert surplus(settings, 3) == []
    (tmp_path / "lock").touch()
    assert surplus(settings, 2) == [ALONE, 2]


def test_workers_end_with_a_supervisor_that_is_killed(rig: Rig) -> None:
    port = two_free_ports_in_a_row()
    environment = rig.environment() | {"ESP_INGEST_HTTP__PORT": str(port)}
    supervisor = Process([*rig.daemon_command, "run", "--workers", "2"], rig.folder / "daemon.log", environment)
    rig.await_that(lambda: ready(port) and ready(port + 1), "both workers are ready", 30)
    supervisor.kill()
    rig.await_that(lambda: rig.daemon_log().count('"event": "stopped"') == 2, "both drained and ended", 20)


def test_workers_differ_in_what_must_differ(tmp_path: Path) -> None:
    settings = load(spool={"path": str(tmp_path)}, http={"port": 9_000}, mqtt={"client_id": "x"})
    first, second = worker_environment(settings, 0), worker_environment(settings, 1)
    assert first["ESP_INGEST_MQTT__SHARE_GROUP"] == second["ESP_INGEST_MQTT__SHARE_GROUP"] == "x"
    for key in ("MQTT__CLIENT_ID", "SPOOL__PATH", "HTTP__PORT"):
        assert first[f"ESP_INGEST_{key}"] != second[f"ESP_INGEST_{key}"]


def test_workers_need_mqtt_5(rig: Rig) -> None:
    environment = rig.environment() | {"ESP_INGEST_MQTT__PROTOCOL": "3.1.1"}
    refused = Process([sys.executable, "-m", "esp_ingest", "run", "--workers", "2"], rig.folder / "log", environment)
    assert refused.wait(20) == 2
    assert "MQTT 5" in (rig.folder / "log").read_text()
