"""Logs: a line is one JSON object whatever is put into it, secrets stay out, and repeated failures do not flood."""

import io
import json
import logging
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp_ingest.config.settings import LogSettings
from esp_ingest.service import log as logs

DSN = "postgresql://esp:pa@ss/word'1@db.example:5432/esp?sslmode=require"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, hook = list(root.handlers), root.level, threading.excepthook
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    threading.excepthook = hook
    logging.captureWarnings(False)


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    lines = stream.getvalue().splitlines()
    return [json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is not JSON")) for line in lines]


def one_line(event: str, format_: str = "json", **fields: object) -> str:
    stream = io.StringIO()
    logs.configure(LogSettings(format=format_), stream)
    logging.getLogger("esp_ingest.test").warning(event, extra=fields)
    text = stream.getvalue()
    assert text.count("\n") == 1
    return text


def test_a_record_is_one_json_object_with_its_fields() -> None:
    record = json.loads(one_line("database away", reason="connection refused", attempt=3))
    assert record.pop("timestamp").endswith("Z")
    assert record == {
        "level": "warning",
        "event": "database away",
        "logger": "esp_ingest.test",
        "reason": "connection refused",
        "attempt": 3,
    }


def test_timestamps_are_rfc_3339_with_milliseconds() -> None:
    formatter = logs.JsonFormatter()
    record = logging.LogRecord("x", logging.INFO, "", 0, "event", None, None)
    record.created = 1_781_236_800.0
    assert json.loads(formatter.format(record))["timestamp"] == "2026-06-12T04:00:00.000Z"


@pytest.mark.parametrize(
    "text",
    [
        DSN,
        "host=db password=hunter2 dbname=esp",
        "host=db password='hunter2 and more' dbname=esp",
        "host=db password = 'hunt\\'er2' dbname=esp",
        '{"password": "hunter2"}',
        "{'password': 'hunter2'}",
        "PGPASSWORD=hunter2",
        "mqtt://user:hunter2@broker:1883",
        'connection to "postgresql://:hunter2@db/esp" failed',
    ],
)
@pytest.mark.parametrize("place", ["event", "field", "nested", "exception"])
def test_passwords_never_reach_the_log(text: str, place: str) -> None:
    stream = io.StringIO()
    logs.configure(LogSettings(), stream)
    logger = logging.getLogger("t")
    if place == "event":
        logger.warning("cannot connect: %s", text)
    elif place == "field":
        logger.warning("cannot connect", extra={"detail": text})
    elif place == "nested":
        logger.warning("cannot connect", extra={"detail": {"tried": [text]}})
    else:
        try:
            raise ValueError(text)
        except ValueError:
            logger.exception("cannot connect")
    for secret in ("hunter2", "hunt", "pa@ss", "word'1", "and more"):
        assert secret not in stream.getvalue()
    assert "***" in stream.getvalue()


@pytest.mark.parametrize("name", ["password", "mqtt_password", "dsn", "token", "client_secret", "Authorization"])
def test_fields_named_like_secrets_are_hidden(name: str) -> None:
    assert json.loads(one_line("settings", **{name: "hunter2"}))[name] == "***"
    assert json.loads(one_line("settings", shown={name: "hunter2"}))["shown"][name] == "***"


def test_a_sender_cannot_write_a_line_of_its_own() -> None:
    nasty = 'x\n{"level":"error","event":"forged"}\r\u2028\x1b[2J\x00\ud800'
    record = json.loads(one_line("rejected", topic=nasty))
    assert record["topic"].startswith("x\n{")
    assert record["event"] == "rejected"
    shown = one_line("rejected " + nasty, "console", topic=nasty)
    assert "\x1b" not in shown
    assert "\r" not in shown


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def test_what_cannot_be_shown_does_not_stop_a_line() -> None:
    loop: list[object] = []
    loop.append(loop)
    record = json.loads(
        one_line(
            "odd", a=Hostile(), b=loop, c=math.nan, d=-math.inf, e=b"\xff\n", f={1: {2}}, g=10**400, h={"k": Hostile()}
        )
    )
    assert record["c"] == "nan"
    assert record["e"] == "\\xff\n"
    assert record["f"] == {"1": [2]}


json_like: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
    max_leaves=20,
)


@given(st.text(st.characters()), json_like)
def test_any_event_and_any_field_is_one_bounded_line(event: str, value: object) -> None:
    for format_ in ("json", "console"):
        line = one_line(event.replace("%", "%%"), format_, value=value)
        assert len(line) < 20_000


def test_a_line_is_bounded() -> None:
    record = json.loads(one_line("large", payload="x" * 1_000_000))
    assert len(record["payload"]) < 2_100
    assert "1" in record["payload"][-30:]
    record = json.loads(one_line("many", **{f"field{i}": "y" * 2_000 for i in range(100)}))
    assert record["event"] == "many"
    assert "cut" in record


def test_an_exception_is_a_field() -> None:
    stream = io.StringIO()
    logs.configure(LogSettings(), stream)
    try:
        raise KeyError("gone")
    except KeyError:
        logging.getLogger("t").exception("failed")
    (record,) = written(stream)
    assert record["exception"]["type"] == "builtins.KeyError"
    assert "test_an_exception_is_a_field" in record["exception"]["where"][0]


def test_a_librarys_wrong_format_arguments_do_not_raise() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "%d of %s", ("x",), None)
    assert "%d of %s" in json.loads(logs.JsonFormatter().format(record))["event"]


def test_a_dead_thread_is_a_line() -> None:
    stream = io.StringIO()
    logs.configure(LogSettings(), stream)

    def fail() -> None:
        raise ValueError("boom")

    thread = threading.Thread(target=fail, name="network")
    thread.start()
    thread.join()
    (record,) = written(stream)
    assert record["event"] == "a thread died"
    assert record["thread_name"] == "network"
    assert record["exception"]["text"] == "boom"


def test_the_level_is_kept_and_configuring_again_does_not_double_lines() -> None:
    stream = io.StringIO()
    logs.configure(LogSettings(), stream)
    logs.configure(LogSettings(level="warning"), stream)
    logging.getLogger("t").info("not this")
    logging.getLogger("t").warning("this")
    assert [record["event"] for record in written(stream)] == ["this"]


def test_a_closed_pipe_is_survived(capsys: pytest.CaptureFixture[str]) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    logs.configure(LogSettings(), Closed())
    logging.getLogger("t").warning("nobody reads this")
    assert capsys.readouterr().err == ""


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger("repeated")
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.propagate = True


def repeated() -> logs.Repeated:
    return logs.Repeated(logging.getLogger("repeated"), "database away", "database back")


def test_an_outage_of_an_hour_is_a_handful_of_lines(lines: Lines) -> None:
    failure = repeated()
    told = [second for second in range(3_600) if failure.failed(float(second), "refused")]
    assert told == [0, 10, 40, 130, 400, 1_210, 2_110, 3_010]
    assert failure.ended(3_600.0)
    assert not failure.ended(3_601.0)
    last: Any = lines.records[-1]
    assert (last.getMessage(), last.failures, last.failing_seconds) == ("database back", 3_600, 3_600.0)
    assert len(lines.records) == len(told) + 1


def test_a_new_reason_is_told_at_once_but_ever_new_reasons_are_not(lines: Lines) -> None:
    failure = repeated()
    told = [failure.failed(n / 1_000, f"reason {n}") for n in range(1_000)]
    assert sum(told) == logs.Repeated.MAX_REASONS
    failure.failed(10.0, "reason 5000")
    assert len(lines.records) == logs.Repeated.MAX_REASONS + 1


def test_the_next_outage_starts_anew(lines: Lines) -> None:
    failure = repeated()
    failure.failed(0.0, "refused")
    failure.failed(1.0, "refused")
    failure.ended(2.0)
    assert not failure.active
    assert failure.failed(3.0, "refused", host="db")
    last: Any = lines.records[-1]
    assert (last.failures, last.host, last.reason) == (1, "db", "refused")


@pytest.mark.parametrize(
    ("settings", "is_terminal", "is_json"),
    [
        (LogSettings(), True, False),
        (LogSettings(), False, True),
        (LogSettings(format="json"), True, True),
        (LogSettings(format="console"), False, False),
    ],
)
def test_people_on_a_terminal_get_lines_for_people_unless_somebody_chose(
    settings: LogSettings, is_terminal: bool, is_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Out(io.StringIO):
        def isatty(self) -> bool:
            return is_terminal

    out = Out()
    monkeypatch.setattr("sys.stdout", out)
    logs.configure(settings)
    logging.getLogger("esp_ingest").warning("something")
    assert out.getvalue().startswith("{") == is_json
