"""The spool's promises one by one: order, bounds, full disks, locks, damage, shrinking."""

import contextlib
import errno
import os
import resource
import sqlite3
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp_ingest.model import Delivery
from esp_ingest.store.spool import segment as spool_segment
from esp_ingest.store.spool.segment import decode, encode, scan
from esp_ingest.store.spool.spool import SetAside, Spool, SpoolError, SpoolFull, SpoolUnusable, orphans

MIB = 1_048_576


def messages(count: int, first: int = 0, size: int = 200) -> list[Delivery]:
    return [
        Delivery(
            b"esp/ESP%06d/telemetry" % number, b"x" * size, 1, number % 65_535 + 1, 4, 1_700_000_000_000_000 + number
        )
        for number in range(first, first + count)
    ]


def numbers(deliveries: list[Delivery]) -> list[int]:
    return [int(delivery.topic[7:13]) for delivery in deliveries]


def drain(spool: Spool, batch: int = 100) -> list[int]:
    came: list[int] = []
    while found := spool.peek(batch, MIB):
        came += numbers(found.deliveries)
        spool.discard(found)
    return came


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with_small_files = Spool(tmp_path / "spool", 8 * MIB, 128 * 1024)
    yield with_small_files
    with_small_files.close()


def reopened(spool: Spool) -> Spool:
    spool.close()
    return Spool(spool.folder, spool.max_bytes, spool.segment_bytes)


def segments(spool: Spool) -> list[Path]:
    return sorted(spool.folder.glob("segment-*.db"))


def test_first_in_first_out_over_many_files(spool: Spool) -> None:
    for start in range(0, 5_000, 500):
        spool.append(messages(500, start))
    assert len(segments(spool)) > 5
    assert len(spool) == 5_000
    assert drain(spool, 333) == list(range(5_000))


def test_a_message_comes_back_as_it_was(spool: Spool) -> None:
    sent = [
        Delivery(b"\xff\x00", b"\x00\xfe", 2, 77, 1_764_000_000_000_000, -5),
        Delivery(b"t", b"", 0, 0, -1, 5, True),
        Delivery(b"", b"p", 1, 65_535, 3, 6, True),
    ]
    spool.append(sent)
    assert spool.peek(10, 10_000).deliveries == sent


@pytest.mark.parametrize(
    ("kind", "origin", "expected"),
    [(0, b"", (0, -1, 0)), (0x80, struct.pack(">qH?", 3, 9, True), (9, 3, 1))],
    ids=["before schema 10", "schema 10"],
)
def test_records_of_older_programs_are_read(kind: int, origin: bytes, expected: tuple[int, int, int]) -> None:
    """An upgrade finds them in the spool. Without an origin it may be a new message, and is taken for one."""
    rest = struct.pack(">QqIIB", 7, 5, 1, 2, kind | 1) + origin + b"t" + b"pp"
    record = b"tag-tag-" + zlib.crc32(rest).to_bytes(4, "big") + rest
    packet_id, connection, redelivered = expected
    came = Delivery(b"t", b"pp", 1, packet_id, connection, 5, redelivered)
    assert decode(record, b"tag-tag-") == (7, came)
    assert scan(b"\0" * 30 + record + encode(came, 8, b"tag-tag-") + b"\0", b"tag-tag-") == {7: came, 8: came}


def test_peek_is_bounded_but_never_stuck(spool: Spool) -> None:
    spool.append(messages(10, size=1_000))
    assert len(spool.peek(3, MIB)) == 3
    assert len(spool.peek(10, 2_500)) == 2
    assert len(spool.peek(10, 1)) == 1


def test_peek_does_not_remove(spool: Spool) -> None:
    spool.append(messages(10))
    assert spool.peek(4, MIB) == spool.peek(4, MIB)
    assert len(spool) == 10


def test_an_empty_spool_costs_nothing(tmp_path: Path) -> None:
    """No file, and no sqlite3 either, until there is something to keep."""
    code = (
        "import sys; from pathlib import Path; from esp_ingest.store.spool.spool import Spool\n"
        f"s = Spool(Path({str(tmp_path / 'spool')!r}), 1 << 30, 1 << 25)\n"
        "assert len(s) == 0 and not s.peek(1, 1).deliveries and s.oldest_us is None\n"
        "s.append([])\n"
        "print('sqlite3' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["lock"]


def test_books_survive_a_restart(spool: Spool) -> None:
    spool.append(messages(900))
    spool.append(messages(100, 900))
    spool.discard(spool.peek(250, MIB))
    again = reopened(spool)
    assert (len(again), again.oldest_us) == (750, 1_700_000_000_000_250)
    assert again.bytes == sum(path.stat().st_size for path in again.folder.glob("segment-*"))
    assert drain(again) == list(range(250, 1_000))
    assert not again.reports
    again.close()


def test_the_disk_shrinks(spool: Spool) -> None:
    sizes = []
    for start in range(0, 4_000, 400):
        spool.append(messages(400, start))
    while batch := spool.peek(400, MIB):
        spool.discard(batch)
        sizes.append(sum(path.stat().st_size for path in spool.folder.iterdir()))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 500_000
    assert sizes[-1] < 100, "only the lock is left"
    assert spool.bytes == 0


def test_live_messages_behind_a_backlog_do_not_let_it_grow(spool: Spool) -> None:
    """In step: as much comes as goes. The files of what is drained must not stay."""
    spool.append(messages(500))
    came: list[int] = []
    most = 0
    for start in range(500, 20_000, 500):
        spool.append(messages(500, start))
        batch = spool.peek(500, MIB)
        came += numbers(batch.deliveries)
        spool.discard(batch)
        most = max(most, spool.bytes)
    came += drain(spool)
    assert came == list(range(20_000))
    assert most < 4 * spool.segment_bytes


def test_full_by_its_own_bound_and_usable_again(spool: Spool) -> None:
    start, most = 0, 0
    with pytest.raises(SpoolFull, match="max_bytes"):  # noqa: PT012 - which append it is, is not the point
        while start < 100_000:
            spool.append(messages(500, start))
            start += 500
            most = max(most, sum(path.stat().st_size for path in spool.folder.iterdir()))
    assert len(spool) == start < 100_000
    assert spool.max_bytes * 0.9 < most <= spool.max_bytes
    spool.discard(spool.peek(3_000, 8 * MIB))
    while spool.bytes > 7 * MIB:
        spool.discard(spool.peek(3_000, 8 * MIB))
    spool.append(messages(500, start))
    left = len(spool)
    assert drain(spool) == list(range(start + 500 - left, start + 500))


def test_full_counts_the_log_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound holds at every moment, not only when an append is over."""
    spool = Spool(tmp_path / "spool", MIB, 65_536)
    peaks: list[int] = []
    checkpoint = spool_segment.Segment._checkpoint

    def watch(segment: spool_segment.Segment) -> None:
        peaks.append(sum(path.stat().st_size for path in spool.folder.glob("segment-*")))
        checkpoint(segment)

    monkeypatch.setattr(spool_segment.Segment, "_checkpoint", watch)
    with pytest.raises(SpoolFull):  # noqa: PT012
        for start in range(0, 100_000, 300):
            spool.append(messages(300, start))
    assert MIB * 0.75 < max(peaks) <= MIB
    spool.close()


def test_only_one_process_may_use_a_folder(spool: Spool) -> None:
    code = (
        "from pathlib import Path; from esp_ingest.store.spool.spool import Spool, SpoolError\n"
        f"try:\n    Spool(Path({str(spool.folder)!r}), 1 << 30, 1 << 25)\n"
        "except SpoolError as error:\n    print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"{spool.folder} is in use by another process (pid {os.getpid()})" in said


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpoolError, match=r"cannot be used \(.*\): give a writable one with spool\.path\.$"):
        Spool(tmp_path / "file" / "spool", MIB, 65_536)


def test_nobody_else_may_read(spool: Spool) -> None:
    spool.append(messages(10))
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in spool.folder.iterdir()} == {0o600}


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "mount"
    folder.mkdir()
    folder.chmod(0o2775)
    spool = Spool(folder, MIB, 65_536)
    spool.append(messages(1))
    spool.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o2775
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_folder_that_every_user_shares_is_refused_and_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(SpoolUnusable, match=r"open to every user: give a folder of its own with spool\.path\.$"):
        Spool(tmp_path, MIB, 65_536)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_points_elsewhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(SpoolUnusable):
        Spool(tmp_path / "spool", MIB, 65_536)
    assert (tmp_path / "precious").read_text() == "kept"


def test_orphans_are_the_files_of_a_spool_and_of_its_workers(tmp_path: Path) -> None:
    assert orphans(tmp_path / "nowhere") == []
    for folder in (tmp_path, tmp_path / "worker-1"):
        spool = Spool(folder, MIB, 65_536)
        spool.append(messages(3))
        spool.close()
    assert [path.parent.name for path in orphans(tmp_path)] == [tmp_path.name, "worker-1"]
    assert orphans(tmp_path / "worker-0") == orphans(tmp_path)
    drained = Spool(tmp_path, MIB, 65_536)
    drain(drained)
    drained.close()
    assert [path.parent.name for path in orphans(tmp_path)] == ["worker-1"]


def bend(path: Path, at: int, what: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[at : at + len(what)] = what
    path.write_bytes(raw)


def test_a_bent_record_is_reported_and_the_rest_drains(spool: Spool) -> None:
    spool.append(messages(300))
    spool.append(messages(300, 300))
    spool.close()
    path = segments(spool)[0]
    bend(path, path.read_bytes().index(b"ESP000017") + 40, b"y")
    heard: list[SetAside] = []
    again = Spool(spool.folder, spool.max_bytes, spool.segment_bytes, heard.append)
    assert drain(again) == [number for number in range(600) if number != 17]
    assert [(report.lost, report.exact) for report in heard] == [(1, True)]
    assert (heard, again.set_aside_total) == (list(again.reports), 1)
    kept = (again.folder / "set-aside" / heard[0].file).read_bytes()
    assert b"ESP000017" in kept, "the bent record is kept for people, byte for byte"
    assert not segments(again)
    again.close()


def test_an_overwritten_header_loses_nothing(spool: Spool) -> None:
    spool.append(messages(300))
    spool.close()
    bend(segments(spool)[0], 0, os.urandom(120))
    again = reopened(spool)
    assert drain(again) == list(range(300))
    assert [(report.lost, report.exact, report.salvaged) for report in again.reports] == [(0, False, 300)]
    again.close()


def test_a_cut_file_says_how_many_are_gone(spool: Spool) -> None:
    """The number in the next file's name tells it, whatever the cut took with it."""
    for start in range(0, 1_200, 400):
        spool.append(messages(400, start))
    spool.close()
    first, second = segments(spool)[:2]
    held = int(second.name[8:24]) - int(first.name[8:24])
    os.truncate(first, first.stat().st_size * 3 // 4)
    again = reopened(spool)
    came = drain(again)
    (report,) = again.reports
    assert came == sorted(came)
    assert (report.lost, report.exact) == (1_200 - len(came), True)
    assert 0 < report.lost < held
    again.close()


def test_an_emptied_newest_file_is_never_silent(spool: Spool) -> None:
    spool.append(messages(300))
    spool.close()
    os.truncate(segments(spool)[0], 0)
    again = reopened(spool)
    assert drain(again) == []
    assert [report.exact for report in again.reports] == [False]
    again.append(messages(5))
    assert drain(again) == list(range(5))
    again.close()


def test_a_garbage_log_is_reported_and_kept(spool: Spool) -> None:
    spool.append(messages(300))
    log = segments(spool)[0].with_name(segments(spool)[0].name + "-wal")
    spool.close()
    log.write_bytes(b"garbage" * 999)
    again = reopened(spool)
    assert len(again) == 300
    assert drain(again) == list(range(300))
    (report,) = again.reports
    assert (report.lost, report.exact) == (0, False)
    assert (again.folder / "set-aside" / report.file).read_bytes() == b"garbage" * 999
    again.close()


def test_an_append_cut_short_is_kept_as_far_as_it_is_there(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 in the middle of an append, before its commit reached the disk: the log ends in mid-air."""
    spool.append(messages(50))
    monkeypatch.setattr(spool_segment.Segment, "_checkpoint", lambda segment: None)
    spool.append(messages(200, 50))
    newest = segments(spool)[-1]
    log = newest.with_name(newest.name + "-wal")
    torn, whole = log.read_bytes()[:-5_000], newest.read_bytes()
    monkeypatch.undo()
    spool.close()
    newest.write_bytes(whole)
    log.write_bytes(torn)
    again = reopened(spool)
    came = drain(again)
    assert came == sorted(came)
    assert came[:50] == list(range(50))
    assert len(came) > 100
    assert "cut short" in again.reports[0].reason
    again.close()


def test_a_bent_row_number_makes_no_absurd_count(spool: Spool) -> None:
    """No checksum covers it; the metric of messages in the spool would read 10^18."""
    spool.append(messages(50))
    spool.close()
    with contextlib.closing(sqlite3.connect(segments(spool)[0])) as file, file:
        file.execute("UPDATE message SET seq = ? WHERE seq = (SELECT max(seq) FROM message)", [1 << 60])
    again = reopened(spool)
    assert again.messages <= 50
    assert drain(again)[:49] == list(range(49))
    assert again.messages == 0
    (report,) = again.reports
    assert "claims" in report.reason
    again.append(messages(5))
    assert drain(again) == list(range(5))
    again.close()


def test_records_longer_than_a_page_survive_damage_elsewhere(spool: Spool) -> None:
    spool.append([*messages(5, size=50_000), *messages(5, 5)])
    spool.close()
    path = segments(spool)[0]
    bend(path, path.read_bytes().index(b"ESP000007") + 40, b"y")
    again = reopened(spool)
    assert drain(again) == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    again.close()


def test_what_was_set_aside_is_bounded_too(spool: Spool) -> None:
    aside = spool.folder / "set-aside"
    aside.mkdir()
    for number in range(10):
        (aside / f"old-{number}").write_bytes(b"x" * MIB)
        os.utime(aside / f"old-{number}", (number, number))
    spool.append(messages(300))
    spool.close()
    path = segments(spool)[0]
    bend(path, path.read_bytes().index(b"ESP000017") + 40, b"y")
    again = reopened(spool)
    drain(again)
    names = sorted(path.name for path in aside.iterdir())
    assert path.name in names
    assert "old-0" not in names
    assert "old-9" in names
    assert sum(path.stat().st_size for path in aside.iterdir()) <= again.max_bytes
    again.close()


def test_a_disk_error_in_an_append_keeps_nothing_half(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.append(messages(10))

    def fail(segment: spool_segment.Segment, *_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(spool_segment.Segment, "_set_mark", fail)
    with pytest.raises(SpoolError, match="disk I/O error"):
        spool.append(messages(10, 10))
    monkeypatch.undo()
    assert len(spool) == 10
    spool.append(messages(10, 20))
    again = reopened(spool)
    assert drain(again) == [*range(10), *range(20, 30)]
    assert not again.reports
    again.close()


def test_a_disk_error_in_the_first_append_to_a_file(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        spool_segment.Segment, "append", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "bad disk"))
    )
    with pytest.raises(SpoolError, match="bad disk"):
        spool.append(messages(10))
    monkeypatch.undo()
    assert (len(spool), spool.bytes) == (0, 0)
    spool.append(messages(10, 10))
    again = reopened(spool)
    assert drain(again) == list(range(10, 20))
    again.close()


def test_two_files_that_begin_with_the_same_number_both_drain(spool: Spool) -> None:
    """Left where an append failed half-way and even its file could not be removed."""
    spool.append(messages(10))
    spool.close()
    twin = spool_segment.Segment.create(spool.folder, 1)
    twin.append(messages(10, 100))
    twin.close()
    again = reopened(spool)
    came = drain(again)
    assert sorted(came) == [*range(10), *range(100, 110)]
    again.close()


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    """No file of this process may grow past 300 kB: what a full quota looks like to SQLite (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("file_size_limit")
def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 64 * MIB, 32 * MIB)
    confirmed: list[int] = []
    with pytest.raises(SpoolError):  # noqa: PT012
        for start in range(0, 100_000, 200):
            spool.append(messages(200, start))
            confirmed += range(start, start + 200)
    assert confirmed
    assert len(spool) == len(confirmed)
    spool.append(messages(5, 200_000))
    assert drain(spool) == [*confirmed, *range(200_000, 200_005)]
    assert not spool.reports
    spool.close()
