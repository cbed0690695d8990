"""What issues 5 and 13 demand of the rules on recorded wells. The report prints it, tests/integration asserts it."""

from collections.abc import Iterator
from typing import NamedTuple

from esp_ingest.model import Severity
from tests.evaluate import judged, wells
from tests.evaluate.recorded import (
    ESP01,
    ESP02,
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


# Issue 13's table of the whole of well A, before its rules on habits, flow and operations.
_A_BEFORE = {"alarms": 0.88, "time": 0.09, "again": 0.18, "lift": 0.71 / 0.25, "warned": 0.44}


def no_worse(a: Played, b: Played) -> Iterator[Must]:
    """What issue 13 demands of wells A and B: A in nothing worse than before it, B left in peace. C is not here."""
    before, whole = _A_BEFORE, wells.figures(a, wells.PARTS[0])
    found, most = whole.alarms_per_day, before["alarms"]
    yield Must(f"A: at most {most} alarms a day", f"{found:.2f}", found <= most)
    found, most = whole.in_alarm, before["time"]
    yield Must(f"A: at most {most:.0%} of the time in alarm", f"{found:.1%}", found <= most)
    found, most = whole.again, before["again"]
    yield Must(f"A: at most {most:.0%} raised again within 2 h", f"{found:.1%}", found <= most)
    found, least = whole.followed / whole.followed_chance, before["lift"]
    yield Must(
        f"A: lift of high and critical over chance, at least {least:.2f} (71 % against 25 %)",
        f"{found:.2f} ({whole.followed:.0%} against {whole.followed_chance:.0%})",
        found >= least,
    )
    found, least = whole.warned, before["warned"]
    yield Must(f"A: at least {least:.0%} of stops with a warning in the 2 h before", f"{found:.0%}", found >= least)
    other = wells.figures(b, next(part for part in wells.PARTS if part.recording == ESP02))
    found = other.alarms_per_day
    yield Must("B: at most 1.2 alarms a day", f"{found:.2f}", found <= 1.2)
    yield Must("B: less than 5 % of the time in alarm", f"{other.in_alarm:.1%}", other.in_alarm < 0.05)
    yield Must(
        "B: no stop with load below 90 % without a warning",
        f"{other.visible_warned} of {other.visible} warned",
        other.visible_warned == other.visible,
    )


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
