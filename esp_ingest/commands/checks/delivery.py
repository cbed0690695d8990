"""Whether messages really come: a broker may grant a subscription and hand over nothing, by its access list, or
because it does not know share groups (rmqtt without its plugin rmqtt-shared-subscription)."""

import secrets
from collections.abc import Callable, Sequence

from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from esp_ingest.commands.checks.line import Line
from esp_ingest.config.settings import MqttSettings
from esp_ingest.interfaces import Clock
from esp_ingest.model import Delivery
from esp_ingest.mqtt.client_setup import Topics, new_client

_POLL_SECONDS = 0.05
_SHARED_PART = 0.6  # of the time: then the same message without a share group, which shows whose fault it is
_LATE_SECONDS = 0.4  # that the shared copy may come after the plain one
_SHARED_NOT_SUPPORTED = 0x9E


class DeliveryProbe:
    """A message to itself, on ``own_topic``, and whatever readings come meanwhile. With a ``share_group`` it goes
    through a group of its own, so that the daemons are dealt nothing less; only if that brings nothing, plain too."""

    def __init__(self, settings: MqttSettings, clock: Clock, protocol: str, own_topic: str, share_group: str) -> None:
        self._clock = clock
        self._own_topic = own_topic
        own_group = f"{share_group}-check-{secrets.token_hex(4)}"
        self._shared_topic = f"$share/{own_group}/{own_topic}" if share_group else ""
        self._wanted = Topics(settings).wanted
        self._user = settings.username or "(none)"
        self._plain, self._shared = secrets.token_bytes(8), secrets.token_bytes(8)
        self._plain_packet_id = 0
        self._readings: list[Delivery] = []
        self._came_back: list[bytes] = []
        self._refusal: ReasonCode | None = None
        version = MQTTProtocolVersion.MQTTv5 if protocol == "5" else MQTTProtocolVersion.MQTTv311
        self._client = new_client(settings, version, clock, self._came, 1, keep_session=False)
        self._client.on_connect = lambda *_: self._connected()
        self._client.on_subscribe = lambda _, __, packet_id, reasons, ___: self._subscribed(packet_id, reasons)

    def look(self, limit_seconds: float) -> Line:
        """Blocks for ``limit_seconds`` at most."""
        until = self._clock.monotonic() + limit_seconds
        try:
            self._client.reconnect()
            if self._shared_topic:
                self._look_shared(limit_seconds, until)
            else:
                self._turn(until, lambda: bool(self._readings or self._came_back))
            self._client.depart()
        except OSError:
            pass  # the line says that it is untested
        finally:
            self._client.abort()
        return self._shared_line() if self._shared_topic else self._plain_line()

    def _look_shared(self, limit_seconds: float, until: float) -> None:
        shared_until = until - (1 - _SHARED_PART) * limit_seconds
        if not self._turn(shared_until, lambda: self._is_shared or self._refusal is not None) or self._is_shared:
            return
        self._subscribe_plain()
        if self._turn(until, lambda: bool(self._came_back)):
            self._turn(min(until, self._clock.monotonic() + _LATE_SECONDS), lambda: self._is_shared)

    def _turn(self, until: float, is_enough: Callable[[], bool]) -> bool:
        """Until it is enough or the time is over. Returns whether the connection still stands."""
        while not is_enough() and (left := until - self._clock.monotonic()) > 0:
            if not self._client.turn(min(left, _POLL_SECONDS)):
                return False
        return True

    @property
    def _is_shared(self) -> bool:
        """The share group was dealt a message: the first one, or the second copy of the other."""
        return self._shared in self._came_back or self._came_back.count(self._plain) > 1

    # -- What the client calls.

    def _came(self, deliveries: Sequence[Delivery], *_: object) -> None:
        for each in deliveries:
            if each.topic != self._own_topic.encode():
                self._readings.append(each)
            elif each.payload in (self._plain, self._shared):
                self._came_back.append(bytes(each.payload))

    def _connected(self) -> None:
        if self._shared_topic:
            self._client.subscribe([(self._wanted, 1), (self._shared_topic, 1)])
        else:
            self._client.subscribe([(self._wanted, 1), (self._own_topic, 1)])

    def _subscribe_plain(self) -> None:
        self._plain_packet_id = self._client.subscribe(self._own_topic, 1)[1] or 0

    def _subscribed(self, packet_id: int, reasons: list[ReasonCode]) -> None:
        if not self._shared_topic or packet_id == self._plain_packet_id:
            self._client.publish(self._own_topic, self._plain, qos=1)
        elif reasons[-1].is_failure:
            self._refusal = reasons[-1]
        else:
            self._client.publish(self._own_topic, self._shared, qos=1)

    # -- What it says.

    @property
    def _unseen(self) -> str:
        return f"no reading came meanwhile, so rights on {self._wanted} are unseen"

    @property
    def _no_message(self) -> str:
        return f"no message to itself on {self._own_topic} (user {self._user} may not write and read it)"

    @property
    def _readings_come(self) -> str:
        return f"readings come ({self._readings[0].topic.decode(errors='replace')})"

    def _plain_line(self) -> Line:
        if self._readings:
            return Line("delivery", True, self._readings_come)
        if self._came_back:
            return Line("delivery", True, f"a message to itself on {self._own_topic} came back; {self._unseen}")
        return Line("delivery", True, f"untested: no reading came, and {self._no_message}", is_note=True)

    def _shared_line(self) -> Line:
        readings = self._readings_come if self._readings else self._unseen
        if self._is_shared:
            text = f"a message to itself on {self._own_topic} came back through a share group; {readings}"
            return Line("delivery", True, text)
        if self._came_back or (self._refusal is not None and self._refusal.value == _SHARED_NOT_SUPPORTED):
            does = (
                "grants a share group and delivers nothing to it"
                if self._refusal is None
                else (f"refuses a share group ({str(self._refusal).lower()})")
            )
            text = f"the broker {does}: switch shared subscriptions on at the broker, or unset mqtt.share_group."
            return Line("delivery", False, text)
        return Line("delivery", True, f"untested for a share group: {self._no_message}; {readings}", is_note=True)
