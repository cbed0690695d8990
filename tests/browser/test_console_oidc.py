"""Signing in to the console through an OpenID provider, in Debian's Chromium: to the provider and back."""

import re
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.support.api import ApiProcess
from tests.support.browser import tab, until
from tests.support.databases import Database, free_port
from tests.support.oidc import Issuer
from tests.support.prefix_proxy import served_under


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as made:
        made.claims = {"esp_wells": ["*"]}
        yield made


@pytest.fixture(scope="module")
def console(database: Database, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    with ApiProcess(tmp_path_factory.mktemp("oidc"), database.dsn, issuer.settings) as process:
        yield process


@pytest.fixture
def page(browser: Browser, console: ApiProcess, issuer: Issuer) -> Iterator[Page]:
    issuer.changes, issuer.denies = {}, ""
    with tab(browser, console.url, provider=issuer.url) as found:
        yield found


def press(page: Page) -> None:
    page.get_by_role("button", name=re.compile("^Sign in with 127.0.0.1")).click()


def test_signing_in_refreshing_and_out(page: Page, issuer: Issuer) -> None:
    page.goto("/#/alarms?severity=high")
    press(page)
    expect(page.get_by_role("heading", name="Alarms")).to_be_visible()
    assert page.url.endswith("/#/alarms?severity=high"), "where one was, and no code in the address"
    page.reload()
    expect(page.get_by_role("heading", name="Alarms")).to_be_visible()
    expire = """() => {
        const found = JSON.parse(sessionStorage.getItem('esp-ingest.session'));
        sessionStorage.setItem('esp-ingest.session', JSON.stringify({...found, ends: 0}));
        return found.access;
    }"""
    before = page.evaluate(expire)
    page.reload()
    expect(page.get_by_role("heading", name="Alarms")).to_be_visible()
    until(page, "old => JSON.parse(sessionStorage.getItem('esp-ingest.session')).access !== old", before)
    page.get_by_text("olga", exact=True).click()
    with page.expect_response("**/api/v1/auth/logout"):
        page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert len(issuer.revoked) == 1
    expect(page.get_by_role("button", name=re.compile("^Sign in with"))).to_be_visible()
    assert not Axe().run(page).violations_count


def test_an_answer_to_another_sign_in_is_refused(page: Page, issuer: Issuer) -> None:
    issuer.changes = {"state": "of somebody else"}
    page.goto("/")
    press(page)
    expect(page.get_by_role("alert")).to_contain_text("did not begin in this tab")
    assert page.evaluate("sessionStorage.getItem('esp-ingest.session')") is None
    assert page.evaluate("location.search") == ""
    issuer.changes = {"iss": "https://another.example"}
    press(page)
    expect(page.get_by_role("alert")).to_contain_text("did not begin in this tab")
    issuer.changes = {}
    press(page)
    expect(page.locator("nav")).to_be_visible()


def test_what_the_provider_and_the_api_refuse_is_said(page: Page, issuer: Issuer) -> None:
    issuer.denies = "access_denied"
    page.goto("/")
    press(page)
    expect(page.get_by_role("alert")).to_contain_text("The provider refused the sign-in (access_denied)")
    issuer.denies = ""
    issuer.changes = {"code": "made up"}
    press(page)
    expect(page.get_by_role("alert")).to_contain_text("does not take the code of this sign-in (invalid_grant)")


def test_signing_in_under_a_path_of_a_proxy(
    browser: Browser, database: Database, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    issuer.changes, issuer.denies = {}, ""
    port = free_port()
    settings = issuer.settings | {"API__PATH_PREFIX": "/esp", "API__TRUSTED_PROXIES": "127.0.0.1"}
    with (
        ApiProcess(tmp_path_factory.mktemp("under"), database.dsn, settings) as api,
        served_under("/esp", api.url, port) as url,
        tab(browser, f"{url}/", provider=issuer.url) as page,
    ):
        page.goto("./#/fleet")
        press(page)
        expect(page.get_by_role("link", name="ESP-01")).to_be_visible()
        assert page.url.startswith(f"{url}/")
        page.goto("./docs")
        expect(page.get_by_role("heading", name="esp-ingest")).to_be_visible()
        expect(page.get_by_text("/api/v1/wells", exact=True).first).to_be_visible()
