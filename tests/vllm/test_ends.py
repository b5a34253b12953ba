"""A process of vLLM that dies: told to everybody who waits, and to the probes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from motet.composers.plan import Plan, Stream, single
from motet.engines.base import EngineStopped, GenerationRequest, SamplingParams
from motet.engines.vllm.engine import VllmEngine
from motet.models.info import ModelInfo
from tests.vllm.conftest import SMALL, Paths, start_engine

TOLD_S = 1.0
LONG = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)


@pytest_asyncio.fixture(loop_scope="session")
async def doomed(paths: Paths, infos: dict[str, ModelInfo], cache: Path) -> AsyncIterator[VllmEngine]:
    engine = start_engine(paths, infos, cache, **SMALL)
    yield engine
    await engine.close()


def request(name: str, plan: Plan, *contexts: tuple[int, ...]) -> GenerationRequest:
    return GenerationRequest(name, plan, contexts, LONG, n=2)


@pytest.mark.asyncio(loop_scope="session")
async def test_the_death_of_a_process_is_told_within_a_second(doomed: VllmEngine, infos: dict[str, ModelInfo]) -> None:
    """To running requests and to those that wait for room, over one context and over two."""
    first, second = list(infos)[:2]
    proxy = Plan((Stream("base", first), Stream("expert", second, 1.0)))
    requests = [request(f"plain-{i}", single(first), (5, 6, 7 + i)) for i in range(6)]
    requests += [request(f"two-{i}", proxy, (5, 6, 7 + i), (8, 9)) for i in range(6)]
    begun = asyncio.Event()

    async def read(job: GenerationRequest) -> tuple[float, Exception | None]:
        try:
            async for _ in doomed.generate(job):
                begun.set()
        except Exception as error:
            return time.monotonic(), error
        return time.monotonic(), None

    readers = [asyncio.create_task(read(job)) for job in requests]
    await asyncio.wait_for(begun.wait(), 60)
    assert doomed.is_alive
    leaves = [one for one in psutil.Process().children(recursive=True) if not one.children()]
    killed = next(one for one in leaves if "resource_tracker" not in " ".join(one.cmdline()))
    os.kill(killed.pid, signal.SIGKILL)
    began = time.monotonic()
    told = await asyncio.wait_for(asyncio.gather(*readers), 30)
    assert all(isinstance(error, EngineStopped) for _, error in told), [error for _, error in told]
    assert max(when for when, _ in told) - began < TOLD_S
    assert not doomed.is_alive
    with pytest.raises(EngineStopped):
        async for _ in doomed.generate(requests[0]):
            pass
