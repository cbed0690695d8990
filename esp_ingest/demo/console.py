"""The console of the demo: `esp-ingest api` on the demo's database, with a user that exists as long as the demo
runs."""

import secrets
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from esp_ingest.demo.servers import accepts, free_ports, wait_until
from esp_ingest.service.guard import GuardedProcess
from esp_ingest.store import users
from esp_ingest.store.connection import Connection

USER = "demo"
_PORT = 8_000
_READY_SECONDS = 30.0


class DemoConsole:
    """Started by the constructor and stopped with ``stack``. Call :meth:`await_ready` before anybody is told its
    address."""

    def __init__(self, stack: ExitStack, folder: Path, environment: Mapping[str, str], daemon_port: int) -> None:
        """``environment`` is that of the demo's commands; the log goes to ``api.log`` in ``folder``."""
        self.port = _port()
        self.password = secrets.token_urlsafe(9)
        self._log = folder / "api.log"
        settings = {
            "ESP_INGEST_API__PORT": str(self.port),
            "ESP_INGEST_API__DAEMON_URL": f"http://127.0.0.1:{daemon_port}",
        }
        with self._log.open("wb") as log:
            command = [sys.executable, "-P", "-m", "esp_ingest", "api"]
            guarded = GuardedProcess(command, output=log, environment={**environment, **settings})
            self._guarded = stack.enter_context(guarded)

    def add_user(self, connection: Connection) -> None:
        """Make the demo's user: an operator with a random password."""
        from esp_ingest.api.access import passwords  # needs the extra

        users.add(connection, USER, passwords.hashed(self.password), "operator", ["*"])

    def await_ready(self) -> None:
        """Block until it accepts connections. Raises EmbeddedError if it does not start."""
        wait_until(partial(accepts, self.port), self._guarded, "The console", self._log, _READY_SECONDS)

    def line(self) -> str:
        """The address and how to sign in, as a line for people."""
        return f"console: http://127.0.0.1:{self.port}/  user {USER}, password {self.password}  (until the demo ends)"


def _port() -> int:
    """Port 8000 if it is free, else any free port."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", _PORT))
        except OSError:
            return free_ports(1)[0]
    return _PORT
