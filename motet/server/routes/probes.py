"""Probes for orchestrators, the version, and the metrics."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

import motet
from motet.server.http.errors import ApiError
from motet.server.http.metrics import CONTENT_TYPE
from motet.server.service import Served
from motet.server.shapes.answers import UNAUTHORIZED, UNAVAILABLE, Status, Version

router = APIRouter(tags=["operation"])


@router.get("/health", responses=UNAVAILABLE)
@router.get("/livez", responses=UNAVAILABLE)
async def alive(service: Served) -> Status:
    """200 as long as requests can be computed, also while the server drains; 503 where only a restart helps."""
    if not service.engine.is_alive and not service.admission.draining:
        raise ApiError(503, "The engine has stopped.", code="engine_stopped")
    return Status(status="ok")


@router.get("/ready", responses=UNAVAILABLE)
async def ready(service: Served) -> Status:
    """200 when every member is loaded, 503 while the server drains."""
    if service.admission.draining:
        raise ApiError(503, "The server is shutting down.", code="shutting_down")
    if not service.engine.is_alive:
        raise ApiError(503, "The engine has stopped.", code="engine_stopped")
    return Status(status="ready")


@router.get("/version", responses=UNAUTHORIZED)
async def version() -> Version:
    """Motet's version."""
    return Version(version=motet.__version__)


@router.get("/metrics", responses={200: {"content": {"text/plain": {}}}, **UNAUTHORIZED}, response_class=Response)
async def metrics(service: Served) -> Response:
    """Counters and histograms in Prometheus' text format."""
    return Response(service.metrics.render(), media_type=CONTENT_TYPE)
