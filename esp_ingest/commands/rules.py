"""`esp-ingest rules`: read the rules and say what is wrong or odd in them, explain one, try them without writing."""

import argparse
import fnmatch
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from esp_ingest.commands.arguments import AddAction
from esp_ingest.config.settings import ConfigError, Settings
from esp_ingest.diagnostics.dry_run import DryRun
from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.engine.messages import amount
from esp_ingest.diagnostics.language import rules_file
from esp_ingest.diagnostics.language.functions import DERIVED, FUNCTIONS, Form
from esp_ingest.diagnostics.language.rules import Rule, RulesError, RuleSet
from esp_ingest.diagnostics.language.units import Unit
from esp_ingest.diagnostics.pump_limits import with_pumps
from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.model import Delivery, DiagnosticRow, Readings
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.text import did_you_mean, moment, rfc3339, span
from esp_ingest.store.diagnostics import history
from esp_ingest.telemetry import csv_recording as replay
from esp_ingest.telemetry.decode import Decoder
from esp_ingest.telemetry.timestamps import parse_moment

_BATCH = 5_000
_DELIVERED_AFTER_US = 1_000_000  # a recording is tried as if each reading had come in a second after it was taken


def add_arguments(add_action: AddAction) -> None:
    """The actions check, explain and test."""

    def add(name: str, text: str) -> argparse.ArgumentParser:
        action = add_action(name, text)
        action.add_argument("--rules", type=Path, metavar="FILE", help="rules file (default: diagnostics.rules_file)")
        return action

    add("check", "read the rules and say what is wrong or odd in them")
    explain = add("explain", "a rule in words, with a well's limits")
    explain.add_argument("diagnosis", nargs="?", help="the rule; all when left out")
    explain.add_argument("--well", help="with this well's limits")
    test = add("test", "run the rules without writing, and print the occurrences")
    test.add_argument("--csv", type=Path, metavar="FILE", help="over a recording")
    test.add_argument("--since", metavar="TIME", help="over the database from this time, RFC 3339 or an age such as 7d")
    test.add_argument("--until", metavar="TIME", help="up to this time (now)")
    test.add_argument("--well", help="only this well")
    test.add_argument("--json", action="store_true", help="an occurrence a line as JSON")


def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """`esp-ingest rules check|explain|test`. ``check`` says each mistake in a line and returns 2.

    Raises RulesError for a file that cannot be used, ConfigError for wrong usage, ReplayError for a recording,
    StoreUnavailable without a database that was asked for."""
    try:
        for line in lines(settings, arguments, SystemClock().now_us()):
            sys.stdout.write(f"{line}\n")
    except RulesError as error:
        if arguments.action != "check" or arguments.debug:
            raise
        for mistake in error.mistakes:
            sys.stderr.write(f"error: {mistake}\n")
        return 2
    return 0


def lines(settings: Settings, arguments: argparse.Namespace, now_us: int) -> Iterator[str]:
    """As :func:`run`, the lines to print."""
    rule_set = with_pumps(rules_file.load(arguments.rules or settings.diagnostics.rules_path()), settings.pumps)
    if arguments.action == "check":
        yield from check(settings, rule_set)
    elif arguments.action == "explain":
        read = partial(load_exponent, settings, rule_set, arguments.well) if arguments.well else None
        yield from explain(rule_set, arguments.diagnosis, arguments.well, read)
    else:
        yield from test(settings, arguments, rule_set, now_us)


# --- check


def check(settings: Settings, rule_set: RuleSet) -> Iterator[str]:
    """A line a warning, then a line of what was read. A file with an error never gets here."""
    yield from (f"warning: {warning}" for warning in rule_set.warnings)
    if rule_set.overrides:
        try:
            wells = history.reporting_wells(settings.database)
        except StoreUnavailable as error:
            yield f"note: the database was not asked which wells report: {error}"
        else:
            yield from (f"warning: {warning}" for warning in silent_overrides(rule_set, wells))
    off = [rule.name for rule in rule_set.rules if not rule.enabled]
    yield from (f"note: {rule_set.path}: rules.{name}: is switched off." for name in off)
    yield (
        f"ok: {rule_set.path}: {len(rule_set.rules)} rules, {len(rule_set.limits)} limits, "
        f"{len(rule_set.overrides)} groups and wells with settings of their own."
    )


def silent_overrides(rule_set: RuleSet, reporting: Sequence[str]) -> Iterator[str]:
    """Groups and wells whose settings no stored reading ever used, the nearest reporting well named."""
    for override in rule_set.overrides:
        for pattern in override.wells:
            if not fnmatch.filter(reporting, pattern):
                near = did_you_mean(pattern, reporting) if reporting and len(reporting) <= 10_000 else ""
                meant = near if near.startswith(" (did") else ""
                yield f"{rule_set.path}: {override.where}: no well {pattern} has ever reported{meant}."


# --- explain


def explain(
    rule_set: RuleSet, diagnosis: str | None, well: str | None, read_load: Callable[[], str] | None = None
) -> Iterator[str]:
    """The lines of `rules explain`, of one rule or of all, with the limits of ``well``; ``read_load`` tells what is
    known of its load at another speed. Raises ConfigError."""
    load = ""
    known = {rule.name: rule for rule in rule_set.rules}
    if diagnosis is not None and diagnosis not in known:
        raise ConfigError(f"{diagnosis} is no rule of {rule_set.path}{did_you_mean(diagnosis, known)}.")
    for number, rule in enumerate(rule_set.rules if diagnosis is None else [known[diagnosis]]):
        if number:
            yield ""
        yield from explained(rule_set, rule, well)
        if read_load is not None and rule.when and ("ratio", "current_load") in rule.when.columns:
            load = load or read_load()
            yield f"  {'load exponent':<13} {load}"


def load_exponent(settings: Settings, rule_set: RuleSet, well: str) -> str:
    """How the current of ``well`` follows its speed, as its checkpoint has it, for people."""
    try:
        state = history.checkpoint(settings.database, well)
    except StoreUnavailable as error:
        return f"not known: the database was not asked ({error})"
    engine = Engine(rule_set)
    if state is not None:
        engine.restore({well: state})
    return told_exponent(*engine.load_exponents(well))


def told_exponent(changes: Sequence[float], known: Sequence[float]) -> str:
    """``changes``: the exponents of the last changes of speed; ``known``: exponent, least and greatest, or empty."""
    seen = ", ".join(f"{each:.2f}" for each in changes) or "none yet"
    if not known:
        return f"not known before three changes of speed (seen: {seen}): any n from 0 to 2 in current ~ frequency^n"
    return (
        f"n = {known[0]:.2f} ({known[1]:.2f} to {known[2]:.2f}) in current ~ frequency^n, of its last changes: {seen}"
    )


def explained(rule_set: RuleSet, rule: Rule, well: str | None) -> Iterator[str]:
    """A rule in words; with the limits and settings of ``well``, where one is given."""
    settings = rule_set.settings_of(rule, well or "")
    limits = rule_set.limits_of(well or "")
    yield f"{rule.name} — {rule.title}, {settings['severity']}{'' if settings['enabled'] else ', SWITCHED OFF'}"
    yield from (f"  {name:<13} {text}" for name, text in _facts(rule_set, rule, settings, limits, well) if text)


def _facts(
    rule_set: RuleSet, rule: Rule, settings: Mapping[str, Any], limits: Mapping[str, float], well: str | None
) -> Iterator[tuple[str, str]]:
    yield "raised", rule.summary and in_short(rule, settings)
    yield "condition" if rule.summary else "raised", in_words(rule_set, rule, settings, limits)
    yield "", _missing_limits(rule_set, rule, limits, well)
    if rule.escalation:
        step = words(rule.escalation.when.text, rule, settings, rule_set.limits, limits)
        delay = span(rule.escalation.on_delay_us / 1e6)
        if rule.escalation.severity == rule.severity:
            yield "faster", f"after {delay}, when {step}"
        else:
            yield "more severe", f"{rule.escalation.severity}, when {step} for {delay}"
    if rule.upgrade:
        causes, within = " or ".join(rule.upgrade.after), span(rule.upgrade.within_us / 1e6)
        yield "more severe", f"{rule.upgrade.severity}, if {causes} was active in the {within} before"
    yield "cleared", _cleared(rule, settings)
    yield (
        "applies",
        {
            "settled": "while running, from an hour after the start",
            "running": "while running",
            "always": "running or not",
        }[rule.applies],
    )
    yield "suppressed by", ", ".join(rule.suppressed_by)
    yield "needs", _needs(rule)
    yield "cause", rule.cause
    yield "consequence", rule.consequence
    yield "action", "; ".join(rule.actions)
    yield "source", rule.source
    if well is not None:
        yield from _own_settings(rule_set, rule, well)


def in_short(rule: Rule, settings: Mapping[str, Any]) -> str:
    """The summary of a rule as one sentence, with the parameters and delays in force."""
    amounts = {name: amount(settings[name], unit) for name, unit in rule.parameter_units.items()}
    delays = {name: span(settings[f"{name}_us"] / 1e6) for name in ("on_delay", "off_delay")}
    stale = rule.stale
    of_silence = {} if stale is None else {
        "after": f"{stale.after:g}", "escalate_after": f"{stale.escalate_after:g}",
        "minimum": span(stale.minimum_us / 1e6),
    }  # fmt: skip
    return rule.summary.format(**amounts, **delays, **of_silence)


def in_words(rule_set: RuleSet, rule: Rule, settings: Mapping[str, Any], limits: Mapping[str, float]) -> str:
    """When it is raised, as a clause."""
    if rule.stale:
        return (
            f"when nothing came for more than {rule.stale.after:g} × the usual interval (at least "
            f"{span(rule.stale.minimum_us / 1e6)}), {rule.stale.escalate_severity} from {rule.stale.escalate_after:g} ×"
        )
    assert rule.when is not None
    delay = settings["on_delay_us"]
    lasting = f", for {span(delay / 1e6)}" if delay else ", at once"
    return f"when {words(rule.when.text, rule, settings, rule_set.limits, limits)}{lasting}"


def _function_phrases() -> Iterator[tuple[str, str]]:
    """(pattern, phrase) of each function of the language, innermost first: within() and choose() hold others."""
    arguments = {
        Form.SIGNAL: r"\((\w+)\)",
        Form.WINDOW: r"\((\w+), ([^)]+)\)",
        Form.WITHIN: r"\((.+?), (\d+ [a-z]+)\)",
        Form.MEASURED: r"\((\w+)\)",
        Form.KNOWN: r"\(([\w.]+)\)",
        Form.ABS: r"\(([^)]+)\)",
        Form.CHOOSE: r"\(([^,]+), ([^,]+), ([^)]+)\)",
    }
    for name, function in FUNCTIONS.items():
        phrase = function.words.format(r"\1", r"\2", r"\3")
        if function.form is Form.MEASURED:
            yield rf"\bnot {name}{arguments[function.form]}", phrase.replace(" is ", " is not ")
        yield rf"\b{name}{arguments[function.form]}", phrase


_PHRASES = (
    *_function_phrases(),
    *((rf"\b{name}\b", signal.words) for name, signal in DERIVED.items()),
    (r"\btripped\b", "the pump goes from running to stopped"),
    (r"\bnot stop_commanded\b", "the stop was not commanded"),
    (r"\bstop_commanded\b", "the stop was commanded"),
    (r"\bnot stop_ramped\b", "it was not ramped down"),
    (r"\bstop_ramped\b", "it was ramped down"),
    (r"\bload_at_stop\b", "the motor load at the stop ÷ its 24-hour median"),
    (r"\bstopped_together >= ([^,()]+?)(?= and| or|\)|$)", r"\1 or more stopped together with this one"),
    (r"\bstopped_together\b", "the number of wells that stopped together with this one"),
    (r"\bleads_stop\b", "it is the first of them"),
    (r"\bnot most_are_back\b", "half of them are still down"),
    (r"\bmost_are_back\b", "most of them run again"),
    (r"\bsince_stop\b", "the time since the stop"),
    (r"\bgauge_dropped\b", "every gauge channel reads zero or nothing on a sample"),
    (r"failed_signals >= 1", "a signal is out of its hard limits on 3 samples, or discharge below intake pressure"),
    (r"frozen_for >= ([^,]+)", r"a signal has not moved for \1 while others did"),
    (r" <= ", " is at most "),
    (r" >= ", " is at least "),
    (r" < ", " is below "),
    (r" > ", " is above "),
)


def words(
    text: str, rule: Rule, settings: Mapping[str, Any], limit_units: Mapping[str, Unit], limits: Mapping[str, float]
) -> str:
    """A condition in words, its parameters and limits as the values in force."""
    found = " ".join(text.split())
    for name, unit in rule.parameter_units.items():
        found = re.sub(rf"(?<![\w.]){name}(?!\w)", amount(settings[name], unit), found)
    for pattern, phrase in _PHRASES:
        found = re.sub(pattern, phrase, found)
    for name, unit in limit_units.items():
        value = f"{amount(limits[name], unit)} (limit)" if name in limits else f"limit.{name}"
        found = re.sub(rf"limit\.{name}(?!\w)", value, found)
    return found


def _missing_limits(rule_set: RuleSet, rule: Rule, limits: Mapping[str, float], well: str | None) -> str:
    needed = rule.when.limits if rule.when else frozenset()
    missing = sorted(needed - set(limits))
    if not missing:
        return ""
    names = ", ".join(f"limit.{name} ({rule_set.limits[name]})" for name in missing)
    place = f" at {well}" if well else ""
    assert rule.when is not None
    text = " ".join(rule.when.text.split())
    if all(re.search(rf"\bor \(+known\(limit\.{name}\)", text) for name in missing):  # only one branch asks for it
        return f"IN PART{place}: {names} is not set, so its branch is left out; the rest of the rule runs"
    return f"OFF{place}: {names} is not set, and limits of the equipment are not guessed"


def _cleared(rule: Rule, settings: Mapping[str, Any]) -> str:
    if rule.stale:
        return "by data only"
    after = (
        f"when it has been over for {span(settings['off_delay_us'] / 1e6)}" if settings["off_delay_us"] else "at once"
    )
    band = "" if rule.deadband.startswith("0 ") else f", {rule.deadband} past the threshold"
    return f"{after}{band}{'; kept until it is acknowledged' if rule.latching else ''}"


def _needs(rule: Rule) -> str:
    columns = rule.when.columns if rule.when else frozenset()
    optional = {str(key[1]) for key in columns if key[0] == "measured"}
    needed = sorted(rule.when.signals - optional) if rule.when else []
    baseline = ["6 hours of running for a baseline"] if rule.needs_baseline else []
    return ", ".join([*needed, *baseline])


def _own_settings(rule_set: RuleSet, rule: Rule, well: str) -> Iterator[tuple[str, str]]:
    read = {str(key[1]) for key in (rule.when.columns if rule.when else ()) if key[0] == "limit"}
    for override in rule_set.overrides:
        if not override.covers(well):
            continue
        for name, value in override.limits.items():
            if name in read:
                yield override.where, f"limit.{name} = {amount(value, rule_set.limits[name])}"
        for key, value in override.rules.get(rule.name, {}).items():
            yield override.where, f"{key.removesuffix('_us')} = {_setting(rule, key, value)}"


def _setting(rule: Rule, key: str, value: Any) -> str:
    if key.endswith("_us"):
        return span(value / 1e6)
    return amount(value, rule.parameter_units[key]) if key in rule.parameter_units else str(value).lower()


# --- test


def test(settings: Settings, arguments: argparse.Namespace, rule_set: RuleSet, now_us: int) -> Iterator[str]:
    """The occurrences that these rules would have raised. Nothing is written."""
    if (arguments.csv is None) == (arguments.since is None):
        raise ConfigError("Give --csv FILE for a recording, or --since TIME for the database.")
    from_file = arguments.csv is not None
    dry_run = DryRun(rule_set)
    for batch in recorded(settings, arguments.csv) if from_file else _stored(settings, arguments, now_us):
        dry_run.feed(_only(batch, arguments.well) if arguments.well else batch)
    for row in dry_run.occurrences():
        yield as_json(row) if arguments.json else as_line(row, dry_run.was_shown(row))
    if not arguments.json:
        yield _summary(dry_run)
    for name, reason in dry_run.engine.failed_rules().items():
        yield f"warning: {name} failed and was left out: {reason}"


def recorded(settings: Settings, path: Path) -> Iterator[Readings]:
    """A recording as the daemon would have decoded it live. Raises ReplayError."""
    recording = replay.read(path)
    root = settings.mqtt.topic_root
    decoder = Decoder(settings.telemetry.model_copy(update={"max_age_days": 0}), root)
    messages = zip(recording.times_us, recording.messages(0), strict=True)
    while some := list(islice(messages, _BATCH)):
        decoded = decoder.decode(
            [
                Delivery(f"{root}/{well}/telemetry".encode(), payload.encode(), 0, 0, 0, at + _DELIVERED_AFTER_US)
                for at, (_, well, payload) in some
            ]
        )
        yield decoded.readings


def _stored(settings: Settings, arguments: argparse.Namespace, now_us: int) -> Iterator[Readings]:
    try:
        since_us = parse_moment(arguments.since, now_us)
        until_us = parse_moment(arguments.until, now_us) if arguments.until else now_us
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    if until_us <= since_us:
        raise ConfigError("--until must be later than --since.")
    wells = [arguments.well] if arguments.well else history.reporting_wells(settings.database)
    yield from history.readings_between(settings.database, wells, since_us, until_us)


def _only(readings: Readings, well: str) -> Readings:
    if well not in readings.wells:
        return Readings.empty()
    part = readings.select((readings.well_index == readings.wells.index(well)).nonzero()[0])
    part.wells, part.well_index = [well], part.well_index * 0
    return part


def as_line(row: DiagnosticRow, shown: bool) -> str:
    """An occurrence for people. ``shown``: it would be shown to operators."""
    until = "open" if row.cleared_us is None else f"for {span((row.cleared_us - row.raised_us) / 1e6)}"
    held = "" if shown else "  (suppressed)"
    return f"{moment(row.raised_us)}  {until:<12} {row.severity.value:<8} {row.diagnosis:<20} {row.message}{held}"


def as_json(row: DiagnosticRow) -> str:
    """The columns of diagnostic_results; times as RFC 3339."""
    data = {
        "timestamp": rfc3339(row.raised_us),
        "well_id": row.well_id,
        "diagnosis": row.diagnosis,
        "severity": row.severity.value,
        "state": row.state,
        "cleared_at": None if row.cleared_us is None else rfc3339(row.cleared_us),
        "value": row.value,
        "threshold": row.threshold,
        "peak": row.peak,
        "occurrences": row.occurrences,
        "confidence": row.confidence,
        "message": row.message,
        "actions": msgspec.Raw(row.actions_json.encode()),
        "telemetry_snapshot": msgspec.Raw(row.snapshot_json.encode()),
    }
    return msgspec.json.encode(data).decode()


def _summary(dry_run: DryRun) -> str:
    rows, seen = dry_run.occurrences(), len(dry_run.seen())
    held = f", {len(rows) - seen} more suppressed" if len(rows) > seen else ""
    late = f", {dry_run.late} readings late or doubled" if dry_run.late else ""
    wells = len(dry_run.engine.wells())
    where = "1 well" if wells == 1 else f"{wells} wells"
    return f"{seen} occurrences{held} in {dry_run.readings} readings of {where}{late}"
