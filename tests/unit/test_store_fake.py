"""The fake store keeps the contract of the real one."""

import pytest

from esp_ingest.interfaces import Store, StoreUnavailable
from tests.support.fake_store import FakeStore
from tests.support.store_data import readings
from tests.unit.contract_store import Rows, StoreContract


class TestFakeStore(StoreContract):
    @pytest.fixture
    def store(self) -> FakeStore:
        return FakeStore()

    def flow_rates(self, store: Store) -> Rows:
        assert isinstance(store, FakeStore)
        return {key: row[0][0] for key, row in store.telemetry.items()}

    def reject_payloads(self, store: Store) -> list[bytes]:
        assert isinstance(store, FakeStore)
        return sorted(reject.payload for reject in store.rejects.values())

    def diagnosis_states(self, store: Store) -> list[tuple[str, str]]:
        assert isinstance(store, FakeStore)
        return [(row.diagnosis, row.state) for row in store.diagnostics.values()]

    def poison(self, store: Store) -> str:
        assert isinstance(store, FakeStore)
        store.poison_texts.add("{poison")
        return "{poison"


def test_it_fails_as_it_is_told() -> None:
    store = FakeStore()
    store.failures = ["before", "after", None]
    batch = readings([("w1", 0)])
    with pytest.raises(StoreUnavailable, match="before"):
        store.write(batch, [], [])
    assert not store.telemetry
    with pytest.raises(StoreUnavailable, match="after"):
        store.write(batch, [], [])
    assert store.write(batch, [], []).duplicates == 1
    store.away = True
    with pytest.raises(StoreUnavailable, match="away"):
        store.ping()
