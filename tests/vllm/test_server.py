"""The HTTP server over the vLLM engine, in process: the clients' view of what the other tests measure."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import httpx
import pytest
import pytest_asyncio

from motet.composers.spec import parse_composition
from motet.composers.vocabulary import read_vocabulary
from motet.engines.base import Engine
from motet.engines.torch import TorchEngine
from motet.engines.vllm.engine import VllmEngine
from motet.models.info import ModelInfo
from motet.operator.loaded import LoadedModel
from motet.operator.registry import Registry
from motet.operator.settings import ServerConfig
from motet.server.app import create_app
from motet.server.service import Service
from tests.vllm.models import TOKENIZER, VOCAB

pytestmark = pytest.mark.asyncio(loop_scope="session")
Body = dict[str, Any]
SCHEMA: Body = {"type": "object", "properties": {"town": {"enum": ["Ay", "Bree"]}}, "required": ["town"]}
NAMED = {"proxy": {"base": "llama", "strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c"}}
MESSAGES = [{"role": "user", "content": "Where was she born?"}]

CASCADE: Body = {"strategy": "cascade", "per": "request", "small": "llama-b", "threshold": 0.0}
KEPT: Body = CASCADE | {"measure": "margin", "aggregate": "quantile", "quantile": 0.4}
ANEW: Body = CASCADE | {"measure": "entropy"}  # never as low


def service_of(engine: Engine, infos: Mapping[str, ModelInfo]) -> Service:
    vocabulary = read_vocabulary(TOKENIZER.hf, VOCAB)
    members = {name: LoadedModel(info, TOKENIZER, vocabulary, "chat", name) for name, info in infos.items()}
    registry = Registry(members, {name: parse_composition(value) for name, value in NAMED.items()})
    return Service.assemble(ServerConfig(port=0, max_choices=4096), engine, registry)


def client_of(engine: Engine, infos: Mapping[str, ModelInfo]) -> httpx.AsyncClient:
    app = create_app(service_of(engine, infos))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://motet", timeout=120)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def vllm(engine: VllmEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(engine, engine.models) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def torch(embedded: TorchEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(embedded, embedded.models) as client:
        yield client


CASES: list[tuple[str, Body]] = [
    ("/v1/completions", {"model": "proxy", "prompt": "In which town", "echo": True, "logprobs": 3, "max_tokens": 9}),
    ("/v1/completions", {"model": "llama", "prompt": ["a", "bc"], "n": 3, "temperature": 1, "seed": 5, "stop": ["e"]}),
    ("/v1/completions", {"model": "mistral", "prompt": "x" * 90, "prompt_logprobs": 2, "max_tokens": 3}),
    (
        "/v1/chat/completions",
        {"model": "proxy", "messages": MESSAGES, "logprobs": True, "top_logprobs": 4, "trace": {"top": 2}},
    ),
    ("/v1/chat/completions", {"model": "llama", "messages": MESSAGES, "guidance_scale": 1.5, "negative_prompt": "no"}),
    ("/v1/score", {"model": "proxy", "prompt": "She was", "continuations": [" born", " there."]}),
    (
        "/v1/score",
        {
            "model": "llama",
            "prompt": "She was",
            "continuations": [" born"],
            "composition": {"strategy": "context_aware", "without": {"prompt": "was"}},
        },
    ),
    (
        "/v1/completions",
        {
            "model": "llama",
            "prompt": ["She was born there.", "In"],
            "composition": {"strategy": "hesitation", "share": 0.2, "alpha": 0.5},
            "logprobs": 2,
            "trace": True,
            "max_tokens": 9,
        },
    ),
    (
        "/v1/completions",
        {
            "model": "llama",
            "prompt": ["She was born there.", "In"],
            "composition": ANEW,
            "logprobs": 2,
            "trace": {"top": 1, "members": True},
            "max_tokens": 5,
        },
    ),
    (
        "/v1/chat/completions",
        {
            "model": "llama",
            "messages": MESSAGES,
            "composition": KEPT,
            "n": 2,
            "seed": 7,
            "temperature": 1,
            "logprobs": True,
            "max_tokens": 5,
        },
    ),
    (
        "/v1/compare",
        {"prompt": "She", "candidates": [{"model": "llama"}, {"model": "proxy"}], "max_tokens": 5, "temperature": 0},
    ),
    (
        "/v1/chat/completions",
        {
            "model": "proxy",
            "messages": MESSAGES,
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
            "structured_outputs": {"disable_any_whitespace": True},
            "n": 2,
            "seed": 2,
            "logprobs": True,
            "top_logprobs": 3,
            "trace": True,
            "max_tokens": 40,
        },
    ),
    (
        "/v1/completions",
        {
            "model": "llama",
            "prompt": "She",
            "guidance_scale": 1.5,
            "negative_prompt": "no",
            "guided_choice": ["a", "bc"],
        },
    ),
]


SKIPPED = {"id", "created", "kv_bytes", "prompt_tokens_details", "system_fingerprint"}


def rounded(value: Any) -> Any:
    """Without what differs between any two answers: ids, times, and the last digits of numbers."""
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value)
        return {name: rounded(entry) for name, entry in entries.items() if name not in SKIPPED}
    if isinstance(value, list):
        return [rounded(item) for item in cast("list[Any]", value)]
    return pytest.approx(value, abs=2e-4) if isinstance(value, float) else value


def bare(value: Any) -> Any:
    """What `rounded` leaves, with its numbers as they are."""
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value)
        return {name: bare(entry) for name, entry in entries.items() if name not in SKIPPED}
    return [bare(item) for item in cast("list[Any]", value)] if isinstance(value, list) else value


@pytest.mark.parametrize(("path", "body"), CASES, ids=lambda value: str(value)[:60])
async def test_answers_are_those_of_the_embedded_engine(
    path: str, body: Body, vllm: httpx.AsyncClient, torch: httpx.AsyncClient
) -> None:
    asked = {"temperature": 0, "max_tokens": 12, **body}
    if path == "/v1/score":
        asked = body
    ours, theirs = await vllm.post(path, json=asked), await torch.post(path, json=asked)
    assert ours.status_code == theirs.status_code == 200, ours.text
    assert bare(ours.json()) == rounded(theirs.json())


async def test_a_stream_arrives_in_pieces(vllm: httpx.AsyncClient) -> None:
    body: Body = {"model": "proxy", "messages": MESSAGES, "temperature": 0, "max_tokens": 8, "stream": True}
    async with vllm.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 6


BAD: list[Body] = [
    {"composition": {"strategy": "proxy_tuning", "expert": "nobody", "antiexpert": "llama"}},
    {"composition": {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c", "alpha": "much"}},
    {"composition": {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c", "alpha": 1e9}},
    {"composition": {"strategy": "discriminator", "wanted": "llama-b", "unwanted": "llama-c"}},
    {"composition": {"strategy": "layer_contrast"}},
    {"composition": {"strategy": "mixture", "members": [{"model": "llama", "weight": -1}]}},
    {"composition": {"strategy": "nonsense"}},
    {"max_tokens": 2**40},
    {"prompt": "x" * 600},
    {"trace": {"top": 10_000}},
    {"logit_bias": {"999999": 1}},
    {"allowed_token_ids": [VOCAB + 5]},
    {"temperature": "hot"},
]


async def test_bad_requests_never_reach_the_engine(
    engine: VllmEngine, vllm: httpx.AsyncClient, torch: httpx.AsyncClient
) -> None:
    """204 bad requests among 20 good ones: each is a 400, and the good ones answer as they always do."""
    good: Body = {"model": "proxy", "prompt": "In which town", "temperature": 0, "max_tokens": 10}
    bodies = [{"model": "llama", "prompt": "x", "max_tokens": 4, **bad} for bad in BAD * 17]
    random.Random(0).shuffle(bodies)
    asked = [good if i % 11 == 0 else bodies.pop() for i in range(len(bodies) + 20)]
    replies = await asyncio.gather(*(vllm.post("/v1/completions", json=body) for body in asked))
    expected = (await torch.post("/v1/completions", json=good)).json()["choices"]
    codes = [reply.status_code for reply, body in zip(replies, asked, strict=True) if body is not good]
    assert len(codes) >= 200
    assert set(codes) == {400}
    for reply, body in zip(replies, asked, strict=True):
        if body is good:
            assert reply.json()["choices"] == expected
    assert engine.is_alive


async def test_metrics_count_what_vllm_reports(vllm: httpx.AsyncClient) -> None:
    text = (await vllm.get("/metrics")).text
    steps = next(line for line in text.splitlines() if "steps" in line and not line.startswith("#"))
    assert float(steps.split()[-1]) > 0
