"""Waking a thread that waits in poll(): a byte through a pair of sockets."""

import contextlib
import socket


class Waker:
    """Ends the poll() of one thread from any other. Nothing here blocks."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """The file descriptor that becomes readable after :meth:`wake`."""
        return self._reader.fileno()

    def wake(self) -> None:
        """Make poll() return now, or at once the next time it is called."""
        with contextlib.suppress(OSError):  # full: the thread is awake; closed: it has ended
            self._writer.send(b"\0")

    def drain(self) -> None:
        """Take note of the wake-up, so that the next poll() waits again."""
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4_096)

    def close(self) -> None:
        """Release both sockets. A later :meth:`wake` does nothing."""
        self._reader.close()
        self._writer.close()
