"""`lifecycle query`: archive and database as one, each row once."""

from datetime import timedelta
from pathlib import Path

import pytest

from esp_ingest.config.settings import ConfigError, Settings
from esp_ingest.lifecycle import query
from tests.support.databases import Database
from tests.support.lifecycle_data import fill, fill_diagnostics, midnight, migrated, run, settings_for


def rows_of(settings: Settings, text: str) -> list[tuple[object, ...]]:
    return [row for _, rows in query.ask(settings, text) for row in rows]


@pytest.fixture
def database(any_database: Database) -> Database:
    return migrated(any_database)


def test_each_row_is_counted_once_wherever_it_lies(database: Database, tmp_path: Path) -> None:
    for days_ago in (41, 40, 2):
        fill(database, days_ago)
    fill_diagnostics(database, 100)
    everything = {
        table: database.value(f"SELECT count(*) FROM {table}")
        for table in ("esp_telemetry", "ingest_rejects", "diagnostic_results")
    }
    sums = database.all("SELECT well_id, sum(flow_rate) FROM esp_telemetry GROUP BY 1 ORDER BY 1")
    settings = settings_for(database, tmp_path)
    assert run(settings)[0].dropped
    fill(database, 0, rows=10)  # today, which is not archived
    late = midnight(40) + timedelta(hours=9)
    database.run(f"INSERT INTO esp_telemetry (timestamp, well_id, received_at) VALUES ('{late}', 'LATE', now())")
    database.run("UPDATE diagnostic_results SET cleared_at = now(), peak = 77 WHERE occurrences = 10")

    for table, more in (("esp_telemetry", 11), ("ingest_rejects", 1), ("diagnostic_results", 0)):
        assert rows_of(settings, f"SELECT count(*) FROM {table}") == [(everything[table] + more,)]
    text = f"SELECT well_id, sum(flow_rate) FROM esp_telemetry WHERE timestamp < '{midnight(0)}' GROUP BY 1 ORDER BY 1"
    found = rows_of(settings, text)
    assert [name for name, _ in found] == ["ESP-00", "ESP-01", "ESP-02", "ESP-03", "ESP-04", "ESP-05", "ESP-06", "LATE"]
    assert [total for _, total in found[:7]] == pytest.approx([total for _, total in sums])
    assert rows_of(settings, "SELECT peak FROM diagnostic_results WHERE occurrences IN (10, 20)") == [(77,), (1e-300,)]
    text = "SELECT count(DISTINCT digest), max(octet_length(payload)) FROM ingest_rejects"
    assert rows_of(settings, text) == [(20, 23)]
    joined = "SELECT count(*) FROM esp_telemetry a JOIN esp_telemetry b USING (well_id, timestamp)"
    assert rows_of(settings, joined) == [(everything["esp_telemetry"] + 11,)], "a table may be named twice"


def test_a_query_that_cannot_be_answered_says_so_in_a_sentence(postgres15: Database, tmp_path: Path) -> None:
    migrated(postgres15)
    fill(postgres15, 1)
    settings = settings_for(postgres15, tmp_path)
    run(settings)
    for wrong in ("SELECT nothing FROM esp_telemetry", "SELEC 1", f"COPY esp_telemetry TO '{tmp_path}/x.csv'"):
        with pytest.raises(ConfigError, match=r"^The query failed"):
            rows_of(settings, wrong)
    assert not (tmp_path / "x.csv").exists()
