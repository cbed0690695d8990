"""The command line: every command loads and explains itself, and wrong usage is one sentence and exit code 2."""

import argparse
import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from esp_ingest import cli
from esp_ingest.commands import simulate
from esp_ingest.demo.fleet import FaultName
from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.store import sqlstate
from tests.support.databases import free_port

COMMANDS = ("run", "migrate", "check", "simulate", "demo", "rejects", "rules", "alarms", "api", "users", "lifecycle")


def parsers(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """All of them, down to the actions, by what is typed."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, sub in action.choices.items():
                yield from parsers(sub, f"{name} {word}".strip())


ALL = dict(parsers(cli.make_parser()))


def test_every_command_is_here() -> None:
    assert {name for name in ALL if name and " " not in name} == set(COMMANDS)
    assert {"rejects replay", "rules test", "alarms shelve"} < ALL.keys()


@pytest.mark.parametrize("name", ALL)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*name.split(), "--help"])
    assert caught.value.code == 0
    said, complaint = capsys.readouterr()
    assert said.startswith(f"usage: esp-ingest {name}".rstrip())
    assert complaint == ""


@pytest.mark.parametrize("name", ALL)
def test_every_option_says_what_it_does(name: str) -> None:
    for action in ALL[name]._actions:
        if not isinstance(action, argparse._SubParsersAction):
            assert action.help, f"{name}: {action.option_strings or action.dest}"


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_imports_when_it_runs_is_there(name: str) -> None:
    """Some imports stand inside a function, so that the command starts fast; nothing else would find a wrong one."""
    tree = ast.parse(inspect.getsource(importlib.import_module(f"esp_ingest.commands.{name}")))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert found
    for node in found:
        module = importlib.import_module(node.module or "")
        for alias in node.names:
            if not hasattr(module, alias.name):
                importlib.import_module(f"{node.module}.{alias.name}")


def test_a_command_starts_without_loading_the_others() -> None:
    script = (
        "import sys; from esp_ingest import cli; cli.make_parser(['run']); "
        "print([name for name in ('numpy', 'psycopg') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_faults_in_the_help_are_those_there_are() -> None:
    assert simulate.FAULTS.split(", ") == [fault.value for fault in FaultName]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("simulate --csv x.csv --wells 3", "--wells applies to a simulated fleet"),
        ("simulate --csv x.csv --duration 3", "--duration applies to a simulated fleet"),
        ("simulate --csv x.csv --fault trip", "--fault applies to a simulated fleet"),
        ("simulate --csv x.csv --fault-after 3", "--fault-after applies to a simulated fleet"),
        ("simulate --speed 2", "--speed applies to a recording"),
        ("simulate --keep-timestamps", "--keep-timestamps applies to a recording"),
        ("simulate --fault-after 3", "--fault-after needs a --fault"),
        ("simulate --malformed 0.6 --late 0.6", "are more than 1 together"),
        ("simulate --seed -1", "'-1' is not a whole number of at least 0"),
        ("simulate --fault nothing", "nothing is not a fault: "),
        ("simulate --csv /nowhere/x.csv", "x.csv cannot be read: No such file or directory."),
        ("demo --csv /nowhere/x.csv", "x.csv cannot be read: No such file or directory."),
        ("demo --csv x.csv --rate 3", "--rate applies to a simulated fleet"),
        ("demo --csv x.csv --seed 3", "--seed applies to a simulated fleet"),
        ("demo --config x.toml", "x.toml"),
        ("run --retire --workers 2", "--retire applies to a single daemon"),
        ("run --workers 1000", "'1000' workers are more than 64"),
        ("check --config /", "/ is a folder: give the path of a TOML file"),
        ("rules test --csv /nowhere/x.csv", "x.csv cannot be read: No such file or directory."),
    ],
)
def test_wrong_usage_is_a_sentence_and_ends_with_2(
    line: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        code = cli.main(line.split())
    except SystemExit as end:
        code = int(end.code or 0)
    said, complaint = capsys.readouterr()
    assert code == 2, complaint
    assert says in complaint
    assert "[Errno" not in complaint
    assert complaint.count("\n") == 1
    assert said == ""


@pytest.mark.parametrize("command", [["rejects", "list"], ["alarms", "list"], ["rules", "check"]])
def test_common_options_count_before_and_after_an_action(command: list[str]) -> None:
    before = cli.make_parser().parse_args([command[0], "--debug", "--config", "F", command[1]])
    after = cli.make_parser().parse_args([*command, "--config", "F", "--debug"])
    neither = cli.make_parser().parse_args(command)
    assert [(each.config, each.debug) for each in (before, after, neither)] == [
        (Path("F"), True),
        (Path("F"), True),
        (None, False),
    ]


def test_options_that_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for line in (
        "simulate --fault trip --fault gas_lock --fault-after 3",
        "simulate --csv x --speed 0 --keep-timestamps",
    ):
        arguments = cli.make_parser().parse_args(line.split())
        assert cli.senseless(arguments) == ""
    assert arguments.keep_timestamps is True
    assert cli.make_parser().parse_args(["simulate", "--fault", "trip", "--fault", "stale"]).fault == ["trip", "stale"]
    assert cli.make_parser().parse_args(["simulate"]).fault == []
    assert cli.senseless(cli.make_parser().parse_args(["demo", "--csv", "x", "--duration", "3", "--json"])) == ""


@pytest.mark.parametrize("command", ["migrate", "rejects list", "alarms list"])
def test_a_dsn_that_is_none_is_wrong_configuration(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESP_INGEST_DATABASE__DSN", "hunter2")
    assert cli.main(command.split()) == 2
    complaint = capsys.readouterr().err
    assert complaint == (
        "esp-ingest: database.dsn is not a connection string (write it as postgresql://user@host:5432/database).\n"
    )


def test_no_database_says_what_to_do(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", str(free_port()))
    monkeypatch.delenv("ESP_INGEST_DATABASE__DSN", raising=False)
    assert cli.main(["rejects", "list"]) == 1
    complaint = capsys.readouterr().err
    assert "The database does not answer at its address" in complaint
    assert "; database.dsn is empty" in complaint
    assert "start it, or set database.dsn (ESP_INGEST_DATABASE__DSN)" in complaint


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (psycopg.errors.UndefinedTable("relation x does not exist\nLINE 1: SELECT"), "run esp-ingest migrate"),
        (psycopg.errors.InsufficientPrivilege("permission denied for table x"), "log in as the owner of the tables"),
        (psycopg.OperationalError('FATAL: password authentication failed for user "x"'), "check user and password"),
        (psycopg.OperationalError('FATAL: database "x" does not exist'), "create it, or name another"),
        (StoreUnavailable("the database does not answer", "timeout expired"), "start it, or set database.dsn"),
    ],
)
def test_what_the_database_refuses_is_a_sentence_that_says_what_to_do(error: Exception, says: str) -> None:
    assert cli.one_line(error) == " ".join(sqlstate.sentence(error).split())
    assert says in cli.one_line(error)
    assert "LINE 1" not in cli.one_line(error)
