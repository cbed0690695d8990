"""What the documents promise: links lead somewhere, commands exist, sizes and versions are those of the code."""

import json
import re
import shlex
from pathlib import Path

import pytest

from esp_ingest import cli
from tests.support.documents import FENCE, PAGES, fences
from tests.support.shipped import ROOT, text_of
from tools import sizing

CALL = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?(esp-ingest|make) ((?:\"[^\"]*\"|[^|;&>])*)")
# Words of a command that stand for something that a reader puts in.
_PLACEHOLDERS = {"N": "2", "ID": "1", "DAY": "2026-11-01"}


def _anchor(heading: str) -> str:
    """As the pages of code hosts make it."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_a_file_and_to_a_heading(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), f"{page.relative_to(ROOT)} links to {target}"
        if anchor and there.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {_anchor(each) for each in headings}, f"{page.relative_to(ROOT)} links to {target}"


def test_files_of_this_checkout_that_a_page_names_are_there() -> None:
    """Outside of links too. A name in capitals stands for one that a reader chooses."""
    named = r"(?<![\w/.-])(?:tests|tools|docs|config|sql|esp_ingest)/[\w./-]+\.(?:py|md|toml|ya?ml|sql|json|conf|sh)\b"
    for page in PAGES:
        for name in re.findall(named, page.read_text(encoding="utf-8")) if page.name != "CHANGELOG.md" else ():
            there = (ROOT / name).exists() or (page.parent / name).exists() or Path(name).stem.isupper()
            assert there, f"{page.relative_to(ROOT)} names {name}"


def _calls() -> list[tuple[str, str, list[str]]]:
    """(page, program, words) of each call of esp-ingest or make in a block of shell."""
    found = []
    for page in PAGES:
        for kind, block in fences(page):
            if kind not in ("", "sh", "bash", "console"):
                continue
            for line in block.replace("\\\n", " ").splitlines():
                for program, rest in CALL.findall(line):
                    call = re.split(r"\s{2,}(?=\S)", rest)[0]  # what a page explains beside it stands apart
                    words = [_PLACEHOLDERS.get(word, word) for word in shlex.split(call, comments=True)]
                    if words and re.fullmatch(r"[a-z-]+", words[0]):
                        found.append((f"{page.relative_to(ROOT)}: {line}", program, words))
    return found


def _inline() -> list[tuple[str, str]]:
    """(page, words) of each `esp-ingest …` within a sentence or a table."""
    found = []
    for page in PAGES:
        if page.name != "CHANGELOG.md":  # what was true once
            text = FENCE.sub("", page.read_text(encoding="utf-8"))
            found += [(str(page.relative_to(ROOT)), call) for call in re.findall(r"`esp-ingest ([^`]+)`", text)]
    return found


def test_commands_in_sentences_are_taken_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    """As far as they are written out: `rejects` alone names a group, `users password NAME` is a call."""
    calls = _inline()
    assert len(calls) > 40
    for page, call in calls:
        text = re.sub(r"\s*[|…].*|\[.*?\]", "", call).replace("\n", " ")
        words = [_PLACEHOLDERS.get(word, word) for word in shlex.split(text)]
        try:
            cli.make_parser().parse_args(words)
        except SystemExit as end:
            if end.code and "the following arguments are required" not in capsys.readouterr().err:
                pytest.fail(f"{page}: esp-ingest {call}")


def test_the_commands_in_the_documents_exist() -> None:
    """esp-ingest's are parsed by its own parser, make's are targets. They are run in
    tests/integration/test_documents_run.py."""
    named = re.findall(r"^([a-z][\w -]*):", text_of("Makefile"), re.MULTILINE)
    targets = {target for each in named for target in each.split()}
    calls = _calls()
    assert len(calls) > 20
    for where, program, words in calls:
        if program == "make":
            assert {word for word in words if re.fullmatch(r"[a-z-]+", word)} <= targets, where
            continue
        try:
            cli.make_parser().parse_args(words)
        except SystemExit as end:
            pytest.fail(f"{where}: {end}")


def test_the_readme_says_where_to_clone_from_and_invents_no_host() -> None:
    readme = text_of("README.md")
    assert 'Clone this repository (the "Code" button of its page shows the address)' in readme
    assert "git clone …" not in readme


def test_sizes_grow_with_the_fleet_and_are_those_of_the_formula(capsys: pytest.CaptureFixture[str]) -> None:
    def of(*more: str) -> dict[str, float]:
        assert sizing.main(["--json", *more]) == 0
        found: dict[str, float] = json.loads(capsys.readouterr().out)
        return found

    small, large = of("--wells", "1000"), of("--wells", "10000")
    assert small["spool.max_bytes"] == 1_000 * 8 * 3_600 * (250 + sizing.SPOOL_OVERHEAD_BYTES)
    assert small["max_queued_messages"] == 28_800_000
    assert large["database, bytes"] == pytest.approx(10 * small["database, bytes"], rel=1e-6)
    compressed = of("--wells", "1000", "--compressed-share", "0.1")
    assert compressed["database, bytes"] < small["database, bytes"] / 2
    assert sizing.main(["--wells", "3"]) == 0
    assert "mqtt.receive_maximum" in capsys.readouterr().out


def test_the_version_is_the_same_wherever_it_stands() -> None:
    (version,) = re.findall(r'^version = "(.+)"$', text_of("pyproject.toml"), re.MULTILINE)
    for name in ("docker-compose.yml", "config/kubernetes/base/esp-ingest.yaml", "config/kubernetes/base/migrate.yaml"):
        assert set(re.findall(r"image: esp-ingest:(\S+)", text_of(name))) == {version}, name
