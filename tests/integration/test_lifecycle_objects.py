"""The archive in object stores: Azure Blob (Azurite), S3 (moto), Google Cloud Storage (constructed only)."""

import json
from datetime import timedelta

import pytest

from esp_ingest.config.settings import ArchiveSettings
from esp_ingest.lifecycle import query, reading
from esp_ingest.lifecycle.archive import storage
from esp_ingest.lifecycle.archive.object_storage import ObjectStorage
from esp_ingest.lifecycle.archive.storage import open_storage
from esp_ingest.lifecycle.errors import Reason
from tests.support.databases import Database, free_port
from tests.support.lifecycle_data import TABLES, contents, fill, fill_diagnostics, migrated, run, settings_for, today
from tests.support.proxy import TcpProxy
from tests.support.storages import ObjectStore


@pytest.fixture(params=["azure", "s3"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    found: ObjectStore = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def database(postgres15: Database) -> Database:
    migrated(postgres15)
    fill(postgres15, 40)
    fill(postgres15, 2, rows=30)
    fill_diagnostics(postgres15, 100)
    return postgres15


def test_archived_proven_dropped_restored_and_queried(database: Database, store: ObjectStore) -> None:
    before = {table: contents(database, table) for table in TABLES}
    settings = settings_for(database, store.url, archive=store.archive)
    outcome, _ = run(settings)
    assert outcome.ok, outcome.problems
    assert database.value("SELECT count(*) FROM esp_telemetry") == 30
    assert run(settings)[0].archived == []
    (counted,) = [row for _, rows in query.ask(settings, "SELECT count(*) FROM esp_telemetry") for row in rows]
    assert counted == (230,)
    assert reading.verify_days(settings, None, None, None, lambda *_: None) == 0
    for table, ago in (("esp_telemetry", 40), ("ingest_rejects", 40), ("diagnostic_results", 100)):
        day = today() - timedelta(days=ago)
        reading.restore_days(settings, reading.Wanted(table, day, day), lambda *_: None)
    assert {table: contents(database, table) for table in TABLES} == before


def test_damage_in_the_store_is_found_before_the_drop(database: Database, store: ObjectStore) -> None:
    run(settings_for(database, store.url, archive=store.archive, lifecycle={"telemetry_days": 0}))
    settings = settings_for(database, store.url, archive=store.archive)
    place = open_storage(settings.archive)
    assert isinstance(place, ObjectStorage)
    folder = f"esp_telemetry/day={today() - timedelta(days=40)}/"
    manifest = json.loads(place.read(folder + "manifest.json", 100_000) or b"")
    name = folder + manifest["files"][0]["name"]
    data = bytearray(place.read(name, 10_000_000) or b"")
    data[1_000] ^= 4
    place.write(name, bytes(data))
    outcome, _ = run(settings)
    assert [problem.reason for problem in outcome.problems] == [Reason.DAMAGED]
    assert outcome.dropped == []
    assert database.value("SELECT count(*) FROM esp_telemetry") == 230
    place.close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"key": "bm90IHRoZSBrZXk="}, "it refuses the key"),
        ({"url": "az://not-there/x"}, "there is no such container or bucket"),
    ],
)
def test_a_wrong_key_or_container_is_said_and_nothing_dropped(
    database: Database, azure: ObjectStore, changes: dict[str, str], says: str
) -> None:
    url = changes.get("url", azure.url)
    settings = settings_for(database, url, archive=azure.archive | {k: v for k, v in changes.items() if k != "url"})
    outcome, said = run(settings)
    assert [problem.reason for problem in outcome.problems] == [Reason.STORAGE]
    assert says in outcome.problems[0].sentence
    assert outcome.dropped == []
    assert azure.archive["key"] not in str(said)
    assert changes.get("key", "no key") not in str(said)


def test_a_store_that_is_away_is_said_and_the_next_run_goes_on(database: Database, azure: ObjectStore) -> None:
    gone = azure.archive | {"endpoint": f"http://127.0.0.1:{free_port()}/devstoreaccount1", "timeout_seconds": 1}
    outcome, _ = run(settings_for(database, azure.url, archive=gone))
    assert [problem.reason for problem in outcome.problems] == [Reason.STORAGE]
    assert "cannot be reached" in outcome.problems[0].sentence
    assert database.value("SELECT count(*) FROM esp_telemetry") == 230
    assert run(settings_for(database, azure.url, archive=azure.archive))[0].ok


def test_a_store_that_hangs_is_given_up(database: Database, azure: ObjectStore) -> None:
    with TcpProxy("127.0.0.1", azure.port) as proxy:
        proxy.deafen("up", "down")
        endpoint = f"http://127.0.0.1:{proxy.port}/devstoreaccount1"
        outcome, _ = run(
            settings_for(database, azure.url, archive=azure.archive | {"endpoint": endpoint, "timeout_seconds": 1})
        )
    assert [problem.reason for problem in outcome.problems] == [Reason.STORAGE]
    assert "does not answer in time" in outcome.problems[0].sentence
    assert database.value("SELECT count(*) FROM esp_telemetry") == 230


def test_a_store_of_google_is_constructed_from_a_key(tmp_path: object) -> None:
    key = {
        "type": "service_account",
        "private_key_id": "x",
        "private_key": "-----BEGIN PRIVATE KEY-----\nbm90IGEga2V5\n-----END PRIVATE KEY-----\n",
        "client_email": "a@b",
    }
    with pytest.raises(storage.StorageError) as caught:
        open_storage(ArchiveSettings(url="gs://bucket/prefix", key=json.dumps(key)))
    assert "bm90IGEga2V5" not in str(caught.value), "a key that is no key is refused, and not repeated"
    found = open_storage(ArchiveSettings(url="gs://bucket/prefix"))
    assert isinstance(found, ObjectStorage)
    found.close()
