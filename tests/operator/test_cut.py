"""Members that have more tokens than the others at the end of their vocabulary, as ChatML experts of a plain base."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import torch
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from motet.models.tokenizer import Tokenizer
from motet.operator.file import ConfigError, load
from motet.operator.loading import load_engine
from motet.operator.loading_vllm import inspect
from motet.operator.settings import ServerConfig
from motet.operator.sources import find_sources
from motet.server.app import create_app
from motet.server.service import Service
from tests.fakes import byte_tokenizer

WIDTH = byte_tokenizer().size
START, END = WIDTH, WIDTH + 1  # the expert's own tokens
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROXY = {"strategy": "proxy_tuning", "base": "base", "expert": "expert", "antiexpert": "anti", "alpha": 0.7}
REVERSED = {"strategy": "contrastive", "base": "expert", "amateur": "anti", "alpha": 0.01, "beta": 0.5}
PROMPT = list(b"left or")


def save(folder: Path, seed: int, *, chatml: bool = False, renamed: bool = False) -> None:
    hf: Any = byte_tokenizer(extra=["zz"] if renamed else []).hf
    if chatml:
        hf.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        hf.eos_token, hf.chat_template = "<|im_end|>", CHATML
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(hf), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=128, initializer_range=0.3, bos_token_id=WIDTH - 4, eos_token_id=hf.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    hf.save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cut")
    save(folder / "base", 1)
    save(folder / "anti", 2)
    save(folder / "expert", 3, chatml=True)
    save(folder / "renamed", 4, chatml=True, renamed=True)
    return folder


def write(folder: Path, vocab: str, *, kind: str = "torch", expert: str = "expert") -> Path:
    file = folder / "models.yaml"
    named = {name: {"path": name, "dtype": "float32"} for name in ("base", "anti")}
    named["expert"] = {"path": expert, "dtype": "float32", "vocab": vocab}
    compositions = {"proxy": PROXY, "reversed": REVERSED}
    engine = {"kind": kind, "kv_cache_gib": 0.1}
    file.write_text(yaml.safe_dump({"models": named, "compositions": compositions, "engine": engine}))
    return file


@pytest.fixture
async def client(models: Path) -> AsyncIterator[httpx.AsyncClient]:
    engine, registry = load_engine(load(write(models, "cut")))
    service = Service.assemble(ServerConfig(), engine, registry)
    transport = httpx.ASGITransport(app=create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://motet", timeout=60) as client:
        yield client
    await engine.close()


async def post(client: httpx.AsyncClient, path: str, **body: object) -> dict[str, Any]:
    return (await client.post(path, json=body)).json()


def logits(folder: Path, ids: list[int]) -> Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, -1, :WIDTH].float()


def composed(models: Path, ids: list[int]) -> Tensor:
    """Proxy-tuning over the common ids, by transformers alone."""
    base, expert, anti = (logits(models / name, ids) for name in ("base", "expert", "anti"))
    return (base + 0.7 * (expert - anti)).log_softmax(-1)


async def test_log_probs_are_normalised_over_the_common_ids(models: Path, client: httpx.AsyncClient) -> None:
    expected = composed(models, PROMPT)
    continuations = [[token] for token in range(0, WIDTH, 7)]
    scored = await post(client, "/v1/score", model="proxy", prompt=PROMPT, continuations=continuations)
    got = [entry["logprob"] for entry in scored["data"]]
    torch.testing.assert_close(torch.tensor(got), expected[::7], atol=1e-4, rtol=0)
    for name, width in (("expert", WIDTH + 2), ("base", WIDTH)):  # alone, each model has its own
        plain = await post(client, "/v1/score", model=name, prompt=PROMPT, continuations=[[i] for i in range(100)])
        model: Any = AutoModelForCausalLM.from_pretrained(models / name)
        own = cast(Tensor, model(torch.tensor([PROMPT])).logits[0, -1].detach().log_softmax(-1))
        assert len(own) == width
        got = [entry["logprob"] for entry in plain["data"]]
        torch.testing.assert_close(torch.tensor(got), own[:100], atol=1e-4, rtol=0)


@pytest.mark.parametrize("model", ["proxy", "reversed"])
async def test_the_members_own_tokens_are_impossible(client: httpx.AsyncClient, model: str) -> None:
    answers = await post(
        client, "/v1/completions", model=model, prompt=PROMPT, n=4, max_tokens=30, temperature=2.0, seed=1,
        return_token_ids=True, ignore_eos=True, repetition_penalty=1.1, bad_words=["<|im_end|>"],
    )  # fmt: skip
    tokens = [token for choice in answers["choices"] for token in choice["token_ids"]]
    assert len(tokens) == 120
    assert max(tokens) < WIDTH
    for body in (
        {"logit_bias": {str(END): 100}},
        {"allowed_token_ids": [START]},
        {"stop_token_ids": [END]},
        {"prompt": [65, END]},
        {"prompt": [65, END], "echo": True, "logprobs": 1},
    ):
        refused = await post(client, "/v1/completions", **{"model": model, "prompt": PROMPT, **body})
        assert f"not in the vocabulary (0 to {WIDTH - 1})" in refused["error"]["message"], body
    for continuation in ([END], "<|im_end|>") if model == "reversed" else ([END],):
        scored = await post(client, "/v1/score", model=model, prompt=PROMPT, continuations=[continuation])
        assert "not in the vocabulary" in scored["error"]["message"]


async def test_grammars_are_in_the_common_tokens(client: httpx.AsyncClient) -> None:
    asked = {"prompt": "yes or no", "max_tokens": 8, "seed": 3, "structured_outputs": {"choice": ["yes", "no"]}}
    answer = await post(client, "/v1/completions", model="proxy", **asked)
    assert answer["choices"][0]["text"] in ("yes", "no")
    assert answer["choices"][0]["finish_reason"] == "stop"
    refused = await post(client, "/v1/completions", model="reversed", **asked)
    assert "no end-of-sequence token to end with" in refused["error"]["message"], "the base's own is cut"


async def test_each_member_reads_messages_in_its_own_tokens(models: Path, client: httpx.AsyncClient) -> None:
    chat = await post(
        client, "/v1/chat/completions", model="proxy", messages=[{"role": "user", "content": "Hi"}], max_tokens=1,
        temperature=0, logprobs=True, top_logprobs=1,
    )  # fmt: skip
    top = chat["choices"][0]["logprobs"]["content"][0]["logprob"]
    plain = byte_tokenizer().encode("<|user|>Hi<|assistant|>")
    chatml = Tokenizer.load(models / "expert").encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert (chatml[0], chatml.count(START), chatml.count(END)) == (START, 2, 1)
    base, anti = (logits(models / name, plain) for name in ("base", "anti"))
    expected = (base + 0.7 * (logits(models / "expert", chatml) - anti)).log_softmax(-1)
    assert top == pytest.approx(float(expected.max()), abs=1e-4)


def test_an_expert_without_an_end_is_warned_of(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(models, "cut")
    with caplog.at_level(logging.WARNING):
        engine, _ = load_engine(load(file))
    lines = [line for line in caplog.messages if "which is cut off" in line]
    assert len(lines) == 1, "once for both compositions"
    assert f"model expert ends its answers with token {END} alone" in lines[0]
    assert engine.models["expert"].eos_token_ids == (END,)


def test_exact_is_the_default_and_says_what_would_help(models: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_engine(load(write(models, "exact")))
    message = str(refusal.value)
    assert "compositions.proxy: vocabularies differ at 2 ids" in message
    assert f"all ids below {WIDTH} are the same: `vocab: cut` for 'expert'" in message


def test_tokens_that_differ_in_the_common_part(models: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_engine(load(write(models, "cut", expert="renamed")))
    message = str(refusal.value)
    assert "'zz'" in message
    assert "`vocab: cut` for" not in message


def test_vllm_refuses_it_by_name(models: Path) -> None:
    configuration = load(write(models, "cut", kind="vllm"))
    with pytest.raises(ConfigError, match=r"models\.expert\.vocab: a composite has one vocabulary"):
        inspect(configuration, find_sources(configuration))
