"""Signs users in, and finds out who sent a request. Every request needs a bearer token, except those for health, the
schema and the console's files. It is an access token of a session, the token of a machine, or a token of an OpenID
provider.

The rights of a user are looked up in the database and not read from the token, so that `users disable` and a new
role take effect within seconds."""

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import jwt

from esp_ingest.api.access import passwords
from esp_ingest.api.access.keys import KeyRing
from esp_ingest.api.access.oidc import OidcUnavailable, OidcVerifier
from esp_ingest.api.access.oidc_client import OidcClient, OidcRefused
from esp_ingest.api.access.principal import Principal
from esp_ingest.api.access.throttle import SignInThrottle
from esp_ingest.api.access.tokens import Tokens
from esp_ingest.api.database import Database
from esp_ingest.api.wire.problems import Problem
from esp_ingest.config.settings import Settings
from esp_ingest.interfaces import Clock
from esp_ingest.model import at_us
from esp_ingest.service.metrics import ApiMetrics
from esp_ingest.store import users
from esp_ingest.store.connection import Connection

log = logging.getLogger(__name__)

ISSUER, AUDIENCE = "esp-ingest", "esp-ingest-api"
MACHINE_PREFIX = "esp_"
_TRUST_SECONDS = 5.0  # how long a look-up of a user counts
_REMEMBERED = 2_000
_HASHES_AT_ONCE = 2  # 64 MiB and a core each
_HASHES_WAITING = 32
_FIRST_USER = "No user has been made yet: run `esp-ingest users add NAME --role admin` on the API's host."


def machine_token() -> str:
    """A new token for a machine. Its prefix lets scanners for leaked secrets find it."""
    return MACHINE_PREFIX + secrets.token_urlsafe(32)


def _provider_away() -> Problem:
    return Problem(
        503,
        "provider-unavailable",
        "The OpenID provider does not answer: try again in some seconds.",
    )


def _refresh_refused() -> Problem:
    return unauthorized("The refresh token is not good any more: sign in again.", "refresh-refused")


def unauthorized(detail: str, kind: str = "unauthorized") -> Problem:
    """The answer 401: the client has to sign in, or to sign in again."""
    return Problem(401, kind, detail, headers={"WWW-Authenticate": 'Bearer realm="esp-ingest"'})


class Auth:
    """Sessions and tokens. All methods are to be used in the event loop."""

    def __init__(
        self, settings: Settings, database: Database, keys: KeyRing, clock: Clock, metrics: ApiMetrics
    ) -> None:
        self._settings = settings.api
        self._database = database
        self._keys = keys
        self._clock = clock
        self._metrics = metrics
        self._throttle = SignInThrottle(clock, settings.api.sign_in_per_minute)
        self._hashing = asyncio.Semaphore(_HASHES_AT_ONCE)
        self._hashing_or_waiting = 0
        self._known: OrderedDict[str, tuple[float, Principal]] = OrderedDict()
        self.oidc = OidcVerifier(settings.api, clock) if settings.api.oidc_issuer else None
        self.client = OidcClient(settings.api, self.oidc, clock) if self.oidc is not None else None

    # -- Who asks.

    async def principal(self, header: str | None) -> Principal:
        """Who sent a request with this Authorization header. Raises Problem 401 and 503."""
        scheme, _, token = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise await self._nobody()
        return await self.of_token(token.strip())

    async def of_token(self, token: str) -> Principal:
        """Whose token this is. Raises Problem 401 and 503."""
        try:
            if token.startswith(MACHINE_PREFIX):
                found = await self._of_machine(token)
            elif self.oidc is not None:
                found = await self.oidc.principal(token)
            else:
                found = await self._of_session(token)
        except jwt.ExpiredSignatureError:
            raise unauthorized("The access token has expired: refresh it, or sign in again.", "token-expired") from None
        except (jwt.PyJWTError, ValueError):
            raise unauthorized("The access token is not one of this API: sign in again.", "token-invalid") from None
        except OidcUnavailable:
            raise _provider_away() from None
        return found

    async def _nobody(self) -> Problem:
        """The problem for a request without a token. While there is no user at all, it says how to make the first."""
        if self.oidc is not None:
            return unauthorized(f"Send a bearer token of {self._settings.oidc_issuer}.")
        try:
            row = await self._database.fetch_one("api_has_users")
        except Exception:  # to be told to sign in needs no database
            row = (True,)
        if row is not None and not row[0]:
            return unauthorized(_FIRST_USER, "no-users")
        return unauthorized("Sign in at POST /api/v1/auth/token and send the access token as a bearer token.")

    async def _of_machine(self, token: str) -> Principal:
        key = users.token_hash(token).hex()
        known = self._recall(key)
        if known is not None:
            return known
        row = await self._database.fetch_one("api_token_user", {"hash": bytes.fromhex(key)})
        if row is None:
            raise unauthorized(
                "The token is unknown, revoked or has ended: make another with `esp-ingest users token`.",
                "token-invalid",
            )
        name, role, wells, expires_at = row
        return self._remember(key, Principal(name, role, tuple(wells), "token", expires_at.timestamp()))

    async def _of_session(self, token: str) -> Principal:
        claims = self._keys.verify(
            token, issuer=ISSUER, audience=AUDIENCE, required=["exp", "iat", "sub", "sid", "iss", "aud"]
        )
        key, session = f"{claims['sid']} {claims['sub']}", UUID(str(claims["sid"]))
        known = self._recall(key)
        if known is None:
            row = await self._database.fetch_one("api_session_user", {"name": str(claims["sub"]), "family": session})
            if row is None:
                raise unauthorized("The session has ended: sign in again.", "session-ended")
            known = Principal(str(claims["sub"]), row[0], tuple(row[1]), "user", 0.0, str(session))
            self._remember(key, known)
        return Principal(known.name, known.role, known.wells, "user", float(claims["exp"]), str(session))

    def _recall(self, key: str) -> Principal | None:
        found = self._known.get(key)
        if found is None or self._clock.monotonic() - found[0] > _TRUST_SECONDS:
            return None
        has_ended = 0.0 < found[1].expires_at <= self._clock.now_us() / 1e6
        return None if has_ended else found[1]

    def _remember(self, key: str, principal: Principal) -> Principal:
        self._known[key] = (self._clock.monotonic(), principal)
        self._known.move_to_end(key)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return principal

    # -- Sessions.

    async def sign_in(self, name: str, password: str, address: str) -> Tokens:
        """Begin a session. Blocks while the password is hashed. Raises Problem: 401 whatever is wrong, and 429 with
        Retry-After after too many attempts."""
        self._refuse_under_oidc()
        self._refuse_in_haste(address, name)
        try:
            find = partial(users.find, name=name)
            user = await self._database.write(find) if "\0" not in name else None
            right = await self._matches(user, password)
        except Exception:
            self._throttle.unjudged(address, name)
            raise
        if user is None or not right or user.disabled:
            self._metrics.sign_ins.labels("refused").inc()
            await self._record(name, address, "sign-in refused")
            if user is None and (row := await self._database.fetch_one("api_has_users")) and not row[0]:
                raise unauthorized(_FIRST_USER, "no-users")
            raise unauthorized("User name or password is wrong.", "sign-in-refused")
        self._throttle.succeeded(address, name)
        self._metrics.sign_ins.labels("ok").inc()
        return await self._begin(user, password, address)

    def _refuse_crowd(self, address: str) -> None:
        """As below, where a provider judges: attempts are counted for the address alone."""
        self._refuse_in_haste(address, "")
        self._throttle.unjudged(address, "")

    def _refuse_in_haste(self, address: str, name: str) -> None:
        wait = self._throttle.wait(address, name)
        if wait > 0:
            self._metrics.sign_ins.labels("throttled").inc()
            seconds = int(wait) + 1
            raise Problem(
                429,
                "too-many-sign-ins",
                f"Too many attempts to sign in: wait {seconds} s.",
                headers={"Retry-After": str(seconds)},
            )

    async def sign_in_with_code(
        self, code: str, code_verifier: str, redirect_uri: str, nonce: str | None, address: str
    ) -> Tokens:
        """Exchange the code that a browser brought from the OpenID provider for tokens. Raises Problem: 401 if the
        provider refuses the code, 403 for a user without a role, 404 if no provider is configured, 429 after too
        many attempts, and 503 while the provider does not answer."""
        if self.client is None:
            raise Problem(
                404, "no-provider", "Users of this API are local: sign in at POST /api/v1/auth/token with a password."
            )
        self._refuse_crowd(address)
        try:
            tokens, who = await self._from_provider(self.client.exchange(code, code_verifier, redirect_uri, nonce))
        except OidcRefused as error:
            self._metrics.sign_ins.labels("refused").inc()
            await self._record("", address, f"sign-in refused by the provider: {error.code}")
            detail = f"The provider does not take the code of this sign-in ({error.code}): sign in again."
            raise unauthorized(detail, "sign-in-refused") from None
        self._metrics.sign_ins.labels("ok").inc()
        await self._record(who.name, address, "signed in through the provider")
        return tokens

    async def _from_provider(self, asked: Awaitable[tuple[Tokens, Principal]]) -> tuple[Tokens, Principal]:
        try:
            return await asked
        except OidcUnavailable:
            raise _provider_away() from None

    async def _begin(self, user: users.User, password: str, address: str) -> Tokens:
        session, token = uuid4(), secrets.token_urlsafe(32)
        newer = None
        if passwords.is_outdated(user.password_hash):
            newer = await asyncio.to_thread(passwords.hashed, password)

        def work(connection: Connection) -> None:
            users.begin_session(connection, user.name, session, token, self._refresh_end())
            users.record(connection, user.name, address, "signed in")
            if newer is not None:
                users.rehash(connection, user.name, user.password_hash, newer)

        await self._database.write(work)
        return self._tokens(user.name, session, token)

    async def refresh(self, token: str, address: str) -> Tokens:
        """The next tokens of a session, those of the provider if one is configured. Raises Problem 401, 403 and 503."""
        if self.client is not None:
            self._refuse_crowd(address)
            try:
                return (await self._from_provider(self.client.refresh(token)))[0]
            except OidcRefused:
                raise _refresh_refused() from None
        following = secrets.token_urlsafe(32)

        def work(connection: Connection) -> users.Refreshed:
            done = users.refresh(connection, token, following, self._refresh_end())
            if done.refused == "reused":
                users.record(connection, done.user_name, address, "refresh token used twice, session ended")
            return done

        done = await self._database.write(work)
        if done.refused is not None or done.family is None:
            self._forget(done.family)
            if done.refused == "reused":
                log.warning("a refresh token was used twice", extra={"user": done.user_name, "address": address})
            raise _refresh_refused()
        return self._tokens(done.user_name, done.family, following)

    async def sign_out(self, token: str, address: str) -> None:
        """End the session of a refresh token. A token that is not known is ignored: its session has ended already.
        With an OpenID provider, the provider is told that the token is no longer needed, if it accepts that."""
        if self.client is not None:
            await self.client.revoke(token)
            return

        def work(connection: Connection) -> users.Refreshed:
            done = users.end_session(connection, token)
            if done.refused is None:
                users.record(connection, done.user_name, address, "signed out")
            return done

        self._forget((await self._database.write(work)).family)

    def _forget(self, family: UUID | None) -> None:
        for key in [key for key in self._known if family is not None and key.startswith(str(family))]:
            del self._known[key]

    def _tokens(self, name: str, session: UUID, refresh_token: str) -> Tokens:
        now = self._clock.now_us() // 1_000_000
        life = round(self._settings.access_minutes * 60)
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": name, "sid": str(session), "iat": now, "exp": now + life}
        return Tokens(self._keys.sign(claims | {"jti": secrets.token_hex(8)}), refresh_token, life)

    def _refresh_end(self) -> Any:
        return at_us(self._clock.now_us() + round(self._settings.refresh_days * 86_400e6))

    async def _matches(self, user: users.User | None, password: str) -> bool:
        if self._hashing_or_waiting >= _HASHES_WAITING:
            raise Problem(503, "overloaded", "Too many sign in at once: try again.", headers={"Retry-After": "2"})
        self._hashing_or_waiting += 1
        try:
            async with self._hashing:
                stored = None if user is None or len(password) > passwords.LONGEST else user.password_hash
                return await asyncio.to_thread(passwords.matches, stored, password[: passwords.LONGEST])
        finally:
            self._hashing_or_waiting -= 1

    def _refuse_under_oidc(self) -> None:
        if self.oidc is not None:
            raise Problem(
                404, "no-local-users", f"Users sign in at {self._settings.oidc_issuer}: send a bearer token of it."
            )

    async def _record(self, who: str, address: str, action: str) -> None:
        await self._database.write(lambda connection: users.record(connection, who.replace("\0", ""), address, action))
