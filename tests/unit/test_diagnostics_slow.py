"""Slow faults: what changes over weeks against the well's own start, and what only looks like it."""

import json
import re

import numpy as np
import pytest

from esp_ingest.demo.fleet import DEFAULT_START_US, Fleet
from esp_ingest.diagnostics.dry_run import DryRun
from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.engine.slow_trends import _judged, _Trends
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.model import SIGNAL_ROW, DiagnosticRow, Readings, Severity
from esp_ingest.resources import config_file
from tests.evaluate import slow
from tests.evaluate.simulated import LIMITS, in_batches, rule_set

DAY = 86_400.0
HALF_HOUR = 1_800.0


def by_name(name: str) -> slow.Slow:
    return next(each for each in (*slow.SLOW, *slow.OPERATIONS) if each.name.startswith(name))


@pytest.mark.parametrize("kind", slow.SLOW, ids=lambda kind: kind.name)
def test_a_slow_fault_is_named_in_time_and_nothing_else_is(kind: slow.Slow) -> None:
    (found,) = slow.played(kind, wells=1, days=kind.by_day + 1)
    assert found.faults == []
    assert [row.diagnosis for row in found.rows if row.diagnosis not in (kind.rule, "speed_step")] == []


@pytest.mark.parametrize("kind", slow.OPERATIONS, ids=lambda kind: kind.name)
def test_what_an_operator_does_is_no_slow_fault(kind: slow.Slow) -> None:
    (found,) = slow.played(kind, wells=1)
    assert found.others == []


def test_a_fleet_in_good_health_is_left_in_peace_and_one_with_nervous_rules_is_not() -> None:
    assert slow.healthy(wells=20, days=100).raised == {}
    text = config_file("rules.toml").read_text(encoding="utf-8") + LIMITS
    for old, new in (
        ('worn = "94 %"', 'worn = "101 %"'),
        ("slow_rate(pump_head)) < -0.03 %/d", "slow_rate(pump_head)) < 0.03 %/d"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    text = text.replace("slow_ratio(pip) > 100 %", "slow_ratio(pip) > 90 %").replace(
        "slow_ratio(pump_head) < 97 %", "slow_ratio(pump_head) < 110 %"
    )
    text = text.replace('sure = "99 %", limit = "75 %"', 'sure = "0 %", limit = "75 %"')
    assert slow.healthy(wells=20, days=40, using=rules_file.parse(text)).raised["pump_wear", "medium"] >= 5


def test_the_alarm_tells_slope_confidence_and_days_until_the_limit() -> None:
    (found,) = slow.played(by_name("wear"), wells=1, days=31)
    (row,) = [row for row in found.rows if row.diagnosis == "pump_wear"]
    told = re.search(
        r"flow_rate (-0\.\d+) % a day \(confidence (\d+\.\d) %\), 75 % of its start in (\d+) days", row.message
    )
    assert told, row.message
    slope, confidence, days = (float(part) for part in told.groups())
    assert slope == pytest.approx(-0.35, abs=0.05)  # 20.6 % of the rate in 60 days: see WearingFleet
    assert confidence > 99
    assert days == pytest.approx((75 - 100 * row.value) / slope, abs=3)
    trends = json.loads(row.snapshot_json)["trends"]
    assert set(trends) == {"flow_rate", "pump_head"}
    assert trends["flow_rate"]["days_until_limit"] == pytest.approx(days, abs=1)


def test_a_slow_fault_is_not_over_because_the_pump_stops() -> None:
    """Each start after a stop raised it again."""
    fleet = slow.WearingFleet(1, 5, HALF_HOUR)
    dry_run = DryRun(rule_set())
    for batch in in_batches(fleet.run(45 * 48)):
        days = (batch.timestamp_us - DEFAULT_START_US) / 8.64e10
        for name in ("motor_current", "vsd_frequency", "flow_rate"):
            batch.values[SIGNAL_ROW[name], days % 5 > 4.8] = 0.0
        dry_run.feed(batch)
    (row,) = [row for row in dry_run.seen() if row.diagnosis == "pump_wear"]
    assert row.cleared_us is None


def test_a_gauge_that_drifts_down_is_no_falling_inflow() -> None:
    drift = slow.Slow("gauge: intake pressure -25 %", "gauge_drift", 42, {"pip": slow.creep(0.75)})
    (found,) = slow.played(drift, wells=1, days=50)
    assert found.faults == []


# -- a function of the readings, and safe over a restart


def wearing(days: float) -> list[Readings]:
    """A sample of both wells each."""
    fleet = slow.WearingFleet(2, 5, HALF_HOUR)
    return [fleet.step() for _ in range(round(days * 48))]


def trends_of(engine: Engine) -> dict[str, bytes]:
    """What is kept of them, of both wells."""
    names = ("halves", "sum", "count", "blocks", "points", "minutes", "known", "start", "away")
    return {name: engine._state[f"slow_{name}"][..., :2].tobytes() for name in names}


def told(dry_runs: list[DryRun]) -> list[DiagnosticRow]:
    rows = {(row.well_id, row.diagnosis, row.raised_us): row for each in dry_runs for row in each.occurrences()}
    return [rows[key] for key in sorted(rows)]


def test_trends_do_not_depend_on_how_readings_are_cut_into_batches() -> None:
    samples = wearing(40)
    kept, rows = [], []
    for size in (2, 34, 10**9):
        dry_run = DryRun(rule_set())
        for batch in in_batches(iter(samples), rows=size):
            dry_run.feed(batch)
        kept.append(trends_of(dry_run.engine))
        rows.append(told([dry_run]))
    assert rows[0] == rows[1] == rows[2]
    assert {row.diagnosis for row in rows[0]} == {"pump_wear"}
    assert kept[0] == kept[1] == kept[2]


def test_trends_survive_a_restart() -> None:
    samples = wearing(40)
    unbroken, before, after = DryRun(rule_set()), DryRun(rule_set()), DryRun(rule_set())
    for at, batch in enumerate(in_batches(iter(samples), rows=96)):
        unbroken.feed(batch)
        if at < 17:
            before.feed(batch)
            continue
        if at == 17:
            assert after.engine.restore(before.engine.export()) == []
        after.feed(batch)
    assert told([before, after]) == told([unbroken])
    assert trends_of(after.engine) == trends_of(unbroken.engine)


def test_a_batch_that_was_not_stored_leaves_no_trace() -> None:
    samples = list(in_batches(iter(wearing(12)), rows=200))
    engine = Engine(rule_set())
    for batch in samples[:-1]:
        engine.accept(engine.evaluate(batch))
    before = engine.export()
    engine.discard(engine.evaluate(samples[-1]))
    assert engine.export() == before
    engine.accept(engine.evaluate(samples[-1]))
    assert engine.export() != before


# -- when the start begins anew


def known(factor_of_speed: float, pause_days: float = 0.0) -> float:
    """The ratio of the rate to the start, 20 days after a change of speed and rate, and a pause."""
    dry_run = DryRun(rule_set())
    for batch in in_batches(Fleet(1, 2, HALF_HOUR).run(40 * 48)):
        days = (batch.timestamp_us - DEFAULT_START_US) / DAY / 1e6
        later = days >= 20
        batch.timestamp_us = batch.timestamp_us + np.where(later, round(pause_days * DAY * 1e6), 0)
        for name, factor in (("vsd_frequency", factor_of_speed), ("flow_rate", 0.8)):
            batch.values[SIGNAL_ROW[name]] *= np.where(later, factor, 1.0)
        dry_run.feed(batch)
    engine = dry_run.engine
    return float(engine._state["features"][engine._baselines.row["slow_ratio", "flow_rate"], 0])


def test_a_well_at_another_speed_or_after_a_long_pause_has_another_start() -> None:
    assert known(1.0) == pytest.approx(0.8, abs=0.01)
    assert known(1.0, pause_days=5) == pytest.approx(0.8, abs=0.01)
    assert known(1.0, pause_days=20) == pytest.approx(1.0, abs=0.01)
    assert known(0.9) == pytest.approx(1.0, abs=0.01)
    assert known(1.01) == pytest.approx(0.8 / 1.01, abs=0.01)  # moved to equal speed


# -- slope and confidence


def judged(points: list[float]) -> dict[str, float]:
    """Of points 3 days apart, the oldest first; the start is 1."""
    ring = np.full((1, 24, 1), np.nan, np.float32)
    ring[0, : len(points), 0] = points[::-1]
    minutes = np.zeros((24, 1), np.int32)
    minutes[: len(points), 0] = np.arange(len(points))[::-1] * 4_320
    found = _judged(_Trends(ring, minutes, np.array([len(points)], np.int8), np.ones((1, 1), np.float32), np.zeros(1)))
    return {name.removeprefix("slow_"): float(values[0, 0]) for name, values in found.items()}


def test_a_steady_fall_is_sure_and_its_slope_is_right_even_with_a_bad_point() -> None:
    points = [1 - 0.01 * at for at in range(12)]
    found = judged(points)
    assert found["rate"] * DAY == pytest.approx(-0.01 / 3, rel=1e-3)
    assert found["confidence"] > 0.9999
    bad = judged([*points[:5], 0.9, *points[6:]])
    assert bad["rate"] * DAY == pytest.approx(-0.01 / 3, rel=0.05)
    assert bad["confidence"] > 0.99


def test_noise_and_a_single_step_are_no_trend() -> None:
    noise = judged([1.0, 0.99, 1.02, 0.98, 1.01, 1.0, 0.99, 1.01])
    assert noise["confidence"] < 0.9
    assert judged([1.0] * 6 + [0.9] * 6)["confidence"] == 0
    assert np.isnan(judged([1.0, 0.95, 0.9, 0.85])["confidence"])  # too few points


# -- a frozen gauge


def test_a_gauge_that_is_frozen_for_a_day_is_left_out_until_it_moves() -> None:
    fleet, dry_run = Fleet(1, 2, 900.0), DryRun(rule_set())
    medians = []
    for batch in in_batches(iter([fleet.step() for _ in range(6 * 96)]), rows=48):
        hours = (batch.timestamp_us - DEFAULT_START_US) / 3.6e9
        pip = batch.values[SIGNAL_ROW["pip"]]
        batch.values[SIGNAL_ROW["pip"]] = np.where((hours >= 24) & (hours < 120), 2_345.0, pip)
        dry_run.feed(batch)
        engine = dry_run.engine
        medians.append(float(engine._state["features"][engine._baselines.row["median", "pip"], 0]))
    (row,) = [row for row in dry_run.occurrences() if row.diagnosis == "frozen_signal"]
    assert row.severity is Severity.MEDIUM
    assert "pip has not changed" in row.message
    assert row.cleared_us is not None
    assert medians[-1] == pytest.approx(2_000, abs=100), "the day before and after, not the frozen one"
