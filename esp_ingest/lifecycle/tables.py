"""The three tables whose days are archived and dropped, and what is particular to each."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from psycopg import sql

from esp_ingest.config.settings import LifecycleSettings

_EPOCH_DAY = date(1970, 1, 1)
FIRST_DAY, LAST_DAY = date(1, 1, 2), date(9999, 12, 30)


@dataclass(frozen=True)
class Table:
    """``time`` is the column that says which day (UTC) a row belongs to. ``key`` is the primary key in the order in
    which rows stand in a file. ``changed`` is an expression that grows when rows are added or changed.

    ``rows_change`` says that stored rows are updated: such a table is compared by checksum, the others by count and
    ``changed``. ``archived_wins`` decides which of two rows with one key a new version of a dropped day keeps: the
    first reading stored stays, but the newer state of an occurrence or a reject replaces the older one.

    ``droppable`` is the condition of rows that may go. ``by_row`` says that days are deleted row by row even on
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
        """Days that rows stay in the database; 0 means for ever."""
        return int(getattr(settings, self.days_setting))

    def names(self) -> dict[str, sql.Composable]:
        """What the templates of sql/queries.sql ask for, but for the columns."""
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
    """The day that begins ``number`` days after 1970-01-01. Raises OverflowError outside of years 1 to 9999."""
    return _EPOCH_DAY + timedelta(days=number)


def bounds(day: date) -> tuple[datetime, datetime]:
    """Start of the day in UTC, and start of the next."""
    start = datetime.combine(day, time(), UTC)
    return start, start + timedelta(days=1)
