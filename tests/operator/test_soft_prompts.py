"""Soft prompts of the operator's file: what PEFT stores is what is served, through HTTP; what cannot stand is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import torch
import yaml
from peft import PeftConfig, PeftModel, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from safetensors import torch as safetensors
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from motet.cli import app
from motet.operator.file import ConfigError, load
from motet.operator.loading import load_engine
from motet.operator.loading_vllm import inspect
from motet.operator.preflight import prepare
from motet.operator.reload import reloaded
from motet.operator.sources import find_sources
from motet.server.app import create_app
from motet.server.service import Service
from tests.fakes import byte_tokenizer
from tests.tiny import save_with

TOKENS = 5
TEXT = "The cat sat on the mat."
KINDS: dict[str, type[PeftConfig]] = {"tuned": PromptTuningConfig, "encoded": PromptEncoderConfig}


def save_prompt(folder: Path, base: Path, kind: type[PeftConfig], seed: int) -> None:
    torch.manual_seed(seed)
    config = cast(Any, kind)(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS)
    model = cast(Any, get_peft_model(AutoModelForCausalLM.from_pretrained(base), config))
    for parameter in model.prompt_encoder.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("large", "small")):
        torch.manual_seed(seed)
        save_with(folder / name, byte_tokenizer())
    for seed, (name, kind) in enumerate(KINDS.items()):
        save_prompt(folder / name, folder / "large", kind, seed)
    return folder


def write(folder: Path, models: dict[str, Any], **more: Any) -> Path:
    file = folder / "models.yaml"
    server = {"api_keys": ["root: root-key"]}
    file.write_text(yaml.safe_dump({"models": models, "server": server, **more}))
    return file


@torch.no_grad()
def peft_logprobs(models: Path, name: str, ids: list[int]) -> torch.Tensor:
    """(N, V) behind each of the ids, as PEFT computes them from its folder, in float64."""
    base = AutoModelForCausalLM.from_pretrained(models / "large", dtype=torch.float64)
    logits = cast(Any, PeftModel.from_pretrained(base, models / name))(torch.tensor([ids])).logits
    return logits[0, TOKENS:].double().log_softmax(-1)


@asynccontextmanager
async def served(file: Path) -> AsyncGenerator[httpx.AsyncClient]:
    configuration = load(file)
    engine, registry = load_engine(configuration)
    service = Service.assemble(configuration.settings.server, engine, registry)
    transport = httpx.ASGITransport(app=create_app(service))
    headers = {"authorization": "Bearer root-key"}
    async with httpx.AsyncClient(transport=transport, base_url="http://motet", headers=headers) as client:
        yield client
    await engine.close()


async def completion(client: httpx.AsyncClient, model: str, **fields: Any) -> dict[str, Any]:
    asked = {"model": model, "prompt": TEXT, "max_tokens": 4, "temperature": 0, "ignore_eos": True, "logprobs": 0}
    answer = await client.post("/v1/completions", json=asked | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_what_peft_stores_is_served(models: Path) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(TEXT, add_special_tokens=True)
    listed = {"large": {"path": "large"}, "tuned": {"path": "tuned"}, "encoded": {"path": "encoded", "base": "large"}}
    members = ["tuned", {"model": "encoded", "weight": 0.5}]
    mixed = {"mixed": {"strategy": "mixture", "base": "tuned", "members": members}}
    exact = {name: peft_logprobs(models, name, ids) for name in KINDS}
    share = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)
    exact["mixed"] = (torch.stack([exact[name] for name in KINDS], -1).exp() @ share).log()
    async with served(write(models, listed, compositions=mixed)) as client:
        for name, expected in exact.items():
            told = await completion(client, name, echo=True)
            scored = told["choices"][0]["logprobs"]["token_logprobs"][: len(ids)]
            assert scored[0] is None
            for place, logprob in enumerate(scored[1:]):
                assert logprob == pytest.approx(float(expected[place, ids[place + 1]]), abs=1e-4)
            first = await completion(client, name, max_tokens=1)
            assert first["choices"][0]["logprobs"]["token_logprobs"] == pytest.approx(
                [float(expected[-1].max())], abs=1e-4
            )
            assert first["usage"]["prompt_tokens"] == len(ids), "virtual tokens were not sent"
        again = await completion(client, "tuned", max_tokens=1)
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == len(ids) - 1
        cards = {card["id"]: card for card in (await client.get("/v1/models")).json()["data"]}
        assert [cards[name]["parent"] for name in ("large", *KINDS)] == [None, "large", "large"]
        assert cards["tuned"]["max_model_len"] == cards["large"]["max_model_len"] - TOKENS


async def test_what_a_role_keeps_of_its_text_and_where_contexts_end(models: Path) -> None:
    """`last_tokens` cuts what was sent, never the soft prompt; the longest text leaves room for it."""
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(TEXT, add_special_tokens=True)
    listed = {"large": {"path": "large"}, "tuned": {"path": "tuned"}}
    async with served(write(models, listed)) as client:
        last = {"strategy": "product", "members": [{"model": "tuned", "last_tokens": 1}]}
        fields = {"composition": {**last, "base": {"model": "tuned", "last_tokens": 1}}, "max_tokens": 1}
        told = await completion(client, "tuned", **fields)
        expected = peft_logprobs(models, "tuned", ids[-1:])[-1].max()
        assert told["choices"][0]["logprobs"]["token_logprobs"] == pytest.approx([float(expected)], abs=1e-4)
        room = 64 - TOKENS
        used = (await completion(client, "tuned", prompt=[5] * (room - 3)))["usage"]
        assert (used["prompt_tokens"], used["completion_tokens"]) == (room - 3, 3)
        refused = await client.post("/v1/completions", json={"model": "tuned", "prompt": [5] * room, "max_tokens": 1})
        assert refused.status_code == 400
        assert str(room) in refused.json()["error"]["message"]


async def test_it_comes_and_goes_with_the_file(models: Path) -> None:
    large, tuned = {"large": {"path": "large"}}, {"tuned": {"path": "tuned"}}
    configuration = load(write(models, large))
    engine, registry = load_engine(configuration)
    write(models, large | tuned)
    found = reloaded(configuration, registry, engine)
    assert (found.loaded, engine.models["tuned"].backbone) == (("tuned",), "large")
    assert found.registry.card("tuned")["parent"] == "large"
    with pytest.raises(ConfigError, match=r"models\.tuned: a soft prompt stands in front of a model of the operator's"):
        reloaded(configuration, found.registry, engine, without={"large"})
    write(models, large)
    assert reloaded(configuration, found.registry, engine).unloaded == ("tuned",)
    await engine.close()


def refused(folder: Path, models: dict[str, Any], **more: Any) -> str:
    with pytest.raises(ConfigError) as refusal:
        load_engine(load(write(folder, models, **more)))
    return str(refusal.value)


def test_what_cannot_stand_is_told(models: Path) -> None:
    large = {"large": {"path": "large"}}
    assert "set it there" in refused(models, {**large, "p": {"path": "tuned", "dtype": "float32"}})
    alone = refused(models, {"small": {"path": "small"}, "p": {"path": "tuned"}})
    assert "stands in front of a model of the operator's file" in alone
    twice = refused(models, {**large, "again": {"path": "large", "quantize": "int8"}, "p": {"path": "tuned"}})
    assert "is that of again and large: name one of them with 'base'" in twice
    stacked = refused(models, {**large, "p": {"path": "tuned"}, "q": {"path": "encoded", "base": "p"}})
    assert "models.q: the model 'p', in front of which it stands: a soft prompt is no model alone" in stacked
    vllm = write(models, {**large, "p": {"path": "tuned"}}, engine={"kind": "vllm"})
    with pytest.raises(ConfigError, match="only the engine kind 'torch' serves soft prompts"):
        inspect(load(vllm), find_sources(load(vllm)))


def test_a_folder_that_is_not_what_it_says_is_told(models: Path, tmp_path: Path) -> None:
    for name in ("large", "tuned"):
        shutil.copytree(models / name, tmp_path / name)
    listed = {"large": {"path": "large"}, "tuned": {"path": "tuned", "base": "large"}}
    config, weights = tmp_path / "tuned" / "adapter_config.json", tmp_path / "tuned" / "adapter_model.safetensors"
    said = json.loads(config.read_text())
    rows = safetensors.load_file(weights)["prompt_embeddings"]
    config.write_text(json.dumps(said | {"num_virtual_tokens": 7}))
    assert "have the shape [5, 48], not 7 rows" in refused(tmp_path, listed)
    config.write_text(json.dumps(said | {"num_virtual_tokens": 64}))
    assert "64 virtual tokens leave no room in 64" in refused(tmp_path, listed)
    config.write_text(json.dumps(said))
    safetensors.save_file({"prompt_embeddings": rows[:, :-1].contiguous()}, weights)
    assert "are [5, 47], 'large' takes rows of 48" in refused(tmp_path, listed)
    safetensors.save_file({"other": rows}, weights)
    assert "hold other, no prompt_embeddings" in refused(tmp_path, listed)
    byte_tokenizer().hf.save_pretrained(tmp_path / "tuned")
    file = tmp_path / "tuned" / "tokenizer.json"
    tree = json.loads(file.read_text())
    first, second, *rest = tree["model"]["vocab"]
    tree["model"]["vocab"] = {token: number for number, token in enumerate([second, first, *rest])}
    file.write_text(json.dumps(tree))
    assert "its tokenizer is not that of 'large'" in refused(tmp_path, listed)


def test_a_file_is_made_for_it_and_lists_it(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    ended = CliRunner().invoke(app, ["init", str(models), "--out", str(file)])
    assert ended.exit_code == 0, ended.output
    assert "# a soft prompt of 5 virtual tokens in front of large, context 59" in file.read_text()
    assert prepare(load(file)).sources["tuned"].backbone == "large"
    told = CliRunner().invoke(app, ["models", str(file)])
    assert told.exit_code == 0, told.output
    (row,) = [line.split() for line in told.output.splitlines() if line.startswith(" tuned")]
    assert "59" in row
