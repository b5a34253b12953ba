"""GET /v1/models"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from motet.server.service import Served
from motet.server.shapes.answers import NOT_FOUND, UNAUTHORIZED, ModelCard, ModelList

router = APIRouter(tags=["OpenAI"])
ModelId = Annotated[str, Path(description="The model's or composition's id, slashes included.")]


@router.get("/v1/models", response_model=ModelList, responses=UNAUTHORIZED)
async def list_models(service: Served) -> dict[str, Any]:
    """Models and named compositions: either can be a request's `model`."""
    return {"object": "list", "data": [service.registry.card(name) for name in service.registry.names]}


@router.get("/v1/models/{name:path}", response_model=ModelCard, responses={**UNAUTHORIZED, **NOT_FOUND})
async def get_model(name: ModelId, service: Served) -> dict[str, Any]:
    """One model or named composition."""
    return service.registry.card(name)
