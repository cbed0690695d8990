"""The pages about the rules cannot drift from the rules."""

import re
from pathlib import Path

import pytest

from esp_ingest.diagnostics.language import rules, rules_file
from esp_ingest.diagnostics.language.functions import DERIVED, FACTS, FUNCTIONS
from esp_ingest.diagnostics.language.units import NAMED
from esp_ingest.resources import config_file
from tests.evaluate import pages
from tests.evaluate.examples import EXAMPLES, play
from tests.evaluate.plots import MAX_BYTES, draw
from tests.evaluate.recorded import shipped

DOCS = Path(__file__).parents[2] / "docs"
RULES = shipped()
LANGUAGE = (DOCS / "rules.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("rule", RULES.rules, ids=lambda rule: rule.name)
def test_each_rule_has_its_page_as_rules_toml_says(rule: rules.Rule) -> None:
    path = DOCS / "diagnostics" / f"{rule.name}.md"
    assert path.read_text(encoding="utf-8") == pages.page(RULES, rule), "run python -m tests.evaluate --pages"
    picture = path.with_suffix(".svg")
    assert 0 < picture.stat().st_size <= MAX_BYTES, "run python -m tests.evaluate --plots"


def test_there_is_no_page_of_a_rule_that_is_gone() -> None:
    names = {path.stem for path in (DOCS / "diagnostics").iterdir()}
    assert names == {rule.name for rule in RULES.rules} == set(EXAMPLES)


def test_the_list_of_rules_is_up_to_date() -> None:
    text = (DOCS / "diagnostics.md").read_text(encoding="utf-8")
    assert pages.pasted(text, "rules", list(pages.overview(RULES))) == text, "run python -m tests.evaluate --pages"


def test_every_table_of_the_evaluation_was_pasted() -> None:
    text = (DOCS / "diagnostics.md").read_text(encoding="utf-8")
    for part in ("rules", "recorded", "simulated", "cost"):
        assert re.search(rf"<!-- {part}: begin -->\n.*\|.*<!-- {part}: end -->", text, re.DOTALL), part


def test_each_example_shows_its_rule_after_its_onset() -> None:
    for name, example in EXAMPLES.items():
        shown = play(name)
        assert shown.occurrences, name
        assert shown.hour_of(shown.occurrences[0].raised_us) >= example.onset_hours - 1e-6, name


def test_a_picture_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        draw("vibration", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_language_is_documented_whole() -> None:
    for name in FUNCTIONS:
        assert f"{name}(" in LANGUAGE, f"{name}()"
    for name in (*FACTS, *DERIVED):
        assert name in LANGUAGE, name
    for unit in NAMED:
        assert f"`{unit}`" in LANGUAGE, unit


def blocks(kind: str, heading: str) -> list[str]:
    section = LANGUAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


def test_the_examples_of_the_language_are_valid() -> None:
    shipped_text = config_file("rules.toml").read_text(encoding="utf-8")
    (rule,) = blocks("toml", "A rule")
    found = rules_file.parse(shipped_text + rule).rule("hot_and_bothered")
    assert found.escalation is not None
    (conditions,) = blocks("", "Conditions")
    for line in conditions.strip().splitlines():
        condition = line.split("      ")[0].strip()
        own = rule.replace("motor_temp > limit.motor_temp - 20 °F and vibration > shake", condition)
        own = own.replace('parameters = { shake = "0.4 in/s" }\n', "").replace('deadband = "5 %"', 'deadband = "0 %"')
        assert rules_file.parse(shipped_text + own).rule("hot_and_bothered").when is not None


def test_the_example_of_settings_is_valid() -> None:
    shipped_text = config_file("rules.toml").read_text(encoding="utf-8")
    (settings,) = blocks("toml", "Limits and settings for your wells")
    limits, groups = settings.split("\n\n", 1)
    line = limits.splitlines()[1].split("   #")[0]
    text = re.sub(r"^motor_current = .*$", line, shipped_text, count=1, flags=re.MULTILINE)
    found = rules_file.parse(f"{text}\n{groups}")
    assert found.limits_of("N-7")["motor_temp"] == 300
    assert found.limits_of("N-1")["motor_current"] == 52
    assert found.limits_of("S-1")["motor_current"] == 60
