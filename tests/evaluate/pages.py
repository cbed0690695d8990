"""docs/diagnostics.md and a page a rule, made from rules.toml, the examples and what is said here: ``--pages``."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from esp_ingest.commands.rules import in_short, in_words, words
from esp_ingest.diagnostics.engine.messages import amount
from esp_ingest.diagnostics.language.rules import Rule, RuleSet
from esp_ingest.service.text import span
from tests.evaluate.examples import EXAMPLES, play
from tests.evaluate.recorded import shipped

DOCUMENT = Path(__file__).parents[2] / "docs" / "diagnostics.md"
FOLDER = DOCUMENT.with_suffix("")
_GROUPS = (
    (
        "Load, inflow and gas",
        (
            "underload",
            "no_flow",
            "gas_lock",
            "start_without_flow",
            "gas_interference",
            "slugging",
            "slugging_begun",
            "slugging_spell",
            "slugging_worse",
            "hunting",
            "pump_off",
            "low_flow",
            "high_gor",
        ),
    ),
    (
        "Pump, shaft and tubing",
        (
            "dead_head",
            "broken_shaft",
            "tubing_leak",
            "speed_step",
            "back_pressure",
            "new_habit",
            "blocked_intake",
            "solids",
        ),
    ),
    (
        "Motor, drive and vibration",
        ("overload", "motor_hot", "motor_heating", "vibration", "frequency_deviation", "current_imbalance", "leakage"),
    ),
    ("Operating point", ("downthrust", "upthrust", "below_bubble_point", "high_drawdown")),
    (
        "Slow faults",
        ("pump_wear", "scale_or_sand", "inflow_decline", "insulation_decline", "gauge_drift", "frequency_tag"),
    ),
    ("Starts and stops", ("trip", "common_stop", "planned_stop", "cycling", "early_restart", "failed_start")),
    ("Instruments and link", ("gauge_dropout", "gauge_failure", "frozen_signal", "stale_well", "clock_skew")),
)
_APPLIES = {
    "settled": "while running, from an hour after the start",
    "running": "while running",
    "always": "running or not",
}
_PROSE = tomllib.loads((Path(__file__).parent / "notes.toml").read_text(encoding="utf-8"))
_SYMBOLS: dict[str, str] = _PROSE["symbols"]
_NOTES: dict[str, str] = _PROSE["notes"]
EXERCISED: frozenset[str] = frozenset(_PROSE["exercised"]["rules"])


def write_all() -> Iterator[str]:
    FOLDER.mkdir(exist_ok=True)
    rule_set = shipped()
    for rule in rule_set.rules:
        path = FOLDER / f"{rule.name}.md"
        path.write_text(page(rule_set, rule), encoding="utf-8")
        yield str(path.relative_to(DOCUMENT.parents[1]))
    paste("rules", list(overview(rule_set)))


def page(rule_set: RuleSet, rule: Rule) -> str:
    return "\n".join(_page(rule_set, rule)).replace("\n\n\n", "\n\n") + "\n"


def _page(rule_set: RuleSet, rule: Rule) -> Iterator[str]:
    yield f"# {rule.title} (`{rule.name}`)"
    yield "<!-- made by python -m tests.evaluate --pages of config/rules.toml, tests/evaluate/notes.toml -->"
    yield ""
    if rule.summary:
        yield in_short(rule, rule_set.settings_of(rule, ""))
        yield ""
    yield f"Raised {in_words(rule_set, rule, rule_set.settings_of(rule, ''), rule_set.limit_defaults)}."
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield from (f"| {name} | {text} |" for name, text in _facts(rule_set, rule) if text)
    yield ""
    if rule.when:
        yield "## Condition"
        yield f"```\n{rule.when.text.strip()}\n```"
        values = [f"{name} = {amount(value, rule.parameter_units[name])}" for name, value in rule.parameters.items()]
        yield f"with {', '.join(values)}." if values else ""
        yield ""
        yield from (f"- {text}." for text in _symbols(rule))
        yield ""
    yield from _example(rule)
    if rule.name in _NOTES:
        yield "## What data taught"
        yield _NOTES[rule.name]
        yield ""
    if rule.name not in EXERCISED:
        yield "No recorded real well has raised this rule yet: it is known from simulated wells alone."
        yield ""
    yield f"Source: {rule.source}. Figures without another source are defaults of ours."


def _facts(rule_set: RuleSet, rule: Rule) -> Iterator[tuple[str, str]]:
    settings = rule_set.settings_of(rule, "")
    yield "severity", str(rule.severity)
    if rule.escalation:
        step = words(rule.escalation.when.text, rule, settings, rule_set.limits, rule_set.limit_defaults)
        delay = span(rule.escalation.on_delay_us / 1e6)
        same = rule.escalation.severity == rule.severity
        yield (
            "faster" if same else "more severe",
            f"{delay if same else rule.escalation.severity} when {step}" + ("" if same else f" for {delay}"),
        )
    if rule.upgrade:
        within = span(rule.upgrade.within_us / 1e6)
        yield "more severe", f"{rule.upgrade.severity} if {', '.join(rule.upgrade.after)} stood in the {within} before"
    yield "on-delay", "" if rule.stale else span(rule.on_delay_us / 1e6)
    yield "off-delay", "" if rule.stale else span(rule.off_delay_us / 1e6)
    yield (
        "told again",
        f"each {span(rule.remind_us / 1e6)} while it stands, and unacknowledged" if rule.remind_us else "",
    )
    yield "deadband", "" if rule.stale else rule.deadband
    yield "applies", _APPLIES[rule.applies]
    yield "latching", "until acknowledged" if rule.latching else ""
    yield "suppressed by", ", ".join(f"[{name}]({name}.md)" for name in rule.suppressed_by)
    yield "confidence", f"{rule.confidence:g}{', less in the first day of running' if rule.needs_baseline else ''}"
    yield "likely cause", rule.cause
    yield "consequence", rule.consequence
    yield "action", "; ".join(rule.actions) or "none: it is an event"


def _symbols(rule: Rule) -> Iterator[str]:
    assert rule.when is not None
    texts = f" {rule.when.text} {rule.escalation.when.text if rule.escalation else ''}"
    for sign, text in _SYMBOLS.items():
        # ratio( also ends the names of other functions.
        if re.search(rf"(?<![a-z_]){re.escape(sign)}", texts):
            yield " ".join(text.split())


def _example(rule: Rule) -> Iterator[str]:
    yield "## Example"
    yield f"![{rule.title} at a simulated well]({rule.name}.svg)"
    yield ""
    yield f"> {play(rule.name).occurrences[0].message}"
    yield ""
    fault = EXAMPLES[rule.name].fault
    made = (
        f"the fault `{fault}` of the [simulator](../simulator.md)" if fault else "a simulated well, its signals changed"
    )
    yield f"From {made}; `python -m tests.evaluate --plots` draws it again."
    yield ""


def overview(rule_set: RuleSet) -> Iterator[str]:
    """The list of rules in docs/diagnostics.md."""
    by_name = {rule.name: rule for rule in rule_set.rules}
    listed = [name for _, names in _GROUPS for name in names]
    assert sorted(listed) == sorted(by_name), "tests/evaluate/pages.py lists other rules than rules.toml"
    for title, names in _GROUPS:
        yield f"**{title}**"
        yield ""
        yield "| diagnosis | severity | on-delay | in words |"
        yield "|---|---|---|---|"
        for rule in map(by_name.__getitem__, names):
            steps = rule.escalation is not None and rule.escalation.severity != rule.severity
            graver = f", {rule.escalation.severity}" if rule.escalation and steps else ""
            graver = f", {rule.upgrade.severity}" if rule.upgrade else graver
            delay = "–" if rule.stale else span(rule.on_delay_us / 1e6)
            settings = rule_set.settings_of(rule, "")
            text = in_short(rule, settings) or in_words(rule_set, rule, settings, rule_set.limit_defaults)
            yield f"| [{rule.name}](diagnostics/{rule.name}.md) | {rule.severity}{graver} | {delay} | {text} |"
        yield ""


def paste(part: str, lines: list[str]) -> None:
    """Between the markers of ``part`` in docs/diagnostics.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(pasted(text, part, lines), encoding="utf-8")


def pasted(text: str, part: str, lines: list[str]) -> str:
    begin, end = f"<!-- {part}: begin -->\n", f"<!-- {part}: end -->"
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}{chr(10).join(lines).rstrip()}\n{end}{after}"
