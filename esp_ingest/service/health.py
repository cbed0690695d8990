"""What is well and what is not, from what the loops report. Answers from memory: it never asks broker or database.

Three questions, as Kubernetes and systemd put them:

- **live**: do the loops move? Red asks for a restart, so an outage of broker or database never turns it red: a writer
  that retries is alive and beats. Red are a loop that has not moved, a thread that has died, and a message that stays
  unacknowledged although broker, database and spool are all well, which only a mistake of ours explains.
- **startup**: configured, schema checked, first subscription acknowledged. Once passed it stays passed.
- **ready**: subscribed, database reachable, nothing stuck, spool not full.

Readiness turns red first, after ``service.stuck_after_seconds``; liveness half as long again later, for people to look.
"""

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from esp_ingest.service.log import redact

if TYPE_CHECKING:
    from esp_ingest.config.settings import ServiceSettings
    from esp_ingest.interfaces import Clock

Checks = dict[str, dict[str, object]]

LIVE_GRACE = 1.5  # liveness turns red after this many times stuck_after_seconds

# Conditions that the daemon sets by these names; any other name counts for readiness as well.
MQTT, DATABASE, SCHEMA, SPOOL, UNACKED = "mqtt", "database", "schema", "spool", "unacked"
DIAGNOSTICS = "diagnostics"
# Not known until somebody has looked; the others are fine until somebody says otherwise.
_LOOKED_FOR = {MQTT: "not connected yet", DATABASE: "not reached yet", SCHEMA: "not checked yet"}
_OUTSIDE = (MQTT, DATABASE, SPOOL)  # what explains an old unacknowledged message without any mistake of ours
_THREAD_SUFFIX = "_thread"  # conditions named so say that a thread is there


class _Condition(NamedTuple):
    ok: bool
    detail: str
    since: float  # monotonic seconds at which ``ok`` last changed


class Health:
    """Fed by the loops, asked by the HTTP thread and the watchdog. Every method may be called from any thread and takes
    microseconds."""

    def __init__(
        self, clock: "Clock", settings: "ServiceSettings", looked_for: Mapping[str, str] = _LOOKED_FOR
    ) -> None:
        """``looked_for``: conditions that do not hold until somebody has looked, and what to say until then."""
        self.clock = clock
        self._stuck_after_seconds = settings.stuck_after_seconds
        self._lock = threading.Lock()
        now = clock.monotonic()
        self._conditions = {name: _Condition(False, why, now) for name, why in looked_for.items()}
        self._looked_for = tuple(looked_for)
        self._beats: dict[str, float] = {}
        self._idle: set[str] = set()
        self._started: set[str] = set()

    def beat(self, loop: str) -> None:
        """``loop`` has moved. At least every few seconds, in waiting and retrying too."""
        with self._lock:
            self._beats[loop] = self.clock.monotonic()
            self._idle.discard(loop)

    def idle(self, loop: str) -> None:
        """``loop`` waits for work without a time limit, and is not judged until it beats again."""
        with self._lock:
            self._beats[loop] = self.clock.monotonic()
            self._idle.add(loop)

    def forget(self, loop: str) -> None:
        """``loop`` has ended as it should."""
        with self._lock:
            self._beats.pop(loop, None)
            self._idle.discard(loop)

    def set(self, name: str, ok: bool, detail: str) -> None:
        """A condition holds or not, and why, in words for an operator. Names: the constants of this module, and
        ``…_thread`` for a thread that has to be there."""
        with self._lock:
            before = self._conditions.get(name)
            since = before.since if before is not None and before.ok == ok else self.clock.monotonic()
            # Details quote libraries' errors, and whoever reaches the port may read them.
            self._conditions[name] = _Condition(ok, redact(detail), since)
            if ok:
                self._started.add(name)

    def idle_seconds(self) -> dict[str, float]:
        """How long ago each loop moved; 0 for one that waits for work."""
        with self._lock:
            now = self.clock.monotonic()
            return {loop: 0.0 if loop in self._idle else max(0.0, now - at) for loop, at in self._beats.items()}

    def live(self) -> tuple[bool, Checks]:
        """Whether a restart would help, and the reasons."""
        limit = self._stuck_after_seconds * LIVE_GRACE
        checks = self._loops(limit)
        now, conditions = self._snapshot()
        for name, condition in conditions.items():
            if name.endswith(_THREAD_SUFFIX):
                gone = not condition.ok and now - condition.since >= limit - self._stuck_after_seconds
                checks[name] = _check(not gone, condition.detail)
        unacked = conditions.get(UNACKED)
        if unacked is not None:
            checks[UNACKED] = self._unacked_is_live(unacked, conditions, now, limit - self._stuck_after_seconds)
        return _verdict(checks)

    def startup(self) -> tuple[bool, Checks]:
        """Whether the first start is over."""
        _, conditions = self._snapshot()
        checks = {"configuration": _check(True, "valid")}
        for name in (name for name in (SCHEMA, MQTT) if name in self._looked_for):
            done = name in self._started
            checks[name] = _check(done, "done" if done else conditions[name].detail)
        return _verdict(checks)

    def ready(self) -> tuple[bool, Checks]:
        """Whether readings go through, now."""
        checks = self._loops(self._stuck_after_seconds)
        _, conditions = self._snapshot()
        checks |= {name: _check(condition.ok, condition.detail) for name, condition in conditions.items()}
        return _verdict(checks)

    def _snapshot(self) -> tuple[float, dict[str, _Condition]]:
        with self._lock:
            return self.clock.monotonic(), dict(self._conditions)

    def _loops(self, limit_seconds: float) -> Checks:
        return {
            f"{loop}_loop": _check(
                seconds < limit_seconds,
                f"moved {seconds:.1f} s ago" if seconds < limit_seconds else f"has not moved for {seconds:.0f} s",
            )
            for loop, seconds in self.idle_seconds().items()
        }

    @staticmethod
    def _unacked_is_live(
        unacked: _Condition, conditions: dict[str, _Condition], now: float, grace_seconds: float
    ) -> dict[str, object]:
        """Red when it has been red for the grace time and so long nothing outside has been the reason."""
        outside = [conditions[name] for name in _OUTSIDE if name in conditions]
        excused = any(not condition.ok or now - condition.since < grace_seconds for condition in outside)
        stuck = not unacked.ok and now - unacked.since >= grace_seconds and not excused
        return _check(not stuck, unacked.detail)


def _check(ok: bool, detail: str) -> dict[str, object]:
    return {"ok": ok, "detail": detail}


def _verdict(checks: Checks) -> tuple[bool, Checks]:
    return all(bool(check["ok"]) for check in checks.values()), checks
