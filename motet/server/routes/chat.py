"""POST /v1/chat/completions"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from motet.server.answers import Answer
from motet.server.errors import invalid
from motet.server.forms.chat import ChatForm
from motet.server.jobs import Display, Job, plan_of
from motet.server.parameters import check_extras
from motet.server.prompts import RequestPrompt
from motet.server.respond import respond, sampled_job
from motet.server.responses import STREAMED, ChatCompletion
from motet.server.sampling import display
from motet.server.schemas import ChatCompletionRequest, ChatFields
from motet.server.service import Served, Service

router = APIRouter(tags=["OpenAI"])
MAX_STOPS = 4


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAMED)
async def chat_completions(body: ChatCompletionRequest, request: Request, service: Served) -> Response:
    """An answer to messages, by a model or a composition of models; each member reads its own template."""
    check_extras(body)
    show = display(body, logprobs=_logprobs(body), max_stops=MAX_STOPS)
    request_id = request.scope["state"]["request_id"]

    def jobs() -> list[Job]:
        return [_job(service, body, show, request_id)]

    def answer(jobs: Sequence[Job]) -> Answer:
        return Answer(service, ChatForm(), body.model or jobs[0].base, jobs, show)

    return await respond(request, service, body, jobs, answer, body.n or 1)


def _logprobs(body: ChatCompletionRequest) -> int | None:
    if body.top_logprobs and not body.logprobs:
        raise invalid("'top_logprobs' needs 'logprobs': true.", "top_logprobs")
    return body.top_logprobs or 0 if body.logprobs else None


def _job(service: Service, body: ChatCompletionRequest, show: Display, request_id: str) -> Job:
    plan = plan_of(body, service.registry, chat=True)
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    return sampled_job(
        service,
        plan,
        chat_prompt(body, body.truncate_prompt_tokens),
        body,
        show,
        max_tokens=asked,
        request_id=request_id,
        score_prompt=body.prompt_logprobs is not None,
    )


def chat_prompt(body: ChatFields, truncate: int | None = None) -> RequestPrompt:
    """Raises ApiError (400): both a generation prompt and a continued last message."""
    if body.add_generation_prompt and body.continue_final_message:
        raise invalid("'add_generation_prompt' and 'continue_final_message' exclude each other.", "messages")
    return RequestPrompt(
        messages=tuple(message.plain() for message in body.messages),
        add_special_tokens=body.add_special_tokens,
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
        variables=body.chat_template_kwargs or {},
        truncate=truncate,
    )
