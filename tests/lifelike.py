"""Tiny checkpoints with the statistics of real ones, which random weights lack and wrong checks pass.

As published models have them: a channel of the residual stream that holds hundreds at the first token (massive
activations; Sun et al., 2024), norm weights from hundredths to hundreds, key biases beyond a hundred in single
channels, and heads that look at the first token (attention sinks; Xiao et al., 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 131
FIRST = 1  # every text begins with it
MASSIVE, QUIET, STEADY = (
    3,
    11,
    20,
)  # channels: huge at the first token; tiny under a huge norm weight; the same everywhere
HEAD = 16
SLOW = [HEAD // 2 - 1, HEAD - 1]  # channels of a head that rotary positions hardly turn
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD,
    "max_position_embeddings": 256,
    "bos_token_id": FIRST,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
LAYERS: dict[str, Any] = {"sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"]}
LLAMA_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, **LAYERS, query_pre_attn_scalar=HEAD)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, **LAYERS, query_pre_attn_scalar=24)),
    "gpt-oss": lambda: GptOssForCausalLM(GptOssConfig(**SHAPE, **LAYERS, num_local_experts=4, num_experts_per_tok=2)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=LLAMA_ROPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
}


def text(length: int = 48) -> list[int]:
    """Ids that begin as every text does."""
    generator = torch.Generator().manual_seed(7)
    return [FIRST, *torch.randint(3, VOCAB, (length - 1,), generator=generator).tolist()]


@torch.no_grad()
def lifelike(family: str) -> PreTrainedModel:
    """A model of the family, in float32; the same at every call."""
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    for name, module in cast("Iterable[tuple[str, Any]]", model.named_modules()):
        kind = name.rpartition(".")[2]
        if "norm" in kind:
            _norm(module, kind, shifted=family.startswith("gemma"))
        elif kind in ("o_proj", "down_proj") and isinstance(module, nn.Linear):
            for channel, factor in ((QUIET, 0.01), (STEADY, 0.1), (MASSIVE, 5.0)):
                module.weight[channel] *= factor
        elif kind in ("q_proj", "k_proj", "v_proj"):
            _projection(module, kind)
        if isinstance(sinks := getattr(module, "sinks", None), nn.Parameter):
            sinks.normal_(2.0, 1.0)
    embedding: Any = model.get_input_embeddings()
    embedding.weight[:, QUIET] *= 0.01
    embedding.weight[:, STEADY] = 1.0
    embedding.weight[FIRST, MASSIVE] = 300.0
    return model


def _norm(module: Any, kind: str, *, shifted: bool) -> None:
    weight: torch.Tensor = module.weight
    weight.copy_((0.5 * torch.randn(weight.shape)).exp())
    if weight.numel() == HEAD:
        weight[2] = {"q_norm": 0.05, "k_norm": 100.0}[kind]
        weight[SLOW] = 4.0
    elif kind.startswith("post_") and shifted:  # what it scales is added to the residual stream
        weight[QUIET], weight[MASSIVE] = 0.01, 30.0
    else:
        weight[QUIET], weight[MASSIVE] = 300.0, 0.05
    weight -= float(shifted)


def _projection(module: Any, kind: str) -> None:
    heads = module.weight.view(-1, HEAD, module.in_features)
    if kind == "q_proj":
        heads[:, SLOW, STEADY] = 3.0
        heads[:, 5] *= 0.05
    elif kind == "k_proj":
        heads[:, SLOW, MASSIVE] = 20.0
        if module.bias is not None:
            module.bias.view(-1, HEAD)[:, 5] = 150.0
    else:
        heads[:, :, MASSIVE] = 0.0
