"""What operators do to alarms, each a transaction: the action is kept, the table shows it, the broker hears of it, and
the daemon follows within seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row

from esp_ingest.store.connection import Connection
from esp_ingest.store.queries import query
from esp_ingest.telemetry.model import at_us


@dataclass(frozen=True, slots=True)
class Request:
    """Who does something to which alarm, and why. ``publish``: tell the broker."""

    well_id: str
    diagnosis: str
    by: str
    why: str
    publish: bool = True

    def parameters(self) -> dict[str, Any]:
        return {"well": self.well_id, "diagnosis": self.diagnosis, "by": self.by, "why": self.why}


@dataclass(frozen=True, slots=True)
class Changed:
    """An occurrence that an action changed, with its state after it."""

    raised_at: datetime
    state: str
    severity: str
    message: str


def acknowledge(connection: Connection, request: Request) -> list[Changed]:
    """Acknowledge what is unacknowledged of this diagnosis: open, latched and returned ones. Gives those."""
    with connection.transaction():
        connection.execute(query("lock_alarm_actions"))
        changed = _changed(connection, "acknowledge", request.parameters())
        for each in changed:
            _record(connection, request, "ack", raised_at=each.raised_at)
        _announce(connection, request, changed)
    return changed


def shelve(connection: Connection, request: Request, until_us: int) -> list[Changed]:
    """Hold the diagnosis back at this well until then. Gives the open occurrence that it silences."""
    with connection.transaction():
        connection.execute(query("lock_alarm_actions"))
        connection.execute(query("shelve"), request.parameters() | {"to": at_us(until_us)})
        _record(connection, request, "shelve", to=at_us(until_us))
        open_states = ["unacknowledged", "acknowledged", "latched"]
        changed = _changed(connection, "set_shelved", request.parameters() | {"state": "shelved", "from": open_states})
        _announce(connection, request, changed)
    return changed


def unshelve(connection: Connection, request: Request) -> tuple[bool, list[Changed]]:
    """End a shelving: whether there was one, and the occurrence that is heard again."""
    with connection.transaction():
        connection.execute(query("lock_alarm_actions"))
        was_shelved = connection.execute(query("unshelve"), request.parameters()).rowcount > 0
        changed: list[Changed] = []
        if was_shelved:
            _record(connection, request, "unshelve")
            changed = _changed(
                connection, "set_shelved", request.parameters() | {"state": "unacknowledged", "from": ["shelved"]}
            )
            _announce(connection, request, changed)
    return was_shelved, changed


def knows(connection: Connection, well_id: str, diagnosis: str) -> tuple[bool, bool]:
    """(has this well ever sent anything, has it ever had this diagnosis)"""
    row = connection.execute(query("knows_alarm"), {"well": well_id, "diagnosis": diagnosis}).fetchone()
    return (False, False) if row is None else (bool(row[0]), bool(row[1]))


def list_alarms(connection: Connection, well_id: str | None, *, everything: bool) -> list[dict[str, Any]]:
    """What wants attention, the gravest first; ``everything``: cleared, shelved and suppressed ones and events too. A
    dictionary a row, by the names of the columns."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query("list_alarms"), {"well": well_id, "all": everything}).fetchall()


def _changed(connection: Connection, name: str, parameters: dict[str, Any]) -> list[Changed]:
    return [Changed(*row) for row in connection.execute(query(name), parameters).fetchall()]


def _record(
    connection: Connection, request: Request, action: str, raised_at: datetime | None = None, to: datetime | None = None
) -> None:
    parameters = request.parameters() | {"action": action, "raised_at": raised_at, "to": to}
    connection.execute(query("record_action"), parameters)


def _announce(connection: Connection, request: Request, changed: Sequence[Changed]) -> None:
    if request.publish and changed:
        raised = [each.raised_at for each in changed]
        connection.execute(query("announce"), request.parameters() | {"raised": raised})
