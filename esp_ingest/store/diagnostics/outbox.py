"""Changes of occurrences that wait for the broker: read, removed once it has confirmed them, set aside once it has
refused them. Every method is a statement of its own: nothing stays open or locked while the broker is waited for."""

from collections.abc import Callable, Sequence

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.interfaces import Outbox
from esp_ingest.model import Change
from esp_ingest.store.connection import OnDemand


class PostgresOutbox(Outbox):
    """On a connection of its own, opened when it is needed and again after it was lost. For one thread. ``holder``
    names this daemon among those that publish; ``may_connect`` as in OnDemand. Every method raises StoreUnavailable."""

    def __init__(self, settings: DatabaseSettings, holder: str, may_connect: Callable[[], bool] = lambda: True) -> None:
        self._connection = OnDemand(settings, may_connect)
        self._holder = holder

    def waiting(self) -> tuple[int, int]:
        ((backlog, set_aside),) = self._connection.rows("outbox_size")
        return backlog, set_aside

    def take_turn(self, seconds: float) -> bool:
        return bool(self._connection.rows("take_publishing_turn", {"holder": self._holder, "seconds": seconds}))

    def end_turn(self) -> None:
        self._connection.execute("end_publishing_turn", (self._holder,))

    def read(self, limit: int) -> list[Change]:
        return [Change(*row) for row in self._connection.rows("read_outbox", (limit,))]

    def remove(self, revisions: Sequence[int]) -> None:
        self._connection.execute("delete_published", (list(revisions),))

    def set_aside(self, revision: int, reason: str, *, for_good: bool) -> None:
        refusal = {"revision": revision, "reason": reason, "for_good": for_good}
        self._connection.execute("set_aside_publication", refusal)
        self._connection.execute("forget_set_aside")

    def close(self) -> None:
        self._connection.close()
