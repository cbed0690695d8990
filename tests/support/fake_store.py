"""A Store in memory. Passes the same contract suite as PostgresStore (tests/unit/contract_store.py), and can be told to
fail the way a database does."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from esp_ingest.interfaces import Refusal, StoreUnavailable, WriteResult
from esp_ingest.model import NOTHING_ARRIVED, Arrival, Change, Checkpoint, DiagnosticRow, Readings, Reject
from esp_ingest.store.queries import query
from esp_ingest.store.write.copy_format import digest_of
from esp_ingest.store.write.redelivery import remembered_messages
from esp_ingest.store.write.rejects import conflicting_reading, refused_reading


class FakeStore:
    """Tables as dictionaries under the keys of the real ones.

    ``failures`` is a script, an entry a write: None is success; "before" fails and stores nothing; "after" stores
    everything and then fails, as when the connection breaks during the commit. ``poison_texts`` are what the database
    would refuse in ``extra`` and ``quality``. ``refuses_diagnostics``: the tables of the diagnostics alone refuse to be
    written, ``refuses_reading_diagnostics``: to be read (tests/support/fake_diagnostics.py).
    Changes of occurrences go to ``outbox``. ``locks`` are advisory locks, by key, that somebody holds beyond a
    statement: what needs one of them waits in vain, as behind lock_timeout."""

    def __init__(self, receive_maximum: int = 20_000) -> None:
        self.receive_maximum = receive_maximum
        self.telemetry: dict[tuple[str, int], tuple[tuple[float, ...], str | None, str | None, int]] = {}
        self.rejects: dict[tuple[int, bytes], Reject] = {}
        self.origins: dict[tuple[int, bytes], tuple[int, int, int]] = {}  # of one session: connection, since, place
        self.messages = 0
        self.diagnostics: dict[tuple[str, str, int], DiagnosticRow] = {}
        self.cursor_us = 0
        self.states: dict[str, Checkpoint] = {}
        self.outbox: list[Change] = []
        self.set_aside: dict[int, tuple[str, bool]] = {}  # revision → reason, whether for good
        self.revisions: list[Change] = []  # all that ever went to the outbox
        self.publishing_turn: list[Any] = []  # holder, until when (monotonic)
        self.locks: dict[int, str] = {}
        self.waits_for_locks = 0
        self.failures: list[str | None] = []
        self.away = False
        self.poison_texts: set[str] = set()
        self.refuses_diagnostics = self.refuses_reading_diagnostics = False
        self.writes = 0
        self.prepared = 0
        self.closed = False

    def begin(
        self, readings: Readings, rejects: Sequence[Reject], arrival: Arrival = NOTHING_ARRIVED
    ) -> "FakePendingWrite":
        self.ping()
        failure = self.failures.pop(0) if self.failures else None
        if rejects and any(key in self.locks for key in keys_of_rejects()):
            self.waits_for_locks += 1
            raise StoreUnavailable("the database is busy", "canceling statement due to lock timeout")
        if failure == "before":
            raise StoreUnavailable("told to fail", "before the commit")
        self.writes += 1
        return FakePendingWrite(self, readings, rejects, arrival, failure)

    def write(
        self,
        readings: Readings,
        rejects: Sequence[Reject],
        diagnostics: Sequence[DiagnosticRow],
        checkpoints: Sequence[Checkpoint] = (),
        cursor_us: tuple[int, int] | None = None,
        arrival: Arrival = NOTHING_ARRIVED,
    ) -> WriteResult:
        if cursor_us is not None and cursor_us[0] != self.cursor_us:
            raise StoreUnavailable("another daemon follows the table")
        with self.begin(readings, rejects, arrival) as pending:
            return pending.finish(diagnostics, checkpoints, cursor_us)

    def commit(
        self,
        pending: "FakePendingWrite",
        diagnostics: Sequence[DiagnosticRow],
        checkpoints: Sequence[Checkpoint],
        cursor_us: tuple[int, int] | None,
    ) -> WriteResult:
        """Store all of it."""
        readings, rejects = pending.readings, pending.rejects
        written = duplicates = conflicts = 0
        refused: list[Reject] = []
        for row in range(len(readings)):
            if self._poisoned(readings, row):
                refused.append(refused_reading(readings, row, UnicodeError("told to refuse"), "esp"))
                continue
            key = (readings.well_of(row), int(readings.timestamp_us[row]))
            values = tuple(readings.values[:, row].tolist())
            extra, quality = readings.extra.get(row), readings.quality.get(row)
            if key not in self.telemetry:
                self.telemetry[key] = (values, extra, quality, int(readings.received_us[row]))
                written += 1
            elif _content(*self.telemetry[key][:3]) == _content(values, extra, quality):
                duplicates += 1
            else:
                refused.append(conflicting_reading(readings, row, "esp"))
                conflicts += 1
        self.messages += pending.arrival.messages
        oldest = self.messages - remembered_messages(self.receive_maximum)
        self.origins = {packet: origin for packet, origin in self.origins.items() if origin[2] >= oldest}
        reasons = Counter(reject.reason.value for reject in (*rejects, *refused) if self.store_reject(reject))
        duplicates += len(rejects) + len(refused) - reasons.total()
        refusal = None
        if self.refuses_diagnostics and (diagnostics or checkpoints):
            error = StoreUnavailable("told to refuse diagnostics")
            if cursor_us is not None:
                raise error
            refusal = Refusal(error, tuple(diagnostics), frozenset(each.well_id for each in checkpoints))
            diagnostics = checkpoints = ()
        for found in diagnostics:
            self._store_diagnosis(found)
        self.cursor_us = self.cursor_us if cursor_us is None else cursor_us[1]
        self.states |= {each.well_id: each for each in checkpoints}
        if pending.failure == "after":
            raise StoreUnavailable("told to fail", "after the commit")
        path = "bisect" if len(refused) > conflicts else "staging" if duplicates or conflicts else "direct"
        return WriteResult(written, duplicates, reasons.total(), tuple(refused), reasons, path, refusal)

    def _store_diagnosis(self, row: DiagnosticRow) -> None:
        """As the statement upsert_diagnostic does: a change of severity, state or end goes to the outbox."""
        key = (row.well_id, row.diagnosis, row.raised_us)
        old = self.diagnostics.get(key)
        if old is not None and row.peak is None:
            row = replace(row, peak=old.peak)
        if (
            old is None
            or row.reminded
            or (old.severity, old.state, old.cleared_us) != (row.severity, row.state, row.cleared_us)
        ):
            self.revisions.append(Change(len(self.revisions) + 1, row.well_id, row.message))
            self.outbox.append(self.revisions[-1])
        self.diagnostics[key] = row

    def prepare(self, readings: Readings) -> None:
        self.prepared += 1

    def idle(self) -> None:
        """Nothing can wait here."""

    def ping(self) -> None:
        if self.away:
            raise StoreUnavailable("told to be away")

    def close(self) -> None:
        self.closed = True

    def _poisoned(self, readings: Readings, row: int) -> bool:
        return bool({readings.extra.get(row), readings.quality.get(row)} & self.poison_texts)

    def store_reject(self, reject: Reject) -> bool:
        """The rule of store/write/redelivery.py."""
        digest = digest_of(reject)
        known = (reject.received_us, digest) in self.rejects
        connection, since, packet = reject.connection, reject.redelivered, (reject.packet_id, digest)
        if connection == -1 and since:
            known = known or any(content == digest for _, content in self.rejects)
        elif connection >= 0 and reject.packet_id:
            other, other_since, _ = self.origins.get(packet, (connection, 0, 0))
            known = known or (since > 0 and since <= other < connection)
            known = known or (other_since > 0 and other_since <= connection < other)
            if connection >= other:
                self.origins[packet] = (connection, since, self.messages)
        if not known:
            self.rejects[(reject.received_us, digest)] = reject
        return not known


@dataclass
class FakePendingWrite:
    """interfaces.PendingWrite: nothing is stored before :meth:`finish`."""

    store: FakeStore
    readings: Readings
    rejects: Sequence[Reject]
    arrival: Arrival
    failure: str | None

    def __enter__(self) -> "FakePendingWrite":
        return self

    def __exit__(self, *_error: object) -> None:
        """There is nothing to undo."""

    def finish(
        self,
        diagnostics: Sequence[DiagnosticRow],
        checkpoints: Sequence[Checkpoint],
        cursor_us: tuple[int, int] | None = None,
    ) -> WriteResult:
        return self.store.commit(self, diagnostics, checkpoints, cursor_us)


@cache
def keys_of_rejects() -> frozenset[int]:
    """Of the advisory locks that the transaction of a reject takes."""
    names = ("count_messages", "forget_origins", "insert_staged_rejects", "keep_origins")
    return frozenset(int(key) for name in names for key in re.findall(rb"advisory\w*_lock\((\d+)\)", query(name)))


def _content(values: tuple[float, ...], extra: str | None, quality: str | None) -> tuple[bytes, object, object]:
    """What tells two readings of one key apart: bits, and JSON as values."""
    texts = [None if text is None else json.loads(text) for text in (extra, quality)]
    return np.array(values).tobytes(), texts[0], texts[1]
