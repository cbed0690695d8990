"""What the engine takes in beyond numbers: what a sender marked as not live, extra signals, and facts about a well."""

from collections.abc import Mapping

import msgspec
import numpy as np

from esp_ingest.diagnostics.engine.columns import Rows
from esp_ingest.diagnostics.engine.signals import Measured, Running
from esp_ingest.diagnostics.engine.well_state import NEVER, Array
from esp_ingest.diagnostics.language.evaluation import BoolArray
from esp_ingest.model import FloatArray, IntArray

_HISTORICAL_KEYS = ("historical", "backlog")
_PACE = 0.5


def facts_of(
    rows: Rows,
    measured: Measured,
    running: Running,
    frozen: Mapping[str, FloatArray],
    last_us: IntArray,
    last_received: IntArray,
) -> dict[str, Array]:
    """The facts of functions.FACTS by name, each (n,): 1 and 0 for true and false, NaN if not known, durations in
    seconds."""
    t = rows.t
    is_running, known = running.running == 1, running.running >= 0
    ahead = (t - rows.received) / 1e6
    step, arrived = t - rows.shifted(t, last_us), rows.received - rows.shifted(rows.received, last_received)
    # A backlog is behind too, but catches up: its event time runs faster than the clock it arrives by.
    in_step = (step < -NEVER // 2) & (arrived >= _PACE * step)
    ended = (running.start_us != NEVER) & (running.stop_us > running.start_us)
    day = 86_400_000_000
    return {
        **({} if running.common is None else running.common.facts),
        "running": np.where(known, is_running, np.nan),
        "settled": running.settled.view(np.int8),
        "stopped": np.where(known, running.running == 0, np.nan),
        "tripped": running.tripped,
        "gauge_dropped": measured.dropped.view(np.int8),
        "since_start": np.where(running.start_us == NEVER, np.inf, (t - running.start_us) / 1e6),
        "since_stop": np.where(running.stop_us == NEVER, np.inf, (t - running.stop_us) / 1e6),
        "ran_before_stop": np.where(ended, (running.stop_us - running.start_us) / 1e6, np.inf),
        "starts_in_24h": (t - running.starts <= day).sum(axis=0).astype(np.float64),
        "stopped_before_start": np.where(running.stopped_for < 0, np.inf, running.stopped_for / 1e6),
        "failed_signals": _count(list(measured.failed.values()), len(rows)),
        "frozen_for": np.maximum.reduce([np.zeros(len(rows)), *frozen.values()]),
        "clock_ahead": ahead,
        "clock_behind": np.where(in_step, -ahead, 0.0),
    }


def _count(masks: list[BoolArray], count: int) -> FloatArray:
    total = np.zeros(count)
    for mask in masks:
        total += mask
    return total


def historical(extra: Mapping[int, str]) -> list[int]:
    """Rows that their sender marked as not live."""
    found = []
    for row, text in extra.items():
        if any(key in text for key in _HISTORICAL_KEYS):
            data = msgspec.json.decode(text)
            if any(data.get(key) is True for key in _HISTORICAL_KEYS):
                found.append(row)
    return found


def pick(text: str, names: list[str], into: FloatArray) -> None:
    """Put the numbers of ``names`` that stand in the JSON object ``text`` into ``into`` (names,)."""
    if any(name in text for name in names):
        data = msgspec.json.decode(text)
        for at, name in enumerate(names):
            value = data.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                into[at] = value


def keys_of(text: str) -> list[str]:
    """The keys of the JSON object ``text``; empty if it is not an object."""
    data = msgspec.json.decode(text)
    return list(data) if isinstance(data, dict) else []
