"""An OpenID provider on loopback: discovery, JWKS, a sign-in page that sends the browser back at once, a token endpoint
that checks the verifier of PKCE, and tokens signed with whatever key a test wants."""

import base64
import hashlib
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

SECRET = "a secret of at least thirty-two bytes, for tests"
CLIENT = "esp-ingest"


class Issuer:
    """``with Issuer() as issuer:``. The switches below are for tests to set."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {"one": rsa.generate_private_key(public_exponent=65537, key_size=2048)}
        self.requests = 0
        self.client_secret = ""  # what the client must send, "" for a public client
        self.gives_refresh = True
        self.life_seconds = 300
        self.denies = ""  # the error that a browser comes back with
        self.breaks = False  # answers 500
        self.changes: dict[str, Any] = {}  # of the parameters that a browser comes back with
        self.claims: dict[str, Any] = {}  # of every token
        self.id_claims: dict[str, Any] = {}  # of ID tokens
        self.revoked: list[str] = []
        self._codes: dict[str, dict[str, str]] = {}
        self._refresh: set[str] = set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests += 1
                path, query = urlsplit(self.path).path, dict(parse_qsl(urlsplit(self.path).query))
                if path == "/authorize":
                    self.send_response(302)
                    self.send_header("Location", issuer.authorize(query))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    self.reply(*((500, {}) if issuer.breaks else (200, issuer.answer(path))))

            def do_POST(self) -> None:
                issuer.requests += 1
                text = self.rfile.read(int(self.headers["Content-Length"])).decode()
                form = dict(parse_qsl(text))
                scheme, _, basic = self.headers.get("Authorization", "").partition(" ")
                if scheme == "Basic":
                    name, _, secret = base64.b64decode(basic).decode().partition(":")
                    form |= {"client_id": unquote(name), "client_secret": unquote(secret)}
                self.reply(*((500, {}) if issuer.breaks else issuer.post(self.path, form)))

            def reply(self, status: int, document: dict[str, Any]) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def settings(self) -> dict[str, str]:
        """For an ApiProcess."""
        return {
            "API__OIDC_ISSUER": self.url,
            "API__OIDC_ROLE_CLAIM": "realm_access.roles",
            "API__OIDC_ROLES": '{"esp-operators": "operator", "esp-admins": "admin"}',
            "API__OIDC_WELLS_CLAIM": "esp_wells",
        }

    def answer(self, path: str) -> dict[str, Any]:
        if path == "/.well-known/openid-configuration":
            endpoints = {"authorization": "authorize", "token": "token", "revocation": "revoke"}
            named = {f"{name}_endpoint": f"{self.url}/{path}" for name, path in endpoints.items()}
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys", **named}
        found = []
        for kid, key in self.keys.items():
            kind = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
            found.append(json.loads(kind.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"})
        found.append({"kty": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).decode(), "kid": "shared"})
        return {"keys": found}

    def token(self, kid: str = "one", key: Any = None, alg: str = "RS256", **changes: Any) -> str:
        """A signed token; a claim that is changed to None is left out."""
        now = int(time.time())
        claims = {
            "iss": self.url, "aud": "esp-ingest", "sub": "0001", "preferred_username": "olga", "iat": now,
            "exp": now + self.life_seconds, "realm_access": {"roles": ["esp-operators", "other"]},
            "esp_wells": ["A-*"], "jti": secrets.token_hex(4),
        }  # fmt: skip
        claims = {name: value for name, value in (claims | self.claims | changes).items() if value is not None}
        return jwt.encode(claims, key or self.keys[kid], alg, {"kid": kid})

    def authorize(self, asked: dict[str, str]) -> str:
        """Where the browser is sent: back, with a code or an error."""
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        back = {"error": self.denies} if self.denies else {"code": code}
        back |= {"state": asked["state"], "iss": self.url, **self.changes}
        return f"{asked['redirect_uri']}?{urlencode(back)}"

    def post(self, path: str, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """(status, document) of the endpoints for clients. A code or refresh token is good for one use."""
        if form.get("client_id") != CLIENT or form.get("client_secret", "") != self.client_secret:
            return 401, {"error": "invalid_client"}
        if path == "/revoke":
            self.revoked.append(form["token"])
            return 200, {}
        asked: dict[str, str] = {}
        if form["grant_type"] == "refresh_token":
            if form["refresh_token"] not in self._refresh:
                return 400, {"error": "invalid_grant"}
            self._refresh.remove(form["refresh_token"])
        else:
            asked = self._codes.pop(form["code"], {})
            digest = hashlib.sha256(form["code_verifier"].encode()).digest()
            challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            if asked.get("code_challenge") != challenge or asked["redirect_uri"] != form["redirect_uri"]:
                return 400, {"error": "invalid_grant", "error_description": "<b>not to be shown</b>"}
        found = {
            "access_token": self.token(),
            "id_token": self.token(**({"nonce": asked.get("nonce")} | self.id_claims)),
            "token_type": "Bearer",
            "expires_in": self.life_seconds,
        }
        if self.gives_refresh:
            found["refresh_token"] = secrets.token_urlsafe(900)  # as long as those of real providers
            self._refresh.add(str(found["refresh_token"]))
        return 200, found
