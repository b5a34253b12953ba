"""Expert bundles and adapters, from the folder to the composition."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from motet.cli import app
from motet.composers.errors import CompositionError
from motet.composers.plan import single
from motet.composers.spec import parse_composition
from motet.engines.base import GenerationRequest, SamplingParams
from motet.experts.bundle import ExpertBundle, ModelReference, fingerprint, write_bundle
from motet.operator.adapters import merge_adapter
from motet.operator.file import ConfigError, load
from motet.operator.loading import load_engine
from motet.operator.registry import Registry
from motet.operator.settings import ModelConfig
from motet.operator.sources import find_source
from tests.fakes import byte_tokenizer
from tests.operator.test_loading import save_model
from tests.server.conftest import make_service

PROXY = {"strategy": "proxy_tuning", "base": "large", "expert": "chat", "antiexpert": "small"}
SIZE = byte_tokenizer().size


def bundle(folder: Path, **fields: Any) -> ExpertBundle:
    given: dict[str, Any] = {
        "name": folder.name,
        "objective": "sft",
        "tokenizer_fingerprint": fingerprint(byte_tokenizer().hf),
        "vocab_size": SIZE,
        "strategy": "proxy_tuning",
        "weight": 1.2,
        "weight_range": (0.5, 2.0),
        "partner": ModelReference.of("out/small", folder.parent / "small"),
    }
    return write_bundle(folder, ExpertBundle(**{**given, **fields}))


def save_adapter(folder: Path, base: Path, named: str, target: str | list[str] = "all-linear") -> torch.Tensor:
    """A trained LoRA adapter in `folder`; peft's own logits (T, V) of the base under it."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=target, use_rslora=True)
    model = cast(Any, get_peft_model(AutoModelForCausalLM.from_pretrained(base), config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.peft_config["default"].base_model_name_or_path = named
    model.save_pretrained(folder, save_embedding_layers=False)
    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([[5, 70, 80, 90]])).logits[0]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    for name in ("large", "small", "chat", "other"):
        save_model(tmp_path / name, byte_tokenizer())
    return tmp_path


def write(folder: Path, models: dict[str, Any], compositions: dict[str, Any] | None = None) -> Path:
    entries = {name: {"path": name} | fields for name, fields in models.items()}
    file = folder / "models.yaml"
    file.write_text(yaml.safe_dump({"models": entries, "compositions": compositions or {}}))
    return file


def refused(folder: Path, models: dict[str, Any], compositions: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as refusal:
        load_engine(load(write(folder, models, compositions)))
    return str(refusal.value)


async def loaded(folder: Path, models: dict[str, Any], compositions: dict[str, Any] | None = None) -> Registry:
    engine, registry = load_engine(load(write(folder, models, compositions)))
    await engine.close()
    return registry


async def test_a_bundle_with_its_partner_is_served_and_shown(models: Path) -> None:
    bundle(models / "chat")
    registry = await loaded(models, {"large": {}, "small": {}, "chat": {}}, {"mix": PROXY})
    assert registry.card("chat")["expert"] == {
        "role": "expert",
        "strategy": "proxy_tuning",
        "weight": 1.2,
        "weight_range": [0.5, 2.0],
        "partner": "out/small",
    }
    assert registry.card("small")["expert"] is None
    assert registry.card("mix")["composition"]["alpha"] == 1.0, "a recommendation changes no default"


async def test_another_partner_is_refused_unless_the_operator_says_so(models: Path) -> None:
    bundle(models / "chat")
    named: dict[str, Any] = {"large": {}, "other": {}, "chat": {}}
    proxy = PROXY | {"antiexpert": "other"}
    message = refused(models, named, {"mix": proxy})
    assert message.startswith(
        "compositions.mix: composition.antiexpert: 'other' is not the partner of the expert 'chat', which was set "
        "against 'out/small': its weights are "
    )
    assert "models.chat.check_expert to false" in message
    registry = await loaded(models, {**named, "chat": {"check_expert": False}}, {"mix": proxy})
    assert registry.card("chat")["expert"] is not None


async def test_a_request_with_another_partner_is_refused(models: Path) -> None:
    bundle(models / "chat")
    registry = await loaded(models, {"large": {}, "other": {}, "chat": {}, "small": {}})
    registry.plan("large", parse_composition(PROXY))
    with pytest.raises(CompositionError, match="not the partner") as refusal:
        registry.plan("large", parse_composition(PROXY | {"antiexpert": "other"}))
    error = refusal.value
    assert (error.param, error.code) == ("composition.antiexpert", "expert_mismatch")


def test_a_bundle_of_another_tokenizer_stops_the_start(models: Path) -> None:
    bundle(models / "chat", tokenizer_fingerprint="f" * 64)
    (models / "small" / "expert.json").write_text("{")
    lines = refused(models, {"small": {}, "chat": {}}).splitlines()
    assert any(line.startswith("models.small: ") and "is not readable" in line for line in lines)
    (mismatch,) = (line for line in lines if line.startswith("models.chat: "))
    assert fingerprint(byte_tokenizer().hf) in mismatch
    assert "f" * 64 in mismatch


@pytest.mark.parametrize("beside", [False, True])
async def test_an_adapter_is_merged_into_its_base_or_computed_beside_it(
    models: Path, caplog: pytest.LogCaptureFixture, beside: bool
) -> None:
    expected = save_adapter(models / "tuned", models / "small", "../small")
    told: list[str] = []
    with caplog.at_level(logging.INFO):
        names: dict[str, Any] = {"tuned": {}, "small": {}} if beside else {"tuned": {}}
        engine, registry = load_engine(load(write(models, names)), told.append)
    how = "an adapter beside small" if beside else f"the adapter is merged into {models / 'small'}"
    assert any(how in line for line in told)
    assert ("merged the adapter" in caplog.text) != beside
    try:
        request = GenerationRequest(
            "r", single("tuned"), ((5, 70, 80, 90),), SamplingParams(max_tokens=1, temperature=0.0, top_logprobs=SIZE)
        )
        engine.check(request)
        (output,) = [output async for output in engine.generate(request)]
    finally:
        await engine.close()
    served = torch.full((SIZE,), torch.nan)
    for token, logprob in output.top:
        served[token] = logprob
    torch.testing.assert_close(served, expected[-1].log_softmax(-1), atol=1e-5, rtol=0)
    plain = cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(models / "small"))
    with torch.inference_mode():
        unadapted = cast(Any, plain)(input_ids=torch.tensor([[5, 70, 80, 90]])).logits[0, -1].log_softmax(-1)
    assert float((served - unadapted).abs().max()) > 0.1, "the adapter makes a difference"
    assert registry.members["tuned"].tokenizer.has_chat_template, "its base's tokenizer"


async def test_the_operator_may_name_the_base(models: Path) -> None:
    save_adapter(models / "tuned", models / "small", "gone")
    message = refused(models, {"tuned": {}})
    assert message.startswith("models.tuned: the adapter's base 'gone' was not found at ")
    await loaded(models, {"tuned": {"base": "small"}})
    assert "models.tuned.base: " in refused(models, {"tuned": {"base": "smal"}})
    assert "Did you mean 'small'?" in refused(models, {"tuned": {"base": "smal"}})
    assert "is no adapter" in refused(models, {"small": {"base": "large"}})


def test_adapters_that_cannot_be_merged(models: Path) -> None:
    save_adapter(models / "tuned", models / "small", "../small")
    save_adapter(models / "nested", models / "small", "../tuned")
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    cast(Any, get_peft_model(AutoModelForCausalLM.from_pretrained(models / "small"), config)).save_pretrained(
        models / "prefix", save_embedding_layers=False
    )
    message = refused(models, {"nested": {}, "small": {}})
    assert message.startswith("models.nested: the adapter's base")
    assert "is itself an adapter" in message
    message = refused(models, {"prefix": {"base": "small"}})
    assert "models.prefix: an adapter of kind PREFIX_TUNING cannot be merged" in message


def test_tensors_that_the_base_or_the_adapter_lacks(models: Path) -> None:
    for name in ("tuned", "fewer", "more"):
        save_adapter(models / name, models / "small", "../small", ["q_proj", "k_proj"])
    change(models / "fewer", target_modules=["q_proj"])
    change(models / "more", target_modules=["q_proj", "k_proj", "v_proj"])
    message = refused(models, {"tuned": {}, "fewer": {}, "more": {}})
    assert "models.fewer: the base has no place for " in message
    assert "k_proj.lora_A.weight" in message
    assert "models.more: the adapter lacks " in message
    assert "v_proj.lora_A.weight" in message
    assert "models.tuned" not in message


def change(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


async def test_an_adapter_on_another_base_than_its_own(models: Path) -> None:
    save_adapter(models / "tuned", models / "small", "../small")
    bundle(models / "tuned", base=ModelReference.of("small", models / "small"))
    await loaded(models, {"tuned": {}})
    message = refused(models, {"tuned": {"base": "other"}})
    assert message.startswith("models.tuned: the adapter was trained on 'small' (weights ")


def test_merging_is_pefts_own(models: Path) -> None:
    """Both sums are the same numbers: merged weights against base + adapter, layer by layer."""
    save_adapter(models / "tuned", models / "small", "../small")
    base = AutoModelForCausalLM.from_pretrained(models / "small")
    unmerged = PeftModel.from_pretrained(base, str(models / "tuned")).eval()
    configuration = load(write(models, {"tuned": {}}))
    source = find_source(configuration.settings.models["tuned"], configuration.folder)
    merged = merge_adapter(AutoModelForCausalLM.from_pretrained(models / "small"), source)
    ids = torch.randint(0, SIZE, (3, 20), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        cast(Any, merged)(input_ids=ids).logits, cast(Any, unmerged)(input_ids=ids).logits, atol=1e-5, rtol=1e-5
    )


def test_only_judged_experts_are_refused() -> None:
    """A registry without bundles takes every composition."""
    service = make_service()
    small = service.registry.members["small"]
    swapped = {"strategy": "proxy_tuning", "base": "large", "expert": "small", "antiexpert": "expert"}
    service.registry.build(parse_composition(swapped))
    card = ExpertBundle(
        name="small", objective="sft", tokenizer_fingerprint="0" * 64, vocab_size=SIZE, strategy="proxy_tuning"
    )
    members = {**service.registry.members, "small": replace(small, expert=card)}
    Registry(members).build(parse_composition(swapped))
    with pytest.raises(CompositionError, match="made for the role 'expert' of proxy_tuning, not for 'antiexpert'"):
        Registry(members).build(parse_composition(swapped | {"expert": "expert", "antiexpert": "small"}))


def test_adapters_are_listed_with_their_bases_sizes(models: Path) -> None:
    save_adapter(models / "tuned", models / "small", "../small")
    result = CliRunner().invoke(app, ["models", str(write(models, {"small": {}, "tuned": {}}))])
    small, tuned = (
        line.split()[1:] for line in result.stdout.splitlines() if line.split()[:1] in (["small"], ["tuned"])
    )
    assert small == tuned
    assert small[0].isdigit() or "," in small[0]


def test_a_downloaded_checkpoint_is_not_looked_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from transformers.utils import peft_utils

    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delattr(peft_utils, "find_adapter_config_file")
    source = find_source(ModelConfig(path="org/name"), tmp_path)
    assert source.base is None
    assert source.folder() == snapshot
