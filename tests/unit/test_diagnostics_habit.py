"""A well that slugs by habit: one standing entry, and alarms only for what it does not do every day."""

import numpy as np
import pytest

from esp_ingest.diagnostics.dry_run import DryRun
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.model import SIGNAL_ROW, SIGNALS, DiagnosticRow, FloatArray, Readings, Severity
from esp_ingest.resources import config_file
from tests.support.cuts import any_cuts, played_in_cuts

MINUTE = 60_000_000
START = 1_700_006_400_000_000
DAY = 288  # samples of 5 minutes
DAYS = 8
RULES = rules_file.load(config_file("rules.toml"))
ALARMS = (Severity.CRITICAL, Severity.HIGH, Severity.MEDIUM)


def load(drops_a_day: int, days: int = DAYS, depth: float = 0.7, samples: int = 6, seed: int = 1) -> FloatArray:
    """Motor current as a share of its normal, a sample each 5 minutes: so many drops a day, at even distances."""
    share = 1 + 0.005 * np.random.default_rng(seed).standard_normal(days * DAY)
    if drops_a_day:
        every = DAY // drops_a_day
        low = np.arange(days * DAY) % every >= every - samples
        share[low] *= depth
    return share


def readings(share: FloatArray, frequency: FloatArray | float = 50.0) -> Readings:
    count = share.shape[0]
    t = START + np.arange(count) * 5 * MINUTE
    values = np.full((len(SIGNALS), count), np.nan)
    noise = 1 + 0.002 * np.random.default_rng(7).standard_normal((4, count))
    values[SIGNAL_ROW["motor_current"]] = 45 * share
    values[SIGNAL_ROW["vsd_frequency"]] = frequency
    for at, (name, normal) in enumerate({"pip": 400, "discharge_pressure": 1_800, "motor_temp": 220}.items()):
        values[SIGNAL_ROW[name]] = normal * noise[at]
    values[SIGNAL_ROW["intake_temp"]] = 180
    return Readings(["W"], np.zeros(count, np.int32), t, t + 1_000_000, values)


def seen(given: Readings) -> list[DiagnosticRow]:
    dry_run = DryRun(RULES)
    dry_run.feed(given)
    assert not dry_run.engine.failed_rules()
    return dry_run.seen()


def hours(row: DiagnosticRow) -> float:
    return (row.raised_us - START) / 3.6e9


def alarms_after(rows: list[DiagnosticRow], day: float) -> list[tuple[str, float]]:
    return [(row.diagnosis, hours(row)) for row in rows if row.severity in ALARMS and hours(row) >= 24 * day]


def test_a_habit_is_one_standing_entry_and_no_alarm() -> None:
    rows = seen(readings(load(8)))
    (entry,) = [row for row in rows if row.diagnosis == "slugging"]
    assert entry.severity is Severity.LOW
    assert entry.cleared_us is None
    assert entry.occurrences >= 4 * 8
    assert "8 drops a day" in entry.message
    assert "too early to compare with the week before" in entry.message
    assert alarms_after(rows, 1.1) == []
    assert [row for row in rows if row.diagnosis == "underload"], "until it is known, it is an underload"


def uneven(days: int, seed: int) -> FloatArray:
    """Nine drops a day at uneven distances, of 20 to 30 minutes, to 65 to 79 %; a sample each 5 minutes."""
    random = np.random.default_rng(seed)
    share = 1 + 0.008 * random.standard_normal(days * DAY)
    at = 0
    while (at := at + int(random.integers(14, 50))) < days * DAY:
        share[at : at + int(random.integers(4, 7))] *= random.uniform(0.65, 0.79)
    return share


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_short_drops_of_uneven_depth_are_within_the_habit(seed: int) -> None:
    """The mean over half an hour took in the load beside a drop of 20 minutes: the next one looked deeper."""
    rows = seen(readings(uneven(15, seed)))
    assert len(alarms_after(rows, 5)) <= 4


def test_the_flow_of_a_well_that_slugs_falls_with_its_load() -> None:
    """A flow meter had each drop called low flow."""
    given = readings(load(8))
    flow = given.values[SIGNAL_ROW["flow_rate"]]
    flow[:] = 900 * load(8, depth=0.6)
    rows = seen(given)
    assert alarms_after(rows, 1.1) == []
    assert "back_pressure" not in {row.diagnosis for row in rows}
    flow[7 * DAY + 40 :] = 500.0  # with the load as ever
    assert "low_flow" in {name for name, _ in alarms_after(seen(given), 7)}


@pytest.mark.parametrize("every", [2, 3, 6, 12])
def test_a_habit_is_known_at_slower_samples(every: int) -> None:
    """Samples of 10 minutes to an hour: there may be no other than the newest in 15 minutes."""
    given = readings(load(8, samples=12))
    rows = seen(given.select(np.arange(0, len(given), every)))
    assert [row.diagnosis for row in rows if row.severity is Severity.LOW] == ["slugging"]
    assert alarms_after(rows, 2.1) == []


def test_the_entry_says_how_this_week_stands_to_the_one_before() -> None:
    rows = seen(readings(np.concatenate([load(4, days=8), load(6, days=9, seed=2)])))
    (entry,) = [row for row in rows if row.diagnosis == "slugging"]
    assert "150 % of those of the week before" in entry.message
    assert "slugging_worse" not in {row.diagnosis for row in rows}


def test_getting_worse_week_by_week_is_an_alarm() -> None:
    rows = seen(readings(np.concatenate([load(4, days=8), load(12, days=9, seed=2)])))
    (worse,) = [row for row in rows if row.diagnosis == "slugging_worse"]
    assert worse.severity is Severity.MEDIUM
    assert hours(worse) >= 14 * 24


def test_getting_worse_by_a_third_each_week_is_an_alarm_and_a_steady_habit_is_none() -> None:
    """No week had twice the drops of the one before."""
    worse = seen(readings(np.concatenate([load(drops, days=7, seed=drops) for drops in (4, 6, 8, 10)] + [load(10, 2)])))
    assert [27 < hours(row) / 24 < 30 for row in worse if row.diagnosis == "slugging_worse"] == [True]
    steady = seen(readings(load(8, days=30)))
    assert "slugging_worse" not in {row.diagnosis for row in steady}


@pytest.mark.parametrize(
    ("what", "depth", "samples"), [("deeper than ever", 0.55, 6), ("longer than ever", 0.7, 15), ("both", 0.6, 18)]
)
def test_what_is_beyond_the_habit_is_an_alarm(what: str, depth: float, samples: int) -> None:
    share = load(8)
    onset = 7 * DAY + 40
    share[onset : onset + samples] = depth
    rows = [row for row in seen(readings(share)) if row.diagnosis in ("underload", "gas_lock") and hours(row) > 6 * 24]
    assert len(rows) >= 1, what
    delay = hours(rows[0]) - onset / 12
    assert delay <= (0.25 if depth < 0.65 else 1.1)


def test_a_stop_after_a_load_that_is_lost_for_good_is_announced() -> None:
    share = load(8)
    onset = 7 * DAY + 40
    share[onset:] = 0.68
    frequency = np.full(share.shape[0], 50.0)
    share[onset + 24 :] = frequency[onset + 24 :] = 0.0
    rows = seen(readings(share, frequency))
    (trip,) = [row for row in rows if row.diagnosis == "trip"]
    assert trip.severity is Severity.HIGH


@pytest.mark.parametrize("drops_a_day", [0, 1, 2])
def test_a_drop_now_and_then_is_no_habit(drops_a_day: int) -> None:
    rows = seen(readings(load(drops_a_day)))
    assert "slugging" not in {row.diagnosis for row in rows}
    underloads = [row for row in rows if row.diagnosis == "underload" and hours(row) >= 24]
    assert len(underloads) == drops_a_day * (DAYS - 1)


def test_one_bad_day_does_not_become_a_habit() -> None:
    share = load(0)
    share[3 * DAY : 4 * DAY] = load(10, days=1)
    share[6 * DAY + 30 : 6 * DAY + 36] = 0.7
    rows = seen(readings(share))
    assert "slugging" not in {row.diagnosis for row in rows}
    assert [row for row in rows if row.diagnosis == "underload" and hours(row) > 6 * 24]


def test_current_that_hunts_by_habit_is_not_called_gas_every_hour() -> None:
    at = np.arange(DAYS * DAY)
    share = 1 + 0.16 * np.sin(at * 2 * np.pi / 4.4)
    rows = seen(readings(share))
    gas = [row for row in rows if row.diagnosis == "gas_interference"]
    assert gas, "on the first day there is no habit yet"
    assert all(row.cleared_us is not None and (row.cleared_us - START) / 3.6e9 < 48 for row in gas)
    share[7 * DAY :] = 1 + 0.26 * np.sin(at[7 * DAY :] * 2 * np.pi / 4.4)
    louder = [row for row in seen(readings(share)) if row.diagnosis == "gas_interference"]
    assert hours(louder[-1]) >= 7 * 24


def test_what_has_become_usual_is_said_and_not_forgotten() -> None:
    """From the third day on hunting is the habit: the alarm is over, and an entry stands."""
    at = np.arange(DAYS * DAY)
    rows = seen(readings(np.where(at > 2 * DAY, 1 + 0.16 * np.sin(at * 2 * np.pi / 4.4), load(0))))
    (entry,) = [row for row in rows if row.diagnosis == "hunting"]
    assert (entry.severity, entry.cleared_us) == (Severity.LOW, None)
    (gas,) = [row for row in rows if row.diagnosis == "gas_interference"]
    assert gas.cleared_us is not None
    assert entry.raised_us <= gas.cleared_us
    assert "hunting" not in {row.diagnosis for row in seen(readings(load(8)))}, "that is slugging"


STORY = readings(np.concatenate([load(5, days=4), load(7, days=4, depth=0.62, seed=3)]))


WHOLE = played_in_cuts(RULES, STORY, [], set(), set())


@any_cuts(STORY)
def test_a_habit_is_the_same_however_its_days_are_cut_into_batches(
    cuts: list[int], restarts: set[int], discards: set[int]
) -> None:
    assert "slugging" in {name for _, name, _ in WHOLE}
    assert len(WHOLE) > 5
    assert played_in_cuts(RULES, STORY, cuts, restarts, discards) == WHOLE


def test_a_habit_is_the_same_one_reading_at_a_time() -> None:
    """Over the end of the fourth day, where its days are counted."""
    cuts = list(range(4 * DAY - 60, 4 * DAY + 60))
    assert played_in_cuts(RULES, STORY, cuts, set(), set()) == WHOLE
