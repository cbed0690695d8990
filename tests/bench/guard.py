"""The regression guard: what the hot path costs a reading, counted and not timed, against a committed budget.

    python -m tests.bench.guard [--instructions] [--update]

Three figures of Python's own, in about a second, each the same at every run (the unit tests hold them to the budget):

* ``bytecodes``  bytecode instructions executed a reading: what a loop over messages costs
* ``calls``      calls a reading, of Python functions and of C functions from Python
* ``peak_bytes`` the most memory held at once a reading, over what is there before the batch

and one of the machine's, in half a minute under valgrind's callgrind (CI holds it to the budget):

* ``instructions`` machine instructions a reading, C code of numpy and msgspec included: start-up and imports, which
  take nearly all of that time, are taken off again

More than a tenth over the budget fails. Well under it, ``--update`` takes the new figures down, to be committed with
the change that earned them. The budget is per minor version of Python, whose bytecode differs.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.bench.hotpath import READINGS, HotPath, fixed_input
from tests.bench.processes import installed_environment

BUDGET = Path(__file__).parent / "budget.json"
TOLERANCE = 0.10
_REPEATS = 3
_ROOT = Path(__file__).parent.parent.parent
_COLLECTED = re.compile(r"Collected : (\d+)")

Figures = dict[str, float]


class NoValgrind(Exception):
    """Instructions cannot be counted here."""


def version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def budget() -> Figures:
    """The committed figures for this Python; empty where there are none."""
    figures: Figures = json.loads(BUDGET.read_text(encoding="utf-8")).get(version(), {})
    return figures


def excess(figures: Figures, allowed: Figures) -> list[str]:
    """A line for each figure that is more than TOLERANCE over its budget, or has none."""
    lines = []
    for name, value in figures.items():
        if name not in allowed:
            lines.append(f"{name} has no budget: python -m tests.bench.guard --update")
        elif value > allowed[name] * (1 + TOLERANCE):
            more = value / allowed[name] - 1
            lines.append(f"{name}: {value:.2f} a reading, {more:.0%} over the budget of {allowed[name]:.2f}")
    return lines


def count() -> Figures:
    """The figures of Python's own, counted in a process of its own with a fixed hash seed."""
    command = [sys.executable, "-m", "tests.bench.guard", "--count"]
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    answer = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=True)
    figures: Figures = json.loads(answer.stdout)
    return figures


def instructions() -> Figures:
    """Machine instructions a reading. Raises NoValgrind."""
    if not shutil.which("valgrind"):
        raise NoValgrind("no valgrind: apt-get install valgrind")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = installed_environment(folder) | {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
        # Compiles, which would take longest of all under callgrind.
        subprocess.run(_hot_path(1), cwd=_ROOT, env=environment, check=True)
        tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder / 'callgrind.%p'}"]
        done = subprocess.run(
            [*tool, *_hot_path(_REPEATS)], cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=900
        )
    counts = [int(count) for count in _COLLECTED.findall(done.stderr)]
    if done.returncode or len(counts) != 2:
        raise RuntimeError(f"callgrind failed: {done.stderr[-2_000:]}")
    return {"instructions": (max(counts) - min(counts)) / (_REPEATS * READINGS)}


def _hot_path(repeats: int) -> list[str]:
    return [sys.executable, "-m", "tests.bench.hotpath", str(repeats)]


# ---------------------------------------------------------------------- counting inside, in the process of `count`


def _count_here() -> Figures:
    with tempfile.TemporaryDirectory() as name:
        path = HotPath(fixed_input(Path(name)))
    path.run()  # caches, and the specialisation of bytecode
    figures: Figures = {}
    for stage, run in path.stages.items():
        figures[f"{stage}.bytecodes"] = _bytecodes(run) / READINGS
        figures[f"{stage}.calls"] = _calls(run) / READINGS
    tracemalloc.start()
    held = tracemalloc.get_traced_memory()[0]
    path.run()
    figures["peak_bytes"] = (tracemalloc.get_traced_memory()[1] - held) / READINGS
    tracemalloc.stop()
    return figures


def _bytecodes(run: Callable[[], None]) -> int:
    executed = 0

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal executed
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        executed += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
    return executed


def _calls(run: Callable[[], None]) -> int:
    called = 0

    def profile(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal called
        called += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return called


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.guard")
    parser.add_argument("--instructions", action="store_true", help="also count machine instructions (half a minute)")
    parser.add_argument("--update", action="store_true", help="take the figures down as the new budget")
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count:
        sys.stdout.write(json.dumps(_count_here()))
        return 0
    figures = count() | (instructions() if options.instructions else {})
    allowed = budget() if BUDGET.exists() else {}
    for name, value in figures.items():
        sys.stdout.write(f"{name:20} {value:10.2f} a reading, budget {allowed.get(name, float('nan')):.2f}\n")
    if options.update:
        _take_down(figures)
        return 0
    lines = excess(figures, allowed)
    sys.stdout.write("".join(f"over budget: {line}\n" for line in lines))
    return 1 if lines else 0


def _take_down(figures: Figures) -> None:
    known = json.loads(BUDGET.read_text(encoding="utf-8")) if BUDGET.exists() else {}
    known[version()] = known.get(version(), {}) | {name: round(value, 2) for name, value in figures.items()}
    BUDGET.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
