"""What issue 5 demands of the rules on recorded wells. The report prints it, tests/integration asserts it."""

from collections.abc import Iterator
from typing import NamedTuple

from esp_ingest.model import Severity
from tests.evaluate import judged
from tests.evaluate.recorded import (
    ESP01,
    GAUGE_FAILURE,
    MINUTE_US,
    SAMPLES,
    STEADY,
    UNDERLOAD,
    Played,
    played,
    stamp,
)

TEMPERATURE_RULES = ("motor_hot", "motor_heating")


class Must(NamedTuple):
    what: str
    found: str
    met: bool


def musts() -> Iterator[Must]:
    everything = {name: played(name) for name in (ESP01, *SAMPLES)}
    yield from _esp02(everything[UNDERLOAD])
    locks = [row for each in everything.values() for row in judged.from_dropouts(each)]
    yield Must("no critical gas lock from a gauge dropout", f"{len(locks)}", not locks)
    above_low = [
        row
        for row in everything[STEADY].dry_run.seen()
        if row.severity in (Severity.CRITICAL, Severity.HIGH, Severity.MEDIUM)
    ]
    yield Must("steady week: at most 2 alarms above low", f"{len(above_low)}", len(above_low) <= 2)
    rate = len(everything[ESP01].of("underload")) / everything[ESP01].days
    yield Must("underload of ESP01: at most 0.5 a day", f"{rate:.2f} a day", rate <= 0.5)
    fleet = judged.alarms_per_day(everything[ESP01]) * 100 / 144
    yield Must("100 wells like ESP01: at most 1 alarm per 10 minutes", f"{fleet:.2f}", fleet <= 1)
    warned, stops = judged.announced(everything[ESP01])
    yield Must("stops of ESP01 after an underload announced: 80 %", f"{warned} of {stops}", warned >= 0.8 * stops)
    yield from _gauge(everything[GAUGE_FAILURE])


def _esp02(each: Played) -> Iterator[Must]:
    since, until = stamp("2013-06-12T03:00:00Z"), stamp("2013-06-12T03:50:00Z")
    raised = [row for row in each.of("underload") if since <= row.raised_us <= until]
    at = f"raised {_clock(raised[0].raised_us)}" if raised else "not raised"
    yield Must("ESP02, 12 June: underload raised by 03:50", at, bool(raised))
    first, last = stamp("2013-06-12T04:00:00Z"), stamp("2013-06-12T04:05:00Z")
    trips = [row for row in each.of("trip") if first <= row.raised_us <= last]
    told = ", ".join(f"{_clock(row.raised_us)} {row.severity}" for row in trips) or "none"
    yield Must("ESP02, 12 June: trip at 04:00–04:05 as high", told, [row.severity for row in trips] == [Severity.HIGH])


def _gauge(each: Played) -> Iterator[Must]:
    onset = judged.gauge_failure_onset()
    raised = [row for row in each.of("gauge_failure") if row.raised_us >= onset]
    minutes = (raised[0].raised_us - onset) / MINUTE_US if raised else float("inf")
    found = f"onset {_clock(onset)}, raised {minutes:.0f} min later" if raised else "not raised"
    yield Must("gauge failure found within 15 minutes", found, minutes <= 15)
    hot = [row for row in each.of(*TEMPERATURE_RULES) if row.raised_us >= onset]
    yield Must("temperature rules silent during it", f"{len(hot)}", not hot)


def _clock(at_us: int) -> str:
    return f"{at_us // MINUTE_US // 60 % 24:02d}:{at_us // MINUTE_US % 60:02d}"
