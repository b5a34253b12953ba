"""Several families of models in one file: an engine each, behind one server that answers as the embedded engine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
import torch
import yaml

from tests.fakes import byte_tokenizer
from tests.vllm.models import llama, narrow
from tests.vllm.test_launches import MEMBERS, serve, wait_ready
from tests.vllm.test_server import bare, rounded

pytestmark = pytest.mark.timeout(900)
GIB = 1 << 30
KV_CACHE_GIB = 0.125
ENGINE: dict[str, Any] = {"dtype": "float32", "max_model_len": 256, "kv_cache_gib": KV_CACHE_GIB}
OTHERS = ("other", "other-b")
NAMED: dict[str, Any] = {
    "proxy": {"base": "llama", "strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c"},
    "contrast": {"base": "other", "strategy": "contrastive", "amateur": "other-b"},
    "apart": {"base": {"model": "other", "prompt": ""}, "strategy": "contrastive", "amateur": "other-b"},
}
ASKED: list[tuple[str, dict[str, Any]]] = [
    *(
        ("/v1/completions", {"model": model, "prompt": "Where was she born?", "echo": True, "logprobs": 3})
        for model in ("llama", "other", "proxy", "contrast")
    ),
    ("/v1/completions", {"model": "apart", "prompt": "Where", "logprobs": 2}),
    ("/v1/chat/completions", {"model": "contrast", "messages": [{"role": "user", "content": "Born?"}], "trace": {}}),
    ("/v1/score", {"model": "contrast", "prompt": "She was", "continuations": [" born", " there."]}),
    ("/v1/compare", {"prompt": "She", "candidates": [{"model": "contrast"}, {"model": "proxy"}, {"model": "other"}]}),
]
ACROSS: list[dict[str, Any]] = [
    {"model": base, "prompt": "x", "composition": {"strategy": "contrastive", "amateur": amateur}}
    for base, amateur in (("llama", "other"), ("other", "llama-b"))
]


class Server(NamedTuple):
    url: str
    process: subprocess.Popen[bytes]
    log: Path


@pytest.fixture(scope="module")
def folder(paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny members, and two that have one more token than those."""
    folder = tmp_path_factory.mktemp("families")
    tokenizer = byte_tokenizer(extra=["zz"])
    for seed, (name, make) in enumerate(zip(OTHERS, (llama, narrow), strict=True)):
        torch.manual_seed(100 + seed)
        model = make()
        model.resize_token_embeddings(tokenizer.size)
        model.save_pretrained(folder / name)
        tokenizer.hf.save_pretrained(folder / name)
    models = {name: {"path": str(paths[name])} for name in MEMBERS} | {name: {"path": name} for name in OTHERS}
    for kind, engine in (("torch", {}), ("vllm", {"engine_args": {"enforce_eager": True, "block_size": 32}})):
        file = {"models": models, "compositions": NAMED, "engine": {"kind": kind, **ENGINE, **engine}}
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    return folder


def served(folder: Path, kind: str) -> Generator[Server]:
    file = folder / f"{kind}.log"
    with file.open("wb") as log:
        process, url = serve(folder / f"{kind}.yaml", log=log)
        try:
            wait_ready(url, process)
            yield Server(url, process, file)
        finally:
            process.terminate()
            process.wait(60)
            sys.stderr.write(file.read_text())


@pytest.fixture(scope="module")
def vllm(folder: Path) -> Generator[Server]:
    space = os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it goes over the file
    yield from served(folder, "vllm")
    os.environ.update({} if space is None else {"VLLM_CPU_KVCACHE_SPACE": space})


@pytest.fixture(scope="module")
def embedded(folder: Path) -> Generator[Server]:
    yield from served(folder, "torch")


def post(server: Server, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=60)


@pytest.mark.parametrize(("path", "body"), ASKED, ids=lambda value: str(value)[:60])
def test_answers_are_those_of_the_embedded_engine(
    path: str, body: dict[str, Any], vllm: Server, embedded: Server
) -> None:
    asked = body if path == "/v1/score" else {"temperature": 0, "max_tokens": 12, **body}
    ours, theirs = post(vllm, path, asked), post(embedded, path, asked)
    assert ours.status_code == theirs.status_code == 200, ours.text
    assert bare(ours.json()) == rounded(theirs.json())


@pytest.mark.parametrize("body", ACROSS, ids=lambda body: body["model"])
def test_a_composition_across_families_is_the_same_refusal(
    body: dict[str, Any], vllm: Server, embedded: Server
) -> None:
    ours, theirs = post(vllm, "/v1/completions", body), post(embedded, "/v1/completions", body)
    assert ours.status_code == theirs.status_code == 400
    assert ours.json() == theirs.json()
    assert ours.json()["error"]["code"] == "vocabulary_mismatch"


def test_caches_divide_the_memory_of_the_file(vllm: Server) -> None:
    """A token costs the keys and values of its own family; the caches hold equally many, up to a block."""
    pattern = r"^([\w, -]+): a token takes ([\d,]+) bytes.*holds ([\d,]+) tokens$"
    found = re.findall(pattern, vllm.log.read_text(), re.MULTILINE)
    told = {models: (number(cost), number(tokens)) for models, cost, tokens in found}
    layer = 2 * 2 * 32 * 4  # keys and values, heads, their width, bytes
    assert {models: cost for models, (cost, _) in told.items()} == {
        "llama, llama-b, llama-c": 7 * layer,
        "other, other-b": 5 * layer,
    }
    first, second = (tokens for _, tokens in told.values())
    assert abs(first - second) <= 32
    total = sum(cost * tokens for cost, tokens in told.values())
    assert 0 <= KV_CACHE_GIB * GIB - total <= 4 * 32 * 7 * layer  # a part of a block, and vLLM's own block, of each
    for model, cost in (("llama", 7 * layer), ("contrast", 5 * layer)):
        answer = post(vllm, "/v1/completions", {"model": model, "prompt": "x" * 9, "max_tokens": 1}).json()
        assert answer["motet"]["kv_bytes"] == 32 * cost, "a block"


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_one_engine_dies_alone(vllm: Server) -> None:
    """Last of all: the models of the other go on; the probes ask for a restart."""
    cores = [
        child for child in psutil.Process(vllm.process.pid).children() if "EngineCore" in " ".join(child.cmdline())
    ]
    first, second = sorted(cores, key=lambda core: core.create_time())
    second.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while httpx.get(f"{vllm.url}/health").status_code == 200:
        assert time.monotonic() < deadline, "the death of an engine was not noticed"
        time.sleep(0.2)
    body = {"prompt": "x", "max_tokens": 3}
    assert post(vllm, "/v1/completions", {"model": "proxy", **body}).status_code == 200
    assert post(vllm, "/v1/completions", {"model": "contrast", **body}).status_code >= 500
    assert first.is_running()
