"""Where the packet ids of a session begin anew."""

from pathlib import Path

import pytest

from esp_ingest.config.settings import MqttSettings
from esp_ingest.model import Delivery
from esp_ingest.mqtt.client_setup import SessionRecord, session_file
from esp_ingest.mqtt.packet_ids import PacketIds

WINDOW = 100


def chunk(*packet_ids: int, dup: bool = False) -> list[Delivery]:
    return [Delivery(b"t", b"", 1, packet_id, 5, 0, int(dup)) for packet_id in packet_ids]


def followed(*chunks: list[Delivery], resumed: bool = True) -> SessionRecord:
    """Connection 5 of a session that had connection 4, which ended with packet id 60."""
    record = SessionRecord(MqttSettings(), None)
    packet_ids = PacketIds(record, WINDOW)
    packet_ids.connected(4, is_new_session=False)
    packet_ids.follow(chunk(*range(10, 61)), 0)
    packet_ids.connected(5, is_new_session=not resumed)
    for some in chunks:
        packet_ids.follow(some, sum(each.redelivered for each in some))
    return record


@pytest.mark.parametrize(
    ("chunks", "since"),
    [
        ([chunk(61, 62, 63)], 1),
        ([chunk(50, 60, dup=True), chunk(61)], 1),
        ([chunk(61, 70, dup=True), chunk(71, 72)], 1),
        ([chunk(*range(61, 160))], 1),
        ([chunk(60)], 5),
        ([chunk(1, 2, 3)], 5),
        ([chunk(1, 2, 3), chunk(4)], 5),
        ([chunk(20, 21, dup=True), chunk(22)], 5),
        ([chunk(61), chunk(61)], 6),
        ([chunk(61, 62, 61, 62)], 6),
        ([chunk(1), chunk(1)], 6),
        ([chunk(30_000)], 5),
    ],
    ids=[
        "goes on",
        "sent again, then goes on",
        "sent again for the first time",
        "a window in one piece",
        "the last one again",
        "a snapshot of long ago",
        "and on from there",
        "a snapshot with messages under way",
        "the lowest free id each time",
        "the same in one piece",
        "a snapshot, then the lowest free id",
        "further than a window",
    ],
)
def test_since_which_connection_they_count(chunks: list[list[Delivery]], since: int) -> None:
    assert followed(*chunks).ids_since == since


def test_a_new_session_begins_them_anew() -> None:
    assert followed(chunk(60), resumed=False).ids_since == 5
    assert followed(chunk(1, 2), resumed=False).ids_since == 5


def test_they_come_round() -> None:
    packet_ids = PacketIds(record := SessionRecord(MqttSettings(), None), WINDOW)
    packet_ids.connected(1, is_new_session=False)
    for begin in range(0, 200_000, 50):
        packet_ids.follow(chunk(*(at % 65_535 + 1 for at in range(begin, begin + 50))), 0)
    assert record.ids_since == 1


def test_what_is_marked_dup_says_it() -> None:
    packet_ids = PacketIds(SessionRecord(MqttSettings(), None), WINDOW)
    packet_ids.connected(7, is_new_session=True)
    some = [*chunk(1, dup=True), *chunk(2)]
    packet_ids.follow(some, 1)
    assert [each.redelivered for each in some] == [7, 0]


def test_the_record_outlives_the_process(tmp_path: Path) -> None:
    SessionRecord(MqttSettings(), tmp_path).connected(7, is_new_session=True)
    first = SessionRecord(MqttSettings(), tmp_path)
    first.connected(8, is_new_session=False)
    first.came(65_535)
    first.came(31)
    record = SessionRecord(MqttSettings(), tmp_path)
    assert (record.connection, record.ids_since, record.packet_id) == (8, 7, 31)
    first.close()
    (tmp_path / session_file("esp-ingest")).write_text(
        '{"session": "esp-ingest@localhost:1883", "filters": ["a"]}', encoding="utf-8"
    )  # of an older program
    old = SessionRecord(MqttSettings(), tmp_path)
    assert (old.connection, old.ids_since) == (0, 1)
    assert old.filters == {"a"} or MqttSettings().host != "localhost"
