"""Bytes that nobody meant: mutations of a small kept corpus through the packet reader, the decoder, the configuration,
the HTTP port and the spool's folder.

``corpus/`` holds one file an idea; an input that once found a fault is added there. FUZZ_EXAMPLES=… runs longer. What
the packet reader makes of well-formed streams, however they are cut, is in test_packets.py.
"""

import contextlib
import logging
import os
import re
import shutil
import socket
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esp_ingest.config.load import load
from esp_ingest.config.settings import ConfigError, HttpSettings, ServiceSettings, Settings, TelemetrySettings
from esp_ingest.model import SIGNALS, Delivery
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.health import Health
from esp_ingest.service.http import HttpServer
from esp_ingest.service.metrics import Metrics
from esp_ingest.store.spool.spool import Spool
from esp_ingest.telemetry.decode import Decoder
from tests.support.mqtt_clients import ReadingClient

CORPUS = Path(__file__).parent / "corpus"
SHIPPED = Path(__file__).parents[2] / "config" / "esp_ingest.toml"
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
NOW_US = 1_764_000_000_000_000
TOPIC = b"esp/W1/telemetry"
WELL_FORMED = b'{"timestamp":%d,"pip":1}' % (NOW_US // 1_000)

fuzzed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


def corpus(kind: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / kind).iterdir())]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes], tokens: list[bytes]) -> bytes:
    """A seed after a few cuts, repeats, splices, flips and inserted tokens."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 20)))
        how = draw(st.sampled_from(["cut", "repeat", "splice", "flip", "token", "bytes"]))
        if how == "cut":
            del data[start:end]
        elif how == "repeat":
            data[start:start] = data[start:end] * draw(st.integers(1, 50))
        elif how == "splice":
            data[start:] = draw(st.sampled_from(seeds))[start:]
        elif how == "flip" and start < len(data):
            data[start] ^= draw(st.integers(1, 255))
        elif how == "token":
            data[start:end] = draw(st.sampled_from(tokens))
        elif how == "bytes":
            data[start:start] = draw(st.binary(max_size=8))
    return bytes(data)


PACKET_TOKENS = [
    bytes([first]) for first in (0x00, 0x20, 0x30, 0x32, 0x34, 0x36, 0x3B, 0x40, 0x62, 0x90, 0xD0, 0xE0, 0xF0)
]
PACKET_TOKENS += [
    b"\x00\x00",
    b"\xff\xff",
    b"\x80",
    b"\xff\xff\xff\x7f",
    b"\x80\x80\x80\x80",
    b"\x00\x03esp",
    b"\xed\xa0\x80",
]


@fuzzed
@given(
    st.lists(mutated(corpus("packets"), PACKET_TOKENS), min_size=1, max_size=4),
    st.lists(st.integers(1, 40), max_size=20),
    st.booleans(),
    st.booleans(),
)
def test_the_packet_reader_survives(stream: list[bytes], cuts: list[int], is_mqtt5: bool, is_accepted: bool) -> None:
    """It delivers or ends the connection, and never raises: an error there would kill the network thread."""
    data = b"".join(stream)
    pieces: list[bytes] = []
    for size in cuts:
        pieces, data = [*pieces, data[:size]], data[size:]
    with ReadingClient(is_mqtt5=is_mqtt5, is_accepted=is_accepted) as reading:
        reading.feed(*pieces, data)
        assert sum(len(each.payload) for each in reading.deliveries) <= len(b"".join(stream))
        for delivery in reading.deliveries:
            assert delivery.topic
            assert delivery.qos in (0, 1, 2)
            assert (delivery.packet_id > 0) == (delivery.qos > 0)
            assert is_accepted or reading.client._accepted, "nothing is taken before CONNACK"


HTTP_TOKENS = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"/",
    b"/metrics",
    b"/health/ready",
    b"http://",
    b"?",
    b"#",
    b"%00",
    b"%2e%2e/",
]
HTTP_TOKENS += [
    b" HTTP/1.1",
    b" HTTP/9.9",
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\n\n",
    b"\x00",
    b"\xff",
    b"Host: ",
    b"x" * 9_000,
]
HONEST = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass
class Client:
    """What a client sends, in which pieces, and how it leaves."""

    request: bytes
    cuts: list[int]
    leaves: str  # "reads" the answer, "half" closes and reads, "resets", "goes" without a word, or "stays"


@contextlib.contextmanager
def troubles(name: str) -> Iterator[list[str]]:
    """What a logger is told meanwhile."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


@pytest.fixture(scope="module")
def port() -> Iterator[HttpServer]:
    health = Health(SystemClock(), ServiceSettings())
    server = HttpServer(HttpSettings(port=0), health, Metrics())
    server.start()
    yield server
    server.stop()
    assert not server.alive


@fuzzed
@given(
    st.lists(
        st.builds(
            Client,
            mutated(corpus("http"), HTTP_TOKENS),
            st.lists(st.integers(1, 200), max_size=4),
            st.sampled_from(["reads", "half", "resets", "goes", "stays"]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_the_http_port_answers_or_closes_and_serves_the_next(port: HttpServer, clients: list[Client]) -> None:
    with troubles("esp_ingest.service.http") as said, contextlib.ExitStack() as open_ones:
        for client in clients:
            sock = open_ones.enter_context(socket.create_connection(("127.0.0.1", port.port), timeout=5))
            check_answer(converse(sock, client), client)
        honest = open_ones.enter_context(socket.create_connection(("127.0.0.1", port.port), timeout=5))
        answer = converse(honest, Client(HONEST, [], "reads"))
        assert answer is not None
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert port.alive
        assert said == [], "a client's bytes are no error of ours"


def converse(sock: socket.socket, client: Client) -> bytes | None:
    """Send, leave as the client does; what came back up to the end, or None where it did not look."""
    data = client.request
    with contextlib.suppress(OSError):  # refused before it was all sent: the answer is there to read
        for size in client.cuts:
            sock.sendall(data[:size])
            data = data[size:]
        sock.sendall(data)
        if client.leaves == "half":
            sock.shutdown(socket.SHUT_WR)
    whole = b"\n\n" in client.request or b"\r\n\r\n" in client.request
    if client.leaves == "half" or (client.leaves == "reads" and whole):
        return received_from(sock)
    if client.leaves == "resets":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if client.leaves != "stays":
        sock.close()
    return None


def received_from(sock: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65_536):
            answer += piece
    return answer


def check_answer(answer: bytes | None, client: Client) -> None:
    """Nothing, or one whole answer of HTTP/1.1."""
    if not answer:
        return
    head, _, body = answer.partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1\.1 (200|400|404|405|431|503) ", head), head
    length = re.search(rb"^Content-Length: (\d+)\r?$", head, re.MULTILINE)
    assert length is not None
    assert len(body) in (0, int(length[1])), "whole, or a HEAD's"


JSON_TOKENS = [
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b'"',
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"1e400",
    b"NaN",
    b"-0",
    b"null",
]
JSON_TOKENS += [b"true", b'"pip":', b'"timestamp":', b"9" * 400, b"\x00", b"\xff", b"\xef\xbb\xbf", b"// "]


@fuzzed
@given(st.lists(mutated(corpus("decode"), JSON_TOKENS), min_size=1, max_size=5), st.integers(0, 5))
def test_the_decoder_survives_and_neighbours_stay_untouched(payloads: list[bytes], at: int) -> None:
    decoder = Decoder(TelemetrySettings(), "esp")
    at = min(at, len(payloads))
    messages = [*payloads[:at], WELL_FORMED, *payloads[at:]]
    together = decoder.decode([Delivery(TOPIC, body, 1, 1, 1, NOW_US) for body in messages])
    alone = [decoder.decode([Delivery(TOPIC, body, 1, 1, 1, NOW_US)]) for body in messages]
    assert together.items == sum(each.items for each in alone)
    assert len(alone[at].readings) == 1, "the well-formed one is a reading whatever stands beside it"
    times = np.sort(np.concatenate([each.readings.timestamp_us for each in alone]))
    assert np.array_equal(np.sort(together.readings.timestamp_us), times)
    low = np.array([signal.low for signal in SIGNALS])[:, None]
    high = np.array([signal.high for signal in SIGNALS])[:, None]
    values = together.readings.values
    assert np.all(np.isnan(values) | ((values >= low) & (values <= high))), "outside its limits nothing is stored"
    for body, each in zip(messages, alone, strict=True):
        assert each.items >= 1, "every payload is a reading or a reject"
        assert all(reject.payload for reject in each.rejects) or not body


TOML_TOKENS = [b"[mqtt]", b"[", b"]", b"=", b'"', b"'''", b"#", b"\n", b"inf", b"nan", b"-1", b"0", b"1e400", b"true"]
TOML_TOKENS += [
    b"9" * 30,
    b"[[mqtt]]",
    b"{",
    b"}",
    b"port",
    b"mqtt.port = 1",
    b"\x00",
    b"\xff",
    b"[telemetry.limits.pip]",
]


@fuzzed
@given(mutated([SHIPPED.read_bytes(), *corpus("config")], TOML_TOKENS))
def test_a_configuration_loads_or_is_refused_in_one_sentence(text: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".toml", dir=MEMORY) as file:
        file.write(text)
        file.flush()
        if said := refusal(file.name):
            check_sentence(said)


KEYS = [
    f"{section}__{key}" for section in Settings.model_fields for key in vars(Settings.model_fields[section].default)
]


@fuzzed
@given(
    key=st.one_of(st.sampled_from(KEYS), st.from_regex(r"[A-Z_]{1,20}", fullmatch=True)),
    value=st.one_of(
        st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=30),
        st.sampled_from(
            ["", "0", "-1", "1e999", "nan", "{}", "[]", "null", '{"pip": {"low": 5, "high": 1}}', "1" * 5_000]
        ),
    ),
)
def test_an_environment_override_loads_or_is_refused_in_one_sentence(key: str, value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(f"ESP_INGEST_{key.upper()}", value)
        said = refusal(None)
    if said:
        check_sentence(said)
        assert len(value) < 12 or key.endswith("_file") or value not in said, "a value may be a secret"


def refusal(file: str | None) -> str:
    """What is wrong with the configuration; empty where it loads."""
    try:
        assert isinstance(load(file), Settings)
    except ConfigError as error:
        return str(error)
    return ""


def check_sentence(text: str) -> None:
    assert 10 < len(text) < 2_000
    assert re.search(r"[.?]$", text)
    assert "Traceback" not in text


@fuzzed
@given(
    names=st.lists(
        st.sampled_from(
            [
                "segment-0000000000000001-0011223344556677.db",
                "segment-0000000000000001-0011223344556678.db",
                "segment-0000000000000900-0011223344556677.db",
                "segment-9999999999999999-0011223344556677.db",
                "segment-0000000000000001-0011223344556677.db-wal",
                "segment-0000000000000001-0011223344556677.db-journal",
                "segment-0000000000000001-0011223344556677.new",
                "segment-1-00.db",
                "set-aside",
                "lock",
            ]
        ),
        max_size=4,
        unique=True,
    ),
    bodies=st.lists(
        st.one_of(st.binary(max_size=2_000), st.just(b"SQLite format 3\0" + bytes(40_000))), min_size=4, max_size=4
    ),
)
def test_a_folder_of_rubbish_does_not_stop_the_spool(names: list[str], bodies: list[bytes]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-spool-", dir=MEMORY))
    try:
        for name, body in zip(names, bodies, strict=False):
            (folder / name).write_bytes(body)
        spool = Spool(folder, 1 << 24, 1 << 18)
        spool.append([Delivery(TOPIC, b"kept", 1, 1, 1, 5)])
        came: list[bytes] = []
        while batch := spool.peek(10, 1_000):
            came += [delivery.payload for delivery in batch.deliveries]
            spool.discard(batch)
        assert came == [b"kept"]
        spool.close()
    finally:
        shutil.rmtree(folder)
