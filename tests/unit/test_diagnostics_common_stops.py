"""Stops of many wells at once are one alarm: a power dip is not a trip, a restart and a cycling of each well."""

import numpy as np
import pytest

from esp_ingest.diagnostics.dry_run import DryRun
from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.model import SIGNAL_ROW, SIGNALS, DiagnosticRow, Readings, Severity
from esp_ingest.resources import config_file
from tests.support.cuts import any_cuts, played_in_cuts

MINUTE = 60_000_000
START = 1_700_006_400_000_000
RULES = rules_file.load(config_file("rules.toml"))
ALARMS = (Severity.CRITICAL, Severity.HIGH, Severity.MEDIUM)
BEFORE = 120  # minutes of running before anything happens
Spans = dict[int, list[tuple[float, float]]]  # by well: from and to which minute after BEFORE it is down


def fleet(
    wells: int, down: Spans, minutes: int = 240, interval_seconds: float = 60.0, shuffled: int | None = None
) -> Readings:
    """Wells at their own moments within each interval, in the order of time, or mixed up within half of it."""
    each = round((BEFORE + minutes) * 60 / interval_seconds)
    offset = (np.arange(wells) * 7.9) % interval_seconds
    t = (np.arange(each)[:, None] * interval_seconds + offset).ravel()
    well = np.tile(np.arange(wells), each)
    late = 0.0 if shuffled is None else np.random.default_rng(shuffled).uniform(0, interval_seconds / 2, len(t))
    order = np.argsort(t + late, kind="stable")
    t, well = t[order], well[order]
    minute = t / 60 - BEFORE
    is_down = np.zeros(len(t), np.bool_)
    for at, spans in down.items():
        for begin, end in spans:
            is_down |= (well == at) & (minute >= begin) & (minute < end)
    values = np.full((len(SIGNALS), len(t)), np.nan)
    noise = 1 + 0.002 * np.random.default_rng(1).standard_normal((4, len(t)))
    for name, value, stopped in (
        ("vsd_frequency", 50.0, 0), ("motor_current", 40 * noise[0], 0), ("flow_rate", 900 * noise[1], 0),
        ("pip", 800 * noise[2], 900 * noise[2]), ("discharge_pressure", 2_000 * noise[3], 1_900 * noise[3]),
    ):  # fmt: skip
        values[SIGNAL_ROW[name]] = np.where(is_down, stopped, value)
    at_us = START + (t * 1e6).astype(np.int64)
    return Readings([f"W-{at:03}" for at in range(wells)], well.astype(np.int32), at_us, at_us + 1_000_000, values)


def played(readings: Readings) -> DryRun:
    dry_run = DryRun(RULES)
    dry_run.feed(readings)
    assert not dry_run.engine.failed_rules()
    return dry_run


def of(rows: list[DiagnosticRow], diagnosis: str) -> list[DiagnosticRow]:
    return [row for row in rows if row.diagnosis == diagnosis]


def dip(wells: int, minutes: float = 10, apart: float = 0) -> Spans:
    """The power is away; the wells stop and come back ``apart`` minutes one after another."""
    return {at: [(at * apart, at * apart + minutes)] for at in range(wells)}


@pytest.mark.parametrize("interval_seconds", [10.0, 60.0, 300.0])
@pytest.mark.parametrize("wells", [20, 100])
def test_a_power_dip_is_one_alarm_that_says_how_many_wells(wells: int, interval_seconds: float) -> None:
    rows = played(fleet(wells, dip(wells), interval_seconds=interval_seconds)).occurrences()
    common = of(rows, "common_stop")
    assert len({row.well_id for row in common}) == len(common) == wells
    (lead,) = [row for row in common if row.severity is Severity.MEDIUM]
    assert lead.peak == wells
    assert "wells stopped within minutes of each other" in lead.message
    assert {row.severity for row in common if row is not lead} == {Severity.LOW}
    assert all(row.cleared_us is not None for row in common)
    trips = of(rows, "trip")
    assert len(trips) == wells
    assert {row.state for row in trips} == {"normal"}
    assert not of(rows, "early_restart") + of(rows, "cycling") + of(rows, "failed_start")


def test_only_the_stops_before_it_was_one_were_alarms_for_a_moment() -> None:
    dry_run = played(fleet(100, dip(100)))
    alarms = [row for row in dry_run.seen() if row.severity in ALARMS]
    assert sorted(row.diagnosis for row in alarms) == ["common_stop", *["trip"] * 4]


def test_while_it_stands_every_trip_is_suppressed() -> None:
    readings = fleet(20, dip(20, minutes=500), minutes=100)
    rows = played(readings).occurrences()
    assert {row.state for row in of(rows, "trip")} == {"suppressed"}
    assert len(of(rows, "trip")) == 20
    assert all(row.cleared_us is None for row in of(rows, "common_stop"))


def test_trips_of_wells_of_which_nothing_more_is_received_are_suppressed_too() -> None:
    readings = fleet(5, dip(5, minutes=500), interval_seconds=300.0, minutes=20)
    fifth = np.flatnonzero((readings.values[SIGNAL_ROW["motor_current"]] == 0) & (readings.well_index == 4))[0]
    engine = Engine(RULES)
    engine.accept(engine.evaluate(readings.select(np.arange(fifth))))
    trips = [engine.open_at(f"W-{at:03}", "trip") for at in range(4)]
    assert [trip and trip.state for trip in trips] == ["unacknowledged"] * 4
    evaluation = engine.evaluate(readings.select(np.arange(fifth, fifth + 1)))
    engine.accept(evaluation)
    trips = of(evaluation.rows, "trip")
    assert {row.well_id: row.state for row in trips} == {f"W-{at:03}": "suppressed" for at in range(5)}


def test_a_well_that_stays_behind_is_an_alarm_of_its_own() -> None:
    down = dip(20)
    down[7] = [(0, 10_000)]
    rows = played(fleet(20, down)).occurrences()
    (trip,) = [row for row in of(rows, "trip") if row.well_id == "W-007"]
    assert trip.state == "unacknowledged"
    (entry,) = [row for row in of(rows, "common_stop") if row.well_id == "W-007"]
    assert entry.cleared_us is not None
    most_are_back = START + (BEFORE + 10) * MINUTE
    assert 60 <= (entry.cleared_us - most_are_back) / MINUTE <= 62


def test_wells_that_are_started_one_after_another_are_no_trips_meanwhile() -> None:
    """As the advice says; an hour after their stop half of them were trips, all in one minute."""
    down: Spans = {well: [(10, 40.0 + 2 * well)] for well in range(50)}
    rows = played(fleet(50, down)).seen()
    assert len(of(rows, "trip")) <= 4
    assert len([row for row in rows if row.severity in ALARMS]) <= 5


def test_the_alarm_stands_on_a_lead_that_runs_again_until_half_of_the_wells_do() -> None:
    down = {at: [(0.0, 10.0 if at < 3 else 90.0)] for at in range(20)}
    rows = played(fleet(20, down)).occurrences()
    (lead,) = [row for row in of(rows, "common_stop") if row.severity is Severity.MEDIUM]
    assert lead.well_id == "W-000"
    assert lead.cleared_us is not None
    assert 89 <= (lead.cleared_us - START) / MINUTE - BEFORE <= 92


def test_a_trip_of_its_own_soon_after_the_restart_is_an_alarm() -> None:
    down = dip(20)
    down[0].append((15, 60))
    down[9].append((18, 60))
    rows = played(fleet(20, down)).occurrences()
    for well in ("W-000", "W-009"):
        assert [row.state for row in of(rows, "trip") if row.well_id == well] == ["normal", "returned-unacknowledged"]


def test_two_dips_in_a_day_are_two_alarms_and_no_cycling() -> None:
    down = {at: [(0.0, 10.0), (60.0, 70.0), (120.0, 130.0), (180.0, 190.0)] for at in range(20)}
    rows = played(fleet(20, down)).occurrences()
    assert len([row for row in of(rows, "common_stop") if row.severity is Severity.MEDIUM]) == 4
    assert not of(rows, "cycling") + of(rows, "early_restart")
    assert {row.state for row in of(rows, "failed_start")} == {"normal"}  # held back, as the trips


@pytest.mark.parametrize(
    ("wells", "down"),
    [
        (20, {at: [(0.0, 10.0)] for at in range(4)}),  # too few
        (20, {at: [(at * 10.0, at * 10 + 30.0)] for at in range(20)}),  # too far apart
        (700, {at: [(0.0, 10.0)] for at in range(6)}),  # too few of so many
    ],
)
def test_stops_that_are_no_common_one_are_trips(wells: int, down: Spans) -> None:
    rows = played(fleet(wells, down, interval_seconds=300.0)).occurrences()
    assert not of(rows, "common_stop")
    assert len(of(rows, "trip")) == len(down)
    assert "suppressed" not in {row.state for row in rows}


def test_commanded_stops_are_planned_and_not_common() -> None:
    readings = fleet(20, dip(20))
    setpoint = np.where(readings.values[SIGNAL_ROW["vsd_frequency"]] > 0, 50, 0)
    readings.extra = {at: f'{{"frequency_setpoint": {hertz}}}' for at, hertz in enumerate(setpoint.tolist())}
    rows = played(readings).occurrences()
    assert not of(rows, "common_stop") + of(rows, "trip")
    assert len(of(rows, "planned_stop")) == 20


def test_without_the_rule_stops_are_trips_and_restarts_are_starts() -> None:
    text = config_file("rules.toml").read_text(encoding="utf-8")
    begin, end = text.index("[rules.common_stop]"), text.index("[rules.trip]")
    without = rules_file.parse((text[:begin] + text[end:]).replace('suppressed_by = ["common_stop"]\n', ""))
    dry_run = DryRun(without)
    dry_run.feed(fleet(20, dip(20)))
    assert len(of(dry_run.seen(), "trip")) == len(of(dry_run.seen(), "early_restart")) == 20


def test_wells_that_come_back_one_by_one_after_a_kill_belong_together_again() -> None:
    """Half of them were checkpointed before the dip, half after it; each is replayed alone, as its readings come."""
    readings = fleet(20, dip(20, minutes=60))
    minute = (readings.timestamp_us - START) / MINUTE - BEFORE
    killed, later = np.flatnonzero(minute < 20), np.flatnonzero(minute >= 20)
    engine = Engine(RULES)
    engine.accept(engine.evaluate(readings.select(np.flatnonzero(minute < -1))))
    early = engine.export(readings.wells[:10])
    engine.accept(engine.evaluate(readings.select(killed)))
    late = engine.export(readings.wells[10:])
    whole = engine.evaluate(readings.select(later))

    again = Engine(RULES)
    for at, well in reversed(list(enumerate(readings.wells))):
        assert again.restore({well: {**early, **late}[well]}) == []
        again.accept(again.evaluate(readings.select(killed[readings.well_index[killed] == at])), replayed=True)
    rows = again.evaluate(readings.select(later)).rows

    def ended(some: list[DiagnosticRow]) -> list[tuple[object, ...]]:
        return sorted((row.well_id, row.diagnosis, row.raised_us, row.cleared_us, row.state) for row in some)

    assert ended(of(rows, "trip") + of(rows, "early_restart")) == ended(of(whole.rows, "trip"))
    assert {row.state for row in of(rows, "trip")} == {"normal"}
    assert {row.well_id for row in of(rows, "common_stop")} == set(readings.wells)


def story() -> Readings:
    """Dips, a well that stays behind, own trips, starts one after another, readings out of order between wells."""
    down: Spans = dip(12, apart=0.4)
    down[3].append((14.5, 40))
    down[5] = [(-30, -20), (0, 200)]
    for at in range(4, 12):
        down[at].append((100 + 0.3 * at, 130 + 3 * at))
    down[0].append((103, 190))
    return fleet(12, down, minutes=200, interval_seconds=120.0, shuffled=3)


STORY = story()
WHOLE = played_in_cuts(RULES, STORY, [], set(), set())


def test_it_is_the_same_a_reading_at_a_time() -> None:
    common = of(list(WHOLE.values()), "common_stop")
    assert len({row.well_id for row in common}) == 12
    assert len([row for row in common if row.severity is Severity.MEDIUM]) == 2
    minute = (STORY.timestamp_us - START) / MINUTE - BEFORE
    one_by_one = np.flatnonzero((minute > -5) & (minute < 30) | (minute > 95) & (minute < 125)).tolist()
    assert played_in_cuts(RULES, STORY, one_by_one, set(), set()) == WHOLE


@any_cuts(STORY, 25)
def test_it_is_the_same_however_readings_are_cut_into_batches(
    cuts: list[int], restarts: set[int], discards: set[int]
) -> None:
    assert played_in_cuts(RULES, STORY, cuts, restarts, discards) == WHOLE
