"""Who generates tokens in `speed`: Motet's engines behind HTTP, transformers, llama.cpp. Each in processes of its own.

All draw greedily behind prompts of 64 tokens, ends of answers ignored. Timed is the drawing while the whole batch is
under way: from when every sequence has `WARM_UP` tokens until the first one is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import httpx
import yaml

from benchmarks.serve import serving

WARM_UP = 4  # tokens
PROMPT = 64  # tokens
START_SECONDS = 600.0
REQUEST_SECONDS = 600.0
LLAMA_CPP = Path(__file__).parent.parent / "llama_cpp.mjs"

Arrivals = list[tuple[float, int]]  # when, and how many tokens there were then


class Contestant(Protocol):
    """`rate`: tokens per second of `batch` sequences of a model, `tokens` drawn by each."""

    def rate(self, model: str, batch: int, tokens: int) -> float: ...


def prompt(number: int) -> list[int]:
    """Token ids of no meaning, another row of them for every sequence of a batch."""
    return [1000 + (number * 7919 + t * 104729) % 20000 for t in range(PROMPT)]


def full_batch_rate(streams: Sequence[Arrivals]) -> float:
    """Tokens per second between the moment when every stream has `WARM_UP` tokens and the end of the first to end.

    Raises:
        SystemExit: the first to end did so before the last had warmed up.
    """
    began = max(next(when for when, count in stream if count >= WARM_UP) for stream in streams)
    ended = min(stream[-1][0] for stream in streams)
    if ended <= began:
        raise SystemExit("too few tokens: a sequence was done before the batch was whole")
    return sum(_count_at(stream, ended) - _count_at(stream, began) for stream in streams) / (ended - began)


def _count_at(stream: Arrivals, moment: float) -> int:
    return max((count for when, count in stream if when <= moment), default=0)


@dataclass(frozen=True, slots=True)
class Served:
    """A Motet server at `url`."""

    url: str

    def rate(self, model: str, batch: int, tokens: int) -> float:
        return full_batch_rate(asyncio.run(self._together(model, batch, tokens)))

    async def _together(self, model: str, batch: int, tokens: int) -> list[Arrivals]:
        async with httpx.AsyncClient(base_url=self.url, timeout=REQUEST_SECONDS) as client:
            return await asyncio.gather(*(self._one(client, model, i, tokens) for i in range(batch)))

    async def _one(self, client: httpx.AsyncClient, model: str, number: int, tokens: int) -> Arrivals:
        body = {
            "model": model,
            "prompt": prompt(number),
            "max_tokens": WARM_UP + tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        arrivals: Arrivals = []
        async with client.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {") and (usage := json.loads(line[6:]).get("usage")):
                    arrivals.append((time.perf_counter(), int(usage["completion_tokens"])))
        return arrivals


@contextlib.contextmanager
def motet(folder: Path, content: dict[str, Any], *arguments: str, python: str = sys.executable) -> Generator[Served]:
    """A server over an operator's file with this content."""
    file = folder / "models.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    with serving(file, *arguments, python=python, seconds=START_SECONDS) as url:
        yield Served(url)


@dataclass(frozen=True, slots=True)
class Transformers:
    """`benchmarks.real.generate` in a process per model: a request a line, an answer a line."""

    processes: dict[str, subprocess.Popen[str]]

    def rate(self, model: str, batch: int, tokens: int) -> float:
        asked, told = _pipes(self.processes[model])
        asked.write(json.dumps({"prompts": [prompt(i) for i in range(batch)], "tokens": tokens}) + "\n")
        asked.flush()
        line = told.readline()
        if not line:
            raise SystemExit(f"transformers' process of {model} has ended")
        return float(line)


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None, "asked for"
    assert process.stdout is not None, "asked for"
    return process.stdin, process.stdout


@contextlib.contextmanager
def transformers(paths: dict[str, Path], threads: int) -> Generator[Transformers]:
    """`generate` of transformers in bfloat16, its models by name."""
    command = [sys.executable, "-m", "benchmarks.real.generate"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    processes = {
        name: subprocess.Popen(
            [*command, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for name, path in paths.items()
    }
    try:
        yield Transformers(processes)
    finally:
        for process in processes.values():
            process.terminate()
            process.wait(30)


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """llama.cpp through node-llama-cpp of `folder`, one process per figure: GGUF `files` by model."""

    folder: Path
    files: dict[str, Path]
    threads: int

    def rate(self, model: str, batch: int, tokens: int) -> float:
        options = {"threads": self.threads, "sequences": batch, "prompt": PROMPT, "tokens": tokens}
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        done = subprocess.run(
            ["node", str(LLAMA_CPP), str(self.files[model]), *flags],
            env={**os.environ, "NODE_LLAMA_CPP": str(self.folder.resolve())},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        figures: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])["tokens_per_second"]
        return figures[str(batch)][0]
