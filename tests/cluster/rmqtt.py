"""rmqttd 0.24 from crates.io, with the plugins that a cluster needs, and three nodes of it on loopback.

The crate brings its own lock file. What is built is its own program with fewer plugins: its manifest lists them, and
its build script registers those. So the HTTP API (0.0.0.0:6060 unless told otherwise) is not there at all. Some 20
minutes on two cores; kept in ``ESP_INGEST_RMQTT`` (/var/cache/esp-ingest/rmqtt). Needs cargo and protobuf-compiler.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.support.databases import Missing, free_port
from tests.support.rig import Process

VERSION = "0.24.0"
CACHE = Path(os.environ.get("ESP_INGEST_RMQTT", "/var/cache/esp-ingest/rmqtt"))
PLUGINS = ("rmqtt-cluster-raft", "rmqtt-shared-subscription", "rmqtt-session-storage")
_LIBRARIES = ("rmqtt-conf", "rmqtt-net")  # of the program itself, not plugins
_START_SECONDS = 100.0
_PATCH = '\n[patch.crates-io]\nprotobuf-src = { path = "protobuf-src" }\n'


def trimmed(manifest: str) -> str:
    """The manifest of the rmqttd crate with no plugins but ours."""
    head, *sections = re.split(r"(?m)^(?=\[)", manifest)
    kept = [head]
    for section in sections:
        path = section.partition("]")[0].strip("[")
        name = path.rpartition(".")[2]
        is_plugin = path.startswith("package.metadata.plugins.") and name not in PLUGINS
        is_dependency = path.startswith("dependencies.rmqtt-") and name not in (*PLUGINS, *_LIBRARIES)
        if is_plugin or is_dependency:
            continue
        if path == "dependencies.rmqtt-session-storage":
            section = re.sub(r"(?s)features = \[.*?\]", 'features = ["sled"]', section)
        kept.append(section)
    return "".join(kept)


def program() -> Path:
    """The program, built if it is not there. Raises Missing."""
    found = CACHE / "target/release/rmqttd"
    if found.exists():
        return found
    for tool, how in (("cargo", "https://rustup.rs"), ("protoc", "apt-get install protobuf-compiler")):
        if shutil.which(tool) is None:
            raise Missing(f"{tool} is needed to build rmqttd: {how}")
    source = CACHE / "source"
    shutil.rmtree(source, ignore_errors=True)
    subprocess.run(["cargo", "info", "--quiet", f"rmqttd@{VERSION}"], check=True, stdout=subprocess.DEVNULL)
    (crate,) = (Path.home() / ".cargo/registry/src").glob(f"*/rmqttd-{VERSION}")
    shutil.copytree(crate, source)
    manifest = source / "Cargo.toml"
    manifest.write_text(trimmed(manifest.read_text(encoding="utf-8")) + _PATCH, encoding="utf-8")
    _protobuf_of_the_machine(source / "protobuf-src", Path(str(shutil.which("protoc"))))
    build = ["nice", "-n", "15", "cargo", "build", "--release", "--target-dir", str(CACHE / "target")]
    subprocess.run(build, cwd=source, check=True)
    return found


def _protobuf_of_the_machine(folder: Path, protoc: Path) -> None:
    """In place of the crate protobuf-src, which compiles all of protobuf (most of the time of the build) to call protoc
    once: a crate of that name and version that knows where the machine has it."""
    (folder / "src").mkdir(parents=True)
    (folder / "Cargo.toml").write_text('[package]\nname = "protobuf-src"\nversion = "1.1.0+21.5"\nedition = "2021"\n')
    (folder / "src/lib.rs").write_text(f'pub fn protoc() -> std::path::PathBuf {{ "{protoc}".into() }}\n')


class Node:
    """One node. It keeps its ports and its folder over ``kill`` and ``start``."""

    def __init__(self, number: int, folder: Path, ports: list[tuple[int, int, int]], *, durable: bool) -> None:
        self.number = number
        self.folder = folder
        self.port, rpc, _ = ports[number - 1]
        self._process: Process | None = None
        plugins = folder / "plugins"
        plugins.mkdir(parents=True)
        started = PLUGINS if durable else PLUGINS[:-1]
        (folder / "rmqtt.toml").write_text(_settings(number, folder, self.port, rpc, started), encoding="utf-8")
        rpcs = [f"{at}@127.0.0.1:{port}" for at, (_, port, _) in enumerate(ports, 1)]
        peers = [f"{at}@127.0.0.1:{port}" for at, (_, _, port) in enumerate(ports, 1)]
        # The elections are held within seconds, and a node that is away is given up as soon.
        (plugins / "rmqtt-cluster-raft.toml").write_text(
            f"message_type = 198\nnode_grpc_addrs = {json.dumps(rpcs)}\nraft_peer_addrs = {json.dumps(peers)}\n"
            'leader_id = 0\nnode_grpc_client_timeout = "5s"\ncompression = "zstd"\n',
            encoding="utf-8",
        )
        (plugins / "rmqtt-shared-subscription.toml").write_text('strategy = "round_robin"\n', encoding="utf-8")
        (plugins / "rmqtt-session-storage.toml").write_text(
            f'storage.type = "sled"\nstorage.sled.path = "{folder}/session"\nstorage.sled.cache_capacity = "64M"\n',
            encoding="utf-8",
        )

    def start(self) -> None:
        """Start, and wait until it takes connections. Again and again, as a supervisor would: the raft port is taken
        without SO_REUSEADDR, so a node that was killed cannot have it for a minute."""
        command = [str(program()), "-f", str(self.folder / "rmqtt.toml"), "--id", str(self.number)]
        deadline = time.monotonic() + _START_SECONDS
        while not self.answers:
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"node {self.number} did not start: {self.log()[-2_000:]}")
            if self._process is None or not self._process.running:
                time.sleep(1.0)
                self._process = Process(command, self.folder / "log")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def stop(self) -> None:
        """SIGTERM."""
        if self._process is not None:
            self._process.send(signal.SIGTERM)
            self._process.wait(30)
            self._process = None

    @property
    def answers(self) -> bool:
        """It listens."""
        return listens(self.port)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")


def listens(port: int) -> bool:
    """Whether anyone does on loopback, by the kernel's table: a connection would be one to the broker, too."""
    wanted = f"0100007F:{port:04X} 00000000:0000 0A"
    return any(wanted in line for line in Path("/proc/net/tcp").read_text().splitlines())


def cluster(folder: Path, *, durable: bool) -> list[Node]:
    """Three nodes, started: the first one leads, the others join it."""
    ports = [(free_port(), free_port(), free_port()) for _ in range(3)]
    nodes = [Node(number, folder / f"node{number}", ports, durable=durable) for number in (1, 2, 3)]
    for node in nodes:
        node.start()
    return nodes


def _settings(number: int, folder: Path, port: int, rpc: int, plugins: tuple[str, ...]) -> str:
    """Queues and rates that hold an outage: rmqtt's own are 1 000 messages, and 1 000 a second."""
    listener = {
        "addr": f'"127.0.0.1:{port}"',
        "nodelay": "true",
        "allow_anonymous": "true",
        "max_inflight": "65535",
        "max_mqueue_len": "1000000",
        "mqueue_rate_limit": '"1000000,1s"',
        "session_expiry_interval": '"2h"',
        "max_session_expiry_interval": '"0h"',
        "message_expiry_interval": '"0m"',
    }
    lines = [
        f"node.id = {number}",
        "node.busy.check_enable = false",
        f'rpc.server_addr = "127.0.0.1:{rpc}"',
        'log.to = "console"',
        'log.level = "info"',
        f'log.dir = "{folder}"',
        'log.file = "rmqtt.log"',
        f'plugins.dir = "{folder}/plugins/"',
        f"plugins.default_startups = {json.dumps(plugins)}",
        *(f"listener.tcp.external.{key} = {value}" for key, value in listener.items()),
    ]
    return "\n".join(lines) + "\n"
