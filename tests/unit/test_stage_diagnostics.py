"""How the stage drives the diagnostics: their state moves with the transaction, and they never hold back a reading."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from esp_ingest.diagnostics.engine.engine import Evaluation
from esp_ingest.diagnostics.service import Diagnosis
from esp_ingest.ingest.writer_stage import Stage
from esp_ingest.interfaces import Refusal, StoreUnavailable
from esp_ingest.model import Checkpoint, Readings
from tests.support.store_data import DIAGNOSIS
from tests.unit.test_stage import Rig


class FakeDiagnostics:
    """Raises one occurrence a batch, keeps a journal of what it is asked, and fails as told."""

    def __init__(self) -> None:
        self.journal: list[str] = []
        self.fails: dict[str, BaseException] = {}
        self.due = False
        self.refusals: list[Refusal | None] = []

    def _note(self, what: str) -> None:
        self.journal.append(what)
        if what in self.fails:
            raise self.fails[what]

    def prepare(self, wells: Sequence[str] = ()) -> None:
        self._note("prepare")

    def evaluate(self, readings: Readings) -> Diagnosis:
        self._note("evaluate")
        return Diagnosis(Evaluation(), [DIAGNOSIS], [Checkpoint("W1", 1, b"state")], readings.wells)

    def accept(self, diagnosis: Diagnosis, refusal: Refusal | None = None) -> None:
        self.refusals.append(refusal)
        self._note("accept")

    def try_again(self) -> None:
        self._note("try again")

    def discard(self, diagnosis: Diagnosis) -> None:
        self._note("discard")

    def maintain(self) -> Diagnosis | None:
        self._note("maintain")
        return Diagnosis(Evaluation(), [DIAGNOSIS]) if self.due else None

    def finish(self) -> Iterator[Diagnosis]:
        self._note("finish")
        for number in range(3):
            yield Diagnosis(Evaluation(), [], [Checkpoint(f"W{number}", 1, b"last")])


class DiagnosingRig(Rig):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.diagnostics = FakeDiagnostics()
        self.stage = Stage(
            self.settings,
            self.store,
            self.spool,
            self.diagnostics,
            self.decoder.decode,
            self.clock,
            self.metrics,
            self.queue,
        )
        self.queue.stage = self.stage


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[DiagnosingRig]:
    made = DiagnosingRig(tmp_path)
    yield made
    assert made.spool is not None
    made.spool.close()


def test_the_time_of_a_write_is_without_the_rules(rig: DiagnosingRig, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = rig.diagnostics.evaluate

    def slow(readings: Readings) -> Diagnosis:
        rig.clock.advance(7.0)
        return evaluate(readings)

    monkeypatch.setattr(rig.diagnostics, "evaluate", slow)
    rig.stage.process(rig.batch(0, 3))
    assert rig.metrics.registry.get_sample_value("esp_ingest_batch_write_seconds_count") == 1
    assert rig.metrics.registry.get_sample_value("esp_ingest_batch_write_seconds_sum") == 0


def test_rows_and_checkpoints_go_along_with_the_batch(rig: DiagnosingRig) -> None:
    assert rig.stage.process(rig.batch(0, 3)).written == 3
    assert rig.diagnostics.journal == ["try again", "prepare", "evaluate", "accept"]
    assert [row.diagnosis for row in rig.store.diagnostics.values()] == ["gas_lock"]
    assert rig.store.states["W1"].state == b"state"


def test_what_was_not_stored_never_was(rig: DiagnosingRig) -> None:
    rig.store.failures = ["before", "after"]
    rig.stage.process(rig.batch(0, 3))
    once = ["prepare", "evaluate"]  # and not evaluated where the database failed first
    again = ["try again", *once]
    assert rig.diagnostics.journal == ["try again", "prepare", *again, "discard", *again, "accept"]
    assert len(rig.store.diagnostics) == 1


@pytest.mark.parametrize("where", ["prepare", "evaluate"])
def test_a_mistake_in_the_rules_costs_no_reading(rig: DiagnosingRig, where: str) -> None:
    rig.diagnostics.fails[where] = ZeroDivisionError("told to")
    outcome = rig.stage.process(rig.batch(0, 3))
    assert (outcome.written, outcome.rejected) == (3, 0)
    assert rig.value("diagnostics_rule_failures_total", diagnosis="engine") == 1
    assert not rig.store.diagnostics


def test_readings_are_stored_whatever_the_diagnostics_tables_refuse(rig: DiagnosingRig) -> None:
    rig.store.refuses_diagnostics = True
    outcome = rig.stage.process(rig.batch(0, 3))
    assert (outcome.written, outcome.spooled) == (3, 0)
    assert rig.stage.database_detail is None
    (refusal,) = rig.diagnostics.refusals
    assert refusal is not None
    assert (refusal.rows, refusal.wells) == ((DIAGNOSIS,), {"W1"})
    assert not rig.store.diagnostics


def test_a_database_that_may_be_away_is_looked_at_before_anything_else(rig: DiagnosingRig) -> None:
    """The diagnostics found out first, by waiting long."""
    rig.diagnostics.fails["prepare"] = StoreUnavailable("told to be silent")
    prepare = rig.diagnostics.prepare

    def once(wells: Sequence[str] = ()) -> None:
        try:
            prepare(wells)
        finally:
            rig.diagnostics.fails.clear()

    rig.diagnostics.prepare = once  # type: ignore[method-assign]
    assert rig.stage.process(rig.batch(0, 3)).written == 3
    assert rig.diagnostics.journal == ["try again", "prepare", "try again", "prepare", "evaluate", "accept"]


def test_a_database_that_is_away_is_asked_for_before_the_diagnostics(rig: DiagnosingRig) -> None:
    """They would take it for a trouble of their own, and let this batch go without them."""
    rig.store.away = True
    assert rig.stage.process(rig.batch(0, 3)).spooled == 3
    assert rig.diagnostics.journal == []


def test_silence_is_looked_for_when_idle_and_written(rig: DiagnosingRig) -> None:
    rig.stage.idle()
    assert "maintain" in rig.diagnostics.journal
    assert not rig.store.diagnostics
    rig.diagnostics.due = True
    rig.stage.idle()
    assert rig.diagnostics.journal[-2:] == ["maintain", "accept"]
    assert len(rig.store.diagnostics) == 1
    rig.store.away = True
    rig.stage.idle()
    assert rig.diagnostics.journal[-1] == "discard"
    assert rig.stage.database_detail is not None


def test_no_silence_while_readings_wait_in_the_spool_or_the_database_is_away(rig: DiagnosingRig) -> None:
    rig.stage.idle()
    rig.diagnostics.journal.clear()
    rig.store.away = True
    rig.stage.process(rig.batch(0, 3))
    rig.diagnostics.journal.clear()
    for _ in range(5):
        rig.stage.idle()
        rig.clock.sleep(0.01)
    assert rig.stage.spooling
    assert "maintain" not in rig.diagnostics.journal
    rig.store.away = False
    rig.clock.sleep(60)
    while rig.stage.spooling:
        rig.stage.idle()
    rig.stage.idle()
    assert rig.diagnostics.journal[-1] == "maintain"


def test_a_mistake_between_batches_is_counted_and_told_once(
    rig: DiagnosingRig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.diagnostics.fails["maintain"] = ZeroDivisionError("told to")
    for _ in range(3):
        rig.stage.idle()
    assert rig.value("diagnostics_rule_failures_total", diagnosis="engine") == 3
    assert caplog.text.count("diagnostics fail between batches") == 1
    assert rig.stage.process(rig.batch(0, 1)).written == 1


def test_the_last_checkpoints(rig: DiagnosingRig) -> None:
    rig.stage.process(rig.batch(0, 1))
    rig.stage.finish()
    assert {well: each.state for well, each in rig.store.states.items()} == dict.fromkeys(("W0", "W1", "W2"), b"last")


def test_the_end_does_not_wait_for_the_last_checkpoints(rig: DiagnosingRig) -> None:
    rig.stage.process(rig.batch(0, 1))
    rig.store.away = True
    before = rig.clock.monotonic()
    rig.stage.finish()
    assert rig.clock.monotonic() == before
    assert np.all([each.state != b"last" for each in rig.store.states.values()])
