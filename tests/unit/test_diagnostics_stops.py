"""Stops are graded: planned or not, by the load at the moment of the stop, and told again while the pump is down."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from esp_ingest.diagnostics.dry_run import DryRun
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.model import SIGNAL_ROW, SIGNALS, DiagnosticRow, FloatArray, Readings, Severity
from esp_ingest.resources import config_file

MINUTE = 60_000_000
HOUR = 60 * MINUTE
START = 1_700_006_400_000_000
RULES = rules_file.load(config_file("rules.toml"))
STOP = 12 * 12  # the sample of the stop, after 12 hours of running


def well(
    hours: float,
    load_before: float = 1.0,
    low_samples: int = 1,
    ramp: tuple[float, ...] = (),
    setpoint: bool = False,
    started_hours_before: float = 12.0,
) -> Readings:
    """At 5-minute samples; stopped from hour 12 on for ``hours``, with ``load_before`` over the last samples before it,
    then a ``ramp`` of speeds. ``setpoint``: the drive is told to stop."""
    count = STOP + round(hours * 12)
    share, speed = np.ones(count), np.ones(count)
    first = STOP - len(ramp)
    share[first - low_samples : STOP] = load_before
    speed[first:STOP] = ramp
    speed[STOP:] = 0
    began = STOP - round(started_hours_before * 12)
    if began > 0:
        speed[began - 12 : began] = 0
    values = np.full((len(SIGNALS), count), np.nan)
    noise = 1 + 0.002 * np.random.default_rng(1).standard_normal((3, count))
    values[SIGNAL_ROW["vsd_frequency"]] = 50 * speed
    values[SIGNAL_ROW["motor_current"]] = 40 * speed**2 * share * noise[0]
    values[SIGNAL_ROW["pip"]] = 800 * noise[1]
    values[SIGNAL_ROW["discharge_pressure"]] = 2_000 * noise[2]
    values[SIGNAL_ROW["flow_rate"]] = 900 * speed
    t = START + np.arange(count) * 5 * MINUTE
    told = np.where(np.arange(count) >= STOP, 0, 50)
    extra = {at: json.dumps({"frequency_setpoint": int(hz)}) for at, hz in enumerate(told)} if setpoint else {}
    return Readings(["W"], np.zeros(count, np.int32), t, t + 1_000_000, values, extra=extra)


def stops(readings: Readings, size: int = 10**9) -> list[DiagnosticRow]:
    dry_run = DryRun(RULES)
    for at in range(0, len(readings), size):
        dry_run.feed(readings.select(np.arange(at, min(at + size, len(readings)))))
    assert not dry_run.engine.failed_rules()
    at_us = START + STOP * 5 * MINUTE
    return [row for row in dry_run.seen() if row.diagnosis in ("trip", "planned_stop") and row.raised_us >= at_us]


@pytest.mark.parametrize(
    ("what", "diagnosis", "severity"),
    [
        ({}, "trip", Severity.MEDIUM),
        ({"load_before": 0.87}, "trip", Severity.HIGH),
        ({"load_before": 1.2}, "trip", Severity.HIGH),
        ({"load_before": 0.93}, "trip", Severity.MEDIUM),
        ({"ramp": (0.7, 0.3)}, "planned_stop", Severity.INFO),
        ({"ramp": (0.7,), "load_before": 0.7, "low_samples": 6}, "trip", Severity.HIGH),  # the drive ran it down
        ({"setpoint": True}, "planned_stop", Severity.INFO),
        ({"setpoint": True, "load_before": 0.7}, "planned_stop", Severity.INFO),  # commanded is commanded
        # A pump that has just started says nothing by its load.
        ({"load_before": 0.6, "low_samples": 6, "started_hours_before": 0.5}, "trip", Severity.MEDIUM),
    ],
)
def test_a_stop_is_graded_by_how_it_came(what: dict, diagnosis: str, severity: Severity) -> None:
    readings = well(2, **what)
    for size in (10**9, 1, 7):
        (row,) = stops(readings, size)
        assert (row.diagnosis, row.severity) == (diagnosis, severity)
        assert row.raised_us == START + STOP * 5 * MINUTE


def test_an_underload_that_is_over_does_not_make_a_stop_high() -> None:
    """It is the load at the stop that counts, not the off-delay of an alarm of half an hour before."""
    readings = well(2)
    current = readings.values[SIGNAL_ROW["motor_current"]]
    current[STOP - 12 : STOP - 5] *= 0.7
    (row,) = stops(readings)
    assert row.severity is Severity.MEDIUM
    assert row.value == pytest.approx(1.0, abs=0.02)


def test_a_stop_is_told_again_each_day_while_the_pump_is_down() -> None:
    readings = well(50)
    for size in (10**9, 1):
        (row,) = stops(readings, size)
        assert row.message.endswith("Reminder: it has stood for 2 d.")
        assert row.message.count("Reminder") == 1
        assert row.occurrences == 1
    (early,) = stops(well(23))
    assert "Reminder" not in early.message


def test_a_reminder_takes_back_the_acknowledgement_and_leaves_what_is_shelved() -> None:
    readings = well(30)
    dry_run = DryRun(RULES)
    first = STOP + 12
    dry_run.feed(readings.select(np.arange(first)))
    (row,) = [row for row in dry_run.seen() if row.diagnosis == "trip"]
    occurrence = dry_run.engine.open_at("W", "trip")
    assert occurrence is not None
    assert dry_run.engine.put(replace(occurrence, acknowledged=True))
    dry_run.feed(readings.select(np.arange(first, STOP + 23 * 12)))
    assert dry_run.engine.open_at("W", "trip").state == "acknowledged"
    dry_run.feed(readings.select(np.arange(STOP + 23 * 12, len(readings))))
    assert dry_run.engine.open_at("W", "trip").state == "unacknowledged"
    assert [row.raised_us for row in dry_run.seen() if row.diagnosis == "trip"] == [row.raised_us]


def test_a_silence_before_the_stop_leaves_its_load_unknown() -> None:
    readings = well(2, load_before=0.6)
    gone = np.ones(len(readings), np.bool_)
    gone[STOP - 10 : STOP] = False  # 50 minutes: what the load was at the stop nobody saw
    readings.values[SIGNAL_ROW["motor_current"], STOP - 11] *= 0.6
    (row,) = stops(readings.select(np.flatnonzero(gone)))
    assert row.severity is Severity.MEDIUM
    assert row.value is None


def test_at_a_reading_a_second_a_ramp_of_a_minute_is_planned_and_a_cut_is_not() -> None:
    for ramp_seconds, diagnosis in ((60, "planned_stop"), (0, "trip")):
        slow = well(0)
        count = 600
        seconds = np.arange(count)
        speed = np.clip(1 - (seconds - 300) / ramp_seconds, 0, 1) if ramp_seconds else (seconds < 300).astype(float)
        fast = one_second(speed)
        dry_run = DryRun(RULES)
        for batch in (slow, fast):
            dry_run.feed(batch)
        found = [row.diagnosis for row in dry_run.seen() if row.diagnosis in ("trip", "planned_stop")]
        assert found == [diagnosis]


def one_second(speed: FloatArray) -> Readings:
    """Readings that follow those of well(0), one a second."""
    values = np.full((len(SIGNALS), len(speed)), np.nan)
    for name, value in (("vsd_frequency", 50 * speed), ("motor_current", 40 * speed**2), ("pip", 800 + 0 * speed)):
        values[SIGNAL_ROW[name]] = value
    t = START + STOP * 5 * MINUTE + np.arange(len(speed)) * 1_000_000
    return Readings(["W"], np.zeros(len(speed), np.int32), t, t + 1_000_000, values)


def test_pairs_of_stops_do_not_mix_their_grades() -> None:
    """Two stops in one batch: the first after a low load, the second out of the blue."""
    first, second = well(2, load_before=0.7), well(3)
    second.timestamp_us += len(first) * 5 * MINUTE
    for size in (10**9, 11):
        dry_run = DryRun(RULES)
        joined = [first, second]
        for readings, at in itertools.product(joined, range(0, 200, size) if size < 200 else [0]):
            dry_run.feed(readings.select(np.arange(at, min(at + size, len(readings)))))
        trips = [row for row in dry_run.seen() if row.diagnosis == "trip"]
        assert [row.severity for row in trips] == [Severity.HIGH, Severity.MEDIUM]
