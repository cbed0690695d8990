"""Every class that the table of SQLSTATEs names, and what is not named."""

import psycopg
import pytest
from psycopg import errors

from esp_ingest.service.log import redact
from esp_ingest.store import sqlstate
from esp_ingest.store.sqlstate import RULES, Verdict, decide, decide_code, unavailable

DATA, TRANSIENT, OPERATOR, DUPLICATE = Verdict.DATA, Verdict.TRANSIENT, Verdict.OPERATOR, Verdict.DUPLICATE

CASES = {
    "03": ("03000", TRANSIENT),
    "08": ("08006", TRANSIENT),
    "0A": ("0A000", OPERATOR),
    "22": ("22P05", DATA),
    "22P03": ("22P03", OPERATOR),
    "22P04": ("22P04", OPERATOR),
    "23": ("23514", DATA),
    "23502": ("23502", OPERATOR),
    "23505": ("23505", DUPLICATE),
    "25": ("25P02", TRANSIENT),
    "25006": ("25006", TRANSIENT),
    "25P03": ("25P03", TRANSIENT),
    "28": ("28P01", OPERATOR),
    "3D": ("3D000", OPERATOR),
    "3F": ("3F000", OPERATOR),
    "40": ("40P01", TRANSIENT),
    "42": ("42804", OPERATOR),
    "42501": ("42501", OPERATOR),
    "42703": ("42703", OPERATOR),
    "42P01": ("42P01", OPERATOR),
    "44": ("44000", DATA),
    "53": ("53000", TRANSIENT),
    "53100": ("53100", TRANSIENT),
    "53200": ("53200", TRANSIENT),
    "53300": ("53300", TRANSIENT),
    "53400": ("53400", OPERATOR),
    "54": ("54001", DATA),
    "55": ("55006", TRANSIENT),
    "55P03": ("55P03", TRANSIENT),
    "57": ("57000", TRANSIENT),
    "57014": ("57014", TRANSIENT),
    "57P01": ("57P01", TRANSIENT),
    "57P02": ("57P02", TRANSIENT),
    "57P03": ("57P03", TRANSIENT),
    "57P04": ("57P04", OPERATOR),
    "58": ("58030", TRANSIENT),
    "F0": ("F0000", OPERATOR),
    "P0": ("P0001", OPERATOR),
    "XX": ("XX001", OPERATOR),
}


def test_every_rule_has_a_case() -> None:
    assert CASES.keys() == RULES.keys()


@pytest.mark.parametrize(("prefix", "code", "verdict"), [(prefix, *case) for prefix, case in CASES.items()])
def test_codes(prefix: str, code: str, verdict: Verdict) -> None:
    assert decide_code(code).verdict is verdict
    assert decide_code(code) is RULES[prefix]


@pytest.mark.parametrize("code", ["TS001", "HV000", "ZZZZZ", "01000"])
def test_what_is_not_known_is_tried_again_and_never_dropped(code: str) -> None:
    assert decide_code(code) is sqlstate.UNKNOWN
    assert sqlstate.UNKNOWN.verdict is TRANSIENT


def test_reasons_are_short_fixed_phrases() -> None:
    for decision in RULES.values():
        assert 5 < len(decision.reason) < 90
        assert not decision.reason.endswith(".")


def test_errors_by_their_class() -> None:
    assert decide(errors.UniqueViolation("x")).verdict is DUPLICATE
    assert decide(errors.UndefinedTable("x")).reason == "a table is missing: run esp-ingest migrate"
    assert decide(errors.AdminShutdown("x")).verdict is TRANSIENT


def test_client_side_errors_have_no_code() -> None:
    assert decide(psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")).verdict is DATA
    with pytest.raises(UnicodeEncodeError) as caught:
        "\ud800".encode()
    assert decide(caught.value).verdict is DATA
    assert decide(psycopg.OperationalError("consuming input failed")) is sqlstate.NO_ANSWER
    assert decide(psycopg.InterfaceError("the connection is closed")).verdict is TRANSIENT
    assert decide(psycopg.NotSupportedError("x")).verdict is TRANSIENT


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('connection failed: FATAL:  password authentication failed for user "x"', RULES["28"].reason),
        ('connection failed: FATAL:  database "nope" does not exist', RULES["3D"].reason),
        ("connection failed: FATAL:  sorry, too many clients already", RULES["53300"].reason),
        ("connection failed: FATAL:  the database system is starting up", RULES["57P03"].reason),
        ("connection failed: Connection refused", "the database does not answer at its address"),
        ('connection failed: FATAL:  role "x" does not exist', RULES["28"].reason),
        ('connection failed: FATAL:  role "x" is not permitted to log in', RULES["28"].reason),
        ('connection failed: FATAL:  permission denied for database "x"', RULES["42501"].reason),
        ('connection failed: FATAL:  too many connections for role "x"', RULES["53300"].reason),
        (
            'connection failed: FATAL:  database "x" is not currently accepting connections',
            "the database accepts no connections",
        ),
        (
            'root certificate file "/x" does not exist',
            "a file that database.dsn or the environment names cannot be used",
        ),
        (
            'connection is bad: definition of service "x" not found',
            "a file that database.dsn or the environment names cannot be used",
        ),
        (
            "server does not support SSL, but SSL was required",
            "the server does not speak TLS, which database.dsn asks for",
        ),
        (
            "connection failed: server is not in hot standby mode",
            "no server is of the kind that target_session_attrs asks for",
        ),
        (
            'connection to server on socket "/nope/.s.PGSQL.5432" failed: No such file or directory',
            "the database does not answer at its address",
        ),
        ("failed to resolve host 'x': [Errno -2]", "the database's host name does not resolve"),
        ('invalid value for parameter "client_encoding"', "database.dsn holds a value that cannot be used"),
        ("could not translate host name", "the database's host name does not resolve"),
        ("connection timeout expired", sqlstate.NO_ANSWER.reason),
    ],
)
def test_a_refused_connection_says_why(text: str, reason: str) -> None:
    assert unavailable(psycopg.OperationalError(text)).reason == reason


@pytest.mark.parametrize(
    ("code", "new"),
    [("25006", True), ("25P02", True), ("42501", True), ("P0001", True), ("40001", False), ("57014", False)],
)
def test_a_session_that_stands_in_its_own_way_is_replaced(code: str, new: bool) -> None:
    assert sqlstate.wants_new_session(errors.lookup(code)("x")) is new


def test_the_detail_is_one_line() -> None:
    error = unavailable(errors.DeadlockDetected("deadlock detected\nDETAIL: process 1 waits"))
    assert error.detail == "deadlock detected"
    assert unavailable(errors.DeadlockDetected("")).detail == "DeadlockDetected"


def test_no_reason_makes_the_log_take_what_follows_for_a_password() -> None:
    for decision in RULES.values():
        said = f"{decision.reason}: connection failed"
        assert redact(said) == said
