"""What every handler needs, put together once when the server starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import Request

from motet.engines.base import Engine
from motet.operator.registry import Registry
from motet.operator.settings import ServerConfig
from motet.server.limits import Admission
from motet.server.metrics import Metrics


@dataclass(frozen=True)
class Service:
    config: ServerConfig
    engine: Engine
    registry: Registry
    metrics: Metrics
    admission: Admission
    kv_budget: int  # bytes

    @classmethod
    def assemble(cls, config: ServerConfig, engine: Engine, registry: Registry) -> Service:
        admission = Admission(config.max_choices, config.max_choices_per_key)
        return cls(config, engine, registry, Metrics(engine), admission, engine.stats().kv_bytes_budget)


def get_service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


Served = Annotated[Service, Depends(get_service)]
