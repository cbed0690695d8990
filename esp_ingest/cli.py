"""The command line: one command a function, no logic. Exit codes: 0 fine, 2 wrong usage or configuration, 1 else."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from esp_ingest import __version__

if TYPE_CHECKING:
    from esp_ingest.config import Settings

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2


class CommandFailed(Exception):
    """A command did not succeed. The message is one sentence that says what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``esp-ingest``. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        command: Callable[[argparse.Namespace], int] = arguments.command
        return command(arguments)
    except KeyboardInterrupt:
        return EXIT_FAILURE
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_FAILURE
    except Exception as error:
        if arguments.debug:
            raise
        print(f"esp-ingest: {_one_line(error)}", file=sys.stderr)
        return EXIT_USAGE if type(error).__name__ in ("ConfigError", "RulesError") else EXIT_FAILURE


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else text[:497] + "..."


def _settings(arguments: argparse.Namespace) -> "Settings":
    from esp_ingest import config

    return config.load(arguments.config)


def _print(lines: Iterable[str]) -> int:
    for line in lines:
        print(line)
    return EXIT_OK


def run(arguments: argparse.Namespace) -> int:
    from esp_ingest import daemon

    settings = _settings(arguments)
    if arguments.workers > 1:
        from esp_ingest import workers

        return workers.run(settings, arguments.config, arguments.workers)
    return daemon.run(settings)


def migrate(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    from esp_ingest.store import schema

    return _print(schema.migrate(settings.database, adopt=arguments.adopt).lines())


def check(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    from esp_ingest import check as checks

    fine = True
    for line in checks.run(settings):
        fine = fine and line.ok
        print(line)
    return EXIT_OK if fine else EXIT_FAILURE


def simulate(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    from esp_ingest.demo import simulator

    return simulator.run_simulate(settings, arguments)


def demo(arguments: argparse.Namespace) -> int:
    from esp_ingest.demo import demo as demonstration

    return demonstration.run_demo(arguments)


def rejects(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    from esp_ingest import rejects as room

    return _print(room.run(settings, arguments))


def rules(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    from esp_ingest.diagnostics import commands

    return commands.run_rules(settings, arguments)


def alarms(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    from esp_ingest.diagnostics import commands

    return commands.run_alarms(settings, arguments)


class _Parser(argparse.ArgumentParser):
    """Wrong usage is one sentence too."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help.", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file with settings (default: built-in defaults)"
    )
    common.add_argument("--debug", action="store_true", help="show a traceback when a command fails")
    parser = _Parser(prog="esp-ingest", description="The daemon between electric submersible pumps and TimescaleDB.")
    parser.add_argument("--version", action="version", version=f"esp-ingest {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, parents=[common])
        sub.set_defaults(command=command)
        return sub

    daemon = add("run", run, "the daemon: subscribe, store, diagnose; SIGTERM drains")
    daemon.add_argument("--workers", type=_count, default=1, metavar="N", help="processes that share the work (MQTT 5)")
    migration = add("migrate", migrate, "bring the database to the newest schema")
    migration.add_argument(
        "--adopt", action="store_true", help="apply what was left out before TimescaleDB was there; locks the tables"
    )
    add("check", check, "configuration, broker, database and schema, a line each")
    _add_simulate(add("simulate", simulate, "be a fleet of ESP controllers, or replay a recording"))
    _add_demo(add("demo", demo, "all of it on this machine: embedded broker and database, a fleet with faults"))
    _add_rejects(add("rejects", rejects, "list, show and replay what was rejected"), common)
    _add_rules(add("rules", rules, "check, explain and try the diagnostic rules"), common)
    _add_alarms(add("alarms", alarms, "list, acknowledge and shelve alarms"), common)
    return parser


def _add_simulate(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--wells", type=_count, default=10, metavar="N", help="wells in the fleet (10)")
    sub.add_argument("--rate", type=_rate, default=1.0, metavar="HZ", help="readings a second and well (1)")
    sub.add_argument("--duration", type=_seconds, default=60.0, metavar="S", help="seconds to run (60)")
    sub.add_argument("--fault", action="append", default=[], metavar="NAME", help="fault to show; may be repeated")
    sub.add_argument(
        "--fault-after", type=_seconds, default=0.0, metavar="S", help="seconds until the fault sets in (0)"
    )
    sub.add_argument("--seed", type=int, default=1, help="the same seed gives the same fleet (1)")
    sub.add_argument("--csv", type=Path, metavar="FILE", help="replay this recording instead of simulating")
    sub.add_argument("--speed", type=_seconds, default=1.0, metavar="X", help="times real time; 0: as fast as possible")
    sub.add_argument("--keep-timestamps", action="store_true", help="replay with the recording's own timestamps")
    for name in ("malformed", "duplicates", "late", "future"):
        sub.add_argument(
            f"--{name}", type=_share, default=0.0, metavar="SHARE", help=f"share of {name} messages, 0 to 1"
        )


def _add_demo(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--duration", type=_seconds, default=60.0, metavar="S", help="seconds to run (60)")
    sub.add_argument("--wells", type=_count, default=12, metavar="N", help="wells in the fleet (12)")
    sub.add_argument("--rate", type=_rate, default=1.0, metavar="HZ", help="readings a second and well (1)")
    sub.add_argument("--seed", type=int, default=1, help="the same seed gives the same fleet (1)")
    sub.add_argument("--csv", type=Path, metavar="FILE", help="replay this recording instead of simulating")
    sub.add_argument("--json", action="store_true", help="print a last line of totals as JSON")


def _add_rejects(sub: argparse.ArgumentParser, common: _Parser) -> None:
    actions = sub.add_subparsers(metavar="ACTION", required=True, dest="action", parser_class=_Parser)
    for name, text in (("list", "a line a reject, newest first"), ("replay", "put them through the pipeline again")):
        action = actions.add_parser(name, help=text, description=text, parents=[common])
        action.add_argument("--reason", help="only this reason")
        action.add_argument("--topic", help="only this topic; * stands for any text")
        action.add_argument("--since", metavar="TIME", help="received at or after, RFC 3339 or an age such as 2h or 7d")
        action.add_argument("--until", metavar="TIME", help="received before")
        action.add_argument("--limit", type=_count, default=100 if name == "list" else 1_000_000, metavar="N")
        if name == "replay":
            action.add_argument("--id", help="only this reject")
            action.add_argument("--dry-run", action="store_true", help="say what would become of them, store nothing")
    show = actions.add_parser("show", help="one reject in full", description="one reject in full", parents=[common])
    show.add_argument("id", help="as printed by list")


def _add_rules(sub: argparse.ArgumentParser, common: _Parser) -> None:
    actions = sub.add_subparsers(metavar="ACTION", required=True, dest="action", parser_class=_Parser)
    check_text = "read the rules and say what is wrong or odd in them"
    check_action = actions.add_parser("check", help=check_text, description=check_text, parents=[common])
    check_action.add_argument("--rules", type=Path, metavar="FILE", help="rules file (default: diagnostics.rules_file)")
    explain = actions.add_parser("explain", help="a rule in words, with a well's limits", parents=[common])
    explain.add_argument("diagnosis", nargs="?", help="the rule; all when left out")
    explain.add_argument("--well", help="with this well's limits")
    explain.add_argument("--rules", type=Path, metavar="FILE")
    test = actions.add_parser("test", help="run the rules without writing, and print the occurrences", parents=[common])
    test.add_argument("--csv", type=Path, metavar="FILE", help="over a recording")
    test.add_argument("--since", metavar="TIME", help="over the database from this time, RFC 3339 or an age such as 7d")
    test.add_argument("--until", metavar="TIME")
    test.add_argument("--well", help="only this well")
    test.add_argument("--rules", type=Path, metavar="FILE")
    test.add_argument("--json", action="store_true", help="an occurrence a line as JSON")


def _add_alarms(sub: argparse.ArgumentParser, common: _Parser) -> None:
    actions = sub.add_subparsers(metavar="ACTION", required=True, dest="action", parser_class=_Parser)
    listing = actions.add_parser("list", help="open alarms, the gravest first", parents=[common])
    listing.add_argument("--well")
    listing.add_argument("--all", action="store_true", help="cleared and shelved ones too")
    listing.add_argument("--json", action="store_true")
    for name, text in (
        ("ack", "acknowledge an alarm"),
        ("shelve", "silence a diagnosis of a well for a time"),
        ("unshelve", "end a shelving"),
    ):
        action = actions.add_parser(name, help=text, description=text, parents=[common])
        action.add_argument("well")
        action.add_argument("diagnosis")
        action.add_argument("--by", required=True, help="who")
        action.add_argument("--why", default="", help="the reason, kept")
        if name == "shelve":
            action.add_argument("--for", required=True, dest="duration", metavar="DURATION", help="such as 8h or 3d")


def _number(text: str, low: float, high: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def _seconds(text: str) -> float:
    return _number(text, 0, 1e9, "a number of at least 0")


def _rate(text: str) -> float:
    return _number(text, 1e-6, 1e6, "a rate above 0")


def _share(text: str) -> float:
    return _number(text, 0, 1, "a share from 0 to 1")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 10_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
