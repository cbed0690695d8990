"""What the engine takes in beyond numbers: what a sender marked as not live, extra signals, and facts about a well."""

from collections.abc import Callable, Mapping
from functools import partial

import msgspec
import numpy as np

from esp_ingest.diagnostics.engine.columns import Rows
from esp_ingest.diagnostics.engine.signals import Measured, Running
from esp_ingest.diagnostics.engine.well_state import NEVER, Array
from esp_ingest.diagnostics.language.evaluation import BoolArray
from esp_ingest.model import FloatArray, IntArray

_HISTORICAL_KEYS = ("historical", "backlog")
_PACE = 0.5
_DAY_US = 86_400_000_000


def facts_of(
    rows: Rows,
    measured: Measured,
    running: Running,
    frozen: Mapping[str, FloatArray],
    last_us: IntArray,
    last_received_us: IntArray,
) -> dict[str, Callable[[], Array]]:
    """The facts of functions.FACTS by name, each made when a rule reads it, (n,): 1 and 0 for true and false, NaN if
    not known, durations in seconds."""
    t = rows.t
    known = running.running >= 0
    common = {} if running.common is None else running.common.facts
    return {
        **{name: partial(as_it_is, values) for name, values in common.items()},
        "running": lambda: np.where(known, running.running == 1, np.nan),
        "settled": lambda: running.settled.view(np.int8),
        "stopped": lambda: np.where(known, running.running == 0, np.nan),
        "tripped": lambda: running.tripped,
        "gauge_dropped": lambda: measured.dropped.view(np.int8),
        "since_start": lambda: np.where(running.start_us == NEVER, np.inf, (t - running.start_us) / 1e6),
        "since_stop": lambda: np.where(running.stop_us == NEVER, np.inf, (t - running.stop_us) / 1e6),
        "ran_before_stop": lambda: _ran_before_stop(running),
        "starts_in_24h": lambda: _starts_in_a_day(t, running.starts),
        "stopped_before_start": lambda: np.where(running.stopped_for < 0, np.inf, running.stopped_for / 1e6),
        "failed_signals": lambda: _count(list(measured.failed.values()), len(rows)),
        "frozen_for": lambda: np.maximum.reduce([np.zeros(len(rows)), *frozen.values()]),
        "clock_ahead": lambda: (t - rows.received) / 1e6,
        "clock_behind": lambda: _clock_behind(rows, last_us, last_received_us),
    }


def as_it_is(column: Array) -> Array:
    """A fact that is there already."""
    return column


def _ran_before_stop(running: Running) -> FloatArray:
    ended = (running.start_us != NEVER) & (running.stop_us > running.start_us)
    return np.where(ended, (running.stop_us - running.start_us) / 1e6, np.inf)


def _clock_behind(rows: Rows, last_us: IntArray, last_received_us: IntArray) -> FloatArray:
    """A backlog is behind too, but catches up: its event time runs faster than the clock it arrives by."""
    step_us = rows.t - rows.shifted(rows.t, last_us)
    arrived_us = rows.received - rows.shifted(rows.received, last_received_us)
    in_step = (step_us < -NEVER // 2) & (arrived_us >= _PACE * step_us)
    return np.where(in_step, -((rows.t - rows.received) / 1e6), 0.0)


def _starts_in_a_day(t: IntArray, starts: Array) -> FloatArray:
    """``starts`` (3, n), newest first: if none is the newest within a day, none is."""
    newest = t - starts[0] <= _DAY_US
    if not np.count_nonzero(newest):
        return np.zeros(t.shape[0])
    return _count([newest, *(t - start_us <= _DAY_US for start_us in starts[1:])], t.shape[0])


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
