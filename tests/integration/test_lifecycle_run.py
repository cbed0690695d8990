"""Archive, verify, drop and restore on every edition, with the archive in a folder."""

import json
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from esp_ingest.lifecycle import reading, runs
from esp_ingest.lifecycle.errors import Reason
from tests.support.databases import Database
from tests.support.lifecycle_data import (
    TABLES,
    contents,
    fill,
    fill_diagnostics,
    midnight,
    migrated,
    run,
    settings_for,
    today,
)


@pytest.fixture
def database(any_database: Database) -> Database:
    return migrated(any_database)


def test_a_day_is_archived_proven_dropped_and_reads_back_to_the_last_bit(database: Database, tmp_path: Path) -> None:
    fill(database, 40)
    fill(database, 1)
    fill_diagnostics(database, 100)
    before = {table: contents(database, table) for table in TABLES}
    settings = settings_for(database, tmp_path / "archive")

    outcome, said = run(settings)

    assert outcome.ok, outcome.problems
    old, new = today() - timedelta(days=40), today() - timedelta(days=1)
    assert set(outcome.archived) >= {("esp_telemetry", old), ("esp_telemetry", new), ("ingest_rejects", old)}
    assert ("esp_telemetry", old) in outcome.dropped
    assert ("ingest_rejects", old) in outcome.dropped
    assert ("esp_telemetry", new) not in outcome.dropped
    assert database.value('SELECT min("timestamp") FROM esp_telemetry') >= midnight(1)
    assert database.value("SELECT count(*) FROM diagnostic_results") == 4, "what is open stays"
    assert database.value("SELECT count(*) FROM diagnostic_results WHERE cleared_at IS NOT NULL") == 0
    assert [word for word, _ in said].index("dropped") > max(
        at for at, (word, _) in enumerate(said) if word == "verified"
    )

    for table, days_ago in (("esp_telemetry", 40), ("ingest_rejects", 40), ("diagnostic_results", 100)):
        day = today() - timedelta(days=days_ago)
        for _ in range(2):  # the second time finds all there
            reading.restore_days(settings, reading.Wanted(table, day, day), lambda *_: None)
            assert contents(database, table) == before[table]


def test_the_files_and_the_manifest_are_those_of_the_contract(database: Database, tmp_path: Path) -> None:
    fill(database, 1, rows=50)
    run(settings_for(database, tmp_path))
    day = today() - timedelta(days=1)
    folder = tmp_path / "esp_telemetry" / f"day={day}"
    manifest = json.loads((folder / "manifest.json").read_text())
    (file,) = folder.glob("*.parquet")
    assert {"table", "day", "version", "rows", "first", "last", "checksum", "files", "schema_version"} <= set(manifest)
    assert (manifest["table"], manifest["day"], manifest["version"], manifest["rows"]) == (
        "esp_telemetry",
        str(day),
        1,
        50,
    )
    assert manifest["files"][0]["name"] == file.name
    assert manifest["files"][0]["bytes"] == file.stat().st_size
    table = pq.read_table(file)
    assert table.column_names == [
        name
        for (name,) in database.all(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'esp_telemetry' "
            "ORDER BY ordinal_position"
        )
    ]
    assert str(table.schema.field("timestamp").type) == "timestamp[us, tz=UTC]"
    assert table.schema.field("pip").metadata[b"unit"] == b"psi"
    assert [str(table.schema.field(name).type) for name in ("pip", "extra", "well_id")] == [
        "double",
        "string",
        "string",
    ]
    keys = list(zip(table["well_id"].to_pylist(), table["timestamp"].to_pylist(), strict=True))
    assert keys == sorted(keys)
    column = pq.ParquetFile(file).metadata.row_group(0).column(2)
    assert (column.path_in_schema, column.compression) == ("flow_rate", "ZSTD")
    assert "BYTE_STREAM_SPLIT" in column.encodings
    rejects = pq.read_table(next((tmp_path / "ingest_rejects" / f"day={day}").glob("*.parquet")))
    stored = dict(database.all("SELECT digest, payload FROM ingest_rejects"))
    assert dict(zip(rejects["digest"].to_pylist(), rejects["payload"].to_pylist(), strict=True)) == stored


def test_a_second_run_finds_nothing_to_do(database: Database, tmp_path: Path) -> None:
    fill(database, 2)
    settings = settings_for(database, tmp_path)
    run(settings)
    before = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    outcome, said = run(settings)
    assert outcome.ok
    assert said == []
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == before


def test_late_rows_make_a_new_version_also_of_a_day_that_was_dropped(database: Database, tmp_path: Path) -> None:
    fill(database, 40)
    settings = settings_for(database, tmp_path)
    before = contents(database, "esp_telemetry")
    assert run(settings)[0].dropped
    late = midnight(40) + timedelta(hours=5)
    insert = "INSERT INTO esp_telemetry (timestamp, well_id, pip, received_at)"
    database.run(f"{insert} VALUES ('{late.isoformat()}', 'LATE', 7, now())")
    more = contents(database, "esp_telemetry")
    assert len(more) == 1

    outcome, _ = run(settings)

    assert outcome.ok, outcome.problems
    assert database.value("SELECT count(*) FROM esp_telemetry") == 0
    day = today() - timedelta(days=40)
    assert len(list((tmp_path / "esp_telemetry" / f"day={day}").glob("*.parquet"))) == 1
    manifest = json.loads((tmp_path / "esp_telemetry" / f"day={day}" / "manifest.json").read_text())
    assert (manifest["version"], manifest["rows"]) == (2, 201)
    reading.restore_days(settings, reading.Wanted("esp_telemetry", day, day), lambda *_: None)
    assert contents(database, "esp_telemetry") == sorted(before + more)


def test_nothing_is_archived_or_dropped_while_the_archive_is_unset(database: Database) -> None:
    fill(database, 40)
    outcome, _ = run(settings_for(database))
    assert [problem.reason for problem in outcome.problems] == [Reason.UNSET]
    assert database.value("SELECT count(*) FROM esp_telemetry") == 200


def test_drop_without_archive_is_explicit(database: Database) -> None:
    fill(database, 40)
    fill(database, 3)
    fill_diagnostics(database, 100)
    outcome, _ = run(settings_for(database, lifecycle={"drop_without_archive": True}))
    assert outcome.ok
    assert database.value("SELECT count(*) FROM esp_telemetry") == 200
    assert database.value("SELECT count(*) FROM diagnostic_results WHERE cleared_at IS NULL") == 4
    assert database.value("SELECT count(*) FROM diagnostic_results") == 4


def test_status_says_what_there_is_of_each_day(database: Database, tmp_path: Path) -> None:
    fill(database, 40)
    fill(database, 1)
    settings = settings_for(database, tmp_path)
    run(settings)
    rows = {(row["table"], row["day"]): row for row in runs.status(settings)}
    old = rows["esp_telemetry", str(today() - timedelta(days=40))]
    new = rows["esp_telemetry", str(today() - timedelta(days=1))]
    assert (old["rows_database"], old["rows_archived"]) == (0, 200)
    assert (new["rows_database"], new["rows_archived"], new["dropped_at"]) == (200, 200, None)
    assert old["verified_at"] < old["dropped_at"]
    assert old["bytes"] > 0
