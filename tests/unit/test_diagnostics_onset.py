"""Slugging that begins on a well that is known: the first drops are alarms, then one says it, and what is deeper or
longer than these still speaks."""

import zlib

import msgspec
import numpy as np
import pytest

from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.model import SIGNAL_ROW, DiagnosticRow, FloatArray, Severity
from tests.support.cuts import any_cuts, played_in_cuts
from tests.unit.test_diagnostics_habit import ALARMS, DAY, RULES, hours, load, readings, seen

QUIET = 8  # days


def begins(days: int = 3, drops_a_day: int = 8, quiet: int = QUIET, depth: float = 0.7) -> FloatArray:
    """A quiet well that begins to slug."""
    return np.concatenate([load(0, days=quiet), load(drops_a_day, days=days, depth=depth, seed=2)])


def alarms(rows: list[DiagnosticRow], since_day: float = QUIET) -> list[str]:
    return [row.diagnosis for row in rows if row.severity in ALARMS and hours(row) >= 24 * since_day]


def test_slugging_that_begins_is_said_once_after_its_first_drops() -> None:
    rows = seen(readings(begins()))
    found = alarms(rows)
    assert found.count("slugging_begun") == 1
    assert len(found) == 4, "three drops, and then that it has begun"
    (begun,) = [row for row in rows if row.diagnosis == "slugging_begun"]
    assert begun.severity is Severity.MEDIUM
    assert "4 drops in a row" in begun.message
    assert "down to 70 % and for some 24 min" in begun.message
    assert begun.cleared_us is not None, "with the eighth drop all has been said"
    (spell,) = [row for row in rows if row.diagnosis == "slugging_spell"]
    assert spell.severity is Severity.LOW
    assert spell.occurrences >= 18
    assert f"{spell.value:.0f} drops in a row so far" in spell.message
    assert "hunting" not in {row.diagnosis for row in rows}


def test_when_it_is_a_habit_the_standing_entry_takes_over() -> None:
    rows = seen(readings(begins(days=7)))
    (habit,) = [row for row in rows if row.diagnosis == "slugging"]
    assert 24 * (QUIET + 2) < hours(habit) < 24 * (QUIET + 4)
    (spell,) = [row for row in rows if row.diagnosis == "slugging_spell"]
    assert spell.cleared_us is not None
    assert len(alarms(rows)) == 4


def test_three_drops_are_three_alarms_and_the_next_one_a_day_later_is_another() -> None:
    share = begins()
    after = QUIET * DAY + DAY // 2  # in the middle between the fourth and the fifth drop
    share[after - 36 :] = load(0, days=3)[: share.shape[0] - after + 36]
    rows = seen(readings(share))
    assert "slugging_begun" not in {row.diagnosis for row in rows}
    assert alarms(rows) == ["underload"] * 3
    share[after + DAY : after + DAY + 6] = 0.7
    assert alarms(seen(readings(share))) == ["underload"] * 4


@pytest.mark.parametrize(("what", "depth", "samples"), [("deeper", 0.6, 6), ("longer", 0.7, 12), ("both", 0.6, 18)])
def test_a_drop_beyond_those_of_late_is_an_alarm(what: str, depth: float, samples: int) -> None:
    share = begins()
    onset = (QUIET + 1) * DAY + 40
    share[onset : onset + samples] = depth
    names = alarms(seen(readings(share)), QUIET + 1)
    assert set(names) & {"underload", "gas_lock"}, what


def test_a_drop_that_goes_on_into_a_stop_is_announced_and_ends_the_series() -> None:
    """What led to a stop is no example of what is harmless: the next drops are alarms again."""
    share = begins()
    onset = (QUIET + 1) * DAY + 33
    share[onset : onset + 20] = 0.7
    frequency = np.full(share.shape[0], 50.0)
    share[onset + 20 : onset + 40] = frequency[onset + 20 : onset + 40] = 0.0
    rows = seen(readings(share, frequency))
    stop = (onset + 20) / 12
    warned = [row for row in rows if row.diagnosis == "underload" and stop - 2 < hours(row) < stop]
    assert warned
    (trip,) = [row for row in rows if row.diagnosis == "trip"]
    assert trip.severity is Severity.HIGH
    after = [row for row in rows if row.diagnosis == "underload" and hours(row) > stop]
    assert len(after) == 3
    assert len([row for row in rows if row.diagnosis == "slugging_begun"]) == 2


@pytest.mark.parametrize("drops_a_day", [1, 2])
def test_drops_that_are_far_apart_are_no_series(drops_a_day: int) -> None:
    rows = seen(readings(begins(days=6, drops_a_day=drops_a_day)))
    assert alarms(rows).count("underload") == 6 * drops_a_day
    assert {row.diagnosis for row in rows}.isdisjoint({"slugging", "slugging_begun", "slugging_spell"})


def test_the_flow_falls_with_the_load() -> None:
    given = readings(begins())
    given.values[SIGNAL_ROW["flow_rate"]] = 900 * begins(depth=0.6)
    assert len(alarms(seen(given))) <= 6


STORY = readings(np.concatenate([begins(days=2, quiet=2), load(6, days=1, depth=0.6, seed=3), load(0, days=1)]))
WHOLE = played_in_cuts(RULES, STORY, [], set(), set())


@any_cuts(STORY)
def test_a_series_is_the_same_however_it_is_cut_into_batches(
    cuts: list[int], restarts: set[int], discards: set[int]
) -> None:
    assert {"slugging_begun", "slugging_spell", "underload"} <= {name for _, name, _ in WHOLE}
    assert played_in_cuts(RULES, STORY, cuts, restarts, discards) == WHOLE


def test_a_series_is_the_same_one_reading_at_a_time() -> None:
    assert played_in_cuts(RULES, STORY, list(range(2 * DAY, 3 * DAY + 150)), set(), set()) == WHOLE


def test_state_of_before_there_were_series_is_taken() -> None:
    """It has no series, and counted the drops of its days as wider numbers."""
    half = 6 * DAY
    story = readings(load(8, days=8))
    engine = Engine(RULES)
    engine.accept(engine.evaluate(story.select(np.arange(half))))
    state = msgspec.msgpack.decode(zlib.decompress(engine.export()["W"]))
    arrays = {name: part for name, part in state["arrays"].items() if "current_load" not in name}
    assert len(arrays) < len(state["arrays"])
    labels, _, data = arrays["own_drops"]
    arrays["own_drops"] = (labels, "<f8", np.frombuffer(data, "<f4").astype("<f8").tobytes())
    after = Engine(RULES)
    assert after.restore({"W": zlib.compress(msgspec.msgpack.encode({**state, "arrays": arrays}))}) == []
    found = {row.diagnosis for row in after.evaluate(story.select(np.arange(half, len(story)))).rows}
    assert found == {"slugging"}, "its habit is known"
