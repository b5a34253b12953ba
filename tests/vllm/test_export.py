"""The plugin without Motet's server: vLLM's own serves the exported folder, compositions come in `vllm_xargs`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from motet.server.engines.base import GenerationRequest, SamplingParams
from motet.server.engines.torch import TorchEngine
from tests.vllm.models import TOKENIZER
from tests.vllm.requests import answer, plan_of
from tests.vllm.test_launches import MEMBERS, wait_ready

PROMPT = "Where was she born? " * 3
COMPOSITIONS: list[dict[str, Any]] = [
    {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c"},
    {"strategy": "contrastive", "amateur": "llama-c"},
    {"strategy": "rules", "repetition": 1.5},
]


@pytest.mark.timeout(280)
@pytest.mark.asyncio(loop_scope="session")
async def test_vllm_serves_the_exported_folder(paths: dict[str, Path], tmp_path: Path, embedded: TorchEngine) -> None:
    file = tmp_path / "models.yaml"
    models = {name: {"path": str(paths[name])} for name in MEMBERS}
    file.write_text(yaml.safe_dump({"models": models, "engine": {"dtype": "float32"}}))
    out = tmp_path / "composite"
    exported = subprocess.run(
        [sys.executable, "-m", "motet.cli", "vllm", "export", str(file), str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not list(out.glob("*.safetensors")), "no weights are copied"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    *environment, _vllm, _serve, folder, rest = exported.stdout.split(maxsplit=4)[-5:]
    command = [str(Path(sys.executable).parent / "vllm"), "serve", folder, *rest.split()]
    process = subprocess.Popen(
        [*command, "--enforce-eager", "--port", str(port), "--host", "127.0.0.1", "--served-model-name", "family"],
        env={**os.environ, **dict(entry.split("=") for entry in environment)},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(url, process, "/health")
        body: dict[str, Any] = {"model": "family", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 1}
        for composition in COMPOSITIONS:
            reply = httpx.post(f"{url}/v1/completions", json=body | _xargs(composition), timeout=60)
            assert reply.status_code == 200, reply.text
            context = tuple(TOKENIZER.encode(PROMPT, add_special_tokens=True))
            plan = plan_of("llama", composition)
            sampling = SamplingParams(max_tokens=12, temperature=0.0)
            outputs = await answer(embedded, GenerationRequest("r", plan, (context,) * len(plan.streams), sampling))
            logprobs = reply.json()["choices"][0]["logprobs"]["token_logprobs"]
            assert logprobs == pytest.approx([output.logprob for output in outputs], abs=1e-4)
        bad = httpx.post(f"{url}/v1/completions", json=body | _xargs({"strategy": "contrastive", "amateur": "x"}))
        assert bad.status_code == 400, bad.text
        assert httpx.get(f"{url}/health").status_code == 200
    finally:
        process.terminate()
        process.wait(60)


def _xargs(composition: dict[str, Any]) -> dict[str, Any]:
    return {"vllm_xargs": {"composition": json.dumps(composition)}}
