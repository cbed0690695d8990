"""The three tables whose days are archived and dropped, and how they differ."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from psycopg import sql

from esp_ingest.config.settings import LifecycleSettings

_EPOCH_DAY = date(1970, 1, 1)
FIRST_DAY, LAST_DAY = date(1, 1, 2), date(9999, 12, 30)


@dataclass(frozen=True)
class Table:
    """``time`` is the column that decides which day (UTC) a row belongs to. ``key`` is the primary key, in the order in
    which rows are sorted in a file. ``changed`` is an SQL expression that grows when rows are added or changed.

    ``rows_change``: rows are updated after they were stored. Such a table is compared by checksum, the others by their
    count and ``changed``. ``archived_wins`` decides which of two rows with the same key is kept when a dropped day is
    archived again: the first reading that was stored stays, but the newer state of an occurrence or of a reject
    replaces the older one.

    ``droppable`` is the SQL condition of rows that may be dropped. ``by_row``: days are deleted row by row even with
    TimescaleDB, because some rows of a day may have to stay."""

    name: str
    time: str
    key: tuple[str, ...]
    changed: str
    days_setting: str
    rows_change: bool = False
    archived_wins: bool = False
    droppable: str = "true"
    by_row: bool = False

    def keep_days(self, settings: LifecycleSettings) -> int:
        """How many days rows stay in the database; 0 means for ever."""
        return int(getattr(settings, self.days_setting))

    def names(self) -> dict[str, sql.Composable]:
        """The names that the queries of sql/queries.sql ask for, except the columns."""
        return {
            "table": sql.Identifier(self.name),
            "time": sql.Identifier(self.time),
            "changed": sql.SQL(self.changed),
            "droppable": sql.SQL(self.droppable),
        }


TABLES: tuple[Table, ...] = (
    Table("esp_telemetry", "timestamp", ("well_id", "timestamp"), "received_at", "telemetry_days", archived_wins=True),
    Table(
        "diagnostic_results",
        "timestamp",
        ("well_id", "timestamp", "diagnosis"),
        '"timestamp"',
        "diagnostics_days",
        rows_change=True,
        droppable="cleared_at IS NOT NULL",
        by_row=True,
    ),
    Table(
        "ingest_rejects",
        "received_at",
        ("received_at", "digest"),
        "received_at",
        "rejects_days",
        rows_change=True,
    ),
)
TABLE_NAMES = tuple(table.name for table in TABLES)


def day_of(number: int) -> date:
    """The day that begins ``number`` days after 1970-01-01. Raises OverflowError outside the years 1 to 9999."""
    return _EPOCH_DAY + timedelta(days=number)


def bounds(day: date) -> tuple[datetime, datetime]:
    """The beginning of the day in UTC, and the beginning of the next day."""
    start = datetime.combine(day, time(), UTC)
    return start, start + timedelta(days=1)
