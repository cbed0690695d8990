"""What the broker says of itself under $SYS, for the metrics: how many messages it had to drop.

Mosquitto drops in silence what does not fit into a client's queue, while the controllers get their acknowledgements.
The subscription stands on the connection for publishing, so that a broker which answers it with a disconnect never
delays a reading; such a broker is not asked a third time.
"""

from collections.abc import Sequence

from esp_ingest.config.settings import MqttSettings
from esp_ingest.model import Delivery
from esp_ingest.mqtt import sentences
from esp_ingest.mqtt.client import BulkClient
from esp_ingest.service.metrics import Metrics

DROPPED_TOPIC = "$SYS/broker/publish/messages/dropped"
_MOST_PUNISHMENTS = 2


class BrokerWatch:
    """For the thread of one connection. The series ``broker_messages_dropped`` is there from the broker's first report
    until the connection ends: another daemon may publish then, and an old figure would look like news."""

    def __init__(self, settings: MqttSettings, metrics: Metrics) -> None:
        self._gauge, self._address = metrics.broker_messages_dropped, sentences.address(settings)
        self._punishments = 0
        self.is_asking = False  # SUBSCRIBE is out, and the broker has not answered it

    def begin(self, client: BulkClient) -> None:
        """Ask, once a connection."""
        if self._punishments < _MOST_PUNISHMENTS:
            client.on_subscribe = self._answered
            client.subscribe(DROPPED_TOPIC, qos=0)
            self.is_asking = True

    def came(self, deliveries: Sequence[Delivery], *_: object) -> None:
        """Messages of this connection; whatever is no number of dropped messages is passed over."""
        for each in deliveries:
            if each.topic == DROPPED_TOPIC.encode() and each.payload.isdigit():
                self._gauge.labels(self._address).set(float(each.payload))

    def ended(self) -> None:
        """The connection is over."""
        self._punishments += self.is_asking
        self.is_asking = False
        self._gauge.remove(self._address)

    def _answered(self, *_: object) -> None:
        self.is_asking, self._punishments = False, 0
