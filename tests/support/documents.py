"""The commands that stand in the documents, and a terminal to run them in.

A block of commands is a fence of shell, or one without a language whose first line calls a program. What a page writes
beside a command, two blanks away, is not part of it (in shell: behind a #).
"""

import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from pathlib import Path

from tests.support.shipped import ROOT

PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "config/**/*.md", "sql/**/*.md")
    for page in ROOT.glob(pattern)
    if "node_modules" not in page.parts
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PASSWORD = "correct horse battery"
_PROMPT = re.compile(rb"(?i)(?:password[^\n]*|again): ?$")
_COLOUR = re.compile(rb"\x1b\[[\d;]*m")
_PROGRAM = re.compile(r"(?:\$ )?(?:sudo|make|esp-ingest|curl|export|pip|psql) ")
_PARTS = ("sql", "config", "esp_ingest", "pyproject.toml", "README.md", "LICENSE", "requirements-run.lock")


def fences(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def blocks(name: str) -> list[list[str]]:
    """The blocks of commands of a page, each as its commands; lines that go on are joined."""
    found = []
    for language, text in fences(ROOT / name):
        if language in ("sh", "bash", "console") or (not language and _PROGRAM.match(text)):
            prompted = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
            lines = prompted or re.sub(r" *\\\n *", " ", text).splitlines()
            found.append([_bare(line, language) for line in lines if line.strip()])
    return found


def _bare(line: str, language: str) -> str:
    return re.split(r" {2,}(?=#)", line)[0] if language else re.split(r" {2,}(?=\S)", line)[0]


class Terminal:
    """bash at a terminal of its own, in a folder that looks like a checkout, with this environment's programs. Whoever
    asks for a password is given PASSWORD. The first command that fails ends it. ``stubs`` are programs by name, as the
    text of a shell script, for what a test cannot have (systemctl, sudo). What is left running is ended with it."""

    def __init__(self, folder: Path, environment: dict[str, str], stubs: dict[str, str] | None = None) -> None:
        self.folder = folder / "checkout"
        self.folder.mkdir()
        for part in _PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, self.folder / part)
        (self.folder / ".venv").symlink_to(sys.prefix)
        programs = folder / "stubs"
        programs.mkdir()
        for name, text in (stubs or {}).items():
            (programs / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
            (programs / name).chmod(0o755)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("ESP_INGEST_", "PG"))}
        path = f"{programs}:{Path(sys.executable).parent}:{kept.get('PATH', '')}"
        self._environment = kept | {"PATH": path, "HOME": str(folder), "PAGER": "cat"} | environment

    def run(
        self,
        commands: list[str],
        replaced: dict[str, str] | None = None,
        *,
        before: str = "",
        own_root: bool = False,
        timeout_seconds: float = 150.0,
    ) -> str:
        """What they print, error output too. ``replaced``: what a reader puts in, each of which has to occur.
        ``before`` runs first. With ``own_root`` what is written to /etc, /opt, /usr and /var is gone afterwards."""
        script = "\n".join(commands)
        for old, new in (replaced or {}).items():
            assert old in script, f"no command has {old} any more"
            script = script.replace(old, new)
        # A command of an && that fails would not end the shell; one that goes on for ever would.
        script = script.replace(" && ", "\n")
        script = re.sub(r"(?m)^(esp-ingest (?:run|api))$", r"\1 &", script)
        ending = "trap 'kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT"
        script = f"set -euo pipefail\n{ending}\n{before}\nset -x\n{script}\n"
        command = ["bash", "-c", script]
        if own_root:
            layers = self.folder.parent / "layers"
            layers.mkdir()
            command = ["unshare", "--mount", "bash", "-c", _OWN_ROOT + script, "bash", str(layers)]
        status, seen = _at_a_terminal(command, self.folder, self._environment, timeout_seconds)
        assert status == 0, seen[-3_000:]
        return seen


def _at_a_terminal(
    command: list[str], folder: Path, environment: dict[str, str], timeout_seconds: float
) -> tuple[int, str]:
    """(exit status, what was printed). Prompts throw away what was typed before them, so each is waited for."""
    deadline = time.monotonic() + timeout_seconds
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(folder)
        os.execvpe(command[0], command, environment)
    seen = b""
    try:
        while select.select([terminal], [], [], max(deadline - time.monotonic(), 0))[0]:
            try:
                chunk = os.read(terminal, 65_536)
            except OSError:  # the last one who had it is gone
                break
            seen += chunk
            if _PROMPT.search(seen):
                os.write(terminal, PASSWORD.encode() + b"\n")
        else:
            os.killpg(pid, signal.SIGKILL)
            seen += b"\nnot done in time\n"
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    return os.waitstatus_to_exitcode(status), _COLOUR.sub(b"", seen).decode(errors="replace").replace("\r\n", "\n")


# A layer in memory over each of the folders, which ends with the process.
_OWN_ROOT = """
mount -t tmpfs none "$1"
for folder in etc opt usr var; do
  mkdir "$1/$folder" "$1/$folder-work"
  mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$1/$folder,workdir=$1/$folder-work" "/$folder"
done
"""
