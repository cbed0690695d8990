"""What `esp-ingest check` asks the broker: login, subscription, and whether messages really come."""

import secrets
from collections.abc import Iterator

from esp_ingest.commands.checks.delivery import DeliveryProbe
from esp_ingest.commands.checks.line import Line
from esp_ingest.config.settings import ConfigError, MqttSettings
from esp_ingest.interfaces import Clock
from esp_ingest.mqtt.source import MqttSource
from esp_ingest.service.metrics import Metrics

MOST_SECONDS = 4.0  # for the login and the subscription, whatever mqtt.connect_timeout_seconds allows the daemon
_SECOND_THOUGHTS_SECONDS = 1.5  # after a failure: MQTT 3.1.1 where the broker knows no 5
_DELIVERY_SECONDS = 3.0  # but no more than what is left of the whole
_WHOLE_SECONDS = 5.5
_POLL_SECONDS = 0.05


def look(settings: MqttSettings, clock: Clock) -> Iterator[Line]:
    """Connect and subscribe as the daemon would, under a client id of its own, so that the daemon's session is left
    alone. The broker forgets the probe's session with its connection, even if this process is killed. Blocks for less
    than six seconds, whatever the broker does not say."""
    started = clock.monotonic()
    address = f"{settings.host}:{settings.port}"
    own_id = f"{settings.client_id}-check-{secrets.token_hex(4)}"  # two at once must not end each other's connection
    limit = min(settings.connect_timeout_seconds, MOST_SECONDS)
    probe = settings.model_copy(update={"client_id": own_id, "share_group": "", "connect_timeout_seconds": limit})
    try:
        source = MqttSource(probe, clock, Metrics(), keep_session=False)
    except ConfigError as error:
        yield Line("broker", False, str(error))
        return
    source.start()
    try:
        _wait(source, clock)
        is_granted, protocol = source.subscribed, source.protocol
        failure = source.last_error or "no answer: check mqtt.host and mqtt.port"
    finally:
        source.close()
    if not is_granted:
        yield Line("broker", False, f"{address}: {failure}")
        return
    yield Line("broker", True, f"{address}, subscription granted")
    limit = min(_DELIVERY_SECONDS, _WHOLE_SECONDS - (clock.monotonic() - started))
    yield _delivery(settings, probe, clock, protocol, limit)


def _wait(source: MqttSource, clock: Clock) -> None:
    """Until the subscription is granted, or the broker has had its time."""
    deadline = clock.monotonic() + MOST_SECONDS + 2 * _POLL_SECONDS
    has_failed = False
    while not source.subscribed and clock.monotonic() < deadline:
        if source.last_error and not has_failed:
            has_failed = True
            deadline = min(deadline, clock.monotonic() + _SECOND_THOUGHTS_SECONDS)
        clock.sleep(_POLL_SECONDS)


def _delivery(settings: MqttSettings, probe: MqttSettings, clock: Clock, protocol: str, limit_seconds: float) -> Line:
    """See :mod:`esp_ingest.commands.checks.delivery`."""
    limit = max(limit_seconds, 0.1)
    probe = probe.model_copy(update={"connect_timeout_seconds": limit})
    own_topic = f"{settings.topic_root}/{settings.client_id}/check"
    return DeliveryProbe(probe, clock, protocol, own_topic, settings.share_group).look(limit)
