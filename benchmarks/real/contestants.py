"""Who generates tokens in `speed`: Motet's engines behind HTTP, transformers, llama.cpp. Each in processes of its own.

All draw greedily behind prompts of 64 tokens, ends of answers ignored. Timed is the drawing while the whole batch is
under way: from when every sequence has `WARM_UP` tokens until one has drawn as many as are wanted since. A server reads
prompts beside those who draw already, so its sequences have room for more, and are closed then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
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
SLOWEST = 8  # tokens of prompts that a server reads in each step at least, beside those who draw


class Contestant(Protocol):
    """`rate`: tokens per second of `batch` sequences of a model, `tokens` drawn by each."""

    def rate(self, model: str, batch: int, tokens: int) -> float: ...


def prompt(number: int) -> list[int]:
    """Token ids of no meaning, another row of them for every sequence of a batch."""
    return [1000 + (number * 7919 + t * 104729) % 20000 for t in range(PROMPT)]


class Batch:
    """What the sequences of a batch have drawn, as it arrives.

    Attributes:
        is_over: some sequence has drawn `tokens` since all of them were warm.
    """

    def __init__(self, size: int, tokens: int) -> None:
        self.counts, self._tokens = [0] * size, tokens
        self._began: tuple[float, list[int]] | None = None
        self._ended = 0.0
        self.is_over = False

    def arrived(self, number: int, count: int, when: float) -> None:
        """So many tokens of the sequence are there in all."""
        if self.is_over:
            return
        self.counts[number] = count
        if self._began is None and min(self.counts) >= WARM_UP:
            self._began = when, [*self.counts]
        if self._began is not None and max(self._drawn()) >= self._tokens:
            self._ended, self.is_over = when, True

    def rate(self) -> float:
        """Tokens per second of all sequences together while the batch was whole.

        Raises:
            SystemExit: a sequence was done before that.
        """
        if self._began is None or not self.is_over:
            raise SystemExit(
                f"too few tokens: a sequence was done before the batch was whole; drawn were {self.counts}"
            )
        return sum(self._drawn()) / (self._ended - self._began[0])

    def _drawn(self) -> list[int]:
        assert self._began is not None
        return [now - then for now, then in zip(self.counts, self._began[1], strict=True)]


@dataclass(frozen=True, slots=True)
class Served:
    """A Motet server at `url`."""

    url: str

    def rate(self, model: str, batch: int, tokens: int) -> float:
        whole = Batch(batch, tokens)
        asyncio.run(self._together(model, whole, WARM_UP + tokens + (batch - 1) * PROMPT // SLOWEST))
        return whole.rate()

    async def _together(self, model: str, whole: Batch, room: int) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=REQUEST_SECONDS) as client:
            await asyncio.gather(*(self._one(client, model, i, whole, room) for i in range(len(whole.counts))))

    async def _one(self, client: httpx.AsyncClient, model: str, number: int, whole: Batch, room: int) -> None:
        body = {
            "model": model,
            "prompt": prompt(number),
            "max_tokens": room,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        async with client.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {") and (usage := json.loads(line[6:]).get("usage")):
                    whole.arrived(number, int(usage["completion_tokens"]), time.perf_counter())
                if whole.is_over:
                    return


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
