"""Fixtures of the fault suite. The database is durable (fsync on): what it confirmed must survive a SIGKILL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.brokers import Mosquitto
from tests.support.databases import Database, Missing, NativeTimescale, unavailable
from tests.support.rig import Rig


@pytest.fixture(scope="session")
def durable_server() -> Iterator[NativeTimescale]:
    try:
        server = NativeTimescale.start(fsync=True)
    except Missing as missing:
        unavailable(str(missing))
        raise
    with server:
        yield server


@pytest.fixture
def durable_database(durable_server: NativeTimescale) -> Iterator[Database]:
    if not durable_server.running:  # a test before this one failed while it was down
        durable_server.restart()
    database = durable_server.create_database()
    yield database
    if not durable_server.running:
        durable_server.restart()
    durable_server.drop_database(database)


@pytest.fixture
def rig(
    tmp_path: Path, mosquitto: Mosquitto, durable_database: Database, request: pytest.FixtureRequest
) -> Iterator[Rig]:
    name = request.node.name.removeprefix("test_")
    with Rig(tmp_path, mosquitto, durable_database, name) as rig:
        yield rig
