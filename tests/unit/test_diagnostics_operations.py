"""What operators and the power supply do is not a fault of the well: each has its own name, or silence."""

import numpy as np
import pytest

from esp_ingest.demo.fleet import FaultName, Fleet
from esp_ingest.diagnostics.dry_run import DryRun
from esp_ingest.model import SIGNAL_ROW, DiagnosticRow, Severity
from tests.evaluate.examples import Change, reversed_start, scaled, short_run, short_stop
from tests.evaluate.operations import ALARMS, PINCHED, REVERSED, SLOWED, with_exponent
from tests.evaluate.simulated import cases, in_batches, rule_set

ONSET_HOURS = 30.0


def seen(
    changes: dict[str, Change], hours: float = 48.0, wells: int = 1, onset_hours: float = ONSET_HOURS
) -> list[DiagnosticRow]:
    """What an operator sees of simulated wells at 5-minute samples, from the onset of ``changes`` on."""
    readings = next(in_batches(Fleet(wells, 3, 300.0, spread=False).run(round(hours * 12)), rows=10**9))
    start = int(readings.timestamp_us[0])
    since = (readings.timestamp_us - start) / 3.6e9 - onset_hours
    for name, change in changes.items():
        row = SIGNAL_ROW[name]
        readings.values[row] = change(readings.values[row], since)
    readings.received_us = readings.timestamp_us + 1_000_000
    dry_run = DryRun(rule_set())
    dry_run.feed(readings)
    assert not dry_run.engine.failed_rules()
    onset = start + round(onset_hours * 3.6e9)
    assert [row for row in dry_run.seen() if row.raised_us < onset] == []
    return dry_run.seen()


def names(rows: list[DiagnosticRow]) -> set[str]:
    return {row.diagnosis for row in rows}


def test_slowing_down_is_a_change_of_speed_and_not_a_leak() -> None:
    rows = seen(SLOWED)
    assert "speed_step" in names(rows)
    assert [row for row in rows if row.severity in ALARMS] == []


def test_the_same_at_unchanged_speed_is_a_leak() -> None:
    leak = {name: change for name, change in SLOWED.items() if name not in ("vsd_frequency", "motor_current")}
    assert "tubing_leak" in names(seen(leak))


def test_a_leak_that_is_there_after_the_step_was_learned_is_found() -> None:
    """The rules wait for half a day, not for ever."""
    later = {name: change for name, change in SLOWED.items() if name not in ("flow_rate", "pip")}

    def less(values: np.ndarray, t: np.ndarray) -> np.ndarray:
        return scaled(0.7)(values, t - 30)

    def more(values: np.ndarray, t: np.ndarray) -> np.ndarray:
        return scaled(1.12)(values, t - 30)

    rows = seen({**later, "flow_rate": less, "pip": more}, hours=70)
    (leak,) = [row for row in rows if row.diagnosis == "tubing_leak"]
    assert leak.severity is Severity.HIGH


def test_a_choke_that_is_pinched_is_not_a_leak() -> None:
    rows = seen(PINCHED)
    assert "tubing_leak" not in names(rows)
    assert [row for row in rows if row.severity in (Severity.CRITICAL, Severity.HIGH)] == []


def test_a_short_loss_of_power_at_many_wells_is_one_alarm_and_an_entry_of_each() -> None:
    """The trips of the first four wells stood until the fifth had stopped."""
    stop: dict[str, Change] = dict.fromkeys(("motor_current", "vsd_frequency", "flow_rate"), short_stop)
    rows = seen(stop, wells=20)
    severities = [row.severity for row in rows if row.diagnosis == "common_stop"]
    assert sorted(severities) == [Severity.LOW] * 19 + [Severity.MEDIUM]
    assert names(rows) == {"common_stop", "trip"}
    assert len([row for row in rows if row.diagnosis == "trip"]) == 4


def test_a_single_quick_restart_is_early_and_no_cycling() -> None:
    rows = seen(dict.fromkeys(("motor_current", "vsd_frequency", "flow_rate"), short_stop))
    assert [(row.diagnosis, row.severity) for row in rows] == [
        ("trip", Severity.MEDIUM), ("early_restart", Severity.LOW)
    ]  # fmt: skip


def test_three_starts_in_a_day_are_still_cycling() -> None:
    def thrice(values: np.ndarray, t: np.ndarray) -> np.ndarray:
        return np.where((t >= 0) & (t < 6) & (t % 2 < 0.3), 0.0, values)

    rows = seen(dict.fromkeys(("motor_current", "vsd_frequency", "flow_rate"), thrice))
    assert [row.severity for row in rows if row.diagnosis == "cycling"] == [Severity.HIGH]


@pytest.mark.parametrize(("hours", "failed"), [(1, True), (5, False)])
def test_a_start_that_ends_within_three_hours_has_failed(hours: int, failed: bool) -> None:
    def run(values: np.ndarray, t: np.ndarray) -> np.ndarray:
        return np.where((t >= 0) & ((t < 1) | (t > 1 + hours)), 0.0, values)

    rows = seen(dict.fromkeys(("motor_current", "vsd_frequency", "flow_rate"), run))
    assert ("failed_start" in names(rows)) is failed
    if failed:
        assert names(seen(dict.fromkeys(("motor_current", "vsd_frequency", "flow_rate"), short_run))) == names(rows)


def test_a_start_that_nobody_saw_has_not_failed() -> None:
    """The well ran when its first reading came, and stops an hour later: how long it ran is not known."""

    def stop(values: np.ndarray, t: np.ndarray) -> np.ndarray:
        return np.where(t >= 0, 0.0, values)

    rows = seen(dict.fromkeys(("motor_current", "vsd_frequency", "flow_rate"), stop), hours=5, onset_hours=1)
    assert names(rows) == {"trip"}


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.5, 2.0])
@pytest.mark.parametrize("to_hz", [50.0, 54.0, 66.0])
def test_a_change_of_speed_raises_nothing_whatever_the_exponent(exponent: float, to_hz: float) -> None:
    """Today's 13 hours of underload after a step up: the current of this well does not follow f²."""
    rows = seen(with_exponent(exponent, to_hz))
    assert "speed_step" in names(rows)
    assert [row for row in rows if row.severity in ALARMS] == []


def test_a_load_that_is_lost_at_another_speed_is_an_underload() -> None:
    def lost(values: np.ndarray, t: np.ndarray) -> np.ndarray:
        faster = scaled((66 / 60) ** 1.5)(values, t)
        return np.where(t > 3, faster * 0.6, faster)

    rows = seen({**with_exponent(1.5, 66), "motor_current": lost})
    assert [row.severity for row in rows if row.diagnosis in ("underload", "gas_lock")]


def test_a_pump_that_turns_backwards_after_a_restart_is_not_gas_locked() -> None:
    rows = seen(REVERSED)
    assert "gas_lock" not in names(rows)
    (start,) = [row for row in rows if row.diagnosis == "start_without_flow"]
    assert start.severity is Severity.HIGH


@pytest.mark.parametrize(("load", "flow"), [(0.6, 0.2), (0.8, 0.4), (0.86, 0.0)])
def test_with_a_flow_meter_a_start_without_flow_needs_no_deep_fall_of_the_load(load: float, flow: float) -> None:
    """At 80 % and more it was an underload, a tubing leak or a blocked intake."""
    speed, rate = reversed_start(1), reversed_start(flow)
    rows = seen({**REVERSED, "motor_current": reversed_start(load), "vsd_frequency": speed, "flow_rate": rate})
    assert names(rows) == {"trip", "start_without_flow"}


def test_a_gas_lock_after_a_good_start_is_one() -> None:
    def locked(share: float) -> Change:
        def change(values: np.ndarray, t: np.ndarray) -> np.ndarray:
            return np.where(t < 0, values, np.where(t < 1, 0.0, np.where(t < 4, values, values * share)))

        return change

    rows = seen({"motor_current": locked(0.6), "vsd_frequency": locked(1), "flow_rate": locked(0.2)})
    assert "gas_lock" in names(rows)
    assert "start_without_flow" not in names(rows)


def test_a_pinched_choke_has_its_own_name() -> None:
    rows = seen(PINCHED)
    assert "back_pressure" in names(rows)
    assert [row for row in rows if row.severity in ALARMS] == []


def test_a_motor_that_heats_up_behind_a_closed_valve_is_one_alarm() -> None:
    (case,) = cases((1,), (300.0,), (FaultName.DEAD_HEAD,))
    assert "motor_heating" in {row.diagnosis for row in case.held_back}
    assert "motor_heating" not in {row.diagnosis for row in case.after}
