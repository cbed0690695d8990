"""The command line: parser, exit codes, and errors as sentences. Each command stands in esp_ingest/commands, with its
arguments in add_arguments() and its work in run(). Exit codes: 0 fine, 2 wrong usage or configuration, 1 else."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from esp_ingest import __version__
from esp_ingest.errors import UsageError
from esp_ingest.service import lifetime, terminal

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2


class Command(NamedTuple):
    """``help`` is what it does. ``has_actions``: its module adds actions, not arguments."""

    help: str
    has_actions: bool = False


COMMANDS = {
    "run": Command("the daemon: subscribe, store, diagnose; SIGTERM drains"),
    "migrate": Command("bring the database to the newest schema"),
    "check": Command("configuration, broker, database and schema, a line each"),
    "simulate": Command("simulate a fleet of ESP controllers, or replay a recording"),
    "demo": Command("all of it on this machine: embedded broker and database, a fleet with faults"),
    "rejects": Command("list, show and replay what was rejected", has_actions=True),
    "rules": Command("check, explain and try the diagnostic rules", has_actions=True),
    "alarms": Command("list, acknowledge and shelve alarms", has_actions=True),
    "api": Command("HTTP API and console; needs the extra api"),
    "users": Command("who may use the HTTP API", has_actions=True),
    "lifecycle": Command("archive finished days, drop old ones, read them back", has_actions=True),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``esp-ingest``. Returns the exit code."""
    terminal.accept_all_text()
    words = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser([word for word in words[:1] if word in COMMANDS])
    arguments = parser.parse_args(words)
    if problem := senseless(arguments):
        parser.error(problem)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return lifetime.interrupted()
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_FAILURE
    except Exception as error:
        if arguments.debug:
            raise
        print(f"esp-ingest: {one_line(error)}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURE


def _run(arguments: argparse.Namespace) -> int:
    """Run the command, which returns its exit code or the lines to print."""
    from esp_ingest.config.load import load

    is_demo = arguments.command == "demo"  # it needs no settings, but a file that cannot be used is found at once
    settings = None if is_demo and arguments.config is None else load(arguments.config)
    result = _module(arguments.command).run(settings, arguments)
    if isinstance(result, int):
        return result
    for line in result:
        print(line)
    return EXIT_OK


def _module(command: str) -> ModuleType:
    return import_module(f"esp_ingest.commands.{command}")


def one_line(error: Exception) -> str:
    """The error as a sentence in one line of at most 500 characters."""
    text = " ".join(_sentence(error).split()) or type(error).__name__
    return text if len(text) <= 500 else text[:497] + "..."


def _sentence(error: Exception) -> str:
    """The error in a sentence that says what to do, also if it is the database's or the operating system's."""
    from esp_ingest.interfaces import StoreUnavailable

    is_of_the_driver = type(error).__module__.split(".")[0] == "psycopg"
    if is_of_the_driver or isinstance(error, StoreUnavailable):
        from esp_ingest.store import sqlstate

        return sqlstate.sentence(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}."
    return str(error)


def senseless(arguments: argparse.Namespace) -> str:
    """Which options exclude each other, and why; "" if none do."""
    module = _module(arguments.command)
    return str(module.problem(arguments)) if hasattr(module, "problem") else ""


class _Parser(argparse.ArgumentParser):
    """A parser that says in one sentence what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help.", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def make_parser(loaded: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of those in ``loaded`` alone: to know the arguments of a command,
    its module is loaded, and some load the database's driver."""
    common, again = _common(None, False), _common(argparse.SUPPRESS, argparse.SUPPRESS)
    parser = _Parser(prog="esp-ingest", description="The daemon between electric submersible pumps and TimescaleDB.")
    parser.add_argument("--version", action="version", version=f"esp-ingest {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command", parser_class=_Parser)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help, parents=[common])
        if name not in loaded:
            continue
        if command.has_actions:
            actions = sub.add_subparsers(metavar="ACTION", required=True, dest="action", parser_class=_Parser)
            _module(name).add_arguments(
                lambda action, text, actions=actions: actions.add_parser(
                    action, help=text, description=text, parents=[again]
                )
            )
        else:
            _module(name).add_arguments(sub)
    return parser


def _common(config: Any, debug: Any) -> _Parser:
    """What every command takes, with these defaults. An action of a command takes it too, without a default: that would
    undo what stands before the action, as in ``rejects --config FILE list``."""
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", default=debug, help="show a traceback when a command fails")
    common.add_argument(
        "--config",
        type=Path,
        default=config,
        metavar="FILE",
        help="TOML file with settings (default: built-in defaults)",
    )
    return common
