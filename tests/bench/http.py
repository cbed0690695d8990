"""How long the HTTP port takes to answer while somebody attacks it, beside a process that does nothing else.

    python -m tests.bench.http [--seconds 10]

A line a case: idle; 500 clients that send half a request and connect again when they are cut off; 500 that ask for the
metrics and do not read them; 300 scrapes a second. The daemon is a real process without broker and database; the bare
process (bare.py) is asked in turn with it, so what the machine itself takes stands in the same line.
"""

import argparse
import contextlib
import multiprocessing
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.bench.probes import BARE, PATHS, HttpWatch
from tests.support.databases import free_port

_ROOT = Path(__file__).parent.parent.parent
CLIENTS = 500
SCRAPES_A_SECOND = 300
_GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def slow_clients(port: int, request: bytes) -> None:
    """CLIENTS connections that send ``request`` and read nothing; one that is cut off connects again, at most 50 in a
    turn of 20 ms."""
    selector = selectors.DefaultSelector()
    held = 0
    while True:
        for _ in range(min(CLIENTS - held, 50)):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            selector.register(client, selectors.EVENT_WRITE)
            held += 1
        for key, events in selector.select(0.02):
            peer = key.fileobj
            assert isinstance(peer, socket.socket)
            try:
                if events & selectors.EVENT_WRITE:
                    peer.send(request)
                    selector.modify(peer, 0 if request.endswith(b"\n\n") else selectors.EVENT_READ)
                elif not peer.recv(1):
                    raise ConnectionResetError
            except OSError:
                selector.unregister(peer)
                peer.close()
                held -= 1
        time.sleep(0.02)


def scrapes(port: int) -> None:
    """SCRAPES_A_SECOND whole scrapes, each on a connection of its own."""
    at = time.monotonic()
    while True:
        at += 1 / SCRAPES_A_SECOND
        time.sleep(max(at - time.monotonic(), 0))
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as client:
            client.sendall(_GET)
            while client.recv(65_536):
                pass


ATTACKS: dict[str, tuple[Callable[..., None], tuple[object, ...]] | None] = {
    "idle": None,
    "half a request": (slow_clients, (_GET[:12],)),
    "unread answers": (slow_clients, (_GET[:-2] + b"\n\n",)),
    "300 scrapes/s": (scrapes, ()),
}


def measure(port: int, name: str, seconds: float) -> None:
    attack = ATTACKS[name]
    attacker = None
    if attack is not None:
        attacker = multiprocessing.get_context("spawn").Process(target=attack[0], args=(port, *attack[1]), daemon=True)
        attacker.start()
        time.sleep(2)
    with HttpWatch(port) as watch:
        time.sleep(seconds)
    if attacker is not None:
        attacker.kill()
        attacker.join()
    parts = []
    for path in (*PATHS, BARE):
        times = sorted(watch.seconds[path])
        middle, high = times[len(times) // 2], times[int(len(times) * 0.99)]
        parts.append(f"{path} {1e3 * middle:.1f}/{1e3 * high:.1f}/{1e3 * times[-1]:.1f}")
    sys.stdout.write(f"{name:<15} ms p50/p99/most: {'; '.join(parts)}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        environment = os.environ | {
            "ESP_INGEST_HTTP__PORT": str(port),
            "ESP_INGEST_MQTT__PORT": str(free_port()),
            "ESP_INGEST_DATABASE__DSN": f"postgresql://x@127.0.0.1:{free_port()}/x",
            "ESP_INGEST_SPOOL__PATH": f"{folder}/spool",
            "ESP_INGEST_LOG__LEVEL": "error",
        }
        command = [sys.executable, "-m", "esp_ingest", "run"]
        daemon = subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL)
        try:
            for _ in range(100):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live"):
                    break
                time.sleep(0.1)
            time.sleep(2)
            for name in ATTACKS:
                measure(port, name, seconds)
        finally:
            daemon.kill()
            daemon.wait()


if __name__ == "__main__":
    main()
