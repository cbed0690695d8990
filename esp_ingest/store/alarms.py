"""What operators do to alarms, each a transaction: the action is kept, the table shows it, the broker hears of it, and
the daemon follows within seconds."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row

from esp_ingest.model import at_us
from esp_ingest.store.connection import Connection, Moment
from esp_ingest.store.queries import query

LONGEST_SHELVING_US = 30 * 86_400_000_000  # longer is not shelving: take it out of service in rules.toml


@dataclass(frozen=True, slots=True)
class Request:
    """Who does something to which alarm, and why. ``publish``: tell the broker."""

    well_id: str
    diagnosis: str
    by: str
    why: str
    publish: bool = True

    def parameters(self) -> dict[str, Any]:
        """For the statements."""
        return {"well": self.well_id, "diagnosis": self.diagnosis, "by": self.by, "why": self.why}


@dataclass(frozen=True, slots=True)
class Changed:
    """An occurrence that an action changed, with its state after it."""

    raised_at: Moment
    state: str
    severity: str
    message: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What an operator says of an occurrence. ``verdict``: true, false or unclear; ``stop_reason``: why the well
    stopped, "" if it did not."""

    verdict: str
    cause: str = ""
    stop_reason: str = ""


def acknowledge(connection: Connection, request: Request, raised_at: datetime | None = None) -> list[Changed]:
    """Acknowledge what is unacknowledged of this diagnosis: open, latched and returned ones, or only the occurrence
    that was raised at ``raised_at``. Gives those."""
    with _acting(connection):
        changed = _changed(connection, "acknowledge", request.parameters() | {"raised_at": raised_at})
        for each in changed:
            _record(connection, request, "ack", raised_at=each.raised_at)
        _announce(connection, request, changed)
    return changed


def shelve(connection: Connection, request: Request, until_us: int) -> list[Changed]:
    """Hold the diagnosis back at this well until then. Gives the open occurrence that it silences."""
    with _acting(connection):
        connection.execute(query("shelve"), request.parameters() | {"to": at_us(until_us)})
        _record(connection, request, "shelve", to=at_us(until_us))
        open_states = ["unacknowledged", "acknowledged", "latched"]
        changed = _changed(connection, "set_shelved", request.parameters() | {"state": "shelved", "from": open_states})
        _announce(connection, request, changed)
    return changed


def unshelve(connection: Connection, request: Request) -> tuple[bool, list[Changed]]:
    """End a shelving: whether there was one, and the occurrence that is heard again."""
    with _acting(connection):
        was_shelved = connection.execute(query("unshelve"), request.parameters()).rowcount > 0
        changed: list[Changed] = []
        if was_shelved:
            _record(connection, request, "unshelve")
            changed = _changed(
                connection, "set_shelved", request.parameters() | {"state": "unacknowledged", "from": ["shelved"]}
            )
            _announce(connection, request, changed)
    return was_shelved, changed


def note(connection: Connection, request: Request, raised_at: datetime | None) -> None:
    """Keep a remark (``request.why``) in the history of an occurrence, or (None) of the diagnosis at this well."""
    with _acting(connection):
        _record(connection, request, "note", raised_at=raised_at)


def judge(connection: Connection, request: Request, raised_at: datetime, judgement: Judgement) -> bool:
    """Keep a verdict on an occurrence: the newest in alarm_verdicts, all of them in the history. False if there is no
    such occurrence."""
    said = {"verdict": judgement.verdict, "cause": judgement.cause, "stop_reason": judgement.stop_reason}
    with _acting(connection):
        if not connection.execute(
            query("set_verdict"), request.parameters() | said | {"raised_at": raised_at}
        ).rowcount:
            return False
        _record(connection, request, "verdict", raised_at=raised_at, detail=said)
    return True


def occurrence(connection: Connection, well_id: str, diagnosis: str, raised_at: datetime) -> Changed | None:
    """One occurrence as it is now, None if there is none."""
    found = _changed(connection, "occurrence", {"well": well_id, "diagnosis": diagnosis, "raised_at": raised_at})
    return found[0] if found else None


def knows(connection: Connection, well_id: str, diagnosis: str) -> tuple[bool, bool]:
    """(has this well ever sent anything, has it ever had this diagnosis)"""
    row = connection.execute(query("knows_alarm"), {"well": well_id, "diagnosis": diagnosis}).fetchone()
    return (False, False) if row is None else (bool(row[0]), bool(row[1]))


def list_alarms(connection: Connection, well_id: str | None, *, everything: bool) -> list[dict[str, Any]]:
    """What wants attention, the most severe first, a dictionary for each row by the names of the columns.
    ``everything``: also what is cleared, shelved or suppressed, and events."""
    with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query("list_alarms"), {"well": well_id, "all": everything}).fetchall()


@contextmanager
def _acting(connection: Connection) -> Iterator[None]:
    """A transaction in which no other action on alarms is under way."""
    with connection.transaction():
        connection.execute(query("lock_alarm_actions"))
        yield


def _changed(connection: Connection, name: str, parameters: dict[str, Any]) -> list[Changed]:
    return [Changed(*row) for row in connection.execute(query(name), parameters).fetchall()]


def _record(
    connection: Connection,
    request: Request,
    action: str,
    raised_at: Moment | None = None,
    to: datetime | None = None,
    detail: Mapping[str, str] | None = None,
) -> None:
    parameters = request.parameters() | {"action": action, "raised_at": raised_at, "to": to}
    parameters["detail"] = json.dumps(detail or {})
    connection.execute(query("record_action"), parameters)


def _announce(connection: Connection, request: Request, changed: Sequence[Changed]) -> None:
    if request.publish and changed:
        raised = [str(each.raised_at) for each in changed]
        connection.execute(query("announce"), request.parameters() | {"raised": raised})
