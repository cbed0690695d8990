"""What the session is subscribed to: SUBSCRIBE and its answer, filters of earlier configurations, leaving for good.

The subscription counts from SUBACK on, with its reason code read. A persistent session keeps the filters of earlier
configurations (client_setup.py tells how they are found); they are unsubscribed here.
"""

import logging
from collections.abc import Sequence
from math import inf

from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from esp_ingest.config.settings import MqttSettings
from esp_ingest.interfaces import Clock
from esp_ingest.model import Delivery
from esp_ingest.mqtt import sentences
from esp_ingest.mqtt.client import BulkClient
from esp_ingest.mqtt.client_setup import SessionRecord, Topics
from esp_ingest.service.backoff import Backoff
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import Metrics

logger = logging.getLogger(__name__)

QOS = 1
_GRANTED_QOS0 = 0x00
_MOST_STRAYS = 100  # an earlier filter may have had a wildcard in its first level


class Subscription:
    """The subscription over one connection after another. All methods belong to the network thread; ``is_granted`` and
    ``has_left`` may be read from any thread.

    ``record`` keeps the filters that the session may hold.
    """

    def __init__(self, settings: MqttSettings, clock: Clock, metrics: Metrics, record: SessionRecord) -> None:
        self._settings, self._clock, self._metrics = settings, clock, metrics
        self._topics = Topics(settings)
        self._record = record
        self._backoff = Backoff(settings.reconnect_min_seconds, settings.reconnect_max_seconds)
        self._refusal = Repeated(logger, "mqtt subscription refused", "mqtt subscription accepted", level=logging.ERROR)
        self._had_session = False
        self.is_granted = False
        self.begin()

    def begin(self) -> None:
        """Another connection is being attempted: nothing has been asked on it."""
        self._packet_id = 0
        self.next_attempt = inf  # monotonic seconds, after a refusal
        self._unsubscribing: dict[int, set[str]] = {}
        self._tried_strays: set[str] = set()
        self._has_asked_to_leave = False

    @property
    def should_be_kept(self) -> bool:
        """Whether the broker should hold a session of ours."""
        return self._had_session or bool(self._record.filters)

    def forget(self) -> None:
        """The session on the broker has been ended, and with it each of its filters."""
        self._record.keep(set())

    def subscribe(self, client: BulkClient, *, is_mqtt5: bool) -> None:
        """Ask for what this configuration wants. The filter is recorded before it is asked for: a crash in between must
        not leave a filter that is not recorded anywhere."""
        self._record.keep(self._record.filters | {self._topics.wanted})
        self.next_attempt = inf
        if is_mqtt5:
            # Retained messages would come again at each connection: ask for none (retain handling 2).
            options = SubscribeOptions(qos=QOS, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
            _, packet_id = client.subscribe(self._topics.wanted, options=options)
        else:
            _, packet_id = client.subscribe(self._topics.wanted, qos=QOS)
        self._packet_id = packet_id or 0

    def answered(
        self,
        client: BulkClient,
        packet_id: int,
        reasons: list[ReasonCode],
        session_present: bool,
        has_share_groups: bool,
    ) -> str | None:
        """SUBACK has come. Returns "" if it grants the subscription, else a sentence that says what to do; None if it
        answers no question of this connection. A broker without share groups may grant one all the same (RabbitMQ),
        and would deliver nothing."""
        if packet_id != self._packet_id or not reasons:
            return None
        now = self._clock.monotonic()
        if self._settings.share_group and not has_share_groups:
            return self._refused(sentences.no_share_groups(self._settings), now)
        if reasons[0].is_failure or reasons[0].value == _GRANTED_QOS0:
            granted = "granted QoS 0 only" if reasons[0].value == _GRANTED_QOS0 else f"refused ({reasons[0]})"
            return self._refused(
                f"The subscription to {self._topics.wanted} was {granted}: "
                f"let user {self._settings.username or '(none)'} read it at QoS 1 in the broker's access list.",
                now,
            )
        self._had_session = True
        self._grant(True)
        self._backoff.attempts = 0
        self._refusal.ended(now, topic_filter=self._topics.wanted)
        if session_present:
            self._unsubscribe(client, (self._record.filters | self._topics.superseded) - {self._topics.wanted})
        return ""

    def ended(self) -> None:
        """The connection is over, and the subscription on it."""
        self._grant(False)

    def leave(self, client: BulkClient) -> None:
        """Unsubscribe from everything, once a connection: the first step of leaving a share group for good."""
        if not self._has_asked_to_leave:
            self._has_asked_to_leave = True
            self._grant(False)
            self._unsubscribe(client, self._record.filters | {self._topics.wanted})

    @property
    def has_left(self) -> bool:
        """After :meth:`leave`: the broker has confirmed on this connection that it deals nothing new."""
        return self._has_asked_to_leave and not self._unsubscribing and not self._record.filters

    def unsubscribed(self, packet_id: int, reasons: list[ReasonCode]) -> None:
        """UNSUBACK has come."""
        filters = self._unsubscribing.pop(packet_id, set())
        if any(reason.is_failure for reason in reasons):
            logger.warning("mqtt unsubscribe refused", extra={"filters": sorted(filters)})
            return
        known = self._record.filters & filters
        if known:
            logger.info("mqtt old subscriptions ended", extra={"filters": sorted(known)})
        self._record.keep(self._record.filters - filters)

    def end_strays(self, client: BulkClient, deliveries: Sequence[Delivery]) -> None:
        """Unsubscribe from a filter of an earlier configuration if the first or the last of the deliveries came through
        one. Such messages become rejects and are settled."""
        for delivery in (deliveries[0], deliveries[-1]):
            stray = None if self._topics.is_ours(delivery.topic) else self._topics.stray_filter(delivery.topic)
            if stray is None or stray in self._tried_strays or len(self._tried_strays) >= _MOST_STRAYS:
                continue
            self._tried_strays.add(stray)
            logger.warning("mqtt subscription from an earlier configuration", extra={"filter": stray})
            self._unsubscribe(client, {stray})

    def _refused(self, sentence: str, now: float) -> str:
        self._grant(False)
        self._refusal.failed(now, sentence)
        self.next_attempt = now + self._backoff.next_seconds()
        return sentence

    def _unsubscribe(self, client: BulkClient, filters: set[str]) -> None:
        if filters:
            _, packet_id = client.unsubscribe(sorted(filters))
            self._unsubscribing[packet_id or 0] = filters

    def _grant(self, is_granted: bool) -> None:
        self.is_granted = is_granted
        self._metrics.mqtt_subscribed.set(int(is_granted))
