"""Where the packet ids of a session begin anew: store/write/redelivery.py has the rule that needs it, and why."""

from esp_ingest.model import Delivery
from esp_ingest.mqtt.client_setup import SessionRecord


class PacketIds:
    """Follows the packet ids of one session. A broker counts them up, so they begin anew where a message without DUP
    does not follow the one before, give or take a window: at the first of a connection because the broker went back to
    a snapshot, later on because it gives them out in an order of its own. ``count``: ids go from 1 to it, and round."""

    def __init__(self, record: SessionRecord, receive_maximum: int, count: int = 65_535) -> None:
        self._record = record
        self._count = count
        self._window = receive_maximum
        self._has_brought_new = False  # the connection has brought a message without DUP

    def connected(self, connection: int, *, is_new_session: bool) -> None:
        """A connection begins. Written down before anything of it is taken in."""
        self._has_brought_new = False
        self._record.connected(connection, is_new_session=is_new_session)

    def follow(self, deliveries: list[Delivery], unusual: int) -> None:
        """Look at what came, and note of each that is marked DUP which connections may have brought it before.
        ``unusual``: so many at most are not plain new QoS 1; with 0 the work is the same for any number."""
        new = deliveries
        if unusual:
            new = [each for each in deliveries if each.packet_id and not each.redelivered]
            for at, delivery in enumerate(deliveries):
                if delivery.redelivered:
                    deliveries[at] = delivery._replace(redelivered=self._record.ids_since)
                    if self._follows(delivery.packet_id):  # of a snapshot, it may lie behind
                        self._record.came(delivery.packet_id)
        if not new:
            return
        first, last = new[0].packet_id, new[-1].packet_id
        counts_up = (last - first) % self._count >= len(new) - 1
        if not (self._follows(first) and counts_up):
            is_snapshot = counts_up and not self._has_brought_new
            self._record.ids_began_anew(self._record.connection + (not is_snapshot))
        self._record.came(last)
        self._has_brought_new = True

    def _follows(self, packet_id: int) -> bool:
        last = self._record.packet_id
        return not last or 0 < (packet_id - last) % self._count <= self._window
