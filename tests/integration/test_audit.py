"""`make audit`: it finds what it is there for, and finds nothing here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.databases import unavailable
from tests.support.shipped import ROOT, text_of
from tools import audit


def test_a_secret_that_was_committed_and_removed_is_found(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        author = ("-c", "user.name=x", "-c", "user.email=x@y")
        subprocess.run(["git", *author, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "--quiet")
    file = tmp_path / "settings.py"
    file.write_text("AWS = '" + "AKIA" + "QWERTYUIOPASDFG7" + "'\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    file.write_text("")
    git("commit", "--quiet", "-a", "-m", "two")
    found = list(audit.secrets(tmp_path))
    if found and "is missing" in found[0]:
        unavailable(found[0])
    assert len(found) == 1
    assert "settings.py 1 " in found[0]
    assert "QWERTY" not in found[0]


def test_an_advisory_that_holds_for_a_version_is_found_and_others_are_not() -> None:
    assert [each for each in audit.dependencies({"pyyaml": "5.3"}) if each.startswith("pyyaml 5.3: PYSEC-2020-")]
    assert list(audit.dependencies({"pyyaml": "6.0.2"})) == []
    assert list(audit.dependencies({"unheard-of": "1"})) == [
        "unheard-of is not in tools/advisories.json: record it anew (--record)"
    ]


@pytest.mark.parametrize("check", ["dependencies", "licences"])
def test_nothing_is_found_here(check: str) -> None:
    """The history itself is scanned by a step of .ci/test.sh, once."""
    assert list(audit.CHECKS[check]()) == []


def test_hooks_before_a_commit_run_programs_of_the_checkout() -> None:
    (local,) = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    assert local["repo"] == "local"
    assert {hook["id"] for hook in local["hooks"]} == {"secrets", "lint", "format"}
    assert audit.CHECKS["staged"]
    assert "make --no-print-directory audit" in text_of(".ci/test.sh")


def test_the_list_of_what_the_image_installs_has_all_of_the_lock_with_its_digests(tmp_path: Path) -> None:
    """`make sbom`, without setting up the environment anew."""
    found = tmp_path / "out" / "sbom.json"
    command = [
        "make",
        "--silent",
        "--old-file=.venv/.stamp",
        "sbom",
        f"SBOM={found}",
        f"BIN={Path(sys.executable).parent}",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    document = json.loads(found.read_text(encoding="utf-8"))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    about = document["metadata"]["component"]
    (version,) = re.findall(r'^version = "(.+)"$', text_of("pyproject.toml"), re.MULTILINE)
    assert (about["name"], about["version"]) == ("esp-ingest", version)
    lock = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text_of("requirements-run.lock"), re.MULTILINE)
    listed = [(each["name"], each["version"]) for each in document["components"]]
    assert sorted(listed) == sorted(lock)
    assert len(listed) > 30
    for each in document["components"]:
        assert each["purl"] == f"pkg:pypi/{each['name']}@{each['version']}"
        (where,) = each["externalReferences"]
        assert all(re.fullmatch("[0-9a-f]{64}", digest["content"]) for digest in where["hashes"])
        assert where["hashes"]
