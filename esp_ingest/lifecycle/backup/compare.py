"""Compares a restored database with the manifests of the archive, day by day, by rows and checksum."""

from dataclasses import dataclass, field
from datetime import date

from psycopg import sql

from esp_ingest.lifecycle.archive import restore, verify
from esp_ingest.lifecycle.archive.storage import Storage
from esp_ingest.lifecycle.archive.verify import Origin
from esp_ingest.lifecycle.days import Days, Record
from esp_ingest.lifecycle.errors import LifecycleError, Reason
from esp_ingest.lifecycle.tables import TABLES, Table, bounds
from esp_ingest.store.connection import only_row

_SCRATCH = "esp_ingest_drill_{}"


@dataclass
class Compared:
    """``days`` were compared and hold ``rows`` rows. ``skipped`` days are not archived yet, or are newer in the
    archive than in the backup. ``problems`` has a sentence for each day that is not as it should be."""

    days: int = 0
    rows: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)


def compare(days: Days, storage: Storage, origin: Origin) -> Compared:
    """Compare every day that this database holds, or should hold, with its manifest. Makes scratch tables, so the
    database must be one that is thrown away. Raises LifecycleError if the archive cannot be read, and psycopg.Error."""
    found = Compared()
    for table in TABLES:
        records = days.records(table)
        expected = {day for day, record in records.items() if record.version and record.dropped_at is None}
        for day in sorted(expected | set(days.held(table))):
            try:
                rows = _compare_day(days, storage, origin, table, day, records.get(day))
            except LifecycleError as error:
                if error.reason is not Reason.DAMAGED and error.reason is not Reason.MISMATCH:
                    raise
                found.problems.append(str(error))
                continue
            if rows is None:
                found.skipped += 1
            else:
                found.days += 1
                found.rows += rows
    return found


def _compare_day(
    days: Days, storage: Storage, origin: Origin, table: Table, day: date, record: Record | None
) -> int | None:
    """The number of rows that were compared, None if there is nothing to compare with. Raises LifecycleError:
    MISMATCH if rows are missing or differ, DAMAGED if the manifest is not the one that was written."""
    known = record is not None and record.version > 0
    manifest = verify.read_manifest(storage, origin, table, day)
    if manifest is None and not known:
        return None
    is_ahead = manifest is not None and (record is None or manifest.version > record.version)
    if known and not is_ahead:
        assert record is not None
        manifest = verify.expected_manifest(storage, origin, table, day, record)
    assert manifest is not None
    content = days.checksum(table, day)
    wanted = record.held if record is not None and not is_ahead else manifest.content
    if content == wanted:
        return content.rows
    if is_ahead or (record is not None and record.dropped_at is not None):
        return None  # the archive has rows that came after the backup, or this has late ones of a day that was dropped
    # Rows that came since the day was archived are no harm, but each archived one must be there.
    missing = _missing(days, storage, origin, table, day)
    if missing or content.rows < wanted.rows or (content.rows == wanted.rows and not table.rows_change):
        raise LifecycleError(
            Reason.MISMATCH,
            f"The restored {table.name} of {day} differs from the archive: {wanted.rows} rows were archived, "
            f"{content.rows} are there, {missing} of the archived ones are missing or changed; find out what changed "
            "them before that backup is trusted.",
        )
    return wanted.rows


def _missing(days: Days, storage: Storage, origin: Origin, table: Table, day: date) -> int:
    """How many archived rows the table lacks. If rows of the table can change, a row counts as there if its key is."""
    scratch = _SCRATCH.format(table.name)
    restore.make_table(days, table, scratch)
    restore.restore_day(days, storage, origin, table, day, None, scratch)
    columns = days.columns(table)
    compared = table.key if table.rows_change else tuple(column.name for column in columns)
    statement = days.statement(
        "drill_missing",
        table,
        archived=sql.Identifier(scratch),
        compared=sql.SQL(", ").join(map(sql.Identifier, compared)),
    )
    start, end = bounds(day)
    row = only_row(days.connection.execute(statement, {"start": start, "end": end}))
    return int(row[0])
