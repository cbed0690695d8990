"""Verifies tokens of an OpenID provider, which then takes the place of local users. Only its address is configured,
the rest is discovered (/.well-known/openid-configuration, JWKS). oidc_client.py obtains such tokens for the console."""

import asyncio
import logging
from typing import Any

import httpx
import jwt

from esp_ingest.api.access.keys import LEEWAY_SECONDS
from esp_ingest.api.access.principal import EVERYTHING, Principal, Role
from esp_ingest.api.wire.problems import Problem
from esp_ingest.config.hosts import is_private_url
from esp_ingest.config.settings import ApiSettings
from esp_ingest.interfaces import Clock

log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
TIMEOUT_SECONDS = 5.0
_KEYS_LIVE_SECONDS = 600.0
_LEAST_PAUSE_SECONDS = 10.0  # between two look-ups, however many tokens of unknown keys come
_RETRY_SECONDS = 2.0  # between two look-ups while nothing has been found yet
_MOST_BYTES = 1_048_576


class OidcUnavailable(Exception):
    """The provider does not answer."""


class OidcVerifier:
    """Checks tokens against the keys of the provider. The keys are fetched when they are first needed, when they are
    ten minutes old, and when a token names a key that is not known."""

    def __init__(self, settings: ApiSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._keys: dict[str, tuple[jwt.PyJWK, tuple[str, ...]]] = {}  # by id: the key and what it may sign with
        self._document: dict[str, Any] = {}  # what the issuer says of itself
        self._fetched = float("-inf")
        self._asked = float("-inf")
        self._lock = asyncio.Lock()

    async def principal(self, token: str) -> Principal:
        """Whose token this is. Raises jwt.InvalidTokenError and OidcUnavailable, and Problem 403 for a user without
        a role."""
        return self._principal(await self.claims(token, self._settings.oidc_audience))

    async def claims(self, token: str, audience: str) -> dict[str, Any]:
        """The claims of a token that the provider made for this audience. Raises jwt.InvalidTokenError and
        OidcUnavailable."""
        header = jwt.get_unverified_header(token)
        if header.get("alg") not in ALGORITHMS:
            raise jwt.InvalidTokenError("signed in a way that is not accepted")
        key, algorithms = await self._key(str(header.get("kid", "")))
        claims: dict[str, Any] = jwt.decode(
            token,
            key.key,
            algorithms=list(algorithms),
            issuer=self._settings.oidc_issuer,
            audience=audience,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iat", "sub", "iss", "aud"]},
        )
        return claims

    async def said(self) -> dict[str, Any]:
        """The provider's own description: its endpoints and what it supports. Raises OidcUnavailable."""
        if self._clock.monotonic() - self._fetched > _KEYS_LIVE_SECONDS:
            async with self._lock:
                await self._refresh(None)
        return self._document

    def _principal(self, claims: dict[str, Any]) -> Principal:
        name = str(claims.get("preferred_username") or claims.get("email") or claims["sub"])
        said = _texts(_claim(claims, self._settings.oidc_role_claim))
        roles = {self._settings.oidc_roles[each] for each in said if each in self._settings.oidc_roles}
        role: Role | None = next((each for each in ("admin", "operator", "viewer") if each in roles), None)
        if role is None:
            raise Problem(
                403,
                "no-role",
                f"The provider names no role of this API for {name}: give it one, or add it to api.oidc_roles.",
            )
        wells: tuple[str, ...] = EVERYTHING
        if self._settings.oidc_wells_claim:
            wells = tuple(_texts(_claim(claims, self._settings.oidc_wells_claim)))
        return Principal(name, role, wells, "oidc", float(claims["exp"]))

    async def _key(self, kid: str) -> tuple[jwt.PyJWK, tuple[str, ...]]:
        now = self._clock.monotonic()
        if kid not in self._keys or now - self._fetched > _KEYS_LIVE_SECONDS:
            async with self._lock:
                await self._refresh(kid)
        if kid not in self._keys:
            raise jwt.InvalidTokenError("signed with a key that the issuer does not publish")
        return self._keys[kid]

    async def _refresh(self, kid: str | None) -> None:
        """Fetch the endpoints and the keys again, unless they are fresh and the key ``kid`` (None: any) is known."""
        now = self._clock.monotonic()
        is_known = kid is None or kid in self._keys
        pause = _LEAST_PAUSE_SECONDS if self._document else _RETRY_SECONDS
        if is_known and now - self._fetched <= _KEYS_LIVE_SECONDS:
            return
        if now - self._asked < pause:
            if not self._document:
                raise OidcUnavailable("it did not answer a moment ago")
            return
        self._asked = now
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, follow_redirects=False) as client:
                address = self._settings.oidc_issuer.rstrip("/") + "/.well-known/openid-configuration"
                found = await _json(client, address)
                if found.get("issuer") != self._settings.oidc_issuer:
                    raise ValueError(f"{address} is of another issuer than api.oidc_issuer")
                self._keys = _keys(await _json(client, str(found.get("jwks_uri", ""))))
                self._document, self._fetched = found, now
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            log.warning("the OpenID provider does not answer", extra={"reason": repr(error)})
            if not self._document:  # old keys go on being good: an outage of the provider signs nobody out
                self._asked = self._clock.monotonic()
                raise OidcUnavailable(str(error)) from None


async def _json(client: httpx.AsyncClient, address: str) -> dict[str, Any]:
    answer = await client.get(checked(address))
    answer.raise_for_status()
    return json_object(answer)


def checked(address: str) -> str:
    """The address, if what is sent there cannot be read on the way. Raises ValueError."""
    if not is_private_url(address):
        raise ValueError(f"{address!r} is not an https:// address")
    return address


def json_object(answer: httpx.Response) -> dict[str, Any]:
    """The JSON object in an answer. Raises ValueError."""
    if len(answer.content) > _MOST_BYTES:
        raise ValueError("more than a megabyte")
    found = answer.json()
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _keys(found: dict[str, Any]) -> dict[str, tuple[jwt.PyJWK, tuple[str, ...]]]:
    """The public signing keys in a JWKS document, by id, each with the algorithms that it may be used with. Shared
    secrets are left out. An RSA key that names no algorithm may be used with any RSA algorithm; other keys have one
    each."""
    keys = {}
    for each in found.get("keys", ()):
        if each.get("kty") not in ("RSA", "EC", "OKP") or each.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK(each)
        except jwt.PyJWTError:
            continue
        is_open = each["kty"] == "RSA" and "alg" not in each
        may = tuple(a for a in ALGORITHMS if a.startswith(("RS", "PS"))) if is_open else (key.algorithm_name,)
        keys[str(each.get("kid", ""))] = (key, tuple(a for a in may if a in ALGORITHMS))
    return keys


def _claim(claims: dict[str, Any], path: str) -> Any:
    """A claim by its path: ``realm_access.roles`` goes into an object. A claim whose own name has dots, such as a
    URL, is found by the whole name."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return value.split()
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
