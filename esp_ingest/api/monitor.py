"""What the daemon says about itself, read over its own HTTP port: its health and some of its metrics. It is asked at
most once in four seconds, however many clients want to know. The daemon knows nothing about the API."""

import asyncio
import logging
import re
from typing import Any

import httpx

from esp_ingest.config.settings import Settings
from esp_ingest.interfaces import Clock

log = logging.getLogger(__name__)

_SHOWN_SECONDS = 4.0
_TIMEOUT_SECONDS = 2.0
_MOST_BYTES = 4_194_304
# Counters become rates where two readings of them are there.
FIGURES = (
    "messages_received_total", "messages_acked_total", "readings_written_total", "readings_duplicate_total",
    "readings_rejected_total", "buffer_messages", "unacked_messages", "oldest_unacked_seconds", "mqtt_connected",
    "mqtt_reconnects_total", "database_up", "database_retries_total", "spool_messages", "spool_bytes",
    "diagnostics_active",
)  # fmt: skip
_LINE = re.compile(r"^esp_ingest_(\w+?)(?:\{[^}]*\})? ([0-9.eE+-]+|NaN|\+Inf)$", re.MULTILINE)


class Monitor:
    """Asks the daemon. To be used in the event loop. Never raises."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        host = settings.http.host
        reachable = "127.0.0.1" if host in ("0.0.0.0", "", "::") else host  # noqa: S104 - compared, not bound
        spelled = f"[{reachable}]" if ":" in reachable else reachable
        self._url = settings.api.daemon_url or f"http://{spelled}:{settings.http.port}"
        self._clock = clock
        self._client: httpx.AsyncClient | None = None
        self._found: dict[str, Any] = {"status": "unknown", "checks": {}, "figures": {}, "rates": {}}
        self._asked = float("-inf")
        self._counted = float("-inf")
        self._lock = asyncio.Lock()

    async def daemon(self) -> dict[str, Any]:
        """A dictionary: ``status`` is ok, failing or unreachable; ``checks`` are those of /health/ready; ``figures``
        are metrics, and ``rates`` are counters a second. It may be four seconds old. Waits for the daemon for two
        seconds at most."""
        async with self._lock:
            if self._clock.monotonic() - self._asked >= _SHOWN_SECONDS:
                self._asked = self._clock.monotonic()
                self._found = await self._ask()
        return self._found

    async def close(self) -> None:
        """Close the connection to the daemon."""
        if self._client is not None:
            await self._client.aclose()

    async def _ask(self) -> dict[str, Any]:
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=False)
        try:
            health, metrics = await asyncio.gather(
                self._client.get(f"{self._url}/health/ready"), self._client.get(f"{self._url}/metrics")
            )
            said = health.json()
            figures = figures_of(metrics.text[:_MOST_BYTES])
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            return {"status": "unreachable", "checks": {}, "figures": {}, "rates": {}}
        now = self._clock.monotonic()
        rates = self._rates(figures, now - self._counted)
        self._counted = now
        status = "ok" if health.status_code == 200 else "failing"
        checks = said.get("checks", {}) if isinstance(said, dict) else {}
        return {"status": status, "checks": checks, "figures": figures, "rates": rates}

    def _rates(self, figures: dict[str, float], seconds: float) -> dict[str, float]:
        before: dict[str, float] = self._found["figures"]
        return {
            name.removesuffix("_total"): round((value - before[name]) / seconds, 3)
            for name, value in figures.items()
            if name.endswith("_total") and value >= before.get(name, float("inf")) and 0 < seconds < 600
        }


def figures_of(text: str) -> dict[str, float]:
    """The metrics that are shown, each summed over its labels."""
    found: dict[str, float] = {}
    for name, value in _LINE.findall(text):
        if name in FIGURES and value not in ("NaN", "+Inf"):
            found[name] = found.get(name, 0.0) + float(value)
    return found
