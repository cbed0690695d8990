"""The console in Debian's Chromium, on a real API and a real database: what people do on each page."""

import contextlib
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from esp_ingest.store.schema import migrate
from tests.support.api import PASSWORD, ApiProcess, insert_alarm, insert_reading
from tests.support.browser import sign_in, tab, until
from tests.support.databases import Database, Server

expect.set_options(timeout=20_000)

STOPPED = {"flow_rate": 0.0, "current": 0.0, "frequency": 0.0}


@pytest.fixture
def otto(browser: Browser, api: ApiProcess) -> Iterator[Page]:
    """An operator who has just signed in."""
    with tab(browser, api.url) as page:
        sign_in(page, "otto")
        yield page


def go(page: Page, address: str) -> None:
    page.evaluate("address => { location.hash = address; }", address)


def row(page: Page, well: str) -> Any:
    return page.locator(f"tr[data-well='{well}']")


# -- Signing in.


def test_without_a_user_it_says_how_to_make_the_first(
    browser: Browser, timescaledb_apache_server: Server, tmp_path: Any
) -> None:
    empty = timescaledb_apache_server.create_database()
    migrate(empty.settings)
    with ApiProcess(tmp_path, empty.dsn) as api, tab(browser, api.url) as page:
        page.goto("/")
        page.get_by_label("User").fill("ada")
        page.get_by_label("Password").fill("whatever it is")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("esp-ingest users add NAME --role admin")
    timescaledb_apache_server.drop_database(empty)


def test_signing_in_and_out(browser: Browser, api: ApiProcess) -> None:
    with tab(browser, api.url) as page:
        page.goto("/#/alarms?severity=high")
        page.get_by_label("User").fill("otto")
        page.get_by_label("Password").fill("not the password")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_have_text("User name or password is wrong.")
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Alarms")).to_be_visible()
        expect(page).to_have_url(re.compile(r"#/alarms\?severity=high$"))
        page.reload()
        expect(page.get_by_role("heading", name="Alarms")).to_be_visible()
        page.get_by_text("otto", exact=True).click()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        page.reload()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_tabs_share_a_session_and_refresh_it_once(browser: Browser, api: ApiProcess, database: Database) -> None:
    expire = """() => {
        const found = JSON.parse(sessionStorage.getItem('esp-ingest.session'));
        sessionStorage.setItem('esp-ingest.session', JSON.stringify({...found, ends: 0}));
    }"""
    with tab(browser, api.url) as first:
        sign_in(first, "otto")
        second = first.context.new_page()
        second.goto(api.url)
        expect(second.locator("nav")).to_be_visible()  # without a password
        before = database.value("SELECT count(*) FROM api_refresh_tokens")
        for page in (first, second):
            page.evaluate(expire)
        for page in (first, second):
            page.evaluate("() => { setTimeout(() => location.reload(), 0); }")
        for page in (first, second):
            expect(row(page, "ESP-01")).to_be_visible()
            page.reload()
            expect(row(page, "ESP-01")).to_be_visible()
        assert database.value("SELECT count(*) FROM api_refresh_tokens") > before, "somebody refreshed"
        assert not database.value("SELECT count(*) FROM api_audit WHERE action LIKE '%used twice%'")
        first.get_by_text("otto", exact=True).click()
        first.get_by_role("button", name="Sign out").click()
        expect(second.get_by_role("heading", name="Sign in")).to_be_visible()


# -- The fleet.


def test_fleet_shows_those_in_need_first(otto: Page) -> None:
    wells = otto.locator("tbody th a")
    expect(wells).to_have_text(["ESP-01", "ESP-04", "ESP-05", "ESP-03", "ESP-02", "ESP-06", "ESP-07", "ESP-08"])
    expect(row(otto, "ESP-01").locator(".alarm-names")).to_have_text("1Pump off2Underload")
    expect(row(otto, "ESP-02").locator(".state")).to_have_text("stopped")
    expect(row(otto, "ESP-03").locator(".state")).to_have_text("silent")
    expect(row(otto, "ESP-06").locator("svg.spark path.line")).to_have_count(1)


def test_filters_live_in_the_address(otto: Page) -> None:
    otto.get_by_label("State").select_option("stopped")
    expect(otto.locator("tbody th a")).to_have_text(["ESP-02"])
    expect(otto).to_have_url(re.compile("state=stopped"))
    otto.reload()
    expect(otto.locator("tbody th a")).to_have_text(["ESP-02"])
    expect(otto.get_by_label("State")).to_have_value("stopped")
    otto.go_back()
    expect(otto.locator("tbody th a")).to_have_count(8)
    otto.get_by_label("Well", exact=True).fill("*-07")
    expect(otto.locator("tbody th a")).to_have_text(["ESP-07"])
    expect(otto).to_have_url(re.compile(r"q=(\*|%2A)-07"))
    otto.get_by_label("Well", exact=True).fill("nothing like it")
    expect(otto.get_by_text("No well fits the filter.")).to_be_visible()


def test_tiles_and_units(otto: Page) -> None:
    otto.get_by_role("button", name="Tiles").click()
    expect(otto.locator(".tiles > li")).to_have_count(8)
    expect(otto).to_have_url(re.compile("view=tiles"))
    otto.get_by_text("otto", exact=True).click()
    otto.get_by_role("button", name="Metric").click()
    expect(otto.locator(".tiles > li").first).to_contain_text("bar")


def test_a_new_reading_shows_by_itself(otto: Page, database: Database) -> None:
    expect(otto.locator("#live")).to_have_text("Live")
    cell = row(otto, "ESP-06").locator("td.number").nth(2)
    before = cell.text_content()
    insert_reading(database, "ESP-06", datetime.now(UTC), pip=777.0)
    expect(cell).to_have_text("777")
    assert before != "777"


def test_a_trip_shows_with_its_reading_in_the_state_and_in_the_sums(otto: Page, database: Database) -> None:
    expect(otto.locator("#live")).to_have_text("Live")
    state = row(otto, "ESP-06").locator(".state")
    stopped = otto.locator(".sums a[href='#/fleet?state=stopped']")
    expect(state).to_have_text("running")
    before = int(stopped.text_content() or "")
    insert_reading(database, "ESP-06", datetime.now(UTC), **STOPPED)
    expect(row(otto, "ESP-06").locator("td.number").first).to_have_text("0.0")
    assert state.text_content() == "stopped", "with the values of its reading"
    expect(stopped).to_have_text(str(before + 1), timeout=5_000)
    go(otto, "#/well/ESP-06")
    expect(otto.locator(".head .state")).to_have_text("stopped")
    insert_reading(database, "ESP-06", datetime.now(UTC))
    expect(otto.locator(".head .state")).to_have_text("running", timeout=5_000)


def test_a_well_that_is_not_in_the_list_has_it_read_again_if_it_is_new_or_its_state_changes(
    otto: Page, database: Database
) -> None:
    """Its next reading alone is no news, and a large fleet has many of them a second."""
    now = datetime.now(UTC)
    otto.clock.install(time=now)
    otto.clock.pause_at(now + timedelta(seconds=1))
    go(otto, "#/fleet?q=ESP-06")
    expect(otto.locator("tbody tr")).to_have_count(1)
    expect(otto.locator("#live")).to_have_text("Live")
    # The look every 30 s is for a page that somebody sees.
    otto.evaluate("() => { Object.defineProperty(document, 'hidden', { get: () => true }); }")
    asked: list[str] = []
    otto.on("request", lambda request: asked.append(request.url) if "/api/v1/wells?" in request.url else None)
    for number, (stops, times) in enumerate(((False, 1), (False, 1), (True, 2)), start=1):
        insert_reading(database, "ESP-05", datetime.now(UTC), **(STOPPED if stops else {}))
        insert_reading(database, "ESP-06", datetime.now(UTC), pip=700.0 + number)
        expect(row(otto, "ESP-06").locator("td.number").nth(2)).to_have_text(f"70{number}")
        with contextlib.nullcontext() if number == 2 else otto.expect_response("**/api/v1/fleet*"):
            otto.clock.fast_forward(10_000)
        assert len(asked) == times, asked
    insert_reading(database, "ESP-05", datetime.now(UTC))  # as it was, for the tests that follow


def test_an_operator_of_one_well_sees_no_other(browser: Browser, api: ApiProcess) -> None:
    with tab(browser, api.url) as page:
        sign_in(page, "olga")
        expect(page.locator("tbody th a")).to_have_text(["ESP-02"])
        go(page, "#/well/ESP-01")
        expect(page.get_by_role("alert").first).to_contain_text("There is no well ESP-01 that you may see")


# -- A well.


def test_a_well_over_time_from_a_year_to_a_second(otto: Page) -> None:
    asked: list[str] = []
    otto.on("request", lambda request: asked.append(request.url) if "/telemetry" in request.url else None)
    go(otto, "#/well/ESP-01")
    plots = otto.locator(".trend .uplot canvas")
    expect(plots).to_have_count(7)
    expect(otto.locator(".trends")).to_contain_text("resolution")
    otto.get_by_role("button", name="1y").click()
    expect(otto.locator(".trends .muted").first).to_contain_text("365 d")
    expect(otto).to_have_url(re.compile("range=1y"))
    box = otto.locator(".trend .u-over").first.bounding_box()
    assert box is not None
    otto.mouse.move(box["x"] + box["width"] - 2, box["y"] + 20)
    otto.keyboard.down("Control")
    for _ in range(24):
        otto.mouse.wheel(0, -200)
    otto.keyboard.up("Control")
    expect(otto.locator(".trends .muted").first).to_contain_text(re.compile(r", 1 s(,|$)"))
    expect(otto).to_have_url(re.compile("from="))
    otto.get_by_role("button", name="24h").click()
    expect(otto.locator(".trends .muted").first).to_contain_text(", 24 h")
    otto.wait_for_timeout(500)
    known = len(asked)
    otto.get_by_role("button", name="Zoom out").click()
    expect(otto.locator(".trends .muted").first).to_contain_text(", 2 d")
    otto.wait_for_timeout(1_000)
    otto.go_back()
    assert len(asked) <= known + 2, "what was fetched is kept"


def test_a_drag_zooms_and_keys_move(otto: Page) -> None:
    go(otto, "#/well/ESP-01")
    over = otto.locator(".trend .u-over").first
    expect(otto.locator(".trends")).to_contain_text("resolution")
    box = over.bounding_box()
    assert box is not None
    otto.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 30)
    otto.mouse.down()
    otto.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 30, steps=5)
    otto.mouse.up()
    expect(otto.locator(".trends .muted").first).to_contain_text(", 12 h")
    until(otto, "() => location.hash.includes('from=')")
    before = otto.url
    otto.locator(".plots").focus()
    otto.keyboard.press("ArrowLeft")
    until(otto, "before => location.href !== before", before)
    otto.keyboard.press("End")
    until(otto, "() => !location.hash.includes('from=')")
    expect(otto.get_by_role("button", name="Follow")).to_have_attribute("aria-pressed", "true")


def test_what_a_well_sends_is_text_and_never_markup(otto: Page, database: Database) -> None:
    with database.connect() as connection:
        connection.execute(
            'INSERT INTO esp_telemetry ("timestamp", well_id, pip, extra, received_at) VALUES '
            "(now(), 'ESP-08', 600, '{\"<img src=x onerror=alert(1)>\": \"<b>bold</b>\"}', now())"
        )
    go(otto, "#/well/ESP-08")
    expect(otto.locator("main")).to_contain_text("<b>bold</b>")
    assert otto.locator("main img").count() == 0


def test_the_current_chart(otto: Page) -> None:
    go(otto, "#/well/ESP-01")
    chart = otto.locator(".ammeter svg")
    expect(chart).to_have_attribute("aria-label", re.compile("24 hours"))
    otto.get_by_role("button", name="7 d", exact=True).click()
    expect(chart).to_have_attribute("aria-label", re.compile("7 days"))
    assert len(chart.locator(".trace").get_attribute("d") or "") > 1_000


# -- Alarms.


def test_acknowledging_many_from_the_list(otto: Page, database: Database) -> None:
    go(otto, "#/alarms?well=ESP-01")
    expect(otto.locator("tr[data-alarm]")).to_have_count(2)
    otto.get_by_label("Choose all that are shown").check()
    otto.get_by_role("button", name="Acknowledge").click()
    dialog = otto.get_by_role("dialog")
    expect(dialog).to_contain_text("Acknowledge: 2 alarms")
    dialog.get_by_label("Why").fill("choke opened")
    dialog.get_by_role("button", name="Acknowledge").click()
    expect(otto.locator("tr[data-alarm] td:nth-child(5)")).to_have_text(["acknowledged", "acknowledged"])
    done = database.all("SELECT diagnosis, by_whom, why FROM alarm_actions WHERE action = 'ack' ORDER BY 1")
    assert done == [("pump_off", "otto", "choke opened"), ("underload", "otto", "choke opened")]
    assert database.all("SELECT DISTINCT state FROM diagnostic_results WHERE well_id = 'ESP-01' AND cleared_at IS NULL")


def test_shelving_needs_a_reason_and_a_verdict_counts(otto: Page, database: Database) -> None:
    go(otto, "#/alarms?well=ESP-05")
    otto.get_by_label("Choose Leakage at ESP-05").check()
    otto.get_by_role("button", name="Shelve", exact=True).click()
    dialog = otto.get_by_role("dialog")
    dialog.get_by_role("button", name="Shelve").click()
    expect(dialog).to_be_visible()  # the browser asks for the reason
    dialog.get_by_label("Why (needed)").fill("gauge is to be changed")
    dialog.get_by_role("button", name="Shelve").click()
    expect(dialog).to_have_count(0)
    assert database.value("SELECT why FROM alarm_actions WHERE action = 'shelve'") == "gauge is to be changed"
    go(otto, "#/alarms?well=ESP-04")
    otto.get_by_label("Choose Vibration at ESP-04").check()
    otto.get_by_role("button", name="Verdict").click()
    otto.get_by_label("The alarm was").select_option("false")
    otto.get_by_label("Cause").fill("loose gauge")
    otto.get_by_role("dialog").get_by_role("button", name="Verdict").click()
    expect(otto.locator("tr[data-alarm]").first).to_contain_text("verdict: false")
    go(otto, "#/well/ESP-04")
    expect(otto.locator(".done")).to_contain_text(re.compile("otto judged Vibration of .* false, cause: loose gauge$"))
    go(otto, "#/performance?range=30d")
    expect(otto.locator("main")).to_contain_text("Precision of each rule")
    expect(otto.get_by_role("region", name="Precision of each rule")).to_contain_text("Vibration")


def test_each_sum_leads_to_the_alarms_that_it_counts(otto: Page, database: Database) -> None:
    with database.connect() as connection:
        for diagnosis, state in (("gas_lock", "suppressed"), ("no_flow", "shelved"), ("overload", "unacknowledged")):
            insert_alarm(connection, "ESP-08", diagnosis, datetime.now(UTC), "high", state)
    sums = otto.locator(".sums a[href^='#/alarms']")
    otto.reload()
    expect(sums.first).to_be_visible()
    for href, figure in [(each.get_attribute("href"), each.text_content() or "") for each in sums.all()]:
        go(otto, href or "")
        # A severity's figure stands behind its mark, which has a figure too.
        shown = figure[1:] if "severity" in (href or "") else figure
        expect(otto.locator("tr[data-alarm]"), f"{href} says {figure}").to_have_count(int(shown))
    database.run("DELETE FROM diagnostic_results WHERE well_id = 'ESP-08'")


def test_alarms_that_returned_before_anybody_acknowledged_them_can_be_found(otto: Page, database: Database) -> None:
    now = datetime.now(UTC)
    with database.connect() as connection:
        insert_alarm(connection, "ESP-08", "overload", now, "high", "returned-unacknowledged", now)
    go(otto, "#/alarms")
    otto.get_by_label("State").select_option("Returned, unacknowledged")
    expect(otto.locator("tr[data-alarm]")).to_have_count(1)
    expect(otto.locator("tr[data-alarm]")).to_contain_text("returned, unacknowledged")
    database.run("DELETE FROM diagnostic_results WHERE well_id = 'ESP-08'")


def test_the_limit_of_an_alarm_that_escalated_is_drawn(otto: Page, database: Database) -> None:
    """Its value is of the escalation, its snapshot of the raising: they differ."""
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO diagnostic_results VALUES (now() - interval '1 hour', 'ESP-07', 'motor_hot', 'critical', "
            "'unacknowledged', NULL, 331.2, 270, 331.2, 1, 0.9, 'hot', '[]', '{\"motor_temp\": 255.17}')"
        )
    go(otto, "#/well/ESP-07")
    expect(otto.locator("[data-signal=motor_temp] .plot")).to_have_attribute(
        "aria-label", re.compile("limits: Motor hot 270 °F")
    )
    database.run("DELETE FROM diagnostic_results WHERE well_id = 'ESP-07'")


def test_an_alarm_is_explained(otto: Page) -> None:
    go(otto, "#/alarms?well=ESP-01&state=any")
    otto.get_by_role("button", name="Underload").click()
    shown = otto.locator(".explanation")
    expect(shown).to_contain_text("Less fluid reaches the pump.")
    expect(shown).to_contain_text("Check flow at surface: if there is none, stop.")
    expect(shown).to_contain_text("24 h median")
    expect(shown).to_contain_text("The drive may trip")


def test_a_viewer_may_not_act(browser: Browser, api: ApiProcess) -> None:
    with tab(browser, api.url) as page:
        sign_in(page, "vera", at="/#/alarms")
        expect(page.locator("tr[data-alarm]").first).to_be_visible()
        expect(page.get_by_text("To act on them one needs the role operator")).to_be_visible()
        assert page.locator("tbody input").count() == 0


# -- Operations.


def test_rejects_with_their_payloads(otto: Page) -> None:
    go(otto, "#/operations")
    first = otto.get_by_role("button", name="invalid json").first
    first.click()
    expect(otto.locator(".payload")).to_contain_text("000000  00 ff 10 00 41 42 3c 73")
    otto.get_by_role("button", name="Text").click()
    expect(otto.locator(".payload")).to_contain_text("AB<script>")
    otto.get_by_label("Topic").fill("esp/ESP-03*")
    expect(otto.get_by_text("1 on this page")).to_be_visible()
    expect(otto).to_have_url(re.compile("topic="))
    expect(otto.get_by_text("It does not answer the API")).to_be_visible()


# -- Addresses, and a database that is away.


@pytest.mark.parametrize("address", ["#/well/%E0%A4%A", "#/wells", "#/well"])
def test_an_address_of_no_page_says_so(otto: Page, address: str) -> None:
    for _ in range(2):
        go(otto, address)
        expect(otto.get_by_role("alert")).to_contain_text("is the address of no page")
        otto.reload()
    otto.get_by_role("link", name="The fleet").click()
    expect(row(otto, "ESP-01")).to_be_visible()


def test_what_cannot_be_read_is_not_shown_as_nothing(otto: Page) -> None:
    detail = "The database cannot be reached: try again in some seconds."
    problem = {"type": "urn:esp-ingest:problem:database-unavailable", "status": 503, "detail": detail}
    otto.route("**/api/v1/*", lambda route: route.fulfill(status=503, json=problem))
    otto.route("**/api/v1/wells/**", lambda route: route.fulfill(status=503, json=problem))
    otto.route("**/api/v1/alarms**", lambda route: route.fulfill(status=503, json=problem))
    go(otto, "#/alarms")
    expect(otto.get_by_text(f"The alarms could not be read: {detail}")).to_be_visible()
    expect(otto.locator(".alarms-table")).to_be_hidden()
    go(otto, "#/well/ESP-01")
    expect(otto.get_by_role("alert").first).to_contain_text(f"The well could not be read: {detail}")
    otto.unroute_all()
    expect(otto.locator("tr[data-alarm]").first).to_be_visible()  # by itself
    expect(otto.locator(".trend").first).to_be_visible()


def test_the_banner_tells_a_database_that_is_away_from_an_api_that_does_not_answer(
    browser: Browser, api: ApiProcess
) -> None:
    detail = "The database cannot be reached: try again in some seconds."
    problem = {"type": "urn:esp-ingest:problem:database-unavailable", "status": 503, "detail": detail}
    with tab(browser, api.url) as page:
        page.route("**/api/v1/stream", lambda route: route.fulfill(status=503, json=problem))
        sign_in(page, "otto")
        expect(page.locator("#notice")).to_contain_text(
            re.compile(
                r"No database since \d+ \w+ \d\d:\d\d:\d\d UTC or before: the API answers, but the database does not"
            )
        )
        expect(page.locator("#live")).to_have_text("No database")
        page.unroute_all()
        expect(page.locator("#live")).to_have_text("Live")
        expect(page.locator("#notice")).to_be_empty()


# -- By keyboard alone.


def test_by_keyboard_alone(browser: Browser, api: ApiProcess) -> None:
    with tab(browser, api.url) as page:
        page.goto("/")
        expect(page.get_by_label("User")).to_be_focused()
        page.keyboard.type("otto")
        page.keyboard.press("Tab")
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        expect(row(page, "ESP-01")).to_be_visible()

        def tab_to(text: str) -> None:
            for _ in range(60):
                page.keyboard.press("Tab")
                if page.evaluate("document.activeElement.textContent.trim()") == text:
                    return
            raise AssertionError(f"Tab does not reach {text!r}")

        tab_to("Skip to the content")
        page.keyboard.press("Enter")
        tab_to("ESP-04")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="ESP-04")).to_be_visible()
        tab_to("Vibration")
        page.keyboard.press("Enter")
        expect(page.locator(".explanation")).to_be_visible()
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", "the focus is seen"


# -- Loss and return. Last, as it ends the process that the others use.


def test_loss_of_the_api_and_its_return(otto: Page, api: ApiProcess, database: Database) -> None:
    expect(otto.locator("#live")).to_have_text("Live")
    expect(row(otto, "ESP-01")).to_be_visible()
    api.stop()
    expect(otto.locator("#notice")).to_contain_text("Not live since")
    expect(otto.locator("#live")).to_have_text("Not live")
    expect(row(otto, "ESP-01")).to_be_visible()  # what was shown stays
    insert_reading(database, "ESP-07", datetime.now(UTC) + timedelta(seconds=1), pip=888.0)
    api.start()
    expect(otto.locator("#live")).to_have_text("Live", timeout=40_000)
    expect(otto.locator("#notice")).to_be_empty()
    expect(row(otto, "ESP-07").locator("td.number").nth(2)).to_have_text("888")
    started = time.monotonic()
    insert_reading(database, "ESP-07", datetime.now(UTC) + timedelta(seconds=3), pip=999.0)
    expect(row(otto, "ESP-07").locator("td.number").nth(2)).to_have_text("999")
    assert time.monotonic() - started < 20, "live again"
