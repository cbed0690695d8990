"""The daemon alone and beside something else that uses the same database, in turns."""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tests.bench import runs
from tests.bench.cases import Case
from tests.bench.competitors import DAEMON
from tests.bench.servers import Reference, start_postgres
from tests.bench.workload import generate
from tests.support.databases import Database


def in_turns(
    case: Case, rounds: int, around: Callable[[Database], AbstractContextManager[None]]
) -> tuple[list[runs.Measured], list[runs.Measured]]:
    """(alone, beside what ``around`` does), one of each a round, which begins with the one or the other. Every run
    proves that nothing was lost. Raises runs.Failed."""
    found: tuple[list[runs.Measured], list[runs.Measured]] = ([], [])
    with tempfile.TemporaryDirectory(prefix="esp-bench-") as name, start_postgres() as server:
        os.environ["ESP_INGEST_BENCH_FOLDER"] = name
        folder = Path(name)
        folder.chmod(0o755)
        workload = generate(case.shape, folder / "workload", int(time.time() - case.shape.rounds) * 1_000_000)
        reference = Reference(server)
        for number in range(rounds):
            for is_beside in (False, True) if number % 2 == 0 else (True, False):
                beside = around if is_beside else None
                measured = runs.stream(
                    server, reference, case.key, DAEMON, workload, number, rate=case.rate, beside=beside
                )
                found[is_beside].append(measured)
                waits = (measured.committed_seconds, measured.steady_seconds)
                whole, steady = ((each or (0.0, 0.0))[1] * 1e3 for each in waits)
                label = "beside" if is_beside else "alone"
                sys.stderr.write(
                    f"    round {number + 1}, {label}: {measured.rate:,.0f}/s, p99 {whole:.0f} ms, "
                    f"{steady:.0f} ms of the steady part\n"
                )
    return found
