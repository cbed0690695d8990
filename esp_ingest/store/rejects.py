"""What was rejected: list it, look at one, walk through it for a replay, and note that it was replayed.

Replaying is at least once up to the mark, and the keys make it exactly once in the tables: write first, then
:func:`mark_replayed`; a crash between the two makes the next replay find its readings stored already.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from esp_ingest.model import Reject, RejectReason, at_us, us_of
from esp_ingest.store.connection import Connection, Moment
from esp_ingest.store.queries import like, query

_ID = re.compile(r"(?:(?P<at>\d{1,17})-)?(?P<digest>[0-9a-f]{32})")
_PAGE = 500
_LOWEST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class RejectFilter:
    """Which rejects. ``topic`` may hold ``*`` for any text; times are received times, µs, from ``since_us`` up to but
    not including ``until_us``; ``pending`` leaves out what was replayed."""

    reason: RejectReason | None = None
    topic: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    pending: bool = False

    def parameters(self) -> dict[str, Any]:
        """For the statements."""
        return {
            "reason": None if self.reason is None else self.reason.value,
            "topic": None if self.topic is None else like(self.topic),
            "since": _time(self.since_us),
            "until": _time(self.until_us),
            "pending": self.pending,
        }


@dataclass(frozen=True, slots=True)
class StoredReject:
    """A reject as it stands in the database. ``replayed_us`` is None until it was replayed."""

    reject: Reject
    digest: UUID
    replayed_us: int | None
    replay_outcome: str | None

    @property
    def id(self) -> str:
        """What an operator types: the received time in µs and the digest."""
        return f"{self.reject.received_us}-{self.digest.hex}"


def list_rejects(connection: Connection, which: RejectFilter, limit: int = 100) -> list[StoredReject]:
    """The newest ``limit`` of them, newest first."""
    rows = connection.execute(query("list_rejects"), {**which.parameters(), "limit": limit}).fetchall()
    return [_stored(row) for row in rows]


def show_reject(connection: Connection, reject_id: str) -> StoredReject | None:
    """One by its id, or by the digest alone (the newest with that content). None where there is none.

    Raises ValueError where ``reject_id`` is no id."""
    match = _ID.fullmatch(reject_id.strip().lower().removeprefix("0x"))
    if match is None:
        raise ValueError(f"{reject_id!r} is no reject id: take one from `esp-ingest rejects list`")
    received_us = None if match["at"] is None else int(match["at"])
    parameters = {"digest": UUID(match["digest"]), "received_at": _time(received_us)}
    row = connection.execute(query("show_reject"), parameters).fetchone()
    return None if row is None else _stored(row)


def pending_rejects(connection: Connection, which: RejectFilter, page: int = _PAGE) -> Iterator[StoredReject]:
    """All of them that were not replayed, oldest first. Read in pages of ``page``, so that any number will do, and each
    is seen once even while earlier ones are being marked."""
    after_us, after_digest = -(10**15), _LOWEST
    while True:
        after = {"after_at": _time(after_us), "after_digest": after_digest, "limit": page}
        rows = connection.execute(query("rejects_after"), which.parameters() | after).fetchall()
        for row in rows:
            stored = _stored(row)
            yield stored
            after_us, after_digest = stored.reject.received_us, stored.digest
        if len(rows) < page:
            return


def mark_replayed(connection: Connection, stored: StoredReject, now_us: int, outcome: str) -> bool:
    """Note the replay and its outcome. False where it was marked already. The caller commits."""
    parameters = {
        "now": _time(now_us),
        "outcome": outcome,
        "digest": stored.digest,
        "received_at": _time(stored.reject.received_us),
    }
    return connection.execute(query("claim_reject"), parameters).rowcount == 1


def _stored(row: tuple[Any, ...]) -> StoredReject:
    received_at, digest, item, topic, topic_bytes, reason, detail, payload, redelivered, replayed_at, outcome = row
    reject = Reject(
        received_us=_us(received_at),
        topic=topic.encode() if topic_bytes is None else bytes(topic_bytes),
        reason=RejectReason(reason),
        detail=detail,
        payload=bytes(payload),
        item=item,
        redelivered=redelivered,
    )
    return StoredReject(reject, digest, None if replayed_at is None else _us(replayed_at), outcome)


def _time(us: int | None) -> datetime | None:
    return None if us is None else at_us(us)


def _us(at: Moment) -> int:
    """The nearest that Python's calendar has, where it does not reach."""
    if isinstance(at, str):
        at = datetime.min if at == "-infinity" or at.endswith("BC") else datetime.max
        at = at.replace(tzinfo=UTC)
    return us_of(at)
