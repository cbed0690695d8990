"""A question about a stretch of time looks at the chunks of that time alone, and goes by an index: EXPLAIN says so."""

import re
from datetime import datetime, timedelta

import pytest

from esp_ingest.store.schema import migrate
from tests.support.databases import Database
from tests.support.lifecycle_data import midnight

DAYS = 10
FILL = """
    INSERT INTO esp_telemetry (well_id, "timestamp", flow_rate, received_at)
    SELECT 'well-' || w, %s::timestamptz + n * INTERVAL '10 minutes', n, now()
    FROM generate_series(0, %s) AS n, generate_series(1, 5) AS w
"""
A_DAY_OF_A_WELL = (
    "SELECT * FROM esp_telemetry WHERE well_id = 'well-3' AND \"timestamp\" >= '{from_}' AND \"timestamp\" < '{to}'"
)
AN_HOUR_OF_ALL = "SELECT * FROM esp_telemetry WHERE \"timestamp\" >= '{from_}' AND \"timestamp\" < '{to}'"
AN_HOUR_AGO = "SELECT * FROM esp_telemetry WHERE \"timestamp\" >= now() - INTERVAL '1 hour'"


@pytest.fixture(params=["timescaledb_apache", "pglite"])
def filled(request: pytest.FixtureRequest) -> Database:
    database: Database = request.getfixturevalue(request.param)
    migrate(database.settings)
    with database.connect() as connection:
        connection.execute(FILL.encode(), (midnight(DAYS - 1), DAYS * 144 - 1))
        connection.execute(b"ANALYZE esp_telemetry")
    return database


def looked_at(database: Database, question: str) -> dict[str, str]:
    """The chunks that are read, each with its lines of the plan. One that is left out only as the query runs stands in
    the plan as never executed."""
    plan = [row[0] for row in database.all(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) {question}")]
    found: dict[str, str] = {}
    for line in plan:
        chunk = re.search(r"Scan.* on \S*?(_hyper_\d+_\d+_chunk)", line)
        if chunk and "compress_hyper" not in line and "never executed" not in line:
            found[chunk[1]] = found.get(chunk[1], "") + line
    return found


def between(question: str, start: datetime, width: timedelta) -> str:
    return question.format(from_=start.isoformat(), to=(start + width).isoformat())


def test_a_day_of_a_well_is_one_chunk(filled: Database) -> None:
    assert filled.value("SELECT count(*) FROM show_chunks('esp_telemetry')") == DAYS
    question = between(A_DAY_OF_A_WELL, midnight(4), timedelta(days=1))
    assert len(filled.all(question)) == 144
    (scans,) = looked_at(filled, question).values()
    assert "Seq Scan" not in scans, scans


def test_an_hour_of_all_wells_is_one_chunk(filled: Database) -> None:
    question = between(AN_HOUR_OF_ALL, midnight(4) + timedelta(hours=7), timedelta(hours=1))
    assert len(filled.all(question)) == 30
    (scans,) = looked_at(filled, question).values()
    assert "timestamp_idx" in scans, scans
    assert len(looked_at(filled, AN_HOUR_AGO)) <= 2  # now() is known as the query runs; around midnight two days


def test_compressed_chunks_are_left_out_too(pglite: Database) -> None:
    migrate(pglite.settings)
    with pglite.connect() as connection:
        connection.execute(FILL.encode(), (midnight(DAYS - 1), DAYS * 144 - 1))
        connection.execute(b"SELECT compress_chunk(c) FROM show_chunks('esp_telemetry', older_than => now()) AS c")
    day = between(A_DAY_OF_A_WELL, midnight(4), timedelta(days=1))
    hour = between(AN_HOUR_OF_ALL, midnight(4) + timedelta(hours=7), timedelta(hours=1))
    for question, rows in ((day, 144), (hour, 30)):
        assert len(pglite.all(question)) == rows
        assert len(looked_at(pglite, question)) == 1
