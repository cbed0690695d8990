"""Programs that have nothing to do take next to no CPU: as processes, with all their threads, healthy and in trouble.
A loop of any thread that turns without waiting takes all of a processor, or its share of one on a busy machine."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.api import ApiProcess
from tests.support.databases import Database
from tests.support.lifecycle_data import migrated
from tests.support.rig import Process, Rig

SECONDS = 2.0
# Each of these programs takes 1 % or less; a loop that turns takes all of one, on a busy machine its part.
MOST_OF_A_PROCESSOR = 0.1


def family(pid: int) -> list[int]:
    """The process and its children."""
    text = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [pid, *(each for child in text.split() for each in family(int(child)))]


def cpu_seconds(pid: int) -> float:
    """That it and its children have taken, all threads together."""
    ticks = 0
    for each in family(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def busy(pid: int, http_port: int | None = None) -> float:
    """The part of a processor that it takes, 0.0 where that is next to nothing; with odd clients at ``http_port``. A
    start or a change may be under way: it is looked at three times."""
    found = []
    for _ in range(3):
        with odd_clients(http_port) if http_port else contextlib.nullcontext():
            began, before = time.monotonic(), cpu_seconds(pid)
            time.sleep(SECONDS)
            found.append((cpu_seconds(pid) - before) / (time.monotonic() - began))
        if found[-1] <= MOST_OF_A_PROCESSOR:
            return 0.0
    return min(found)


@contextlib.contextmanager
def odd_clients(port: int) -> Iterator[None]:
    """Of a port for HTTP: some say nothing, some begin a request, some read no answer, some have closed their half."""
    with contextlib.ExitStack() as stack:
        for said in (
            b"",
            b"GET / HT",
            b"GET /metrics HTTP/1.1\r\n\r\nmore",
            b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
        ):
            for closes in (False, True):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                client.sendall(said)
                if closes:
                    client.shutdown(socket.SHUT_WR)
        yield


def test_a_daemon_takes_no_cpu_when_nothing_comes_whoever_is_away(rig: Rig) -> None:
    rig.settings |= {"MQTT__KEEPALIVE_SECONDS": "30", "SPOOL__AFTER_SECONDS": "0.5"}
    daemon = rig.start_daemon()
    found = {"all is well": busy(daemon.pid)}
    found["odd clients"] = busy(daemon.pid, rig.http_port)
    rig.to_broker.hold()
    found["the broker says nothing"] = busy(daemon.pid)
    rig.to_broker.release()
    rig.publish(rate=50)
    rig.to_database.deafen()
    rig.await_that(lambda: rig.metric("spool_messages") > 0, "a backlog", 30)
    assert rig.publisher is not None
    rig.publisher.send(signal.SIGSTOP)
    found["the database does not answer"] = busy(daemon.pid)
    rig.to_database.stop()
    found["the database is away"] = busy(daemon.pid)
    rig.to_broker.stop()
    found["the broker is away"] = busy(daemon.pid)
    assert found == dict.fromkeys(found, 0.0)


def test_workers_and_their_parent_take_no_cpu_when_nothing_comes(rig: Rig) -> None:
    """One of the two follows the table."""
    environment = rig.environment() | {"ESP_INGEST_HTTP__PORT": "0"}
    parent = Process([*rig.daemon_command, "run", "--workers", "2"], rig.folder / "daemon.log", environment)
    try:
        rig.await_that(lambda: "diagnostics lead the share group" in rig.daemon_log(), "up", 30)
        assert len(family(parent.pid)) == 3
        assert busy(parent.pid) == 0.0
    finally:
        parent.kill()


def test_the_api_takes_no_cpu_when_nobody_asks(timescaledb_apache: Database, tmp_path: Path) -> None:
    migrated(timescaledb_apache)
    api = ApiProcess(tmp_path, timescaledb_apache.dsn)
    api.add_user("olga", "operator")
    with api, api.signed_in("olga") as client:
        found = {"nobody": busy(api.pid)}
        found["odd clients"] = busy(api.pid, api.port)
        with api.events(client):
            found["one who watches"] = busy(api.pid)
    assert found == dict.fromkeys(found, 0.0)
