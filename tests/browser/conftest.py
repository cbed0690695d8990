"""One database, one API and one browser for the tests of the console."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from playwright.sync_api import Browser

from tests.support.api import ApiProcess
from tests.support.browser import chromium, chromium_or_skip, fill
from tests.support.databases import Database, Server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser a file: while it is open, its thread runs an event loop, which tests of other files cannot have."""
    chromium_or_skip()
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def database(timescaledb_apache_server: Server) -> Iterator[Database]:
    chromium_or_skip()
    found = timescaledb_apache_server.create_database()
    fill(found, datetime.now(UTC).replace(microsecond=0))
    yield found
    timescaledb_apache_server.drop_database(found)


@pytest.fixture(scope="module")
def api(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """With a viewer (vera), an operator (otto) and an operator who sees ESP-02 alone (olga)."""
    process = ApiProcess(tmp_path_factory.mktemp("api"), database.dsn)
    process.add_user("vera", "viewer")
    process.add_user("otto", "operator")
    process.add_user("olga", "operator", "ESP-02")
    with process:
        yield process
