"""The engine on small stories: one rule at a time, with what it must and must not do."""

import copy
import gc
import json
from dataclasses import replace

import numpy as np
import pytest

from esp_ingest.diagnostics.engine.baseline_plan import Plan
from esp_ingest.diagnostics.engine.buckets import Runs
from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.engine.features import Features
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.diagnostics.language.evaluation import BoolArray, Columns, Logical
from esp_ingest.model import SIGNAL_ROW, SIGNALS, DiagnosticRow, Readings, Severity
from esp_ingest.resources import config_file

MINUTE = 60_000_000
HOUR = 60 * MINUTE
START = 1_700_006_400_000_000  # a full hour
NORMAL = {
    "flow_rate": 900.0, "pip": 400.0, "motor_current": 45.0, "motor_temp": 220.0, "vibration": 0.1,
    "vsd_frequency": 50.0, "gor": 300.0, "discharge_pressure": 1800.0, "intake_temp": 180.0,
}  # fmt: skip
RULES_TEXT = config_file("rules.toml").read_text(encoding="utf-8")


class Well:
    """Feeds one well to an engine and keeps the rows that would be written."""

    def __init__(self, text: str = RULES_TEXT, step_us: int = 5 * MINUTE) -> None:
        self.engine = Engine(rules_file.parse(text))
        self.step_us = step_us
        self.t = START
        self.table: dict[tuple[str, int], DiagnosticRow] = {}
        self._wiggle = np.random.default_rng(1)

    def send(self, count: int = 1, *, extra: str | None = None, quality: str | None = None, **changes: float) -> None:
        """``count`` readings of ordinary running with ``changes``, each a step after the one before."""
        for _ in range(count):
            values = np.full((len(SIGNALS), 1), np.nan)
            for name, value in {**NORMAL, **changes}.items():
                noise = 0 if name in changes else 0.002 * self._wiggle.standard_normal()
                values[SIGNAL_ROW[name], 0] = value * (1 + noise)
            self.feed(self.t, values, extra, quality)
            self.t += self.step_us

    def feed(self, t: int, values: np.ndarray, extra: str | None = None, quality: str | None = None) -> None:
        readings = Readings(
            ["W"],
            np.zeros(1, np.int32),
            np.array([t]),
            np.array([t + 1_000_000]),
            values,
            {0: extra} if extra else {},
            {0: quality} if quality else {},
        )
        evaluation = self.engine.evaluate(readings)
        self.engine.accept(evaluation)
        self.keep(evaluation.rows)

    def keep(self, rows: list[DiagnosticRow]) -> None:
        for row in rows:
            self.table[row.diagnosis, row.raised_us] = row

    def rows(self, diagnosis: str) -> list[DiagnosticRow]:
        return [row for key, row in sorted(self.table.items(), key=lambda item: item[0][1]) if key[0] == diagnosis]

    def names(self) -> set[str]:
        return {key[0] for key in self.table}


@pytest.fixture(scope="module")
def settled_well() -> Well:
    """After nine hours of ordinary running. Made once, since it takes half a second: tests change copies of it."""
    well = Well()
    well.send(12 * 9)
    assert well.table == {}
    return well


@pytest.fixture
def well(settled_well: Well) -> Well:
    return copy.deepcopy(settled_well)


STOPPED = {"motor_current": 0.0, "vsd_frequency": 0.0, "flow_rate": 0.0}


def test_underload_is_raised_after_its_delay_and_cleared_after_its_own(well: Well) -> None:
    low = well.t
    well.send(4, motor_current=32.0)
    (row,) = well.rows("underload")
    assert row.raised_us == low + 10 * MINUTE
    assert (row.severity, row.state, row.cleared_us) == (Severity.HIGH, "unacknowledged", None)
    assert row.value == pytest.approx(32 / 45, rel=0.02)
    assert row.threshold == pytest.approx(0.8)
    assert "since 2023-11-15 09:00 UTC" in row.message
    assert json.loads(row.snapshot_json)["motor_current"] == 32.0
    assert json.loads(row.actions_json) == [
        "check flow at surface: if there is none, stop",
        "check inflow, valves and gas",
        "if the well still flows, you may lower the frequency; if not, stop",
    ]
    back = well.t
    well.send(13)
    (row,) = well.rows("underload")
    assert row.cleared_us == back + 60 * MINUTE
    assert row.state == "returned-unacknowledged"
    assert row.peak is not None
    assert row.peak <= row.value  # type: ignore[operator]


def test_an_escalated_occurrence_has_its_value_within_its_peak() -> None:
    well = Well(step_us=10_000_000)
    well.send(40, vibration=0.6)
    for vibration in (0.75, 0.8, 0.85, 0.9):
        well.send(1, vibration=vibration)
    (row,) = well.rows("vibration")
    assert row.severity is Severity.HIGH
    assert row.value is not None
    assert row.peak == row.value


def test_a_dip_shorter_than_the_delay_raises_nothing(well: Well) -> None:
    well.send(2, motor_current=32.0)
    well.send(1)
    well.send(2, motor_current=32.0)
    well.send(3)
    assert well.names() <= {"gas_interference"}


def test_inside_the_deadband_nothing_clears(well: Well) -> None:
    well.send(4, motor_current=32.0)
    well.send(24, motor_current=45 * 0.82)
    assert well.rows("underload")[0].cleared_us is None


def test_returning_within_the_off_delay_is_the_same_occurrence(well: Well) -> None:
    for _ in range(3):
        well.send(4, motor_current=32.0)
        well.send(4)
    (row,) = well.rows("underload")
    well.send(13)
    assert well.rows("underload")[0].occurrences == 3
    assert row.cleared_us is None


def test_nothing_is_known_before_six_hours_of_running() -> None:
    well = Well()
    well.send(12 * 5)
    well.send(12, motor_current=20.0)
    assert "underload" not in well.names()


def test_a_stop_is_an_alarm_and_a_trip_at_low_load_is_high(well: Well) -> None:
    well.send(3, **STOPPED)
    assert [(row.severity, row.state) for row in well.rows("trip")] == [(Severity.MEDIUM, "unacknowledged")]
    well.send(12 * 3)
    assert well.rows("trip")[0].cleared_us is not None
    well.send(4, motor_current=32.0)
    well.send(1, **STOPPED)
    assert well.rows("trip")[1].severity is Severity.HIGH
    assert well.rows("underload")[0].cleared_us == well.rows("trip")[1].raised_us


def test_process_rules_wait_an_hour_after_a_start(well: Well) -> None:
    well.send(8, **STOPPED)
    start = well.t
    well.send(20, motor_current=32.0)
    assert well.rows("underload")[0].raised_us == start + 70 * MINUTE


def test_a_dropout_of_the_gauge_is_an_event_and_no_alarm(well: Well) -> None:
    zeros = {"pip": 0.0, "discharge_pressure": 0.0}
    well.send(1, **zeros, motor_temp=np.nan, intake_temp=np.nan, quality='{"motor_temp":0,"intake_temp":0}')
    well.send(2)
    assert well.names() == {"gauge_dropout"}
    (row,) = well.rows("gauge_dropout")
    assert row.severity is Severity.INFO
    assert row.cleared_us == row.raised_us + 5 * MINUTE


def test_a_failed_gauge_is_found_on_the_third_sample_and_silences_its_rules() -> None:
    well = Well(RULES_TEXT + '\n[wells.W]\nlimits = { motor_temp = "240 °F" }\n')
    well.send(12 * 9)
    bad = well.t
    well.send(2, motor_temp=np.nan, quality='{"motor_temp":6200}')
    assert well.names() == set()
    well.send(1, motor_temp=np.nan, quality='{"motor_temp":6200}')
    (row,) = well.rows("gauge_failure")
    assert row.raised_us == bad + 10 * MINUTE
    assert "motor_temp" in row.message
    well.send(6, motor_temp=400.0)  # believable again, but not yet believed
    assert well.names() == {"gauge_failure"}
    well.send(12)
    assert well.rows("gauge_failure")[0].cleared_us is not None
    well.send(2, motor_temp=250.0)
    assert well.rows("motor_hot")[0].severity is Severity.HIGH


def test_the_graver_step_raises_the_severity_of_the_same_occurrence() -> None:
    well = Well(RULES_TEXT + '\n[wells.W]\nlimits = { motor_temp = "240 °F" }\n', step_us=MINUTE)
    well.send(3, motor_temp=250.0)
    assert [row.severity for row in well.rows("motor_hot")] == [Severity.HIGH]
    well.send(3, motor_temp=280.0)
    (row,) = well.rows("motor_hot")
    assert row.severity is Severity.CRITICAL
    assert row.threshold == pytest.approx(270)


def test_without_a_limit_the_rule_is_off(well: Well) -> None:
    well.send(30, motor_temp=500.0, motor_current=44.0)
    assert "motor_hot" not in well.names()


def test_a_missing_signal_disables_only_the_rules_that_need_it(well: Well) -> None:
    well.send(20, flow_rate=np.nan, motor_current=32.0)
    assert "underload" in well.names()
    assert "low_flow" not in well.names()


def test_gas_lock_holds_back_what_it_causes(well: Well) -> None:
    well.send(8, motor_current=28.0, flow_rate=200.0)
    assert [row.state for row in well.rows("gas_lock")] == ["unacknowledged"]
    assert [row.state for row in well.rows("underload")] == ["suppressed"]
    assert [row.state for row in well.rows("low_flow")] == ["suppressed"]
    assert {row.severity for row in well.rows("gas_lock")} == {Severity.CRITICAL}


def test_late_doubled_and_marked_readings_change_nothing(well: Well) -> None:
    values = np.full((len(SIGNALS), 1), np.nan)
    values[SIGNAL_ROW["motor_current"], 0] = 1.0
    values[SIGNAL_ROW["vsd_frequency"], 0] = 0.0
    before = well.engine.export()
    well.feed(well.t - well.step_us, values)
    well.feed(well.t - 10 * well.step_us, values)
    well.feed(well.t, values, extra='{"historical":true}')
    assert well.table == {}
    assert well.engine.export() == before


def test_discard_takes_everything_back(well: Well) -> None:
    before = well.engine.export()
    values = np.full((len(SIGNALS), 1), np.nan)
    values[SIGNAL_ROW["motor_current"], 0] = 0.0
    values[SIGNAL_ROW["vsd_frequency"], 0] = 0.0
    readings = Readings(["W"], np.zeros(1, np.int32), np.array([well.t]), np.array([well.t]), values)
    evaluation = well.engine.evaluate(readings)
    assert [row.diagnosis for row in evaluation.rows] == ["trip", "gauge_dropout"][: len(evaluation.rows)]
    assert evaluation.rows
    well.engine.discard(evaluation)
    assert well.engine.export() == before
    assert well.engine.open_occurrences() == []


def test_a_batch_leaves_nothing_to_the_garbage_collector(well: Well) -> None:
    """It counts objects and not bytes: cycles with the arrays of a batch took 3 MB a second."""
    gc.collect()
    gc.disable()
    try:
        well.send(20)
        left = {type(each).__name__ for each in gc.get_objects() if type(each) in (Features, Plan, Runs)}
    finally:
        gc.enable()
    assert not left


def test_silence_gives_the_same_row_from_the_clock_and_from_the_next_reading() -> None:
    tables = []
    for ticks in (False, True):
        well = Well()
        well.send(30)
        last = well.t - well.step_us
        if ticks:
            for minutes in (10, 16, 60):
                evaluation = well.engine.tick(last + minutes * MINUTE)
                well.engine.accept(evaluation)
                well.keep(evaluation.rows)
            assert [row.cleared_us for row in well.rows("stale_well")] == [None]
        well.t = last + 70 * MINUTE
        well.send(1)
        (row,) = well.rows("stale_well")
        assert row.raised_us == last + 15 * MINUTE
        assert row.cleared_us == last + 70 * MINUTE
        assert row.severity is Severity.HIGH
        tables.append(well.table)
    assert tables[0] == tables[1]


def test_three_starts_in_a_day_are_cycling(well: Well) -> None:
    for _ in range(3):
        well.send(10, **STOPPED)
        well.send(10)
    (row,) = well.rows("cycling")
    assert row.severity is Severity.HIGH


def test_a_rule_that_fails_is_switched_off_and_the_others_run(well: Well) -> None:
    step = next(step for step in well.engine._steps if step.rule.name == "gas_interference")

    def broken(_: Columns) -> BoolArray:
        raise ZeroDivisionError("a rule of a user")

    step.condition = replace(step.condition, truth=Logical(broken, broken))
    well.send(4, motor_current=32.0)
    assert "underload" in well.names()
    assert well.engine.failed_rules() == {"gas_interference": "ZeroDivisionError: a rule of a user"}


def test_extra_signals_take_part() -> None:
    well = Well(step_us=MINUTE)
    well.send(3, extra='{"current_imbalance":12.5}')
    (row,) = well.rows("current_imbalance")
    assert row.value == pytest.approx(0.125)
    assert "12.5 %" in row.message


def test_what_must_not_be_called_out_of_turn(well: Well) -> None:
    evaluation = well.engine.evaluate(Readings.empty())
    with pytest.raises(RuntimeError):
        well.engine.evaluate(Readings.empty())
    with pytest.raises(RuntimeError):
        well.engine.export()
    well.engine.accept(evaluation)
    with pytest.raises(RuntimeError):
        well.engine.accept(evaluation)


def test_a_gauge_that_reads_its_own_zero_is_a_dropout(well: Well) -> None:
    """0 °C is 32 °F, and an interpolated nothing is not quite 0 psi (ESP01)."""
    well.send(1, pip=2.6e-25, discharge_pressure=0.0, motor_temp=36.5, intake_temp=32.0)
    well.send(3)
    assert [row.severity for row in well.rows("gauge_dropout")] == [Severity.INFO]
    assert well.names() == {"gauge_dropout"}


def test_cold_but_alive_is_no_dropout(well: Well) -> None:
    well.send(2, pip=300.0, discharge_pressure=0.0, motor_temp=36.5, intake_temp=32.0)
    assert well.rows("gauge_dropout") == []


def test_pressures_may_cross_within_the_error_of_two_gauges(well: Well) -> None:
    well.send(6, discharge_pressure=390.0, pip=400.0)
    assert well.rows("gauge_failure") == []
    well.send(3, discharge_pressure=300.0, pip=400.0)
    (row,) = well.rows("gauge_failure")
    assert "pip or discharge_pressure" in row.message


def test_gas_lock_without_a_flow_meter_asks_for_a_deeper_load() -> None:
    well = Well()
    nothing = {"flow_rate": float("nan")}
    well.send(12 * 9, **nothing)
    well.send(6, motor_current=45 * 0.70, **nothing)
    assert well.rows("gas_lock") == []
    assert len(well.rows("underload")) == 1
    well.send(6, motor_current=45 * 0.60, **nothing)
    (row,) = well.rows("gas_lock")
    assert row.threshold == pytest.approx(0.65)


def test_gas_lock_with_a_flow_meter_keeps_the_table(well: Well) -> None:
    well.send(6, motor_current=45 * 0.70, flow_rate=200.0)
    (row,) = well.rows("gas_lock")
    assert row.threshold == pytest.approx(0.75)


def test_a_latched_alarm_holds_back_what_it_causes(well: Well) -> None:
    """The step of a broken shaft is an hour old one day; the shaft is still broken."""
    broken = {"motor_current": 18.0, "flow_rate": 0.0, "pip": 480.0}
    well.send(40, **broken)
    (shaft,) = well.rows("broken_shaft")
    assert shaft.state == "latched"
    assert [row.state for row in well.rows("gas_lock")] == ["suppressed"]
    assert [row.state for row in well.rows("underload")] == ["suppressed"]


@pytest.mark.parametrize("minutes", [10, 30, 60])
def test_a_well_of_slow_samples_falls_silent_and_its_stop_is_graded(minutes: int) -> None:
    """Fewer than three samples an hour said nothing of the usual interval: such a well was never stale."""
    well = Well(step_us=minutes * MINUTE)
    well.send(20 * 60 // minutes)
    well.send(4, motor_current=32.0)
    well.send(2, **STOPPED)
    assert well.rows("trip")[-1].severity is Severity.HIGH
    last = well.t - well.step_us
    well.t += 20 * well.step_us
    well.send(1)
    (row,) = well.rows("stale_well")
    assert row.raised_us == last + 3 * well.step_us
    assert row.severity is Severity.HIGH


def losing_flow(well: Well, minutes_of_rise: int = 30, **changes: float) -> None:
    """Load at 85 % while the intake warms by 24 °F, then two hours of it."""
    steps = minutes_of_rise // 5
    for step in range(1, steps + 1):
        well.send(1, motor_current=45 * 0.85, intake_temp=180 + 24 * step / steps, **changes)
    well.send(24, motor_current=45 * 0.85, intake_temp=204, **changes)


def test_a_load_that_falls_while_the_intake_warms_is_a_loss_of_flow(well: Well) -> None:
    onset = well.t
    losing_flow(well, flow_rate=100.0)
    (row,) = well.rows("no_flow")
    assert row.severity is Severity.CRITICAL
    assert row.raised_us - onset <= 35 * MINUTE
    first, *rest = json.loads(row.actions_json)
    assert first == "check flow at surface: if there is none, stop"
    assert any(action.startswith("do not lower the frequency") for action in rest)
    well.send(2, **STOPPED)
    assert well.rows("trip")[-1].severity is Severity.HIGH


def test_a_loss_of_flow_stands_until_the_load_is_back_though_the_intake_warms_no_more(well: Well) -> None:
    losing_flow(well, flow_rate=100.0)
    well.send(12 * 10, motor_current=45 * 0.85, intake_temp=204.0, flow_rate=100.0)
    (row,) = well.rows("no_flow")
    assert row.cleared_us is None
    back = well.t
    well.send(12 * 2)
    (row,) = well.rows("no_flow")
    assert row.cleared_us is not None
    assert back < row.cleared_us <= back + 65 * MINUTE


def test_a_loss_of_flow_is_told_without_a_flow_meter_and_not_without_an_intake_thermometer() -> None:
    blind = Well()
    blind.send(12 * 9, flow_rate=float("nan"))
    losing_flow(blind, flow_rate=float("nan"))
    assert len(blind.rows("no_flow")) == 1
    deaf = Well()
    deaf.send(12 * 9, intake_temp=float("nan"))
    deaf.send(24, motor_current=45 * 0.85, intake_temp=float("nan"), flow_rate=100.0)
    assert deaf.rows("no_flow") == []


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("it still flows", {}),
        ("the load is as ever", {"motor_current": 45.0, "flow_rate": 100.0}),
        ("the intake is as cool as ever", {"intake_temp": 180.0, "flow_rate": 100.0}),
    ],
)
def test_what_is_not_a_loss_of_flow(well: Well, what: str, changes: dict[str, float]) -> None:
    for step in range(1, 31):
        warm = {"motor_current": 45 * 0.85, "intake_temp": 180 + min(24.0, 4.0 * step)}
        well.send(1, **{**warm, **changes})
    assert well.rows("no_flow") == [], what


def test_a_step_of_speed_is_not_a_loss_of_flow(well: Well) -> None:
    """Slowing down warms the intake a little, and the load moves for a while: the frequency was not steady."""
    for step in range(1, 31):
        speed = max(40.0, 50 - step)
        well.send(
            1, vsd_frequency=speed, motor_current=45 * 0.8 * (speed / 50) ** 2, intake_temp=180 + min(12.0, 2.0 * step)
        )
    assert well.rows("no_flow") == []


def test_no_advice_lowers_the_frequency_of_a_well_that_may_not_flow() -> None:
    for rule in rules_file.parse(RULES_TEXT).rules:
        for action in rule.actions:
            if "frequency" in action:
                assert "if the well still flows" in action or action.startswith("do not"), (rule.name, action)
            if "meg " in action:
                for word in ("not turning", "isolated", "locked out", "drive and gauge disconnected", "discharge"):
                    assert word in action, (rule.name, action)
            if action.startswith("restart"):
                assert "backwards" in action, (rule.name, action)


def test_advice_is_safe_to_follow() -> None:
    """Gas is not let into the open, tubing is tested with the pump stopped, and where flow may be lost the first thing
    to do is to look at it or to stop."""
    rules = {rule.name: rule for rule in rules_file.parse(RULES_TEXT).rules}
    for rule in rules.values():
        for action in rule.actions:
            assert "vent the casing" not in action, rule.name
            assert "pressure-test" not in action or "with the pump stopped" in action, (rule.name, action)
    for name in (
        "underload", "no_flow", "gas_lock", "start_without_flow", "pump_off", "low_flow", "dead_head", "broken_shaft",
        "overload", "motor_hot", "motor_heating", "vibration", "downthrust",
    ):  # fmt: skip
        first = rules[name].actions[0]
        assert "stop" in first, (name, first)
    for name in ("trip", "overload", "cycling", "failed_start"):
        assert any(action.startswith("restart only") for action in rules[name].actions), name
        said = " ".join(rules[name].actions)
        assert "cause" in said or "code" in said or "lock out" in said, (name, said)


def test_a_median_that_becomes_known_within_a_batch_decides_who_runs() -> None:
    """1 A is running as long as nothing is known of the well, and standing once 5 % of its median is more than that."""
    count = 12 * 9
    current = np.where(np.arange(count) % 7 == 6, 1.0, 45.0)

    def readings(part: slice) -> Readings:
        values = np.full((len(SIGNALS), count), np.nan)
        for name, value in NORMAL.items():
            values[SIGNAL_ROW[name]] = value
        values[SIGNAL_ROW["motor_current"]] = current
        t = START + np.arange(count) * 5 * MINUTE
        return Readings(["W"], np.zeros(count, np.int32)[part], t[part], t[part] + 1, values[:, part])

    rule_set = rules_file.parse(RULES_TEXT)
    whole, cut = Engine(rule_set), Engine(rule_set)
    evaluation = whole.evaluate(readings(slice(None)))
    whole.accept(evaluation)
    table = {(row.diagnosis, row.raised_us): row for row in evaluation.rows}
    piecemeal: dict[tuple[str, int], DiagnosticRow] = {}
    for at in range(count):
        step = cut.evaluate(readings(slice(at, at + 1)))
        cut.accept(step)
        piecemeal |= {(row.diagnosis, row.raised_us): row for row in step.rows}
    assert table == piecemeal
    trips = sorted(at for name, at in table if name == "trip")
    assert trips
    assert trips[0] >= START + 6 * HOUR
    assert whole.export() == cut.export()


def test_a_tick_that_fails_leaves_an_engine_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(rules_file.load(config_file("rules.toml")))

    def fails(*_: int) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(engine._silence, "at_clock", fails)
    with pytest.raises(ZeroDivisionError):
        engine.tick(1)
    monkeypatch.undo()
    engine.accept(engine.tick(2))
    engine.accept(engine.evaluate(Readings.empty()))


def test_a_channel_that_was_never_sent_is_never_spoken_of() -> None:
    """The well has intake pressure and motor temperature alone; its gauge goes for good."""
    well = Well()
    nothing = dict.fromkeys(("discharge_pressure", "intake_temp"), float("nan"))
    well.send(12 * 9, **nothing)
    well.send(6, **nothing, pip=0.0, motor_temp=32.0)
    (failure,) = well.rows("gauge_failure")
    (dropout,) = well.rows("gauge_dropout")
    for row in (failure, dropout):
        assert "pip" in row.message
        assert "motor_temp" in row.message
        assert "discharge" not in row.message
        assert "intake_temp" not in row.message


def test_an_intake_pressure_of_1_psi_is_no_dropout_by_itself() -> None:
    well = Well()
    others = dict.fromkeys(("discharge_pressure", "motor_temp", "intake_temp"), float("nan"))
    well.send(12, **others)
    well.send(6, **others, pip=1.0)
    assert well.names() == set()
    well.send(1, **others, pip=0.0)
    assert well.names() == {"gauge_dropout"}


def test_near_zero_on_one_channel_is_no_dropout_where_others_come_in_messages_of_their_own(well: Well) -> None:
    others = dict.fromkeys(("discharge_pressure", "motor_temp", "intake_temp"), float("nan"))
    well.send(4, **others, pip=1.0)
    assert well.names() & {"gauge_dropout", "gauge_failure"} == set()
    well.send(1, discharge_pressure=0.6, motor_temp=32.0, intake_temp=34.0, pip=0.8)
    assert "gauge_dropout" in well.names()
