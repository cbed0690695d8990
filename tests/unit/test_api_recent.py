"""Charts that several look at are read once, and never shown for longer than they say."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from esp_ingest.api.reads.recent import RecentPages
from esp_ingest.api.reads.telemetry import Page
from tests.support.fake_clock import FakeClock

DAY_SECONDS = 86_400.0
AT = datetime(2026, 6, 12, tzinfo=UTC)


class Readings:
    """What the database would give; ``reads`` counts how often it was asked."""

    def __init__(self, resolution: str = "24m", rows: int = 120) -> None:
        self.reads = 0
        self._resolution, self._rows = resolution, rows

    async def read(self) -> Page:
        self.reads += 1
        rows: list[list[Any]] = [[AT, float(self.reads)] for _ in range(self._rows)]
        return Page(self._resolution, ["timestamp", "pip"], [None, "pip"], rows, None)


def ask(pages: RecentPages, source: Readings, key: str = "ESP-01", seconds: float = DAY_SECONDS) -> float:
    page = asyncio.run(pages.page(key, seconds, 120, source.read))
    return float(page.rows[0][1])


def test_who_asks_the_same_within_a_twentieth_of_a_bucket_gets_the_same() -> None:
    clock, source = FakeClock(), Readings()
    pages = RecentPages(clock)
    assert ask(pages, source) == 1.0
    clock.advance(59.9)
    assert ask(pages, source) == 1.0
    clock.advance(0.1)
    assert ask(pages, source) == 2.0


def test_a_short_range_is_shown_for_a_shorter_time() -> None:
    clock, source = FakeClock(), Readings("60s")
    pages = RecentPages(clock)
    ask(pages, source, seconds=3_600.0)  # a row stands for 30 s
    clock.advance(2.9)
    assert ask(pages, source, seconds=3_600.0) == 1.0
    clock.advance(0.2)
    assert ask(pages, source, seconds=3_600.0) == 2.0


def test_another_question_gets_its_own_answer() -> None:
    pages, one, other = RecentPages(FakeClock()), Readings(), Readings()
    ask(pages, one, "ESP-01")
    ask(pages, other, "ESP-02")
    assert (one.reads, other.reads) == (1, 1)


def test_readings_as_stored_are_read_anew_each_time() -> None:
    pages, source = RecentPages(FakeClock()), Readings("raw")
    assert [ask(pages, source) for _ in range(3)] == [1.0, 2.0, 3.0]


def test_what_fails_is_not_kept() -> None:
    pages, source = RecentPages(FakeClock()), Readings()

    async def fail() -> Page:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        asyncio.run(pages.page("ESP-01", DAY_SECONDS, 120, fail))
    assert ask(pages, source) == 1.0


def test_the_oldest_give_way_when_too_much_is_kept() -> None:
    pages, source = RecentPages(FakeClock(), most_values=3 * 260), Readings()
    for number in range(4):
        ask(pages, source, f"ESP-{number}")
    ask(pages, source, "ESP-3")
    ask(pages, source, "ESP-1")
    assert source.reads == 4
    ask(pages, source, "ESP-0")
    assert source.reads == 5
    ask(pages, Readings(rows=10_000), "too large")  # nothing but this would fit, and neither does this
    ask(pages, source, "ESP-3")
    assert source.reads == 6


def test_pages_without_rows_give_way_too() -> None:
    """A signal that a well never sends, asked for over ever other ranges."""
    pages, source = RecentPages(FakeClock(), most_values=1_000), Readings(rows=0)

    def ask_for_nothing(number: int) -> None:
        asyncio.run(pages.page(number, DAY_SECONDS, 120, source.read))

    for number in range(60):
        ask_for_nothing(number)
    ask_for_nothing(59)
    assert source.reads == 60
    ask_for_nothing(0)
    assert source.reads == 61
