"""The parts of the API that need no database: units, cursors, ranges, patterns of wells, the throttle, formats,
buckets."""

import asyncio
import math
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.requests import Request

from esp_ingest.api.access import keys, passwords
from esp_ingest.api.access.principal import Principal
from esp_ingest.api.access.throttle import FREE_FAILURES, LONGEST_WAIT_SECONDS, SignInThrottle
from esp_ingest.api.monitor import figures_of
from esp_ingest.api.reads import telemetry as reader
from esp_ingest.api.reads.fleet import Well, gathered, running
from esp_ingest.api.reads.live import MOST_ITEMS, Event, Feed, Ring, wants
from esp_ingest.api.wire import answers, cursors, ranges, units
from esp_ingest.api.wire.problems import Problem, answer
from esp_ingest.config.load import load
from esp_ingest.config.settings import ConfigError
from esp_ingest.model import SIGNAL_NAMES, SIGNALS, at_us
from tests.support.fake_clock import FakeClock

times = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
NOW_US = round(NOW.timestamp() * 1e6)


def principal(*wells: str, role: Any = "viewer") -> Principal:
    return Principal("x", role, wells, "user", 0.0)


class TestUnits:
    @pytest.mark.parametrize(
        ("signal", "stored", "metric", "unit"),
        [
            ("pip", 14.5037737730, 1.0, "bar"),
            ("motor_temp", 212.0, 100.0, "°C"),
            ("motor_temp", 32.0, 0.0, "°C"),
            ("flow_rate", 6.28981077, 1.0, "m³/d"),
            ("vibration", 1.0, 25.4, "mm/s"),
            ("gor", 5.61458333, 1.0, "m³/m³"),
            ("motor_current", 40.0, 40.0, "A"),
        ],
    )
    def test_known_values(self, signal: str, stored: float, metric: float, unit: str) -> None:
        assert units.convert(stored, signal, "metric") == pytest.approx(metric, rel=1e-8, abs=1e-12)
        assert units.unit(signal, "metric") == unit

    @given(st.sampled_from(SIGNAL_NAMES), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
    def test_order_stays(self, signal: str, one: float, other: float) -> None:
        low, high = sorted((one, other))
        assert (units.convert(low, signal, "metric") or 0) <= (units.convert(high, signal, "metric") or 0)

    def test_field_is_as_stored_and_none_stays_none(self) -> None:
        for signal in SIGNALS:
            assert units.convert(1.25, signal.name, "field") == 1.25
            assert units.unit(signal.name, "field") == signal.unit
            assert units.convert(None, signal.name, "metric") is None
        rows: list[list[Any]] = [[NOW, 212.0, None]]
        units.convert_rows(rows, [None, "motor_temp", "pip"], "metric")
        assert rows == [[NOW, pytest.approx(100.0), None]]


class TestCursors:
    @given(times, st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=80), st.uuids())
    def test_there_and_back(self, at: datetime, text: str, digest: UUID) -> None:
        cursor = cursors.encode("list", at, text, digest)
        assert cursors.decode("list", cursor, (datetime, str, UUID)) == [at, text, digest]
        assert cursor.isascii()
        assert "=" not in cursor

    @given(st.one_of(st.text(max_size=300), st.binary(max_size=200).map(lambda b: b.hex())))
    def test_anything_else_is_a_problem_and_no_error(self, text: str) -> None:
        with pytest.raises(Problem) as caught:
            cursors.decode("list", text, (datetime, str))
        assert caught.value.status == 422

    def test_of_another_list(self) -> None:
        with pytest.raises(Problem, match="next link"):
            cursors.decode("alarms", cursors.encode("rejects", NOW, uuid4()), (datetime, UUID))
        with pytest.raises(Problem):
            cursors.decode("alarms", cursors.encode("alarms", NOW, "x"), (datetime, UUID))
        assert cursors.decode("alarms", None, (datetime,)) is None


class TestRanges:
    def test_defaults_and_ages(self) -> None:
        day = timedelta(days=1)
        assert ranges.range_of(None, None, NOW_US, 30, day) == (NOW - day, NOW)
        assert ranges.range_of("2h", "1h", NOW_US, 30, day) == (NOW - 2 * day / 24, NOW - day / 24)
        plus = ranges.range_of("2026-11-24T06:00:00 01:00", None, NOW_US, 30, day)
        assert plus.start == datetime(2026, 11, 24, 5, tzinfo=UTC), "a plus that was not encoded is a space"

    @pytest.mark.parametrize(
        ("start", "end", "word"),
        [
            ("yesterday", None, "RFC 3339"),
            ("2026-11-24T06:00:00", None, "lacks its offset"),
            ("1h", "2h", "before to"),
            ("1800-01-01T00:00:00Z", None, "30 days"),
            ("999999w", None, "not a time"),
            (None, "0001-01-01T00:00:00Z", "before all data"),
        ],
    )
    def test_refused(self, start: str | None, end: str | None, word: str) -> None:
        with pytest.raises(Problem, match=word):
            ranges.range_of(start, end, NOW_US, 30, timedelta(days=1))


class TestWhoSeesWhat:
    @pytest.mark.parametrize(
        ("patterns", "seen", "unseen"),
        [
            (("*",), ["A", "any.thing-1_2"], []),
            (("A-*",), ["A-1", "A-"], ["B-1", "A", "xA-1"]),
            (("A.1",), ["A.1"], ["AX1", "A.12"]),
            (("*-7", "B_1"), ["A-7", "B_1"], ["A-70", "BX1"]),
            ((), [], ["A", ""]),
        ],
    )
    def test_patterns(self, patterns: tuple[str, ...], seen: list[str], unseen: list[str]) -> None:
        asker = principal(*patterns)
        assert all(asker.sees(well) for well in seen)
        assert not any(asker.sees(well) for well in unseen)

    def test_like_escapes_what_like_means(self) -> None:
        assert principal("A_1*", "50%\\").like == ["A\\_1%", "50\\%\\\\"]

    def test_roles_are_a_ladder(self) -> None:
        assert principal(role="admin").may("operator")
        assert not principal(role="viewer").may("operator")


class TestThrottle:
    def test_failures_are_free_then_cost_a_doubling_wait(self) -> None:
        clock = FakeClock()
        throttle = SignInThrottle(clock, 1_000)
        waits = []
        for _ in range(FREE_FAILURES + 12):
            wait = throttle.wait("here", "ada")
            waits.append(wait)
            clock.advance(wait + 0.001)
            assert not wait or throttle.wait("here", "ada") == 0
        assert waits[:FREE_FAILURES] == [0.0] * FREE_FAILURES
        assert [round(wait) for wait in waits[FREE_FAILURES:]] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
        assert max(waits) <= LONGEST_WAIT_SECONDS
        assert throttle.wait("elsewhere", "ada") == 0, "from elsewhere he may"
        assert throttle.wait("here", "bob") == 0
        clock.advance(400)
        assert throttle.wait("here", "ada") == 0
        throttle.succeeded("here", "ada")
        assert [throttle.wait("here", "ada") for _ in range(FREE_FAILURES)] == [0.0] * FREE_FAILURES

    def test_attempts_at_the_same_time_are_counted_when_they_begin(self) -> None:
        throttle = SignInThrottle(FakeClock(), 1_000)
        assert [throttle.wait("here", "ada") > 0 for _ in range(30)] == [False] * FREE_FAILURES + [True] * 25

    def test_an_attempt_that_nobody_could_judge_is_no_failure(self) -> None:
        throttle = SignInThrottle(FakeClock(), 1_000)
        for _ in range(3 * FREE_FAILURES):
            assert throttle.wait("here", "ada") == 0
            throttle.unjudged("here", "ada")

    def test_an_address_has_so_many_a_minute(self) -> None:
        clock = FakeClock()
        throttle = SignInThrottle(clock, 6)
        assert [throttle.wait("here", f"u{n}") > 0 for n in range(7)] == [False] * 6 + [True]
        clock.advance(throttle.wait("here", "u") + 0.01)
        assert throttle.wait("here", "u") == 0

    def test_memory_is_bounded(self) -> None:
        throttle = SignInThrottle(FakeClock(), 10)
        for number in range(10):
            throttle.wait("first", f"u{number % 2}")  # five failures of each, and all attempts of the minute
        assert throttle.wait("first", "u0") > 0, "u0 has failed too often"
        assert throttle.wait("first", "u2") > 0, "the address has had its attempts"
        for number in range(10_000 - 1):
            throttle.wait(f"a{number}", "x")
        assert throttle.wait("first", "u2") > 0, "the oldest of 10 000 addresses"
        for number in range(10_000):
            throttle.wait(f"b{number}", "x")
        assert throttle.wait("first", "u2") == 0, "the address is forgotten"
        assert throttle.wait("first", "u0") == 0, "the failures are forgotten"


class TestKeys:
    @pytest.mark.parametrize("content", ["", "short", "-----BEGIN PRIVATE KEY-----\nno\n-----END PRIVATE KEY-----\n"])
    def test_what_is_no_key(self, tmp_path: Any, content: str) -> None:
        (tmp_path / "key").write_text(content)
        with pytest.raises(ConfigError, match=r"api\.key_file"):
            keys.read(tmp_path / "key")

    def test_two_processes_make_one_key(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ESP_INGEST_SPOOL__PATH", str(tmp_path / "state" / "spool"))
        settings = load()
        token = keys.load(settings).sign({"iss": "i", "aud": "a"})
        assert keys.load(settings).verify(token, issuer="i", audience="a", required=["iss"]) == {"iss": "i", "aud": "a"}
        assert [path.name for path in (tmp_path / "state").iterdir()] == ["api-key"]


def test_passwords() -> None:
    stored = passwords.hashed("correct horse")
    assert passwords.matches(stored, "correct horse")
    assert not passwords.matches(stored, "correct hors")
    assert not passwords.matches(None, "a password that nobody has")
    assert not passwords.is_outdated(stored)


def asked(accept: str | None) -> Request:
    headers = [] if accept is None else [(b"accept", accept.encode())]
    scope = {"type": "http", "method": "GET", "path": "/x", "query_string": b"a=1&a=2&b=3", "headers": headers}
    return Request(scope)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, answers.JSON),
        ("*/*", answers.JSON),
        ("text/html, */*;q=0.1", answers.JSON),
        ("text/csv", answers.CSV),
        ("application/json;q=0.5, text/csv", answers.CSV),
        ("text/csv;q=0, application/json", answers.JSON),
        (answers.ARROW, answers.ARROW),
    ],
)
def test_accept(accept: str | None, expected: str) -> None:
    assert answers.accepted(asked(accept)) == expected


@pytest.mark.parametrize("accept", ["image/png", "application/json;q=0", "text/csv;q=x"])
def test_nothing_acceptable(accept: str) -> None:
    with pytest.raises(Problem) as caught:
        answers.accepted(asked(accept))
    assert caught.value.status == 406


def test_links_keep_what_was_asked_for() -> None:
    assert answers.link(asked(None), b=None, cursor="c d") == "/x?a=1&a=2&cursor=c+d"


class TestBuckets:
    @given(
        st.lists(
            st.tuples(st.integers(0, 10_000_000), st.one_of(st.none(), st.floats(-1e6, 1e6))),
            min_size=1, max_size=60, unique_by=lambda pair: pair[0],
        )
    )  # fmt: skip
    def test_a_bucket_keeps_its_extremes_in_their_order(self, pairs: list[tuple[int, float | None]]) -> None:
        """As the database gathers a bucket: [value, time] of the lowest and [value, -time] of the highest."""
        pairs = sorted(pairs)
        first, last = at_us(NOW_US + pairs[0][0]), at_us(NOW_US + pairs[-1][0])
        known = [(value, (NOW_US + at) / 1e6) for at, value in pairs if value is not None]
        low = list(min(known)) if known else None
        high = max([value, -at] for value, at in known) if known else None
        single = reader.two_rows((first, last, low, high), 1)
        double = reader.two_rows((first, last, low, high, low, high), 2)
        if not known:
            assert single == []
            assert all(row[1:] == [None, None] for row in double)
            return
        values = [value for value, _ in known]
        readings = {(at_us(NOW_US + at), value) for at, value in pairs}
        assert {(row[0], row[1]) for row in single} <= readings, "with one signal they are readings"
        for rows in (single, double):
            assert len(rows) <= 2
            assert [row[0] for row in rows] == sorted(row[0] for row in rows)
            if first != last:
                assert {min(values), max(values)} <= {row[1] for row in rows}

    @given(times, st.integers(1, 400 * 86_400), st.integers(10, 5_000))
    @example(at_us(NOW_US), 1, 4_476)
    def test_never_more_rows_than_asked_for(self, start: datetime, seconds: int, max_points: int) -> None:
        """Buckets of the width that is chosen, two rows each, however the range lies."""
        end = start + timedelta(seconds=seconds)
        width = reader.bucket_width(end - start, max_points)
        buckets = (reader.ceil(end, width) - reader.floor(start, width)) // width
        assert 2 * (buckets + 2) <= max(max_points, 10), "and two more where aggregates and readings meet"

    @given(times, st.sampled_from([timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)]))
    def test_floor_and_ceil(self, at: datetime, width: timedelta) -> None:
        below, above = reader.floor(at, width), reader.ceil(at, width)
        assert below <= at <= above
        assert above - below in (timedelta(0), width)

    @pytest.mark.parametrize(
        ("width", "spelled"),
        [(1, "1s"), (90, "90s"), (300, "5m"), (3_600, "1h"), (86_400, "1d"), (7 * 86_400, "7d"), (0.25, "0.25s")],
    )
    def test_spelled(self, width: float, spelled: str) -> None:
        assert reader.spelled(timedelta(seconds=width)) == spelled

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.floats(-1e3, 1e3)), min_size=1, max_size=20))
    def test_halves_of_a_bucket_become_one(self, parts: list[tuple[int, int, float]]) -> None:
        rows: list[list[Any]] = [[NOW + timedelta(hours=at), n, v, v - 1, v + 1] for at, n, v in parts]
        merged = reader.merged(rows)
        assert len({row[0] for row in merged}) == len(merged)
        assert sum(row[1] for row in merged) == sum(n for _, n, _ in parts)
        assert max(row[4] for row in merged) == max(v + 1 for _, _, v in parts)
        total = sum(row[1] * row[2] for row in merged)
        assert math.isclose(total, sum(n * v for _, n, v in parts), abs_tol=1e-6)


def values(**given_values: float) -> tuple[float | None, ...]:
    return tuple(given_values.get(name) for name in SIGNAL_NAMES)


@pytest.mark.parametrize(
    ("reading", "state"),
    [
        ({"vsd_frequency": 52.0, "motor_current": 40.0}, "running"),
        ({"motor_current": 40.0}, "running"),
        ({"vsd_frequency": 5.0, "motor_current": 40.0}, "stopped"),
        ({"vsd_frequency": 52.0, "motor_current": 0.0}, "stopped"),
        ({"pip": 600.0}, "unknown"),
    ],
)
def test_what_a_reading_says_of_a_well(reading: dict[str, float], state: str) -> None:
    assert running(values(**reading)) == state
    assert Well("W", NOW, values(**reading)).state(NOW + timedelta(hours=1), 900) == "silent"


def test_need_leaves_out_what_is_held_back() -> None:
    alarms = [
        ("W", "a", NOW, "critical", "shelved", 1, 2, ""),
        ("W", "b", NOW, "medium", "acknowledged", 1, 2, ""),
        ("gone", "c", NOW, "high", "unacknowledged", 1, 2, ""),
    ]
    (well,) = gathered([("W", NOW, *values())], alarms)
    assert well.need == 3
    assert len(well.alarms) == 2


def test_each_503_says_when_to_come_again_and_nothing_else_does() -> None:
    assert answer(Problem(503, "rules-unreadable", "It says why."), "/").headers["Retry-After"] == "5"
    busy = Problem(503, "too-slow", "Ask for less.", headers={"Retry-After": "10"})
    assert answer(busy, "/").headers["Retry-After"] == "10"
    assert "Retry-After" not in answer(Problem(404, "no-such-well", "There is none."), "/").headers


class TestTheRing:
    @given(st.lists(st.integers(1, 700), max_size=400), st.integers(0, 400))
    def test_a_watcher_gets_all_or_is_told(self, sizes: list[int], seen: int) -> None:
        ring = Ring()
        for size in sizes:
            ring.add("readings", b"[", [("W", b"1")] * size)
        position = ring.after(f"{ring.generation}-{seen}")
        if position is None:
            assert seen > len(sizes) or ring.oldest > seen + 1
        else:
            found = ring.events(position)
            assert found is not None
            assert [event.number for event in found] == list(range(seen + 1, len(sizes) + 1))
        assert ring.items <= max(MOST_ITEMS, max(sizes, default=0))
        held = ring.events(ring.oldest)
        assert held is not None
        assert ring.items == sum(len(event.items) for event in held)

    @pytest.mark.parametrize("last", ["", "-", "x-1", "1", "-1", "{g}-99", "{g}-", "{g}-1e3", "{g}-" + "9" * 40])
    def test_what_is_no_place_in_it(self, last: str) -> None:
        ring = Ring()
        assert ring.after(last.replace("{g}", ring.generation)) is None

    def test_frames_are_made_once_for_equal_filters(self) -> None:
        event = Event(7, "readings", b'{"rows":[', [("A-1", b'["A-1"]'), ("B-1", b'["B-1"]')])
        key, wanted = wants(principal("*"), frozenset())
        whole = event.frame("g", key, wanted)
        assert whole == b'event: readings\nid: g-7\ndata: {"rows":[["A-1"],["B-1"]]}\n\n'
        assert event.frame("g", key, wanted) is whole
        mine = event.frame("g", *wants(principal("A-*"), frozenset()))
        assert b"B-1" not in mine
        assert event.frame("g", *wants(principal("C-*"), frozenset())) == b""
        one = event.frame("g", *wants(principal("*"), frozenset(["B-1"])))
        assert msgspec.json.decode(one.split(b"data: ")[1]) == {"rows": [["B-1"]]}


class TestTheBeat:
    """How long the feed waits after each look."""

    def pauses(self, monkeypatch: pytest.MonkeyPatch, looks: list[float], daemon_seconds: float = 0.0) -> list[float]:
        clock, costs = FakeClock(), iter(looks)
        found: list[float] = []
        done = asyncio.Event()

        async def read(_work: object) -> SimpleNamespace:
            clock.advance(next(costs))
            return SimpleNamespace(readings=[], overlap_cost_seconds=None, alarms={}, ended=[], action=0)

        async def daemon() -> dict[str, object]:
            clock.advance(daemon_seconds)
            return {"status": "unreachable", "checks": {}}

        async def sleep(seconds: float) -> None:
            found.append(seconds)
            if len(found) == len(looks):
                done.set()
                await asyncio.Event().wait()

        async def watch() -> None:
            feed = Feed(SimpleNamespace(read=read), SimpleNamespace(daemon=daemon), clock, 900.0)  # type: ignore[arg-type]
            feed.join()
            await done.wait()
            await feed.stop()

        monkeypatch.setattr("esp_ingest.api.reads.live.asyncio.sleep", sleep)
        asyncio.run(watch())
        return found

    def test_a_daemon_that_does_not_answer_delays_no_reading(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(self.pauses(monkeypatch, [0.01] * 12, daemon_seconds=2.0)) <= 1.0

    def test_one_slow_look_is_no_reason_for_a_long_pause(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(self.pauses(monkeypatch, [0.01, 3.0, 0.01, 0.01])) <= 1.0

    def test_looks_that_are_slow_one_after_the_other_take_their_share(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.pauses(monkeypatch, [0.5, 0.5, 0.5])[1:] == pytest.approx([9.5, 9.5])


def test_figures_of_the_daemon() -> None:
    page = (
        '# TYPE x\nesp_ingest_readings_rejected_total{reason="a"} 2.0\n'
        'esp_ingest_readings_rejected_total{reason="b"} 1.0\n'
        "esp_ingest_database_up 1.0\nesp_ingest_unacked_messages NaN\npython_info 1.0\n"
    )
    assert figures_of(page) == {"readings_rejected_total": 3.0, "database_up": 1.0}
