"""The application: routes, middleware and errors, each from one list."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

import motet
from motet.operator.settings import ServerConfig
from motet.server.auth import Auth
from motet.server.errors import HANDLERS
from motet.server.limits import BodyLimit
from motet.server.logs import RequestId
from motet.server.openapi import describe_api
from motet.server.routes import absent, chat, compare, completions, models, probes, score, tokens
from motet.server.service import Service

ROUTERS: tuple[APIRouter, ...] = (
    models.router,
    chat.router,
    completions.router,
    score.router,
    compare.router,
    tokens.router,
    probes.router,
    absent.router,
)


def middleware(config: ServerConfig) -> list[Middleware]:
    """Outermost first. All of it is plain ASGI: Starlette's BaseHTTPMiddleware hides a client's leaving."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(config.cors_origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["x-request-id"],
    )
    return [
        Middleware(RequestId),
        *([cors] if config.cors_origins else []),
        Middleware(Auth, keys=[key.get_secret_value() for key in config.api_keys]),
        Middleware(BodyLimit, max_bytes=config.max_body_bytes),
    ]


def create_app(service: Service) -> FastAPI:
    """`/docs` shows the API with files of a package: no machine but this one is asked for them."""
    app = FastAPIOffline(
        redoc_url=None,
        title="Motet",
        version=motet.__version__,
        description="An OpenAI-compatible server that composes several language models at the logit level.",
        middleware=middleware(service.config),
        exception_handlers=HANDLERS,
    )
    app.state.service = service
    app.openapi = lambda: describe_api(app)
    for router in ROUTERS:
        app.include_router(router)
    return app
