"""The condition of the tables and of their archive, for the metrics and for `esp-ingest check`. It only reads, and
needs nothing of the extra [archive]."""

import math
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta

from esp_ingest.config.settings import LifecycleSettings
from esp_ingest.lifecycle.tables import TABLES, Table, bounds
from esp_ingest.service.metrics import LifecycleMetrics
from esp_ingest.store.capabilities import capabilities
from esp_ingest.store.connection import Connection, only_row
from esp_ingest.store.queries import composed, query

_DAY_SECONDS = 86_400.0
_DRILL_DAYS = 9  # one a week, and a day to repeat it


@dataclass(frozen=True)
class TableState:
    """One table. Ages are in seconds. ``lag_seconds`` is 0 if every finished day has a verified copy,
    ``overdue_days`` is 0 if no row is older than it should be."""

    table: str
    rows: int
    bytes: int
    chunks: int
    compressed: int
    oldest_seconds: float
    lag_seconds: float
    overdue_days: float

    @property
    def bytes_per_row(self) -> float:
        """Average size of a row in bytes, indexes included; 0 for an empty table."""
        return self.bytes / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class Job:
    """A background job of TimescaleDB on one of our tables. ``success_seconds`` is the time since its last success,
    infinite before the first."""

    name: str
    success_seconds: float
    failing: bool


@dataclass(frozen=True)
class Backup:
    """What is known about the backup. Times are Unix seconds, 0 before the first. ``drill_problem`` is empty after a
    successful drill and before the first. ``is_archiving`` says whether the server archives its WAL at all."""

    drill_success: float
    drill_age_seconds: float
    drill_seconds: float
    drill_problem: str
    drill_days: int
    drill_backup: float
    is_archiving: bool
    is_wal_failing: bool


@dataclass(frozen=True)
class State:
    """All of it. ``growth_bytes`` is the growth in a day, NaN on the first day; ``disk_free_bytes`` is NaN if
    lifecycle.disk_path is not set."""

    tables: tuple[TableState, ...]
    jobs: tuple[Job, ...]
    policies: int
    database_bytes: int
    growth_bytes: float
    disk_free_bytes: float
    backup: Backup

    @property
    def disk_full_days(self) -> float:
        """Days until the disk is full; infinite if that is not known, or if the database does not grow."""
        if math.isnan(self.disk_free_bytes) or not self.growth_bytes > 0:
            return math.inf
        return self.disk_free_bytes / self.growth_bytes


def look(connection: Connection, settings: LifecycleSettings, now: datetime) -> State:
    """Ask the database. Each table is read once. Raises psycopg.Error, and OSError if the folder lifecycle.disk_path
    does not exist."""
    has_timescaledb = "timescaledb" in capabilities(connection).features
    tables = tuple(_table(connection, settings, table, now, has_timescaledb) for table in TABLES)
    jobs: list[Job] = []
    policies = 0
    if has_timescaledb:
        found = connection.execute(query("lifecycle_jobs")).fetchall()
        jobs = [Job(name, math.inf if seconds is None else seconds, failing) for name, seconds, failing in found]
        policies = len(connection.execute(query("lifecycle_policies")).fetchall())
    size_bytes, grown_bytes = only_row(connection.execute(query("lifecycle_database_size")))
    growth = math.nan if grown_bytes is None else float(grown_bytes)
    free = float(shutil.disk_usage(settings.disk_path).free) if settings.disk_path else math.nan
    return State(tables, tuple(jobs), policies, int(size_bytes), growth, free, _backup(connection, now))


def _backup(connection: Connection, now: datetime) -> Backup:
    is_archiving, is_failing = only_row(connection.execute(query("drill_archiver")))
    last = connection.execute(query("drill_last")).fetchone()
    success, seconds, problem, made, days = last or (None, 0.0, "", None, 0)
    return Backup(
        _unix(success),
        _age(success, now),
        seconds,
        problem,
        days,
        _unix(made),
        is_archiving,
        is_archiving and is_failing,
    )


def _unix(at: object) -> float:
    """A time in Unix seconds, 0 for None."""
    return at.timestamp() if isinstance(at, datetime) else 0.0


def _table(
    connection: Connection, settings: LifecycleSettings, table: Table, now: datetime, has_timescaledb: bool
) -> TableState:
    names = table.names()
    rows, oldest, oldest_droppable = only_row(connection.execute(composed("lifecycle_table", **names)))
    until = now - timedelta(minutes=settings.settle_minutes)
    where = {"relation": table.name, "until": bounds(until.date())[0]}
    (unproven,) = only_row(connection.execute(composed("lifecycle_unproven", **names), where))
    hypertable = has_timescaledb and connection.execute(query("lifecycle_is_hypertable"), (table.name,)).fetchone()
    if hypertable and hypertable[0]:
        size = only_row(connection.execute(query("lifecycle_hypertable_size"), {"relation": table.name}))
    else:
        size = only_row(connection.execute(query("lifecycle_plain_size"), (table.name,)))
    keep = table.keep_days(settings)
    overdue = _age(oldest_droppable, now) / _DAY_SECONDS - keep - 1 if keep else 0.0
    lag = (now - bounds(unproven)[1]).total_seconds() if unproven is not None else 0.0
    return TableState(
        table.name, rows, int(size[0] or 0), size[1], size[2], _age(oldest, now), max(lag, 0.0), max(overdue, 0.0)
    )


def _age(at: object, now: datetime) -> float:
    """Seconds since a time; 0 if there is no row, or if its time lies before the year 1."""
    return max((now - at).total_seconds(), 0.0) if isinstance(at, datetime) else 0.0


def export(state: State, metrics: LifecycleMetrics) -> None:
    """Set the gauges."""
    for table in state.tables:
        for gauge, value in (
            (metrics.table_rows, table.rows),
            (metrics.table_bytes, table.bytes),
            (metrics.table_bytes_per_row, table.bytes_per_row),
            (metrics.table_chunks, table.chunks),
            (metrics.table_chunks_compressed, table.compressed),
            (metrics.table_oldest_seconds, table.oldest_seconds),
            (metrics.lag_seconds, table.lag_seconds),
            (metrics.overdue_days, table.overdue_days),
        ):
            gauge.labels(table.table).set(value)
    for job in state.jobs:
        metrics.job_success_seconds.labels(job.name).set(job.success_seconds)
    metrics.jobs_failing.set(sum(job.failing for job in state.jobs))
    metrics.retention_policies.set(state.policies)
    metrics.database_bytes.set(state.database_bytes)
    metrics.growth_bytes_per_day.set(state.growth_bytes)
    metrics.disk_free_bytes.set(state.disk_free_bytes)
    metrics.disk_full_days.set(state.disk_full_days)
    backup = state.backup
    metrics.drill_last_success.set(backup.drill_success)
    metrics.drill_failed.set(bool(backup.drill_problem))
    metrics.drill_seconds.set(backup.drill_seconds)
    metrics.drill_days.set(backup.drill_days)
    metrics.drill_backup.set(backup.drill_backup)
    metrics.wal_failing.set(backup.is_wal_failing)


def _backup_line(backup: Backup) -> tuple[bool, str]:
    if backup.drill_problem:
        return False, f"backup: the last drill failed: {backup.drill_problem}"
    if backup.is_wal_failing:
        return False, "backup: the server could not archive its last WAL segment, its log says why"
    if not backup.drill_success:
        return True, f"backup: {'WAL is archived' if backup.is_archiving else 'WAL is not archived'}, no drill yet"
    days = backup.drill_age_seconds / _DAY_SECONDS
    return days < _DRILL_DAYS, f"backup: last good drill {days:.1f} days ago, {backup.drill_days} days compared"


def lines(state: State) -> list[tuple[bool, str]]:
    """A line for each thing that was looked at: whether it is well, and a text for people."""
    found = []
    for table in state.tables:
        parts = [f"{table.table}: {table.rows} rows, {_bytes(table.bytes)}"]
        if table.rows:
            parts.append(f"{table.bytes_per_row:.0f} bytes a row")
            parts.append(f"oldest {table.oldest_seconds / _DAY_SECONDS:.1f} days")
        if table.chunks:
            parts.append(f"{table.chunks} chunks, {table.compressed} compressed")
        if table.lag_seconds:
            parts.append(f"no proven copy for {table.lag_seconds / _DAY_SECONDS:.1f} days")
        if table.overdue_days > 0:
            parts.append(f"{table.overdue_days:.1f} days past its time")
        found.append((table.lag_seconds < 2 * _DAY_SECONDS and table.overdue_days < 2, ", ".join(parts)))
    for job in state.jobs:
        since = "never" if math.isinf(job.success_seconds) else f"{job.success_seconds / 3_600:.1f} h ago"
        found.append((not job.failing, f"job {job.name}: last success {since}{', last run failed' * job.failing}"))
    if state.policies:
        text = "a retention policy drops rows without a proven copy: remove it with remove_retention_policy"
        found.append((False, text))
    found.append(_backup_line(state.backup))
    growth = "growth not known yet" if math.isnan(state.growth_bytes) else f"{_bytes(state.growth_bytes)} a day more"
    full = "" if math.isinf(state.disk_full_days) else f", disk full in {state.disk_full_days:.0f} days"
    found.append((state.disk_full_days >= 14, f"database: {_bytes(state.database_bytes)}, {growth}{full}"))
    return found


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(number) < 1_000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1_000
    return f"{number:.1f} TB"
