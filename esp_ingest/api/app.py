"""Builds the FastAPI application: its parts, its routes and its OpenAPI schema."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware

from esp_ingest import __version__
from esp_ingest.api.access import keys
from esp_ingest.api.access.auth import Auth
from esp_ingest.api.context import Api
from esp_ingest.api.database import Database
from esp_ingest.api.guard import Guard
from esp_ingest.api.monitor import Monitor
from esp_ingest.api.readiness import Readiness
from esp_ingest.api.reads.fleet import Fleet
from esp_ingest.api.reads.live import Feed
from esp_ingest.api.reads.recent import RecentPages
from esp_ingest.api.routes import (
    actions,
    alarms,
    losses,
    operations,
    pages,
    pump,
    rules,
    session,
    stream,
    telemetry,
    wells,
)
from esp_ingest.api.wire import problems
from esp_ingest.api.wire.models import ProblemDocument
from esp_ingest.api.wire.schema import PROBLEM_EXAMPLE
from esp_ingest.config.settings import Settings
from esp_ingest.interfaces import Clock
from esp_ingest.service.clock import SystemClock
from esp_ingest.service.metrics import ApiMetrics
from esp_ingest.telemetry.limits import HardLimits

DESCRIPTION = """\
What esp-ingest stores, for SCADA, notebooks, Grafana and the console. Every request needs a bearer token; errors are
problem documents (RFC 9457); lists are `{items, next}`, `next` is the address of the next page; times are RFC
3339 in UTC. Lists come as JSON, CSV (`Accept: text/csv`) or Arrow (`Accept: application/vnd.apache.arrow.stream`)."""
THREADS = 8  # that files are read in; and as many for passwords, writes and names of hosts
ROUTERS = (session, wells, pump, telemetry, losses, alarms, actions, rules, operations, stream, pages)


def create_app(settings: Settings) -> FastAPI:
    """Build the application. It connects to the database when it is started, and does not wait for the connection.
    Raises ConfigError."""
    api = _parts(settings, SystemClock())

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # Few threads, however many processors there are: the unit's TasksMax has room for them.
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "api"))
        await api.database.open()
        watching = asyncio.create_task(api.readiness.watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await api.feed.stop()
            await api.monitor.close()
            await api.database.close()

    guard = Middleware(
        Guard,
        max_body_bytes=settings.api.max_body_bytes,
        is_tls=bool(settings.api.cert_file),
        metrics=api.metrics,
        clock=api.clock,
    )
    app = bare_app(lifespan=lifespan, middleware=[guard])
    app.state.api = api
    pages.mount(app)
    return app


def bare_app(**options: Any) -> FastAPI:
    """The routes and the schema without a database or settings, which is enough to write docs/openapi.json."""
    app = FastAPI(
        title="esp-ingest",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        **options,
    )
    problems.install(app)
    for module in ROUTERS:
        app.include_router(module.router)
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _with_whole_examples(_completed(plain()))
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
    return app


def _parts(settings: Settings, clock: Clock) -> Api:
    metrics = ApiMetrics()
    database = Database(settings)
    monitor = Monitor(settings, clock)
    return Api(
        settings=settings,
        clock=clock,
        database=database,
        auth=Auth(settings, database, keys.load(settings), clock, metrics),
        fleet=Fleet(database, clock),
        feed=Feed(database, monitor, clock, settings.api.silent_after_seconds),
        recent_pages=RecentPages(clock),
        monitor=monitor,
        readiness=Readiness(database, clock, metrics),
        metrics=metrics,
        limits=HardLimits(settings.telemetry),
    )


def _with_whole_examples(schema: dict[str, Any]) -> dict[str, Any]:
    """Put back the null values that FastAPI leaves out of examples."""
    for module in ROUTERS:
        for route in module.router.routes:
            if not isinstance(route, APIRoute) or not route.include_in_schema:
                continue
            for method in route.methods or ():
                described = schema["paths"][route.path][method.lower()]["responses"]
                for status, answer in route.responses.items():
                    for media, content in answer.get("content", {}).items():
                        if "example" in content:
                            described[str(status)]["content"][media]["example"] = content["example"]
    return schema


def _completed(schema: dict[str, Any]) -> dict[str, Any]:
    """Add the problem document that the routes refer to, and remove the framework's own error models."""
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    schemas[ProblemDocument.__name__] = ProblemDocument.model_json_schema() | {"examples": [PROBLEM_EXAMPLE]}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return schema
