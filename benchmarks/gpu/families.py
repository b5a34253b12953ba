"""Llama-shaped families with random bfloat16 weights, made on the device: speed does not depend on what they know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.gpu.device import DEVICE
from motet.engines.torch.attention import ATTENTION_NAME
from motet.engines.torch.cache import LayerShape


@dataclass(frozen=True, slots=True)
class Shape:
    """Of one model; `tied`: the output head reads the embeddings."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False

    @property
    def kv(self) -> list[LayerShape]:
        return [(self.kv_heads, self.head_dim, self.head_dim)] * self.layers

    @property
    def kv_bytes(self) -> int:
        """Of one token, in bfloat16."""
        return sum(2 * heads * (key + value) for heads, key, value in self.kv)


# as Llama 3's 8B and 1B, and Qwen 2.5's 32B and 3B without their biases
B8 = Shape(4096, 14_336, 32, 32, 8, 128, 128_256)
B1 = Shape(2048, 8192, 16, 32, 8, 64, 128_256, tied=True)
B32 = Shape(5120, 27_648, 64, 40, 8, 128, 151_936)
B3 = Shape(2048, 11_008, 36, 16, 2, 128, 151_936, tied=True)
SMALL = Shape(32, 64, 2, 4, 2, 8, 500)
FAMILIES: dict[str, tuple[Shape, ...]] = {"8b": (B8, B1, B1), "32b": (B32, B3, B3), "tiny": (SMALL, SMALL, SMALL)}


def model_of(shape: Shape, seed: int) -> PreTrainedModel:
    """On the device, behind our attention."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.device(DEVICE):
        made = cast("Any", AutoModelForCausalLM).from_config(config, dtype=torch.bfloat16, attn_implementation="eager")
    model = cast("PreTrainedModel", made).eval().requires_grad_(False)
    model.set_attn_implementation(ATTENTION_NAME)
    return model


def weight_bytes(model: PreTrainedModel) -> int:
    """What one token reads: all weights, of untied embeddings no more than its row."""
    total = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    embeddings = cast("torch.nn.Embedding", model.get_input_embeddings()).weight
    head = cast("torch.nn.Linear", model.get_output_embeddings()).weight
    tied = embeddings.data_ptr() == head.data_ptr()
    return total if tied else total - embeddings.numel() * embeddings.element_size()
