"""Signals at any moment of a process's life, with no broker and no database at hand: from the first line of the program
on it ends with 0 and says nothing on stderr."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-m", "esp_ingest"]
DELAYS = [*(step * 0.01 for step in range(10)), *(0.1 + step * 0.05 for step in range(19))]
FEWER = DELAYS[::4]
CAUGHT = re.compile(r"^SigCgt:\s*([0-9a-f]+)$", re.MULTILINE)


def environment(folder: Path, **settings: str) -> dict[str, str]:
    given = {
        "MQTT__PORT": "1",
        "MQTT__CONNECT_TIMEOUT_SECONDS": "1",
        "DATABASE__DSN": "host=127.0.0.1 port=1",
        "HTTP__PORT": "0",
        "SPOOL__PATH": str(folder / "spool"),
    } | settings
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ESP_INGEST_")}
    return kept | {f"ESP_INGEST_{name}": value for name, value in given.items()}


@contextlib.contextmanager
def started(
    folder: Path, *arguments: str, program: list[str] = PROGRAM, **settings: str
) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [*program, *arguments],
        env=environment(folder, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def await_our_first_line(process: "subprocess.Popen[str]") -> None:
    """Until the process catches SIGTERM, which it does from its first line on."""
    while process.poll() is None:
        caught = CAUGHT.search(Path(f"/proc/{process.pid}/status").read_text())
        if caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
            return


def end_after(folder: Path, delay: float, number: signal.Signals, *arguments: str) -> str:
    """What is wrong with the end of a process that is sent ``number`` ``delay`` seconds after its first line."""
    with started(folder, *arguments) as process:
        await_our_first_line(process)
        time.sleep(delay)
        process.send_signal(number)
        _, complaint = process.communicate(timeout=60)
    return "" if process.returncode == 0 and complaint == "" else f"{delay:.2f} s: {process.returncode}, {complaint!r}"


def sweep(folder: Path, delays: list[float], number: signal.Signals, *arguments: str) -> list[str]:
    with ThreadPoolExecutor(3) as pool:
        ends = pool.map(lambda each: end_after(folder / f"{each:.3f}", each, number, *arguments), delays)
        return [wrong for wrong in ends if wrong]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_daemon_ends_with_0_whenever_it_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    assert sweep(tmp_path, DELAYS, number, "run") == []


@pytest.mark.soak
@pytest.mark.parametrize("arguments", [("run",), ("run", "--workers", "2")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_200_moments_of_the_first_second(tmp_path: Path, number: signal.Signals, arguments: tuple[str, ...]) -> None:
    assert sweep(tmp_path, [step * 0.005 for step in range(200)], number, *arguments) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_0_whenever_they_are_stopped(tmp_path: Path, number: signal.Signals) -> None:
    assert sweep(tmp_path, FEWER, number, "run", "--workers", "2") == []


def test_a_simulator_ends_with_0_while_it_loads(tmp_path: Path) -> None:
    assert sweep(tmp_path, [0.0, 0.02, 0.05, 0.1], signal.SIGTERM, "simulate") == []


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.4, 1.0])
def test_a_demo_ends_with_0_while_it_starts(tmp_path: Path, delay: float) -> None:
    pytest.importorskip("iotcore")
    assert end_after(tmp_path, delay, signal.SIGTERM, "demo", "--duration", "5") == ""


def test_a_signal_before_our_first_line_ends_the_process_by_the_signal_or_with_0(tmp_path: Path) -> None:
    """Nothing of ours runs yet, so nothing of ours can answer; but neither is there a third way to end."""
    for delay in (0.0, 0.01, 0.02, 0.03, 0.05):
        with started(tmp_path, "run") as process:
            time.sleep(delay)
            process.send_signal(signal.SIGTERM)
            _, complaint = process.communicate(timeout=30)
        assert process.returncode in (0, -signal.SIGTERM)
        assert complaint == ""


# Sends itself a signal when the interpreter looks for the Nth module after the one that installs the handlers.
AT_AN_IMPORT = """
import os, runpy, signal, sys
class Counting:
    begun, left, number = False, int(sys.argv.pop(1)), int(sys.argv.pop(1))
    def find_spec(self, name, path=None, target=None):
        Counting.left -= Counting.begun
        Counting.begun = Counting.begun or name == "esp_ingest.service.lifetime"
        if Counting.left == 0:
            os.kill(os.getpid(), self.number)
sys.meta_path.insert(0, Counting())
runpy.run_module("esp_ingest", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_import_can_be_interrupted_by_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    def end_at(place: int) -> str:
        program = [sys.executable, "-c", AT_AN_IMPORT, str(place), str(int(number))]
        with started(tmp_path / str(place), "run", program=program) as process:
            _, complaint = process.communicate(timeout=60)
        return "" if process.returncode == 0 and complaint == "" else f"{place}: {process.returncode}, {complaint!r}"

    with ThreadPoolExecutor(3) as pool:
        places = [*range(1, 9), *range(9, 430, 30)]
        assert [wrong for wrong in pool.map(end_at, places) if wrong] == []


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
def test_a_reload_while_it_loads_does_not_end_a_daemon(tmp_path: Path, workers: list[str]) -> None:
    for delay in (0.0, 0.1, 0.3, 0.6):
        with started(tmp_path, "run", *workers) as process:
            await_our_first_line(process)
            time.sleep(delay)
            process.send_signal(signal.SIGHUP)
            time.sleep(0.5)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            said, complaint = process.communicate(timeout=60)
        assert (process.returncode, complaint) == (0, "")
        assert "starting it again" not in said


def test_workers_that_are_stopped_as_a_group_drain_once(tmp_path: Path) -> None:
    """Ctrl-C at a terminal and systemd with KillMode=control-group reach the workers as well as their supervisor."""
    with started(tmp_path, "run", "--workers", "2") as process:
        assert process.stdout is not None
        up = 0
        while up < 2:
            up += '"event": "started"' in process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        said, complaint = process.communicate(timeout=60)
    assert (process.returncode, complaint) == (0, ""), said
    assert said.count('"event": "stopped"') == 2


@pytest.mark.parametrize("command", [["check"], ["migrate"], ["rejects", "list"], ["alarms", "list"]])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("delay", [0.0, 0.03, 0.06, 0.12, 0.2])
def test_a_command_that_was_stopped_has_not_succeeded(
    tmp_path: Path, command: list[str], number: signal.Signals, delay: float
) -> None:
    with started(tmp_path, *command) as process:
        await_our_first_line(process)
        time.sleep(delay)
        process.send_signal(number)
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 1
    if complaint != "esp-ingest: Stopped by a signal before the command was done.\n":
        # With nothing at hand it may have come to its own end before the signal: one sentence of its own, or its lines.
        assert delay > 0
        assert complaint.count("\n") <= 1
        assert "Traceback" not in complaint


# A command in which a signal arrives while a module is loaded, which does not pass on what the handler raises.
LOADING = """
import sys
from esp_ingest.service import lifetime
lifetime.begin("check")
lifetime.has_loaded()
sys.path.insert(0, sys.argv[2])
import swallows
print("the command went on")
"""
SWALLOWS = """
import os, sys
try:
    os.kill(os.getpid(), int(sys.argv[1]))
    sum(range(100))
except BaseException:
    print("swallowed")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_while_a_module_is_loaded_ends_a_command_at_once(
    tmp_path: Path, number: signal.Signals
) -> None:
    """pydantic's core panics, with 32 lines, if a signal raises something in the imports that it does."""
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    program = [sys.executable, "-c", LOADING, str(int(number)), str(tmp_path)]
    with started(tmp_path, program=program) as process:
        said, complaint = process.communicate(timeout=60)
    assert (process.returncode, said) == (1, "")
    assert complaint == "esp-ingest: Stopped by a signal before the command was done.\n"


# A command in which a signal arrives while a finalizer, or the callback of a weak reference, is running.
SWALLOWED = """
import os, sys, weakref
from esp_ingest.service import lifetime
number, place = int(sys.argv[1]), sys.argv[2]
class Target:
    if place == "finalizer":
        def __del__(self):
            os.kill(os.getpid(), number)
def die(_reference):
    os.kill(os.getpid(), number)
lifetime.begin("check")
lifetime.has_loaded()
target = Target()
reference = weakref.ref(target, die) if place == "weak reference" else None
del target
print("the command went on")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("place", ["finalizer", "weak reference"])
def test_a_signal_that_python_would_drop_ends_a_command_all_the_same(
    tmp_path: Path, number: signal.Signals, place: str
) -> None:
    program = [sys.executable, "-c", SWALLOWED, str(int(number)), place]
    with started(tmp_path, program=program) as process:
        said, complaint = process.communicate(timeout=60)
    assert (process.returncode, said) == (1, "")
    assert complaint == "esp-ingest: Stopped by a signal before the command was done.\n"


# A command that has ended, and is asked to end once more while the interpreter takes its modules apart.
ENDED = """
import os, signal, sys
from esp_ingest.service import lifetime
class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), numbers=(signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)):
        for number in numbers:
            kill(pid, number)
lifetime.begin("run")
for number in lifetime.REQUESTS:
    signal.signal(number, lambda *_: None)
lifetime.is_over()
sys.last = Last()
"""


def test_a_daemon_that_has_ended_keeps_its_exit_status_while_the_interpreter_shuts_down(tmp_path: Path) -> None:
    """A supervisor whose workers were stopped with it asks them again, whenever that is."""
    with started(tmp_path, program=[sys.executable, "-c", ENDED]) as process:
        _, complaint = process.communicate(timeout=60)
    assert (process.returncode, complaint) == (0, "")


# A daemon whose parts hang: `drain` never has all of it, `finish` of the writer's thread never returns.
HANGS = """
import sys, time
from esp_ingest.ingest import pipeline
from esp_ingest.ingest import writer_stage as stage
def hang(_self, expired=lambda: False):
    while not expired():
        time.sleep(0.01)
    return False
if sys.argv.pop(1) == "drain":
    pipeline.Pipeline.drain = hang
else:
    stage.Stage.finish = hang
from esp_ingest.__main__ import main
raise SystemExit(main())
"""


def test_a_second_signal_says_so_and_a_supervisors_request_is_none(tmp_path: Path) -> None:
    with started(tmp_path, "drain", "run", program=[sys.executable, "-c", HANGS]) as process:
        await_the_word(process, "started")
        process.send_signal(signal.SIGTERM)
        await_the_word(process, "stopping")
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, complaint = process.communicate(timeout=30)
    assert process.returncode == 1
    assert re.fullmatch(r"esp-ingest: A second signal ended the daemon before it had drained: .*\n", complaint)


@pytest.mark.parametrize("part", ["drain", "finish"])
def test_a_drain_deadline_that_passes_says_so_and_nothing_claims_to_have_stopped(tmp_path: Path, part: str) -> None:
    short = {"SERVICE__DRAIN_SECONDS": "1"}
    with started(tmp_path, part, "run", program=[sys.executable, "-c", HANGS], **short) as process:
        await_the_word(process, "started")
        process.send_signal(signal.SIGTERM)
        said, complaint = process.communicate(timeout=30)
    assert process.returncode == 1
    assert '"event": "stopped"' not in said
    (last,) = [json.loads(line) for line in said.splitlines() if "drain deadline" in line]
    assert (last["level"], last["drain_seconds"], last["writer_ended"]) == ("error", 1, part == "drain")
    assert re.fullmatch(r"esp-ingest: The drain took longer than service.drain_seconds \(1 s\) .*\n", complaint)


def test_workers_that_do_not_drain_in_time_are_named(tmp_path: Path) -> None:
    short = {"SERVICE__DRAIN_SECONDS": "0.5"}
    with started(tmp_path, "run", "--workers", "2", **short) as process:
        assert process.stdout is not None
        pids = [json.loads(process.stdout.readline()).get("pid") for _ in range(3)]
        stopped = [pid for pid in pids if pid]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        said, complaint = process.communicate(timeout=30)
    assert process.returncode == 1
    (last,) = [json.loads(line) for line in said.splitlines() if "did not drain in time" in line]
    assert last["workers"] == [0, 1]
    assert re.fullmatch(r"esp-ingest: 2 workers did not drain within service.drain_seconds .*\n", complaint)


def await_the_word(process: "subprocess.Popen[str]", event: str) -> None:
    assert process.stdout is not None
    while f'"event": "{event}"' not in (line := process.stdout.readline()):
        assert line, "it ended"
