"""The store on PostgreSQL: readings, rejects and diagnostics of a batch in one transaction.

`PostgresStore.begin` sends the readings, `PendingWrite.finish` writes the rest and commits. What happens all day stands
in transaction.py; what happens when the database refuses something, in ladder.py.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import psycopg

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.interfaces import StoreUnavailable, WriteResult
from esp_ingest.model import NOTHING_ARRIVED, Arrival, Checkpoint, DiagnosticRow, Readings, Reject
from esp_ingest.store import schema, sqlstate
from esp_ingest.store.connection import Connection, connect
from esp_ingest.store.presence import Presence
from esp_ingest.store.queries import query
from esp_ingest.store.write.high_water import HighWaterMarks
from esp_ingest.store.write.ladder import Ladder, PendingWrite, by_days, halves
from esp_ingest.store.write.newest import WellNewest
from esp_ingest.store.write.redelivery import RejectWriter
from esp_ingest.store.write.session import WriterSession, refuse_unless_ok
from esp_ingest.store.write.transaction import Means, Prepared, TooMuch, Transaction

log = logging.getLogger(__name__)


class PostgresStore:
    """interfaces.Store on one connection of its own, opened when it is needed and opened again after it was lost.

    ``topic_root`` is the first level of the topic that is put down for a reading which the database refused.
    ``publish``: changes of occurrences go to the outbox as well. ``beat`` is called between the steps of a write that
    takes long. ``rejects``: of the daemon's session. ``presence`` tells others that this daemon is here.
    ``newest`` keeps the newest reading of each well; without it the view well_latest looks for them."""

    def __init__(
        self,
        settings: DatabaseSettings,
        topic_root: str = "esp",
        connect: Callable[[DatabaseSettings], Connection] = connect,
        publish: bool = False,
        beat: Callable[[], None] = lambda: None,
        rejects: RejectWriter | None = None,
        presence: Presence | None = None,
        newest: WellNewest | None = None,
    ) -> None:
        self._settings = settings
        self._newest = newest
        self._presence = presence
        self._session = WriterSession(settings, connect, self._reconnected)
        self._means = Means(HighWaterMarks(), rejects or RejectWriter(), topic_root, publish, beat)
        self._ladder = Ladder(self._session, self._means, newest)
        self._prepared: Prepared | None = None  # of the readings that come next
        self.without_diagnostics = ""  # why diagnoses would not be stored, a sentence

    def begin(self, readings: Readings, rejects: Sequence[Reject], arrival: Arrival = NOTHING_ARRIVED) -> PendingWrite:
        """See interfaces.Store."""
        prepared = None
        if self._prepared is not None and self._prepared.readings is readings:
            prepared, self._prepared = self._prepared, None
        self._be_present()
        parts = by_days(readings)
        begun: Transaction | None = None
        if parts:
            self._session.get()
        else:
            try:
                begun = self._ladder.begin(readings, prepared)
            except TooMuch:
                if not self._ladder.is_to_be_halved(readings, rejects):
                    raise
                parts = halves(np.arange(len(readings)))
        return PendingWrite(self._ladder, readings, rejects, arrival, begun, parts, self._keep_newest)

    def write(
        self,
        readings: Readings,
        rejects: Sequence[Reject],
        diagnostics: Sequence[DiagnosticRow],
        checkpoints: Sequence[Checkpoint] = (),
        cursor_us: tuple[int, int] | None = None,
        arrival: Arrival = NOTHING_ARRIVED,
    ) -> WriteResult:
        """See interfaces.Store."""
        if not (len(readings) or rejects or diagnostics or checkpoints or cursor_us):
            return WriteResult(0, 0, 0)
        with self.begin(readings, rejects, arrival) as pending:
            return pending.finish(diagnostics, checkpoints, cursor_us)

    def _keep_newest(self, *, at_end: bool = False) -> None:
        """The newest reading of each well, where it is time. If it fails, nothing depends on it."""
        connection = self._session.standing()
        if self._newest is None or connection is None:
            return
        if self._newest.waiting if at_end else self._newest.is_due():
            try:
                self._newest.keep(connection)
            except psycopg.Error as error:
                self._session.give_back(error)
                self._newest.failed(self._session.connection, error)

    def idle(self) -> None:
        """See interfaces.Store."""
        self._keep_newest()

    def prepare(self, readings: Readings) -> None:
        """See interfaces.Store: the COPY stream, where all of them can be expected to go directly."""
        if len(readings) and (self._prepared is None or self._prepared.readings is not readings):
            self._prepared = Prepared.of(readings, self._means.marks)

    def ping(self) -> None:
        """See interfaces.Store. Unless ``database.skip_init`` says not to, what would keep this connection from storing
        is looked for once; whether the schema is of a version that this program works with, every new connection
        asks."""
        connection = self._session.get()
        try:
            if self._session.schema_ok or self._settings.skip_init:
                connection.execute(query("ping"))
            else:
                found = refuse_unless_ok(connection, schema.check_schema)
                self.without_diagnostics = found.without_diagnostics
                # As long as something is wrong, it is looked at again.
                self._session.schema_ok = not found.without_diagnostics
            connection.rollback()
            self._be_present()
        except psycopg.Error as error:
            self._session.give_back(error)
            raise sqlstate.unavailable(error) from None
        except StoreUnavailable:
            self.close()  # what makes it fit is perhaps for new sessions only
            raise

    @property
    def connected(self) -> bool:
        """There is a connection. From any thread."""
        return self._session.connection is not None

    @property
    def schema_checked(self) -> bool:
        """The schema's version was looked at when this connection was opened, and this program works with it."""
        return self._session.connection is not None and not self._settings.skip_init

    def _be_present(self) -> None:
        """Once a minute. If it fails, nothing depends on it. Raises StoreUnavailable if there is no connection."""
        if self._presence is not None and self._presence.is_due:
            connection = self._session.get()
            try:
                self._presence.renew(connection)
            except psycopg.Error as error:
                log.debug("presence not renewed", extra={"error": str(error)})
                self._session.give_back(error)

    def end(self) -> None:
        """Close for good, and tell the others."""
        self._keep_newest(at_end=True)
        if self._presence is not None and self._session.connection is not None:
            self._presence.end(self._session.connection)
        self.close()

    def close(self) -> None:
        """Close the connection; a later write opens another."""
        self._session.close()

    def _reconnected(self) -> None:
        if self._newest is not None:
            self._newest.reconnected()
