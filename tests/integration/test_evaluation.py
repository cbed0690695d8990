"""The rules that ship on recorded wells, on simulated faults and on a fleet in good health: what issue 5 demands.

``make evaluate`` prints the same with all its tables."""

import pytest

from esp_ingest.demo.fleet import FaultName
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.diagnostics.language.rules import RuleSet
from esp_ingest.resources import config_file
from tests.evaluate import judged, onset, operations, pages, simulated, slow, wells
from tests.evaluate.musts import Must, musts, no_worse
from tests.evaluate.recorded import ESP01, ESP02, FOLDER, SAMPLES, STEADY, played, shipped_with
from tests.evaluate.simulated import EXPECTED, INTERVALS, LIMITS, SEEDS

recorded_wells = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recordings of real wells in {FOLDER}")


def changed(old: str, new: str) -> RuleSet:
    text = config_file("rules.toml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    return rules_file.parse(text.replace(old, new) + LIMITS)


@recorded_wells
def test_every_demand_on_recorded_wells_is_met() -> None:
    found: list[Must] = list(musts())
    assert len(found) >= 8
    assert [must for must in found if not must.met] == []


@recorded_wells
def test_the_judges_can_say_no() -> None:
    """Rules that cry wolf, and rules that sleep, are told apart from those that ship."""
    old = 'parameters = { load = "80 %", deeper = "95 %", longer = "150 %" }\non_delay = "10 min"\n'
    hasty = old.replace("80 %", "99 %").replace("10 min", "0 s")
    nervous = played(STEADY, shipped_with((old, hasty)))
    stood = sum((row.cleared_us or nervous.last_us) - row.raised_us for row in nervous.of("underload"))
    # One alarm that stands, and not many: while it stands the well's median does not learn.
    assert stood > 0.5 * (nervous.last_us - nervous.first_us)
    assert not played(STEADY).of("underload")
    deaf = ('rise = "10 °F"', 'rise = "99 °F"')
    asleep = played(ESP01, shipped_with((old, old.replace("80 %", "40 %")), deaf))
    warned, stops = judged.announced(asleep)
    assert stops == 58
    assert warned < 0.8 * stops


@recorded_wells
def test_pages_say_which_rules_no_real_well_has_raised() -> None:
    found = {row.diagnosis for name in (ESP01, ESP02, *SAMPLES) for row in played(name).dry_run.seen()}
    assert found == pages.EXERCISED


@recorded_wells
def test_each_well_is_judged_by_itself() -> None:
    """A well that is left in peace and one that is not are not averaged, and no part is left out."""
    whole = {name: played(name) for name in (ESP01, ESP02)}
    found = {part.name: wells.figures(whole[part.recording], part) for part in wells.PARTS}
    assert {each.part.well for each in found.values()} == {"A", "B"}
    assert {each.part.tuned for each in found.values()} == {True, False}
    a, halves = found["A, whole"], [found["A, day 0 to day 227"], found["A, day 227 to the end"]]
    assert sum(half.stops for half in halves) == a.stops == 154
    assert sum(half.alarms_per_day * half.days for half in halves) == pytest.approx(a.alarms_per_day * a.days)
    assert [must for must in no_worse(played(ESP01), played(ESP02)) if not must.met] == []
    assert a.visible_warned >= 69
    b, later = found["B, whole"], found["B, day 20 to the end"]
    assert (b.visible_warned, b.visible) == (1, 1)
    assert b.alarms_per_day <= 1.2
    assert later.alarms_per_day <= 0.5
    assert later.in_alarm < 0.05
    underload = next(rule for rule in found["A, day 227 to the end"].rules if rule.diagnosis == "underload")
    assert underload.lift > 5


@recorded_wells
def test_a_bare_load_limit_calls_underloads_gas_locks() -> None:
    """Why the rule asks for a deeper load where flow is not measured."""
    bare, shipped = judged.lock_settings(["75 %", "65 %"])
    assert bare.locks > 5 * shipped.locks
    assert shipped.beside_dropouts == bare.beside_dropouts == 0


@recorded_wells
def test_stops_and_dropouts_agree_with_the_derived_events() -> None:
    found = {each.event: each for each in judged.agreements()}
    for event, most in (("STOP", 3), ("STOP_AFTER_UNDERLOAD", 0), ("GAUGE_DROPOUT", 0), ("OUT_OF_RANGE", 0)):
        assert found[event].events - found[event].agree <= most, found[event]
    underload = found["UNDERLOAD"]
    # An alarm, or the entry that says what the drops are.
    assert underload.agree + underload.why[judged.SERIES] >= 156
    habit, short = "no more than this well did by habit on its days", "shorter than the on-delay of 10 minutes"
    assert underload.why[judged.ANOTHER_SPEED] <= 11
    explained = (judged.SERIES, habit, short, judged.ANOTHER_SPEED)
    assert underload.agree + sum(underload.why[reason] for reason in explained) >= 278


@pytest.mark.parametrize("interval", INTERVALS)
def test_every_simulated_fault_gets_its_name_in_time_and_no_other_critical(interval: float) -> None:
    using = simulated.rule_set()
    cases = list(simulated.cases(SEEDS, (interval,), using=using))
    assert len(cases) == len(SEEDS) * len(FaultName)
    assert {f"{case.fault} at seed {case.seed}": wrong for case in cases if (wrong := case.faults(using))} == {}


def test_every_fault_of_the_simulator_has_its_rule() -> None:
    assert set(EXPECTED) == set(FaultName)


def test_a_rule_that_is_off_or_slow_is_seen() -> None:
    off = changed('title = "Dead head"', 'title = "Dead head"\nenabled = false')
    (case,) = simulated.cases((1,), (300.0,), (FaultName.DEAD_HEAD,), using=off)
    assert any("named after inf" in fault for fault in case.faults(off))
    assert "another critical: gas_lock" in case.faults(off)


def test_each_operation_has_its_name_or_silence() -> None:
    found = list(operations.every(seeds=(1,)))
    assert {(each.operation.name, each.interval_seconds): each.faults for each in found if each.faults} == {}
    assert len(found) == len(operations.OPERATIONS) * len(operations.INTERVALS)


def test_slugging_that_begins_is_a_few_alarms_and_a_stop_is_still_announced() -> None:
    found = list(onset.every(seeds=(1, 2)))
    assert {(each.onset.name, each.seed, each.interval_seconds): each.faults for each in found if each.faults} == {}
    assert len(found) == len(onset.ONSETS) * 3 * 2
    assert all(each.lead_minutes >= 30 for each in found if each.onset.stops)


def test_slugging_that_nobody_recognises_is_seen() -> None:
    """Without series each drop is an alarm: as if three did not suffice."""
    deaf = changed('parameters = { often = "4 drops", said', 'parameters = { often = "400 drops", said')
    assert "0 times said that it has begun" in onset.judged(onset.ONSETS[0], 1, 300.0, True, deaf).faults


def test_an_operation_that_is_called_a_fault_is_seen() -> None:
    """Without what names them: a start without flow goes unnamed, a power dip is a trip of each well."""
    backwards, dip = operations.OPERATIONS[4], operations.OPERATIONS[6]
    off = changed('title = "Start without flow"', 'title = "Start without flow"\nenabled = false')
    assert "no start_without_flow (high)" in operations.judged(backwards, 1, 300.0, off).faults
    alone = changed('least = "5 wells"', 'least = "500 wells"')
    assert {"no common_stop (medium)", "100 alarms, at most 5"} <= set(operations.judged(dip, 1, 300.0, alone).faults)


def test_a_healthy_fleet_is_left_in_peace() -> None:
    found = simulated.healthy(days=3)
    assert found.raised == {}


def test_a_nervous_rule_would_not_leave_it_in_peace() -> None:
    nervous = changed('parameters = { level = "0.5 in/s" }', 'parameters = { level = "0.2 in/s" }')
    assert simulated.healthy(wells=100, days=1, using=nervous).alarms_per_10_minutes > 1


@pytest.mark.soak
@pytest.mark.timeout(1_200)
def test_a_year_of_a_healthy_fleet() -> None:
    assert simulated.healthy(days=365).alarms_per_10_minutes <= 1


@pytest.mark.soak
@pytest.mark.timeout(1_200)
def test_slow_rules_are_silent_for_a_year_at_a_hundred_healthy_wells() -> None:
    assert slow.healthy(wells=100, days=365).raised == {}
