"""One run of one competitor on one input: set up, measure, prove that nothing was lost or bent, tear down."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psycopg

from esp_ingest.config.settings import BatchSettings
from tests.bench.competitors import Competitor
from tests.bench.probes import HttpWatch
from tests.bench.processes import Machine, MemoryWatch, cpu_seconds
from tests.bench.publisher import connect
from tests.bench.servers import OF_A_RUN, PUBLISHER, Broker, Reference, copy_rows, fingerprint, fresh_database
from tests.bench.workload import Mark, Workload, encode_length
from tests.support.brokers import DAEMON
from tests.support.databases import Database, NativeTimescale

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ROOT = Path(__file__).parent.parent.parent
_READY_SECONDS = 60.0
_SETTLE_SECONDS = 0.5  # for the last acknowledgements
_COPY_ROWS = BatchSettings().max_rows
_PROBED = "SELECT 1 FROM esp_telemetry WHERE well_id = 'PROBE' AND timestamp >= %s LIMIT 1"
_LATENCIES = (
    "SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY "
    "extract(epoch FROM pg_xact_commit_timestamp(xmin) - received_at)) FROM esp_telemetry "
    f"WHERE {OF_A_RUN} AND timestamp >= '{{since}}'"
)
# In its first readings a well is new to the rules, which costs the daemon many times what a later one does. In a minute
# of 10 000 wells at 1 Hz these and the queue behind them are more than one reading in a hundred, so the p99 of the
# whole run would be theirs alone.
NEW_ROUNDS = 5  # readings of each well that the steady part leaves out: 5 s at 1 Hz
STEADY = f"without the first {NEW_ROUNDS} readings of each well, in which it is new to the rules"
_COMMITS = (
    "SELECT substr(well_id, 5)::int, (extract(epoch FROM timestamp) * 1000000)::bigint, "
    "(extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint FROM esp_telemetry "
    f"WHERE {OF_A_RUN}"
)


class Failed(Exception):
    """The run does not count: something was lost, bent, or never ended. The message says what."""


@dataclass(slots=True)
class Measured:
    """A run. ``cpu`` in seconds by part; ``other`` is the machine's busy time that none of the parts used."""

    case: str
    competitor: str
    round: int
    items: int
    readings: int
    seconds: float = math.nan
    cpu: dict[str, float] = field(default_factory=dict)
    idle_share: float = math.nan
    load_before: float = math.nan
    rss_peak_bytes: int = 0
    rss_growth_bytes: int = 0
    published_per_second: float = math.nan
    committed_seconds: tuple[float, float] | None = None  # received → committed, p50 and p99
    steady_seconds: tuple[float, float] | None = None  # the same without the first NEW_ROUNDS readings of each well
    end_to_end_seconds: tuple[float, float] | None = None  # published → committed, p50 and p99
    http_seconds: dict[str, list[float]] = field(default_factory=dict)  # of each answer, by path
    http_refused: int = 0
    failure: str = ""

    @property
    def rate(self) -> float:
        """Items a second: readings, rejects and duplicates alike have to be decided on."""
        return self.items / self.seconds

    def cpu_us(self, part: str) -> float:
        """CPU microseconds of ``part`` an item."""
        return self.cpu.get(part, math.nan) * 1e6 / self.items


@dataclass(slots=True)
class Meter:
    """CPU of the parts between two moments."""

    pids: dict[str, int]
    _before: dict[str, float] = field(default_factory=dict)
    _machine: Machine = field(default_factory=Machine.now)

    def start(self) -> None:
        self._before = {part: cpu_seconds(pid) for part, pid in self.pids.items()}
        self._machine = Machine.now()

    def stop(self, measured: Measured, publisher_seconds: float) -> None:
        """Idle time is read at once, CPU once the last acknowledgements are through."""
        at_end = Machine.now().since(self._machine)
        time.sleep(_SETTLE_SECONDS)
        machine = Machine.now().since(self._machine)
        parts = {part: cpu_seconds(pid) - self._before.get(part, 0.0) for part, pid in self.pids.items()}
        parts["publisher"] = publisher_seconds
        measured.cpu = parts | {"other": machine.busy - sum(parts.values()), "steal": machine.steal}
        measured.idle_share = at_end.idle / max(at_end.busy + at_end.idle + at_end.steal, 1e-9)


def stream(
    server: NativeTimescale,
    reference: Reference,
    case: str,
    competitor: Competitor,
    workload: Workload,
    number: int,
    rate: float = 0.0,
    beside: Callable[[Database], AbstractContextManager[None]] | None = None,
    into: Database | None = None,
) -> Measured:
    """Publisher and consumer side by side. The clock runs from the first byte published to the last commit. ``beside``
    is what else uses the database meanwhile; ``into`` is a database to write to, in place of a new one."""
    mark = _mark_for(competitor, workload)
    measured = Measured(case, competitor.name, number, mark.items, mark.readings, load_before=os.getloadavg()[0])
    with parts(server, competitor, into) as (broker, database), running(competitor, broker, database) as process:
        await_row_of_a_probe(broker, database, process)
        http = HttpWatch(broker.http_port if competitor.answers_http else 0)
        others = beside(database) if beside else contextlib.nullcontext()
        with (
            PublisherProcess(workload, mark, broker, rate) as publisher,
            others,
            MemoryWatch(process.pid) as memory,
            http,
        ):
            meter = Meter({"consumer": process.pid, "broker": broker.pid, "database": server.pid})
            meter.start()
            report = publisher.go()
            await_last(database, mark, process, competitor)
            http.stop()
            meter.stop(measured, report.cpu_seconds)
        measured.http_seconds, measured.http_refused = http.seconds, http.refused
        measured.rss_peak_bytes, measured.rss_growth_bytes = memory.peak_bytes, memory.growth_bytes
        measured.published_per_second = mark.messages / (report.ended - report.began)
        measured.seconds = last_commit(database) - report.began
        _verify(database, reference, competitor, workload, mark)
        _note_latencies(measured, database, competitor, workload, publisher.log)
    return measured


def backlog(
    server: NativeTimescale, reference: Reference, case: str, competitor: Competitor, workload: Workload, number: int
) -> Measured:
    """Everything is queued at the broker while the consumer is away; the clock runs from its start to the last commit,
    so its start-up counts."""
    mark = _mark_for(competitor, workload)
    measured = Measured(case, competitor.name, number, mark.items, mark.readings, load_before=os.getloadavg()[0])
    with parts(server, competitor) as (broker, database):
        with running(competitor, broker, database) as process:  # leaves its session at the broker
            await_row_of_a_probe(broker, database, process)
        with PublisherProcess(workload, mark, broker, 0.0) as publisher:
            report = publisher.go()
        measured.published_per_second = mark.messages / (report.ended - report.began)
        meter = Meter({"broker": broker.pid, "database": server.pid})
        meter.start()
        began = time.time()
        with running(competitor, broker, database) as process, MemoryWatch(process.pid) as memory:
            meter.pids["consumer"] = process.pid
            await_last(database, mark, process, competitor)
            meter.stop(measured, 0.0)
        measured.rss_peak_bytes, measured.rss_growth_bytes = memory.peak_bytes, memory.growth_bytes
        measured.seconds = last_commit(database) - began
        _verify(database, reference, competitor, workload, mark)
    return measured


def copy_limit(server: NativeTimescale, case: str, workload: Workload, number: int) -> Measured:
    """The database alone: one connection, binary COPY of rows encoded beforehand, as many a transaction as the daemon
    writes at most."""
    rows = workload.whole.readings
    measured = Measured(case, "limit: binary COPY", number, rows, rows, load_before=os.getloadavg()[0])
    database = fresh_database(server, received_at_default=False)
    try:
        with database.connect() as connection:
            connection.execute(
                "INSERT INTO esp_telemetry (well_id, timestamp, received_at) VALUES ('PROBE', now(), now())"
            )  # the chunk and the plan are there before the clock starts, as for the others
            meter = Meter({"database": server.pid})
            meter.start()
            own, began = time.process_time(), time.monotonic()
            copy_rows(connection, "esp_telemetry", workload, rows, _COPY_ROWS)
            measured.seconds = time.monotonic() - began
            meter.stop(measured, 0.0)
            measured.cpu["consumer"] = time.process_time() - own
            measured.cpu["other"] -= measured.cpu["consumer"]
        if fingerprint(database)[0] != rows:
            raise Failed("COPY stored another number of rows")
    finally:
        server.drop_database(database)
    return measured


def subscriber_limit(folder: Path, case: str, workload: Workload, number: int) -> Measured:
    """The broker alone: mosquitto_sub drains the queue of its session to /dev/null, acknowledging each message."""
    mark = workload.whole
    measured = Measured(case, "limit: mosquitto_sub", number, mark.items, mark.readings, load_before=os.getloadavg()[0])
    with Broker(folder) as broker:
        session = [
            "mosquitto_sub",
            "-h",
            "127.0.0.1",
            "-p",
            str(broker.port),
            "-V",
            "5",
            "-c",
            "-i",
            "limit",
            "-q",
            "1",
        ]
        session += [
            "-u",
            DAEMON,
            "-P",
            broker.password_of(DAEMON),
            "-x",
            "3600",
            "-D",
            "connect",
            "receive-maximum",
            "20000",
            "-t",
            "esp/+/telemetry",
        ]
        subprocess.run([*session, "-E"], check=True, timeout=30)
        with PublisherProcess(workload, mark, broker, 0.0) as publisher:
            report = publisher.go()
        measured.published_per_second = mark.messages / (report.ended - report.began)
        meter = Meter({"broker": broker.pid})
        meter.start()
        before, began = os.times(), time.monotonic()
        count = ["-C", str(mark.messages)]
        subprocess.run([*session, *count], check=True, stdout=subprocess.DEVNULL, timeout=600)
        measured.seconds = time.monotonic() - began
        meter.stop(measured, 0.0)
        after = os.times()
        measured.cpu["consumer"] = (
            after.children_user + after.children_system - before.children_user - before.children_system
        )
        measured.cpu["other"] -= measured.cpu["consumer"]
    return measured


def _mark_for(competitor: Competitor, workload: Workload) -> Mark:
    return workload.cut(math.ceil(workload.whole.messages * competitor.share))


@contextlib.contextmanager
def parts(
    server: NativeTimescale, competitor: Competitor, into: Database | None = None
) -> Iterator[tuple[Broker, Database]]:
    """A broker of its own, and ``into``, which is kept, or else a new database, which is dropped."""
    database = into or fresh_database(server, received_at_default=not competitor.writes_received_at)
    try:
        with Broker(_scratch()) as broker:
            yield broker, database
    finally:
        if not into:
            server.drop_database(database)


def _scratch() -> Path:
    folder = Path(os.environ.get("ESP_INGEST_BENCH_FOLDER", "/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def running(competitor: Competitor, broker: Broker, database: Database) -> Iterator[subprocess.Popen[bytes]]:
    """The consumer, until the block ends; then it is asked to stop."""
    process = competitor.start(broker, database)
    try:
        yield process
    except Failed as failure:
        log = (broker.folder / f"{competitor.kind}.log").read_text(errors="replace")
        raise Failed(f"{failure}; its log ends: {log[-600:]}") from None
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def await_row_of_a_probe(broker: Broker, database: Database, process: subprocess.Popen[bytes]) -> None:
    """Wait until a reading published now and then arrives in the table: session, subscription and COPY all stand."""
    deadline = time.monotonic() + _READY_SECONDS
    began = datetime.now(UTC) - timedelta(seconds=1)  # payloads carry whole milliseconds
    with (
        connect(broker.port, "bench-probe", PUBLISHER, broker.password_of(PUBLISHER)) as sock,
        database.connect() as connection,
    ):
        for number in range(10_000):
            moment = datetime.now(UTC).isoformat(timespec="milliseconds")
            payload = b'{"well_id":"PROBE","timestamp":"%b","flow_rate":900.5}' % moment.encode()
            body = b"\x00\x13esp/PROBE/telemetry" + (number + 1).to_bytes(2, "big") + payload
            sock.sendall(b"\x32" + encode_length(len(body)) + body)
            for _ in range(20):
                time.sleep(0.05)
                if connection.execute(_PROBED, (began,)).fetchone():
                    time.sleep(1.0)  # earlier probes, which only a persistent session would hold, come in meanwhile
                    return
                if process.poll() is not None:
                    raise Failed(f"ended with {process.returncode} before it stored anything")
            if time.monotonic() > deadline:
                raise Failed(f"stored nothing in {_READY_SECONDS:.0f} s")


@dataclass(frozen=True, slots=True)
class Published:
    began: float
    ended: float
    messages: int
    cpu_seconds: float


class PublisherProcess:
    """The publisher process, connected and waiting for the start."""

    def __init__(self, workload: Workload, mark: Mark, broker: Broker, rate: float) -> None:
        self.log = broker.folder / "published.npy"
        command = [sys.executable, "-m", "tests.bench.publisher", str(workload.folder), "--port", str(broker.port)]
        command += ["--user", PUBLISHER, "--password", broker.password_of(PUBLISHER)]
        command += ["--messages", str(mark.messages), "--rate", str(rate), "--log", str(self.log)]
        self._process = subprocess.Popen(
            command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def go(self) -> Published:
        """Publish; returns when the broker has acknowledged everything."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            raise Failed(f"publisher: {self._process.stderr.read()[-500:]}")
        return Published(**json.loads(line))

    def __enter__(self) -> "PublisherProcess":
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            assert self._process.stderr is not None
            raise Failed(f"publisher: {self._process.stderr.read()[-500:]}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.communicate()


def await_last(database: Database, mark: Mark, process: subprocess.Popen[bytes], competitor: Competitor) -> None:
    """Until the last reading published is stored, asked by primary key, which costs the database next to nothing; with
    several workers, which finish in any order, until the count is right."""
    patience = max(60.0, mark.items / 2_000) if competitor.settles_bad_input or not mark.rejects else 15.0
    deadline = time.monotonic() + patience
    moment = _EPOCH + timedelta(microseconds=mark.last_timestamp_us)
    with database.connect() as connection:
        while not _there(connection, mark.last_well, moment):
            if process.poll() is not None:
                raise Failed(f"ended with {process.returncode}")
            if time.monotonic() > deadline:
                raise Failed(f"the last reading is not there; stored {count(connection)} of {mark.readings}")
            time.sleep(0.05)
        while competitor.workers > 1 and (stored := count(connection)) < mark.readings:
            if time.monotonic() > deadline:
                raise Failed(f"stored {stored} of {mark.readings}")
            time.sleep(0.1)


def _there(connection: psycopg.Connection[tuple[object, ...]], well: str, moment: datetime) -> bool:
    query = "SELECT 1 FROM esp_telemetry WHERE well_id = %s AND timestamp = %s"
    return connection.execute(query, (well, moment)).fetchone() is not None


def count(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    found = connection.execute(f"SELECT count(*) FROM esp_telemetry WHERE {OF_A_RUN}".encode()).fetchone()
    assert found is not None
    return int(str(found[0]))


def last_commit(database: Database) -> float:
    query = f"SELECT max(extract(epoch FROM pg_xact_commit_timestamp(xmin))) FROM esp_telemetry WHERE {OF_A_RUN}"
    return float(database.value(query))


def _verify(database: Database, reference: Reference, competitor: Competitor, workload: Workload, mark: Mark) -> None:
    """Every reading once, every value to the last bit; and for the daemon every reject, once."""
    stored, expected = fingerprint(database), reference.fingerprint(workload, mark.readings)
    if stored[0] != expected[0]:
        raise Failed(f"{stored[0]} rows where {expected[0]} are right")
    if stored[1] != expected[1]:
        raise Failed("the number of rows is right, their contents are not")
    if competitor.kind == "daemon":
        rejects = int(database.value("SELECT count(*) FROM ingest_rejects"))
        if rejects != mark.rejects:
            raise Failed(f"{rejects} rejects where {mark.rejects} are right")


def latencies(database: Database, since: str = "-infinity") -> tuple[float, float]:
    """Received → committed, p50 and p99, in seconds, of the readings whose timestamp is not before ``since``."""
    p50, p99 = database.value(_LATENCIES.format(since=since))
    return float(p50), float(p99)


def steady_latencies(database: Database, workload: Workload) -> tuple[float, float]:
    """The same without the first NEW_ROUNDS readings of each well."""
    steady = _EPOCH + timedelta(microseconds=workload.first_us, seconds=NEW_ROUNDS)
    return latencies(database, steady.isoformat())


def _note_latencies(
    measured: Measured, database: Database, competitor: Competitor, workload: Workload, log: Path
) -> None:
    if competitor.writes_received_at:
        measured.committed_seconds = latencies(database)
        if workload.shape.rounds > NEW_ROUNDS:
            measured.steady_seconds = steady_latencies(database, workload)
    shape = workload.shape
    if shape.per_message > 1 or shape.reject_every or shape.duplicate_share:
        return  # a row's message is not known from its well and time alone
    table = np.array(database.all(_COMMITS), dtype=np.int64)
    message = (table[:, 1] - workload.first_us) // 1_000_000 * shape.wells + table[:, 0]
    sends = np.load(log)
    sent_at = sends[np.searchsorted(sends[:, 1], message, side="right"), 0]
    p50, p99 = np.quantile(table[:, 2] / 1e6 - sent_at, (0.5, 0.99))
    measured.end_to_end_seconds = (float(p50), float(p99))
