"""`pip install .` into an empty environment: the command works from anywhere, with its SQL and its settings inside."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.databases import Database

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(folder),
            str(ROOT),
        ]
    )
    (built,) = folder.glob("esp_ingest-*.whl")
    return built


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``esp-ingest`` in an environment that holds the wheel and what it asks for, nothing else."""
    environment = tmp_path_factory.mktemp("environment") / "venv"
    uv = [sys.executable, "-m", "uv"]
    run([*uv, "venv", "--quiet", "--python", sys.executable, str(environment)])
    python = environment / "bin" / "python"
    run([*uv, "pip", "install", "--quiet", "--python", str(python), "-c", str(ROOT / "requirements.lock"), str(wheel)])
    return environment / "bin" / "esp-ingest"


def run(
    command: list[str], cwd: Path | None = None, status: int = 0, **environment: str
) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ESP_INGEST_", "PYTHON"))}
    done = subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def test_the_wheel_carries_sql_settings_and_rules_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sql = {f"esp_ingest/_sql/{path.relative_to(ROOT / 'sql')}" for path in (ROOT / "sql").rglob("*.sql")}
    assert len(sql) >= 2
    assert sql <= names
    assert {"esp_ingest/_config/esp_ingest.toml", "esp_ingest/_config/rules.toml", "esp_ingest/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]
    for name in ("esp_ingest.toml", "rules.toml"):
        inside = zipfile.ZipFile(wheel).read(f"esp_ingest/_config/{name}")
        assert inside == (ROOT / "config" / name).read_bytes()


def test_help_and_version_from_another_folder(command: Path, tmp_path: Path) -> None:
    text = run([str(command), "--help"], cwd=tmp_path).stdout
    for name in ("run", "migrate", "check", "simulate", "demo", "rejects"):
        assert f"    {name}" in text
    assert run([str(command), "--version"], cwd=tmp_path).stdout.startswith("esp-ingest ")


def test_migrate_from_another_folder(command: Path, tmp_path: Path, postgres15: Database) -> None:
    first = run([str(command), "migrate"], cwd=tmp_path, ESP_INGEST_DATABASE__DSN=postgres15.dsn)
    assert "applied 0001_tables" in first.stdout
    again = run([str(command), "migrate"], cwd=tmp_path, ESP_INGEST_DATABASE__DSN=postgres15.dsn)
    assert "nothing to do" in again.stdout
    assert postgres15.value("SELECT count(*) FROM esp_telemetry") == 0


def test_the_demo_names_its_extra(command: Path, tmp_path: Path) -> None:
    done = run([str(command), "demo", "--duration", "1"], cwd=tmp_path, status=1)
    assert "pip install esp-ingest[demo]" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_setting_ends_at_once_with_two(command: Path, tmp_path: Path) -> None:
    done = run([str(command), "run"], cwd=tmp_path, status=2, ESP_INGEST_MQTT__HOTS="x")
    assert "mqtt.host" in done.stderr
    assert done.stderr.count("\n") == 1
