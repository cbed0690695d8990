"""A publisher that costs next to nothing, because it shares two cores with what is measured.

    python -m tests.bench.publisher FOLDER --port 1883 --user U --password P [--messages N] [--rate MESSAGES_PER_SECOND]

It sends the packets of a workload as they lie in the file and counts PUBACKs by their bytes (MQTT 3.1.1: always four),
with a window of unacknowledged messages. It connects, says ``ready``, waits for a line on stdin, publishes, and writes
a line of JSON: when it began and ended (wall clock, seconds), messages, and its own CPU seconds.
"""

import argparse
import json
import mmap
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.bench.workload import encode_length

WINDOW = 4_000
_TICK_SECONDS = 0.005
_SEND_BYTES = 4_194_304
_RECEIVE_BYTES = 65_536
_SILENCE_SECONDS = 60.0


class PublisherError(Exception):
    """The broker refused, fell silent, or answered what is not a PUBACK."""


def connect(port: int, client_id: str, user: str, password: str) -> socket.socket:
    """An MQTT 3.1.1 session, clean, without keepalive."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    fields = [field.encode() for field in (client_id, user, password)]
    payload = b"".join(len(field).to_bytes(2, "big") + field for field in fields)
    body = b"\x00\x04MQTT\x04" + b"\xc2\x00\x00" + payload
    sock.sendall(b"\x10" + encode_length(len(body)) + body)
    answer = sock.recv(4, socket.MSG_WAITALL)
    if answer[:2] != b"\x20\x02" or answer[3] != 0:
        raise PublisherError(f"the broker refused the publisher: {answer.hex()}")
    return sock


def publish(
    sock: socket.socket, packets: memoryview, offsets: npt.NDArray[np.int64], messages: int, rate: float
) -> list[tuple[float, int]]:
    """Send ``messages`` packets, at ``rate`` a second (0: as fast as the broker takes them), until all are
    acknowledged. Returns (wall time, messages handed to the socket by then) at each send: a message's latency is
    counted from it.

    It sleeps a few milliseconds between two looks at the socket instead of waiting for it to be readable: the broker
    writes each PUBACK by itself, and waking up for each cost 8 µs a message on the cores that are being measured. The
    window is large enough that the broker never waits for us meanwhile.
    """
    sock.setblocking(False)
    ends = offsets[1:]
    sent_bytes = sent = acked = ack_bytes = 0
    log: list[tuple[float, int]] = []
    began = heard = time.monotonic()
    while acked < messages:
        now = time.monotonic()
        due = messages if not rate else min(messages, int((now - began) * rate))
        limit = int(offsets[min(due, acked + WINDOW)])
        if limit > sent_bytes:
            with suppress(BlockingIOError):
                sent_bytes += sock.send(packets[sent_bytes : min(limit, sent_bytes + _SEND_BYTES)])
            sent = int(np.searchsorted(ends, sent_bytes, side="right"))
            log.append((time.time(), sent))
        time.sleep(_TICK_SECONDS)
        with suppress(BlockingIOError):
            data = sock.recv(_RECEIVE_BYTES)
            if not data:
                raise PublisherError(f"the broker hung up after {acked} of {messages} messages")
            ack_bytes, heard = ack_bytes + len(data), now
            acked = ack_bytes // 4
        if now - heard > _SILENCE_SECONDS and sent > acked:
            raise PublisherError(f"the broker fell silent after {acked} of {messages} messages")
    return log


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.publisher")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--messages", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--user", required=True)
    parser.add_argument("--password", required=True)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    offsets = np.load(options.folder / "offsets.npy")
    messages = options.messages or len(offsets) - 1
    sock = connect(options.port, "bench-publisher", options.user, options.password)
    with (options.folder / "packets.bin").open("rb") as file:
        packets = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        _say("ready")
        sys.stdin.readline()
        began, cpu_before = time.time(), time.process_time()
        log = publish(sock, packets, offsets, messages, options.rate)
        ended, cpu = time.time(), time.process_time() - cpu_before
    if options.log:
        np.save(options.log, np.array(log))
    _say(json.dumps({"began": began, "ended": ended, "messages": messages, "cpu_seconds": cpu}))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
