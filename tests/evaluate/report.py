"""The tables, as Markdown."""

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from esp_ingest.commands.rules import told_exponent
from esp_ingest.demo.fleet import FaultName
from esp_ingest.diagnostics.language.rules import RuleSet
from esp_ingest.model import Severity
from tests.evaluate import judged, onset, operations, slow, wells
from tests.evaluate.musts import Must
from tests.evaluate.recorded import ESP01, ESP02, SAMPLES, played
from tests.evaluate.simulated import EXPECTED, Case, Health

TRADE_OFF = (
    ("80 %", "0 s", "0 s", "0 %"),
    ("80 %", "0 s", "60 min", "5 %"),
    ("80 %", "5 min", "30 min", "5 %"),
    ("80 %", "10 min", "0 s", "0 %"),
    ("80 %", "10 min", "30 min", "5 %"),
    ("80 %", "10 min", "60 min", "5 %"),
    ("80 %", "15 min", "60 min", "5 %"),
    ("80 %", "30 min", "60 min", "5 %"),
    ("85 %", "10 min", "60 min", "5 %"),
    ("75 %", "10 min", "60 min", "5 %"),
)
LOCK_LOADS = ("75 %", "70 %", "65 %", "60 %")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(_cell(value) for value in row)} |"
    yield ""


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.3g}"
    return str(value)


# --- recorded wells


def demanded(musts: Iterable[Must]) -> Iterator[str]:
    yield "### What must hold on recorded wells"
    yield from table(("demand", "found", ""), [(m.what, m.found, "yes" if m.met else "**no**") for m in musts])


def compared(musts: Iterable[Must]) -> Iterator[str]:
    yield "### No worse than before the rules on habits, flow and operations"
    yield from table(("demand", "found", ""), [(m.what, m.found, "yes" if m.met else "**no**") for m in musts])


def exponents() -> Iterator[str]:
    """How the current of each recorded well follows its speed, as it was fitted by its last reading."""
    yield "### Load at another speed: the exponent n in current ~ frequency^n, fitted at each well"
    rows = []
    for name in (ESP01, ESP02):
        engine = played(name).dry_run.engine
        rows += [(well, told_exponent(*engine.load_exponents(well))) for well in engine.wells()]
    yield from table(("well", "by its last reading"), rows)


def each_well() -> Iterator[str]:
    """Each recorded well apart, and of it what rules were tuned on apart from what they were not."""
    whole = {name: played(name) for name in (ESP01, ESP02)}
    found = [wells.figures(whole[part.recording], part) for part in wells.PARTS]
    yield "### Each well by itself"
    header = (
        "well and part", "tuned on it", "alarms a day", "time in alarm", "raised again within 2 h",
        "high or critical followed by a stop within 24 h (any moment)", "stops",
        "warned in the 2 h before (any moment)", "stops with load below 90 %: warned",
    )  # fmt: skip
    yield from table(
        header,
        [
            (
                each.part.name, "yes" if each.part.tuned else "no", f"{each.alarms_per_day:.2f}",
                _percent(each.in_alarm), _percent(each.again),
                f"{_percent(each.followed)} ({_percent(each.followed_chance)})", each.stops,
                f"{_percent(each.warned)} ({_percent(each.warned_chance)})", f"{each.visible_warned} of {each.visible}",
            )
            for each in found
        ],
    )  # fmt: skip
    yield (
        "Alarms are of severity medium and up; time in alarm leaves out `trip`, which stands while the pump is down. "
        "Not all is blind: underload, gas_lock and gas_interference were drawn on the whole of A before its days were "
        "parted, and for no_flow the rise of 10 °F was looked at over all of both wells. The figures of slugging and "
        "slugging_worse were chosen with all of A and B in view: what the second parts say of these is weaker than it "
        "reads. Those of slugging_begun and slugging_spell, and the delay of gas_interference, were chosen on the "
        "first parts and on simulated wells."
    )
    yield ""
    yield "### Each rule at each well: the lift over chance of a stop within 24 hours"
    yield from table(
        ("part", "rule", "severities", "occurrences", "time", "again", "followed by a stop", "lift", "lead, min"),
        [
            (
                each.part.name, rule.diagnosis, rule.severities, rule.occurrences, _percent(rule.in_alarm),
                _percent(rule.again), _percent(rule.followed), rule.lift, rule.lead_minutes,
            )
            for each in found
            if not each.part.tuned
            for rule in each.rules
        ],
    )  # fmt: skip


def _percent(share: float) -> str:
    return "–" if share != share else f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def recorded() -> Iterator[str]:
    yield from each_well()
    yield from exponents()
    yield "### Occurrences"
    rows = []
    for name in (ESP01, *SAMPLES):
        each = played(name)
        for line in judged.lines(each):
            rows.append(
                (
                    name,
                    line.diagnosis,
                    line.occurrences,
                    line.per_day,
                    line.median_minutes,
                    line.severities,
                    line.held_back,
                )
            )
    header = ("recording", "diagnosis", "occurrences", "a day", "median min", "severities", "never shown: suppressed")
    yield from table(header, rows)
    rate = judged.alarms_per_day(played(ESP01))
    yield (
        f"All diagnoses of ESP01 together: {rate:.2f} alarms a day. A hundred wells like it would give an operator "
        f"{rate * 100 / 144:.2f} alarms per 10 minutes (EEMUA 191: about 1 is manageable)."
    )
    yield ""
    leads = judged.lead_minutes(played(ESP01))
    warned, stops = judged.announced(played(ESP01))
    span = f"{min(leads):.0f} to {max(leads):.0f} min, {len(leads)} trips"
    yield (
        f"ESP01: {warned} of {stops} stops after an underload were announced. From the warning to a trip of high "
        f"severity: median {statistics.median(leads):.0f} min, {span}."
    )
    yield ""
    yield from _agreement()
    yield "### Underload: delay, deadband and load against what is announced (ESP01, the rule alone)"
    points = judged.trade_off(TRADE_OFF)
    yield from table(
        ("load below", "on-delay", "off-delay", "deadband", "alarms a day", "stops announced"),
        [
            (p.load, p.on_delay, p.off_delay, p.deadband, p.alarms_per_day, f"{p.announced} of {p.stops}")
            for p in points
        ],
    )
    yield "### Gas lock without a flow meter (ESP01)"
    yield from table(
        ("load below", "gas locks", "a day", "beside a gauge dropout", "standing at a stop"),
        [(s.load, s.locks, s.per_day, s.beside_dropouts, s.before_stops) for s in judged.lock_settings(LOCK_LOADS)],
    )


def _agreement() -> Iterator[str]:
    yield "### Beside the derived events of ESP01"
    rows = [
        (each.event, each.ours, each.events, each.agree, "; ".join(f"{n}: {why}" for why, n in each.why.items()) or "–")
        for each in judged.agreements()
    ]
    yield from table(("derived event", "our diagnosis", "events", "agree", "why not"), rows)


# --- simulated faults


def confusion(cases: Sequence[Case], rule_set: RuleSet) -> Iterator[str]:
    """Rows: the fault that was simulated; columns: diagnoses that an operator saw, in how many of its runs."""
    seen: dict[FaultName, Counter[str]] = {}
    runs: Counter[FaultName] = Counter()
    for case in cases:
        runs[case.fault] += 1
        names = {row.diagnosis for row in case.after}
        seen.setdefault(case.fault, Counter()).update(names)
    right = [expected.diagnosis for expected in EXPECTED.values()]
    others = sorted({name for names in seen.values() for name in names} - set(right))
    columns = [*right, *others]
    yield f"### Simulated faults, {len({case.seed for case in cases})} seeds: diagnoses seen, in runs of each fault"
    rows: list[list[object]] = []
    for fault, count in runs.items():
        cells = [_count(seen[fault][name], EXPECTED[fault].diagnosis == name) for name in columns]
        rows.append([f"{fault.value} ({count})", *cells])
    yield from table(["fault (runs)", *columns], rows)
    yield from _times(cases, rule_set)


def _count(count: int, right: bool) -> str:
    return f"**{count}**" if right else str(count or "")


def _times(cases: Sequence[Case], rule_set: RuleSet) -> Iterator[str]:
    yield "### From onset to the right name, in minutes"
    rows: list[tuple[object, ...]] = []
    for interval in sorted({case.interval_seconds for case in cases}):
        for fault in EXPECTED:
            some = [case for case in cases if case.fault is fault and case.interval_seconds == interval]
            if some:
                minutes = [case.minutes for case in some]
                critical = sorted({name for case in some for name in case.others(Severity.CRITICAL)})
                allowed = some[0].allowed_minutes(rule_set)
                rows.append(
                    (fault.value, f"{interval:g} s", min(minutes), max(minutes), allowed, ", ".join(critical) or "none")
                )
    yield from table(("fault", "interval", "soonest", "latest", "allowed", "other criticals"), rows)


def health(found: Health) -> Iterator[str]:
    yield f"### {found.wells} healthy wells for {found.days:g} days at 1-minute samples"
    yield f"{found.alarms_per_10_minutes:.3g} alarms per 10 minutes for the fleet (at most 1)."
    raised = [(name, severity, count) for (name, severity), count in sorted(found.raised.items())]
    if raised:
        yield ""
        yield from table(("diagnosis", "severity", "occurrences"), raised)
    else:
        yield "Nothing was raised."
        yield ""


def operations_told(found: Sequence[operations.Judged]) -> Iterator[str]:
    """What operators and the power supply do, each at wells of its own."""
    yield "### Operations, simulated: what the rules said, and what they were to say"
    yield (
        f"After {operations.ONSET_HOURS:g} healthy hours, at samples of "
        f"{' and '.join(f'{seconds:g} s' for seconds in operations.INTERVALS)}. "
        "The trips beside a power dip are those of the first four wells, which stood until the fifth had stopped."
    )
    yield ""
    rows: list[tuple[object, ...]] = []
    for operation in dict.fromkeys(each.operation for each in found):
        some = [each for each in found if each.operation is operation]
        said = sum((each.counts for each in some), Counter[tuple[str, str]]())
        told = [f"{name} {severity} ({count / len(some):g})" for (name, severity), count in sorted(said.items())]
        expected = [f"{name} {severity}" for name, severity in operation.expected.items()]
        faults = sorted({fault for each in some for fault in each.faults})
        rows.append((operation.name, len(some), ", ".join(expected), ", ".join(told), "; ".join(faults) or "yes"))
    yield from table(("operation", "runs", "expected", "said (in each run)", "right"), rows)


# --- slow faults


def onsets(found: Sequence[onset.Judged]) -> Iterator[str]:
    """Slugging that begins at a well that was quiet."""
    yield "### Slugging that begins after 30 quiet days, simulated at 1-minute and 5-minute samples"
    rows: list[tuple[object, ...]] = []
    for kind in dict.fromkeys(each.onset for each in found):
        some = [each for each in found if each.onset is kind]
        alarms, leads = [len(each.alarms) for each in some], [each.lead_minutes for each in some]
        names = sorted({row.diagnosis for each in some for row in each.alarms})
        warned = f"{min(leads):.0f} to {max(leads):.0f}" if kind.stops else "–"
        rows.append((kind.name, len(some), f"{min(alarms)} to {max(alarms)}", kind.most, warned, ", ".join(names)))
    header = ("what", "wells", "alarms in 3 days", "at most", "warned before the stop, min", "alarms")
    yield from table(header, rows)


def slow_faults(found: Sequence[slow.Found]) -> Iterator[str]:
    """Each slow fault and what operators do over months, at simulated wells."""
    yield "### Slow faults and operations over 60 days, simulated at 15-minute samples"
    rows: list[tuple[object, ...]] = []
    for kind in dict.fromkeys(each.slow for each in found):
        some = [each for each in found if each.slow is kind]
        days = [each.named_day for each in some]
        others = sorted({name for each in some for name in each.others})
        named = f"{min(days):.1f} to {max(days):.1f}" if kind.rule else "–"
        rows.append((kind.name, kind.rule or "none", len(some), named, kind.by_day or "–", ", ".join(others) or "none"))
    yield from table(("what", "rule", "wells", "named on day", "allowed", "other slow rules"), rows)


def slow_health(found: Health) -> Iterator[str]:
    """A fleet in good health, before the slow rules."""
    raised = sum(found.raised.values())
    yield f"{found.wells} healthy wells for {found.days:g} days at 30-minute samples: {raised} alarms of slow rules."
    yield ""
