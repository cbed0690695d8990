"""A daemon of real parts (pipeline, stage, spool, diagnostics, publisher) with broker, database and clock in memory."""

import copy
from collections.abc import Callable
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from esp_ingest.config.settings import Settings
from esp_ingest.diagnostics.publisher import Publisher
from esp_ingest.diagnostics.service import DiagnosticsService
from esp_ingest.ingest.pipeline import Pipeline
from esp_ingest.ingest.writer_stage import Stage
from esp_ingest.mqtt.client_setup import SessionRecord
from esp_ingest.mqtt.publishing_connection import publisher_client_id
from esp_ingest.service.metrics import Metrics
from esp_ingest.store.spool.spool import Spool
from esp_ingest.telemetry.decode import Decoder
from tests.support.fake_clock import FakeClock
from tests.support.fake_diagnostics import FakeDiagnosticsStore, one_rule
from tests.support.fake_publishing import FakeConnection, StoreOutbox
from tests.support.fake_source import BrokerSession, FakeSource
from tests.support.fake_store import FakeStore
from tests.support.inline_stage import InlineQueue

MOST_WAITS = 30
READINGS_FIRST = True


def value_of(metric: MetricWrapperBase) -> float:
    """The sum over its labels. A walk over the whole registry would take a millisecond."""
    samples = (sample for family in metric.collect() for sample in family.samples)
    return float(sum(sample.value for sample in samples if not sample.name.endswith("_created")))


class Crash(BaseException):
    """The process dies here: nothing after this line runs, memory is gone, disk and database stay."""


class GivesUp(BaseException):
    """The inline stage would wait for the database for ever: the test goes on as if the process were killed."""


class CrashingStore(FakeStore):
    """Dies at a write when told to: before the transaction, or after its commit."""

    crash = "none"

    def begin(self, *args, **options):  # type: ignore[no-untyped-def]
        if self.crash == "before":
            self.crash = "none"
            raise Crash
        return super().begin(*args, **options)

    def commit(self, *args, **options):  # type: ignore[no-untyped-def]
        crash, self.crash = self.crash, "none"
        if crash == "midway":  # the readings are on their way, the rules have run
            raise Crash
        result = super().commit(*args, **options)
        if crash == "after":
            raise Crash
        return result

    def of_another_session(self) -> "CrashingStore":
        """The same tables, for a daemon whose session is another one."""
        other = copy.copy(self)
        other.origins, other.messages, other.failures = {}, 0, []
        return other


class MqttClients:
    """Who is connected to the broker. A client ends the connection of the one before with its id (MQTT-3.1.4-3)."""

    def __init__(self) -> None:
        self._ends: dict[str, Callable[[], None]] = {}

    def connect(self, client_id: str, end: Callable[[], None]) -> None:
        former = self._ends.get(client_id)
        self._ends[client_id] = end
        if former is not None and former != end:
            former()


class _Link(FakeConnection):
    """The publisher's connection, under the client id that the real one takes."""

    def __init__(self, clock: FakeClock, clients: MqttClients, client_id: str) -> None:
        super().__init__(clock)
        self._clients, self._client_id = clients, publisher_client_id(client_id)

    def connect(self) -> bool:
        connections = self.connections
        is_there = super().connect()
        if self.connections > connections:
            self._clients.connect(self._client_id, self.hang_up)
        return is_there


class FakeDaemon:
    """``folder`` is its spool's, None without one. Its parts are new with each process; see :meth:`restart`."""

    def __init__(
        self,
        settings: Settings,
        store: CrashingStore,
        session: BrokerSession,
        clients: MqttClients,
        clock: FakeClock,
        folder: Path | None,
        *,
        has_diagnostics: bool,
    ) -> None:
        self._settings, self._clients, self._clock, self._folder = settings, clients, clock, folder
        self.store, self.session = store, session
        self.record = SessionRecord(settings.mqtt, None)
        self._has_diagnostics = has_diagnostics
        self.restarts = 0
        self.start()

    def start(self) -> None:
        settings, clock = self._settings, self._clock
        self.metrics = Metrics()
        spool = settings.spool
        self.spool = None if self._folder is None else Spool(self._folder, spool.max_bytes, spool.segment_bytes)
        self.diagnostics: DiagnosticsService | None = None
        if self._has_diagnostics:
            reader = FakeDiagnosticsStore(self.store)
            self.diagnostics = DiagnosticsService(
                one_rule, reader, clock, self.metrics, lambda: self.source.subscribed, readings_first=READINGS_FIRST
            )
        queue = InlineQueue(self._wait_for_database)
        self.stage = Stage(
            settings,
            self.store,
            self.spool,
            self.diagnostics,
            Decoder(settings.telemetry, "esp").decode,
            clock,
            self.metrics,
            queue,
        )
        queue.stage = self.stage
        self.link = _Link(clock, self._clients, settings.mqtt.client_id)
        self.outbox = StoreOutbox(self.store, settings.mqtt.client_id, clock)
        self.publisher = Publisher(self.outbox, self.link, "esp", clock, self.metrics)
        self._waits = 0
        self._connect_source()
        self.pipeline = Pipeline(self.source, queue, clock, self.metrics, settings.batch, settings.service)

    def _connect_source(self) -> None:
        self._clients.connect(self._settings.mqtt.client_id, lambda: None)  # ends whoever had it
        self.source = FakeSource(self._clock, self.session, self.record)
        self._clients.connect(self._settings.mqtt.client_id, self.source.disconnect)

    def _wait_for_database(self, seconds: float) -> None:
        self._clock.sleep(seconds)
        self._waits += 1
        if self._waits > MOST_WAITS:
            raise GivesUp

    @property
    def is_busy(self) -> bool:
        """It holds messages, in memory or in the spool, or diagnoses that are not stored."""
        waiting = (self.metrics.diagnostics_rows_waiting, self.metrics.diagnostics_wells_waiting)
        if self.diagnostics is not None and (self.diagnostics.trouble or any(map(value_of, waiting))):
            return True
        return self.pipeline.held or self.stage.spooling or any(self.source.buffered())

    def reconnect(self, *, session_kept: bool = True) -> None:
        """Its connection is a new one, and whoever had the client id loses it."""
        self._clients.connect(self._settings.mqtt.client_id, self.source.disconnect)
        self.source.break_connection(session_kept=session_kept)

    def restart(self) -> None:
        """kill -9 and a start: memory and connections are gone; disk, database and the broker's session stay."""
        self.restarts += 1
        self.close()
        self.outbox.process_ended()
        self.source.disconnect()
        self.session.reconnected()
        self.start()

    def guarded(self, step: Callable[[], object]) -> None:
        """Run a step of the process; if it dies in it, it is started again."""
        self._waits = 0
        try:
            step()
        except (Crash, GivesUp):
            self.restart()

    def turn(self, seconds: float = 0.2) -> None:
        """One turn of the pipeline."""
        self.guarded(lambda: self.pipeline.run_once(seconds))

    def idle(self) -> None:
        """What the stage does between batches."""
        self.guarded(self.stage.idle)

    def drain(self) -> None:
        """SIGTERM and a new start."""
        turns = iter(range(200))
        self.guarded(lambda: self.pipeline.drain(lambda: next(turns, None) is None) and self.stage.finish())
        self.restart()

    def close(self) -> None:
        """Close the files of the spool."""
        if self.spool is not None:
            self.spool.close()
