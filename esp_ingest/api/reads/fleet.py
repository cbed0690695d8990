"""The fleet as it is now: the newest reading, the state and the open alarms of each well.

A fleet is asked for as a whole (sorted by need, summed up), so it is read as a whole and sorted here. For most
fleets this takes milliseconds and is done for each request. If it takes longer, one result serves all requests for a
time in proportion to its cost, and a newer one is fetched while the older one is still shown."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from esp_ingest.api.database import Database
from esp_ingest.interfaces import Clock
from esp_ingest.model import SIGNAL_NAMES, at_us, stands_still

State = Literal["running", "stopped", "unknown", "silent"]
STATES: tuple[State, ...] = ("running", "stopped", "unknown", "silent")
SEVERITIES = ("critical", "high", "medium", "low", "info")

_SMALL_WELLS, _QUICK_SECONDS = 1_000, 0.03  # what is smaller or quicker is read for each request
_SHARE = 10.0  # a fleet that takes t seconds to read is shown for 10 t
_LONGEST_SHOWN_SECONDS = 15.0
_FREQUENCY, _CURRENT = SIGNAL_NAMES.index("vsd_frequency"), SIGNAL_NAMES.index("motor_current")
_ALARM_FIELDS = ("diagnosis", "timestamp", "severity", "state", "value", "threshold", "message")
_HELD_BACK = ("suppressed", "shelved", "out_of_service")


@dataclass(slots=True)
class Well:
    """A well. ``values`` are in the order of SIGNALS; ``alarms`` are rows of api_open_alarms without the well's id."""

    well_id: str
    at: datetime
    values: tuple[float | None, ...]
    alarms: list[dict[str, Any]] = field(default_factory=list)

    def state(self, now: datetime, silent_after_seconds: float) -> State:
        """The state that its newest reading shows ``now``: see state_of()."""
        return state_of(self.at, self.values, now, silent_after_seconds)

    @property
    def need(self) -> int:
        """The severity of the worst alarm that wants attention: 5 for critical to 1 for info, 0 if there is none."""
        wanting = [SEVERITIES.index(a["severity"]) for a in self.alarms if a["state"] not in _HELD_BACK]
        return 5 - min(wanting) if wanting else 0


def state_of(at: datetime, values: tuple[float | None, ...], now: datetime, silent_after_seconds: float) -> State:
    """Whether the pump runs, judged by frequency and current of a reading of ``at``. A well that has sent nothing for
    ``silent_after_seconds`` is silent."""
    return "silent" if (now - at).total_seconds() > silent_after_seconds else running(values)


def running(values: tuple[float | None, ...]) -> State:
    """The state that a reading shows: running, stopped or unknown."""
    frequency, current = values[_FREQUENCY], values[_CURRENT]
    if stands_still(frequency, current):
        return "stopped"
    return "unknown" if frequency is None and current is None else "running"


def alarm(row: tuple[Any, ...]) -> dict[str, Any]:
    """A row of api_open_alarms as a dictionary, without the well's id."""
    return dict(zip(_ALARM_FIELDS, row[1:], strict=True))


def gathered(newest: Iterable[tuple[Any, ...]], alarms: Iterable[tuple[Any, ...]]) -> list[Well]:
    """The wells, sorted by id, from rows of api_newest and api_open_alarms."""
    wells = {row[0]: Well(row[0], row[1], tuple(row[2:])) for row in newest}
    for row in alarms:
        if row[0] in wells:
            wells[row[0]].alarms.append(alarm(row))
    return [wells[name] for name in sorted(wells)]


class Fleet:
    """Reads the fleet and keeps it for a short time. To be used in the event loop."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._wells: list[Well] = []
        self._read_at = float("-inf")
        self._cost = 0.0
        self._reading: asyncio.Task[None] | None = None

    async def wells(self) -> list[Well]:
        """All wells, sorted by id, as they are now; if that takes long to find out, as they were some seconds ago.
        Raises as Database.ask."""
        age = self._clock.monotonic() - self._read_at
        kept = 0.0 if self._is_cheap else min(self._cost * _SHARE, _LONGEST_SHOWN_SECONDS)
        if age <= kept:
            return self._wells
        task = self._refresh()
        if age > 2 * kept:  # too old to be shown meanwhile
            await asyncio.shield(task)
        return self._wells

    def now(self) -> datetime:
        """Wall time."""
        return at_us(self._clock.now_us())

    @property
    def _is_cheap(self) -> bool:
        return len(self._wells) < _SMALL_WELLS or self._cost <= _QUICK_SECONDS

    def _refresh(self) -> asyncio.Task[None]:
        """Begin to read the fleet, once for all who wait. A quick read is begun anew for each request, so that it
        sees everything that was stored before."""
        if self._reading is None or self._reading.done() or self._is_cheap:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(_look_at)
        return self._reading

    async def _read(self) -> None:
        started = self._clock.monotonic()
        newest, alarms = await self._database.ask(("api_newest", {}), ("api_open_alarms", {"well": None}))
        self._wells = gathered(newest, alarms)
        self._read_at = self._clock.monotonic()
        self._cost = self._read_at - started


def _look_at(task: asyncio.Task[None]) -> None:
    """Take the error out of the task. Whoever awaits the task gets it; if nobody does, asyncio would warn about it."""
    if not task.cancelled():
        task.exception()
