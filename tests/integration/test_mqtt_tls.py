"""TLS against Mosquitto: what is wrong with a certificate is said, and what was renewed on disk counts."""

import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from esp_ingest.config.settings import ConfigError, MqttSettings, Settings
from esp_ingest.daemon import certificate_files
from esp_ingest.demo.simulator import Publisher as Simulated
from esp_ingest.mqtt.publishing_connection import PublishingConnection
from esp_ingest.mqtt.source import MqttSource
from esp_ingest.service.certificates import LOOK_SECONDS, CertificateWatch, expires
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.metrics import Metrics
from tests.support.brokers import ROOT, Mosquitto
from tests.support.certificates import PASSWORD, Authority
from tests.support.databases import free_port
from tests.support.waiting import until

TOPIC = "esp/W1/telemetry"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path / "certificates")
    made.issue("server")
    return made


class TlsBroker(Mosquitto):
    """``port`` speaks TLS, with the authority's server certificate; ``plain_port`` does not."""

    def __init__(self, folder: Path, authority: Authority, *lines: str) -> None:
        port = free_port()
        files = [("cafile", "ca.crt"), ("certfile", "server.crt"), ("keyfile", "server.key")]
        listener = [f"listener {port} 127.0.0.1", *(f"{key} {authority.path(name)}" for key, name in files), *lines]
        super().__init__(folder, extra="\n".join([*listener, ""]))
        self.tls_port = port
        self._ca_file = authority.path("ca.crt")

    def tls_settings(self, **overrides: Any) -> MqttSettings:
        given = {"port": self.tls_port, "tls": True, "ca_file": self._ca_file}
        return self.settings(**(given | overrides))


@pytest.fixture
def broker(tmp_path: Path, authority: Authority) -> Iterator[TlsBroker]:
    with TlsBroker(tmp_path / "broker", authority) as made:
        yield made


@pytest.fixture
def strict(tmp_path: Path, authority: Authority) -> Iterator[TlsBroker]:
    """It wants a certificate of its clients."""
    with TlsBroker(tmp_path / "broker", authority, "require_certificate true") as made:
        yield made


Start = Callable[[MqttSettings], MqttSource]


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[MqttSource] = []

    def new(settings: MqttSettings) -> MqttSource:
        source = MqttSource(settings, SystemClock(), Metrics())
        made.append(source)
        source.start()
        return source

    yield new
    for source in made:
        source.close()


def error_of(source: MqttSource) -> str:
    until(lambda: source.last_error)
    return source.last_error


def test_messages_of_all_sizes(broker: TlsBroker, start: Start) -> None:
    source = start(broker.tls_settings())
    until(lambda: source.subscribed)
    sent = [b"%d:" % n + b"x" * (n % 5_000) for n in range(3_000)] + [bytes(3_000_000)]
    with broker.publisher() as well:
        well.publish_many(TOPIC, sent)
    came: list[bytes] = []
    deadline = time.monotonic() + 30
    while len(came) < len(sent) and time.monotonic() < deadline:
        taken = source.take(1_000, 1 << 30, 0.2)
        came += [each.payload for each in taken]
        source.settle(taken)
    assert came == sent


def test_what_is_wrong_without_a_fault_of_the_certificate(broker: TlsBroker, start: Start) -> None:
    unknown = error_of(start(broker.tls_settings(ca_file="")))
    assert "certificate verify failed" in unknown
    assert "set mqtt.ca_file" in unknown
    assert "mqtt.tls to false" in error_of(start(broker.settings(tls=True)))
    assert "set mqtt.tls" in error_of(start(broker.settings(port=broker.tls_port)))


@pytest.mark.parametrize(
    ("certificate", "advice"),
    [
        ({"days": -1}, "renew the broker's certificate, or set the clock of this machine"),
        ({"names": "DNS:elsewhere"}, "set mqtt.host to a name in the certificate"),
    ],
)
def test_each_fault_of_the_brokers_certificate_has_its_advice(
    tmp_path: Path, authority: Authority, start: Start, certificate: dict[str, Any], advice: str
) -> None:
    authority.issue("server", **certificate)
    with TlsBroker(tmp_path / "faulty", authority) as broker:
        said = error_of(start(broker.tls_settings()))
        assert f": {advice}." in said
        assert "ca_file" not in said


def test_a_broker_that_wants_a_certificate_says_so(strict: TlsBroker, start: Start) -> None:
    source = start(strict.tls_settings())
    until(lambda: "it wants a certificate of ours" in source.last_error)
    assert "set mqtt.cert_file and mqtt.key_file" in source.last_error


def test_a_certificate_of_ours_that_expired_is_said_and_its_renewal_on_disk_counts(
    strict: TlsBroker, authority: Authority, start: Start
) -> None:
    authority.issue("client", days=-1)
    settings = strict.tls_settings(cert_file=authority.path("client.crt"), key_file=authority.path("client.key"))
    source = start(settings)
    publishing = PublishingConnection(settings, SystemClock(), Metrics(), lambda: "5")
    until(lambda: "it refused our certificate" in source.last_error)
    assert "certificate expired" in source.last_error
    assert "renew mqtt.cert_file" in source.last_error
    assert not publishing.connect()
    authority.issue("client")
    until(lambda: source.subscribed)
    until(publishing.connect)
    publishing.close()


def test_a_renewed_ca_counts_at_the_next_connection(
    broker: TlsBroker, authority: Authority, start: Start, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    trusted = tmp_path / "trusted.crt"
    shutil.copy(other.path("ca.crt"), trusted)
    source = start(broker.tls_settings(ca_file=str(trusted)))
    until(lambda: "certificate verify failed" in source.last_error)
    trusted.write_text("half of a certificate")
    until(lambda: source.last_error == f"Setting mqtt.ca_file: {trusted} holds no certificate in PEM.")
    shutil.copy(authority.path("ca.crt"), trusted)
    until(lambda: source.subscribed)


def test_a_file_that_holds_something_else_is_named(broker: TlsBroker, authority: Authority, start: Start) -> None:
    authority.issue("client")
    authority.issue("other")
    text = Path(authority.path("text"))
    text.write_text("no PEM")
    certificate, key = authority.path("client.crt"), authority.path("client.key")
    for files, said in (
        (
            {"cert_file": certificate, "key_file": authority.path("other.key")},
            "is not the key of the certificate in mqtt",
        ),
        (
            {"cert_file": certificate, "key_file": str(text)},
            r"^Setting mqtt\.key_file: .*text holds no private key in PEM",
        ),
        ({"cert_file": str(text), "key_file": key}, r"^Setting mqtt\.cert_file: .*text holds no certificate in PEM\.$"),
        ({"cert_file": key, "key_file": certificate}, r"^Setting mqtt\.cert_file: .*client\.key holds no certificate"),
        ({"ca_file": str(text)}, r"^Setting mqtt\.ca_file: .*text holds no certificate in PEM\.$"),
        (
            {"cert_file": certificate, "key_file": str(text.parent)},
            r"^Setting mqtt\.key_file: .* cannot be read \(Is a",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            start(broker.tls_settings(**files))


def test_an_encrypted_key_is_opened_by_its_password(strict: TlsBroker, authority: Authority, start: Start) -> None:
    authority.issue("client")
    authority.encrypt("client")
    files = {"cert_file": authority.path("client.crt"), "key_file": authority.path("encrypted.key")}
    source = start(strict.tls_settings(**files, key_password=SecretStr(PASSWORD)))
    until(lambda: source.subscribed)
    with pytest.raises(ConfigError, match=r"^Setting mqtt\.key_password: it does not open .*encrypted\.key\.$"):
        start(strict.tls_settings(**files, key_password=SecretStr("wrong")))


def test_an_encrypted_key_without_a_password_never_asks_on_the_terminal(
    broker: TlsBroker, authority: Authority
) -> None:
    authority.issue("client")
    authority.encrypt("client")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ESP_INGEST_")}
    chosen = {
        "PORT": str(broker.tls_port),
        "TLS": "true",
        "CA_FILE": authority.path("ca.crt"),
        "CERT_FILE": authority.path("client.crt"),
        "KEY_FILE": authority.path("encrypted.key"),
    }
    environment = kept | {f"ESP_INGEST_MQTT__{key}": value for key, value in chosen.items()}
    controller, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "esp_ingest", "check"],
            cwd=ROOT,
            env=environment | {"ESP_INGEST_DATABASE__DSN": "host=127.0.0.1 port=1"},
            stdin=terminal,
            capture_output=True,
            text=True,
            timeout=30,
            start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(terminal, __import__("termios").TIOCSCTTY, 0),
        )
    finally:
        os.close(terminal)
        os.close(controller)
    assert done.returncode == 1
    assert "encrypted.key is encrypted: set mqtt.key_password" in done.stdout
    assert "PEM pass phrase" not in done.stdout + done.stderr


def test_the_simulator_does_not_ask_either_and_opens_the_key(strict: TlsBroker, authority: Authority) -> None:
    authority.issue("client")
    authority.encrypt("client")
    files = {"cert_file": authority.path("client.crt"), "key_file": authority.path("encrypted.key")}
    with pytest.raises(ConfigError, match=r"encrypted\.key is encrypted: set mqtt\.key_password"):
        Simulated(strict.tls_settings(**files), SystemClock()).__enter__()
    with Simulated(strict.tls_settings(**files, key_password=SecretStr(PASSWORD)), SystemClock()):
        pass


def test_when_certificates_end_is_a_metric(strict: TlsBroker, authority: Authority) -> None:
    authority.issue("client", days=30)
    files = {"cert_file": authority.path("client.crt"), "key_file": authority.path("client.key")}
    settings = strict.tls_settings(**files)
    metrics = Metrics()
    watch = CertificateWatch(certificate_files(Settings(mqtt=settings)), metrics)

    def days_left(name: str) -> float:
        labels = {"certificate": name}
        ends = metrics.registry.get_sample_value("esp_ingest_certificate_expires_timestamp_seconds", labels)
        return round((ends or 0) / 86_400 - time.time() / 86_400, 2)

    watch.look(0.0)
    assert (days_left("mqtt.ca_file"), days_left("mqtt.cert_file")) == (2, 30)
    source = MqttSource(settings, SystemClock(), metrics)
    source.start()
    until(lambda: source.subscribed)
    source.close()
    assert days_left("mqtt broker") == 2
    authority.issue("client", days=60)
    watch.look(LOOK_SECONDS - 1)
    assert days_left("mqtt.cert_file") == 30, "once a minute"
    watch.look(LOOK_SECONDS)
    assert days_left("mqtt.cert_file") == 60
    Path(settings.cert_file).write_text("half of")
    watch.look(2 * LOOK_SECONDS)
    assert days_left("mqtt.cert_file") < 0, "no series"


def test_an_end_beyond_2050_is_read(tmp_path: Path) -> None:
    """RFC 5280 has another form of time for it."""
    authority = Authority(tmp_path / "far", days=20_000)
    ends = expires(Path(authority.path("ca.crt")), is_trusted=True)
    assert round(ends / 86_400 - time.time() / 86_400) == 20_000
