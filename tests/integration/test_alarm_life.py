"""An alarm from raise to rest, with what operators do to it: real database, the daemon's writer without threads."""

import argparse
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from esp_ingest.commands.alarms import alarm_lines
from esp_ingest.config.load import load
from esp_ingest.config.settings import ConfigError, Settings
from esp_ingest.diagnostics.language import rules, rules_file
from esp_ingest.model import SIGNAL_ROW, SIGNALS, Readings
from esp_ingest.resources import config_file
from esp_ingest.store.schema import migrate
from tests.integration.test_diagnostics_restart import Run
from tests.support.databases import Database
from tests.support.fake_clock import FakeClock

QUIET, SHAKING, SEVERE = 0.1, 0.6, 0.9
MINUTE_US = 60_000_000
HALF_HOUR_US = 30 * MINUTE_US
TEXT = config_file("rules.toml").read_text(encoding="utf-8")
LATCHING = rules_file.parse(TEXT.replace("[rules.vibration]", "[rules.vibration]\nlatching = true"))
PLAIN = rules_file.parse(TEXT)


class Well:
    """A running well that shakes when told to, one sample every ten seconds of the real clock, from a full half-hour
    on: what is counted in half-hours of the clock (baselines) must not depend on when the test runs."""

    def __init__(self, database: Database) -> None:
        self.database = database
        now_us = int(database.value("SELECT (extract(epoch FROM now()) * 1000000)::bigint"))
        self.now_us = now_us - 90 * MINUTE_US - now_us % HALF_HOUR_US
        self.clock = FakeClock(self.now_us)
        self.settings: Settings = load(
            database={"dsn": database.dsn}, batch={"max_rows": 1000}, mqtt={"receive_maximum": 2000}
        )
        self.rules = PLAIN
        self.start()

    def start(self) -> None:
        self.run = Run(self.database, self.clock, self.load_rules, publish=True)

    def load_rules(self) -> rules.RuleSet:
        if isinstance(self.rules, rules.RulesError):
            raise self.rules
        return self.rules

    def kill(self) -> None:
        self.run.close()
        self.start()

    def send(self, vibration: float, minutes: float) -> None:
        count = round(minutes * 6)
        values = np.full((len(SIGNALS), count), np.nan)
        for name, value in (("motor_current", 45), ("vsd_frequency", 50), ("pip", 400), ("vibration", vibration)):
            values[SIGNAL_ROW[name]] = value + np.arange(count) % 2 * 0.01
        t = self.now_us + 10_000_000 * np.arange(1, count + 1)
        for row in range(count):
            at = np.array([row])
            self.clock.advance(10)
            self.now_us += 10_000_000
            self.run.process(
                Readings(["W1"], np.zeros(1, np.int32), t[at], t[at] + 1000, np.ascontiguousarray(values[:, at]))
            )

    def command(self, action: str, *more: str, **flags: Any) -> list[str]:
        arguments = argparse.Namespace(
            action=action, **({"by": "op", "why": "known", "well": "W1", "diagnosis": "vibration"} | flags)
        )
        return list(alarm_lines(self.settings, arguments, self.clock.now_us()))

    def listed(self, everything: bool = False) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.command("list", all=everything, json=True, well=None)]

    @property
    def states(self) -> list[str]:
        rows = self.database.all("SELECT state FROM diagnostic_results WHERE diagnosis = 'vibration' ORDER BY 1")
        return [row[0] for row in rows]

    @property
    def cleared(self) -> list[int | None]:
        return [
            row[0]
            for row in self.database.all(
                "SELECT (extract(epoch FROM cleared_at) * 1000000)::bigint FROM diagnostic_results "
                "WHERE diagnosis = 'vibration' ORDER BY \"timestamp\""
            )
        ]

    @property
    def told(self) -> list[tuple[str, str]]:
        """(severity, state) of the vibration's changes in the outbox, in order."""
        rows = self.database.all("SELECT occurrence FROM diagnostics_outbox ORDER BY revision")
        return [(row[0]["severity"], row[0]["state"]) for row in rows if row[0]["diagnosis"] == "vibration"]


@pytest.fixture
def well(timescaledb_apache: Database) -> Iterator[Well]:
    migrate(timescaledb_apache.settings)
    made = Well(timescaledb_apache)
    yield made
    made.run.close()


def test_raised_returned_acknowledged(well: Well) -> None:
    well.send(QUIET, 2)
    well.send(SHAKING, 3)
    assert well.states == ["unacknowledged"]
    assert [row["diagnosis"] for row in well.listed()] == ["vibration"]
    well.send(QUIET, 15)
    assert well.states == ["returned-unacknowledged"]
    (said,) = well.command("ack")
    assert "normal" in said
    assert well.states == ["normal"]
    assert well.listed() == []
    assert well.told == [
        ("medium", "unacknowledged"),
        ("medium", "returned-unacknowledged"),
        ("medium", "normal"),
    ]
    assert well.database.all("SELECT action, by_whom, why, well_id FROM alarm_actions") == [
        ("ack", "op", "known", "W1")
    ]
    with pytest.raises(LookupError, match="waits to be acknowledged"):
        well.command("ack")


@pytest.mark.parametrize("killed", [False, True])
def test_acknowledged_while_open_stays_so_and_ends_normal(well: Well, killed: bool) -> None:
    well.send(QUIET, 2)
    well.send(SHAKING, 3)
    well.command("ack")
    assert well.states == ["acknowledged"]
    if killed:
        well.kill()
    well.send(SHAKING, 1)
    assert well.states == ["acknowledged"]
    well.send(QUIET, 15)
    assert well.states == ["normal"]


def test_a_reminder_takes_the_acknowledgement_back_and_is_published(well: Well) -> None:
    well.rules = rules_file.parse(TEXT.replace("[rules.vibration]", '[rules.vibration]\nremind = "10 min"'))
    well.kill()
    well.send(QUIET, 2)
    well.send(SHAKING, 3)
    well.command("ack")
    well.send(SHAKING, 6)
    assert well.states == ["acknowledged"]
    well.send(SHAKING, 3)
    assert well.states == ["unacknowledged"]
    assert well.told == [("medium", "unacknowledged"), ("medium", "acknowledged"), ("medium", "unacknowledged")]
    (message,) = well.database.all("SELECT message FROM diagnostic_results WHERE diagnosis = 'vibration'")
    assert message[0].endswith("Reminder: it has stood for 10 min.")
    well.send(SHAKING, 10)
    assert well.told[3:] == [("medium", "unacknowledged")], "told again though nobody acknowledged the reminder"
    well.command("ack")
    well.send(SHAKING, 1)
    assert well.states == ["acknowledged"]


def test_an_acknowledgement_that_the_daemon_has_not_heard_of_is_not_overwritten(
    well: Well, monkeypatch: pytest.MonkeyPatch
) -> None:
    well.send(QUIET, 2)
    well.send(SHAKING, 3)
    monkeypatch.setattr(well.run.reader, "actions_after", lambda newest: [])
    well.command("ack")
    well.send(QUIET, 15)
    assert well.states == ["normal"]


def test_a_graver_step_has_to_be_acknowledged_again(well: Well) -> None:
    well.send(QUIET, 2)
    well.send(SHAKING, 3)
    well.command("ack")
    well.send(SEVERE, 2)
    assert well.states == ["unacknowledged"]
    assert well.told[-1] == ("high", "unacknowledged")


@pytest.mark.parametrize("killed", [False, True])
def test_latched_is_ended_by_acknowledging(well: Well, killed: bool) -> None:
    well.rules = LATCHING
    well.kill()
    well.send(QUIET, 2)
    well.send(SHAKING, 3)
    well.send(QUIET, 15)
    assert well.states == ["latched"]
    returned_before_us = well.now_us
    well.send(QUIET, 5)
    well.command("ack")
    if killed:
        well.kill()
    well.send(QUIET, 1)
    assert well.states == ["normal"]
    (cleared,) = well.cleared
    assert cleared is not None
    assert cleared < returned_before_us, "it ended when it returned, not when somebody looked"
    well.send(SHAKING, 3)
    assert well.states == ["normal", "unacknowledged"]


@pytest.mark.parametrize("killed", [False, True])
def test_shelved_until_its_end(well: Well, killed: bool) -> None:
    well.send(QUIET, 2)
    well.send(SHAKING, 3)
    lines = well.command("shelve", duration="3h")  # the test's well lives two hours ago
    assert "shelved until" in lines[0]
    assert well.states == ["shelved"]
    if killed:
        well.kill()
    well.send(SHAKING, 1)
    assert well.states == ["shelved"]
    assert well.listed() == []
    assert [row["by_whom"] for row in well.listed(everything=True) if row["diagnosis"] == "vibration"] == ["op"]
    well.command("unshelve")
    well.send(SHAKING, 1)
    assert well.states == ["unacknowledged"]
    actions = well.database.all("SELECT action, shelved_to IS NULL FROM alarm_actions ORDER BY id")
    assert actions == [("shelve", False), ("unshelve", True)]


def test_raised_while_shelved(well: Well) -> None:
    well.send(QUIET, 2)
    well.command("shelve", duration="3h")
    well.send(SHAKING, 3)
    assert well.states == ["shelved"]
    well.send(QUIET, 15)
    assert well.states == ["normal"], "nobody has to acknowledge what he silenced"


def test_a_shelving_ends_at_a_well_that_is_silent(well: Well) -> None:
    well.send(QUIET, 2)
    well.send(SHAKING, 3)
    well.command("shelve", duration="3h")
    with well.database.connect() as connection:
        connection.execute("UPDATE alarm_shelves SET shelved_to = now() - interval '1 second'")
    well.run.service.maintain()
    assert well.states == ["unacknowledged"]
    assert well.told[-1] == ("medium", "unacknowledged")


def test_commands_refuse_what_makes_no_sense(well: Well) -> None:
    well.send(QUIET, 1)
    for flags in ({"duration": "0h"}, {"duration": "31d"}, {"duration": "soon"}, {"duration": "8h", "why": " "}):
        with pytest.raises(ConfigError):
            well.command("shelve", **flags)
    with pytest.raises(ConfigError, match="--by"):
        well.command("ack", by=" ")
    with pytest.raises(LookupError, match="No well W9"):
        well.command("shelve", well="W9", duration="8h")
    with pytest.raises(LookupError, match="No well W9"):
        well.command("ack", well="W9")
    with pytest.raises(LookupError, match="vibration has never been raised at W1"):
        well.command("ack")
    with pytest.raises(LookupError, match="not shelved"):
        well.command("unshelve")
    assert well.database.value("SELECT count(*) FROM alarm_actions") == 0


def test_limits_are_kept_when_they_change_and_only_then(well: Well) -> None:
    well.send(QUIET, 1)
    scopes = well.database.value("SELECT count(*) FROM alarm_limits_history")
    assert scopes == len(PLAIN.rules) + 1
    well.kill()
    well.send(QUIET, 1)
    assert well.database.value("SELECT count(*) FROM alarm_limits_history") == scopes
    well.rules = rules_file.parse(TEXT + '[wells.W1]\nlimits = { motor_current = "60 A" }\n')
    well.run.service.ask_reload()
    well.send(QUIET, 1)
    assert well.database.all("SELECT settings -> 'limits' FROM alarm_limits_history ORDER BY since DESC LIMIT 1") == [
        ({"motor_current": 60.0},)
    ]
    assert well.database.value("SELECT count(*) FROM alarm_limits_history") == scopes + 1


def test_rules_read_again_go_on_where_the_old_ones_were(well: Well) -> None:
    well.send(QUIET, 2)
    well.send(SHAKING, 3)
    well.run.service.ask_reload()
    well.send(SHAKING, 1)
    assert well.states == ["unacknowledged"]
    well.rules = rules_file.parse(TEXT.replace("[rules.vibration]", "[rules.shaking]"))
    well.run.service.ask_reload()
    well.send(SHAKING, 1)
    assert well.states == ["returned-unacknowledged"], "its rule is gone"
    reloads = well.run.metrics.registry.get_sample_value("esp_ingest_diagnostics_reloads_total", {"outcome": "ok"})
    assert reloads == 2


def test_a_bad_file_leaves_the_rules_in_force(well: Well) -> None:
    well.send(QUIET, 2)
    well.rules = rules.RulesError("rules.toml: rules.vibration: when: is missing.")
    well.run.service.ask_reload()
    well.send(SHAKING, 3)
    assert well.states == ["unacknowledged"]
    failed = well.run.metrics.registry.get_sample_value("esp_ingest_diagnostics_reloads_total", {"outcome": "failed"})
    assert failed == 1


def test_health_of_the_alarm_system(well: Well) -> None:
    well.send(QUIET, 2)
    well.send(SHAKING, 3)
    well.command("shelve", duration="3h", diagnosis="underload")
    measures = {
        (measure, diagnosis): value
        for measure, diagnosis, value in well.database.all("SELECT measure, diagnosis, value FROM alarm_health")
    }
    assert measures["loudest", "vibration"] == 1
    assert measures["alarms_per_10_minutes", None] == pytest.approx(0.007)
    assert 0.9 < measures["shelved_hours_left", "underload"] < 3.1


def test_a_rule_that_is_blind_says_so(well: Well) -> None:
    well.send(QUIET, 5)
    well.run.finish()
    well.start()
    off = dict(well.database.all("SELECT diagnosis, reason FROM diagnostic_rules_off WHERE well_id = 'W1'"))
    assert off["overload"] == "no limit is configured: motor_current"
    assert off["underload"] == "the baseline needs 6 hours of running and has 0"
    assert off["leakage"] == "the well has not sent leakage_current"
    assert "vibration" not in off
