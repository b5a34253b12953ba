"""The application: routes, middleware and errors, each from one list."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
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
    app.openapi = lambda: describe_api(app)
    for router in (*ROUTERS, *([playground.router] if service.config.playground.enabled else [])):
        app.include_router(router)
    if service.traces is not None:
        service.traces.watch(app, service.engine)
    return app
