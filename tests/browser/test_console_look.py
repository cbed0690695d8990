"""How the console looks: accessibility by axe in light and dark, three sizes, what it weighs, what it asks of whom."""

import os
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from tests.support.api import ApiProcess
from tests.support.browser import SIZES, sign_in, tab, until

PAGES = {
    "fleet": "#/fleet",
    "tiles": "#/fleet?view=tiles",
    "well": "#/well/ESP-01",
    "alarms": "#/alarms?state=any",
    "performance": "#/performance",
    "operations": "#/operations",
}
MOST_BYTES = 200_000
CONSOLE = Path(__file__).resolve().parents[2] / "esp_ingest/api/console"


def settle(page: Page, address: str) -> None:
    page.evaluate("address => { location.hash = address; }", address)
    until(page, "() => !document.querySelector('[aria-busy]') && document.querySelector('main h1') !== null")
    if "/well/" in address:
        until(page, "() => document.querySelectorAll('.trend .indicator').length === 7")  # the last to come
    page.wait_for_timeout(400)


def picture(page: Page, name: str) -> None:
    """Kept where ESP_INGEST_PICTURES says, to be looked at."""
    folder = os.environ.get("ESP_INGEST_PICTURES")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(browser: Browser, api: ApiProcess, dark: bool) -> None:
    found = {}
    with tab(browser, api.url, dark=dark) as page:
        page.goto("/")
        page.get_by_label("User").wait_for()
        found["sign-in"] = Axe().run(page)
        sign_in(page, "otto")
        for name, address in PAGES.items():
            settle(page, address)
            for button in page.locator(".fold").all()[:1]:
                button.click()
                page.wait_for_timeout(300)
            found[name] = Axe().run(page)
        settle(page, "#/alarms")
        page.get_by_label("Choose all that are shown").check()
        page.get_by_role("button", name="Shelve", exact=True).click()
        found["dialog"] = Axe().run(page)
        page.keyboard.press("Escape")
        page.get_by_text("otto", exact=True).click()
        found["menu"] = Axe().run(page)
    wrong = [f"{name}: {result.generate_report()}" for name, result in found.items() if result.violations_count]
    assert not wrong, "\n".join(wrong)


def test_the_values_of_a_silent_well_look_old(browser: Browser, api: ApiProcess) -> None:
    with tab(browser, api.url) as page:
        sign_in(page, "otto")
        for address, value in (
            ("#/fleet", "tr[data-well='{}'] .value"), ("#/fleet?view=tiles", "li[data-well='{}'] .value"),
            ("#/well/{}", ".trend-value .reading"),
        ):  # fmt: skip
            for well, style in (("ESP-03", "italic"), ("ESP-06", "normal")):
                settle(page, address.format(well))
                found = page.locator(value.format(well)).evaluate_all(
                    "all => all.map(e => getComputedStyle(e).fontStyle)"
                )
                assert set(found) == {style}, (address, well)


def test_the_focus_stays_with_an_alarm_that_was_acted_on(browser: Browser, api: ApiProcess) -> None:
    """By keyboard at 360 pixels. If the list holds it no more, the focus is where the list is."""
    focused = "() => document.activeElement.getAttribute('aria-label') ?? document.activeElement.id"
    with tab(browser, api.url, "phone") as page:
        sign_in(page, "otto")
        for address, alarm, is_kept in (
            ("#/alarms?rule=vibration", "Choose Vibration at ESP-04", True),
            ("#/alarms?rule=leakage&verdict=none", "Choose Leakage at ESP-05", False),
        ):
            settle(page, address)
            page.get_by_label(alarm).focus()
            page.keyboard.press("Space")
            page.get_by_role("button", name="Verdict", exact=True).focus()
            page.keyboard.press("Enter")
            page.get_by_role("dialog").wait_for()
            page.get_by_role("dialog").get_by_role("button", name="Verdict").focus()
            page.keyboard.press("Enter")
            page.get_by_role("dialog").wait_for(state="detached")
            until(page, f"place => ({focused})() === place", alarm if is_kept else "main")


@pytest.mark.parametrize(
    ("values", "step", "shown"),
    [
        ([0.18, 0.2, 0.22], 0.02, ["0.18", "0.20", "0.22"]),
        ([0, 2.5, 5], 2.5, ["0.0", "2.5", "5.0"]),
        ([1_900, 2_000], 50, ["1,900", "2,000"]),
    ],
)
def test_the_values_beside_an_axis_have_the_same_decimals(
    browser: Browser, api: ApiProcess, values: list[float], step: float, shown: list[str]
) -> None:
    with tab(browser, api.url) as page:
        page.goto("/")
        asked = "([values, step]) => import('/format.js').then(({ axisNumbers }) => axisNumbers(values, step))"
        assert page.evaluate(asked, [values, step]) == shown


@pytest.mark.parametrize("size", list(SIZES))
def test_nothing_is_wider_than_the_screen_and_targets_are_large_enough(
    browser: Browser, api: ApiProcess, size: str
) -> None:
    with tab(browser, api.url, size) as page:
        sign_in(page, "otto")
        for name, address in PAGES.items():
            settle(page, address)
            picture(page, f"{name}-{size}")
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{name} is {wide} px wider than the screen"
            if name in ("well", "alarms"):
                page.locator(".fold").first.click()
                page.locator(".explanation .snapshot").first.wait_for()
                picture(page, f"{name}-unfolded-{size}")
            boxes = "nav" + (", .alarms-table, .explanation" if size == "phone" else "")
            cut = page.evaluate(
                """boxes => [...document.querySelectorAll(boxes)].map((each) => each.closest(".scroll") ?? each)
                    .filter((each) => each.scrollWidth > each.clientWidth)
                    .map((each) => `${each.className || each.tagName} ${each.scrollWidth} in ${each.clientWidth}`)""",
                boxes,
            )
            assert not cut, f"{name} is cut off: {cut}"
            small = page.evaluate(
                """() => [...document.querySelectorAll('button, select, input, textarea, nav a, summary')]
                    .filter((each) => each.offsetParent && (each.offsetHeight < 24 || each.offsetWidth < 24))
                    .map((each) => each.outerHTML.slice(0, 120))"""
            )
            assert not small, f"{name}: {small}"


def test_it_weighs_less_than_200_kb_in_all(browser: Browser, api: ApiProcess) -> None:
    sizes: dict[str, int] = {}
    with tab(browser, api.url) as page:
        page.on(
            "response",
            lambda answer: sizes.update({answer.url: len(answer.body())}) if "/api/v1/" not in answer.url else None,
        )
        sign_in(page, "otto")
        for address in PAGES.values():
            settle(page, address)
    assert len(sizes) > 20
    assert sum(sizes.values()) < MOST_BYTES, sizes


def test_its_source_is_readable() -> None:
    files = [
        path for path in CONSOLE.rglob("*") if path.suffix in (".js", ".css", ".html") and path.parent.name != "vendor"
    ]
    assert len(files) > 20
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 500, f"{path.name} has {len(lines)} lines"
        assert max(map(len, lines)) <= 300, f"{path.name} has lines that nobody reads"
        assert " style=" not in path.read_text(encoding="utf-8")
