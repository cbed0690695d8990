"""The restored copy of a drill, while it starts or ends."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from pydantic import SecretStr

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.lifecycle.backup.instance import Instance
from esp_ingest.lifecycle.errors import BackupError
from esp_ingest.service.guard import GuardedProcess
from tests.support.fake_clock import FakeClock

LIVE = DatabaseSettings(dsn=SecretStr("postgresql://esp@127.0.0.1/esp"))


class Server:
    """Takes connections on the socket of a restored copy and ends them, as a server does whose process ends, with
    what ``says``. Its process has ended once it was asked ``asked`` times."""

    def __init__(self, folder: Path, says: bytes, asked: int = 2) -> None:
        self._says, self._left = says, asked
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(folder / ".s.PGSQL.5432"))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                if connection.recv(1_024):
                    connection.sendall(self._says)

    def poll(self) -> int | None:
        """The status of its process, None while it runs."""
        self._left -= 1
        return 1 if self._left < 0 else None

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    made: list[Server] = []
    yield made
    for server in made:
        server.close()


def refusal(code: bytes, message: bytes) -> bytes:
    """PostgreSQL's answer to a connection that it refuses."""
    fields = b"SFATAL\0VFATAL\0C" + code + b"\0M" + message + b"\0\0"
    return b"E" + (len(fields) + 4).to_bytes(4, "big") + fields


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        (b"", "The restored database does not start: no WAL."),
        (refusal(b"57P03", b"the database system is shutting down"), "The restored database does not start: no WAL."),
        (refusal(b"3D000", b'database "esp" does not exist'), "The restored database refuses a connection: .+esp.+"),
    ],
    ids=["it ends within a connection", "it shuts down", "it will never take one"],
)
def test_a_server_that_ends_is_told_from_one_that_refuses(
    says: bytes, sentence: str, servers: list[Server], tmp_path: Path
) -> None:
    (tmp_path / "postgres.log").write_text("LOG: here\n2026-11-26 UTC [1] FATAL:  no WAL\n")
    servers.append(Server(tmp_path, says))
    instance = Instance(tmp_path, tmp_path, cast(GuardedProcess, servers[0]))
    with pytest.raises(BackupError, match=sentence):
        instance.await_ready(LIVE, 30.0, FakeClock())
