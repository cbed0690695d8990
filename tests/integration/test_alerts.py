"""Alerts, runbooks and what holds alerts back: promtool runs each alert both ways, a real Alertmanager inhibits."""

import contextlib
import json
import re
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from esp_ingest.service.metric_problems import PROBLEMS
from esp_ingest.service.metrics import ApiMetrics, LifecycleMetrics, Metrics
from tests.support.databases import free_port
from tests.support.shipped import CONFIG, RUNBOOKS, existing_names, linter, metric_names, passes, text_of

RULES: list[dict[str, Any]] = yaml.safe_load(text_of("config/prometheus/alerts.yml"))["groups"][0]["rules"]
ALERTS = [rule["alert"] for rule in RULES]

Series = dict[str, str]

_OLD = {"process_start_time_seconds": "-9000x60"}
_YOUNG = {"process_start_time_seconds": "_x52 3120x8"}  # started 52 minutes after the beginning, looked at after 55
_RESTARTED = {"process_start_time_seconds": "0x51 3120x8"}


def _counter(name: str) -> tuple[list[Series], list[Series]]:
    """(fires, keeps still) for an alert on any growth of a counter."""
    fires = [{name: "0x50 1x10"} | _OLD, {name: "_x52 1x8"} | _YOUNG, {name: "1x60"} | _RESTARTED]
    return fires, [{name: "0x60"} | _YOUNG, {name: "3x60"} | _OLD]


def _gauge(name: str, fires: str, still: str) -> tuple[list[Series], list[Series]]:
    return [{name: fires}], [{name: still}]


_LATENCY = 'esp_ingest_ingest_latency_seconds_bucket{le="%s"}'
_DRILL = "esp_ingest_backup_drill_last_success_timestamp_seconds"

# What makes each alert fire, and what must not: series in promtool's notation, a value a minute, looked at after 55.
# What keeps still is a near miss: the other side of the threshold, or not for long enough.
CASES: dict[str, tuple[list[Series], list[Series]]] = {
    "EspIngestDown": (
        [{"up": "1x10 0x50", 'esp_ingest_build_info{version="1"}': "1x10"}],
        [{"up": "0x60"}, {"up": "0x52 1x8", 'esp_ingest_build_info{version="1"}': "1x60"}],
    ),
    "EspIngestAbsent": ([], [{"esp_ingest_mqtt_connected": "1x60"}]),
    "EspIngestRestarting": (
        [{"process_start_time_seconds": "1x40 100x2 200x2 300x20", 'esp_ingest_build_info{version="1"}': "1x60"}],
        [
            {"process_start_time_seconds": "1x40 100x2 200x20", 'esp_ingest_build_info{version="1"}': "1x60"},
            {"process_start_time_seconds": "1x40 100x2 200x2 300x20"},
        ],
    ),
    "EspIngestNotReady": (
        [{"esp_ingest_ready": "0x60", "esp_ingest_mqtt_connected": "1x60"}],
        [
            {"esp_ingest_ready": "1x51 0x9", "esp_ingest_mqtt_connected": "1x60"},
            {"esp_ingest_ready": "0x60", "esp_ingest_archive_configured": "1x60"},  # the lifecycle's port
        ],
    ),
    "EspIngestMqttDisconnected": (
        [
            {"esp_ingest_mqtt_subscribed": "0x60", "esp_ingest_mqtt_connected": "1x60"},
            {"esp_ingest_mqtt_connected": "0x60"},
        ],
        [{"esp_ingest_mqtt_subscribed": "1x53 0x7", "esp_ingest_mqtt_connected": "1x60"}],
    ),
    "EspIngestReconnecting": _gauge("esp_ingest_mqtt_reconnects_total", "0+2x60", "0x50 1 2 3 4x10"),
    "EspIngestSessionLost": _counter("esp_ingest_mqtt_sessions_lost_total"),
    "EspIngestMessagesDropped": _counter('esp_ingest_messages_dropped_total{qos="0"}'),
    "EspIngestBrokerDrops": (
        [{'esp_ingest_broker_messages_dropped{broker="b:1883"}': "7x50 9x10"}],
        # A daemon that starts anew beside a broker which dropped messages long ago.
        [{'esp_ingest_broker_messages_dropped{broker="b:1883"}': "_x52 7x8"} | _YOUNG],
    ),
    "EspIngestDatabaseDown": _gauge("esp_ingest_database_up", "0x60", "1x53 0x7"),
    "EspIngestApiDatabaseDown": _gauge("esp_ingest_api_database_up", "0x60", "1x53 0x7"),
    "EspIngestSpoolNotDraining": (
        [{"esp_ingest_spool_messages": "7x60", "esp_ingest_database_up": "1x60"}],
        [{"esp_ingest_spool_messages": "7x60", "esp_ingest_database_up": "0x50 1x10"}],
    ),
    "EspIngestSpoolFilling": (
        [{"esp_ingest_spool_bytes": "80x60", "esp_ingest_spool_limit_bytes": "100x60"}],
        [
            {"esp_ingest_spool_bytes": "60x60", "esp_ingest_spool_limit_bytes": "100x60"},
            {"esp_ingest_spool_bytes": "80x60", "esp_ingest_spool_limit_bytes": "0x60"},
        ],
    ),
    "EspIngestSpoolFull": _gauge("esp_ingest_spool_full", "1x60", "0x60"),
    "EspIngestSpoolFailing": _counter("esp_ingest_spool_failures_total"),
    "EspIngestSpoolDamaged": _counter("esp_ingest_spool_set_aside_total"),
    "EspIngestMessagesStuck": _gauge("esp_ingest_oldest_unacked_seconds", "500x60", "100x60"),
    "EspIngestWindowFull": (
        [{"esp_ingest_unacked_messages": "19500x60", "esp_ingest_window_messages": "20000x60"}],
        [{"esp_ingest_unacked_messages": "18000x60", "esp_ingest_window_messages": "20000x60"}],
    ),
    "EspIngestLagging": (
        [{_LATENCY % "10.0": "0+5x60", _LATENCY % "30.0": "0+10x60", _LATENCY % "+Inf": "0+10x60"}],
        [{_LATENCY % "10.0": "0+10x60", _LATENCY % "30.0": "0+10x60", _LATENCY % "+Inf": "0+10x60"}],
    ),
    "EspIngestNoReadings": (
        [{"esp_ingest_readings_received_total": "5x60", "esp_ingest_ready": "1x60"}],
        [
            {"esp_ingest_readings_received_total": "0+1x60", "esp_ingest_ready": "1x60"},
            {"esp_ingest_readings_received_total": "5x60", "esp_ingest_ready": "0x60"},
        ],
    ),
    "EspIngestCertificateExpiring": _gauge(
        'esp_ingest_certificate_expires_timestamp_seconds{certificate="mqtt broker"}', "2000000x44", "2100000x44"
    ),
    "EspIngestRejecting": _gauge("esp_ingest_reject_alarm", "1x60", "0x60"),
    "EspIngestReconciliation": _counter("esp_ingest_reconciliation_failures_total"),
    "EspIngestRuleDisabled": _gauge("esp_ingest_diagnostics_rules_disabled", "1x60", "0x60"),
    "EspIngestRulesNotReloaded": _counter('esp_ingest_diagnostics_reloads_total{outcome="failed"}'),
    "EspIngestDiagnosticsRefused": _gauge("esp_ingest_diagnostics_refused", "1x60", "0x51 1x9"),
    "EspIngestPublishBacklog": (
        [{"esp_ingest_diagnostics_publish_backlog": "3x60"}, {"esp_ingest_diagnostics_publish_set_aside": "1x60"}],
        [{"esp_ingest_diagnostics_publish_backlog": "0x45 3x15"}],
    ),
    "EspIngestRulesBehind": _gauge("esp_ingest_diagnostics_behind_seconds", "900x60", "200x60"),
    "EspIngestArchiveUnset": _gauge("esp_ingest_archive_configured", "0x60", "1x60"),
    "EspIngestArchiveFailing": (
        [{'esp_ingest_archive_problem{reason="storage"}': "1x60"}],
        [
            {'esp_ingest_archive_problem{reason="storage"}': "0x60"},
            {'esp_ingest_archive_problem{reason="unset"}': "1x60"},
        ],
    ),
    "EspIngestArchiveBehind": _gauge('esp_ingest_archive_lag_seconds{table="esp_telemetry"}', "200000x60", "170000x60"),
    "EspIngestLifecycleNotRunning": _gauge(
        "esp_ingest_lifecycle_last_success_timestamp_seconds", "-200000x60", "-160000x60"
    ),
    "EspIngestNotDropped": _gauge('esp_ingest_lifecycle_overdue_days{table="esp_telemetry"}', "3x60", "2x60"),
    "EspIngestRetentionPolicy": _gauge("esp_ingest_retention_policies", "1x60", "0x60"),
    "EspIngestDiskFilling": _gauge("esp_ingest_database_disk_full_days", "9x60", "15x60"),
    "EspIngestDatabaseJobFailing": _gauge("esp_ingest_database_jobs_failing", "1x60", "0x60"),
    "EspIngestBackupDrillFailed": _gauge("esp_ingest_backup_drill_failed", "1x60", "0x60"),
    # A value every six hours, looked at after ten days: time begins at 0, which as a value means that there was none.
    "EspIngestBackupDrillOld": ([{_DRILL: "1x44"}], [{_DRILL: "0x44"}, {_DRILL: "600000x44"}]),
    "EspIngestWalNotArchived": _gauge("esp_ingest_backup_wal_failing", "1x60", "0x60"),
}
# Labels that the alert does not keep of the series on its left-hand side.
_LABELS = {"EspIngestBrokerDrops": ("job", "instance")}
# These need more than an hour.
SLOW = ["EspIngestBackupDrillOld", "EspIngestCertificateExpiring"]
_EXTERNAL = {"esp_ingest_docs": "https://docs.example"}


def test_every_alert_is_made_of_metrics_that_exist() -> None:
    for rule in RULES:
        assert metric_names(rule["expr"]) <= existing_names(), rule["alert"]
        assert "job=" not in rule["expr"], f"{rule['alert']} is silent where the job has another name"


def test_every_alert_has_one_runbook_and_every_runbook_an_alert() -> None:
    for rule in RULES:
        page = f"docs/runbooks/{rule['alert']}.md"
        assert rule["annotations"]["runbook_url"] == "{{ $externalLabels.esp_ingest_docs }}/" + page
        assert rule["labels"]["severity"] in ("critical", "warning")
        runbook = text_of(page)
        headings = re.findall(r"^## (.+)$", runbook, re.MULTILINE)
        assert headings == ["Meaning", "Impact", "Diagnosis", "Mitigation"]
        assert f"`{rule['expr']}`" in runbook, "the runbook quotes another expression"
        assert rule["alert"] in text_of("docs/runbooks/README.md")
    assert {path.stem for path in RUNBOOKS.glob("Esp*.md")} == set(ALERTS)


def test_every_metrics_help_says_when_its_value_is_a_problem() -> None:
    sets = (Metrics(), ApiMetrics(), LifecycleMetrics())
    names = {info.name.removeprefix("esp_ingest_") for each in sets for info in each.catalogue}
    assert {name.removesuffix("_total") for name in names} == set(PROBLEMS)
    page = Metrics().render().decode()
    assert f"# HELP esp_ingest_spool_full {_help_of('spool_full')}" in page
    for problem in PROBLEMS.values():
        assert set(re.findall(r"EspIngest\w+", problem)) <= set(ALERTS)


def _help_of(name: str) -> str:
    (info,) = [info for info in Metrics().catalogue if info.name == f"esp_ingest_{name}"]
    return f"{info.help}. {PROBLEMS[name]}"


def test_promtool_accepts_rules_and_configuration() -> None:
    promtool = linter("promtool", "prometheus")
    passes(promtool, "check", "config", "prometheus.yml", cwd=CONFIG / "prometheus")
    passes(promtool, "check", "rules", "alerts.yml", cwd=CONFIG / "prometheus")


def _group(names: list[str], interval: str, at: str) -> dict[str, Any]:
    """A promtool case of all series of these alerts, an instance a case: what should fire does, and nothing else."""
    inputs: dict[str, str] = {}
    checks = []
    for rule in RULES:
        name, expected = rule["alert"], []
        if name not in names:
            continue
        for fires, cases in zip((True, False), CASES[name], strict=True):
            for number, series in enumerate(cases):
                instance = f"{name}-{fires}-{number}"
                labelled = {_labelled(each, instance): values for each, values in series.items()}
                inputs |= labelled
                if fires:
                    own = dict(re.findall(r'(\w+)="([^"]*)"', next(iter(labelled))))
                    labels = {key: value for key, value in own.items() if key not in ("le", *_LABELS.get(name, ()))}
                    expected.append({"exp_labels": labels | rule["labels"], "exp_annotations": _annotations(rule)})
        checks.append({"eval_time": at, "alertname": name, "exp_alerts": expected})
    return {
        "interval": interval,
        "external_labels": _EXTERNAL,
        "input_series": [{"series": each, "values": values} for each, values in inputs.items()],
        "alert_rule_test": checks,
    }


def _annotations(rule: dict[str, Any]) -> dict[str, str]:
    url = rule["annotations"]["runbook_url"].replace(
        "{{ $externalLabels.esp_ingest_docs }}", _EXTERNAL["esp_ingest_docs"]
    )
    summary = rule["annotations"]["summary"].replace("{{ $labels.job }}", "any")  # as in _labelled()
    return {**rule["annotations"], "summary": summary, "runbook_url": url}


def _labelled(name: str, instance: str) -> str:
    bare, _, labels = name.partition("{")
    return f'{bare}{{job="any",instance="{instance}"' + (f",{labels}" if labels else "}")


@pytest.mark.parametrize(
    ("names", "interval", "at"),
    [
        (SLOW, "6h", "240h"),
        ([name for name in ALERTS if name not in SLOW], "1m", "55m"),
    ],
)
def test_every_alert_fires_when_it_should_and_keeps_still_when_not(
    names: list[str], interval: str, at: str, tmp_path: Path
) -> None:
    promtool = linter("promtool", "prometheus")
    assert set(CASES) == set(ALERTS)
    assert all(keeps_still and (fires or name == "EspIngestAbsent") for name, (fires, keeps_still) in CASES.items())
    tests = tmp_path / "alerts_test.yml"
    rules = str(CONFIG / "prometheus/alerts.yml")
    groups = [_group(names, interval, at)]
    tests.write_text(yaml.safe_dump({"rule_files": [rules], "evaluation_interval": interval, "tests": groups}))
    passes(promtool, "test", "rules", str(tests))


_API = {'up{job="api",instance="a"}': "1x10 0x50", 'esp_ingest_build_info{job="api",instance="a"}': "1x10"}
_DAEMON = {'up{job="daemon",instance="d"}': "1x10 0x50", 'esp_ingest_mqtt_connected{job="daemon",instance="d"}': "1x10"}


@pytest.mark.parametrize(
    ("alert", "series", "interval", "firing"),
    [
        # One daemon anywhere keeps the alert on its absence still, so these are looked at one by one.
        ("EspIngestAbsent", {}, "1m", [{}]),
        ("EspIngestAbsent", _API, "1m", [{}]),  # another part that is down is no reason to say nothing of the daemon
        ("EspIngestAbsent", _API | _DAEMON, "1m", []),  # EspIngestDown tells of it
        # Two weeks later what the process served is forgotten, and it is still down; then it is back.
        ("EspIngestDown", _API, "6h", [{"job": "api", "instance": "a"}]),
        ("EspIngestDown", _API | {'up{job="api",instance="a"}': "1x10 0x40 1x9"}, "6h", []),
    ],
)
def test_what_is_gone_is_told_for_as_long_as_it_is(
    alert: str, series: Series, interval: str, firing: list[dict[str, str]], tmp_path: Path
) -> None:
    (rule,) = [rule for rule in RULES if rule["alert"] == alert]
    told = rule["annotations"] | {"summary": rule["annotations"]["summary"].replace("{{ $labels.job }}", "api")}
    expected = [
        {"exp_labels": labels | rule["labels"], "exp_annotations": _annotations(rule | {"annotations": told})}
        for labels in firing
    ]
    at = {"1m": "55m", "6h": "330h"}[interval]
    group = {
        "interval": interval,
        "external_labels": _EXTERNAL,
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": expected}],
    }
    tests = tmp_path / "gone.yml"
    files = [str(CONFIG / "prometheus/alerts.yml")]
    tests.write_text(yaml.safe_dump({"rule_files": files, "evaluation_interval": interval, "tests": [group]}))
    passes(linter("promtool", "prometheus"), "test", "rules", str(tests))


def test_a_cause_holds_its_consequences_back_for_its_own_daemon_alone(tmp_path: Path) -> None:
    """Against a real Alertmanager with the shipped configuration."""
    passes(linter("amtool", "prometheus-alertmanager"), "check-config", str(CONFIG / "prometheus/alertmanager.yml"))
    port = free_port()
    address = f"http://127.0.0.1:{port}/api/v2/alerts"
    process = subprocess.Popen(
        [
            linter("prometheus-alertmanager", "prometheus-alertmanager"),
            f"--config.file={CONFIG}/prometheus/alertmanager.yml",
            f"--storage.path={tmp_path}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    firing = [
        ("DatabaseDown", "a"),
        ("NotReady", "a"),
        ("NotReady", "b"),
        ("SpoolFull", "a"),
        ("MqttDisconnected", "m"),
        ("NoReadings", "m"),
        ("SpoolFailing", "s"),
        ("MessagesStuck", "s"),
        ("Rejecting", "s"),  # no consequence of any
        ("ArchiveFailing", "c"),
        ("ArchiveBehind", "c"),
        ("ArchiveBehind", "d"),  # of another database
        ("Down", "e"),
        ("Absent", ""),  # the daemon's absence is told, whatever else is down
    ]
    expected = {("NotReady", "a"), ("NoReadings", "m"), ("MessagesStuck", "s"), ("ArchiveBehind", "c")}
    alerts = [{"labels": {"alertname": f"EspIngest{name}", "job": "j", "instance": at}} for name, at in firing]
    try:
        body = json.dumps(alerts).encode()
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        deadline = time.monotonic() + 20
        held_back: set[tuple[str, str]] = set()
        while len(held_back) < len(expected) and time.monotonic() < deadline:
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                urllib.request.urlopen(request, timeout=5).close()
                with urllib.request.urlopen(address, timeout=5) as answer:
                    found = json.load(answer)
                held_back = {
                    (each["labels"]["alertname"], each["labels"].get("instance", ""))
                    for each in found
                    if each["status"]["inhibitedBy"]
                }
    finally:
        process.terminate()
        process.wait(10)
    assert held_back == {(f"EspIngest{name}", at) for name, at in expected}
