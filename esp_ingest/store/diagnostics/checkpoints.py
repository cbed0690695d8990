"""What the diagnostics read of the database: checkpoints, the readings after them, and what is open."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import psycopg

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.interfaces import DiagnosticsStore
from esp_ingest.model import SIGNALS, AlarmAction, Checkpoint, DiagnosticRow, Readings, Severity, at_us
from esp_ingest.store.connection import Connection, OnDemand
from esp_ingest.store.queries import query

_PAGE = 20_000
_LOCK_SECONDS = 2.0


class PostgresDiagnosticsStore(DiagnosticsStore):
    """interfaces.DiagnosticsStore. The connection is opened when it is needed and again after it was lost. ``publish``:
    changes that are made here go to the outbox. ``may_connect`` as in OnDemand."""

    def __init__(
        self, settings: DatabaseSettings, publish: bool = False, may_connect: Callable[[], bool] = lambda: True
    ) -> None:
        self._publish = publish
        # A lock on these tables must not delay for long the batch that waits for the answer.
        brief = min(settings.lock_timeout_seconds, _LOCK_SECONDS)
        self._connection = OnDemand(settings.model_copy(update={"lock_timeout_seconds": brief}), may_connect)

    def states(self, wells: Sequence[str]) -> list[Checkpoint]:
        rows = self._connection.rows("states_of_wells", (list(wells),))
        return [Checkpoint(well, event_us, bytes(state)) for well, event_us, state in rows]

    def wells_with_state(self, after: str, limit: int) -> list[str]:
        rows = self._connection.rows("wells_with_state", (after, limit))
        return [row[0] for row in rows]

    def open_rows(self, wells: Sequence[str]) -> list[DiagnosticRow]:
        return [_diagnostic(row) for row in self._connection.rows("open_occurrences", (list(wells),))]

    def open_anywhere(self, limit: int) -> list[tuple[str, str, str]]:
        return [
            (well, diagnosis, severity)
            for well, diagnosis, severity in self._connection.rows("open_anywhere", (limit,))
        ]

    def newest_action(self) -> int:
        return int(self._connection.rows("newest_action")[0][0])

    def actions_after(self, newest: int) -> list[AlarmAction]:
        return [AlarmAction(*row) for row in self._connection.rows("actions_after", (newest,))]

    def shelves(self, wells: Sequence[str]) -> list[AlarmAction]:
        rows = self._connection.rows("shelves_of_wells", (list(wells),))
        return [AlarmAction(0, well, diagnosis, "shelve", None, until_us) for well, diagnosis, until_us in rows]

    def end_shelvings(self) -> None:
        self._connection.execute("end_shelvings", (self._publish,))

    def alarm_gauges(self) -> tuple[int, int, int]:
        stale, shelved, unacknowledged = self._connection.rows("alarm_gauges")[0]
        return stale, shelved, unacknowledged

    def record_limits(self, scopes: Mapping[str, str], rules: str) -> list[str]:
        before = {scope: json.loads(settings) for scope, settings in self._connection.rows("newest_limits")}
        now = {scope: json.loads(settings) for scope, settings in scopes.items()}
        gone: dict[str, Any] = {scope: {} for scope in before if scope not in now}
        changed = {scope: settings for scope, settings in (now | gone).items() if before.get(scope, {}) != settings}
        for scope, settings in changed.items():
            self._connection.execute("record_limits", (scope, json.dumps(settings), rules))
        return list(changed)

    def readings_after(
        self, since_us: Mapping[str, int], limit: int, until_us: int | None = None
    ) -> Iterator[Readings]:
        parameters = {
            "wells": list(since_us),
            "after": [at_us(each) for each in since_us.values()],
            "limit": limit,
            "until": None if until_us is None else at_us(until_us),
        }
        connection = self._connection.get()
        try:
            yield from pages(connection, "readings_after", parameters)
        except psycopg.Error as error:
            raise self._connection.lost(error) from None

    def close(self) -> None:
        self._connection.close()


def pages(connection: Connection, name: str, parameters: Mapping[str, Any]) -> Iterator[Readings]:
    """The readings of the named query. They stay on the server's side, so that only a page of them is here at a time.
    Raises psycopg.Error."""
    with connection.transaction(), connection.cursor(name, binary=True) as cursor:
        cursor.execute(query(name), parameters)
        while page := cursor.fetchmany(_PAGE):
            yield to_readings(page)


def to_readings(rows: Sequence[tuple[Any, ...]]) -> Readings:
    """Rows of readings_after or readings_between as columns."""
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


def _diagnostic(columns: tuple[Any, ...]) -> DiagnosticRow:
    *row, is_false = columns
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
        is_false=is_false,
    )
