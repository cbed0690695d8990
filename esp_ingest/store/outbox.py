"""Changes of occurrences that wait for the broker: read, and removed once it has confirmed them."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import psycopg

from esp_ingest.config import DatabaseSettings
from esp_ingest.store.connection import OnDemand
from esp_ingest.store.queries import query


class Change(NamedTuple):
    """An occurrence as it was after a change, a JSON object. A later change has a higher revision."""

    revision: int
    well_id: str
    payload: str


class PostgresOutbox:
    """On a connection of its own, opened when it is needed and again after it was lost. For one thread."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._connection = OnDemand(settings)

    def deliver(self, send: Callable[[Sequence[Change]], Collection[int]], limit: int) -> tuple[int, int]:
        """Hand the oldest ``limit`` changes to ``send``, which gives the revisions that are confirmed; those are
        removed. Returns (removed, left). Of several daemons one at a time gets any. Raises StoreUnavailable."""
        try:
            connection = self._connection.get()
            with connection.transaction():
                row = connection.execute(query("outbox_lock")).fetchone()
                if row is None or not row[0]:
                    return 0, 0
                changes = [Change(*row) for row in connection.execute(query("read_outbox"), (limit,)).fetchall()]
                confirmed = sorted(send(changes))
                if confirmed:
                    connection.execute(query("delete_published"), (confirmed,))
                left = len(changes) - len(confirmed)
                if len(changes) == limit:
                    size = connection.execute(query("outbox_size")).fetchone()
                    left = 0 if size is None else int(size[0])
            return len(confirmed), left
        except psycopg.Error as error:
            raise self._connection.lost(error) from None

    def close(self) -> None:
        self._connection.close()
