"""Sends requests at their times and notes when what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from random import Random
from time import perf_counter
from typing import Any, cast

import httpx

from motet_client.load.work import Job


@dataclass(frozen=True)
class Load:
    """Where requests go, and at what pace: `concurrency` at any time, or `rate` per second."""

    url: str
    headers: dict[str, str]
    concurrency: int
    rate: float | None
    timeout: float
    seed: int


@dataclass
class Measured:
    """One request; times in seconds from `due`, when it was to be sent, so that a queue in here is seen."""

    label: str
    due: float
    sent: float = 0.0
    pieces: list[float] = field(default_factory=list[float])
    end: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None
    """Status of the refusal, or what broke: `timeout`, `connection` (before an answer began), `stream` (an error in the
    answer, or no end)."""


async def run(load: Load, jobs: Sequence[Job], warmup: int) -> tuple[list[Measured], float]:
    """The measurements of all but the first `warmup` jobs, and how long these took."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(headers=load.headers, timeout=load.timeout, limits=limits) as client:
        for job in jobs[:warmup]:
            await _ask(client, load, job, perf_counter())
        start = perf_counter()
        pace = _closed if load.rate is None else _open
        measured = await pace(client, load, jobs[warmup:])
        return measured, perf_counter() - start


async def _closed(client: httpx.AsyncClient, load: Load, jobs: Sequence[Job]) -> list[Measured]:
    """The next request goes when one is done."""
    waiting = iter(jobs)
    done: list[Measured] = []

    async def worker() -> None:
        for job in waiting:
            done.append(await _ask(client, load, job, perf_counter()))

    await asyncio.gather(*(worker() for _ in range(load.concurrency)))
    return done


async def _open(client: httpx.AsyncClient, load: Load, jobs: Sequence[Job]) -> list[Measured]:
    """Each request goes at its time, however many are under way."""
    random = Random(f"arrivals {load.seed}")
    due, running = perf_counter(), list[asyncio.Task[Measured]]()
    for job in jobs:
        due += random.expovariate(load.rate or 1.0)
        await asyncio.sleep(max(0.0, due - perf_counter()))
        running.append(asyncio.create_task(_ask(client, load, job, due)))
    return await asyncio.gather(*running)


async def _ask(client: httpx.AsyncClient, load: Load, job: Job, due: float) -> Measured:
    told = Measured(job.label, due, sent=perf_counter() - due)
    try:
        async with asyncio.timeout(load.timeout):
            await _read(client, f"{load.url}/{job.endpoint}", job, told)
    except (TimeoutError, httpx.TimeoutException):
        told.error = "timeout"
    except httpx.HTTPError:
        told.error = told.error or "connection"
    except (ValueError, TypeError, AttributeError):  # it speaks something else
        told.error = "stream"
    told.end = perf_counter() - due
    return told


async def _read(client: httpx.AsyncClient, url: str, job: Job, told: Measured) -> None:
    async with client.stream("POST", url, json=job.body) as response:
        if response.status_code != 200:
            told.error = str(response.status_code)
            return
        told.error = "stream"  # until it has ended as it should
        async for event in _events(response):
            if event == b"[DONE]":
                told.error = None
                return
            chunk: Any = json.loads(event)
            if not isinstance(chunk, dict) or "error" in chunk:
                return
            _note(cast("dict[str, Any]", chunk), told)


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """What the stream's lines hold. Only line feeds end them: JSON may have Unicode's other separators as they are."""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()


def _note(chunk: dict[str, Any], told: Measured) -> None:
    """The time of a piece that has something of the answer in it, and the usage."""
    if any(map(_says_something, chunk.get("choices") or ())):
        told.pieces.append(perf_counter() - told.due)
    usage: dict[str, int] = chunk.get("usage") or {}
    told.prompt_tokens = usage.get("prompt_tokens", told.prompt_tokens)
    told.output_tokens = usage.get("completion_tokens", told.output_tokens)


def _says_something(choice: dict[str, Any]) -> bool:
    delta: dict[str, Any] = choice.get("delta") or {}
    said = (choice.get("text"), *(delta.get(name) for name in ("content", "reasoning_content", "tool_calls")))
    return any(said)
