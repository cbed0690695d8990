"""The spool on a real disk: SIGKILL at any moment, and a file system without room."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp_ingest.model import Delivery
from esp_ingest.store.spool.spool import Spool, SpoolFull
from tests.support.databases import unavailable
from tests.support.rig import say

pytestmark = [pytest.mark.fault, pytest.mark.timeout(200)]

MIB = 1_048_576

# Appends numbered messages and says which are safe; drains some now and then and says which are gone.
WORKER = """
import os, random, sys
from pathlib import Path
from esp_ingest.store.spool.spool import Spool
from esp_ingest.model import Delivery

def say(line):  # one system call, where print may make three: a kill between them leaves half a line
    os.write(1, line.encode() + b"\\n")

spool = Spool(Path(sys.argv[1]), 1 << 28, 1 << 18)
assert not any(report.lost for report in spool.reports), spool.reports
chance, number = random.Random(int(sys.argv[2])), int(sys.argv[3])
say("open")
while True:
    count = chance.randrange(1, 800)
    spool.append([Delivery(b"%d" % n, b"x" * chance.randrange(300), 1, 1, 0, n) for n in range(number, number + count)])
    number += count
    say(f"safe {number}")
    if chance.random() < 0.3:
        batch = spool.peek(chance.randrange(1, 1500), 1 << 20)
        say(f"draining {batch.deliveries[-1].received_us}")
        spool.discard(batch)
"""


def killed_once(folder: Path, seed: int, first: int, wait_seconds: float) -> tuple[int, int]:
    """(number up to which appends are safe, number up to which a discard began)."""
    command = [sys.executable, "-c", WORKER, str(folder), str(seed), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "open\n"
        time.sleep(wait_seconds)
        worker.kill()
        safe, drained = first, first - 1
        for line in worker.stdout.read().splitlines():
            word, _, number = line.partition(" ")
            if word == "safe":
                safe = int(number)
            elif word == "draining":
                drained = int(number)
    return safe, drained


def check_after_kill(folder: Path, safe: int, drained: int) -> int:
    """Everything confirmed and not drained is there, in order. Returns the number to go on with."""
    spool = Spool(folder, 1 << 28, 1 << 18)
    numbers: list[int] = []
    while batch := spool.peek(5_000, MIB):
        numbers += [delivery.received_us for delivery in batch.deliveries]
        spool.discard(batch)
    assert numbers == sorted(set(numbers)), "in order, each once"
    missing = set(range(drained + 1, safe)) - set(numbers)
    assert not missing, f"{len(missing)} confirmed messages are gone, the first is {min(missing)}"
    assert spool.set_aside_total == 0
    spool.close()
    return max([safe, *(number + 1 for number in numbers)])


def kills(folder: Path, times: int) -> None:
    seed = int(os.environ.get("FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
    say(f"\nspool killed {times} times: seed {seed}")
    chance = random.Random(seed)
    first, confirmed, started = 0, 0, time.monotonic()
    for turn in range(times):
        safe, drained = killed_once(folder, seed + turn, first, chance.uniform(0.0, 0.3))
        confirmed += safe - first
        first = check_after_kill(folder, safe, drained)
    say(f"spool killed {times} times: confirmed {confirmed}, lost 0, {time.monotonic() - started:.0f} s")
    assert confirmed > 0


def test_killed_at_any_moment(tmp_path: Path) -> None:
    kills(tmp_path / "spool", 12)


@pytest.mark.soak
def test_killed_300_times(tmp_path: Path) -> None:
    kills(tmp_path / "spool", 300)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        unavailable("a small disk needs root and leave to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 4_096)


def messages(first: int, count: int) -> list[Delivery]:
    return [Delivery(b"t", b"x" * 200, 1, 1, 0, number) for number in range(first, first + count)]


def test_full_disk(small_disk: Path) -> None:
    """Full is said as full, nothing is half-kept, the drain needs no room, and then there is room again."""
    spool = Spool(small_disk / "spool", 64 * MIB, MIB)
    number = 0
    with pytest.raises(SpoolFull, match="disk under the spool"):  # noqa: PT012 - which append it is, is not the point
        while number < 1_000_000:
            spool.append(messages(number, 700))
            number += 700
    assert len(spool) == number
    for _ in range(3):
        with pytest.raises(SpoolFull):
            spool.append(messages(number, 700))
    came: list[int] = []
    while len(spool) > number // 2:
        batch = spool.peek(500, MIB)
        came += [delivery.received_us for delivery in batch.deliveries]
        spool.discard(batch)
    spool.append(messages(number, 700))
    while batch := spool.peek(500, MIB):
        came += [delivery.received_us for delivery in batch.deliveries]
        spool.discard(batch)
    assert came == list(range(number + 700))
    assert not spool.reports
    spool.close()


def test_full_disk_and_a_restart(small_disk: Path) -> None:
    """A daemon that starts on a full disk drains it."""
    spool = Spool(small_disk / "spool", 64 * MIB, MIB)
    spool.append(messages(0, 3_000))
    fill(small_disk)
    with pytest.raises(SpoolFull):
        spool.append(messages(3_000, 3_000))
    spool.close()
    again = Spool(small_disk / "spool", 64 * MIB, MIB)
    came: list[int] = []
    while batch := again.peek(500, MIB):
        came += [delivery.received_us for delivery in batch.deliveries]
        again.discard(batch)
    assert came == list(range(3_000))
    assert not again.reports
    again.close()
