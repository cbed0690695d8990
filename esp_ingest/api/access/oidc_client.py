"""The console as a client of the OpenID provider: authorization code flow with PKCE (RFC 6749, RFC 7636).

The browser is sent to the provider and comes back with a code. The API exchanges the code for tokens, so that the
console sends nothing to another host and a client secret never reaches the browser."""

import hmac
import logging
import re
from typing import Any
from urllib.parse import quote

import httpx
import jwt

from esp_ingest.api.access.oidc import TIMEOUT_SECONDS, OidcUnavailable, OidcVerifier, checked, json_object
from esp_ingest.api.access.principal import Principal
from esp_ingest.api.access.tokens import Tokens
from esp_ingest.api.wire.problems import Problem
from esp_ingest.config.settings import ApiSettings
from esp_ingest.interfaces import Clock

log = logging.getLogger(__name__)

_OURS_TO_MEND = ("invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope")


class OidcRefused(Exception):
    """The provider refused the code or the refresh token. ``code`` is its error, such as invalid_grant."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class OidcClient:
    """Sends requests to the provider. To be used in the event loop. Every method may wait for the provider for some
    seconds."""

    def __init__(self, settings: ApiSettings, verifier: OidcVerifier, clock: Clock) -> None:
        self._settings = settings
        self._verifier = verifier
        self._clock = clock

    async def authorization_endpoint(self) -> str | None:
        """The address where a browser signs in, None while the provider does not answer."""
        try:
            return checked(str((await self._verifier.said()).get("authorization_endpoint", "")))
        except (OidcUnavailable, ValueError):
            return None

    async def exchange(
        self, code: str, code_verifier: str, redirect_uri: str, nonce: str | None
    ) -> tuple[Tokens, Principal]:
        """The tokens for the code of a sign-in, and who signed in. Raises OidcRefused, OidcUnavailable and Problem."""
        answer = await self._ask(
            "token_endpoint",
            {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": redirect_uri,
                "code_verifier": code_verifier,
            },
        )
        await self._check_id_token(str(answer.get("id_token", "")), nonce)
        return await self._tokens(answer, None)

    async def refresh(self, token: str) -> tuple[Tokens, Principal]:
        """The next tokens. The refresh token stays the same unless the provider gives another. Raises as
        :meth:`exchange`."""
        answer = await self._ask("token_endpoint", {"grant_type": "refresh_token", "refresh_token": token})
        return await self._tokens(answer, token)

    async def revoke(self, token: str) -> None:
        """Tell the provider that the refresh token is no longer needed (RFC 7009), if the provider supports that.
        Raises nothing."""
        try:
            if "revocation_endpoint" in await self._verifier.said():
                await self._ask("revocation_endpoint", {"token": token, "token_type_hint": "refresh_token"})
        except (OidcRefused, OidcUnavailable, Problem) as error:
            log.warning("the OpenID provider did not revoke a refresh token", extra={"reason": repr(error)})

    async def _check_id_token(self, token: str, nonce: str | None) -> None:
        """Raises Problem 401 unless the ID token was made for this client and this sign-in."""
        try:
            claims = await self._verifier.claims(token, self._settings.oidc_client_id)
        except jwt.PyJWTError:
            raise Problem(
                401, "id-token-invalid", "The provider's ID token is not one for api.oidc_client_id: sign in again."
            ) from None
        if claims.get("azp", self._settings.oidc_client_id) != self._settings.oidc_client_id or not hmac.compare_digest(
            str(claims.get("nonce") or "").encode(), (nonce or "").encode()
        ):
            raise Problem(401, "nonce-wrong", "The provider's answer is not one to this sign-in: sign in again.")

    async def _tokens(self, answer: dict[str, Any], refresh_token: str | None) -> tuple[Tokens, Principal]:
        access = str(answer.get("access_token", ""))
        try:
            principal = await self._verifier.principal(access)
        except jwt.PyJWTError:
            raise Problem(
                503,
                "provider-misconfigured",
                "The provider's access token is not one for this API: have it give a JWT for the audience of "
                "api.oidc_audience, or ask for its scope in api.oidc_scope.",
            ) from None
        given = answer.get("refresh_token")
        life = max(0, int(principal.expires_at - self._clock.now_us() / 1e6))
        return Tokens(access, given if isinstance(given, str) and given else refresh_token, life), principal

    async def _ask(self, endpoint: str, form: dict[str, str]) -> dict[str, Any]:
        """Send a form to an endpoint of the provider, authenticated as this client. Returns the JSON of the answer,
        or an empty dictionary if the answer has no body."""
        said = await self._verifier.said()
        secret = self._settings.oidc_client_secret.get_secret_value()
        methods = said.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        basic: tuple[str, str] | None = None
        if secret and "client_secret_basic" in methods:
            basic = (quote(self._settings.oidc_client_id, safe=""), quote(secret, safe=""))  # RFC 6749, 2.3.1
        else:
            form = form | {"client_id": self._settings.oidc_client_id} | ({"client_secret": secret} if secret else {})
        try:
            address = checked(str(said.get(endpoint, "")))
            async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, follow_redirects=False, auth=basic) as client:
                answer = await client.post(address, data=form, headers={"Accept": "application/json"})
            if answer.status_code >= 500 or answer.status_code == 429:
                raise OidcUnavailable(f"{endpoint} answers {answer.status_code}")
            found = json_object(answer) if answer.content else {}
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            log.warning("the OpenID provider does not answer", extra={"endpoint": endpoint, "reason": repr(error)})
            raise OidcUnavailable(str(error)) from None
        if answer.status_code != 200:
            raise self._refused(str(found.get("error", "")))
        return found

    def _refused(self, said: str) -> Exception:
        """The exception for an error of the provider. Its text is not repeated, because anybody may have written it."""
        code = said if re.fullmatch(r"[a-z_]{1,40}", said) else "unknown error"
        if code not in _OURS_TO_MEND:
            return OidcRefused(code)
        log.error("the OpenID provider refuses this client", extra={"code": code})
        return Problem(
            503,
            "provider-misconfigured",
            f"The provider refuses this API as its client ({code}): check api.oidc_client_id, its secret and scope.",
        )
