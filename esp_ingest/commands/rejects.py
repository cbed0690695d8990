"""`esp-ingest rejects`: look at what was rejected, and put it through the same path again once the reason is mended.

A replay decodes with today's settings and writes through the same store, whose keys make it exactly once: write first,
mark after. What is rejected again stays as it is.

Whether a timestamp lies too far ahead or back is judged by when the message was received, with two exceptions: a clock
that stood before 2000 was not set, so that the present decides; and the operator may say that the timestamps are right
(``--trust-timestamps``).
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from esp_ingest.commands.arguments import AddAction, count
from esp_ingest.config.settings import ConfigError, Settings
from esp_ingest.interfaces import Store
from esp_ingest.model import Delivery, RejectReason
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.text import rfc3339
from esp_ingest.store import rejects as stored_rejects
from esp_ingest.store.connection import Connection, connect
from esp_ingest.store.rejects import RejectFilter, StoredReject
from esp_ingest.store.write.writer import PostgresStore
from esp_ingest.telemetry.decode import Decoder
from esp_ingest.telemetry.timestamps import parse_moment

_SHOWN_PAYLOAD_CHARACTERS = 4_000
_ANY_TIME_SECONDS = 10_000 * 366 * 86_400.0  # longer than the calendar of timestamps
_CLOCK_NOT_SET_US = 946_684_800_000_000  # 2000-01-01T00:00:00Z


def add_arguments(add_action: AddAction) -> None:
    """The actions list, replay and show."""
    for name, text in (
        ("list", "one line for each reject, newest first"),
        ("replay", "put them through the pipeline again"),
    ):
        action = add_action(name, text)
        action.add_argument("--reason", help="only this reason, such as invalid_json (docs/payloads.md has all)")
        action.add_argument("--topic", help="only this topic; * stands for any text")
        action.add_argument("--since", metavar="TIME", help="received at or after, RFC 3339 or an age such as 2h or 7d")
        action.add_argument("--until", metavar="TIME", help="received before")
        most = 100 if name == "list" else 1_000_000
        action.add_argument("--limit", type=count, default=most, metavar="N", help=f"at most so many ({most})")
        if name == "replay":
            action.add_argument("--id", help="only this reject, as printed by list")
            action.add_argument("--dry-run", action="store_true", help="say what would become of them, store nothing")
            action.add_argument(
                "--trust-timestamps", action="store_true", help="take timestamps as right, however far ahead or old"
            )
    show = add_action("show", "one reject in full")
    show.add_argument("id", help="as printed by list")


def run(settings: Settings, arguments: argparse.Namespace) -> Iterator[str]:
    """The lines to print. Raises ConfigError for a senseless filter, StoreUnavailable without a database."""
    which = RejectFilter() if arguments.action == "show" else _filter(arguments, SystemClock().now_us())
    with connect(settings.database) as connection:
        if arguments.action == "show":
            yield from _show(connection, arguments.id)
        elif arguments.action == "list":
            yield from _list(connection, which, arguments.limit)
        else:
            yield from _replay(settings, connection, which, arguments)


def _filter(arguments: argparse.Namespace, now_us: int) -> RejectFilter:
    if arguments.reason is not None and arguments.reason not in set(RejectReason):
        raise ConfigError(f"{arguments.reason!r} is no reason: known are {', '.join(RejectReason)}.")
    try:
        since_us = parse_moment(arguments.since, now_us) if arguments.since else None
        until_us = parse_moment(arguments.until, now_us) if arguments.until else None
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    reason = RejectReason(arguments.reason) if arguments.reason else None
    return RejectFilter(reason=reason, topic=arguments.topic, since_us=since_us, until_us=until_us)


def _list(connection: Connection, which: RejectFilter, limit: int) -> Iterator[str]:
    found = stored_rejects.list_rejects(connection, which, limit)
    for each in found:
        mark = "replayed" if each.replayed_us is not None else "-"
        yield f"{each.id}  {_time(each)}  {each.reject.reason:<20} {mark:<8} {_topic(each)}  {each.reject.detail}"
    more = f", the newest {limit}: narrow it with --reason, --topic, --since or --until" if len(found) == limit else ""
    yield f"{len(found)} rejects{more}"


def _find(connection: Connection, reject_id: str) -> StoredReject | None:
    try:
        return stored_rejects.show_reject(connection, reject_id)
    except ValueError as error:
        raise ConfigError(f"{error}.") from None


def _show(connection: Connection, reject_id: str) -> Iterator[str]:
    found = _find(connection, reject_id)
    if found is None:
        raise LookupError(f"There is no reject {reject_id}: take an id from `esp-ingest rejects list`.")
    reject = found.reject
    yield f"id          {found.id}"
    yield f"received    {_time(found)}{' (redelivered)' if reject.redelivered else ''}"
    yield f"topic       {_topic(found)}"
    yield f"reason      {reject.reason}: {reject.detail}"
    yield f"item        {reject.item}"
    when = rfc3339(found.replayed_us) if found.replayed_us is not None else "no"
    yield f"replayed    {when}{f' ({found.replay_outcome})' if found.replay_outcome else ''}"
    yield f"payload     {len(reject.payload)} bytes"
    shown = reject.payload[:_SHOWN_PAYLOAD_CHARACTERS].decode("utf-8", "backslashreplace")
    yield shown.encode("unicode_escape").decode()


def _replay(
    settings: Settings, connection: Connection, which: RejectFilter, arguments: argparse.Namespace
) -> Iterator[str]:
    store = PostgresStore(settings.database, settings.mqtt.topic_root)
    telemetry = settings.telemetry
    if arguments.trust_timestamps:
        telemetry = telemetry.model_copy(update={"max_ahead_seconds": _ANY_TIME_SECONDS, "max_age_days": 0.0})
    replayer = Replayer(Decoder(telemetry, settings.mqtt.topic_root), store, connection, arguments.dry_run)
    try:
        outcomes = replayer.replay(islice(_chosen(connection, which, arguments.id), arguments.limit))
    finally:
        store.close()
    for outcome, times in sorted(outcomes.items()):
        yield f"{times} {outcome}"
    yield f"{outcomes.total()} rejects {'looked at' if arguments.dry_run else 'replayed'}"


def _chosen(connection: Connection, which: RejectFilter, reject_id: str | None) -> Iterator[StoredReject]:
    if reject_id is None:
        yield from stored_rejects.pending_rejects(connection, which)
        return
    found = _find(connection, reject_id)
    if found is not None and found.replayed_us is None:
        yield found


class Replayer:
    """Puts rejects through decode and store again, one at a time: they are few, and each has its own outcome."""

    def __init__(self, decoder: Decoder, store: Store, connection: Connection, dry_run: bool) -> None:
        self._decoder = decoder
        self._store = store
        self._connection = connection
        self._dry_run = dry_run
        self._clock = SystemClock()

    def replay(self, chosen: Iterator[StoredReject]) -> Counter[str]:
        """How many went which way. Raises StoreUnavailable where the database goes away; what was done stays done."""
        outcomes: Counter[str] = Counter()
        for each in chosen:
            outcomes[self._one(each)] += 1
        return outcomes

    def _one(self, stored: StoredReject) -> str:
        reject = stored.reject
        received_us = reject.received_us if reject.received_us >= _CLOCK_NOT_SET_US else self._clock.now_us()
        delivery = Delivery(reject.topic, reject.payload, 1, 0, -1, received_us, redelivered=True)
        decoded = self._decoder.decode([delivery])
        if decoded.rejects and not len(decoded.readings):
            return f"rejected again: {decoded.rejects[0].reason}"
        if self._dry_run:
            return "would be stored"
        # Of a whole array that was refused, bad items become rejects of their own.
        result = self._store.write(decoded.readings, decoded.rejects, ())
        if result.refused:
            return f"rejected again: {result.refused[0].reason}"
        outcome = "stored" if result.written else "stored already"
        stored_rejects.mark_replayed(self._connection, stored, self._clock.now_us(), outcome)
        self._connection.commit()
        return outcome


def _time(stored: StoredReject) -> str:
    return rfc3339(stored.reject.received_us, digits="milliseconds")


def _topic(stored: StoredReject) -> str:
    return stored.reject.topic.decode("utf-8", "backslashreplace").encode("unicode_escape").decode()
