"""`python -m tests.soak connections`: clients that do not read, send slowly, close halfway, or come by the thousand.

Every scenario has a server of its own, and returns numbers and whether it held; `patience` is how long a server may
keep what such a client holds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from tests.soak.client import openai_message
from tests.soak.probe import members
from tests.soak.process import Launch, Server, serving
from tests.soak.raw import Link, connect, post, until_idle

MIB = 1 << 20
OVERLOADED_S = 0.05
SMALL_BUFFER = 4096
GROWTH_MIB = 100
ANSWER_S = 120.0
PATIENCE_S = 75.0  # beyond the 60 s that a body may take by default


@dataclass(frozen=True)
class Outcome:
    held: bool
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    """`places` and `descriptors` of its server (0: as it comes)."""

    run: Callable[[Server, float], Coroutine[Any, Any, Outcome]]
    places: int = 0
    descriptors: int = 0


def connections(launch: Launch, patience: float, only: Sequence[str] = ()) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, scenario in SCENARIOS.items():
        if not only or name in only:
            outcome = play(launch, scenario, patience)
            results[name] = {"held": outcome.held, **outcome.numbers}
            print(f"{'held    ' if outcome.held else 'NOT HELD'} {name}: {outcome.numbers}", flush=True)
    return results


def play(launch: Launch, scenario: Scenario, patience: float) -> Outcome:
    places = {"MOTET_SERVER__MAX_CHOICES": str(scenario.places)} if scenario.places else {}
    limited = replace(launch, environment={**launch.environment, **places}, descriptors=scenario.descriptors)
    with serving(limited) as server:
        members(server.url)  # known from here on, whatever the server can still answer
        try:
            outcome = asyncio.run(scenario.run(server, patience))
        except (OSError, httpx.HTTPError) as error:
            outcome = Outcome(False, {"failed": f"{type(error).__name__}: {error}"[:300]})
        return outcome if server.alive else Outcome(False, {**outcome.numbers, "ended": server.killed_for or "yes"})


def _stream(url: str, max_tokens: int, **more: Any) -> dict[str, Any]:
    named = {"model": members(url)[0], "prompt": "The town of", "max_tokens": max_tokens, "ignore_eos": True}
    return {**named, "temperature": 0, "stream": True, **more}


async def _answered(url: str, seconds: float) -> float | None:
    """How long a small request takes; None if it is not answered 200 within some seconds."""
    began = time.monotonic()
    try:
        async with httpx.AsyncClient(base_url=url, timeout=seconds) as client:
            answer = await client.post("/v1/completions", json=_stream(url, 1, stream=False))
    except httpx.HTTPError:
        return None
    return time.monotonic() - began if answer.status_code == 200 else None


async def unread(server: Server, patience: float) -> Outcome:
    """All places are held by clients that ask for megabytes and read none of them: how long, and at what cost? What
    the same requests of clients that read have warmed up before is no cost of theirs."""
    body = _stream(server.url, 100, n=16, logprobs=20, trace={"top": 20})
    async with httpx.AsyncClient(base_url=server.url, timeout=ANSWER_S) as reading:
        await asyncio.gather(*(reading.post("/v1/completions", json=body) for _ in range(4)))
    before = server.resident()
    links = [await connect(server.url, SMALL_BUFFER) for _ in range(4)]
    for link in links:
        link.writer.transport.pause_reading()  # type: ignore[attr-defined]
        link.writer.write(post("/v1/completions", body))
    began, free = time.monotonic(), None
    await asyncio.sleep(0.5)
    while free is None and time.monotonic() - began < patience:
        await asyncio.sleep(0.25)
        free = await _answered(server.url, 5)
    freed = time.monotonic() - began if free is not None else None
    grown = (server.resident() - before) / MIB
    for link in links:
        link.reset()
    idle = await until_idle(server.url, 20)
    numbers = {"places_back_s": _rounded(freed), "grew_mib": round(grown), "idle_after_leaving_s": _rounded(idle)}
    return Outcome(freed is not None and grown < GROWTH_MIB and idle is not None, numbers)


async def _trickle(link: Link, text: bytes, stop: asyncio.Event) -> None:
    """One byte a second."""
    for at in range(len(text)):
        try:
            link.writer.write(text[at : at + 1])
            await link.writer.drain()
            await asyncio.wait_for(stop.wait(), 1)
            return
        except TimeoutError:
            continue
        except OSError:
            return


async def _slow(server: Server, patience: float, opening: bytes, rest: bytes, number: int = 100) -> Outcome:
    """Clients that send a beginning and then one byte a second: closed within `patience`, others answered meanwhile."""
    links = [await connect(server.url) for _ in range(number)]
    stop = asyncio.Event()
    for link in links:
        link.writer.write(opening)
    sending = [asyncio.create_task(_trickle(link, rest, stop)) for link in links]
    closing = asyncio.gather(*(link.closed_within(patience) for link in links))
    other = await _answered(server.url, 10)
    times = await closing
    stop.set()
    await asyncio.gather(*sending)
    for link in links:
        link.reset()
    closed = [seconds for seconds in times if seconds is not None]
    numbers = {"clients": number, "closed": len(closed), "last_closed_s": _rounded(max(closed, default=None))}
    return Outcome(len(closed) == number and other is not None, {**numbers, "other_answered_s": _rounded(other)})


async def slow_headers(server: Server, patience: float) -> Outcome:
    return await _slow(server, patience, b"POST /v1/completions HTTP/1.1\r\nhost: soak\r\nx: ", b"y" * 1000)


async def silent(server: Server, patience: float) -> Outcome:
    return await _slow(server, patience, b"", b"")


async def slow_bodies(server: Server, patience: float) -> Outcome:
    whole = post("/v1/completions", b'{"model": "large", "prompt": "' + b"x" * 10_000 + b'"}')
    head, _, body = whole.partition(b"\r\n\r\n")
    return await _slow(server, patience, head + b"\r\n\r\n", body)


async def half_closed(server: Server, patience: float) -> Outcome:
    """Clients that shut their sending side down behind a whole request, or in the middle of one. The first are answered
    or dropped; all are closed, and nothing of theirs is left."""
    whole = post("/v1/completions", _stream(server.url, 40))
    kinds = {"whole": whole, "in the body": whole[:-5], "in the headers": whole[:30]}
    told = await asyncio.gather(*(_half(server.url, sent, patience) for sent in kinds.values() for _ in range(20)))
    idle = await until_idle(server.url, 10)
    other = await _answered(server.url, 10)
    kept = {kind: told[20 * i : 20 * i + 20].count(None) for i, kind in enumerate(kinds)}
    answered = sum(b"[DONE]" in (one or b"") for one in told[:20])
    numbers = {"answered_of_20": answered, "left_open": kept, "idle_after_s": _rounded(idle)}
    fine = idle is not None and other is not None and not any(kept.values())
    return Outcome(fine, {**numbers, "other_answered_s": _rounded(other)})


async def _half(url: str, sent: bytes, patience: float) -> bytes | None:
    """What is answered to a client that has ended its sending side; None if the connection stays open."""
    link = await connect(url)
    link.writer.write(sent)
    link.writer.write_eof()
    try:
        async with asyncio.timeout(patience):
            return await link.reader.read(-1)
    except TimeoutError:
        return None
    except OSError:
        return b""
    finally:
        link.close()


async def thousand_streams(server: Server, patience: float) -> Outcome:
    """1,000 streams at once, each whole and the same."""
    number = 1000
    body = _stream(server.url, 16)
    began = time.monotonic()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=ANSWER_S, limits=limits) as client:
        answers = await asyncio.gather(
            *(client.post("/v1/completions", json=body) for _ in range(number)), return_exceptions=True
        )
    got = [answer for answer in answers if isinstance(answer, httpx.Response) and answer.status_code == 200]
    texts = {_text(answer.text) for answer in got}
    whole = sum(answer.text.rstrip().endswith("data: [DONE]") for answer in got)
    seconds = time.monotonic() - began
    numbers = {"streams": number, "whole": whole, "different_texts": len(texts), "seconds": round(seconds, 1)}
    return Outcome(whole == number and len(texts) == 1, numbers)


def _text(stream: str) -> str:
    """A stream without its ids and times."""
    return "".join(event.partition('"choices"')[2] for event in stream.split("\n\n"))


async def overload(server: Server, patience: float) -> Outcome:
    """Every place taken by streams: others hear 503 with Retry-After in under 50 ms."""
    body = post("/v1/completions", _stream(server.url, 100, n=32, logprobs=20), "connection: close\r\n")
    links = [await connect(server.url) for _ in range(8)]
    refused: list[tuple[float, httpx.Response]] = []
    async with httpx.AsyncClient(base_url=server.url, timeout=ANSWER_S) as client:
        await client.get("/health")  # what a client does once takes it longer than a refusal
        for link in links:
            link.writer.write(body)
        running = [asyncio.create_task(link.closed_within(ANSWER_S)) for link in links]  # reads, and looks at nothing
        await asyncio.sleep(0.1)
        while not all(task.done() for task in running) and len(refused) < 500:
            began = time.monotonic()
            answer = await client.post("/v1/completions", json=_stream(server.url, 1))
            if answer.status_code != 200:
                refused.append((time.monotonic() - began, answer))
    await asyncio.gather(*running)
    times = sorted(seconds for seconds, _ in refused) or [0.0]
    shaped = all(
        one.status_code == 503 and "retry-after" in one.headers and openai_message(one.text) for _, one in refused
    )
    numbers: dict[str, Any] = {"refused": len(refused), "p50_ms": _ms(times[len(times) // 2]), "max_ms": _ms(times[-1])}
    numbers["p99_ms"] = _ms(times[int(0.99 * (len(times) - 1))])
    numbers["retry_after"] = sorted({one.headers.get("retry-after") for _, one in refused}, key=str)
    return Outcome(bool(refused) and shaped and times[-1] < OVERLOADED_S, numbers)


async def descriptors(server: Server, patience: float) -> Outcome:
    """More connections than the process may have descriptors: it goes on answering those that it has, writes no flood
    into its log, and is there for new ones once they are gone."""
    async with httpx.AsyncClient(base_url=server.url, timeout=5) as client:
        await client.get("/health")
        began, links = time.monotonic(), list[Link]()
        for _ in range(300):
            links.append(await connect(server.url))
        known = 0
        while time.monotonic() - began < 10:
            known += await _is_healthy(client)
            await asyncio.sleep(0.25)
        logged = server.log.stat().st_size
    fresh = await _answered(server.url, 5)
    for link in links:
        link.reset()
    after = await _answered(server.url, 10)
    numbers = {"health_answers": known, "log_kib": round(logged / 1024), "new_client_answered_s": _rounded(fresh)}
    held = known > 20 and after is not None and fresh is not None and logged < MIB
    return Outcome(held, {**numbers, "afterwards_answered_s": _rounded(after)})


async def _is_healthy(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).status_code == 200
    except httpx.HTTPError:
        return False


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


SCENARIOS: dict[str, Scenario] = {
    "unread": Scenario(unread, places=64),
    "slow_headers": Scenario(slow_headers),
    "slow_bodies": Scenario(slow_bodies),
    "silent": Scenario(silent),
    "half_closed": Scenario(half_closed),
    "thousand_streams": Scenario(thousand_streams, places=1024),
    "overload": Scenario(overload, places=256),
    "descriptors": Scenario(descriptors, descriptors=200),
}
