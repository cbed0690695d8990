"""Figures about one well, from occurrences that are made up here."""

import numpy as np
import pytest

from esp_ingest.diagnostics.dry_run import DryRun
from esp_ingest.model import DiagnosticRow, Severity
from tests.evaluate import wells
from tests.evaluate.recorded import DAY_US, MINUTE_US, Played, shipped

HOUR_US = 60 * MINUTE_US


def row(diagnosis: str, severity: Severity, hour: float, until: float | None) -> DiagnosticRow:
    raised = round(hour * HOUR_US)
    cleared = None if until is None else round(until * HOUR_US)
    return DiagnosticRow("A", diagnosis, raised, severity, "normal", cleared, 1.0, 1.0, None, 1, 1.0, "", "[]", "{}")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> wells.Figures:
    """Ten days of running with two stops: at hour 100 after a low load, at hour 200 out of the blue."""
    rows = [
        row("underload", Severity.HIGH, 98, 101),
        row("underload", Severity.HIGH, 102, 103),  # again within 2 hours
        row("underload", Severity.HIGH, 150, 151),  # no stop within a day
        row("gas_interference", Severity.MEDIUM, 100, 104),  # its time overlaps
        row("frequency_deviation", Severity.LOW, 10, None),
        row("trip", Severity.HIGH, 100, 190),
    ]
    monkeypatch.setattr(DryRun, "seen", lambda self: rows)
    running = np.arange(0, 240 * 12, dtype=np.int64) * 5 * MINUTE_US
    stops = np.array([100, 200], np.int64) * HOUR_US
    monkeypatch.setattr(wells, "record", lambda recording: wells.Record(running, stops, (0.7, 1.0)))
    part = wells.Part("A", "made up", 0, float("inf"), tuned=False)
    return wells.figures(Played("made up", DryRun(shipped()), 0, 10 * DAY_US), part)


def test_alarms_are_counted_from_medium_and_a_stopped_pump_is_no_time_in_alarm(figures: wells.Figures) -> None:
    assert figures.alarms_per_day == pytest.approx(0.5)
    assert figures.in_alarm == pytest.approx((104 - 98 + 1) / 240)
    assert figures.again == pytest.approx(1 / 5)


def test_a_rule_is_judged_by_its_lift_over_any_moment(figures: wells.Figures) -> None:
    underload = next(rule for rule in figures.rules if rule.diagnosis == "underload")
    assert underload.followed == pytest.approx(1 / 3)
    assert figures.followed_chance == pytest.approx(48 / 240, abs=0.001)
    assert underload.lift == pytest.approx(5 / 3, rel=0.01)
    assert underload.lead_minutes == 120
    assert {rule.diagnosis for rule in figures.rules} == {"underload", "gas_interference", "frequency_deviation"}


def test_a_stop_that_nothing_shows_is_told_from_one_that_was_to_be_seen(figures: wells.Figures) -> None:
    assert (figures.stops, figures.warned) == (2, 0.5)
    assert (figures.visible, figures.visible_warned) == (1, 1)
