"""What the database is and can do: its version, TimescaleDB, and the edition of that."""

import re
from dataclasses import dataclass

from esp_ingest.errors import Error
from esp_ingest.store.connection import Connection, is_pooled, only_row
from esp_ingest.store.queries import query

OLDEST_POSTGRESQL = 15_00_00
OLDEST_TIMESCALEDB = (2, 13, 0)  # by_range
OLDEST_COLUMNSTORE = (2, 18, 1)  # timescaledb#7672: ON CONFLICT DO NOTHING stopped at the first conflict before


class SchemaError(Error):
    """The schema cannot be used or brought up to date. The message is one sentence that says what to do."""


@dataclass(frozen=True)
class Capabilities:
    """Which database this is. ``timescaledb`` is the version of the installed extension, "" for none; ``pooled``: a
    connection pooler stands in front of it."""

    postgresql: int
    timescaledb: str
    license: str
    fsync: bool = True
    pooled: bool = False

    @property
    def features(self) -> frozenset[str]:
        """What migrations may ask for: the FEATURE of their file names (sql/README.md)."""
        present: set[str] = set()
        if _numbers(self.timescaledb) >= OLDEST_TIMESCALEDB:
            present.add("timescaledb")
            if self.license == "timescale":
                present.add("community")
                if _numbers(self.timescaledb) >= OLDEST_COLUMNSTORE:
                    present.add("columnstore")
        return frozenset(present)

    @property
    def kind(self) -> str:
        """Server and extension with their versions, for people."""
        number = f"PostgreSQL {self.postgresql // 10_000}.{self.postgresql % 10_000}"
        if not self.timescaledb:
            return number
        edition = "community" if self.license == "timescale" else "Apache"
        return f"{number} with TimescaleDB {self.timescaledb}, {edition} edition"

    def lines(self) -> list[str]:
        """For the terminal, a line each: the database, then what it can and cannot do."""
        have = self.features
        pooled = "note:   behind a connection pooler: settings are made in each transaction, one more exchange with it"
        unsafe = "note:   fsync = off: a power cut may cost readings that were acknowledged, or the whole database"
        return [
            self.kind,
            *([] if self.fsync else [unsafe]),
            *([pooled] if self.pooled else []),
            _line(
                "timescaledb" in have,
                "hypertables",
                f"TimescaleDB {_dotted(OLDEST_TIMESCALEDB)} or newer is not installed: plain tables, for trying out",
            ),
            _line(
                "columnstore" in have,
                "columnstore",
                f"needs TimescaleDB {_dotted(OLDEST_COLUMNSTORE)} or newer, community edition: data stays uncompressed",
            ),
            _line(
                "community" in have,
                "background jobs",
                "needs TimescaleDB community edition: what they would do is left to esp-ingest lifecycle",
            ),
        ]


def _line(able: bool, what: str, why_not: str) -> str:
    return f"can:    {what}" if able else f"cannot: {what} ({why_not})"


def _numbers(text: str) -> tuple[int, ...]:
    """ "2.23.0-dev" → (2, 23, 0)."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in match.groups()) if match else (0, 0, 0)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def capabilities(connection: Connection) -> Capabilities:
    """Ask the database what it is. Raises SchemaError where it is too old."""
    row = only_row(connection.execute(query("capabilities")))
    found = Capabilities(row[0], row[1], row[2], fsync=row[3], pooled=is_pooled(connection))
    if found.postgresql < OLDEST_POSTGRESQL:
        raise SchemaError(f"{found.kind} is too old: use PostgreSQL {OLDEST_POSTGRESQL // 10_000} or newer.")
    return found
