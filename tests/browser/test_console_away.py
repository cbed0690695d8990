"""The console while the API cannot be reached, and what it does not lose: a page that was never opened, a sign-out; and
the focus of whoever turns pages."""

from datetime import UTC, datetime, timedelta

from playwright.sync_api import Browser, expect

from tests.support.api import ApiProcess, insert_alarm
from tests.support.browser import sign_in, tab
from tests.support.databases import Database

expect.set_options(timeout=20_000)


def test_a_page_that_was_never_opened_comes_once_the_api_is_back(browser: Browser, api: ApiProcess) -> None:
    with tab(browser, api.url) as page:
        sign_in(page, "otto")
        expect(page.locator("#live")).to_have_text("Live")
        page.context.set_offline(True)
        page.get_by_role("link", name="Performance").click()
        expect(page.get_by_role("alert")).to_contain_text("The API cannot be reached")
        expect(page.locator("tr[data-well]")).to_have_count(0)
        page.context.set_offline(False)
        expect(page.get_by_role("heading", name="Alarm performance")).to_be_visible()


def test_what_could_not_be_read_is_asked_for_again(browser: Browser, api: ApiProcess) -> None:
    detail = "The database cannot be reached: try again in some seconds."
    problem = {"type": "urn:esp-ingest:problem:database-unavailable", "status": 503, "detail": detail}
    with tab(browser, api.url) as page:
        sign_in(page, "otto")
        for address, missing, found in (
            ("#/performance", ["The figures"], ["Most frequent alarms"]),
            (
                "#/operations",
                ["The rejects", "The archive"],
                ["4 on this page, newest first", "No day is archived yet"],
            ),
            ("#/alarms", ["The alarms"], ["Leakage"]),
        ):
            for path in ("rejects**", "archive", "alarms/**", "alarms?**"):
                page.route(f"**/api/v1/{path}", lambda route: route.fulfill(status=503, json=problem))
            page.evaluate("address => { location.hash = address; }", address)
            for text in missing:
                expect(page.get_by_text(f"{text} could not be read: {detail}")).to_be_visible()
            page.unroute_all()
            for text in found:
                expect(page.get_by_text(text).first).to_be_visible()


def test_signing_out_while_the_api_is_away_leaves_nothing_to_read(browser: Browser, api: ApiProcess) -> None:
    with tab(browser, api.url) as page:
        sign_in(page, "otto")
        page.reload()  # the session goes on, and the sign-in was not shown
        expect(page.locator("tr[data-well='ESP-01']")).to_be_visible()
        page.context.set_offline(True)
        page.get_by_text("otto", exact=True).click()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("alert").filter(has_text="The API cannot be reached")).to_be_visible()
        expect(page.get_by_text("ESP-01")).to_have_count(0)


def test_an_archived_day_with_a_problem_says_so(browser: Browser, api: ApiProcess, database: Database) -> None:
    database.run(
        "INSERT INTO archive_days (relation, day, version, rows, checksum, bytes, held_rows, held_checksum, "
        "held_changed, problem) VALUES ('esp_telemetry', '2026-01-01', 1, 1, '', 1, 1, '', '', 'a file is missing')"
    )
    with tab(browser, api.url) as page:
        sign_in(page, "otto", at="/#/operations")
        expect(page.get_by_role("row").filter(has_text="2026-01-01")).to_contain_text("a file is missing")
    database.run("DELETE FROM archive_days WHERE day = '2026-01-01'")


def test_turning_the_page_keeps_the_focus(browser: Browser, api: ApiProcess, database: Database) -> None:
    now = datetime.now(UTC)
    with database.connect() as connection:
        for number in range(60):
            insert_alarm(connection, "ESP-08", f"t_{number}", now - timedelta(hours=number), "low", "normal", now)
    with tab(browser, api.url) as page:
        sign_in(page, "otto", at="/#/alarms?state=normal&well=ESP-08")
        page.get_by_role("button", name="Older").focus()
        page.keyboard.press("Enter")
        expect(page.locator("tr[data-alarm]")).to_have_count(10)
        expect(page.get_by_role("button", name="Newest")).to_be_focused()
    database.run("DELETE FROM diagnostic_results WHERE diagnosis LIKE 't#_%' ESCAPE '#'")
