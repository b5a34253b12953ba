"""`python -m tests.soak aborts`: clients that leave at any moment, and whether anything of theirs stays behind.

They leave while they still send, while they wait (in the queue, in prefill, before a whole answer) and between two
events of a stream, politely (FIN) or not (RST). Afterwards nothing may run or wait, no key or value be held, every
place be free (one request takes them all), and the probe's answer be what it was, bit by bit.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from tests.soak.health import HealthWatch, summary
from tests.soak.probe import Probe, members
from tests.soak.process import Launch, Server, serving
from tests.soak.raw import Link, connect, post, until_idle
from tests.soak.values import Rng

PLACES = 256  # of the server: two prompts of 128 choices
IDLE_WITHIN_S = 10.0
LONGEST_WAIT_S = 0.15
MIB = 1 << 20


@dataclass
class Tally:
    left: Counter[str] = field(default_factory=Counter[str])
    broken: list[str] = field(default_factory=list[str])


def aborts(launch: Launch, number: int, seed: int, concurrency: int) -> dict[str, Any]:
    limited = replace(launch, environment={**launch.environment, "MOTET_SERVER__MAX_CHOICES": str(PLACES)})
    tally, probe = Tally(), Probe()
    with serving(limited) as server:
        probe.ask(server.url)
        before, descriptors = server.resident(), server.descriptors()
        with HealthWatch(server.url) as watch:
            asyncio.run(leave_all(server, tally, iter(range(number)), seed, concurrency))
        idle_after = asyncio.run(until_idle(server.url, IDLE_WITHIN_S)) if server.alive else None
        return {
            "left": dict(sorted(tally.left.items())),
            "broken": tally.broken[:5],
            "alive": server.alive,
            "idle_after_s": None if idle_after is None else round(idle_after, 3),
            "gauges": server.gauges() if server.alive else None,
            "all_places_free": server.alive and _takes_all(server.url),
            "descriptors_left": server.descriptors() - descriptors,
            "probe": (probe.ask(server.url), probe.summary())[1] if server.alive else None,
            "health": summary(watch.answers),
            "memory_grew_mib": round((server.resident() - before) / MIB),
        }


async def leave_all(server: Server, tally: Tally, indices: Iterator[int], seed: int, concurrency: int) -> None:
    models = members(server.url)

    async def worker() -> None:
        for index in indices:
            try:
                tally.left[await _abort(server.url, models, random.Random(f"{seed}/{index}"))] += 1
            except OSError as error:
                tally.broken.append(f"{index}: {type(error).__name__}: {error}")
            server.answered += 1
            if not server.alive:
                return

    await asyncio.gather(*(worker() for _ in range(concurrency)))


def _takes_all(url: str) -> bool:
    """Whether a request that needs every place of the server gets them."""
    body = {"model": members(url)[0], "prompt": ["a", "b"], "n": PLACES // 2, "max_tokens": 1}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200


def _request(rng: Rng, models: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Prompts long and short, so that some leave in prefill and some in decoding; answers fill the context."""
    base, expert, antiexpert = models
    composed = {"strategy": "proxy_tuning", "base": base, "expert": expert, "antiexpert": antiexpert}
    text = "a town and " * rng.choice((1, 4, 8))
    shared: dict[str, Any] = {"model": base, **({"composition": composed} if rng.random() < 0.5 else {})}
    drawn = {"max_tokens": rng.choice((8, 60)), "ignore_eos": True, "n": rng.choice((1, 1, 3, 16))}
    drawn["stream"] = rng.random() < 0.6
    match rng.choice(("completions", "completions", "chat", "score", "compare")):
        case "chat":
            return "/v1/chat/completions", {**shared, **drawn, "messages": [{"role": "user", "content": text}]}
        case "score":
            return "/v1/score", {**shared, "prompt": text, "continuations": ["the town of"] * rng.choice((1, 16))}
        case "compare":
            body = {**drawn, "prompt": text, "candidates": list(models)}
            return "/v1/compare", {**body, "n": 1}
        case _:
            prompt = [text] * rng.choice((1, 1, 4))
            return "/v1/completions", {**shared, **drawn, "prompt": prompt, "logprobs": rng.choice((None, 20))}


async def _abort(url: str, models: tuple[str, ...], rng: Rng) -> str:
    """One request that is left; says when it was."""
    path, body = _request(rng, models)
    sent = post(path, body)
    link = await connect(url)
    when = rng.choice(("sending", "waiting", "waiting", "reading") if body.get("stream") else ("sending", "waiting"))
    try:
        await _until(when, link, sent, rng)
    finally:
        polite = rng.random() < 0.5
        (link.close if polite else link.reset)()
    return f"{when}, {'stream' if body.get('stream') else 'whole'}, {'FIN' if polite else 'RST'}"


async def _until(when: str, link: Link, sent: bytes, rng: Rng) -> None:
    if when == "sending":
        link.writer.write(sent[: rng.randrange(len(sent))])
        await link.writer.drain()
        await asyncio.sleep(rng.choice((0, 0.01)))
        return
    link.writer.write(sent)
    await link.writer.drain()
    if when == "waiting":
        await asyncio.sleep(rng.random() ** 2 * LONGEST_WAIT_S)
        return
    events = rng.randint(1, 40)
    got = b""
    while got.count(b"data: ") < events and b"[DONE]" not in got and (part := await link.reader.read(1 << 14)):
        got += part
