"""`python -m tests.soak fuzz`: many generated requests; what must never happen is written down and sent again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, TextIO

import httpx

from tests.soak.client import HANG_S, MAX_KEPT, Answer, Finding, is_busy, judge, send
from tests.soak.generator import Generator, Request
from tests.soak.health import HealthWatch, summary
from tests.soak.probe import Probe
from tests.soak.process import Launch, Sample, Server, serving, start

WARM_UP = 0.3  # of the requests: until then caches fill
PROBE_EVERY = 500
MAX_ALONE = 40  # suspects that are sent again
MIB = 1 << 20
Answers = list[tuple[float, float]]


@dataclass
class Tally:
    """What a run found. `suspects` hung, or were in flight when the server died: under load, or by themselves?"""

    statuses: Counter[str] = field(default_factory=Counter[str])
    findings: list[Finding] = field(default_factory=list[Finding])
    suspects: list[Finding] = field(default_factory=list[Finding])
    health: Answers = field(default_factory=list[tuple[float, float]])
    samples: list[list[Sample]] = field(default_factory=list[list[Sample]])
    deaths: list[str] = field(default_factory=list[str])
    quiet: Probe = field(default_factory=Probe)
    loaded: Probe = field(default_factory=Probe)

    def add(self, request: Request, index: int, answer: Answer) -> None:
        self.statuses["busy" if is_busy(answer) else str(answer.status)] += 1
        for finding in judge(request, index, answer):
            if finding.kind in ("hang", "broken_connection"):
                self.suspects.append(replace(finding, kind=f"{finding.kind}_under_load"))
            else:
                self.findings.append(finding)


def describe(url: str) -> tuple[dict[str, Any], list[str]]:
    """The OpenAPI description and the model ids."""
    spec = httpx.get(f"{url}/openapi.json", timeout=60).json()
    return spec, [card["id"] for card in httpx.get(f"{url}/v1/models", timeout=60).json()["data"]]


def fuzz(launch: Launch, requests: int, seed: int, explosive: float, concurrency: int, first: int = 0) -> Tally:
    """A server that dies is started again and the rest is sent to the new one."""
    tally, indices = Tally(), iter(range(first, first + requests))
    while (batch := _until_death(launch, tally, indices, seed, explosive, concurrency)) is not None:
        tally.deaths.append(batch)
    _alone(launch, tally)
    return tally


def _until_death(
    launch: Launch, tally: Tally, indices: Iterator[int], seed: int, explosive: float, concurrency: int
) -> str | None:
    """None when all was sent, else how the server ended."""
    with serving(launch) as server:
        generator = Generator(*describe(server.url), seed, explosive)
        tally.quiet.ask(server.url)
        with HealthWatch(server.url) as watch:
            asyncio.run(send_all(server, tally, indices, generator, concurrency))
        tally.health += watch.answers
        tally.samples.append(list(server.samples))
        if not server.alive:
            return server.killed_for or f"status {server.process.poll()}: {server.log_text()[-300:]}"
        tally.quiet.ask(server.url)
        return None


async def send_all(
    server: Server, tally: Tally, indices: Iterator[int], generator: Generator, concurrency: int
) -> None:
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=server.url, timeout=None, limits=limits) as client:
        await asyncio.gather(*(_worker(client, server, tally, indices, generator) for _ in range(concurrency)))


async def _worker(
    client: httpx.AsyncClient, server: Server, tally: Tally, indices: Iterator[int], generator: Generator
) -> None:
    for index in indices:
        request = generator.request(index)
        answer = await send(client, request)
        tally.add(request, index, answer)
        server.answered += 1
        if answer.failure == "timeout":
            await _end_if_stuck(client, server)
        if index % PROBE_EVERY == PROBE_EVERY - 1 and server.alive:
            await _probe(server, tally)
        if not server.alive:
            return


async def _end_if_stuck(client: httpx.AsyncClient, server: Server) -> None:
    """A server that answers nobody any more is one that died: the rest goes to another."""
    answer = await send(client, Request("GET", "/health"))
    if answer.failure and server.alive:
        await asyncio.to_thread(server.kill, f"/health did not answer for {HANG_S:.0f} s beside a request that hung")


async def _probe(server: Server, tally: Tally) -> None:
    try:
        await asyncio.to_thread(tally.loaded.ask, server.url)
    except httpx.HTTPError as error:
        tally.deaths.append(f"the probe failed: {type(error).__name__}: {error}"[:300])


def _alone(launch: Launch, tally: Tally) -> None:
    """Sends every suspect to a server that has nothing else to do: only what hangs or kills there is a finding."""
    server: Server | None = None
    for suspect in tally.suspects[:MAX_ALONE]:
        if server is None or not server.alive:
            _discard(server)
            server = start(launch)
        found = once(server, suspect.request, suspect.index)
        tally.findings += found
        if any(finding.kind in ("hang", "killed") for finding in found):
            server.kill()
    _discard(server)


def _discard(server: Server | None) -> None:
    if server is not None:
        server.discard()


def once(server: Server, request: Request, index: int) -> list[Finding]:
    """One request alone; a server that it ends is a finding of kind `killed`."""

    async def ask() -> Answer:
        async with httpx.AsyncClient(base_url=server.url, timeout=None) as client:
            return await send(client, request)

    answer = asyncio.run(ask())
    if answer.failure and answer.failure != "timeout":
        time.sleep(0.5)  # until the end of the process is known
    if server.alive:
        return judge(request, index, answer)
    how = server.killed_for or f"status {server.process.poll()}: {server.log_text()[-300:]}"
    return [Finding("killed", request, index, how, answer.seconds)]


def slope(
    samples: Sequence[Sample], memory: Callable[[Sample], int] = attrgetter("resident"), warm_up: float = WARM_UP
) -> float | None:
    """MiB per 10,000 requests by least squares after the warm-up, a share of the requests; None where too little was
    sent to say."""
    total = samples[-1].requests if samples else 0
    points = [(one.requests, memory(one) / MIB) for one in samples if one.requests >= warm_up * total]
    mean_x = sum(x for x, _ in points) / max(len(points), 1)
    mean_y = sum(y for _, y in points) / max(len(points), 1)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if total < 500 or not spread:
        return None
    return round(1e4 * sum((x - mean_x) * (y - mean_y) for x, y in points) / spread, 2)


def results(tally: Tally) -> dict[str, Any]:
    longest = [one for one in max(tally.samples, key=len, default=list[Sample]()) if one.requests]
    kinds = Counter(finding.kind for finding in tally.findings)
    return {
        "statuses": dict(sorted(tally.statuses.items())),
        "findings": dict(sorted(kinds.items())),
        "beyond_10_s_under_load": sum(suspect.kind == "hang_under_load" for suspect in tally.suspects),
        "broken_connections": [one.said for one in tally.suspects if one.kind == "broken_connection_under_load"][:20],
        "deaths": tally.deaths,
        "health": summary(tally.health),
        "probe_quiet": tally.quiet.summary(),
        "probe_under_load": tally.loaded.summary(),
        "memory_first_mib": round(longest[0].resident / MIB) if longest else None,
        "memory_most_mib": round(max(one.resident for one in longest) / MIB) if longest else None,
        "memory_last_mib": round(longest[-1].resident / MIB) if longest else None,
        "memory_mib_per_10k_requests": slope(longest),
        "anonymous_mib_per_10k_requests": {
            f"{who}, {when}": slope(longest, attrgetter(who), share)
            for who in ("server", "children")
            for when, share in (("after the warm-up", WARM_UP), ("second half", 0.5))
        },
    }


def write_findings(findings: Sequence[Finding], seed: int, out: TextIO) -> None:
    for finding in findings:
        print(finding.line(seed), file=out, flush=True)


def replay(launch: Launch, file: Path, explosive: float) -> list[Finding]:
    """Sends the findings of a file again, each alone; those whose body was too long to keep are made again."""
    findings: list[Finding] = []
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.startswith('{"kind"')]
    server = start(launch)
    try:
        for line in lines:
            if not server.alive:
                server.discard()
                server = start(launch)
            findings += once(server, _request_of(line, server, explosive), line["index"])
    finally:
        server.discard()
    return findings


def _request_of(line: dict[str, Any], server: Server, explosive: float) -> Request:
    if line["bytes"] > MAX_KEPT:
        made = Generator(*describe(server.url), line["seed"], explosive).request(line["index"])
        if hashlib.sha256(made.body).hexdigest() != line["sha256"]:
            raise SystemExit(
                f"request {line['index']}: the description or --explosive is another than when it was found"
            )
        return made
    body = bytes.fromhex(line["hex"]) if line["hex"] else line["body"].encode()
    return Request(line["method"], line["path"], tuple((name, value) for name, value in line["headers"]), body)
