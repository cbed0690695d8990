"""Debian's Chromium under Playwright, and a database whose wells are worth looking at.

The tests of the console and the pictures of it in the documentation share these."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, sync_playwright

from esp_ingest.store.schema import migrate
from tests.support.api import PASSWORD
from tests.support.databases import Database

CHROMIUM = Path(os.environ.get("ESP_INGEST_CHROMIUM", "/usr/bin/chromium"))
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--no-proxy-server",
)  # fmt: skip
SIZES = {"phone": (360, 740), "tablet": (800, 1000), "desk": (1440, 900)}
WAIT_MILLISECONDS = 20_000

_READINGS = """
INSERT INTO esp_telemetry ("timestamp", well_id, flow_rate, pip, motor_current, motor_temp, vibration, vsd_frequency,
                           discharge_pressure, received_at)
SELECT at, well, 1800 + 40 * sin(minute / 170.0 + well_number) + 30 * noise,
       612 + 6 * sin(minute / 90.0) + 3 * noise - CASE WHEN is_falling THEN 140 * (1 - minute / 240.0) ELSE 0 END,
       CASE WHEN is_stopped THEN 0
            ELSE 41 + 0.8 * sin(minute / 60.0) + 0.6 * noise - CASE WHEN is_falling THEN 9 ELSE 0 END END,
       250 + 4 * sin(minute / 400.0) + noise, 0.11 + 0.01 * noise,
       CASE WHEN is_stopped THEN 0 ELSE 52 END, 2810 + 15 * noise, now()
FROM (SELECT %(now)s::timestamptz - minute * interval '1 minute' AS at, minute, 'ESP-' || lpad(n::text, 2, '0') AS well,
             n AS well_number, random() - 0.5 AS noise, n = 2 AND minute < 90 AS is_stopped,
             n = 1 AND minute < 240 AS is_falling
      FROM generate_series(0, %(minutes)s) AS minute, generate_series(1, %(wells)s) AS n
      WHERE n <> 3 OR minute > 700) AS wells
"""
_ALARM = """
INSERT INTO diagnostic_results
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, 0.85, %s, %s, %s)
"""
_REJECT = """
INSERT INTO ingest_rejects (received_at, digest, item, topic, reason, detail, payload, redelivered)
VALUES (%s, md5(%s)::uuid, 0, %s, %s, %s, %s, false)
"""


def chromium_or_skip() -> None:
    """In CI a missing Chromium fails; elsewhere the test is skipped with the reason."""
    if CHROMIUM.exists():
        return
    reason = f"{CHROMIUM} is missing: run .ci/parts.sh as root, or set ESP_INGEST_CHROMIUM"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def chromium() -> Iterator[Browser]:
    """One browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tab(
    browser: Browser, url: str, size: str = "desk", dark: bool = False, provider: str | None = None, **options: Any
) -> Iterator[Page]:
    """A page in a context of its own. After it: no script failed, and nothing was asked of another host, but that the
    page itself went to ``provider`` and back."""
    width, height = SIZES[size]
    context = browser.new_context(
        base_url=url, viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light",
        reduced_motion="reduce", **options,
    )  # fmt: skip
    context.set_default_timeout(WAIT_MILLISECONDS)
    foreign: list[str] = []
    failures: list[str] = []

    def note(request: Request) -> None:
        goes_to_provider = provider and request.is_navigation_request() and request.url.startswith(provider)
        if not request.url.startswith((url, "data:", "blob:")) and not goes_to_provider:
            foreign.append(request.url)

    context.on("request", note)
    page = context.new_page()
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on(
        "console",
        lambda message: failures.append(message.text) if "Content Security Policy" in message.text else None,
    )
    try:
        yield page
    finally:
        context.close()
    assert not foreign
    assert not failures


def sign_in(page: Page, name: str, password: str = PASSWORD, at: str = "/") -> None:
    """Open the console there and sign in."""
    page.goto(at)
    page.get_by_label("User").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.locator("nav").wait_for()


def until(page: Page, expression: str, argument: Any = None) -> None:
    """Wait until the expression is true: wait_for_function() needs eval(), which the page's policy forbids."""
    deadline = time.monotonic() + WAIT_MILLISECONDS / 1_000
    while not page.evaluate(expression, argument):
        assert time.monotonic() < deadline, f"never true: {expression}"
        page.wait_for_timeout(50)


def fill(database: Database, now: datetime, wells: int = 8, days: int = 2) -> None:
    """Wells that run, one with a falling load and open alarms, one that is stopped, one that is silent."""
    migrate(database.settings)
    with database.connect() as connection:
        connection.execute(_READINGS, {"now": now, "minutes": days * 1_440, "wells": wells})
        seen = "the motor load at this frequency is 71 % of its 24-hour baseline (limit 80 %)"
        for well, diagnosis, hours, severity, state, cleared, text in (
            ("ESP-01", "underload", 3.7, "high", "unacknowledged", None, seen),
            ("ESP-01", "pump_off", 2.0, "critical", "unacknowledged", None, seen + " while intake pressure falls"),
            ("ESP-04", "vibration", 30.0, "medium", "acknowledged", None, "vibration is 0.31 in/s"),
            ("ESP-05", "leakage", 1.0, "low", "unacknowledged", None, "leakage current has risen to 4 mA"),
            ("ESP-01", "low_flow", 26.0, "medium", "normal", 24.5, "flow is 70 % of its 24-hour baseline (limit 80 %)"),
        ):
            at = now - timedelta(hours=hours)
            message = (
                f"{well}: {text} since {at:%Y-%m-%d %H:%M} — likely less fluid reaches the pump — to do: check it."
            )
            connection.execute(
                _ALARM,
                (at, well, diagnosis, severity, state, now - timedelta(hours=cleared) if cleared else None, 0.71, 0.8,
                 0.66, 1, message, '["check flow at surface: if there is none, stop", "check inflow"]',
                 '{"motor_current": 32.4, "pip": 530.0, "median_24h": {"motor_current": 41.2}, "well": "running"}'),
            )  # fmt: skip
        for number in range(4):
            payload = b'{"pip": 612.4, "timestamp": ' if number % 2 else bytes([0, 255, 16, number]) + b"AB<script>"
            connection.execute(
                _REJECT,
                (now - timedelta(minutes=number), str(number), f"esp/ESP-0{number}/telemetry", "invalid_json",
                 "not JSON: the text ends too early", payload),
            )  # fmt: skip
