"""A broker that refuses, drops or punishes a publication: readings go on as if nothing were published, and what was
refused is set aside with a reason while other publications go out."""

import time
from pathlib import Path

import pytest

from tests.support.rig import Rig

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

WATCHED_SECONDS = 12.0
LARGE = 6_000


def reconfigure(rig: Rig, *lines: str) -> None:
    """Append to the shipped mosquitto.conf, and start the broker anew."""
    given = {line.split()[0] for line in lines}
    shipped = rig.broker.config.read_text(encoding="utf-8").splitlines()
    kept = [line for line in shipped if not line.split() or line.split()[0] not in given]
    rig.broker.config.write_text("\n".join([*kept, *lines, ""]), encoding="utf-8")
    rig.broker.restart()


def rewrite_acl(rig: Rig, old: str, new: str) -> None:
    path = Path(rig.broker.folder) / "acl"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def announce(rig: Rig, well: str, size: int = 100) -> None:
    """A change of an occurrence, as a batch or an operator's command writes it. Of wells that send nothing here: the
    readings that pass meanwhile raise occurrences of their own."""
    rig.database.run(
        "INSERT INTO diagnostics_outbox (well_id, occurrence) "
        f"VALUES ('{well}', jsonb_build_object('diagnosis', 'vibration', 'message', repeat('x', {size})))"
    )


def waiting(rig: Rig) -> list[str]:
    rows = rig.database.all("SELECT well_id FROM diagnostics_outbox WHERE well_id LIKE 'X%' ORDER BY revision")
    return [row[0] for row in rows]


def watch(rig: Rig) -> None:
    """Readings are acknowledged at once, on one connection, and ``ready`` stays green."""
    red, oldest, probes = [], 0.0, 0
    until = time.monotonic() + WATCHED_SECONDS
    acked = rig.metric("messages_acked_total")
    while time.monotonic() < until:
        status, answer = rig.health("ready")
        probes += 1
        if status != 200:
            red.append({name: each for name, each in answer.get("checks", {}).items() if not each["ok"]})
        oldest = max(oldest, rig.metric("oldest_unacked_seconds"))
        time.sleep(0.1)
    assert not red, f"ready was red in {len(red)} of {probes} probes: {red[0]}"
    assert oldest < 3, f"a message waited for {oldest} s"
    assert rig.metric("messages_acked_total") > acked
    assert rig.metric("mqtt_reconnects_total") == 0, "the connection that brings readings was lost"


def test_a_broker_without_retained_messages(rig: Rig) -> None:
    reconfigure(rig, "retain_available false")
    rig.start_daemon()
    rig.publish(rate=50)
    for well in ("X1", "X2", "X3"):
        announce(rig, well)
    watch(rig)
    assert waiting(rig) == [], "published without the retain flag"
    rig.finish()


def test_a_publication_larger_than_the_broker_takes(rig: Rig) -> None:
    reconfigure(rig, "max_packet_size 4096")
    rig.start_daemon()
    rig.publish(rate=50)
    announce(rig, "X1", LARGE)
    for well in ("X1", "X2", "X3"):
        announce(rig, well)
    watch(rig)
    assert waiting(rig) == ["X1"], "the large one alone"
    assert "maximum packet size" in rig.database.value("SELECT set_aside_reason FROM diagnostics_outbox")
    assert rig.metric("diagnostics_publish_set_aside") == 1
    assert rig.metric("diagnostics_publish_backlog") == 0
    rig.finish()


def test_an_acl_that_denies_one_well_and_is_corrected(rig: Rig) -> None:
    rewrite_acl(rig, "topic write esp/+/diagnostics", "topic deny esp/X1/diagnostics\ntopic write esp/+/diagnostics")
    rig.broker.restart()
    rig.start_daemon()
    rig.publish(rate=50)
    for well in ("X1", "X1", "X2", "X3"):
        announce(rig, well)
    watch(rig)
    assert waiting(rig) == ["X1", "X1"], "the other wells do not wait"
    assert "Not authorized" in rig.database.value(
        "SELECT set_aside_reason FROM diagnostics_outbox WHERE set_aside_reason IS NOT NULL"
    )
    assert rig.metric("diagnostics_publish_set_aside") == 1
    assert rig.daemon_log().count("publications set aside") <= 2
    assert "another client" not in rig.daemon_log()
    rewrite_acl(rig, "topic deny esp/X1/diagnostics\n", "")
    rig.broker.reload()
    rig.await_that(lambda: waiting(rig) == [], "published after the correction", 90)
    rig.finish()


def test_an_acl_that_denies_all_of_them(rig: Rig) -> None:
    rewrite_acl(rig, "topic write esp/+/diagnostics\n", "")
    rig.broker.restart()
    rig.start_daemon()
    rig.publish(rate=50)
    for number in range(30):
        announce(rig, f"X{number}")
    watch(rig)
    assert len(waiting(rig)) == 30
    rig.finish()


@pytest.mark.parametrize("setting", ["DIAGNOSTICS__PUBLISH", "DIAGNOSTICS__ENABLED"])
def test_without_publication_there_is_no_second_connection(rig: Rig, setting: str) -> None:
    rig.settings[setting] = "false"
    rig.start_daemon()
    rig.await_that(lambda: "as esp-ingest (" in rig.broker.log(), "the first connection", 20)
    time.sleep(2)  # a second one would follow within this time
    rig.stop_daemon()
    assert "esp-ingest-publish" not in rig.broker.log()
    del rig.settings[setting]
    rig.start_daemon()
    rig.await_that(lambda: "as esp-ingest-publish (" in rig.broker.log(), "the second connection", 10)
    rig.stop_daemon()
