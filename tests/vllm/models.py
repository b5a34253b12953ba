"""Tiny random members with shapes that vLLM's attention takes, over one byte-level tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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

from tests import tiny
from tests.fakes import byte_tokenizer

TOKENIZER = byte_tokenizer()
VOCAB = TOKENIZER.size
EOS = TOKENIZER.start_id
LENGTH = 512
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
    "initializer_range": 0.15,  # far from uniform outputs, so that a wrong weight or mask shows
}


def shape(**other: Any) -> dict[str, Any]:
    return {**SHAPE, **other}


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def narrow() -> PreTrainedModel:
    """Fewer, other heads, and another depth than its partners."""
    return LlamaForCausalLM(LlamaConfig(**shape(hidden_size=64, num_attention_heads=2, num_hidden_layers=3)))


def qwen() -> PreTrainedModel:
    """Rows of the output embedding beyond the shared vocabulary."""
    return Qwen2ForCausalLM(Qwen2Config(**shape(vocab_size=VOCAB + 32)))


def mistral() -> PreTrainedModel:
    """A sliding window shorter than the tests' prompts."""
    return MistralForCausalLM(MistralConfig(**shape(sliding_window=24, head_dim=32)))


def gemma() -> PreTrainedModel:
    """Soft caps, and layers with and without a window."""
    return Gemma2ForCausalLM(Gemma2Config(**shape(sliding_window=24, head_dim=32)))


def gpt2() -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=128, n_layer=2, n_head=4, n_positions=LENGTH, bos_token_id=EOS, eos_token_id=EOS
    )
    config.initializer_range = 0.2
    return GPT2LMHeadModel(config)


MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "llama-b": llama,
    "llama-c": narrow,
    "qwen": qwen,
    "mistral": mistral,
    "gemma": gemma,
    "gpt2": gpt2,
}


def save_all(folder: Path) -> dict[str, Path]:
    """As `tiny.save_all`, with their tokenizer."""
    paths = tiny.save_all(folder, MAKERS)
    for path in paths.values():
        TOKENIZER.hf.save_pretrained(path)
    return paths
