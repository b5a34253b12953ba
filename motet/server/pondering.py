"""Which tokens of a prompt its streams read once more: the engine scores the prompt, once, before the answer begins."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from motet.composers.plan import single
from motet.engines.base import GenerationRequest, RequestTooLarge, SamplingParams
from motet.engines.drafts import OFF
from motet.models.tokenizer import Tokenizer
from motet.server.dialogue.highlights import Highlights, least_likely
from motet.server.http.errors import invalid
from motet.server.query import Query, ScoreQuery
from motet.server.service import Service

Pondered = Mapping[int, Highlights]  # by stream; nothing of streams that read their prompt as it is
SCORED = SamplingParams(max_tokens=0, temperature=0.0)


async def highlighted(service: Service, query: Query | ScoreQuery, jobs: Sequence[Pondered]) -> list[Pondered]:
    """What each job's streams ponder, scored. Equal prompts of one model are scored once, all of a query together:
    there are no more of them than choices, whose places they take.

    Raises:
        ApiError: 400, a prompt that can never fit into memory.
        EngineError: the engine failed on one of them.
    """
    every = [one for job in jobs for one in job.values()]
    prompts = list(dict.fromkeys((one.model, one.ids) for one in every))
    requests = [_request(query, i, *prompt) for i, prompt in enumerate(prompts)]
    scores = [asyncio.create_task(_scored(service, request)) for request in requests]
    try:
        logprobs = dict(zip(prompts, await asyncio.gather(*scores), strict=True))
    finally:
        for score in scores:  # of a client that has left
            score.cancel()
    members = service.registry.members
    known = {one: _chosen(one, logprobs[one.model, one.ids], members[one.model].tokenizer) for one in every}
    return [{k: known[one] for k, one in job.items()} for job in jobs]


def _request(query: Query | ScoreQuery, number: int, model: str, ids: tuple[int, ...]) -> GenerationRequest:
    name = f"{query.request_id}-prompt-{number}"
    plan, salt = single(model), query.cache_salt
    return GenerationRequest(name, plan, (ids[:1],), SCORED, ids[1:], len(ids) - 1, cache_salt=salt, speculation=OFF)


async def _scored(service: Service, request: GenerationRequest) -> tuple[float, ...]:
    """The model's own log-probs of all tokens but the first."""
    if not request.forced:
        return ()
    try:
        service.engine.check(request)
    except RequestTooLarge as refusal:
        raise invalid(str(refusal), code="request_too_large") from refusal
    generation = service.engine.generate(request)
    try:
        return tuple([output.logprob async for output in generation])
    finally:
        await generation.aclose()


def _chosen(one: Highlights, logprobs: tuple[float, ...], tokenizer: Tokenizer) -> Highlights:
    places = least_likely(one.ids, logprobs, one.share, tokenizer.special_ids)
    text = tokenizer.decode([one.ids[place] for place in places]).strip()
    return replace(one, logprobs=logprobs, places=places, text=text)


def scored_tokens(jobs: Sequence[Pondered]) -> int:
    """How many tokens were scored for these jobs."""
    return sum(len(ids) for _, ids in {(one.model, one.ids) for job in jobs for one in job.values()})
