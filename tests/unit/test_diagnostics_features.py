"""The features of a batch: what it changes lies over what the state has, run by run."""

import subprocess
import sys

import numpy as np
import pytest

from esp_ingest.diagnostics.engine.baseline_plan import Lines
from esp_ingest.diagnostics.engine.buckets import Runs, median
from esp_ingest.diagnostics.engine.features import Features, OnDemand
from esp_ingest.diagnostics.engine.slow_trends import smoothed
from esp_ingest.diagnostics.engine.well_state import Journal, WellArrays
from esp_ingest.diagnostics.engine.windows import usual_interval


def state_of(wells: int) -> WellArrays:
    state = WellArrays()
    state.add("bucket", np.int64, 10)
    state.add("features", np.float64, np.nan, ["a", "b", "c"])
    for slot in [state.new_slot() for _ in range(wells)]:
        state["features"][:, slot] = [slot, 10 + slot, 20 + slot]
    return state


def runs_of(state: WellArrays, buckets: list[list[int]]) -> Runs:
    """A reading in each of ``buckets`` of each well. Bucket 10 was left open."""
    well = np.array([at for at, each in enumerate(buckets) for _ in each])
    bucket = np.concatenate([np.array(each) for each in buckets])
    return Runs(state, np.arange(len(buckets)), well, bucket, np.arange(well.shape[0]), well.shape[0])


def test_a_change_holds_up_to_the_next_one_of_the_same_well() -> None:
    state, journal = state_of(3), Journal()
    features = Features(state["features"], runs_of(state, [[10, 11, 12], [11, 12], [10]]))
    features.change([0, 1], np.array([4, 1]), np.array([[7.0, 5.0], [8.0, 6.0]]))
    features.close(2, np.array([1.0, 2.0, 3.0, 4.0]))
    expected = {0: [0, 5, 5, 1, 7, 2], 1: [10, 6, 6, 11, 8, 12], 2: [20, 1, 2, 3, 4, 22]}
    before = state["features"][:, :3].copy()
    features.commit(journal)
    for row, values in expected.items():
        assert [features.one(row, run) for run in range(6)] == values
        assert features.of(row).tolist() == values
    assert state["features"][:, :3].tolist() == [[5, 7, 2], [6, 8, 12], [2, 4, 22]]
    journal.undo()
    assert np.array_equal(state["features"][:, :3], before)


def test_with_one_run_a_well_what_stands_after_the_batch_is_read() -> None:
    state, journal = state_of(3), Journal()
    features = Features(state["features"], runs_of(state, [[11], [10], [12]]))
    features.change([0], np.array([2]), np.array([[7.0]]))
    features.close(1, np.array([5.0, 6.0]))
    expected = {0: [0, 1, 7], 1: [5, 11, 6], 2: [20, 21, 22]}
    for row, values in expected.items():
        assert features.of(row).tolist() == values
    assert features.at_closings(0).tolist() == [0, 7]
    features.commit(journal)
    for row, values in expected.items():
        assert features.of(row).tolist() == values
        assert [features.one(row, run) for run in range(3)] == values


def test_what_is_made_on_demand_is_kept_until_what_it_is_made_of_changes() -> None:
    state, journal = state_of(2), Journal()
    on_demand = OnDemand(state, [("spread", "pip", 3600), ("median", "vibration")], 3)
    made = []

    def make() -> np.ndarray:
        made.append(len(made))
        return np.full(2, 1.0 + len(made))

    both = slice(0, 2)
    assert on_demand.by_well(3, both, make, None).tolist() == [2, 2]  # without a journal it is not kept
    assert on_demand.by_well(3, both, make, journal).tolist() == [3, 3]
    assert on_demand.by_well(3, both, make, journal).tolist() == [3, 3]
    on_demand.forget(journal, slice(1, None), both)
    assert on_demand.by_well(3, both, make, journal).tolist() == [3, 3]
    on_demand.forget(journal, slice(0, 1), slice(1, 2))  # of one of the wells
    assert on_demand.by_well(3, both, make, journal).tolist() == [4, 4]
    journal.undo()
    assert on_demand.by_well(3, both, make, journal).tolist() == [5, 5]
    assert on_demand.key_of(4) == ("median", "vibration")


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_running_medians_of_several_pushes_are_those_of_each_ring_after_its_push(missing: float) -> None:
    random = np.random.default_rng(5)
    slots, count = np.array([1, 3, 4]), np.array([0, 50, 7])
    which = np.repeat([0, 1, 2], [1, 4, 101])
    ordinal = np.concatenate([np.arange(size) for size in (1, 4, 101)])
    # Few different values: also those that are alike have to be told apart.
    long = random.integers(0, 9, (2, 48, 5)).astype(np.float32)
    means = random.integers(0, 9, (2, which.shape[0])).astype(np.float64)
    for values in (long, means):
        values[random.random(values.shape) < missing] = np.nan
    lines = Lines(long, slots, count, which, ordinal, means)

    for place in (0, 1):
        before, after = lines.medians([place], 12)
        expected = []
        for at, slot in enumerate(slots):
            ring = long[place, :, slot].copy()
            assert median(ring, 12) == before[0, at]
            for nth, mean in enumerate(means[place, which == at]):
                ring[(count[at] + nth) % 48] = mean
                expected.append(median(ring, 12))
        np.testing.assert_array_equal(after[0], expected)


def test_the_usual_interval_is_the_median_of_what_is_known_of_at_least_three_buckets() -> None:
    random = np.random.default_rng(5)
    window = random.integers(1, 4, (12, 4_000)).astype(np.float64)
    window[:, random.random(4_000) < 0.5] = 2.0  # even, but for what follows
    window[random.random(window.shape) < random.random(4_000)] = np.nan
    window[:, 0], window[2, 0] = 300.0, 301.0
    known = (~np.isnan(window)).sum(axis=0)
    window[:, known == 0] = 1.0

    expected = np.where((known >= 3) | (known == 0), np.nanmedian(window, axis=0), np.nan)
    np.testing.assert_array_equal(usual_interval(list(window), np.asarray), expected)


def test_a_point_that_is_smoothed_is_the_middle_one_of_three_and_what_is_missing_is_the_greatest() -> None:
    values = np.array(np.meshgrid(*[[1.0, 2.0, 3.0, np.nan]] * 3)).reshape(3, -1).T[:, :, None]

    np.testing.assert_array_equal(smoothed(values)[:, 0], np.sort(values, axis=1)[:, 1])


def test_a_batch_loads_no_module() -> None:
    """A module that is loaded within a batch holds up all wells: numpy loads some of its own when it needs them."""
    program = """
import sys
from esp_ingest.demo.fleet import Fleet
from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.resources import config_file
engine, fleet = Engine(rules_file.load(config_file("rules.toml"))), Fleet(1, interval_seconds=300.0)
before = set(sys.modules)
for readings in fleet.run(8 * 288):  # days of running end, and the slow trends have points
    engine.accept(engine.evaluate(readings))
sys.stdout.write(" ".join(sorted(set(sys.modules) - before)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert (done.stdout, done.stderr) == ("", "")
