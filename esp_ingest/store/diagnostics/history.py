"""Stored readings, read back for `esp-ingest rules`: which wells report, and what they sent in a span of time."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import psycopg

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.model import Readings, at_us
from esp_ingest.store import sqlstate
from esp_ingest.store.connection import OnDemand, connect
from esp_ingest.store.diagnostics.checkpoints import pages


def reporting_wells(settings: DatabaseSettings) -> list[str]:
    """Wells with at least one stored reading, in order. Raises StoreUnavailable."""
    return [row[0] for row in _rows(settings, "reporting_wells")]


def checkpoint(settings: DatabaseSettings, well: str) -> bytes | None:
    """What the rules remember of ``well``, for the engine to restore; None if it has no checkpoint. Raises
    StoreUnavailable."""
    rows = _rows(settings, "states_of_wells", ([well],))
    return bytes(rows[0][2]) if rows else None


def readings_between(
    settings: DatabaseSettings, wells: Sequence[str], since_us: int, until_us: int
) -> Iterator[Readings]:
    """Readings with ``since_us`` ≤ timestamp < ``until_us``, well by well in order of event time, a page at a time.

    Raises StoreUnavailable."""
    span = {"wells": list(wells), "since": at_us(since_us), "until": at_us(until_us)}
    try:
        with connect(settings, autocommit=True) as connection:
            yield from pages(connection, "readings_between", span)
    except psycopg.Error as error:
        raise sqlstate.unavailable(error) from None


def _rows(settings: DatabaseSettings, name: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    with closing(OnDemand(settings)) as connection:
        return connection.rows(name, parameters)
