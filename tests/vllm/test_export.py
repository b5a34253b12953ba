"""The plugin without Motet's server: vLLM's own serves the exported folder, compositions come in `vllm_xargs`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.torch import TorchEngine
from tests.vllm.models import TOKENIZER
from tests.vllm.requests import answer, plan_of
from tests.vllm.test_launches import MEMBERS, wait_ready
from tests.vllm.test_runner_v2 import environment

PROMPT = "Where was she born? " * 3
COMPOSITIONS: list[dict[str, Any]] = [
    {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c"},
    {"strategy": "contrastive", "amateur": "llama-c"},
    {"strategy": "rules", "repetition": 1.5},
]


@pytest.fixture(params=["first", "second"])
def url(request: pytest.FixtureRequest, paths: dict[str, Path], tmp_path: Path) -> Generator[str]:
    """vLLM's own server over what `motet vllm export` wrote, started as that says, on each of vLLM's runners."""
    file, out = tmp_path / "models.yaml", tmp_path / "composite"
    models = {name: {"path": str(paths[name])} for name in MEMBERS}
    file.write_text(yaml.safe_dump({"models": models, "engine": {"dtype": "float32"}}))
    export = [sys.executable, "-m", "motet.cli", "vllm", "export", str(file), str(out)]
    told = subprocess.run(export, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()
    assert not list(out.glob("*.safetensors")), "no weights are copied"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, *told[1:], "--enforce-eager", "--port", str(port), "--host", "127.0.0.1"],
        env=environment() if request.param == "second" else dict(os.environ),
    )
    try:
        wait_ready(f"http://127.0.0.1:{port}", process, "/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.timeout(900)
@pytest.mark.asyncio(loop_scope="session")
async def test_vllm_serves_the_exported_folder(url: str, embedded: TorchEngine) -> None:
    context = tuple(TOKENIZER.encode(PROMPT, add_special_tokens=True))
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        name = (await client.get("/v1/models")).json()["data"][0]["id"]
        body: dict[str, Any] = {
            "model": name,
            "prompt": list(context),
            "max_tokens": 12,
            "temperature": 0,
            "logprobs": 1,
        }
        for composition in COMPOSITIONS:
            reply = await client.post("/v1/completions", json=body | _xargs(composition))
            assert reply.status_code == 200, reply.text
            plan = plan_of("llama", composition)
            sampling = SamplingParams(max_tokens=12, temperature=0.0)
            request = GenerationRequest("r", plan, (context,) * len(plan.streams), sampling)
            logprobs = reply.json()["choices"][0]["logprobs"]["token_logprobs"]
            assert logprobs == pytest.approx([output.logprob for output in await answer(embedded, request)], abs=1e-4)
        bad = await client.post("/v1/completions", json=body | _xargs({"strategy": "contrastive", "amateur": "x"}))
        assert bad.status_code == 400, bad.text
        assert (await client.get("/health")).status_code == 200


def _xargs(composition: dict[str, Any]) -> dict[str, Any]:
    return {"vllm_xargs": {"composition": json.dumps(composition)}}
