"""The operating point on a well's page, in Debian's Chromium."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from tests.browser.test_console_look import picture
from tests.support.api import ApiProcess
from tests.support.browser import sign_in, tab
from tests.support.databases import Database

expect.set_options(timeout=20_000)
PUMPS = {
    "ESP-06": {"curve": [[0, 75], [1000, 74], [2000, 65], [3000, 44], [4000, 4]], "stages": 120,
               "recommended_bpd": [1400, 2800]},
}  # fmt: skip


@pytest.fixture(scope="module")
def console(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    process = ApiProcess(tmp_path_factory.mktemp("pump"), database.dsn, {"PUMPS__BY_WELL": json.dumps(PUMPS)})
    process.add_user("paul", "viewer")
    with process:
        yield process


@pytest.fixture
def lower_frequency(database: Database) -> Iterator[Callable[[], None]]:
    """Has ESP-06 send a reading of 45 Hz whose flow is below what is recommended. It is gone after the test."""

    def send() -> None:
        with database.connect() as connection:
            connection.execute(
                'INSERT INTO esp_telemetry ("timestamp", well_id, flow_rate, pip, discharge_pressure, vsd_frequency, '
                "received_at) VALUES (%s, 'ESP-06', 700, 612, 2810, 45, now())",
                (datetime.now(UTC),),
            )

    yield send
    database.run("DELETE FROM esp_telemetry WHERE well_id = 'ESP-06' AND flow_rate = 700")


@pytest.mark.parametrize(("size", "dark"), [("desk", False), ("phone", True)])
def test_the_operating_point(
    browser: Browser, console: ApiProcess, lower_frequency: Callable[[], None], size: str, dark: bool
) -> None:
    with tab(browser, console.url, size, dark) as page:
        sign_in(page, "paul", at="/#/well/ESP-06")
        chart = page.locator(".pump svg")
        expect(chart).to_have_attribute("aria-label", re.compile("Flow is within the recommended 1,213 – 2,427 bbl/d"))
        expect(chart).to_have_attribute("aria-label", re.compile(r"Curve at 52\.0 Hz\."))
        expect(chart.locator("circle.point:not(.outside-band)")).to_have_count(1)
        expect(page.locator("main [aria-busy]")).to_have_count(0)
        page.wait_for_timeout(500)
        picture(page, f"pump-{size}")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert not Axe().run(page).violations_count
        lower_frequency()  # curve and point move by themselves
        expect(chart).to_have_attribute("aria-label", re.compile("Flow is below .* Curve at 45"))
        expect(chart.locator("circle.point.outside-band")).to_have_count(1)
        picture(page, f"pump-outside-{size}")


def test_a_well_without_a_pump_shows_none(browser: Browser, console: ApiProcess) -> None:
    with tab(browser, console.url) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        sign_in(page, "paul", at="/#/well/ESP-07")
        expect(page.get_by_role("heading", name="Amp chart (motor current)")).to_be_visible()
        expect(page.locator("main [aria-busy]")).to_have_count(0)
        expect(page.get_by_role("heading", name="Operating point")).to_have_count(0)
        assert not [url for url in asked if url.endswith("/pump") or "pump.js" in url]
