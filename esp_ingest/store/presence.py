"""Which daemons write to this database now: a row of each in mqtt_sessions.

Two daemons with different client ids that are not in one share group each receive every message. Readings are stored
once all the same, by their key, but each reject is stored once a daemon, and both raise the same diagnoses. That is
seldom meant, so each says so in its log, and so does ``esp-ingest check``.
"""

import logging
import re
from typing import NamedTuple

import psycopg

from esp_ingest.interfaces import Clock
from esp_ingest.service.log import Repeated
from esp_ingest.store.connection import Connection
from esp_ingest.store.queries import query

log = logging.getLogger(__name__)

_RENEW_SECONDS = 60.0
_SHARED = re.compile(r"\$share/[^/]*/")


class Other(NamedTuple):
    """A daemon that writes here as well: its session (client_id@host:port), and seconds since it was seen."""

    session: str
    seconds: int


def doubles(session: str, topic_filter: str, present: list[tuple[str, str, int]]) -> list[Other]:
    """Those of ``present`` (session, topic filter, seconds since it was seen) that receive what ``session`` receives:
    on the same broker, the same topics, and not in the same share group."""
    my_group = topic_filter if _SHARED.match(topic_filter) else None
    return [
        Other(other, seconds)
        for other, other_filter, seconds in present
        if other.rpartition("@")[2] == session.rpartition("@")[2]
        and _SHARED.sub("", other_filter, 1) == _SHARED.sub("", topic_filter, 1)
        and other_filter != my_group
    ]


def sentence(others: list[Other]) -> str:
    """For people: who doubles what, and what to do."""
    who = " and ".join(f"{other.session} ({other.seconds} s ago)" for other in others)
    return (
        f"{who} also stores here what this daemon receives, so each reject is stored once a daemon, and each makes the "
        "diagnoses: set one mqtt.share_group for all, or stop the others."
    )


def look(connection: Connection, session: str, topic_filter: str) -> list[Other]:
    """Who doubles what a daemon of this ``session`` stores. Reads only. Raises psycopg.Error."""
    rows = connection.execute(query("sessions_present"), {"session": session}).fetchall()
    return doubles(session, topic_filter, rows)


class Presence:
    """This daemon's row, renewed once a minute. For one thread."""

    def __init__(self, session: str, topic_filter: str, clock: Clock) -> None:
        self._session, self._topic_filter, self._clock = session, topic_filter, clock
        self._next = 0.0
        self._log = Repeated(log, "another daemon stores the same", "no other daemon stores the same any more")

    @property
    def is_due(self) -> bool:
        """It is time for :meth:`renew`."""
        return self._clock.monotonic() >= self._next

    def renew(self, connection: Connection) -> None:
        """Say that this daemon is here, in a transaction of its own, and see who else is. Waits for a lock for a second
        at most. Raises psycopg.Error; the next try is due a minute later then too."""
        now = self._clock.monotonic()
        self._next = now + _RENEW_SECONDS
        connection.execute(query("be_brief"))
        connection.execute(query("renew_session"), {"session": self._session, "topic_filter": self._topic_filter})
        others = look(connection, self._session, self._topic_filter)
        connection.commit()
        if others:
            self._log.failed(now, " and ".join(other.session for other in others), detail=sentence(others))
        elif self._log.active:
            self._log.ended(now)

    def end(self, connection: Connection) -> None:
        """This daemon is about to end. Nothing is raised: its row would be out of date in minutes anyhow."""
        try:
            connection.execute(query("be_brief"))
            connection.execute(query("end_session"), {"session": self._session})
            connection.commit()
        except psycopg.Error as error:
            log.debug("presence not ended", extra={"error": str(error)})
