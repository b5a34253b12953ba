"""What all answering endpoints do, in order: reserve, prepare, start the engine, reply whole or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack, closing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from motet.server.comparisons import ComparisonReply
from motet.server.http.headers import MAX_TOKENS, add_header, add_ignored
from motet.server.http.sse import EventStream
from motet.server.http.writing import encoded
from motet.server.pondering import scored_tokens
from motet.server.prepare import Job, prepare
from motet.server.query import Query, ScoreQuery
from motet.server.replies import Reply
from motet.server.service import Reservation, Service
from motet.server.shapes.requests import StreamOptions

T = TypeVar("T")
CLIENT_LEFT = 499  # nginx's number; the client is gone, only the log shows it


async def respond(request: Request, service: Service, query: Query) -> Response:
    """Reserves the query's choices before its prompts are tokenized, and gives them back when the answer is over.

    Raises:
        ApiError, CompositionError, UnknownModel, EngineError: what the client is answered instead.
    """
    with ExitStack() as held:
        place = held.enter_context(reserve(request, service, query))
        jobs = await unless_disconnected(request, prepare(service, query))
        if jobs is None:
            return Response(status_code=CLIENT_LEFT)
        describe(service, query, jobs)
        if _has_unseen_names(query, jobs):
            add_ignored(request, "messages.name")
        fits = min(side.request.sampling.max_tokens for job in jobs for side in job.sides)
        # under a policy it would tell how much more than the prompt a hidden stream reads
        if fits < (query.max_tokens or 0) and (service.allow is None or service.allow.members):
            add_header(request, MAX_TOKENS, str(fits))
        reply = Reply(service, query, jobs) if query.labels is None else ComparisonReply(service, query, jobs)
        held.enter_context(closing(reply))
        if place.key is not None:  # whose tokens are counted
            place.spend(reply.prompt_tokens + scored_tokens([job.pondered for job in jobs]))
            held.callback(lambda: place.spend(reply.spent_tokens))
        if query.fields.stream:
            events = reply.events(query.fields.stream_options or StreamOptions())
            return EventStream(events, held.pop_all())  # which closes them in its turn
        body = await unless_disconnected(request, reply.whole())
        if body is not None and query.adapter is not None:
            body = query.adapter.whole(body)
        return await as_json(body, service)


def _has_unseen_names(query: Query, jobs: Sequence[Job]) -> bool:
    """Whether messages have names that the base's template does not show: they tell nobody apart, or were refused (see
    `dialogue.conversation`). A function's is known from its call."""
    turns = [turn for prompt in query.prompts for turn in prompt.messages or ()]
    named = {turn["role"] for turn in turns if "name" in turn and turn["role"] != "tool"}
    return bool(named) and any(
        not job.tokenizer.has_chat_template or not named <= job.tokenizer.template.named_roles for job in jobs
    )


def describe(service: Service, query: Query | ScoreQuery, jobs: Sequence[Job]) -> None:
    """For the request's trace, where there is one: sizes and names, nothing of the texts."""
    if service.traces is not None:
        service.traces.describe(
            {
                "motet.request_id": query.request_id,
                "motet.strategy": jobs[0].plan.strategy,
                "motet.choices": query.num_choices,
                "gen_ai.request.model": jobs[0].base,
                "gen_ai.usage.input_tokens": sum(len(job.prompt_ids) for job in jobs),
            }
        )


def reserve(request: Request, service: Service, query: Query | ScoreQuery) -> Reservation:
    """Raises ApiError as `Admission.reserve` does."""
    return service.admission.reserve(query.num_choices, request.scope["state"].get("key"))


async def as_json(body: dict[str, Any] | None, service: Service) -> Response:
    """The body as JSON; None: the client has left."""
    if body is None:
        return Response(status_code=CLIENT_LEFT)
    return Response(await encoded(body, service.turns), media_type="application/json")


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None, with the work cancelled, when the client leaves first."""
    disconnect = asyncio.create_task(_disconnected(request))
    working = asyncio.create_task(work)
    try:
        await asyncio.wait({working, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        disconnect.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
