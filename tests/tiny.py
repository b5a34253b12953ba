"""Tiny random models of several architectures over one vocabulary, saved once per test session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from motet.models.tokenizer import Tokenizer

VOCAB = 131
EOS = 2
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # far from uniform outputs, so that a wrong weight or mask shows
}
WINDOW: dict[str, Any] = {"sliding_window": 9}


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def qwen() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE))


def mistral() -> PreTrainedModel:
    """A sliding window shorter than the tests' prompts."""
    return MistralForCausalLM(MistralConfig(**SHAPE, **WINDOW))


def gemma() -> PreTrainedModel:
    """Soft caps, and layers with and without a window."""
    return Gemma2ForCausalLM(Gemma2Config(**SHAPE, **WINDOW, head_dim=12))


def gpt2() -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
    )
    config.initializer_range = 0.3
    return GPT2LMHeadModel(config)


MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "llama-b": llama,
    "llama-c": llama,
    "qwen": qwen,
    "mistral": mistral,
    "gemma": gemma,
    "gpt2": gpt2,
}


def save_all(folder: Path, makers: Mapping[str, Callable[[], PreTrainedModel]] = MAKERS) -> dict[str, Path]:
    """Every tiny model under its name, each from its own seed."""
    paths: dict[str, Path] = {}
    for seed, (name, make) in enumerate(makers.items()):
        torch.manual_seed(seed)
        paths[name] = folder / name
        make().eval().save_pretrained(paths[name])
    return paths


def save_with(folder: Path, tokenizer: Tokenizer, **config: Any) -> None:
    """A random Llama as wide as the tokenizer, beside it."""
    settings: dict[str, Any] = {**SHAPE, "vocab_size": tokenizer.size, "max_position_embeddings": 64, **config}
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder)
    tokenizer.hf.save_pretrained(folder)
