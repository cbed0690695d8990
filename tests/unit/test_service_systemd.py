"""sd_notify, against a socket of our own in systemd's place."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp_ingest.service.systemd import Notifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    address = (
        str(tmp_path / "notify") if request.param == "path" else f"@esp-ingest-test-{tmp_path.name}-{id(tmp_path)}"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + address[1:] if address.startswith("@") else address)
        receiver.settimeout(2)
        yield address, receiver


def test_ready_is_said_once_whatever_the_state_and_status_when_it_changes(systemd: tuple[str, socket.socket]) -> None:
    address, receiver = systemd
    notifier = Notifier(address)
    for ready, why in [(False, "database\naway"), (False, "database\naway"), (True, ""), (True, "")]:
        notifier.ready_once(ready, why)
    notifier.watchdog()
    notifier.stopping()
    said = [receiver.recv(1_000) for _ in range(5)]
    assert said == [
        b"READY=1",
        b"STATUS=Not ready: database away",
        b"STATUS=Ready",
        b"WATCHDOG=1",
        b"STOPPING=1\nSTATUS=Draining",
    ]
    receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        receiver.recv(1)


def test_the_address_comes_from_the_environment(
    systemd: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, receiver = systemd
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert Notifier().send("WATCHDOG=1")
    assert receiver.recv(100) == b"WATCHDOG=1"


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not Notifier().send("READY=1")
    assert not Notifier(str(tmp_path / "nobody")).send("READY=1")
