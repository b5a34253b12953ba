"""Adapters on embeddings that may be tied: what is served is what peft computes with the adapter beside its base."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from motet.operator.adapters import merge_adapter, num_tokens
from motet.operator.file import load
from motet.operator.loading import load_engine
from motet.operator.loading_vllm import merged_checkpoint
from motet.operator.sources import Source
from tests.fakes import byte_tokenizer
from tests.tiny import SHAPE, VOCAB

IDS = torch.randint(0, VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))
ADDED = 4  # tokens that an adapter is trained with beyond its base's


def llama(*, tied: bool = True) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied))


def gemma(*, tied: bool = True) -> PreTrainedModel:
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, head_dim=12, tie_word_embeddings=tied))


def gpt2(*, tied: bool = True) -> PreTrainedModel:
    config = GPT2Config(vocab_size=VOCAB, n_embd=48, n_layer=1, n_head=4, n_positions=64, tie_word_embeddings=tied)
    return GPT2LMHeadModel(config)


NAMES = {llama: ("q_proj", "embed_tokens"), gemma: ("q_proj", "embed_tokens"), gpt2: ("c_attn", "wte")}
Make = Callable[..., PreTrainedModel]


def variants(make: Make) -> dict[str, dict[str, Any]]:
    layer, embedding = NAMES[make]
    return {
        "layers alone": {"target_modules": [layer]},
        "head": {"target_modules": [layer, "lm_head"]},
        "head, rank-stabilised": {"target_modules": [layer, "lm_head"], "use_rslora": True},
        "head, DoRA": {"target_modules": [layer, "lm_head"], "use_dora": True},
        "embedding": {"target_modules": [layer, embedding]},
        "embedding, DoRA": {"target_modules": [layer, embedding], "use_dora": True},
        "both": {"target_modules": [layer, embedding, "lm_head"]},
        "both as one": {"target_modules": [layer, embedding], "ensure_weight_tying": True},
        "head whole": {"target_modules": [layer], "modules_to_save": ["lm_head"]},
        "embedding whole": {"target_modules": [layer], "modules_to_save": [embedding]},
        "rows": {"target_modules": [layer], "trainable_token_indices": {embedding: [3, 9, VOCAB - 1]}},
    }


def save_adapter(folder: Path, make: Make, *, tied: bool, added: int = 0, **config: Any) -> tuple[Source, Tensor]:
    """A trained adapter, and peft's own logits of the base beside it."""
    torch.manual_seed(0)
    make(tied=tied).save_pretrained(folder / "base")
    base = cast(Any, AutoModelForCausalLM.from_pretrained(folder / "base"))
    base.resize_token_embeddings(VOCAB + added, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, about what is tested here
        lora = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", fan_in_fan_out=make is gpt2, **config)
        model = cast(Any, get_peft_model(base, lora)).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder / "adapter")
    with torch.inference_mode():
        return Source(str(folder / "adapter"), None, str(folder / "base")), model(IDS).logits


def logits_of(model: object) -> Tensor:
    with torch.inference_mode():
        return cast(Any, model)(IDS).logits


@pytest.mark.filterwarnings("ignore:You have requested .ensure_weight_tying.")  # GPT-2's names are none that peft knows
@pytest.mark.parametrize("variant", variants(llama))
@pytest.mark.parametrize("make", [llama, gemma, gpt2])
def test_tied_embeddings(tmp_path: Path, make: Make, variant: str) -> None:
    source, expected = save_adapter(tmp_path, make, tied=True, **variants(make)[variant])
    merged = merge_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), source)
    torch.testing.assert_close(logits_of(merged), expected, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(again), expected, atol=1e-4, rtol=1e-4)
    if variant in ("layers alone", "both as one", "rows") and make is not gpt2:
        assert merged.config.tie_word_embeddings, "they are one still"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("variant", ["layers alone", "both", "embedding whole", "rows"])
def test_tokens_that_were_added_when_it_was_trained(tmp_path: Path, variant: str, tied: bool) -> None:
    source, expected = save_adapter(tmp_path, llama, tied=tied, added=ADDED, **variants(llama)[variant])
    assert num_tokens(source) == VOCAB + ADDED
    merged = merge_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), source)
    torch.testing.assert_close(logits_of(merged), expected, atol=1e-4, rtol=1e-4)


def test_added_rows_that_the_file_lacks(tmp_path: Path) -> None:
    """peft saves only the embedding that the adapter targets: what it was trained beside is lost."""
    source, _ = save_adapter(tmp_path, llama, tied=False, added=ADDED, **variants(llama)["head"])
    with pytest.raises(ValueError, match=r"135 tokens, its base has 131, .* in model.embed_tokens"):
        merge_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), source)


def test_vllms_checkpoint_keeps_both(tmp_path: Path) -> None:
    source, expected = save_adapter(tmp_path, llama, tied=True, **variants(llama)["head"])
    folder = merged_checkpoint(source, tmp_path / "cache")
    torch.testing.assert_close(logits_of(AutoModelForCausalLM.from_pretrained(folder)), expected, atol=1e-4, rtol=1e-4)


async def test_added_tokens_are_served(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    size = tokenizer.size
    shape: dict[str, Any] = {**SHAPE, "vocab_size": size}
    LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True)).save_pretrained(tmp_path / "base")
    base = cast(Any, AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    base.resize_token_embeddings(size + 1, mean_resizing=False)
    lora = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj"], base_model_name_or_path="base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cast(Any, get_peft_model(base, lora)).save_pretrained(tmp_path / "tuned")
    hf: Any = tokenizer.hf
    hf.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    hf.save_pretrained(tmp_path / "tuned")
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": {"tuned": {"path": "tuned", "base": "base"}}}))
    engine, _ = load_engine(load(tmp_path / "models.yaml"))
    assert engine.models["tuned"].vocab_size == size + 1
    await engine.close()
