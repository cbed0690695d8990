"""What every Store must do: run by test_store_fake.py on the fake and by test_writer_contract.py on real databases."""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from esp_ingest.interfaces import Store, StoreUnavailable
from esp_ingest.model import Arrival, Readings
from tests.support.store_data import DIAGNOSIS, START_US, cleared, readings, reject

Rows = Mapping[tuple[str, int], float]


class StoreContract:
    """Subclasses give ``store``, and look into what it stored."""

    @abstractmethod
    def flow_rates(self, store: Store) -> Rows:
        """(well, timestamp_us) → flow_rate of all that is stored."""

    @abstractmethod
    def reject_payloads(self, store: Store) -> list[bytes]:
        """Payloads of the stored rejects, sorted."""

    @abstractmethod
    def diagnosis_states(self, store: Store) -> list[tuple[str, str]]:
        """(diagnosis, state) of the stored occurrences."""

    @abstractmethod
    def poison(self, store: Store) -> str:
        """A text that ``store`` refuses in ``extra``."""

    def test_stores_what_it_is_handed(self, store: Store) -> None:
        result = store.write(readings([("w1", 0), ("w2", 0), ("w1", 1)], [10, 20, 30]), [reject()], [DIAGNOSIS])
        assert (result.written, result.duplicates, result.rejected, result.refused) == (3, 0, 1, ())
        assert (dict(result.reasons), result.path) == ({reject().reason.value: 1}, "direct")
        assert self.flow_rates(store) == {
            ("w1", START_US): 10,
            ("w2", START_US): 20,
            ("w1", START_US + 1_000_000): 30,
        }
        assert self.reject_payloads(store) == [reject().payload]
        assert self.diagnosis_states(store) == [("gas_lock", "active")]

    def test_nothing_is_nothing(self, store: Store) -> None:
        result = store.write(Readings.empty(), [], [])
        assert (result.written, result.duplicates, result.rejected) == (0, 0, 0)

    def test_writing_again_is_harmless(self, store: Store) -> None:
        batch = readings([("w1", 0), ("w1", 1)], [1, 2])
        store.write(batch, [reject()], [DIAGNOSIS])
        result = store.write(batch, [reject()], [DIAGNOSIS])
        assert (result.written, result.duplicates, result.rejected) == (0, 3, 0)
        assert (dict(result.reasons), result.path) == ({}, "staging")
        assert len(self.flow_rates(store)) == 2
        assert len(self.reject_payloads(store)) == 1
        assert len(self.diagnosis_states(store)) == 1

    def test_the_first_reading_of_a_key_stays(self, store: Store) -> None:
        result = store.write(readings([("w1", 0), ("w1", 0), ("w1", 1)], [1, 2, 3]), [], [])
        assert (result.written, result.duplicates, result.rejected) == (2, 0, 1)
        result = store.write(readings([("w1", 1), ("w1", 2)], [4, 5]), [], [])
        assert (result.written, result.duplicates, result.rejected) == (1, 0, 1)
        assert sorted(self.flow_rates(store).values()) == [1, 3, 5]

    def test_another_reading_of_a_key_becomes_a_reject_and_is_not_lost(self, store: Store) -> None:
        store.write(readings([("w1", 0)], [1], extra={0: '{"a": 1}'}, quality={0: '{"q": 2}'}), [], [])
        others = [
            readings([("w1", 0)], [2], extra={0: '{"a": 1}'}, quality={0: '{"q": 2}'}),
            readings([("w1", 0)], [1], extra={0: '{"a": 7}'}, quality={0: '{"q": 2}'}),
            readings([("w1", 0)], [1], extra={0: '{"a": 1}'}),
            readings([("w1", 0)], [1]),
        ]
        others[3].values[:] = np.nan
        for number, other in enumerate(others):
            result = store.write(other, [], [])
            assert (result.written, result.duplicates, result.rejected) == (0, 0, 1)
            assert dict(result.reasons) == {"conflicting_duplicate": 1}
            assert (result.refused[0].topic, result.path) == (b"esp/w1/telemetry", "staging")
            assert result.refused[0].payload in self.reject_payloads(store)
            assert len(self.reject_payloads(store)) == number + 1
        assert list(self.flow_rates(store).values()) == [1]

    def test_a_conflicting_reading_is_kept_once_however_often_it_comes(self, store: Store) -> None:
        batch = readings([("w1", 0), ("w1", 0), ("w1", 0), ("w2", 0)], [1, 2, 1, 3])
        result = store.write(batch, [], [])
        assert (result.written, result.duplicates, result.rejected) == (2, 1, 1)
        for later_us in (0, 5):
            again = replace(batch, received_us=batch.received_us + later_us)
            result = store.write(again, [], [])
            assert (result.written, result.duplicates, result.rejected) == (0, 4, 0)
        assert len(self.reject_payloads(store)) == 1

    def test_the_same_reading_spelled_otherwise_is_a_duplicate(self, store: Store) -> None:
        store.write(readings([("w1", 0)], extra={0: '{"a": 1, "b": [2]}'}), [], [])
        result = store.write(readings([("w1", 0)], extra={0: '{"b":[2],"a":1}'}), [], [])
        assert (result.duplicates, result.rejected) == (1, 0)

    def test_the_sign_of_zero_tells_two_readings_apart(self, store: Store) -> None:
        batch = readings([("w1", 0)], [0.0])
        store.write(batch, [], [])
        batch.values[0] = -0.0
        result = store.write(batch, [], [])
        assert (result.duplicates, result.rejected) == (0, 1)

    def test_a_refused_and_a_conflicting_reading_in_one_batch(self, store: Store) -> None:
        keys = [("w1", 0), ("w1", 0), ("w1", 1), ("w1", 1), ("w1", 2)]
        result = store.write(readings(keys, [1, 2, 3, 4, 5], extra={0: self.poison(store)}), [], [])
        assert (result.written, result.duplicates, result.rejected) == (3, 0, 2)
        assert dict(result.reasons) == {"refused_by_database": 1, "conflicting_duplicate": 1}
        assert sorted(self.flow_rates(store).values()) == [2, 3, 5]

    def test_late_readings_are_stored(self, store: Store) -> None:
        store.write(readings([("w1", 100)], [1]), [], [])
        result = store.write(readings([("w1", 50), ("w1", 101), ("w1", 100)], [2, 3, 1]), [], [])
        assert (result.written, result.duplicates) == (2, 1)
        assert sorted(self.flow_rates(store).values()) == [1, 2, 3]

    def test_a_row_that_is_refused_becomes_a_reject_and_costs_no_other(self, store: Store) -> None:
        batch = readings([("w1", at) for at in range(20)], extra={7: self.poison(store)})
        result = store.write(batch, [reject()], [DIAGNOSIS])
        assert (result.written, result.duplicates, result.rejected) == (19, 0, 2)
        assert len(result.refused) == 1
        assert dict(result.reasons) == {reject().reason.value: 1, "refused_by_database": 1}
        assert result.path == "bisect"
        assert result.refused[0].payload in self.reject_payloads(store)
        assert len(self.flow_rates(store)) == 19
        assert self.diagnosis_states(store) == [("gas_lock", "active")]

    def test_a_refused_row_is_stored_once_however_often_it_comes(self, store: Store) -> None:
        batch = readings([("w1", 0), ("w1", 1)], extra={1: self.poison(store)})
        store.write(batch, [], [])
        again = replace(batch, received_us=batch.received_us + 5)
        result = store.write(again, [], [])
        assert (result.written, result.duplicates, result.rejected) == (0, 2, 0)
        assert len(self.reject_payloads(store)) == 1

    def test_a_second_reading_takes_the_place_of_a_refused_first(self, store: Store) -> None:
        result = store.write(readings([("w1", 0), ("w1", 0)], [1, 2], extra={0: self.poison(store)}), [], [])
        assert (result.written, result.duplicates, result.rejected) == (1, 0, 1)
        assert list(self.flow_rates(store).values()) == [2]

    def test_a_redelivered_reject_is_stored_once(self, store: Store) -> None:
        store.write(Readings.empty(), [reject(1)], [])
        later = replace(reject(1, redelivered=True), received_us=START_US + 999)
        result = store.write(Readings.empty(), [later, reject(2)], [])
        assert (result.duplicates, result.rejected) == (1, 1)
        assert dict(result.reasons) == {reject(2).reason.value: 1}, "what was stored before is no reject again"
        assert self.reject_payloads(store) == [reject(1).payload, reject(2).payload]

    def test_a_redelivered_reject_that_was_never_stored_is_stored(self, store: Store) -> None:
        result = store.write(Readings.empty(), [reject(3, redelivered=True)], [])
        assert (result.duplicates, result.rejected) == (0, 1)

    def test_a_reject_and_its_redelivery_in_one_batch_are_one(self, store: Store) -> None:
        later = replace(reject(1, redelivered=True), received_us=START_US + 999)
        result = store.write(Readings.empty(), [reject(1), later], [])
        assert (result.duplicates, result.rejected) == (1, 1)

    @pytest.mark.parametrize("in_one_batch", [False, True])
    @pytest.mark.parametrize(
        ("first", "again", "is_known"),
        [
            ((1, 7, 0), (2, 7, 1), True),
            ((1, 7, 0), (2, 7, 0), False),
            ((1, 7, 0), (2, 8, 1), False),
            ((1, 7, 0), (1, 7, 1), False),
            ((1, 7, 0), (3, 7, 2), False),
            ((2, 7, 0), (3, 7, 2), True),
            ((2, 7, 1), (1, 7, 0), True),
            ((2, 7, 0), (1, 7, 0), False),
            ((3, 7, 2), (1, 7, 0), False),
            ((-1, 0, 1), (2, 7, 1), False),
            ((-1, 0, 0), (-1, 0, 1), True),
            ((-1, 0, 0), (-1, 0, 0), False),
        ],
        ids=[
            "sent again",
            "without DUP it may be new",
            "another packet id",
            "a connection sends nothing twice",
            "packet ids began anew in between",
            "packet ids began anew before",
            "another daemon has stored it, which the broker sent it again",
            "another daemon has stored another one",
            "another daemon has stored it, after packet ids began anew",
            "of unknown origin is not from a packet",
            "known by its content",
            "a message of an old spool",
        ],
    )
    def test_which_deliveries_are_one_message(
        self,
        store: Store,
        in_one_batch: bool,
        first: tuple[int, int, int],
        again: tuple[int, int, int],
        is_known: bool,
    ) -> None:
        """(connection, packet id, redelivered) of each. The rule: store/write/redelivery.py."""
        rejects = [
            reject(1, redelivered, START_US + at, connection, packet_id)
            for at, (connection, packet_id, redelivered) in enumerate((first, again))
        ]
        if in_one_batch:
            result = store.write(Readings.empty(), rejects, [], arrival=Arrival(2, 2))
            assert (result.duplicates, result.rejected) == ((1, 1) if is_known else (0, 2))
        else:
            store.write(Readings.empty(), rejects[:1], [], arrival=Arrival(1, 1))
            result = store.write(Readings.empty(), rejects[1:], [], arrival=Arrival(2, 1))
            assert (result.duplicates, result.rejected) == ((1, 0) if is_known else (0, 1))
        assert len(self.reject_payloads(store)) == 2 - is_known

    def test_the_same_malformed_payload_many_times_is_as_many_rejects_whatever_comes_again(self, store: Store) -> None:
        """Three of five were stored when the connection ended; the broker sends all of them again, and one anew. Then
        that connection ends as well, before the broker has heard of any."""
        same = [reject(1, received_us=START_US + at, connection=1, packet_id=at + 1) for at in range(5)]
        store.write(Readings.empty(), same[:3], [], arrival=Arrival(1, 3))
        for turn in (1, 2):
            again = [
                replace(each, received_us=each.received_us + 99 * turn, connection=1 + turn, redelivered=1)
                for each in same
            ]
            new = reject(1, received_us=START_US + 500 * turn, connection=1 + turn, packet_id=5 + turn)
            result = store.write(Readings.empty(), [*again, new], [], arrival=Arrival(1 + turn, 6))
            assert (result.duplicates, result.rejected) == ((3, 3) if turn == 1 else (5, 1))
        assert len(self.reject_payloads(store)) == 7

    @pytest.mark.parametrize("between", ["readings", "rejects"])
    def test_a_packet_id_that_came_round_is_another_message(self, store: Store, between: str) -> None:
        store.write(Readings.empty(), [reject(1, connection=1, packet_id=7)], [], arrival=Arrival(1, 1))
        for at in range(4):
            some = [reject(at + 10, connection=1, packet_id=9 + at)] if between == "rejects" else []
            store.write(readings([("w1", at)]), some, [], arrival=Arrival(1, 9_000))
        again = reject(1, 1, START_US + 99, connection=2, packet_id=7)
        assert store.write(Readings.empty(), [again], [], arrival=Arrival(2, 1)).rejected == 1

    def test_what_many_readings_followed_is_still_known_within_a_window(self, store: Store) -> None:
        store.write(Readings.empty(), [reject(1, connection=1, packet_id=7)], [], arrival=Arrival(1, 1))
        store.write(readings([("w1", 0)]), [], [], arrival=Arrival(1, 20_000))
        again = reject(1, 1, START_US + 99, connection=2, packet_id=7)
        assert store.write(Readings.empty(), [again], [], arrival=Arrival(2, 1)).duplicates == 1

    def test_the_same_malformed_payload_at_another_time_is_another_reject(self, store: Store) -> None:
        store.write(Readings.empty(), [reject(1)], [])
        result = store.write(Readings.empty(), [reject(1, received_us=START_US + 60_000_000)], [])
        assert (result.duplicates, result.rejected) == (0, 1)

    def test_the_last_state_of_an_occurrence_stays(self, store: Store) -> None:
        store.write(Readings.empty(), [], [DIAGNOSIS])
        store.write(Readings.empty(), [], [DIAGNOSIS, cleared(DIAGNOSIS, 5)])
        assert self.diagnosis_states(store) == [("gas_lock", "cleared")]

    def test_what_the_rules_find_is_stored_on_whichever_rung(self, store: Store) -> None:
        # A refused row sends the batch through every rung of the ladder.
        batch = readings([("w1", at) for at in range(3)], extra={1: self.poison(store)})
        with store.begin(batch, []) as write:
            result = write.finish([DIAGNOSIS], [])
        assert (result.written, result.rejected) == (2, 1)
        assert self.diagnosis_states(store) == [("gas_lock", "active")]
        with store.begin(Readings.empty(), []) as write:
            write.finish([cleared(DIAGNOSIS, 1)], [])
        assert self.diagnosis_states(store) == [("gas_lock", "cleared")]

    @pytest.mark.parametrize("error", [None, ZeroDivisionError, StoreUnavailable, KeyboardInterrupt, SystemExit])
    @pytest.mark.parametrize("way", ["direct", "staging", "both", "rejects"])
    def test_a_write_that_is_not_finished_stores_nothing_and_leaves_no_trace(
        self, store: Store, way: str, error: type[BaseException] | None
    ) -> None:
        old, new = ("w1", 0), ("w1", 1)
        store.write(readings([old]), [], [])
        keys = {"direct": [new], "staging": [old], "both": [old, new], "rejects": []}[way]
        expected = nullcontext() if error is None else pytest.raises(error)
        with expected, store.begin(readings(keys), [reject()], Arrival(1, 1)):
            if error is not None:
                raise error("told to")
        assert len(self.flow_rates(store)) == 1
        assert self.reject_payloads(store) == []
        store.ping()
        store.idle()
        result = store.write(readings([old, new]), [reject()], [DIAGNOSIS])
        assert (result.written, result.duplicates, result.rejected) == (1, 1, 1)

    def test_a_pending_write_that_is_dropped_is_undone_by_the_next_call(self, store: Store) -> None:
        """As by an interrupt just before the with-statement."""
        for keys in ([("w1", 0)], [("w1", 0), ("w1", 0)], []):
            kept = store.begin(readings(keys), [reject()])
            store.ping()
            with store.begin(readings(keys), [reject()]):
                store.prepare(readings(keys))
            kept = store.begin(readings(keys), [reject()])
            store.idle()
            del kept
        assert not self.flow_rates(store)
        assert store.write(readings([("w1", 0)]), [reject()], []).written == 1
        assert len(self.reject_payloads(store)) == 1

    def test_what_was_prepared_is_written_like_anything_else(self, store: Store) -> None:
        first, second, third = (readings([("w1", at), ("w2", at)]) for at in range(3))
        store.prepare(Readings.empty())
        store.prepare(first)
        assert store.write(first, [], ()).written == 2
        store.prepare(second)
        assert store.write(third, [], ()).written == 2, "another one came first"
        assert store.write(second, [], ()).written == 2

        fourth = readings([("w1", 3), ("w1", 4)], [1.5, 1.5])
        fifth = readings([("w1", 4), ("w1", 5), ("w1", 5)], [1.5] * 3)
        with store.begin(fourth, []) as write:
            store.prepare(fifth)
            assert write.finish([], []).written == 2
        result = store.write(fifth, [], ())
        assert (result.written, result.duplicates) == (1, 2), "stored meanwhile, and twice in it"
        assert len(self.flow_rates(store)) == 9

    def test_ping_is_quiet_when_all_is_well(self, store: Store) -> None:
        store.ping()

    @pytest.mark.parametrize("count", [1, 2, 1000])
    def test_every_item_is_accounted_for(self, store: Store, count: int) -> None:
        keys = [(f"w{at % 3}", at % max(count // 2, 1)) for at in range(count)]
        rejects = [reject(number % 5) for number in range(count)]
        result = store.write(readings(keys), rejects, [])
        assert result.written + result.duplicates + result.rejected == 2 * count
        assert result.written == len(set(keys)) == len(self.flow_rates(store))
        assert result.rejected == min(count, 5) == len(self.reject_payloads(store))
