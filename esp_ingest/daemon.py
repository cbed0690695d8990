"""Wiring and lifetime of the daemon: start order, signals, drain order.

The health port answers first, before anything heavy is loaded; broker and database may come whenever they like.
"""

import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from esp_ingest.config.settings import ConfigError, Settings
from esp_ingest.interfaces import Clock
from esp_ingest.model import Decoded, Delivery
from esp_ingest.service import health as conditions
from esp_ingest.service import lifetime, memory, systemd
from esp_ingest.service import log as logs
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.health import Health
from esp_ingest.service.http import HttpServer
from esp_ingest.service.metrics import Metrics

if TYPE_CHECKING:
    from esp_ingest.diagnostics.follower import Follower
    from esp_ingest.diagnostics.publisher import Publisher
    from esp_ingest.diagnostics.service import DiagnosticsService
    from esp_ingest.store.spool.spool import SetAside, Spool
    from esp_ingest.telemetry.decode import Decoder

log = logging.getLogger(__name__)

_COLLECT_EVERY = 200_000  # new container objects between two collections of the youngest generation
_SWITCH_SECONDS = 0.001  # a health check waits so long at most for the interpreter, not the default five times that
_LAST_PUBLISH_SECONDS = 3.0  # after the last batch; what stays in the outbox goes out after the next start
_QUIET_SECONDS = 5.0  # who leaves a share group for good waits so long for the last message that was dealt to it
_OBSERVE_SECONDS = 0.5  # how often gauges, health and the watchdog are brought up to date


def run(settings: Settings, *, retire: bool = False) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code: 0 when all that was held is safe, 1 otherwise.

    ``retire``: take what the session and the spool hold, nothing new, and when that is done end the session, remove the
    spool's files and return."""
    logs.configure(settings.log)
    sys.setswitchinterval(_SWITCH_SECONDS)
    clock = SystemClock()
    signals = Signals()
    signals.install()
    metrics = Metrics()
    health = Health(clock, settings.service)
    http = HttpServer(settings.http, health, metrics)
    http.start()
    try:
        daemon = Daemon(settings, clock, metrics, health, signals)
        log.info("started", extra={"http_port": http.port, "pid": os.getpid()})
        _judge_memory(settings)
        return daemon.retire() if retire else daemon.run()
    finally:
        http.stop()


class Signals:
    """The first signal asks, a second one kills; a supervisor's request (lifetime.ASK) only asks. SIGHUP asks for the
    rules to be read again."""

    def __init__(self) -> None:
        self.stopping = False
        self.reload = False

    def install(self) -> None:
        """Take the signals over. Main thread only."""
        for number in lifetime.REQUESTS:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._reload)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.stopping and number == lifetime.ASK:
            return
        if self.stopping:
            lifetime.say(
                "A second signal ended the daemon before it had drained: what is not acknowledged comes again after "
                "the next start."
            )
            os._exit(1)
        self.stopping = True
        log.info("stopping", extra={"signal": signal.Signals(number).name})

    def _reload(self, _number: int, _frame: FrameType | None) -> None:
        self.reload = True


class Daemon:
    """The parts of a running daemon and the order in which they start and end."""

    def __init__(self, settings: Settings, clock: Clock, metrics: Metrics, health: Health, signals: Signals) -> None:
        # Loaded here, after the health port answers: together they take a third of a second.
        from esp_ingest.ingest.pipeline import BatchQueue, Pipeline
        from esp_ingest.ingest.writer_stage import Stage
        from esp_ingest.ingest.writer_thread import WriterThread
        from esp_ingest.mqtt.client_setup import Topics, session_name
        from esp_ingest.mqtt.source import MqttSource
        from esp_ingest.service.certificates import CertificateWatch
        from esp_ingest.store.connection import conninfo
        from esp_ingest.store.presence import Presence
        from esp_ingest.store.write.newest import WellNewest
        from esp_ingest.store.write.redelivery import RejectWriter
        from esp_ingest.store.write.writer import PostgresStore
        from esp_ingest.telemetry.decode import Decoder

        conninfo(settings.database)  # one that is no connection string stays so: DsnError now, not an outage
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._health = health
        self._signals = signals
        spool_settings = settings.spool
        self._spool = self._open_spool()
        session = session_name(settings.mqtt)
        self._store = PostgresStore(
            settings.database,
            settings.mqtt.topic_root,
            publish=settings.diagnostics.publish,
            beat=lambda: health.beat("writer"),
            rejects=RejectWriter(session, settings.mqtt.receive_maximum),
            presence=Presence(session, Topics(settings.mqtt).wanted, clock),
            newest=WellNewest(clock),
        )
        state_folder = spool_settings.folder() if spool_settings.enabled else None
        self._source: MqttSource = MqttSource(settings.mqtt, clock, metrics, state_folder)
        self._follower: Follower | None = None
        self._diagnostics = self._build_diagnostics()
        self._queue: BatchQueue = BatchQueue()
        self._stage: Stage = Stage(
            settings,
            self._store,
            self._spool,
            self._diagnostics,
            _decode_with(Decoder(settings.telemetry, settings.mqtt.topic_root)),
            clock,
            metrics,
            self._queue,
            beat=lambda: health.beat("writer"),
        )
        self._writer: WriterThread = WriterThread(self._stage, self._queue)
        self._pipeline = Pipeline(
            self._source,
            self._queue,
            clock,
            metrics,
            settings.batch,
            settings.service,
            beat=self._beat,
        )
        self._publisher = self._build_publisher()
        self._certificates = CertificateWatch(certificate_files(settings), metrics)
        self._next_observation = 0.0
        self._has_started_others = False  # publisher and follower, whose connections must not take the writer's place
        self._notify = systemd.Notifier()

    def _open_spool(self) -> "Spool | None":
        """None where it is switched off. What an earlier start left in it nobody drains then, and that is said."""
        from esp_ingest.store.spool.spool import Spool, SpoolUnusable, orphans

        settings = self._settings.spool
        if settings.enabled:
            self._metrics.spool_limit_bytes.set(settings.max_bytes)
            try:
                return Spool(settings.folder(), settings.max_bytes, settings.segment_bytes, self._note_set_aside)
            except SpoolUnusable as error:
                raise ConfigError(str(error)) from None
        left = orphans(settings.folder())
        self._metrics.spool_orphaned_files.set(len(left))
        if left:
            fields = {"folder": str(settings.folder()), "files": len(left)}
            log.error(
                "spool switched off with acknowledged messages in it: run with it once to store them", extra=fields
            )
        return None

    def _build_diagnostics(self) -> "DiagnosticsService | None":
        """The rules on this daemon's batches. In a share group it does not see a well whole: there, a follower."""
        settings = self._settings
        if not settings.diagnostics.enabled:
            self._health.set(conditions.DIAGNOSTICS, True, "switched off by diagnostics.enabled")
            return None
        from esp_ingest.diagnostics.language.rules import RulesError

        try:
            service = self._new_service(lambda: None)
        except RulesError as error:
            raise ConfigError(str(error)) from None
        if settings.mqtt.share_group:
            self._follower = self._build_follower()
            return None
        self._metrics.diagnostics_running.set(1)
        return service

    def _new_service(self, replay_until: Callable[[], int | None]) -> "DiagnosticsService":
        """Raises RulesError."""
        from esp_ingest.diagnostics.language.rules_file import load
        from esp_ingest.diagnostics.pump_limits import with_pumps
        from esp_ingest.diagnostics.service import DiagnosticsService
        from esp_ingest.store.diagnostics.checkpoints import PostgresDiagnosticsStore

        settings = self._settings
        return DiagnosticsService(
            lambda: with_pumps(load(settings.diagnostics.rules_path()), settings.pumps),
            PostgresDiagnosticsStore(settings.database, settings.diagnostics.publish, lambda: self._store.connected),
            self._clock,
            self._metrics,
            lambda: self._source.subscribed,
            replay_until,
            settings.diagnostics.max_wells,
            readings_first=not settings.mqtt.share_group,
        )

    def _build_follower(self) -> "Follower":
        """The rules of a share group, on connections of their own (decision 0009)."""
        from esp_ingest.diagnostics.follower import Follower
        from esp_ingest.store.diagnostics.leader import PostgresFeed
        from esp_ingest.store.write.writer import PostgresStore

        settings = self._settings
        store = PostgresStore(settings.database, settings.mqtt.topic_root, publish=settings.diagnostics.publish)
        feed = PostgresFeed(settings.database, settings.mqtt.client_id)
        return Follower(self._new_service, store, feed, self._clock, self._metrics, self._oldest_uncommitted_us)

    def _oldest_uncommitted_us(self) -> int | None:
        """When the oldest message was received that is in no commit yet, µs; None without one. From any thread.

        The buffer is asked before the spool: what goes from one to the other is in both for a moment."""
        now_us, age_seconds = self._clock.now_us(), self._source.oldest_unacked_seconds()
        in_buffer_us = [now_us - round(age_seconds * 1e6)] if age_seconds else []
        in_spool_us = None if self._spool is None else self._spool.oldest_us
        return min([*in_buffer_us, *([] if in_spool_us is None else [in_spool_us])], default=None)

    def _build_publisher(self) -> "Publisher | None":
        settings = self._settings
        if not (settings.diagnostics.enabled and settings.diagnostics.publish):
            return None
        from esp_ingest.diagnostics.publisher import Publisher
        from esp_ingest.mqtt.publishing_connection import PublishingConnection, publisher_client_id
        from esp_ingest.store.diagnostics.outbox import PostgresOutbox

        clock, metrics = self._clock, self._metrics
        holder = publisher_client_id(settings.mqtt.client_id)
        outbox = PostgresOutbox(settings.database, holder, lambda: self._store.connected)
        connection = PublishingConnection(settings.mqtt, clock, metrics, lambda: self._source.protocol)
        return Publisher(outbox, connection, settings.mqtt.topic_root, clock, metrics)

    def retire(self) -> int:
        """Leave for good: see :func:`run`."""
        self._source.stop_subscribing()
        self._quiet_since = self._clock.monotonic()
        code = self.run(self._has_left)
        if code or self._signals.stopping:
            return code
        if self._stage.spooling:
            log.error("the spool is not empty yet; it is tried again at the next start")
            return 1
        if not self._source.forget_session():
            log.error("the session could not be ended at the broker; it is tried again at the next start")
            return 1
        if self._spool is not None:
            _remove_spool(self._spool.folder)
        log.info("left for good")
        return 0

    def _has_left(self) -> bool:
        """The broker deals nothing more to this session, and for a while there has been nothing of it to store."""
        now = self._clock.monotonic()
        if not self._source.has_left or self._source.unacked() or self._stage.spooling:
            self._quiet_since = now
        return now - self._quiet_since >= _QUIET_SECONDS

    def run(self, is_over: Callable[[], bool] = lambda: False) -> int:
        """Start, run the pipeline in this thread until it is over or a signal asks to stop, and drain."""
        _spare_the_collector()
        self._writer.start()
        self._source.start()
        try:
            self._pipeline.run(lambda: self._signals.stopping or is_over())
            return 0 if self._drain() else 1
        except Exception:
            log.exception("the pipeline ended")
            lifetime.say("The daemon ended because of an error that its log describes: please report it.")
            return 1

    def _drain(self) -> bool:
        """Refuse new work, make safe what is held, acknowledge it, leave the session on the broker."""
        deadline = self._clock.monotonic() + self._settings.service.drain_seconds
        self._notify.stopping()
        self._source.stop_receiving()
        drained = self._pipeline.drain(lambda: self._clock.monotonic() >= deadline)
        left = max(deadline - self._clock.monotonic(), 0.5)
        ended = self._writer.close(left)
        if self._follower is not None:
            self._follower.stop(_LAST_PUBLISH_SECONDS)
        if self._publisher is not None:
            self._publisher.stop(_LAST_PUBLISH_SECONDS)
        self._source.close()
        if ended:
            self._store.end()
            if self._diagnostics is not None:
                self._diagnostics.close()
            if self._spool is not None:
                self._spool.close()
        if drained and ended:
            log.info("stopped")
            return True
        limit = self._settings.service.drain_seconds
        fields = {"drain_seconds": limit, "unacknowledged": self._source.unacked(), "writer_ended": ended}
        log.error("drain deadline passed; what is unacknowledged comes again after the next start", extra=fields)
        lifetime.say(
            f"The drain took longer than service.drain_seconds ({limit:g} s) and was given up: what is not "
            "acknowledged comes again after the next start."
        )
        return False

    def _beat(self) -> None:
        """Called by the pipeline at every turn."""
        self._health.beat("pipeline")
        if self._signals.reload:
            self._signals.reload = False
            for rules in (self._diagnostics, self._follower):
                if rules is not None:
                    rules.ask_reload()
        now = self._clock.monotonic()
        if now >= self._next_observation:
            self._next_observation = now + _OBSERVE_SECONDS
            self._observe()

    def _observe(self) -> None:
        """Bring gauges, health conditions and the watchdog up to date."""
        source, metrics, health = self._source, self._metrics, self._health
        messages, size = source.buffered()
        oldest = source.oldest_unacked_seconds()
        metrics.buffer_messages.set(messages)
        metrics.buffer_bytes.set(size)
        metrics.unacked_messages.set(source.unacked())
        metrics.oldest_unacked_seconds.set(oldest)
        self._certificates.look(self._clock.monotonic())
        stuck_after = self._settings.service.stuck_after_seconds
        subscribed = "subscribed" if source.subscribed else source.last_error or "connecting"
        health.set(conditions.MQTT, source.subscribed, subscribed)
        moves = source.network_thread_alive() and source.network_idle_seconds() < stuck_after
        health.set("mqtt_thread", moves, "moving" if moves else "the network thread has ended or does not move")
        health.set(conditions.UNACKED, oldest < stuck_after, f"oldest unacknowledged message is {oldest:.1f} s old")
        trouble = self._stage.database_detail
        health.set(conditions.DATABASE, trouble is None, trouble or "reachable")
        if self._settings.database.skip_init:
            health.set(conditions.SCHEMA, True, "not checked, as database.skip_init says")
        elif self._store.schema_checked:
            health.set(conditions.SCHEMA, True, "checked")
        full = self._stage.spool_detail
        health.set(conditions.SPOOL, full is None, full or "takes messages")
        health.set(
            "writer_thread", self._writer.alive, "there" if self._writer.alive else "the writer thread has ended"
        )
        if not self._has_started_others and self._store.connected:
            self._has_started_others = True
            for other in (self._publisher, self._follower):
                if other is not None:
                    other.start()
        for name, thread in (("publisher", self._publisher), ("follower", self._follower)):
            if thread is not None and self._has_started_others:
                there = thread.alive
                health.set(f"{name}_thread", there, "there" if there else f"the {name} thread has ended")
        if self._diagnostics is not None:
            waits = self._diagnostics.trouble or self._store.without_diagnostics
            detail = f"readings are stored, diagnoses wait: {waits}" if waits else "evaluated with each batch"
            health.set(conditions.DIAGNOSTICS, True, detail)
        if self._follower is not None:
            leads = "this daemon runs the rules of the share group" if self._follower.leads else "another may lead"
            health.set(conditions.DIAGNOSTICS, True, leads)
        is_ready, checks = health.ready()
        metrics.ready.set(is_ready)
        for loop, seconds in health.idle_seconds().items():
            metrics.loop_idle_seconds.labels(loop=loop).set(seconds)
        if health.live()[0]:
            self._notify.watchdog()
        why = "; ".join(str(check["detail"]) for check in checks.values() if not check["ok"])
        self._notify.ready_once(is_ready, why)

    def _note_set_aside(self, report: "SetAside") -> None:
        self._metrics.spool_set_aside.inc(max(report.lost, 1))
        log.error("spool damage set aside", extra=asdict(report))


def certificate_files(settings: Settings) -> dict[str, Path]:
    """Each file of certificates by the name that its series has; of the database those of the DSN or of libpq's
    environment."""
    from psycopg.conninfo import conninfo_to_dict

    from esp_ingest.store.connection import conninfo

    mqtt, database = settings.mqtt, conninfo_to_dict(conninfo(settings.database))
    named: dict[str, object] = {"mqtt.ca_file": mqtt.ca_file, "mqtt.cert_file": mqtt.cert_file} if mqtt.tls else {}
    for key in ("sslrootcert", "sslcert"):
        named[f"database {key}"] = database.get(key) or os.environ.get(f"PG{key.upper()}")
    return {name: Path(str(path)) for name, path in named.items() if path and path != "system"}


def _judge_memory(settings: Settings) -> None:
    """Say at the start whether what the settings allow fits into the cgroup's limit. It runs either way: the sum is
    of worst cases, and a daemon that warns is better than none."""
    judged = memory.judge(settings, memory.resident_bytes(), memory.cgroup_limit())
    if judged.fits is False:
        log.warning("memory may not suffice", extra={"detail": judged.sentence})
    else:
        log.info("memory is bounded", extra={"detail": judged.sentence})


def _remove_spool(folder: Path) -> None:
    """What an emptied spool and an ended session leave. Damaged files that were set aside stay, and the folder then."""
    for path in (*folder.glob("mqtt-session-*"), *folder.glob("segment-*"), folder / "lock"):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _spare_the_collector() -> None:
    """What is loaded now stays for ever, and what a batch makes dies by reference count: cycles are rare here. With
    the default threshold the collector would look at every live delivery once in 700 new ones."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, 10, 10)


def _decode_with(decoder: "Decoder") -> Callable[[list[Delivery]], Decoded]:
    def decode(deliveries: list[Delivery]) -> Decoded:
        fallbacks = decoder.fallbacks
        decoded = decoder.decode(deliveries)
        if decoder.fallbacks != fallbacks:
            log.error("batch decoded one by one, please report", extra={"messages": len(deliveries)})
        return decoded

    return decode
