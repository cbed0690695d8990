"""`esp-ingest alarms`: what is open, and what operators do about it. Who did what and why is kept in alarm_actions."""

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import UTC
from typing import Any

from esp_ingest.commands.arguments import AddAction
from esp_ingest.config.settings import ConfigError, Settings
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.diagnostics.language.units import ConditionError, duration_us
from esp_ingest.model import at_us
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.text import did_you_mean
from esp_ingest.store import alarms
from esp_ingest.store.alarms import LONGEST_SHELVING_US, Changed, Request
from esp_ingest.store.connection import Connection, Moment, connect


def add_arguments(add_action: AddAction) -> None:
    """The actions list, ack, shelve and unshelve."""
    text = "open alarms, most severe first"
    listing = add_action("list", text)
    listing.add_argument("--well", help="only of this well")
    listing.add_argument("--all", action="store_true", help="cleared and shelved ones too")
    listing.add_argument("--json", action="store_true", help="an alarm a line as JSON")
    for name, text in (
        ("ack", "acknowledge an alarm"),
        ("shelve", "silence a diagnosis of a well for a time"),
        ("unshelve", "end a shelving"),
    ):
        action = add_action(name, text)
        action.add_argument("well", help="well id, as `alarms list` prints it")
        action.add_argument("diagnosis", help="name of the rule, such as gas_lock (`rules explain` has all)")
        action.add_argument("--by", required=True, help="who does it")
        action.add_argument("--why", default="", help="the reason, kept" + (", required" if name == "shelve" else ""))
        if name == "shelve":
            action.add_argument("--for", required=True, dest="duration", metavar="DURATION", help="such as 8h or 3d")


def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """`esp-ingest alarms list|ack|shelve|unshelve`. Raises ConfigError for wrong usage, LookupError where there is no
    such alarm, StoreUnavailable without a database."""
    for line in alarm_lines(settings, arguments, SystemClock().now_us()):
        sys.stdout.write(f"{line}\n")
    return 0


def alarm_lines(settings: Settings, arguments: argparse.Namespace, now_us: int) -> Iterator[str]:
    """As :func:`run`, the lines to print."""
    if arguments.action == "list":
        with connect(settings.database, autocommit=True) as connection:
            rows = alarms.list_alarms(connection, arguments.well, everything=arguments.all)
        yield from map(_as_json, rows) if arguments.json else _table(rows)
        return
    request = _request(settings, arguments)
    until_us = now_us + _duration(arguments.duration) if arguments.action == "shelve" else 0
    with connect(settings.database, autocommit=True) as connection:
        if arguments.action == "ack":
            yield from _ack(connection, request)
        elif arguments.action == "shelve":
            _must_be_a_rule(connection, request, settings)
            yield from _shelve(connection, request, until_us)
        else:
            yield from _unshelve(connection, request)


def _request(settings: Settings, arguments: argparse.Namespace) -> Request:
    if not arguments.by.strip():
        raise ConfigError("--by must say who does it.")
    if arguments.action == "shelve" and not arguments.why.strip():
        raise ConfigError("Shelving needs a reason: say it with --why.")
    publish = settings.diagnostics.enabled and settings.diagnostics.publish
    return Request(arguments.well, arguments.diagnosis, arguments.by.strip(), arguments.why.strip(), publish)


def _duration(text: str) -> int:
    try:
        found = duration_us(text)
    except ConditionError as error:
        raise ConfigError(f"--for {text}: {error}.") from None
    if not 0 < found <= LONGEST_SHELVING_US:
        raise ConfigError("--for must be more than 0 and at most 30 d: shelving ends, switching a rule off does not.")
    return found


def _ack(connection: Connection, request: Request) -> Iterator[str]:
    changed = alarms.acknowledge(connection, request)
    if not changed:
        _must_exist(connection, request)
        if not alarms.knows(connection, request.well_id, request.diagnosis)[1]:
            raise LookupError(
                f"{request.diagnosis} has never been raised at {request.well_id}: see `esp-ingest alarms list --all`."
            )
        raise LookupError(
            f"Nothing of {request.diagnosis} at {request.well_id} waits to be acknowledged: "
            "see `esp-ingest alarms list --all`."
        )
    yield from (_said(request, each) for each in changed)


def _shelve(connection: Connection, request: Request, until_us: int) -> Iterator[str]:
    _must_exist(connection, request)
    changed = alarms.shelve(connection, request, until_us)
    yield f"{request.well_id} {request.diagnosis}: shelved until {_time(at_us(until_us))} by {request.by}"
    yield from (_said(request, each) for each in changed)


def _unshelve(connection: Connection, request: Request) -> Iterator[str]:
    was_shelved, changed = alarms.unshelve(connection, request)
    if not was_shelved:
        raise LookupError(
            f"{request.diagnosis} at {request.well_id} is not shelved: see `esp-ingest alarms list --all`."
        )
    yield f"{request.well_id} {request.diagnosis}: no longer shelved"
    yield from (_said(request, each) for each in changed)


def _must_be_a_rule(connection: Connection, request: Request, settings: Settings) -> None:
    """A shelf for a misspelt diagnosis would silence nothing, unnoticed."""
    rules = rules_file.load(settings.diagnostics.rules_path()).rules
    names = {rule.name for rule in rules}
    if request.diagnosis not in names and not alarms.knows(connection, request.well_id, request.diagnosis)[1]:
        hint = did_you_mean(request.diagnosis, names)
        raise LookupError(f"There is no rule {request.diagnosis}{hint}: see `esp-ingest rules explain`.")


def _must_exist(connection: Connection, request: Request) -> None:
    """A shelf for a misspelt well would silence nothing, unnoticed. A diagnosis may be shelved before it comes."""
    has_sent, _ = alarms.knows(connection, request.well_id, request.diagnosis)
    if not has_sent:
        raise LookupError(f"No well {request.well_id} has ever sent anything: look for it in the view well_latest.")


def _said(request: Request, changed: Changed) -> str:
    raised = _time(changed.raised_at)
    return f"{request.well_id} {request.diagnosis} raised {raised}: {changed.state} — {changed.message}"


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        until = f" until {_time(row['shelved_to'])} by {row['by_whom']}" if row["state"] == "shelved" else ""
        ended = f"  cleared {_time(row['cleared_at'])}" if row["cleared_at"] is not None else ""
        yield (
            f"{row['severity']:<8}  {row['well_id']:<12}  {row['diagnosis']:<20}  {_time(row['timestamp'])}  "
            f"{row['state']}{until}{ended}  {row['message']}"
        )
    yield "no alarms" if not rows else f"{len(rows)} alarms"


def _as_json(row: dict[str, Any]) -> str:
    return json.dumps(row, default=lambda at: at.isoformat())


def _time(at: Moment) -> str:
    if isinstance(at, str):
        return at
    return f"{at.astimezone(UTC).replace(tzinfo=None).isoformat(' ', 'seconds')} UTC"
