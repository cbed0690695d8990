"""The longer parts of the scale bench: many wells, many rows, many members. Each yields the lines of its table."""

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tests.bench import runs
from tests.bench.competitors import DAEMON, Competitor
from tests.bench.processes import cpu_seconds, rss_bytes
from tests.bench.runs import PublisherProcess
from tests.bench.servers import OF_A_RUN, Broker, Reference, fresh_database, start_postgres
from tests.bench.workload import Mark, Shape, Workload, generate
from tests.support.databases import Database, NativeTimescale

Say = Callable[[str], None]
RATE = 10_000.0
_CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu"))  # version 2, version 1
_PERIOD_US = 100_000
_LOAD = (
    "INSERT INTO esp_telemetry (well_id, timestamp, received_at, flow_rate, pip, motor_current, motor_temp, vibration, "
    "vsd_frequency, gor) SELECT 'OLD-' || well, at, at, 900.5, 1900.5, 50.25, 200.5, 0.25, 60.5, 300.5 "
    "FROM generate_series(1, 5000) well, "
    "generate_series(now() - interval '7 hours', now() - interval '7 hours' + {seconds} * interval '1 second', "
    "interval '1 second') at"
)


def _now_us() -> int:
    return time.time_ns() // 1_000_000 * 1_000


def wells(options: argparse.Namespace, folder: Path, say: Say) -> Iterator[str]:
    """One rate from more and more wells; then the daemon is started again over what it knew. The first readings of a
    well cost many times what later ones do (runs.NEW_ROUNDS), so CPU is shown without them as well."""
    yield (
        "| wells, 10 000 readings/s in all | consumer µs a reading | the same, steady part | p99 ms | p99 ms, steady "
        "part | RSS MB | B a well | ready again s |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    first: tuple[int, int] | None = None
    for count in (1_000, 10_000) if options.quick else (1_000, 10_000, 100_000):
        rounds = max(int(RATE) * (15 if options.quick else 40) // count, 12)
        first_us = _now_us() - (rounds + 10) * 1_000_000  # fewer wells take their seconds faster than the clock does
        workload = generate(Shape("wells", wells=count, rounds=rounds), folder / f"wells-{count}", first_us)
        with start_postgres() as server:
            found = _many_wells(server, workload, count)
        rss = found.rss_bytes
        first = first or (count, rss)
        each = f"{(rss - first[1]) / (count - first[0]):,.0f}" if count > first[0] else "–"
        costs = f"{found.cpu_us:.1f} | {found.steady_cpu_us:.1f}"
        waits = f"{found.p99_seconds * 1e3:.0f} | {found.steady_p99_seconds * 1e3:.0f}"
        row = f"| {count:,} | {costs} | {waits} | {rss / 1e6:.0f} | {each} | {found.ready_seconds:.1f} |"
        say(f"wells: {row}")
        yield row


class _ManyWells(NamedTuple):
    """CPU of the daemon in µs a reading, of the whole run and of its steady part (runs.STEADY)."""

    cpu_us: float
    steady_cpu_us: float
    p99_seconds: float
    steady_p99_seconds: float
    rss_bytes: int
    ready_seconds: float  # after a restart


def _many_wells(server: NativeTimescale, workload: Workload, count: int) -> _ManyWells:
    """The rules have room for all ``count`` wells."""
    mark, new = workload.whole, workload.marks[runs.NEW_ROUNDS - 1]
    daemon = replace(DAEMON, settings=(("ESP_INGEST_DIAGNOSTICS__MAX_WELLS", str(count + 1)),))
    with runs.parts(server, daemon) as (broker, database):
        with runs.running(daemon, broker, database) as process, ThreadPoolExecutor(1) as beside:
            runs.await_row_of_a_probe(broker, database, process)
            began = cpu_seconds(process.pid)
            with PublisherProcess(workload, mark, broker, RATE) as publisher:
                at_steady = beside.submit(_cpu_when_stored, database, new, process, daemon)
                publisher.go()
                runs.await_last(database, mark, process, daemon)
            ended = cpu_seconds(process.pid)
            rss = rss_bytes(process.pid)
        restarted = time.monotonic()
        with runs.running(daemon, broker, database):
            _await_ready(broker.http_port)
            ready = time.monotonic() - restarted
        return _ManyWells(
            (ended - began) * 1e6 / mark.readings,
            (ended - at_steady.result()) * 1e6 / (mark.readings - new.readings),
            runs.latencies(database)[1],
            runs.steady_latencies(database, workload)[1],
            rss,
            ready,
        )


def _cpu_when_stored(database: Database, mark: Mark, process: subprocess.Popen[bytes], competitor: Competitor) -> float:
    """CPU seconds of ``process`` at the moment at which the last reading of ``mark`` is stored; waits for it."""
    runs.await_last(database, mark, process, competitor)
    return cpu_seconds(process.pid)


def _await_ready(port: int) -> None:
    deadline = time.monotonic() + 120.0
    while time.monotonic() < deadline:
        url = f"http://127.0.0.1:{port}/health/ready"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise runs.Failed("not ready in 120 s after a restart")


def rows(options: argparse.Namespace, folder: Path, say: Say) -> Iterator[str]:
    """As fast as the broker takes it, into tables that hold few and many rows, in turn: both servers stand all the
    time, as only runs within one round can be compared on a machine that changes its speed."""
    yield "| round | rows before | items/s | consumer µs | database µs | load before |"
    yield "|---|---|---|---|---|---|"
    counts = (0, 10**6) if options.quick else (10**6, 10**8)
    rates: dict[int, list[float]] = {count: [] for count in counts}
    with contextlib.ExitStack() as stack:
        servers = {count: stack.enter_context(start_postgres()) for count in counts}
        references = {count: Reference(server) for count, server in servers.items()}
        databases = {count: _loaded(server, count, say) for count, server in servers.items()}
        seconds = 100 if options.quick else 500
        first_us = _now_us() - 3_600_000_000
        for number in range(options.runs):
            workload = generate(Shape("rows", wells=1_000, rounds=seconds), folder / f"rows-{number}", first_us)
            first_us += (seconds + 1) * 1_000_000  # later than all that a database knows of its wells
            for count in counts if number % 2 == 0 else counts[::-1]:
                server, reference, database = servers[count], references[count], databases[count]
                found = runs.stream(server, reference, "rows", DAEMON, workload, number, into=database)
                database.run(f"DELETE FROM esp_telemetry WHERE {OF_A_RUN}")
                database.run("CHECKPOINT")
                rates[count].append(found.rate)
                parts = f"{found.cpu_us('consumer'):.1f} | {found.cpu_us('database'):.1f}"
                row = f"| {number + 1} | {count:,} | {found.rate:,.0f} | {parts} | {found.load_before:.1f} |"
                say(f"rows: {row}")
                yield row
    few, many = (rates[count] for count in counts)
    ratios = sorted(more / less for less, more in zip(few, many, strict=True))
    yield ""
    yield (
        f"Rate with {counts[1]:,} rows ÷ rate with {counts[0]:,} in the same round: median "
        f"{statistics.median(ratios):.2f}, {ratios[0]:.2f}–{ratios[-1]:.2f}"
    )


def _loaded(server: NativeTimescale, rows: int, say: Say) -> Database:
    """A database with so many rows of other wells, of the hours before, and nothing that the server still has to do for
    them."""
    began = time.monotonic()
    database = fresh_database(server, received_at_default=False)
    if rows:
        database.run(_LOAD.format(seconds=rows // 5_000 - 1))
        database.run("VACUUM (FREEZE, ANALYZE) esp_telemetry")
        database.run("CHECKPOINT")
    say(f"rows: {rows:,} loaded in {time.monotonic() - began:.0f} s")
    return database


def members(options: argparse.Namespace, folder: Path, say: Say) -> Iterator[str]:
    """1, 2 and 4 daemons of one share group, each with a share of a core of its own."""
    share, per_message = options.core_share, options.per_message
    title = f"members, {share:g} of a core each, {per_message} a message"
    yield f"| {title} | readings/s | ÷ one member | CPU µs a reading, each | load before |"
    yield "|---|---|---|---|---|"
    one = 0.0
    for count in (1, 2, 4):
        rounds = 100 if options.quick else 300
        if per_message > 1:
            rounds *= 3  # as long, since each costs less
        shape = Shape("members", wells=1_000, rounds=rounds, per_message=per_message)
        with start_postgres() as server:
            first_us = _now_us() - (rounds + 10) * 1_000_000
            workload = generate(shape, folder / f"members-{count}", first_us)
            found = _shared(server, workload, count, share)
        one = one or found[0]
        each = ", ".join(f"{cost:.1f}" for cost in found[1])
        row = f"| {count} | {found[0]:,.0f} | {found[0] / one:.2f} | {each} | {os.getloadavg()[0]:.1f} |"
        say(f"members: {row}")
        yield row


def _shared(server: NativeTimescale, workload: Workload, count: int, share: float) -> tuple[float, list[float]]:
    """(readings a second, CPU µs a reading of each member). The limits are set once all are ready, and the members are
    held while everything is published and dealt: the clock begins when they go on, and start-up and publishing, which
    cost this machine's cores as well, are not in it."""
    mark = workload.whole
    with contextlib.ExitStack() as stack:
        broker, database = stack.enter_context(runs.parts(server, DAEMON))
        processes = []
        for number in range(count):
            member = _member(broker, number)
            process = stack.enter_context(runs.running(member, broker, database))
            if not number:
                runs.await_row_of_a_probe(broker, database, process)
            processes.append(process)
        for number in range(count):
            _await_ready(broker.http_port + number)
        for process in processes:
            stack.enter_context(limited(process.pid, share))
            process.send_signal(signal.SIGSTOP)
        try:
            with PublisherProcess(workload, mark, broker, 0.0) as publisher:
                publisher.go()
            before = [cpu_seconds(process.pid) for process in processes]
        finally:
            began = time.time()
            for process in processes:
                process.send_signal(signal.SIGCONT)
        with database.connect() as connection:
            deadline = time.monotonic() + 300
            while (stored := runs.count(connection)) < mark.readings:
                if time.monotonic() > deadline:
                    raise runs.Failed(f"stored {stored} of {mark.readings}")
                time.sleep(0.2)
        seconds = runs.last_commit(database) - began
        spent = [cpu_seconds(process.pid) - used for process, used in zip(processes, before, strict=True)]
        return mark.readings / seconds, [each * 1e6 * count / mark.readings for each in spent]


def _member(broker: Broker, number: int) -> Competitor:
    settings = {
        "ESP_INGEST_MQTT__SHARE_GROUP": "bench",
        "ESP_INGEST_MQTT__CLIENT_ID": f"member-{number}",
        "ESP_INGEST_HTTP__PORT": str(broker.http_port + number),
        "ESP_INGEST_SPOOL__PATH": str(broker.folder / f"spool-{number}"),
    }
    return replace(DAEMON, name=f"member {number}", settings=tuple(settings.items()))


@contextlib.contextmanager
def limited(pid: int, share: float) -> Iterator[None]:
    """``pid`` may use ``share`` of a core. Needs root, and cgroups of either version with the cpu controller."""
    root = next((root for root in _CGROUPS if _has_cpu(root)), None)
    if root is None:
        raise runs.Failed("no cgroup with a cpu controller can be written here")
    group = root / f"esp-scale-{pid}"
    group.mkdir()
    try:
        quota = round(share * _PERIOD_US)
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
        else:
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        with contextlib.suppress(OSError):
            (root / "cgroup.procs").write_text(str(pid))
        group.rmdir()


def _has_cpu(root: Path) -> bool:
    """Version 2 hands the controller down; version 1 has a folder of its own for it."""
    control = root / "cgroup.subtree_control"
    if control.exists():
        return "cpu" in control.read_text().split()
    return root.name == "cpu" and (root / "cgroup.procs").exists()
