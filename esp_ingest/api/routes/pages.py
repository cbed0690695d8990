"""Health, metrics, the page of the schema, and the console: all that needs no token."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse, Response
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Match, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from esp_ingest.api.context import Parts
from esp_ingest.api.wire import models
from esp_ingest.api.wire.answers import fresh
from esp_ingest.service.metrics import CONTENT_TYPE

router = APIRouter(tags=["operations"])

STATIC = Path(__file__).parent.parent / "static"
CONSOLE = Path(__file__).parent.parent / "console"
_NOT_CONSOLE = ("/api/", "/health/", "/metrics", "/openapi.json", "/docs")
_OK = {"status": "ok", "checks": {"database": {"ok": True, "detail": "answers"}}}


def _health_answers(example: Any) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"example": example}}
    return {
        200: {"model": models.Health, "content": content, "description": "it is so"},
        503: {"model": models.Health, "description": "it is not; checks say why"},
    }


@router.get(
    "/health/live",
    summary="Does it move?",
    responses=_health_answers({"status": "ok", "checks": {}}),
)
async def live() -> Response:
    """200 as long as the process answers; no outage of the database turns it red."""
    return fresh({"status": "ok", "checks": {"loop": {"ok": True, "detail": "answers"}}})


@router.get("/health/ready", summary="Can it answer?", responses=_health_answers(_OK))
async def ready(api: Parts) -> Response:
    """200 while the database answers and has its schema."""
    ok, detail = await api.readiness.look()
    checks = {"database": {"ok": ok, "detail": detail}}
    return fresh({"status": "ok" if ok else "failing", "checks": checks}, 200 if ok else 503)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    responses={
        200: {
            "description": "Prometheus text format",
            "content": {
                "text/plain": {
                    "schema": {"type": "string"},
                    "example": 'esp_ingest_api_requests_total{method="GET",status="2xx"} 12.0',
                }
            },
        }
    },
)
async def metrics(api: Parts) -> Response:
    """Requests, their times, streams, and the pool."""
    api.metrics.streams.set(api.feed.watchers)
    return Response(api.metrics.render(), media_type=CONTENT_TYPE, headers={"Cache-Control": "no-store"})


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """The schema as a page, from files of this host."""
    return FileResponse(STATIC / "docs.html", headers={"Cache-Control": "no-cache"})


def mount(app: FastAPI) -> None:
    """Serve the files: /static for the page of the schema, and the console at /. They are packed, as they hold nothing
    secret; answers of the API are not."""
    app.mount("/static", GZipMiddleware(StaticFiles(directory=STATIC)), name="static")
    app.router.routes.append(_ConsoleMount("/", GZipMiddleware(_Console(directory=CONSOLE, html=True)), name="console"))


class _ConsoleMount(Mount):
    """The console's files, mounted at /. A plain mount at / would take every path, and would answer for methods that
    an operation lacks."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See Starlette. What is not the console's it does not know."""
        if scope["path"].removeprefix(scope["root_path"]).startswith(_NOT_CONSOLE):
            return Match.NONE, {}
        return super().matches(scope)


class _Console(StaticFiles):
    """Files of the console. A path that is not one of them is a problem document, as everywhere."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """See Starlette. A browser asks each time whether a file has changed."""
        found = super().file_response(*args, **kwargs)
        found.headers["Cache-Control"] = "no-cache"
        return found
