"""The daemon alone and beside 50 people who look at the console, in turns.

    python -m tests.bench.readers [--rounds 3] [--readers 50] [--case a] [--paste]

The input is that of ``make bench``'s case (a), as fast as the broker takes it, three times as long so that every run
sees all that readers do, or (c), 10 000 wells at 1 Hz. The API is a process with the Nice of its unit,
config/systemd/esp-ingest-api.service. A reader does what a browser with the console does: it keeps its connections,
holds the live stream of the whole fleet, asks every 30 s for the fleet and each five minutes for the sparklines of the
rows in view, the first of the fleet, and opens the page of any well every minute. All readers are one process, which
shares the machine too.
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.bench import runs
from tests.bench.cases import CASES
from tests.bench.paste import paste
from tests.bench.processes import cpu_seconds
from tests.bench.turns import in_turns
from tests.support.api import ApiProcess
from tests.support.databases import Database

_ROOT = Path(__file__).parent.parent.parent
FLEET_SECONDS, WELL_SECONDS = 30.0, 60.0
IN_VIEW, SPARKLINES = 25, 3  # rows, and sparklines a look: each row's every five minutes, or somewhat more often
_FLEET = ("/api/v1/wells?sort=need&limit=50", "/api/v1/fleet")
_SPARK = "/api/v1/wells/{well}/telemetry?from=24h&signals=motor_current&max_points=96"
_WELL = (
    "/api/v1/wells/{well}",
    "/api/v1/wells/{well}/telemetry?from=72h&max_points=2400",
    "/api/v1/wells/{well}/telemetry?from=24h&signals=motor_current&max_points=2000",
    "/api/v1/alarms?well_id={well}&limit=300",
    "/api/v1/alarms?well_id={well}&limit=50",
    "/api/v1/alarms/history?well_id={well}&limit=20",
)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class Seen:
    """What the readers got: seconds of each answer, and bytes and ends of their streams."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    streamed_bytes: int = 0
    streams_ended: int = 0


class Reader:
    """One browser."""

    def __init__(self, port: int, token: str, wells: int, seen: Seen, number: int) -> None:
        self._port, self._wells, self._seen = port, wells, seen
        self._head = f"HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n"
        self._idle: list[Streams] = []  # connections that have answered
        self._random = random.Random(number)
        self._turn = number  # of the rows in view: not everybody begins at the same one

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._stream())
            group.create_task(self._every(FLEET_SECONDS, self._fleet))
            group.create_task(self._every(WELL_SECONDS, self._well))

    async def _every(self, seconds: float, work: Any) -> None:
        await asyncio.sleep(self._random.uniform(0, seconds))
        while True:
            began = time.monotonic()
            await work()
            await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))

    async def _fleet(self) -> None:
        page, _ = await asyncio.gather(*(self._get(path) for path in _FLEET))
        in_view = [item["well_id"] for item in json.loads(page)["items"][:IN_VIEW]] if page else []
        for turn in range(self._turn, self._turn + min(SPARKLINES, len(in_view))):
            await self._get(_SPARK.format(well=in_view[turn % len(in_view)]))
        self._turn += SPARKLINES

    async def _well(self) -> None:
        well = self._any_well()
        await asyncio.gather(*(self._get(path.format(well=well)) for path in _WELL))

    def _any_well(self) -> str:
        return f"ESP-{self._random.randrange(self._wells):05d}"

    async def _get(self, path: str) -> bytes:
        """The body; empty where it was refused."""
        began = time.monotonic()
        try:
            status, body = await self._answer(self._idle.pop(), path)
        except (IndexError, OSError, asyncio.IncompleteReadError):  # none, or the server has closed it meanwhile
            status, body = await self._answer(await self._connect(), path)
        if status in (200, 404):  # a well may have sent nothing yet
            self._seen.seconds.append(time.monotonic() - began)
            return body
        self._seen.refused += 1
        return b""

    async def _answer(self, streams: Streams, path: str) -> tuple[int, bytes]:
        """Status and body. Raises OSError and asyncio.IncompleteReadError."""
        reader, writer = streams
        writer.write(f"GET {path} {self._head}".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        self._idle.append(streams)
        status = int(head.split(b" ", 2)[1])
        return status, body if status == 200 else b""

    async def _stream(self) -> None:
        while True:
            reader, writer = await self._connect()
            writer.write(f"GET /api/v1/stream {self._head}".encode())
            while piece := await reader.read(1_048_576):
                self._seen.streamed_bytes += len(piece)
            writer.close()
            self._seen.streams_ended += 1
            await asyncio.sleep(0.5)

    async def _connect(self) -> Streams:
        return await asyncio.open_connection("127.0.0.1", self._port, limit=1_048_576)


async def read(port: int, token: str, readers: int, wells: int) -> Seen:
    """Be ``readers`` browsers until SIGTERM."""
    seen = Seen()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tasks = [asyncio.create_task(Reader(port, token, wells, seen, number).run()) for number in range(readers)]
    await asyncio.wait([asyncio.create_task(stop.wait()), *tasks], return_when=asyncio.FIRST_COMPLETED)
    if not stop.is_set():
        await asyncio.gather(*tasks)  # raises what ended a reader
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return seen


@dataclass(slots=True)
class Beside:
    """The API and its readers beside a run; afterwards what they used and saw."""

    readers: int
    wells: int
    seconds: float = 0.0
    api_cpu_seconds: float = 0.0
    readers_cpu_seconds: float = 0.0
    seen: Seen = field(default_factory=Seen)

    @contextlib.contextmanager
    def on(self, database: Database) -> Iterator[None]:
        """The readers look while the block runs."""
        with tempfile.TemporaryDirectory() as folder:
            process = ApiProcess(Path(folder), database.dsn, {"LOG__LEVEL": "error"}, niceness=_niceness())
            process.add_user("vera", "viewer")
            with process:
                token = process.sign_in("vera")["access_token"]
                command = [sys.executable, "-m", "tests.bench.readers", "--be-readers", str(process.port), token]
                command += ["--readers", str(self.readers), "--wells", str(self.wells)]
                crowd = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True)
                try:
                    time.sleep(3.0)  # streams stand, first pages are asked for
                    began, api, own = time.monotonic(), cpu_seconds(process.pid), cpu_seconds(crowd.pid)
                    yield
                    self.seconds += time.monotonic() - began
                    self.api_cpu_seconds += cpu_seconds(process.pid) - api
                    self.readers_cpu_seconds += cpu_seconds(crowd.pid) - own
                finally:
                    crowd.terminate()
                    said, _ = crowd.communicate(timeout=30)
                found = Seen(**json.loads(said))
                self.seen.seconds += found.seconds
                self.seen.refused += found.refused
                self.seen.streamed_bytes += found.streamed_bytes
                self.seen.streams_ended += found.streams_ended

    def lines(self) -> Iterator[str]:
        """What the readers saw and used, in sentences. Raises runs.Failed if they saw nothing."""
        times, seen = sorted(self.seen.seconds), self.seen
        if not times:
            raise runs.Failed("the readers had no answer: let more of them read, or longer")
        middle, high = times[len(times) // 2] * 1e3, times[int(len(times) * 0.95)] * 1e3
        streamed_mb = seen.streamed_bytes / 1e6 / self.seconds
        yield (
            f"The readers had {len(times)} answers in {self.seconds:.0f} s, median {middle:.0f} ms, p95 {high:.0f} ms; "
            f"{seen.refused} were refused. Over their streams came {streamed_mb:.1f} MB/s, and {seen.streams_ended} "
            "streams ended."
        )
        yield (
            f"The API used {self.api_cpu_seconds / self.seconds:.2f} of a core, the readers themselves "
            f"{self.readers_cpu_seconds / self.seconds:.2f}."
        )


def _niceness() -> int:
    unit = (_ROOT / "config" / "systemd" / "esp-ingest-api.service").read_text(encoding="utf-8")
    return int(next(line for line in unit.splitlines() if line.startswith("Nice=")).removeprefix("Nice="))


def measure(key: str, rounds: int, readers: int) -> Iterator[str]:
    """Run both in turns and give the lines of the report."""
    case = next(each for each in CASES if each.key == key)
    if not case.rate:
        case = replace(case, shape=replace(case.shape, rounds=3 * case.shape.rounds))
    beside = Beside(readers, case.shape.wells)
    alone, watched = in_turns(case, rounds, beside.on)
    yield "| | readings/s | spread | p99 received → committed | of whole runs | daemon µs | database µs | idle |"
    yield "|---|---:|---|---:|---:|---:|---:|---:|"
    yield _row("alone", alone)
    yield _row(f"beside {readers} readers", watched)
    ratios = [one.rate / other.rate for one, other in zip(watched, alone, strict=True)]
    yield ""
    listed = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    yield f"Rate beside the readers ÷ alone, within a round: median {statistics.median(ratios):.3f} ({listed})."
    yield f"The first p99 is that of the steady part, {runs.STEADY}."
    yield from beside.lines()


def _row(label: str, found: list[runs.Measured]) -> str:
    rates = [each.rate for each in found]
    steady = statistics.median((each.steady_seconds or (0.0, 0.0))[1] for each in found)
    whole = statistics.median((each.committed_seconds or (0.0, 0.0))[1] for each in found)
    cells = [
        f"{statistics.median(rates):,.0f}",
        f"{min(rates):,.0f}–{max(rates):,.0f}",
        f"{steady * 1e3:.0f} ms",
        f"{whole * 1e3:.0f} ms",
        f"{statistics.median(each.cpu_us('consumer') for each in found):.1f}",
        f"{statistics.median(each.cpu_us('database') for each in found):.1f}",
        f"{statistics.median(each.idle_share for each in found):.0%}",
    ]
    return f"| {label} | {' | '.join(cells)} |"


def main() -> int:
    options = _options()
    if options.be_readers:
        port, token = options.be_readers
        seen = asyncio.run(read(int(port), token, options.readers, options.wells))
        fields = {"seconds": seen.seconds, "refused": seen.refused}
        fields |= {"streamed_bytes": seen.streamed_bytes, "streams_ended": seen.streams_ended}
        sys.stdout.write(json.dumps(fields))
        return 0
    text = "\n".join(measure(options.case, options.rounds, options.readers)) + "\n"
    sys.stdout.write(text)
    if options.paste:
        paste(text, f"readers-{options.case}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.readers")
    parser.add_argument("--case", choices=("a", "c"), default="a")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--readers", type=int, default=50)
    parser.add_argument("--wells", type=int, default=1_000, help=argparse.SUPPRESS)
    parser.add_argument("--be-readers", nargs=2, metavar=("PORT", "TOKEN"), help=argparse.SUPPRESS)
    parser.add_argument("--paste", action="store_true", help="put the table into docs/performance.md")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
