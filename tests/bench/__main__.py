"""``make bench``: the daemon beside its peers and its limits, in one table.

    python -m tests.bench [--case a]… [--runs 3] [--only daemon]… [--quick] [--output FOLDER]

The table goes to stdout, to docs/performance.md (between its markers, with --paste) and, as JSON, to the output folder.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import startup
from tests.bench.cases import CASES, Plan, run_case
from tests.bench.paste import paste
from tests.bench.report import Results
from tests.bench.runs import Measured

_KINDS = ("daemon", "mq-bridge", "baseline", "copy", "subscriber", "startup")


def main() -> int:
    options = _options()
    plan = Plan(tuple(options.case or [case.key for case in CASES]), options.runs, tuple(options.only), options.quick)
    runs: list[Measured] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="esp-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the broker runs as a user of its own
        os.environ["ESP_INGEST_BENCH_FOLDER"] = name
        for case in CASES:
            if case.key in plan.cases:
                runs += run_case(case, plan, folder, _say)
    started = startup.measure() if plan.wants("startup") and not options.case else None
    results = Results(runs, started)
    text = results.markdown()
    sys.stdout.write(text)
    sys.stdout.flush()
    options.output.mkdir(parents=True, exist_ok=True)
    results.save(options.output / "bench.json")
    (options.output / "bench.md").write_text(text, encoding="utf-8")
    if options.paste:
        paste(text, "bench")
    _say(f"{time.monotonic() - began:.0f} s; figures of every run in {options.output / 'bench.json'}")
    return 1 if any(run.failure and run.competitor.startswith("esp-ingest") for run in runs) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--case", action="append", choices=[case.key for case in CASES], help="repeatable; default all")
    parser.add_argument("--runs", type=int, default=3, help="rounds of each case")
    parser.add_argument("--only", action="append", default=[], choices=_KINDS, help="repeatable; default all")
    parser.add_argument("--quick", action="store_true", help="a tenth to a quarter of the input")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), help="folder of bench.json and bench.md")
    parser.add_argument("--paste", action="store_true", help="put the table into docs/performance.md")
    return parser.parse_args()


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
