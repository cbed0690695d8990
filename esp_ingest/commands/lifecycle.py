"""`esp-ingest lifecycle`: archive finished days, prove the copies, drop what is old, read it back, try the backup."""

import argparse
import json
import math
import sys
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from esp_ingest.commands.arguments import AddAction
from esp_ingest.service.extra import require
from esp_ingest.service.text import rfc3339_of

if TYPE_CHECKING:
    from esp_ingest.config.settings import Settings


def add_arguments(add: AddAction) -> None:
    """``add`` makes the parser of an action from its name and what it does."""
    run = add("run", "archive every finished day, prove the copies, drop what is old")
    when = run.add_mutually_exclusive_group()
    when.add_argument(
        "--once", action="store_true", help="one run, then exit: 0 if all is archived and proven (default)"
    )
    when.add_argument("--every", metavar="DURATION", help="a run every so often, such as 1h, until SIGTERM")
    run.add_argument(
        "--adopt",
        action="store_true",
        help="go on with an archive that is ahead of this database, which was restored from a backup",
    )
    status = add("status", "each table and day: rows here, archived, when verified and dropped, bytes")
    status.add_argument("--json", action="store_true", help="as one JSON array")
    for name, text in (
        ("verify", "read archived days back and compare them with their manifests"),
        ("restore", "archived rows back into the database; what is there stays"),
    ):
        action = add(name, text)
        required = name == "restore"
        action.add_argument(
            "--from", dest="first", type=_day, required=required, metavar="DAY", help="first day, YYYY-MM-DD (UTC)"
        )
        action.add_argument("--to", dest="last", type=_day, required=required, metavar="DAY", help="last day, included")
        action.add_argument(
            "--table", choices=_TABLES, help="only this table" if not required else "this table (esp_telemetry)"
        )
    action.add_argument("--well", help="only this well")
    action.add_argument("--into", metavar="TABLE", help="into this table, made like the source where it is missing")
    ask = add("query", "a SELECT over archive and database together")
    ask.add_argument("sql", help='such as "SELECT well_id, avg(pip) FROM esp_telemetry GROUP BY 1"')
    ask.add_argument("--json", action="store_true", help="a row a line as JSON")
    drill = add("drill", "restore the newest backup for a try, compare it with the archive, throw it away")
    drill.add_argument(
        "--repository", type=int, metavar="N", help="of pgBackRest's repository N (backup.repository; else the newest)"
    )


_TABLES = ("esp_telemetry", "diagnostic_results", "ingest_rejects")


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day such as 2026-11-25") from None


def run(settings: "Settings", arguments: argparse.Namespace) -> int:
    """Returns the exit code. Raises LifecycleError, ConfigError and ExtraMissing, all of them sentences for people."""
    require("archive", "The archive")
    return _ACTIONS[arguments.action](settings, arguments)


def _run(settings: "Settings", arguments: argparse.Namespace) -> int:
    from esp_ingest.lifecycle import runs, service
    from esp_ingest.service.clock import SystemClock
    from esp_ingest.service.metrics import LifecycleMetrics

    if arguments.every is not None:
        return service.run(settings, _seconds(arguments.every), adopt=arguments.adopt)
    runner = service.Runner(settings, SystemClock(), LifecycleMetrics(), _say_action, adopt=arguments.adopt)
    outcome = runner.once()
    if outcome.busy:
        sys.stderr.write(f"esp-ingest: {runs.BUSY}\n")
    return 0 if outcome.ok else 1


def _seconds(text: str) -> float:
    from esp_ingest.config.settings import ConfigError
    from esp_ingest.diagnostics.language.units import ConditionError, duration_us

    try:
        seconds = duration_us(text.strip()) / 1e6
    except ConditionError as error:
        raise ConfigError(f"--every {text}: {error}") from None
    if not 1 <= seconds <= 7 * 86_400:
        raise ConfigError(f"--every {text} is not between 1s and 7d.")
    return seconds


def _say_action(event: str, fields: dict[str, Any]) -> None:
    """A line an action on stdout; what went wrong on stderr."""
    if event == "problem":
        sys.stderr.write(f"esp-ingest: {fields['problem']}\n")
        return
    place = f"{fields['table']} {fields['day']}" + (f" to {fields['to']}" if "to" in fields else "")
    more = [f"{fields['rows']} rows"]
    if "version" in fields:
        more += [f"{fields['bytes']} bytes", f"version {fields['version']}"]
    sys.stdout.write(f"{event} {place}: {', '.join(more)}\n")
    sys.stdout.flush()


def _status(settings: "Settings", arguments: argparse.Namespace) -> int:
    from esp_ingest.lifecycle import runs

    rows = runs.status(settings)
    if arguments.json:
        shown = [{key: value for key, value in row.items() if key != "problem"} for row in rows]
        sys.stdout.write(json.dumps(shown) + "\n")
        return 0
    sys.stdout.write(f"{'table':<19} {'day':<10} {'rows here':>10} {'archived':>10} {'bytes':>12}  verified, dropped\n")
    for row in rows:
        times = (("verified", row["verified_at"]), ("dropped", row["dropped_at"]))
        notes = [", ".join(f"{word} {at[:16]}" for word, at in times if at), row["problem"]]
        sys.stdout.write(
            f"{row['table']:<19} {row['day']:<10} {row['rows_database']:>10} {row['rows_archived']:>10} "
            f"{row['bytes']:>12}  {'  '.join(filter(None, notes))}\n"
        )
    return 0


def _verify(settings: "Settings", arguments: argparse.Namespace) -> int:
    from esp_ingest.lifecycle import reading

    return reading.verify_days(settings, arguments.table, arguments.first, arguments.last, _say_action)


def _restore(settings: "Settings", arguments: argparse.Namespace) -> int:
    from esp_ingest.lifecycle import reading

    if arguments.first > arguments.last:
        from esp_ingest.config.settings import ConfigError

        raise ConfigError(f"--from {arguments.first} is after --to {arguments.last}: exchange them.")
    wanted = reading.Wanted(
        arguments.table or "esp_telemetry", arguments.first, arguments.last, arguments.well, arguments.into
    )
    return reading.restore_days(settings, wanted, _say_action)


def _query(settings: "Settings", arguments: argparse.Namespace) -> int:
    from esp_ingest.lifecycle import query

    first = True
    for names, rows in query.ask(settings, arguments.sql):
        if first and not arguments.json:
            sys.stdout.write("\t".join(names) + "\n")
        first = False
        for row in rows:
            if arguments.json:
                sys.stdout.write(json.dumps(dict(zip(names, map(_plain, row), strict=True))) + "\n")
            else:
                sys.stdout.write("\t".join("" if value is None else str(_plain(value)) for value in row) + "\n")
    return 0


def _drill(settings: "Settings", arguments: argparse.Namespace) -> int:
    from esp_ingest.config.settings import ConfigError
    from esp_ingest.lifecycle.backup import drill
    from esp_ingest.service.clock import SystemClock

    if arguments.repository is not None:
        if not 1 <= arguments.repository <= 256:
            raise ConfigError(f"--repository {arguments.repository} is not a number from 1 to 256.")
        chosen = settings.backup.model_copy(update={"repository": arguments.repository})
        settings = settings.model_copy(update={"backup": chosen})
    result = drill.run(settings, SystemClock(), _say_line)
    if forgotten := drill.remember(settings, result):
        sys.stderr.write(f"esp-ingest: The result was not written to the database: {forgotten}\n")
    if result.problem:
        sys.stderr.write(f"esp-ingest: {result.problem}\n")
        return 1
    _say_line(f"the backup is good; the drill took {result.seconds:.1f} s")
    return 0


def _say_line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    """A value as JSON can say it: times in RFC 3339, bytes in hexadecimal, what is no finite number as text."""
    if isinstance(value, datetime):
        return rfc3339_of(value)
    if isinstance(value, bytes):
        return value.hex()
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


_ACTIONS = {"run": _run, "status": _status, "verify": _verify, "restore": _restore, "query": _query, "drill": _drill}
