"""The bench's own logic: what it publishes is what it expects, and what it counts is what happened."""

import http.server
import itertools
import json
import math
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from tests.bench import baseline, publisher
from tests.bench.archiving import Archiving
from tests.bench.probes import BARE, PATHS, HttpWatch
from tests.bench.processes import Machine, MemoryWatch, cpu_seconds, rss_bytes, tree
from tests.bench.report import COPY, SUBSCRIBER, Results, quantile, table
from tests.bench.runs import Failed, Measured
from tests.bench.workload import POSTGRES_EPOCH_US, Shape, Workload, after_header, generate
from tests.support.databases import Database

FIRST_US = 1_767_225_600_000_000
_PACKET = re.compile(rb"esp/(ESP-\d{5})/telemetry(..)(.*)", re.DOTALL)


def packets(workload: Workload) -> Iterator[tuple[int, str, bytes]]:
    """(packet id, well, payload) of each message, by its offsets; the fixed header must agree with them."""
    data = (workload.folder / "packets.bin").read_bytes()
    offsets = np.load(workload.folder / "offsets.npy").tolist()
    assert offsets[-1] == len(data)
    for at, end in itertools.pairwise(offsets):
        packet = data[at:end]
        start = after_header(packet)
        digits = packet[1:start]
        length = sum((digit & 127) << 7 * place for place, digit in enumerate(digits))
        assert packet[0] == 0x32
        assert length == len(packet) - start
        found = _PACKET.fullmatch(packet[start + 2 :])
        assert found is not None
        yield int.from_bytes(found[2], "big"), found[1].decode(), found[3]


def rows_of(payloads: list[bytes]) -> list[tuple[object, ...]]:
    items = [item for payload in payloads for item in _as_list(json.loads(payload))]
    return [
        (
            item["well_id"],
            int(datetime.fromisoformat(str(item["timestamp"])).timestamp() * 1_000) * 1_000,
            *(item[name] for name in ("flow_rate", "pip", "motor_current", "motor_temp", "vibration")),
            item["vsd_frequency"],
            item["gor"],
        )
        for item in items
    ]


def _as_list(value: object) -> list[dict[str, object]]:
    return value if isinstance(value, list) else [value]  # type: ignore[list-item]  # JSON of our own making


def expected(workload: Workload) -> list[tuple[object, ...]]:
    names = ("flow_rate", "pip", "motor_current", "motor_temp", "vibration", "vsd_frequency", "gor")
    return [
        (row["well"].decode(), int(row["timestamp"]) + POSTGRES_EPOCH_US, *(float(row[name]) for name in names))
        for row in workload.rows()
    ]


@pytest.mark.parametrize("per_message", [1, 5])
def test_expected_rows_are_what_the_payloads_say_to_the_last_bit(tmp_path: Path, per_message: int) -> None:
    workload = generate(Shape("t", wells=7, rounds=10, per_message=per_message), tmp_path, FIRST_US)
    sent = list(packets(workload))
    assert [packet_id for packet_id, *_ in sent] == list(range(1, len(sent) + 1))
    assert rows_of([payload for *_, payload in sent]) == expected(workload)
    assert workload.whole.messages == 70 // per_message
    assert workload.whole.readings == 70


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    one, two = (generate(Shape("t", 5, 4), tmp_path / name, FIRST_US) for name in ("one", "two"))
    assert (one.folder / "packets.bin").read_bytes() == (two.folder / "packets.bin").read_bytes()


def test_rejects_and_duplicates_are_counted(tmp_path: Path) -> None:
    shape = Shape("t", wells=100, rounds=60, reject_every=10, duplicate_share=0.05)
    workload = generate(shape, tmp_path, FIRST_US)
    sent = list(packets(workload))
    broken = [payload for _, well, payload in sent if int(well[4:]) % 10 == 1]
    valid = [payload for _, well, payload in sent if int(well[4:]) % 10 != 1]
    whole = workload.whole
    assert whole.rejects == len(broken) == 600
    assert whole.readings == len(set(valid)) == 5_400
    assert whole.duplicates == len(valid) - len(set(valid)) > 100
    assert whole.items == whole.messages == len(sent)
    assert sorted(map(repr, rows_of(list(dict.fromkeys(valid))))) == sorted(map(repr, expected(workload)))


def test_a_cut_ends_with_its_last_reading(tmp_path: Path) -> None:
    shape = Shape("t", wells=100, rounds=20, reject_every=10, duplicate_share=0.05)
    workload = generate(shape, tmp_path, FIRST_US)
    mark = workload.cut(900)
    sent = list(packets(workload))[: mark.messages]
    readings = [(well, payload) for _, well, payload in sent if int(well[4:]) % 10 != 1]
    assert mark.messages >= 900
    assert len(set(readings)) == mark.readings
    assert (mark.last_well, mark.last_timestamp_us) == expected(workload)[mark.readings - 1][:2]


def test_a_workload_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="milliseconds"):
        generate(Shape("t", 5, 4), tmp_path, FIRST_US + 1)
    with pytest.raises(ValueError, match="multiple"):
        generate(Shape("t", 5, 4, per_message=3), tmp_path, FIRST_US)


class FakeBroker(threading.Thread):
    """Takes bytes and acknowledges every ``size`` of them, each PUBACK cut in two writes."""

    def __init__(self, sock: socket.socket, size: int, hang_up_after: int = 0) -> None:
        super().__init__(daemon=True)
        self.sock, self.size, self.hang_up_after = sock, size, hang_up_after
        self.received = b""

    def run(self) -> None:
        acked = 0
        while data := self.sock.recv(4_096):
            self.received += data
            while (acked + 1) * self.size <= len(self.received):
                self.sock.sendall(b"\x40\x02")
                self.sock.sendall(b"\x00\x01")
                acked += 1
                if acked == self.hang_up_after:
                    self.sock.close()
                    return


def test_the_publisher_sends_every_byte_and_counts_acknowledgements() -> None:
    messages, size = 9_000, 40
    data = os.urandom(messages * size)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        broker = FakeBroker(theirs, size)
        broker.start()
        offsets = np.arange(messages + 1, dtype=np.int64) * size
        log = publisher.publish(ours, memoryview(data), offsets, messages, rate=0.0)
    broker.join(5)
    assert broker.received == data
    sent = [count for _, count in log]
    assert sent == sorted(sent)
    assert sent[-1] == messages


def test_the_publisher_keeps_its_rate() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        FakeBroker(theirs, 10).start()
        log = publisher.publish(ours, memoryview(bytes(4_000)), np.arange(401) * 10, 400, rate=1_000.0)
    took = log[-1][0] - log[0][0]
    assert 0.3 < took < 2.0
    for when, count in log:
        assert count <= (when - log[0][0] + 0.1) * 1_000


def test_the_publisher_says_when_the_broker_hangs_up() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        FakeBroker(theirs, 10, hang_up_after=5).start()
        with pytest.raises((publisher.PublisherError, OSError)):
            publisher.publish(ours, memoryview(bytes(100_000)), np.arange(10_001) * 10, 10_000, rate=0.0)


def test_cpu_of_this_process_is_seen() -> None:
    before, machine = cpu_seconds(os.getpid()), Machine.now()
    total = 0
    while cpu_seconds(os.getpid()) - before < 0.05:
        total += sum(range(10_000))
    assert Machine.now().since(machine).busy >= 0.03
    assert rss_bytes(os.getpid()) > 10_000_000
    assert tree(os.getpid())[0] == os.getpid()


def test_growth_of_memory_is_between_the_second_and_the_last_quarter() -> None:
    watch = MemoryWatch(os.getpid())
    watch.samples = [0, 0, 100, 100, 150, 150, 160, 160]
    assert watch.growth_bytes == 60
    assert watch.peak_bytes == 160
    watch.samples = [5]
    assert watch.growth_bytes == 0


def run(case: str, who: str, number: int, seconds: float, consumer: float = 1.0, failure: str = "") -> Measured:
    cpu = {"consumer": consumer, "broker": 1.0, "database": 1.0, "publisher": 0.1, "other": 0.0, "steal": 0.0}
    return Measured(case, who, number, 1_000, 1_000, seconds=seconds, cpu=cpu, idle_share=0.1, failure=failure)


def test_ratios_are_taken_within_a_round() -> None:
    # In round 1 the machine was three times slower for both: the ratio does not see it.
    runs = [run("a", "esp-ingest", 0, 1.0), run("a", "mq-bridge 1.2.0", 0, 2.0)]
    runs += [run("a", "esp-ingest", 1, 3.0), run("a", "mq-bridge 1.2.0", 1, 6.0)]
    results = Results(runs, None)
    assert results.ratio("a", "esp-ingest", "mq-bridge 1.2.0", lambda one: one.rate) == pytest.approx(2.0)
    assert results.median("a", "esp-ingest", lambda one: one.rate) == pytest.approx((1_000 + 1_000 / 3) / 2)


def test_a_failed_run_counts_for_nothing_and_is_told() -> None:
    runs = [run("a", "esp-ingest", 0, 1.0), run("a", "esp-ingest", 1, 0.001, failure="3 rows where 5 are right")]
    results = Results(runs, None)
    assert results.median("a", "esp-ingest", lambda one: one.rate) == 1_000
    text = results.markdown()
    assert "1 of 2" in text
    assert "round 2 failed: 3 rows where 5 are right" in text


def test_the_slower_limit_is_the_one_that_counts() -> None:
    runs = [run("d", "esp-ingest", 0, 2.0), run("d", COPY, 0, 1.0), run("d", SUBSCRIBER, 0, 1.6)]
    target = next(target for target in Results(runs, None).targets() if "slower limit" in target.what)
    assert target.reached == pytest.approx(0.8)
    assert target.fine


def test_results_are_json_without_nan(tmp_path: Path) -> None:
    broken = run("a", "esp-ingest", 0, math.nan)
    Results([broken], None).save(tmp_path / "bench.json")
    saved = json.loads((tmp_path / "bench.json").read_text(), parse_constant=pytest.fail)
    assert saved["runs"][0]["seconds"] is None


def test_table_lines_up() -> None:
    lines = table(("a", "bcd"), [("long", "x")])
    assert lines == ["| a    | bcd |", "|------|-----|", "| long | x   |"]


def test_the_obvious_design_reads_one_and_many() -> None:
    received = datetime.fromisoformat("2026-01-01T00:00:00Z")
    one = b'{"well_id":"W","timestamp":"2026-01-01T00:00:00Z","pip":1.5}'
    assert len(baseline.rows_of("esp/W/telemetry", one, received)) == 1
    many = baseline.rows_of("esp/W/telemetry", b"[" + one + b"," + one + b"]", received)
    assert [row[1] for row in many] == ["W", "W"]
    assert many[0][3] == 1.5


class SlowThenBroken(http.server.BaseHTTPRequestHandler):
    """Answers /metrics with 503, the rest with 200 after 20 ms."""

    def do_GET(self) -> None:
        time.sleep(0.02)
        self.send_response(503 if self.path == "/metrics" else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_http_answers_are_timed_and_refusals_counted() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), SlowThenBroken) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with HttpWatch(server.server_address[1]) as watch:
            deadline = time.monotonic() + 10
            while not watch.seconds[BARE] and time.monotonic() < deadline:
                time.sleep(0.01)
        server.shutdown()
        thread.join()
    assert watch.seconds.keys() == {*PATHS, BARE}
    assert min(min(watch.seconds[path]) for path in PATHS) >= 0.02
    assert 0 < min(watch.seconds[BARE]) < min(watch.seconds["/metrics"]), "what answers at once is not slow as well"
    assert watch.refused == len(watch.seconds["/metrics"])


def test_the_report_pools_the_http_answers_of_all_rounds() -> None:
    runs = [run("a", "esp-ingest", number, 1.0) for number in range(2)]
    for number, one in enumerate(runs):
        one.http_seconds = {path: [0.001] * 50 + [0.02 + number] for path in PATHS} | {BARE: [9.0]}
    results = Results(runs, None)
    assert results.http_seconds("a", "/metrics").count(0.001) == 100
    rows = [[cell.strip() for cell in row.split("|")] for row in results.markdown().splitlines()]
    assert ["", "(a)", "/metrics", "1.0", "20.0", "1020.0", "102", "", ""] in rows
    assert ["", "(a)", BARE, "9000.0", "9000.0", "9000.0", "2", "", ""] in rows
    target = next(target for target in results.targets() if target.case == "a" and "HTTP" in target.what)
    assert target.reached == pytest.approx(20.0)
    assert not target.fine
    assert quantile([], 0.5) is None


def test_the_steady_part_stands_beside_the_whole_run() -> None:
    measured = run("c", "esp-ingest", 0, 60.0)
    measured.committed_seconds, measured.steady_seconds = (0.05, 1.1), (0.05, 0.1)
    text = Results([measured], None).markdown()
    assert "* (c) esp-ingest, received → committed: p50 50 ms, p99 1100 ms" in text
    assert (
        "* (c) esp-ingest, received → committed, without the first 5 readings of each well, in which it is new to the "
        "rules: p50 50 ms, p99 100 ms"
    ) in text


class NoDatabase:
    """Takes every statement and does nothing; nobody answers at its address."""

    dsn = "postgresql://127.0.0.1:1/x?connect_timeout=1"

    def run(self, statement: str) -> None:
        pass


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, "no lifecycle run ended"), (60.0, "the lifecycle ended with 1")],
    ids=["short", "failed"],
)
def test_the_daemon_beside_the_archive_counts_only_if_a_whole_lifecycle_run_ended(seconds: float, said: str) -> None:
    lifecycle = Archiving()
    deadline = time.monotonic() + seconds

    def measure() -> None:
        with lifecycle.on(cast(Database, NoDatabase())):
            while not lifecycle.failure and time.monotonic() < deadline:
                time.sleep(0.05)

    with pytest.raises(Failed, match=said):
        measure()
    assert lifecycle.ended == 0
