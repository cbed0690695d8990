"""``esp-ingest simulate``: plays the controllers of a fleet, or replays a recording, over MQTT at QoS 1.

It behaves as a controller should: it speaks MQTT 5 (so that a broker that refuses a message says so), sends no more
messages at once than the broker allows, and ends only when each message has been acknowledged."""

import argparse
import heapq
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from esp_ingest.config.sentences import nearest
from esp_ingest.config.settings import ConfigError, MqttSettings, Settings
from esp_ingest.demo.fleet import Fault, FaultName, Fleet
from esp_ingest.demo.stop import Stop
from esp_ingest.errors import Error
from esp_ingest.interfaces import Clock
from esp_ingest.model import SIGNAL_NAMES, Readings
from esp_ingest.mqtt.client_setup import new_tls_context
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.text import rfc3339
from esp_ingest.telemetry import csv_recording as replay
from esp_ingest.telemetry.timestamps import parse_rfc3339

CONTROLLER_SIGNALS: tuple[str, ...] = SIGNAL_NAMES[:7]
"""What a simulated controller sends unless told otherwise: flow_rate … gor."""

# Messages under way. paho walks all of them at each acknowledgement: 12 000 messages took 23 s at 20 000, 5 s at 200.
_WINDOW = 200
_PATIENCE_SECONDS = 60.0  # without a single acknowledgement while some are due
_POLL_SECONDS = 0.001
_LATE_SECONDS = (5.0, 60.0)
_FUTURE_US = 3_600_000_000


class SimulatorError(Error):
    """The simulation failed. The message is one sentence that says what to do."""


class Message(NamedTuple):
    """A message to publish. ``due_seconds``: when, in seconds from the start."""

    due_seconds: float
    topic: str
    payload: bytes


@dataclass(slots=True)
class Totals:
    """Counts of what was sent wrong on purpose, and of what became of all messages. ``published`` counts messages,
    duplicates included."""

    published: int = 0
    acknowledged: int = 0
    refused: int = 0
    malformed: int = 0
    duplicates: int = 0
    late: int = 0
    future: int = 0
    odd: int = 0

    def line(self) -> str:
        """The totals in one line, for people."""
        return (
            f"published {self.published}, acknowledged {self.acknowledged}, refused {self.refused}; among them "
            f"malformed {self.malformed}, duplicates {self.duplicates}, late {self.late}, future {self.future}, "
            f"odd {self.odd}"
        )


@dataclass(frozen=True, slots=True)
class Trouble:
    """The shares, from 0 to 1, of messages that are sent wrong. An odd message is still a reading, but for one of
    its signals perhaps."""

    malformed: float = 0.0
    duplicates: float = 0.0
    late: float = 0.0
    future: float = 0.0
    odd: float = 0.0


def run_simulate(settings: Settings, arguments: argparse.Namespace, clock: Clock | None = None) -> int:
    """The command. Returns 0 when every message was acknowledged; raises SimulatorError, ReplayError or ConfigError.

    Reads from ``arguments``: wells, rate (Hz), duration (s), fault (list of names), fault_after (s), seed, csv, speed,
    keep_timestamps, malformed, duplicates, late, future; and, if there, odd."""
    with Stop() as stop:  # from here on Ctrl-C is answered with totals, while connecting too
        return _simulate(settings, arguments, clock or SystemClock(), stop)


def _simulate(settings: Settings, arguments: argparse.Namespace, clock: Clock, stop: Stop) -> int:
    totals = Totals()
    root = settings.mqtt.topic_root
    odd = getattr(arguments, "odd", 0.0)
    trouble = Trouble(arguments.malformed, arguments.duplicates, arguments.late, arguments.future, odd)
    if arguments.csv is not None:
        recording = replay.read(arguments.csv)
        messages = recorded_messages(recording, root, clock.now_us(), arguments.speed, arguments.keep_timestamps)
        print(f"replaying {len(recording)} rows of {arguments.csv} to {settings.mqtt.host}:{settings.mqtt.port}")
    else:
        faults = assign_faults(arguments.fault, arguments.wells, arguments.fault_after)
        fleet = Fleet(arguments.wells, arguments.seed, 1 / arguments.rate, faults, clock.now_us())
        samples = max(1, round(arguments.duration * arguments.rate))
        messages = fleet_messages(fleet, samples, root)
        print(
            f"{arguments.wells} wells, {arguments.rate:g} Hz, {arguments.duration:g} s to {settings.mqtt.host}:"
            f"{settings.mqtt.port}"
        )
        for fault in faults:
            print(f"{fleet.wells[fault.well or 0]}: {fault.name} after {fault.after_seconds:g} s")
    spoiled = spoil(messages, trouble, totals, arguments.seed)
    with Publisher(settings.mqtt, clock) as publisher:
        interrupted = not publish(spoiled, publisher, totals, clock, lambda: stop.asked)
    print(totals.line() + (" (interrupted)" if interrupted else ""))
    return 0


def assign_faults(names: Sequence[str], wells: int, after_seconds: float) -> list[Fault]:
    """The first fault goes to the first well, the second to the second, and so on in turn. Raises ConfigError."""
    known = [fault.value for fault in FaultName]
    for name in names:
        if name not in known:
            raise ConfigError(f"{name} is not a fault{nearest(name, known)}")
    return [Fault(FaultName(name), place % wells, after_seconds) for place, name in enumerate(names)]


# --- Messages


def fleet_messages(
    fleet: Fleet, samples: int, topic_root: str = "esp", signals: Sequence[str] = CONTROLLER_SIGNALS
) -> Iterator[Message]:
    """The messages of the next ``samples`` samples of a fleet, sorted by their timestamps."""
    rows = [SIGNAL_NAMES.index(name) for name in signals]
    topics = [f"{topic_root}/{well}/telemetry" for well in fleet.wells]
    start_us: int | None = None
    for block in fleet.run(samples):
        # Samples do not overlap, so ordering a block by time is ordering all of it.
        order = np.argsort(block.timestamp_us, kind="stable")
        for row in order.tolist():
            stamp = int(block.timestamp_us[row])
            start_us = stamp if start_us is None else start_us
            payload = _payload(block, row, rows, signals, stamp)
            yield Message((stamp - start_us) / 1e6, topics[int(block.well_index[row])], payload)


def _payload(block: Readings, row: int, rows: list[int], signals: Sequence[str], stamp: int) -> bytes:
    values = block.values[rows, row].tolist()
    members = "".join(f', "{name}": {value!r}' for name, value in zip(signals, values, strict=True) if value == value)
    return f'{{"timestamp": "{rfc3339(stamp)}", "well_id": "{block.well_of(row)}"{members}}}'.encode()


def recorded_messages(
    recording: replay.Recording, topic_root: str, now_us: int, speed: float, keep_timestamps: bool
) -> Iterator[Message]:
    """The messages of a recording at ``speed`` times real time (0: all at once). Unless timestamps are kept, they
    are moved so that the last row carries the time at which it is sent. If the replay is slower than real time, it
    is the first row that does, because the others would lie in the future."""
    span_us = recording.span_us
    sent_for_us = round(span_us / speed) if speed else 0
    end_us = now_us + (sent_for_us if not 0 < speed < 1 else span_us)
    shift_us = 0 if keep_timestamps or not len(recording) else end_us - recording.times_us[-1]
    for since_us, well, payload in recording.messages(shift_us):
        yield Message(since_us / 1e6 / speed if speed else 0.0, f"{topic_root}/{well}/telemetry", payload.encode())


def spoil(messages: Iterable[Message], trouble: Trouble, totals: Totals, seed: int) -> Iterator[Message]:
    """The same messages with trouble mixed in, each kind counted in ``totals``. At most one kind of trouble happens to
    a message.

    A late message keeps its timestamp and is sent 5 to 60 s after it, or at the end if that comes first."""
    chance = random.Random(seed)
    held: list[Message] = []
    shares = (trouble.malformed, trouble.duplicates, trouble.late, trouble.future, trouble.odd)
    last = 0.0
    for message in messages:
        last = message.due_seconds
        while held and held[0].due_seconds <= last:
            yield heapq.heappop(held)
        kind = _draw(chance, shares)
        if kind == 0:
            totals.malformed += 1
            yield message._replace(payload=chance.choice(_MALFORMED)(message.payload))
        elif kind == 1:
            totals.duplicates += 1
            yield message
            yield message
        elif kind == 2:
            totals.late += 1
            heapq.heappush(held, message._replace(due_seconds=last + chance.uniform(*_LATE_SECONDS)))
        elif kind == 3:
            totals.future += 1
            yield message._replace(payload=_an_hour_ahead(message.payload))
        elif kind == 4:
            totals.odd += 1
            yield message._replace(payload=chance.choice(_ODD)(message.payload))
        else:
            yield message
    while held:
        yield heapq.heappop(held)._replace(due_seconds=last)


def _draw(chance: random.Random, shares: tuple[float, ...]) -> int | None:
    drawn = chance.random()
    for kind, share in enumerate(shares):
        if drawn < share:
            return kind
        drawn -= share
    return None


_STAMP = len('{"timestamp": "')
_STAMP_END = _STAMP + len("2026-11-24T21:00:00.000000Z")

# Each of them is a reject, for a reason of its own.
_MALFORMED: tuple[Callable[[bytes], bytes], ...] = (
    lambda payload: payload[: len(payload) // 2],  # cut off: invalid_json
    lambda _: b"ERR 17",  # invalid_json
    lambda _: b"",  # empty_payload
    lambda payload: b'{"\xff' + payload[2:],  # invalid_utf8
    lambda _: b"[" * 200 + b"]" * 200,  # too_deep
    lambda _: b"17.5",  # not_an_object
    lambda payload: b"{" + payload[_STAMP_END + 3 :],  # missing_timestamp
    lambda payload: payload[: _STAMP_END - 1] + payload[_STAMP_END:],  # no offset: invalid_timestamp
    lambda payload: payload.replace(b'"well_id": "', b'"well_id": "x'),  # well_id_mismatch
    lambda payload: payload[:-1] + b', "motor_current": "50.1"}',  # a key twice: invalid_json
    lambda payload: payload.replace(b'"well_id": "', b'"well_id": false, "id": "'),  # wrong_type
    lambda payload: payload[: _STAMP_END + 1] + b', "status": "ok"}',  # no_signal
)

# Each of them is a reading: padded, its offset in another form, or with a value that costs no other signal.
_ODD: tuple[Callable[[bytes], bytes], ...] = (
    lambda payload: payload + b"\0",
    lambda payload: b"\xef\xbb\xbf" + payload,
    lambda payload: payload[: _STAMP_END - 1] + b"+0000" + payload[_STAMP_END:],
    lambda payload: payload[: _STAMP_END - 1] + b"+00" + payload[_STAMP_END:],
    lambda payload: payload[:-1] + b', "tag": "a\\u0000b"}',
    *(
        lambda payload, value=value: re.sub(rb'"motor_current": [0-9.]+', b'"motor_current": ' + value, payload)
        for value in (b"nan", b"-1.#IND00", b"-Infinity", b'"N/A"', b'""', b"false", b'"50.1"', b"[50.1]")
    ),
)


def _an_hour_ahead(payload: bytes) -> bytes:
    stamp = parse_rfc3339(payload[_STAMP:_STAMP_END].decode())
    return payload[:_STAMP] + rfc3339(stamp + _FUTURE_US).encode() + payload[_STAMP_END:]


# --- Publishing


def publish(
    messages: Iterable[Message],
    publisher: "Publisher",
    totals: Totals,
    clock: Clock,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Publish each message when it is due, and wait until all are acknowledged. Returns whether all were sent:
    Ctrl-C or ``stop()`` ends the sending early, and what was sent is still waited for. Raises SimulatorError."""
    started = clock.monotonic()
    finished = True
    try:
        for message in messages:
            while (ahead := started + message.due_seconds - clock.monotonic()) > 0 and not stop():
                clock.sleep(min(ahead, 0.2))
            if stop():
                finished = False
                break
            publisher.send(message)
    except KeyboardInterrupt:
        finished = False
    publisher.drain()
    totals.published, totals.acknowledged, totals.refused = publisher.sent, publisher.answered, publisher.refused
    if publisher.refused:
        raise SimulatorError(
            f"The broker refused {publisher.refused} of {publisher.sent} messages ({publisher.refusal}): "
            "check mqtt.username and what it may publish."
        )
    return finished


class Publisher:
    """A connection that publishes at QoS 1, within the window that the broker allows. Use it in a with-statement,
    which connects and disconnects."""

    def __init__(self, settings: MqttSettings, clock: Clock) -> None:
        self.sent = 0
        self.answered = 0
        self.refused = 0
        self.refusal = ""
        self._settings = settings
        self._clock = clock
        self._window = _WINDOW
        self._connected = False
        self._problem = ""
        protocol = MQTTProtocolVersion.MQTTv311 if settings.protocol == "3.1.1" else MQTTProtocolVersion.MQTTv5
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"esp-simulator-{os.getpid()}",
            protocol=protocol,
            transport=settings.transport,
        )
        self._client.max_inflight_messages_set(_WINDOW)
        self._client.max_queued_messages_set(0)
        self._client.reconnect_delay_set(1, 5)
        self._client.ws_set_options(path=settings.websocket_path)
        self._client.on_connect = self._on_connect
        self._client.on_publish = self._on_publish
        if settings.username:
            self._client.username_pw_set(settings.username, settings.password.get_secret_value())

    def __enter__(self) -> "Publisher":
        settings = self._settings
        try:
            if settings.tls:
                self._client.tls_set_context(new_tls_context(settings))
                self._client.tls_insecure_set(False)
            self._client.connect_timeout = settings.connect_timeout_seconds
            self._client.connect(settings.host, settings.port, settings.keepalive_seconds)
        except (OSError, ValueError) as error:
            raise self._unreachable(str(error)) from None
        self._client.loop_start()
        deadline = self._clock.monotonic() + settings.connect_timeout_seconds
        while not self._connected:
            if self._problem or self._clock.monotonic() > deadline:
                self._client.loop_stop()
                raise self._unreachable(self._problem or "no answer")
            self._clock.sleep(_POLL_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _unreachable(self, why: str) -> SimulatorError:
        settings = self._settings
        return SimulatorError(
            f"No connection to the broker at {settings.host}:{settings.port} ({why}): start it, or set mqtt.host, "
            "mqtt.port, mqtt.username and mqtt.password."
        )

    def send(self, message: Message) -> None:
        """Publish one message. Blocks while the window is full. Raises SimulatorError if the broker stops answering."""
        if self.sent - self.answered >= self._window:
            self._wait_until_under_way_is_below(self._window)
        info = self._client.publish(message.topic, message.payload, 1)
        if info.rc not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_NO_CONN):  # the latter is sent later
            raise SimulatorError(f"A message could not be sent: {paho.error_string(info.rc)}.")
        self.sent += 1

    def drain(self) -> None:
        """Wait until everything that was sent is acknowledged. Raises SimulatorError if the broker stops answering."""
        self._wait_until_under_way_is_below(1)

    def _wait_until_under_way_is_below(self, limit: int) -> None:
        answered, since = self.answered, self._clock.monotonic()
        while self.sent - self.answered >= limit:
            self._clock.sleep(_POLL_SECONDS)
            if self.answered != answered:
                answered, since = self.answered, self._clock.monotonic()
            elif self._clock.monotonic() - since > _PATIENCE_SECONDS:
                raise SimulatorError(
                    f"The broker has not acknowledged anything for {_PATIENCE_SECONDS:g} s, with "
                    f"{self.sent - self.answered} messages under way: look at the broker's log."
                )

    # -- Callbacks, in paho's network thread. Only that thread writes these counters.

    def _on_connect(self, _client: Any, _userdata: Any, _flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._problem = str(reason)
            return
        self._window = min(_WINDOW, getattr(properties, "ReceiveMaximum", None) or _WINDOW)
        self._connected = True

    def _on_publish(self, _client: Any, _userdata: Any, _mid: int, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.refused += 1
            self.refusal = str(reason)
        self.answered += 1
