"""The spool under attack: crashes, bit rot and cut files at any byte, against a model that is a plain list.

The promise: whatever was appended and not discarded comes back in order, or is reported lost; nothing is invented.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from esp_ingest.model import Delivery
from esp_ingest.store.spool.segment import decode, encode, scan
from esp_ingest.store.spool.spool import Spool, SpoolFull

SEGMENT_BYTES = 131_072  # small, so that a run of the machine walks through several files
MAX_BYTES = 4_194_304
TAG = b"8 bytes!"
EXAMPLES = int(os.environ.get("SPOOL_EXAMPLES", "150"))
# fsync costs nothing in memory; tests/fault/test_spool_kill.py is on a real disk.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None

deliveries = st.builds(
    Delivery,
    topic=st.binary(max_size=40),
    payload=st.one_of(st.binary(max_size=300), st.integers(0, 40_000).map(lambda size: b"\xa5" * size)),
    qos=st.integers(0, 2),
    packet_id=st.integers(0, 65_535),
    connection=st.integers(-1, 2**63 - 1),
    received_us=st.integers(-(2**63), 2**63 - 1),
    redelivered=st.integers(0, 2**63 - 1),
)


class SpoolMachine(RuleBasedStateMachine):
    """``held`` is what the spool must give back, ``drained`` what was discarded: after damage that may come again."""

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="spool-", dir=MEMORY))
        self.generation = 0
        self.folder = self.root / "0"
        self.spool = self._open()
        self.held: list[Delivery] = []
        self.drained: list[Delivery] = []
        self.serial = 0

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()
            shutil.rmtree(self.root)

    def _open(self) -> Spool:
        return Spool(self.folder, MAX_BYTES, SEGMENT_BYTES)

    def _reports(self) -> tuple[int, bool]:
        return sum(report.lost for report in self.spool.reports), any(not report.exact for report in self.spool.reports)

    @rule(batch=st.lists(deliveries, min_size=1, max_size=30))
    def append(self, batch: list[Delivery]) -> None:
        numbered = []
        for delivery in batch:  # a serial number in each, so that "in order" and "invented" can be told
            self.serial += 1
            numbered.append(delivery._replace(topic=b"%d/" % self.serial + delivery.topic))
        before = len(self.spool)
        try:
            self.spool.append(numbered)
        except SpoolFull:
            assert len(self.spool) == before
            return
        self.held += numbered

    @rule(messages=st.integers(1, 50), size=st.integers(0, 200_000))
    def drain_some(self, messages: int, size: int) -> None:
        batch = self.spool.peek(messages, size)
        assert len(batch) <= messages
        assert batch.deliveries or not len(self.spool)
        assert batch.deliveries == self.held[: len(batch)]
        assert self.spool.peek(messages, size).deliveries == batch.deliveries
        self.spool.discard(batch)
        self.drained += self.held[: len(batch)]
        del self.held[: len(batch)]

    @rule()
    def reopen(self) -> None:
        self.spool.close()
        self.spool = self._open()
        assert not self.spool.reports

    def _crash_copy(self) -> None:
        """What a kill -9 leaves: the files as they are, without a close."""
        self.generation += 1
        folder = self.root / str(self.generation)
        shutil.copytree(self.folder, folder)
        self.spool.close()
        self.folder = folder

    @rule()
    def crash(self) -> None:
        self._crash_copy()
        self.spool = self._open()
        assert not self.spool.reports, "a crash between two calls leaves nothing torn"

    @rule(data=st.data(), crash=st.booleans())
    def damage_and_drain(self, data: st.DataObject, crash: bool) -> None:
        """Bend one file, then drain all: the rest comes in order, and what does not come is reported."""
        if crash:
            self._crash_copy()
        else:
            self.spool.close()
        bend_one_file(self.folder, data)
        self.spool = self._open()
        came: list[Delivery] = []
        while batch := self.spool.peek(20, 100_000):
            came += batch.deliveries
            self.spool.discard(batch)
        check_drained(self.held, self.drained, came, *self._reports())
        assert self.spool.bytes == 0
        self.drained += self.held
        self.held = []
        self.spool.close()
        shutil.rmtree(self.folder / "set-aside", ignore_errors=True)
        self.spool = self._open()

    @invariant()
    def books(self) -> None:
        if hasattr(self, "spool"):
            assert len(self.spool) == self.spool.messages == len(self.held)
            assert self.spool.oldest_us == (self.held[0].received_us if self.held else None)
            on_disk = sum(path.stat().st_size for path in self.folder.glob("segment-*"))
            assert self.spool.bytes == on_disk <= MAX_BYTES
            assert (on_disk == 0) == (not self.held), "an empty spool takes no room"


def bend_one_file(folder: Path, data: st.DataObject) -> None:
    files = sorted(path for path in folder.glob("segment-*") if path.stat().st_size)
    if not files:
        return
    path = data.draw(st.sampled_from(files))
    raw = bytearray(path.read_bytes())
    at = data.draw(st.one_of(st.integers(0, len(raw) - 1), st.integers(0, min(200, len(raw) - 1))))
    how = data.draw(st.sampled_from(["flip", "cut", "zero", "garbage"]))
    if how == "flip":
        raw[at] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del raw[at:]
    else:
        size = min(data.draw(st.integers(1, 20_000)), len(raw) - at)
        raw[at : at + size] = bytes(size) if how == "zero" else bytes((7 * i + 13) % 256 for i in range(size))
    path.write_bytes(raw)


def check_drained(
    held: list[Delivery], drained: list[Delivery], came: list[Delivery], lost: int, unknown: bool
) -> None:
    ever = {serial(delivery): delivery for delivery in [*drained, *held]}
    assert all(ever.get(serial(delivery)) == delivery for delivery in came), "nothing is invented"
    serials = [serial(delivery) for delivery in came]
    assert serials == sorted(set(serials)), "in order, each once"
    missing = len({serial(delivery) for delivery in held}.difference(serials))
    assert missing <= lost or unknown, f"{missing} messages vanished in silence (reported {lost})"


def serial(delivery: Delivery) -> int:
    return int(delivery.topic.split(b"/")[0])


def test_spool_machine() -> None:
    run_state_machine_as_test(
        SpoolMachine,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@given(deliveries, st.integers(1, 2**63 - 1))
def test_a_record_comes_back_as_it_went(delivery: Delivery, seq: int) -> None:
    assert decode(encode(delivery, seq, TAG), TAG) == (seq, delivery)


@given(deliveries, st.data())
def test_no_bent_record_passes(delivery: Delivery, data: st.DataObject) -> None:
    record = bytearray(encode(delivery, 7, TAG))
    at = data.draw(st.integers(0, len(record) - 1))
    record[at] ^= data.draw(st.integers(1, 255))
    assert decode(bytes(record), TAG) is None


@given(st.lists(deliveries, max_size=6), st.lists(st.binary(max_size=60), min_size=7, max_size=7))
def test_scan_finds_whole_records_in_rubbish(batch: list[Delivery], rubbish: list[bytes]) -> None:
    parts = [encode(delivery, seq, TAG) for seq, delivery in enumerate(batch)]
    data = b"".join(noise + part for noise, part in zip(rubbish, [*parts, b""], strict=False))
    found = scan(data, TAG)
    assert dict(enumerate(batch)).items() <= found.items()


@given(st.binary(max_size=400))
def test_a_payload_cannot_pass_for_a_record(prefix: bytes) -> None:
    """Its tag is a guess: even when the record around it is destroyed, what a sender put inside is not believed."""
    forged = encode(Delivery(b"esp/OTHER/telemetry", b"{}", 1, 0, 0, 0), 3, b"guessed!")
    outer = bytearray(encode(Delivery(b"esp/ESP1/telemetry", prefix + forged, 1, 1, 1, 1), 2, TAG))
    outer[20] ^= 1
    assert scan(bytes(outer), TAG) == {}


@pytest.mark.parametrize("size", [0, 1])
def test_scan_of_nothing(size: int) -> None:
    assert scan(TAG[:size], TAG) == {}
