"""The table: medians over the rounds, and ratios taken within each round."""

import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.bench.cases import CASES
from tests.bench.competitors import BASELINE, DAEMON, MQ_BRIDGE, MQ_BRIDGE_VERSION, TWO_WORKERS
from tests.bench.probes import BARE, PATHS
from tests.bench.runs import STEADY, Measured
from tests.bench.startup import Startup

COPY, SUBSCRIBER = "limit: binary COPY", "limit: mosquitto_sub"
_HEAD = (
    "case",
    "who",
    "items/s",
    "spread",
    "consumer µs",
    "broker µs",
    "database µs",
    "publisher µs",
    "other µs",
    "idle",
    "RSS peak MB",
    "runs",
)


@dataclass(frozen=True, slots=True)
class Target:
    """A target of issue 3 as a ratio (or a figure), with what was reached."""

    case: str
    what: str
    want: str
    reached: float | None
    fine: bool | None

    def cells(self) -> tuple[str, ...]:
        if self.reached is None:
            return (f"({self.case})", self.what, self.want, "not measured", "")
        return (f"({self.case})", self.what, self.want, f"{self.reached:.3g}", "yes" if self.fine else "no")


class Results:
    """All runs of a bench."""

    def __init__(self, runs: Sequence[Measured], startup: Startup | None) -> None:
        self.runs = list(runs)
        self.startup = startup

    def of(self, case: str, who: str) -> list[Measured]:
        return [run for run in self.runs if run.case == case and run.competitor == who and not run.failure]

    def median(self, case: str, who: str, figure: Callable[[Measured], float]) -> float | None:
        values = [figure(run) for run in self.of(case, who)]
        return statistics.median(values) if values else None

    def ratio(
        self, case: str, one: str, other: str, figure: Callable[[Measured], float], case_of_other: str | None = None
    ) -> float | None:
        """Median over the rounds of figure(one) / figure(other), each taken within its round."""
        others = {run.round: figure(run) for run in self.of(case_of_other or case, other)}
        pairs = [figure(run) / others[run.round] for run in self.of(case, one) if others.get(run.round)]
        return statistics.median(pairs) if pairs else None

    def targets(self) -> list[Target]:
        us, peer, base = DAEMON.name, MQ_BRIDGE.name, BASELINE.name
        low = [self.ratio("d", us, limit, _rate) for limit in (COPY, SUBSCRIBER)]
        slower = max((ratio for ratio in low if ratio is not None), default=None)
        consumer, whole = _cpu("consumer"), _cpu_of_all
        p99 = self.median("c", us, lambda run: (run.committed_seconds or (math.nan, math.nan))[1] * 1e3)
        growth = self.median("c", us, lambda run: run.rss_growth_bytes / 1e6)
        rss = self.median("a", us, lambda run: run.rss_peak_bytes / 1e6)
        http = {case: quantile(self.http_seconds(case), 0.99) for case in _HTTP_CASES}
        return [
            _at_least("a", "readings/s ÷ mq-bridge", 1.1, self.ratio("a", us, peer, _rate)),
            _at_most("a", "consumer CPU a reading ÷ mq-bridge", 0.8, self.ratio("a", us, peer, consumer)),
            _at_most("a", "CPU a reading of all parts ÷ mq-bridge", 1.0, self.ratio("a", us, peer, whole)),
            _at_least("a", "readings/s ÷ obvious design", 5, self.ratio("a", us, base, _rate)),
            _at_least("b", "readings/s ÷ COPY alone", 0.7, self.ratio("b", us, COPY, _rate)),
            _at_most("c", "p99 received → committed, ms", 600, p99),
            _at_most("c", "growth of memory, MB", 2, growth),
            _at_least("d", "messages/s ÷ the slower limit alone", 0.6, slower),
            _at_least("e", "items/s ÷ (a)", 0.85, self.ratio("e", us, us, _rate, case_of_other="a")),
            _at_least("f", "2 workers ÷ 1", 1.0, self.ratio("f", TWO_WORKERS.name, us, _rate)),
            _at_most("a", "RSS, MB", 120, rss),
            *(_at_most(case, "p99 of an HTTP answer, ms", 10, _milliseconds(p99)) for case, p99 in http.items()),
            _at_most("start", "import, s", 0.35, self.startup.import_seconds if self.startup else None),
            _at_most(
                "start",
                "live with no broker and no database, s",
                1.0,
                self.startup.live_seconds if self.startup else None,
            ),
        ]

    def markdown(self) -> str:
        lines = [f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. {machine()}", ""]
        lines += table(_HEAD, (self._row(case.key, who) for case in CASES for who in self._who(case.key)))
        lines += ["", "Targets, each ratio taken within a round, the median of the rounds:", ""]
        lines += table(("case", "what", "wanted", "reached", "met"), (target.cells() for target in self.targets()))
        if answers := list(self._http_rows()):
            lines += ["", "HTTP answers of the daemon under that load, of all rounds together:", ""]
            lines += table(_HTTP_HEAD, answers)
        lines += ["", *self._notes(), *self._latency_lines(), *self._startup_lines(), *self._failure_lines()]
        return "\n".join(lines) + "\n"

    def _who(self, case: str) -> list[str]:
        return list(dict.fromkeys(run.competitor for run in self.runs if run.case == case))

    def _row(self, case: str, who: str) -> tuple[str, ...]:
        runs = self.of(case, who)
        tried = sum(run.case == case and run.competitor == who for run in self.runs)
        count = f"{len(runs)}" if len(runs) == tried else f"{len(runs)} of {tried}"
        if not runs:
            return (f"({case})", who, "failed", *([""] * 8), count)
        rates = [run.rate for run in runs]
        cpu = [f"{statistics.median(run.cpu_us(part) for run in runs):.1f}" for part in _PARTS]
        rss = statistics.median(run.rss_peak_bytes for run in runs) / 1e6
        return (
            f"({case})",
            who,
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f}–{max(rates):,.0f}",
            *(text.replace("nan", "–") for text in cpu),
            f"{statistics.median(run.idle_share for run in runs):.0%}",
            f"{rss:.0f}" if rss else "–",
            count,
        )

    def http_seconds(self, case: str, path: str | None = None) -> list[float]:
        """Every answer of the daemon in a case, of one path or of all; or those of BARE."""
        runs, paths = self.of(case, DAEMON.name), PATHS if path is None else (path,)
        return [one for run in runs for name in paths for one in run.http_seconds.get(name, [])]

    def _http_rows(self) -> Iterator[tuple[str, ...]]:
        for case in _HTTP_CASES:
            refused = sum(run.http_refused for run in self.of(case, DAEMON.name))
            for path in (*PATHS, BARE):
                seconds = self.http_seconds(case, path)
                if seconds:
                    told = (f"{quantile(seconds, at) * 1e3:.1f}" for at in (0.5, 0.99, 1.0))  # type: ignore[operator]  # not None: there are some
                    yield (f"({case})", path, *told, f"{len(seconds)}", f"{refused}" if path == PATHS[0] else "")

    def _notes(self) -> list[str]:
        if not self.of("f", TWO_WORKERS.name):
            return []
        return [
            f"* (f) {TWO_WORKERS.name} share a group: one of them runs the rules behind the table (decision 0009), "
            "beside the batches and not in their transactions"
        ]

    def _latency_lines(self) -> list[str]:
        lines = []
        for who in self._who("c"):
            for name, figure in _LATENCIES.items():
                pairs = [pair for run in self.of("c", who) if (pair := figure(run))]
                if pairs:
                    p50, p99 = (statistics.median(pair[at] for pair in pairs) * 1e3 for at in (0, 1))
                    lines.append(f"* (c) {who}, {name}: p50 {p50:.0f} ms, p99 {p99:.0f} ms")
            cores = self.median("c", who, lambda run: run.cpu["consumer"] / run.seconds)
            growth = self.median("c", who, lambda run: run.rss_growth_bytes / 1e6)
            if cores is not None and growth is not None:
                lines.append(f"* (c) {who}: {cores:.0%} of a core, memory grew by {growth:.1f} MB")
        return lines

    def _startup_lines(self) -> list[str]:
        if not self.startup:
            return []
        start = self.startup
        return [
            f"* start: import {start.import_seconds:.2f} s ({start.import_cpu_seconds:.2f} s of CPU), live after "
            f"{start.live_seconds:.2f} s with no broker and no database, {start.idle_rss_bytes / 1e6:.0f} MB idle"
        ]

    def _failure_lines(self) -> list[str]:
        failed = [run for run in self.runs if run.failure]
        told = [(run, " ".join(run.failure.split())[:_FAILURE_TEXT]) for run in failed]
        return [f"* ({run.case}) {run.competitor}, round {run.round + 1} failed: {text}" for run, text in told]

    def save(self, path: Path) -> None:
        """The figures of every run as JSON."""
        content: dict[str, Any] = {
            "machine": machine(),
            "startup": asdict(self.startup) if self.startup else None,
            "runs": [asdict(run) | {"rate": run.rate} for run in self.runs],
            "targets": [asdict(target) for target in self.targets()],
        }
        path.write_text(json.dumps(_finite(content), indent=1) + "\n", encoding="utf-8")


_LATENCIES: dict[str, Callable[[Measured], tuple[float, float] | None]] = {
    "received → committed": lambda run: run.committed_seconds,
    f"received → committed, {STEADY}": lambda run: run.steady_seconds,
    "published → committed": lambda run: run.end_to_end_seconds,
}
_FAILURE_TEXT = 240  # characters: all of it is in the JSON
_HTTP_CASES = ("a", "c")
_HTTP_HEAD = ("case", "path", "p50 ms", "p99 ms", "max ms", "answers", "not 200, all paths")
_PARTS = ("consumer", "broker", "database", "publisher", "other")


def _rate(run: Measured) -> float:
    return run.rate


def _cpu(part: str) -> Callable[[Measured], float]:
    return lambda run: run.cpu_us(part)


def _cpu_of_all(run: Measured) -> float:
    return run.cpu_us("consumer") + run.cpu_us("broker") + run.cpu_us("database")


def quantile(values: Sequence[float], at: float) -> float | None:
    """The value that a share of ``at`` does not exceed; None without any."""
    return sorted(values)[max(math.ceil(at * len(values)) - 1, 0)] if values else None


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _at_least(case: str, what: str, bound: float, reached: float | None) -> Target:
    return Target(case, what, f"≥ {bound:g}", reached, None if reached is None else reached >= bound)


def _at_most(case: str, what: str, bound: float, reached: float | None) -> Target:
    return Target(case, what, f"≤ {bound:g}", reached, None if reached is None else reached <= bound)


def _finite(value: Any) -> Any:
    """NaN is no JSON."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns line up in a terminal too."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return [text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]]


def machine() -> str:
    """Processor, kernel and versions, in a sentence."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "unknown processor",
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1024**2
    mosquitto = subprocess.run(["mosquitto", "-h"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("paho-mqtt", "psycopg", "msgspec", "numpy"))
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, "
        f"{mosquitto}, PostgreSQL 17 with TimescaleDB 2.19.3 (Apache), {versions}, mq-bridge {MQ_BRIDGE_VERSION}."
    )
