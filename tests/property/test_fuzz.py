"""Bytes that nobody meant: mutations of a small kept corpus through decoder, configuration and the spool's folder.

``corpus/`` holds one file an idea; an input that once found a fault is added there. FUZZ_EXAMPLES=… runs longer. The
packet reader (test_packets.py) and the HTTP port (unit/test_service_http.py) have fuzzers beside their tests.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esp_ingest import config
from esp_ingest.config import ConfigError, Settings, TelemetrySettings
from esp_ingest.store.spool import Spool
from esp_ingest.telemetry.decode import Decoder
from esp_ingest.telemetry.model import SIGNALS, Delivery

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
        assert isinstance(config.load(file), Settings)
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
