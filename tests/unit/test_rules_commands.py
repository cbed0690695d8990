"""`esp-ingest rules`: what is wrong or odd in a file, a rule in words, and rules tried on a recording."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from esp_ingest.cli import main
from esp_ingest.commands.rules import explain, explained, lines, silent_overrides, told_exponent, words
from esp_ingest.config.settings import Settings
from esp_ingest.demo.fleet import Fault, FaultName, Fleet
from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.diagnostics.language.rules import RulesError
from esp_ingest.model import SIGNAL_NAMES, SIGNAL_ROW, SIGNALS, Readings
from esp_ingest.resources import config_file
from esp_ingest.service.text import rfc3339

SHIPPED = config_file("rules.toml").read_text(encoding="utf-8")
OWN = """
[groups.north]
wells = ["N-*"]
limits = { motor_current = "50 A" }
rules.underload = { load = "70 %", on_delay = "5 min" }
"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated well that gets a gas lock after 8 hours, at 5-minute samples, as a CSV in telemetry's own names."""
    path = tmp_path_factory.mktemp("recording") / "well.csv"
    fleet = Fleet(2, interval_seconds=300, faults=[Fault(FaultName.GAS_LOCK, 0, 8 * 3_600)], prefix="N-")
    with path.open("w") as file:
        file.write(f"timestamp,well_id,{','.join(SIGNAL_NAMES)}\n")
        for block in fleet.run(10 * 12):
            for row in range(len(block)):
                cells = ["" if np.isnan(value) else repr(float(value)) for value in block.values[:, row]]
                file.write(f"{rfc3339(int(block.timestamp_us[row]))},{block.well_of(row)},{','.join(cells)}\n")
    return path


def test_the_shipped_rules_pass_check_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "check"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("ok: ")
    assert "49 rules" in line


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("ratio(current_load) < load", "ratio(current_lod) < load", "did you mean current_load"),
        ('on_delay = "15 min"', 'on_delay = "8 d"', "longer than 7 d"),
        ("vibration > level", "vibration > 5 psi", "different kinds"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_sentence_and_exit_code_2(
    old: str, new: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    assert old in SHIPPED
    path.write_text(SHIPPED.replace(old, new, 1), encoding="utf-8")
    assert main(["rules", "check", "--rules", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert complaint in said.err
    assert "mine.toml" in said.err


def test_check_lists_every_mistake_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    text = SHIPPED.replace('severity = "critical"', 'severity = "grave"').replace(
        "vibration > level", "vibration > 5 psi"
    )
    path.write_text(text, encoding="utf-8")
    assert main(["rules", "check", "--rules", str(path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: ") and line.endswith(".") for line in said)
    assert [rule in "\n".join(said) for rule in ("gas_lock", "dead_head", "broken_shaft", "overload", "vibration")] == [
        True
    ] * 5
    assert main(["rules", "explain", "--rules", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"(And {len(said) - 1} more: esp-ingest rules check lists them.)" in line


def test_check_lists_the_mistakes_of_every_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    own = '[wells.A]\nlimits = { motor_temp = "1 psi" }\n[wells.B]\nrules.solid = { enabled = false }\n'
    path.write_text(f"{SHIPPED}\n{own}", encoding="utf-8")
    assert main(["rules", "check", "--rules", str(path)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "wells.A.limits: motor_temp" in first
    assert "did you mean solids?" in second


def test_check_warns_and_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:  # type: ignore[no-untyped-def]  # a fixture
    monkeypatch.setenv("ESP_INGEST_DATABASE__DSN", "host=127.0.0.1 port=1 connect_timeout=1")
    path = tmp_path / "mine.toml"
    text = SHIPPED.replace('title = "Solids"', 'title = "Solids"\nenabled = false').replace(
        "[limits]", '[limits]\nidle = { unit = "psi" }'
    )
    path.write_text(text + OWN, encoding="utf-8")
    assert main(["rules", "check", "--rules", str(path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert any("limits.idle: is not read by any rule" in line for line in said)
    assert any("rules.solids: is switched off" in line for line in said)
    assert any("the database was not asked which wells report" in line for line in said)


def test_settings_for_a_well_that_never_reports_are_named() -> None:
    found = rules_file.parse(SHIPPED + OWN + '[wells.NORHT-7]\nlimits = { motor_current = "60 A" }')
    assert list(silent_overrides(found, ["N-1", "NORTH-7"])) == [
        "rules.toml: wells.NORHT-7: no well NORHT-7 has ever reported (did you mean NORTH-7?)."
    ]
    assert len(list(silent_overrides(found, []))) == 2
    assert list(silent_overrides(found, ["N-1", "NORHT-7"])) == []


def test_every_rule_is_explained_in_words() -> None:
    found = rules_file.parse(SHIPPED)
    for rule in found.rules:
        text = "\n".join(explained(found, rule, None))
        assert text.startswith(f"{rule.name} — {rule.title}, {rule.severity}")
        for part in (rule.cause, rule.consequence, *rule.actions):
            assert part in text
        lines = dict(line.strip().split(maxsplit=1) for line in text.splitlines() if line[2:3].strip())
        assert "{" not in lines["raised"]
        raised = lines.get("condition", lines["raised"])
        for sign in ("ratio(", "trend(", "within(", "choose(", "measured(", " < ", " > ", ">="):
            assert sign not in raised, raised
        for name in rule.parameters:
            assert f" {name} " not in raised.replace("motor load", "").replace("flow_rate", "")


def test_a_limit_that_is_one_branch_of_a_rule_leaves_the_rest_running() -> None:
    found = rules_file.parse(SHIPPED)
    by_name = {rule.name: "\n".join(explained(found, rule, None)) for rule in found.rules}
    for name in ("pump_off", "gas_interference", "low_flow"):
        assert "IN PART: limit." in by_name[name], name
        assert "OFF" not in by_name[name], name
    for name in ("overload", "motor_hot", "high_gor", "downthrust"):
        assert "OFF: limit." in by_name[name], name
        assert "IN PART" not in by_name[name], name


def test_a_summary_holds_known_placeholders_only() -> None:
    wrong = SHIPPED.replace("within 30 minutes of its stop.", "within {half_an_hour} of its stop.", 1)
    with pytest.raises(RulesError, match="summary: 'half_an_hour' is not a placeholder"):
        rules_file.parse(wrong)


def test_explain_says_what_holds_for_a_well() -> None:
    found = rules_file.parse(SHIPPED + OWN)
    overload, underload = found.rule("overload"), found.rule("underload")
    there, elsewhere = "\n".join(explained(found, overload, "N-1")), "\n".join(explained(found, overload, "S-1"))
    assert "1.15 * 50 A (limit)" in there
    assert "OFF" not in there
    assert "groups.north" in there
    assert "OFF at S-1: limit.motor_current (A) is not set" in elsewhere
    mine = "\n".join(explained(found, underload, "N-1"))
    assert "is below 70 % and" in mine
    assert ", for 5 min" in mine
    assert "on_delay = 5 min" in mine
    theirs = "\n".join(explained(found, underload, "S-1"))
    assert "is below 80 % and" in theirs
    assert ", for 10 min" in theirs


def test_parameters_are_told_apart_from_the_words_around_them() -> None:
    found = rules_file.parse(SHIPPED)
    rule = found.rule("gas_lock")
    assert rule.when is not None
    text = words(rule.when.text, rule, found.settings_of(rule, ""), found.limits, {})
    assert text.startswith("motor load (A/f²) ÷ its 24-hour median is below (75 % if flow_rate is measured, else 65 %)")


def test_an_unknown_rule_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "explain", "gaslock"]) == 2
    assert "did you mean gas_lock?" in capsys.readouterr().err


def test_rules_are_tried_on_a_recording(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "test", "--csv", str(recording)]) == 0
    *occurrences, summary = capsys.readouterr().out.splitlines()
    assert any("critical gas_lock" in line and "N-00000" in line for line in occurrences)
    assert any(line.endswith("(suppressed)") for line in occurrences)
    assert "in 240 readings of 2 wells" in summary
    assert main(["rules", "test", "--csv", str(recording), "--well", "N-00001"]) == 0
    assert capsys.readouterr().out.splitlines() == ["0 occurrences in 120 readings of 1 well"]


def test_occurrences_as_json_lines(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "test", "--csv", str(recording), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    lock = next(row for row in rows if row["diagnosis"] == "gas_lock")
    assert lock["severity"] == "critical"
    assert lock["timestamp"].endswith("Z")
    assert lock["telemetry_snapshot"]["well"] == "running"
    assert lock["actions"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "--csv FILE for a recording, or --since TIME"),
        (["--csv", "x.csv", "--since", "1d"], "--csv FILE for a recording, or --since TIME"),
        (["--since", "yesterday"], "'yesterday' is no time"),
        (["--since", "1h", "--until", "2h"], "--until must be later than --since"),
    ],
)  # fmt: skip
def test_wrong_usage_of_test(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "test", *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_a_recording_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.csv"
    path.write_text("a,b\n1,2\n")
    assert main(["rules", "test", "--csv", str(path)]) == 2
    assert "needs a column well_id" in capsys.readouterr().err


def test_the_rules_file_of_the_settings_is_used(tmp_path: Path, recording: Path) -> None:
    path = tmp_path / "quiet.toml"
    path.write_text(SHIPPED.replace('title = "Gas lock"', 'title = "Gas lock"\nenabled = false'), encoding="utf-8")
    settings = Settings(diagnostics={"rules_file": str(path)})
    arguments = argparse.Namespace(
        action="test", rules=None, csv=recording, since=None, until=None, well=None, json=True
    )
    assert "gas_lock" not in {json.loads(line)["diagnosis"] for line in lines(settings, arguments, 0)}


def test_explain_tells_how_the_load_of_a_well_follows_its_speed() -> None:
    found = rules_file.parse(SHIPPED)
    asked = []

    def read() -> str:
        asked.append(1)
        return told_exponent([1.5, 1.1], [])

    told = "\n".join(explain(found, "underload", "N-1", read))
    assert "load exponent not known before three changes of speed (seen: 1.50, 1.10): any n from 0 to 2" in told
    assert "load exponent" not in "\n".join(explain(found, "vibration", "N-1", read))
    assert "load exponent" not in "\n".join(explain(found, "underload", None))
    assert asked == [1]
    assert told_exponent([1.5, 1.1, 0.9], [1.1, 0.8, 1.4]).startswith(
        "n = 1.10 (0.80 to 1.40) in current ~ frequency^n"
    )


def test_the_exponent_of_a_well_comes_with_its_checkpoint() -> None:
    """Three changes of speed, after each of which the well runs for hours: current ~ frequency^1.4."""
    rules = rules_file.parse(SHIPPED)
    hours = np.arange(60 * 12) / 12
    hertz = np.where(hours < 15, 50.0, np.where(hours < 30, 54.0, np.where(hours < 45, 58.0, 52.0)))
    values = np.full((len(SIGNALS), len(hours)), np.nan)
    values[SIGNAL_ROW["vsd_frequency"]] = hertz
    values[SIGNAL_ROW["motor_current"]] = 40 * (hertz / 50) ** 1.4 * (1 + 0.001 * np.sin(hours))
    t = 1_700_006_400_000_000 + (hours * 3.6e9).astype(np.int64)
    engine, again = Engine(rules), Engine(rules)
    engine.accept(engine.evaluate(Readings(["W"], np.zeros(len(t), np.int32), t, t, values)))
    assert again.load_exponents("W") == ([], [])
    again.restore(engine.export())
    changes, (exponent, least, greatest) = again.load_exponents("W")
    assert changes == pytest.approx([1.4] * 3, abs=0.05)
    assert (exponent, least, greatest) == pytest.approx((1.4, 1.1, 1.7), abs=0.05)
