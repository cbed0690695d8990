"""`lifecycle verify` and `lifecycle restore`: both go over a range of days and report each of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date

import psycopg

from esp_ingest.config.settings import Settings
from esp_ingest.lifecycle import days as known
from esp_ingest.lifecycle import runs
from esp_ingest.lifecycle.archive import restore, verify
from esp_ingest.lifecycle.archive.storage import Storage, open_storage
from esp_ingest.lifecycle.archive.verify import Origin
from esp_ingest.lifecycle.days import Days
from esp_ingest.lifecycle.errors import LifecycleError, Reason
from esp_ingest.lifecycle.runs import Report
from esp_ingest.lifecycle.tables import FIRST_DAY, LAST_DAY, TABLES
from esp_ingest.store.connection import only_row
from esp_ingest.store.queries import query


@dataclass(frozen=True)
class Wanted:
    """What to restore: the days of a table from ``first`` to ``last``, both included, of one well or of all wells,
    into the table itself or into the table ``into``."""

    table: str
    first: date
    last: date
    well: str | None = None
    into: str | None = None


@contextmanager
def opened(settings: Settings) -> Iterator[tuple[Days, Storage, Origin]]:
    """Open the database and its archive. Raises LifecycleError, also if the archive belongs to another database."""
    if not settings.archive.url:
        raise LifecycleError(Reason.UNSET, "archive.url is not set: there is no archive to read.")
    try:
        with runs.session(settings) as connection:
            row = only_row(connection.execute(query("lifecycle_clock")))
            origin = Origin(str(row[0]), int(row[3]))
            storage = open_storage(settings.archive)
            try:
                data = storage.read(runs.IDENTITY, 4_096)
                if data is None:
                    raise LifecycleError(
                        Reason.STORAGE, f"There is no archive at {settings.archive.url}: check archive.url."
                    )
                runs.check_identity(data, origin)
                yield Days(connection), storage, origin
            finally:
                storage.close()
    except psycopg.Error as error:
        raise known.explain(error) from None


def verify_days(settings: Settings, name: str | None, first: date | None, last: date | None, report: Report) -> int:
    """Read back every day of the archive, and every day that should be in it according to the database. Blocks while
    all of it is read. Returns the exit code, which is 1 if a day is not complete. Raises LifecycleError."""
    wrong = 0
    with opened(settings) as (days, storage, origin):
        for table in [table for table in TABLES if name in (None, table.name)]:
            records = days.records(table)
            archived = {day for day, record in records.items() if record.version}
            for day in sorted(archived | storage.days(table.name)):
                if not (first or FIRST_DAY) <= day <= (last or LAST_DAY):
                    continue
                try:
                    record = records.get(day)
                    if day in archived and record is not None:
                        found = verify.expected_manifest(storage, origin, table, day, record)
                    else:
                        unknown = verify.read_manifest(storage, origin, table, day)
                        if unknown is None:
                            continue  # files of a run that was killed: the next one cleans up
                        found = unknown
                    verify.read_back(storage, found, table, day)
                except LifecycleError as error:
                    if error.reason is Reason.STORAGE:
                        raise
                    wrong += 1
                    report("problem", {"problem": str(error)})
                    if day in archived:
                        days.problem(table, day, error)
                else:
                    if day in archived:
                        days.verified(table, day)
                    report("verified", {"table": table.name, "day": str(day), "rows": found.rows})
    return 1 if wrong else 0


def restore_days(settings: Settings, wanted: Wanted, report: Report) -> int:
    """Restore the wanted days. Returns the exit code. Raises LifecycleError, also if the archive has no day in that
    range."""
    (table,) = [table for table in TABLES if table.name == wanted.table]
    done = 0
    with opened(settings) as (days, storage, origin):
        if wanted.into is not None:
            restore.make_table(days, table, wanted.into)
        for day in sorted(day for day in storage.days(table.name) if wanted.first <= day <= wanted.last):
            inserted = restore.restore_day(days, storage, origin, table, day, wanted.well, wanted.into)
            done += 1
            report("restored", {"table": table.name, "day": str(day), "rows": inserted})
    if not done:
        raise LifecycleError(
            Reason.STORAGE, f"The archive has no day of {table.name} from {wanted.first} to {wanted.last}."
        )
    return 0
