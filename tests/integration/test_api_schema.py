"""The schema is what clients are written against: it may not change unseen, every operation has an example that fits,
and whatever is sent within it and beside it, every answer is as it says (schemathesis, against the real process)."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from esp_ingest.store.schema import migrate
from tests.support.api import ApiProcess, insert_alarm, insert_reading
from tests.support.databases import Server
from tools import openapi

SCHEMA: dict[str, Any] = json.loads(openapi.text())
OPERATIONS = [(method, path) for path, methods in SCHEMA["paths"].items() for method in methods]
LOADED = schemathesis.openapi.from_dict(SCHEMA)


def test_it_is_the_one_that_was_published() -> None:
    """`make docs` writes it. A change that breaks clients (a path, parameter or field that goes, a new required one)
    needs another version of the API, not another file."""
    assert openapi.FILE.read_text(encoding="utf-8") == openapi.text()


def test_its_version() -> None:
    assert SCHEMA["openapi"].startswith("3.1")


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_operation_is_described_and_has_an_example_that_fits(method: str, path: str) -> None:
    operation = SCHEMA["paths"][path][method]
    assert operation["summary"]
    assert operation["description"]
    good = next(answer for status, answer in operation["responses"].items() if status.startswith("2"))
    examples = [
        (media.get("schema", {}), media["example"]) for media in good.get("content", {}).values() if "example" in media
    ]
    for body in operation.get("requestBody", {}).get("content", {}).values():
        examples.append((body["schema"], body["example"]))
    assert examples
    for schema, example in examples:
        whole = {**schema, "components": SCHEMA["components"]}
        jsonschema.Draft202012Validator(whole).validate(example)
    for parameter in operation.get("parameters", ()):
        assert parameter.get("description") or parameter["schema"].get("description"), parameter["name"]


def test_every_list_comes_in_each_format() -> None:
    pages = [
        (path, operation["responses"]["200"]["content"])
        for path, methods in SCHEMA["paths"].items()
        for method, operation in methods.items()
        if method == "get" and "items" in _properties(operation)
    ]
    assert len(pages) > 10
    for path, content in pages:
        assert set(content) == {"application/json", "text/csv", "application/vnd.apache.arrow.stream"}, path


def _properties(operation: dict[str, Any]) -> dict[str, Any]:
    schema = operation["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema", {})
    found = SCHEMA["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], {})
    properties: dict[str, Any] = found.get("properties", {})
    return properties


@pytest.fixture(scope="module")
def api(timescaledb_apache_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    made = timescaledb_apache_server.create_database()
    migrate(made.settings)
    at = datetime.now(UTC).replace(microsecond=0)
    for number in range(50):
        insert_reading(made, "ESP-01", at - timedelta(minutes=number))
    with made.connect() as connection:
        insert_alarm(connection, "ESP-01", "gas_lock", at)
    process = ApiProcess(tmp_path_factory.mktemp("api"), made.dsn, {"API__SIGN_IN_PER_MINUTE": "10000"})
    process.add_user("ada", "admin")
    with process:
        yield process
    timescaledb_apache_server.drop_database(made)


@pytest.fixture(scope="module")
def token(api: ApiProcess) -> str:
    return api.command("users", "token", "ada", "--days", "1").stdout.strip()


# The stream does not end by itself; test_api_stream.py has it.
@(LOADED.exclude(path="/api/v1/stream").parametrize())
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent(case: schemathesis.Case, api: ApiProcess, token: str) -> None:
    """What the schema cannot say (from lies before to; a time that exists) may refuse what fits the schema."""
    headers = {"Authorization": f"Bearer {token}"}
    case.call_and_validate(base_url=api.url, headers=headers, timeout=30, excluded_checks=[positive_data_acceptance])


def test_nothing_failed_inside(api: ApiProcess) -> None:
    """After all of the above."""
    assert "failed inside" not in api.log()
    assert api.health("ready") == 200
