"""POST /api/v1/alarms/…: what operators do to alarms, by the same functions as `esp-ingest alarms`.

All items of a body are checked first: if one does not exist or may not be seen by this operator, the whole body is
refused and nothing is done. Then each item is handled in a transaction of its own; if somebody else was faster, the
outcome says so."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from esp_ingest.api.access.principal import Principal
from esp_ingest.api.context import Api, Operator, Parts, address_of
from esp_ingest.api.routes.rules import read_rules
from esp_ingest.api.wire import bodies, models
from esp_ingest.api.wire.answers import fresh
from esp_ingest.api.wire.problems import Problem, invalid
from esp_ingest.api.wire.schema import ITEM_EXAMPLE, OUTCOME_EXAMPLE, answers, takes
from esp_ingest.model import us_of
from esp_ingest.store import alarms, users
from esp_ingest.store.alarms import LONGEST_SHELVING_US, Changed, Judgement
from esp_ingest.store.connection import Connection
from esp_ingest.telemetry.timestamps import parse_duration

router = APIRouter(prefix="/api/v1/alarms", tags=["alarms"])

Item = bodies.AlarmItem | bodies.OccurrenceItem
Done = tuple[bool, Sequence[Changed]]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
_WORDS = {
    "ack": "acknowledged an alarm",
    "shelve": "shelved an alarm",
    "unshelve": "unshelved an alarm",
    "note": "noted something on an alarm",
    "verdict": "judged an alarm",
}


def _action(name: str, summary: str, **example: str) -> Callable[[Endpoint], Endpoint]:
    """A route that does something to each item of its body; ``example``: what its body holds beside the items."""
    return router.post(
        f"/{name}",
        summary=summary,
        responses=answers(models.Outcomes, OUTCOME_EXAMPLE, problems=(400, 403, 404, 413, 415), cached=False),
        openapi_extra=takes({"items": [ITEM_EXAMPLE], **example}),
    )


@_action("ack", "Acknowledge", why="choke opened")
async def ack(request: Request, api: Parts, principal: Operator, body: bodies.AckBody) -> Response:
    """What is unacknowledged, latched or has returned unacknowledged: the occurrence, or without a time all of them."""

    def do(connection: Connection, asked: alarms.Request, item: Item) -> Done:
        changed = alarms.acknowledge(connection, asked, item.timestamp)
        return bool(changed), changed

    return await _each(request, api, principal, body.items, body.why, "ack", do)


@_action("shelve", "Hold a diagnosis back at a well for a time", why="gauge is to be changed on Friday", duration="3d")
async def shelve(request: Request, api: Parts, principal: Operator, body: bodies.ShelveBody) -> Response:
    """Always with an end, at most 30 days away, and a reason. A later shelving takes the place of an earlier one."""
    until_us = _end(body, api.clock.now_us())

    def do(connection: Connection, asked: alarms.Request, item: Item) -> Done:
        return True, alarms.shelve(connection, asked, until_us)

    return await _each(request, api, principal, body.items, body.why, "shelve", do, await _rules(api))


@_action("unshelve", "End a shelving", why="gauge was changed")
async def unshelve(request: Request, api: Parts, principal: Operator, body: bodies.AckBody) -> Response:
    """It is heard again at once."""

    def do(connection: Connection, asked: alarms.Request, item: Item) -> Done:
        return alarms.unshelve(connection, asked)

    return await _each(request, api, principal, body.items, body.why, "unshelve", do)


@_action("note", "Keep a remark", why="operator on site at 14:00")
async def note(request: Request, api: Parts, principal: Operator, body: bodies.NoteBody) -> Response:
    """It stands in the history beside what else was done."""

    def do(connection: Connection, asked: alarms.Request, item: Item) -> Done:
        alarms.note(connection, asked, item.timestamp)
        return True, ()

    return await _each(request, api, principal, body.items, body.why, "note", do, await _rules(api))


@_action(
    "verdict",
    "Say whether an alarm was right",
    verdict="true",
    cause="gas slug",
    stop_reason="underload trip",
    why="amps on the chart",
)
async def verdict(request: Request, api: Parts, principal: Operator, body: bodies.VerdictBody) -> Response:
    """The last verdict on an occurrence counts; all of them stand in the history. See /api/v1/alarms/precision."""
    judgement = Judgement(body.verdict, body.cause.strip(), body.stop_reason.strip())

    def do(connection: Connection, asked: alarms.Request, item: Item) -> Done:
        assert item.timestamp is not None
        return alarms.judge(connection, asked, item.timestamp, judgement), ()

    return await _each(request, api, principal, body.items, body.why, "verdict", do)


def _end(body: bodies.ShelveBody, now_us: int) -> int:
    """When a shelving ends, in µs. Raises Problem 422."""
    if not body.why.strip():
        raise invalid("why", "Shelving needs a reason: say it with why.")
    if (body.until is None) == (body.duration is None):
        raise invalid("until", "Shelving needs an end: give until (a time) or duration (such as 8h), not both.")
    if body.duration is not None:
        try:
            seconds = parse_duration(body.duration)
        except ValueError as error:
            raise invalid("duration", f"{error}.") from None
        until_us = now_us + round(seconds * 1e6)
    else:
        assert body.until is not None
        until_us = us_of(body.until)
    if not now_us < until_us <= now_us + LONGEST_SHELVING_US:
        raise invalid(
            "until", "A shelving ends after now and within 30 d: switching a rule off is done in its rules file."
        )
    return until_us


async def _each(
    request: Request,
    api: Api,
    principal: Principal,
    items: Sequence[Item],
    why: str,
    action: str,
    do: Callable[[Connection, alarms.Request, Item], Done],
    rules: frozenset[str] | None = None,
) -> Response:
    """Check all items, then handle each. Returns the outcomes. ``rules``: the diagnoses that may be meant although the
    well has never had them; None for any."""
    wanted = list({(i.well_id, i.diagnosis, i.timestamp): i for i in items}.values())
    settings = api.settings.diagnostics
    publish = settings.enabled and settings.publish

    def work(connection: Connection) -> list[dict[str, Any]]:
        _refuse_unknown(connection, principal, wanted, rules)
        outcomes = []
        for item in wanted:
            asked = alarms.Request(item.well_id, item.diagnosis, principal.name, why.strip(), publish)
            is_done, changed = do(connection, asked, item)
            outcomes.append(_outcome(connection, item, is_done, changed))
        detail = {"items": [f"{i.well_id} {i.diagnosis}" for i in wanted[:20]], "count": len(wanted)}
        users.record(connection, principal.name, address_of(request), _WORDS[action], detail)
        return outcomes

    return fresh({"items": await api.database.write(work)})


async def _rules(api: Api) -> frozenset[str] | None:
    """The names of all rules, None where they cannot be read on this host."""
    try:
        return frozenset(each["diagnosis"] for each in await read_rules(api))
    except Problem:
        return None


def _refuse_unknown(
    connection: Connection, principal: Principal, items: Sequence[Item], rules: frozenset[str] | None
) -> None:
    """Raises Problem 404 that names each item which does not exist for this operator. A diagnosis may be shelved
    before it is ever raised, so for an item without a time the well has to exist, and a rule of that name."""
    errors = []
    for place, item in enumerate(items):
        has_sent, was_raised = alarms.knows(connection, item.well_id, item.diagnosis)
        there = principal.sees(item.well_id) and has_sent and (was_raised or rules is None or item.diagnosis in rules)
        if there and item.timestamp is not None:
            there = alarms.occurrence(connection, item.well_id, item.diagnosis, item.timestamp) is not None
        if not there:
            what = f"{item.diagnosis} at {item.well_id}" + (
                f" of {item.timestamp.isoformat()}" if item.timestamp else ""
            )
            errors.append({"parameter": f"items.{place}", "detail": f"there is no {what} that you may see"})
    if errors:
        raise Problem(
            404,
            "no-such-alarm",
            f"Nothing was done: {errors[0]['detail']}; /api/v1/alarms lists what there is.",
            errors=errors[:20],
        )


def _outcome(connection: Connection, item: Item, is_done: bool, changed: Sequence[Changed]) -> dict[str, Any]:
    state = changed[-1].state if changed else None
    if state is None and item.timestamp is not None:
        found = alarms.occurrence(connection, item.well_id, item.diagnosis, item.timestamp)
        state = found.state if found is not None else None
    return {
        "well_id": item.well_id,
        "diagnosis": item.diagnosis,
        "timestamp": item.timestamp.astimezone(UTC) if item.timestamp is not None else _newest(changed),
        "outcome": "done" if is_done else "unchanged",
        "state": state,
    }


def _newest(changed: Sequence[Changed]) -> datetime | None:
    """When the newest of them was raised, as far as Python's calendar can hold it."""
    return max((each.raised_at for each in changed if isinstance(each.raised_at, datetime)), default=None)
