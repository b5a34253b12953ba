"""POST /v1/score: how likely given texts are under a composition, and under each of its members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from motet.composers.plan import Plan
from motet.engines.base import GenerationRequest, SamplingParams, TokenOutput
from motet.operator.registry import LoadedModel
from motet.server.answers import extension, usage
from motet.server.errors import invalid
from motet.server.forms.logprobs import finite, traces
from motet.server.jobs import Job, Reading, max_new_tokens, plan_of, read
from motet.server.parameters import check_extras
from motet.server.prompts import RequestPrompt, check_tokens, continuation
from motet.server.respond import as_json, prepare, unless_disconnected
from motet.server.responses import ANSWERS, Scores
from motet.server.run import Run
from motet.server.sampling import trace_top
from motet.server.schemas import CompareRequest, ScoreRequest
from motet.server.service import Served, Service

router = APIRouter(tags=["composition"])


@router.post("/v1/score", response_model=Scores, responses=ANSWERS)
async def score(body: ScoreRequest, request: Request, service: Served) -> Response:
    """Log-probabilities of continuations of one prompt. The continuation's tokens are appended to what every
    stream reads, so the streams' prompts may differ."""
    check_extras(body)
    request_id = request.scope["state"]["request_id"]
    place = service.admission.reserve(len(body.continuations), request.scope["state"].get("key"))
    try:
        jobs = await prepare(service, lambda: _jobs(service, body, request_id))
        return as_json(await unless_disconnected(request, _scores(service, body, jobs)))
    finally:
        place.release()


async def _scores(service: Service, body: ScoreRequest, jobs: Sequence[Job]) -> dict[str, Any]:
    run = Run(service.engine, jobs)
    prompt_tokens = sum(len(job.prompt_ids) for job in jobs)
    service.metrics.prompt_tokens.labels(jobs[0].plan.strategy).inc(prompt_tokens)
    outputs: list[list[TokenOutput]] = [[] for _ in jobs]
    try:
        async for event in run.outputs():
            if event is not None:
                outputs[event[0]].append(event[1])
    finally:
        run.close()
    entries = [_entry(i, job, read, body) for i, (job, read) in enumerate(zip(jobs, outputs, strict=True))]
    return {
        "object": "list",
        "model": body.model or jobs[0].base,
        "data": entries,
        "usage": usage(prompt_tokens, 0, run.cached_tokens),
        "motet": extension(jobs),
    }


def _jobs(service: Service, body: ScoreRequest, request_id: str) -> list[Job]:
    plan = plan_of(body, service.registry, chat=body.messages is not None)
    prompt = request_prompt(body)
    reading = read(plan, prompt, service.registry.members)
    base = service.registry.base_of(plan)
    return [
        _job(service, Reading(plan, reading.contexts, _continuation(text, plan, prompt, base)), base, body, name)
        for name, text in ((f"{request_id}-{i}", text) for i, text in enumerate(body.continuations))
    ]


def _job(service: Service, reading: Reading, base: LoadedModel, body: ScoreRequest, request_id: str) -> Job:
    max_new_tokens(reading, service.registry.members, service.kv_budget, asked=0)
    params = SamplingParams(max_tokens=0, temperature=0.0, top_logprobs=1, trace_top=trace_top(body.trace) or 0)
    asked = GenerationRequest(request_id, reading.plan, reading.contexts, params, reading.forced)
    return Job(asked, base.tokenizer, reading.prompt_ids)


def request_prompt(body: ScoreRequest | CompareRequest) -> RequestPrompt:
    if (body.prompt is None) == (body.messages is None):
        raise invalid("Give either 'prompt' or 'messages'.", "prompt")
    match body.prompt:
        case None:
            return RequestPrompt(messages=tuple(message.plain() for message in body.messages or []))
        case str(text):
            return RequestPrompt(text=text)
        case tokens:
            return RequestPrompt(tokens=tuple(tokens))


def _continuation(text: str | list[int], plan: Plan, prompt: RequestPrompt, base: LoadedModel) -> tuple[int, ...]:
    """Token ids of a continuation, the same for all streams: those behind what the base reads."""
    ids = tuple(text) if isinstance(text, list) else continuation(text, plan.streams[0], base, prompt)
    if not ids:
        raise invalid(f"Continuation {text[:40]!r} has no tokens.", "continuations")
    check_tokens(ids, base, "continuations")
    return ids


def _entry(index: int, job: Job, outputs: Sequence[TokenOutput], body: ScoreRequest) -> dict[str, Any]:
    logprobs = [output.logprob for output in outputs]
    entry: dict[str, Any] = {
        "index": index,
        "logprob": finite(sum(logprobs)),
        "is_greedy": all(output.top[0][1] == output.logprob for output in outputs),
        "tokens": [job.tokenizer.label_of(output.token) for output in outputs],
        "token_ids": [output.token for output in outputs],
        "token_logprobs": [finite(value) for value in logprobs],
        "members": _member_sums(job, outputs),
    }
    return entry | ({"motet": {"trace": traces(outputs, job)}} if trace_top(body.trace) is not None else {})


def _member_sums(job: Job, outputs: Sequence[TokenOutput]) -> dict[str, float]:
    """Each stream's own log-probability of the whole continuation, by role."""
    rows = [output.trace.member_logprobs for output in outputs if output.trace is not None]
    roles = [stream.role for stream in job.plan.streams]
    return {role: finite(sum(column)) for role, column in zip(roles, zip(*rows, strict=True), strict=True)}
