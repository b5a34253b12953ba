"""Composed requests over HTTP, streaming, against the published loop serving them one by one.

    python -m benchmarks.serve --size small --out benchmarks/results/serve-small.json

Theory: a batch of composed requests reads every member's weights once per step, the loop once per request and token;
so the ceiling of the speed-up is the number of concurrent requests, less what attention and HTTP cost. The loop
(`benchmarks.step.NaiveLoop`) runs in this process without HTTP, which favours it. Server and client share the cores.

Reported: tokens per second, time to first token and inter-token latency (p50, p99) over all requests of all rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from motet.environment import missing

os.environ.update(missing(os.environ))  # must stand before torch is imported

import httpx
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from benchmarks.common import environment, interleave, make_family, report
from benchmarks.step import NaiveLoop, prompts

OPERATOR_FILE = """\
models:
  base: {{path: {base}}}
  expert: {{path: {expert}}}
  antiexpert: {{path: {antiexpert}}}
compositions:
  proxy: {{base: base, strategy: proxy_tuning, expert: expert, antiexpert: antiexpert}}
"""


@dataclass(frozen=True, slots=True)
class Timing:
    """One streamed request: seconds to the first token and between the tokens."""

    first: float
    between: list[float]


@contextlib.contextmanager
def serving(file: Path, *arguments: str, python: str = sys.executable, seconds: float = 60) -> Generator[str]:
    """A real server in a process of its own; yields its base URL once it is ready, within `seconds`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [python, "-m", "motet.cli", "serve", str(file), "--port", str(port), "--log-level", "warning"]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([*command, *arguments])
    try:
        wait_ready(url, process, seconds)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def wait_ready(url: str, process: subprocess.Popen[bytes], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit("the server ended before it was ready")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"the server was not ready within {seconds:g} seconds")


async def stream(client: httpx.AsyncClient, prompt: Sequence[int], max_tokens: int) -> Timing:
    body = {
        "model": "proxy",
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
    }
    began = time.perf_counter()
    arrivals: list[float] = []
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                arrivals.append(time.perf_counter())
    between = [after - before for before, after in pairwise(arrivals)]
    return Timing(arrivals[0] - began, between)


async def together(url: str, batch: Sequence[Sequence[int]], max_tokens: int) -> list[Timing]:
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        return await asyncio.gather(*(stream(client, prompt, max_tokens) for prompt in batch))


@torch.inference_mode()
def one_by_one(models: Sequence[PreTrainedModel], batch: Sequence[Sequence[int]], max_tokens: int) -> None:
    for prompt in batch:
        loop = NaiveLoop(models, [prompt])
        for _ in range(max_tokens):
            loop.step()


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure(
    url: str, models: Sequence[PreTrainedModel], requests: int, max_tokens: int, rounds: int, vocab: int
) -> dict[str, float]:
    batch = prompts(requests, vocab)
    timings: list[Timing] = []

    def served() -> float:
        began = time.perf_counter()
        timings.extend(asyncio.run(together(url, batch, max_tokens)))
        return requests * max_tokens / (time.perf_counter() - began)

    def naive() -> float:
        began = time.perf_counter()
        one_by_one(models, batch, max_tokens)
        return requests * max_tokens / (time.perf_counter() - began)

    rates = interleave({"served": served, "naive": naive}, rounds)
    between = [gap for timing in timings for gap in timing.between]
    first = [timing.first for timing in timings]
    return {
        "requests": requests,
        "max_tokens": max_tokens,
        "served_tokens_per_s": statistics.median(rates["served"]),
        "naive_tokens_per_s": statistics.median(rates["naive"]),
        "speedup": statistics.median(s / n for s, n in zip(rates["served"], rates["naive"], strict=True)),
        "first_token_p50_ms": 1e3 * percentile(first, 0.5),
        "first_token_p99_ms": 1e3 * percentile(first, 0.99),
        "inter_token_p50_ms": 1e3 * percentile(between, 0.5),
        "inter_token_p99_ms": 1e3 * percentile(between, 0.99),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("small", "medium"), default="small")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the random members are kept (a temporary folder otherwise)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: list[dict[str, float]] = []
    with TemporaryDirectory() as temporary:
        paths = make_family(options.folder or Path(temporary), options.size)
        models = [LlamaForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval() for path in paths.values()]
        vocab = int(models[0].config.vocab_size)
        print(environment())
        file = Path(temporary) / "models.yaml"
        file.write_text(OPERATOR_FILE.format(**paths))
        with serving(file) as url:
            for requests in options.requests:
                results.append(measure(url, models, requests, options.max_tokens, options.rounds, vocab))
                print("  ".join(f"{key} {value:.4g}" for key, value in results[-1].items()), flush=True)
    report("serve", {"size": options.size, "runs": results}, options.out)


if __name__ == "__main__":
    main()
