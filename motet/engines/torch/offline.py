"""Whole answers to many prompts at once, for callers without an event loop: audits, the curation of data."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from motet.composers.plan import Plan
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.torch.engine import TorchEngine
from motet.engines.torch.memory import slot_length
from motet.engines.torch.model import Member
from motet.engines.torch.scheduler import EngineSettings


def generate(
    members: Mapping[str, Member],
    plan: Plan,
    contexts: Sequence[Sequence[Sequence[int]]],
    *,
    max_tokens: int,
    ends: Sequence[int],
    rows: int,
    seeds: Sequence[int] | None = None,
) -> list[tuple[int, ...]]:
    """R continuations, each up to and without its end.

    Args:
        members: by the names of the plan's streams; no other engine may be running on them.
        contexts: (R, K) token ids that each of the plan's K streams reads, at least one each.
        ends: the tokens that end a continuation; no others do.
        rows: how many are decoded at once.
        seeds: (R) of draws at temperature 1; greedy without.

    Raises:
        RequestTooLarge: a context and its answer are longer than a member can read.
        EngineError: a member failed.
    """
    drawn = seeds or [None] * len(contexts)
    requests = [
        GenerationRequest(
            str(number),
            plan,
            tuple(map(tuple, streams)),
            SamplingParams(
                max_tokens,
                temperature=0.0 if seed is None else 1.0,
                seed=seed,
                stop_token_ids=tuple(ends),
                ignore_eos=True,
            ),
        )
        for number, (streams, seed) in enumerate(zip(contexts, drawn, strict=True))
    ]
    longest = max((len(ids) for streams in contexts for ids in streams), default=0) + max_tokens
    per_token = sum(members[stream.model].info.kv_bytes_per_token for stream in plan.readers)
    settings = EngineSettings(kv_cache_bytes=rows * slot_length(longest, longest) * per_token, max_running=rows)
    return asyncio.run(_answers(TorchEngine(members, settings), requests))


async def _answers(engine: TorchEngine, requests: Sequence[GenerationRequest]) -> list[tuple[int, ...]]:
    try:
        return await asyncio.gather(*(_answer(engine, request) for request in requests))
    finally:
        await engine.close()


async def _answer(engine: TorchEngine, request: GenerationRequest) -> tuple[int, ...]:
    engine.check(request)
    outputs = [output async for output in engine.generate(request)]
    ended = bool(outputs) and outputs[-1].finish == "stop"
    return tuple(output.token for output in (outputs[:-1] if ended else outputs))
