"""Limits on attempts to sign in, kept in memory. Nobody can lock another user's account: failures are counted for an
address and a user together, and lead to a wait that grows, not to a lock. A second limit counts all attempts of an
address."""

from collections import OrderedDict
from dataclasses import dataclass

from esp_ingest.interfaces import Clock

FREE_FAILURES = 5
LONGEST_WAIT_SECONDS = 300.0
_REMEMBERED = 10_000  # the oldest are forgotten first
_FORGET_AFTER_SECONDS = 3_600.0


@dataclass(slots=True)
class _Failures:
    count: int
    last: float
    until: float


class SignInThrottle:
    """Call ``wait`` first, then ``succeeded`` or ``unjudged`` where the attempt did not fail. For one thread."""

    def __init__(self, clock: Clock, per_minute: int) -> None:
        self._clock = clock
        self._per_minute = per_minute
        self._failures: OrderedDict[tuple[str, str], _Failures] = OrderedDict()
        self._attempts: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address → (tokens, when)

    def wait(self, address: str, user: str) -> float:
        """How many seconds to wait before this attempt may be made, 0 if it may be made now. Then it counts as a
        failure until it is known to be none: attempts at the same time cannot all be the first."""
        now = self._clock.monotonic()
        found = self._failures.get((address, user))
        if found is not None and found.until > now:
            return found.until - now
        wait = self._take(address, now)
        if wait == 0.0:
            self._count(address, user, now)
        return wait

    def succeeded(self, address: str, user: str) -> None:
        """The password was right."""
        self._failures.pop((address, user), None)

    def unjudged(self, address: str, user: str) -> None:
        """Nobody could tell whether the password was right: the attempt is not counted."""
        found = self._failures.get((address, user))
        if found is not None:
            found.count -= 1
            found.until = min(found.until, self._clock.monotonic())

    def _count(self, address: str, user: str, now: float) -> None:
        found = self._failures.pop((address, user), None)
        if found is None or now - found.last > _FORGET_AFTER_SECONDS:
            found = _Failures(0, now, now)
        found.count += 1
        found.last = now
        over = found.count - FREE_FAILURES
        found.until = now + (min(2.0**over, LONGEST_WAIT_SECONDS) if over >= 0 else 0.0)
        self._failures[address, user] = found
        if len(self._failures) > _REMEMBERED:
            self._failures.popitem(last=False)

    def _take(self, address: str, now: float) -> float:
        """Take a token from the bucket of an address, which holds ``per_minute`` tokens and fills up in a minute.
        Returns how many seconds to wait for the next one, 0 if one was taken."""
        rate = self._per_minute / 60.0
        tokens, when = self._attempts.pop(address, (float(self._per_minute), now))
        tokens = min(float(self._per_minute), tokens + (now - when) * rate)
        allowed = tokens >= 1.0
        self._attempts[address] = (tokens - 1.0 if allowed else tokens, now)
        if len(self._attempts) > _REMEMBERED:
            self._attempts.popitem(last=False)
        return 0.0 if allowed else (1.0 - tokens) / rate
