"""Signing in through an OpenID provider with a code and PKCE: against the real API and a small provider on loopback."""

import base64
import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from esp_ingest.store.schema import migrate
from tests.support.api import ApiProcess, insert_reading
from tests.support.databases import Database, Server
from tests.support.oidc import Issuer


@pytest.fixture(scope="module")
def database(timescaledb_apache_server: Server) -> Iterator[Database]:
    made = timescaledb_apache_server.create_database()
    migrate(made.settings)
    insert_reading(made, "A-1", datetime.now(UTC))
    yield made
    timescaledb_apache_server.drop_database(made)


@pytest.fixture(scope="module")
def provider() -> Iterator[Issuer]:
    with Issuer() as made:
        made.client_secret = "s3cret: with/what=needs quoting"
        yield made


@pytest.fixture(scope="module")
def api(database: Database, provider: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    folder = tmp_path_factory.mktemp("api")
    (folder / "secret").write_text(provider.client_secret + "\n")
    settings = provider.settings | {
        "API__OIDC_CLIENT_SECRET_FILE": str(folder / "secret"),
        "API__SIGN_IN_PER_MINUTE": "1000",
    }
    with ApiProcess(folder, database.dsn, settings) as process:
        yield process


@pytest.fixture
def issuer(provider: Issuer) -> Iterator[Issuer]:
    """The provider, with its switches back in place afterwards."""
    before = dict(vars(provider))
    yield provider
    for name in ("client_secret", "gives_refresh", "breaks", "claims", "id_claims"):
        setattr(provider, name, before[name])


@dataclass
class Begun:
    """A sign-in whose browser has come back from the provider."""

    code: str
    state: str
    body: dict[str, Any]


def begin(api: ApiProcess) -> Begun:
    """What the console does in the browser."""
    with api.client() as client:
        methods = client.get("/api/v1/auth/methods").json()
    verifier, state, nonce = (secrets.token_urlsafe(32) for _ in range(3))
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    query = {
        "response_type": "code", "client_id": methods["client_id"], "redirect_uri": f"{api.url}/", "state": state,
        "scope": methods["scope"], "nonce": nonce, "code_challenge": challenge, "code_challenge_method": "S256",
    }  # fmt: skip
    answer = httpx.get(methods["authorization_endpoint"], params=query, trust_env=False)
    assert answer.status_code == 302
    back = dict(parse_qsl(urlsplit(answer.headers["location"]).query))
    body = {"code": back["code"], "code_verifier": verifier, "redirect_uri": f"{api.url}/", "nonce": nonce}
    return Begun(back["code"], back["state"], body)


def finish(api: ApiProcess, body: dict[str, Any]) -> httpx.Response:
    with api.client() as client:
        return client.post("/api/v1/auth/oidc", json=body)


def refused(answer: httpx.Response) -> tuple[int, str]:
    """(status, kind), of a problem document whose detail is one sentence."""
    document = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["detail"].endswith(".")
    assert "\n" not in document["detail"]
    assert "<b>" not in answer.text
    return answer.status_code, document["type"].rpartition(":")[2]


def test_a_code_becomes_tokens_that_can_be_refreshed(api: ApiProcess, issuer: Issuer, database: Database) -> None:
    answer = finish(api, begin(api).body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    tokens = answer.json()
    assert set(tokens) == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert 280 <= tokens["expires_in"] <= 300
    with api.client(tokens["access_token"]) as client:
        assert client.get("/api/v1/me").json()["name"] == "olga"
        following = client.post("/api/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        assert following.status_code == 200, following.text
        assert following.json()["refresh_token"] != tokens["refresh_token"]
        again = client.post("/api/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        assert refused(again) == (401, "refresh-refused")
        last = following.json()["refresh_token"]
        assert client.post("/api/v1/auth/logout", json={"refresh_token": last}).status_code == 204
    assert issuer.revoked == [last]
    audit = database.all("SELECT who, action FROM api_audit ORDER BY id")
    assert ("olga", "signed in through the provider") in audit
    for secret in (tokens["access_token"], tokens["refresh_token"], issuer.client_secret):
        assert secret not in api.log()


def test_without_a_refresh_token(api: ApiProcess, issuer: Issuer) -> None:
    issuer.gives_refresh = False
    tokens = finish(api, begin(api).body).json()
    assert set(tokens) == {"access_token", "token_type", "expires_in"}


def test_a_wrong_verifier(api: ApiProcess, issuer: Issuer) -> None:
    begun = begin(api)
    assert refused(finish(api, begun.body | {"code_verifier": "x" * 43})) == (401, "sign-in-refused")
    assert refused(finish(api, begun.body | {"code_verifier": "short"})) == (422, "invalid-request")


def test_a_code_that_comes_twice_or_was_never_given(api: ApiProcess, issuer: Issuer) -> None:
    body = begin(api).body
    assert finish(api, body).status_code == 200
    assert refused(finish(api, body)) == (401, "sign-in-refused")
    assert refused(finish(api, body | {"code": "made up"})) == (401, "sign-in-refused")


@pytest.mark.parametrize("nonce", ["another one", None])
def test_a_wrong_nonce(api: ApiProcess, issuer: Issuer, nonce: str | None) -> None:
    assert refused(finish(api, begin(api).body | {"nonce": nonce})) == (401, "nonce-wrong")


@pytest.mark.parametrize(
    "elsewhere", ["https://evil.example/", "{url}", "{url}/other", "{url}/?x=1", "{url}//", "http://localhost:{port}/"]
)
def test_only_the_consoles_own_address_is_a_redirect_uri(api: ApiProcess, issuer: Issuer, elsewhere: str) -> None:
    """The provider is not even asked."""
    body = begin(api).body
    before = issuer.requests
    wrong = finish(api, body | {"redirect_uri": elsewhere.format(url=api.url, port=api.port)})
    assert refused(wrong) == (422, "invalid-parameter")
    assert issuer.requests == before


@pytest.mark.parametrize(
    ("claims", "id_claims", "expected"),
    [
        ({"realm_access": None}, {}, (403, "no-role")),
        ({"aud": "another program"}, {"aud": "esp-ingest"}, (503, "provider-misconfigured")),
        ({}, {"aud": "another program"}, (401, "id-token-invalid")),
        ({}, {"azp": "another client"}, (401, "nonce-wrong")),
        ({}, {"exp": 1}, (401, "id-token-invalid")),
    ],
)
def test_tokens_that_are_not_for_us(
    api: ApiProcess, issuer: Issuer, claims: dict[str, Any], id_claims: dict[str, Any], expected: tuple[int, str]
) -> None:
    issuer.claims, issuer.id_claims = claims, id_claims
    assert refused(finish(api, begin(api).body)) == expected


def test_a_client_that_the_provider_does_not_know(api: ApiProcess, issuer: Issuer) -> None:
    body = begin(api).body
    issuer.client_secret = "another"
    answer = finish(api, body)
    assert refused(answer) == (503, "provider-misconfigured")
    assert "api.oidc_client_id" in answer.json()["detail"]


def test_a_provider_that_fails_and_one_that_is_away(
    api: ApiProcess, issuer: Issuer, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    body = begin(api).body
    issuer.breaks = True
    assert refused(finish(api, body)) == (503, "provider-unavailable")
    with Issuer() as gone:
        settings = gone.settings
    with ApiProcess(tmp_path_factory.mktemp("alone"), database.dsn, settings) as alone:
        with alone.client() as client:
            methods = client.get("/api/v1/auth/methods").json()
            assert (methods["method"], methods["authorization_endpoint"]) == ("oidc", None)
            refresh = client.post("/api/v1/auth/refresh", json={"refresh_token": "x"})
        for answer in (finish(alone, body | {"redirect_uri": f"{alone.url}/"}), refresh):
            assert refused(answer) == (503, "provider-unavailable")
            assert answer.headers["retry-after"]
    issuer.breaks = False
    assert finish(api, body).status_code == 200, "the code is still good"
