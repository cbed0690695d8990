"""Stored rejects: found by filters, shown, walked through and marked once."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from esp_ingest.commands.rejects import Replayer
from esp_ingest.config.settings import TelemetrySettings
from esp_ingest.model import Readings, Reject, RejectReason
from esp_ingest.store.rejects import RejectFilter, list_rejects, mark_replayed, pending_rejects, show_reject
from esp_ingest.store.schema import migrate
from esp_ingest.store.write.writer import PostgresStore
from esp_ingest.telemetry.decode import Decoder
from tests.support.databases import Database
from tests.support.store_data import START_US, reject

REJECTS = [reject(number) for number in range(10)]
REJECTS[4] = replace(REJECTS[4], topic=b"esp/\xff%_/telemetry", reason=RejectReason.INVALID_TOPIC, item=3)


@pytest.fixture
def connection(native_database: Database) -> Iterator[psycopg.Connection[Any]]:
    migrate(native_database.settings)
    store = PostgresStore(native_database.settings)
    assert store.write(Readings.empty(), REJECTS, []).rejected == 10
    store.close()
    with native_database.connect() as connection:
        yield connection


Connection = psycopg.Connection[Any]


def numbers(found: Any) -> list[int]:
    return [stored.reject.received_us - START_US for stored in found]


def test_they_come_back_as_they_were(connection: Connection) -> None:
    assert [stored.reject for stored in reversed(list_rejects(connection, RejectFilter()))] == REJECTS


def test_newest_first_up_to_the_limit(connection: Connection) -> None:
    assert numbers(list_rejects(connection, RejectFilter(), limit=3)) == [9, 8, 7]


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (RejectFilter(reason=RejectReason.INVALID_TOPIC), [4]),
        (RejectFilter(reason=RejectReason.EMPTY_PAYLOAD), []),
        (RejectFilter(topic="esp/w1/telemetry"), [9, 8, 7, 6, 5, 3, 2, 1, 0]),
        (RejectFilter(topic="esp/*%_/*"), [4]),
        (RejectFilter(topic="esp/__/telemetry"), []),
        (RejectFilter(since_us=START_US + 7), [9, 8, 7]),
        (RejectFilter(until_us=START_US + 2), [1, 0]),
        (RejectFilter(since_us=START_US + 3, until_us=START_US + 6, topic="*w1*"), [5, 3]),
    ],
)
def test_filters(connection: Connection, which: RejectFilter, expected: list[int]) -> None:
    assert numbers(list_rejects(connection, which)) == expected
    assert numbers(pending_rejects(connection, which)) == expected[::-1]


def test_one_by_its_id_or_digest(connection: Connection) -> None:
    stored = list_rejects(connection, RejectFilter(), limit=1)[0]
    assert show_reject(connection, stored.id) == stored
    assert show_reject(connection, stored.digest.hex.upper()) == stored
    assert show_reject(connection, f"1-{stored.digest.hex}") is None
    with pytest.raises(ValueError, match="no reject id"):
        show_reject(connection, "nonsense")


@pytest.mark.parametrize("page", [1, 3, 10, 500])
def test_a_walk_sees_each_once_while_they_are_marked(connection: Connection, page: int) -> None:
    seen = []
    for stored in pending_rejects(connection, RejectFilter(), page):
        seen.append(stored)
        assert mark_replayed(connection, stored, START_US + 100, "stored")
    assert numbers(seen) == list(range(10))
    assert list(pending_rejects(connection, RejectFilter())) == []
    assert list_rejects(connection, RejectFilter(pending=True)) == []
    marked = list_rejects(connection, RejectFilter())
    assert {(stored.replayed_us, stored.replay_outcome) for stored in marked} == {(START_US + 100, "stored")}


def test_of_two_at_once_one_marks(connection: Connection, native_database: Database) -> None:
    stored = list_rejects(connection, RejectFilter(), limit=1)[0]

    def mark(number: int) -> bool:
        with native_database.connect(autocommit=False) as own:
            return mark_replayed(own, stored, START_US, f"by {number}")

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(mark, range(4))) == [False, False, False, True]


def test_what_was_ahead_of_a_clock_that_was_not_set_is_judged_by_the_present(native_database: Database) -> None:
    """A controller of today looked 56 years ahead to a server that began at 1970, and for ever after."""
    migrate(native_database.settings)
    store = PostgresStore(native_database.settings)
    now_ms = time.time_ns() // 1_000_000
    today, tomorrow = (b'{"timestamp":%d,"pip":1}' % (now_ms + later) for later in (-60_000, 86_400_000))
    store.write(
        Readings.empty(),
        [
            Reject(received_us, b"esp/w1/telemetry", RejectReason.TIMESTAMP_AHEAD, "It lies ahead.", payload)
            for received_us, payload in ((7_000_000, today), (8_000_000, tomorrow), (now_ms * 1_000, tomorrow))
        ],
        [],
    )
    with native_database.connect() as connection:
        replayer = Replayer(Decoder(TelemetrySettings(), "esp"), store, connection, False)
        outcomes = replayer.replay(pending_rejects(connection, RejectFilter()))
        assert outcomes == {"stored": 1, "rejected again: timestamp_ahead": 2}
    (stored,) = native_database.all("SELECT (extract(epoch FROM timestamp) * 1000)::bigint FROM esp_telemetry")
    assert stored == (now_ms - 60_000,)
    store.close()
