"""Tokens that are forged, expired, replayed or of somebody else are refused: those of local sessions, of machines, and
of an OpenID provider, which here is a small issuer of our own on loopback."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from esp_ingest.store.schema import migrate
from tests.support.api import PASSWORD, ApiProcess, insert_reading
from tests.support.databases import Database, Server
from tests.support.oidc import SECRET, Issuer


def pem(key: Any) -> str:
    options = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*options).decode()


def public_pem(key: Any) -> bytes:
    options = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    found: bytes = key.public_key().public_bytes(*options)
    return found


@pytest.fixture(scope="module")
def database(timescaledb_apache_server: Server) -> Iterator[Database]:
    made = timescaledb_apache_server.create_database()
    migrate(made.settings)
    insert_reading(made, "A-1", datetime.now(UTC))
    yield made
    timescaledb_apache_server.drop_database(made)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EC key that signs and an older secret that is still accepted."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "new.pem").write_text(pem(ec.generate_private_key(ec.SECP256R1())))
    (folder / "old").write_text(SECRET)
    return folder


@pytest.fixture(scope="module")
def api(database: Database, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    settings = {"API__KEY_FILE": f"{keys / 'new.pem'},{keys / 'old'}", "API__SIGN_IN_PER_MINUTE": "1000"}
    process = ApiProcess(tmp_path_factory.mktemp("api"), database.dsn, settings)
    process.add_user("vera", "viewer")
    with process:
        yield process


def status(api: ApiProcess, token: str) -> tuple[int, str]:
    """(status, kind of problem) of a request with this token."""
    with api.client(token) as client:
        answer = client.get("/api/v1/me")
    return answer.status_code, answer.json().get("type", "").rpartition(":")[2]


def spelled(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def forge(token: str, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> str:
    """The token with another head and other claims under its old signature."""
    head, claims = jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})
    change(head, claims)
    return f"{spelled(head)}.{spelled(claims)}.{token.rpartition('.')[2]}"


def key_id(content: bytes) -> str:
    from esp_ingest.api.access.keys import key_id

    return key_id(b"secret", content)


def claims_of(api: ApiProcess, **changes: Any) -> dict[str, Any]:
    """What a good token says, changed."""
    found = jwt.decode(api.sign_in("vera")["access_token"], options={"verify_signature": False})
    return {name: value for name, value in (found | changes).items() if value is not None}


def test_a_good_token_is_good(api: ApiProcess) -> None:
    token = api.sign_in("vera")["access_token"]
    assert jwt.get_unverified_header(token)["alg"] == "ES256"
    assert status(api, token)[0] == 200


def test_the_older_key_is_accepted_too(api: ApiProcess) -> None:
    token = jwt.encode(claims_of(api), SECRET.encode(), "HS256", {"kid": key_id(SECRET.encode())})
    assert status(api, token)[0] == 200


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda head, claims: claims.update(sub="admin"), id="another user"),
        pytest.param(lambda head, claims: claims.update(exp=claims["exp"] + 3600), id="a longer life"),
        pytest.param(lambda head, claims: head.update(alg="none"), id="alg none"),
        pytest.param(lambda head, claims: head.update(alg="HS256"), id="a public key as a secret"),
        pytest.param(lambda head, claims: head.update(kid="nobody's"), id="an unknown key"),
        pytest.param(lambda head, claims: head.pop("kid"), id="no key"),
        pytest.param(lambda head, claims: head.update(kid="../../etc/passwd"), id="a path as a key"),
        pytest.param(lambda head, claims: head.update(jku="http://127.0.0.1:9/"), id="a key from elsewhere"),
        pytest.param(lambda head, claims: head.update(crit=["exp"]), id="an extension that nobody knows"),
    ],
)
def test_a_changed_token_is_refused(api: ApiProcess, change: Any) -> None:
    assert status(api, forge(api.sign_in("vera")["access_token"], change)) == (401, "token-invalid")


def test_alg_none_without_a_signature(api: ApiProcess) -> None:
    head, claims = {"alg": "none", "typ": "JWT"}, claims_of(api)
    for kid in (None, key_id(SECRET.encode())):
        named = head | ({"kid": kid} if kid else {})
        assert status(api, f"{spelled(named)}.{spelled(claims)}.") == (401, "token-invalid")


def test_the_public_key_is_no_secret(api: ApiProcess, keys: Path) -> None:
    """The oldest of tricks: HS256 over what everybody may know."""
    key = serialization.load_pem_private_key((keys / "new.pem").read_bytes(), None)
    kid = jwt.get_unverified_header(api.sign_in("vera")["access_token"])["kid"]
    body = f"{spelled({'alg': 'HS256', 'kid': kid})}.{spelled(claims_of(api))}"
    import hashlib
    import hmac

    signed = hmac.new(public_pem(key), body.encode(), hashlib.sha256).digest()
    token = f"{body}.{base64.urlsafe_b64encode(signed).rstrip(b'=').decode()}"
    assert status(api, token) == (401, "token-invalid")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"exp": int(time.time()) - 60}, "token-expired"),
        ({"exp": None}, "token-invalid"),
        ({"iat": int(time.time()) + 3600}, "token-invalid"),
        ({"iss": "somebody"}, "token-invalid"),
        ({"aud": "something"}, "token-invalid"),
        ({"sid": str(uuid4())}, "session-ended"),
        ({"sid": "not a session"}, "token-invalid"),
        ({"sub": "vera' OR true --"}, "session-ended"),
        ({"sub": "nemo"}, "session-ended"),
    ],
)
def test_a_rightly_signed_token_of_something_else(api: ApiProcess, changes: dict[str, Any], kind: str) -> None:
    token = jwt.encode(claims_of(api, **changes), SECRET.encode(), "HS256", {"kid": key_id(SECRET.encode())})
    assert status(api, token) == (401, kind)


def test_a_token_of_a_clock_that_is_a_little_ahead(api: ApiProcess) -> None:
    claims = claims_of(api, iat=int(time.time()) + 15)
    assert status(api, jwt.encode(claims, SECRET.encode(), "HS256", {"kid": key_id(SECRET.encode())}))[0] == 200


@pytest.mark.parametrize("token", ["x", "a.b.c", "esp_", "esp_" + "A" * 43, "a b", "é" * 20, "." * 5000])
def test_rubbish(api: ApiProcess, token: str) -> None:
    with api.client() as client:
        answer = client.get("/api/v1/me", headers={"Authorization": f"Bearer {token}".encode()})
    assert answer.status_code == 401


def test_a_refresh_token_is_good_once_and_a_second_use_ends_the_session(api: ApiProcess) -> None:
    first = api.sign_in("vera")
    with api.client() as client:
        answer = client.post("/api/v1/auth/refresh", json={"refresh_token": first["refresh_token"]})
        assert answer.status_code == 200
        second = answer.json()
        assert status(api, second["access_token"])[0] == 200
        replayed = client.post("/api/v1/auth/refresh", json={"refresh_token": first["refresh_token"]})
        assert (replayed.status_code, replayed.json()["type"].rpartition(":")[2]) == (401, "refresh-refused")
        again = client.post("/api/v1/auth/refresh", json={"refresh_token": second["refresh_token"]})
        assert again.status_code == 401, "the thief's and the owner's tokens are dead"
    assert status(api, second["access_token"]) == (401, "session-ended")
    assert status(api, first["access_token"]) == (401, "session-ended")
    assert status(api, api.sign_in("vera")["access_token"])[0] == 200


def test_two_uses_at_the_same_time_are_one_and_a_replay(api: ApiProcess) -> None:
    token = api.sign_in("vera")["refresh_token"]
    codes: list[int] = []

    def use() -> None:
        with api.client() as client:
            codes.append(client.post("/api/v1/auth/refresh", json={"refresh_token": token}).status_code)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [200, 401, 401, 401]


def test_signing_out_ends_access_and_refresh(api: ApiProcess) -> None:
    tokens = api.sign_in("vera")
    with api.client(tokens["access_token"]) as client:
        assert client.get("/api/v1/me").status_code == 200
        body = {"refresh_token": tokens["refresh_token"]}
        assert client.post("/api/v1/auth/logout", json=body).status_code == 204
        assert client.get("/api/v1/me").status_code == 401
        assert client.post("/api/v1/auth/refresh", json=body).status_code == 401
        assert client.post("/api/v1/auth/logout", json=body).status_code == 204


def test_an_expired_refresh_token(api: ApiProcess, database: Database) -> None:
    tokens = api.sign_in("vera")
    database.run("UPDATE api_refresh_tokens SET expires_at = now() - interval '1 second'")
    with api.client() as client:
        answer = client.post("/api/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
    assert answer.status_code == 401


def test_a_machines_token_ends(api: ApiProcess, database: Database) -> None:
    token = api.command("users", "token", "vera", "--days", "1").stdout.strip()
    assert status(api, token)[0] == 200
    database.run("UPDATE api_tokens SET expires_at = now() - interval '1 second'")
    time.sleep(5.2)  # a look-up counts for 5 s
    assert status(api, token) == (401, "token-invalid")


def test_nothing_secret_is_stored(api: ApiProcess, database: Database) -> None:
    tokens = api.sign_in("vera")
    machine = api.command("users", "token", "vera", "--days", "1").stdout.strip()
    rows = [
        str(database.all(f"SELECT t::text FROM {table} t"))
        for table in ("api_users", "api_tokens", "api_refresh_tokens", "api_audit")
    ]
    for secret in (PASSWORD, tokens["refresh_token"], tokens["access_token"], machine):
        assert not any(secret in row for row in rows)
        assert secret not in api.log()
    assert database.value("SELECT password_hash FROM api_users").startswith("$argon2id$")


@pytest.fixture(scope="module")
def strict(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    process = ApiProcess(tmp_path_factory.mktemp("strict"), database.dsn, {"API__SIGN_IN_PER_MINUTE": "16"})
    process.add_user("walt", "viewer")
    process.add_user("xena", "viewer")
    with process:
        yield process


class TestSigningIn:
    def test_failures_cost_a_growing_wait_and_lock_nobody_else(self, strict: ApiProcess) -> None:
        with strict.client() as client:

            def attempt(name: str, password: str) -> httpx.Response:
                return client.post("/api/v1/auth/token", data={"username": name, "password": password})

            codes = [attempt("walt", "wrong password").status_code for _ in range(8)]
            assert codes[:5] == [401] * 5
            assert 429 in codes[5:]
            refused = attempt("walt", PASSWORD)
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 16
            assert f"wait {refused.headers['retry-after']} s." in refused.json()["detail"], "both say the same"
            assert attempt("xena", PASSWORD).status_code == 200, "another user of the same address is not held up"
            time.sleep(int(refused.headers["retry-after"]) + 0.2)
            assert attempt("walt", PASSWORD).status_code == 200, "nobody is locked out"

    def test_an_address_has_so_many_attempts_a_minute(self, strict: ApiProcess) -> None:
        def attempt(number: int) -> int:
            with strict.client() as client:
                form = {"username": f"u{number}", "password": "x" * 8}
                return client.post("/api/v1/auth/token", data=form).status_code

        with ThreadPoolExecutor(20) as threads:
            codes = list(threads.map(attempt, range(20)))
        assert set(codes) == {401, 429}


def test_the_first_user(timescaledb_apache_server: Server, tmp_path: Path) -> None:
    made = timescaledb_apache_server.create_database()
    migrate(made.settings)
    with ApiProcess(tmp_path, made.dsn) as process:
        with process.client() as client:
            for answer in (
                client.get("/api/v1/wells"),
                client.post("/api/v1/auth/token", data={"username": "ada", "password": PASSWORD}),
            ):
                assert answer.status_code == 401
                assert "esp-ingest users add" in answer.json()["detail"]
        assert "esp-ingest users add" in process.log()
        process.add_user("ada", "admin")
        process.sign_in("ada")
        key = tmp_path / "state" / "api-key"
        assert key.stat().st_mode & 0o777 == 0o600
        assert str(key) in process.log()
    timescaledb_apache_server.drop_database(made)


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as made:
        yield made


@pytest.fixture(scope="module")
def oidc(database: Database, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    with ApiProcess(tmp_path_factory.mktemp("oidc"), database.dsn, issuer.settings) as process:
        yield process


class TestOpenId:
    def test_name_role_and_wells_come_from_the_claims(self, oidc: ApiProcess, issuer: Issuer) -> None:
        with oidc.client(issuer.token()) as client:
            me = client.get("/api/v1/me").json()
            assert (me["name"], me["role"], me["wells"], me["kind"]) == ("olga", "operator", ["A-*"], "oidc")
            assert client.get("/api/v1/wells/A-1").status_code == 200
        with oidc.client(issuer.token(esp_wells=["B-*"])) as client:
            assert client.get("/api/v1/wells/A-1").status_code == 404
        with oidc.client(issuer.token(esp_wells=None)) as client:
            assert client.get("/api/v1/wells").json()["items"] == []

    def test_a_new_key_of_the_issuer_is_found(self, oidc: ApiProcess, issuer: Issuer) -> None:
        assert status(oidc, issuer.token())[0] == 200
        issuer.keys["two"] = ec.generate_private_key(ec.SECP256R1())
        deadline = time.monotonic() + 15  # so often at most is it asked
        while status(oidc, issuer.token("two", alg="ES256"))[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert status(oidc, issuer.token())[0] == 200

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"iss": "https://elsewhere.example"}, (401, "token-invalid")),
            ({"aud": "another-program"}, (401, "token-invalid")),
            ({"exp": int(time.time()) - 60}, (401, "token-expired")),
            ({"exp": None}, (401, "token-invalid")),
            ({"sub": None}, (401, "token-invalid")),
            ({"realm_access": {"roles": ["other"]}}, (403, "no-role")),
            ({"realm_access": None}, (403, "no-role")),
            (
                {"kid": "one", "key": rsa.generate_private_key(public_exponent=65537, key_size=2048)},
                (401, "token-invalid"),
            ),
            ({"kid": "shared", "key": SECRET, "alg": "HS256"}, (401, "token-invalid")),
            ({"kid": "one", "key": SECRET, "alg": "HS256"}, (401, "token-invalid")),
        ],
    )
    def test_refused(
        self, oidc: ApiProcess, issuer: Issuer, changes: dict[str, Any], expected: tuple[int, str]
    ) -> None:
        assert status(oidc, issuer.token(**changes)) == expected

    def test_alg_none(self, oidc: ApiProcess, issuer: Issuer) -> None:
        claims = jwt.decode(issuer.token(), options={"verify_signature": False})
        token = f"{spelled({'alg': 'none', 'kid': 'one'})}.{spelled(claims)}."
        assert status(oidc, token) == (401, "token-invalid")

    def test_tokens_of_unknown_keys_do_not_make_it_ask_without_end(self, oidc: ApiProcess, issuer: Issuer) -> None:
        before = issuer.requests
        stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        for number in range(20):
            assert status(oidc, issuer.token(f"k{number}", stranger))[0] == 401
        assert issuer.requests - before <= 4

    def test_local_users_are_out(self, oidc: ApiProcess, api: ApiProcess) -> None:
        with oidc.client() as client:
            answer = client.post("/api/v1/auth/token", data={"username": "vera", "password": PASSWORD})
            assert answer.status_code == 404
            assert client.get("/api/v1/auth/methods").json()["method"] == "oidc"
        with api.client() as client:
            body = {"code": "x", "code_verifier": "x" * 43, "redirect_uri": f"{api.url}/"}
            assert client.post("/api/v1/auth/oidc", json=body).status_code == 404
        assert status(oidc, api.sign_in("vera")["access_token"])[0] == 401
