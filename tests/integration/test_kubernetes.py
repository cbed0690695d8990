"""The manifests: kustomize renders each overlay, and each object is checked strictly against Kubernetes' schemas.

Nothing here has run in a cluster: there is none on the machines that build this.
"""

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from esp_ingest import __version__, cli
from esp_ingest.config.load import load
from esp_ingest.service.http import PATHS
from tests.support.databases import npm_packages, unavailable
from tests.support.shipped import ROOT, linter, passes

OVERLAYS = ("one", "share-group", "full")
USER_ID = 10_001
KUBERNETES = "1.34"
Manifest = dict[str, Any]


@cache
def rendered(overlay: str) -> list[Manifest]:
    """What `kubectl apply -k` would send."""
    text = passes(linter("kubectl", "kubectl"), "kustomize", f"config/kubernetes/overlays/{overlay}")
    return list(yaml.safe_load_all(text))


def one(overlay: str, kind: str, name: str = "esp-ingest") -> Manifest:
    (found,) = [each for each in rendered(overlay) if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pods(overlay: str) -> dict[str, Manifest]:
    """Every pod's template by the object that makes it."""
    found = {}
    for each in rendered(overlay):
        spec = each.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template:
            found[each["metadata"]["name"]] = template
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_object_is_one_that_kubernetes_knows(overlay: str) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in rendered(overlay)]
    assert len(set(names)) == len(names)
    for each in rendered(overlay):
        assert each["metadata"]["namespace"] == "esp"
        if not each["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_the_checker_finds_a_misspelt_key() -> None:
    wrong = json.loads(json.dumps(one("one", "StatefulSet")))
    wrong["spec"]["template"]["spec"]["containers"][0]["liveness"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_objects_of_the_prometheus_operator_fit_its_schemas() -> None:
    node = shutil.which("node")
    if node is None:
        unavailable("no node: see docs/development.md")
        raise AssertionError("unreachable")
    source = ROOT / "tests/support/kubernetes"
    objects = [each for each in rendered("full") if each["apiVersion"].startswith("monitoring.coreos.com/")]
    assert sorted(each["kind"] for each in objects) == ["PodMonitor", "PrometheusRule", "PrometheusRule"]
    wrong = json.loads(json.dumps(objects[0]))
    wrong["spec"] = {"groups": 3, "podMetricsEndpoints": 3, "selector": {}}
    command = [node, str(source / "validate.mjs"), str(npm_packages(source))]
    done = subprocess.run(command, input=json.dumps([*objects, wrong]), capture_output=True, text=True, check=False)
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [wrong["kind"]], done.stdout + done.stderr


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_locked_down(overlay: str) -> None:
    for name, template in pods(overlay).items():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False
        assert "initContainers" not in pod, "nothing may keep a pod from starting, and from spooling"
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["image"].endswith(f":{__version__}")
        assert container["resources"]["limits"]["memory"]
        assert {mount["name"] for mount in container["volumeMounts"]} >= {each["name"] for each in pod["volumes"]}
        is_backup = "backup" in name or "drill" in name
        assert (pod["securityContext"]["runAsUser"] == USER_ID) == (not is_backup)
        if not is_backup or "drill" in name:
            assert {"name": "OPENBLAS_NUM_THREADS", "value": "1"} in container["env"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_policies_and_budgets_are_of_pods_that_are_there_and_narrow(overlay: str) -> None:
    labels = [template["metadata"]["labels"]["app.kubernetes.io/name"] for template in pods(overlay).values()]
    chosen = set()
    for each in rendered(overlay):
        if each["kind"] in ("NetworkPolicy", "PodDisruptionBudget"):
            selector = each["spec"].get("podSelector") or each["spec"]["selector"]
            if each["kind"] == "PodDisruptionBudget":
                assert each["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow", "else no drain without a database"
            chosen.add((each["kind"], selector["matchLabels"]["app.kubernetes.io/name"]))
            assert selector["matchLabels"]["app.kubernetes.io/name"] in labels
    policies = [each["spec"] for each in rendered(overlay) if each["kind"] == "NetworkPolicy"]
    assert {("NetworkPolicy", label) for label in labels} <= chosen, "each pod has a policy"
    for policy in policies:
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        open_to_all = [rule["ports"] for rule in policy["egress"] if not rule.get("to")]
        assert open_to_all in ([], [[{"port": 443}]]), "to somebody, not to all; object stores are outside"
        assert all(rule.get("from") for rule in policy.get("ingress", ()))
    assert ("PodDisruptionBudget", "esp-ingest") in chosen


def test_the_pod_probes_paths_that_exist_and_drains() -> None:
    pod = one("one", "StatefulSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in PATHS
        assert container[probe]["httpGet"]["port"] == "http"
    assert container["startupProbe"]["httpGet"]["path"] == "/health/live", "startup does not wait for the database"
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert pod["terminationGracePeriodSeconds"] > load().service.drain_seconds


def test_the_pods_settings_are_valid_and_its_mounts_exist(tmp_path: Path) -> None:
    text = one("one", "ConfigMap")["data"]["esp_ingest.toml"]
    for name in ("mqtt_password", "database_password"):
        (tmp_path / name).write_text("x")
    file = tmp_path / "esp_ingest.toml"
    file.write_text(text.replace("/run/secrets/esp-ingest", str(tmp_path)))
    settings = load(file)
    stateful = one("one", "StatefulSet")["spec"]
    volumes = {volume["name"] for volume in stateful["template"]["spec"]["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in stateful["volumeClaimTemplates"]}
    (container,) = stateful["template"]["spec"]["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == volumes
    assert settings.spool.path.startswith(mounts["state"])
    (claim,) = stateful["volumeClaimTemplates"]
    assert settings.spool.max_bytes < int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) * 2**30
    assert settings.http.host == "0.0.0.0"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_the_pods_set_is_a_setting(overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("x" * 40)
    for template in pods(overlay).values():
        for each in template["spec"]["containers"][0].get("env", ()):
            if each["name"].startswith("ESP_INGEST_"):
                value = each.get("value", "pod-0")
                monkeypatch.setenv(
                    each["name"], str(tmp_path / "secret") if value.startswith("/run/secrets") else value
                )
    load()  # an unknown variable would raise


def test_who_changes_tables_or_notes_a_drill_logs_in_as_their_owner() -> None:
    for name in (f"esp-ingest-migrate-{__version__}", "esp-ingest-lifecycle", "esp-ingest-drill"):
        (container,) = pods("full")[name]["spec"]["containers"]
        values = {each["name"]: each.get("value") for each in container["env"]}
        assert str(values["ESP_INGEST_DATABASE__DSN"]).startswith("postgresql://esp_ingest_owner@")
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert str(Path(str(values["ESP_INGEST_DATABASE__PASSWORD_FILE"])).parent) in mounts


def test_migrate_is_a_job_with_credentials_of_its_own() -> None:
    job = one("one", "Job", f"esp-ingest-migrate-{__version__}")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    cli.make_parser().parse_args(container["args"])
    (volume,) = job["spec"]["template"]["spec"]["volumes"]
    assert volume["secret"]["secretName"] == "esp-ingest-owner"
    daemon = one("one", "StatefulSet")["spec"]["template"]["spec"]
    assert "esp-ingest-owner" not in json.dumps(daemon), "the daemon cannot change the schema"
    five_minutes_apart = 3 * 86_400 // 300
    assert job["spec"]["backoffLimit"] > five_minutes_apart, "it outlives a weekend without a database"
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure"


def test_the_share_group_is_spread_and_its_members_have_ids_of_their_own() -> None:
    stateful = one("share-group", "StatefulSet")["spec"]
    assert stateful["replicas"] == 3
    spread = {each["topologyKey"] for each in stateful["template"]["spec"]["topologySpreadConstraints"]}
    assert spread == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    variables = {each["name"]: each for each in stateful["template"]["spec"]["containers"][0]["env"]}
    assert variables["ESP_INGEST_MQTT__SHARE_GROUP"]["value"]
    assert variables["ESP_INGEST_MQTT__CLIENT_ID"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert "ESP_INGEST_MQTT__SHARE_GROUP" not in json.dumps(rendered("one"))


def test_the_cron_jobs_run_commands_that_exist_at_the_times_that_are_documented() -> None:
    commands = {}
    for job in rendered("full"):
        if job["kind"] != "CronJob":
            continue
        (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        commands[job["metadata"]["name"]] = (job["spec"]["schedule"], *container["args"])
        assert job["spec"]["timeZone"] == "Etc/UTC"
        assert job["spec"]["concurrencyPolicy"] == "Forbid"
        if container.get("command", ["esp-ingest"]) == ["esp-ingest"]:
            cli.make_parser().parse_args(container["args"])  # exits where it does not know one
    assert commands["esp-ingest-backup-full"] == ("17 1 * * 0", "full")
    assert commands["esp-ingest-backup-diff"] == ("17 1 * * 1-6", "diff")
    assert commands["esp-ingest-drill"][:3] == ("17 5 * * 0", "lifecycle", "drill")
    assert commands["esp-ingest-lifecycle"][:4] == ("5 * * * *", "lifecycle", "run", "--once")


def test_selectors_and_labels_agree() -> None:
    labels = one("one", "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert one("one", "StatefulSet")["spec"]["selector"]["matchLabels"] == labels
    assert one("one", "Service")["spec"]["selector"] == labels
    (chosen,) = one("one", "PodMonitor")["spec"]["selector"]["matchExpressions"]
    assert labels["app.kubernetes.io/name"] in chosen["values"]


def test_the_rules_for_the_operator_are_the_alerts_that_ship() -> None:
    alerts = yaml.safe_load((ROOT / "config/prometheus/alerts.yml").read_text(encoding="utf-8"))
    assert one("one", "PrometheusRule")["spec"]["groups"] == alerts["groups"]


def test_cron_jobs_that_do_not_succeed_are_told_though_they_serve_no_metrics(tmp_path: Path) -> None:
    """promtool, both ways: the jobs named are those of the overlay, the alerts those that have a runbook."""
    groups = one("full", "PrometheusRule", "esp-ingest-archive")["spec"]["groups"]
    jobs = {each["metadata"]["name"] for each in rendered("full") if each["kind"] == "CronJob"}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": groups}))
    cases = []
    for rule in groups[0]["rules"]:
        page = f"docs/runbooks/{rule['alert']}.md"
        assert (ROOT / page).exists()
        assert rule["annotations"]["runbook_url"] == "{{ $externalLabels.esp_ingest_docs }}/" + page
        (job,) = set(re.findall(r'cronjob="([^"]+)"', rule["expr"]))
        assert job in jobs
        created, success = (
            f'kube_cronjob_{name}{{cronjob="{job}",namespace="esp"}}'
            for name in ("created", "status_last_successful_time")
        )
        told = rule["annotations"] | {"runbook_url": f"docs/{page}"}
        firing = [{"exp_labels": {"cronjob": job, "namespace": "esp", **rule["labels"]}, "exp_annotations": told}]
        # Looked at after ten days: made at the beginning and never a success; a success then; one an hour ago.
        for series, fires in (
            ({created: "0x20"}, True),
            ({created: "0x20", success: "60x20"}, True),
            ({created: "0x20", success: "860000x20"}, False),
        ):
            cases.append(
                {
                    "interval": "12h",
                    "external_labels": {"esp_ingest_docs": "docs"},
                    "input_series": [{"series": each, "values": values} for each, values in series.items()],
                    "alert_rule_test": [
                        {"eval_time": "240h", "alertname": rule["alert"], "exp_alerts": firing if fires else []}
                    ],
                }
            )
    tests = {"rule_files": [str(tmp_path / "rules.yml")], "evaluation_interval": "12h", "tests": cases}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    passes(linter("promtool", "prometheus"), "test", "rules", str(tmp_path / "tests.yml"))
