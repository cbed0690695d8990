"""`esp-ingest demo`: all of it on this machine."""

import argparse

from esp_ingest.commands import simulate

problem = simulate.problem


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The fleet or recording, and --json."""
    simulate.add_fleet(parser, wells=12)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print a last line of totals as JSON: messages published; readings written; duplicates; rejected; "
        "diagnostics, the occurrences raised but for those that another one explains",
    )


def run(_settings: object, arguments: argparse.Namespace) -> int:
    """Returns the exit code. Raises EmbeddedError, ReplayError. It sets up its parts by itself."""
    from esp_ingest.demo import demo as demonstration

    return demonstration.run_demo(arguments)
