"""How the daemon grows: with members, with wells, with rows, and how long a reading waits. One table a part.

    python -m tests.bench.scale [--part latency]… [--runs 3] [--quick] [--against FOLDER] [--output FILE]

Parts: ``latency`` (10 000 wells at 1 Hz, received → committed), ``wells`` (one rate, more and more wells; memory a
well; restart), ``rows`` (the rate as the table grows), ``members`` (a share group whose members have a share of a core
each).

``--against`` is another checkout, whose program runs in turn with this one: only ratios within a round say anything on
a machine that others use too. The machine's load before a run stands in its row.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.bench import runs, scale_parts
from tests.bench.competitors import DAEMON, MQ_BRIDGE, Competitor
from tests.bench.runs import Measured
from tests.bench.servers import Reference, start_postgres
from tests.bench.workload import Shape, generate

Say = Callable[[str], None]


def latency(options: argparse.Namespace, folder: Path, say: Say) -> Iterator[str]:
    """A fleet of 10 000 wells at 1 Hz, with the program of before, with this one and with mq-bridge, in turn."""
    seconds = 15 if options.quick else 60
    shape = Shape("latency", wells=10_000, rounds=seconds)
    before = [replace(DAEMON, name="before", folder=options.against)] if options.against else []
    found: dict[str, list[Measured]] = {}
    with start_postgres() as server:
        reference = Reference(server)
        for number in range(options.runs):
            first_us = time.time_ns() // 1_000_000 * 1_000
            workload = generate(shape, folder / f"latency-{number}", first_us)
            for competitor in (*before, DAEMON, MQ_BRIDGE):
                measured = runs.stream(server, reference, "latency", competitor, workload, number, rate=10_000)
                found.setdefault(competitor.name, []).append(measured)
                say(f"latency, round {number + 1}: {_latency_row(competitor, [measured])}")
    yield "| 10 000 wells × 1 Hz | p50 ms | p99 ms | consumer µs a reading | database µs | load before | runs |"
    yield "|---|---|---|---|---|---|---|"
    for name, measured_runs in found.items():
        competitor = next(each for each in (*before, DAEMON, MQ_BRIDGE) if each.name == name)
        yield _latency_row(competitor, measured_runs)
    if before:
        pairs = zip(found["before"], found[DAEMON.name], strict=True)
        ratio = statistics.median(now.cpu_us("consumer") / then.cpu_us("consumer") for then, now in pairs)
        yield ""
        yield f"CPU a reading, this program ÷ the one before, median of the rounds: {ratio:.2f}"


def _latency_row(competitor: Competitor, measured: list[Measured]) -> str:
    """Received → committed, of mq-bridge published → committed: it writes no received_at."""
    waits = [each.committed_seconds or each.end_to_end_seconds or (0.0, 0.0) for each in measured]
    p50, p99 = (statistics.median(wait[at] * 1e3 for wait in waits) for at in (0, 1))
    consumer, database = (
        statistics.median(each.cpu_us(part) for each in measured) for part in ("consumer", "database")
    )
    load = statistics.median(each.load_before for each in measured)
    cells = (f"{p50:.0f}", f"{p99:.0f}", f"{consumer:.1f}", f"{database:.1f}", f"{load:.1f}", str(len(measured)))
    return f"| {competitor.name} | {' | '.join(cells)} |"


PARTS = {
    "latency": latency,
    "members": scale_parts.members,
    "wells": scale_parts.wells,
    "rows": scale_parts.rows,
}


def main() -> int:
    """Run the parts that were asked for, and print their tables. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("--part", action="append", choices=[*PARTS], help="repeatable; default all")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="shorter, and fewer sizes")
    parser.add_argument("--core-share", type=float, default=0.2, help="of each member, in cores")
    parser.add_argument("--per-message", type=int, default=1, help="readings a message that members get, 300 at most")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, to be measured in turn")
    parser.add_argument("--output", type=Path, help="append the tables to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="esp-scale-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the broker runs as a user of its own
        os.environ["ESP_INGEST_BENCH_FOLDER"] = name
        for part in options.part or PARTS:
            lines = "\n".join(PARTS[part](options, folder, _say)) + "\n\n"
            sys.stdout.write(lines)
            sys.stdout.flush()
            if options.output:
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(lines)
    return 0


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
