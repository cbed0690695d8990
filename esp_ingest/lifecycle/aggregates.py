"""Keeps hourly and daily aggregates of each well and hourly ones of the fleet, from which the views
esp_telemetry_hourly, esp_telemetry_daily, esp_fleet_hourly and esp_fleet_daily are made.

An hour is aggregated again if it holds another number of readings than the last time. So late readings are counted
whenever they come, and the next run completes what a killed run left undone. Hours of dropped days are never
aggregated again."""

from collections.abc import Callable
from datetime import datetime, timedelta

from psycopg import sql

from esp_ingest.store.connection import Connection, only_row
from esp_ingest.store.queries import composed, query

_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
_TABLES = (
    "aggregate_hours",
    "aggregate_days",
    "aggregate_fleet_hours",
    "aggregate_alarm_hours",
    "aggregate_seen",
)


def keep(connection: Connection, keep_days: int, beat: Callable[[], None]) -> int:
    """Bring the aggregates up to the last full hour, and delete those older than ``keep_days`` (0: never). Each day
    with a change is one transaction, and ``beat`` is called before each. Returns the number of days with a change.
    Raises psycopg.Error, and whatever ``beat`` raises."""
    # As text: since may be -infinity, which Python cannot hold.
    since, until = only_row(connection.execute(query("lifecycle_aggregates_span")))
    found = connection.execute(query("lifecycle_aggregates_changed"), {"since": since, "until": until}).fetchall()
    end = datetime.fromisoformat(until)
    assignments = _assignments(connection, "aggregate_hours")
    for first, last in found:
        beat()
        if isinstance(first, str) or isinstance(last, str):
            continue  # before the year 1 or after 9999: Python's calendar has no such hour, and no pump ran in it
        # The hour after it too: a pump that runs on counts there.
        _gather(connection, first, min(last + 2 * _HOUR, end), assignments)
    _keep_fleet(connection, beat)
    with connection.transaction():
        _alarms(connection, until)
        connection.execute(query("lifecycle_aggregates_to"), {"until": until})
    if keep_days:
        for table in _TABLES:
            statement = composed("lifecycle_aggregates_expire", table=sql.Identifier(table))
            connection.execute(statement, {"keep_days": keep_days})
    return len(found)


def _gather(connection: Connection, since: datetime, until: datetime, assignments: sql.Composed) -> None:
    """Aggregate the hours from ``since`` to ``until``, and the days that they belong to."""
    with connection.transaction():
        connection.execute(query("lifecycle_aggregates_see"), {"since": since, "until": until})
        _upsert(connection, "lifecycle_aggregates_hours", since, until, assignments)
        # Days with a change come oldest first, so all hours before this one are kept by now.
        connection.execute(query("lifecycle_aggregates_hours_to"), {"until": until})
        begin = _midnight(since)
        _upsert(connection, "lifecycle_aggregates_days", begin, _midnight(until - _HOUR) + _DAY, assignments)


def _keep_fleet(connection: Connection, beat: Callable[[], None]) -> None:
    """Aggregate the hours of the fleet anew where those of its wells have changed, the oldest day first."""
    assignments = _assignments(connection, "aggregate_fleet_hours")
    for first, last in connection.execute(query("lifecycle_fleet_changed")).fetchall():
        beat()
        with connection.transaction():
            _upsert(connection, "lifecycle_fleet_hours", first, last + _HOUR, assignments)
            connection.execute(query("lifecycle_fleet_to"), {"until": last + _HOUR})


def _upsert(connection: Connection, name: str, since: datetime, until: datetime, assignments: sql.Composed) -> None:
    connection.execute(composed(name, assignments=assignments), {"since": since, "until": until})


def _assignments(connection: Connection, table: str) -> sql.Composed:
    """The SET list of an upsert: every column except the key, from the row that was excluded."""
    found = connection.execute(query("lifecycle_columns"), (table,)).fetchall()
    names = [sql.Identifier(name) for name, *_ in found if name not in ("well_id", "bucket")]
    return sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(name) for name in names)


def _alarms(connection: Connection, until: str) -> None:
    row = connection.execute(query("lifecycle_aggregates_alarms_since")).fetchone()
    if row is None or row[0] is None:
        return
    connection.execute(query("lifecycle_aggregates_alarms_clear"), {"since": row[0], "until": until})
    connection.execute(query("lifecycle_aggregates_alarms"), {"since": row[0], "until": until})


def _midnight(at: datetime) -> datetime:
    """The beginning of the day in UTC. The sessions of the lifecycle are in UTC."""
    return at.replace(hour=0, minute=0, second=0, microsecond=0)
