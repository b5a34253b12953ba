"""Asks a running server through the openai SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from openai import AsyncOpenAI, DefaultAsyncHttpxClient

T = TypeVar("T")

MAX_CONCURRENT = 32
MAX_TOKENS = 24  # longer than any answer
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Reply:
    """Generated text, and whether it ended by itself (not cut at the token limit)."""

    text: str
    ended: bool


class Client(Protocol):
    """What the scoreboard needs of a server."""

    async def chat(self, model: str, question: str, seed: int | None = None) -> Reply:
        """The reply to one user message: greedy, or sampled at temperature 1 with `seed`."""
        ...

    async def complete(self, model: str, prompt: str) -> Reply:
        """The greedy continuation of a text."""
        ...


class OpenAIClient:
    """`Client` over HTTP with at most `MAX_CONCURRENT` requests under way."""

    def __init__(self, sdk: AsyncOpenAI) -> None:
        self._sdk = sdk
        self._places = asyncio.Semaphore(MAX_CONCURRENT)

    async def chat(self, model: str, question: str, seed: int | None = None) -> Reply:
        """`POST /v1/chat/completions`."""
        async with self._places:
            response = await self._sdk.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                temperature=0.0 if seed is None else 1.0,
                seed=seed,
                max_tokens=MAX_TOKENS,
            )
        choice = response.choices[0]
        return Reply((choice.message.content or "").strip(), choice.finish_reason == "stop")

    async def complete(self, model: str, prompt: str) -> Reply:
        """`POST /v1/completions`, ended by the sentence's full stop."""
        async with self._places:
            response = await self._sdk.completions.create(
                model=model, prompt=prompt, temperature=0.0, max_tokens=MAX_TOKENS, stop=["."]
            )
        choice = response.choices[0]
        return Reply(choice.text.strip(), choice.finish_reason == "stop")


def connect(base_url: str) -> AsyncOpenAI:
    """The SDK for a server on this machine at `base_url` (without /v1) that needs no key, past any proxy.

    Close it, or use it as a context.
    """
    direct = DefaultAsyncHttpxClient(trust_env=False)
    return AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", timeout=TIMEOUT_S, http_client=direct)


async def together(calls: Sequence[Awaitable[T]]) -> list[T]:
    """All results in order."""
    return list(await asyncio.gather(*calls))
