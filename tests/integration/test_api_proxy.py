"""The API under a path of a proxy in front: what it answers holds for those who ask through the proxy."""

from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest

from esp_ingest.store.schema import migrate
from tests.support.api import ApiProcess, insert_reading
from tests.support.databases import Server, free_port
from tests.support.prefix_proxy import served_under


@pytest.fixture(scope="module")
def client(timescaledb_apache_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a viewer, through the proxy at /site/esp."""
    database = timescaledb_apache_server.create_database()
    migrate(database.settings)
    for well in ("A-1", "A-2", "A-3"):
        insert_reading(database, well, datetime.now(UTC))
    api = ApiProcess(tmp_path_factory.mktemp("api"), database.dsn, {"API__PATH_PREFIX": "/site/esp"})
    api.add_user("vera", "viewer")
    with api, served_under("/site/esp", api.url, free_port()) as url:
        headers = {"Authorization": f"Bearer {api.sign_in('vera')['access_token']}"}
        with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=20) as found:
            yield found
    timescaledb_apache_server.drop_database(database)


def test_next_links_lead_through_the_proxy(client: httpx.Client) -> None:
    first = client.get("/api/v1/wells", params={"limit": 2})
    following = first.json()["next"]
    assert following.startswith("/site/esp/api/v1/wells?")
    assert first.headers["link"] == f'<{following}>; rel="next"'
    rest = client.get(client.base_url.copy_with(raw_path=following.encode()))
    assert [item["well_id"] for page in (first, rest) for item in page.json()["items"]] == ["A-1", "A-2", "A-3"]


def test_the_schema_names_the_path_as_its_server(client: httpx.Client) -> None:
    assert client.get("/openapi.json").json()["servers"] == [{"url": "/site/esp"}]


@pytest.mark.parametrize("path", ["/", "/app.js", "/docs", "/static/docs.js", "/health/live"])
def test_pages_and_files_are_found(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 200


def test_what_is_not_there_is_a_problem_under_the_path(client: httpx.Client) -> None:
    answer = client.get("/api/v1/nothing")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.json()["instance"] == "/site/esp/api/v1/nothing"


def test_the_head_of_the_stream_is_no_stream(client: httpx.Client) -> None:
    assert client.head("/api/v1/stream").status_code == 405


@pytest.mark.parametrize("wrong", ["esp", "/esp/", "/", "/e?x", "//esp"])
def test_a_prefix_that_is_no_path_is_refused(wrong: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    api = ApiProcess(tmp_path_factory.mktemp("wrong"), "postgresql://127.0.0.1/none", {"API__PATH_PREFIX": wrong})
    refused = api.command("api")
    assert refused.returncode == 2
    assert "api.path_prefix" in refused.stderr
