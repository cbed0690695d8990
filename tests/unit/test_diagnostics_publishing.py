"""The publisher between an outbox and a broker that are told what to do."""

import itertools

import pytest

from esp_ingest.diagnostics.publisher import Publisher
from esp_ingest.model import Answer, Change
from esp_ingest.service.metrics import Metrics
from tests.support.fake_clock import FakeClock
from tests.support.fake_publishing import FakeConnection, FakeOutbox, Sent
from tests.support.waiting import until

DENIED = Answer("the broker refused it: Not authorized")
TOO_LARGE = Answer("a packet of 9 bytes is more than the broker's maximum packet size of 8", is_of_message=True)


class Rig:
    def __init__(self, *changes: tuple[int, str]) -> None:
        self.clock = FakeClock()
        self.outbox, self.broker, self.metrics = FakeOutbox(*changes), FakeConnection(self.clock), Metrics()
        self.publisher = Publisher(self.outbox, self.broker, "esp", self.clock, self.metrics)

    @property
    def left(self) -> list[int]:
        return [row.revision for row in self.outbox.rows]

    @property
    def sent(self) -> list[bytes]:
        return [each.payload for each in self.broker.sent]

    def value(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"esp_ingest_{name}")

    def look(self, times: int = 1) -> float:
        for _ in range(times):
            wait = self.publisher.run_once()
            self.clock.advance(wait)
        return wait


def test_published_and_removed() -> None:
    rig = Rig((1, "W1"), (2, "W2"))
    assert 0 < rig.look() < 1
    assert rig.broker.sent == [Sent("esp/W1/diagnostics", b'{"n": 1}'), Sent("esp/W2/diagnostics", b'{"n": 2}')]
    assert rig.left == []
    assert rig.value("diagnostics_published_total") == 2
    assert rig.value("diagnostics_publish_backlog") == 0


def test_what_is_under_way_is_not_sent_again_and_removed_once_confirmed() -> None:
    rig = Rig((1, "W1"))
    rig.broker.answers_to[1] = "open"
    rig.look(2)
    assert rig.sent == [b'{"n": 1}']
    assert rig.left == [1]
    rig.broker.answers_to.clear()
    rig.look(2)
    assert rig.sent == [b'{"n": 1}']
    assert rig.left == []


def test_nothing_is_sent_without_a_connection_and_all_of_it_later() -> None:
    rig = Rig((1, "W1"), (2, "W1"))
    rig.broker.up = False
    rig.look()
    assert rig.sent == []
    assert rig.value("diagnostics_publish_backlog") == 2
    rig.broker.up = True
    rig.look()
    assert rig.sent == [b'{"n": 1}', b'{"n": 2}']


def test_of_a_well_one_is_under_way_at_a_time() -> None:
    rig = Rig((1, "W1"), (2, "W2"), (3, "W1"))
    rig.look()
    assert rig.left == []
    assert all(not {1, 3} <= together for together in rig.broker.together)


def test_a_lost_connection_sends_the_older_one_again_before_the_newer_one_of_its_well() -> None:
    rig = Rig((1, "W1"), (2, "W2"), (3, "W1"))
    rig.broker.answers_to[1] = "open"
    rig.look()
    assert rig.left == [1, 3], "another well does not wait"
    rig.broker.hang_up()
    rig.broker.answers_to.clear()
    rig.look(3)
    assert rig.left == []
    assert rig.sent[-2:] == [b'{"n": 1}', b'{"n": 3}'], "the newest is the one that is retained"


def test_a_denied_topic_holds_its_well_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig((1, "W1"), (2, "W1"), (3, "W2"))
    rig.broker.answers_to[1] = DENIED
    rig.look(3)
    assert rig.left == [1, 2]
    assert rig.outbox.refused == {1: (DENIED.refusal, False)}
    assert rig.value("diagnostics_publish_set_aside") == 1
    assert rig.value("diagnostics_publish_backlog") == 2
    assert rig.value("diagnostics_publications_refused_total") == 1
    assert caplog.messages.count("publications set aside") == 1
    rig.broker.answers_to.clear()
    rig.outbox.retry()
    rig.look(2)
    assert rig.left == []
    assert rig.sent[-2:] == [b'{"n": 1}', b'{"n": 2}']
    assert rig.value("diagnostics_publish_set_aside") == 0


def test_a_message_that_no_broker_takes_does_not_hold_its_well() -> None:
    rig = Rig((1, "W1"), (2, "W1"))
    rig.broker.answers_to[1] = TOO_LARGE
    rig.look(2)
    assert rig.left == [1]
    assert rig.outbox.refused == {1: (TOO_LARGE.refusal, True)}
    assert rig.value("diagnostics_publish_backlog") == 0


def test_a_broker_that_hangs_up_on_one_of_many_is_asked_one_by_one() -> None:
    rig = Rig(*((number, f"W{number}") for number in range(1, 11)))
    rig.broker.answers_to[4] = "drop"
    rig.look(8)
    assert rig.left == [4]
    reason, for_good = rig.outbox.refused[4]
    assert reason == "the connection ends when it is sent: the connection was lost"
    assert not for_good
    assert rig.broker.connections <= 4
    rig.outbox.retry()
    rig.look(3)
    assert rig.sent.count(b'{"n": 4}') == 4, "a known one costs one connection, not two more"


def test_an_end_that_has_nothing_to_do_with_it_blames_nobody() -> None:
    rig = Rig((1, "W1"))
    for _ in range(5):
        rig.broker.answers_to[1] = "open"
        rig.look()
        rig.broker.hang_up(is_innocent=True)
    assert rig.outbox.refused == {}
    rig.broker.answers_to.clear()
    rig.look(2)
    assert rig.left == []


def test_a_disconnect_that_says_why_is_believed_at_once() -> None:
    rig = Rig((1, "W1"), (2, "W2"))
    rig.broker.answers_to = {1: "open", 2: Answer()}
    rig.look()
    rig.broker.hang_up(blame=DENIED)
    rig.look()
    assert rig.outbox.refused == {1: (DENIED.refusal, False)}


def test_an_outage_of_the_database_is_waited_out() -> None:
    rig = Rig((1, "W1"))
    rig.outbox.away = True
    assert rig.look() > 1
    rig.outbox.away = False
    rig.look()
    assert rig.left == []


def test_while_another_daemon_publishes_the_backlog_is_right_and_nothing_is_sent() -> None:
    rig = Rig((1, "W1"))
    rig.outbox.turn = False
    assert rig.look() > 1
    assert rig.broker.connections == 0
    assert rig.value("diagnostics_publish_backlog") == 1
    rig.outbox.turn = True
    rig.look()
    assert rig.left == []


def test_the_turn_is_not_taken_anew_at_each_look() -> None:
    rig = Rig()
    rig.look(60)
    assert 2 <= rig.outbox.turns_taken <= 4, "half a minute of looks"


def test_the_thread_looks_once_more_at_the_end() -> None:
    rig = Rig()
    rig.publisher.start()
    rig.outbox.rows.append(Change(7, "W1", '{"n": 7}'))
    rig.publisher.stop(5)
    assert not rig.publisher.alive
    assert rig.left == []
    assert not rig.outbox.turn, "another may go on at once"


def test_a_mistake_of_ours_does_not_end_it(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig((1, "W1"))
    tried: list[float] = []

    def fails(*_: object) -> None:
        tried.append(rig.clock.monotonic())
        raise ZeroDivisionError

    monkeypatch.setattr(rig.broker, "publish", fails)
    rig.publisher.start()
    until(lambda: len(tried) >= 3)
    monkeypatch.undo()
    rig.publisher.stop(5)
    assert "publishing failed" in caplog.text
    assert min(later - before for before, later in itertools.pairwise(tried)) > 1
    assert rig.left == []
