"""Rejects on their way to the table, and which of them the broker has delivered before.

THE RULE. Two deliveries are one message if they came over the same session under the same packet id with the same
content, the later one carries MQTT's DUP flag, the session's packet ids did not begin anew in between, and the earlier
one is among the last messages of the session. Everything else is another message and is stored.

Why this is sound, with R for Receive Maximum:
- The broker sends again what it holds unacknowledged: R messages at most, the last ones of the connection that ended,
  each with its packet id and with DUP (MQTT 4.4). What is not marked DUP is new, or comes from a broker that went
  back to an old snapshot; these two cannot be told apart, so it is stored (twice at worst).
- A packet id is used again once it is acknowledged. A broker counts them up to 65 535, so an id means one message
  among any 65 535 in a row. We count the messages of a session in the transactions that store them. Of what is not
  stored yet, R are not acknowledged, and no other can have taken an id. So a stored reject is remembered for 65 535 -
  1.5 R messages (the half is for batches, which are counted as a whole), and 4 R at most. R up to 26 214 leaves room
  for a whole window; with a larger one a redelivered reject may be stored twice.
- Packet ids begin anew with a new session, with a broker that went back to a snapshot, and all the time with a broker
  that gives out the lowest free id. mqtt/packet_ids.py notices each, and a delivery marked DUP says since which
  connection the ids count (``redelivered``). It keeps the last id in the spool's folder. Without that folder, or
  where a power cut lost the file's last seconds, it cannot notice a broker that went back while the daemon was down;
  a new reject would then be lost if the daemon also died again before it had stored it, and packet id and content
  were those of an old one.
- Either of two daemons that took the session over from each other may be the first to store. Connections are numbered
  by time, so the greater number is the later one.
- What is not known to come from a packet has no such identity: a reading that the database refused, which is
  recognized by its content (a reading has a key, so the same one sent again is the same), and messages of an old
  spool, which are stored.

The work is bounded whatever is stored: two statements a batch while rejects are remembered, and for rejects one more
COPY and two index lookups each.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import psycopg

from esp_ingest.model import Arrival, Reject
from esp_ingest.store.connection import only_row, staging
from esp_ingest.store.queries import query
from esp_ingest.store.write.copy_format import digest_of, rejects_stream

_PACKET_IDS = 65_535
_MOST_WINDOWS = 4


def remembered_messages(receive_maximum: int) -> int:
    """For how many messages of its session a stored reject can be recognized when it comes again."""
    return max(min(_MOST_WINDOWS * receive_maximum, _PACKET_IDS - receive_maximum * 3 // 2), 0)


class RejectWriter:
    """Writes the rejects of one daemon. ``session`` names its session on the broker (client_id@host:port).

    Not thread-safe. :meth:`store` works inside the caller's transaction; :meth:`committed` must follow its commit."""

    def __init__(self, session: str = "", receive_maximum: int = 20_000) -> None:
        self._session = session
        self._remembered = remembered_messages(receive_maximum)
        self._to_count = self._remembered  # messages until nothing of this session is remembered any more
        self._connection = -1

    def committed(self, arrival: Arrival, rejects: Sequence[Reject]) -> None:
        """The transaction that stored these is committed."""
        if self._is_another(arrival) or any(each.packet_id for each in rejects):
            self._connection, self._to_count = arrival.connection, self._remembered
        else:
            self._to_count -= arrival.messages

    def _is_another(self, arrival: Arrival) -> bool:
        """Before this connection another daemon may have had the session, and may have stored rejects of it."""
        return arrival.messages > 0 and arrival.connection != self._connection

    def store(self, cursor: psycopg.Cursor[Any], rejects: Sequence[Reject], arrival: Arrival) -> Counter[str]:
        """Store what is not stored yet; returns how many were, by reason. Waits for another daemon of this session.
        Raises psycopg.Error."""
        stored: Counter[str] = Counter()
        is_counted = arrival.messages and (self._to_count > 0 or self._is_another(arrival))
        if not (rejects or is_counted):
            return stored
        parameters: dict[str, Any] = {"session": self._session, "messages": arrival.messages}
        row = only_row(cursor.execute(query("count_messages"), parameters))
        parameters |= {"place": row[0], "oldest": row[0] - self._remembered}
        cursor.execute(query("forget_origins"), parameters)
        if rejects:
            cursor.execute(staging(cursor.connection, "create_staging_rejects"))
        for some in _by_connection(rejects):
            with cursor.copy(query("copy_staging_rejects")) as copy:
                for piece in rejects_stream(some):
                    copy.write(piece)
            stored += Counter(str(reason) for (reason,) in cursor.execute(query("insert_staged_rejects"), parameters))
            cursor.execute(query("keep_origins"), parameters)
            cursor.execute(query("empty_staging_rejects"))
        return stored


def _by_connection(rejects: Sequence[Reject]) -> Iterator[list[tuple[Reject, bytes]]]:
    """Each with its digest, in runs of one connection, since a statement does not see what it inserts itself. Of what
    is recognized by its content the first is enough."""
    contents: set[bytes] = set()
    for _, run in groupby(rejects, lambda each: each.connection):
        some: list[tuple[Reject, bytes]] = []
        for reject in run:
            digest = digest_of(reject)
            if reject.connection == -1:
                if reject.redelivered and digest in contents:
                    continue
                contents.add(digest)
            some.append((reject, digest))
        yield some
