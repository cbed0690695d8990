"""`esp-ingest rules` beside a database: what is stored is tried without writing, and settings nobody uses are named."""

import json
from pathlib import Path

import pytest

from esp_ingest.cli import main
from esp_ingest.demo.fleet import DEFAULT_START_US, Fault, FaultName, Fleet
from esp_ingest.resources import config_file
from esp_ingest.service.text import rfc3339
from esp_ingest.store.diagnostics.history import readings_between, reporting_wells
from esp_ingest.store.schema import migrate
from esp_ingest.store.write.writer import PostgresStore
from tests.support.databases import Database

HOUR_US = 3_600_000_000


@pytest.fixture
def stored(timescaledb_apache: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Ten hours of three wells at 5-minute samples; the first gets a dead head after 8 hours."""
    migrate(timescaledb_apache.settings)
    monkeypatch.setenv("ESP_INGEST_DATABASE__DSN", timescaledb_apache.settings.dsn.get_secret_value())
    fleet = Fleet(3, interval_seconds=300, faults=[Fault(FaultName.DEAD_HEAD, 0, 8 * 3_600)])
    store = PostgresStore(timescaledb_apache.settings)
    for block in fleet.run(120):
        store.write(block, [], [])
    store.close()
    return timescaledb_apache


def test_stored_readings_come_back_as_they_were(stored: Database) -> None:
    assert reporting_wells(stored.settings) == ["sim-00000", "sim-00001", "sim-00002"]
    since, until = DEFAULT_START_US + HOUR_US, DEFAULT_START_US + 2 * HOUR_US
    found = list(readings_between(stored.settings, ["sim-00001", "sim-00009"], since, until))
    assert [len(part) for part in found] == [12]
    assert found[0].wells == ["sim-00001"]
    assert since <= found[0].timestamp_us.min() <= found[0].timestamp_us.max() < until
    assert (found[0].timestamp_us[1:] > found[0].timestamp_us[:-1]).all()


def test_rules_are_tried_over_the_database_and_write_nothing(
    stored: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    since = rfc3339(DEFAULT_START_US)
    assert main(["rules", "test", "--since", since, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["well_id"] for row in rows} == {"sim-00000"}
    assert "dead_head" in {row["diagnosis"] for row in rows}
    until = rfc3339(DEFAULT_START_US + 8 * HOUR_US)
    assert main(["rules", "test", "--since", since, "--until", until]) == 0
    assert capsys.readouterr().out.splitlines() == ["0 occurrences in 288 readings of 3 wells"]
    assert main(["rules", "test", "--since", since, "--well", "sim-00002"]) == 0
    assert capsys.readouterr().out.splitlines() == ["0 occurrences in 120 readings of 1 well"]
    assert stored.value("SELECT count(*) FROM diagnostic_results") == 0


def test_limits_of_a_well_that_never_reports_are_a_warning(
    stored: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rules.toml"
    own = "".join(f'\n[wells.{well}]\nlimits = {{ motor_temp = "300 °F" }}\n' for well in ("sim-0001", "sim-00001"))
    path.write_text(config_file("rules.toml").read_text(encoding="utf-8") + own, encoding="utf-8")
    assert main(["rules", "check", "--rules", str(path)]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "wells.sim-0001: no well sim-0001 has ever reported (did you mean sim-0000" in warnings[0]
