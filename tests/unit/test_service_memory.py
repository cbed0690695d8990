"""The bounds added up against the cgroup's limit, of either version; and that what ships fits into what ships."""

import re
from pathlib import Path

import pytest

from esp_ingest.commands import check
from esp_ingest.config.load import load
from esp_ingest.config.settings import Settings
from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.resources import config_file
from esp_ingest.service import memory

ROOT = Path(__file__).parent.parent.parent
MIB = 1_048_576


def system(root: Path, cgroup: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)


def put(root: Path, path: str, text: str) -> None:
    (root / "sys/fs/cgroup" / path).parent.mkdir(parents=True, exist_ok=True)
    (root / "sys/fs/cgroup" / path).write_text(text)


def test_version_2_takes_the_least_of_the_way_up(tmp_path: Path) -> None:
    system(tmp_path, "0::/system.slice/esp-ingest.service\n")
    put(tmp_path, "system.slice/esp-ingest.service/memory.max", "max\n")
    assert memory.cgroup_limit(tmp_path) is None
    put(tmp_path, "system.slice/memory.max", "536870912\n")
    assert memory.cgroup_limit(tmp_path) == 512 * MIB


def test_version_1_and_its_word_for_unlimited(tmp_path: Path) -> None:
    system(tmp_path, "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n")
    put(tmp_path, "memory/docker/abc/memory.limit_in_bytes", "9223372036854771712\n")
    assert memory.cgroup_limit(tmp_path) is None
    put(tmp_path, "memory/docker/abc/memory.limit_in_bytes", "268435456\n")
    assert memory.cgroup_limit(tmp_path) == 256 * MIB


def test_in_a_container_the_path_is_not_there_and_the_mount_is_the_cgroup(tmp_path: Path) -> None:
    system(tmp_path, "4:memory:/docker/abc\n")
    put(tmp_path, "memory/memory.limit_in_bytes", "268435456\n")
    assert memory.cgroup_limit(tmp_path) == 256 * MIB


def test_a_system_without_cgroups(tmp_path: Path) -> None:
    assert memory.cgroup_limit(tmp_path) is None


def test_what_ships_fits_into_the_limits_that_ship() -> None:
    unit = (ROOT / "config/systemd/esp-ingest.service").read_text()
    compose = (ROOT / "docker-compose.yml").read_text()
    manifest = (ROOT / "config/kubernetes/base/esp-ingest.yaml").read_text()
    assert "MemoryMax=512M" in unit
    assert "mem_limit: 512m" in compose
    assert re.search(r"limits: \{ memory: 512Mi \}", manifest)
    judged = memory.judge(Settings(), 100 * MIB, 512 * MIB)
    assert judged.fits is True, judged.sentence


def test_what_does_not_fit_is_told_with_what_to_change() -> None:
    judged = memory.judge(load(diagnostics={"max_wells": 100_000}), 100 * MIB, 512 * MIB)
    assert judged.fits is False
    assert "the limit of the cgroup is 512 MiB" in judged.sentence
    assert "diagnostics.max_wells" in judged.sentence


def test_a_well_takes_no_more_than_the_sum_says() -> None:
    assert Engine(rules_file.load(config_file("rules.toml"))).bytes_a_well <= memory.WELL_BYTES


def test_check_has_a_line_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "cgroup_limit", lambda: 200 * MIB)
    line = check.memory(Settings())
    assert not line.ok
    assert "200 MiB" in line.detail
    monkeypatch.setattr(memory, "cgroup_limit", lambda: None)
    assert check.memory(Settings()).ok
