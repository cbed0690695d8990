"""What the database knows about each day: how many rows it holds, and what was archived of it."""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from esp_ingest.lifecycle.archive.checksum import Content
from esp_ingest.lifecycle.archive.columns import Column, column
from esp_ingest.lifecycle.archive.manifest import Manifest
from esp_ingest.lifecycle.errors import LifecycleError, Reason
from esp_ingest.lifecycle.tables import FIRST_DAY, LAST_DAY, Table, bounds, day_of
from esp_ingest.store.connection import Connection, only_row
from esp_ingest.store.queries import composed, query


@dataclass(frozen=True)
class Held:
    """What the database holds of a day. Either ``changed`` or ``checksum`` is empty, depending on the table."""

    rows: int
    changed: str = ""
    checksum: str = ""


@dataclass(frozen=True)
class Record:
    """What is remembered about a day. The columns of archive_days in sql/migrations are described there."""

    day: date
    version: int
    id: UUID | None
    pending_id: UUID | None
    rows: int
    checksum: str
    bytes: int
    held_rows: int
    held_checksum: str
    held_changed: str
    archived_at: datetime | None
    verified_at: datetime | None
    dropped_at: datetime | None
    problem: str

    @property
    def content(self) -> Content:
        """The rows and the checksum of the archived version."""
        return Content(self.rows, self.checksum)

    @property
    def held(self) -> Content:
        """The rows and the checksum that the database had when this version was archived."""
        return Content(self.held_rows, self.held_checksum)

    def is_current(self, held: Held) -> bool:
        """Whether the archived version holds everything that the database holds now, as far as a comparison of
        counts and newest changes can tell."""
        if self.version == 0 or self.held_rows != held.rows:
            return False
        return self.held_checksum == held.checksum if held.checksum else self.held_changed == held.changed


@dataclass(frozen=True)
class Seen:
    """The content of a day, and the oldest transaction that was open before it was read: its id, as text."""

    content: Content
    oldest: str


class Days:
    """The days of the three tables in one database. Every method may raise psycopg.Error."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._columns: dict[str, list[Column]] = {}

    def columns(self, table: Table) -> list[Column]:
        """The columns of the table, in their order. Raises LifecycleError if the archive cannot hold the type of
        one."""
        if table.name not in self._columns:
            self._columns[table.name] = self._read_columns(table)
        return self._columns[table.name]

    def check_columns(self, table: Table) -> None:
        """To be called in the transaction that drops rows, once it has locked them: a column that was added since this
        run began is in no checksum of the run. Raises LifecycleError if the columns are others than they were."""
        if self._read_columns(table) != self.columns(table):
            raise LifecycleError(
                Reason.MISMATCH,
                f"The columns of {table.name} have changed during the run: it is archived again before it is dropped.",
            )

    def _read_columns(self, table: Table) -> list[Column]:
        found = self.connection.execute(query("lifecycle_columns"), (table.name,)).fetchall()
        return [column(table.name, *row) for row in found]

    def statement(self, name: str, table: Table, **more: sql.Composable) -> sql.Composed:
        """The named query from sql/queries.sql, with the names of this table filled in."""
        names = table.names() | more
        if b"{columns}" in query(name) and "columns" not in more:
            names["columns"] = identifiers(self.columns(table))
        return composed(name, **names)

    def held(self, table: Table) -> dict[date, Held]:
        """Every day that has rows. Reads the table's index once; if rows of the table can change, it reads the
        table."""
        name = "lifecycle_days_summed" if table.rows_change else "lifecycle_days"
        found = {}
        for number, rows, changed, high, low in self.connection.execute(self.statement(name, table)).fetchall():
            checksum = Content.of(rows, int(high), int(low)).checksum if high else ""
            found[_day(table, number)] = Held(rows, changed, checksum)
        return found

    def records(self, table: Table) -> dict[date, Record]:
        """All that is remembered, by day."""
        found = self.connection.execute(query("lifecycle_records"), (table.name,)).fetchall()
        return {row[0]: Record(*row) for row in found}

    def checksum(self, table: Table, day: date) -> Content:
        """The content of the day as it is now. The server computes it, in some microseconds a row."""
        start, end = bounds(day)
        statement = self.statement("lifecycle_day_checksum", table)
        row = only_row(self.connection.execute(statement, {"start": start, "end": end}))
        return Content.of(row[0], int(row[1]), int(row[2]))

    def look(self, table: Table, day: date) -> Seen:
        """The content of the day now, for :meth:`is_unchanged`."""
        (oldest,) = only_row(self.connection.execute(query("lifecycle_oldest_transaction")))
        return Seen(self.checksum(table, day), oldest)

    def is_unchanged(self, table: Table, day: date, seen: Seen) -> bool:
        """Whether the content of the day is what was ``seen``. To be called in the transaction that drops rows, once it
        has locked them. Every row that is there now was stored by a transaction that had ended before the look, so the
        look has seen it; and they are as many. False may also mean that this cannot be told."""
        start, end = bounds(day)
        where = {"start": start, "end": end, "oldest": seen.oldest}
        rows, newer = only_row(self.connection.execute(self.statement("lifecycle_day_newer", table), where))
        return (rows, newer) == (seen.content.rows, 0)

    def begin(self, table: Table, day: date, pending_id: UUID) -> None:
        """Remember the id of the manifest that is about to be written."""
        self._execute("lifecycle_begin", table, day, pending_id=pending_id)

    def archived(self, table: Table, day: date, manifest: Manifest, held: Content, changed: str) -> None:
        """From now on this manifest is the archived version."""
        self._execute(
            "lifecycle_archived",
            table,
            day,
            version=manifest.version,
            id=UUID(manifest.id),
            rows=manifest.rows,
            checksum=manifest.checksum,
            bytes=manifest.size_bytes,
            held_rows=held.rows,
            held_checksum=held.checksum,
            held_changed=changed,
        )

    def verified(self, table: Table, day: date) -> None:
        """Remember that the archived version was read back and is complete."""
        self.connection.execute(query("lifecycle_verified"), (table.name, day))

    def problem(self, table: Table, day: date, error: LifecycleError) -> None:
        """Remember what is wrong with the day. An archived version that is damaged counts as unverified; one that
        differs from the database is written again by the next run."""
        self._execute(
            "lifecycle_problem",
            table,
            day,
            problem=str(error),
            is_unproven=error.reason in (Reason.DAMAGED, Reason.MISMATCH),
            is_old=error.reason is Reason.MISMATCH,
        )

    def dropped(self, table: Table, day: date, left: Content) -> None:
        """Remember that the day was dropped. To be called in the transaction that drops it."""
        self._execute("lifecycle_dropped", table, day, held_rows=left.rows, held_checksum=left.checksum)

    def _execute(self, name: str, table: Table, day: date, **values: Any) -> None:
        self.connection.execute(query(name), {"relation": table.name, "day": day, **values})


def identifiers(columns: list[Column]) -> sql.Composed:
    """The columns' names, quoted, with commas."""
    return sql.SQL(", ").join(sql.Identifier(each.name) for each in columns)


def _day(table: Table, number: int) -> date:
    try:
        day = day_of(number)
    except OverflowError:
        day = LAST_DAY.replace(day=31)
    if not FIRST_DAY <= day <= LAST_DAY:
        raise LifecycleError(
            Reason.SCHEMA,
            f"{table.name} holds rows outside of the years 1 to 9999, which no file can hold: delete them.",
        )
    return day


def lock(connection: Connection) -> bool:
    """Try to take the lock of the lifecycle: one run at a time may work on a database. Returns whether it was taken;
    does not wait."""
    row = connection.execute(query("lifecycle_lock")).fetchone()
    return row is not None and bool(row[0])


def explain(error: psycopg.Error | LifecycleError) -> LifecycleError:
    """An error of the database as a LifecycleError, and what is one as it is."""
    from esp_ingest.store import sqlstate

    return error if isinstance(error, LifecycleError) else LifecycleError(Reason.DATABASE, sqlstate.sentence(error))
