"""The cases of the bench, and how long each is."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench import runs
from tests.bench.competitors import BASELINE, DAEMON, MQ_BRIDGE, TWO_WORKERS, Competitor
from tests.bench.runs import Measured
from tests.bench.servers import Reference, start_postgres
from tests.bench.workload import Shape, Workload, generate
from tests.support.databases import NativeTimescale


@dataclass(frozen=True, slots=True)
class Case:
    """``rate`` messages a second, 0 for as fast as the broker takes them. ``backlog``: queued beforehand.
    ``peers_once``: mq-bridge runs in the first round only, where a case is long and its target no ratio to a peer, or
    where it fails."""

    key: str
    title: str
    shape: Shape
    quick: Shape
    competitors: tuple[Competitor, ...]
    rate: float = 0.0
    backlog: bool = False
    limits: tuple[str, ...] = ()
    peers_once: bool = False


CASES = (
    Case(
        "a",
        "one reading a message, as fast as the broker takes them",
        Shape("a", wells=1_000, rounds=250),
        Shape("a", wells=1_000, rounds=100),
        (DAEMON, MQ_BRIDGE, BASELINE),
        limits=("copy", "subscriber"),
    ),
    Case(
        "b",
        "50 readings a message",
        Shape("b", wells=1_000, rounds=600, per_message=50),
        Shape("b", wells=1_000, rounds=200, per_message=50),
        (DAEMON, BASELINE),
        limits=("copy",),
    ),
    Case(
        "c",
        "10 000 wells at 1 Hz",
        Shape("c", wells=10_000, rounds=60),
        Shape("c", wells=10_000, rounds=10),
        (DAEMON, MQ_BRIDGE),
        rate=10_000,
        peers_once=True,
    ),
    Case(
        "d",
        "draining a backlog",
        Shape("d", wells=1_000, rounds=1_000),
        Shape("d", wells=1_000, rounds=100),
        (DAEMON, MQ_BRIDGE),
        backlog=True,
        limits=("copy", "subscriber"),
        peers_once=True,
    ),
    Case(
        "e",
        "one well in ten sends rejects, 1 % duplicates",
        Shape("e", wells=1_000, rounds=250, reject_every=10, duplicate_share=0.01),
        Shape("e", wells=1_000, rounds=100, reject_every=10, duplicate_share=0.01),
        (DAEMON, MQ_BRIDGE, BASELINE),
        peers_once=True,
    ),
    Case(
        "f",
        "two workers against one, input as in (a)",
        Shape("f", wells=1_000, rounds=250),
        Shape("f", wells=1_000, rounds=100),
        (DAEMON, TWO_WORKERS),
    ),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What of it to run. ``only`` names kinds: daemon, mq-bridge, baseline, copy, subscriber; empty for all."""

    cases: tuple[str, ...]
    rounds: int
    only: tuple[str, ...]
    quick: bool

    def wants(self, kind: str) -> bool:
        return not self.only or kind in self.only


def run_case(case: Case, plan: Plan, folder: Path, say: Callable[[str], None]) -> Iterator[Measured]:
    """All competitors and limits of a case, round by round; each round in the reverse order of the one before, so that
    whoever comes first gains nothing by it. The database server is the case's own."""
    shape = case.quick if plan.quick else case.shape
    workload = generate(shape, folder / f"workload-{case.key}", _first_us(case, shape))
    whole = workload.whole
    size = f"{whole.messages:,} messages of {workload.payload_bytes:.0f} bytes, {whole.items:,} items"
    say(f"({case.key}) {case.title}: {size}")
    with start_postgres() as server:
        reference = Reference(server)
        tasks = list(_tasks(case, plan, server, reference, workload, folder))
        for number in range(plan.rounds):
            for name, task in tasks if number % 2 == 0 else reversed(tasks):
                if number and case.peers_once and name == MQ_BRIDGE.name:
                    continue
                try:
                    measured = task(number)
                except runs.Failed as failure:
                    measured = Measured(case.key, name, number, whole.items, whole.readings, failure=str(failure))
                say(f"    round {number + 1}, {name}: {_brief(measured)}")
                yield measured


def _tasks(
    case: Case, plan: Plan, server: NativeTimescale, reference: Reference, workload: Workload, folder: Path
) -> Iterator[tuple[str, Callable[[int], Measured]]]:
    for competitor in case.competitors:
        if not plan.wants(competitor.kind):
            continue
        if case.backlog:
            yield competitor.name, partial(runs.backlog, server, reference, case.key, competitor, workload)
        else:
            go = partial(runs.stream, server, reference, case.key, competitor, workload, rate=case.rate)
            yield competitor.name, go
    if "copy" in case.limits and plan.wants("copy"):
        yield "limit: binary COPY", partial(runs.copy_limit, server, case.key, workload)
    if "subscriber" in case.limits and plan.wants("subscriber"):
        yield "limit: mosquitto_sub", partial(runs.subscriber_limit, folder, case.key, workload)


def _first_us(case: Case, shape: Shape) -> int:
    """A steady case sends readings of now, the others what has just been."""
    now = time.time_ns() // 1_000_000 * 1_000
    return now if case.rate else now - (shape.rounds + 10) * 1_000_000


def _brief(measured: Measured) -> str:
    if measured.failure:
        return f"FAILED, {measured.failure}"
    parts = ", ".join(f"{part} {measured.cpu_us(part):.1f}" for part in measured.cpu if part != "steal")
    return (
        f"{measured.rate:,.0f}/s in {measured.seconds:.2f} s; CPU µs an item: {parts}; idle {measured.idle_share:.0%}"
    )
