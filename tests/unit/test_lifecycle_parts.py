"""Parts of the lifecycle that need no database: what may be dropped together, manifests, and who imports what."""

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta

import pytest

from esp_ingest.lifecycle.archive import manifest
from esp_ingest.lifecycle.errors import LifecycleError, Reason
from esp_ingest.lifecycle.retention import Chunk, Drop, cutoff, plan
from esp_ingest.lifecycle.tables import TABLES

TELEMETRY, DIAGNOSTICS, REJECTS = TABLES
D = date(2026, 3, 10)


def at(day: date, hours: float = 0) -> datetime:
    return datetime.combine(day, datetime.min.time(), UTC) + timedelta(hours=hours)


def day(number: int) -> date:
    return D + timedelta(days=number)


def chunk(first: float, days: float) -> Chunk:
    start = at(D) + timedelta(days=first)
    return Chunk(f"c{first}", start, start + timedelta(days=days))


def test_a_day_stays_for_so_many_whole_days() -> None:
    assert cutoff(30, date(2026, 11, 25)) == date(2026, 10, 26)


def test_a_chunk_a_day() -> None:
    chunks = [chunk(0, 1), chunk(1, 1), chunk(2, 1)]
    assert plan(TELEMETRY, [day(0), day(1), day(2)], day(2), chunks) == [
        Drop((day(0),), (chunks[0],)),
        Drop((day(1),), (chunks[1],)),
    ]


def test_a_chunk_of_several_days_waits_until_all_of_it_is_due() -> None:
    week = chunk(0, 7)
    days = [day(number) for number in range(7)]
    assert plan(TELEMETRY, days, day(6), [week]) == []
    assert plan(TELEMETRY, days, day(7), [week]) == [Drop(tuple(days), (week,))]


def test_chunks_of_hours_go_together_with_their_day() -> None:
    chunks = [chunk(number / 4, 1 / 4) for number in range(8)]
    assert plan(TELEMETRY, [day(0), day(1)], day(1), chunks) == [Drop((day(0),), tuple(chunks[:4]))]


def test_chunks_across_midnight_go_with_both_days() -> None:
    """As after a change of the chunk interval."""
    chunks = [chunk(0.5, 1), chunk(1.5, 1)]
    assert plan(TELEMETRY, [day(0), day(1), day(2)], day(2), chunks) == []
    assert plan(TELEMETRY, [day(0), day(1), day(2)], day(3), chunks) == [Drop((day(0), day(1), day(2)), tuple(chunks))]


def test_rows_are_deleted_where_there_are_no_chunks_or_some_rows_may_have_to_stay() -> None:
    assert plan(TELEMETRY, [day(1), day(0)], day(1), None) == [Drop((day(0),))]
    assert plan(DIAGNOSTICS, [day(0)], day(1), [chunk(0, 7)]) == [Drop((day(0),))]


def test_a_manifest_is_what_was_written_or_damaged() -> None:
    written = manifest.Manifest(
        "esp_telemetry",
        str(D),
        1,
        2,
        "a",
        "b",
        "0" * 32,
        (manifest.File("x.parquet", 3, "s"),),
        14,
        "0.1",
        "db",
        "i",
        "w",
    )
    assert manifest.decode(written.encoded(), "esp_telemetry", D) == written
    for wrong in (
        b"",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b"null",
        written.encoded()[:-9],
        written.encoded().replace(b"x.parquet", b"../x"),
    ):
        with pytest.raises(LifecycleError) as caught:
            manifest.decode(wrong, "esp_telemetry", D)
        assert caught.value.reason is Reason.DAMAGED
    with pytest.raises(LifecycleError):
        manifest.decode(written.encoded(), "esp_telemetry", day(1))


def test_the_daemon_and_check_run_without_the_extra() -> None:
    script = (
        "import sys\n"
        "for name in ('pyarrow', 'obstore', 'duckdb'): sys.modules[name] = None\n"
        "import esp_ingest.daemon, esp_ingest.commands.check, esp_ingest.lifecycle.observe\n"
        "print([name for name in sys.modules if name.startswith('esp_ingest.lifecycle.')])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    found = eval(done.stdout)
    assert set(found) == {f"esp_ingest.lifecycle.{name}" for name in ("observe", "tables")}


def test_without_the_extra_the_command_says_what_to_install() -> None:
    script = (
        "import sys, importlib.util as util\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'pyarrow' else real(name, *more)\n"
        "from esp_ingest import cli\n"
        "sys.exit(cli.main(['lifecycle', 'status']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert 'pip install "esp-ingest[archive]"' in done.stderr
    assert done.stderr.count("\n") == 1
