"""The operating point: rules on the pump of the configuration, and nothing where it has none."""

import numpy as np
import pytest

from esp_ingest.config.pumps import Pump, PumpsSettings, flow_at, head_at
from esp_ingest.demo.fleet import Fleet
from esp_ingest.diagnostics.dry_run import DryRun
from esp_ingest.diagnostics.inactive_rules import InactiveRules
from esp_ingest.diagnostics.pump_limits import with_pumps
from esp_ingest.model import SIGNAL_ROW
from tests.evaluate.examples import PUMP, PUMPS
from tests.evaluate.simulated import in_batches, rule_set

RULES = ("downthrust", "upthrust", "below_bubble_point", "high_drawdown")


def named(factors: dict[str, float], pumps: PumpsSettings = PUMPS, wells: int = 1) -> dict[str, set[str]]:
    """The rules on the operating point that speak, by well, where signals change by these factors after 8 hours."""
    dry_run = DryRun(with_pumps(rule_set(), pumps))
    readings = next(in_batches(Fleet(wells, 3, 300.0, spread=False).run(12 * 12), rows=10**9))
    later = readings.timestamp_us >= readings.timestamp_us[0] + 8 * 3_600_000_000
    for name, factor in factors.items():
        readings.values[SIGNAL_ROW[name]] *= np.where(later, factor, 1.0)
    dry_run.feed(readings)
    assert not dry_run.engine.failed_rules()
    found: dict[str, set[str]] = {}
    for row in dry_run.seen():
        if row.diagnosis in RULES:
            found.setdefault(row.well_id, set()).add(row.diagnosis)
    return found


@pytest.mark.parametrize(
    ("factors", "rules"),
    [
        ({}, set()),
        ({"flow_rate": 0.65}, {"downthrust"}),
        ({"flow_rate": 1.4}, {"upthrust"}),
        ({"pip": 0.8}, {"below_bubble_point", "high_drawdown"}),
        # 50 Hz: the range is 583 to 1 042 bbl/d there.
        ({"vsd_frequency": 50 / 60, "motor_current": 25 / 36, "flow_rate": 0.65}, set()),
        ({"vsd_frequency": 50 / 60, "motor_current": 25 / 36, "flow_rate": 1.15}, {"upthrust"}),
        # Without a meter the lift tells: 1 806 psi at 700 bbl/d, 1 162 psi at 1 250 bbl/d, 1 500 psi before.
        ({"flow_rate": np.nan, "discharge_pressure": 1.13}, {"downthrust"}),
        ({"flow_rate": np.nan, "discharge_pressure": 0.88}, {"upthrust"}),
        ({"flow_rate": np.nan, "discharge_pressure": 1.02}, set()),
    ],
)
def test_the_operating_point_is_judged_at_the_present_frequency(factors: dict[str, float], rules: set[str]) -> None:
    assert named(factors).get("sim-00000", set()) == rules


def test_a_well_without_a_pump_in_the_configuration_is_left_alone_and_says_so() -> None:
    everything = {"flow_rate": 0.6, "pip": 0.8}
    assert named(everything, PumpsSettings()) == {}
    assert set(named(everything, wells=2)) == {"sim-00000"}
    dry_run = DryRun(with_pumps(rule_set(), PUMPS))
    dry_run.feed(next(in_batches(Fleet(2, 3, 300.0).run(100), rows=10**9)))
    inactive = InactiveRules(dry_run.engine)
    off = inactive.of("sim-00001")
    assert "no limit is configured: pump_flow_high, pump_hz, pump_lift_at_flow_high" in off["upthrust"]
    assert "no limit is configured: bubble_point" in off["below_bubble_point"]
    assert not set(RULES) & set(inactive.of("sim-00000"))


def test_limits_of_the_rules_file_win_over_the_pumps() -> None:
    limits = with_pumps(rule_set(), PUMPS).limits_of("sim-00000")
    assert limits["pump_flow_low"] == 700
    assert limits["pump_lift_at_flow_low"] == pytest.approx((5_250 - 0.0015 * 700**2) * 0.4, rel=1e-3)
    assert limits["motor_current"] == 55
    assert with_pumps(rule_set(), PUMPS).limits_of("sim-00001").get("pump_hz") is None


def test_a_curve_by_coefficients_is_the_curve_by_points() -> None:
    (first, *_, last) = PUMP.points
    assert (first, last) == ((0.0, 5_250.0), (1_800.0, pytest.approx(390.0)))
    assert head_at(PUMP.points, 1_000) == pytest.approx(3_750, abs=1)
    assert flow_at(PUMP.points, 3_750) == pytest.approx(1_000, abs=1)
    assert flow_at(PUMP.points, 6_000) is None
    humped = [(0.0, 50.0), (500.0, 55.0), (1_500.0, 20.0)]
    assert flow_at(humped, 52.0) == pytest.approx(500 + 1_000 * 3 / 35)


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({}, "curve is missing: give two points at least, or coefficients"),
        ({"coefficients": [50, -0.01]}, "must be given together"),
        ({"curve": [[0, 1], [1, 0]], "coefficients": [1, 2], "coefficients_to_bpd": 9}, "exclude each other"),
        ({"curve": [[0, 1], [1, 0]], "max_drawdown_psi": 9}, "needs reservoir_pressure_psi"),
    ],
)
def test_a_pump_that_cannot_be_is_refused(table: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Pump.model_validate(table)
