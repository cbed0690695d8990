"""What the rules remember outlives the process: killed anywhere, restored from the table, and the table is the same."""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esp_ingest.diagnostics.language.rules import RuleSet
from esp_ingest.diagnostics.service import DiagnosticsService
from esp_ingest.model import Readings
from esp_ingest.service.metrics import Metrics
from esp_ingest.store.diagnostics.checkpoints import PostgresDiagnosticsStore
from esp_ingest.store.schema import migrate
from esp_ingest.store.write.writer import PostgresStore
from tests.property.test_diagnostics_engine import LIMITED, START_US, merged, story, whole
from tests.support.databases import Database, Server
from tests.support.fake_clock import FakeClock
from tests.support.fake_daemon import value_of
from tests.unit import test_diagnostics_common_stops as common_stops

MINUTE_US = 60_000_000


class Run:
    """One life of the daemon's writer: diagnostics and store, a batch at a time, without threads."""

    def __init__(
        self,
        database: Database,
        clock: FakeClock,
        load_rules: Callable[[], RuleSet] = lambda: LIMITED,
        publish: bool = False,
        **bounds: Any,
    ) -> None:
        self.clock = clock
        self.metrics = Metrics()
        self.store = PostgresStore(database.settings, publish=publish)
        self.reader = PostgresDiagnosticsStore(database.settings, publish=publish)
        self.service = DiagnosticsService(load_rules, self.reader, clock, self.metrics, **bounds)

    def process(self, batch: Readings) -> None:
        """As Stage does. The clock follows the data, so that a batch is what just came in."""
        self.clock.step_wall((int(batch.received_us[-1]) - self.clock.now_us()) / 1e6)
        self.service.prepare(batch.wells)
        diagnosis = self.service.evaluate(batch)
        result = self.store.write(batch, [], diagnosis.rows, diagnosis.checkpoints)
        self.service.accept(diagnosis, result.refusal)

    def maintain(self) -> None:
        """Between batches, as Stage does."""
        diagnosis = self.service.maintain()
        if diagnosis is not None:
            result = self.store.write(Readings.empty(), [], diagnosis.rows, diagnosis.checkpoints)
            self.service.accept(diagnosis, result.refusal)

    def finish(self) -> None:
        for diagnosis in self.service.finish():
            self.store.write(Readings.empty(), [], diagnosis.rows, diagnosis.checkpoints)
            self.service.accept(diagnosis)
        self.close()

    def close(self) -> None:
        """As a kill -9 would: nothing is written."""
        self.store.close()
        self.service.close()


@pytest.fixture
def database(timescaledb_apache: Database) -> Database:
    migrate(timescaledb_apache.settings)
    return timescaledb_apache


def stream(seed: int, wells: int, count: int) -> Readings:
    """Wells with everything in them, a minute a sample, received one after the other."""
    readings = merged([story(seed + at, count, 60.0) for at in range(wells)], None)
    readings.received_us = np.maximum.accumulate(readings.received_us) + np.arange(len(readings))
    return readings


def table(database: Database) -> dict[tuple[str, str, int], tuple[object, ...]]:
    rows = database.all(
        'SELECT well_id, diagnosis, (extract(epoch FROM "timestamp") * 1000000)::bigint, severity, state, '
        "(extract(epoch FROM cleared_at) * 1000000)::bigint, value, threshold, occurrences, message "
        "FROM diagnostic_results"
    )
    return {row[:3]: row[3:] for row in rows}


def expected(readings: Readings) -> dict[tuple[str, str, int], tuple[object, ...]]:
    return {
        key: (
            row.severity.value,
            row.state,
            row.cleared_us,
            row.value,
            row.threshold,
            row.occurrences,
            row.message,
        )
        for key, row in whole(readings, LIMITED).items()
    }


@pytest.mark.parametrize("end", ["killed", "drained"])
def test_a_restart_anywhere_changes_no_row(database: Database, end: str) -> None:
    readings = stream(31, 6, 500)
    clock = FakeClock()
    run = Run(database, clock)
    edges = np.linspace(0, len(readings), 41).astype(int)
    for number, (begin, stop) in enumerate(itertools.pairwise(edges)):
        if number % 7 == 6:
            run.finish() if end == "drained" else run.close()
            run = Run(database, clock)
            redelivered = readings.select(np.arange(max(0, begin - 40), begin))
            run.process(redelivered)  # its acknowledgement was lost
        clock.sleep(20)  # a checkpoint a batch: those that never had one come first
        run.process(readings.select(np.arange(begin, stop)))
    run.close()
    assert len(table(database)) > 10
    assert table(database) == expected(readings)
    assert database.value("SELECT count(*) FROM diagnostic_state") == 6


_TRIGGER = """
CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF NEW.well_id LIKE TG_ARGV[0] THEN RAISE 'told to refuse'; END IF; RETURN NEW; END $$;
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON diagnostic_results FOR EACH ROW EXECUTE FUNCTION refuse('%');
"""
_BROKEN = {  # and what mends it
    "rows": (_TRIGGER, "DROP TRIGGER refuse ON diagnostic_results"),
    "rows of one well": (_TRIGGER.replace("'%'", "'W-1'"), "DROP TRIGGER refuse ON diagnostic_results"),
    "states": ("ALTER TABLE diagnostic_state RENAME TO away", "ALTER TABLE away RENAME TO diagnostic_state"),
    "operators": ("ALTER TABLE alarm_actions RENAME TO away", "ALTER TABLE away RENAME TO alarm_actions"),
    "shelves": ("ALTER TABLE alarm_shelves RENAME TO away", "ALTER TABLE away RENAME TO alarm_shelves"),
}


@pytest.mark.parametrize("most_rows", [5_000, 3], ids=["", "more rows than may wait"])
@pytest.mark.parametrize("broken", _BROKEN)
def test_tables_of_the_diagnostics_that_refuse_for_a_while_change_no_row(
    database: Database, broken: str, most_rows: int
) -> None:
    """Twice: from before the first reading on, and later. Meanwhile no reading waits; afterwards every occurrence is
    there once, those that were raised and over meanwhile as well."""
    breaks, mends = _BROKEN[broken]
    readings = stream(31, 6, 500)
    run = Run(database, FakeClock(), listening=lambda: False, most_rows=most_rows)
    edges = np.linspace(0, len(readings), 41).astype(int)
    for number, (begin, stop) in enumerate(itertools.pairwise(edges)):
        if number in (0, 20):
            database.run(breaks)
        if number in (8, 33):
            assert run.service.trouble is not None or broken == "rows of one well"  # it has none yet
            database.run(mends)
        run.process(readings.select(np.arange(begin, stop)))
        keys = {(readings.well_of(row), int(readings.timestamp_us[row])) for row in range(stop)}
        assert database.value("SELECT count(*) FROM esp_telemetry") == len(keys)
        run.clock.sleep(6)
        for _ in range(4):
            run.maintain()
            run.clock.sleep(1)
    run.process(readings.select(np.arange(len(readings) - 1, len(readings))))  # a duplicate
    assert run.service.trouble is None
    assert value_of(run.metrics.diagnostics_wells_waiting) == 0
    run.close()
    assert table(database) == expected(readings)
    assert value_of(run.metrics.diagnostics_rows_waiting) == value_of(run.metrics.diagnostics_refused) == 0


def test_one_well_that_is_refused_holds_back_no_other(database: Database) -> None:
    database.run(_TRIGGER.replace("'%'", "'W-1'"))
    readings = stream(31, 6, 500)
    run = Run(database, FakeClock())
    for begin, stop in itertools.pairwise(np.linspace(0, len(readings), 41).astype(int)):
        run.process(readings.select(np.arange(begin, stop)))
        run.clock.sleep(6)
    run.process(readings.select(np.arange(len(readings) - 1, len(readings))))
    run.close()
    assert table(database) == {key: row for key, row in expected(readings).items() if key[0] != "W-1"}


def test_killed_before_the_first_checkpoint(database: Database) -> None:
    readings = stream(31, 6, 50)
    clock = FakeClock()
    run = Run(database, clock)
    run.process(readings.select(np.arange(0, 150)))
    run.close()
    assert database.value("SELECT count(*) FROM diagnostic_state") == 0
    run = Run(database, clock)
    run.process(readings.select(np.arange(150, len(readings))))
    run.close()
    assert table(database) == expected(readings)


def test_what_is_open_in_the_table_alone_is_ended(database: Database) -> None:
    readings = stream(31, 1, 50)
    run = Run(database, FakeClock())
    run.process(readings)
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO diagnostic_results VALUES "
            "(to_timestamp(%s), 'W-0', 'abolished', 'high', 'unacknowledged', NULL, 1, 2, 3, 1, 1, 'text', '[]', '{}')",
            ((START_US + MINUTE_US) / 1e6,),
        )
    run.close()
    again = Run(database, FakeClock())
    later = readings.select(np.array([len(readings) - 1]))
    later.timestamp_us, later.received_us = later.timestamp_us + MINUTE_US, later.received_us + MINUTE_US
    again.process(later)
    again.close()
    state, cleared = database.all(
        "SELECT state, cleared_at IS NOT NULL FROM diagnostic_results WHERE diagnosis = 'abolished'"
    )[0]
    assert (state, cleared) == ("returned-unacknowledged", True)


def test_a_verdict_outlives_a_kill_before_the_next_checkpoint(database: Database) -> None:
    """The last word counts: an alarm that is false does not hold the well's baseline, a true one does."""
    readings = stream(31, 6, 50)
    run = Run(database, FakeClock())
    run.process(readings)
    opened = [(each.well_id, each.diagnosis, each.raised_us) for each in run.service.engine.open_occurrences()]
    run.close()
    one, other, third = opened[:3]
    with database.connect() as connection:
        for (well, diagnosis, raised_us), verdict in ((one, "false"), (other, "false"), (other, "true")):
            connection.execute(
                "INSERT INTO alarm_actions (well_id, diagnosis, action, by_whom, why, raised_at, detail) VALUES "
                "(%s, %s, 'verdict', 'me', '', to_timestamp(%s), jsonb_build_object('verdict', %s::text))",
                (well, diagnosis, raised_us / 1e6, verdict),
            )
    again = Run(database, FakeClock())
    later = readings.select(np.arange(len(readings) - 6, len(readings)))
    later.timestamp_us, later.received_us = later.timestamp_us + MINUTE_US, later.received_us + MINUTE_US
    again.service.prepare(later.wells)
    found = {key: again.service.engine.open_at(*key[:2]) for key in (one, other, third)}
    again.close()
    assert [each is not None and each.is_false for each in found.values()] == [True, False, False]


def test_wells_that_give_up_their_place_come_back_as_they_were(database: Database) -> None:
    """Room for three wells of eight, two in a batch: all but one go and come back all the time, and no row differs."""
    readings = stream(57, 8, 300)
    run = Run(database, FakeClock(), max_wells=3, kept_us=-(10**15))
    step = len(readings) // 15
    for begin in range(0, len(readings), step):
        part = np.arange(begin, min(begin + step, len(readings)))
        for first in range(0, len(readings.wells), 2):
            batch = readings.select(part[np.isin(readings.well_index[part], (first, first + 1))])
            if len(batch):
                wells = sorted({batch.well_of(row) for row in range(len(batch))})
                place = {well: at for at, well in enumerate(wells)}
                batch.well_index = np.array([place[batch.well_of(row)] for row in range(len(batch))], np.int32)
                batch.wells = wells
                run.clock.sleep(5)
                run.process(batch)
                assert len(run.service.engine.wells()) <= 3
    run.close()
    assert value_of(run.metrics.diagnostics_wells_evicted) > 50
    assert value_of(run.metrics.diagnostics_readings_unjudged) == 0
    assert table(database) == expected(readings)


def _life(dsn: str, batches: Sequence[Readings], checkpoints: bool) -> None:
    """Of a daemon: take the batches, then die by kill -9."""
    clock = FakeClock()
    run = Run(Database(dsn, Server(Path(), 0)), clock, lambda: common_stops.RULES)
    for batch in batches:
        clock.sleep(20 if checkpoints else 0.001)
        run.process(batch)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("checkpoints", [True, False], ids=["a checkpoint a batch", "none since long"])
def test_a_common_stop_outlives_kills_at_any_moment_of_it(database: Database, checkpoints: bool) -> None:
    """One alarm for all wells, not two and not none, whichever of its stops and starts lies behind the kill."""
    wells, stopped = 12, common_stops.BEFORE
    readings = common_stops.fleet(wells, common_stops.dip(wells, minutes=40, apart=0.5), minutes=100)
    minutes = (readings.timestamp_us - readings.timestamp_us[0]) / MINUTE_US - stopped
    kills = [-1.0, 0.6, 1.8, 2.6, 4.2, 20.0, 40.6, 42.9, 44.0, 46.0, 70.0]
    edges = [0, *np.searchsorted(minutes, kills).tolist(), len(readings)]
    spawn = multiprocessing.get_context("spawn")
    for begin, end in itertools.pairwise(edges):
        part = np.array_split(np.arange(max(0, begin - 7), end), 3)  # the acknowledgement of seven was lost
        batches = [readings.select(each) for each in part if len(each)]
        life = spawn.Process(target=_life, args=(database.dsn, batches, checkpoints))
        life.start()
        life.join(60)
        assert life.exitcode == -signal.SIGKILL
    found = table(database)
    alarms = [key for key, row in found.items() if key[1] == "common_stop" and row[0] == "medium"]
    assert len(alarms) == 1
    assert len([key for key in found if key[1] == "common_stop"]) == wells
    assert len([key for key in found if key[1] == "trip"]) == wells
    rows = common_stops.played(readings).occurrences()
    assert found == {
        (row.well_id, row.diagnosis, row.raised_us): (
            row.severity.value, row.state, row.cleared_us, row.value, row.threshold, row.occurrences, row.message,
        )
        for row in rows
    }  # fmt: skip
