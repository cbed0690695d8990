"""``make cluster``: a share group on a clustered broker, its parts killed in turn, and a table of what became of it.

    python -m tests.cluster [--broker memory]… [--case nodes]… [--members 3] [--seconds 30] [--output FILE]

    fleet ──► balancer ──► three nodes of the broker (raft) ◄── balancer ◄── N × esp-ingest ──► TimescaleDB

Brokers: ``memory`` (rmqttd, sessions in memory) and ``sled`` (rmqttd, sessions of clients that are away on disk) with a
share group; ``quorum`` (RabbitMQ 4, each session a quorum queue), which knows no share groups, so one daemon takes all.

The fleet numbers its readings, sends each until the cluster acknowledges it, and keeps a journal
(tests/support/fault_publisher.py). In the end each reading of the journal must be in the table, once and unaltered.
One that is not was lost by the cluster if no member was ever sent it (the balancers keep what they pass on), and by us
otherwise: that is a failure, and the exit status 1. The diagnoses are those that one daemon makes of the same readings
in the order received.
"""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psycopg

from esp_ingest.store.schema import migrate
from tests.cluster import rabbitmq, rmqtt
from tests.cluster.judge import Diagnoses, diagnoses_of_one, lost_readings
from tests.cluster.tapped import Balancer, Node, undelivered
from tests.support.databases import Database, NativeTimescale, free_port
from tests.support.fault_publisher import Comparison, compare, confirmed
from tests.support.rig import Process

WELLS = tuple(f"W{number}" for number in range(1, 7))
RATE = 100  # messages a second and well
STEP_MS = 20_000  # so that half a minute of messages is most of two days, in which rules find something
PAST_SECONDS = 5 * 86_400
_READY_SECONDS = 60.0
_CATCH_UP_SECONDS = 60.0
_LAG_SECONDS = 12.0  # whoever follows the table for the rules is five seconds behind, and asks every few


@dataclass
class World:
    """All that runs. Members are known by number; one that is killed is started again with the session it had."""

    folder: Path
    nodes: list[Node]
    database: Database
    balancers: list[Balancer]
    share_group: str
    members: list[Process] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    def start_member(self, number: int) -> Process:
        chosen = {
            "MQTT__HOST": "127.0.0.1",
            "MQTT__PORT": str(self.balancers[number].port),
            "MQTT__CLIENT_ID": f"esp-ingest-{number}",
            "MQTT__SHARE_GROUP": self.share_group,
            "MQTT__KEEPALIVE_SECONDS": "5",
            "MQTT__RECONNECT_MIN_SECONDS": "0.2",
            "MQTT__RECONNECT_MAX_SECONDS": "1",
            "DATABASE__DSN": self.database.dsn,
            "DATABASE__RETRY_MAX_SECONDS": "1",
            "SPOOL__PATH": str(self.folder / f"spool{number}"),
            "HTTP__PORT": str(self.ports[number]),
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ESP_INGEST_")}
        environment = kept | {f"ESP_INGEST_{key}": value for key, value in chosen.items()}
        command = [sys.executable, "-m", "esp_ingest", "run"]
        return Process(command, self.folder / f"member{number}.log", environment)

    def kill_member(self, number: int) -> None:
        self.members[number].kill()

    def restart_member(self, number: int) -> None:
        self.members[number] = self.start_member(number)

    def is_ready(self, number: int) -> bool:
        with contextlib.suppress(OSError, urllib.error.HTTPError):
            url = f"http://127.0.0.1:{self.ports[number]}/health/ready"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        return False

    def await_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not all(self.is_ready(number) for number in range(len(self.members))):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the members are not ready after {_READY_SECONDS:.0f} s: see {self.folder}")
            time.sleep(0.2)

    def stored(self) -> int:
        try:
            query = "SELECT (SELECT count(*) FROM esp_telemetry) + (SELECT count(*) FROM ingest_rejects)"
            return int(self.database.value(query))
        except psycopg.Error:
            return -1


def nothing(world: World, seconds: float) -> None:
    """The control."""
    del world
    time.sleep(seconds)


def nodes(world: World, seconds: float) -> None:
    """Each node is killed, is away for some seconds, and joins again with what it kept."""
    for node in world.nodes:
        time.sleep(seconds / 6)
        node.kill()
        time.sleep(seconds / 6)
        node.start()
    time.sleep(seconds / 6)


def members(world: World, seconds: float) -> None:
    """Each member is killed, is away for some seconds, and comes back to its session."""
    for number in range(len(world.members)):
        time.sleep(seconds / 2 / len(world.members))
        world.kill_member(number)
        time.sleep(seconds / 2 / len(world.members))
        world.restart_member(number)


def database(world: World, seconds: float) -> None:
    """The database is killed twice, for less than the spool waits and for more."""
    for away in (2.0, seconds / 3):
        time.sleep(seconds / 6)
        world.database.server.kill()
        time.sleep(away)
        world.database.server.launch()
    time.sleep(seconds / 3)


CASES: dict[str, Callable[[World, float], None]] = {
    "nothing": nothing,
    "nodes": nodes,
    "members": members,
    "database": database,
}


@contextlib.contextmanager
def _rmqtt(folder: Path, *, durable: bool) -> Iterator[list[Node]]:
    nodes: list[Node] = [*rmqtt.cluster(folder, durable=durable)]
    try:
        yield nodes
    finally:
        for node in nodes:
            node.kill()


@contextlib.contextmanager
def _rabbitmq(folder: Path) -> Iterator[list[Node]]:
    cluster = rabbitmq.Cluster()
    try:
        yield [*cluster.start()]
    finally:
        cluster.stop()
        shutil.copytree(cluster.folder, folder / "rabbitmq", ignore=shutil.ignore_patterns("data"))
        shutil.rmtree(cluster.folder)


BROKERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[list[Node]]]] = {
    "memory": partial(_rmqtt, durable=False),
    "sled": partial(_rmqtt, durable=True),
    "quorum": _rabbitmq,
}
PROGRAMS = {"memory": rmqtt.program, "sled": rmqtt.program, "quorum": rabbitmq.program}
ALONE = {"quorum"}  # no share groups: one daemon


@dataclass(frozen=True)
class Row:
    """A row of the table. ``cluster_lost``: of what is lost, never sent to a member."""

    broker: str
    case: str
    result: Comparison
    cluster_lost: int
    diagnoses: Diagnoses

    @property
    def our_loss(self) -> int:
        return self.result.lost - self.cluster_lost

    @property
    def is_clean(self) -> bool:
        r = self.result
        return r.confirmed > 0 and not (self.our_loss or r.doubled or r.altered or r.invented)

    def __str__(self) -> str:
        r = self.result
        cells = [self.broker, self.case, r.published, r.confirmed, r.stored, self.cluster_lost, self.our_loss]
        return f"| {' | '.join(map(str, [*cells, r.doubled, r.altered, self.diagnoses]))} |"


_COLUMNS = ("sessions", "killed in turn", "published", "acknowledged", "stored", "lost by the cluster", "lost by us")
_COLUMNS += ("doubled", "altered", "diagnoses of one daemon found")
HEAD = f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|\n"


def run_case(broker: str, case: str, server: NativeTimescale, count: int, seconds: float, folder: Path) -> Row:
    """One row."""
    journal = folder / "journal"
    journal.mkdir(parents=True)
    if not server.running:
        server.launch()
    with contextlib.ExitStack() as stack:
        target = server.create_database()
        migrate(target.settings)
        found = stack.enter_context(BROKERS[broker](folder))
        count = 1 if broker in ALONE else count
        taps = [stack.enter_context(Balancer(found, number % 3)) for number in range(count)]
        front = stack.enter_context(Balancer(found, turn=True))
        group = "" if broker in ALONE else "esp"
        world = World(folder, found, target, taps, group, ports=[free_port() for _ in range(count)])
        for number in range(count):
            world.members.append(world.start_member(number))
        stack.callback(lambda: [member.kill() for member in world.members])
        world.await_ready()
        fleet = stack.enter_context(_fleet(journal, front.port, folder))
        CASES[case](world, seconds)
        fleet.send(signal.SIGTERM)
        if fleet.wait(180):
            raise RuntimeError(f"the fleet failed: {(folder / 'fleet.log').read_text()[-2_000:]}")
        _await_stored(world, confirmed(journal))
        time.sleep(_LAG_SECONDS)
        for member in world.members:
            member.send(signal.SIGTERM)
        for member in world.members:
            member.wait(60)
        result = compare(journal, target.dsn)
        missing = lost_readings(journal, target)
        return Row(broker, case, result, undelivered(missing, taps), diagnoses_of_one(target))


@contextlib.contextmanager
def _fleet(journal: Path, port: int, folder: Path) -> Iterator[Process]:
    command = [sys.executable, "-m", "tests.support.fault_publisher", str(journal), "--port", str(port), "--any-order"]
    command += ["--password", "", "--wells", ",".join(WELLS), "--rate", str(RATE), "--step-ms", str(STEP_MS)]
    process = Process([*command, "--past-seconds", str(PAST_SECONDS)], folder / "fleet.log")
    try:
        yield process
    finally:
        process.kill()


def _await_stored(world: World, goal: int) -> None:
    """Until all of it is there, or nothing more has come for a while: the comparison says what is missing."""
    best, since = -1, time.monotonic()
    while best < goal and time.monotonic() - since < _CATCH_UP_SECONDS:
        if (stored := world.stored()) > best:
            best, since = stored, time.monotonic()
        time.sleep(0.5)


def main() -> int:
    """Entry point; see the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__.partition("\n")[0])
    parser.add_argument("--broker", action="append", choices=[*BROKERS], help="repeatable; default all")
    parser.add_argument("--case", action="append", choices=[*CASES], help="repeatable; default all")
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a case, while the fleet sends")
    parser.add_argument("--output", type=Path, help="append the table to this file")
    parser.add_argument("--keep", type=Path, help="keep logs and journals in this folder")
    options = parser.parse_args()
    brokers = options.broker or [*BROKERS]
    for broker in brokers:
        PROGRAMS[broker]()
    rows: list[Row] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="esp-cluster-") as name, NativeTimescale.start(fsync=True) as server:
        folder = options.keep or Path(name)
        for broker in brokers:
            for case in options.case or CASES:
                where = folder / f"{broker}-{case}-{os.getpid()}"
                try:
                    rows.append(run_case(broker, case, server, options.members, options.seconds, where))
                except (RuntimeError, OSError) as error:  # the rows of other cases count all the same
                    failed.append(f"{broker}, {case}: {error}")
                    sys.stderr.write(f"{failed[-1]}\n")
                else:
                    sys.stderr.write(f"{rows[-1]}\n{rows[-1].result}\n")
    table = HEAD + "".join(f"{row}\n" for row in rows)
    sys.stdout.write(table)
    if options.output:
        with options.output.open("a", encoding="utf-8") as file:
            file.write(table)
    return 1 if failed or not all(row.is_clean for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
