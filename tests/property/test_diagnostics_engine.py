"""What the rules raise is a function of each well's readings, not of how they arrive in batches."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.language import rules, rules_file
from esp_ingest.model import SIGNAL_ROW, SIGNALS, DiagnosticRow, Readings
from esp_ingest.resources import config_file

START_US = 1_700_000_000_000_000
RULES = rules_file.load(config_file("rules.toml"))
# One group of wells with limits, so that limits and overrides take part.
LIMITED = rules_file.parse(
    config_file("rules.toml").read_text(encoding="utf-8")
    + """
[groups.limited]
wells = ["W-1", "W-3"]
limits.motor_current = "52 A"
limits.motor_temp = "240 °F"
limits.gor = "500 scf/bbl"
limits.pip_low = "250 psi"
limits.pump_hz = "50 Hz"
limits.pump_flow_low = "700 bbl/d"
limits.pump_flow_high = "1100 bbl/d"
limits.pump_lift_at_flow_low = "1500 psi"
limits.pump_lift_at_flow_high = "1200 psi"
limits.bubble_point = "330 psi"
limits.reservoir_pressure = "1200 psi"
limits.drawdown = "880 psi"
rules.underload = { load = "85 %", on_delay = "2 min" }
rules.trip = { severity = "low" }
"""
)
Table = dict[tuple[str, str, int], DiagnosticRow]


@dataclass
class Story:
    """A well's readings with everything in it: faults, stops, gaps, broken gauges, late and doubled readings."""

    t: np.ndarray
    values: np.ndarray
    quality: dict[int, str]


def story(seed: int, count: int, step_seconds: float) -> Story:
    rng = np.random.default_rng(seed)
    t = START_US + (np.arange(count) * step_seconds * 1e6).astype(np.int64)
    t += np.cumsum(rng.random(count) < 0.004) * int(rng.integers(2, 60)) * 60_000_000  # gaps
    normal = {
        "flow_rate": 900, "pip": 400, "motor_current": 45, "motor_temp": 220, "vibration": 0.1,
        "vsd_frequency": 50, "gor": 300, "discharge_pressure": 1800, "intake_temp": 180, "leakage_current": 2,
    }  # fmt: skip
    values = np.full((len(SIGNALS), count), np.nan)
    for name, mean in normal.items():
        values[SIGNAL_ROW[name]] = np.round(mean * (1 + 0.004 * rng.standard_normal(count)), 3)
    for _ in range(int(rng.integers(3, 16))):
        _fault(rng, values, count)
    quality: dict[int, str] = {}
    for row in np.flatnonzero(rng.random(count) < 0.01):
        if rng.random() < 0.5:
            quality[int(row)] = json.dumps({"motor_temp": 6200})
            values[SIGNAL_ROW["motor_temp"], row] = np.nan
        else:
            values[rng.integers(0, len(SIGNALS)), row] = np.nan
    for _ in range(int(rng.integers(0, 8))):  # late and doubled
        a, b = rng.integers(0, count, 2)
        t[a] = t[b]
    return Story(t, values, quality)


def _fault(rng: np.random.Generator, values: np.ndarray, count: int) -> None:
    row = SIGNAL_ROW
    start = int(rng.integers(0, count))
    length = int(rng.integers(1, max(2, count // 4)))
    part = slice(start, start + length)
    kind = int(rng.integers(0, 16))
    if kind == 0:  # stops, one or several, the first of some ramped down
        if rng.random() < 0.5:
            values[row["vsd_frequency"], max(0, start - 1)] *= 0.6
            values[row["motor_current"], max(0, start - 1)] *= 0.36
        for begin in range(start, start + 2 * length * int(rng.integers(1, 5)), 2 * length):
            values[[row["motor_current"], row["vsd_frequency"], row["flow_rate"]], begin : begin + length] = 0
    elif kind == 1:  # underload, or a loss of flow
        values[row["motor_current"], part] *= rng.uniform(0.5, 0.85)
        if rng.random() < 0.5:
            values[row["flow_rate"], part] *= 0.3
            warmer = values[row["intake_temp"], part]
            warmer += np.minimum(np.arange(warmer.shape[0]) * 4.0, 60)
    elif kind == 2:  # gas lock
        values[row["motor_current"], part] *= 0.6
        values[row["flow_rate"], part] *= 0.2
        values[row["pip"], part] *= 1.1
    elif kind == 3:  # overload, hot
        values[row["motor_current"], part] *= rng.uniform(1.1, 1.7)
        values[row["motor_temp"], part] += rng.uniform(10, 90)
    elif kind == 4:  # dropout
        values[[row["pip"], row["discharge_pressure"], row["intake_temp"], row["motor_temp"]], start : start + 2] = 0
    elif kind == 5:  # vibration
        values[row["vibration"], part] = rng.uniform(0.3, 1.0)
    elif kind == 6:  # frozen
        values[row["pip"], part] = values[row["pip"], start]
    elif kind == 7:  # hunting
        stretch = values[row["motor_current"], part]
        stretch *= 1 + 0.2 * rng.standard_normal(stretch.shape[0])
    elif kind == 8:  # leak
        values[row["flow_rate"], part] *= 0.6
        values[row["pip"], part] *= 1.2
    elif kind == 9:  # pressure order
        values[row["discharge_pressure"], part] = 100
    elif kind == 10:  # another frequency
        values[row["vsd_frequency"], part] += 3
        values[row["motor_current"], part] *= (53 / 50) ** 2
    elif kind == 11:  # pump-off
        fall = np.linspace(1, 0.3, length)[: values[row["pip"], part].shape[0]]
        values[row["pip"], part] *= fall
        values[row["flow_rate"], part] *= 1 - 0.5 * (1 - fall)
        values[row["motor_current"], part] *= 0.78
    elif kind == 12:  # solids, leakage
        values[row["motor_current"], part] *= 1.2
        values[row["vibration"], part] *= 1.5
        values[row["leakage_current"], part] *= 1.7
    elif kind == 13:  # dead head
        values[row["flow_rate"], part] = 20
        values[row["motor_current"], part] *= 0.8
        values[[row["pip"], row["discharge_pressure"]], part] *= 1.1
    elif kind == 14:  # broken shaft
        values[row["flow_rate"], part] = 0
        values[row["motor_current"], part] *= 0.45
        values[row["pip"], part] *= 1.2
    else:  # gas, and a narrow intake
        values[row["gor"], part] *= 2.2
        values[row["flow_rate"], part] *= 0.75
        values[row["motor_current"], part] *= 0.9


def merged(stories: Sequence[Story], order: np.random.Generator | None) -> Readings:
    """All wells in one stream: each well's readings in its own order, wells interleaved evenly or at random."""
    wells = [f"W-{at}" for at in range(len(stories))]
    which = np.concatenate([np.full(len(s.t), at) for at, s in enumerate(stories)])
    position = np.concatenate([np.arange(len(s.t)) for s in stories])
    order_of_wells = np.lexsort((which, position)) if order is None else np.arange(len(which))
    if order is not None:
        shuffled = order.permutation(which)
        place = np.empty(len(which), np.intp)
        for at in range(len(stories)):
            place[which == at] = np.flatnonzero(shuffled == at)
        order_of_wells = np.argsort(place)
    offsets = np.cumsum([0, *[len(s.t) for s in stories]])
    source = (offsets[which] + position)[order_of_wells]
    back = {int(row): at for at, row in enumerate(source)}
    t = np.concatenate([s.t for s in stories])[source]
    return Readings(
        wells=wells,
        well_index=which[order_of_wells].astype(np.int32),
        timestamp_us=t,
        received_us=t + 500_000,
        values=np.concatenate([s.values for s in stories], axis=1)[:, source],
        quality={back[int(offsets[at]) + row]: text for at, s in enumerate(stories) for row, text in s.quality.items()},
    )


def written(table: Table, rows: Sequence[DiagnosticRow]) -> None:
    for row in rows:
        table[row.well_id, row.diagnosis, row.raised_us] = row


def batches(readings: Readings, cuts: Sequence[int]) -> Iterator[Readings]:
    edges = [0, *sorted({cut % max(1, len(readings)) for cut in cuts}), len(readings)]
    for a, b in itertools.pairwise(edges):
        yield readings.select(np.arange(a, b))


def whole(readings: Readings, rule_set: rules.RuleSet) -> Table:
    engine, table = Engine(rule_set), Table()
    evaluation = engine.evaluate(readings)
    engine.accept(evaluation)
    written(table, evaluation.rows)
    assert not engine.failed_rules()
    return table


SHAPES = st.sampled_from(
    [(1, 400, 300.0), (3, 300, 300.0), (2, 1500, 10.0), (2, 700, 60.0), (4, 150, 600.0), (9, 80, 300)]
)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=SHAPES,
    cuts=st.lists(st.integers(0, 10_000), max_size=30),
    restarts=st.sets(st.integers(0, 30), max_size=4),
    discards=st.sets(st.integers(0, 30), max_size=6),
    replays=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10_000), st.integers(1, 300)), max_size=3),
    limited=st.booleans(),
)
def test_any_way_of_cutting_gives_the_same_rows(
    seed: int,
    shape: tuple[int, int, float],
    cuts: list[int],
    restarts: set[int],
    discards: set[int],
    replays: list[tuple[int, int, int]],
    limited: bool,
) -> None:
    wells, count, step = shape
    stories = [story(seed + at, count, step) for at in range(wells)]
    rule_set = LIMITED if limited else RULES
    expected = whole(merged(stories, None), rule_set)
    readings = merged(stories, np.random.default_rng(seed))
    engine, table = Engine(rule_set), Table()
    for number, batch in enumerate(batches(readings, cuts)):
        if number in restarts:
            state = engine.export()
            engine = Engine(rule_set)
            assert engine.restore(state) == []
        if number in discards:
            engine.discard(engine.evaluate(batch))
        evaluation = engine.evaluate(batch)
        engine.accept(evaluation)
        written(table, evaluation.rows)
        for at, begin, size in replays:
            if at == number:
                _replay(engine, readings, begin, size, batch)
    assert table == expected


def _replay(engine: Engine, readings: Readings, begin: int, size: int, batch: Readings) -> None:
    """What was processed already comes again: nothing happens."""
    done = int(np.flatnonzero(readings.timestamp_us == batch.timestamp_us[-1])[-1]) if len(batch) else 0
    again = np.arange(min(begin % (done + 1), done), done)[:size]
    again = again[np.isin(readings.well_index[again], batch.well_index)]
    seen = {well: batch.timestamp_us[batch.well_index == well].max() for well in set(batch.well_index.tolist())}
    again = np.array(
        [row for row in again if readings.timestamp_us[row] <= seen[int(readings.well_index[row])]], np.intp
    )
    evaluation = engine.evaluate(readings.select(again))
    assert evaluation.rows == []
    assert evaluation.late == len(again)
    engine.accept(evaluation)


def test_the_stories_raise_most_rules() -> None:
    """The property above says nothing about rules that never fire in it."""
    seen = set()
    for seed in range(12):
        for count, step in ((400, 300.0), (1500, 10.0)):
            seen |= {
                key[1] for key in whole(merged([story(seed * 7 + at, count, step) for at in range(4)], None), LIMITED)
            }
    missing = {rule.name for rule in LIMITED.rules} - seen
    # These need a signal that no story sends, a clock that is off, a load that does not follow the speed, more flow,
    # more wells (test_diagnostics_common_stops.py), or days and weeks of data (test_diagnostics_habit.py, …_slow.py).
    assert missing <= {
        "current_imbalance", "clock_skew", "blocked_intake", "slugging", "slugging_worse", "frequency_tag", "upthrust",
        "slugging_begun", "slugging_spell",
        "common_stop", "new_habit", "pump_wear", "scale_or_sand", "inflow_decline", "insulation_decline", "gauge_drift",
    }  # fmt: skip


@pytest.mark.parametrize("step", [1.0, 300.0])
def test_one_reading_at_a_time_is_the_same_as_all_at_once(step: float) -> None:
    readings = merged([story(5, 250, step), story(6, 250, step)], None)
    engine, table = Engine(LIMITED), Table()
    for row in range(len(readings)):
        evaluation = engine.evaluate(readings.select(np.array([row])))
        engine.accept(evaluation)
        written(table, evaluation.rows)
    assert table == whole(readings, LIMITED)
