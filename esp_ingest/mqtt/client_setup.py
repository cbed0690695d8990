"""What the session on the broker holds from earlier days, and what we ask for today.

A persistent session keeps its subscriptions, those of an earlier configuration too, and the broker goes on delivering
for them. MQTT has no way to list them, so they are found in two ways: a small file beside the spool records each filter
before it is subscribed to; and a delivery on a topic that nobody asked for today tells its filter. The second needs no
file, but cannot see an old share group over the same topics: for that keep the state folder on a volume, as for the
spool.
"""

import json
import logging
import os
import re
import ssl
from pathlib import Path

from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from esp_ingest.config.settings import ConfigError, MqttSettings
from esp_ingest.interfaces import Clock
from esp_ingest.mqtt import sentences
from esp_ingest.mqtt.client import BulkClient, OnDeliveries

logger = logging.getLogger(__name__)

_LEVELS = 3


def session_file(client_id: str) -> str:
    """Name of the record: one a client id, since the workers of one daemon share a state folder."""
    return f"mqtt-session-{re.sub(r'[^A-Za-z0-9._-]', '_', client_id)}.json"


class Topics:
    """The filters of a configuration."""

    def __init__(self, settings: MqttSettings) -> None:
        plain = f"{settings.topic_root}/+/telemetry"
        self.wanted = f"$share/{settings.share_group}/{plain}" if settings.share_group else plain
        # A daemon that has joined a share group may have been alone before.
        self.superseded = {plain} - {self.wanted}
        self._prefix = f"{settings.topic_root}/".encode()

    def is_ours(self, topic: bytes) -> bool:
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


class FilterRecord:
    """The filters that the session may hold, kept in ``folder`` (None: in memory only). Failing to write is logged and
    survived: the record is a help, not a promise."""

    def __init__(self, settings: MqttSettings, folder: Path | None) -> None:
        self._path = folder / session_file(settings.client_id) if folder is not None else None
        self._session = f"{settings.client_id}@{settings.host}:{settings.port}"
        self.filters = self._load()

    def keep(self, filters: set[str]) -> None:
        if filters == self.filters:
            return
        self.filters = set(filters)
        if self._path is None:
            return
        text = json.dumps({"session": self._session, "filters": sorted(filters)}) + "\n"
        fresh = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(self._path)
        except OSError as error:
            logger.warning("mqtt session file not written", extra={"path": str(self._path), "error": str(error)})

    def _load(self) -> set[str]:
        if self._path is None:
            return set()
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
            if record["session"] == self._session:
                return {str(each) for each in record["filters"]}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("mqtt session file not read", extra={"path": str(self._path), "error": str(error)})
        return set()


def new_client(
    settings: MqttSettings,
    protocol: MQTTProtocolVersion,
    clock: Clock,
    on_deliveries: OnDeliveries,
    first_connection: int,
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
        first_connection=first_connection,
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

    asked: list[str] = []

    def key_password() -> str:
        asked.append(settings.key_password.get_secret_value())
        if not asked[0]:
            raise ValueError("without a password OpenSSL would ask for one on the terminal")
        return asked[0]

    try:
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file, key_password)
        if settings.ca_file:
            context.load_verify_locations(settings.ca_file)
        else:
            context.load_default_certs()
    except (OSError, ValueError) as error:
        raise ConfigError(sentences.unusable_tls_files(settings, error, is_key_encrypted=bool(asked))) from None
    return context
