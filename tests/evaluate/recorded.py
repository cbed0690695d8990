"""Recorded wells through the real path: CSV → payloads → decoder → engine, as the daemon would see them live."""

import csv
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

from esp_ingest.config.settings import TelemetrySettings
from esp_ingest.diagnostics.dry_run import DryRun
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.diagnostics.language.rules import RuleSet
from esp_ingest.model import Delivery, DiagnosticRow, Readings
from esp_ingest.resources import config_file
from esp_ingest.telemetry import csv_recording as replay
from esp_ingest.telemetry.decode import Decoder

FOLDER = Path(os.environ.get("DATA") or Path(__file__).parents[3] / "shared" / "data" / "esp")
ESP01 = "slb_esp01_raw.csv.gz"
ESP02 = "slb_esp02_first40d_raw.csv.gz"
EVENTS = "slb_esp01_events_derived.csv"
GAUGE_FAILURE = "sample_esp01_gauge_failure.csv"
CYCLING = "sample_esp01_start_stop_cycling.csv"
UNDERLOAD = "sample_esp02_underload_trip_restart.csv"
GAS = "sample_esp03_gas_interference.csv"
STEADY = "sample_esp03_steady_week.csv"
SAMPLES = (GAUGE_FAILURE, CYCLING, UNDERLOAD, GAS, STEADY)
MINUTE_US = 60_000_000
DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Played:
    """One recording after its dry_run."""

    name: str
    dry_run: DryRun
    first_us: int
    last_us: int

    @property
    def days(self) -> float:
        return (self.last_us - self.first_us) / DAY_US

    def of(self, *diagnoses: str) -> list[DiagnosticRow]:
        """Occurrences of these diagnoses that were an alarm to somebody: those held back are left out."""
        return [row for row in self.dry_run.seen() if row.diagnosis in diagnoses]


def readings(path: Path) -> Iterator[Readings]:
    """What the daemon would decode, each reading received a second after it was taken."""
    recording = replay.read(path)
    decoder = Decoder(TelemetrySettings(max_age_days=0), "esp")
    deliveries = (
        Delivery(f"esp/{well}/telemetry".encode(), payload.encode(), 1, 1, 1, recording.times_us[at] + 1_000_000)
        for at, (_, well, payload) in enumerate(recording.messages(0))
    )
    while some := list(islice(deliveries, 5_000)):
        decoded = decoder.decode(some)
        assert not decoded.rejects, decoded.rejects[0]
        yield decoded.readings


@functools.cache
def decoded(name: str) -> tuple[Readings, ...]:
    return tuple(readings(FOLDER / name))


def shipped() -> RuleSet:
    return rules_file.load(config_file("rules.toml"))


def shipped_with(*changes: tuple[str, str]) -> RuleSet:
    """The rules that ship, with pieces of their text replaced: a change that changes nothing is an error."""
    text = config_file("rules.toml").read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in rules.toml"
        text = text.replace(old, new)
    return rules_file.parse(text)


def played(name: str, rule_set: RuleSet | None = None) -> Played:
    batches = decoded(name)
    dry_run = DryRun(rule_set or shipped())
    for batch in batches:
        dry_run.feed(batch)
    return Played(name, dry_run, int(batches[0].timestamp_us[0]), int(batches[-1].timestamp_us[-1]))


@functools.cache
def derived_events() -> tuple[tuple[str, int, str], ...]:
    """(event, µs, detail) that a script of the publisher's data found in ESP01: not ground truth."""
    with (FOLDER / EVENTS).open(newline="") as file:
        return tuple((row["event"], stamp(row["timestamp"]), row["detail"]) for row in csv.DictReader(file))


def stamp(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp()) * 1_000_000
