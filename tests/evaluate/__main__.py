"""``make evaluate``: the diagnoses judged.

    python -m tests.evaluate                  recorded wells (DATA=folder), simulated faults, 30 days of a healthy fleet
    python -m tests.evaluate --recorded       recorded wells alone
    python -m tests.evaluate --simulated      simulated faults and the healthy fleet alone
    python -m tests.evaluate --days 365       a year of it (two minutes)
    python -m tests.evaluate --paste          write the tables into docs/diagnostics.md
    python -m tests.evaluate --plots          draw the examples of docs/diagnostics/
    python -m tests.evaluate --pages          write docs/diagnostics/ and the list of rules from config/rules.toml

Exit code 1 when a demand of issue 5 or 13 is not met.
"""

import argparse
import sys
from collections.abc import Iterator

from tests.evaluate import onset, operations, report, simulated, slow
from tests.evaluate.recorded import FOLDER


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--recorded", action="store_true", help="recorded wells alone")
    parser.add_argument("--simulated", action="store_true", help="simulated faults and the healthy fleet alone")
    parser.add_argument("--days", type=float, default=30.0, help="of the healthy fleet (30)")
    parser.add_argument("--paste", action="store_true", help="write the tables into docs/diagnostics.md")
    parser.add_argument("--plots", action="store_true", help="draw the examples of docs/diagnostics/")
    parser.add_argument("--pages", action="store_true", help="write the pages of docs/diagnostics/")
    options = parser.parse_args()
    if options.plots or options.pages:
        return _documents(options.plots, options.pages)
    everything = not options.recorded and not options.simulated
    met = True
    if options.recorded or everything:
        met &= _recorded(options.paste)
    if options.simulated or everything:
        met &= _simulated(options.days, options.paste)
    return 0 if met else 1


def _documents(plots: bool, pages: bool) -> int:
    if plots:
        from tests.evaluate.plots import draw_all

        _say(draw_all())
    if pages:
        from tests.evaluate.pages import write_all

        _say(write_all())
    return 0


def _recorded(paste: bool) -> bool:
    if not FOLDER.is_dir():
        _say([f"No recordings of real wells in {FOLDER}: give their folder with DATA=…; this part is left out."])
        return True
    from tests.evaluate.musts import musts, no_worse
    from tests.evaluate.recorded import ESP01, ESP02, played

    found, before = list(musts()), list(no_worse(played(ESP01), played(ESP02)))
    tables = [*report.demanded(found), *report.compared(before), *report.recorded()]
    _tables("recorded", tables, paste)
    return all(must.met for must in (*found, *before))


def _simulated(days: float, paste: bool) -> bool:
    rule_set = simulated.rule_set()
    cases = list(simulated.cases(using=rule_set))
    fleet = simulated.healthy(days=days)
    done = list(operations.every(using=rule_set))
    begun = list(onset.every(using=rule_set))
    weeks, year = list(slow.every(using=rule_set)), slow.healthy(using=rule_set)
    lines = [
        *report.confusion(cases, rule_set),
        *report.operations_told(done),
        *report.onsets(begun),
        *report.health(fleet),
    ]
    _tables("simulated", [*lines, *report.slow_faults(weeks), *report.slow_health(year)], paste)
    at_peace = fleet.alarms_per_10_minutes <= 1 and not year.raised
    wrong = [*(case.faults(rule_set) for case in cases), *(each.faults for each in (*done, *begun, *weeks))]
    return at_peace and not any(wrong)


def _tables(part: str, lines: list[str], paste: bool) -> None:
    _say(lines)
    if paste:
        from tests.evaluate import pages

        pages.paste(part, lines)


def _say(lines: Iterator[str] | list[str]) -> int:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
