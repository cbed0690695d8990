"""`esp-ingest api` as a process of its own against a real database, and clients that are signed in.

``with ApiProcess(folder, database) as api:`` works outside pytest too."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg

from esp_ingest.api.access import admin
from esp_ingest.config.load import load
from tests.support.brokers import ROOT
from tests.support.databases import Database, free_port

START_SECONDS = 60.0
NO_TLS: dict[str, Any] = {"trust_env": False, "verify": False}  # reading the certificates takes 50 ms a client
PASSWORD = "correct horse battery"


class ApiProcess:
    """The real program. ``settings`` are environment overrides such as ``API__MAX_STREAMS``; ``niceness`` is added to
    our own."""

    def __init__(self, folder: Path, dsn: str, settings: Mapping[str, str] | None = None, niceness: int = 0) -> None:
        self._niceness = niceness
        self.folder = folder
        self.dsn = dsn
        self.settings = dict(settings or {})
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ESP_INGEST_")}
        chosen = {
            "DATABASE__DSN": self.dsn,
            "DATABASE__CONNECT_TIMEOUT_SECONDS": "2",
            "SPOOL__PATH": str(self.folder / "state" / "spool"),
            "HTTP__PORT": "1",  # no daemon
            **self.settings,
        }
        return kept | {f"ESP_INGEST_{key}": value for key, value in chosen.items()}

    def command(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """A command of esp-ingest that ends by itself."""
        command = [sys.executable, "-m", "esp_ingest", *arguments]
        return subprocess.run(
            command, env=self.environment(), cwd=ROOT, capture_output=True, text=True, timeout=60, input=text
        )

    def add_user(self, name: str, role: str, *wells: str) -> None:
        """What `esp-ingest users add` does, without the second that a process of its own takes to begin."""
        secret = self.folder / "password"
        secret.write_text(f"{PASSWORD}\n", encoding="utf-8")
        schema_name = self.settings.get("DATABASE__SCHEMA_NAME", "public")
        settings = load(database={"dsn": self.dsn, "schema_name": schema_name})
        arguments = Namespace(action="add", name=name, role=role, wells=list(wells), password_file=str(secret))
        assert list(admin.run(settings, arguments))

    def start(self, wait: bool = True) -> Self:
        with (self.folder / "api.log").open("ab") as log:
            command = ["nice", "-n", str(self._niceness), sys.executable, "-m", "esp_ingest", "api"]
            command += ["--port", str(self.port)]
            self._process = subprocess.Popen(command, env=self.environment(), cwd=ROOT, stdout=log, stderr=log)
        self.await_health("live" if not wait else "ready")
        return self

    def await_health(self, which: str, status: int = 200, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while self.health(which) != status:
            assert time.monotonic() < deadline, f"/health/{which} is not {status}: {self.log()[-3000:]}"
            assert self.running, self.log()[-3000:]
            time.sleep(0.1)

    def health(self, which: str) -> int:
        try:
            return httpx.get(f"{self.url}/health/{which}", timeout=15, **NO_TLS).status_code
        except httpx.HTTPError:
            return 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        path = self.folder / "api.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self, how: signal.Signals = signal.SIGTERM, seconds: float = 30.0) -> int:
        assert self._process is not None
        self._process.send_signal(how)
        return self._process.wait(seconds)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            if self.running:
                self._process.kill()
            self._process.wait()

    # -- Clients.

    def client(self, token: str | None = None, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, **(NO_TLS | options))

    def sign_in(self, name: str, password: str = PASSWORD) -> dict[str, Any]:
        with self.client() as client:
            answer = client.post("/api/v1/auth/token", data={"username": name, "password": password})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def signed_in(self, name: str) -> httpx.Client:
        return self.client(self.sign_in(name)["access_token"])

    @contextmanager
    def events(self, client: httpx.Client, **options: Any) -> Iterator[Iterator[tuple[str, str, Any]]]:
        """(event, id, data) of the live stream."""
        with client.stream("GET", "/api/v1/stream", **options) as answer:
            assert answer.status_code == 200, answer.read()
            yield parsed(answer.iter_lines())


def parsed(lines: Iterator[str]) -> Iterator[tuple[str, str, Any]]:
    """Server-sent events out of their lines."""
    kind = number = data = ""
    for line in lines:
        if not line and kind:
            yield kind, number, json.loads(data)
            kind = number = data = ""
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "id":
            number = value
        elif name == "data":
            data += value


READING = (
    'INSERT INTO esp_telemetry ("timestamp", well_id, flow_rate, pip, motor_current, vsd_frequency, received_at) '
    "VALUES (%s, %s, %s, %s, %s, %s, now())"
)


def insert_reading(
    database: Database, well: str, at: Any, flow_rate: float | None = 1800.0, pip: float | None = 600.0,
    current: float | None = 40.0, frequency: float | None = 52.0,
) -> None:  # fmt: skip
    with database.connect() as connection:
        connection.execute(READING, (at, well, flow_rate, pip, current, frequency))


def insert_alarm(
    connection: "psycopg.Connection[Any]", well: str, diagnosis: str, at: Any, severity: str = "high",
    state: str = "unacknowledged", cleared_at: Any = None,
) -> None:  # fmt: skip
    connection.execute(
        "INSERT INTO diagnostic_results VALUES (%s, %s, %s, %s, %s, %s, 1, 2, 3, 1, 0.9, 'said so', '[]', '{}')",
        (at, well, diagnosis, severity, state, cleared_at),
    )
