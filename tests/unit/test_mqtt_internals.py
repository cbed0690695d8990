"""What mqtt/client.py relies on inside paho. When this fails after an upgrade, read paho's diff before mending it."""

import importlib.metadata
import inspect
import socket

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from tests.support.fake_broker import FakeBroker, packet


@pytest.fixture
def client() -> paho.Client:
    return paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)


def test_the_pinned_minor_version_is_installed() -> None:
    assert importlib.metadata.version("paho-mqtt").split(".")[:2] == ["2", "2"]


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_packet_read", ["self"]),
        ("_packet_handle", ["self"]),
        ("_packet_queue", ["self", "command", "packet", "mid", "qos", "info"]),
        ("_sock_recv", ["self", "bufsize"]),
        ("_sock_send", ["self", "buf"]),
        ("_sock_close", ["self"]),
        ("_create_socket_connection", ["self"]),
        ("_ssl_wrap_socket", ["self", "tcp_sock"]),
        ("reconnect", ["self"]),
        ("loop_read", ["self", "max_packets"]),
        ("loop_write", ["self"]),
        ("loop_misc", ["self"]),
    ],
)
def test_methods_and_their_parameters(method: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(paho.Client, method)).parameters) == parameters


def test_attributes(client: paho.Client) -> None:
    assert set(client._in_packet) == {
        "command", "have_remaining", "remaining_count", "remaining_mult", "remaining_length", "packet",
        "to_process", "pos",
    }  # fmt: skip
    assert isinstance(client._last_bytes_received, float)
    assert client._ping_t == 0.0
    assert client._sock is None
    assert len(client._out_packet) == 0
    with client._msgtime_mutex:
        assert paho.time_func() > 0
    assert paho.PUBACK == 0x40
    assert client._ssl_context is None
    client.tls_set()
    assert client._ssl_context.check_hostname


def test_loop_read_reads_through_our_override(client: paho.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    ours, theirs = socket.socketpair()
    client._sock = ours
    monkeypatch.setattr(client, "_packet_read", lambda: calls.append(1) or MQTTErrorCode.MQTT_ERR_AGAIN)
    assert client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS
    assert calls == [1]
    client._sock_close()
    theirs.close()


def test_reconnect_drops_what_was_queued_before(client: paho.Client) -> None:
    """Acknowledgements of the old connection must not reach the new one."""
    client.on_socket_register_write = lambda *_: None
    with FakeBroker() as broker:
        client.connect_async(broker.host, broker.port, clean_start=False)
        client._packet_queue(paho.PUBACK, b"\x40\x02\x00\x01", 0, 1)
        client.reconnect()
        client.loop_write()
        connection = broker.connection()
        client._sock_send(packet(12, b""))
        connection.wait_for(12)
        assert [each.kind for each in connection.packets] == [1, 12]
        client._sock_close()


def test_queueing_does_not_write_when_somebody_else_does(client: paho.Client) -> None:
    client.on_socket_register_write = lambda *_: None
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    client._sock = ours
    client._packet_queue(paho.PUBACK, b"\x40\x02\x00\x01", 0, 1)
    with pytest.raises(BlockingIOError):
        theirs.recv(10)
    client.loop_write()
    assert theirs.recv(10) == b"\x40\x02\x00\x01"
    client._sock_close()
    theirs.close()


def test_keepalive_asks_the_attributes_that_we_set(client: paho.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silence of more than two keep alives, and an unanswered ping, end the connection, unless they are excused."""
    now = 5_000.0  # the real clock counts from boot, and 0 means no ping to paho: a young machine has no 1 000 s ago
    monkeypatch.setattr(paho, "time_func", lambda: now)
    ours, theirs = socket.socketpair()
    client._sock = ours
    client._state = paho._ConnectionState.MQTT_CS_CONNECTED
    client._last_bytes_received = client._last_msg_out = now
    client._ping_t = 0.0
    assert client.loop_misc() == MQTTErrorCode.MQTT_ERR_SUCCESS
    client._ping_t = now - 1_000
    assert client.loop_misc() == MQTTErrorCode.MQTT_ERR_CONN_LOST
    assert client._sock is None
    theirs.close()
