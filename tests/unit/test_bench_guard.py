"""The hot path stays within its budget: counts, not times, so that the machine does not matter."""

import os

import pytest

from tests.bench import guard
from tests.support.databases import unavailable


def test_excess_is_more_than_a_tenth() -> None:
    assert guard.excess({"x": 10.9}, {"x": 10.0}) == []
    assert "x: 11.10 a reading, 11% over" in guard.excess({"x": 11.1}, {"x": 10.0})[0]
    assert "no budget" in guard.excess({"new": 1.0}, {})[0]


def test_bytecodes_calls_and_memory_a_reading() -> None:
    allowed = guard.budget()
    if not allowed:
        pytest.skip(f"no budget for Python {guard.version()}: python -m tests.bench.guard --update")
    assert guard.excess(guard.count(), allowed) == []


@pytest.mark.timeout(600)
def test_machine_instructions_a_reading() -> None:
    if os.environ.get("CI", "").lower() != "true" and "ESP_INGEST_GUARD" not in os.environ:
        pytest.skip("half a minute under callgrind: in CI, or with ESP_INGEST_GUARD=1")
    allowed = guard.budget()
    if "instructions" not in allowed:
        pytest.skip(f"no budget for Python {guard.version()}: python -m tests.bench.guard --instructions --update")
    try:
        figures = guard.instructions()
    except guard.NoValgrind as missing:
        unavailable(str(missing))
    assert guard.excess(figures, allowed) == []
