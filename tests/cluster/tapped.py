"""A balancer in front of the cluster that keeps what it passes on: the witness of whose loss a loss is."""

import re
from collections.abc import Sequence
from typing import Any, Protocol

from tests.cluster.rmqtt import listens
from tests.support.proxy import Direction, TcpProxy

Message = tuple[str, int]  # a reading of the fleet: its well and its number
# Topic, packet id, properties, payload (tests/support/fault_publisher.py).
_PUBLISH = re.compile(
    rb'esp/([^/]{1,64})/telemetry.{2,80}?\{"timestamp":\d+,"flow_rate":\d+,"gor":\d+,(?:[a-z_":\d]+,){0,2}"n":(\d+)\}',
    re.S,
)


class Node(Protocol):
    """A node of a broker, which keeps its port and what it has on disk."""

    @property
    def port(self) -> int:
        """Where it takes MQTT."""

    def start(self) -> None:
        """Start, and wait until it takes connections."""

    def kill(self) -> None:
        """SIGKILL."""


class Balancer(TcpProxy):
    """Each connection goes to the first node that listens, from ``first`` on, as a balancer with a sticky preference
    would choose. ``turn``: from another node each time. ``delivered`` is what the broker sent, a connection each."""

    def __init__(self, nodes: Sequence[Node], first: int = 0, *, turn: bool = False) -> None:
        self._nodes = nodes
        self._first = first
        self._turn = turn
        self.delivered: dict[int, bytearray] = {}
        self._kept: dict[int, Any] = {}
        super().__init__("127.0.0.1", nodes[0].port)

    @property
    def target(self) -> tuple[str, int]:
        """Where the next connection goes."""
        order = [*self._nodes[self._first :], *self._nodes[: self._first]]
        if self._turn:
            self._first = (self._first + 1) % len(self._nodes)
        return "127.0.0.1", next((node.port for node in order if listens(node.port)), order[0].port)

    @target.setter
    def target(self, _: tuple[str, int]) -> None:
        """Chosen a connection."""

    def _look(self, connection: Any, direction: Direction, data: bytes) -> None:
        if direction == "down":
            self.delivered.setdefault(id(connection), bytearray()).extend(data)
            self._kept[id(connection)] = connection  # so that no other gets its identity
        super()._look(connection, direction, data)


def sent_down(stream: bytes) -> set[Message]:
    """The readings of the fleet in what a broker sent: (well, number)."""
    return {(well.decode(), int(number)) for well, number in _PUBLISH.findall(stream)}


def undelivered(lost: set[Message], balancers: list[Balancer]) -> int:
    """How many of ``lost`` were never sent to a member: what the broker lost after it had acknowledged it."""
    streams = [bytes(stream) for balancer in balancers for stream in balancer.delivered.values()]
    return len(lost.difference(*map(sent_down, streams)))
