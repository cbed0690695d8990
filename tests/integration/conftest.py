"""What several of these files need beside the servers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.brokers import Mosquitto
from tests.support.databases import Database
from tests.support.rig import Rig


@pytest.fixture
def rig(tmp_path: Path, timescaledb_apache: Database, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A broker that anybody may use, a database, and a daemon that is started when the test asks for it."""
    with (
        Mosquitto(tmp_path / "mosquitto") as broker,
        Rig(tmp_path, broker, timescaledb_apache, request.node.name) as rig,
    ):
        yield rig
