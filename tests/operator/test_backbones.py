"""Adapters of the operator's file beside the model that they change: what peft computes, without a second copy of its
weights; what cannot be computed so is merged, and told."""

from __future__ import annotations

import logging
import warnings
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from motet.cli import app
from motet.engines.torch import Adapter, Member, TorchEngine
from motet.operator.backbones import low_ranks
from motet.operator.file import ConfigError, load
from motet.operator.loading import load_engine
from motet.operator.loading_vllm import inspect
from motet.operator.memory import weight_bytes
from motet.operator.preflight import prepare
from motet.operator.reload import reloaded
from motet.operator.sources import find_sources
from motet.server.app import create_app
from motet.server.service import Service
from tests.fakes import byte_tokenizer
from tests.operator.test_soft_prompts import save_prompt
from tests.tiny import save_with

TEXT = "The cat sat on the mat."
KINDS: dict[str, dict[str, Any]] = {
    "tuned": {"target_modules": "all-linear"},
    "stabilised": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "patterned": {
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "rank_pattern": {"layers.1.self_attn.v_proj": 2},
        "alpha_pattern": {"q_proj": 3},
    },
    "deep": {"target_modules": ["o_proj"], "layers_to_transform": [1]},
}
MERGED: dict[str, tuple[dict[str, Any], str]] = {
    "whole": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "it has modules_to_save"),
    "directed": ({"target_modules": ["q_proj"], "use_dora": True}, "it has use_dora"),
    "embedded": ({"target_modules": ["q_proj", "embed_tokens"]}, "it changes model.embed_tokens"),
    "headed": ({"target_modules": ["q_proj", "lm_head"]}, "it changes lm_head"),
    "rows": ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 9]}, "it has trainable_token_indices"),
}


def save_adapter(folder: Path, base: Path, name: str, config: dict[str, Any]) -> None:
    torch.manual_seed(sum(name.encode()))
    model = AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = cast(Any, get_peft_model(model, LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **config)))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.2 * torch.randn_like(parameter)
        adapted.save_pretrained(folder / name)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("large", "other")):
        torch.manual_seed(seed)
        save_with(folder / name, byte_tokenizer())
    for name, config in (KINDS | {name: config for name, (config, _) in MERGED.items()}).items():
        save_adapter(folder, folder / "large", name, config)
    save_prompt(folder / "prompt", folder / "large", PromptTuningConfig, 1)
    return folder


def write(folder: Path, names: dict[str, dict[str, Any]], **more: Any) -> Path:
    file = folder / "models.yaml"
    listed = {name: {"path": name} | own for name, own in names.items()}
    file.write_text(yaml.safe_dump({"models": listed, "server": {"api_keys": ["root: root-key"]}, **more}))
    return file


@torch.no_grad()
def peft_logprobs(models: Path, name: str | None, ids: list[int]) -> torch.Tensor:
    """(N, V) behind each of the ids, as peft computes them beside the base, in float64."""
    base = AutoModelForCausalLM.from_pretrained(models / "large", dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = base if name is None else cast(Any, PeftModel.from_pretrained(base, models / name)).double()
    return cast(Any, model)(torch.tensor([ids])).logits[0].log_softmax(-1)


@asynccontextmanager
async def served(file: Path) -> AsyncGenerator[tuple[httpx.AsyncClient, TorchEngine]]:
    configuration = load(file)
    engine, registry = load_engine(configuration)
    service = Service.assemble(configuration.settings.server, engine, registry)
    transport = httpx.ASGITransport(app=create_app(service))
    headers = {"authorization": "Bearer root-key"}
    async with httpx.AsyncClient(transport=transport, base_url="http://motet", headers=headers) as client:
        yield client, cast(TorchEngine, engine)
    await engine.close()


async def scored(client: httpx.AsyncClient, model: str) -> list[float]:
    asked = {"model": model, "prompt": TEXT, "max_tokens": 1, "temperature": 0, "logprobs": 0, "echo": True}
    answer = await client.post("/v1/completions", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["logprobs"]["token_logprobs"]


def told(expected: torch.Tensor, ids: list[int]) -> list[float]:
    """Of the prompt's tokens but the first, and of the most likely next."""
    return [float(row[token]) for row, token in zip(expected, ids[1:], strict=False)] + [float(expected[-1].max())]


async def test_what_peft_computes_is_served_over_one_copy_of_the_weights(models: Path) -> None:
    ids = byte_tokenizer().encode(TEXT, add_special_tokens=True)
    proxy = {"strategy": "proxy_tuning", "base": "tuned", "expert": "stabilised", "antiexpert": "large", "alpha": 1.5}
    exact = {name: peft_logprobs(models, name, ids) for name in KINDS} | {"large": peft_logprobs(models, None, ids)}
    exact["mix"] = (exact["tuned"] + 1.5 * (exact["stabilised"] - exact["large"])).log_softmax(-1)
    listed: dict[str, dict[str, Any]] = {name: {} for name in ("large", *KINDS)}
    async with served(write(models, listed, compositions={"mix": proxy})) as (client, engine):
        for name, expected in exact.items():
            assert (await scored(client, name))[1:] == pytest.approx(told(expected, ids), abs=1e-4), name
        assert engine.stats().forward_seconds.keys() == {"large"}
        cards = {card["id"]: card for card in (await client.get("/v1/models")).json()["data"]}
        assert [cards[name]["parent"] for name in ("large", *KINDS)] == [None, *["large"] * len(KINDS)]
        assert all(cards[name]["root"] == name for name in KINDS)


def test_memory_is_told_as_it_is_taken(models: Path) -> None:
    file = write(models, {name: {} for name in ("large", *KINDS, "whole")})
    prepared = prepare(load(file))
    members = prepared.registry.members
    sizes = {name: weight_bytes(prepared.sources[name], members[name].info) for name in members}
    own = {name: sum(a.numel() + b.numel() for a, b in low_ranks(prepared.sources[name]).values()) for name in KINDS}
    assert {name: sizes[name] for name in KINDS} == {name: 4 * size for name, size in own.items()}
    assert sizes["whole"] == sizes["large"] > 10 * sizes["tuned"] > 0
    engine, _ = load_engine(load(file))
    held = cast(TorchEngine, engine)
    adapters = [held.backbone(name) for name in KINDS]
    assert all(isinstance(adapter, Adapter) and adapter.member is held.backbone("large") for adapter in adapters)
    assert isinstance(held.backbone("whole"), Member)
    told = CliRunner().invoke(app, ["models", str(file)])
    assert told.exit_code == 0, told.output
    rows = {line.split()[0]: line for line in told.output.splitlines() if line.split()}
    assert "0.00 GiB" in rows["tuned"]


@pytest.mark.parametrize("name", MERGED)
async def test_what_is_no_low_rank_is_merged_and_told(
    models: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    ids = byte_tokenizer().encode(TEXT, add_special_tokens=True)
    file = write(models, {"large": {}, name: {}})
    reason = MERGED[name][1]
    (warning,) = [line for line in prepare(load(file)).warnings if "merged" in line]
    assert warning == f"models.{name}: it is merged into a copy of its base's weights: {reason}."
    ended = CliRunner().invoke(app, ["config", "validate", str(file)])
    assert ended.exit_code == 0
    assert reason in ended.output
    with caplog.at_level(logging.INFO):
        async with served(file) as (client, engine):
            expected = told(peft_logprobs(models, name, ids), ids)
            assert (await scored(client, name))[1:] == pytest.approx(expected, abs=1e-4)
            assert engine.stats().forward_seconds.keys() == {"large", name}
    assert "merged the adapter" in caplog.text


def merging(file: Path) -> list[str]:
    return [line for line in prepare(load(file)).warnings if "merged" in line]


def test_settings_of_the_weights_decide(models: Path) -> None:
    told = merging(write(models, {"large": {"dtype": "float32"}, "tuned": {}}, engine={"dtype": "float32"}))
    assert not told, "the same said in two ways"
    (told,) = merging(write(models, {"large": {"quantize": "int8"}, "tuned": {}}))
    assert "other settings of dtype, device, quantize and draft_quantize than large" in told
    assert not merging(write(models, {"large": {"quantize": "int8"}, "tuned": {"quantize": "int8"}}))
    assert not merging(write(models, {"large": {"draft_quantize": "int8"}, "tuned": {}})), "its base guesses for it"
    assert merging(write(models, {"large": {}, "tuned": {"draft_quantize": "int8"}})), "its base does not"
    assert not merging(write(models, {"other": {}, "tuned": {}})), "its base is no model of the file"
    both = write(models, {"first": {"path": "large", "dtype": "bfloat16"}, "second": {"path": "large"}, "tuned": {}})
    assert prepare(load(both)).sources["tuned"].backbone == "second"


def test_an_adapter_with_a_head_or_more_tokens_is_merged(models: Path, tmp_path: Path) -> None:
    for name in ("large", "tuned"):
        (tmp_path / name).symlink_to(models / name)
    own = tmp_path / "own"
    own.mkdir()
    for file in (models / "tuned").iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    file = write(tmp_path, {"large": {}, "own": {"base": "large"}})
    byte_tokenizer().hf.save_pretrained(own)
    assert not merging(file)
    byte_tokenizer(extra=["zz"]).hf.save_pretrained(own)
    with pytest.raises(ConfigError):  # merged, it has no row for the token
        prepare(load(file))


async def test_it_comes_and_goes_with_the_file(models: Path) -> None:
    """A soft prompt in front of it, too; and its base does not go before it."""
    large: dict[str, dict[str, Any]] = {"large": {}}
    configuration = load(write(models, large))
    engine, registry = load_engine(configuration)
    write(models, large | {"tuned": {}, "prompt": {"base": "tuned"}})
    found = reloaded(configuration, registry, engine)
    assert set(found.loaded) == {"tuned", "prompt"}
    assert (engine.models["tuned"].backbone, engine.models["prompt"].backbone) == ("large", "tuned")
    assert found.registry.card("tuned")["parent"] == "large"
    write(models, {"tuned": {}})
    with pytest.raises(ConfigError, match=r"models\.tuned: 'large' computes it, and stays as long as it does"):
        reloaded(configuration, found.registry, engine)
    write(models, large)
    assert set(reloaded(configuration, found.registry, engine).unloaded) == {"tuned", "prompt"}
    await engine.close()


def test_vllm_merges_as_before(models: Path) -> None:
    vllm = load(write(models, {"large": {}, "tuned": {}}, engine={"kind": "vllm"}))
    _, infos, _ = inspect(vllm, find_sources(vllm))
    assert infos["tuned"].backbone is None
