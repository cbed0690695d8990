"""`esp-ingest check`: configuration, broker, database, schema and what this database can do, a line each."""

import logging
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from esp_ingest.config.settings import ConfigError, Settings
from esp_ingest.interfaces import Clock
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.metrics import Metrics

_POLL_SECONDS = 0.05


class Line(NamedTuple):
    """What was looked at, whether it is well, and why."""

    subject: str
    ok: bool
    detail: str
    is_note: bool = False  # neither well nor wrong: what this database is able to do

    def __str__(self) -> str:
        state = "FAIL" if not self.ok else "note" if self.is_note else "ok  "
        return f"{self.subject:<14} {state}  {self.detail}"


def run(settings: Settings) -> Iterator[Line]:
    """Look at everything, even where something before it failed. Reads only."""
    logging.getLogger("esp_ingest").addHandler(logging.NullHandler())  # what is wrong is said in a line, once
    yield _configuration(settings)
    yield _rules(settings)
    yield _spool(settings)
    yield _memory(settings)
    yield _broker(settings, SystemClock())
    yield from _database(settings)


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
    from esp_ingest.resources import config_file

    try:
        loaded = rules_file.load(Path(settings.diagnostics.rules_file or config_file("rules.toml")))
    except rules.RulesError as error:
        return Line("rules", False, str(error))
    return Line("rules", True, f"{len(loaded.rules)} rules")


def _memory(settings: Settings) -> Line:
    """What the settings allow to be held, against the limit of the cgroup that this command runs in."""
    from esp_ingest.service import memory

    judged = memory.judge(settings, memory.LEAST_BASE_BYTES, memory.cgroup_limit())
    return Line("memory", judged.fits is not False, judged.sentence)


def _spool(settings: Settings) -> Line:
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


def _broker(settings: Settings, clock: Clock) -> Line:
    """Connect and subscribe as the daemon would, under a client id of its own, so that the daemon's session is left
    alone. The broker forgets the probe's session with its connection, even if this process is killed."""
    from esp_ingest.mqtt.source import MqttSource

    mqtt = settings.mqtt
    address = f"{mqtt.host}:{mqtt.port}"
    own_id = f"{mqtt.client_id}-check-{secrets.token_hex(4)}"  # two at once must not end each other's connection
    probe = mqtt.model_copy(update={"client_id": own_id, "share_group": ""})
    try:
        source = MqttSource(probe, clock, Metrics(), keep_session=False)
    except ConfigError as error:
        return Line("broker", False, str(error))
    source.start()
    try:
        deadline = clock.monotonic() + mqtt.connect_timeout_seconds
        while not source.subscribed and clock.monotonic() < deadline:
            clock.sleep(_POLL_SECONDS)
        if source.subscribed:
            return Line("broker", True, f"{address}, subscription granted")
        return Line("broker", False, f"{address}: {source.last_error or 'no answer: check mqtt.host and mqtt.port'}")
    finally:
        source.close()


def _database(settings: Settings) -> Iterator[Line]:
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
        yield from _other_daemons(settings)
        yield from _lifecycle(settings)


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


def _lifecycle(settings: Settings) -> Iterator[Line]:
    """The archive's settings, and how tables and archive are."""
    import psycopg

    from esp_ingest.interfaces import StoreUnavailable
    from esp_ingest.lifecycle import observe
    from esp_ingest.model import at_us
    from esp_ingest.store import sqlstate
    from esp_ingest.store.connection import connect

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
        yield Line("lifecycle", True, "not looked at: this user may not read its tables", True)
        return
    except (StoreUnavailable, psycopg.Error) as error:
        yield Line("lifecycle", False, sqlstate.sentence(error))
        return
    except OSError as error:
        yield Line("lifecycle", False, f"lifecycle.disk_path: {error.strerror}.")
        return
    for ok, text in observe.lines(state):
        yield Line("lifecycle", ok or not archive, text, is_note=True)
