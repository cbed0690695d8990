"""Figures about recorded wells: pure functions from occurrences to numbers."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from esp_ingest.diagnostics.language.rules import RuleSet
from esp_ingest.model import SIGNAL_ROW, DiagnosticRow, Severity
from tests.evaluate.recorded import (
    ESP01,
    GAUGE_FAILURE,
    MINUTE_US,
    Played,
    decoded,
    derived_events,
    played,
    shipped_with,
)

ANOTHER_SPEED = "at another speed than its median, where the load is compared with what that speed can make of it"
SERIES = "one of a series of drops, which slugging_begun and slugging_spell tell"
PROTECTIVE = ("underload", "gas_lock", "no_flow", "pump_off", "start_without_flow")
# Standing pieces of rules.toml that variants replace.
_BEYOND = 'deeper = "95 %", longer = "150 %"'
_UNDERLOAD = (
    f'parameters = {{ load = "80 %", {_BEYOND} }}\non_delay = "10 min"\noff_delay = "60 min"\ndeadband = "5 %"\n'
)
_HUNTING = 'parameters = { hunting = "8 %", more = "125 %" }\non_delay = "10 min"\noff_delay = "60 min"\n'
_LOCK = 'load_without_flow = "65 %"'


@dataclass(frozen=True)
class Line:
    """One diagnosis at one well."""

    well: str
    diagnosis: str
    severities: str
    occurrences: int
    held_back: int
    per_day: float
    median_minutes: float


def lines(each: Played) -> Iterator[Line]:
    found: dict[tuple[str, str], list[DiagnosticRow]] = {}
    for row in each.dry_run.occurrences():
        found.setdefault((row.well_id, row.diagnosis), []).append(row)
    for (well, diagnosis), rows in sorted(found.items()):
        seen = [row for row in rows if each.dry_run.was_shown(row)]
        spans = [(row.cleared_us - row.raised_us) / MINUTE_US for row in seen if row.cleared_us is not None]
        severities = Counter(row.severity.value for row in seen)
        yield Line(
            well,
            diagnosis,
            ", ".join(f"{count} {severity}" for severity, count in severities.most_common()),
            len(seen),
            len(rows) - len(seen),
            len(seen) / each.days,
            statistics.median(spans) if spans else float("nan"),
        )


# --- what announced a stop


def standing(rows: Sequence[DiagnosticRow], at_us: int, within_us: int = 10 * MINUTE_US) -> DiagnosticRow | None:
    """The first of these that was raised before ``at_us`` and not cleared more than ``within_us`` before it."""
    return next(
        (
            row
            for row in rows
            if row.raised_us < at_us and (row.cleared_us is None or row.cleared_us >= at_us - within_us)
        ),
        None,
    )


def lead_minutes(each: Played) -> list[float]:
    """From the alarm that warned of it to each stop that the rules call a trip of high severity."""
    protective = each.of(*PROTECTIVE)
    found = []
    for trip in each.of("trip"):
        warning = standing(protective, trip.raised_us)
        if trip.severity.value == "high" and warning is not None:
            found.append((trip.raised_us - warning.raised_us) / MINUTE_US)
    return found


def announced(each: Played) -> tuple[int, int]:
    """(stops after an underload that an alarm had announced, all of them), by the derived events."""
    stops = [at for event, at, _ in derived_events() if event == "STOP_AFTER_UNDERLOAD"]
    protective = each.of(*PROTECTIVE)
    return sum(standing(protective, stop) is not None for stop in stops), len(stops)


@dataclass(frozen=True)
class Setting:
    """One point of the trade-off curve of the underload rule."""

    load: str
    on_delay: str
    off_delay: str
    deadband: str
    alarms_per_day: float
    announced: int
    stops: int


def trade_off(settings: Sequence[tuple[str, str, str, str]]) -> Iterator[Setting]:
    """Underload alone: neither held back by others nor helped by them."""
    for load, on_delay, off_delay, deadband in settings:
        delays = f'on_delay = "{on_delay}"\noff_delay = "{off_delay}"\ndeadband = "{deadband}"\n'
        rule = f'parameters = {{ load = "{load}", {_BEYOND} }}\n{delays}'
        held = (
            'suppressed_by = ["gas_lock", "no_flow", "pump_off", "broken_shaft", "dead_head", "start_without_flow"]\n'
            'seen = "the motor load'
        )
        each = played(ESP01, shipped_with((_UNDERLOAD, rule), (held, 'seen = "the motor load')))
        rows = each.of("underload")
        stops = [at for event, at, _ in derived_events() if event == "STOP_AFTER_UNDERLOAD"]
        caught = sum(standing(rows, stop) is not None for stop in stops)
        yield Setting(load, on_delay, off_delay, deadband, len(rows) / each.days, caught, len(stops))


def alarms_per_day(each: Played) -> float:
    """Of all diagnoses together; events (info) are no alarms."""
    return sum(row.severity is not Severity.INFO for row in each.dry_run.seen()) / each.days


# --- gas lock, where flow is not measured


@dataclass(frozen=True)
class LockSetting:
    """Gas locks at one ``load_without_flow``: how many, how many stand beside a gauge dropout, and before a stop."""

    load: str
    locks: int
    per_day: float
    beside_dropouts: int
    before_stops: int


def lock_settings(loads: Sequence[str]) -> Iterator[LockSetting]:
    stops = [at for event, at, _ in derived_events() if event.startswith("STOP")]
    for load in loads:
        rule_set: RuleSet = shipped_with((_LOCK, f'load_without_flow = "{load}"'))
        each = played(ESP01, rule_set)
        locks = each.of("gas_lock")
        before = sum(standing(locks, stop) is not None for stop in stops)
        yield LockSetting(load, len(locks), len(locks) / each.days, len(from_dropouts(each)), before)


def from_dropouts(each: Played) -> list[DiagnosticRow]:
    """Gas locks raised from 10 minutes before a gauge dropout to an hour after it, by our and by the derived events."""
    drops = [row.raised_us for row in each.of("gauge_dropout")]
    if each.name == ESP01:
        drops += [at for event, at, _ in derived_events() if event == "GAUGE_DROPOUT"]
    return [
        row
        for row in each.of("gas_lock")
        if any(-10 * MINUTE_US <= row.raised_us - drop <= 60 * MINUTE_US for drop in drops)
    ]


# --- a gauge that lies


def gauge_failure_onset() -> int:
    """The first sample at which intake pressure stands above discharge pressure, or a signal is out of range."""
    for readings in decoded(GAUGE_FAILURE):
        pip, discharge = readings.values[SIGNAL_ROW["pip"]], readings.values[SIGNAL_ROW["discharge_pressure"]]
        wrong = pip > discharge + 50
        wrong[list(readings.quality)] = True
        if wrong.any():
            return int(readings.timestamp_us[np.flatnonzero(wrong)[0]])
    raise AssertionError("the recording of a gauge failure has none")


# --- beside the derived events


@dataclass(frozen=True)
class Agreement:
    """Derived events of one kind: ``agree`` stand in one of ours, ``why`` counts the reasons of the others."""

    event: str
    ours: str
    events: int
    agree: int
    why: Counter[str]


def agreements() -> Iterator[Agreement]:
    plain = played(ESP01)
    for event, ours in (
        ("STOP", ("trip", "planned_stop")),
        ("STOP_AFTER_UNDERLOAD", ("trip", "planned_stop")),
        ("GAUGE_DROPOUT", ("gauge_dropout",)),
    ):
        times = [at for name, at, _ in derived_events() if name == event]
        exact = {row.raised_us for row in plain.of(*ours)}
        left = [at for at in times if at not in exact]
        later = sum(at + 5 * MINUTE_US in exact for at in left)
        why = Counter({"a sample later: the drive was still running down": later, "not found": len(left) - later})
        yield Agreement(event, ours[0], len(times), len(times) - len(left), +why)
    yield _explained("OUT_OF_RANGE", ("gauge_failure",), plain, [])
    yield _explained(
        "UNDERLOAD",
        PROTECTIVE,
        plain,
        [
            ("no more than this well did by habit on its days", _fixed_underload("10 min")),
            ("shorter than the on-delay of 10 minutes", _quick_underload("settled")),
            ("in the hour after a start", _quick_underload("running")),
        ],
        told_by=("slugging_begun", "slugging_spell"),
    )
    yield _explained(
        "CURRENT_HUNTING",
        ("gas_interference",),
        plain,
        [
            ("in the hour after a start", _hunting("running", "8 %")),
            ("a CV between 7 and 8 %: buckets of 5 minutes against a sliding hour", _hunting("running", "7 %")),
        ],
        held_back=True,
    )


def _quick_underload(applies: str) -> RuleSet:
    return _fixed_underload("0 s", applies)


def _fixed_underload(on_delay: str, applies: str = "settled") -> RuleSet:
    """Underload by its fixed limit alone: any load is far below 99 times what is usual."""
    rule = f'{_UNDERLOAD}applies = "{applies}"\n'.replace('"10 min"', f'"{on_delay}"')
    return shipped_with((_UNDERLOAD, rule.replace('deeper = "95 %"', 'deeper = "9900 %"')))


def _hunting(applies: str, share: str) -> RuleSet:
    return shipped_with((_HUNTING, f'{_HUNTING}applies = "{applies}"\n'.replace('"8 %"', f'"{share}"')))


def _explained(
    event: str,
    ours: tuple[str, ...],
    plain: Played,
    variants: Sequence[tuple[str, RuleSet]],
    held_back: bool = False,
    told_by: tuple[str, ...] = (),
) -> Agreement:
    times = [at for name, at, _ in derived_events() if name == event]
    left = [at for at in times if not _covered(plain, ours, at, held_back=False)]
    agree = len(times) - len(left)
    why: Counter[str] = Counter()
    if held_back:
        left = _account(why, "suppressed: a graver alarm stood", plain, ours, left)
    if told_by:
        left = _account(why, SERIES, plain, told_by, left)
    for reason, rule_set in variants:
        left = _account(why, reason, played(ESP01, rule_set), ours, left)
    left = _account(why, ANOTHER_SPEED, plain, ("speed_step",), left)
    if left:
        why["another baseline"] = len(left)
    return Agreement(event, " or ".join(ours), len(times), agree, why)


def _account(why: Counter[str], reason: str, each: Played, ours: tuple[str, ...], times: list[int]) -> list[int]:
    left = [at for at in times if not _covered(each, ours, at, held_back=True)]
    if len(left) < len(times):
        why[reason] = len(times) - len(left)
    return left


def _covered(each: Played, ours: tuple[str, ...], at: int, held_back: bool) -> bool:
    """An occurrence stood at ``at``, or was raised within half an hour after it."""
    rows = [row for row in each.dry_run.occurrences() if row.diagnosis in ours] if held_back else each.of(*ours)
    return any(
        row.raised_us <= at + 30 * MINUTE_US and (row.cleared_us is None or row.cleared_us >= at) for row in rows
    )
