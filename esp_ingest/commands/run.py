"""`esp-ingest run`: the daemon."""

import argparse
from typing import TYPE_CHECKING

from esp_ingest.commands.arguments import count

if TYPE_CHECKING:
    from esp_ingest.config.settings import Settings

_MOST_WORKERS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--workers and --retire."""
    parser.add_argument(
        "--workers",
        type=_workers,
        default=1,
        metavar="N",
        help="processes that share the work through a share group (MQTT 5). Worker 0 answers on http.port, worker K on "
        "http.port + K. One of them runs the diagnostic rules for all, some seconds behind, from the table "
        "(docs/operations.md). After a change of N, the spools and sessions of workers that are no longer used "
        "are drained and removed",
    )
    parser.add_argument(
        "--retire",
        action="store_true",
        help="leave for good: take what the session at the broker and the spool hold, end the session, exit",
    )


def problem(arguments: argparse.Namespace) -> str:
    """Which options exclude each other, and why; "" if none do."""
    if arguments.retire and arguments.workers > 1:
        return "--retire applies to a single daemon: leave out --workers, whose surplus leaves by itself"
    return ""


def run(settings: "Settings", arguments: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code. Raises ConfigError."""
    from esp_ingest import daemon, workers

    if arguments.retire:
        return daemon.run(settings, retire=True)
    if arguments.workers > 1:
        return workers.run(settings, arguments.config, arguments.workers)
    with workers.leaving(settings, arguments.config):
        return daemon.run(settings)


def _workers(text: str) -> int:
    workers = count(text)
    if workers > _MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r} workers are more than {_MOST_WORKERS}")
    return workers
