"""What the routes share: the parts of the application, and who sent the request. A route states with ``needs`` which
role it requires."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from esp_ingest.api.access.auth import Auth
from esp_ingest.api.access.principal import Principal, Role
from esp_ingest.api.database import Database
from esp_ingest.api.monitor import Monitor
from esp_ingest.api.readiness import Readiness
from esp_ingest.api.reads.fleet import Fleet
from esp_ingest.api.reads.live import Feed
from esp_ingest.api.reads.recent import RecentPages
from esp_ingest.api.wire.problems import Problem, invalid
from esp_ingest.config.settings import Settings
from esp_ingest.interfaces import Clock
from esp_ingest.service.metrics import ApiMetrics
from esp_ingest.telemetry.limits import HardLimits

if TYPE_CHECKING:
    from fastapi.routing import APIRoute


@dataclass(frozen=True)
class Api:
    """The parts of a running API."""

    settings: Settings
    clock: Clock
    database: Database
    auth: Auth
    fleet: Fleet
    feed: Feed
    recent_pages: RecentPages
    monitor: Monitor
    readiness: Readiness
    metrics: ApiMetrics
    limits: HardLimits


_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="bearer",
    description="an access token of POST /api/v1/auth/token, a machine's token of `esp-ingest users token`, or a token "
    "of the OpenID provider",
)


async def parts(request: Request) -> Api:
    """The parts of this application. Asynchronous only because FastAPI runs other dependencies in a thread."""
    found: Api = request.app.state.api
    return found


def address_of(request: Request) -> str:
    """Where a request comes from, for the audit log and for limits on signing in."""
    return request.client.host if request.client is not None else "unknown"


def needs(role: Role) -> Callable[..., Awaitable[Principal]]:
    """A dependency of a route: the user must have at least this role. Raises Problem 401 or 403."""

    async def check(
        request: Request,
        _shown: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],  # for the schema
    ) -> Principal:
        found = await (await parts(request)).auth.principal(request.headers.get("authorization"))
        if not found.may(role):
            raise Problem(
                403,
                "role-too-low",
                f"This needs the role {role} and {found.name} is {found.role}: ask an administrator.",
            )
        _refuse_unknown_parameters(request)
        return found

    return check


def _refuse_unknown_parameters(request: Request) -> None:
    """Raises Problem 422 for a query parameter that the route does not have: a misspelt filter would silently filter
    nothing."""
    route: APIRoute | None = request.scope.get("route")
    if route is None or not request.query_params:
        return
    known = {field.alias for field in _query_fields(route.dependant)}
    for name in request.query_params:
        if name not in known:
            raise invalid(
                name[:100], f"There is no parameter {name[:100]!r} here: known are {', '.join(sorted(known))}."
            )


def _query_fields(dependant: Any) -> list[Any]:
    found = list(dependant.query_params)
    for each in dependant.dependencies:
        found += _query_fields(each)
    return found


Parts = Annotated[Api, Depends(parts)]
Viewer = Annotated[Principal, Depends(needs("viewer"))]
Operator = Annotated[Principal, Depends(needs("operator"))]
Admin = Annotated[Principal, Depends(needs("admin"))]
