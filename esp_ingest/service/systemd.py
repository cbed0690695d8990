"""Telling systemd how we are: sd_notify(3), a datagram to the socket named in NOTIFY_SOCKET; without one, nothing."""

import os
import socket


class Notifier:
    """For one service process. Nothing here raises or blocks: a lost message costs a restart at worst."""

    def __init__(self, address: str | None = None) -> None:
        """``address``: the socket's path, ``@`` first for an abstract one (None: NOTIFY_SOCKET)."""
        address = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._started = False
        self._status = ""

    def ready_once(self, ready: bool, why: str = "") -> None:
        """The loops turn. The first call says READY=1, ready or not: a database that is away must not make systemd
        give up on the start. ``systemctl status`` shows ``ready`` and ``why`` whenever they change."""
        if not self._started:
            self._started = self.send("READY=1")
        status = "Ready" if ready else f"Not ready{': ' if why else ''}{why}"
        if status != self._status:
            self._status = status
            self.send(f"STATUS={' '.join(status.split())}")

    def watchdog(self) -> None:
        """Still alive; to be called only while Health.live() says so, more often than WatchdogSec/2."""
        self.send("WATCHDOG=1")

    def stopping(self) -> None:
        """The drain has begun."""
        self.send("STOPPING=1\nSTATUS=Draining")

    def send(self, message: str) -> bool:
        """One notification. Returns whether somebody was there to take it."""
        if not self._address:
            return False
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            ) as sender:
                sender.sendto(message.encode(), self._address)
        except OSError:
            return False
        return True
