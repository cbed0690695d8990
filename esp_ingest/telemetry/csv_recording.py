"""A recording in a CSV file → the messages that its controllers would send.

Two layouts, told apart by their header:

- telemetry's own names: ``timestamp`` (RFC 3339), ``well_id``, then signals and anything else. Cells go out as they
  stand in the file, as the JSON number they are; what is no number becomes a string; an empty cell sends no key.
- the source units of public ESP data: ``epoch_s``, pressures in pascal and temperatures in kelvin (SOURCE_COLUMNS).
  They are converted to psi and °F in double precision, and sent with as many digits as the double has.

Other columns are sent under their own name, and end up in ``extra``.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

from esp_ingest.config.section import WELL_ID_PATTERN
from esp_ingest.errors import UsageError
from esp_ingest.service.text import rfc3339
from esp_ingest.telemetry.timestamps import NO_TIME, parse_rfc3339

PASCAL_PER_PSI = 6_894.757293168361  # 1 lbf/in²: 0.45359237 kg · 9.80665 m/s² / (0.0254 m)²
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_WELL_ID = re.compile(WELL_ID_PATTERN)


class ReplayError(UsageError):
    """The recording cannot be replayed. The message is one sentence that names the file and what is wrong."""


class Column(NamedTuple):
    """Where a source column goes, and how its value is converted."""

    signal: str
    convert: Callable[[float], float]


def psi_of_pascal(pascal: float) -> float:
    """A pressure in psi."""
    return pascal / PASCAL_PER_PSI


def fahrenheit_of_kelvin(kelvin: float) -> float:
    """A temperature in °F."""
    return (kelvin - 273.15) * 9.0 / 5.0 + 32.0


def _same(value: float) -> float:
    return value


SOURCE_COLUMNS: dict[str, Column] = {
    "discharge_pressure_pa": Column("discharge_pressure", psi_of_pascal),
    "intake_pressure_pa": Column("pip", psi_of_pascal),
    "intake_temperature_k": Column("intake_temp", fahrenheit_of_kelvin),
    "motor_temp_k": Column("motor_temp", fahrenheit_of_kelvin),
    "vsd_freq_hz": Column("vsd_frequency", _same),
    "vsd_motor_amps_a": Column("motor_current", _same),
}


@dataclass(frozen=True, slots=True)
class Recording:
    """Rows in order of time: when (µs), which well, and the JSON members that follow the timestamp."""

    times_us: list[int]
    wells: list[str]
    members: list[str]

    def __len__(self) -> int:
        return len(self.times_us)

    @property
    def span_us(self) -> int:
        """From the first reading to the last."""
        return self.times_us[-1] - self.times_us[0] if self.times_us else 0

    def messages(self, shift_us: int) -> Iterator[tuple[int, str, str]]:
        """(µs since the first row, well, payload) a row, with ``shift_us`` added to its timestamp."""
        first = self.times_us[0] if self.times_us else 0
        for time_us, well, members in zip(self.times_us, self.wells, self.members, strict=True):
            yield time_us - first, well, f'{{"timestamp": "{rfc3339(time_us + shift_us)}"{members}}}'


def read(path: Path) -> Recording:
    """The whole recording, gzipped if its name ends in .gz. Raises ReplayError."""
    try:
        with _open(path) as file:
            rows = csv.reader(file)
            header = next(rows, [])
            read_row = _reader_of(path, header)
            parsed = [read_row(number, row) for number, row in enumerate(rows, 2) if row]
    except UnicodeDecodeError:
        raise ReplayError(f"The recording {path} cannot be read: it is not UTF-8 text.") from None
    except (OSError, EOFError, csv.Error, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ReplayError(f"The recording {path} cannot be read: {reason}.") from None
    if not parsed:
        raise ReplayError(f"The recording {path} holds no rows.")
    parsed.sort(key=lambda row: row[0])  # stable: rows of one time stay in the file's order
    times, wells, members = zip(*parsed, strict=True)
    return Recording(list(times), list(wells), list(members))


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


_Row = tuple[int, str, str]


def _reader_of(path: Path, header: list[str]) -> Callable[[int, list[str]], _Row]:
    if "well_id" not in header or not ({"timestamp", "epoch_s"} & set(header)):
        raise ReplayError(f"The recording {path} needs a column well_id and a column timestamp (or epoch_s).")
    clock = "timestamp" if "timestamp" in header else "epoch_s"
    time_at, well_at = header.index(clock), header.index("well_id")
    columns = [(at, name) for at, name in enumerate(header) if at not in (time_at, well_at)]

    def read_row(line: int, row: list[str]) -> _Row:
        if len(row) != len(header):
            raise ReplayError(f"Line {line} of {path} has {len(row)} cells, its header has {len(header)}.")
        time_us = _time(row[time_at], clock)
        if time_us == NO_TIME:
            raise ReplayError(f"Line {line} of {path}: {row[time_at]!r} is no {clock}.")
        if not _WELL_ID.fullmatch(row[well_at]):
            raise ReplayError(
                f"Line {line} of {path}: {row[well_at][:80]!r} is no well id (letters, digits, . _ -, at most 64)."
            )
        parts = [f', "well_id": {json.dumps(row[well_at])}']
        for at, name in columns:
            if row[at]:
                key, value = _member(name, row[at])
                parts.append(f", {json.dumps(key)}: {value}")
        return time_us, row[well_at], "".join(parts)

    return read_row


def _time(cell: str, clock: str) -> int:
    if clock == "timestamp":
        return parse_rfc3339(cell)
    return int(cell) * 1_000_000 if re.fullmatch(r"\d{1,11}", cell) else NO_TIME


def _member(name: str, cell: str) -> tuple[str, str]:
    source = SOURCE_COLUMNS.get(name)
    is_number = _JSON_NUMBER.fullmatch(cell) is not None
    if source is None:
        return name, cell if is_number else json.dumps(cell)
    return source.signal, repr(source.convert(float(cell))) if is_number else json.dumps(cell)
