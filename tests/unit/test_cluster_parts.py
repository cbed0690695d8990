"""The pure parts of ``make cluster``: what is built, and whose loss a loss is."""

import json
from pathlib import Path

from tests.cluster import rmqtt
from tests.cluster.__main__ import Row
from tests.cluster.judge import Diagnoses
from tests.cluster.tapped import Balancer, sent_down, undelivered
from tests.support.fault_publisher import Comparison, payload

MANIFEST = """[package]
name = "rmqttd"

[package.metadata.plugins.rmqtt-http-api]
default_startup = true

[package.metadata.plugins.rmqtt-cluster-raft]
immutable = true

[dependencies.rmqtt]
version = "0.24.0"

[dependencies.rmqtt-cluster-raft]
version = "0.24.0"

[dependencies.rmqtt-conf]
version = "0.5.0"

[dependencies.rmqtt-http-api]
version = "0.24.0"

[dependencies.rmqtt-session-storage]
version = "0.24.0"
features = [
    "sled",
    "redis",
]

[dependencies.time]
version = "0.3"
"""


def test_the_broker_is_built_with_our_plugins_only() -> None:
    trimmed = rmqtt.trimmed(MANIFEST)
    assert "http-api" not in trimmed
    assert "redis" not in trimmed
    for kept in (
        "plugins.rmqtt-cluster-raft",
        "[dependencies.rmqtt]",
        "[dependencies.rmqtt-conf]",
        "[dependencies.time]",
    ):
        assert kept in trimmed


def publish(well: bytes, number: int, step_ms: int = 1) -> bytes:
    """An MQTT 5 PUBLISH, with two properties."""
    topic = b"esp/%b/telemetry" % well
    rest = len(topic).to_bytes(2, "big") + topic + b"\x00\x07\x05\x02\x00\x00\x00\x09" + payload(0, number, 0, step_ms)
    return b"\x32" + bytes([len(rest) & 0x7F | 0x80, len(rest) >> 7]) + rest


def test_what_no_member_was_sent_is_the_clusters_loss(tmp_path: Path) -> None:
    node = rmqtt.Node(1, tmp_path / "node", [(1, 2, 3)], durable=False)
    one, other = Balancer([node]), Balancer([node])
    one.delivered[1] = bytearray(publish(b"W1", 7) + publish(b"W2", 8, 20_000))
    other.delivered[2] = bytearray(publish(b"W1", 9)[:-1])
    assert sent_down(bytes(one.delivered[1])) == {("W1", 7), ("W2", 8)}
    assert undelivered({("W1", 7), ("W2", 7), ("W1", 9)}, [one, other]) == 2, "one of another well, and one cut short"


def test_a_row_says_whose_loss_it_is() -> None:
    result = Comparison(100, 100, 90, 0, lost=10, doubled=0, altered=0, invented=0)
    assert Row("memory", "nodes", result, 10, Diagnoses(3, 3, 3)).is_clean
    ours = Row("memory", "nodes", result, 9, Diagnoses(3, 3, 2))
    assert not ours.is_clean
    assert str(ours) == "| memory | nodes | 100 | 100 | 90 | 9 | 1 | 0 | 0 | 2 of 3, 1 others |"


def test_a_node_listens_on_loopback_only_and_knows_its_peers(tmp_path: Path) -> None:
    node = rmqtt.Node(2, tmp_path, [(10, 11, 12), (20, 21, 22)], durable=True)
    settings = (node.folder / "rmqtt.toml").read_text()
    assert "0.0.0.0" not in settings
    assert f"plugins.default_startups = {json.dumps(rmqtt.PLUGINS)}" in settings
    assert '["1@127.0.0.1:12", "2@127.0.0.1:22"]' in (node.folder / "plugins/rmqtt-cluster-raft.toml").read_text()
