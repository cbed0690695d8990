"""What a reading weighs in the columnstore, by fleet, chunk interval and layout.

    python -m tests.bench.columnstore [--paste]

TimescaleDB community edition in WebAssembly, which has the columnstore of the native one. Each layout is a hypertable
like esp_telemetry, filled, compressed and read back, so that a value that changed by a bit ends the bench. Simulated
wells send all 13 signals with two decimals; ESP01 is the recorded well of ../shared/data, where that is there. Sizes
are bytes a reading; three minutes. Not for CI."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from esp_ingest.model import SIGNAL_NAMES, Readings, at_us
from esp_ingest.store.schema import migrate
from tests.bench.paste import paste
from tests.evaluate import recorded
from tests.support.databases import Database, PgLite

SHIPPED = ("well_id", '"timestamp" DESC')
ONE_SEGMENT = ("", 'well_id, "timestamp" DESC')
_ROWS_A_STATEMENT = 150  # about 35 kB: the WebAssembly server was seen to end at 100 kB

# A signal that wanders, as instruments print it; the second has a resolution that instruments really have.
_NOISY = "round((1000 + 50 * sin(i / 90.0 + w + {n}) + 5 * random())::numeric, 2)"
_COARSE = "round((1000 + 50 * sin(i / 90.0 + w + {n}) + 0.3 * random())::numeric, 0)"
_FILL = """
INSERT INTO {table} ("timestamp", well_id, {signals}, received_at)
SELECT at, 'W-' || lpad(w::text, 5, '0'), {values}, at + INTERVAL '200 ms' + random() * INTERVAL '100 ms'
FROM generate_series(0, {samples} - 1) AS i, generate_series(1, {wells}) AS w,
    LATERAL (SELECT TIMESTAMPTZ '2026-01-05 00:00:00Z' + i * INTERVAL '{seconds} s') AS t (at)
ORDER BY at
"""


@dataclass(frozen=True)
class Fleet:
    """``wells`` that send every ``seconds`` for ``days``; values by ``kind``."""

    name: str
    wells: int
    seconds: int
    days: int
    kind: str = _NOISY

    @property
    def samples(self) -> int:
        """Of one well."""
        return self.days * 86_400 // self.seconds


FLEETS = (
    Fleet("dense: 1 s", wells=2, seconds=1, days=1),
    Fleet("usual: 1 min", wells=20, seconds=60, days=7),
    Fleet("usual, whole numbers", wells=20, seconds=60, days=7, kind=_COARSE),
    Fleet("sparse: 5 min, 5 wells", wells=5, seconds=300, days=28),
)
CHUNK_DAYS = (1, 7, 28)


class Layout:
    """A hypertable like esp_telemetry with its own chunks and columnstore."""

    def __init__(self, database: Database, days: int, layout: tuple[str, str]) -> None:
        self._database = database
        segment, order = layout
        database.run("DROP TABLE IF EXISTS laid_out")
        database.run("CREATE TABLE laid_out (LIKE esp_telemetry INCLUDING ALL)")
        dimension = f"by_range('timestamp', INTERVAL '{days} days')"
        database.run(f"SELECT create_hypertable('laid_out', {dimension}, create_default_indexes => false)")
        database.run(
            f"ALTER TABLE laid_out SET (timescaledb.enable_columnstore, timescaledb.segmentby = '{segment}', "
            f"timescaledb.orderby = '{order}')"
        )

    def compress(self) -> tuple[int, float, float, int]:
        """(readings, bytes a reading before, and after, chunks)."""
        run = self._database
        hashes = "SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) FROM laid_out t"
        before = run.all(hashes)[0]
        run.run("SELECT compress_chunk(c) FROM show_chunks('laid_out') c")
        sizes = run.all(
            "SELECT before_compression_total_bytes, after_compression_total_bytes, total_chunks "
            "FROM hypertable_compression_stats('laid_out')"
        )[0]
        assert run.all(hashes)[0] == before, "the columnstore changed a value"
        rows = int(before[0])
        return rows, sizes[0] / rows, sizes[1] / rows, int(sizes[2])

    def columns(self) -> dict[str, float]:
        """Bytes a reading of each column in the columnstore, without its pages."""
        tables = self._database.all(
            "SELECT format('%I.%I', c.schema_name, c.table_name) FROM _timescaledb_catalog.chunk c "
            "JOIN _timescaledb_catalog.chunk u ON u.compressed_chunk_id = c.id "
            "JOIN _timescaledb_catalog.hypertable h ON h.id = u.hypertable_id WHERE h.table_name = 'laid_out'"
        )
        names = ("timestamp", "received_at", *SIGNAL_NAMES)
        sums = ", ".join(f'sum(pg_column_size("{name}"))' for name in names)
        total, rows = dict.fromkeys(names, 0), 0
        for (table,) in tables:
            found = self._database.all(f"SELECT sum(_ts_meta_count), {sums} FROM {table}")[0]
            rows += int(found[0])
            for name, size in zip(names, found[1:], strict=True):
                total[name] += int(size or 0)
        return {name: size / rows for name, size in total.items()}


def simulate(database: Database, fleet: Fleet) -> None:
    """Fill the layout with a fleet's readings; the same at every call."""
    values = ", ".join(fleet.kind.format(n=number) for number in range(len(SIGNAL_NAMES)))
    database.run("SELECT setseed(0.5)")
    database.run(
        _FILL.format(
            table="laid_out", signals=", ".join(SIGNAL_NAMES), values=values, samples=fleet.samples,
            wells=fleet.wells, seconds=fleet.seconds,
        )
    )  # fmt: skip


def replay(database: Database, days: int) -> None:
    """Fill the layout with the first ``days`` of ESP01, in field units."""
    head = f'INSERT INTO laid_out ("timestamp", well_id, {", ".join(SIGNAL_NAMES)}, received_at) VALUES '
    for readings in recorded.decoded(recorded.ESP01):
        begun_us = int(recorded.decoded(recorded.ESP01)[0].timestamp_us[0])
        inside = readings.select(np.flatnonzero(readings.timestamp_us < begun_us + days * recorded.DAY_US))
        rows = [_row(inside, row) for row in range(len(inside))]
        for begin in range(0, len(rows), _ROWS_A_STATEMENT):
            database.run(head + ", ".join(rows[begin : begin + _ROWS_A_STATEMENT]) + " ON CONFLICT DO NOTHING")


def _row(readings: Readings, row: int) -> str:
    values = ("NULL" if value != value else repr(value) for value in readings.values[:, row].tolist())
    at, received = (f"'{at_us(int(each[row]))}'" for each in (readings.timestamp_us, readings.received_us))
    return f"({at}, '{readings.well_of(row)}', {', '.join(values)}, {received})"


def measure(database: Database) -> Iterator[str]:
    """The lines of the report."""
    yield "| fleet | chunk | segment by | readings a chunk | before | after | smaller by |"
    yield "|---|---|---|---:|---:|---:|---:|"
    shares: list[tuple[str, dict[str, float]]] = []
    for name, fill, span, smallest in _inputs():
        for days in CHUNK_DAYS:
            if days > max(span, 1) and days > smallest:
                continue
            for layout in (SHIPPED, ONE_SEGMENT):
                laid = Layout(database, days, layout)
                fill(database)
                rows, before, after, chunks = laid.compress()
                cells = (
                    name, f"{days} d", layout[0] or "nothing", f"{rows // chunks:,}", f"{before:.0f}", f"{after:.1f}",
                    f"{1 - after / before:.0%}",
                )  # fmt: skip
                line = f"| {' | '.join(cells)} |"
                sys.stderr.write(line + "\n")
                yield line
                if layout == SHIPPED and days == smallest:
                    shares.append((name, laid.columns()))
    yield ""
    yield "Of the shipped layout with the shortest chunk, bytes a reading by column, without pages:"
    yield ""
    yield "| fleet | timestamp | received_at | a signal that is sent, on average |"
    yield "|---|---:|---:|---:|"
    for name, columns in shares:
        sent = [size for signal, size in columns.items() if signal in SIGNAL_NAMES and size > 0.1]
        mean = sum(sent) / len(sent)
        yield f"| {name} | {columns['timestamp']:.2f} | {columns['received_at']:.2f} | {mean:.2f} |"


def _inputs() -> Iterator[tuple[str, Any, int, int]]:
    """(name, what fills the layout, its days, the shortest chunk interval)."""
    for fleet in FLEETS:
        yield fleet.name, lambda database, fleet=fleet: simulate(database, fleet), fleet.days, CHUNK_DAYS[0]
    if (recorded.FOLDER / recorded.ESP01).exists():
        yield "ESP01, recorded at 5 min", lambda database: replay(database, 56), 56, CHUNK_DAYS[0]
    else:
        sys.stderr.write(f"ESP01 is left out: {recorded.FOLDER} has no {recorded.ESP01}\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.columnstore")
    parser.add_argument("--paste", action="store_true", help="put the tables into docs/performance.md")
    options = parser.parse_args()
    with PgLite.start() as server:
        database = server.database()
        migrate(database.settings)
        text = "\n".join(measure(database))
    sys.stdout.write(text + "\n")
    if options.paste:
        paste(text, "columnstore")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
