"""Health: what turns which probe red, when, and in which words."""

import threading

import pytest

from esp_ingest.config.settings import ServiceSettings
from esp_ingest.service import health as conditions
from esp_ingest.service.health import Health
from tests.support.fake_clock import FakeClock

STUCK = 60.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def health(clock: FakeClock) -> Health:
    return Health(clock, ServiceSettings(stuck_after_seconds=STUCK))


def make_well(health: Health) -> None:
    for name in (conditions.MQTT, conditions.DATABASE, conditions.SCHEMA, conditions.SPOOL, conditions.UNACKED):
        health.set(name, True, "fine")
    health.set("mqtt_thread", True, "runs")
    health.beat("pipeline")


def test_at_the_start_it_is_live_and_neither_started_nor_ready(health: Health) -> None:
    assert health.live()[0]
    ok, checks = health.startup()
    assert not ok
    assert checks["configuration"]["ok"]
    assert checks["schema"] == {"ok": False, "detail": "not checked yet"}
    ok, checks = health.ready()
    assert not ok
    assert checks["database"] == {"ok": False, "detail": "not reached yet"}
    assert checks["mqtt"] == {"ok": False, "detail": "not connected yet"}


def test_when_all_is_well_every_probe_is_green(health: Health) -> None:
    make_well(health)
    assert health.live()[0]
    assert health.startup()[0]
    assert health.ready()[0]


def test_startup_once_passed_stays_passed(health: Health) -> None:
    make_well(health)
    health.set(conditions.MQTT, False, "connection refused")
    assert health.startup()[0]
    assert not health.ready()[0]


@pytest.mark.parametrize("name", [conditions.MQTT, conditions.DATABASE, conditions.SPOOL, conditions.SCHEMA])
def test_an_outage_outside_turns_readiness_red_and_never_liveness(health: Health, clock: FakeClock, name: str) -> None:
    make_well(health)
    health.set(name, False, "away")
    health.set(conditions.UNACKED, name == conditions.SCHEMA, "oldest unacknowledged message is 9000 s old")
    for _ in range(100):
        clock.advance(90)
        health.beat("pipeline")
        assert health.live()[0]
        ok, checks = health.ready()
        assert not ok
        assert checks[name] == {"ok": False, "detail": "away"}


def test_a_loop_that_stops_turns_readiness_then_liveness_red(health: Health, clock: FakeClock) -> None:
    make_well(health)
    clock.advance(STUCK - 1)
    assert health.ready()[0]
    clock.advance(1)
    assert (health.ready()[0], health.live()[0]) == (False, True)
    clock.advance(STUCK / 2)
    ok, checks = health.live()
    assert not ok
    assert checks["pipeline_loop"] == {"ok": False, "detail": "has not moved for 90 s"}
    health.beat("pipeline")
    assert (health.ready()[0], health.live()[0]) == (True, True)


def test_a_loop_without_work_is_not_stuck(health: Health, clock: FakeClock) -> None:
    make_well(health)
    health.beat("writer")
    health.idle("writer")
    clock.advance(10 * STUCK)
    health.beat("pipeline")
    assert health.ready()[0]
    assert health.idle_seconds() == {"pipeline": 0.0, "writer": 0.0}
    health.beat("writer")
    clock.advance(STUCK)
    assert not health.ready()[0]


def test_a_loop_that_ended_is_forgotten(health: Health, clock: FakeClock) -> None:
    make_well(health)
    health.beat("writer")
    health.forget("writer")
    clock.advance(STUCK)
    health.beat("pipeline")
    assert health.ready()[0]


def test_a_dead_thread_turns_readiness_red_at_once_and_liveness_soon(health: Health, clock: FakeClock) -> None:
    make_well(health)
    health.set("mqtt_thread", False, "the network thread has died")
    assert (health.ready()[0], health.live()[0]) == (False, True)
    clock.advance(STUCK / 2)
    health.beat("pipeline")
    ok, checks = health.live()
    assert not ok
    assert checks["mqtt_thread"]["detail"] == "the network thread has died"


def test_an_unacknowledged_message_that_nothing_explains_ends_in_a_restart(health: Health, clock: FakeClock) -> None:
    make_well(health)
    clock.advance(10 * STUCK)
    health.beat("pipeline")
    health.set(conditions.UNACKED, False, "oldest unacknowledged message is 60 s old")
    assert (health.ready()[0], health.live()[0]) == (False, True)
    clock.advance(STUCK / 2)
    health.set(conditions.UNACKED, False, "oldest unacknowledged message is 90 s old")
    ok, checks = health.live()
    assert not ok
    assert "90 s" in str(checks["unacked"]["detail"])


def test_after_an_outage_the_backlog_gets_time_before_it_counts_as_stuck(health: Health, clock: FakeClock) -> None:
    make_well(health)
    health.set(conditions.DATABASE, False, "connection refused")
    clock.advance(20 * STUCK)
    health.beat("pipeline")
    health.set(conditions.UNACKED, False, "oldest unacknowledged message is 1200 s old")
    clock.advance(STUCK)
    health.set(conditions.DATABASE, True, "reachable")
    health.beat("pipeline")
    assert health.live()[0]
    clock.advance(STUCK / 2)
    assert not health.live()[0]


def test_it_is_fed_and_asked_from_many_threads(health: Health) -> None:
    make_well(health)
    errors: list[BaseException] = []

    def feed(name: str) -> None:
        try:
            for n in range(300):
                health.beat(f"{name}{n % 7}")
                health.set(f"{name}{n % 5}", True, "fine")
                health.ready()
                health.live()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=feed, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert health.ready()[0]


def test_no_password_is_told_to_whoever_asks(health: Health) -> None:
    health.set(conditions.DATABASE, False, "cannot reach postgresql://esp:hunter2@db/esp")
    assert "hunter2" not in str(health.ready())
    assert "postgresql://esp:***@db/esp" in str(health.ready())
