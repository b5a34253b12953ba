"""POST /v1/completions"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from motet.server.answers import Answer
from motet.server.forms.completion import CompletionForm
from motet.server.jobs import Display, Job, plan_of
from motet.server.parameters import check_extras
from motet.server.prompts import RequestPrompt
from motet.server.respond import respond, sampled_job
from motet.server.responses import STREAMED, Completion
from motet.server.sampling import display
from motet.server.schemas import CompletionRequest
from motet.server.service import Served, Service

router = APIRouter(tags=["OpenAI"])
DEFAULT_MAX_TOKENS = 16  # OpenAI's


@router.post("/v1/completions", response_model=Completion, responses=STREAMED)
async def completions(body: CompletionRequest, request: Request, service: Served) -> Response:
    """Continuations of texts or token arrays. With `echo` and `logprobs` the prompt itself is scored, under the
    composed distribution. Choice i of prompt j has index j·n + i."""
    check_extras(body)
    show = display(body, logprobs=body.logprobs, echo=bool(body.echo))
    request_id = request.scope["state"]["request_id"]

    def jobs() -> list[Job]:
        return _jobs(service, body, show, request_id)

    def answer(jobs: Sequence[Job]) -> Answer:
        return Answer(service, CompletionForm(), body.model or jobs[0].base, jobs, show)

    return await respond(request, service, body, jobs, answer, len(prompts(body)) * (body.n or 1))


def prompts(body: CompletionRequest) -> list[str | list[int]]:
    """One text, one token array, or a list of either → a list."""
    match body.prompt:
        case str(text):
            return [text]
        case [] | [int(), *_]:
            return [cast("list[int]", body.prompt)]
        case _:
            return list(cast("list[str | list[int]]", body.prompt))


def _jobs(service: Service, body: CompletionRequest, show: Display, request_id: str) -> list[Job]:
    plan = plan_of(body, service.registry)
    asked = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    scored = body.prompt_logprobs is not None or (show.echo and show.logprobs is not None)
    return [
        sampled_job(
            service,
            plan,
            _prompt(prompt, body),
            body,
            show,
            max_tokens=asked,
            request_id=f"{request_id}-{i}",
            score_prompt=scored,
        )
        for i, prompt in enumerate(prompts(body))
    ]


def _prompt(prompt: str | list[int], body: CompletionRequest) -> RequestPrompt:
    special, truncate = body.add_special_tokens, body.truncate_prompt_tokens
    if isinstance(prompt, str):
        return RequestPrompt(text=prompt, add_special_tokens=special, truncate=truncate)
    return RequestPrompt(tokens=tuple(prompt), truncate=truncate)
