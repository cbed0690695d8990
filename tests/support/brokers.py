"""A real Mosquitto for tests: the mosquitto.conf that ships, on a free port of loopback, with its own folders.

``with Mosquitto(folder) as broker:`` works outside pytest too. Where there is no mosquitto but a Docker engine, the
eclipse-mosquitto image runs the same files on the host's network.
"""

import base64
import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, Self

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from pydantic import SecretStr

from esp_ingest.config.settings import MqttSettings
from tests.support.databases import free_port, unavailable

ROOT = Path(__file__).parents[2]
IMAGE = "eclipse-mosquitto:2"
START_SECONDS = 10.0
STOP_SECONDS = 10.0
DAEMON = "esp-ingest"
WELLS = ("W1", "W2", "W3", "ESP01", "ESP02")
_PASSWORD_ROUNDS = 101


class _Process(Protocol):
    def signal(self, number: int) -> None: ...
    def wait(self, timeout_seconds: float) -> None: ...
    def is_running(self) -> bool: ...


class Mosquitto:
    """One broker. It keeps its port and its folder over ``stop``, ``kill`` and ``start``.

    ``extra`` is appended to the shipped file. Every user has the password ``password_of(user)``; the daemon is
    ``esp-ingest``, a controller has its well id as name.
    """

    def __init__(self, folder: Path, *, extra: str = "", users: tuple[str, ...] = WELLS) -> None:
        self.folder = folder
        self.port = free_port()
        self.host = "127.0.0.1"
        self._process: _Process | None = None
        (folder / "data").mkdir(parents=True, exist_ok=True)
        passwords = "".join(_password_line(user) for user in (DAEMON, "viewer", *users))
        (folder / "passwords").write_text(passwords, encoding="utf-8")
        (folder / "passwords").chmod(0o600)
        shutil.copy(ROOT / "config" / "mosquitto" / "acl", folder / "acl")
        self.config = folder / "mosquitto.conf"
        self.config.write_text(self._shipped() + extra, encoding="utf-8")

    def _shipped(self) -> str:
        """The shipped file, with one listener in place of two: most tests have controllers and daemons on one port."""
        head, _, rest = (ROOT / "mosquitto.conf").read_text(encoding="utf-8").partition("# --- Who may connect")
        _, found, rest = rest.partition("# --- Nothing lost when the broker stops")
        assert found, "the sections of mosquitto.conf have other names"
        text = head + (ROOT / "config/mosquitto/one-listener.conf").read_text(encoding="utf-8") + found + rest
        for old, new in [
            (r"^listener 1883 127\.0\.0\.1$", f"listener {self.port} 127.0.0.1"),
            (r"^password_file /mosquitto/config/", f"password_file {self.folder}/"),
            (r"^acl_file /mosquitto/config/", f"acl_file {self.folder}/"),
            (r"^persistence_location /mosquitto/data/", f"persistence_location {self.folder}/data/"),
        ]:
            text, count = re.subn(old, new, text, flags=re.MULTILINE)
            assert count == 1, f"the shipped mosquitto.conf no longer has {old}"
        # Started as root, the broker would become a user who cannot read a test's folder.
        return text + ("\nuser root\n" if os.geteuid() == 0 else "\n")

    @staticmethod
    def password_of(user: str) -> str:
        return f"secret of {user}"

    def settings(self, **overrides: Any) -> MqttSettings:
        """Settings of a daemon on this broker, with short pauses."""
        given = {
            "host": self.host,
            "port": self.port,
            "username": DAEMON,
            "password": SecretStr(self.password_of(DAEMON)),
            "reconnect_min_seconds": 0.05,
            "reconnect_max_seconds": 0.5,
        }
        return MqttSettings(**(given | overrides))

    def start(self) -> Self:
        """Start, and wait until it answers."""
        assert self._process is None, "it runs already"
        self._process = self._launch()
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if not self._process.is_running() or time.monotonic() > deadline:
                raise RuntimeError(f"mosquitto did not start: {self.log()}")
            time.sleep(0.01)
        return self

    def _launch(self) -> _Process:
        if program := shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"):
            return _LocalProcess(program, self.config, self.folder / "log")
        if container := _Container.launch(self.config):
            return container
        unavailable("no mosquitto: apt-get install mosquitto, or start a Docker engine")
        raise AssertionError("unreachable")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1):
            return True
        return False

    def stop(self) -> None:
        """SIGTERM: it writes its snapshot."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: what is newer than the last snapshot is lost."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay, nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def reload(self) -> None:
        """SIGHUP: it reads its access list and its passwords again."""
        self._signal(signal.SIGHUP)

    def save(self) -> None:
        """Have it write its snapshot now, as autosave does, and wait for it."""
        snapshot = self.folder / "data" / "mosquitto.db"
        before = snapshot.stat().st_mtime_ns if snapshot.exists() else 0
        self._signal(signal.SIGUSR1)
        deadline = time.monotonic() + STOP_SECONDS
        while not (snapshot.exists() and snapshot.stat().st_mtime_ns != before):
            assert time.monotonic() < deadline, "mosquitto wrote no snapshot"
            time.sleep(0.01)

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.is_running()

    def _signal(self, number: int) -> None:
        assert self._process is not None, "it does not run"
        self._process.signal(number)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGCONT)
            self._process.signal(number)
            self._process.wait(STOP_SECONDS)
            self._process = None

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(self, *_: object) -> None:
        self._end(signal.SIGKILL)

    # -- Clients for tests.

    def publisher(self, user: str = "W1", protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5) -> "Publisher":
        return Publisher(self, user, protocol)


class Publisher:
    """A connected controller: ``publish`` waits for the acknowledgement."""

    def __init__(self, broker: Mosquitto, user: str, protocol: MQTTProtocolVersion) -> None:
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=protocol)
        self.client.username_pw_set(user, broker.password_of(user))
        self.client.max_inflight_messages_set(0)
        self.client.connect(broker.host, broker.port)
        self.client.loop_start()

    def publish(self, topic: str, payload: bytes | str, qos: int = 1, retain: bool = False) -> None:
        self.publish_many(topic, [payload], qos, retain)

    def publish_many(self, topic: str, payloads: list[Any], qos: int = 1, retain: bool = False) -> None:
        for info in [self.client.publish(topic, payload, qos, retain) for payload in payloads]:
            info.wait_for_publish(10)
            assert info.is_published(), "the broker did not acknowledge"

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _LocalProcess:
    def __init__(self, program: str, config: Path, log: Path) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen([program, "-c", str(config)], stdout=output, stderr=output)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_seconds: float) -> None:
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def is_running(self) -> bool:
        return self._process.poll() is None


class _Container:
    """The image on the host's network, with the same files at the same paths."""

    def __init__(self, container: Any) -> None:
        self._container = container

    @classmethod
    def launch(cls, config: Path) -> "_Container | None":
        try:
            import docker
            from testcontainers.core.container import DockerContainer

            docker.from_env().ping()
        except Exception:
            return None
        folder = str(config.parent)
        wanted = DockerContainer(IMAGE).with_volume_mapping(folder, folder, "rw")
        wanted = wanted.with_kwargs(network_mode="host", user=f"{os.geteuid()}:{os.getegid()}")
        wanted = wanted.with_command(["mosquitto", "-c", str(config)])
        wanted.start()
        return cls(wanted.get_wrapped_container())

    def signal(self, number: int) -> None:
        self._container.kill(signal=number)

    def wait(self, timeout_seconds: float) -> None:
        self._container.wait(timeout=timeout_seconds)
        self._container.remove(force=True)

    def is_running(self) -> bool:
        self._container.reload()
        return bool(self._container.status == "running")


def _password_line(user: str) -> str:
    """A line as mosquitto_passwd writes it: PBKDF2 over SHA-512."""
    salt = hashlib.sha256(user.encode()).digest()[:12]
    digest = hashlib.pbkdf2_hmac("sha512", Mosquitto.password_of(user).encode(), salt, _PASSWORD_ROUNDS)
    return f"{user}:$7${_PASSWORD_ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}\n"


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker of its own for each test: up in some 20 ms."""
    with Mosquitto(tmp_path / "mosquitto") as broker:
        yield broker
