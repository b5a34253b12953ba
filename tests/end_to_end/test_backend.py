"""The server that `motet chat FILE` and `motet eval` start in their own process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2
from openai import AsyncOpenAI

from motet.evaluation.backend import in_process


async def running(sdk: AsyncOpenAI) -> float:
    """Choices that the server computes."""
    metrics = await sdk.get("http://motet/metrics", cast_to=httpx2.Response)
    lines = [line for line in metrics.text.splitlines() if line.startswith("motet:num_requests_running")]
    assert lines
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


async def test_answers_come_piece_by_piece(family: Path) -> None:
    """The first piece is there while the engine still computes; whoever leaves an answer ends it."""
    async with in_process(family / "models.yaml") as sdk:
        told = await sdk.completions.create(
            model="large", prompt="The town", n=16, max_tokens=100, stream=True, extra_body={"ignore_eos": True}
        )
        first = await anext(aiter(told))
        assert first.choices[0].finish_reason is None
        assert await running(sdk) > 0
        await told.close()
        for _ in range(1000):
            if not await running(sdk):
                break
            await asyncio.sleep(0.01)
        assert await running(sdk) == 0
