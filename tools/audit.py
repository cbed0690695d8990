"""Secrets in the history, known faults of dependencies, licences: ``python -m tools.audit [CHECK …]``.

- secrets: gitleaks over every commit, with .gitleaks.toml; staged: over what is about to be committed.
- dependencies: the locks against tools/advisories.json, which is recorded from github.com/pypa/advisory-database (the
  file says which commit; ``--record CLONE`` makes it anew). Where PyPI's advisories can be reached, `pip-audit -r
  requirements.lock` knows more.
- licences: of what the image installs (requirements-run.lock), as the installed packages state them.

Each finding is a line; the exit code is 1 if there is one. The rules S of ruff (make lint) look at the code itself.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

CHECKOUT = Path(__file__).resolve().parents[1]
ADVISORIES = CHECKOUT / "tools/advisories.json"
# Debian 12 has no gitleaks; that of Debian 13's folder (.ci/parts.sh) runs there too.
_GITLEAKS = Path(os.environ.get("ESP_INGEST_TRIXIE", "/var/cache/esp-ingest/trixie"), "usr/bin/gitleaks")
_PINS = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
# Each of these allows what we do: use unchanged, as a dependency, in any work.
_LICENCES = re.compile(
    r"MIT|MIT-0|BSD|BSD-[23]-Clause|0BSD|Apache-2\.0|Apache Software License|MIT License|BSD License|Zlib|CC0-1\.0"
    r"|PSF-2\.0|LGPL-3\.0-only|MPL-2\.0|Mozilla Public License 2\.0 \(MPL 2\.0\)|EPL-2\.0|ISC"
)


def pins(lock: str) -> dict[str, str]:
    """Package → version of a lock file of the checkout."""
    return {name.lower(): version for name, version in _PINS.findall((CHECKOUT / lock).read_text(encoding="utf-8"))}


def secrets(repository: Path = CHECKOUT, how: Sequence[str] = ("detect",)) -> Iterator[str]:
    """What gitleaks finds in any commit of ``repository``, the secret itself left out."""
    program = shutil.which("gitleaks") or (str(_GITLEAKS) if _GITLEAKS.exists() else None)
    if program is None:
        yield "gitleaks is missing: run .ci/parts.sh as root, or install it"
        return
    config = ("--config", str(CHECKOUT / ".gitleaks.toml"))
    command = [program, *how, "--no-banner", "--redact", "--verbose", *config, "--source", str(repository)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # our own arguments
    if done.returncode:
        found = re.findall(r"^(?:RuleID|File|Line|Commit): +(.*)$", done.stdout, re.MULTILINE)
        yield from (" ".join(found[at : at + 4]) for at in range(0, len(found), 4))
        if not found:
            yield f"gitleaks failed: {done.stderr.strip()}"


def dependencies(versions: dict[str, str] | None = None) -> Iterator[str]:
    """Advisories that hold for a version of a lock, and packages of a lock that were not looked up."""
    recorded = json.loads(ADVISORIES.read_text(encoding="utf-8"))
    held = versions if versions is not None else pins("requirements.lock") | pins("requirements-run.lock")
    for name in sorted(set(held) - set(recorded["packages"])):
        yield f"{name} is not in tools/advisories.json: record it anew (--record)"
    for advisory in recorded["advisories"]:
        version = held.get(advisory["package"])
        if version is not None and _affects(advisory, Version(version)):
            yield f"{advisory['package']} {version}: {advisory['id']} {' '.join(advisory['aliases'])}"


def _affects(advisory: dict[str, Any], version: Version) -> bool:
    for introduced, fixed in advisory["ranges"]:
        if Version(introduced) <= version and (fixed is None or version < Version(fixed)):
            return True
    return str(version) in advisory.get("versions", ())


def licences() -> Iterator[str]:
    """Packages of the image whose licence is not one of those that were looked at."""
    for name in sorted(pins("requirements-run.lock")):
        try:
            about = importlib.metadata.metadata(name).json
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        kinds = [each.rpartition(":: ")[2] for each in about.get("classifier", ()) if each.startswith("License")]
        said = str(about.get("license_expression") or about.get("license") or " AND ".join(kinds))
        parts = re.split(r" AND | OR ", said.strip("() "))
        if not said or not all(_LICENCES.fullmatch(part.strip("() ")) for part in parts):
            yield f"{name}: {said.splitlines()[0] if said else 'says no licence'}"


def record(clone: str) -> None:
    """Write tools/advisories.json from a clone of pypa/advisory-database."""
    git = shutil.which("git") or "git"

    def ask(*arguments: str) -> str:
        return subprocess.run([git, "-C", clone, *arguments], capture_output=True, text=True, check=True).stdout  # noqa: S603

    names = sorted(pins("requirements.lock") | pins("requirements-run.lock"))
    commit, day = ask("log", "-1", "--format=%H %cs").split()
    found: list[dict[str, Any]] = []
    for path in ask("ls-tree", "-r", "--name-only", "HEAD", "vulns/").splitlines():
        if path.split("/")[1] in names:
            found += _entries(yaml.safe_load(ask("show", f"HEAD:{path}")))
    source = f"github.com/pypa/advisory-database, commit {commit} of {day}"
    rows = ",\n".join(json.dumps(each) for each in sorted(found, key=lambda each: (each["package"], each["id"])))
    head = f'{{\n"source": {json.dumps(source)},\n"packages": {json.dumps(names)},\n"advisories": [\n'
    ADVISORIES.write_text(f"{head}{rows}\n]}}\n", encoding="utf-8")


def _entries(advisory: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "withdrawn" in advisory:
        return
    for affected in advisory["affected"]:
        ranges: list[list[str | None]] = []
        for each in affected.get("ranges", ()):
            events = each["events"] if each["type"] == "ECOSYSTEM" else ()
            for event in events:
                if "introduced" in event:
                    ranges.append([str(event["introduced"]), None])
                elif "fixed" in event and ranges:
                    ranges[-1][1] = str(event["fixed"])
        entry = {"id": advisory["id"], "aliases": sorted(advisory.get("aliases", ()))}
        entry |= {"package": affected["package"]["name"].lower(), "ranges": ranges}
        yield entry if ranges else entry | {"versions": [str(each) for each in affected.get("versions", ())]}


CHECKS: dict[str, Callable[[], Iterator[str]]] = {
    "secrets": secrets,
    "staged": lambda: secrets(CHECKOUT, ("protect", "--staged")),
    "dependencies": dependencies,
    "licences": licences,
}


def main(arguments: Sequence[str]) -> int:
    """Run the named checks, all without names. Returns the exit code."""
    if arguments and arguments[0] == "--record":
        record(arguments[1])
        return 0
    wrong = 0
    arguments = arguments or ("secrets", "dependencies", "licences")
    for name in arguments:
        found = list(CHECKS[name]())
        wrong += len(found)
        sys.stdout.write(f"{name}: {len(found)} found\n" + "".join(f"  {each}\n" for each in found))
    if "dependencies" in arguments:
        sys.stdout.write(f"advisories are those of {json.loads(ADVISORIES.read_text(encoding='utf-8'))['source']}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
