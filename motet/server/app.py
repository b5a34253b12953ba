"""The application: routes, middleware and errors, each from one list."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import motet
from motet.server.http.errors import HANDLERS
from motet.server.http.middleware import middleware
from motet.server.http.openapi import describe_api
from motet.server.http.unsupported import unknown_endpoint
from motet.server.routes import (
    admin,
    chat,
    compare,
    completions,
    messages,
    models,
    playground,
    probes,
    responses,
    score,
    strategies,
    tokens,
)
from motet.server.service import Service

ROUTERS: tuple[APIRouter, ...] = (
    models.router,
    strategies.router,
    chat.router,
    completions.router,
    responses.router,
    messages.router,
    score.router,
    compare.router,
    tokens.router,
    probes.router,
    admin.router,
)


def create_app(service: Service) -> FastAPI:
    """`/docs` shows the API with files of a package: no machine but this one is asked for them."""
    app = FastAPIOffline(
        redoc_url=None,
        title="Motet",
        version=motet.__version__,
        description="An OpenAI-compatible server that composes several language models at the logit level.",
        middleware=middleware(service.config),
        exception_handlers={**HANDLERS, 404: unknown_endpoint},
    )
    app.state.service = service
    app.state.paths = [route.path for router in ROUTERS for route in router.routes if isinstance(route, Route)]
    _describe_in_a_thread(app)
    for router in (*ROUTERS, *([playground.router] if service.config.playground.enabled else [])):
        app.include_router(router)
    if service.traces is not None:
        service.traces.watch(app, service.engine)
    return app


def _describe_in_a_thread(app: FastAPI) -> None:
    """The description takes a second to make, in which FastAPI's own route for it would let nobody else in."""

    def description(_: Request) -> Response:
        return JSONResponse(app.openapi())

    app.openapi = lambda: describe_api(app)
    app.router.routes[:] = [route for route in app.routes if getattr(route, "path", None) != app.openapi_url]
    app.add_route(app.openapi_url or "", description, include_in_schema=False)


async def build(app: FastAPI) -> None:
    """Builds what would otherwise be built, while everybody waits, for whoever asks first: anyio's part for this event
    loop, and the routes."""
    await anyio.lowlevel.checkpoint()
    nowhere: dict[str, Any] = {"type": "http", "method": "GET", "path": "/-", "headers": [], "path_params": {}}
    for route in app.routes:
        route.matches(dict(nowhere))
