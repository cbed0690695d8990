"""The work of `esp-ingest users`. Every change is recorded in the audit log."""

import argparse
import getpass
import json
import re
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from esp_ingest.api.access import passwords
from esp_ingest.api.access.auth import machine_token
from esp_ingest.config.settings import ConfigError, Settings
from esp_ingest.interfaces import Clock
from esp_ingest.model import at_us
from esp_ingest.service.clock import SystemClock
from esp_ingest.store import users
from esp_ingest.store.connection import Connection, connect

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_PATTERN = re.compile(r"[A-Za-z0-9._*-]{1,64}")


def run(settings: Settings, arguments: argparse.Namespace) -> Iterator[str]:
    """The lines to print. Raises ConfigError for wrong usage, LookupError if there is no such user,
    StoreUnavailable."""
    action: Callable[[Settings, argparse.Namespace, Clock], Iterator[str]] = _ACTIONS[arguments.action]
    return action(settings, arguments, SystemClock())


def _add(settings: Settings, arguments: argparse.Namespace, _clock: Clock) -> Iterator[str]:
    if not _NAME.fullmatch(arguments.name):
        raise ConfigError(f"{arguments.name!r} is not a user name: use letters, digits, . _ @ -, at most 64.")
    wells = _wells(arguments.wells) or ["*"]
    password_hash = _new_password(arguments)
    with connect(settings.database, autocommit=True) as connection:
        if not users.add(connection, arguments.name, password_hash, arguments.role, wells):
            raise LookupError(
                f"There is a user {arguments.name} already: `esp-ingest users change` or `users password` changes him."
            )
        _record(connection, "user added", arguments.name, role=arguments.role, wells=wells)
    yield f"{arguments.name}: {arguments.role}, wells {', '.join(wells)}"


def _list(settings: Settings, arguments: argparse.Namespace, _clock: Clock) -> Iterator[str]:
    with connect(settings.database, autocommit=True) as connection:
        found = users.list_users(connection)
    if arguments.json:
        yield from (json.dumps(user, default=lambda at: at.isoformat()) for user in found)
        return
    for user in found:
        state = f"disabled {_day(user['disabled_at'])}" if user["disabled_at"] else f"since {_day(user['created_at'])}"
        tokens = f"  {user['tokens']} tokens" if user["tokens"] else ""
        yield f"{user['name']:<20} {user['role']:<9} {state}  wells {', '.join(user['wells'])}{tokens}"
    yield f"{len(found)} users" if found else "no users: make the first with `esp-ingest users add NAME --role admin`"


def _change(settings: Settings, arguments: argparse.Namespace, _clock: Clock) -> Iterator[str]:
    wells = _wells(arguments.wells)
    if arguments.role is None and wells is None:
        raise ConfigError("Say what is to change: --role or --wells.")
    with connect(settings.database, autocommit=True) as connection:
        _must(users.change(connection, arguments.name, arguments.role, wells), arguments.name)
        _record(connection, "user changed", arguments.name, role=arguments.role, wells=wells)
    yield f"{arguments.name}: changed"


def _disable(settings: Settings, arguments: argparse.Namespace, _clock: Clock) -> Iterator[str]:
    with connect(settings.database, autocommit=True) as connection:
        _must(users.disable(connection, arguments.name), arguments.name)
        _record(connection, "user disabled", arguments.name)
    yield f"{arguments.name}: disabled; sessions and tokens have ended"


def _password(settings: Settings, arguments: argparse.Namespace, _clock: Clock) -> Iterator[str]:
    password_hash = _new_password(arguments)
    with connect(settings.database, autocommit=True) as connection:
        _must(users.set_password(connection, arguments.name, password_hash), arguments.name)
        _record(connection, "password changed", arguments.name)
    yield f"{arguments.name}: new password; sessions of the old one have ended"


def _token(settings: Settings, arguments: argparse.Namespace, clock: Clock) -> Iterator[str]:
    token = machine_token()
    expires_at = at_us(clock.now_us() + arguments.days * 86_400_000_000)
    with connect(settings.database, autocommit=True) as connection:
        user = users.find(connection, arguments.name)
        _must(user is not None and not user.disabled, arguments.name)
        users.add_token(connection, arguments.name, token, expires_at)
        _record(connection, "token made", arguments.name, expires_at=expires_at.isoformat())
    sys.stderr.write(f"A token of {arguments.name}, good until {_day(expires_at)}; it is shown only now:\n")
    yield token


_ACTIONS = {
    "add": _add,
    "list": _list,
    "change": _change,
    "disable": _disable,
    "password": _password,
    "token": _token,
}


def _must(found: bool, name: str) -> None:
    if not found:
        raise LookupError(f"There is no user {name}, or he is disabled: see `esp-ingest users list`.")


def _wells(patterns: list[str] | None) -> list[str] | None:
    for pattern in patterns or ():
        if not _PATTERN.fullmatch(pattern):
            raise ConfigError(f"--wells {pattern!r} is not a pattern of well ids: use letters, digits, . _ - and *.")
    return patterns


def _new_password(arguments: argparse.Namespace) -> str:
    """The hash of a new password, which is read from a file or typed twice. Raises ConfigError."""
    password = _read(arguments.password_file) if arguments.password_file else _typed()
    try:
        passwords.check_rules(password)
    except ValueError as error:
        raise ConfigError(f"The password cannot be used: {error}.") from None
    return passwords.hashed(password)


def _read(path: str) -> str:
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--password-file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--password-file {path} cannot be read: it is not UTF-8 text.") from None
    return text.split("\n", 1)[0].rstrip("\r")


def _typed() -> str:
    if not sys.stdin.isatty():
        raise ConfigError("There is no terminal to ask for the password: give it with --password-file FILE.")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise ConfigError("The two passwords differ: try again.")
    return password


def _record(connection: Connection, action: str, name: str, **detail: Any) -> None:
    users.record(connection, f"{getpass.getuser()} (command line)", "local", action, {"user": name, **detail})


def _day(at: datetime) -> str:
    return at.date().isoformat()
