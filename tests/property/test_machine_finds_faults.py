"""The pipeline's state machine finds the faults that it was made for: each is put back here, and the machine must fail.

A break is small: it makes one part of the daemon, or the database's side of it, as it was before the fault was mended.
The examples are the same each time, and the first failure ends the search.
"""

import re
from collections.abc import Callable

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.model import Reject
from esp_ingest.mqtt.client_setup import SessionRecord
from esp_ingest.store.queries import query
from esp_ingest.store.write.copy_format import digest_of
from tests.property.test_pipeline_machine import DEFAULT, PipelineMachine
from tests.support import fake_daemon, fake_publishing, fake_store
from tests.support.fake_daemon import FakeDaemon
from tests.support.fake_store import FakePendingWrite, FakeStore

pytestmark = pytest.mark.soak  # 27 s

SEARCH = settings(
    DEFAULT, max_examples=200, derandomize=True, database=None, phases=[Phase.generate], report_multiple_bugs=False
)


def packet_id_without_dup(patch: pytest.MonkeyPatch) -> None:
    """Fault 1: the same packet id and content are the same message, with or without DUP, whatever came in between."""

    def store_reject(self: FakeStore, reject: Reject) -> bool:
        digest = digest_of(reject)
        packets = self.__dict__.setdefault("packets", set())
        is_new = (reject.packet_id, digest) not in packets and (reject.received_us, digest) not in self.rejects
        packets.add((reject.packet_id, digest))
        if is_new:
            self.rejects[reject.received_us, digest] = reject
        return is_new

    patch.setattr(FakeStore, "store_reject", store_reject)


def rejects_remembered_for_ever(patch: pytest.MonkeyPatch) -> None:
    """Fault 1: packet ids come round, and a reject is remembered for longer than that takes."""
    patch.setattr(fake_store, "remembered_messages", lambda _: 1_000_000)


def packet_ids_never_begin_anew(patch: pytest.MonkeyPatch) -> None:
    """Fault 1: a broker that goes back to a snapshot is not noticed."""
    patch.setattr(SessionRecord, "ids_began_anew", lambda *_: None)


def publisher_on_the_ingest_connection(patch: pytest.MonkeyPatch) -> None:
    """Fault 3: a publication that ends its connection ends the one that brings the readings."""
    start = FakeDaemon.start

    def start_with_one_connection(self: FakeDaemon) -> None:
        start(self)
        hang_up = self.link.hang_up

        def hang_up_both() -> None:
            hang_up()
            self.source.break_connection()

        patch.setattr(self.link, "hang_up", hang_up_both)

    patch.setattr(FakeDaemon, "start", start_with_one_connection)


def publisher_under_the_ingest_client_id(patch: pytest.MonkeyPatch) -> None:
    """Fault 3: the publisher's connection takes the session of the readings over."""
    patch.setattr(fake_daemon, "publisher_client_id", lambda client_id: client_id)


def one_lock_for_rejects_and_publishing(patch: pytest.MonkeyPatch) -> None:
    """Fault 4: both take one advisory lock, and the publisher holds it while it waits for the broker."""
    locks = {
        "insert_staged_rejects": b"SELECT pg_advisory_xact_lock(4);",
        "read_outbox": b"SELECT pg_advisory_lock(4);",
    }

    def with_lock(name: str) -> bytes:
        return locks.get(name, b"") + query(name)

    for module in (fake_store, fake_publishing):
        patch.setattr(module, "query", with_lock)
    patch.setattr(fake_store, "keys_of_rejects", fake_store.keys_of_rejects.__wrapped__)


def readings_wait_for_the_diagnostics(patch: pytest.MonkeyPatch) -> None:
    """Fault 7: what the diagnostics read has to be there before a reading is written."""
    patch.setattr(fake_daemon, "READINGS_FIRST", False)


def one_transaction_or_nothing(patch: pytest.MonkeyPatch) -> None:
    """Fault 7: a refusal by the tables of the diagnostics undoes the transaction of the batch."""
    commit = FakeStore.commit

    def commit_all(self: FakeStore, pending: FakePendingWrite, *args, **options):  # type: ignore[no-untyped-def]
        if self.refuses_diagnostics and len(pending.readings):
            raise StoreUnavailable("a trigger refused a row", "and the batch with it")
        return commit(self, pending, *args, **options)

    patch.setattr(FakeStore, "commit", commit_all)


@pytest.mark.parametrize(
    ("put_back", "said"),
    [
        (packet_id_without_dup, "of the same"),
        (rejects_remembered_for_ever, "of the same"),
        (packet_ids_never_begin_anew, "of the same"),
        (publisher_on_the_ingest_connection, "a publication cost the connection"),
        (publisher_under_the_ingest_client_id, "a publication cost the connection|delayed an acknowledgement"),
        (one_lock_for_rejects_and_publishing, "a write waited for the publisher"),
        (readings_wait_for_the_diagnostics, "readings are spooled though|the diagnostics delayed"),
        (one_transaction_or_nothing, "readings are spooled though|the diagnostics delayed"),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_a_fault_that_is_put_back_is_found(
    put_back: Callable[[pytest.MonkeyPatch], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_back(monkeypatch)
    with pytest.raises(AssertionError) as found:
        run_state_machine_as_test(PipelineMachine, settings=SEARCH)
    assert re.search(said, str(found.value)), found.value
