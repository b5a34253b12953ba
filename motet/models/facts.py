"""What a checkpoint's configuration says, without its weights: the same for every engine."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from motet.models.checkpoint import read_config
from motet.models.ends import end_token_ids, ends_within
from motet.models.info import ModelInfo

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def read_facts(
    name: str,
    source: str,
    revision: str | None,
    *,
    ends: Collection[int] = (),
    dtype: str,
    device: str,
    vocab_size: int,
    max_model_len: int | None,
) -> ModelInfo:
    """What a server may know of a model that an engine of its own process loads.

    Args:
        source: folder or hub id.
        ends: of an answer, beside those of the configuration (see `end_token_ids`).
        dtype: "auto" is the checkpoint's own.

    Raises:
        OSError, ValueError: the configuration cannot be read.
    """
    config = read_config(source, revision)
    text = cast(Any, config.get_text_config())
    used = own_dtype(text) if dtype == "auto" else dtype
    longest = max_positions(config)
    return ModelInfo(
        name=name,
        vocab_size=vocab_size,
        max_model_len=min(max_model_len or longest, longest),
        kv_bytes_per_token=kv_bytes(text, used),
        num_parameters=num_parameters(config),
        dtype=used,
        device=device,
        eos_token_ids=ends_within(vocab_size, ends, end_token_ids(config, text)),
        num_layers=text.num_hidden_layers,
        tied=is_tied(config),
    )


def is_tied(config: PreTrainedConfig) -> bool:
    """Whether the output head is the embeddings once more."""
    configs = cast("tuple[object, ...]", (config, config.get_text_config()))
    return any(bool(getattr(one, "tie_word_embeddings", False)) for one in configs)


def own_dtype(text: Any) -> str:
    """The dtype that the checkpoint was saved in."""
    return str(getattr(text, "dtype", None) or "float32").removeprefix("torch.")


def shapes_of(config: Any) -> PreTrainedModel:
    """The model without memory: on the meta device."""
    with torch.device("meta"):
        return cast(Any, AutoModelForCausalLM).from_config(config)


def num_parameters(config: Any) -> int:
    return sum(int(parameter.numel()) for parameter in shapes_of(config).parameters())


def kv_bytes(text: Any, dtype: str) -> int:
    """Bytes of keys and values per token, all layers. Raises ValueError: a model without attention."""
    heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", None)
    if heads is None:
        raise ValueError(f"{type(text).__name__} has no attention heads: only models with attention are served")
    return 2 * text.num_hidden_layers * heads * head_width(text) * DTYPE_BYTES.get(dtype, 4)


def head_width(text: Any) -> int:
    """Numbers in a key of one head; `text` is a text model's configuration."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def max_positions(config: PreTrainedConfig) -> int:
    """Tokens that a model's positions reach; with longrope, those that its short factors reach."""
    fields = config.get_text_config().to_dict()
    known = [int(fields[field]) for field in ("max_position_embeddings", "n_positions") if fields.get(field)]
    return min([longrope_limit(config) or 1 << 20, *known[:1]])


def longrope_limit(config: PreTrainedConfig) -> int | None:
    """The context up to which longrope keeps its short factors. It chooses them by the longest position of the whole
    batch: beyond this limit one request would change another. None: another kind of positions."""
    fields = config.get_text_config().to_dict()
    rope = cast("dict[str, Any]", fields.get("rope_parameters") or {})
    if "longrope" not in (rope.get("rope_type"), rope.get("type")):
        return None
    return rope.get("original_max_position_embeddings") or fields.get("original_max_position_embeddings")
