"""Bad input and bad days: what is too large or too long, a database that is not there, goes away, hangs and comes back;
how the process ends; and that it never runs open."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import httpx
import pytest

from esp_ingest.store.schema import migrate
from tests.support.api import ApiProcess, insert_alarm, insert_reading
from tests.support.brokers import ROOT
from tests.support.certificates import Authority
from tests.support.databases import Database, Server, free_port
from tests.support.proxy import TcpProxy


@pytest.fixture(scope="module")
def database(timescaledb_apache_server: Server) -> Iterator[Database]:
    made = timescaledb_apache_server.create_database()
    migrate(made.settings)
    insert_reading(made, "A-1", datetime.now(UTC))
    yield made
    timescaledb_apache_server.drop_database(made)


@pytest.fixture(scope="module")
def api(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    process = ApiProcess(tmp_path_factory.mktemp("api"), database.dsn, {"API__SIGN_IN_PER_MINUTE": "1000"})
    process.add_user("olga", "operator")
    with process:
        yield process


@pytest.fixture(scope="module")
def olga(api: ApiProcess) -> Iterator[httpx.Client]:
    with api.signed_in("olga") as client:
        yield client


def is_problem(answer: httpx.Response, status: int) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert answer.json()["status"] == status
    assert answer.json()["detail"].endswith(".")


def said(api: ApiProcess, request: bytes) -> bytes:
    """The answer to raw bytes."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=20) as client:
        client.sendall(request)
        received = b""
        while piece := client.recv(65_536):
            received += piece
        return received


class TestTooMuch:
    def test_a_body_that_says_how_large_it_is(self, olga: httpx.Client) -> None:
        is_problem(olga.post("/api/v1/alarms/ack", content=b"x" * 300_000), 413)

    def test_a_body_that_does_not(self, olga: httpx.Client) -> None:
        pieces = (b"x" * 10_000 for _ in range(100))
        is_problem(olga.post("/api/v1/alarms/ack", content=pieces), 413)

    def test_headers_of_megabytes(self, api: ApiProcess) -> None:
        found = said(api, b"GET /api/v1/me HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 17_000)
        assert found.startswith(b"HTTP/1.1 431")
        assert b"application/problem+json" in found

    def test_what_is_not_http(self, api: ApiProcess) -> None:
        found = said(api, b"\x16\x03\x01 hello\r\n\r\n")
        assert found.startswith(b"HTTP/1.1 400")
        assert b"application/problem+json" in found

    def test_a_head_that_does_not_come(self, api: ApiProcess) -> None:
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", api.port), timeout=30) as client:
            client.sendall(b"GET /api/v1/me HTTP/1.1\r\nHost")
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(100) == b""
        assert time.monotonic() - started < 15

    def test_a_body_that_does_not_come(self, api: ApiProcess) -> None:
        form = b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 100"
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", api.port), timeout=30) as client:
            client.sendall(b"POST /api/v1/auth/token HTTP/1.1\r\nHost: x\r\n" + form + b"\r\n\r\nusername=")
            found = client.recv(65_536)
        assert found.startswith(b"HTTP/1.1 408")
        assert b"application/problem+json" in found
        assert time.monotonic() - started < 15

    def test_clients_that_send_nothing_make_room_for_those_that_do(self, database: Database, tmp_path: Path) -> None:
        with contextlib.ExitStack() as stack, ApiProcess(tmp_path, database.dsn, {"API__MAX_CONNECTIONS": "20"}) as api:
            for number in range(60):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", api.port), timeout=30))
                form = b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\nuser"
                body = form if number % 2 else b""
                client.sendall(b"POST /api/v1/auth/token HTTP/1.1\r\nHost: x\r\n" + body)
            time.sleep(0.5)
            assert [api.health("live") for _ in range(5)] == [200] * 5
            assert "ERROR" not in api.log()

    def test_where_all_are_at_work_a_new_client_is_told_to_come_again(self, database: Database, tmp_path: Path) -> None:
        api = ApiProcess(tmp_path, database.dsn, {"API__MAX_CONNECTIONS": "16"})
        api.add_user("vera", "viewer")
        with api, contextlib.ExitStack() as stack, api.client() as other:
            token = api.sign_in("vera")["access_token"]
            request = f"GET /api/v1/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
            for _ in range(16):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", api.port), timeout=30))
                client.sendall(request)
                assert client.recv(12) == b"HTTP/1.1 200"
            answer = other.get("/api/v1/me")
            is_problem(answer, 503)
            assert answer.headers["retry-after"] == "5"

    @pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics", "/", "/api/v1/me", "/openapi.json"])
    def test_head_is_answered_like_get_without_the_body(self, olga: httpx.Client, path: str) -> None:
        answer = olga.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["content-length"]) > 0

    def test_a_crowd_that_wants_files_leaves_threads_for_passwords(self, api: ApiProcess) -> None:
        with ThreadPoolExecutor(60) as pool, api.client() as client:
            statuses = list(pool.map(lambda _: client.get("/app.js").status_code, range(300)))
        assert set(statuses) == {200}
        assert len(list(Path(f"/proc/{api.pid}/task").iterdir())) <= 32
        assert api.sign_in("olga")["access_token"]

    @pytest.mark.parametrize(
        ("content", "kind"),
        [
            (b"{", "application/json"),
            (b"[]", "application/json"),
            (b'{"items": []}', "application/json"),
            (b'{"items": [{"well_id": "A-1"}]}', "application/json"),
            (b'{"items": [{"well_id": "A 1", "diagnosis": "x"}]}', "application/json"),
            (b'{"items": [{"well_id": "A-1", "diagnosis": "x\\u0000"}]}', "application/json"),
            (b'{"items": [{"well_id": "A-1", "diagnosis": "x", "timestamp": 17}]}', "application/json"),
            (
                b'{"items": [{"well_id": "A-1", "diagnosis": "x", "timestamp": "2026-01-01T00:00:00"}]}',
                "application/json",
            ),
            (b'{"items": [{"well_id": "A-1", "diagnosis": "x"}], "whom": "me"}', "application/json"),
            (b"\xff\xfe", "application/json"),
            (b"[" * 100_000, "application/json"),
        ],
    )
    def test_bodies_that_cannot_be_used(self, olga: httpx.Client, content: bytes, kind: str) -> None:
        answer = olga.post("/api/v1/alarms/ack", content=content, headers={"Content-Type": kind})
        assert answer.status_code in (400, 422)
        is_problem(answer, answer.status_code)

    @pytest.mark.parametrize(
        ("path", "content", "kind", "wanted"),
        [
            ("alarms/ack", b"items=1", "application/x-www-form-urlencoded", "application/json"),
            ("auth/refresh", b'{"refresh_token": "x"}', "text/plain", "application/json"),
            ("auth/token", b'{"username": "a"}', "application/json", "application/x-www-form-urlencoded"),
        ],
    )
    def test_a_body_of_another_type(
        self, olga: httpx.Client, path: str, content: bytes, kind: str, wanted: str
    ) -> None:
        answer = olga.post(f"/api/v1/{path}", content=content, headers={"Content-Type": kind})
        is_problem(answer, 415)
        assert wanted in answer.json()["detail"]

    def test_a_probe_is_answered_in_full(self, olga: httpx.Client) -> None:
        for path in ("/health/live", "/health/ready"):
            answer = olga.get(path, headers={"If-None-Match": "*"})
            assert (answer.status_code, answer.json()["status"]) == (200, "ok")

    def test_a_password_is_not_said_back(self, api: ApiProcess) -> None:
        with api.client() as client:
            answer = client.post("/api/v1/auth/token", data={"username": "olga", "password": "secret" * 1_000})
        is_problem(answer, 422)
        assert "secret" not in answer.text


class TestTheDatabase:
    def test_live_without_one_and_ready_when_it_comes(self, timescaledb_apache_server: Server, tmp_path: Path) -> None:
        made = timescaledb_apache_server.create_database()
        with TcpProxy("127.0.0.1", timescaledb_apache_server.port) as proxy:
            dsn = made.dsn.replace(f":{timescaledb_apache_server.port}/", f":{proxy.port}/")
            proxy.stop()
            process = ApiProcess(tmp_path, dsn)
            try:
                process.start(wait=False)
                assert process.health("ready") == 503
                with process.client() as client:
                    is_problem(client.post("/api/v1/auth/token", data={"username": "a", "password": "b"}), 503)
                    assert client.get("/api/v1/me").status_code == 401
                proxy.start()
                deadline = time.monotonic() + 30
                with process.client() as client:
                    while "migrate" not in client.get("/health/ready").text:  # it is there and has no schema yet
                        assert time.monotonic() < deadline
                        time.sleep(0.2)
                migrate(made.settings)
                process.await_health("ready", 200, 30)
            finally:
                process.__exit__()
        timescaledb_apache_server.drop_database(made)

    def test_it_goes_away_hangs_and_comes_back(self, database: Database, tmp_path: Path) -> None:
        with TcpProxy("127.0.0.1", database.server.port) as proxy:
            dsn = database.dsn.replace(f":{database.server.port}/", f":{proxy.port}/")
            process = ApiProcess(tmp_path, dsn, {"API__REQUEST_TIMEOUT_SECONDS": "2"})
            process.settings["DATABASE__STATEMENT_TIMEOUT_SECONDS"] = "2"
            with process, process.signed_in("olga") as client:
                assert client.get("/api/v1/wells/A-1").status_code == 200
                for _ in range(3):
                    proxy.stop()
                    started = time.monotonic()
                    is_problem(client.get("/api/v1/wells/A-1"), 503)
                    assert time.monotonic() - started < 10
                    assert process.health("live") == 200
                    process.await_health("ready", 503, 15)
                    proxy.start()
                    process.await_health("ready", 200, 30)
                    assert client.get("/api/v1/wells/A-1").status_code == 200, "the first one after the outage"

    def test_connections_cut_in_the_middle_cost_no_request(self, database: Database, api: ApiProcess) -> None:
        with api.signed_in("olga") as client:
            for _ in range(3):
                assert client.get("/api/v1/fleet").status_code == 200
                database.run(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                assert client.get("/api/v1/fleet").status_code == 200

    def test_a_question_that_takes_too_long_ends(self, database: Database, tmp_path: Path) -> None:
        process = ApiProcess(tmp_path, database.dsn, {"API__REQUEST_TIMEOUT_SECONDS": "1"})
        with process, process.signed_in("olga") as client, database.connect(autocommit=False) as other:
            client.get("/api/v1/me")
            other.execute("LOCK TABLE esp_telemetry IN ACCESS EXCLUSIVE MODE")
            started = time.monotonic()
            answer = client.get("/api/v1/wells/A-1")
            is_problem(answer, 503)
            assert answer.json()["type"].endswith("too-slow")
            assert time.monotonic() - started < 6
            other.rollback()
            assert client.get("/api/v1/wells/A-1").status_code == 200

    def test_a_server_that_says_nothing_any_more(self, timescaledb_apache_server: Server, tmp_path: Path) -> None:
        made = timescaledb_apache_server.create_database()
        migrate(made.settings)
        process = ApiProcess(tmp_path, made.dsn, {"API__REQUEST_TIMEOUT_SECONDS": "1"})
        process.add_user("olga", "operator")
        with process, process.signed_in("olga") as client:
            assert client.get("/api/v1/fleet").status_code == 200
            pids = timescaledb_apache_server.pids()
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                started = time.monotonic()
                is_problem(client.get("/api/v1/fleet"), 503)
                assert time.monotonic() - started < 12
                assert process.health("live") == 200
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            process.await_health("ready", 200, 30)
            assert client.get("/api/v1/fleet").status_code == 200
        timescaledb_apache_server.drop_database(made)


class TestTheEnd:
    def test_sigterm_drains_streams_too(self, database: Database, tmp_path: Path) -> None:
        with (
            ApiProcess(tmp_path, database.dsn) as process,
            process.signed_in("olga") as client,
            process.events(client) as events,
        ):
            assert next(events)[0] == "hello"
            started = time.monotonic()
            assert process.stop() == 0
            assert time.monotonic() - started < 8
            list(events)  # it ended, and was not cut

    def test_a_request_under_way_is_answered(self, database: Database, tmp_path: Path) -> None:
        with ApiProcess(tmp_path, database.dsn) as process, process.signed_in("olga") as client:
            with database.connect(autocommit=False) as other:
                other.execute("LOCK TABLE esp_telemetry IN ACCESS EXCLUSIVE MODE")
                found: list[int] = []
                asking = threading.Thread(target=lambda: found.append(client.get("/api/v1/wells/A-1").status_code))
                asking.start()
                time.sleep(0.5)
                ending = threading.Thread(target=process.stop)
                ending.start()
                time.sleep(0.5)
                other.rollback()
                asking.join(15)
                ending.join(15)
            assert found == [200]
            assert process.stop() == 0

    def test_a_second_signal_ends_it_at_once(self, database: Database, tmp_path: Path) -> None:
        with (
            ApiProcess(tmp_path, database.dsn) as process,
            process.signed_in("olga") as client,
            database.connect(autocommit=False) as other,
        ):
            other.execute("LOCK TABLE esp_telemetry IN ACCESS EXCLUSIVE MODE")
            asking = threading.Thread(target=_ignoring_errors, args=(client,))
            asking.start()
            time.sleep(0.5)
            os.kill(process.pid, signal.SIGTERM)
            time.sleep(0.5)
            started = time.monotonic()
            assert process.stop() == 1
            assert time.monotonic() - started < 5
            other.rollback()
            asking.join(15)


def _ignoring_errors(client: httpx.Client) -> None:
    try:
        client.get("/api/v1/wells/A-1")
    except httpx.HTTPError:
        return


class TestNeverOpen:
    def test_another_address_needs_tls_or_a_word(self, tmp_path: Path) -> None:
        process = ApiProcess(tmp_path, "postgresql://127.0.0.1:1/none")
        done = process.command("api", "--host", "0.0.0.0", "--port", str(free_port()))
        assert done.returncode == 2
        assert "api.allow_plain_http" in done.stderr
        assert done.stderr.count("\n") == 1

    def test_a_file_of_tls_that_cannot_be_used_is_named_before_it_listens(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path / "ca")
        authority.issue("server")
        authority.encrypt("server")
        certificate, key, encrypted, ca_key = map(
            authority.path, ("server.crt", "server.key", "encrypted.key", "ca.key")
        )
        for chosen, fault in (
            ((certificate, "/away"), "Setting api.tls_key_file: /away cannot be read (No such file or directory)."),
            ((key, key), f"Setting api.cert_file: {key} holds no certificate in PEM."),
            ((certificate, certificate), f"Setting api.tls_key_file: {certificate} holds no private key in PEM"),
            (
                (certificate, ca_key),
                f"Setting api.tls_key_file: {ca_key} is not the key of the certificate in api.cert_file.",
            ),
            ((certificate, encrypted), f"Setting api.tls_key_file: {encrypted} is encrypted"),
        ):
            settings = dict(zip(("API__CERT_FILE", "API__TLS_KEY_FILE"), chosen, strict=True))
            process = ApiProcess(tmp_path, "postgresql://127.0.0.1:1/none", settings)
            done = process.command("api", "--port", "0")
            assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
            assert done.stderr.startswith(f"esp-ingest: {fault}")

    def test_a_port_that_is_taken(self, api: ApiProcess) -> None:
        done = api.command("api", "--port", str(api.port))
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "--port" in done.stderr

    def test_without_the_extra_one_sentence(self, tmp_path: Path) -> None:
        script = (
            "import importlib.util, sys\n"
            "find = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda name, *more: None if name == 'fastapi' else find(name, *more)\n"
            "from esp_ingest import cli\n"
            "sys.exit(cli.main(sys.argv[1:]))\n"
        )
        for arguments in (["api"], ["users", "list"]):
            done = subprocess.run(
                [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60
            )
            assert done.returncode == 1
            assert done.stderr.count("\n") == 1
            assert 'pip install "esp-ingest[api]"' in done.stderr

    def test_headers_that_browsers_obey_are_on_every_answer(self, api: ApiProcess) -> None:
        with api.client() as client:
            for path in ("/", "/docs", "/static/docs.js", "/openapi.json", "/api/v1/me", "/nothing", "/health/live"):
                headers = client.get(path).headers
                policy = headers["content-security-policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                assert headers["x-content-type-options"] == "nosniff"
                assert "access-control-allow-origin" not in headers
                assert "server" not in headers

    def test_the_schemas_page_asks_no_other_host(self, api: ApiProcess) -> None:
        with api.client() as client:
            for path in ("/docs", "/static/docs.css", "/static/docs.js"):
                text = client.get(path).text
                assert "http://" not in text
                assert "https://" not in text

    def test_files_are_packed_and_answers_are_not(self, api: ApiProcess, olga: httpx.Client) -> None:
        for path in ("/app.js", "/static/docs.js"):
            assert olga.get(path).headers.get("content-encoding") == "gzip", path
        assert "content-encoding" not in olga.get("/api/v1/rules").headers
        assert "content-encoding" not in olga.get("/app.js", headers={"Accept-Encoding": "identity"}).headers

    def test_paths_out_of_the_folder(self, api: ApiProcess) -> None:
        for path in (b"/static/../app.py", b"/static/%2e%2e/app.py", b"/..%2f..%2fetc/passwd", b"//etc/passwd"):
            found = said(api, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert found.split(b" ", 2)[1] in (b"404", b"400"), path


def test_the_daemon_never_imports_it() -> None:
    script = (
        "import sys; import esp_ingest.daemon, esp_ingest.cli; esp_ingest.cli.make_parser(); "
        "print([n for n in sys.modules if n.startswith('esp_ingest.api') or n in ('fastapi', 'uvicorn')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_actions_are_those_of_the_command_line(api: ApiProcess, olga: httpx.Client, database: Database) -> None:
    """The same life, table and history; what the daemon's rules make of it is in test_alarm_life.py."""
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    with database.connect() as connection:
        insert_alarm(connection, "A-1", "gas_lock", at)
        insert_alarm(connection, "A-1", "gas_lock", at - timedelta(days=1), "high", "returned-unacknowledged", at)
    item = {"well_id": "A-1", "diagnosis": "gas_lock", "timestamp": at.isoformat()}

    def done(action: str, **body: object) -> list[tuple[str, str | None]]:
        answer = olga.post(f"/api/v1/alarms/{action}", json={"items": [item], **body})
        assert answer.status_code == 200, answer.text
        return [(each["outcome"], each["state"]) for each in answer.json()["items"]]

    assert done("ack", why="seen") == [("done", "acknowledged")]
    assert done("ack", why="seen again") == [("unchanged", "acknowledged")]
    states = dict(database.all('SELECT "timestamp", state FROM diagnostic_results'))
    assert states == {at: "acknowledged", at - timedelta(days=1): "returned-unacknowledged"}
    assert done("shelve", why="gauge", duration="8h") == [("done", "shelved")]
    listed = api.command("alarms", "list", "--all").stdout
    assert "shelved until" in listed
    assert "by olga" in listed
    assert done("unshelve", why="gauge changed") == [("done", "unacknowledged")]
    assert done("unshelve") == [("unchanged", "unacknowledged")]
    assert done("note", why="called the site") == [("done", "unacknowledged")]
    assert done("verdict", verdict="false", cause="gauge") == [("done", "unacknowledged")]
    assert done("verdict", verdict="true", cause="gas", stop_reason="underload", why="amps") == [
        ("done", "unacknowledged")
    ]
    rows = database.all("SELECT action, by_whom, why, detail FROM alarm_actions ORDER BY id")
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("ack", "olga", "seen"), ("shelve", "olga", "gauge"), ("unshelve", "olga", "gauge changed"),
        ("note", "olga", "called the site"), ("verdict", "olga", ""), ("verdict", "olga", "amps"),
    ]  # fmt: skip
    assert rows[-1][3] == {"verdict": "true", "cause": "gas", "stop_reason": "underload"}
    assert database.all("SELECT diagnosis, judged, precision FROM alarm_precision") == [("gas_lock", 1, 1.0)]
    assert olga.get("/api/v1/alarms/precision").json()["items"][0]["precision"] == 1.0
    shown = olga.get("/api/v1/alarms", params={"verdict": "true"}).json()["items"]
    assert [(each["verdict"], each["stop_reason"]) for each in shown] == [("true", "underload")]
    history = olga.get("/api/v1/alarms/history", params={"well_id": "A-1"}).json()["items"]
    assert [each["action"] for each in history][:2] == ["verdict", "verdict"]
    told = database.value("SELECT count(*) FROM diagnostics_outbox WHERE occurrence ->> 'state' = 'acknowledged'")
    assert told == 1, "the broker hears of it"


def test_what_can_be_no_alarm_is_neither_shelved_nor_noted(api: ApiProcess, olga: httpx.Client) -> None:
    items = [{"well_id": "A-1", "diagnosis": "underlaod"}]
    is_problem(olga.post("/api/v1/alarms/shelve", json={"items": items, "why": "x", "duration": "8h"}), 404)
    is_problem(olga.post("/api/v1/alarms/note", json={"items": items, "why": "x"}), 404)
    items[0]["diagnosis"] = "underload"
    is_problem(olga.post("/api/v1/alarms/note", json={"items": items, "why": " "}), 422)
    done = api.command("alarms", "shelve", "A-1", "underlaod", "--by", "x", "--why", "y", "--for", "1h")
    assert done.returncode == 1
    assert "did you mean underload?" in done.stderr


def test_a_time_comes_back_in_utc(olga: httpx.Client, database: Database) -> None:
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=3)
    with database.connect() as connection:
        insert_alarm(connection, "A-1", "vibration", at)
    sent = at.astimezone(timezone(timedelta(hours=-7))).isoformat()
    body = {"items": [{"well_id": "A-1", "diagnosis": "vibration", "timestamp": sent}], "why": "x"}
    answer = olga.post("/api/v1/alarms/ack", json=body).json()["items"][0]
    assert answer["timestamp"] == at.isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"why": "x"}, "an end"),
        ({"why": "x", "duration": "8h", "until": "2026-01-01T00:00:00Z"}, "not both"),
        ({"why": " ", "duration": "8h"}, "reason"),
        ({"why": "x", "duration": "soon"}, "no duration"),
        ({"why": "x", "duration": "31d"}, "30 d"),
        ({"why": "x", "until": "2020-01-01T00:00:00Z"}, "after now"),
        ({"duration": "8h"}, "why"),
    ],
)
def test_shelving_needs_an_end_and_a_reason(olga: httpx.Client, body: dict[str, str], word: str) -> None:
    items = [{"well_id": "A-1", "diagnosis": "leakage"}]
    answer = olga.post("/api/v1/alarms/shelve", json={"items": items, **body})
    is_problem(answer, 422)
    assert word in answer.json()["detail"]
