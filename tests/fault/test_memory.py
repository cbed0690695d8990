"""Any message of any size and any number of wells, under what a container of 512 MiB may take: the daemon is not
killed, and a neighbour's readings are stored meanwhile.

The peak of the resident memory stands for the container's limit: it is what the kernel counts of this process, and it
can be read everywhere. Where the memory cgroup may be written, the limit is set as well, and the kernel must not kill.
"""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.brokers import Publisher
from tests.support.rig import Rig, say

pytestmark = [pytest.mark.fault, pytest.mark.timeout(400)]

LIMIT_BYTES = 512 * 1_048_576
STARVED_SECONDS = 60.0  # on a machine with other work; what was measured is printed, and stands in docs/faults.md
LARGE_BYTES = 4_000_000
CGROUP = Path("/sys/fs/cgroup/memory")


def filled(head: str, item: str, tail: str) -> bytes:
    """A payload of about LARGE_BYTES with ``item`` again and again."""
    return (head + item * ((LARGE_BYTES - len(head) - len(tail)) // len(item)) + tail).encode()


NOW_MS = int(time.time() * 1_000)
READING = f'{{"timestamp": {NOW_MS}, "pip": 1'
LARGE = {
    "quotes": filled('["', '"', ""),
    "lists_in_a_key": filled(READING + ', "a": [', "[],", "[]]}"),
    "deep": b"[" * LARGE_BYTES,
    "digits": filled(READING, "1", "}"),
    "keys": filled(READING, ', "k": 1', "}"),
    "escapes": filled(READING + ', "a": "', "\\u00e9", '"}'),
    "no_json": b"\0" * LARGE_BYTES,
    "items_without_a_time": filled("[", '{"timestamp":null},', '{"timestamp":null}]'),
    "readings": ("[" + ",".join(f'{{"timestamp": {NOW_MS - at}, "pip": 1}}' for at in range(110_000)) + "]").encode(),
}
IN_BRIEF = {"quotes", "lists_in_a_key", "items_without_a_time"}  # the others in the soak
# MQTT delivers in order: whoever comes behind 1.8 million readings waits until they are stored.
OF_MANY_ITEMS = {"readings"}


class Neighbour:
    """Publishes a reading of W2 again and again, each once the one before is stored, and notes the longest wait."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.longest_seconds = 0.0
        self.stored = 0
        self._ending = threading.Event()
        self._since: float | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with self.rig.broker.publisher("W2") as publisher, self.rig.database.connect() as connection:
            while not self._ending.is_set():
                at = time.time_ns() // 1_000_000
                self._since = time.monotonic()
                publisher.publish("esp/W2/telemetry", b'{"timestamp": %d, "pip": 1}' % at)
                while not self._is_stored(connection, at) and not self._ending.is_set():
                    time.sleep(0.05)
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - self._since)
                self.stored += 1

    @staticmethod
    def _is_stored(connection: psycopg.Connection, at_ms: int) -> bool:
        sql = "SELECT FROM esp_telemetry WHERE well_id = 'W2' AND timestamp = to_timestamp(%s / 1000.0)"
        return connection.execute(sql, [at_ms]).fetchone() is not None

    def __enter__(self) -> "Neighbour":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(20)


@contextlib.contextmanager
def limited(pid: int) -> Iterator[Path | None]:
    """The process in a memory cgroup (version 1) of LIMIT_BYTES, which is yielded; None where none may be made."""
    group = CGROUP / f"esp-ingest-test-{pid}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        yield None
        return
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):
            (CGROUP / "cgroup.procs").write_text(str(pid))
        with contextlib.suppress(OSError):
            group.rmdir()


def peak_bytes(pid: int) -> int:
    """The most resident memory that the process has had."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1_024


def judge(rig: Rig, neighbour: Neighbour, group: Path | None, *, is_brief: bool = True) -> None:
    """The daemon is the same process, below its limit; nobody waited too long."""
    assert rig.daemon is not None
    assert rig.daemon.running, rig.daemon_log()[-2_000:]
    kills = 0
    if group is not None:
        found = re.search(r"oom_kill (\d+)", (group / "memory.oom_control").read_text())
        kills = int(found[1]) if found else 0
    peak = peak_bytes(rig.daemon.pid)
    say(
        f"{rig.name}: {peak / 1_048_576:.0f} MiB at most, {neighbour.stored} readings of the neighbour, the latest "
        f"after {neighbour.longest_seconds:.1f} s, cgroup {'of 512 MiB' if group else 'not to be had'}"
    )
    assert kills == 0
    assert peak < LIMIT_BYTES
    assert neighbour.stored > 0
    assert neighbour.longest_seconds < STARVED_SECONDS or not is_brief


def settled(rig: Rig, received: int) -> bool:
    return rig.metric("messages_received_total") >= received and rig.metric("unacked_messages") <= 1


def send_large(publisher: Publisher, payload: bytes, count: int) -> None:
    publisher.publish_many("esp/W1/telemetry", [payload] * count)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in IN_BRIEF else pytest.mark.soak) for kind in LARGE]
)
def test_sixteen_large_messages_are_no_ones_end(rig: Rig, kind: str) -> None:
    daemon = rig.start_daemon()
    with limited(daemon.pid) as group, Neighbour(rig) as neighbour:
        rig.await_that(lambda: neighbour.stored > 0, "the neighbour's first reading", 10)
        before = rig.metric("messages_received_total")
        with rig.broker.publisher("W1") as publisher:
            send_large(publisher, LARGE[kind], 16)
        rig.await_that(lambda: settled(rig, int(before) + 16), "all large messages are settled", 120)
        judge(rig, neighbour, group, is_brief=kind not in OF_MANY_ITEMS)
    rig.stop_daemon()


def test_a_message_of_two_hundred_megabytes(rig: Rig) -> None:
    """A broker without a limit of its own holds it back, since CONNECT states a Maximum Packet Size."""
    shipped = rig.broker.config.read_text()
    rig.broker.config.write_text(re.sub(r"^max_packet_size .*$", "", shipped, flags=re.MULTILINE))
    rig.broker.restart()
    daemon = rig.start_daemon()
    with limited(daemon.pid) as group, Neighbour(rig) as neighbour:
        rig.await_that(lambda: neighbour.stored > 0, "the neighbour's first reading", 10)
        with rig.broker.publisher("W1") as publisher:
            sent = publisher.client.publish("esp/W1/telemetry", b"[" * 200_000_000, 1)
            sent.wait_for_publish(60)
            assert sent.is_published(), "the broker took it"
        known = neighbour.stored
        rig.await_that(lambda: neighbour.stored > known + 10, "the neighbour goes on", 60)
        judge(rig, neighbour, group)
    rig.stop_daemon()


@pytest.mark.parametrize("wells", [20_000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_more_wells_than_the_rules_may_know(rig: Rig, wells: int) -> None:
    """Those beyond diagnostics.max_wells = 10 000 are stored, and known to no rule."""
    daemon = rig.start_daemon()
    with (rig.broker.folder / "acl").open("a") as access:
        access.write("user W1\ntopic write esp/+/telemetry\n")
    rig.broker.reload()
    with limited(daemon.pid) as group, Neighbour(rig) as neighbour:
        rig.await_that(lambda: neighbour.stored > 0, "the neighbour's first reading", 10)
        with rig.broker.publisher("W1") as publisher:
            for turn in range(2):
                for begin in range(0, wells, 5_000):
                    infos = [
                        publisher.client.publish(
                            f"esp/well-{well}/telemetry", b'{"timestamp": %d, "pip": 900}' % (NOW_MS + turn), 1
                        )
                        for well in range(begin, begin + 5_000)
                    ]
                    for info in infos:
                        info.wait_for_publish(30)
        expected = "SELECT count(*) FROM esp_telemetry WHERE well_id LIKE 'well-%'"
        rig.await_that(lambda: rig.database.value(expected) == 2 * wells, "all readings are stored", 120)
        judge(rig, neighbour, group)
        assert "wells" in rig.daemon_log()
    rig.stop_daemon()
