"""`python -m tests.soak mixed`: for an hour, generated requests beside clients that leave; what stays in memory.

Memory is read as bytes of the server and its children against the requests that it has answered: after a warm-up, in
which caches fill and the allocator finds its size, it must not go on growing.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from itertools import count, takewhile
from typing import Any

from tests.soak import aborts, fuzz
from tests.soak.generator import Generator
from tests.soak.health import HealthWatch
from tests.soak.process import Launch, Server, serving
from tests.soak.raw import until_idle


def mixed(launch: Launch, minutes: float, seed: int, explosive: float, concurrency: int) -> dict[str, Any]:
    """`concurrency` clients of each of the two kinds. A server that dies ends the run; findings go to stderr."""
    sent, left = fuzz.Tally(), aborts.Tally()
    with serving(launch) as server:
        generator = Generator(*fuzz.describe(server.url), seed, explosive)
        sent.quiet.ask(server.url)
        with HealthWatch(server.url) as watch:
            asyncio.run(_both(server, sent, left, generator, minutes, concurrency))
        sent.health = watch.answers
        sent.samples.append(list(server.samples))
        if not server.alive:
            sent.deaths.append(server.killed_for or f"status {server.process.poll()}: {server.log_text()[-300:]}")
        idle_after = asyncio.run(until_idle(server.url, aborts.IDLE_WITHIN_S)) if server.alive else None
        if server.alive:
            sent.quiet.ask(server.url)
        fuzz.write_findings([*sent.findings, *sent.suspects], seed, sys.stderr)
        return {
            "requests": server.answered,
            **fuzz.results(sent),
            "left": dict(sorted(left.left.items())),
            "broken": left.broken[:5],
            "idle_after_s": None if idle_after is None else round(idle_after, 3),
            "gauges": server.gauges() if server.alive else None,
            "memory_mib_by_tenth": tenths(server),
        }


async def _both(
    server: Server, sent: fuzz.Tally, left: aborts.Tally, generator: Generator, minutes: float, concurrency: int
) -> None:
    deadline = time.monotonic() + 60 * minutes

    def until() -> Iterator[int]:
        return takewhile(lambda _: time.monotonic() < deadline, count())

    await asyncio.gather(
        fuzz.send_all(server, sent, until(), generator, concurrency),
        aborts.leave_all(server, left, until(), generator.seed, concurrency),
    )


def tenths(server: Server) -> list[tuple[int, ...]]:
    """Requests answered, MiB resident, anonymous of the server and of its children, at every tenth of the time."""
    samples = server.samples
    chosen = [samples[(len(samples) - 1) * k // 10] for k in range(11)] if samples else []
    return [
        (one.requests, *(round(part / fuzz.MIB) for part in (one.resident, one.server, one.children))) for one in chosen
    ]
