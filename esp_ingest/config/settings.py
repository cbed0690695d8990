"""Every setting: its default, its unit, its bounds, and the checks across settings. load.py reads them."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from esp_ingest.config.hosts import checked_host, is_private_url
from esp_ingest.config.pumps import PumpsSettings
from esp_ingest.config.section import WELL_ID_PATTERN, PathText, Section
from esp_ingest.config.sentences import nearest
from esp_ingest.errors import UsageError
from esp_ingest.model import SIGNAL_NAMES
from esp_ingest.resources import config_file

ENV_PREFIX = "ESP_INGEST_"
PACKET_OVERHEAD_BYTES = 4_096  # around a payload: header, topic, properties


class ConfigError(UsageError):
    """The configuration cannot be used. The message is one sentence that names the key and says what to do."""


def _in_state(name: str, key: str) -> Path:
    """The folder ``name`` in the state folder, the default of the setting ``key``. Raises ConfigError."""
    state = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    try:
        return Path(state) / name if state else Path.home() / ".local" / "state" / "esp-ingest" / name
    except RuntimeError:
        variable = f"{ENV_PREFIX}{key.upper().replace('.', '__')}"
        raise ConfigError(
            f"Setting {key} is empty, and user {os.getuid()} has no home folder: set {key} ({variable}) to a folder of "
            "its own, or set HOME."
        ) from None


def _is_topic_level(text: str) -> str:
    if not text or any(c in text for c in "+#/\0"):
        raise ValueError("must be one topic level without +, # or /")
    return text


TopicLevel = Annotated[str, AfterValidator(_is_topic_level)]


Host = Annotated[str, AfterValidator(checked_host)]


class MqttSettings(Section):
    """The broker and the session on it."""

    host: Host = Field("127.0.0.1", min_length=1, description="host name or address of the broker")
    port: int = Field(1883, ge=1, le=65535, description="TCP port of the broker")
    transport: Literal["tcp", "websockets"] = Field("tcp", description="tcp or websockets")
    websocket_path: str = Field("/mqtt", description="path of websockets, as the URL has it after the port")
    protocol: Literal["auto", "5", "3.1.1"] = Field(
        "auto", description="MQTT version; auto is 5, and 3.1.1 with a warning where the broker refuses 5"
    )
    client_id: str = Field(
        "esp-ingest",
        min_length=1,
        max_length=128,
        description="fixed: the session on the broker hangs on it; diagnoses go out as {client_id}-publish",
    )
    username: str = Field("", description="user name at the broker, empty for none")
    password: SecretStr = Field(SecretStr(""), description="password at the broker")
    password_file: PathText = Field("", description="a file that holds the password, in place of password")
    tls: bool = Field(False, description="encrypt with TLS")
    ca_file: PathText = Field("", description="CA certificates to trust, empty for the system's")
    cert_file: PathText = Field("", description="client certificate, empty for none")
    key_file: PathText = Field("", description="key of the client certificate")
    key_password: SecretStr = Field(SecretStr(""), description="password of an encrypted key_file, empty for none")
    key_password_file: PathText = Field("", description="a file that holds the password, in place of key_password")
    topic_root: TopicLevel = Field("esp", description="first level of the topics: {topic_root}/{well_id}/telemetry")
    share_group: str = Field(
        "", pattern=r"^[^+#/\x00]*$", description="several daemons share the work under $share/{share_group}/… (MQTT 5)"
    )
    keepalive_seconds: int = Field(30, ge=5, le=3600, description="MQTT keep alive")
    session_expiry_seconds: int = Field(
        604_800, ge=60, le=0xFFFFFFFF, description="how long the broker keeps the session of an absent daemon"
    )
    receive_maximum: int = Field(
        20_000, ge=1, le=65_535, description="window: messages that the broker may send ahead of acknowledgements"
    )
    max_packet_bytes: int = Field(
        5_242_880,
        ge=16_384,
        le=268_435_460,
        description="largest packet taken in whole, stated to the broker (MQTT 5); of a larger one the head is kept",
    )
    buffer_max_bytes: int = Field(
        33_554_432, ge=1_048_576, description="bytes of messages held in memory before reading from the broker pauses"
    )
    connect_timeout_seconds: float = Field(5.0, gt=0, le=60, description="time to wait for the broker to answer")
    reconnect_min_seconds: float = Field(0.5, gt=0, le=60, description="shortest pause before connecting again")
    reconnect_max_seconds: float = Field(30.0, gt=0, le=3600, description="longest pause before connecting again")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.reconnect_min_seconds > self.reconnect_max_seconds:
            raise ValueError("reconnect_min_seconds must not exceed reconnect_max_seconds")
        if self.share_group and self.protocol == "3.1.1":
            raise ValueError("share_group needs MQTT 5: set protocol to auto or 5, or clear share_group")
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("cert_file and key_file belong together: set both or neither")
        if self.password.get_secret_value() and not self.username:
            raise ValueError("password is set without username, and would not be sent: set username too")
        if not re.fullmatch(r"/[!-~]*", self.websocket_path):
            raise ValueError('websocket_path must be a path that begins with "/", without white space')
        return self


class DatabaseSettings(Section):
    """PostgreSQL or TimescaleDB."""

    dsn: SecretStr = Field(
        SecretStr(""), description="libpq connection string or URL; empty means libpq's own PG* variables"
    )
    dsn_file: PathText = Field("", description="a file that holds the connection string, in place of dsn")
    password: SecretStr = Field(SecretStr(""), description="password, added to the connection string")
    password_file: PathText = Field("", description="a file that holds the password, in place of password")
    schema_name: str = Field(
        "public",
        min_length=1,
        max_length=63,
        description="schema of the tables, whatever the role's search_path says; migrate fills it, it has to exist",
    )
    chunk_days: int = Field(
        0,
        ge=0,
        le=365,
        description="days of readings in a chunk that migrate sets for new chunks, 0 to leave it: 1 as made",
    )
    skip_init: bool = Field(False, description="start without checking the schema")
    connect_timeout_seconds: int = Field(5, ge=2, le=120, description="time to wait for a connection")
    statement_timeout_seconds: float = Field(
        60.0, ge=0.1, le=86_400, description="longest time for one statement of a batch"
    )
    lock_timeout_seconds: float = Field(30.0, ge=0.1, le=86_400, description="longest wait for a lock on the tables")
    retry_min_seconds: float = Field(0.1, gt=0, le=60, description="first pause before a batch is written again")
    retry_max_seconds: float = Field(15.0, gt=0, le=3600, description="longest pause before a batch is written again")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.retry_min_seconds > self.retry_max_seconds:
            raise ValueError("retry_min_seconds must not exceed retry_max_seconds")
        _refuse_bare_password(self.dsn.get_secret_value())
        return self


def _refuse_bare_password(dsn: str) -> None:
    """In a URL whose password holds "@" or "/" as they are, libpq takes the rest of the password for a host, a port or
    a database, and repeats it in its errors. The message says nothing of what was given."""
    scheme, _, rest = dsn.strip().partition("://")
    if scheme not in ("postgresql", "postgres"):
        return
    authority, _, path = rest.partition("/")
    _, has_credentials, hosts = authority.partition("@")
    if "@" in hosts.partition("?")[0] or (not has_credentials and "@" in path.partition("?")[0]):
        raise ValueError(
            'dsn has a user or password with a bare "@" or "/": percent-encode them, @ as %40 and / as %2F'
        )


class BatchSettings(Section):
    """When a batch is cut: whichever bound is reached first."""

    max_rows: int = Field(10_000, ge=1, le=1_000_000, description="readings in a batch")
    max_messages: int = Field(5_000, ge=1, le=1_000_000, description="messages in a batch")
    max_bytes: int = Field(4_194_304, ge=1_024, description="payload bytes in a batch, or one larger message")
    max_age_seconds: float = Field(0.25, gt=0, le=60, description="age of the oldest message in a batch")
    min_interval_seconds: float = Field(
        0.08,
        ge=0,
        le=60,
        description="shortest time from one batch to the next that is not full, while nothing is written",
    )


class Limits(Section):
    """Hard limits of a signal; a bound left out keeps the default."""

    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError("low must be below high")
        return self


class ExtraSignal(Section):
    """A further numeric signal: kept in ``extra``, checked against its limits like the built-in ones."""

    unit: str = ""
    low: float
    high: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self


class TelemetrySettings(Section):
    """What counts as a reading."""

    max_ahead_seconds: float = Field(
        300.0, ge=0, le=315_360_000, description="how far a timestamp may lie in the future"
    )
    max_age_days: float = Field(30.0, ge=0, le=36_500, description="how old a timestamp may be, 0 for any age")
    max_payload_bytes: int = Field(4_194_304, ge=1_024, le=268_435_455, description="largest payload taken apart")
    max_reading_bytes: int = Field(
        1_048_576, ge=65_536, le=16_777_216, description="longest single reading, all of its keys included"
    )
    max_depth: int = Field(32, ge=2, le=256, description="deepest nesting of a payload")
    limits: dict[str, Limits] = Field(default_factory=dict, description="hard limits by signal")
    wells: dict[str, dict[str, Limits]] = Field(default_factory=dict, description="hard limits by well and signal")
    extra_signals: dict[str, ExtraSignal] = Field(default_factory=dict, description="further signals by name")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for where, limits in [("limits", self.limits), *((f"wells.{well}", by) for well, by in self.wells.items())]:
            for signal in limits:
                if signal not in SIGNAL_NAMES:
                    raise ValueError(f"{where}.{signal} is no signal{nearest(signal, SIGNAL_NAMES)}")
        for well in self.wells:
            if not re.fullmatch(WELL_ID_PATTERN, well):
                raise ValueError(f"wells.{well!r} is no well id (letters, digits, . _ -, at most 64)")
        for name in self.extra_signals:
            if name in (*SIGNAL_NAMES, "timestamp", "well_id"):
                raise ValueError(f"extra_signals.{name} is built in already: use limits.{name}")
        return self


class SpoolSettings(Section):
    """The on-disk spool that takes over while the database is away."""

    enabled: bool = Field(True, description="spool to disk in an outage; without it the broker's queue has to hold it")
    path: PathText = Field(
        "", description="folder; empty means $STATE_DIRECTORY/spool, else ~/.local/state/esp-ingest/spool"
    )
    after_seconds: float = Field(10.0, ge=0, description="how long the database may be away before spooling")
    max_bytes: int = Field(1_073_741_824, ge=1_048_576, description="size at which the spool is full")
    segment_bytes: int = Field(33_554_432, ge=65_536, description="size of one file, which is removed when drained")

    def folder(self) -> Path:
        """Where the spool lives, with the default resolved. Raises ConfigError where there is no home folder."""
        if self.path:
            return Path(self.path)
        try:
            return _in_state("spool", "spool.path")
        except ConfigError:
            if not self.enabled:
                return Path("/var/empty/esp-ingest/spool")  # where nothing is, and nothing is written
            raise


class HttpSettings(Section):
    """Health and metrics."""

    host: Host = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on, 0 for any free one")


class LogSettings(Section):
    """Logs on stdout."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is written")
    format: Literal["json", "console"] = Field(
        "json",
        description="json lines, or console for people, which is chosen by itself on a terminal if this is unset",
    )


class DiagnosticsSettings(Section):
    """The rules that run on each batch."""

    enabled: bool = Field(True, description="run the diagnostic rules")
    rules_file: PathText = Field("", description="rules to use in place of those that ship, read again on SIGHUP")
    max_wells: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="wells whose state is held, about 10 kB each; others are stored unjudged",
    )
    publish: bool = Field(True, description="publish occurrences to {topic_root}/{well_id}/diagnostics")

    def rules_path(self) -> Path:
        """The rules file: the one that is set, or else the one that ships."""
        return Path(self.rules_file) if self.rules_file else config_file("rules.toml")


class ServiceSettings(Section):
    """The process itself."""

    drain_seconds: float = Field(20.0, gt=0, le=600, description="time to write what is held after SIGTERM")
    stuck_after_seconds: float = Field(
        120.0, ge=5, description="a loop that has not moved, or a message unacknowledged, for so long turns health red"
    )
    reject_alarm_ratio: float = Field(
        0.5, gt=0, le=1, description="share of rejects in the last minute that raises the alarm metric"
    )
    reject_alarm_consecutive: int = Field(1_000, ge=1, description="rejects in a row that raise the alarm metric")


class ApiSettings(Section):
    """The HTTP API and console (`esp-ingest api`)."""

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on, 0 for any free one")
    cert_file: PathText = Field("", description="TLS certificate (PEM, with its chain), empty for plain HTTP")
    tls_key_file: PathText = Field("", description="key of the TLS certificate")
    allow_plain_http: bool = Field(
        False, description="serve without TLS on an address other than loopback, because something in front has it"
    )
    trusted_proxies: str = Field(
        "", description="addresses whose X-Forwarded-For and -Proto count, comma-separated; empty for none"
    )
    path_prefix: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="path under which a proxy in front serves the API, such as /esp; the proxy takes it off",
    )
    key_file: list[str] | str = Field(
        default_factory=list,
        description="files with the keys of the access tokens: the first one signs, all of them are accepted, so that "
        "a key can be replaced while tokens of the old one live. PEM (RSA, EC P-256 or Ed25519), or at least 32 random "
        "bytes. Empty: one is made in the state folder",
    )
    access_minutes: float = Field(15.0, gt=0, le=60, description="life of an access token")
    refresh_days: float = Field(14.0, gt=0, le=365, description="life of a refresh token")
    oidc_issuer: str = Field("", description="issuer of an OpenID provider, which takes the place of local users")
    oidc_audience: str = Field("esp-ingest", description="audience that its tokens must be for")
    oidc_client_id: str = Field(
        "esp-ingest", min_length=1, max_length=200, description="id of the console as a client of the provider"
    )
    oidc_client_secret: SecretStr = Field(
        SecretStr(""), description="secret of that client, empty for a public client, which PKCE protects alone"
    )
    oidc_client_secret_file: PathText = Field(
        "", description="a file that holds the secret, in place of oidc_client_secret"
    )
    oidc_scope: str = Field(
        "openid profile email",
        pattern=r"^(.* )?openid( .*)?$",
        description="what the console asks the provider for; many give a refresh token only with offline_access too",
    )
    oidc_role_claim: str = Field("roles", description="claim that names the roles; a dot goes into an object")
    oidc_roles: dict[str, Literal["viewer", "operator", "admin"]] = Field(
        default_factory=dict, description="role by value of that claim; a user with none of them is refused"
    )
    oidc_wells_claim: str = Field("", description="claim with patterns of the wells to be seen, empty for all wells")
    sign_in_per_minute: int = Field(30, ge=1, le=10_000, description="attempts to sign in from one address in a minute")
    pool_size: int = Field(8, ge=1, le=200, description="connections to the database")
    request_timeout_seconds: float = Field(10.0, ge=0.1, le=600, description="longest time for one question")
    max_connections: int = Field(2_000, ge=16, le=100_000, description="HTTP connections at a time")
    max_streams: int = Field(1_000, ge=1, le=50_000, description="live streams at a time")
    max_body_bytes: int = Field(262_144, ge=1_024, le=67_108_864, description="largest request body")
    max_header_bytes: int = Field(16_384, ge=4_096, le=1_048_576, description="largest request head")
    max_points: int = Field(20_000, ge=100, le=1_000_000, description="most rows in an answer")
    max_range_days: int = Field(3_660, ge=1, le=36_600, description="longest range of time in a question")
    daemon_url: str = Field(
        "", description="where the daemon answers for its health, empty for http.host and http.port"
    )
    silent_after_seconds: float = Field(900.0, gt=0, description="a well that sent nothing for so long is silent")
    drain_seconds: float = Field(10.0, gt=0, le=600, description="time for requests under way after SIGTERM")

    def key_files(self) -> list[str]:
        """The paths of ``key_file``, which may be one path, or several with commas between them."""
        given = self.key_file.split(",") if isinstance(self.key_file, str) else self.key_file
        return [path.strip() for path in given if path.strip()]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.cert_file) != bool(self.tls_key_file):
            raise ValueError("cert_file and tls_key_file belong together: set both or neither")
        if self.oidc_issuer and not is_private_url(self.oidc_issuer):
            raise ValueError("oidc_issuer must be an https:// address")
        if self.oidc_issuer and not self.oidc_roles:
            raise ValueError("oidc_issuer needs oidc_roles, which says what values of the claim are what role")
        return self


class ArchiveSettings(Section):
    """Where finished days are kept for ever, as Parquet files."""

    url: str = Field(
        "",
        description="a folder, file://…, az://container/prefix, s3://bucket/prefix or gs://bucket/prefix; empty: none",
    )
    account: str = Field(
        "", description="storage account (az) or access key id (s3); empty means AZURE_STORAGE_… or AWS_… variables"
    )
    key: SecretStr = Field(SecretStr(""), description="key of the account; for gs a service account's JSON key")
    key_file: PathText = Field("", description="a file that holds the key, in place of key")
    endpoint: str = Field("", description="URL of the storage service where it is not the provider's own (az, s3)")
    region: str = Field("", description="region of the bucket (s3)")
    timeout_seconds: float = Field(60.0, ge=1, le=3600, description="longest time for one request to an object store")


class LifecycleSettings(Section):
    """How long rows stay in the database, and how `esp-ingest lifecycle run` works."""

    telemetry_days: int = Field(30, ge=0, le=36_500, description="days that readings stay, 0 for ever")
    diagnostics_days: int = Field(90, ge=0, le=36_500, description="days that cleared occurrences stay, 0 for ever")
    rejects_days: int = Field(30, ge=0, le=36_500, description="days that rejects stay, 0 for ever")
    aggregates_days: int = Field(
        730, ge=0, le=36_500, description="days that hours and days of aggregates stay, 0 for ever"
    )
    drop_without_archive: bool = Field(
        False, description="drop days although archive.url is empty: they are gone for good then"
    )
    settle_minutes: float = Field(
        10.0, ge=0, le=10_080, description="how long after midnight UTC a day counts as finished"
    )
    http_host: str = Field("127.0.0.1", description="address for health and metrics of `lifecycle run --every`")
    http_port: int = Field(8090, ge=0, le=65535, description="port of them, 0 for any free one")
    metrics_file: PathText = Field(
        "", description="file for the metrics after each run, for node_exporter's textfile collector; empty for none"
    )
    disk_path: PathText = Field(
        "", description="a path on the database's disk, if this machine has it: tells when that disk will be full"
    )


class BackupSettings(Section):
    """The backup of the whole database by pgBackRest, and `esp-ingest lifecycle drill`, which restores it for a try."""

    stanza: str = Field("esp", pattern=r"^[\w.-]{1,64}$", description="pgBackRest's name of the database")
    config: PathText = Field("", description="configuration file of pgBackRest, empty for its own default")
    repository: int = Field(0, ge=0, le=256, description="repository to restore, 0 for the one of the newest backup")
    drill_folder: PathText = Field(
        "",
        description="folder to restore to, empty or not there yet, with room for the whole database; empty means "
        "$STATE_DIRECTORY/drill, else ~/.local/state/esp-ingest/drill",
    )
    postgres_bin: PathText = Field(
        "", description="folder of PostgreSQL's programs, empty for the usual place of the backup's version"
    )
    start_timeout_seconds: float = Field(
        7_200.0, ge=1, le=604_800, description="longest time for the restored copy to replay its WAL and answer"
    )

    def folder(self) -> Path:
        """Where the drill restores to, with the default resolved. Raises ConfigError where there is no home folder."""
        return Path(self.drill_folder) if self.drill_folder else _in_state("drill", "backup.drill_folder")


class Settings(BaseSettings):
    """All settings, immutable. Build them with load() of load.py."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__", env_ignore_empty=False
    )

    mqtt: MqttSettings = MqttSettings()
    database: DatabaseSettings = DatabaseSettings()
    batch: BatchSettings = BatchSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    spool: SpoolSettings = SpoolSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    diagnostics: DiagnosticsSettings = DiagnosticsSettings()
    service: ServiceSettings = ServiceSettings()
    api: ApiSettings = ApiSettings()
    pumps: PumpsSettings = PumpsSettings()
    archive: ArchiveSettings = ArchiveSettings()
    lifecycle: LifecycleSettings = LifecycleSettings()
    backup: BackupSettings = BackupSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mqtt.receive_maximum < 2 * min(self.batch.max_rows, self.batch.max_messages):
            raise ValueError(
                f"mqtt.receive_maximum ({self.mqtt.receive_maximum}) must be at least twice batch.max_rows "
                f"({self.batch.max_rows}) or batch.max_messages ({self.batch.max_messages}), whichever is less, or a "
                "batch never fills while another is written"
            )
        least = min(self.telemetry.max_payload_bytes + PACKET_OVERHEAD_BYTES, 268_435_460)
        if self.mqtt.max_packet_bytes < least:
            raise ValueError(
                f"mqtt.max_packet_bytes ({self.mqtt.max_packet_bytes}) must be at least {least}, which is "
                f"telemetry.max_payload_bytes plus {PACKET_OVERHEAD_BYTES}, or the broker withholds messages that "
                "could be taken apart"
            )
        slowest = self.database.connect_timeout_seconds + self.database.statement_timeout_seconds
        if self.service.stuck_after_seconds <= slowest:
            raise ValueError(
                f"service.stuck_after_seconds ({self.service.stuck_after_seconds:g}) must exceed "
                f"database.connect_timeout_seconds plus database.statement_timeout_seconds ({slowest:g}), or a slow "
                "statement looks like a stuck daemon"
            )
        return self
