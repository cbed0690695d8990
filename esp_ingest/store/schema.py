"""The schema of the database: what is there, what this database can do, and bringing it to the newest version."""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

import psycopg

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.resources import sql_folder
from esp_ingest.store import sqlstate
from esp_ingest.store.capabilities import Capabilities, SchemaError, capabilities
from esp_ingest.store.connection import Connection, connect, grant_connect, only_row
from esp_ingest.store.queries import query

Feature = Literal["timescaledb", "community", "columnstore"]
FEATURES: tuple[Feature, ...] = ("timescaledb", "community", "columnstore")
_WORKS_WITH = re.compile(r"^-- works with programs of schema >= (\d+)$", re.MULTILINE)
_FILE_NAME = re.compile(r"(?P<number>\d{4})_(?P<name>\w+?)(?:\.(?P<feature>\w+))?\.sql")


# ------------------------------------------------------------------------------------------------------- migrations


@dataclass(frozen=True, order=True)
class Migration:
    """One file of sql/migrations. ``feature`` is "" for every database."""

    number: int
    feature: str
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Of its text, as the ledger keeps it."""
        return hashlib.sha256(self.sql.encode()).hexdigest()[:32]

    @property
    def works_with(self) -> int | None:
        """The oldest program that works with a database that has this one, as the newest migration that came with it;
        None: only a program that knows this migration does."""
        match = _WORKS_WITH.search(self.sql)
        return None if match is None else int(match[1])

    @property
    def key(self) -> tuple[int, str]:
        """What identifies it in the ledger."""
        return self.number, self.feature

    @property
    def label(self) -> str:
        """Its name for people."""
        return f"{self.number:04d}_{self.name}" + (f".{self.feature}" if self.feature else "")


@cache
def migrations(folder: Path | None = None) -> tuple[Migration, ...]:
    """Every migration that came with the program, in order."""
    found = []
    for path in (folder or sql_folder() / "migrations").iterdir():
        match = _FILE_NAME.fullmatch(path.name)
        if match is None or (match["feature"] or "timescaledb") not in FEATURES:
            raise SchemaError(f"{path.name} is no name of a migration: see sql/README.md.")
        sql = path.read_text(encoding="utf-8")
        found.append(Migration(int(match["number"]), match["feature"] or "", match["name"], sql))
    return tuple(sorted(found))


class Applied(NamedTuple):
    """A migration as the database recorded it: its checksum, and :attr:`Migration.works_with`."""

    checksum: str
    works_with: int | None


Ledger = dict[tuple[int, str], Applied]
"""(number, feature) → what was applied, as recorded in the database."""


@dataclass(frozen=True)
class MigrationReport:
    """What ``migrate`` did. ``notes`` are sentences for the operator."""

    capabilities: Capabilities
    applied: tuple[str, ...]
    version: int
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For the terminal."""
        done = [f"applied {label}" for label in self.applied] or ["nothing to do"]
        return [*self.capabilities.lines(), *done, f"schema is at version {self.version}", *self.notes]


def migrate(
    settings: DatabaseSettings,
    *,
    adopt: bool = False,
    target: int | None = None,
    known: tuple[Migration, ...] | None = None,
) -> MigrationReport:
    """Bring the database to the newest schema (or to ``target``). Safe twice, and from two places at once.

    ``adopt`` also runs what was left out because the database lacked a feature that it has by now, which rewrites
    tables and locks them meanwhile. ``known`` stands in for :func:`migrations` in tests.

    Raises SchemaError where the database is newer than the program and does not work with it, where a recorded
    migration has another content, or where a step fails; StoreUnavailable where the database cannot be reached."""
    known = migrations() if known is None else known
    note = _create_extension(settings)
    with connect(settings, patient=True) as connection:
        try:
            report = _migrate(connection, known, adopt, target, [note] if note else [])
            return replace(report, notes=report.notes + _set_chunk_days(connection, report, settings.chunk_days))
        except psycopg.Error as error:
            connection.rollback()
            raise sqlstate.unavailable(error) from None


def _set_chunk_days(connection: Connection, report: MigrationReport, days: int) -> tuple[str, ...]:
    """``database.chunk_days`` for chunks that are made from now on. Returns what was done, one sentence or none."""
    if not days:
        return ()
    with connection.transaction():
        connection.execute(query("reach_extension"))
        has_chunks = "timescaledb" in report.capabilities.features
        found = connection.execute(query("chunk_days")).fetchone() if has_chunks else None
        if found is None:
            return ("database.chunk_days has no effect here: without TimescaleDB a table has no chunks.",)
        if found[0] == days:
            return ()
        connection.execute(query("set_chunk_days"), {"days": days})
    return (f"New chunks of esp_telemetry hold {days} days of readings; those that exist keep their {found[0]}.",)


def _create_extension(settings: DatabaseSettings) -> str:
    """Install TimescaleDB where the server brings it. Returns a sentence where it does, but refuses.

    On a connection of its own: a library that is not preloaded ends the session."""
    with connect(settings, autocommit=True) as connection:
        try:
            row = connection.execute(query("extension_available")).fetchone()
            if row is not None:
                with connection.transaction():
                    connection.execute("SET LOCAL client_min_messages = error")  # its welcome banner
                    connection.execute(query("create_extension"))
        except psycopg.Error as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            return (
                f"TimescaleDB comes with this server but could not be installed ({reason}): "
                "let a superuser run CREATE EXTENSION timescaledb, then esp-ingest migrate."
            )
    return ""


def _migrate(
    connection: Connection, known: tuple[Migration, ...], adopt: bool, target: int | None, notes: list[str]
) -> MigrationReport:
    applied: list[str] = []
    have = capabilities(connection)
    place = _place(connection)
    if not place.schema_exists:
        raise SchemaError(f"There is no schema {place.schema}: create it, or set database.schema_name.")
    connection.commit()
    with connection.transaction():  # short, and not held while a migration runs: daemons read the ledger
        connection.execute(query("migration_lock"))
        connection.execute(query("create_ledger"))
        connection.execute(query("widen_ledger"))
    last = target if target is not None else max((m.number for m in known), default=0)
    while True:
        step = _one_step(connection, lambda ledger: _next(known, ledger, have, adopt, last))
        if step is None:
            break
        applied.append(step.label)
    ledger = _read_ledger(connection)
    connection.commit()
    notes += _changed_kind(known, ledger, have)
    if _newest(ledger) > last and target is None:
        notes.append(f"The database is newer than this program, which is of schema {last}, and works with it.")
    return MigrationReport(have, tuple(applied), _newest(ledger), tuple(notes))


def _one_step(connection: Connection, choose: Callable[[Ledger], Migration | None]) -> Migration | None:
    """One migration in one transaction. The advisory lock lasts as long, so that a pooler in transaction mode will do;
    a process that has waited for it reads the ledger again."""
    with connection.transaction():
        connection.execute(query("migration_lock"))
        step = choose(_read_ledger(connection))
        if step is None:
            return None
        connection.execute("SET LOCAL statement_timeout = 0")  # an index on a full table takes its time
        connection.execute(query("reach_extension"))
        try:
            connection.execute(step.sql.encode())
        except psycopg.Error as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise SchemaError(f"Migration {step.label} failed and was rolled back: {reason}.") from None
        record = (step.number, step.feature, step.name, step.checksum, _program_version(), step.works_with)
        connection.execute(query("record_migration"), record)
    return step


def _next(known: tuple[Migration, ...], ledger: Ledger, have: Capabilities, adopt: bool, last: int) -> Migration | None:
    _refuse_strangers(known, ledger)
    for step in known:
        if step.number > last or step.key in ledger:
            continue
        if step.feature and step.feature not in have.features:
            continue
        if _left_out(step, known, ledger) and not adopt:
            continue
        return step
    return None


def _left_out(step: Migration, known: tuple[Migration, ...], ledger: Ledger) -> bool:
    """A feature's file that an earlier run passed over because the database lacked the feature, or one that builds on
    such a file: everything builds on the hypertables."""
    newest = _newest(ledger)
    return bool(step.feature) and any(
        other.feature in (step.feature, "timescaledb") and other.number < newest and other.key not in ledger
        for other in known
        if other.number <= step.number
    )


def _refuse_strangers(known: tuple[Migration, ...], ledger: Ledger) -> None:
    """The gate: raises SchemaError where this program must not work with such a database."""
    by_key = {step.key: step for step in known}
    ours = _newest(by_key)
    for (number, feature), applied in sorted(ledger.items()):
        step = by_key.get((number, feature))
        if step is None:
            if applied.works_with is not None and applied.works_with <= ours:
                continue
            needed = number if applied.works_with is None else applied.works_with
            raise SchemaError(
                f"The database is newer than this program (it has migration {number}, which works with programs of "
                f"schema {needed} or newer; this one is of schema {ours}): install a newer esp-ingest."
            )
        if step.checksum != applied.checksum:
            raise SchemaError(
                f"Migration {step.label} differs from the one this database was made with: "
                "install the esp-ingest that made it, or an official release."
            )


def _changed_kind(known: tuple[Migration, ...], ledger: Ledger, have: Capabilities) -> list[str]:
    """The database is of another kind than when it was migrated: say so rather than differ in silence."""
    gained = [
        step.label
        for step in known
        if step.feature in have.features and step.key not in ledger and _left_out(step, known, ledger)
    ]
    lost = sorted({feature for _, feature in ledger if feature and feature not in have.features})
    notes = []
    if gained:
        notes.append(
            f"This database can do more than when it was migrated: run esp-ingest migrate --adopt to apply "
            f"{', '.join(gained)} (it locks the tables while it rewrites them)."
        )
    if lost:
        notes.append(
            f"This database was migrated with {', '.join(lost)}, which it lacks now ({have.kind}): "
            "restore that edition of TimescaleDB, or compression and retention stand still."
        )
    return notes


def _read_ledger(connection: Connection) -> Ledger:
    rows = connection.execute(query("read_ledger")).fetchall()
    return {(number, feature): Applied(checksum, works_with) for number, feature, checksum, works_with in rows}


def _newest(keys: Iterable[tuple[int, str]]) -> int:
    return max((number for number, _ in keys), default=0)


class _Place(NamedTuple):
    """Where this session looks for the tables; ``elsewhere``: schemas that have a ledger."""

    schema: str
    schema_exists: bool
    may_use: bool
    ledger_exists: bool
    may_read: bool
    elsewhere: list[str]
    user: str


def _place(connection: Connection) -> _Place:
    row = only_row(connection.execute(query("ledger_place")))
    return _Place(*row)


def _program_version() -> str:
    try:
        return version("esp-ingest")
    except PackageNotFoundError:
        return "unknown"


# ------------------------------------------------------------------------------------------------------------ checks


@dataclass(frozen=True)
class SchemaCheck:
    """Is the schema the one that this program writes? ``detail`` is a sentence that says what to do where it is not.
    ``without_diagnostics`` is one if only diagnoses cannot be stored, else empty."""

    status: Literal["ok", "needs migrate", "unusable", "unreachable"]
    detail: str
    without_diagnostics: str = ""

    @property
    def ok(self) -> bool:
        """This program can write here."""
        return self.status == "ok"


def check_schema(connection: Connection) -> SchemaCheck:
    """:func:`check_version`, and whether this session may write here. Raises as that."""
    version_check = check_version(connection)
    return version_check if not version_check.ok else _with_obstacles(connection, version_check)


def check_version(connection: Connection) -> SchemaCheck:
    """Whether this program works with the schema: two small queries. Raises psycopg.Error where the connection fails,
    SchemaError where PostgreSQL is too old; an open transaction is left as it is found."""
    place = _place(connection)
    if not place.ledger_exists:
        return _no_ledger(place)
    if not place.may_read:
        return _with_obstacles(connection, SchemaCheck("unusable", ""))
    ledger = _read_ledger(connection)
    try:
        _refuse_strangers(migrations(), ledger)
    except SchemaError as error:
        return SchemaCheck("unusable", str(error))
    newest, ours = _newest(ledger), _newest(step.key for step in migrations())
    missing = [s for s in migrations() if s.key not in ledger and not _left_out(s, migrations(), ledger)]
    # A feature's file is missing only if this database would run it.
    if any(not step.feature for step in missing) or (missing and _would_run(connection, missing)):
        wanted = max(step.number for step in missing)
        return SchemaCheck(
            "needs migrate", f"The schema is at version {newest} and {wanted} is needed: run esp-ingest migrate."
        )
    which = "which this program writes" if newest == ours else f"and works with this program, which writes {ours}"
    return SchemaCheck("ok", f"The schema is at version {newest}, {which}.")


def _no_ledger(place: _Place) -> SchemaCheck:
    if not place.schema_exists:
        return SchemaCheck("unusable", f"There is no schema {place.schema}: create it, or set database.schema_name.")
    if not place.may_use:
        grant = f"let its owner run GRANT USAGE ON SCHEMA {place.schema} TO {place.user}"
        return SchemaCheck("unusable", f"The database user may not use the schema: {grant}.")
    if place.elsewhere:
        return SchemaCheck(
            "needs migrate",
            f"The tables are not in the schema {place.schema} but in {' and '.join(place.elsewhere)}: "
            "set database.schema_name, or run esp-ingest migrate to make others.",
        )
    return SchemaCheck("needs migrate", "The database has no schema yet: run esp-ingest migrate.")


def _with_obstacles(connection: Connection, version_check: SchemaCheck) -> SchemaCheck:
    """What would stop the first batch, only the first duplicate (it needs a temporary table), or only diagnoses."""
    row = only_row(connection.execute(query("obstacles")))
    is_standby, is_read_only, grants, grants_of_diagnostics, gone = row
    if is_standby:
        what = "This database is a standby and only reads: give the primary, or add target_session_attrs=read-write."
    elif is_read_only:
        what = "This database only reads: turn default_transaction_read_only off for it and for its user."
    elif grants:
        what = f"The database user lacks rights: let the owner of the tables run {'; '.join(grants)}."
    elif gone or grants_of_diagnostics:
        todo = [f"restore {' and '.join(gone)}"] if gone else []
        if grants_of_diagnostics:
            todo.append(f"run {'; '.join(grants_of_diagnostics)}")
        what = f"Readings are stored, diagnoses are not: let the owner of the tables {', and '.join(todo)}."
        return replace(version_check, without_diagnostics=what)
    else:
        return version_check
    return SchemaCheck("unusable", what)


def _would_run(connection: Connection, missing: list[Migration]) -> bool:
    have = capabilities(connection).features
    return any(step.feature in have for step in missing)


def check_database(settings: DatabaseSettings) -> tuple[SchemaCheck, Capabilities | None]:
    """For ``esp-ingest check`` and the start: connect, look, disconnect. Never raises for a database in trouble."""
    try:
        with connect(settings, autocommit=True) as connection:
            return check_schema(connection), capabilities(connection)
    except StoreUnavailable as error:
        denied = error.reason == sqlstate.MISSING_RIGHT
        return SchemaCheck("unreachable", grant_connect(settings) if denied else sqlstate.sentence(error)), None
    except psycopg.Error as error:
        return SchemaCheck("unreachable", sqlstate.sentence(error)), None
    except SchemaError as error:
        return SchemaCheck("unusable", str(error)), None
