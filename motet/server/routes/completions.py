"""POST /v1/completions"""

from __future__ import annotations

from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from motet.server.query import Query, RequestPrompt, check_known, display, limit, salt_of
from motet.server.respond import respond
from motet.server.service import AnsweringRoute, Served
from motet.server.shapes.answers import STREAMED, Completion
from motet.server.shapes.requests import CompletionRequest

router = APIRouter(tags=["OpenAI"], route_class=AnsweringRoute)
DEFAULT_MAX_TOKENS = 16  # OpenAI's


@router.post("/v1/completions", response_model=Completion, responses=STREAMED)
async def completions(body: CompletionRequest, request: Request, service: Served) -> Response:
    """Continuations of texts or token arrays. With `echo` and `logprobs` the prompt itself is scored, under the
    composed distribution. Choice i of prompt j has index j·n + i."""
    check_known(body, request)
    query = Query(
        request_id=request.scope["state"]["request_id"],
        cache_salt=salt_of(request, body.cache_salt),
        form="completion",
        fields=body,
        targets=(body,),
        prompts=tuple(_prompt(prompt, body) for prompt in _prompts(body)),
        display=display(body, logprobs=body.logprobs, echo=bool(body.echo)),
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else limit(body.max_tokens),
        score_prompt=body.prompt_logprobs is not None or bool(body.echo and body.logprobs is not None),
    )
    return await respond(request, service, query)


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    """One text, one token array, or a list of either → a list."""
    match body.prompt:
        case str(text):
            return [text]
        case [] | [int(), *_]:
            return [cast("list[int]", body.prompt)]
        case _:
            return list(cast("list[str | list[int]]", body.prompt))


def _prompt(prompt: str | list[int], body: CompletionRequest) -> RequestPrompt:
    special, truncate = body.add_special_tokens, body.truncate_prompt_tokens
    if isinstance(prompt, str):
        return RequestPrompt(text=prompt, add_special_tokens=special, truncate=truncate)
    return RequestPrompt(tokens=tuple(prompt), truncate=truncate)
