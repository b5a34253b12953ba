"""Endpoints of the OpenAI API that are not served: a 400 that says so helps more than a 404."""

from __future__ import annotations

from fastapi import APIRouter

from motet.server.errors import invalid

router = APIRouter(include_in_schema=False)
ABSENT = ("/v1/responses", "/v1/embeddings", "/v1/images/generations", "/v1/audio/speech", "/v1/batches", "/v1/files")


async def refuse() -> None:
    raise invalid(
        "This endpoint is not supported. Use /v1/chat/completions or /v1/completions.", code="unsupported_endpoint"
    )


for path in ABSENT:
    router.add_api_route(path, refuse, methods=["GET", "POST"])
