"""The application: routes, middleware and errors, each from one list."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.routing import Route

import motet
from motet.server.errors import HANDLERS
from motet.server.middleware import middleware
from motet.server.openapi import describe_api
from motet.server.routes import admin, chat, compare, completions, models, probes, score, strategies, tokens
from motet.server.service import Service
from motet.server.unsupported import unknown_endpoint

ROUTERS: tuple[APIRouter, ...] = (
    models.router,
    strategies.router,
    chat.router,
    completions.router,
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
    for router in ROUTERS:
        app.include_router(router)
    if service.traces is not None:
        service.traces.watch(app, service.engine)
    return app
