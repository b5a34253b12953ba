"""POST /v1/score: how likely given texts are under a composition, and under each of its members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from motet.engines.outputs import TokenOutput
from motet.server.forms import extension, usage
from motet.server.generations import Generations
from motet.server.http.writing import beside_others
from motet.server.logprobs import finite
from motet.server.pondering import scored_tokens
from motet.server.prepare import Job
from motet.server.query import ScoreQuery, check_known, prompt_of, salt_of, tells_members, trace_top
from motet.server.respond import CLIENT_LEFT, as_json, describe, reserve, unless_disconnected
from motet.server.scoring import prepare_scores
from motet.server.service import AnsweringRoute, Served, Service
from motet.server.shapes.answers import ANSWERS, Scores
from motet.server.shapes.token_requests import ScoreRequest
from motet.server.token_traces import traces

router = APIRouter(tags=["composition"], route_class=AnsweringRoute)


@router.post("/v1/score", response_model=Scores, responses=ANSWERS)
async def score(body: ScoreRequest, request: Request, service: Served) -> Response:
    """Log-probabilities of continuations of one prompt. The continuation's tokens are appended to what every
    stream reads, so the streams' prompts may differ."""
    check_known(body, request)
    query = ScoreQuery(
        request_id=request.scope["state"]["request_id"],
        cache_salt=salt_of(request, body.cache_salt),
        target=body,
        prompt=prompt_of(body.prompt, body.messages),
        continuations=tuple(body.continuations),
        trace=trace_top(body.trace),
        trace_members=tells_members(body.trace),
    )
    with reserve(request, service, query) as place:
        jobs = await unless_disconnected(request, prepare_scores(service, query))
        if jobs is None:
            return Response(status_code=CLIENT_LEFT)
        describe(service, query, jobs)
        place.spend(sum(job.num_prompt_tokens for job in jobs) + scored_tokens([job.pondered for job in jobs]))
        return await as_json(await unless_disconnected(request, _scores(service, query, jobs)), service)


async def _scores(service: Service, query: ScoreQuery, jobs: Sequence[Job]) -> dict[str, Any]:
    generations = Generations(service.engine, jobs, service.turns)
    prompt_tokens = sum(job.num_prompt_tokens for job in jobs)
    service.metrics.prompt_tokens.labels(jobs[0].plan.strategy).inc(prompt_tokens)
    outputs: list[list[TokenOutput]] = [[] for _ in jobs]
    try:
        async for event in generations.outputs():
            if event is not None:
                outputs[event[0]].append(event[1])
    finally:
        generations.close()
    entries: list[dict[str, Any]] = []
    for i, (job, scored) in enumerate(zip(jobs, outputs, strict=True)):
        entries.append(await beside_others(service.turns, len(scored), _entry, i, job, scored, query))
        scored.clear()
    return {
        "object": "list",
        "model": query.target.model or jobs[0].base,
        "data": entries,
        "usage": usage(prompt_tokens, 0, generations.cached_tokens),
        "motet": extension(jobs, traced=query.trace is not None),
    }


def _entry(index: int, job: Job, outputs: Sequence[TokenOutput], query: ScoreQuery) -> dict[str, Any]:
    logprobs = [output.logprob for output in outputs]
    shows_ids = job.allow is None or job.allow.token_ids
    entry: dict[str, Any] = {
        "index": index,
        "logprob": finite(sum(logprobs)),
        "is_greedy": all(output.top[0][1] == output.logprob for output in outputs),
        "tokens": [job.tokenizer.label_of(output.token) for output in outputs],
        "token_ids": [output.token for output in outputs] if shows_ids else [],
        "token_logprobs": [finite(value) for value in logprobs],
        "members": _member_sums(job, outputs),
    }
    return entry | ({"motet": {"trace": traces(outputs, job)}} if query.trace is not None else {})


def _member_sums(job: Job, outputs: Sequence[TokenOutput]) -> dict[str, float]:
    """Each stream's own log-probability of the whole continuation, by role."""
    rows = [output.trace.member_logprobs for output in outputs if output.trace is not None]
    if not rows:  # for keys whose policy hides them
        return {}
    roles = [stream.role for stream in job.plan.streams]
    return {role: finite(sum(column)) for role, column in zip(roles, zip(*rows, strict=True), strict=True)}
