"""The simulated fleet: believable when healthy, right when something fails, the same for the same seed."""

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from esp_ingest.config.settings import ConfigError, Settings, TelemetrySettings
from esp_ingest.demo.fleet import DEFAULT_START_US, Fault, FaultName, Fleet
from esp_ingest.demo.simulator import (
    CONTROLLER_SIGNALS,
    Message,
    SimulatorError,
    Totals,
    Trouble,
    assign_faults,
    fleet_messages,
    recorded_messages,
    run_simulate,
    spoil,
)
from esp_ingest.model import SIGNAL_NAMES, SIGNALS, Decoded, Delivery, FloatArray, Readings
from esp_ingest.telemetry import csv_recording as replay
from esp_ingest.telemetry.decode import Decoder
from tests.support.databases import free_port
from tests.support.fake_clock import FakeClock

RANGES = {
    "flow_rate": (800, 1_200),
    "pip": (1_800, 2_200),
    "motor_current": (45, 55),
    "motor_temp": (180, 220),
    "vibration": (0.1, 0.5),
    "vsd_frequency": (58, 62),
    "gor": (200, 400),
}
HOUR = 3_600.0


def joined(fleet: Fleet, samples: int) -> Readings:
    blocks = list(fleet.run(samples))
    values = np.concatenate([block.values for block in blocks], axis=1)
    index, stamps = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("well_index", "timestamp_us"))
    return Readings(blocks[0].wells, index, stamps, stamps, values)


def signals(readings: Readings) -> dict[str, FloatArray]:
    return dict(zip(SIGNAL_NAMES, readings.values, strict=True))


# --- Healthy


def test_a_healthy_year_stays_in_its_ranges() -> None:
    readings = joined(Fleet(20, seed=11, interval_seconds=1_800), 365 * 48)
    assert len(readings) == 20 * 365 * 48
    for name, values in signals(readings).items():
        low, high = RANGES.get(name, next((s.low, s.high) for s in SIGNALS if s.name == name))
        assert low <= values.min(), name
        assert values.max() <= high, name
    vibration = signals(readings)["vibration"]
    assert np.mean((vibration > 0.1) & (vibration < 0.3)) > 0.99


def test_signals_move_together() -> None:
    readings = joined(Fleet(1, seed=3, interval_seconds=300), 20_000)
    by = {name: values - values.mean() for name, values in signals(readings).items()}

    def correlation(one: str, other: str) -> float:
        return float((by[one] * by[other]).mean() / (by[one].std() * by[other].std()))

    assert correlation("vsd_frequency", "motor_current") > 0.3
    assert correlation("motor_current", "motor_temp") > 0.2
    steady = by["vsd_frequency"][:-1] * by["vsd_frequency"][1:]
    assert steady.mean() / by["vsd_frequency"].var() > 0.4  # autocorrelated, not white


def test_affinity_laws() -> None:
    """Frequency changed by a factor r: current goes with r² at the same operating point, head with r²."""
    fleet = Fleet(1, seed=3, interval_seconds=60)
    slow, fast = (
        fleet._physics(np.arange(500.0), fleet._conditions(np.arange(500.0))[0].__class__(*_healthy(500, speed)))
        for speed in (0.9, 1.0)
    )
    ratio = {name: slow[row].mean() / fast[row].mean() for row, name in enumerate(SIGNAL_NAMES)}
    assert ratio["vsd_frequency"] == pytest.approx(0.9, abs=0.005)
    assert ratio["motor_current"] == pytest.approx(0.81, abs=0.04)
    assert 0.80 < ratio["flow_rate"] < 0.92
    assert ratio["pip"] > 1.02  # less drawn, so the intake pressure is higher


def _healthy(samples: int, speed: float) -> Iterator[FloatArray]:
    for name in ("head", "load", "valve", "leak", "inflow", "rate", "heat", "shake", "speed", "gas"):
        level = speed if name == "speed" else 0.0 if name in ("leak", "heat", "shake") else 1.0
        yield np.full((samples, 1), level)


def test_the_same_seed_gives_the_same_readings_however_asked_for() -> None:
    faults = [Fault(FaultName.GAS_LOCK, 1, 100), Fault(FaultName.STALE, 2, 50, 30)]
    whole = joined(Fleet(3, 5, 1.0, faults), 700)
    fleet = Fleet(3, 5, 1.0, faults)
    steps = [fleet.step() for _ in range(300)] + list(fleet.run(399)) + [fleet.step()]
    assert np.array_equal(whole.values, np.concatenate([step.values for step in steps], axis=1))
    assert np.array_equal(whole.timestamp_us, np.concatenate([step.timestamp_us for step in steps]))
    assert len(whole) == 3 * 700 - 30
    assert not np.array_equal(whole.values, joined(Fleet(3, 6, 1.0, faults), 700).values)


def test_timestamps() -> None:
    readings = joined(Fleet(4, 1, 2.0), 10)
    grid = readings.timestamp_us.reshape(10, 4)
    assert (np.diff(grid, axis=0) == 2_000_000).all()
    assert (grid[0] >= DEFAULT_START_US).all()
    assert (grid[0] < DEFAULT_START_US + 2_000_000).all()
    assert (joined(Fleet(4, 1, 2.0, spread=False), 1).timestamp_us == DEFAULT_START_US).all()


# --- Faults: the signature that a rule looks for, against the hour before


def faulty(name: FaultName, interval_seconds: float, hours: float = 4) -> tuple[dict[str, FloatArray], FloatArray]:
    """Signals as shares of the well's own median of the hours before, and hours since the fault."""
    lead = 2.0
    readings = joined(
        Fleet(1, 9, interval_seconds, [Fault(name, 0, lead * HOUR)], spread=False),
        round((lead + hours) * HOUR / interval_seconds),
    )
    since = (readings.timestamp_us - DEFAULT_START_US) / 1e6 / HOUR - lead
    relative = {key: values / np.median(values[since < 0]) for key, values in signals(readings).items()}
    return relative, since


@pytest.mark.parametrize("interval", [1.0, 300.0])
def test_gas_lock(interval: float) -> None:
    s, t = faulty(FaultName.GAS_LOCK, interval)
    on = t > 0.1
    load = s["motor_current"] / s["vsd_frequency"] ** 2
    assert (load[on] < 0.75).all()
    assert (s["flow_rate"][on] < 0.5).all()
    assert (s["flow_rate"][on] > 0.1).all()
    assert (s["pip"][on] > 1.0).all()
    assert s["motor_current"][on].std() / s["motor_current"][on].mean() > 0.04  # it hunts


@pytest.mark.parametrize("interval", [1.0, 300.0])
def test_pump_off(interval: float) -> None:
    s, t = faulty(FaultName.PUMP_OFF, interval)
    load = s["motor_current"] / s["vsd_frequency"] ** 2
    assert (load[t > 0.25] < 0.85).all()
    for hour in (0.25, 1.0, 2.0):
        now, later = (s["pip"][np.abs(t - at).argmin()] for at in (hour, hour + 0.5))
        assert later < now * 0.95
    assert s["flow_rate"][-1] < s["flow_rate"][np.abs(t - 0.5).argmin()] < 0.95


@pytest.mark.parametrize("interval", [1.0, 300.0])
def test_broken_shaft(interval: float) -> None:
    s, t = faulty(FaultName.BROKEN_SHAFT, interval)
    first = int(np.argmax(t >= 0))
    assert s["motor_current"][first] < 0.6 * s["motor_current"][first - 1]
    assert (s["flow_rate"][t >= 0] < 0.1).all()
    assert s["pip"][-1] > s["pip"][first] * 1.2
    after = s["motor_current"][t >= 0]
    assert after.std() / after.mean() < 0.03


@pytest.mark.parametrize("interval", [1.0, 300.0])
def test_dead_head(interval: float) -> None:
    s, t = faulty(FaultName.DEAD_HEAD, interval)
    on = t > 0.01
    assert (s["flow_rate"][on] < 0.1).all()
    assert (s["motor_current"][on] < 0.85).all()
    assert (s["motor_current"][on] > 0.6).all()  # no 40 % fall: that is a shaft
    assert s["motor_current"][on].std() < 0.03
    assert s["pip"][-1] > 1.2
    assert s["discharge_pressure"][-1] > 1.2


@pytest.mark.parametrize("interval", [1.0, 300.0])
def test_tubing_leak(interval: float) -> None:
    s, t = faulty(FaultName.TUBING_LEAK, interval)
    load = s["motor_current"] / s["vsd_frequency"] ** 2
    assert (s["flow_rate"][t > 0.2] < 0.8).all()
    assert ((load > 0.9) & (load < 1.1)).all()
    assert (s["pip"][t > 0.5] > 1.05).all()


def test_overload_heat_and_vibration() -> None:
    s, t = faulty(FaultName.OVERLOAD, 10.0)
    assert (s["motor_current"][t > 0.02] > 1.25 * 1.05).all()
    assert s["motor_temp"][-1] > 1.1
    s, t = faulty(FaultName.MOTOR_HOT, 10.0)
    assert s["motor_temp"][-1] * 200 > 290
    assert s["flow_rate"][-1] == pytest.approx(1, abs=0.05)
    vibration = signals(joined(Fleet(1, 9, 10.0, [Fault(FaultName.VIBRATION, 0)]), 400))["vibration"]
    assert (vibration[20:] > 0.7).all()


def test_frozen_signal_holds_one_signal_alone() -> None:
    readings = joined(Fleet(2, 9, 1.0, [Fault(FaultName.FROZEN_SIGNAL, 0, 500, 1_000)], spread=False), 2_000)
    one = readings.values[:, readings.well_index == 0]
    pip = one[SIGNAL_NAMES.index("pip")]
    assert len(set(pip[500:1_500])) == 1
    assert len(set(pip[:500])) > 50
    assert len(set(pip[1_500:])) > 50
    assert len(set(one[SIGNAL_NAMES.index("motor_current"), 500:1_500])) > 50


@pytest.mark.parametrize("interval", [1.0, 300.0])
def test_gauge_dropout_is_one_sample_an_hour_of_all_gauges(interval: float) -> None:
    fleet = Fleet(1, 9, interval, [Fault(FaultName.GAUGE_DROPOUT, 0, 2 * HOUR)], spread=False)
    s = signals(joined(fleet, round(5 * HOUR / interval)))
    for name in ("pip", "motor_temp", "vibration", "discharge_pressure", "intake_temp"):
        assert np.flatnonzero(s[name] == 0).tolist() == [round(hour * HOUR / interval) for hour in (2, 3, 4)], name
    assert (s["motor_current"] > 40).all()


def test_trip_stops_for_an_hour() -> None:
    s, t = faulty(FaultName.TRIP, 10.0)
    stopped = (t >= 0) & (t < 1)
    for name in ("vsd_frequency", "motor_current", "flow_rate", "drive_voltage"):
        assert (s[name][stopped] == 0).all(), name
    assert s["pip"][stopped][-1] > 1.2
    assert s["motor_temp"][stopped][-1] < 0.95
    assert s["motor_current"][-1] == pytest.approx(1, abs=0.05)


def test_stale_is_silence() -> None:
    readings = joined(Fleet(2, 9, 1.0, [Fault(FaultName.STALE, 1, 10)], spread=False), 30)
    assert (np.bincount(readings.well_index) == [30, 10]).all()


def test_faults_are_assigned_to_wells_in_turn() -> None:
    assert [(fault.name, fault.well) for fault in assign_faults(["trip", "stale", "trip"], 2, 5.0)] == [
        ("trip", 0),
        ("stale", 1),
        ("trip", 0),
    ]
    with pytest.raises(ConfigError, match="did you mean gas_lock"):
        assign_faults(["gaslock"], 2, 0.0)


# --- Messages


def decode(messages: list[Message], now_us: int = DEFAULT_START_US) -> Decoded:
    deliveries = [Delivery(m.topic.encode(), m.payload, 1, n, 1, now_us) for n, m in enumerate(messages)]
    return Decoder(TelemetrySettings(), "esp").decode(deliveries)


def test_messages_carry_the_fleet_to_the_last_bit() -> None:
    messages = list(fleet_messages(Fleet(5, 2, 1.0), 40, signals=SIGNAL_NAMES))
    decoded = decode(messages)
    expected = joined(Fleet(5, 2, 1.0), 40)
    order = np.argsort(expected.timestamp_us, kind="stable")
    assert decoded.rejects == []
    assert np.array_equal(decoded.readings.values, expected.values[:, order])
    assert np.array_equal(decoded.readings.timestamp_us, expected.timestamp_us[order])
    assert [m.due_seconds for m in messages] == sorted(m.due_seconds for m in messages)
    assert set(json.loads(next(fleet_messages(Fleet(1), 1)).payload)) == {"timestamp", "well_id", *CONTROLLER_SIGNALS}


def test_trouble_is_what_it_says() -> None:
    totals = Totals()
    clean = list(fleet_messages(Fleet(10, 2, 1.0), 200))
    spoiled = list(spoil(clean, Trouble(0.1, 0.1, 0.1, 0.1, 0.1), totals, 1))
    assert len(spoiled) == len(clean) + totals.duplicates
    for count in (totals.malformed, totals.duplicates, totals.late, totals.future, totals.odd):
        assert 120 < count < 280
    decoded = decode(spoiled, DEFAULT_START_US + 200_000_000)
    reasons = [reject.reason for reject in decoded.rejects]
    assert len(reasons) == totals.malformed + totals.future
    assert reasons.count("timestamp_ahead") == totals.future
    assert len(set(reasons)) == 11
    assert {kind for _, kind in decoded.unusable} == {"not_finite", "string", "boolean", "array"}
    assert sum(decoded.unusable.values()) + len(decoded.readings.extra) == len(decoded.readings.quality)
    keys = list(zip(decoded.readings.well_index.tolist(), decoded.readings.timestamp_us.tolist(), strict=True))
    assert len(keys) - len(set(keys)) == totals.duplicates
    dues = [message.due_seconds for message in spoiled]
    assert dues == sorted(dues)


def test_no_trouble_changes_nothing() -> None:
    clean = list(fleet_messages(Fleet(3), 20))
    assert list(spoil(clean, Trouble(), Totals(), 1)) == clean


# --- Recordings


def test_a_recording_goes_out_value_by_value(tmp_path: Path) -> None:
    file = tmp_path / "wells.csv"
    file.write_text(
        "timestamp,well_id,flow_rate,pip,motor_temp,drive_running,note\n"
        "2013-06-04T06:05:00Z,W2,,460.76,278.61000000000001,1,all well\n"
        "2013-06-04T06:00:00Z,W1,12.0,467.81,,0,\n"
        "2013-06-04T06:10:00Z,W1,1e3,-0,NaN,007,\n"
    )
    recording = replay.read(file)
    messages = list(recorded_messages(recording, "esp", 0, 0, keep_timestamps=True))
    assert [(m.topic, m.payload.decode()) for m in messages] == [
        ("esp/W1/telemetry", '{"timestamp": "2013-06-04T06:00:00.000000Z", "well_id": "W1", "flow_rate": 12.0, '
                             '"pip": 467.81, "drive_running": 0}'),
        ("esp/W2/telemetry", '{"timestamp": "2013-06-04T06:05:00.000000Z", "well_id": "W2", "pip": 460.76, '
                             '"motor_temp": 278.61000000000001, "drive_running": 1, "note": "all well"}'),
        ("esp/W1/telemetry", '{"timestamp": "2013-06-04T06:10:00.000000Z", "well_id": "W1", "flow_rate": 1e3, '
                             '"pip": -0, "motor_temp": "NaN", "drive_running": "007"}'),
    ]  # fmt: skip


def test_source_units_are_converted(tmp_path: Path) -> None:
    file = tmp_path / "raw.csv.gz"
    header = "well_id,epoch_s,discharge_pressure_pa,intake_pressure_pa,intake_temperature_k,motor_temp_k,vsd_freq_hz"
    with gzip.open(file, "wt") as out:
        out.write(f"{header},vsd_motor_amps_a\nESP01,1370044800,6894757.293168361,,273.15,383.0596235,54.1,2\n")
    message = json.loads(next(recorded_messages(replay.read(file), "esp", 0, 0, keep_timestamps=True)).payload)
    assert message == {
        "timestamp": "2013-06-01T00:00:00.000000Z",
        "well_id": "ESP01",
        "discharge_pressure": pytest.approx(1000.0, rel=1e-15),
        "intake_temp": 32.0,
        "motor_temp": (383.0596235 - 273.15) * 9.0 / 5.0 + 32.0,
        "vsd_frequency": 54.1,
        "motor_current": 2,
    }


@pytest.mark.parametrize("speed", [0, 0.5, 1, 60])
def test_a_moved_recording_ends_now_and_is_never_ahead(tmp_path: Path, speed: float) -> None:
    file = tmp_path / "wells.csv"
    rows = "".join(f"2013-06-04T06:{minute:02}:00Z,W1,{minute}\n" for minute in range(31))
    file.write_text(f"timestamp,well_id,pip\n{rows}")
    messages = list(recorded_messages(replay.read(file), "esp", DEFAULT_START_US, speed, keep_timestamps=False))
    stamps = decode(messages, DEFAULT_START_US + 10**10).readings.timestamp_us
    sent = [DEFAULT_START_US + m.due_seconds * 1e6 for m in messages]
    assert (np.diff(stamps) == 60_000_000).all()
    assert (stamps <= np.array(sent) + 1).all()
    at = 0 if 0 < speed < 1 else -1
    assert abs(stamps[at] - sent[at]) <= 1
    assert messages[-1].due_seconds == (1_800 / speed if speed else 0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "needs a column well_id"),
        ("well_id,pip\nW1,2\n", "needs a column"),
        ("timestamp,well_id,pip\n", "holds no rows"),
        ("timestamp,well_id,pip\n2013-06-04,W1,2\n", "Line 2 .*'2013-06-04' is no timestamp"),
        ("epoch_s,well_id,pip\n1.5,W1,2\n", "Line 2 .* is no epoch_s"),
        ("timestamp,well_id,pip\n2013-06-04T06:00:00Z,W1\n", "Line 2 .* has 2 cells"),
        ("timestamp,well_id,pip\n2013-06-04T06:00:00Z,a/b,1\n", r"Line 2 of .*wells.csv: 'a/b' is no well id"),
        ("timestamp,well_id,pip\n2013-06-04T06:00:00Z,,1\n", "Line 2 .* is no well id"),
    ],
)
def test_a_recording_that_cannot_be_used_is_one_sentence(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "wells.csv"
    file.write_text(text)
    with pytest.raises(replay.ReplayError, match=complaint):
        replay.read(file)


def test_a_missing_or_torn_recording(tmp_path: Path) -> None:
    with pytest.raises(replay.ReplayError, match=r"none.csv cannot be read: No such file or directory\.$"):
        replay.read(tmp_path / "none.csv")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(replay.ReplayError, match="it is not UTF-8 text"):
        replay.read(binary)
    torn = tmp_path / "torn.csv.gz"
    torn.write_bytes(gzip.compress(random.Random(1).randbytes(10_000))[:5_000])
    with pytest.raises(replay.ReplayError, match="cannot be read"):
        replay.read(torn)


def arguments(**given: object) -> argparse.Namespace:
    values: dict[str, object] = {"wells": 2, "rate": 10.0, "duration": 1.0, "fault": [], "fault_after": 0.0, "seed": 1,
                                 "csv": None, "speed": 1.0, "keep_timestamps": False, "malformed": 0.0,
                                 "duplicates": 0.0, "late": 0.0, "future": 0.0}  # fmt: skip
    return argparse.Namespace(**(values | given))


def test_no_broker_is_one_sentence() -> None:
    settings = Settings.model_validate({"mqtt": {"port": free_port()}})
    with pytest.raises(SimulatorError, match=r"No connection to the broker at 127\.0\.0\.1:\d+ .*: start it"):
        run_simulate(settings, arguments(), FakeClock())


def test_a_wrong_fault_is_found_before_connecting() -> None:
    with pytest.raises(ConfigError, match="known are gas_lock"):
        run_simulate(Settings(), arguments(fault=["xxxxxxxxxxx"]))


def test_a_fleet_needs_a_well_and_an_interval() -> None:
    for wells, interval in ((0, 1.0), (1, 0.0)):
        with pytest.raises(ValueError, match="at least one well"):
            Fleet(wells, interval_seconds=interval)


def test_messages_are_made_as_they_are_needed() -> None:
    """A long simulation is not held in memory."""
    assert len(list(islice(fleet_messages(Fleet(1_000), 10**9), 10))) == 10
