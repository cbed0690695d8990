"""The session on the broker, one connection after another, and the thread that serves it.

One network thread of ours drives paho's external-loop calls. paho's own thread was refused: its reconnect delay is
reset by every CONNACK and has no jitter, and it cannot stop reading without losing the keep alive.

Nothing here waits for the pipeline: where no more can be taken in, reading pauses, and the broker's window does the
rest.
"""

import logging
import select
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import inf
from pathlib import Path

from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from esp_ingest.config.settings import ConfigError, MqttSettings
from esp_ingest.interfaces import Clock
from esp_ingest.model import Delivery
from esp_ingest.mqtt import sentences
from esp_ingest.mqtt.client import BulkClient
from esp_ingest.mqtt.client_setup import SessionRecord, end_session, new_client
from esp_ingest.mqtt.packet_ids import PacketIds
from esp_ingest.mqtt.subscription import Subscription
from esp_ingest.mqtt.waker import Waker
from esp_ingest.service.backoff import Backoff
from esp_ingest.service.certificates import note_broker
from esp_ingest.service.log import Repeated
from esp_ingest.service.metrics import Metrics

logger = logging.getLogger(__name__)

TURN_SECONDS = 1.0
# Between "readable" and reading: the broker writes a message at a time, and a turn for each costs more than all else.
# Measured with one reading a message: 14 → 7 µs of CPU a reading with 3 ms. After a turn that left something unread
# nothing has to gather: with 50 readings a message, one RECV_BYTES every 3 ms and a little held all else up at some
# 260 000 readings/s.
GATHER_SECONDS = 0.003
# After a read that brought little, so that a turn brings enough; a batch is cut less often than that, so what is
# gathered would wait anyway. In a stream of such reads a turn costs as much as its messages: with 10 000 a second the
# thread takes a sixth less CPU with 16 ms, in which 33 KB come, than with 8 ms, and with 24 ms no less than that.
GATHER_LITTLE_SECONDS = 0.008
GATHER_STREAM_SECONDS = 0.016
LITTLE_BYTES = 49_152
STREAM_BYTES_A_SECOND = 262_144  # 1 300 messages a second: below it the thread does next to nothing either way
CLOSE_SECONDS = 4.0
SILENT_CLOSES_BEFORE_FALLBACK = 2
FLAPPING_CONNECTIONS = 2  # so many short-lived ones in a row
SETTLED_SECONDS = 5.0  # a connection that stood for less has restored nothing


@dataclass(slots=True)
class _Link:
    """One connection, from the attempt to its end."""

    opened_at: float
    deadline: float  # for CONNACK, then for SUBACK
    is_accepted: bool = False
    session_present: bool = False
    has_share_groups: bool = True  # unless the broker says in CONNACK that it has none
    is_answered: bool = False  # SUBACK is here, whatever it says
    is_contested: bool = False
    end: str = ""  # why it ended, one sentence


def gather_seconds(size: int, seconds: float) -> float:
    """How long to wait between "readable" and reading, after a read that brought ``size`` bytes, ``seconds`` after the
    one before: until LITTLE_BYTES are here if they go on coming as they came, within bounds."""
    if size >= LITTLE_BYTES:
        return GATHER_SECONDS
    if size <= STREAM_BYTES_A_SECOND * seconds:
        return GATHER_LITTLE_SECONDS
    return min(max(LITTLE_BYTES * seconds / size, GATHER_SECONDS), GATHER_STREAM_SECONDS)


class Network(ABC):
    """The session on the broker. What it brings is handed to the three methods of the subclass, in the network thread.
    The loop and what paho calls from it change the same state of one connection, which is why they are one class.

    ``state_folder`` (None: nowhere) holds the record of what the session is subscribed to, see client_setup.py. Without
    ``keep_session`` the broker forgets the session with the connection, however that ends: for a probe. The
    constructor raises ConfigError when the TLS files cannot be used; no broker is needed until deliveries are wanted.
    """

    def __init__(
        self,
        settings: MqttSettings,
        clock: Clock,
        metrics: Metrics,
        state_folder: Path | None = None,
        *,
        keep_session: bool = True,
    ) -> None:
        self._settings, self._clock, self._metrics = settings, clock, metrics
        self._keep_session = keep_session
        self._record = SessionRecord(settings, state_folder)
        self._subscription = Subscription(settings, clock, metrics, self._record)
        self._packet_ids = PacketIds(self._record, settings.receive_maximum)

        self._backoff = Backoff(settings.reconnect_min_seconds, settings.reconnect_max_seconds)
        self._outage = Repeated(logger, "mqtt connection failed", "mqtt connection restored")
        self._session_losses = Repeated(logger, "mqtt session lost on the broker", "mqtt session kept by the broker")

        is_311 = settings.protocol == "3.1.1"
        protocol = MQTTProtocolVersion.MQTTv311 if is_311 else MQTTProtocolVersion.MQTTv5
        self._client = self._new_client(protocol, self._record.connection + 1)
        self._silent_closes = 0
        self._has_warned_of_fallback = False
        self._connections = 0
        self._short_lived = 0
        self._link = _Link(0.0, inf)
        self._last_turn = clock.monotonic()

        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._is_paused = False
        self._is_leaving = False
        self._waker: Waker | None = None  # from start() to close()
        self.connected = False
        self.last_error = ""

    @abstractmethod
    def on_deliveries(self, deliveries: list[Delivery], size: int, unusual: int) -> None:
        """These have come, with ``size`` bytes (model.weight_of), in the order received; ``unusual`` of them, at most,
        are not plain new QoS 1. About once a recv. Must not block."""

    @abstractmethod
    def is_full(self) -> bool:
        """Nothing more can be taken in, so reading has to pause. Without a lock: a stale answer costs one chunk."""

    @abstractmethod
    def on_turn(self, partial_bytes: int) -> None:
        """A turn of the thread is over, or the connection is. ``partial_bytes`` are here of a packet that is not whole
        yet."""

    # -- Lifetime.

    def start(self) -> None:
        """Connect in the background; returns at once, with or without a broker."""
        self._waker = Waker()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send what is queued, leave with a clean DISCONNECT that keeps the session, end the thread. Takes up to
        ``connect_timeout_seconds`` when a connection is just being attempted. May be called twice."""
        self._ending.set()
        self._wake()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS + self._settings.connect_timeout_seconds)
            if self._thread.is_alive():
                logger.warning("mqtt thread did not end")
                return
        self._client.abort()
        if self._waker is not None:
            self._waker.close()
            self._waker = None
        self._record.close()

    def stop_subscribing(self) -> None:
        """First step of leaving a share group for good: the broker deals nothing new to this session, what it has
        queued still comes. Then go on taking and settling until nothing has come for a while, then
        :meth:`forget_session`."""
        self._is_leaving = True
        self._wake()

    @property
    def has_left(self) -> bool:
        """After :meth:`stop_subscribing`: connected, and the broker has confirmed that it deals nothing new."""
        return self.connected and self._subscription.has_left

    def forget_session(self) -> bool:
        """Close, and end the session on the broker with all that it holds: its subscriptions and its queue. For a
        member that leaves a share group for good, to which the broker would deal messages for as long as the session
        lasts. Returns whether the broker agreed. Takes up to ``connect_timeout_seconds``."""
        self.close()
        is_gone = end_session(self._settings, self._protocol, self._clock, self._client.connection + 1)
        if is_gone:
            self._subscription.forget()
        return is_gone

    # -- Health. May be read from any thread.

    @property
    def connection(self) -> int:
        """The number of the connection that stands, 0 if none does."""
        return self._client.connection if self.connected else 0

    @property
    def subscribed(self) -> bool:
        """Whether the broker has granted the subscription on the connection that stands now."""
        return self._subscription.is_granted

    def network_thread_alive(self) -> bool:
        """The network thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def network_idle_seconds(self) -> float:
        """Since the network thread last moved: about a second at most, while connecting the connect timeout."""
        return max(0.0, self._clock.monotonic() - self._last_turn)

    @property
    def protocol(self) -> str:
        """MQTT version in use: "5" or "3.1.1"."""
        return "5" if self._protocol == MQTTProtocolVersion.MQTTv5 else "3.1.1"

    # -- The network thread.

    def _run(self) -> None:
        while not self._ending.is_set():
            if self.is_full():
                # Each connection would bring the same messages again. Memory stays bounded, the broker holds the rest.
                self.last_error = "Not connecting: the buffer is full and nothing is being stored."
                self._rest(TURN_SECONDS)
                continue
            lasted = 0.0
            try:
                lasted = self._connect_and_serve()
            except Exception:
                # For one, a TLS file that is gone when the protocol changes. Without this thread nothing arrives.
                logger.exception("mqtt network thread failed, and goes on")
            if not self._ending.is_set():
                self._rest(self._backoff.next_seconds(lasted, is_contested=self._link.is_contested))

    def _connect_and_serve(self) -> float:
        """One connection, from the attempt to its end. Returns for how many seconds it was connected."""
        client = self._client
        now = self._clock.monotonic()
        link = self._link = _Link(now, now + self._settings.connect_timeout_seconds)
        self._subscription.begin()
        try:
            self._last_turn = now
            client.reconnect()
            link.deadline = self._clock.monotonic() + self._settings.connect_timeout_seconds
            self._serve(client, link)
        except OSError as error:
            link.end = sentences.unreachable(self._settings, error)
        except ConfigError as error:  # the TLS files as they are now; they may be in the middle of their renewal
            link.end = str(error)
        except Exception as error:
            link.end = f"The MQTT client failed: {error}."
            raise
        finally:
            client.abort()
            self._after(link)
            self.on_turn(0)
        if not link.is_accepted:
            return 0.0
        lasted = self._clock.monotonic() - link.opened_at
        is_short = lasted < max(self._settings.reconnect_max_seconds, SETTLED_SECONDS)
        self._short_lived = self._short_lived + 1 if is_short else 0
        return lasted

    def _serve(self, client: BulkClient, link: _Link) -> None:
        opened = client.socket()
        waker = self._waker
        if opened is None or waker is None:
            return
        poll = select.poll()
        fd, wake_fd = opened.fileno(), waker.fileno()
        poll.register(wake_fd, select.POLLIN)
        gather, read_at = GATHER_LITTLE_SECONDS, self._last_turn
        while client.socket() is not None:
            self._is_paused = is_paused = link.is_answered and self.is_full()
            reading = select.POLLRDHUP if is_paused else select.POLLIN
            poll.register(fd, reading | (select.POLLOUT if client.want_write() else 0))
            has_pending = not is_paused and client.pending() > 0
            events = dict(poll.poll(0 if has_pending else 1_000 * self._seconds_to_next(link)))
            if events.get(wake_fd):
                waker.drain()
            if self._ending.is_set():
                client.depart()
                return
            is_readable = has_pending or events.get(fd, 0) & ~select.POLLOUT
            if is_paused:
                if is_readable:  # the broker hung up; what is unread comes again
                    return
                client.excuse_silence()
            elif is_readable:
                if gather and not has_pending:
                    self._clock.sleep(gather)
                client.loop_read()
            if client.want_write():
                client.loop_write()
            client.loop_misc()
            self._do_what_is_due(client, link)
            if is_readable and not is_paused:
                since, read_at = self._last_turn - read_at, self._last_turn
                gather = gather_seconds(client.last_read_bytes, since) if client.has_read_all else 0.0

    def _seconds_to_next(self, link: _Link) -> float:
        due = min(link.deadline, self._subscription.next_attempt) - self._last_turn
        return min(TURN_SECONDS, max(0.001, due))

    def _do_what_is_due(self, client: BulkClient, link: _Link) -> None:
        """Deadlines, and what is due. Once a turn."""
        now = self._last_turn = self._clock.monotonic()
        if now >= link.deadline:
            waited_for = "SUBSCRIBE" if link.is_accepted else "CONNECT"
            link.end = f"The broker at {self._address} did not answer {waited_for} in time."
            client.abort()
        if now >= self._subscription.next_attempt:
            self._subscribe(link)
        if self._is_leaving and link.is_answered:
            self._subscription.leave(client)
        if self._outage.active and self.subscribed and self._is_settled(link, now):
            self._outage.ended(now, connection=client.connection)
        self.on_turn(client.partial_bytes)

    def _is_settled(self, link: _Link, now: float) -> bool:
        """A connection that comes and goes has not been restored: the log would tell it each time."""
        needed = self._settings.reconnect_max_seconds if self._short_lived >= FLAPPING_CONNECTIONS else 0.0
        return now - link.opened_at >= max(needed, SETTLED_SECONDS)

    def _after(self, link: _Link) -> None:
        """The connection is over: say why, once in a while, and choose what the next attempt speaks."""
        self._set_connected(False)
        if self._ending.is_set():
            logger.info("mqtt disconnected", extra={"connection": self._client.connection})
            return
        self.last_error = link.end or sentences.lost(
            self._settings,
            is_accepted=link.is_accepted,
            is_flapping=self._short_lived >= FLAPPING_CONNECTIONS,
            error=self._client.read_error,
        )
        self._outage.failed(
            self._clock.monotonic(), self.last_error, broker=self._address, connection=self._client.connection
        )
        self._choose_protocol(link)

    def _choose_protocol(self, link: _Link) -> None:
        """MQTT 5 first. 3.1.1 where the broker says that it knows no 5, or keeps hanging up on CONNECT, as some do."""
        hung_up = not link.is_accepted and not link.end
        self._silent_closes = self._silent_closes + 1 if hung_up else 0
        if self._settings.protocol != "auto" or self._settings.share_group:
            return
        is_refused = link.end.startswith(sentences.REFUSED_PROTOCOL)
        if is_refused or self._silent_closes >= SILENT_CLOSES_BEFORE_FALLBACK:
            self._silent_closes = 0
            other = MQTTProtocolVersion.MQTTv311 if self.protocol == "5" else MQTTProtocolVersion.MQTTv5
            self._client = self._new_client(other, self._client.connection + 1)

    def _rest(self, seconds: float) -> None:
        until = self._clock.monotonic() + seconds
        while (left := until - self._clock.monotonic()) > 0 and not self._ending.wait(min(left, TURN_SECONDS)):
            self._last_turn = self._clock.monotonic()

    # -- What the broker says. paho calls these in the network thread.

    def _on_connect(self, flags: paho.ConnectFlags, reason: ReasonCode, properties: Properties | None) -> None:
        link = self._link
        if reason.is_failure:
            link.end = sentences.connect_refused(self._settings, self.protocol, reason)
            return
        link.is_accepted = True
        link.session_present = flags.session_present
        link.has_share_groups = getattr(properties, "SharedSubscriptionAvailable", 1) != 0
        self._connections += 1
        if self._connections > 1:
            self._metrics.mqtt_reconnects.inc()
        self._set_connected(True)
        note_broker(self._client.socket(), self._metrics)
        self._tell_of_session(link, properties)
        if not self._outage.active:
            self._log_connected(link)
        if self._is_leaving:
            link.is_answered, link.deadline = True, inf
        else:
            self._subscribe(link)

    def _tell_of_session(self, link: _Link, properties: Properties | None) -> None:
        if self.protocol == "3.1.1" and self._settings.protocol == "auto" and not self._has_warned_of_fallback:
            self._has_warned_of_fallback = True
            logger.warning("mqtt 3.1.1 in use, the broker refuses 5", extra={"broker": self._address})
        if link.session_present:
            self._session_losses.ended(self._clock.monotonic())
        else:
            if self._subscription.should_be_kept:
                self._metrics.mqtt_sessions_lost.inc()
                reason = "no session present, though there was one: its queue is gone"
                self._session_losses.failed(self._clock.monotonic(), reason, client_id=self._settings.client_id)
        self._packet_ids.connected(self._client.connection, is_new_session=not link.session_present)
        granted = getattr(properties, "SessionExpiryInterval", self._settings.session_expiry_seconds)
        if self._keep_session and granted < self._settings.session_expiry_seconds:
            logger.warning(
                "mqtt session expires early",
                extra={"asked_seconds": self._settings.session_expiry_seconds, "granted_seconds": granted},
            )

    def _log_connected(self, link: _Link) -> None:
        fields = {"broker": self._address, "protocol": self.protocol, "connection": self._client.connection}
        logger.info("mqtt connected", extra=fields | {"session_present": link.session_present})

    def _on_disconnect(self, flags: paho.DisconnectFlags, reason: ReasonCode) -> None:
        link = self._link
        if not flags.is_disconnect_packet_from_server or link.end:
            return
        link.is_contested = reason.value == sentences.SESSION_TAKEN_OVER
        link.end = sentences.ended(self._settings, reason)

    def _subscribe(self, link: _Link) -> None:
        link.deadline = self._clock.monotonic() + self._settings.connect_timeout_seconds
        self._subscription.subscribe(self._client, is_mqtt5=self.protocol == "5")

    def _on_subscribe(self, packet_id: int, reasons: list[ReasonCode]) -> None:
        link = self._link
        said = self._subscription.answered(
            self._client, packet_id, reasons, link.session_present, link.has_share_groups
        )
        if said is not None:
            link.is_answered, link.deadline = True, inf
            self.last_error = said

    # -- Parts.

    def _new_client(self, protocol: MQTTProtocolVersion, least_connection: int) -> BulkClient:
        client = new_client(
            self._settings,
            protocol,
            self._clock,
            self.on_deliveries,
            least_connection,
            keep_session=self._keep_session,
        )
        client.on_connect = lambda _, __, flags, reason, properties: self._on_connect(flags, reason, properties)
        client.on_disconnect = lambda _, __, flags, reason, ___: self._on_disconnect(flags, reason)
        client.on_subscribe = lambda _, __, packet_id, reasons, ___: self._on_subscribe(packet_id, reasons)
        client.on_unsubscribe = lambda _, __, packet_id, reasons, ___: self._subscription.unsubscribed(
            packet_id, reasons
        )
        self._protocol = protocol
        return client

    def _set_connected(self, connected: bool) -> None:
        self.connected = connected
        self._metrics.mqtt_connected.set(int(connected))
        if not connected:
            self._subscription.ended()

    def _wake(self) -> None:
        waker = self._waker
        if waker is not None:
            waker.wake()

    @property
    def _address(self) -> str:
        return sentences.address(self._settings)
