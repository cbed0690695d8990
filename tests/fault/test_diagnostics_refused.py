"""Readings first: when the tables of the diagnostics alone refuse, readings are stored and acknowledged as ever, and
the diagnoses come once the tables work again."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fault.test_diagnostics_faults import Story
from tests.integration.test_grants import ROLE, documented_grants
from tests.support.rig import Rig

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

_RAISES = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'told to refuse'; END $$;
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON diagnostic_results FOR EACH ROW EXECUTE FUNCTION refuse();
"""
# What breaks it, what mends it, and a word of the reason that is shown.
TROUBLES = {
    "raising trigger": (_RAISES, "DROP TRIGGER refuse ON diagnostic_results", "told to refuse"),
    "missing table": (
        "ALTER TABLE diagnostic_results RENAME TO elsewhere",
        "ALTER TABLE elsewhere RENAME TO diagnostic_results",
        "diagnostic_results",
    ),
    "missing table of checkpoints": (
        "ALTER TABLE diagnostic_state RENAME TO elsewhere",
        "ALTER TABLE elsewhere RENAME TO diagnostic_state",
        "diagnostic_state",
    ),
    "revoked right": (
        f"REVOKE INSERT, UPDATE ON diagnostic_results FROM {ROLE}",
        f"GRANT INSERT, UPDATE ON diagnostic_results TO {ROLE}",
        "permission denied for table diagnostic_results",
    ),
    "one connection": (
        f"ALTER ROLE {ROLE} CONNECTION LIMIT 1; SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE usename = '{ROLE}'",
        f"ALTER ROLE {ROLE} CONNECTION LIMIT -1",
        "too many connections",
    ),
}


@pytest.fixture
def ours(rig: Rig) -> Iterator[Rig]:
    """The daemon with a role of its own, as docs/operations.md says."""
    rig.database.run(documented_grants())
    rig.settings["DATABASE__DSN"] = rig.environment()["ESP_INGEST_DATABASE__DSN"].replace("postgres@", f"{ROLE}@")
    yield rig
    rig.kill_daemon()
    rig.database.run(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")


def occurrences(rig: Rig) -> list[tuple[Any, ...]]:
    return rig.database.all(
        "SELECT state, cleared_at IS NOT NULL, occurrences FROM diagnostic_results WHERE diagnosis = 'vibration'"
    )


def stored(rig: Rig, count: int) -> bool:
    everything = (rig.database.value("SELECT count(*) FROM esp_telemetry"), rig.metric("messages_acked_total"))
    return everything == (count, count)


def diagnostics_check(rig: Rig) -> dict[str, Any]:
    found: dict[str, Any] = rig.health("ready")[1].get("checks", {}).get("diagnostics", {})
    return found


@pytest.mark.parametrize("is_known", [True, False], ids=["known well", "new well"])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_readings_are_stored_and_diagnoses_come_later(ours: Rig, trouble: str, is_known: bool) -> None:
    broken, mended, reason = TROUBLES[trouble]
    story = Story(ours)
    ours.start_daemon()
    if is_known:
        story.send(0.1, 3)
        ours.await_that(lambda: stored(ours, 18), "the first ones", 20)
    ours.database.run(broken)
    begun = 18 if is_known else 0
    if not is_known:
        story.send(0.1, 3)
        begun += 18
    story.send(0.6, 3)
    story.send(0.1, 20)
    begun += 138
    ours.await_that(lambda: stored(ours, begun), "readings are stored and acknowledged", 20)
    if not (is_known and "checkpoints" in trouble):  # a known well's checkpoint is due within minutes
        ours.await_that(lambda: reason in diagnostics_check(ours).get("detail", ""), "the reason is shown", 30)
    assert ours.health("ready")[0] == 200
    assert diagnostics_check(ours)["ok"]
    assert ours.metric("spool_messages") == ours.metric("spool_written_total") == 0
    ours.database.run(mended)
    ours.await_that(lambda: occurrences(ours) == [("returned-unacknowledged", True, 1)], "diagnosed", 60)
    ours.await_that(lambda: "with each batch" in diagnostics_check(ours)["detail"], "all is well", 30)
    assert ours.metric("diagnostics_refused") == ours.metric("diagnostics_rows_waiting") == 0
    assert ours.metric("diagnostics_wells_waiting") == 0
    story.send(0.6, 3)
    ours.await_that(lambda: len(occurrences(ours)) == 2, "the next one is raised with its batch", 20)
    log = ours.daemon_log()
    assert log.count("diagnostics wait, their tables refuse") < 6
    ours.stop_daemon()


def test_an_open_occurrence_is_there_after_a_restart_in_the_middle(ours: Rig) -> None:
    story = Story(ours)
    ours.start_daemon()
    story.send(0.1, 3)
    ours.await_that(lambda: stored(ours, 18), "the first ones", 20)
    ours.database.run(_RAISES)
    story.send(0.6, 3)
    ours.await_that(lambda: stored(ours, 36), "stored", 20)
    ours.kill_daemon()
    ours.start_daemon()
    story.send(0.6, 1)
    ours.await_that(lambda: stored(ours, 42) or ours.metric("messages_acked_total") == 6, "stored", 20)
    ours.database.run("DROP TRIGGER refuse ON diagnostic_results")
    ours.await_that(lambda: occurrences(ours) == [("unacknowledged", False, 1)], "diagnosed", 60)
    ours.stop_daemon()
