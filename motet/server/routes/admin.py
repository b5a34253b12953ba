"""POST /v1/admin/reload, /v1/admin/load and /v1/admin/unload: for keys whose policy says `admin`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from anyio import to_thread
from fastapi import APIRouter
from starlette.requests import Request

from motet.operator.access import Access
from motet.operator.file import ConfigError
from motet.operator.reload import LEAVING_SECONDS, Changeable, Reloaded, reloaded
from motet.server.http.bodies import JsonRoute
from motet.server.http.errors import ApiError, invalid
from motet.server.service import Service
from motet.server.shapes.answers import INVALID, Upkept
from motet.server.shapes.requests import ModelRequest

# not in the description: for all keys but an admin's they are not there
router = APIRouter(prefix="/v1/admin", include_in_schema=False, route_class=JsonRoute)


@router.post("/reload", response_model=Upkept, responses=INVALID)
async def reload(request: Request) -> dict[str, Any]:
    """Reads the operator's file anew. Requests that run go on as they began; what comes later sees the new keys,
    policies, compositions and models."""
    return await _renewed(request, lambda service, without: frozenset())


@router.post("/load", response_model=Upkept, responses=INVALID)
async def load(body: ModelRequest, request: Request) -> dict[str, Any]:
    """Loads a model of the file that was unloaded."""
    return await _renewed(request, lambda service, without: without - {body.model})


@router.post("/unload", response_model=Upkept, responses=INVALID)
async def unload(body: ModelRequest, request: Request) -> dict[str, Any]:
    """Lets a model of the file go until it is loaded again. A named composition that needs it has to leave the file
    first."""

    def more(service: Service, without: frozenset[str]) -> frozenset[str]:
        if body.model not in service.registry.members:
            raise service.registry.unknown(body.model)
        return without | {body.model}

    return await _renewed(request, more)


def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


async def _renewed(request: Request, change: Callable[[Service, frozenset[str]], frozenset[str]]) -> dict[str, Any]:
    """`change`: which models of the file shall not be loaded, of the service as it is and those that are not; asked
    when no other change is under way."""
    upkeep = _service(request).upkeep
    if upkeep is None:
        raise invalid("This server was not started from an operator's file.", code="no_file")
    async with upkeep.lock:
        service = _service(request)
        without = change(service, upkeep.without)
        try:
            found = await to_thread.run_sync(reloaded, upkeep.configuration, service.registry, service.engine, without)
        except ConfigError as error:
            raise ApiError(400, " ".join(error.problems), code="invalid_file") from error
        settings = found.configuration.settings
        upkeep.configuration, upkeep.without = found.configuration, without
        request.app.state.service = service.renewed(found.registry, Access.of(settings.server, settings.policies))
        _let_go(service, found)
    return {
        "object": "upkeep",
        "models": list(found.registry.members),
        "compositions": [*found.registry.compositions, *found.registry.gated],
        "policies": list(settings.policies),
        "loaded": list(found.loaded),
        "unloaded": list(found.unloaded),
        "needs_restart": list(found.needs_restart),
    }


def _let_go(service: Service, found: Reloaded) -> None:
    for name in found.unloaded:
        # a request that came before may be on its way for so long, and then finds the model still
        cast(Changeable, service.engine).detach(name, service.config.body_timeout_seconds + LEAVING_SECONDS)
