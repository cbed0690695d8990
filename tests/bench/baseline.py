"""The obvious design, kept as the yardstick: what one writes first with paho, pydantic and psycopg.

    python -m tests.bench.baseline --port 1883 --dsn postgresql://… --user U --password P

Stock paho callbacks into a queue, a pydantic model a message, a batch by 5 000 rows or 250 ms, text COPY with
write_row, manual acknowledgement after the commit. It is honest, not a straw man: same session, same window, same
batch, same table, nothing lost; a batch with a duplicate goes through a staging table. What it does not do:
out-of-range values into quality, a table of rejects (a bad message is logged and acknowledged), diagnostics, metrics,
a spool.
"""

import argparse
import logging
import queue
import signal
import threading
import time
from datetime import UTC, datetime
from typing import Any

import paho.mqtt.client as paho
import psycopg
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pydantic import AwareDatetime, BaseModel, Field, ValidationError

MAX_ROWS = 5_000
MAX_AGE_SECONDS = 0.25
RECEIVE_MAXIMUM = 20_000
_COLUMNS = "timestamp, well_id, flow_rate, pip, motor_current, motor_temp, vibration, vsd_frequency, gor, received_at"
_log = logging.getLogger("baseline")


class Reading(BaseModel):
    """One message of a controller."""

    well_id: str | None = None
    timestamp: AwareDatetime
    flow_rate: float | None = Field(None, ge=0, le=30_000)
    pip: float | None = Field(None, ge=0, le=6_000)
    motor_current: float | None = Field(None, ge=0, le=500)
    motor_temp: float | None = Field(None, ge=32, le=572)
    vibration: float | None = Field(None, ge=0, le=10)
    vsd_frequency: float | None = Field(None, ge=0, le=90)
    gor: float | None = Field(None, ge=0, le=50_000)


class Message(BaseModel):
    """A store-and-forward backlog."""

    readings: list[Reading]


Row = tuple[Any, ...]


def rows_of(topic: str, payload: bytes, received: datetime) -> list[Row]:
    """The rows of one message; raises ValidationError."""
    well = topic.split("/")[1]
    if payload.startswith(b"["):
        readings = Message.model_validate_json(b'{"readings":' + payload + b"}").readings
    else:
        readings = [Reading.model_validate_json(payload)]
    return [
        (
            r.timestamp,
            well,
            r.flow_rate,
            r.pip,
            r.motor_current,
            r.motor_temp,
            r.vibration,
            r.vsd_frequency,
            r.gor,
            received,
        )
        for r in readings
    ]


def store(connection: psycopg.Connection[Any], rows: list[Row]) -> None:
    """One transaction; a duplicate sends the batch through a staging table."""
    try:
        with connection.transaction(), connection.cursor().copy(f"COPY esp_telemetry ({_COLUMNS}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
    except psycopg.errors.UniqueViolation:
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE staging (LIKE esp_telemetry) ON COMMIT DROP")
            with cursor.copy(f"COPY staging ({_COLUMNS}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
            cursor.execute("INSERT INTO esp_telemetry SELECT * FROM staging ON CONFLICT DO NOTHING")


class Ingest:
    """The main loop."""

    def __init__(self, port: int, dsn: str, user: str, password: str) -> None:
        self._stopping = threading.Event()
        self._messages: queue.Queue[tuple[paho.MQTTMessage, datetime]] = queue.Queue()
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id="esp-ingest", protocol=paho.MQTTv5, manual_ack=True
        )
        self._client.username_pw_set(user, password)
        self._client.on_connect = lambda client, *_: client.subscribe("esp/+/telemetry", qos=1)
        self._client.on_message = lambda _client, _data, message: self._messages.put((message, datetime.now(UTC)))
        properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's
        properties.SessionExpiryInterval = 3_600
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        self._client.connect("127.0.0.1", port, clean_start=False, properties=properties)

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self._stopping.set())
        self._client.loop_start()
        while not self._stopping.is_set():
            self._turn()
        self._client.disconnect()
        self._client.loop_stop()

    def _turn(self) -> None:
        taken: list[paho.MQTTMessage] = []
        rows: list[Row] = []
        deadline = time.monotonic() + MAX_AGE_SECONDS
        while len(rows) < MAX_ROWS and (left := deadline - time.monotonic()) > 0:
            try:
                message, received = self._messages.get(timeout=left)
            except queue.Empty:
                break
            taken.append(message)
            try:
                rows += rows_of(message.topic, bytes(message.payload), received)
            except ValidationError as error:
                _log.debug("rejected: %s", error)
        if rows:
            store(self._connection, rows)
        for message in taken:
            self._client.ack(message.mid, message.qos)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.baseline")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--password", required=True)
    options = parser.parse_args()
    Ingest(options.port, options.dsn, options.user, options.password).run()


if __name__ == "__main__":
    main()
