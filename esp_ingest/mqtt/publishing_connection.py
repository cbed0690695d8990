"""The connection over which the daemon publishes: apart from the one that brings readings, so that a broker which
refuses, drops or punishes a publication never delays a reading.

One thread drives it, the publisher's. Each connection is a new client with a clean session: what was not confirmed is
still in the outbox, and goes out again from there. What CONNACK says is obeyed here, since paho 2.2 reads of it no more
than Receive Maximum: Retain Available, Maximum QoS, Maximum Packet Size.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from esp_ingest.config.settings import ConfigError, MqttSettings
from esp_ingest.interfaces import Clock, PublisherConnection
from esp_ingest.model import Answer, Ending
from esp_ingest.mqtt import sentences
from esp_ingest.mqtt.broker_watch import BrokerWatch
from esp_ingest.mqtt.client import BulkClient
from esp_ingest.mqtt.client_setup import new_client
from esp_ingest.service.backoff import Backoff
from esp_ingest.service.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_UNDER_WAY = 20  # paho's own limit; the broker may set a lower one
ANSWER_SECONDS = 30.0  # a broker that answers a publication later than this is taken to have dropped it
_TURN_SECONDS = 0.25

_PAYLOAD_FORMAT_INVALID = 0x99
_RETAIN_NOT_SUPPORTED, _QOS_NOT_SUPPORTED = 0x9A, 0x9B
# DISCONNECT for what was published: unspecified, malformed, protocol error, implementation, not authorized, topic name,
# packet too large, quota, payload format.
_BLAMES_PUBLICATION = {0x80, 0x81, 0x82, 0x83, 0x87, 0x90, 0x95, 0x97, _PAYLOAD_FORMAT_INVALID}
_BLAMES_MESSAGE = {0x95, _PAYLOAD_FORMAT_INVALID}  # of these, whatever is wrong with the message and not with its topic


def publisher_client_id(client_id: str) -> str:
    """Not the session that brings readings; a name that an operator recognises in the broker's log."""
    return f"{client_id}-publish"


@dataclass(slots=True)
class _Link:
    """One connection, from the attempt to its end."""

    client: BulkClient
    opened_at: float
    is_accepted: bool = False
    keys: dict[int, int] = field(default_factory=dict)  # packet id → the caller's key
    sent_at: dict[int, float] = field(default_factory=dict)  # key → when
    can_retain: bool = True
    max_qos: int = 1
    max_packet_bytes: float = inf
    max_under_way: int = MAX_UNDER_WAY
    end: str = ""
    blame: Answer | None = None
    is_innocent: bool = False
    is_contested: bool = False
    has_progressed: bool = False


class PublishingConnection(PublisherConnection):
    """For one thread. ``protocol`` gives the MQTT version that the connection for readings has found, 5 or 3.1.1."""

    def __init__(self, settings: MqttSettings, clock: Clock, metrics: Metrics, protocol: Callable[[], str]) -> None:
        own_id = publisher_client_id(settings.client_id)
        self._settings = settings.model_copy(update={"client_id": own_id, "share_group": ""})
        self._clock, self._metrics, self._protocol = clock, metrics, protocol
        self._watch = BrokerWatch(settings, metrics)
        self._backoff = Backoff(settings.reconnect_min_seconds, settings.reconnect_max_seconds)
        self._next_attempt = 0.0
        self._link: _Link | None = None
        self._answers: dict[int, Answer] = {}
        self._ending: Ending | None = None
        # What a broker has refused without having said so in CONNACK.
        self._refuses_retain = self._refuses_qos1 = False
        self._told_of = ""
        self.last_error = ""

    # -- What the publisher does.

    def connect(self) -> bool:
        if self._link is not None:
            return True
        if self._clock.monotonic() < self._next_attempt:
            return False
        try:
            self._open()
        except OSError as error:
            self._end(sentences.unreachable(self._settings, error))
        except ConfigError as error:
            self._end(str(error))
        return self._link is not None

    def has_room(self) -> bool:
        link = self._link
        return link is not None and len(link.sent_at) < link.max_under_way

    def under_way(self) -> int:
        return 0 if self._link is None else len(self._link.sent_at)

    def publish(self, key: int, topic: str, payload: bytes) -> None:
        link = self._link
        assert link is not None, "not connected"
        qos = min(1, link.max_qos)
        size = _packet_bytes(topic, payload, qos, is_mqtt5=self._protocol() == "5")
        if size > link.max_packet_bytes:
            said = f"a packet of {size} bytes is more than the broker's maximum packet size of {link.max_packet_bytes}"
            self._answers[key] = Answer(said, is_of_message=True)
            return
        link.sent_at[key] = self._clock.monotonic()
        info = link.client.publish(topic, payload, qos, link.can_retain)
        link.keys[info.mid] = key

    def answers(self) -> dict[int, Answer]:
        answers, self._answers = self._answers, {}
        return answers

    def ending(self) -> Ending | None:
        ending, self._ending = self._ending, None
        return ending

    def turn(self, seconds: float) -> None:
        seconds = min(seconds, _TURN_SECONDS)
        link = self._link
        if link is None or not link.client.turn(seconds):
            self._clock.sleep(seconds)
            return
        oldest = min(link.sent_at.values(), default=inf)
        if link.client.socket() is None:
            self._end(link.end)
        elif self._clock.monotonic() - oldest > ANSWER_SECONDS:
            self._end(f"The broker at {sentences.address(self._settings)} did not answer a publication in time.")

    def close(self) -> None:
        link = self._link
        if link is not None:
            link.client.depart()
            self._forget()

    # -- The connection.

    def _open(self) -> None:
        """Connect and wait for CONNACK. Raises OSError and ConfigError."""
        now = self._clock.monotonic()
        protocol = MQTTProtocolVersion.MQTTv5 if self._protocol() == "5" else MQTTProtocolVersion.MQTTv311
        client = new_client(self._settings, protocol, self._clock, self._watch.came, 1, keep_session=False)
        link = _Link(client, now)
        client.on_connect = lambda _, __, ___, reason, properties: self._on_connect(link, reason, properties)
        client.on_disconnect = lambda _, __, flags, reason, ___: self._on_disconnect(link, flags, reason)
        client.on_publish = lambda _, __, packet_id, reason, ___: self._on_publish(link, packet_id, reason)
        self._link = link
        client.reconnect()
        deadline = self._clock.monotonic() + self._settings.connect_timeout_seconds
        while self._link is link and not link.is_accepted:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                self._end(f"The broker at {sentences.address(self._settings)} did not answer CONNECT in time.")
                return
            self.turn(left)

    def _end(self, reason: str) -> None:
        """The connection is over, or none came about: say why, and choose when to try again."""
        link, now = self._link, self._clock.monotonic()
        lasted, is_contested, has_progressed = 0.0, False, False
        if link is not None:
            error = link.client.read_error
            reason = reason or sentences.lost(self._settings, is_accepted=link.is_accepted, error=error)
            is_contested, has_progressed = link.is_contested, link.has_progressed
            if link.is_accepted:
                lasted = now - link.opened_at
                is_innocent = link.is_innocent or self._watch.is_asking
                self._ending = Ending(reason, frozenset(link.sent_at), link.blame, is_innocent)
            self._forget()
        self.last_error = reason
        if has_progressed:  # a broker that hangs up on each refusal must not make the others wait longer and longer
            self._backoff.attempts = 0
        self._next_attempt = now + self._backoff.next_seconds(lasted, is_contested=is_contested)

    def _forget(self) -> None:
        if self._link is not None:
            self._link.client.abort()
            self._link = None
            self._watch.ended()
        self._metrics.mqtt_publisher_connected.set(0)

    # -- What the broker says.

    def _on_connect(self, link: _Link, reason: ReasonCode, properties: Properties | None) -> None:
        if reason.is_failure:
            link.end = sentences.connect_refused(self._settings, self._protocol(), reason)
            return
        link.is_accepted = True
        link.can_retain = bool(getattr(properties, "RetainAvailable", 1)) and not self._refuses_retain
        link.max_qos = 0 if self._refuses_qos1 else getattr(properties, "MaximumQoS", 2)
        link.max_packet_bytes = getattr(properties, "MaximumPacketSize", inf)
        link.max_under_way = min(MAX_UNDER_WAY, getattr(properties, "ReceiveMaximum", MAX_UNDER_WAY))
        self.last_error = ""
        self._metrics.mqtt_publisher_connected.set(1)
        self._tell_of_limits(link)
        self._watch.begin(link.client)

    def _tell_of_limits(self, link: _Link) -> None:
        """Consumers notice: at QoS 0 a message may be lost, and without retained messages a newcomer hears nothing."""
        missing = ["retained messages"] if not link.can_retain else []
        missing += ["QoS 1"] if link.max_qos == 0 else []
        limits = " and ".join(missing)
        if limits != self._told_of:
            self._told_of = limits
            if limits:
                logger.warning("diagnoses published with less than promised", extra={"broker_lacks": limits})

    def _on_disconnect(self, link: _Link, flags: paho.DisconnectFlags, reason: ReasonCode) -> None:
        if not flags.is_disconnect_packet_from_server or link.end:
            return
        link.end = sentences.ended(self._settings, reason)
        link.is_contested = reason.value == sentences.SESSION_TAKEN_OVER
        self._refuses_retain |= reason.value == _RETAIN_NOT_SUPPORTED
        self._refuses_qos1 |= reason.value == _QOS_NOT_SUPPORTED
        if reason.value in _BLAMES_PUBLICATION and not self._watch.is_asking:
            link.blame = _refused(reason)
        else:
            link.is_innocent = True

    def _on_publish(self, link: _Link, packet_id: int, reason: ReasonCode) -> None:
        key = link.keys.pop(packet_id, None)
        if key is None:
            return
        del link.sent_at[key]
        link.has_progressed = True
        self._answers[key] = _refused(reason) if reason.is_failure else Answer()


def _refused(reason: ReasonCode) -> Answer:
    return Answer(f"the broker refused it: {reason}", is_of_message=reason.value in _BLAMES_MESSAGE)


def _packet_bytes(topic: str, payload: bytes, qos: int, *, is_mqtt5: bool) -> int:
    """Size of the whole PUBLISH packet."""
    body = 2 + len(topic.encode()) + 2 * (qos > 0) + is_mqtt5 + len(payload)
    length_bytes = 1 + (body >= 1 << 7) + (body >= 1 << 14) + (body >= 1 << 21)
    return 1 + length_bytes + body
