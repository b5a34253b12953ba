"""Attention within documents that lie end to end in one row, document by document: no mask of every pair of tokens.

What unmodified transformers modules call in place of their own sdpa attention. They hand the documents' lengths through
as a keyword; without it, it is their own sdpa attention.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from contextvars import ContextVar
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import masking_utils
from transformers.integrations import sdpa_attention
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

NAME = "motet_documents"
KNOWN_LAYERS = {"full_attention", "sliding_attention"}  # whose form reaches the attention function

_unmasked: ContextVar[bool] = ContextVar("_unmasked", default=False)


def install(base: Any) -> bool:
    """Makes a causal language model attend within documents; whether that can be done.

    It can where the model uses sdpa, and where all that limits a layer's attention is the past and a window.
    """
    config: Any = base.config
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ())
    if config._attn_implementation not in {"sdpa", NAME} or not layers <= KNOWN_LAYERS:
        return False
    base.set_attn_implementation(NAME)
    return True


@contextlib.contextmanager
def unmasked() -> Generator[None]:
    """While open, models build no attention masks."""
    before = _unmasked.set(True)
    try:
        yield
    finally:
        _unmasked.reset(before)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    document_lengths: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of query (1, H, T, d) over key and value (1, H', T, d): (1, T, H, d), and no weights.

    Args:
        document_lengths: of the documents in the row, T tokens together.
    """
    if document_lengths is None:
        return cast("Any", sdpa_attention).sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    lengths, window = list(document_lengths), cast("int | None", kwargs.get("sliding_window"))
    split: list[tuple[Tensor, ...]] = [tensor.split(lengths, 2) for tensor in (query, key, value)]
    parts = zip(*split, strict=True)
    mixed = [_within(q, k, v, window, kwargs.get("scaling"), kwargs.get("dropout", 0.0)) for q, k, v in parts]
    return torch.cat(mixed, 2).transpose(1, 2), None


def _within(
    query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float | None, dropout: float
) -> Tensor:
    """Causal attention within one document."""
    length = query.shape[2]
    narrow = window is not None and length > window
    mask = _band(length, window, query.device) if window is not None and narrow else None
    return F.scaled_dot_product_attention(
        query, key, value, mask, dropout_p=dropout, is_causal=mask is None, scale=scale, enable_gqa=True
    )


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """(T, T) bool: the token itself and the `window` − 1 before it."""
    every = torch.ones(length, length, dtype=torch.bool, device=device)
    return every.tril().triu(1 - window)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return None if _unmasked.get() else cast("Any", masking_utils).sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, _mask)
