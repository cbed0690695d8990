"""The features of a batch: what it changes lies over what the state has, run by run."""

import numpy as np

from esp_ingest.diagnostics.engine.buckets import Runs
from esp_ingest.diagnostics.engine.features import Features, OnDemand
from esp_ingest.diagnostics.engine.well_state import Journal, WellArrays


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
