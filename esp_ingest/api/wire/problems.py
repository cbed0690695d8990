"""Every error is answered with a problem document (RFC 9457, application/problem+json) that says what is wrong and what
to do about it.

Internals are not disclosed: an unexpected error is written to the log, and the client only reads "internal error"."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests
from starlette.exceptions import HTTPException

from esp_ingest.interfaces import StoreUnavailable

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_TITLES = {
    400: "Bad request",
    401: "Sign in first",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    406: "Not available in that format",
    409: "Conflict",
    413: "Too much at once",
    415: "Unsupported media type",
    422: "Invalid request",
    429: "Too many requests",
    431: "Request head too large",
    500: "Internal error",
    503: "Not available now",
}


class Problem(Exception):
    """An answer that is an error. ``kind`` names it for programs, ``detail`` is a sentence for people that says what
    to do."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})


_INTERNAL = Problem(500, "internal-error", "The request failed inside: the log of the API says why.")


def invalid(name: str, detail: str) -> Problem:
    """The problem for a parameter that cannot be used."""
    return Problem(422, "invalid-parameter", detail, errors=[{"parameter": name, "detail": detail}])


def unavailable(detail: str = "The database cannot be reached: try again in some seconds.") -> Problem:
    """The problem while the database cannot be reached."""
    return Problem(503, "database-unavailable", detail)


def document(problem: Problem, instance: str) -> dict[str, Any]:
    """The problem as a JSON object. ``instance`` is the path of the request."""
    found: dict[str, Any] = {
        "type": f"urn:esp-ingest:problem:{problem.kind}",
        "title": _TITLES.get(problem.status, "Error"),
        "status": problem.status,
        "detail": problem.detail,
        "instance": instance[:500],
    }
    return found | ({"errors": problem.errors} if problem.errors else {})


def answer(problem: Problem, instance: str) -> Response:
    """The problem as an HTTP answer."""
    again = {"Retry-After": "5"} if problem.status == 503 else {}
    headers = {"Cache-Control": "no-store"} | again | problem.headers
    return Response(
        msgspec.json.encode(document(problem, instance)), problem.status, headers=headers, media_type=MEDIA_TYPE
    )


def from_error(error: Exception) -> Problem:
    """The problem that the client gets for an exception."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return _from_framework(error)
    if isinstance(error, RequestValidationError):
        return _from_validation(error)
    if isinstance(error, TooManyRequests):
        return Problem(
            503, "overloaded", "Too many requests wait for the database: try again.", headers={"Retry-After": "2"}
        )
    if isinstance(error, PoolTimeout | PoolClosed | StoreUnavailable | TimeoutError):
        return unavailable()
    if isinstance(error, psycopg.Error):
        return _from_database(error)
    return _INTERNAL


def _from_database(error: psycopg.Error) -> Problem:
    if error.sqlstate == "57014":
        return Problem(
            503,
            "too-slow",
            "The database took longer than a request may: ask for a shorter range or a coarser resolution.",
            headers={"Retry-After": "10"},
        )
    if error.sqlstate in ("42P01", "42703", "3F000", "42883"):
        return unavailable("The database has no schema of this version: run esp-ingest migrate.")
    if error.sqlstate == "42501":
        return unavailable("The API's database user lacks a right: docs/api.md lists what to grant.")
    if isinstance(error, psycopg.DataError) or error.sqlstate in ("22021", "22P05", "22008"):
        return Problem(422, "invalid-value", "The database cannot take a value of this request: leave it out.")
    if error.sqlstate is not None and error.sqlstate[:2] in ("21", "22", "26", "42"):
        return _INTERNAL  # a statement of ours that is wrong
    return unavailable()


def _from_framework(error: HTTPException) -> Problem:
    details = {
        404: "There is nothing at this path: /openapi.json lists what there is.",
        405: "This path does not take that method: /openapi.json lists those that it takes.",
        400: "The request cannot be read: send the body as /openapi.json describes it.",
    }
    kinds = {404: "no-such-path", 405: "method-not-allowed", 400: "unreadable"}
    detail = details.get(error.status_code, str(error.detail))
    return Problem(error.status_code, kinds.get(error.status_code, "error"), detail, headers=error.headers)


def _from_validation(error: RequestValidationError) -> Problem:
    """The problem for a request that does not fit the schema. The value is not repeated, because it may be a secret."""
    errors = []
    for each in error.errors()[:20]:
        where = [str(part) for part in each.get("loc", ())]
        errors.append({"parameter": ".".join(where[1:]) or (where or ["body"])[0], "detail": str(each["msg"])})
    first = errors[0]
    return Problem(422, "invalid-request", f"{first['parameter']}: {first['detail']}.", errors=errors)


def _wrong_media(request: Request) -> Problem | None:
    """The problem for a body of another media type than the route takes, which else is read as if it were nothing.
    `curl -d` sends a form if it is not told otherwise."""
    field = getattr(request.scope.get("route"), "body_field", None)
    wanted = getattr(getattr(field, "field_info", None), "media_type", None)
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if wanted is None or not given or given == wanted:
        return None
    if given.endswith("+json" if wanted == "application/json" else "/form-data"):
        return None
    detail = f"This takes a body of the type {wanted}: send it so, with the header Content-Type: {wanted}."
    return Problem(415, "unsupported-media-type", detail, headers={"Accept-Post": wanted})


def install(app: FastAPI) -> None:
    """Have the application answer with problem documents where the framework has answers of its own. Every other error
    reaches the guard around the application (api/guard.py)."""

    async def handle(request: Request, error: Exception) -> Response:
        problem = _wrong_media(request) if isinstance(error, RequestValidationError) else None
        return answer(problem or from_error(error), request.url.path)

    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, handle)
