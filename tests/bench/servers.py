"""The broker and the database of a bench: fresh for each run, durable as in production, on loopback."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import psycopg

from esp_ingest.store.schema import migrate
from tests.bench.processes import installed_environment, tree
from tests.bench.workload import COLUMNS, ROW_HEADER, ROW_TRAILER, Workload
from tests.support.brokers import DAEMON, Mosquitto
from tests.support.databases import Database, NativeTimescale, free_port

# fsync and synchronous_commit stay on. Commit timestamps give each row the moment at which it was safe, for every
# competitor alike. The WAL is large enough that a run does not measure checkpoints.
POSTGRES_SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "track_commit_timestamp": "on",
    "autovacuum": "off",
}
PUBLISHER = "bench-publisher"
# One connection publishes for a thousand wells: the shipped rules let a controller write to its own topic only.
_PUBLISHER_ACL = f"\nuser {PUBLISHER}\ntopic write esp/+/telemetry\n"
_COPY = f"COPY {{table}} ({', '.join(COLUMNS)}) FROM STDIN (FORMAT BINARY)"
OF_A_RUN = "well_id >= 'ESP-' AND well_id < 'ESP.'"  # as a range, which an index finds; see also workload.py
_FINGERPRINT = (
    "SELECT count(*), coalesce(sum(hashtextextended(ROW(well_id, extract(epoch FROM timestamp), flow_rate, pip, "
    "motor_current, motor_temp, vibration, vsd_frequency, gor, {rest})::text, 0)::numeric), 0) "
    f"FROM {{table}} WHERE {OF_A_RUN}"
)
_REST = (
    "discharge_pressure, wellhead_pressure, casing_pressure, intake_temp, leakage_current, drive_voltage, "
    "extra, quality"
)


class Broker(Mosquitto):
    """A Mosquitto of our own, on the file that ships: passwords, access rules, persistence with its snapshots and all.
    In a context manager it ends by SIGKILL (a million queued messages need not be saved), and its folder goes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="broker-", dir=folder)), users=(PUBLISHER,))
        self.http_port = free_port()  # where the daemon beside it answers
        with (self.folder / "acl").open("a", encoding="utf-8") as file:
            file.write(_PUBLISHER_ACL)

    @property
    def pid(self) -> int:
        """Of the child of ours that runs this broker's file."""
        for pid in tree(os.getpid()):
            if str(self.config).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
        raise RuntimeError("the broker is no process of ours: the bench needs a local mosquitto")

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        shutil.rmtree(self.folder, ignore_errors=True)


def start_postgres() -> NativeTimescale:
    return NativeTimescale.start(fsync=True, settings=POSTGRES_SETTINGS)


def fresh_database(server: NativeTimescale, received_at_default: bool) -> Database:
    """The real schema in a new database, with nothing left to write from the run before."""
    database = server.create_database()
    migrate(database.settings)
    if received_at_default:
        database.run("ALTER TABLE esp_telemetry ALTER received_at SET DEFAULT now()")
    database.run("CHECKPOINT")
    return database


class Reference:
    """What the table must hold in the end: the expected rows of a workload, in a plain table, hashed row by row."""

    def __init__(self, server: NativeTimescale) -> None:
        self._database = server.create_database("reference")
        self._known: dict[tuple[Path, int, int], tuple[int, int]] = {}

    def fingerprint(self, workload: Workload, rows: int) -> tuple[int, int]:
        """(rows, sum of row hashes) of the first ``rows`` expected readings."""
        key = (workload.folder, workload.first_us, rows)
        if key not in self._known:
            rest = ", ".join(["NULL::double precision"] * 6 + ["NULL::jsonb"] * 2)
            with self._database.connect() as connection:
                columns = ", ".join(f"{name} double precision" for name in COLUMNS[2:-1])
                connection.execute(
                    f"CREATE TEMP TABLE expected (well_id text, timestamp timestamptz, {columns}, "
                    "received_at timestamptz)".encode()
                )
                copy_rows(connection, "expected", workload, rows, rows)
                query = _FINGERPRINT.format(rest=rest, table="expected")
                found = connection.execute(query.encode()).fetchone()
            assert found is not None
            self._known[key] = (int(found[0]), int(found[1]))
        return self._known[key]


def fingerprint(database: Database) -> tuple[int, int]:
    """The same over what a run has stored."""
    rows, total = database.all(_FINGERPRINT.format(rest=_REST, table="esp_telemetry"))[0]
    return int(rows), int(total)


def copy_rows(connection: psycopg.Connection[Any], table: str, workload: Workload, rows: int, batch: int) -> None:
    """Binary COPY of the first ``rows`` expected readings, ``batch`` a transaction, as they lie in the file."""
    expected = workload.rows()
    for at in range(0, rows, batch):
        with connection.cursor().copy(_COPY.format(table=table).encode()) as copy:
            copy.write(ROW_HEADER + expected[at : min(at + batch, rows)].tobytes() + ROW_TRAILER)


def environment(broker: Broker, database: Database) -> dict[str, str]:
    """The daemon's settings for a run; everything else is its default."""
    return installed_environment(broker.folder.parent / "pycache") | {
        "ESP_INGEST_MQTT__PORT": str(broker.port),
        "ESP_INGEST_MQTT__USERNAME": DAEMON,
        "ESP_INGEST_MQTT__PASSWORD": broker.password_of(DAEMON),
        "ESP_INGEST_DATABASE__DSN": database.dsn,
        "ESP_INGEST_HTTP__PORT": str(broker.http_port),
        "ESP_INGEST_SPOOL__PATH": str(broker.folder / "spool"),
        "ESP_INGEST_LOG__FORMAT": "json",
    }
