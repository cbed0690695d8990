"""The main job with real parts: `esp-ingest run` as a process between Mosquitto (the shipped file) and TimescaleDB."""

import csv
import json
import math
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_real_wells import FOLDER, SAMPLES, replayed
from tests.support.brokers import ROOT, Mosquitto
from tests.support.databases import Database, free_port
from tests.support.rig import Rig, say

WELL_USERS = ("ESP01", "ESP02", "ESP03", "W1")
NEEDS_RECORDINGS = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recordings of real wells in {FOLDER}")


@pytest.fixture
def rig(tmp_path: Path, timescaledb_apache: Database, request: pytest.FixtureRequest) -> Iterator[Rig]:
    with (
        Mosquitto(tmp_path / "mosquitto", users=WELL_USERS) as broker,
        Rig(tmp_path, broker, timescaledb_apache, request.node.name) as rig,
    ):
        yield rig


def esp_ingest(rig: Rig, *arguments: str, **overrides: str) -> subprocess.CompletedProcess[str]:
    """A command, to its end. ``overrides`` are settings as in the environment, without the prefix."""
    environment = rig.environment() | {f"ESP_INGEST_{key}": value for key, value in overrides.items()}
    command = [sys.executable, "-m", "esp_ingest", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)


def replay_recording(rig: Rig, name: str, well: str) -> None:
    done = esp_ingest(
        rig,
        *("simulate", "--csv", str(FOLDER / name), "--speed", "0", "--keep-timestamps"),
        MQTT__USERNAME=well,
        MQTT__PASSWORD=rig.broker.password_of(well),
    )
    assert done.returncode == 0, done.stderr


def count(rig: Rig, table: str = "esp_telemetry") -> int:
    return int(rig.database.value(f"SELECT count(*) FROM {table}"))


@NEEDS_RECORDINGS
@pytest.mark.parametrize("name", SAMPLES)
def test_a_recording_arrives_to_the_last_bit(rig: Rig, name: str) -> None:
    rig.settings["TELEMETRY__MAX_AGE_DAYS"] = "0"
    rig.start_daemon()
    with (FOLDER / name).open(newline="") as file:
        rows = list(csv.DictReader(file))
    replay_recording(rig, name, rows[0]["well_id"])
    rig.await_that(lambda: count(rig) == len(rows), "every row stored", 30)
    rig.stop_daemon()

    signals = [key for key in rows[0] if key not in ("timestamp", "well_id", "drive_running")]
    stored = rig.database.all(
        f"SELECT to_char(timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), well_id, extra, quality, "
        f"{', '.join(signals)} FROM esp_telemetry ORDER BY timestamp"
    )
    in_quality = 0
    for row, (timestamp, well, extra, quality, *values) in zip(rows, stored, strict=True):
        assert (timestamp, well) == (row["timestamp"], row["well_id"])
        assert extra == {"drive_running": int(row["drive_running"])}
        for key, value in zip(signals, values, strict=True):
            if quality is not None and key in quality:
                in_quality += 1
                assert value is None
                assert quality[key] == float(row[key])
            else:
                assert (value is None) == (row[key] == "")
                assert value is None or struct.pack("<d", value) == struct.pack("<d", float(row[key]))
    assert in_quality > 0 or "gauge_failure" not in name
    assert count(rig, "ingest_rejects") == 0


@NEEDS_RECORDINGS
def test_the_whole_of_esp01_arrives_once(rig: Rig) -> None:
    rig.settings |= {"TELEMETRY__MAX_AGE_DAYS": "0", "DIAGNOSTICS__ENABLED": "false"}  # 453 days: its own test
    rig.start_daemon()
    replay_recording(rig, "slb_esp01_raw.csv.gz", "ESP01")
    expected = replayed("slb_esp01_raw.csv.gz", keep=True).readings
    rig.await_that(lambda: count(rig) == len(expected), "every row stored", 120)
    rig.stop_daemon()
    assert len(expected) == 130_449
    stored = rig.database.all(
        "SELECT (extract(epoch FROM timestamp) * 1000000)::bigint, pip, motor_current, motor_temp, vsd_frequency, "
        "discharge_pressure, intake_temp FROM esp_telemetry ORDER BY timestamp"
    )
    columns = [expected.values[row] for row in (1, 2, 3, 5, 7, 10)]
    for at, (timestamp_us, *values) in enumerate(stored):
        assert timestamp_us == expected.timestamp_us[at]
        for value, column in zip(values, columns, strict=True):
            assert (value is None and math.isnan(column[at])) or value == column[at]


def test_bad_input_ends_as_a_reading_or_as_a_reject_with_its_reason(rig: Rig) -> None:
    rig.start_daemon()
    now_ms = time.time_ns() // 1_000_000
    stamp = b'"timestamp":%d' % now_ms
    bad = {
        b"not json": "invalid_json",
        b"": "empty_payload",
        b'{%s,"pip":1,"deep":%s}' % (stamp, b"[" * 5_000 + b"]" * 5_000): "too_deep",
        b"[" * 100_000: "invalid_json|too_deep",
        b'{%s,"pip":1,"note":"\xff\xfe"}' % stamp: "invalid_utf8",
        b'{%s,"pip":1,"well_id":true}' % stamp: "wrong_type",
        b'{"timestamp":%d,"pip":1}' % (now_ms // 1000): "invalid_timestamp",
        b'{%s,"pip":1}\n{%s,"pip":2}' % (stamp, stamp): "invalid_json",
        b'{"pip":1}': "missing_timestamp",
        b'{"timestamp":"2026-11-24T21:00:00","pip":1}': "invalid_timestamp",
        b'{"timestamp":"9999-12-31T23:59:59Z","pip":1}': "timestamp_ahead",
        b'{"timestamp":"1999-12-31T23:59:59Z","pip":1}': "timestamp_too_old",
        b'{%s,"pip":1,"well_id":"W2"}' % stamp: "well_id_mismatch",
        b"{%s}" % stamp: "no_signal",
        b'"text"': "not_an_object",
        b'{"x":[0': "invalid_json",
    }
    good = {
        b'{"timestamp":%d,"pip":NaN,"gor":1}' % (now_ms - 1): ({"gor": 1.0}, {"pip": "NaN"}),
        b'{"timestamp":%d,"pip":1e400,"gor":2}' % (now_ms - 2): ({"gor": 2.0}, {"pip": "1e400"}),
        b'{"timestamp":%d,"pip":7000.5,"gor":3}' % (now_ms - 3): ({"gor": 3.0}, {"pip": 7000.5}),
        b'{"timestamp":%d,"gor":4,"filler":"%s"}' % (now_ms - 4, b"x" * 1_000_000): ({"gor": 4.0}, None),
        b'{"timestamp":%d,"pip":"12","gor":8}' % (now_ms - 8): ({"gor": 8.0}, {"pip": "12"}),
        b'{"timestamp":%d,"pip":true,"gor":9}' % (now_ms - 9): ({"gor": 9.0}, {"pip": True}),
        b'\x00{"timestamp":%d,"pip":-1.#IND,"gor":10}\x00' % (now_ms - 10): ({"gor": 10.0}, {"pip": "-1.#IND"}),
        b'{"timestamp":%d,"gor":11,"note":"\\u0000"}' % (now_ms - 11): ({"gor": 11.0}, {"note": "escaped as sent"}),
    }
    with rig.broker.publisher("W1") as controller:
        controller.publish_many("esp/W1/telemetry", [*bad, *good])
        backlog = b'[{"timestamp":%d,"gor":5},{"gor":6},{"timestamp":%d,"gor":7}]' % (now_ms - 5, now_ms - 6)
        controller.publish("esp/W1/telemetry", backlog, retain=True)
    rig.await_that(lambda: count(rig) + count(rig, "ingest_rejects") == len(bad) + len(good) + 3, "all settled", 20)

    rejects = {bytes(payload): (topic, reason) for topic, reason, payload in rig.database.all(
        "SELECT topic, reason, payload FROM ingest_rejects"
    )}  # fmt: skip
    for payload, reason in bad.items():
        topic, found = rejects.pop(payload)
        assert topic == "esp/W1/telemetry"
        assert found in reason.split("|"), (payload[:60], found)
    assert rejects == {b'{"gor":6}': ("esp/W1/telemetry", "missing_timestamp")}, "the bad item of the array alone"
    stored = {
        gor: (pip, quality) for gor, pip, quality in rig.database.all("SELECT gor, pip, quality FROM esp_telemetry")
    }
    assert set(stored) == {*range(1, 6), *range(7, 12)}
    assert rig.database.value("SELECT extra ->> 'note' FROM esp_telemetry WHERE gor = 11") == "\\u0000"
    for values, quality in good.values():
        assert stored[values["gor"]] == (None, quality)
    assert rig.metric("readings_rejected_total") == len(bad) + 1
    assert rig.metric("values_out_of_range_total") == 4
    assert rig.metric("values_unusable_total") == 6
    assert rig.health("ready")[0] == 200
    assert len(rig.daemon_log().splitlines()) < 15, "a log line a message is a flood"
    rig.stop_daemon()


def test_it_starts_with_nothing_and_gets_ready_by_itself(rig: Rig) -> None:
    rig.broker.stop()
    rig.to_database.stop()
    rig.start_daemon(wait=False)
    took = rig.await_that(lambda: rig.health("live")[0] == 200, "live", 5)
    status, answer = rig.health("ready")
    assert status == 503
    assert not answer["checks"]["mqtt"]["ok"]
    assert not answer["checks"]["database"]["ok"]
    assert rig.health("startup")[0] == 503
    rig.broker.start()
    rig.to_database.start()
    rig.await_that(lambda: rig.health("ready")[0] == 200, "ready by itself", 20)
    assert rig.health("startup")[0] == 200
    rig.stop_daemon()
    say(f"live after {took:.2f} s")


def test_sigterm_under_load_leaves_nothing_to_deliver_again(rig: Rig) -> None:
    """What it held is written and acknowledged, so the next start finds no duplicate; the session holds the rest."""
    rig.start_daemon()
    with rig.broker.publisher("W1") as controller:
        start_ms = time.time_ns() // 1_000_000 - 100_000
        payloads = [b'{"timestamp":%d,"pip":%d}' % (start_ms + at, at % 6_000) for at in range(20_000)]
        controller.publish_many("esp/W1/telemetry", payloads[:6_000])
        rig.await_that(lambda: count(rig) > 0, "some are stored", 10)
        for payload in payloads[6_000:]:
            controller.client.publish("esp/W1/telemetry", payload, 1)
        rig.stop_daemon()
        stored_at_the_end = count(rig)
        rig.start_daemon()
        rig.await_that(lambda: count(rig) == len(payloads), "the rest came from the session", 30)
    assert 0 < stored_at_the_end <= len(payloads)
    assert rig.metric("readings_duplicate_total") == 0
    rig.stop_daemon()


def test_the_second_signal_kills(rig: Rig) -> None:
    rig.settings |= {"SPOOL__ENABLED": "false", "SERVICE__DRAIN_SECONDS": "60"}
    daemon = rig.start_daemon()
    rig.to_database.stop()
    with rig.broker.publisher("W1") as controller:
        controller.publish("esp/W1/telemetry", b'{"timestamp":%d,"pip":1}' % (time.time_ns() // 1_000_000))
    rig.await_that(lambda: rig.health("ready")[0] == 503, "the outage is seen", 20)
    daemon.send(signal.SIGTERM)
    rig.await_that(lambda: "stopping" in rig.daemon_log(), "the first signal asks", 5)
    assert daemon.running, "it waits for the database"
    daemon.send(signal.SIGTERM)
    assert daemon.wait(5) != 0


def test_mqtt_311_works_as_well(rig: Rig) -> None:
    rig.settings["MQTT__PROTOCOL"] = "3.1.1"
    rig.start_daemon()
    with rig.broker.publisher("W1") as controller:
        now_ms = time.time_ns() // 1_000_000
        controller.publish_many("esp/W1/telemetry", [b'{"timestamp":%d,"pip":1}' % (now_ms - at) for at in range(500)])
    rig.await_that(lambda: count(rig) == 500, "all stored", 20)
    rig.stop_daemon()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"MQTT__PROT": "1"}, ("mqtt.prot", "mqtt.port")),
        ({"MQTT__PORT": "x"}, ("mqtt.port",)),
        ({"MQTTT__PORT": "1"}, ("MQTTT__PORT", "mqtt")),
        ({"BATCH__MAX_ROWS": "60000", "BATCH__MAX_MESSAGES": "60000"}, ("batch.max_rows", "mqtt.receive_maximum")),
        ({"DATABASE__PASSWORD_FILE": "/does/not/exist"}, ("password_file",)),
    ],
)
def test_a_wrong_configuration_ends_at_once_with_2(rig: Rig, overrides: dict[str, str], words: tuple[str, ...]) -> None:
    done = esp_ingest(rig, "run", **overrides)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_check_says_each_in_a_line_and_fails_when_something_is_away(rig: Rig) -> None:
    done = esp_ingest(rig, "check")
    assert done.returncode == 0, done.stdout
    for subject in ("configuration", "broker", "database", "schema"):
        assert any(line.startswith(subject) and " ok " in line for line in done.stdout.splitlines()), done.stdout
    done = esp_ingest(rig, "check", MQTT__PORT=str(free_port()))
    assert done.returncode == 1
    assert "FAIL" in done.stdout


def test_rejects_are_listed_shown_and_replayed_exactly_once(rig: Rig) -> None:
    rig.start_daemon()
    now_ms = time.time_ns() // 1_000_000
    with rig.broker.publisher("W1") as controller:
        ahead = [b'{"timestamp":%d,"pip":%d}' % (now_ms + 3_600_000 + at, at) for at in range(5)]
        controller.publish_many("esp/W1/telemetry", [*ahead, b"never a reading"])
    rig.await_that(lambda: count(rig, "ingest_rejects") == 6, "six rejects", 10)
    listed = esp_ingest(rig, "rejects", "list", "--reason", "timestamp_ahead", "--since", "1h")
    assert listed.returncode == 0
    assert len(listed.stdout.splitlines()) == 6, "five and the count"
    shown = esp_ingest(rig, "rejects", "show", listed.stdout.split()[0])
    assert json.dumps({"timestamp": 1})[2:11] in shown.stdout
    assert esp_ingest(rig, "rejects", "list", "--reason", "nonsense").returncode == 2

    mended = {"TELEMETRY__MAX_AHEAD_SECONDS": "7200"}
    tried = esp_ingest(rig, "rejects", "replay", "--dry-run", **mended)
    assert "5 would be stored" in tried.stdout
    assert "5 would be stored" in esp_ingest(rig, "rejects", "replay", "--dry-run", "--trust-timestamps").stdout
    assert "5 rejected again: timestamp_ahead" in esp_ingest(rig, "rejects", "replay", "--dry-run").stdout
    assert count(rig) == 0
    for expected in (5, 5):
        assert esp_ingest(rig, "rejects", "replay", **mended).returncode == 0
        assert count(rig) == expected
    assert count(rig, "ingest_rejects") == 6, "rejects stay, marked"
    assert int(rig.database.value("SELECT count(*) FROM ingest_rejects WHERE replayed_at IS NOT NULL")) == 5
    rig.stop_daemon()
