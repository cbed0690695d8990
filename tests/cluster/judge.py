"""What the tables of a run are held against: the fleet's journal, and the rules run by one daemon."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.model import SIGNALS, Readings
from esp_ingest.resources import config_file
from tests.cluster.tapped import Message
from tests.support.databases import Database

_BATCH = 1_000
_EPOCH = "(extract(epoch FROM {}) * 1000000)::bigint"
Occurrence = tuple[str, str, int]  # well, diagnosis, raised at (µs)


def lost_readings(journal: Path, database: Database) -> set[Message]:
    """Readings that the cluster acknowledged and that are in no table."""
    plan = json.loads((journal / "plan.json").read_text())
    base_ms, step_ms = plan["base_ms"], plan["step_ms"]
    lost: set[Message] = set()
    for well in plan["wells"]:
        acknowledged = {int(line) for line in (journal / f"journal-{well}").read_text().split()}
        query = f"SELECT ({_EPOCH.format('timestamp')} / 1000 - %s) / %s FROM esp_telemetry WHERE well_id = %s"
        stored = {int(number) for (number,) in database.all(query, base_ms, step_ms, well)}
        lost |= {(well, number) for number in acknowledged - stored}
    return lost


@dataclass(frozen=True)
class Diagnoses:
    """Occurrences: of one daemon, of the group, and of both."""

    one: int
    group: int
    both: int

    def __str__(self) -> str:
        same = self.one == self.group == self.both
        return f"{self.both} of {self.one}" + ("" if same else f", {self.group - self.both} others")


def diagnoses_of_one(database: Database) -> Diagnoses:
    """What the group raised, beside what one daemon does of the readings in the order received."""
    one = _raised_by_one(database)
    query = f"SELECT well_id, diagnosis, {_EPOCH.format('timestamp')} FROM diagnostic_results"
    group = {(str(well), str(diagnosis), int(at)) for well, diagnosis, at in database.all(query)}
    return Diagnoses(len(one), len(group), len(one & group))


def _raised_by_one(database: Database) -> set[Occurrence]:
    names = ", ".join(signal.name for signal in SIGNALS)
    query = (
        f"SELECT well_id, {_EPOCH.format('timestamp')}, {_EPOCH.format('received_at')}, {names} FROM esp_telemetry "
        "ORDER BY received_at, timestamp"
    )
    rows = database.all(query)
    engine = Engine(rules_file.load(config_file("rules.toml")))
    found: set[Occurrence] = set()
    for at in range(0, len(rows), _BATCH):
        part = rows[at : at + _BATCH]
        wells = sorted({row[0] for row in part})
        place = {well: number for number, well in enumerate(wells)}
        evaluation = engine.evaluate(
            Readings(
                wells=wells,
                well_index=np.array([place[row[0]] for row in part], dtype=np.int32),
                timestamp_us=np.array([row[1] for row in part], dtype=np.int64),
                received_us=np.array([row[2] for row in part], dtype=np.int64),
                values=np.ascontiguousarray(np.array([row[3:] for row in part], dtype=np.float64).T),
            )
        )
        engine.accept(evaluation)
        found |= {(row.well_id, row.diagnosis, row.raised_us) for row in evaluation.rows}
    return found
