"""What the session on the broker holds from earlier days, and what we ask for today.

A persistent session keeps its subscriptions, those of an earlier configuration too, and the broker goes on delivering
for them. MQTT has no way to list them, so they are found in two ways: a small file beside the spool records each filter
before it is subscribed to; and a delivery on a topic that nobody asked for today tells its filter. The second needs no
file, but cannot see an old share group over the same topics: for that keep the state folder on a volume, as for the
spool.
"""

import contextlib
import json
import logging
import os
import re
import ssl
from pathlib import Path

from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from esp_ingest.config import tls_files
from esp_ingest.config.settings import MqttSettings
from esp_ingest.interfaces import Clock
from esp_ingest.mqtt.client import BulkClient, OnDeliveries

logger = logging.getLogger(__name__)

_LEVELS = 3


def session_file(client_id: str) -> str:
    """Name of the record: one a client id, since the workers of one daemon share a state folder."""
    return f"mqtt-session-{re.sub(r'[^A-Za-z0-9._-]', '_', client_id)}.json"


def session_name(settings: MqttSettings) -> str:
    """What tells this session from every other one: the same client id on another broker is another session."""
    return f"{settings.client_id}@{settings.host}:{settings.port}"


class Topics:
    """The filters of a configuration."""

    def __init__(self, settings: MqttSettings) -> None:
        plain = f"{settings.topic_root}/+/telemetry"
        self.wanted = f"$share/{settings.share_group}/{plain}" if settings.share_group else plain
        # A daemon that has joined a share group may have been alone before.
        self.superseded = {plain} - {self.wanted}
        self._prefix = f"{settings.topic_root}/".encode()

    def is_ours(self, topic: bytes) -> bool:
        """The topic is one of a controller's telemetry under our root."""
        return topic.startswith(self._prefix) and topic.endswith(b"/telemetry")

    def stray_filter(self, topic: bytes) -> str | None:
        """The filter of an earlier configuration that must have brought ``topic``, where it can be told."""
        levels = topic.split(b"/")
        if self.is_ours(topic) or len(levels) != _LEVELS or levels[2] != b"telemetry":
            return None
        try:
            return f"{levels[0].decode()}/+/telemetry"
        except UnicodeDecodeError:
            return None


class SessionRecord:
    """What has to be known of the session after a restart, kept in ``folder`` (None: in memory only): the filters that
    it may hold, the number of its last connection, the connection since which its packet ids count (1: any), and the
    packet id that came last (0: none), which is written in place since it changes with all that arrives.
    Failing to write is logged and survived: without the record, ended filters are found later, and a reject may be
    stored twice (store/write/redelivery.py)."""

    def __init__(self, settings: MqttSettings, folder: Path | None) -> None:
        self._path = folder / session_file(settings.client_id) if folder is not None else None
        self._session = session_name(settings)
        self.filters: set[str] = set()
        self.connection = 0
        self.ids_since = 1
        self.packet_id = 0
        self._file: int | None = None  # open for the packet id
        self._packet_id_at = 0  # its place in the file
        self._load()

    def keep(self, filters: set[str]) -> None:
        """The filters that the session may hold from now on."""
        if filters != self.filters:
            self.filters = set(filters)
            self._write()

    def connected(self, connection: int, *, is_new_session: bool) -> None:
        """There is a connection of this number. Packet ids begin anew with a session."""
        self.connection = connection
        if is_new_session:
            self.filters, self.ids_since, self.packet_id = set(), connection, 0
        self._write()

    def ids_began_anew(self, since: int) -> None:
        """Packet ids of before the connection ``since`` belong to other messages by now."""
        if since != self.ids_since:
            self.ids_since = since
            self._write()

    def came(self, packet_id: int) -> None:
        """This packet id came last. A microsecond or two."""
        self.packet_id = packet_id
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk is told where the rest is written
                os.pwrite(self._file, b"%5d" % packet_id, self._packet_id_at)

    def close(self) -> None:
        """Close the file. What changes from now on is not written in place."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self) -> None:
        self.close()
        if self._path is None:
            return
        numbers = {"connection": self.connection, "ids_since": self.ids_since, "packet_id": f"{self.packet_id:5d}"}
        text = json.dumps({"session": self._session, "filters": sorted(self.filters)} | numbers) + "\n"
        self._packet_id_at = len(text.encode()) - len('00000"}\n')
        fresh = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(self._path)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            logger.warning("mqtt session file not written", extra={"path": str(self._path), "error": str(error)})

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
            if record["session"] == self._session:
                filters = {str(each) for each in record["filters"]}
                connection, ids_since = int(record.get("connection", 0)), int(record.get("ids_since", 1))
                self.packet_id = int(record.get("packet_id", 0))
                self.filters, self.connection, self.ids_since = filters, connection, max(ids_since, 1)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            logger.warning("mqtt session file not read", extra={"path": str(self._path), "error": str(error)})


def new_client(
    settings: MqttSettings,
    protocol: MQTTProtocolVersion,
    clock: Clock,
    on_deliveries: OnDeliveries,
    least_connection: int,
    *,
    keep_session: bool = True,
) -> BulkClient:
    """A client that is set up and not connected. Without ``keep_session`` it ends the session that is there, and leaves
    none. It reads the TLS files here and again at each connection. Raises ConfigError when they cannot be used."""
    client = BulkClient(
        settings.client_id,
        protocol,
        clock,
        on_deliveries,
        transport=settings.transport,
        least_connection=least_connection,
        keep_session=keep_session,
        max_packet_bytes=settings.max_packet_bytes,
    )
    client.connect_timeout = settings.connect_timeout_seconds
    client.ws_set_options(path=settings.websocket_path)
    if settings.username:
        client.username_pw_set(settings.username, settings.password.get_secret_value())
    if settings.tls:
        client.tls_set_context(new_tls_context(settings))
        client.tls_insecure_set(False)
        client.new_tls_context = lambda: new_tls_context(settings)
    address = (settings.host, settings.port, settings.keepalive_seconds)
    if protocol == MQTTProtocolVersion.MQTTv5:
        # paho's default, clean start on the first connection, would wipe the session at each start of the process.
        properties = _connect_properties(settings) if keep_session else None
        client.connect_async(*address, clean_start=not keep_session, properties=properties)
    else:
        client.connect_async(*address)
    return client


def end_session(settings: MqttSettings, protocol: MQTTProtocolVersion, clock: Clock, connection: int) -> bool:
    """Connect once more, under the number ``connection``, so that the broker ends the session with its subscriptions
    and its queue. Returns whether it agreed. Blocks for up to ``connect_timeout_seconds``. Raises ConfigError."""
    client = new_client(settings, protocol, clock, lambda *_: None, connection, keep_session=False)
    try:
        client.reconnect()
        for _ in range(int(settings.connect_timeout_seconds * 10)):
            if client.is_connected() or not client.turn(0.1):
                break
        is_gone = client.is_connected()
        client.depart()
    except OSError as error:
        logger.warning("mqtt session not ended", extra={"error": str(error)})
        return False
    return is_gone


def _connect_properties(settings: MqttSettings) -> Properties:
    """How long the broker keeps the session, and our window. The topic alias maximum stays unset: no aliases, since
    the packet walk does not resolve them."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it unannotated
    properties.SessionExpiryInterval = settings.session_expiry_seconds
    properties.ReceiveMaximum = settings.receive_maximum
    properties.MaximumPacketSize = settings.max_packet_bytes
    return properties


def new_tls_context(settings: MqttSettings) -> ssl.SSLContext:
    """TLS as the settings say, from the files as they are now. Never asks for a password on the terminal. Raises
    ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and host name
    files = {name: getattr(settings, name) for name in ("cert_file", "key_file", "ca_file")}
    tls_files.load_own(context, "mqtt", files, settings.key_password.get_secret_value())
    if not settings.ca_file:
        context.load_default_certs()
    return context
