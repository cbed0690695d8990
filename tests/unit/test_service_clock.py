"""One contract for every Clock, real and fake."""

import threading
import time

import pytest

from esp_ingest.interfaces import Clock
from esp_ingest.service.clock import SystemClock
from tests.support.fake_clock import FakeClock


@pytest.fixture(params=[SystemClock, FakeClock])
def clock(request: pytest.FixtureRequest) -> Clock:
    made: Clock = request.param()
    return made


def test_monotonic_time_never_runs_back(clock: Clock) -> None:
    readings = [clock.monotonic() for _ in range(1_000)]
    assert readings == sorted(readings)


def test_wall_time_is_an_integer_of_microseconds_in_this_century(clock: Clock) -> None:
    now = clock.now_us()
    assert isinstance(now, int)
    assert 1_577_836_800_000_000 < now < 4_102_444_800_000_000  # 2020 … 2100: seconds or milliseconds would not fit


def test_sleep_lets_that_much_time_pass_on_both_clocks(clock: Clock) -> None:
    before, wall_before = clock.monotonic(), clock.now_us()
    clock.sleep(0.02)
    assert clock.monotonic() - before >= 0.0199
    assert clock.now_us() - wall_before >= 19_000


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_sleeping_for_no_time_returns_at_once(clock: Clock, seconds: float) -> None:
    before = clock.monotonic()
    clock.sleep(seconds)
    assert 0 <= clock.monotonic() - before < 1


def test_it_may_be_read_from_any_thread(clock: Clock) -> None:
    seen: list[float] = []
    thread = threading.Thread(target=lambda: seen.append(clock.monotonic()))
    thread.start()
    thread.join()
    assert len(seen) == 1


def test_the_system_clock_is_this_machines() -> None:
    assert abs(SystemClock().now_us() / 1e6 - time.time()) < 1
    assert abs(SystemClock().monotonic() - time.monotonic()) < 1


def test_a_stepped_wall_clock_leaves_monotonic_time_alone() -> None:
    clock = FakeClock()
    wall, monotonic = clock.now_us(), clock.monotonic()
    clock.step_wall(-3_600)
    assert (clock.now_us(), clock.monotonic()) == (wall - 3_600_000_000, monotonic)


def test_the_fake_refuses_to_run_backwards() -> None:
    with pytest.raises(ValueError, match="step_wall"):
        FakeClock().advance(-1)
