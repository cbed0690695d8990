"""`esp-ingest users`: who may use the HTTP API. The arguments; esp_ingest/api/access/admin.py does the work, so that
the parser of all commands loads neither database nor hashes."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from esp_ingest.commands.arguments import AddAction, whole
from esp_ingest.service.extra import require

if TYPE_CHECKING:
    from esp_ingest.config.settings import Settings

ROLES = ("viewer", "operator", "admin")


def add_arguments(action: AddAction) -> None:
    """The actions add, list, change, disable, password and token. ``action(name, text)`` makes the parser of one."""
    add = action("add", "make a user; asks for the password, unless it is in a file")
    listing = action("list", "one line for each user")
    change = action("change", "another role, or other wells")
    disable = action("disable", "end a user's sessions and tokens; a new password lets the user in again")
    password = action("password", "a new password; ends the sessions of the old one")
    token = action("token", "a token for a machine, with the role and wells of this user; it is printed once")
    for each in (add, change, disable, password, token):
        each.add_argument("name", help="user name: letters, digits, . _ @ -")
    add.add_argument(
        "--role", required=True, choices=ROLES, help="viewer reads, operator acts on alarms, admin sees all"
    )
    change.add_argument("--role", choices=ROLES, help="the new role")
    for each in (add, change):
        each.add_argument(
            "--wells",
            action="append",
            metavar="PATTERN",
            help="wells that the user may see, * stands for any text; may be repeated (all wells)",
        )
    for each in (add, password):
        each.add_argument("--password-file", metavar="FILE", help="its first line is the password; - is standard input")
    listing.add_argument("--json", action="store_true", help="one line of JSON for each user")
    token.add_argument("--days", required=True, type=_days, metavar="N", help="days until it ends")


def run(settings: "Settings", arguments: argparse.Namespace) -> Iterator[str]:
    """The lines to print. Raises ConfigError for wrong usage, LookupError if there is no such user,
    StoreUnavailable."""
    require("api", "`esp-ingest users`")
    from esp_ingest.api.access import admin

    return admin.run(settings, arguments)


def _days(text: str) -> int:
    return whole(text, 1, 3_650, "a number of days from 1 to 3650: a token has an end")
