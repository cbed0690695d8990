"""Every metric, once. docs/metrics.md is made from this list (``python -m tools.docs``).

Names: ``esp_ingest_`` + attribute (+ ``_total`` on counters, which prometheus_client adds). Units end the name. Labels
come from closed lists and their series exist at 0 from the start, so that ``rate()`` sees the first event; no well_id
on counters. Update once a batch, not once a reading: an increment takes a lock and about 0.5 µs.
"""

import itertools
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from esp_ingest import __version__
from esp_ingest.model import SIGNAL_NAMES, RejectReason, Unusable
from esp_ingest.service.metric_problems import PROBLEMS

PREFIX = "esp_ingest"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

QOS = ("0", "1", "2")
WRITE_PATHS = ("direct", "staging", "bisect")
OUTCOMES = ("ok", "failed")
LIFECYCLE_TABLES = ("esp_telemetry", "diagnostic_results", "ingest_rejects")
# esp_ingest/lifecycle/errors.py has them; a test compares.
ARCHIVE_REASONS = (
    "unset", "storage", "foreign", "newer", "damaged", "mismatch", "schema", "clock", "database", "behind"
)  # fmt: skip

Made = TypeVar("Made", bound=MetricWrapperBase)

API_METHODS = ("GET", "POST", "OTHER")
API_STATUSES = ("2xx", "3xx", "4xx", "5xx")

BATCH_ROWS = (1, 10, 50, 100, 250, 500, 1_000, 2_000, 3_000, 4_000, 5_000, 10_000, 50_000)
SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# From a fresh reading to a controller's backlog of days.
AGE_SECONDS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3_600, 21_600, 86_400, 604_800, 2_592_000)

# Without this each counter and histogram gets a second series, …_created, that nobody here reads.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no annotation here


class MetricInfo(NamedTuple):
    """A metric as the documentation shows it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str
    problem: str
    buckets: tuple[float, ...] = ()


class _MetricSet:
    """Metrics on a registry of their own. Update them from any thread. ``catalogue`` lists what there is, ``render``
    makes the page for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.catalogue: list[MetricInfo] = []

    def render(self) -> bytes:
        """The page for Prometheus, text format 0.0.4: about 1 ms of CPU for 300 lines, measured with 0.26."""
        return generate_latest(self.registry)

    def refresh_process(self) -> None:
        """Read process_* anew (memory, CPU, file descriptors): some thirty system calls, so not within a scrape."""
        self._process.refresh()

    def _add_process(self) -> None:
        self.build_info = Info(f"{PREFIX}_build", "version of esp-ingest and of Python", registry=self.registry)
        self.build_info.info({"version": __version__, "python": platform.python_version()})
        problem = PROBLEMS["build_info"]
        info = MetricInfo(f"{PREFIX}_build_info", "info", ("version", "python"), "versions; always 1", problem)
        self.catalogue.append(info)
        self._process = _ProcessSnapshot()
        self.registry.register(self._process)

    def _counter(self, name: str, help_text: str, **labels: Sequence[str]) -> Counter:
        return self._add(Counter, name, help_text, labels)

    def _gauge(self, name: str, help_text: str, **labels: Sequence[str]) -> Gauge:
        return self._add(Gauge, name, help_text, labels)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return self._add(Histogram, name, help_text, {}, buckets)

    def _add(
        self,
        kind: type[Made],
        name: str,
        meaning: str,
        labels: Mapping[str, Sequence[str]],
        buckets: tuple[float, ...] = (),
    ) -> Made:
        """Make it, with what it is and when it is a problem as its help text; enter it in the catalogue, and make its
        series exist. A label without values is filled by its owner."""
        problem = PROBLEMS[name]
        own: dict[str, Any] = {"buckets": buckets} if buckets else {}
        made = kind(f"{PREFIX}_{name}", f"{meaning}. {problem}", tuple(labels), registry=self.registry, **own)
        full_name = f"{PREFIX}_{name}" + "_total" * (kind is Counter)
        kind_name = kind.__name__.lower()
        self.catalogue.append(MetricInfo(full_name, kind_name, tuple(labels), meaning, problem, buckets))
        if labels:
            for values in itertools.product(*labels.values()):
                made.labels(*values)
        return made


class Metrics(_MetricSet):
    """All metrics of the daemon."""

    def __init__(self) -> None:
        super().__init__()
        counter, gauge, histogram = self._counter, self._gauge, self._histogram

        # -- Messages: what the broker handed over. received = acked + unacked + stale, at QoS 1 and 2.
        self.messages_received = counter("messages_received", "MQTT messages received", qos=QOS)
        self.messages_redelivered = counter("messages_redelivered", "received messages that carried MQTT's DUP flag")
        self.messages_acked = counter("messages_acked", "messages acknowledged to the broker, after they were safe")
        self.messages_stale = counter(
            "messages_stale", "messages safe after their connection had ended: the broker delivers them again"
        )
        self.messages_dropped = counter(
            "messages_dropped", "messages that a full buffer had to drop: QoS 0 only, which has no redelivery", qos=QOS
        )

        self.broker_messages_dropped = gauge(
            "broker_messages_dropped",
            "messages that the broker says it has dropped since its start ($SYS), there while this daemon publishes",
            broker=(),
        )

        # -- Readings: received = written + duplicate + rejected + spooled + held. A difference is a bug, and counted.
        self.readings_received = counter("readings_received", "readings and rejects taken out of messages")
        self.readings_written = counter("readings_written", "readings committed to esp_telemetry")
        self.readings_duplicate = counter("readings_duplicate", "readings and rejects that were stored already")
        self.readings_rejected = counter(
            "readings_rejected", "items stored in ingest_rejects", reason=[reason.value for reason in RejectReason]
        )
        self.readings_spooled = counter(
            "readings_spooled", "readings and rejects that left memory for the spool; received again when drained"
        )
        self.readings_held = gauge("readings_held", "readings and rejects in memory, not yet stored")
        self.reconciliation_failures = counter(
            "reconciliation_failures", "batches whose items did not add up: received, but neither stored nor held"
        )
        self.values_out_of_range = counter(
            "values_out_of_range",
            "numbers outside the signal's hard limits, NaN and infinities included, stored as NULL",
            signal=SIGNAL_NAMES,
        )
        self.values_unusable = counter(
            "values_unusable",
            "values stored as NULL, kept in quality, by what they were: out of range, not finite, or not a number",
            signal=SIGNAL_NAMES,
            kind=[kind.value for kind in Unusable],
        )
        self.reject_alarm = gauge("reject_alarm", "1 while too many items are rejected (service.reject_alarm_*)")

        # -- Writing.
        self.batch_rows = histogram("batch_rows", "readings and rejects in a committed batch", BATCH_ROWS)
        self.batch_write_seconds = histogram(
            "batch_write_seconds", "write of a batch, without its rules", SHORT_SECONDS
        )
        self.batches_written = counter(
            "batches_written",
            "batches committed by the way they went: direct COPY, staging table, bisected",
            path=WRITE_PATHS,
        )
        self.ingest_latency_seconds = histogram(
            "ingest_latency_seconds", "received to committed, a reading", SHORT_SECONDS
        )
        self.reading_age_seconds = histogram("reading_age_seconds", "event time to committed, a reading", AGE_SECONDS)

        # -- What is on its way: bounded by the window.
        self.buffer_messages = gauge("buffer_messages", "messages received and not yet taken by the pipeline")
        self.buffer_bytes = gauge("buffer_bytes", "payload bytes of these messages")
        self.unacked_messages = gauge("unacked_messages", "messages received and not yet acknowledged")
        self.oldest_unacked_seconds = gauge("oldest_unacked_seconds", "age of the oldest of them, 0 with none")
        self.window_messages = gauge("window_messages", "messages the broker may send ahead of acknowledgements")

        # -- The broker.
        self.mqtt_connected = gauge("mqtt_connected", "1 while connected to the broker")
        self.mqtt_subscribed = gauge("mqtt_subscribed", "1 while the broker has acknowledged the subscription")
        self.mqtt_reconnects = counter("mqtt_reconnects", "connections after the first")
        self.mqtt_publisher_connected = gauge(
            "mqtt_publisher_connected", "1 while the connection for publishing diagnoses is there"
        )
        self.mqtt_sessions_lost = counter(
            "mqtt_sessions_lost", "reconnects on which the broker no longer had the session, nor what it queued"
        )

        # -- The database.
        self.database_up = gauge("database_up", "1 while the database takes batches")
        self.database_retries = counter("database_retries", "batches written again after a transient error")

        # -- The spool on disk.
        self.spool_messages = gauge("spool_messages", "messages in the spool")
        self.spool_bytes = gauge("spool_bytes", "bytes of the spool on disk")
        self.spool_limit_bytes = gauge("spool_limit_bytes", "bytes that the spool may take (spool.max_bytes)")
        self.spool_oldest_seconds = gauge("spool_oldest_seconds", "time since the oldest of them was received")
        self.spool_full = gauge("spool_full", "1 while the spool takes no more: messages stay unacknowledged")
        self.spool_written = counter("spool_written", "messages made safe in the spool")
        self.spool_drained = counter("spool_drained", "spooled messages stored in the database and removed")
        self.spool_set_aside = counter(
            "spool_set_aside", "messages lost to spool damage, or 1 a report where none is or nobody knows"
        )
        self.spool_orphaned_files = gauge(
            "spool_orphaned_files", "files of acknowledged messages in a spool that is switched off: nobody stores them"
        )
        self.spool_failures = counter("spool_failures", "attempts to write or read the spool that the disk refused")

        # -- Diagnostics. The series of each rule exist from the start (diagnostics/service.py).
        self.diagnostics_running = gauge(
            "diagnostics_running", "1 while the rules run in this process; in a share group in one of them at a time"
        )
        self.diagnostics_behind_seconds = gauge(
            "diagnostics_behind_seconds", "in a share group: age of the newest reading that the leader has evaluated"
        )
        self.diagnostics_raised = counter("diagnostics_raised", "occurrences raised", diagnosis=(), severity=())
        self.diagnostics_active = gauge(
            "diagnostics_active", "occurrences that have not cleared", diagnosis=(), severity=()
        )
        self.diagnostics_evaluate_seconds = histogram(
            "diagnostics_evaluate_seconds", "time to run the rules over a batch", SHORT_SECONDS
        )
        self.diagnostics_rule_failures = counter(
            "diagnostics_rule_failures", "run-time failures of a rule, which is then disabled", diagnosis=()
        )
        self.diagnostics_rules_disabled = gauge("diagnostics_rules_disabled", "rules switched off by a failure")
        self.diagnostics_reloads = counter("diagnostics_reloads", "rules read again on SIGHUP", outcome=OUTCOMES)
        self.diagnostics_refused = gauge(
            "diagnostics_refused", "1 while the tables of the diagnostics refuse: readings are stored, diagnoses wait"
        )
        self.diagnostics_rows_waiting = gauge(
            "diagnostics_rows_waiting", "occurrences whose newest state their table has not taken yet"
        )
        self.diagnostics_wells_waiting = gauge(
            "diagnostics_wells_waiting", "wells with readings that are stored and will be evaluated later"
        )
        self.diagnostics_late_readings = counter(
            "diagnostics_late_readings", "readings not newer than their well's state: stored, and raise nothing"
        )
        self.diagnostics_wells = gauge("diagnostics_wells", "wells whose state the rules hold in memory")
        self.diagnostics_wells_evicted = counter(
            "diagnostics_wells_evicted", "silent wells whose state left memory for the database, to make room"
        )
        self.diagnostics_readings_unjudged = counter(
            "diagnostics_readings_unjudged", "readings of wells beyond diagnostics.max_wells: stored, not evaluated"
        )
        self.diagnostics_stale = gauge("diagnostics_stale", "occurrences open for more than 24 hours (ISA-18.2)")
        self.diagnostics_shelved = gauge("diagnostics_shelved", "diagnoses that an operator has shelved")
        self.diagnostics_unacknowledged = gauge("diagnostics_unacknowledged", "open occurrences nobody acknowledged")
        self.diagnostics_publish_backlog = gauge(
            "diagnostics_publish_backlog", "committed occurrences not yet published to the broker"
        )
        self.diagnostics_publish_set_aside = gauge(
            "diagnostics_publish_set_aside",
            "changes of occurrences that the broker has refused; diagnostics_outbox says why",
        )
        self.diagnostics_published = counter("diagnostics_published", "occurrences the broker has acknowledged")
        self.diagnostics_publications_refused = counter(
            "diagnostics_publications_refused", "publications that the broker refused and that were set aside"
        )

        # -- The process.
        self.certificate_expires = gauge(
            "certificate_expires_timestamp_seconds",
            "Unix time at which a certificate ends: files that the settings name, and what the broker shows",
            certificate=(),
        )
        self.ready = gauge("ready", "1 while /health/ready answers 200")
        self.loop_idle_seconds = gauge("loop_idle_seconds", "time since a loop last moved", loop=())
        self._add_process()


class ApiMetrics(_MetricSet):
    """The metrics of `esp-ingest api`, a process of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = self._counter("api_requests", "requests answered", method=API_METHODS, status=API_STATUSES)
        self.request_seconds = self._histogram(
            "api_request_seconds", "time to answer a request, streams left out", SHORT_SECONDS
        )
        self.sign_ins = self._counter("api_sign_ins", "attempts to sign in", outcome=("ok", "refused", "throttled"))
        self.streams = self._gauge("api_streams", "live streams that are open")
        self.streams_cut = self._counter("api_streams_cut", "live streams cut off because the client took nothing")
        self.database_up = self._gauge("api_database_up", "1 while the database answers and has its schema")
        self._add_process()


class LifecycleMetrics(_MetricSet):
    """The metrics of `esp-ingest lifecycle run`, a process of its own. Those of tables are as of the last run."""

    def __init__(self) -> None:
        super().__init__()
        counter, gauge, tables = self._counter, self._gauge, LIFECYCLE_TABLES

        # -- Runs.
        self.configured = gauge("archive_configured", "1 if archive.url is set, or lifecycle.drop_without_archive")
        self.problem = gauge(
            "archive_problem",
            "1 while the last run ended with such a problem: nothing is dropped",
            reason=ARCHIVE_REASONS,
        )
        self.lag_seconds = gauge(
            "archive_lag_seconds", "age of the oldest finished day without a proven copy, 0 with none", table=tables
        )
        self.runs = counter("lifecycle_runs", "runs by how they ended", outcome=OUTCOMES)
        self.run_seconds = gauge("lifecycle_run_seconds", "time that the last run took")
        self.last_success = gauge(
            "lifecycle_last_success_timestamp_seconds",
            "Unix time of the last run without a problem, 0 before the first",
        )
        self.days_archived = counter("archive_days_written", "versions of days written to the archive", table=tables)
        self.days_verified = counter("archive_days_verified", "archived days read back and found whole", table=tables)
        self.days_dropped = counter("lifecycle_days_dropped", "days dropped from the database", table=tables)
        self.overdue_days = gauge(
            "lifecycle_overdue_days", "days by which the oldest droppable row is past its retention", table=tables
        )
        self.retention_policies = gauge(
            "retention_policies", "retention policies of TimescaleDB on our tables, which drop without a proven copy"
        )

        # -- The backup of the whole database, as of the last run: `lifecycle drill` tries it.
        self.drill_last_success = gauge(
            "backup_drill_last_success_timestamp_seconds",
            "Unix time at which a drill last restored a backup and found it good, 0 before the first",
        )
        self.drill_failed = gauge("backup_drill_failed", "1 while the last drill ended with a problem")
        self.drill_seconds = gauge("backup_drill_seconds", "time that the last drill took")
        self.drill_days = gauge("backup_drill_days_compared", "archived days that the last drill compared")
        self.drill_backup = gauge(
            "backup_drill_backup_timestamp_seconds", "Unix time at which the backup of the last drill was made"
        )
        self.wal_failing = gauge(
            "backup_wal_failing", "1 while the server archives its WAL and the last segment could not be archived"
        )

        # -- The database, as of the last run.
        self.table_rows = gauge("table_rows", "rows of a table", table=tables)
        self.table_bytes = gauge("table_bytes", "bytes of a table with its indexes", table=tables)
        self.table_bytes_per_row = gauge("table_bytes_per_row", "bytes of a table by its rows", table=tables)
        self.table_oldest_seconds = gauge("table_oldest_seconds", "age of the oldest row of a table", table=tables)
        self.table_chunks = gauge("table_chunks", "chunks of a hypertable", table=tables)
        self.table_chunks_compressed = gauge("table_chunks_compressed", "of them, compressed ones", table=tables)
        self.jobs_failing = gauge("database_jobs_failing", "background jobs on our tables whose last run failed")
        self.job_success_seconds = gauge("database_job_success_seconds", "time since such a job last succeeded", job=())
        self.database_bytes = gauge("database_bytes", "bytes of the database")
        self.growth_bytes_per_day = gauge("database_growth_bytes_per_day", "its growth over the last days, up to 7")
        self.disk_free_bytes = gauge("database_disk_free_bytes", "room on the disk of lifecycle.disk_path")
        self.disk_full_days = gauge(
            "database_disk_full_days", "days until that disk is full at this growth; +Inf if unknown or shrinking"
        )

        # -- The process.
        self.ready = gauge("ready", "1 while /health/ready answers 200")
        self.loop_idle_seconds = gauge("loop_idle_seconds", "time since a loop last moved", loop=())
        self._add_process()


class _ProcessSnapshot(Collector):
    """The process_* metrics as they were at the last refresh.

    Each system call gives the GIL away, and at full load getting it back takes milliseconds: within a scrape, these
    thirty made it 40 ms where the rest of the page takes 1 ms.
    """

    def __init__(self) -> None:
        self._source = ProcessCollector(registry=None)
        self.refresh()

    def refresh(self) -> None:
        self._families = list(self._source.collect())

    def collect(self) -> Iterable[Metric]:
        return self._families


def observe_many(histogram: Histogram, values: npt.NDArray[np.floating] | npt.NDArray[np.integer]) -> None:
    """Observe each of ``values`` (n,), 45 µs for 5 000 of them where ``observe`` takes 5.5 ms.

    Same bucket counts as n calls of ``observe``, and the same sum but for the order of addition. NaN is left out: it
    fits no bucket and would turn the sum into NaN for ever. Reaches into prometheus_client, whose class has no such
    method; a test compares the two, so a release that moves these fails there.
    """
    amounts = np.asarray(values, np.float64)
    amounts = amounts[~np.isnan(amounts)]
    if amounts.size == 0:
        return
    bounds = histogram._upper_bounds
    counts = np.bincount(np.searchsorted(bounds, amounts, side="left"), minlength=len(bounds))
    for bucket in np.flatnonzero(counts):
        histogram._buckets[bucket].inc(int(counts[bucket]))
    histogram._sum.inc(float(amounts.sum()))
