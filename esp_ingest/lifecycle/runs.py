"""One run of the lifecycle: archive the days that are finished, verify the copies, then drop old days. Nothing is
dropped while any day is unarchived, unverified or in doubt."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from esp_ingest.config.settings import Settings
from esp_ingest.interfaces import Clock, StoreUnavailable
from esp_ingest.lifecycle import aggregates, retention
from esp_ingest.lifecycle import days as known
from esp_ingest.lifecycle.days import Days, Held, Record
from esp_ingest.lifecycle.errors import LifecycleError, Reason
from esp_ingest.lifecycle.tables import TABLES, Table, bounds
from esp_ingest.model import at_us
from esp_ingest.service.text import rfc3339_of
from esp_ingest.store import schema, sqlstate
from esp_ingest.store.capabilities import capabilities
from esp_ingest.store.connection import Connection, Session, connect
from esp_ingest.store.queries import query
from esp_ingest.store.write import newest

if TYPE_CHECKING:
    from esp_ingest.lifecycle.archive.storage import Storage
    from esp_ingest.lifecycle.archive.verify import Origin

log = logging.getLogger(__name__)

IDENTITY = "archive.json"
_IDENTITY_BYTES = 4_096
_CLOCK_SECONDS = 300.0  # how far two clocks may be apart
UNSET = "archive.url is not set: nothing is archived, and nothing is dropped."
BUSY = "Another lifecycle run is at work on this database: this one does nothing."


class Stopped(Exception):
    """Somebody asked the run to end. The day that was in progress is left as it was before."""


class _Ended(Exception):
    """The storage cannot be used, and the outcome says so already. The other days are not tried, because they would
    fail in the same way."""


@dataclass(frozen=True)
class Problem:
    """Why something was not done. ``table`` and ``day`` are empty if the problem concerns the whole run."""

    reason: Reason
    sentence: str
    table: str = ""
    day: str = ""


@dataclass
class Outcome:
    """What a run did. ``busy``: it did nothing, because another run is at work."""

    busy: bool = False
    archived: list[tuple[str, date]] = field(default_factory=list)
    verified: list[tuple[str, date]] = field(default_factory=list)
    dropped: list[tuple[str, date]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the run did all that was due, without a problem."""
        return not self.busy and not self.problems


Report = Callable[[str, dict[str, Any]], None]
"""Gets each action as it is done: a word ("archived", "verified", "dropped", "problem") and its fields."""


@contextmanager
def session(settings: Settings) -> Iterator[Connection]:
    """A connection for the lifecycle. It must go to the server itself and not through a pooler, because the lock and
    the settings belong to the session. Raises LifecycleError."""
    try:
        with connect(settings.database, autocommit=True, patient=True) as connection:
            if isinstance(connection, Session) and connection.pooled:
                raise LifecycleError(
                    Reason.DATABASE,
                    "The lifecycle's lock belongs to a session, and there is a connection pooler between: name the "
                    "server itself in database.dsn.",
                )
            connection.execute(query("lifecycle_session"))
            state = schema.check_schema(connection)
            if not state.ok:
                raise LifecycleError(Reason.DATABASE, state.detail)
            yield connection
    except StoreUnavailable as error:
        raise LifecycleError(Reason.DATABASE, sqlstate.sentence(error)) from None


class Run:
    """One run, on one connection."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        clock: Clock,
        report: Report,
        *,
        adopt: bool = False,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """``beat`` is called often, and may raise Stopped."""
        self._settings = settings
        self._connection = connection
        self._clock = clock
        self._report = report
        self._adopt = adopt
        self._beat = beat
        self._days = Days(connection)
        self._outcome = Outcome()
        self._now = at_us(clock.now_us())
        self._has_timescaledb = "timescaledb" in capabilities(connection).features

    def run(self) -> Outcome:
        """Do everything that is due. Raises Stopped; any other failure is in the outcome."""
        if not known.lock(self._connection):
            self._outcome.busy = True
            return self._outcome
        try:
            self._run()
        except _Ended:
            pass
        except (LifecycleError, psycopg.Error) as error:
            self._problem(known.explain(error))
        return self._outcome

    def _run(self) -> None:
        database, schema_version = self._checked_clock()
        for table in TABLES:
            self._days.columns(table)  # one that the archive cannot hold is found before anything is done
        # Before any drop, and a failure ends the run: what is dropped can no longer be gathered.
        aggregates.keep(self._connection, self._settings.lifecycle.aggregates_days, self._beat)
        newest.refresh_where_stale(self._connection)
        # What is dropped here stays the newest reading of a well that is silent: no mark.
        self._connection.execute(query("keeps_well_newest"), {"keeps": "on"})
        if self._settings.archive.url:
            from esp_ingest.lifecycle.archive.storage import open_storage
            from esp_ingest.lifecycle.archive.verify import Origin

            origin = Origin(database, schema_version)
            storage = open_storage(self._settings.archive)
            try:
                claim(storage, origin, self._settings.archive.url, has_archived=self._has_archived())
                for table in TABLES:
                    self._archive(storage, origin, table)
                if not self._outcome.problems:
                    self._drop_proven(storage, origin)
            finally:
                storage.close()
        elif self._settings.lifecycle.drop_without_archive:
            for table in TABLES:
                for what in self._due(table):
                    self._drop(table, what, None)
                self._drop_empty(table)
        else:
            raise LifecycleError(Reason.UNSET, UNSET)
        self._connection.execute(query("lifecycle_ran"))

    def _has_archived(self) -> bool:
        return any(record.version for table in TABLES for record in self._days.records(table).values())

    def _checked_clock(self) -> tuple[str, int]:
        """The identity of the database and the version of its schema. Raises LifecycleError if the clock of this
        machine or of the database cannot be trusted, because the clock decides which days are old."""
        row = self._connection.execute(query("lifecycle_clock")).fetchone()
        if row is None:
            raise LifecycleError(Reason.DATABASE, "The table archive_identity is empty: restore its row from a backup.")
        identity, there, last_run, version = row
        apart = abs((there - at_us(self._clock.now_us())).total_seconds())
        if apart > _CLOCK_SECONDS:
            raise LifecycleError(
                Reason.CLOCK, f"This machine's clock and the database's are {apart:.0f} s apart: set them right."
            )
        if last_run is not None and (last_run - there).total_seconds() > _CLOCK_SECONDS:
            raise LifecycleError(
                Reason.CLOCK,
                f"The database's clock is {last_run - there} behind the last run: set it right; if it was wrong then, "
                "docs/lifecycle.md says how to go on.",
            )
        return str(identity), int(version)

    # -- Archive.

    def _archive(self, storage: "Storage", origin: "Origin", table: Table) -> None:
        """Archive every finished day whose copy is missing, out of date or unverified."""
        records = self._days.records(table)
        for day, held in self._days.held(table).items():
            if bounds(day)[1] + timedelta(minutes=self._settings.lifecycle.settle_minutes) > self._now:
                continue
            record = records.get(day)
            if record is not None and record.is_current(held) and record.verified_at is not None:
                continue
            self._beat()
            try:
                self._archive_day(storage, origin, table, day, held, record)
            except LifecycleError as error:
                self._problem(error, table, day)
                if error.reason is Reason.STORAGE:
                    raise _Ended from None

    def _archive_day(
        self, storage: "Storage", origin: "Origin", table: Table, day: date, held: Held, record: Record | None
    ) -> None:
        from esp_ingest.lifecycle.archive import export, verify

        if record is not None and record.is_current(held):
            try:
                found = verify.expected_manifest(storage, origin, table, day, record)
                verify.read_back(storage, found, table, day)
            except LifecycleError as error:
                if error.reason is not Reason.DAMAGED:
                    raise
                log.warning(
                    "the archived day is damaged and written anew", extra={"table": table.name, "day": str(day)}
                )
            else:
                export.clean(storage, found, table, day)  # a run may have been killed just before that
                self._verified(table, day, found.rows)
                return
        found = export.archive_day(
            self._days,
            storage,
            origin,
            table,
            day,
            held,
            record,
            self._clock.now_us(),
            adopt=self._adopt,
            beat=self._beat,
        )
        self._outcome.archived.append((table.name, day))
        self._report(
            "archived",
            {
                "table": table.name,
                "day": str(day),
                "version": found.version,
                "rows": found.rows,
                "bytes": found.size_bytes,
            },
        )
        self._beat()
        verify.read_back(storage, found, table, day)
        self._verified(table, day, found.rows)

    def _verified(self, table: Table, day: date, rows: int) -> None:
        self._days.verified(table, day)
        self._outcome.verified.append((table.name, day))
        self._report("verified", {"table": table.name, "day": str(day), "rows": rows})

    # -- Drop.

    def _due(self, table: Table) -> list[retention.Drop]:
        keep = table.keep_days(self._settings.lifecycle)
        if keep == 0:
            return []
        held = self._days.held(table)
        if table.by_row:
            records = self._days.records(table)
            held = {day: found for day, found in held.items() if not _is_left(records.get(day), found)}
        chunks = retention.chunks_of(self._days, table, has_timescaledb=self._has_timescaledb)
        return retention.plan(table, list(held), self._first_kept(keep), chunks)

    def _first_kept(self, keep_days: int) -> date:
        return retention.cutoff(keep_days, self._now.date())

    def _drop_proven(self, storage: "Storage", origin: "Origin") -> None:
        """Read back every day that is due, and only if all of them are complete drop them, one after the other."""
        from esp_ingest.lifecycle.archive import verify

        due = [(table, what) for table in TABLES for what in self._due(table)]
        proven = {table.name: {} for table in TABLES}  # type: dict[str, dict[date, Any]]
        for table, what in due:
            records = self._days.records(table)
            for day in what.days:
                self._beat()
                try:
                    record = records.get(day)
                    if record is None or record.version == 0:
                        raise LifecycleError(Reason.BEHIND, f"{table.name} {day} is not archived yet: run it again.")
                    found = verify.expected_manifest(storage, origin, table, day, record)
                    verify.read_back(storage, found, table, day)
                    proven[table.name][day] = record.held
                except LifecycleError as error:
                    self._problem(error, table, day)
                    if error.reason is Reason.STORAGE:
                        return
        if self._outcome.problems:
            return
        for table, what in due:
            self._beat()
            try:
                # The proof of the last day may be minutes old: what was proven must still be what lies there.
                records = self._days.records(table)
                for day in what.days:
                    verify.expected_manifest(storage, origin, table, day, records[day])
                self._drop(table, what, proven[table.name])
            except LifecycleError as error:
                self._problem(error, table, what.days[0])
                if error.reason is Reason.STORAGE:
                    return
        for table in TABLES:
            try:
                self._drop_empty(table)
            except LifecycleError as error:
                self._problem(error, table)

    def _drop(self, table: Table, what: retention.Drop, proven: dict[date, Any] | None) -> None:
        rows = retention.drop(self._days, table, what, proven)
        for day in what.days:
            self._outcome.dropped.append((table.name, day))
        fields: dict[str, Any] = {"table": table.name, "day": str(what.days[0]), "rows": rows}
        if len(what.days) > 1:
            fields["to"] = str(what.days[-1])
        self._report("dropped", fields)

    def _drop_empty(self, table: Table) -> None:
        keep = table.keep_days(self._settings.lifecycle)
        chunks = retention.chunks_of(self._days, table, has_timescaledb=self._has_timescaledb)
        if keep and chunks:
            retention.drop_empty_chunks(self._days, table, chunks, self._first_kept(keep))

    def _problem(self, error: LifecycleError, table: Table | None = None, day: date | None = None) -> None:
        problem = Problem(error.reason, str(error), table.name if table else "", str(day or ""))
        self._outcome.problems.append(problem)
        self._report("problem", {"reason": error.reason.value, "problem": str(error), **_place(problem)})
        if table is not None and day is not None and error.reason is not Reason.STORAGE:
            self._days.problem(table, day, error)


def _place(problem: Problem) -> dict[str, str]:
    return {"table": problem.table, "day": problem.day} if problem.table else {}


def _is_left(record: Record | None, held: Held) -> bool:
    """Whether the database only holds what the last drop of this day left there: occurrences that are still open."""
    if record is None or record.dropped_at is None or not record.is_current(held):
        return False
    return record.archived_at is None or record.archived_at < record.dropped_at


def claim(storage: "Storage", origin: "Origin", url: str, *, has_archived: bool) -> None:
    """Make sure that the archive belongs to this database: the first database that writes to an archive owns it.
    ``has_archived``: this database has archived days before, so an empty place must be a wrong place. Raises
    LifecycleError."""
    data = storage.read(IDENTITY, _IDENTITY_BYTES)
    if data is None:
        if has_archived:
            raise LifecycleError(
                Reason.DAMAGED,
                f"The archive {url} has no {IDENTITY}, although days were archived before: mount it, or copy the whole "
                "archive there before archive.url is changed.",
            )
        storage.prepare()
        mine = {"format": 1, "database": origin.database}
        if storage.create(IDENTITY, json.dumps(mine).encode() + b"\n"):
            return
        data = storage.read(IDENTITY, _IDENTITY_BYTES) or b""
    check_identity(data, origin)
    storage.prepare()


def check_identity(data: bytes, origin: "Origin") -> None:
    """Raises LifecycleError if ``data``, the identity file of the archive, names another database."""
    try:
        owner = str(json.loads(data)["database"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LifecycleError(
            Reason.DAMAGED, f"The archive's {IDENTITY} is damaged: restore it from a backup of the archive."
        ) from None
    if owner != origin.database:
        raise LifecycleError(
            Reason.FOREIGN,
            f"The archive belongs to another database ({owner[:36]}): give each database an archive.url of its own.",
        )


def run_once(
    settings: Settings,
    clock: Clock,
    report: Report,
    *,
    adopt: bool = False,
    beat: Callable[[], None] = lambda: None,
) -> Outcome:
    """Connect, do one run, and disconnect. Raises Stopped."""
    try:
        with session(settings) as connection:
            return Run(settings, connection, clock, report, adopt=adopt, beat=beat).run()
    except (LifecycleError, psycopg.Error) as error:
        found = known.explain(error)
        report("problem", {"reason": found.reason.value, "problem": str(found)})
        return Outcome(problems=[Problem(found.reason, str(found))])


def status(settings: Settings) -> list[dict[str, Any]]:
    """A dictionary for each table and day: rows in the database and in the archive, when it was verified and
    dropped, bytes, and what is wrong. Raises LifecycleError."""
    found = []
    with session(settings) as connection:
        days = Days(connection)
        for table in TABLES:
            held, records = days.held(table), days.records(table)
            for day in sorted({*held, *records}):
                record = records.get(day)
                found.append(
                    {
                        "table": table.name,
                        "day": day.isoformat(),
                        "rows_database": held[day].rows if day in held else 0,
                        "rows_archived": record.rows if record else 0,
                        "verified_at": _time(record.verified_at if record else None),
                        "dropped_at": _time(record.dropped_at if record else None),
                        "bytes": record.bytes if record else 0,
                        "problem": record.problem if record else "",
                    }
                )
    return found


def _time(at: datetime | None) -> str | None:
    return None if at is None else rfc3339_of(at)
