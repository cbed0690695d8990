"""Messages on their way out, and what became of them."""

import threading


class Publication:
    """One outgoing message. ``done`` once its fate is known: then ``confirmed``, or ``error`` says why not. At QoS 1
    confirmed means acknowledged by the broker, at QoS 0 written to the socket."""

    def __init__(self, qos: int = 1) -> None:
        self.qos = qos
        self.error = ""
        self._done = threading.Event()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    @property
    def confirmed(self) -> bool:
        return self._done.is_set() and not self.error

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the outcome; whether it is confirmed."""
        self._done.wait(timeout_seconds)
        return self.confirmed

    def finish(self, error: str = "") -> None:
        """The outcome; a second one changes nothing."""
        if not self._done.is_set():
            self.error = error
            self._done.set()


class Publications:
    """Those under way, by packet id. The broker's answer may arrive before ``publish`` has returned the id: it is kept
    until then. A lock around both was refused: paho holds its own lock in the callback, and takes it in ``publish``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, Publication] = {}
        self._early: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, mid: int, publication: Publication) -> None:
        with self._lock:
            error = self._early.pop(mid, None)
            if error is None:
                self._open[mid] = publication
        if error is not None:
            publication.finish(error)

    def answered(self, mid: int, error: str) -> None:
        with self._lock:
            publication = self._open.pop(mid, None)
            if publication is None:
                self._early[mid] = error
        if publication is not None:
            publication.finish(error)

    def fail(self, error: str, *, qos0_only: bool = False) -> None:
        """The connection is gone: paho sends QoS 1 again on the next one, QoS 0 is lost."""
        with self._lock:
            gone = {mid: each for mid, each in self._open.items() if each.qos == 0 or not qos0_only}
            for mid in gone:
                del self._open[mid]
        for each in gone.values():
            each.finish(error)
