"""Daemons that write to one database see each other."""

import logging
from collections.abc import Iterator

import pytest

from esp_ingest.commands import check
from esp_ingest.config.settings import MqttSettings, Settings
from esp_ingest.mqtt.client_setup import Topics, session_name
from esp_ingest.store.presence import Presence, doubles
from esp_ingest.store.schema import migrate
from esp_ingest.store.write.writer import PostgresStore
from tests.support.databases import Database
from tests.support.fake_clock import FakeClock
from tests.support.store_data import readings

PLAIN, SHARED = "esp/+/telemetry", "$share/g/esp/+/telemetry"


@pytest.fixture
def database(postgres15: Database) -> Iterator[Database]:
    migrate(postgres15.settings)
    return postgres15


def daemon(database: Database, clock: FakeClock, client_id: str, share_group: str = "") -> PostgresStore:
    mqtt = MqttSettings(client_id=client_id, share_group=share_group)
    return PostgresStore(database.settings, presence=Presence(session_name(mqtt), Topics(mqtt).wanted, clock))


def notes(database: Database, client_id: str, share_group: str = "") -> list[str]:
    settings = Settings(database=database.settings, mqtt=MqttSettings(client_id=client_id, share_group=share_group))
    return [line.detail for line in check.database(settings) if line.subject == "daemons"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.reason for record in caplog.records if record.message == "another daemon stores the same"]


@pytest.mark.parametrize(
    ("mine", "others", "is_double"),
    [
        (PLAIN, PLAIN, True),
        (PLAIN, SHARED, True),
        (SHARED, PLAIN, True),
        (SHARED, SHARED, False),
        (SHARED, SHARED.replace("/g/", "/h/"), True),
        (PLAIN, "well/+/telemetry", False),
    ],
)
def test_who_receives_the_same(mine: str, others: str, is_double: bool) -> None:
    assert bool(doubles("a@host:1883", mine, [("b@host:1883", others, 5)])) is is_double
    assert not doubles("a@host:1883", mine, [("b@other:1883", others, 5)])


@pytest.mark.parametrize("first_step", ["ping", "write"])
def test_each_of_two_warns_of_the_other_and_check_has_a_note(
    database: Database, caplog: pytest.LogCaptureFixture, first_step: str
) -> None:
    caplog.set_level(logging.INFO)
    clock = FakeClock()
    first, second = daemon(database, clock, "first"), daemon(database, clock, "second")
    for store in (first, second):
        if first_step == "ping":
            store.ping()
        else:
            assert store.write(readings([("w1", 0)]), [], []).written + 1
    assert warnings(caplog) == ["first@127.0.0.1:1883"], "the first was alone when it looked"
    assert notes(database, "first")[0].startswith("second@127.0.0.1:1883 (")
    assert "first@127.0.0.1:1883" in notes(database, "third")[0]
    clock.sleep(61)
    first.ping()
    assert warnings(caplog)[-1] == "second@127.0.0.1:1883"
    first.ping()
    assert len(warnings(caplog)) == 2
    second.end()
    clock.sleep(61)
    first.ping()
    assert caplog.records[-1].message == "no other daemon stores the same any more"
    assert notes(database, "first") == []
    first.close()  # as if killed: it is not said
    database.run("UPDATE mqtt_sessions SET seen_at = seen_at - INTERVAL '4 minutes'")
    assert notes(database, "third") == []


def test_members_of_a_share_group_and_one_session_on_two_hosts_do_not(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    stores = [daemon(database, clock, f"member-{number}", "group") for number in range(2)]
    stores += [daemon(database, clock, "member-0", "group")]
    for store in stores:
        store.ping()
        store.close()
    assert warnings(caplog) == []
    assert notes(database, "member-0", "group") == []
    assert len(notes(database, "member-2")) == 1, "one outside the group receives everything"


def test_a_locked_or_missing_table_costs_no_reading(database: Database) -> None:
    clock = FakeClock()
    store = daemon(database, clock, "first")
    with database.connect(autocommit=False) as other:
        other.execute("LOCK TABLE mqtt_sessions")
        assert store.write(readings([("w1", 0)]), [], []).written == 1
    clock.sleep(61)
    database.run("ALTER TABLE mqtt_sessions RENAME TO away")
    assert store.write(readings([("w1", 1)]), [], []).written == 1
    store.end()
