"""What the diagnostics read of the database: checkpoints, the readings after them, and what is open."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import psycopg

from esp_ingest.config import DatabaseSettings
from esp_ingest.seams import StoreUnavailable
from esp_ingest.store import sqlstate
from esp_ingest.store.connection import Connection, connect
from esp_ingest.store.queries import query
from esp_ingest.store.writer import at_us
from esp_ingest.telemetry.model import SIGNALS, Checkpoint, DiagnosticRow, Readings, Severity

_PAGE = 20_000
Result = TypeVar("Result")


class PostgresDiagnosticsStore:
    """seams.DiagnosticsStore. The connection is opened when it is needed and again after it was lost."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._connection: Connection | None = None

    def states(self, wells: Sequence[str]) -> list[Checkpoint]:
        rows = self._asked(lambda connection: connection.execute(query("states_of_wells"), (list(wells),)).fetchall())
        return [Checkpoint(well, event_us, bytes(state)) for well, event_us, state in rows]

    def wells_with_state(self, after: str, limit: int) -> list[str]:
        rows = self._asked(lambda connection: connection.execute(query("wells_with_state"), (after, limit)).fetchall())
        return [row[0] for row in rows]

    def open_rows(self, wells: Sequence[str]) -> list[DiagnosticRow]:
        rows = self._asked(lambda connection: connection.execute(query("open_occurrences"), (list(wells),)).fetchall())
        return [_diagnostic(row) for row in rows]

    def readings_after(self, since_us: Mapping[str, int], limit: int) -> Iterator[Readings]:
        parameters = {
            "wells": list(since_us),
            "after": [at_us(each) for each in since_us.values()],
            "limit": limit,
        }
        connection = self._connected()
        try:
            # On the server's side, so that only a page of it is here at a time.
            with connection.transaction(), connection.cursor("readings_after", binary=True) as cursor:
                cursor.execute(query("readings_after"), parameters)
                while page := cursor.fetchmany(_PAGE):
                    yield _readings(page)
        except psycopg.Error as error:
            raise self._lost(error) from None

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed or self._connection.broken:
            self._connection = connect(self._settings, autocommit=True)
        return self._connection

    def _asked(self, ask: Callable[[Connection], Result]) -> Result:
        try:
            return ask(self._connected())
        except psycopg.Error as error:
            raise self._lost(error) from None

    def _lost(self, error: psycopg.Error) -> StoreUnavailable:
        self.close()
        return sqlstate.unavailable(error)


def _readings(rows: Sequence[tuple[Any, ...]]) -> Readings:
    wells: dict[str, int] = {}
    index = np.array([wells.setdefault(row[0], len(wells)) for row in rows], np.int32)
    values = np.array([row[3 : 3 + len(SIGNALS)] for row in rows], np.float64)  # None becomes NaN
    extra, quality = 3 + len(SIGNALS), 4 + len(SIGNALS)
    return Readings(
        wells=list(wells),
        well_index=index,
        timestamp_us=np.array([row[1] for row in rows], np.int64),
        received_us=np.array([row[2] for row in rows], np.int64),
        values=np.ascontiguousarray(values.T),
        extra={at: row[extra] for at, row in enumerate(rows) if row[extra] is not None},
        quality={at: row[quality] for at, row in enumerate(rows) if row[quality] is not None},
    )


def _diagnostic(row: tuple[Any, ...]) -> DiagnosticRow:
    well, diagnosis, raised_us, severity, state, value, threshold, peak, count, confidence, message, actions, seen = row
    return DiagnosticRow(
        well_id=well,
        diagnosis=diagnosis,
        raised_us=raised_us,
        severity=Severity(severity),
        state=state,
        cleared_us=None,
        value=value,
        threshold=threshold,
        peak=peak,
        occurrences=count,
        confidence=confidence,
        message=message,
        actions_json=actions,
        snapshot_json=seen,
    )
