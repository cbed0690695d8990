"""/api/v1/rules: what the diagnostic rules look for and mean, for whoever explains an alarm."""

import asyncio
import logging
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from esp_ingest.api.context import Api, Parts, Viewer
from esp_ingest.api.wire import models
from esp_ingest.api.wire.answers import respond_list
from esp_ingest.api.wire.problems import Problem
from esp_ingest.api.wire.schema import answers
from esp_ingest.model import SIGNAL_NAMES

log = logging.getLogger(__name__)
router = APIRouter(prefix="/api/v1", tags=["alarms"])

_RULE = {
    "diagnosis": "underload", "title": "Underload", "severity": "high", "signals": ["motor_current", "vsd_frequency"],
    "value_signal": None,
    "cause": "less fluid reaches the pump: poor inflow, gas, a closed valve or a broken shaft",
    "consequence": "the drive may trip, and the motor may overheat for want of flow",
    "actions": [
        "check flow at surface: if there is none, stop",
        "if the well still flows, you may lower the frequency; if not, stop",
    ],
}  # fmt: skip


class Rule(BaseModel):
    """A diagnostic rule, as far as it explains an alarm."""

    diagnosis: str
    title: str
    severity: models.Severity
    signals: list[str] = Field(description="that its condition reads; empty for a rule on gauges or on silence")
    value_signal: str | None = Field(
        description="the signal whose value and limit the alarm's value and threshold are; null if they are of "
        "something calculated, such as a ratio"
    )
    cause: str
    consequence: str
    actions: list[str]


class RulePage(models.Page[Rule]):
    """All rules; there is only one page."""


_known: dict[Path, tuple[int, list[dict[str, Any]]]] = {}  # by file: its time of change and what it says


@router.get(
    "/rules",
    summary="What each rule looks at, and what its alarm means",
    responses=answers(RulePage, {"items": [_RULE], "next": None}, formats=True),
)
async def rules(request: Request, api: Parts, principal: Viewer) -> Response:
    """Of the rules file that stands on this host (diagnostics.rules_file), else of the rules that ship."""
    return respond_list(request, await read_rules(api), Rule)


async def read_rules(api: Api) -> list[dict[str, Any]]:
    """The rules in force on this host, as the route returns them. Raises Problem 503."""
    path = api.settings.diagnostics.rules_path()
    try:
        return await asyncio.to_thread(_read, path)
    except (OSError, ValueError) as error:
        log.warning("the rules cannot be read", extra={"path": str(path), "error": str(error)})
        raise Problem(
            503, "rules-unreadable", "The rules cannot be read on this host: the log of the API says why."
        ) from None


def _read(path: Path) -> list[dict[str, Any]]:
    """The rules as the API returns them. The file is read again once it has changed. Raises OSError, and ValueError
    for a file with mistakes."""
    changed_ns = path.stat().st_mtime_ns
    known = _known.get(path)
    if known is None or known[0] != changed_ns:
        from esp_ingest.diagnostics.language import rules_file  # numpy comes with it, which takes its time
        from esp_ingest.diagnostics.language.functions import parts_of
        from esp_ingest.diagnostics.language.rules import RulesError

        try:
            found = rules_file.load(path).rules
        except RulesError as error:
            raise ValueError(str(error)) from error
        known = (
            changed_ns,
            [
                {
                    "diagnosis": rule.name,
                    "title": rule.title,
                    "severity": rule.severity,
                    "signals": _signals(rule.when.columns if rule.when else (), parts_of),
                    "value_signal": _value_signal(rule.when),
                    "cause": rule.cause,
                    "consequence": rule.consequence,
                    "actions": list(rule.actions),
                }
                for rule in found
            ],
        )
        _known[path] = known
    return known[1]


def _value_signal(condition: Any) -> str | None:
    """The measured signal of a condition's first comparison, if it is compared as it is."""
    headline = condition.headline if condition else None
    return headline.signal if headline and headline.signal in SIGNAL_NAMES else None


def _signals(columns: Any, parts_of: Any) -> list[str]:
    """The signals that a condition reads, in the order of SIGNALS; derived signals are replaced by those that they
    are made of."""
    read = {part for key in columns if len(key) > 1 and key[0] != "limit" for part in parts_of(str(key[1]))}
    return [signal for signal in SIGNAL_NAMES if signal in read]
