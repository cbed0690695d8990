"""Is it the row, the moment, or the set-up? Decided in one place, by SQLSTATE.

The codes are PostgreSQL's (appendix A of its manual). What is not named here is retried and never dropped: a batch that
waits can be seen and mended, a row thrown away cannot.
"""

import re
from enum import Enum
from typing import NamedTuple

import psycopg

from esp_ingest.interfaces import StoreUnavailable


class Verdict(Enum):
    """What to do with a batch after an error."""

    DUPLICATE = "a key is there already: through the staging table"
    DATA = "a row at fault: find it and store it as a reject"
    TRANSIENT = "passes by itself: the same batch again"
    OPERATOR = "someone has to do something; the same batch again meanwhile"


class Decision(NamedTuple):
    """``reason`` is a short fixed phrase, fit for logs and health."""

    verdict: Verdict
    reason: str


_D, _T, _O = Verdict.DATA, Verdict.TRANSIENT, Verdict.OPERATOR

# The longest prefix wins: whole codes before classes.
RULES: dict[str, Decision] = {
    # whole codes
    # We never send NULL in a column that forbids it, so it is one that we do not know.
    "23502": Decision(_O, "the table has a required column that this program does not write"),
    "23505": Decision(Verdict.DUPLICATE, "duplicate key"),
    "22P03": Decision(
        _O, "the table's column types are not those this program writes"
    ),  # invalid_binary_representation
    "22P04": Decision(_O, "the table's columns are not those this program writes"),  # bad_copy_file_format
    "25006": Decision(_T, "the database is read-only"),  # a standby, or a failover under way
    "42501": Decision(_O, "the database user lacks a permission"),
    "42P01": Decision(_O, "a table is missing: run esp-ingest migrate"),
    "42703": Decision(_O, "a column is missing: run esp-ingest migrate"),
    "53100": Decision(_T, "the database's disk is full"),
    "53200": Decision(_T, "the database is out of memory"),
    "53300": Decision(_T, "the database has no connection left"),
    # TimescaleDB's limit on decompression in one statement; the writer lifts it where it can.
    "53400": Decision(_O, "a limit of the database's configuration is reached"),
    "55P03": Decision(_T, "a lock on the tables is held by someone else"),
    # statement_timeout, pg_cancel_backend, and also what the server answers when the client itself aborts a COPY
    "57014": Decision(_T, "a statement was cancelled or took longer than database.statement_timeout_seconds"),
    "57P01": Decision(_T, "the database is shutting down"),
    "57P02": Decision(_T, "the database crashed and restarts"),
    "57P03": Decision(_T, "the database is starting up"),
    "57P04": Decision(_O, "the database was dropped"),
    "25P03": Decision(_T, "the database ended an idle transaction"),
    # classes
    "03": Decision(_T, "the database was interrupted"),
    "08": Decision(_T, "the connection to the database was lost"),
    "0A": Decision(_O, "this database cannot do what is asked"),  # feature_not_supported: by edition or version
    "22": Decision(_D, "the database cannot hold a value"),
    "23": Decision(_D, "a constraint of the table refuses a row"),
    "25": Decision(_T, "the transaction is in a state that does not allow this"),
    "28": Decision(_O, "the database refuses this login"),
    "3D": Decision(_O, "there is no such database"),
    "3F": Decision(_O, "there is no such schema"),
    "40": Decision(_T, "the transaction collided with another"),  # serialization failure, deadlock
    "42": Decision(_O, "the database does not understand a statement: run esp-ingest migrate"),
    "44": Decision(_D, "a view's check refuses a row"),
    "53": Decision(_T, "the database lacks a resource"),
    "54": Decision(_D, "a row is too large or too complex"),  # 54000 index row size, 54001 nesting of a JSON value
    "55": Decision(_T, "an object of the database is in use or not ready"),
    "57": Decision(_T, "the database was interrupted by an operator"),
    "58": Decision(_T, "the database's machine reports an input/output error"),
    "F0": Decision(_O, "the database's configuration file is in error"),
    # A trigger's RAISE EXCEPTION: it may mean the row or the moment, so nothing is dropped.
    "P0": Decision(_O, "a trigger or function of the database raised an error"),
    "XX": Decision(_O, "the database reports damage or an internal error"),
}
MISSING_RIGHT = RULES["42501"].reason
# The state of a transaction or a session, and not the server, stands in the way: of these the class is enough.
_OF_THE_SESSION = "25"
# protocol_violation: what PgBouncer says under this code is told apart by its text.
_POOLERS_OWN = "08P01"
# What a smaller transaction may be spared: no memory or locks left, too many rows decompressed, too long a statement.
_TOO_MUCH = frozenset(("53200", "53400", "57014"))
NO_ANSWER = Decision(_T, "the database does not answer")
UNKNOWN = Decision(_T, "an error of a kind not known here")
CLIENT_DATA = Decision(_D, "the client library cannot encode a value")


def decide_code(code: str) -> Decision:
    """The decision for one SQLSTATE, five characters."""
    return RULES.get(code) or RULES.get(code[:2]) or UNKNOWN


def decide(error: BaseException) -> Decision:
    """The decision for an error of psycopg, server side or client side.

    Without a SQLSTATE: an OperationalError or InterfaceError is a connection that failed or was lost; a DataError or a
    UnicodeError is a value that the client cannot send (a NUL in a text, a lone surrogate)."""
    if isinstance(error, psycopg.Error) and error.sqlstate:
        hint = _from_text(str(error)) if error.sqlstate == _POOLERS_OWN else NO_ANSWER
        return decide_code(error.sqlstate) if hint is NO_ANSWER else hint
    if isinstance(error, psycopg.DataError | UnicodeError):
        return CLIENT_DATA
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return _from_text(str(error))
    return UNKNOWN


def is_a_row(error: BaseException) -> bool:
    """Whether the row itself is at fault, and not the moment or the set-up."""
    return decide(error).verdict in (Verdict.DATA, Verdict.DUPLICATE)


def is_too_much(error: BaseException) -> bool:
    """Whether the transaction may have been too much at once, rather than the moment a bad one."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _TOO_MUCH


def wants_new_session(error: BaseException) -> bool:
    """Whether the next attempt should have a new session. What an operator sets with ALTER DATABASE or ALTER ROLE
    (read only, a search path, a limit) holds for sessions that begin afterwards, and so does its end: a session that
    fails over something that an operator mends, or over its own state, is not kept."""
    if isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(_OF_THE_SESSION):
        return True
    return decide(error).verdict is Verdict.OPERATOR


# libpq gives no SQLSTATE when the server refuses the connection itself, only its text, in the server's language. These
# are hints for the reason that is shown; the verdict stays "try again". Some are PgBouncer's.
_STATEMENT_MODE = Decision(_O, "the connection pooler is in statement mode, which has no transactions")
FILE = Decision(_O, "a file that database.dsn or the environment names cannot be used")
_NOT_TRUSTED = Decision(_O, "the database's certificate is not trusted")
_OTHER_NAME = Decision(_O, "the database's certificate is for another host name")
_NO_LOGIN = Decision(_O, "the database does not take our certificate")
_CONNECT_HINTS = (
    ("password authentication failed", RULES["28"]),
    ("no password supplied", RULES["28"]),
    ("no pg_hba.conf entry", RULES["28"]),
    (r'role ".*" does not exist', RULES["28"]),
    (r'role ".*" is not permitted to log in', RULES["28"]),
    ("permission denied for database", RULES["42501"]),
    (r'database ".*" does not exist', RULES["3D"]),
    ("too many connections for", RULES["53300"]),
    (r'(file|certificate|key|service) ".*" (does not exist|not found)', FILE),
    ("could not (open|read|load) .*(file|certificate|key)", FILE),
    ('certificate present, but not private key file|private key file ".*" (has group or world access|is not)', FILE),
    ("certificate verify failed", _NOT_TRUSTED),
    ("does not match host name", _OTHER_NAME),
    ("certificate authentication failed|requires a valid client certificate", _NO_LOGIN),
    ("alert .*(certificate|unknown ca)", _NO_LOGIN),
    ("SASL authentication failed|no such user", RULES["28"]),
    ("no such database", RULES["3D"]),
    ("no more connections allowed", RULES["53300"]),
    ("statement pooling mode", _STATEMENT_MODE),
    ("too many clients", RULES["53300"]),
    ("remaining connection slots", RULES["53300"]),
    ("starting up", RULES["57P03"]),
    ("shutting down", RULES["57P01"]),
    ("not currently accepting connections", Decision(_O, "the database accepts no connections")),
    ("server does not support SSL", Decision(_O, "the server does not speak TLS, which database.dsn asks for")),
    (
        "in hot standby mode|session is (not )?read-only",
        Decision(_T, "no server is of the kind that target_session_attrs asks for"),
    ),
    ("could not translate host name|failed to resolve host", Decision(_T, "the database's host name does not resolve")),
    ("invalid port number|invalid value for parameter", Decision(_O, "database.dsn holds a value that cannot be used")),
    ("invalid sslmode value", Decision(_O, "database.dsn holds a value that cannot be used")),
    ("refused|failed: No such file or directory", Decision(_T, "the database does not answer at its address")),
)


def _from_text(text: str) -> Decision:
    return next((decision for hint, decision in _CONNECT_HINTS if re.search(hint, text)), NO_ANSWER)


def unavailable(error: BaseException) -> StoreUnavailable:
    """``error`` as the seam's exception: the fixed reason, and the first line of the database's own words."""
    lines = str(error).strip().splitlines()
    return StoreUnavailable(decide(error).reason, lines[0] if lines else type(error).__name__)


_SET_DSN = "start it, or set database.dsn (ESP_INGEST_DATABASE__DSN)"
# What an operator at a terminal can do, by reason; a daemon tries again, and its runbooks say more.
_ADVICE = {
    NO_ANSWER.reason: _SET_DSN,
    "the database does not answer at its address": _SET_DSN,
    "the database's host name does not resolve": "set database.dsn (ESP_INGEST_DATABASE__DSN)",
    RULES["28"].reason: "check user and password in database.dsn, database.password or database.password_file",
    RULES["3D"].reason: "create it, or name another in database.dsn",
    "the database cannot hold UTF-8 text": "create another with ENCODING 'UTF8' TEMPLATE template0, and name it in "
    "database.dsn",
    # libpq does not say which of the two it is.
    _NOT_TRUSTED.reason: "renew it there if it has ended, else set sslrootcert in database.dsn to "
    "the CA that signed it",
    _OTHER_NAME.reason: "set host in database.dsn to a name in the certificate",
    _NO_LOGIN.reason: "set sslcert and sslkey in database.dsn to one that has not ended, of a CA that it knows, for "
    "this user",
    _STATEMENT_MODE.reason: "set pool_mode to transaction or session there",
    RULES["42501"].reason: "log in as the owner of the tables, or have him grant it",
}


def sentence(error: BaseException) -> str:
    """An error of psycopg, or the seam's, for somebody at a terminal: what is wrong, and what to do."""
    said = error if isinstance(error, StoreUnavailable) else unavailable(error)
    is_a_key = said.reason.startswith("database.")  # the name of a setting stays as it is written
    reason = said.reason if is_a_key else f"{said.reason[:1].upper()}{said.reason[1:]}"
    advice = _ADVICE.get(said.reason, "")
    text = f"{reason} ({said.detail.rstrip('.')})" if said.detail else reason
    return f"{text}: {advice}." if advice else f"{text}."
