"""A fleet that numbers its messages, publishes them at QoS 1 whatever happens, and keeps a journal of what the broker
acknowledged; and the comparison of that journal with what the database holds.

    python -m tests.support.fault_publisher FOLDER --port 1883 --wells W1 --rate 500 [--messages N] [--reject-every K]

Each well has a connection and a thread, reconnects for ever, and sends what is unacknowledged again first (DUP), in
order. Reading n of a well has the timestamp ``base + n`` ms, and n is also in two signals and in ``extra``: so a
reading that was altered, or stands in for another, shows. With ``--reject-every K`` each K-th is malformed and must end
as a reject; every other one of these is the same as all the others, which are as many rejects.

SIGTERM, or N messages a well: publish no more, wait for the last acknowledgements, write ``summary.json``, end.
"""

import argparse
import contextlib
import json
import signal
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.bench.workload import encode_length

WINDOW = 500
RUBBISH = b"the same rubbish each time"
_SPREAD = 20_000  # n = gor * _SPREAD + flow_rate: both within their hard limits
_TICK_SECONDS = 0.01
_SILENCE_SECONDS = 5.0
_FINISH_SECONDS = 120.0


def payload(base_ms: int, number: int, reject_every: int, step_ms: int = 1) -> bytes:
    """What reading ``number`` looks like on the wire. With more than a millisecond from one to the next, a pump that
    stops now and then, so that the rules find something."""
    if is_reject(number, reject_every):
        if number // reject_every % 2:
            return RUBBISH
        return b'{"timestamp":"poison %d","flow_rate":1}' % number
    pump = b""
    if step_ms > 1:
        pump = b'"vsd_frequency":%d,"motor_current":%d,' % ((60, 50) if number % 200 < 150 else (0, 0))
    return b'{"timestamp":%d,"flow_rate":%d,"gor":%d,%b"n":%d}' % (
        base_ms + number * step_ms,
        number % _SPREAD,
        number // _SPREAD,
        pump,
        number,
    )


def is_reject(number: int, reject_every: int) -> bool:
    return reject_every > 0 and number % reject_every == reject_every - 1


def publish_packet(topic: bytes, body: bytes, packet_id: int, again: bool) -> bytes:
    """PUBLISH at QoS 1, MQTT 3.1.1."""
    rest = len(topic).to_bytes(2, "big") + topic + packet_id.to_bytes(2, "big") + body
    return bytes([0x3A if again else 0x32]) + encode_length(len(rest)) + rest


class Well:
    """One controller: numbers run up, each is sent until the broker acknowledges it, and goes into the journal then."""

    def __init__(self, name: str, arguments: argparse.Namespace, base_ms: int, stop: threading.Event) -> None:
        self.name = name
        self.topic = b"esp/%b/telemetry" % name.encode()
        self.sent = 0
        self.confirmed = 0
        self.reconnects = -1
        self._arguments = arguments
        self._base_ms = base_ms
        self._stop = stop
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._journal = (arguments.folder / f"journal-{name}").open("a", buffering=1 << 16)
        self._due = 0.0

    def run(self) -> None:
        """Until all is published and acknowledged, or the time to finish is over."""
        self._due = time.monotonic()
        finish_by: float | None = None
        while not self._finished():
            if self._stop.is_set() and finish_by is None:
                finish_by = time.monotonic() + _FINISH_SECONDS
            if finish_by is not None and time.monotonic() > finish_by:
                break
            try:
                self._session()
            except OSError:
                time.sleep(0.1)
        self._journal.close()

    def _all_sent(self) -> bool:
        return self._stop.is_set() or 0 < self._arguments.messages <= self.sent

    def _finished(self) -> bool:
        return self._all_sent() and not self._waiting

    def _session(self) -> None:
        """One connection, until it breaks (OSError) or all is done."""
        with self._connect() as sock:
            self.reconnects += 1
            for number, packet in self._waiting:
                sock.sendall(bytes([packet[0] | 0x08]) + packet[1:])
                assert number < self.sent
            heard = time.monotonic()
            rest = b""
            while not self._finished():
                self._send_due(sock)
                try:
                    data = sock.recv(65_536)
                except TimeoutError:
                    if self._waiting and time.monotonic() - heard > _SILENCE_SECONDS:
                        raise
                    continue
                if not data:
                    raise ConnectionResetError("the broker closed")
                heard = time.monotonic()
                rest = self._take_acks(rest + data)
            with contextlib.suppress(OSError):
                sock.sendall(b"\xe0\x00")

    def _connect(self) -> socket.socket:
        sock = socket.create_connection((self._arguments.host, self._arguments.port), timeout=_SILENCE_SECONDS)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            password = self._arguments.password.format(user=self.name)
            login = (self.name, password) if password else ()
            fields = [field.encode() for field in (f"fault-{self.name}", *login)]
            flags = b"\xc2" if login else b"\x02"
            body = (
                b"\x00\x04MQTT\x04"
                + flags
                + b"\x00\x00"
                + b"".join(len(part).to_bytes(2, "big") + part for part in fields)
            )
            sock.sendall(b"\x10" + encode_length(len(body)) + body)
            answer = b""
            while len(answer) < 4 and (part := sock.recv(4 - len(answer))):
                answer += part
            if answer[:2] != b"\x20\x02" or answer[3] != 0:
                raise ConnectionRefusedError(f"the broker refused: {answer.hex()}")
            sock.settimeout(_TICK_SECONDS)
        except BaseException:
            sock.close()
            raise
        return sock

    def _send_due(self, sock: socket.socket) -> None:
        now = time.monotonic()
        self._due = max(self._due, now - 1.0)  # after an outage: no more than a second's worth at once
        room = WINDOW - len(self._waiting)
        packets: list[bytes] = []
        while self._due <= now and len(packets) < room and not self._all_sent():
            body = payload(self._base_ms, self.sent, self._arguments.reject_every, self._arguments.step_ms)
            packets.append(publish_packet(self.topic, body, self.sent % 65_535 + 1, again=False))
            self._waiting.append((self.sent, packets[-1]))
            self.sent += 1
            self._due += 1.0 / self._arguments.rate
        if packets:
            sock.settimeout(_SILENCE_SECONDS)
            sock.sendall(b"".join(packets))
            sock.settimeout(_TICK_SECONDS)

    def _take_acks(self, data: bytes) -> bytes:
        """Journal what PUBACKs confirm; returns the bytes of a packet not yet whole. Mosquitto keeps the order, and not
        every cluster does: the window is so small that a packet id tells which message it was."""
        whole = len(data) - len(data) % 4
        for at in range(0, whole, 4):
            assert data[at : at + 2] == b"\x40\x02", f"not a PUBACK: {data[at : at + 4].hex()}"
            packet_id = int.from_bytes(data[at + 2 : at + 4], "big")
            place = next((place for place, (n, _) in enumerate(self._waiting) if n % 65_535 + 1 == packet_id), None)
            if self._arguments.strict:
                assert place == 0, "a PUBACK out of order"
            if place is None:
                continue  # the second one of a message that was sent again
            number, _ = self._waiting[place]
            del self._waiting[place]
            self._journal.write(f"{number}\n")
            self.confirmed += 1
        self._journal.flush()
        return data[whole:]


def main() -> None:
    arguments = _arguments()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    base_ms = int(time.time() * 1000) - arguments.past_seconds * 1000
    plan = {"base_ms": base_ms, "reject_every": arguments.reject_every, "wells": arguments.wells.split(",")}
    plan["step_ms"] = arguments.step_ms
    (arguments.folder / "plan.json").write_text(json.dumps(plan))
    wells = [Well(name, arguments, base_ms, stop) for name in plan["wells"]]
    threads = [threading.Thread(target=well.run, name=well.name) for well in wells]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # in slices: a signal is only handled between two of them
            thread.join(0.2)
    summary = {
        well.name: {"sent": well.sent, "confirmed": well.confirmed, "reconnects": well.reconnects} for well in wells
    }
    (arguments.folder / "summary.json").write_text(json.dumps(summary))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Publish numbered readings through any fault.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--wells", default="W1,W2,W3")
    parser.add_argument("--password", default="secret of {user}", help="of each well's user; {user} is its name")
    parser.add_argument("--rate", type=float, default=500.0, help="messages a second and well")
    parser.add_argument("--messages", type=int, default=0, help="messages a well, 0 until SIGTERM")
    parser.add_argument("--reject-every", type=int, default=0, help="each K-th is malformed, 0 for none")
    parser.add_argument("--past-seconds", type=int, default=3_600, help="how long ago the first reading was taken")
    parser.add_argument("--step-ms", type=int, default=1, help="from one reading of a well to the next")
    parser.add_argument("--any-order", dest="strict", action="store_false", help="PUBACKs may come in any order")
    return parser.parse_args()


@dataclass(frozen=True)
class Comparison:
    """Journal against tables. ``lost`` were confirmed by the broker and are in no table; ``altered`` rows differ from
    what was published under their key; ``invented`` were never published; ``doubled`` are there more than once."""

    published: int
    confirmed: int
    stored: int
    rejects: int
    lost: int
    doubled: int
    altered: int
    invented: int
    first_lost: str = ""

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.altered or self.invented)

    def __str__(self) -> str:
        return (
            f"published {self.published}, confirmed {self.confirmed}, stored {self.stored}, rejects {self.rejects}, "
            f"lost {self.lost}, doubled {self.doubled}, altered {self.altered}, invented {self.invented}"
            + (f" (first lost: {self.first_lost})" if self.first_lost else "")
        )


def confirmed(folder: Path) -> int:
    """Messages that the broker acknowledged so far."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("journal-*"))


def compare(folder: Path, dsn: str) -> Comparison:
    """Compare the journal in ``folder`` with the tables, after the publisher wrote its summary."""
    plan = json.loads((folder / "plan.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    totals = dict.fromkeys(("stored", "rejects", "lost", "doubled", "altered", "invented"), 0)
    first_lost = ""
    with psycopg.connect(dsn) as connection:
        for well in plan["wells"]:
            found = _compare_well(connection, well, plan, summary[well]["sent"], _journal(folder, well))
            first = str(found.pop("first_lost"))
            first_lost = first_lost or first
            for key, count in found.items():
                totals[key] += int(count)
    return Comparison(
        published=sum(well["sent"] for well in summary.values()),
        confirmed=confirmed(folder),
        first_lost=first_lost,
        **totals,
    )


def _journal(folder: Path, well: str) -> set[int]:
    return {int(line) for line in (folder / f"journal-{well}").read_text().split()}


def _compare_well(
    connection: psycopg.Connection, well: str, plan: dict[str, int], sent: int, journal: set[int]
) -> dict[str, int | str]:
    base_ms, reject_every, step_ms = plan["base_ms"], plan["reject_every"], plan.get("step_ms", 1)
    rows = connection.execute(
        "SELECT ((extract(epoch FROM timestamp) * 1000)::bigint - %s) / %s, flow_rate, gor, extra::text "
        "FROM esp_telemetry WHERE well_id = %s",
        (base_ms, step_ms, well),
    ).fetchall()
    refused = connection.execute(
        "SELECT payload FROM ingest_rejects WHERE topic = %s", (f"esp/{well}/telemetry",)
    ).fetchall()
    readings = [number for number, *_ in rows]
    wrong = (number for number in range(sent) if is_reject(number, reject_every))
    bad = {number: payload(base_ms, number, reject_every, step_ms) for number in wrong}
    poison = {body: number for number, body in bad.items() if body != RUBBISH}
    rubbish = {number for number, body in bad.items() if body == RUBBISH}  # one is as good as another: they are counted
    bodies = [bytes(body) for (body,) in refused]
    rejects = [poison.get(body, -1) for body in bodies if body != RUBBISH]
    kept = bodies.count(RUBBISH)
    stored = {*readings, *rejects}
    lost = sorted(journal - stored - rubbish)
    return {
        "stored": len(set(readings)),
        "rejects": len(set(rejects) - {-1}) + min(kept, len(rubbish)),
        "lost": len(lost) + max(len(journal & rubbish) - kept, 0),
        "doubled": len(readings)
        - len(set(readings))
        + sum(rejects.count(number) > 1 for number in set(rejects))
        + max(kept - len(rubbish), 0),
        "altered": sum(
            (flow, gor, json.loads(extra or "{}")) != (number % _SPREAD, number // _SPREAD, {"n": number})
            for number, flow, gor, extra in rows
        ),
        "invented": sum(not 0 <= number < sent or is_reject(number, reject_every) for number in readings)
        + rejects.count(-1),
        "first_lost": f"{well} {lost[0]}" if lost else "",
    }


if __name__ == "__main__":
    main()
