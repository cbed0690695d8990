"""How large database, spool and broker have to be: ``python -m tools.sizing --wells 1000 --rate 1 [--json]``.

Formulas, with the constants below; what a constant is from stands beside it. They are for planning: measure your own
(esp_ingest_spool_bytes by esp_ingest_spool_messages, esp_ingest_table_bytes_per_row) and give them.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from esp_ingest.config.settings import Settings

SPOOL_OVERHEAD_BYTES = 50  # a message in the spool beside its payload: topic, times, record
QUEUE_OVERHEAD_BYTES = 500  # a message in Mosquitto's memory beside its payload (mosquitto.conf)
ROW_BYTES = 268  # 200 000 readings of all 13 signals with their indexes on PostgreSQL 15; fewer signals take less
AGGREGATE_BYTES = 640  # a well and hour or day: 66 numbers, key and index
SPARE = 1.3  # WAL, indexes being built, the day that is being archived


def sizes(arguments: argparse.Namespace) -> dict[str, tuple[float, str]]:
    """Name → (value, formula)."""
    settings = Settings()
    rate = arguments.wells * arguments.rate
    outage = rate * arguments.outage_hours * 3_600
    day = rate * 86_400
    share = arguments.compressed_share
    plain_days = arguments.days if share == 1 else min(arguments.days, 7.0)
    rows = day * (plain_days + (arguments.days - plain_days) * share) * arguments.row_bytes
    kept = arguments.wells * (24 + 1) * settings.lifecycle.aggregates_days * AGGREGATE_BYTES
    packed = "" if share == 1 else f" + {arguments.days - plain_days:g} days x {share:g}"
    window = max(2 * settings.batch.max_messages, rate * (settings.batch.max_age_seconds + 0.15) * 2)
    return {
        "readings a second": (rate, "wells x rate"),
        "bytes a second": (rate * arguments.payload_bytes, "readings a second x payload"),
        "mqtt.receive_maximum, at least": (window, "2 x readings a second x (batch age + 0.15 s to write), 2 batches"),
        "spool.max_bytes": (
            outage * (arguments.payload_bytes + SPOOL_OVERHEAD_BYTES),
            f"readings of {arguments.outage_hours:g} h x (payload + {SPOOL_OVERHEAD_BYTES})",
        ),
        "max_queued_messages": (outage, f"readings of {arguments.outage_hours:g} h"),
        "broker's memory, bytes": (
            outage * (arguments.payload_bytes + QUEUE_OVERHEAD_BYTES),
            f"these x (payload + {QUEUE_OVERHEAD_BYTES})",
        ),
        "database, bytes": (
            SPARE * (rows + kept),
            f"{SPARE:g} x (readings a day x ({plain_days:g} days{packed}) x {arguments.row_bytes:g} "
            f"+ wells x 25 x {settings.lifecycle.aggregates_days} days x {AGGREGATE_BYTES})",
        ),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the sizes. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.sizing", description=__doc__.partition("\n")[0])
    parser.add_argument("--wells", type=int, required=True)
    parser.add_argument("--rate", type=float, default=1.0, metavar="HZ", help="readings a second of one well (1)")
    parser.add_argument("--payload-bytes", type=float, default=250.0, help="of one reading (250)")
    parser.add_argument("--row-bytes", type=float, default=ROW_BYTES, help=f"of one row with its index ({ROW_BYTES})")
    parser.add_argument("--days", type=float, default=30.0, help="that readings stay in the database (30)")
    parser.add_argument("--outage-hours", type=float, default=8.0, help="of database or daemon, to be held (8)")
    compressed = "a row's share of its bytes after TimescaleDB's columnstore, from day 7 on: measure yours (1: none)"
    parser.add_argument("--compressed-share", type=float, default=1.0, metavar="X", help=compressed)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    found = sizes(arguments)
    if arguments.json:
        sys.stdout.write(json.dumps({name: round(value) for name, (value, _) in found.items()}) + "\n")
        return 0
    for name, (value, formula) in found.items():
        sys.stdout.write(f"{name:<32}{_short(value):>10}   {formula}\n")
    return 0


def _short(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


if __name__ == "__main__":
    sys.exit(main())
