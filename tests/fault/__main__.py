"""`make faults`: run every case of this folder, the long ones too, and write their rows into docs/faults.md.

Rows come from the cases themselves (`FAULT_TABLE`, tests/support/rig.py). If a case fails, nothing is written and the
exit status is pytest's. ``--from FILE`` writes the table from lines that were collected before."""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/faults.md"
BEGIN, END = "<!-- rows: begin, made by `make faults` -->\n", "<!-- rows: end -->\n"
COLUMNS = ["fault", "published", "stored", "rejects", "lost", "doubled", "refused", "recovery"]
HEAD = f"| {' | '.join(COLUMNS)}, s |\n{'|---' * len(COLUMNS)}|\n"
LINE = re.compile(
    r"(?P<name>\S+): published (?P<published>\d+), confirmed \d+, stored (?P<stored>\d+), rejects (?P<rejects>\d+), "
    r"lost (?P<lost>\d+), doubled (?P<doubled>\d+), altered (?P<altered>\d+), invented (?P<invented>\d+)"
    r"(?P<first> \(first lost.*\))?, duplicates refused (?P<refused>\d+), starts (?P<starts>\d+)"
    r"(?:, recovered in (?P<recovery>[\d.]+) s)? \(seed (?P<seed>\d+)\)"
)


def rows(lines: Iterable[str]) -> Iterator[str]:
    """A row of the table for each line of a case. Raises ValueError for one that is none of ours."""
    for line in lines:
        found = LINE.fullmatch(line.strip())
        if found is None:
            raise ValueError(f"not a line of a case: {line!r}")
        case = found["name"].removeprefix("test_").replace("_", " ")
        counts = [f"{int(found[name]):,}".replace(",", " ") for name in ("published", "stored", "rejects")]
        exact = [found["lost"], found["doubled"]]
        # The counter of a process that was killed died with it.
        refused = "–" if int(found["starts"]) > 1 else f"{int(found['refused']):,}".replace(",", " ")
        yield f"| {' | '.join([case, *counts, *exact, refused, found['recovery'] or '–'])} |\n"


def written(page: str, table: str) -> str:
    """The page with ``table`` between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        raise ValueError(f"{PAGE.name} has lost the marks around its rows")
    return f"{before}{BEGIN}{table}{END}{after}"


def main() -> int:
    """Entry point; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="file", type=Path, metavar="FILE", help="lines that were collected before")
    chosen, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        file = chosen.file or Path(folder) / "lines"
        if chosen.file is None:
            command = [sys.executable, "-m", "pytest", "-q", "-m", "soak or not soak", "tests/fault", *more]
            done = subprocess.run(command, cwd=ROOT, env=os.environ | {"FAULT_TABLE": str(file)}, check=False)
            if done.returncode:
                return done.returncode
        table = HEAD + "".join(rows(file.read_text().splitlines()))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    at = datetime.now(UTC).strftime("%Y-%m-%d")
    stamp = f"\nEvery case of tests/fault, {at}, at commit {commit.stdout.strip() or 'unknown'}.\n"
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), table + stamp), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
