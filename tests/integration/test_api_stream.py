"""The live stream of the real process: what comes, resuming, slow clients, and 500 of them."""

import asyncio
import socket
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from esp_ingest.store.schema import migrate
from tests.support.api import ApiProcess, insert_alarm, insert_reading
from tests.support.databases import Database, Server
from tests.support.proxy import TcpProxy

CLIENTS = 500


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


@pytest.fixture
def olga(api: ApiProcess) -> Iterator[httpx.Client]:
    with api.signed_in("olga") as client:
        yield client


def until(events: Iterator[tuple[str, str, Any]], kind: str, fits: Any = lambda data: True) -> tuple[str, Any]:
    """(id, data) of the first event of a kind that fits. The client's timeout ends it."""
    for found, number, data in events:
        if found == kind and fits(data):
            return number, data
    raise AssertionError(f"the stream ended before {kind}")


def has_reading(well: str, flow_rate: float) -> Any:
    return lambda data: any(
        row[0] == well and row[data["columns"].index("flow_rate")] == flow_rate for row in data["rows"]
    )


def has_alarm(diagnosis: str, state: str) -> Any:
    return lambda data: any(item["diagnosis"] == diagnosis and item["state"] == state for item in data["items"])


def test_readings_alarms_and_their_ends(api: ApiProcess, olga: httpx.Client, database: Database) -> None:
    at = datetime.now(UTC).replace(microsecond=0)
    item = {"well_id": "A-1", "diagnosis": "gas_lock", "timestamp": at.isoformat()}
    with api.client(api.sign_in("olga")["access_token"]) as watcher, api.events(watcher) as events:
        _, data = until(events, "hello")
        assert data["database"] == "ok"
        assert data["daemon"]["status"] == "unreachable"
        insert_reading(database, "A-1", at, 1234.5)
        until(events, "readings", has_reading("A-1", 1234.5))
        with database.connect() as connection:
            insert_alarm(connection, "A-1", "gas_lock", at)
        until(events, "alarms", has_alarm("gas_lock", "unacknowledged"))
        assert olga.post("/api/v1/alarms/ack", json={"items": [item], "why": "x"}).status_code == 200
        until(events, "alarms", has_alarm("gas_lock", "acknowledged"))
        database.run("UPDATE diagnostic_results SET cleared_at = now(), state = 'returned-unacknowledged'")
        until(events, "alarms", has_alarm("gas_lock", "returned-unacknowledged"))
        assert olga.post("/api/v1/alarms/ack", json={"items": [item], "why": "y"}).status_code == 200
        until(events, "alarms", has_alarm("gas_lock", "normal"))


def test_a_late_commit_and_an_older_reading(api: ApiProcess, olga: httpx.Client, database: Database) -> None:
    """Received before the newest that is known, committed after it; and event times that step back are no news."""
    now = datetime.now(UTC).replace(microsecond=0)
    with api.events(olga) as events:
        until(events, "hello")
        insert_reading(database, "A-2", now, 1.0)
        until(events, "readings", has_reading("A-2", 1.0))
        with database.connect() as connection:
            statement = (
                'INSERT INTO esp_telemetry ("timestamp", well_id, flow_rate, received_at) VALUES (%s, %s, %s, %s)'
            )
            connection.execute(statement, (now, "A-3", 2.0, now - timedelta(seconds=1)))
            connection.execute(statement, (now - timedelta(hours=1), "A-2", 3.0, now))
        _, data = until(events, "readings")
        assert [row[0] for row in data["rows"]] == ["A-3"]


def keep(database: Database, well: str, at: datetime, flow_rate: float, received: datetime, *tables: str) -> None:
    """What a daemon stores of one reading, without the mark that others leave."""
    with database.connect() as connection:
        connection.execute("SET esp_ingest.keeps_well_newest = on")
        for table in tables:
            conflict = ' ON CONFLICT (well_id) DO UPDATE SET ("timestamp", flow_rate, received_at) = '
            conflict += '(excluded."timestamp", excluded.flow_rate, excluded.received_at)'
            connection.execute(
                f'INSERT INTO {table} ("timestamp", well_id, flow_rate, received_at) VALUES (%s, %s, %s, %s)'.encode()
                + (conflict.encode() if table == "well_newest" else b""),
                (at, well, flow_rate, received),
            )


def test_readings_that_a_daemon_keeps_come_from_well_newest(
    api: ApiProcess, olga: httpx.Client, database: Database
) -> None:
    """The readings themselves are not looked at: at the full rate of a few wells, a second holds very many."""
    now = datetime.now(UTC).replace(microsecond=0)
    database.run("SELECT refresh_well_newest()")
    with api.events(olga) as events:
        until(events, "hello")
        keep(database, "A-6", now, 1.0, now, "esp_telemetry")
        keep(database, "A-7", now, 2.0, now - timedelta(seconds=15), "esp_telemetry", "well_newest")  # written late
        _, data = until(events, "readings")
        assert [row[0] for row in data["rows"]] == ["A-7"]
        keep(database, "A-6", now, 1.0, now, "well_newest")
        until(events, "readings", has_reading("A-6", 1.0))


def test_with_a_mark_and_with_many_wells_they_come_from_the_readings(
    api: ApiProcess, olga: httpx.Client, database: Database
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    with api.events(olga) as events:
        until(events, "hello")
        insert_reading(database, "A-8", now, 1.0)  # leaves a mark
        keep(database, "A-9", now, 2.0, now, "esp_telemetry")
        until(events, "readings", has_reading("A-9", 2.0))
        database.run("SELECT refresh_well_newest()")
        database.run(
            "INSERT INTO well_newest (timestamp, well_id, received_at) SELECT now(), 'M-' || n, 'epoch' "
            "FROM generate_series(1, 2001) AS n"
        )
        keep(database, "A-9", now + timedelta(seconds=1), 3.0, datetime.now(UTC), "esp_telemetry")
        until(events, "readings", has_reading("A-9", 3.0))
    database.run("DELETE FROM well_newest WHERE well_id LIKE 'M-%'")


def test_coming_back_with_the_last_event_id(api: ApiProcess, olga: httpx.Client, database: Database) -> None:
    at = datetime.now(UTC)
    with api.events(olga) as events:
        number, _ = until(events, "hello")
    for step in range(3):
        insert_reading(database, "A-4", at + timedelta(seconds=step), 10.0 + step)
        time.sleep(1.2)
    with api.events(olga, headers={"Last-Event-ID": number}) as events:
        rates: list[float] = []
        while 12.0 not in rates:
            _, data = until(events, "readings")
            rates += [row[data["columns"].index("flow_rate")] for row in data["rows"] if row[0] == "A-4"]
        assert rates == [10.0, 11.0, 12.0]
    for unknown in ("00000000-5", "rubbish", number.split("-")[0] + "-999999"):
        with api.events(olga, headers={"Last-Event-ID": unknown}) as events:
            assert next(events)[0] == "reset"


def test_some_wells_only(api: ApiProcess, olga: httpx.Client, database: Database) -> None:
    with api.events(olga, params={"well_id": ["A-6"]}) as events:
        until(events, "hello")
        at = datetime.now(UTC)
        insert_reading(database, "A-5", at, 5.0)
        insert_reading(database, "A-6", at, 6.0)
        _, data = until(events, "readings", has_reading("A-6", 6.0))
        assert {row[0] for row in data["rows"]} == {"A-6"}


def test_the_database_goes_and_comes(api: ApiProcess, olga: httpx.Client, database: Database) -> None:
    with api.events(olga) as events:
        until(events, "hello")
        database.run("ALTER TABLE alarm_actions RENAME TO elsewhere")
        until(events, "health", lambda data: data["database"] == "unavailable")
        database.run("ALTER TABLE elsewhere RENAME TO alarm_actions")
        until(events, "health", lambda data: data["database"] == "ok")
        insert_reading(database, "A-7", datetime.now(UTC), 7.0)
        until(events, "readings", has_reading("A-7", 7.0))


def test_a_server_that_is_away_over_a_ping_sends_nobody_home(database: Database, tmp_path: Path) -> None:
    """For longer than the 15 s between two pings; what comes afterwards comes over the same stream."""
    with TcpProxy("127.0.0.1", database.server.port) as proxy:
        process = ApiProcess(tmp_path, database.dsn.replace(f":{database.server.port}/", f":{proxy.port}/"))
        with process, process.signed_in("olga") as client, process.events(client) as events:
            until(events, "hello")
            proxy.stop()
            until(events, "health", lambda data: data["database"] == "unavailable")
            time.sleep(16)
            proxy.start()
            back = time.monotonic()
            until(events, "health", lambda data: data["database"] == "ok")
            insert_reading(database, "A-8", datetime.now(UTC), 8.0)
            until(events, "readings", has_reading("A-8", 8.0))
            assert time.monotonic() - back < 20
            assert "ERROR" not in process.log()


class Watcher:
    """One of many: counts readings of a well."""

    def __init__(self) -> None:
        self.greeted = asyncio.Event()
        self.seen: dict[str, float] = {}

    async def watch(self, port: int, token: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /api/v1/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        try:
            while line := await reader.readline():
                if line.startswith(b"event: hello"):
                    self.greeted.set()
                for well in (b"M-1", b"M-2"):
                    if well in line:
                        self.seen.setdefault(well.decode(), time.monotonic())
        finally:
            writer.close()


def statistics(process: ApiProcess) -> tuple[float, int]:
    """(CPU seconds, resident bytes) of the process."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100, int(fields[21]) * 4096


def test_500_clients_on_one_process_and_a_slow_one_costs_nobody(api: ApiProcess, database: Database) -> None:
    token = api.sign_in("olga")["access_token"]

    async def run() -> list[Watcher]:
        watchers = [Watcher() for _ in range(CLIENTS)]
        tasks = [asyncio.create_task(each.watch(api.port, token)) for each in watchers]
        async with asyncio.timeout(60):
            await asyncio.gather(*(each.greeted.wait() for each in watchers))
        for well in ("M-1", "M-2"):
            inserted = time.monotonic()
            await asyncio.to_thread(insert_reading, database, well, datetime.now(UTC))
            async with asyncio.timeout(30):
                while not all(well in each.seen for each in watchers):
                    await asyncio.sleep(0.1)
            waits = sorted(each.seen[well] - inserted for each in watchers)
            sys.stdout.write(f"{well}: {CLIENTS} clients had it after {waits[0]:.2f} to {waits[-1]:.2f} s\n")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return watchers

    with socket.create_connection(("127.0.0.1", api.port)) as deaf:  # it asks and never reads
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        deaf.sendall(f"GET /api/v1/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        before = statistics(api)[0]
        watchers = asyncio.run(run())
        used, resident = statistics(api)
    sys.stdout.write(f"the process used {used - before:.1f} s of CPU, {resident / 1e6:.0f} MB resident\n")
    assert all(len(each.seen) == 2 for each in watchers)
    assert resident < 400e6
    with api.client(token) as client:
        deadline = time.monotonic() + 20
        while "esp_ingest_api_streams 0.0" not in client.get("/metrics").text:
            assert time.monotonic() < deadline, "streams whose clients have gone are still open"
            time.sleep(0.2)


def test_one_more_than_max_streams_is_told_so(database: Database, tmp_path: Any) -> None:
    process = ApiProcess(tmp_path, database.dsn, {"API__MAX_STREAMS": "1"})
    with process, process.signed_in("olga") as client, process.events(client) as events:
        until(events, "hello")
        answer = client.get("/api/v1/stream")
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")


def test_a_slow_client_is_cut_off(database: Database, tmp_path: Any) -> None:
    """It takes nothing while more than its socket holds is sent."""
    process = ApiProcess(tmp_path, database.dsn)
    with process, process.signed_in("olga") as client:
        token = process.sign_in("olga")["access_token"]
        with socket.create_connection(("127.0.0.1", process.port)) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            deaf.sendall(f"GET /api/v1/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
            deadline = time.monotonic() + 90
            round_ = 0
            while "esp_ingest_api_streams 0.0" not in client.get("/metrics").text or round_ == 0:
                assert time.monotonic() < deadline, "it is still served"
                round_ += 1
                with database.connect() as connection:
                    connection.execute(
                        'INSERT INTO esp_telemetry ("timestamp", well_id, flow_rate, pip, received_at) '
                        "SELECT now(), 'S-' || n, random(), random(), now() FROM generate_series(1, 5000) AS n"
                    )
                time.sleep(1)
        assert "esp_ingest_api_streams_cut_total 1.0" in client.get("/metrics").text
        assert client.get("/api/v1/me").status_code == 200
