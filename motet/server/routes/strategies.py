"""GET /v1/strategies: what there is to compose with."""

from __future__ import annotations

from typing import Any

from anyio import to_thread
from fastapi import APIRouter

from motet.composers.catalogue import catalogue
from motet.operator.casting import casting, sample_plan
from motet.server.service import Served, Service
from motet.server.shapes.answers import UNAUTHORIZED
from motet.server.shapes.descriptions import StrategyList

router = APIRouter(tags=["composition"])


@router.get("/v1/strategies", response_model=StrategyList, responses=UNAUTHORIZED)
async def list_strategies(service: Served) -> dict[str, Any]:
    """Every strategy: what it means, its formula, roles, parameters, papers and cost; and which of the loaded models
    can take which roles."""
    return await to_thread.run_sync(_listed, service)  # the first call plans an example of each


def _listed(service: Service) -> dict[str, Any]:
    data = [entry | {"unsupported": _unsupported(entry["id"], service)} for entry in catalogue()]
    return {"object": "list", "data": data, "models": casting(service.registry)}


def _unsupported(strategy: str, service: Service) -> str | None:
    """Why the engine does not run a strategy, None where it does."""
    plan = sample_plan(strategy, next(iter(service.registry.members)))
    return None if plan is None else service.engine.supports(plan)
