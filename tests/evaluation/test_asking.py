"""The API client: order, concurrency, progress, and what happens to the others when one request fails."""

from __future__ import annotations

import asyncio

import pytest
from openai import AsyncOpenAI, NotFoundError

from motet.evaluation.asking import Api
from motet.evaluation.subject import Subject
from tests.evaluation.conftest import FakeApi

MODEL = Subject(model="m")


async def test_results_come_in_order_and_no_more_at_once_than_allowed(sdk: AsyncOpenAI) -> None:
    done: list[None] = []
    api = Api(sdk, concurrency=2, done=lambda: done.append(None))
    running = most = 0

    async def call(value: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (5 - value))
        running -= 1
        return value

    assert await api.together([call(value) for value in range(5)]) == list(range(5))
    assert (most, len(done)) == (2, 5)


async def test_a_failure_ends_the_others(sdk: AsyncOpenAI) -> None:
    begun: list[int] = []
    ended: list[int] = []

    async def call(value: int) -> None:
        begun.append(value)
        if value == 1:
            raise ValueError("one")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(value)

    async with asyncio.timeout(10):
        with pytest.raises(ValueError, match="one"):
            await Api(sdk, concurrency=2).together([call(value) for value in range(4)])
    assert begun[:2] == [0, 1]
    assert sorted(ended) == [value for value in begun if value != 1], "none of them goes on"


async def test_scores_and_texts(sdk: AsyncOpenAI, fake: FakeApi) -> None:
    fake.score = lambda model, question, text: [-float(len(text)), -0.5]
    api = Api(sdk)
    assert await api.score(MODEL, [("user", "q")], ["a", "bb"]) == [(-1.0, -0.5), (-2.0, -0.5)]
    assert await api.score_text(MODEL, "abc") == (-3.0, -0.5)  # the first token has no log-prob
    path, body = fake.bodies[-1]
    assert (path, body["echo"], body["max_tokens"]) == ("/v1/completions", True, 0)


async def test_replies_hold_confidence_and_shifts(sdk: AsyncOpenAI, fake: FakeApi) -> None:
    fake.say = lambda model, question: " so SHIFT "
    reply = await Api(sdk).chat(MODEL, [("user", "q")], max_tokens=4, trace=True)
    assert (reply.text, reply.ended, reply.shifts) == ("so SHIFT", True, ("unshifted", "shifted"))
    assert reply.confidence == pytest.approx((0.6065306597, 0.6065306597))
    composed = Subject(composition={"strategy": "unlearn", "weight": 1})
    await Api(sdk).chat(composed, [("user", "q")], max_tokens=4)
    assert "model" not in fake.bodies[-1][1]
    assert fake.bodies[-1][1]["composition"] == composed.composition


async def test_refusals_are_the_sdk_s(sdk: AsyncOpenAI) -> None:
    with pytest.raises(NotFoundError):
        await sdk.post("/nowhere", body={}, cast_to=object)
