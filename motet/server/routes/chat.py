"""POST /v1/chat/completions"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from motet.server.dialogue.reasoning import Thinking
from motet.server.dialogue.tools import Offer, offered
from motet.server.http.errors import invalid
from motet.server.query import Query, RequestPrompt, check_known, display, limit, salt_of
from motet.server.respond import respond
from motet.server.service import AnsweringRoute, Served
from motet.server.shapes.answers import STREAMED, ChatCompletion
from motet.server.shapes.requests import ChatCompletionRequest

router = APIRouter(tags=["OpenAI"], route_class=AnsweringRoute)
MAX_STOPS = 4


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAMED)
async def chat_completions(body: ChatCompletionRequest, request: Request, service: Served) -> Response:
    """An answer to messages, by a model or a composition of models; each member reads its own template."""
    check_known(body, request)
    return await respond(request, service, chat_query(body, request))


def chat_query(body: ChatCompletionRequest, request: Request) -> Query:
    """Raises ApiError (400): fields that exclude each other."""
    logprobs, prompt = _logprobs(body), _prompt(body)
    return Query(
        request_id=request.scope["state"]["request_id"],
        cache_salt=salt_of(request, body.cache_salt),
        form="chat",
        fields=body,
        targets=(body,),
        prompts=(prompt,),
        display=display(body, logprobs=logprobs, max_stops=MAX_STOPS),
        max_tokens=limit(body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens),
        score_prompt=body.prompt_logprobs is not None,
        offer=offered(body.tools, body.tool_choice, body.parallel_tool_calls)
        if body.tools or body.tool_choice
        else Offer(),
        thinking=Thinking(body.reasoning_effort, body.thinking_token_budget),
    )


def _logprobs(body: ChatCompletionRequest) -> int | None:
    if body.top_logprobs and not body.logprobs:
        raise invalid("'top_logprobs' needs 'logprobs': true.", "top_logprobs")
    return body.top_logprobs or 0 if body.logprobs else None


def _prompt(body: ChatCompletionRequest) -> RequestPrompt:
    """Raises ApiError (400): both a generation prompt and a continued last message."""
    if body.add_generation_prompt and body.continue_final_message:
        raise invalid("'add_generation_prompt' and 'continue_final_message' exclude each other.", "messages")
    return RequestPrompt(
        messages=tuple(message.turn() for message in body.messages),
        add_special_tokens=body.add_special_tokens,
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
        variables=body.chat_template_kwargs or {},
        truncate=body.truncate_prompt_tokens,
    )
