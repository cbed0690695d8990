"""What the whole rule set costs a reading, by the shape of the batch: ``python -m tests.bench.rules``.

The budget is 1.5 µs of CPU a reading (issue 5). It holds for live shapes: many wells, samples of 1 s to 60 s. Where
every reading closes a 5-minute bucket, as in a replay of 5-minute samples, each reading pays for the hourly features.
The figures are of process CPU, medians over batches; the steady state, with 2 % of the wells underloaded.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from esp_ingest.demo.fleet import Fleet
from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.model import SIGNAL_ROW, Readings, Wells
from esp_ingest.resources import config_file
from esp_ingest.telemetry.joining import stacked
from tests.evaluate import pages

BUDGET_US = 1.5
_WARM_HOURS = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """Batches of ``samples`` readings of each of ``wells`` wells, taken ``interval_seconds`` apart."""

    name: str
    wells: int
    samples: int
    interval_seconds: float
    live: bool


SHAPES = (
    Shape("5 000 wells, 1 each, 1 s", 5_000, 1, 1.0, True),
    Shape("1 000 wells, 5 each, 1 s", 1_000, 5, 1.0, True),
    Shape("100 wells, 50 each, 1 s", 100, 50, 1.0, True),
    Shape("5 000 wells, 1 each, 60 s", 5_000, 1, 60.0, True),
    Shape("5 000 wells, 1 each, 5 min", 5_000, 1, 300.0, False),
    Shape("10 wells, 500 each, 1 s", 10, 500, 1.0, False),
    Shape("10 wells, 500 each, 60 s", 10, 500, 60.0, False),
    Shape("10 wells, 500 each, 5 min", 10, 500, 300.0, False),
    Shape("1 well, 5 000, 5 min", 1, 5_000, 300.0, False),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of CPU a reading: the median batch, the mean over all, the dearest batch."""

    shape: str
    live: bool
    rules: int
    median_us: float
    mean_us: float
    worst_us: float


def measure(shape: Shape, batches: int = 30) -> Cost:
    rule_set = rules_file.load(config_file("rules.toml"))
    engine = Engine(rule_set)
    # Enough for baselines, in 5-minute samples; then the shape's own interval, from there.
    warm = Fleet(shape.wells, interval_seconds=300.0, spread=False)
    start_us = 0
    names = Wells(warm.wells, np.arange(shape.wells), warm.wells)  # with numbers, as they come from a decoder
    for readings in warm.run(_WARM_HOURS * 12):
        readings.wells = names
        engine.accept(engine.evaluate(readings))
        start_us = int(readings.timestamp_us[-1]) + 1_000_000
    costs = []
    for readings in _batches(shape, start_us, batches):
        readings.wells = names
        began = time.process_time()
        engine.accept(engine.evaluate(readings))
        costs.append((time.process_time() - began) * 1e6 / len(readings))
    assert not engine.failed_rules(), engine.failed_rules()
    return Cost(
        shape.name, shape.live, len(rule_set.rules), statistics.median(costs), statistics.fmean(costs), max(costs)
    )


def _batches(shape: Shape, start_us: int, count: int) -> Iterator[Readings]:
    fleet = Fleet(shape.wells, 1, shape.interval_seconds, start_us=start_us, spread=False)
    for _ in range(count):
        samples = list(fleet.run(shape.samples))
        yield _joined(samples, max(1, shape.wells // 50))


def _joined(samples: list[Readings], underloaded: int) -> Readings:
    readings = stacked(samples)
    readings.values[SIGNAL_ROW["motor_current"], readings.well_index < underloaded] *= 0.7
    return readings


def table(costs: list[Cost]) -> Iterator[str]:
    yield "| batch | µs a reading | mean | dearest batch |"
    yield "|---|---:|---:|---:|"
    for cost in costs:
        live = "" if cost.live else " (backlog or replay)"
        yield f"| {cost.shape}{live} | {cost.median_us:.2f} | {cost.mean_us:.2f} | {cost.worst_us:.2f} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.rules", description=__doc__)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--paste", action="store_true", help="write the table into docs/diagnostics.md")
    options = parser.parse_args()
    costs = [measure(shape, options.batches) for shape in SHAPES]
    lines = [json.dumps([asdict(cost) for cost in costs])] if options.json else list(table(costs))
    if options.paste:
        pages.paste("cost", list(table(costs)))
    for line in lines:
        sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
