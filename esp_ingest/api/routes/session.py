"""/api/v1/auth and /api/v1/me: signing in and out."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from esp_ingest.api.context import Parts, Viewer, address_of
from esp_ingest.api.wire.answers import fresh, respond
from esp_ingest.api.wire.bodies import OidcBody, RefreshBody
from esp_ingest.api.wire.models import AuthMethods, Me, Tokens
from esp_ingest.api.wire.problems import invalid
from esp_ingest.api.wire.schema import answers, problem_answers, takes
from esp_ingest.model import at_us

router = APIRouter(prefix="/api/v1", tags=["session"])
_TOKENS = {"access_token": "eyJ…", "refresh_token": "mC0…", "token_type": "bearer", "expires_in": 900}
_METHODS = {
    "method": "local", "issuer": None, "audience": None, "authorization_endpoint": None, "client_id": None,
    "scope": None,
}  # fmt: skip
_ME = {"name": "ada", "role": "operator", "wells": ["A-*"], "kind": "user", "expires_at": "2026-11-25T12:15:00Z"}


@router.post(
    "/auth/token",
    summary="Sign in with name and password",
    responses=answers(Tokens, _TOKENS, problems=(400, 404, 413, 415, 429), cached=False),
    openapi_extra=takes({"username": "ada", "password": "correct horse battery"}, "application/x-www-form-urlencoded"),
)
async def sign_in(
    request: Request,
    api: Parts,
    username: Annotated[str, Form(min_length=1, max_length=200)],
    password: Annotated[str, Form(min_length=1, max_length=2_000)],
) -> Response:
    """Gives an access token, which lives for some minutes, and a refresh token, which is good for one use. Too many
    failures from one address for one user make that address wait for that user; nobody is locked out."""
    tokens = await api.auth.sign_in(username, password, address_of(request))
    return fresh(tokens.document())


@router.post(
    "/auth/oidc",
    summary="Sign in with the code of an OpenID provider",
    responses=answers(Tokens, _TOKENS, problems=(400, 403, 404, 413, 415, 429), cached=False),
    openapi_extra=takes(
        {
            "code": "SplxlOBeZQQYbYS6WxSbIA", "code_verifier": "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
            "redirect_uri": "https://esp.example.org/", "nonce": "n-0S6_WzA2Mj",
        }
    ),
)  # fmt: skip
async def sign_in_with_code(request: Request, api: Parts, body: OidcBody) -> Response:
    """The end of the authorization code flow with PKCE (S256): the browser was at the `authorization_endpoint` of
    `/auth/methods` and brings the code back; the API exchanges it for the provider's tokens. `redirect_uri` must be
    this API's own address, of the console's page `/`. Without a nonce the ID token must have none."""
    if api.auth.client is not None:
        _refuse_foreign_origin(request, body.redirect_uri)
    tokens = await api.auth.sign_in_with_code(
        body.code, body.code_verifier, body.redirect_uri, body.nonce, address_of(request)
    )
    return fresh(tokens.document())


def _refuse_foreign_origin(request: Request, redirect_uri: str) -> None:
    """Raises Problem 422 for any other address than that of the console."""
    prefix = request.scope["root_path"]
    own = f"{request.url.scheme}://{request.headers.get('host', '')}{prefix}/"
    if redirect_uri != own:
        raise invalid(
            "redirect_uri",
            f"redirect_uri must be {own[:200]}, the console's own address: if a proxy in front has TLS or another "
            "name, have it pass Host and X-Forwarded-Proto on, and name it in api.trusted_proxies; its path is "
            "api.path_prefix.",
        )


@router.post(
    "/auth/refresh",
    summary="The next tokens of a session",
    responses=answers(Tokens, _TOKENS, problems=(400, 403, 404, 413, 415, 429), cached=False),
    openapi_extra=takes({"refresh_token": "mC0…"}),
)
async def refresh(request: Request, api: Parts, body: RefreshBody) -> Response:
    """Takes the refresh token of the last answer, once. A token that comes a second time was stolen: the session
    ends. Under an OpenID provider it is the provider's refresh token, and the provider's tokens come back."""
    tokens = await api.auth.refresh(body.refresh_token, address_of(request))
    return fresh(tokens.document())


@router.post(
    "/auth/logout",
    summary="Sign out",
    status_code=204,
    responses={204: {"description": "the session has ended"}, **problem_answers(400, 413, 415, 422, 503)},
    openapi_extra=takes({"refresh_token": "mC0…"}),
)
async def sign_out(request: Request, api: Parts, body: RefreshBody) -> Response:
    """Ends the session that a refresh token belongs to, its access tokens too."""
    await api.auth.sign_out(body.refresh_token, address_of(request))
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


@router.get(
    "/auth/methods",
    summary="How to sign in",
    responses=answers(AuthMethods, _METHODS),
)
async def methods(request: Request, api: Parts) -> Response:
    """Needs no token: the sign-in page asks it."""
    settings = api.settings.api
    if api.auth.client is None:
        return respond(request, _METHODS)
    return respond(
        request,
        {
            "method": "oidc",
            "issuer": settings.oidc_issuer,
            "audience": settings.oidc_audience,
            "authorization_endpoint": await api.auth.client.authorization_endpoint(),
            "client_id": settings.oidc_client_id,
            "scope": settings.oidc_scope,
        },
    )


@router.get("/me", summary="Who one is", responses=answers(Me, _ME))
async def me(request: Request, principal: Viewer) -> Response:
    """Name, role and wells of the user that the token belongs to."""
    document = {
        "name": principal.name,
        "role": principal.role,
        "wells": list(principal.wells),
        "kind": principal.kind,
        "expires_at": at_us(round(principal.expires_at) * 1_000_000),
    }
    return respond(request, document)
