"""Who may do what over the HTTP API: role × operation × foreign well group, a test a cell; users as the command line
makes them; and that every well that is not one's own is not there."""

import base64
import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pyarrow as pa
import pytest

from esp_ingest.store.schema import migrate
from tests.support.api import PASSWORD, ApiProcess, insert_alarm, insert_reading
from tests.support.databases import Database, Server

NOW = datetime.now(UTC).replace(microsecond=0)
ROLES = ("nobody", "viewer", "operator", "admin")
GROUPS = ("all", "own", "foreign")  # of the user, seen from the well A-1
OWN, FOREIGN = "A-1", "B-1"

# operation → (method, path, body, least role, whether it is of a well)
OPERATIONS: dict[str, tuple[str, str, dict[str, Any] | None, str, bool]] = {
    "me": ("GET", "/api/v1/me", None, "viewer", False),
    "fleet": ("GET", "/api/v1/fleet", None, "viewer", False),
    "wells": ("GET", "/api/v1/wells", None, "viewer", False),
    "well": ("GET", f"/api/v1/wells/{OWN}", None, "viewer", True),
    "telemetry": ("GET", f"/api/v1/wells/{OWN}/telemetry", None, "viewer", True),
    "pump": ("GET", f"/api/v1/wells/{OWN}/pump", None, "viewer", True),
    "losses": ("GET", "/api/v1/losses", None, "viewer", False),
    "signals": ("GET", "/api/v1/signals", None, "viewer", False),
    "alarms": ("GET", "/api/v1/alarms", None, "viewer", False),
    "kpis": ("GET", "/api/v1/alarms/kpis", None, "viewer", False),
    "history": ("GET", "/api/v1/alarms/history", None, "viewer", False),
    "precision": ("GET", "/api/v1/alarms/precision", None, "viewer", False),
    "rules": ("GET", "/api/v1/rules", None, "viewer", False),
    "rejects": ("GET", "/api/v1/rejects", None, "viewer", False),
    "archive": ("GET", "/api/v1/archive", None, "viewer", False),
    "daemon": ("GET", "/api/v1/daemon", None, "viewer", False),
    "stream": ("GET", f"/api/v1/stream?well_id={OWN}", None, "viewer", True),
    "ack": ("POST", "/api/v1/alarms/ack", {}, "operator", True),
    "shelve": ("POST", "/api/v1/alarms/shelve", {"duration": "1h", "why": "test"}, "operator", True),
    "unshelve": ("POST", "/api/v1/alarms/unshelve", {}, "operator", True),
    "note": ("POST", "/api/v1/alarms/note", {"why": "test"}, "operator", True),
    "verdict": ("POST", "/api/v1/alarms/verdict", {"verdict": "true"}, "operator", True),
    "audit": ("GET", "/api/v1/audit", None, "admin", False),
    "users": ("GET", "/api/v1/users", None, "admin", False),
}
PUBLIC = {
    "/health/live", "/health/ready", "/metrics", "/openapi.json", "/docs", "/api/v1/auth/token", "/api/v1/auth/refresh",
    "/api/v1/auth/logout", "/api/v1/auth/methods", "/api/v1/auth/oidc",
}  # fmt: skip


def fill(database: Database) -> None:
    migrate(database.settings)
    for well in ("A-1", "A-2", "B-1"):
        insert_reading(database, well, NOW)
        with database.connect() as connection:
            insert_alarm(connection, well, "gas_lock", NOW - timedelta(hours=1))
            connection.execute(
                "INSERT INTO ingest_rejects (received_at, digest, item, topic, reason, detail, payload, redelivered) "
                "VALUES (%s, md5(%s)::uuid, 0, %s, 'invalid_json', 'not JSON', 'x', false)",
                (NOW, well, f"esp/{well}/telemetry"),
            )
            connection.execute(
                "INSERT INTO alarm_actions (well_id, diagnosis, action, by_whom, why) "
                "VALUES (%s, 'gas_lock', 'note', 'x', 'y')",
                (well,),
            )
            connection.execute(
                "INSERT INTO alarm_verdicts (well_id, diagnosis, raised_at, verdict, severity, by_whom, why) "
                "VALUES (%s, %s, %s, 'true', 'high', 'x', 'y')",
                (well, f"of {well}", NOW),
            )


@pytest.fixture(scope="module")
def database(timescaledb_apache_server: Server) -> Iterator[Database]:
    made = timescaledb_apache_server.create_database()
    fill(made)
    yield made
    timescaledb_apache_server.drop_database(made)


@pytest.fixture(scope="module")
def api(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    pumps = {OWN: {"curve": [[0, 9_000], [2_000, 7_000], [3_500, 3_000]]}}
    settings = {"API__SIGN_IN_PER_MINUTE": "1000", "PUMPS__BY_WELL": json.dumps(pumps)}
    process = ApiProcess(tmp_path_factory.mktemp("api"), database.dsn, settings)
    for role in ROLES[1:]:
        process.add_user(f"{role}-all", role)
        process.add_user(f"{role}-own", role, "A-*")
        process.add_user(f"{role}-foreign", role, "B-1", "C*")
    with process:
        yield process


@pytest.fixture(scope="module")
def clients(api: ApiProcess) -> Iterator[dict[tuple[str, str], httpx.Client]]:
    made = {(role, group): api.signed_in(f"{role}-{group}") for role in ROLES[1:] for group in GROUPS}
    made |= {("nobody", group): api.client() for group in GROUPS}
    yield made
    for client in made.values():
        client.close()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_cell(clients: dict[tuple[str, str], httpx.Client], operation: str, role: str, group: str) -> None:
    method, path, body, least, is_of_well = OPERATIONS[operation]
    if body is not None:
        item = {"well_id": OWN, "diagnosis": "gas_lock", "timestamp": (NOW - timedelta(hours=1)).isoformat()}
        body = {"items": [item], **body}
    with clients[role, group].stream(method, path, json=body) as answer:
        status = answer.status_code
    if role == "nobody":
        assert status == 401
    elif ROLES.index(role) < ROLES.index(least):
        assert status == 403
    else:
        assert status == (404 if is_of_well and group == "foreign" else 200)


def test_every_operation_is_in_the_matrix(api: ApiProcess) -> None:
    with api.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    known = {(method, path.split("?")[0].replace(OWN, "{well_id}")) for method, path, *_ in OPERATIONS.values()}
    found = {(method.upper(), path) for path, methods in paths.items() for method in methods if path not in PUBLIC}
    assert found == known


@pytest.mark.parametrize("group", ["own", "foreign"])
def test_lists_and_sums_hold_only_ones_own(clients: dict[tuple[str, str], httpx.Client], group: str) -> None:
    client = clients["viewer", group]
    mine = {"own": {"A-1", "A-2"}, "foreign": {"B-1"}}[group]
    assert {well["well_id"] for well in client.get("/api/v1/wells").json()["items"]} == mine
    assert client.get("/api/v1/fleet").json()["wells"] == len(mine)
    assert client.get("/api/v1/fleet").json()["alarms_24h"] == len(mine)
    assert client.get("/api/v1/fleet").json()["rejects_24h"] is None
    assert {alarm["well_id"] for alarm in client.get("/api/v1/alarms").json()["items"]} == mine
    assert {action["well_id"] for action in client.get("/api/v1/alarms/history").json()["items"]} == mine
    assert client.get("/api/v1/alarms/kpis").json()["alarms"] == len(mine)
    topics = {reject["topic"] for reject in client.get("/api/v1/rejects").json()["items"]}
    assert topics == {f"esp/{well}/telemetry" for well in mine}
    rules = {each["diagnosis"] for each in client.get("/api/v1/alarms/precision").json()["items"]}
    assert {rule.removeprefix("of ") for rule in rules if rule.startswith("of ")} == mine
    other = ({"A-1", "B-1"} - mine).pop()
    assert client.get("/api/v1/alarms", params={"well_id": other}).json()["items"] == []
    assert client.get("/api/v1/alarms/history", params={"well_id": other}).json()["items"] == []


def test_one_foreign_item_refuses_all(clients: dict[tuple[str, str], httpx.Client], database: Database) -> None:
    before = database.value("SELECT count(*) FROM alarm_actions")
    items = [{"well_id": well, "diagnosis": "gas_lock"} for well in ("A-2", "B-1", "A-1")]
    answer = clients["operator", "own"].post("/api/v1/alarms/note", json={"items": items, "why": "x"})
    assert answer.status_code == 404
    assert [error["parameter"] for error in answer.json()["errors"]] == ["items.1"]
    assert database.value("SELECT count(*) FROM alarm_actions") == before


def test_the_stream_holds_only_ones_own(api: ApiProcess, database: Database) -> None:
    with api.signed_in("viewer-own") as client, api.events(client) as events:
        assert next(events)[0] == "hello"
        at = datetime.now(UTC)
        for well in ("B-1", "A-2"):
            insert_reading(database, well, at)
        seen: set[str] = set()
        for kind, _, data in events:
            if kind == "readings":
                seen |= {row[0] for row in data["rows"]}
                if any(row[0] == "A-2" and row[1].startswith(at.isoformat()[:19]) for row in data["rows"]):
                    break
        assert "B-1" not in seen


def test_no_user_is_told_from_a_wrong_password(api: ApiProcess) -> None:
    with api.client() as client:
        answers = [
            client.post("/api/v1/auth/token", data={"username": name, "password": "wrong password"})
            for name in ("viewer-all", "who-is-that", "; DROP TABLE api_users")
        ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1


def test_disabled_is_out_at_once_with_session_and_token(api: ApiProcess) -> None:
    api.add_user("mort", "viewer")
    tokens = api.sign_in("mort")
    done = api.command("users", "token", "mort", "--days", "1")
    assert done.returncode == 0, done.stderr
    machine = done.stdout.strip()
    with api.client(tokens["access_token"]) as person, api.client(machine) as program:
        assert person.get("/api/v1/me").json()["kind"] == "user"
        assert program.get("/api/v1/me").json()["kind"] == "token"
        assert api.command("users", "disable", "mort").returncode == 0
        deadline = datetime.now(UTC) + timedelta(seconds=8)  # a look-up counts for 5 s
        while datetime.now(UTC) < deadline:
            last = [client.get("/api/v1/me").status_code for client in (person, program)]
            if last == [401, 401]:
                break
        assert last == [401, 401]
        refused = person.post("/api/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        assert refused.status_code == 401
        answer = person.post("/api/v1/auth/token", data={"username": "mort", "password": PASSWORD})
        assert answer.status_code == 401


def test_what_users_did_is_in_the_audit_log(clients: dict[tuple[str, str], httpx.Client]) -> None:
    lines = clients["admin", "all"].get("/api/v1/audit", params={"limit": 1000}).json()["items"]
    said = {(line["action"], line["who"].split(" ")[0]) for line in lines}
    assert {("signed in", "viewer-own"), ("acknowledged an alarm", "operator-all")} <= said
    assert any(line["action"] == "user added" and line["detail"]["user"] == "viewer-own" for line in lines)
    assert PASSWORD not in str(lines)
    first = clients["admin", "all"].get("/api/v1/audit", params={"limit": 2}).json()
    second = clients["admin", "all"].get(first["next"]).json()
    assert [line["id"] for line in first["items"] + second["items"]] == [line["id"] for line in lines[:4]]


LISTS = (
    "wells",
    "signals",
    "losses",
    "alarms",
    "history",
    "precision",
    "rules",
    "rejects",
    "archive",
    "audit",
    "users",
)


@pytest.mark.parametrize("operation", LISTS)
def test_each_list_says_the_same_in_each_format(clients: dict[tuple[str, str], httpx.Client], operation: str) -> None:
    """A list that is empty here has its columns all the same."""
    client, path = clients["admin", "all"], OPERATIONS[operation][1]
    items = client.get(path).json()["items"]
    csv_answer = client.get(path, headers={"Accept": "text/csv"})
    lines = list(csv.reader(io.StringIO(csv_answer.text)))
    table = pa.ipc.open_stream(
        client.get(path, headers={"Accept": "application/vnd.apache.arrow.stream"}).content
    ).read_all()
    assert csv_answer.headers["content-type"].startswith("text/csv")
    assert lines[0] == table.column_names
    assert [len(lines) - 1, table.num_rows] == [len(items)] * 2
    for item, line, row in zip(items, lines[1:], table.to_pylist(), strict=True):
        for name, cell in zip(lines[0], line, strict=True):
            value = item.get(name, item.get("reading", {}).get(name))
            assert same(value, cell), name
            assert same(value, row[name]), name


def same(value: Any, shown: Any) -> bool:
    """Whether a cell of CSV or Arrow shows this value of JSON."""
    if value is None:
        return shown in (None, "")
    if isinstance(value, dict | list):
        return bool(json.loads(shown) == value)
    if isinstance(value, bool):
        return shown in (value, str(value).lower())
    if isinstance(value, int | float):
        return float(shown) == value
    if isinstance(shown, bytes):
        return base64.b64decode(value) == shown
    if isinstance(shown, datetime):
        return datetime.fromisoformat(value) == shown
    return str(shown).removeprefix("'") == value.removeprefix("'")


@pytest.mark.parametrize(
    ("arguments", "text", "code", "word"),
    [
        (("add", "viewer-all", "--role", "viewer"), PASSWORD, 1, "already"),
        (("add", "shorty", "--role", "viewer"), "short", 2, "8 to"),
        (("add", "a b", "--role", "viewer"), PASSWORD, 2, "not a user name"),
        (("add", "wanda", "--role", "boss"), PASSWORD, 2, "boss"),
        (("add", "wanda", "--role", "viewer", "--wells", "A/1"), PASSWORD, 2, "not a pattern"),
        (("password", "nemo"), PASSWORD, 1, "no user nemo"),
    ],
)
def test_users_says_what_is_wrong(api: ApiProcess, arguments: tuple[str, ...], text: str, code: int, word: str) -> None:
    done = api.command("users", *arguments, "--password-file", "-", text=text)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert word in done.stderr


def test_users_token_and_list(api: ApiProcess) -> None:
    assert api.command("users", "token", "nemo", "--days", "1").returncode == 1
    assert api.command("users", "token", "viewer-all", "--days", "0").returncode == 2
    listed = api.command("users", "list")
    assert listed.returncode == 0
    assert "viewer-foreign" in listed.stdout
    assert "wells B-1, C*" in listed.stdout
