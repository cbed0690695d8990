"""A baseline does not learn a fault: what stands is over when it returns, an operator says so, or it is a habit."""

import numpy as np
import pytest

from esp_ingest.demo.fleet import Fault, FaultName, Fleet
from esp_ingest.diagnostics.dry_run import DryRun
from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.language.rules import RuleSet
from esp_ingest.diagnostics.operators import obey
from esp_ingest.model import SIGNAL_ROW, AlarmAction, DiagnosticRow, Readings
from tests.evaluate.simulated import in_batches, rule_set
from tests.support.cuts import any_cuts, played_in_cuts

HOUR_US = 3_600_000_000
RULES: RuleSet = rule_set()


def leaking(days: float, until_days: float = float("inf"), onset_days: float = 1.0) -> Readings:
    """A simulated well at 5-minute samples whose tubing leaks."""
    fault = Fault(FaultName.TUBING_LEAK, 0, onset_days * 86_400, (until_days - onset_days) * 86_400)
    return next(in_batches(Fleet(1, 3, 300.0, [fault], spread=False).run(round(days * 288)), rows=10**9))


def seen(readings: Readings) -> list[DiagnosticRow]:
    dry_run = DryRun(RULES)
    dry_run.feed(readings)
    assert not dry_run.engine.failed_rules()
    return dry_run.seen()


def leaks(rows: list[DiagnosticRow]) -> list[DiagnosticRow]:
    return [row for row in rows if row.diagnosis == "tubing_leak"]


def test_a_leak_stands_for_as_long_as_it_leaks() -> None:
    (row,) = leaks(seen(leaking(9)))
    assert row.cleared_us is None
    assert row.occurrences == 1


def test_its_end_is_its_return() -> None:
    readings = leaking(6, until_days=5)
    (row,) = leaks(seen(readings))
    assert row.cleared_us is not None
    back = (row.cleared_us - int(readings.timestamp_us[0])) / HOUR_US
    assert 5 * 24 + 1 <= back <= 5 * 24 + 4


def test_after_two_weeks_it_is_a_habit_that_says_so() -> None:
    rows = seen(leaking(18))
    (leak,) = leaks(rows)
    (habit,) = [row for row in rows if row.diagnosis == "new_habit"]
    assert habit.raised_us - leak.raised_us >= 14 * 24 * HOUR_US
    assert leak.cleared_us is not None
    assert 0 < leak.cleared_us - habit.raised_us <= 30 * HOUR_US


@pytest.mark.parametrize("speed", [50 / 60, 54 / 60, 66 / 60])
def test_a_leak_stands_on_when_the_speed_changes_while_it_leaks(speed: float) -> None:
    readings = at_another_speed(leaking(6), speed)
    (row,) = leaks(seen(readings))
    assert (row.cleared_us, row.state) == (None, "unacknowledged")


def test_it_ends_at_the_new_speed_when_it_is_repaired() -> None:
    readings = at_another_speed(leaking(6, until_days=5), 54 / 60)
    (row,) = leaks(seen(readings))
    assert row.cleared_us is not None
    back = (row.cleared_us - int(readings.timestamp_us[0])) / HOUR_US
    assert 5 * 24 + 1 <= back <= 5 * 24 + 4


def at_another_speed(readings: Readings, speed: float, day: float = 3.0) -> Readings:
    """From ``day`` on; flow goes with the speed, the well fills up or is drawn down."""
    later = readings.timestamp_us >= readings.timestamp_us[0] + day * 24 * HOUR_US
    for name, exponent in (
        ("vsd_frequency", 1.0), ("motor_current", 1.2), ("flow_rate", 1.0), ("pip", -0.5), ("discharge_pressure", 0.3)
    ):  # fmt: skip
        readings.values[SIGNAL_ROW[name], later] *= speed**exponent
    return readings


def test_an_operator_says_that_it_is_none() -> None:
    readings = leaking(5)
    engine = Engine(RULES)
    half = len(readings) * 3 // 5
    engine.accept(engine.evaluate(readings.select(np.arange(half))))
    leak = engine.open_at(readings.wells[0], "tubing_leak")
    assert leak is not None
    verdict = AlarmAction(1, leak.well_id, leak.diagnosis, "verdict", leak.raised_us, None, "false")
    obey(engine, None, verdict)  # type: ignore[arg-type]  # nothing is owed
    evaluation = engine.evaluate(readings.select(np.arange(half, len(readings))))
    (row,) = leaks(evaluation.rows)
    assert row.cleared_us is not None


@pytest.mark.parametrize("action", ["note", "verdict"])
def test_a_remark_ends_no_shelving(action: str) -> None:
    engine = Engine(RULES)
    engine.shelve("W", "tubing_leak", 5)
    obey(engine, None, AlarmAction(1, "W", "tubing_leak", action, 1, None, "true"))  # type: ignore[arg-type]
    assert any(shelved.get(engine._slot("W")) == 5 for shelved in engine._settings.shelved_us)


def stories() -> Readings:
    """Five days of two wells with leaks that come and go, changes of speed, and stops."""
    fault = [
        Fault(FaultName.TUBING_LEAK, 0, 1.2 * 86_400, 2.1 * 86_400),
        Fault(FaultName.TRIP, 1, 1.5 * 86_400, 3 * 3_600),
    ]
    readings = next(in_batches(Fleet(2, 5, 300.0, fault, spread=False).run(5 * 288), rows=10**9))
    day = (readings.timestamp_us - readings.timestamp_us[0]) / (24 * HOUR_US)
    first, second = readings.well_index == 0, readings.well_index == 1
    values = readings.values
    for well, begin, end, speed in ((first, 3.0, 9, 0.9), (first, 3.6, 4.4, 1.1), (second, 2.3, 9, 1.15)):
        part = well & (day >= begin) & (day < end)
        values[SIGNAL_ROW["vsd_frequency"], part] *= speed
        values[SIGNAL_ROW["motor_current"], part] *= speed**1.2
        values[SIGNAL_ROW["flow_rate"], part] *= speed**1.5
    low = second & (day >= 3.4) & (day < 4.2)
    values[SIGNAL_ROW["motor_current"], low] *= 0.6
    return readings


STORY = stories()


WHOLE = played_in_cuts(RULES, STORY, [], set(), set())


@any_cuts(STORY)
def test_what_is_held_is_the_same_however_readings_are_cut_into_batches(
    cuts: list[int], restarts: set[int], discards: set[int]
) -> None:
    assert {"tubing_leak", "speed_step", "underload"} <= {name for _, name, _ in WHOLE}
    assert played_in_cuts(RULES, STORY, cuts, restarts, discards) == WHOLE


def test_what_is_held_is_the_same_a_reading_at_a_time() -> None:
    assert played_in_cuts(RULES, STORY, list(range(len(STORY))), set(), set()) == WHOLE
