"""POST /v1/compare: one prompt under several models or compositions, side by side."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from motet.server.http.errors import invalid
from motet.server.query import Query, check_known, display, limit, prompt_of, salt_of
from motet.server.respond import respond
from motet.server.service import AnsweringRoute, Served
from motet.server.shapes.answers import STREAMED, Comparison
from motet.server.shapes.requests import Candidate, CompareRequest

router = APIRouter(tags=["composition"], route_class=AnsweringRoute)


@router.post("/v1/compare", response_model=Comparison, responses=STREAMED)
async def compare(body: CompareRequest, request: Request, service: Served) -> Response:
    """Every candidate is a model id, or an object with `model`, `composition` and `label`. Streamed, each chunk
    names its `candidate`."""
    check_known(body, request)
    _check_target(body)
    candidates = tuple(_candidate(entry, body) for entry in body.candidates)
    query = Query(
        request_id=request.scope["state"]["request_id"],
        cache_salt=salt_of(request, body.cache_salt),
        form="completion" if body.messages is None else "chat",
        fields=body,
        targets=candidates,
        prompts=(prompt_of(body.prompt, body.messages),),
        display=display(body, logprobs=body.logprobs),
        max_tokens=limit(body.max_tokens),
        score_prompt=body.prompt_logprobs is not None,
        labels=tuple(candidate.label for candidate in candidates),
    )
    return await respond(request, service, query)


def _check_target(body: CompareRequest) -> None:
    for name in ("composition", "guidance_scale", "negative_prompt"):
        if getattr(body, name) is not None:
            raise invalid(f"{name!r} belongs into a candidate.", name)


def _candidate(entry: str | Candidate, body: CompareRequest) -> Candidate:
    if isinstance(entry, str):
        return Candidate(model=entry)
    return entry if entry.model is not None else entry.model_copy(update={"model": body.model})
