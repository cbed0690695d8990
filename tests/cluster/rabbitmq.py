"""RabbitMQ 4 of Debian 13 as three nodes on loopback: sessions are quorum queues, replicated by raft and on disk before
a publisher is acknowledged.

Its MQTT plugin knows no share groups, so one daemon takes all of it. The packages go into Debian 13's folder
(.ci/parts.sh) once, 150 MB: nothing of them is started by the system.
"""

import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.cluster.rmqtt import listens
from tests.support.databases import TRIXIE, Missing, free_port
from tests.support.rig import Process

_SERVER = TRIXIE / "usr/lib/rabbitmq/bin/rabbitmq-server"
_START_SECONDS = 120.0
_NAMES = ("esp1@localhost", "esp2@localhost", "esp3@localhost")


def program() -> Path:
    """The server, installed if it is not there. Raises Missing."""
    if _SERVER.exists():
        return _SERVER
    if os.geteuid() != 0 or not (TRIXIE / "usr/bin/apt-get").exists():
        raise Missing(f"RabbitMQ is installed by root into {TRIXIE}, which `make test-machine` makes")
    with (TRIXIE.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        policy = TRIXIE / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")  # start nothing
        policy.chmod(0o755)
        install = "apt-get update -qq && apt-get install -qq -y --no-install-recommends rabbitmq-server >/dev/null"
        kept = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["chroot", str(TRIXIE), "sh", "-c", install], check=True, env=kept)
    return _SERVER


class Node:
    """One node. It keeps its name, its ports and its folder over ``kill`` and ``start``."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        self._name = name
        self._folder = folder
        self.port = free_port()
        self._process: Process | None = None
        folder.mkdir()
        inside = f"/{folder.relative_to(TRIXIE)}"
        lines = [
            "listeners.tcp = none",
            f"mqtt.listeners.tcp.1 = 127.0.0.1:{self.port}",
            "mqtt.durable_queue_type = quorum",
            "mqtt.prefetch = 5000",
            "mqtt.max_session_expiry_interval_seconds = 604800",
            "cluster_partition_handling = pause_minority",
            "cluster_formation.peer_discovery_backend = classic_config",
            "cluster_formation.target_cluster_size_hint = 3",
            "disk_free_limit.absolute = 50MB",
            "log.console = true",
            "log.console.level = warning",
            *(f"cluster_formation.classic_config.nodes.{at} = {each}" for at, each in enumerate(_NAMES, 1)),
        ]
        (folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (folder / "plugins").write_text("[rabbitmq_mqtt].\n")
        self._environment = environment | {
            "RABBITMQ_NODENAME": name,
            "RABBITMQ_CONFIG_FILE": f"{inside}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{inside}/plugins",
            "RABBITMQ_MNESIA_BASE": f"{inside}/data",
            "RABBITMQ_LOG_BASE": f"{inside}/log",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput +S 2:2 -kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_ALLOW_INPUT": "1",  # the script becomes the server, and a signal reaches it
        }

    def launch(self) -> None:
        """Start, and do not wait: a node that is alone waits for the others."""
        command = ["chroot", str(TRIXIE), f"/{_SERVER.relative_to(TRIXIE)}"]
        self._process = Process(command, self._folder / "console", self._environment)

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        self.launch()
        self.await_answer()

    def await_answer(self) -> None:
        """Raises RuntimeError."""
        deadline = time.monotonic() + _START_SECONDS
        while not listens(self.port):
            if time.monotonic() > deadline or self._process is None or not self._process.running:
                self.kill()
                raise RuntimeError(f"{self._name} did not start: {self.log()[-2_000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def log(self) -> str:
        return (self._folder / "console").read_text(errors="replace")


class Cluster:
    """Three nodes and the daemon by which they find one another."""

    def __init__(self) -> None:
        program()
        self.folder = TRIXIE / "tmp" / f"esp-rabbitmq-{os.getpid()}-{time.monotonic_ns()}"
        self.folder.mkdir()
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text("ESPINGEST")
        cookie.chmod(0o400)
        port = str(free_port())
        inside = f"/{self.folder.relative_to(TRIXIE)}"
        kept = {key: value for key, value in os.environ.items() if key in ("LANG", "PATH")}
        environment = kept | {"HOME": inside, "ERL_EPMD_PORT": port, "ERL_EPMD_ADDRESS": "127.0.0.1"}
        command = ["chroot", str(TRIXIE), "/usr/bin/epmd", "-port", port, "-address", "127.0.0.1"]
        self._names = Process(command, self.folder / "epmd", environment)
        self.nodes = [Node(name, self.folder / name, environment) for name in _NAMES]

    def start(self) -> list[Node]:
        """All three at once: the first one makes the cluster, the others join it."""
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.await_answer()
        return self.nodes

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()
        self._names.send(signal.SIGTERM)
        self._names.wait(10)
