"""The command line: one command a function, no logic. Exit codes: 0 fine, 2 wrong usage or configuration, 1 else."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from esp_ingest import __version__
from esp_ingest.errors import UsageError
from esp_ingest.service import lifetime, terminal

if TYPE_CHECKING:
    from esp_ingest.config.settings import Settings

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2
# demo/fleet.py has them; a test compares.
FAULTS = (
    "gas_lock, pump_off, broken_shaft, dead_head, tubing_leak, overload, motor_hot, vibration, frozen_signal, "
    "gauge_dropout, trip, stale"
)
_TROUBLE = ("malformed", "duplicates", "late", "future", "odd")
_MOST_WORKERS = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``esp-ingest``. Returns the exit code."""
    terminal.accept_all_text()
    parser = _parser()
    arguments = parser.parse_args(argv)
    if problem := _senseless(arguments):
        parser.error(problem)
    try:
        command: Callable[[argparse.Namespace], int] = arguments.command
        return command(arguments)
    except KeyboardInterrupt:
        return lifetime.interrupted()
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_FAILURE
    except Exception as error:
        if arguments.debug:
            raise
        print(f"esp-ingest: {_one_line(error)}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURE


def _one_line(error: Exception) -> str:
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


def _senseless(arguments: argparse.Namespace) -> str:
    """Which options of run, simulate or demo exclude each other, and why; "" if none do."""
    given = set(getattr(arguments, "given", ()))
    if getattr(arguments, "retire", False) and arguments.workers > 1:
        return "--retire applies to a single daemon: leave out --workers, whose surplus leaves by itself"
    if not hasattr(arguments, "csv") or not hasattr(arguments, "seed"):
        return ""
    if arguments.csv is not None:
        for option in ("wells", "rate", "fault", "fault_after", *(["duration"] if "fault" in arguments else ["seed"])):
            if option in given:
                return f"--{option.replace('_', '-')} applies to a simulated fleet: leave it out, or leave out --csv"
        return ""
    for option in ("speed", "keep_timestamps"):
        if option in given:
            return f"--{option.replace('_', '-')} applies to a recording: name one with --csv, or leave it out"
    if "fault_after" in given and not arguments.fault:
        return "--fault-after needs a --fault"
    if sum(getattr(arguments, name, 0.0) for name in _TROUBLE) > 1:
        return f"the shares of {', '.join(f'--{name}' for name in _TROUBLE)} are more than 1 together"
    return ""


def _settings(arguments: argparse.Namespace) -> "Settings":
    from esp_ingest.config.load import load

    return load(arguments.config)


def _print(lines: Iterable[str]) -> int:
    for line in lines:
        print(line)
    return EXIT_OK


def run(arguments: argparse.Namespace) -> int:
    from esp_ingest import daemon
    from esp_ingest.commands import workers

    settings = _settings(arguments)
    if arguments.retire:
        return daemon.run(settings, retire=True)
    if arguments.workers > 1:
        return workers.run(settings, arguments.config, arguments.workers)
    with workers.leaving(settings, arguments.config):
        return daemon.run(settings)


def migrate(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    from esp_ingest.store import schema

    return _print(schema.migrate(settings.database, adopt=arguments.adopt).lines())


def check(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    from esp_ingest.commands import check as checks

    lines = []
    for line in checks.run(settings):
        lines.append(line)
        if not arguments.json:
            print(line, flush=True)
    if arguments.json:
        print(checks.as_json(lines))
    return checks.exit_code(lines)


def simulate(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    from esp_ingest.demo import simulator

    return simulator.run_simulate(settings, arguments)


def demo(arguments: argparse.Namespace) -> int:
    if arguments.config is not None:
        _settings(arguments)  # a file that cannot be used is found before anything starts
    from esp_ingest.demo import demo as demonstration

    return demonstration.run_demo(arguments)


def rejects(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    from esp_ingest.commands import rejects as room

    return _print(room.run(settings, arguments))


def rules(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    from esp_ingest.commands import alarms as commands

    return commands.run_rules(settings, arguments)


def alarms(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    from esp_ingest.commands import alarms as commands

    return commands.run_alarms(settings, arguments)


def api(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    from esp_ingest.commands import api as command

    return command.run(settings, arguments)


def users(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    from esp_ingest.commands import users as command

    return _print(command.run(settings, arguments))


def lifecycle(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    from esp_ingest.commands import lifecycle as room

    return room.run(settings, arguments)


class _Given(argparse.Action):
    """Stores the value, and notes that the option was given, since a default value does not tell that."""

    def __call__(
        self, _parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _option: str | None = None
    ) -> None:
        if self.dest == "fault":
            values = [*namespace.fault, values]
        setattr(namespace, self.dest, values if self.nargs != 0 else True)
        namespace.given = [*getattr(namespace, "given", ()), self.dest]


class _Parser(argparse.ArgumentParser):
    """A parser that says in one sentence what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help.", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def _parser() -> argparse.ArgumentParser:
    common, again = _common(None, False), _common(argparse.SUPPRESS, argparse.SUPPRESS)
    parser = _Parser(prog="esp-ingest", description="The daemon between electric submersible pumps and TimescaleDB.")
    parser.add_argument("--version", action="version", version=f"esp-ingest {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, parents=[common])
        sub.set_defaults(command=command)
        return sub

    daemon = add("run", run, "the daemon: subscribe, store, diagnose; SIGTERM drains")
    daemon.add_argument(
        "--workers",
        type=_workers,
        default=1,
        metavar="N",
        help="processes that share the work through a share group (MQTT 5). Worker 0 answers on http.port, worker K on "
        "http.port + K. One of them runs the diagnostic rules for all, some seconds behind, from the table "
        "(docs/operations.md). After fewer or more workers than before, those that are no longer there are emptied "
        "and leave the broker by themselves",
    )
    daemon.add_argument(
        "--retire",
        action="store_true",
        help="leave for good: take what the session at the broker and the spool hold, end the session, exit",
    )
    migration = add("migrate", migrate, "bring the database to the newest schema")
    migration.add_argument(
        "--adopt", action="store_true", help="apply what was left out before TimescaleDB was there; locks the tables"
    )
    checking = add("check", check, "configuration, broker, database and schema, a line each")
    checking.add_argument("--json", action="store_true", help="one JSON object: ok, and what was looked at")
    _add_simulate(add("simulate", simulate, "be a fleet of ESP controllers, or replay a recording"))
    _add_demo(add("demo", demo, "all of it on this machine: embedded broker and database, a fleet with faults"))
    _add_rejects(add("rejects", rejects, "list, show and replay what was rejected"), again)
    _add_rules(add("rules", rules, "check, explain and try the diagnostic rules"), again)
    _add_alarms(add("alarms", alarms, "list, acknowledge and shelve alarms"), again)
    _add_api(add, again)
    _add_lifecycle(add("lifecycle", lifecycle, "archive finished days, drop old ones, read them back"), again)
    return parser


def _add_api(add: Callable[..., argparse.ArgumentParser], common: _Parser) -> None:
    from esp_ingest.commands import api as api_command
    from esp_ingest.commands import users as users_command

    api_command.add_arguments(add("api", api, "HTTP API and console; needs the extra api"))
    sub = add("users", users, "who may use the HTTP API")
    actions = sub.add_subparsers(metavar="ACTION", required=True, dest="action", parser_class=_Parser)
    users_command.add_arguments(
        lambda name, text: actions.add_parser(name, help=text, description=text, parents=[common])
    )


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


def _add_simulate(sub: argparse.ArgumentParser) -> None:
    _add_fleet(sub, wells=10)
    sub.add_argument(
        "--fault", action=_Given, default=[], metavar="NAME", help=f"fault to show; may be repeated: {FAULTS}"
    )
    sub.add_argument(
        "--fault-after",
        action=_Given,
        type=_seconds,
        default=0.0,
        metavar="S",
        help="seconds until the fault sets in (0)",
    )
    sub.add_argument(
        "--speed",
        action=_Given,
        type=_seconds,
        default=1.0,
        metavar="X",
        help="times real time; 0: as fast as possible",
    )
    sub.add_argument(
        "--keep-timestamps",
        action=_Given,
        nargs=0,
        default=False,
        help="replay with the recording's own timestamps",
    )
    for name in _TROUBLE:
        sub.add_argument(
            f"--{name}", type=_share, default=0.0, metavar="SHARE", help=f"share of {name} messages, 0 to 1"
        )


def _add_demo(sub: argparse.ArgumentParser) -> None:
    _add_fleet(sub, wells=12)
    sub.add_argument(
        "--json",
        action="store_true",
        help="print a last line of totals as JSON: messages published; readings written; duplicates; rejected; "
        "diagnostics, the occurrences raised but for those that another one explains",
    )


def _add_fleet(sub: argparse.ArgumentParser, wells: int) -> None:
    fleet = (
        ("--wells", _count, wells, "N", f"wells in the fleet ({wells})"),
        ("--rate", _rate, 1.0, "HZ", "readings a second and well (1)"),
        ("--duration", _seconds, 60.0, "S", "seconds to run (60)"),
        ("--seed", _seed, 1, "N", "the same seed gives the same fleet (1)"),
    )
    for name, kind, default, metavar, text in fleet:
        sub.add_argument(name, action=_Given, type=kind, default=default, metavar=metavar, help=text)
    sub.add_argument("--csv", type=Path, metavar="FILE", help="replay this recording instead of simulating")


def _add_rejects(sub: argparse.ArgumentParser, common: _Parser) -> None:
    actions = sub.add_subparsers(metavar="ACTION", required=True, dest="action", parser_class=_Parser)
    for name, text in (("list", "a line a reject, newest first"), ("replay", "put them through the pipeline again")):
        action = actions.add_parser(name, help=text, description=text, parents=[common])
        action.add_argument("--reason", help="only this reason, such as invalid_json (docs/payloads.md has all)")
        action.add_argument("--topic", help="only this topic; * stands for any text")
        action.add_argument("--since", metavar="TIME", help="received at or after, RFC 3339 or an age such as 2h or 7d")
        action.add_argument("--until", metavar="TIME", help="received before")
        most = 100 if name == "list" else 1_000_000
        action.add_argument("--limit", type=_count, default=most, metavar="N", help=f"at most so many ({most})")
        if name == "replay":
            action.add_argument("--id", help="only this reject, as printed by list")
            action.add_argument("--dry-run", action="store_true", help="say what would become of them, store nothing")
            action.add_argument(
                "--trust-timestamps", action="store_true", help="take timestamps as right, however far ahead or old"
            )
    show = actions.add_parser("show", help="one reject in full", description="one reject in full", parents=[common])
    show.add_argument("id", help="as printed by list")


def _add_rules(sub: argparse.ArgumentParser, common: _Parser) -> None:
    actions = sub.add_subparsers(metavar="ACTION", required=True, dest="action", parser_class=_Parser)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        action: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text, parents=[common])
        action.add_argument("--rules", type=Path, metavar="FILE", help="rules file (default: diagnostics.rules_file)")
        return action

    add("check", "read the rules and say what is wrong or odd in them")
    explain = add("explain", "a rule in words, with a well's limits")
    explain.add_argument("diagnosis", nargs="?", help="the rule; all when left out")
    explain.add_argument("--well", help="with this well's limits")
    test = add("test", "run the rules without writing, and print the occurrences")
    test.add_argument("--csv", type=Path, metavar="FILE", help="over a recording")
    test.add_argument("--since", metavar="TIME", help="over the database from this time, RFC 3339 or an age such as 7d")
    test.add_argument("--until", metavar="TIME", help="up to this time (now)")
    test.add_argument("--well", help="only this well")
    test.add_argument("--json", action="store_true", help="an occurrence a line as JSON")


def _add_alarms(sub: argparse.ArgumentParser, common: _Parser) -> None:
    actions = sub.add_subparsers(metavar="ACTION", required=True, dest="action", parser_class=_Parser)
    text = "open alarms, most severe first"
    listing = actions.add_parser("list", help=text, description=text, parents=[common])
    listing.add_argument("--well", help="only of this well")
    listing.add_argument("--all", action="store_true", help="cleared and shelved ones too")
    listing.add_argument("--json", action="store_true", help="an alarm a line as JSON")
    for name, text in (
        ("ack", "acknowledge an alarm"),
        ("shelve", "silence a diagnosis of a well for a time"),
        ("unshelve", "end a shelving"),
    ):
        action = actions.add_parser(name, help=text, description=text, parents=[common])
        action.add_argument("well", help="well id, as `alarms list` prints it")
        action.add_argument("diagnosis", help="name of the rule, such as gas_lock (`rules explain` has all)")
        action.add_argument("--by", required=True, help="who does it")
        action.add_argument("--why", default="", help="the reason, kept" + (", required" if name == "shelve" else ""))
        if name == "shelve":
            action.add_argument("--for", required=True, dest="duration", metavar="DURATION", help="such as 8h or 3d")


def _add_lifecycle(sub: argparse.ArgumentParser, common: _Parser) -> None:
    from esp_ingest.commands import lifecycle as room

    actions = sub.add_subparsers(metavar="ACTION", required=True, dest="action", parser_class=_Parser)
    room.add_arguments(lambda name, text: actions.add_parser(name, help=text, description=text, parents=[common]))


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


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _workers(text: str) -> int:
    number = _count(text)
    if number > _MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r} workers are more than {_MOST_WORKERS}")
    return number


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 10_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
