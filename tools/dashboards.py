"""Grafana's boards, made from the lists below by ``python -m tools.docs``: operations by metrics, engineers by SQL.

A metric of service/metrics.py has one place in OPERATIONS at most; those without one get a panel each in a last row.
"""

import json
from collections.abc import Iterator
from typing import Any

from esp_ingest.service.metrics import ApiMetrics, LifecycleMetrics, MetricInfo, Metrics

_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 3
_UNITS = {"seconds": "s", "bytes": "bytes"}  # of a metric without a place, by the end of its name
_PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
_DATABASE = {"type": "postgres", "uid": "${database}"}

# Row → panels: title, Grafana's unit of what is shown, metrics without their prefix.
OPERATIONS: dict[str, list[tuple[str, str, str]]] = {
    "Now": [
        ("Ready and connected", "short", "ready mqtt_connected mqtt_subscribed mqtt_publisher_connected database_up"),
        ("Spool", "short", "spool_messages spool_full spool_orphaned_files"),
        ("Version", "short", "build_info"),
    ],
    "Readings": [
        ("Messages", "cps", "messages_received messages_acked messages_redelivered messages_stale messages_dropped"),
        ("Readings", "cps", "readings_received readings_written readings_duplicate readings_spooled"),
        ("Rejected, by reason", "cps", "readings_rejected"),
        ("Reject alarm, items that do not add up", "short", "reject_alarm reconciliation_failures readings_held"),
        ("Values out of range, by signal", "cps", "values_out_of_range"),
        ("Values unusable, by signal and kind", "cps", "values_unusable"),
    ],
    "Latency and batches": [
        ("Received to committed", "s", "ingest_latency_seconds"),
        ("Event time to committed", "s", "reading_age_seconds"),
        ("Time to write a batch", "s", "batch_write_seconds"),
        ("Rows a batch", "short", "batch_rows"),
        ("Batches by the way they went", "cps", "batches_written"),
        ("Window", "short", "unacked_messages buffer_messages window_messages"),
        ("Oldest unacknowledged", "s", "oldest_unacked_seconds"),
        ("Buffer", "bytes", "buffer_bytes"),
        ("Loops: time since each moved", "s", "loop_idle_seconds"),
    ],
    "Broker, database, spool": [
        ("Reconnects, sessions lost", "cps", "mqtt_reconnects mqtt_sessions_lost database_retries spool_failures"),
        ("Dropped by the broker", "short", "broker_messages_dropped"),
        ("Certificates end", "dateTimeFromNow", "certificate_expires_timestamp_seconds"),
        ("Spool on disk", "bytes", "spool_bytes spool_limit_bytes"),
        ("Into the spool and out", "cps", "spool_written spool_drained spool_set_aside"),
        ("Oldest in the spool", "s", "spool_oldest_seconds"),
    ],
    "Diagnostics": [
        ("Active", "short", "diagnostics_active"),
        ("Raised", "cps", "diagnostics_raised"),
        ("Attention", "short", "diagnostics_stale diagnostics_shelved diagnostics_unacknowledged"),
        ("Running, refused, disabled", "short", "diagnostics_running diagnostics_refused diagnostics_rules_disabled"),
        ("Failures and reloads", "cps", "diagnostics_rule_failures diagnostics_reloads"),
        ("Time to evaluate a batch", "s", "diagnostics_evaluate_seconds"),
        ("Behind", "s", "diagnostics_behind_seconds"),
        ("Wells", "short", "diagnostics_wells diagnostics_wells_waiting diagnostics_rows_waiting"),
        (
            "Late, unjudged, evicted",
            "cps",
            "diagnostics_late_readings diagnostics_readings_unjudged diagnostics_wells_evicted",
        ),
        ("Waiting to be published", "short", "diagnostics_publish_backlog diagnostics_publish_set_aside"),
        ("Published and refused", "cps", "diagnostics_published diagnostics_publications_refused"),
    ],
    "Lifecycle and backup": [
        ("Archive", "short", "archive_configured archive_problem retention_policies lifecycle_overdue_days"),
        ("Without a proven copy", "s", "archive_lag_seconds"),
        ("Last success", "dateTimeFromNow", "lifecycle_last_success_timestamp_seconds"),
        ("Runs", "cps", "lifecycle_runs archive_days_written archive_days_verified lifecycle_days_dropped"),
        ("Time of a run and of a drill", "s", "lifecycle_run_seconds backup_drill_seconds"),
        ("Backup", "short", "backup_drill_failed backup_wal_failing backup_drill_days_compared"),
        (
            "Last good drill and its backup",
            "dateTimeFromNow",
            "backup_drill_last_success_timestamp_seconds backup_drill_backup_timestamp_seconds",
        ),
        ("Rows", "short", "table_rows table_chunks table_chunks_compressed"),
        ("Bytes", "bytes", "table_bytes database_bytes database_disk_free_bytes database_growth_bytes_per_day"),
        ("Bytes a row", "bytes", "table_bytes_per_row"),
        ("Oldest row", "s", "table_oldest_seconds"),
        ("Days until the disk is full", "d", "database_disk_full_days"),
        ("Background jobs", "short", "database_jobs_failing"),
        ("Since a job succeeded", "s", "database_job_success_seconds"),
    ],
    "API": [
        ("Requests", "cps", "api_requests api_sign_ins api_streams_cut"),
        ("Time of a request", "s", "api_request_seconds"),
        ("Streams, database", "short", "api_streams api_database_up"),
    ],
}

# Title, kind of panel, unit, width, SQL. Grafana puts the time range and the chosen well in.
_WELL = "FROM esp_telemetry WHERE well_id = '$well' AND $__timeFilter(timestamp) ORDER BY timestamp"
ENGINEERS: list[tuple[str, str, str, int, str]] = [
    (
        "Fleet",
        "table",
        "short",
        24,
        "SELECT w.well_id, w.timestamp, w.flow_rate, w.pip, w.motor_current, w.motor_temp, w.vibration, "
        "w.vsd_frequency, "
        "CASE WHEN w.vsd_frequency <= 5 OR w.motor_current <= 0 THEN 'stopped' ELSE 'running' END AS state, "
        "string_agg(d.diagnosis, ', ' ORDER BY d.diagnosis) AS diagnoses "
        "FROM well_latest w LEFT JOIN active_diagnostics d USING (well_id) "
        "GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9 ORDER BY 1",
    ),
    (
        "Active alarms",
        "table",
        "short",
        24,
        "SELECT timestamp, well_id, severity, diagnosis, state, value, threshold, message FROM active_diagnostics "
        "ORDER BY array_position('{critical,high,medium,low,info}'::text[], severity), timestamp DESC LIMIT 500",
    ),
    ("Flow of $well, bbl/d", "timeseries", "short", 8, f"SELECT timestamp AS time, flow_rate {_WELL}"),
    (
        "Pressures of $well, psi",
        "timeseries",
        "short",
        8,
        f"SELECT timestamp AS time, pip, discharge_pressure, wellhead_pressure, casing_pressure {_WELL}",
    ),
    (
        "Current of $well, A, and frequency, Hz",
        "timeseries",
        "short",
        8,
        f"SELECT timestamp AS time, motor_current, vsd_frequency {_WELL}",
    ),
    (
        "Temperatures of $well, °F",
        "timeseries",
        "short",
        8,
        f"SELECT timestamp AS time, motor_temp, intake_temp {_WELL}",
    ),
    ("Vibration of $well, in/s", "timeseries", "short", 8, f"SELECT timestamp AS time, vibration {_WELL}"),
    ("Leakage of $well, mA", "timeseries", "short", 8, f"SELECT timestamp AS time, leakage_current {_WELL}"),
    (
        "Alarms of $well",
        "table",
        "short",
        24,
        "SELECT timestamp, diagnosis, severity, state, cleared_at, value, threshold, peak, message "
        "FROM diagnostic_results WHERE well_id = '$well' AND $__timeFilter(timestamp) "
        "ORDER BY timestamp DESC LIMIT 500",
    ),
    (
        "Share of the day that wells ran",
        "timeseries",
        "percentunit",
        8,
        "SELECT bucket AS time, avg(least(running_seconds / 86400.0, 1)) AS running FROM esp_telemetry_daily "
        "WHERE $__timeFilter(bucket) GROUP BY 1 ORDER BY 1",
    ),
    (
        "Alarms a day, by severity",
        "timeseries",
        "short",
        8,
        "SELECT date_trunc('day', timestamp) AS time, severity AS metric, count(*) AS alarms FROM diagnostic_results "
        "WHERE $__timeFilter(timestamp) GROUP BY 1, 2 ORDER BY 1",
    ),
    (
        "Wells with most alarms",
        "table",
        "short",
        8,
        "SELECT well_id, count(*) AS alarms, count(*) FILTER (WHERE cleared_at IS NULL) AS open, "
        "avg(extract(epoch FROM cleared_at - timestamp)) AS mean_seconds FROM diagnostic_results "
        "WHERE $__timeFilter(timestamp) GROUP BY 1 ORDER BY 2 DESC LIMIT 20",
    ),
]


def operations() -> str:
    """config/grafana/esp-ingest.json. Raises ValueError for a place of a metric that is unknown or has another."""
    catalogues = (Metrics().catalogue, ApiMetrics().catalogue, LifecycleMetrics().catalogue)
    infos = {info.name.removeprefix("esp_ingest_").removesuffix("_total"): info for each in catalogues for info in each}
    placed = [name for panels in OPERATIONS.values() for _, _, names in panels for name in names.split()]
    if len(set(placed) & set(infos)) != len(placed):
        raise ValueError(f"in two places, or unknown: {sorted(name for name in placed if name not in infos) or placed}")
    others = [(name, _UNITS.get(name.rpartition("_")[2], "short"), name) for name in infos if name not in placed]
    rows = OPERATIONS | ({"Others": others} if others else {})
    made: list[dict[str, Any]] = []
    y = 0
    for row, panels in rows.items():
        made.append({"type": "row", "title": row, "collapsed": False, "panels": [], "gridPos": _place(0, y, 24, 1)})
        y += 1
        for number, (title, unit, names) in enumerate(panels):
            at = _place(number % _COLUMNS * _WIDTH, y + number // _COLUMNS * _HEIGHT, _WIDTH, _HEIGHT)
            chosen = [infos[name] for name in names.split()]
            made.append(_panel(title, "timeseries", _PROMETHEUS, unit, at, list(_queries(chosen))))
            made[-1]["description"] = "\n".join(f"{info.name}: {info.help}. {info.problem}" for info in chosen)
        y += -(-len(panels) // _COLUMNS) * _HEIGHT
    process = [
        ("Memory", "bytes", "process_resident_memory_bytes"),
        ("CPU, cores", "short", "process_cpu_seconds_total"),
    ]
    for number, (title, unit, name) in enumerate(process):
        only = ' and on (job, instance) esp_ingest_build_info{instance=~"$instance"}'
        shown = f"rate({name}[$__rate_interval])" if name.endswith("_total") else name
        target = {"expr": shown + only, "legendFormat": "{{instance}}"}
        made.append(_panel(title, "timeseries", _PROMETHEUS, unit, _place(number * 8, y, 8, _HEIGHT), [target]))
    instance = {"name": "instance", "type": "query", "datasource": _PROMETHEUS, "multi": True, "includeAll": True}
    instance |= {"query": "label_values(esp_ingest_build_info, instance)", "refresh": 2, "allValue": ".*"}
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return _board("esp-ingest", "esp-ingest: operations", made, [source, instance])


def engineers() -> str:
    """config/grafana/esp-ingest-wells.json."""
    made = []
    x = y = 0
    for title, kind, unit, width, statement in ENGINEERS:
        if x + width > 24:
            x, y = 0, y + _HEIGHT
        columns = "time_series" if kind == "timeseries" else "table"
        target = {"rawSql": statement, "rawQuery": True, "format": columns}
        made.append(_panel(title, kind, _DATABASE, unit, _place(x, y, width, _HEIGHT), [target]))
        x += width
    source = {"name": "database", "type": "datasource", "query": "postgres", "label": "Database"}
    well = {"name": "well", "type": "query", "datasource": _DATABASE, "refresh": 2}
    well |= {"query": "SELECT well_id FROM well_latest ORDER BY 1"}
    return _board("esp-ingest-wells", "esp-ingest: wells", made, [source, well])


def _queries(infos: list[MetricInfo]) -> Iterator[dict[str, str]]:
    for info in infos:
        chosen = f'{info.name}{{instance=~"$instance"}}'
        short = info.name.removeprefix("esp_ingest_").removesuffix("_total")
        legend = " ".join([short, *(f"{{{{{label}}}}}" for label in info.labels), "{{instance}}"])
        if info.kind == "counter":
            yield {"expr": f"rate({chosen}[$__rate_interval])", "legendFormat": legend}
        elif info.kind == "histogram":
            buckets = f'sum by (le, instance) (rate({info.name}_bucket{{instance=~"$instance"}}[$__rate_interval]))'
            for share in (0.5, 0.99):
                named = f"p{100 * share:g} {{{{instance}}}}"
                yield {"expr": f"histogram_quantile({share}, {buckets})", "legendFormat": named}
        else:
            factor = " * 1000" if info.name.endswith("timestamp_seconds") else ""  # Grafana's dates are milliseconds
            yield {"expr": chosen + factor, "legendFormat": legend}


def _panel(
    title: str, kind: str, source: dict[str, str], unit: str, at: dict[str, int], targets: list[dict[str, Any]]
) -> dict[str, Any]:
    named = [{"refId": chr(ord("A") + number), "datasource": source, **each} for number, each in enumerate(targets)]
    fields = {"defaults": {"unit": unit}, "overrides": []}
    return {"type": kind, "title": title, "datasource": source, "gridPos": at, "fieldConfig": fields, "targets": named}


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _board(uid: str, title: str, panels: list[dict[str, Any]], variables: list[dict[str, Any]]) -> str:
    numbered = [{"id": number, **panel} for number, panel in enumerate(panels, 1)]
    board = {
        "uid": uid,
        "title": title,
        "tags": ["esp-ingest"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "utc",
        "templating": {"list": variables},
        "annotations": {"list": []},
        "panels": numbered,
    }
    return json.dumps(board, indent=1, ensure_ascii=False) + "\n"
