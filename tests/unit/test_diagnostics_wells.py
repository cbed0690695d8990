"""Any number of wells: what is held of them is bounded, silent ones give up their place, and the rest is told."""

import zlib
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
import pytest

from esp_ingest.demo.fleet import Fleet
from esp_ingest.diagnostics import service
from esp_ingest.diagnostics.dry_run import DryRun
from esp_ingest.diagnostics.engine.baseline import HOURS
from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.engine.well_state import WellArrays
from esp_ingest.diagnostics.inactive_rules import InactiveRules
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.diagnostics.limit_scopes import to_json
from esp_ingest.diagnostics.service import DiagnosticsService
from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.model import SIGNAL_ROW, SIGNALS, AlarmAction, Checkpoint, DiagnosticRow, Readings
from esp_ingest.resources import config_file
from esp_ingest.service.memory import resident_bytes
from esp_ingest.service.metrics import Metrics
from tests.evaluate.simulated import in_batches, rule_set
from tests.support.fake_clock import FakeClock
from tests.support.fake_daemon import value_of

HOUR = 3_600.0


class FakeDatabase:
    """Holds checkpoints; no readings and no alarms."""

    def __init__(self) -> None:
        self.kept: dict[str, Checkpoint] = {}
        self.open: list[tuple[str, str, str]] = []

    def states(self, wells: Sequence[str]) -> list[Checkpoint]:
        return [self.kept[well] for well in wells if well in self.kept]

    def wells_with_state(self, after: str, limit: int) -> list[str]:
        return [well for well in sorted(self.kept) if well > after][:limit]

    def readings_after(
        self, since_us: Mapping[str, int], limit: int, until_us: int | None = None
    ) -> Iterator[Readings]:
        return iter(())

    def open_rows(self, wells: Sequence[str]) -> list[DiagnosticRow]:
        return []

    def open_anywhere(self, limit: int) -> list[tuple[str, str, str]]:
        return self.open[:limit]

    def newest_action(self) -> int:
        return 0

    def actions_after(self, newest: int) -> list[AlarmAction]:
        return []

    def shelves(self, wells: Sequence[str]) -> list[AlarmAction]:
        return []

    def end_shelvings(self) -> None: ...

    def alarm_gauges(self) -> tuple[int, int, int]:
        return 0, 0, 0

    def record_limits(self, scopes: Mapping[str, str], rules: str) -> list[str]:
        return []

    def close(self) -> None: ...


class Daemon:
    def __init__(self, max_wells: int, database: FakeDatabase | None = None) -> None:
        self.clock, self.metrics, self.database = FakeClock(), Metrics(), database or FakeDatabase()
        self.service = DiagnosticsService(
            lambda: rules_file.load(config_file("rules.toml")),
            self.database,
            self.clock,
            self.metrics,
            max_wells=max_wells,
        )

    def send(self, *wells: str, stored: bool = True) -> None:
        """One reading of each, as a batch."""
        count = len(wells)
        now_us = np.full(count, self.clock.now_us(), np.int64)
        values = np.full((len(SIGNALS), count), 40.0)
        readings = Readings(list(wells), np.arange(count, dtype=np.int32), now_us, now_us, values)
        self.service.prepare(readings.wells)
        diagnosis = self.service.evaluate(readings)
        if stored:
            self.database.kept.update((each.well_id, each) for each in diagnosis.checkpoints)
            self.service.accept(diagnosis)
        else:
            self.service.discard(diagnosis)

    @property
    def wells(self) -> set[str]:
        return set(self.service.engine.wells())

    def count(self, name: str) -> float:
        return value_of(getattr(self.metrics, name))


def checkpoints_at_the_end(daemon: Daemon) -> set[str]:
    """Of which wells they are."""
    written: set[str] = set()
    for diagnosis in daemon.service.finish():
        written |= {each.well_id for each in diagnosis.checkpoints}
        daemon.service.accept(diagnosis)
    return written


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def test_a_trouble_that_took_long_to_find_out_is_told_once_and_then_readings_come_first() -> None:
    daemon = Daemon(10)
    works = daemon.database.states

    def silent(wells: Sequence[str]) -> list[Checkpoint]:
        daemon.clock.sleep(10)
        raise StoreUnavailable("the database does not answer")

    daemon.database.states = silent  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        daemon.send("W1")
    daemon.send("W1")  # it is not asked for again so soon
    daemon.clock.sleep(200)
    daemon.send("W1")
    assert daemon.service.trouble == "the database does not answer"
    assert daemon.wells == set()
    daemon.database.states = works  # type: ignore[method-assign]
    daemon.clock.sleep(200)
    daemon.service.maintain()
    assert daemon.service.trouble is None
    daemon.send("W1")
    assert daemon.wells == {"W1"}


def test_more_wells_than_there_is_room_for_are_told_and_not_held(caplog: pytest.LogCaptureFixture) -> None:
    daemon = Daemon(100)
    real = names("real", 60)
    daemon.send(*real)
    for number in range(20):
        daemon.send(*names(f"invented{number}-", 50), *real)
    assert len(daemon.wells) == 100
    assert daemon.wells.issuperset(real), "who was here and sends keeps its place"
    assert daemon.count("diagnostics_readings_unjudged") == 20 * 50 - 40
    assert daemon.count("diagnostics_wells") == 100
    told = [record for record in caplog.records if record.message == "diagnostics hold no more wells"]
    assert len(told) == 1
    assert daemon.service._dirty.keys() <= daemon.wells
    assert checkpoints_at_the_end(daemon) == daemon.wells


def test_silent_wells_give_up_their_place_and_come_back_from_their_checkpoint() -> None:
    daemon = Daemon(10)
    daemon.send(*names("old", 10))
    newest = {well: daemon.service.engine.newest_us(well) for well in daemon.wells}
    daemon.clock.sleep(1.5 * HOUR)
    daemon.send("old0", *names("new", 4))
    assert daemon.wells >= {"old0", *names("new", 4)}
    assert len(daemon.wells) == 10
    assert daemon.count("diagnostics_wells_evicted") == 4
    gone = set(newest) - daemon.wells
    assert daemon.database.kept.keys() >= gone, "their checkpoints went along with the batch"
    daemon.clock.sleep(1.5 * HOUR)
    back = sorted(gone)[0]
    daemon.service.prepare([back])
    assert daemon.service.engine.newest_us(back) == newest[back]


def test_a_batch_that_was_not_stored_keeps_the_checkpoints_of_those_who_went() -> None:
    daemon = Daemon(2)
    daemon.send("a", "b")
    daemon.clock.sleep(2 * HOUR)
    daemon.send("c", "d", stored=False)
    assert not daemon.database.kept
    daemon.send("c", "d")
    assert daemon.database.kept.keys() >= {"a", "b"}
    assert checkpoints_at_the_end(daemon) == {"c", "d"}, "those of a and b are written"


def test_a_restart_gathers_no_more_than_there_is_room_for() -> None:
    daemon = Daemon(1_000)
    daemon.send(*names("w", 300))
    for diagnosis in daemon.service.finish():
        daemon.database.kept.update((each.well_id, each) for each in diagnosis.checkpoints)
        daemon.service.accept(diagnosis)
    smaller = Daemon(120, daemon.database)
    for _ in range(10):
        smaller.clock.sleep(6)
        smaller.service.maintain()
    assert len(smaller.wells) == 120


def test_slots_are_used_again_and_empty() -> None:
    arrays = WellArrays(capacity=4)
    arrays.add("a", np.float64, np.nan)
    arrays.add("b", np.int64, -1, ["x", "y"])
    slots = [arrays.new_slot() for _ in range(1_000)]
    assert slots == list(range(1_000))
    arrays["a"][7], arrays["b"][:, 7] = 1.0, 2
    arrays.free_slot(7)
    assert arrays.new_slot() == 7
    assert np.isnan(arrays["a"][7])
    assert arrays["b"][:, 7].tolist() == [-1, -1]
    assert arrays.bytes_a_slot == 8 + 16


def test_room_for_more_wells_takes_no_memory_before_it_is_used() -> None:
    arrays = WellArrays()
    arrays.add("a", np.float64, np.nan, shape=(2_000,))
    before = resident_bytes()
    for _ in range(2_000):
        arrays.new_slot()
    assert arrays.capacity > 2_000 * 1.5
    assert arrays.bytes_a_slot == 16_000
    assert resident_bytes() - before < 2_000 * 16_000 * 1.3
    assert arrays["a"].shape[1] < arrays.capacity
    assert np.isnan(arrays["a"]).all()  # also of slots that are not in use: who reads all of them reads no room


def test_a_parameter_of_one_well_leaves_that_of_the_others_as_it_is() -> None:
    text = config_file("rules.toml").read_text(encoding="utf-8")
    engine = Engine(rules_file.parse(text + '\n[wells.B]\nrules.dead_head = { flow = "5 %" }\n'))
    slots = [engine._slot(well) for well in ("A", "B", "C")]
    settings = engine._settings
    assert settings.tables["parameters"][0][settings.arrays["profile"][slots]].tolist() == [0.1, 0.05, 0.1]


def test_a_longer_series_of_an_older_version_is_put_back_from_its_newest() -> None:
    older, newer = WellArrays(), WellArrays()
    older.add("days", np.float64, np.nan, ["x", "y"], (4,), newest_first=True)
    newer.add("days", np.float64, np.nan, ["y", "z", "x"], (3,), newest_first=True)
    newer.add("ring", np.float64, np.nan, ["x"], (3,))
    older.add("ring", np.float64, np.nan, ["x"], (4,))
    before, after = older.new_slot(), newer.new_slot()
    older["days"][:, :, before] = [[1, 2, 3, 4], [5, 6, 7, 8]]
    older["ring"][:, :, before] = [[1, 2, 3, 4]]
    newer.restore(after, older.export([before])[0])
    assert newer["days"][::2, :, after].tolist() == [[5, 6, 7], [1, 2, 3]]
    assert np.isnan(newer["days"][1, :, after]).all()
    assert np.isnan(newer["ring"][0, :, after]).all()


def test_a_shorter_series_of_an_older_version_is_the_newest_part() -> None:
    older, newer = WellArrays(), WellArrays()
    older.add("days", np.float64, np.nan, ["x"], (2,), newest_first=True)
    newer.add("days", np.float64, np.nan, ["x"], (3,), newest_first=True)
    before, after = older.new_slot(), newer.new_slot()
    older["days"][:, :, before] = [[1, 2]]
    newer.restore(after, older.export([before])[0])
    assert newer["days"][0, :2, after].tolist() == [1, 2]
    assert np.isnan(newer["days"][0, 2, after])


def test_what_can_be_made_again_is_in_no_checkpoint() -> None:
    arrays = WellArrays()
    arrays.add("ring", np.float64, np.nan, ["x"])
    arrays.add("made_of_it", np.float64, np.nan, ["x"], is_cache=True)
    slot = arrays.new_slot()
    arrays["ring"][:, slot], arrays["made_of_it"][:, slot] = 1.0, 2.0
    assert set(arrays.export([slot])[0]) == {"ring"}
    arrays.free_slot(slot)
    assert np.isnan(arrays["made_of_it"][:, slot]).all()


def test_a_checkpoint_leaves_out_what_is_new_and_is_read_as_that_of_an_older_version_with_everything_in_it() -> None:
    dry_run = DryRun(rule_set())
    for readings in in_batches(Fleet(5, 3, 300.0).run(400), rows=1_000):
        dry_run.feed(readings)
    engine, state = dry_run.engine, dry_run.engine._state
    exported = engine.export()
    assert len(exported) == 5
    for well, data in exported.items():
        found = msgspec.msgpack.decode(zlib.decompress(data))
        slot = engine._slots[well]
        everything = {
            name: [spec.labels, np.dtype(spec.dtype).str, np.ascontiguousarray(state[name][..., slot]).tobytes()]
            for name, spec in state._specs.items()
        }
        assert 0 < len(found["arrays"]) < len(everything)
        older = zlib.compress(msgspec.msgpack.encode(found | {"arrays": everything}))
        restored = []
        for form in (data, older):
            again = Engine(rule_set())
            assert again.restore({well: form}) == []
            assert again.export() == {well: data}
            restored.append(again._state)
        for name in state._specs:
            for each in restored:
                np.testing.assert_array_equal(each[name][..., 0], state[name][..., slot], err_msg=name)


def test_wells_in_the_same_case_are_told_the_same_of_their_rules_and_others_are_not() -> None:
    engine = Engine(rule_set())
    inactive = InactiveRules(engine)
    times = np.full(3, 1_767_225_600_000_000)

    def send(wells: list[str], *signals: str) -> None:
        values = np.full((len(SIGNALS), len(wells)), np.nan)
        values[[SIGNAL_ROW[signal] for signal in signals]] = 50.0
        at = times[: len(wells)]
        index = np.arange(len(wells), dtype=np.int32)
        engine.accept(engine.evaluate(Readings(wells, index, at, at, values, {}, {})))
        times[:] += 60_000_000

    send(["a", "b"], "pip", "motor_current", "flow_rate", "vibration")
    send(["c"], "pip")
    told = {well: inactive.as_json(well) for well in "abc"}
    assert told["a"] == told["b"] != told["c"]
    assert len(inactive._texts) == 2
    send(["c"], "motor_current", "flow_rate", "vibration")
    assert inactive.as_json("c") == told["a"]
    hours = engine._state["features"][engine._baselines.row[HOURS]]
    hours[engine._slots["b"]] = 7.0
    for well in "abc":
        assert inactive.as_json(well) == to_json(inactive.of(well))
    assert "the baseline needs" in told["a"]
    assert "the baseline needs" not in inactive.as_json("b")
    engine._steps[0].failed = "ValueError: no"
    assert "failed at run time" in inactive.as_json("b")
    assert inactive.as_json("nobody") == "{}"


def test_evicting_is_bounded_work() -> None:
    daemon = Daemon(1_000)
    daemon.send(*names("w", 1_000))
    daemon.clock.sleep(2 * HOUR)
    daemon.send(*names("n", 900))
    assert daemon.count("diagnostics_wells_evicted") == service.EVICTED_AT_ONCE
    assert len(daemon.wells) == 1_000


def test_the_gauge_counts_what_is_open_at_wells_that_have_not_sent_since_the_start() -> None:
    """Killed before their first checkpoint, and silent since: the table alone knows of them."""
    daemon = Daemon(10)
    daemon.database.open = [("silent", "underload", "high"), ("also", "underload", "high"), ("w", "trip", "info")]

    def shown(diagnosis: str, severity: str) -> float:
        gauge = daemon.metrics.diagnostics_active.labels(diagnosis=diagnosis, severity=severity)
        return value_of(gauge)

    daemon.clock.sleep(6)
    daemon.service.maintain()
    assert (shown("underload", "high"), shown("trip", "info")) == (2, 1)
    daemon.send("w")  # is restored, and the engine counts what it finds open there
    daemon.database.open.pop()
    assert (shown("underload", "high"), shown("trip", "info")) == (2, 0)
    daemon.database.open.clear()
    daemon.clock.sleep(66)
    daemon.service.maintain()
    assert shown("underload", "high") == 0
    daemon.database.open.append(("silent", "underload", "high"))
    daemon.clock.sleep(66)
    daemon.service.maintain()
    assert shown("underload", "high") == 0, "nothing is open elsewhere: the table is not asked again"


def test_wells_with_the_same_settings_share_them_and_a_place_given_up_is_not_shelved() -> None:
    text = config_file("rules.toml").read_text(encoding="utf-8")
    other = '\n[groups.other]\nwells = ["B", "E"]\nlimits.motor_current = "52 A"\n'
    other += 'rules.underload = { on_delay = "2 min" }\n'
    engine = Engine(rules_file.parse(text + other))
    slots = [engine._slot(well) for well in ("A", "B", "C")]
    settings = engine._settings
    profiles = settings.arrays["profile"][slots].tolist()
    assert profiles[0] == profiles[2] != profiles[1]
    assert settings.tables.count == 2
    assert settings.arrays["profile"][engine._slot("E")] == profiles[1]
    assert settings.tables.count == 3  # the third was made, found to be the second, and given back
    step = next(step for step in engine._steps if step.name == "underload")
    assert settings.of("on_us", step, slots).tolist() == [600_000_000, 120_000_000, 600_000_000]
    engine.shelve("C", "underload", 5)
    engine.forget(["C"])
    assert engine._slot("D") == slots[2]
    assert not any(settings.shelved_us)


def test_a_well_that_was_forgotten_and_comes_again_has_a_slot_of_its_own() -> None:
    engine, fleet = Engine(rule_set()), Fleet(2)
    first, second = fleet.step(), fleet.step()
    engine.accept(engine.evaluate(first))
    engine.forget(first.wells[:1])
    other = Fleet(1, prefix="other-").step()
    engine.accept(engine.evaluate(second))
    engine.accept(engine.evaluate(other))

    assert sorted(engine.wells()) == sorted([*first.wells, *other.wells])
    assert engine.newest_us(first.wells[0]) == second.timestamp_us[0]
    assert engine.newest_us(other.wells[0]) == other.timestamp_us[0]
