"""`esp-ingest check`: configuration, broker, database, schema and what this database can do, a line each."""

import argparse
import contextlib
import errno
import json
import logging
import socket
import sys
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

from esp_ingest.commands.checks import broker
from esp_ingest.commands.checks.line import Line
from esp_ingest.config.settings import ConfigError, Settings
from esp_ingest.service.clock import SystemClock


def as_json(lines: Sequence[Line]) -> str:
    """One object: whether all is well, and each thing that was looked at."""
    checks = [{"subject": each.subject, "state": each.state.lower(), "detail": each.detail} for each in lines]
    return json.dumps({"ok": all(each.ok for each in lines), "checks": checks})


def exit_code(lines: Sequence[Line]) -> int:
    """0 if all is well, 2 for a configuration that cannot be used, else 1."""
    wrong = {line.subject for line in lines if not line.ok}
    return 2 if "configuration" in wrong else 1 if wrong else 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="one JSON object: ok, and what was looked at")


def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Print what :func:`look` finds, each line as soon as it is known. Returns the exit code."""
    lines = []
    for line in look(settings):
        lines.append(line)
        if not arguments.json:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
    if arguments.json:
        sys.stdout.write(f"{as_json(lines)}\n")
    return exit_code(lines)


def look(settings: Settings) -> Iterator[Line]:
    """Look at everything, even where something before it failed. Reads only."""
    logging.getLogger("esp_ingest").addHandler(logging.NullHandler())  # what is wrong is said in a line, once
    yield _configuration(settings)
    yield _rules(settings)
    yield spool(settings)
    yield memory(settings)
    yield http(settings)
    yield from broker.look(settings.mqtt, SystemClock())
    yield from database(settings)


def _configuration(settings: Settings) -> Line:
    """What the settings alone cannot tell."""
    from esp_ingest.store.connection import DsnError, conninfo

    try:
        conninfo(settings.database)
    except DsnError as error:
        return Line("configuration", False, f"{error}.")
    return Line("configuration", True, "valid")


def _rules(settings: Settings) -> Line:
    if not settings.diagnostics.enabled:
        return Line("rules", True, "diagnostics are switched off")
    from esp_ingest.diagnostics.language import rules, rules_file

    try:
        loaded = rules_file.load(settings.diagnostics.rules_path())
    except rules.RulesError as error:
        return Line("rules", False, str(error))
    return Line("rules", True, f"{len(loaded.rules)} rules")


def memory(settings: Settings) -> Line:
    """What the settings allow to be held, against the limit of the cgroup that this command runs in."""
    from esp_ingest.service import memory

    judged = memory.judge(settings, memory.LEAST_BASE_BYTES, memory.cgroup_limit())
    return Line("memory", judged.fits is not False, judged.sentence)


def spool(settings: Settings) -> Line:
    """Whether the spool's folder can be written to, and what lies in it."""
    from esp_ingest.store.spool.spool import is_shared, orphans

    try:
        folder = settings.spool.folder()
    except ConfigError as error:
        return Line("spool", False, str(error))
    if not settings.spool.enabled:
        if left := orphans(folder):
            detail = f"switched off, but {folder} has acknowledged messages in {len(left)} files, which nobody stores: "
            return Line("spool", False, detail + "set spool.enabled and run until spool_messages is 0.")
        return Line("spool", True, "switched off: the broker's queue has to hold an outage of the database")
    where = folder
    while not where.exists():
        where = where.parent
    if not where.is_dir():
        return Line("spool", False, f"{where} is no folder: set spool.path to a writable folder.")
    try:
        if where == folder and is_shared(folder):
            return Line("spool", False, f"{folder} is open to every user: set spool.path to a folder of its own.")
        probe = where / ".esp-ingest-check"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Line(
            "spool", False, f"{folder} cannot be written ({error.strerror}): set spool.path to a writable folder."
        )
    return Line("spool", True, str(folder))


def http(settings: Settings) -> Line:
    """Whether the daemon could listen. Its own port is in use while it runs, and then it answers there."""
    http = settings.http
    address = f"{http.host}:{http.port}"
    if not http.port:
        return Line("http", True, "any free port")
    try:
        for family, kind, proto, _, where in socket.getaddrinfo(
            http.host, http.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, proto) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where[:2])
                probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and _is_a_daemon(http.host, http.port):
            return Line("http", True, f"{address}, in use by a daemon that runs")
        why = "in use by another program" if error.errno == errno.EADDRINUSE else str(error.strerror).lower()
        return Line("http", False, f"{address}: {why}: set http.host and http.port to what is free here.")
    return Line("http", True, f"{address} is free")


def _is_a_daemon(host: str, port: int) -> bool:
    """Whether what listens there is esp-ingest."""
    with contextlib.suppress(OSError), socket.create_connection((_reachable(host), port), timeout=1) as client:
        client.sendall(b"GET /health/live HTTP/1.0\r\n\r\n")
        return b'"checks"' in client.recv(4096)
    return False


def _reachable(host: str) -> str:
    """Where a program that listens on ``host`` can be reached from this machine."""
    with contextlib.suppress(ValueError):
        address = ip_address(host)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "::1"
    return host


def database(settings: Settings) -> Iterator[Line]:
    """Whether the database can be reached, its schema fits, and this user may write."""
    from esp_ingest.store.schema import check_database

    schema, capabilities = check_database(settings.database)
    if capabilities is None:
        yield Line("database", False, schema.detail)
        yield Line("schema", False, "not looked at, since the database cannot be used")
        return
    yield Line("database", True, "reachable")
    yield Line("schema", schema.ok, schema.detail)
    if schema.without_diagnostics and settings.diagnostics.enabled:
        yield Line("diagnostics", False, schema.without_diagnostics)
    for text in capabilities.lines():
        yield Line("capability", True, text, is_note=True)
    if schema.ok:
        yield from _newest(settings)
        yield from _other_daemons(settings)
        yield from lifecycle(settings)


def _newest(settings: Settings) -> Iterator[Line]:
    """Whether the daemon may keep the newest reading of each well."""
    import psycopg

    from esp_ingest.interfaces import StoreUnavailable
    from esp_ingest.store.connection import connect, only_row
    from esp_ingest.store.queries import query

    with (
        contextlib.suppress(StoreUnavailable, psycopg.Error),  # the lines before say what is wrong
        connect(settings.database, autocommit=True) as connection,
    ):
        (grants,) = only_row(connection.execute(query("newest_rights")))
        if grants:
            yield Line("newest", True, f"well_latest is slow: let the owner of the tables run {grants}", True)


def _other_daemons(settings: Settings) -> Iterator[Line]:
    """Daemons that store what this one receives as well."""
    import psycopg

    from esp_ingest.interfaces import StoreUnavailable
    from esp_ingest.mqtt.client_setup import Topics, session_name
    from esp_ingest.store import presence
    from esp_ingest.store.connection import connect

    try:
        with connect(settings.database, autocommit=True) as connection:
            others = presence.look(connection, session_name(settings.mqtt), Topics(settings.mqtt).wanted)
    except (StoreUnavailable, psycopg.Error):
        return  # this user may not read the table; the lines before say what is wrong
    if others:
        yield Line("daemons", True, presence.sentence(others), is_note=True)


def lifecycle(settings: Settings) -> Iterator[Line]:
    """The archive's settings, and how tables and archive are."""
    import psycopg

    from esp_ingest.interfaces import StoreUnavailable
    from esp_ingest.lifecycle import observe
    from esp_ingest.model import at_us
    from esp_ingest.store import sqlstate
    from esp_ingest.store.connection import connect
    from esp_ingest.store.queries import query

    archive, lifecycle = settings.archive.url, settings.lifecycle
    if archive:
        yield Line("archive", True, archive)
    elif lifecycle.drop_without_archive:
        yield Line("archive", True, "none: old days are dropped without a copy (lifecycle.drop_without_archive)", True)
    else:
        yield Line("archive", True, "archive.url is not set: nothing is archived, and nothing is dropped", True)
    try:
        with connect(settings.database, autocommit=True) as connection:
            state = observe.look(connection, lifecycle, at_us(SystemClock().now_us()))
    except psycopg.errors.InsufficientPrivilege:
        with connect(settings.database, autocommit=True) as connection:
            (grant,) = connection.execute(query("lifecycle_rights")).fetchone() or ("",)
        yield Line("lifecycle", True, f"not looked at: let the owner of the tables run {grant}", True)
        return
    except (StoreUnavailable, psycopg.Error) as error:
        yield Line("lifecycle", False, sqlstate.sentence(error))
        return
    except OSError as error:
        yield Line("lifecycle", False, f"lifecycle.disk_path: {error.strerror}.")
        return
    for ok, text in observe.lines(state):
        yield Line("lifecycle", ok or not archive, text, is_note=True)
