"""What all answering endpoints do, in order: take a place, prepare, ask the engine, answer or stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from motet.composers.plan import Plan
from motet.engines.base import GenerationRequest
from motet.server.answers import Answer
from motet.server.jobs import Display, Job, checked, max_new_tokens, read
from motet.server.prompts import RequestPrompt, check_tokens
from motet.server.sampling import sampling
from motet.server.schemas import SamplingFields, StreamOptions
from motet.server.service import Service
from motet.server.sse import EventStream
from motet.server.structured import compiled_grammar

T = TypeVar("T")
CLIENT_LEFT = 499  # nginx's number; nobody reads it
MakeJobs = Callable[[], Sequence[Job]]
MakeAnswer = Callable[[Sequence[Job]], Answer]


async def respond(
    request: Request, service: Service, body: SamplingFields, make_jobs: MakeJobs, make_answer: MakeAnswer, choices: int
) -> Response:
    """`choices` places are taken before `make_jobs` tokenizes, in a thread; `make_answer` starts the engine."""
    place = service.admission.reserve(choices, request.scope["state"].get("key"))
    try:
        answer = make_answer(await prepare(service, make_jobs))
    except BaseException:
        place.release()
        raise

    def close() -> None:
        answer.run.close()
        place.release()

    if body.stream:
        return EventStream(answer.events(body.stream_options or StreamOptions()), close)
    try:
        return as_json(await unless_disconnected(request, answer.whole()))
    finally:
        close()


async def prepare(service: Service, make_jobs: MakeJobs) -> list[Job]:
    """Raises ApiError or CompositionError: whatever can be known before anything is computed."""
    return [checked(job, service.engine) for job in await to_thread.run_sync(make_jobs)]


def as_json(body: dict[str, Any] | None) -> Response:
    return Response(status_code=CLIENT_LEFT) if body is None else JSONResponse(body)


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None, with the work cancelled, when the client leaves first."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def sampled_job(
    service: Service,
    plan: Plan,
    prompt: RequestPrompt,
    body: SamplingFields,
    show: Display,
    *,
    max_tokens: int | None,
    request_id: str,
    score_prompt: bool = False,
) -> Job:
    """A job that answers `prompt` as `body` says; `max_tokens` None is what fits."""
    members = service.registry.members
    reading = read(plan, prompt, members, score_prompt=score_prompt)
    base = service.registry.base_of(plan)
    check_tokens(reading.forced, base, prompt.param)
    grammar = compiled_grammar(body, plan, service.registry)
    params = sampling(body, show, base, max_new_tokens(reading, members, service.kv_budget, max_tokens), grammar)
    asked = GenerationRequest(
        request_id,
        plan,
        reading.contexts,
        params,
        reading.forced,
        num_prompt_forced=len(reading.forced),
        n=body.n or 1,
    )
    return Job(asked, base.tokenizer, reading.prompt_ids, prompt.text)
