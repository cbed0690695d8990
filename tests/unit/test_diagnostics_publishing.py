"""The publisher between an outbox and a broker that are told what to do."""

from collections.abc import Callable, Collection, Sequence

import pytest

from esp_ingest.diagnostics.publishing import Publisher
from esp_ingest.mqtt.publication import Publication
from esp_ingest.seams import StoreUnavailable
from esp_ingest.service.metrics import Metrics
from esp_ingest.store.outbox import Change
from tests.support.fake_clock import FakeClock


class FakeOutbox:
    def __init__(self, *changes: tuple[int, str]) -> None:
        self.rows = [Change(revision, well, f'{{"n": {revision}}}') for revision, well in changes]
        self.away = False

    def deliver(self, send: Callable[[Sequence[Change]], Collection[int]], limit: int) -> tuple[int, int]:
        if self.away:
            raise StoreUnavailable("told to be away")
        gone = set(send(self.rows[:limit]))
        self.rows = [row for row in self.rows if row.revision not in gone]
        return len(gone), len(self.rows)

    def close(self) -> None:
        pass


class FakeBroker:
    """Answers each message as ``answers`` says, by payload: confirm, refuse, or leave open. The default is confirm."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, int, bool]] = []
        self.answers: dict[bytes, str] = {}
        self.open: dict[bytes, Publication] = {}

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> Publication:
        answer = self.answers.get(payload, "confirm")
        publication = Publication(qos)
        if answer == "away":
            publication.finish("not connected")
            return publication
        self.sent.append((topic, payload, qos, retain))
        if answer == "open":
            self.open[payload] = publication
        else:
            publication.finish("refused" if answer == "refuse" else "")
        return publication


class Rig:
    def __init__(self, *changes: tuple[int, str]) -> None:
        self.outbox, self.broker, self.metrics = FakeOutbox(*changes), FakeBroker(), Metrics()
        self.publisher = Publisher(self.outbox, self.broker.publish, "esp", FakeClock(), self.metrics)
        self.publisher._confirm_seconds = 0.0

    @property
    def left(self) -> list[int]:
        return [row.revision for row in self.outbox.rows]

    @property
    def sent(self) -> list[bytes]:
        return [payload for _, payload, _, _ in self.broker.sent]


def test_published_retained_at_qos_1_and_removed() -> None:
    rig = Rig((1, "W1"), (2, "W2"))
    assert 0 < rig.publisher.run_once() < 1
    assert rig.broker.sent == [
        ("esp/W1/diagnostics", b'{"n": 1}', 1, True),
        ("esp/W2/diagnostics", b'{"n": 2}', 1, True),
    ]
    assert rig.left == []
    assert rig.metrics.registry.get_sample_value("esp_ingest_diagnostics_published_total") == 2
    assert rig.metrics.registry.get_sample_value("esp_ingest_diagnostics_publish_backlog") == 0


def test_what_is_under_way_is_not_sent_again_and_removed_once_confirmed() -> None:
    rig = Rig((1, "W1"))
    rig.broker.answers[b'{"n": 1}'] = "open"
    rig.publisher.run_once()
    rig.publisher.run_once()
    assert rig.sent == [b'{"n": 1}']
    assert rig.left == [1]
    rig.broker.open[b'{"n": 1}'].finish()
    rig.publisher.run_once()
    assert rig.sent == [b'{"n": 1}']
    assert rig.left == []


def test_nothing_overtakes_what_cannot_be_sent() -> None:
    rig = Rig((1, "W1"), (2, "W1"))
    rig.broker.answers[b'{"n": 1}'] = "away"
    assert rig.publisher.run_once() > 1
    assert rig.sent == []
    assert rig.metrics.registry.get_sample_value("esp_ingest_diagnostics_publish_backlog") == 2
    rig.broker.answers.clear()
    rig.publisher.run_once()
    assert rig.sent == [b'{"n": 1}', b'{"n": 2}']


def test_a_refused_one_goes_out_again_before_the_newer_one_of_its_well() -> None:
    rig = Rig((1, "W1"), (2, "W2"), (3, "W1"))
    rig.broker.answers[b'{"n": 1}'] = "open"
    rig.publisher.run_once()
    assert rig.left == [1, 3], "another well does not wait"
    rig.broker.open[b'{"n": 1}'].finish("the connection was lost")
    rig.broker.answers.clear()
    rig.publisher.run_once()
    assert rig.left == []
    assert rig.sent[-2:] == [b'{"n": 1}', b'{"n": 3}'], "the newest is the one that is retained"


def test_an_outage_of_the_database_is_waited_out() -> None:
    rig = Rig((1, "W1"))
    rig.outbox.away = True
    assert rig.publisher.run_once() > 1
    rig.outbox.away = False
    rig.publisher.run_once()
    assert rig.left == []


def test_the_thread_looks_once_more_at_the_end() -> None:
    rig = Rig()
    rig.publisher.start()
    rig.outbox.rows.append(Change(7, "W1", '{"n": 7}'))
    rig.publisher.stop(5)
    assert not rig.publisher.alive
    assert rig.left == []


def test_a_mistake_of_ours_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig((1, "W1"))

    def broken(*_: object) -> Publication:
        raise RuntimeError("told to")

    rig.publisher._publish = broken
    assert rig.publisher._guarded() > 1
    assert "publishing failed" in caplog.text
    assert rig.left == [1]
