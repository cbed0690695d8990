"""The real store on real databases keeps the contract; so do all its ways to write."""

from collections.abc import Iterator

import pytest

from esp_ingest.interfaces import Store
from esp_ingest.store.schema import migrate
from esp_ingest.store.write.writer import PostgresStore
from tests.support.databases import Database
from tests.support.store_data import readings
from tests.unit.contract_store import Rows, StoreContract


class TestPostgresStore(StoreContract):
    @pytest.fixture
    def store(self, native_database: Database) -> Iterator[PostgresStore]:
        migrate(native_database.settings)
        self.database = native_database
        store = PostgresStore(native_database.settings)
        yield store
        store.close()

    def flow_rates(self, store: Store) -> Rows:
        rows = self.database.all(
            'SELECT well_id, (extract(epoch FROM "timestamp") * 1000000)::bigint, flow_rate FROM esp_telemetry'
        )
        return {(well, at): flow for well, at, flow in rows}

    def reject_payloads(self, store: Store) -> list[bytes]:
        return sorted(bytes(row[0]) for row in self.database.all("SELECT payload FROM ingest_rejects"))

    def diagnosis_states(self, store: Store) -> list[tuple[str, str]]:
        return self.database.all("SELECT diagnosis, state FROM diagnostic_results")

    def poison(self, store: Store) -> str:
        return '{"text": "\\u0000"}'

    def test_the_rules_run_while_the_database_reads(self, store: Store) -> None:
        with store.begin(readings([("w1", 0)]), []) as write:
            seen = self.database.all("SELECT query, wait_event FROM pg_stat_activity WHERE query LIKE 'COPY%'")
            write.finish([], [])
        assert len(seen) == 1, "the COPY is under way: begun and not ended"
