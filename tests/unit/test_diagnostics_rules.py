"""The rules file: what ships is sound, and every mistake is named with its place."""

import pytest

from esp_ingest.diagnostics.language import rules, rules_file
from esp_ingest.model import Severity
from esp_ingest.resources import config_file

# The diagnoses of DIAGNOSTICS.md, all of them.
DIAGNOSES = {
    "early_restart", "failed_start", "speed_step", "underload", "no_flow", "slugging", "slugging_worse", "hunting",
    "slugging_begun", "slugging_spell",
    "gas_interference", "gas_lock", "pump_off", "dead_head", "tubing_leak", "broken_shaft",
    "blocked_intake", "solids", "overload", "motor_hot", "motor_heating", "vibration", "frequency_deviation",
    "low_flow", "high_gor", "trip", "common_stop", "planned_stop", "cycling", "gauge_dropout", "gauge_failure",
    "frozen_signal", "stale_well",
    "clock_skew", "current_imbalance", "leakage",
    "downthrust", "upthrust", "below_bubble_point", "high_drawdown",
    "pump_wear", "scale_or_sand", "inflow_decline", "insulation_decline", "gauge_drift", "frequency_tag",
    "start_without_flow", "back_pressure", "new_habit",
}  # fmt: skip

SMALL = """
version = 1
[limits]
motor_current = { unit = "A" }
[rules.first]
title = "First"
when = "ratio(pip) < low"
parameters = { low = "80 %" }
on_delay = "10 min"
severity = "high"
seen = "pip is {value}"
cause = "something"
consequence = "something else"
actions = ["look"]
[rules.second]
title = "Second"
when = "motor_current > limit.motor_current"
severity = "low"
suppressed_by = ["first"]
seen = "current is {value}"
cause = "something"
consequence = "something else"
actions = ["look"]
"""


def test_the_shipped_rules_are_all_there_and_load_without_warning() -> None:
    found = rules_file.load(config_file("rules.toml"))
    assert {rule.name for rule in found.rules} == DIAGNOSES
    assert found.warnings == ()
    assert [rule.name for rule in found.rules if not rule.summary] == []


def test_each_rule_comes_after_what_holds_it_back() -> None:
    found = rules_file.load(config_file("rules.toml"))
    place = {rule.name: at for at, rule in enumerate(found.rules)}
    for rule in found.rules:
        for before in (*rule.suppressed_by, *(rule.upgrade.after if rule.upgrade else ())):
            assert place[before] < place[rule.name]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("version = 1", "version = 2", "version: must be 1"),
        ('severity = "high"', 'severity = "hihg"', "rules.first: severity: 'hihg' is not valid (did you mean high?)"),
        ('on_delay = "10 min"', 'on_dely = "10 min"', "rules.first: on_dely: is not a key here (did you mean on_delay"),
        ('on_delay = "10 min"', 'on_delay = "-1 min"', "rules.first: on_delay: '-1 min' is a negative duration"),
        ('on_delay = "10 min"', 'on_delay = "10 psi"', "rules.first: on_delay: '10 psi' is in psi, needed is s"),
        ('on_delay = "10 min"', 'on_delay = "30 d"', "rules.first: on_delay: '30 d' is longer than 7 d"),
        ('"ratio(pip) < low"', '"ratio(pip) < 5 psi"', "rules.first: when: < compares no unit with psi"),
        ('"ratio(pip) < low"', '"ratio(pop) < low"', "did you mean pip?"),
        ('suppressed_by = ["first"]', 'suppressed_by = ["fist"]', "rules.second: suppressed_by: fist is not a rule"),
        ('suppressed_by = ["first"]', 'suppressed_by = ["second"]', "cannot suppress itself"),
        ('low = "80 %"', 'pip = "80 %"', "is the name of a signal or fact"),
        ('actions = ["look"]', "actions = []", "an alarm says what to do"),
        ('"pip is {value}"', '"pip is {valeu}"', "rules.first: seen: 'valeu' is not a placeholder"),
        ('title = "First"', "", "rules.first: title: is missing"),
        ("[rules.second]", "[rules.first]", "not valid TOML"),
        ("[rules.first]", "[rule.first]", "rule: is not a key here (did you mean rules?)"),
        ("[limits]", "[limit]", "limit: is not a key here (did you mean limits?)"),
    ],
)  # fmt: skip
def test_a_mistake_names_file_place_and_key(old: str, new: str, complaint: str) -> None:
    text = SMALL.replace(old, new, 1)
    if old == "[limits]":
        text = text.replace("limit.motor_current", "200 A")
    with pytest.raises(rules.RulesError) as error:
        rules_file.parse(text, "my.toml")
    assert str(error.value).startswith("my.toml: ")
    assert complaint in str(error.value)
    assert str(error.value).endswith(".")


def test_a_circle_of_suppression_is_named() -> None:
    text = SMALL.replace('on_delay = "10 min"', 'on_delay = "10 min"\nsuppressed_by = ["second"]')
    with pytest.raises(rules.RulesError, match=r"goes in a circle: .*first.*second|goes in a circle: .*second.*first"):
        rules_file.parse(text)


def test_groups_and_wells_override_in_that_order() -> None:
    found = rules_file.parse(
        SMALL
        + """
[groups.north]
wells = ["N-*"]
limits = { motor_current = "50 A" }
rules.first = { low = "70 %", on_delay = "5 min" }
[wells.N-7]
limits = { motor_current = "60 A" }
rules.first = { severity = "low", enabled = false }
"""
    )
    first = found.rule("first")
    assert found.limits_of("S-1") == {}
    assert found.limits_of("N-1") == {"motor_current": 50}
    assert found.limits_of("N-7") == {"motor_current": 60}
    assert found.settings_of(first, "N-1")["low"] == pytest.approx(0.7)
    assert found.settings_of(first, "N-1")["on_delay_us"] == 300_000_000
    assert found.settings_of(first, "N-7") == {
        "enabled": False, "severity": Severity.LOW, "on_delay_us": 300_000_000, "off_delay_us": 0, "low": 0.7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ('[wells.A]\nlimits = { motor_curent = "5 A" }', "wells.A.limits: motor_curent: is not a limit"),
        ('[wells.A]\nlimits = { motor_current = "5 psi" }', "wells.A.limits: motor_current: '5 psi' is in psi"),
        ('[wells.A]\nrules.frist = { low = "5 %" }', "wells.A.rules: frist: is not a rule (did you mean first?)"),
        ('[wells.A]\nrules.first = { lo = "5 %" }', "wells.A.rules.first: lo: is not a key here"),
        ("[groups.g]\nlimits = {}", "groups.g: wells: a group names its wells"),
    ],
)
def test_a_mistake_in_an_override_names_its_place(more: str, complaint: str) -> None:
    with pytest.raises(rules.RulesError) as error:
        rules_file.parse(SMALL + more)
    assert complaint in str(error.value)


def test_a_limit_that_nothing_reads_is_a_warning() -> None:
    found = rules_file.parse(SMALL.replace("[rules.first]", 'idle = { unit = "psi" }\n[rules.first]', 1))
    assert found.warnings == ("rules.toml: limits.idle: is not read by any rule.",)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(rules.RulesError, match="cannot be read"):
        rules_file.load("/nowhere/rules.toml")
