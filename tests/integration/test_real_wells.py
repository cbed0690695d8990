"""Recordings of real wells: each row becomes one reading, its values equal to the last bit, what no gauge can have
measured in ``quality``. The files are not part of the project; without them these tests are skipped."""

import csv
import gzip
import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest

from esp_ingest.config.settings import TelemetrySettings
from esp_ingest.demo.simulator import recorded_messages
from esp_ingest.model import SIGNAL_NAMES, SIGNALS, Decoded, Delivery
from esp_ingest.telemetry import csv_recording as replay
from esp_ingest.telemetry.decode import Decoder

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "esp"
SAMPLES = [
    "sample_esp01_gauge_failure.csv",
    "sample_esp01_start_stop_cycling.csv",
    "sample_esp02_underload_trip_restart.csv",
    "sample_esp03_gas_interference.csv",
    "sample_esp03_steady_week.csv",
]
NOW_US = 1_795_554_000_000_000
HARD = {signal.name: (signal.low, signal.high) for signal in SIGNALS}

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recordings of real wells in {FOLDER}")


def replayed(name: str, keep: bool) -> Decoded:
    recording = replay.read(FOLDER / name)
    messages = recorded_messages(recording, "esp", NOW_US, 0, keep)
    decoder = Decoder(TelemetrySettings(max_age_days=0), "esp")
    deliveries = [Delivery(m.topic.encode(), m.payload, 1, n, 1, NOW_US) for n, m in enumerate(messages, 1)]
    return decoder.decode(deliveries)


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples(name: str) -> None:
    decoded = replayed(name, keep=True)
    with (FOLDER / name).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert decoded.rejects == []
    assert len(decoded.readings) == len(rows)
    outside = 0
    for at, row in enumerate(rows):
        assert decoded.readings.well_of(at) == row["well_id"]
        stamp = np.datetime64(row["timestamp"].rstrip("Z"), "us").astype(np.int64)
        assert decoded.readings.timestamp_us[at] == stamp
        assert json.loads(decoded.readings.extra[at]) == {"drive_running": int(row["drive_running"])}
        quality = json.loads(decoded.readings.quality.get(at, "{}"))
        for signal, column in zip(SIGNAL_NAMES, decoded.readings.values, strict=True):
            cell = row.get(signal, "")
            if not cell:
                assert math.isnan(column[at])
                assert signal not in quality
            elif HARD[signal][0] <= float(cell) <= HARD[signal][1]:
                assert bits(column[at]) == bits(float(cell))
            else:
                outside += 1
                assert math.isnan(column[at])
                assert quality.pop(signal) == float(cell)
        assert not quality
    assert sum(decoded.out_of_range.values()) == outside
    assert outside > 0 or "gauge_failure" not in name


def test_the_gauge_failure_is_told_as_sent() -> None:
    decoded = replayed("sample_esp01_gauge_failure.csv", keep=False)
    assert decoded.out_of_range["motor_temp"] > 50
    assert decoded.out_of_range["pip"] > 0
    assert decoded.readings.timestamp_us[-1] == NOW_US  # moved: it ends now
    hottest = max(json.loads(text).get("motor_temp", 0) for text in decoded.readings.quality.values())
    assert hottest == 11482.4


def test_the_whole_of_esp01() -> None:
    decoded = replayed("slb_esp01_raw.csv.gz", keep=True)
    with gzip.open(FOLDER / "slb_esp01_raw.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    assert decoded.rejects == []
    assert len(decoded.readings) == len(rows) == 130_449
    assert decoded.readings.timestamp_us.tolist() == [int(row["epoch_s"]) * 1_000_000 for row in rows]
    expected = {
        "discharge_pressure": [float(row["discharge_pressure_pa"]) / 6_894.757293168361 for row in rows],
        "pip": [float(row["intake_pressure_pa"]) / 6_894.757293168361 for row in rows],
        "intake_temp": [(float(row["intake_temperature_k"]) - 273.15) * 9 / 5 + 32 for row in rows],
        "motor_temp": [(float(row["motor_temp_k"]) - 273.15) * 9 / 5 + 32 for row in rows],
        "vsd_frequency": [float(row["vsd_freq_hz"]) for row in rows],
        "motor_current": [float(row["vsd_motor_amps_a"]) for row in rows],
    }
    quality = {at: json.loads(text) for at, text in decoded.readings.quality.items()}
    for name, column in zip(SIGNAL_NAMES, decoded.readings.values, strict=True):
        if name not in expected:
            assert np.isnan(column).all()
            continue
        values = np.array(expected[name])
        outside = (values < HARD[name][0]) | (values > HARD[name][1])
        assert np.array_equal(column, np.where(outside, np.nan, values), equal_nan=True), name
        assert decoded.out_of_range.get(name, 0) == outside.sum()
        sent = {at: told[name] for at, told in quality.items() if name in told}
        assert sent == {int(at): values[at] for at in np.flatnonzero(outside)}, name
