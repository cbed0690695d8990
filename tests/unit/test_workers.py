"""The supervisor of `run --workers N`, with processes that are none: pauses, who has left, what ends all."""

from pathlib import Path
from typing import Any

import pytest

from esp_ingest import workers
from esp_ingest.config.load import load
from esp_ingest.config.settings import ConfigError, Settings
from esp_ingest.workers import Supervisor
from tests.support.fake_clock import FakeClock


class Worker:
    """A process; ``returncode`` ends it."""

    def __init__(self, index: int, leaves: bool) -> None:
        self.index, self.leaves = index, leaves
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    found: list[Worker] = []

    def start(_settings: Settings, _file: Path | None, index: int, *, leaves: bool) -> Any:
        found.append(Worker(index, leaves))
        return found[-1]

    monkeypatch.setattr(workers, "start", start)
    return found


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(spool={"path": str(tmp_path)})


def seconds_until_the_next(supervisor: Supervisor, clock: FakeClock, started: list[Worker]) -> float:
    before, since = len(started), clock.monotonic()
    while len(started) == before:
        supervisor.keep_running()
        clock.advance(0.5)
    return clock.monotonic() - since - 0.5


def test_the_pause_of_a_worker_that_dies_grows_and_is_short_again_after_a_minute_of_life(
    settings: Settings, started: list[Worker]
) -> None:
    clock = FakeClock()
    supervisor = Supervisor(settings, None, 1, clock)
    supervisor.keep_running()
    pauses = []
    for _ in range(7):
        started[-1].returncode = 1
        pauses.append(seconds_until_the_next(supervisor, clock, started))
    assert pauses == [2, 4, 8, 16, 32, 60, 60]
    clock.advance(61)
    started[-1].returncode = 1
    assert seconds_until_the_next(supervisor, clock, started) == 2


def test_a_first_start_that_finds_the_configuration_unusable_ends_all_and_a_later_one_does_not(
    settings: Settings, started: list[Worker]
) -> None:
    clock = FakeClock()
    supervisor = Supervisor(settings, None, 2, clock)
    supervisor.keep_running()
    started[0].returncode = 1
    seconds_until_the_next(supervisor, clock, started)
    started[-1].returncode = 2  # the file was changed meanwhile, and the other worker is well
    supervisor.keep_running()
    assert not supervisor.is_stopping
    started[1].returncode = 2
    supervisor.keep_running()
    assert supervisor.is_stopping
    assert supervisor.is_unusable


def test_who_leaves_is_tried_again_until_nothing_of_it_is_left(
    settings: Settings, started: list[Worker], tmp_path: Path
) -> None:
    (tmp_path / "worker-1").mkdir()
    record = tmp_path / "worker-1" / "mqtt-session-esp-ingest-1.json"
    record.touch()
    clock = FakeClock()
    supervisor = Supervisor(settings, None, 1, clock)
    supervisor.keep_running()
    assert [(worker.index, worker.leaves) for worker in started] == [(0, False), (1, True)]
    started[1].returncode = 0  # somebody ended it: what it had is still there
    assert seconds_until_the_next(supervisor, clock, started) == 2
    assert (started[-1].index, started[-1].leaves) == (1, True)
    record.unlink()
    started[-1].returncode = 0
    for _ in range(300):
        supervisor.keep_running()
        clock.advance(0.5)
    assert len(started) == 3


def test_ports_that_there_are_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The health port of worker 3 would be 65537: set a lower http\.port"):
        workers.run(load(http={"port": 65_534}), None, 4)
