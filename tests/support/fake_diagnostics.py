"""What the diagnostics read of the database, over the tables of a FakeStore, and a rule that every reading raises."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import numpy as np

from esp_ingest.diagnostics.language.rules import RuleSet
from esp_ingest.diagnostics.language.rules_file import parse
from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.model import AlarmAction, Checkpoint, DiagnosticRow, Readings
from tests.support.fake_store import FakeStore

_RULES = """
version = 1
[rules.seen]
title = "Seen"
severity = "low"
when = "pip >= 0 psi"
applies = "always"
skip_dropouts = false
seen = "The well has sent a reading."
cause = "Every reading raises this."
consequence = "Nothing follows from it."
actions = ["Nothing has to be done."]
"""


@cache
def one_rule() -> RuleSet:
    """The first reading of a well raises ``seen``, which stays open."""
    return parse(_RULES)


class FakeDiagnosticsStore:
    """interfaces.DiagnosticsStore over a FakeStore: it is away when that is. There are no operators."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    def states(self, wells: Sequence[str]) -> list[Checkpoint]:
        self._ask()
        return [self._store.states[well] for well in wells if well in self._store.states]

    def wells_with_state(self, after: str, limit: int) -> list[str]:
        self._ask()
        return [well for well in sorted(self._store.states) if well > after][:limit]

    def readings_after(
        self, since_us: Mapping[str, int], limit: int, until_us: int | None = None
    ) -> Iterator[Readings]:
        self._ask()
        found = sorted(
            (received_us, at_us, well, values)
            for (well, at_us), (values, _, _, received_us) in self._store.telemetry.items()
            if well in since_us and at_us > since_us[well] and (until_us is None or received_us <= until_us)
        )
        if found:
            wells = sorted({each[2] for each in found})
            yield Readings(
                wells,
                np.array([wells.index(each[2]) for each in found], np.int32),
                np.array([each[1] for each in found], np.int64),
                np.array([each[0] for each in found], np.int64),
                np.ascontiguousarray(np.array([each[3] for each in found], np.float64).T),
            )

    def open_rows(self, wells: Sequence[str]) -> list[DiagnosticRow]:
        self._ask()
        return [row for row in self._store.diagnostics.values() if row.well_id in wells and row.cleared_us is None]

    def open_anywhere(self, limit: int) -> list[tuple[str, str, str]]:
        self._ask()
        rows = [row for row in self._store.diagnostics.values() if row.cleared_us is None]
        return [(row.well_id, row.diagnosis, row.severity.value) for row in rows][:limit]

    def newest_action(self) -> int:
        self._ask()
        return 0

    def actions_after(self, newest: int) -> list[AlarmAction]:
        self._ask()
        return []

    def shelves(self, wells: Sequence[str]) -> list[AlarmAction]:
        self._ask()
        return []

    def end_shelvings(self) -> None:
        self._ask()

    def alarm_gauges(self) -> tuple[int, int, int]:
        self._ask()
        return 0, 0, 0

    def record_limits(self, scopes: Mapping[str, str], rules: str) -> list[str]:
        self._ask()
        return []

    def close(self) -> None:
        """Nothing is open."""

    def _ask(self) -> None:
        self._store.ping()
        if self._store.refuses_reading_diagnostics:
            raise StoreUnavailable("told to refuse the diagnostics")
