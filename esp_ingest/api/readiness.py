"""Whether the database can be reached and has the right schema. It is asked at most once a second, however many
probes come."""

import asyncio
import logging

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from esp_ingest.api.database import Database
from esp_ingest.interfaces import Clock
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import ApiMetrics
from esp_ingest.store import sqlstate

log = logging.getLogger(__name__)

_SHOWN_SECONDS = 1.0
_PROBE_SECONDS = 5.0
_NO_SCHEMA = "The database has no schema of this version: run esp-ingest migrate."


class Readiness:
    """Looks at the database. To be used in the event loop."""

    def __init__(self, database: Database, clock: Clock, metrics: ApiMetrics) -> None:
        self._database = database
        self._clock = clock
        self._metrics = metrics
        self._asked = float("-inf")
        self._found = (False, "not asked yet")
        self._lock = asyncio.Lock()
        self._trouble = Repeated(log, "the database is away", "the database is there")

    async def look(self) -> tuple[bool, str]:
        """Whether queries can be answered now, and a phrase that says why not. Never raises."""
        async with self._lock:
            if self._clock.monotonic() - self._asked >= _SHOWN_SECONDS:
                self._found = await self._ask()
                self._asked = self._clock.monotonic()
        return self._found

    async def watch(self) -> None:
        """Look again and again, until cancelled: for the log, for the metric, and so that the pool connects by
        itself once the database is back. Logs once how to make the first user."""
        has_looked_for_users = False
        while True:
            ok, detail = await self.look()
            now = self._clock.monotonic()
            if ok:
                self._trouble.ended(now)
            else:
                self._trouble.failed(now, detail)
            if ok and not has_looked_for_users:
                has_looked_for_users = await self._say_how_to_begin()
            await asyncio.sleep(_PROBE_SECONDS if ok else _SHOWN_SECONDS)

    async def _say_how_to_begin(self) -> bool:
        try:
            row = await self._database.fetch_one("api_has_users")
        except psycopg.Error:
            return False
        if row is not None and not row[0]:
            log.warning(
                "no user has been made yet",
                extra={"hint": "run `esp-ingest users add NAME --role admin`; until then every request is refused"},
            )
        return True

    async def _ask(self) -> tuple[bool, str]:
        try:
            row = await self._database.fetch_one("api_schema_there")
            found = (True, "answers") if row is not None and row[0] else (False, _NO_SCHEMA)
        except (PoolTimeout, PoolClosed, TooManyRequests):  # which are errors of psycopg, too
            found = (False, "the database cannot be reached")
        except psycopg.Error as error:
            found = (False, sqlstate.decide(error).reason)
        self._metrics.database_up.set(found[0])
        return found
