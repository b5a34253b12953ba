"""vLLM's own ways to scale, each in an engine of its own: compiled, tensor parallel, data parallel."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
import yaml

from motet.composers.plan import single
from motet.engines.base import EngineError
from motet.engines.torch import TorchEngine
from motet.models.info import ModelInfo
from tests.vllm.conftest import start_engine
from tests.vllm.requests import SPLIT_PLANS, answers, assert_alike, plan_of, request_for, tokens

pytestmark = pytest.mark.timeout(900)
MEMBERS = ("llama", "llama-b", "llama-c")
START_SECONDS = 480.0
PARALLEL: list[dict[str, Any]] = [
    {"tensor_parallel_size": 2},
    {"data_parallel_size": 2},
    # prompts in pieces: several steps are under way, and contexts of one choice come in different ones
    {"pipeline_parallel_size": 2, "max_num_batched_tokens": 64, "block_size": 32},
]


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("engine_args", PARALLEL, ids=lambda args: next(iter(args)))
async def test_parallel(
    engine_args: dict[str, Any],
    paths: dict[str, Path],
    infos: dict[str, ModelInfo],
    cache: Path,
    embedded: TorchEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two workers, a core each; drawn tokens too are those of the embedded engine."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    plans = [
        single("llama-c"),
        plan_of("llama", {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c"}),
        plan_of("llama", {"strategy": "dynamic", "expert": "llama-b", "antiexpert": "llama-c"}),
        *SPLIT_PLANS[1:],
    ]
    rng = random.Random(0)
    requests = [request_for(plan, rng, trace_top=1, forced=tokens(rng, 3)) for plan in plans]
    requests += [request_for(plan, rng, temperature=1.0, seed=3, top_p=0.9, n=2) for plan in plans]
    requests += [request_for(plan, rng, context=tokens(rng, 150)) for plan in SPLIT_PLANS[1:]]
    few = {name: infos[name] for name in MEMBERS}
    engine = await asyncio.to_thread(start_engine, paths, few, cache, enforce_eager=True, **engine_args)
    try:
        for ours, theirs in zip(await answers(engine, requests), await answers(embedded, requests), strict=True):
            assert_alike(ours, theirs)
        running = engine.generate(request_for(plans[1], rng, max_tokens=300))
        await anext(running)
    finally:
        await engine.close()
    with pytest.raises(EngineError, match="stopped"):
        async for _ in running:
            pass
    assert not engine.is_alive


def serve(file: Path, *flags: str, log: IO[bytes] | None = None) -> tuple[subprocess.Popen[bytes], str]:
    """`motet serve` on a free port, and its address; what it says goes to `log`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "motet.cli", "serve", str(file), "--port", str(port), *flags]
    return subprocess.Popen(command, env=dict(os.environ), stderr=log), f"http://127.0.0.1:{port}"


def wait_ready(url: str, process: subprocess.Popen[bytes], path: str = "/ready") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended before it was ready"
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}{path}").status_code == 200:
                return
        time.sleep(0.2)
    raise AssertionError("the server was not ready in time")


def test_serve_compiled(paths: dict[str, Path], tmp_path: Path) -> None:
    """The command line, with vLLM's compiled graphs, beside the embedded engine on the same file."""
    file = tmp_path / "models.yaml"
    named = {
        "proxy": {"base": "llama", "strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c"},
        "apart": {"base": {"model": "llama", "prompt": ""}, "strategy": "contrastive", "amateur": "llama-c"},
    }
    models = {name: {"path": str(paths[name])} for name in MEMBERS}
    settings = {"dtype": "float32", "max_model_len": 256}
    file.write_text(yaml.safe_dump({"models": models, "compositions": named, "engine": settings}))
    bodies: list[dict[str, Any]] = [
        {"model": model, "prompt": "Where was she born? " * 4, "max_tokens": 24, "temperature": 0, "echo": True}
        | ({"logprobs": 2, "echo": model != "apart"})
        for model in ("llama", "proxy", "apart")
    ]
    told: dict[str, list[Any]] = {}
    for engine in ("vllm", "torch"):
        process, url = serve(file, "--engine", engine)
        try:
            wait_ready(url, process)
            replies = [httpx.post(f"{url}/v1/completions", json=body, timeout=60).json() for body in bodies]
            told[engine] = [reply["choices"][0] for reply in replies]
        finally:
            process.terminate()
            assert process.wait(60) == 0, "the server did not drain and leave cleanly"
    for ours, theirs in zip(told["vllm"], told["torch"], strict=True):
        assert ours["text"] == theirs["text"]
        numbers = [choice["logprobs"]["token_logprobs"] for choice in (ours, theirs)]
        assert numbers[0] == [value if value is None else pytest.approx(value, abs=1e-4) for value in numbers[1]]


def test_options_are_refused_before_anything_starts(paths: dict[str, Path], tmp_path: Path) -> None:
    """Problems of one kind are told together, in a sentence each."""
    file = tmp_path / "models.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "models": {"llama": {"path": str(paths["llama"]), "dtype": "bfloat16", "device": "cpu"}}
                | {"llama-b": {"path": str(paths["llama-b"]), "dtype": "float32"}},
                "engine": {"kind": "vllm", "families": {"all": ["llama", "llama-b"]}},
            }
        )
    )
    command = [sys.executable, "-m", "motet.cli", "serve", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1
    assert "models.llama.device" in ended.stderr
    assert "'llama' is bfloat16, 'llama-b' is float32" in ended.stderr
    assert "Traceback" not in ended.stderr
