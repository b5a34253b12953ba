"""What is known of a model that is served. This module imports only the standard library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Quantization = Literal["int8", "int4"]  # of weights
# of a head beside the model, see `models.heads`
HeadKind = Literal["gate", "router", "temperature", "strength", "similarity"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the server may know of a loaded model. `kv_bytes_per_token` counts all layers, keys and values."""

    name: str
    vocab_size: int  # the shared width: ids ≥ this are never produced
    max_model_len: int
    kv_bytes_per_token: int
    num_parameters: int
    dtype: str
    device: str
    eos_token_ids: tuple[int, ...] = ()
    quantization: Quantization | None = None
    draft_quantization: Quantization | None = None  # of the weights that it guesses with, beside its own
    head: HeadKind | None = None  # that is served with it
    threshold: float | None = None  # of a head that routes: above which reading another model writes the token
    clusters: tuple[str, ...] = ()  # of a head that compares prompts with clusters: their names, in its order
    num_layers: int = 0  # 0: nobody knows
    tied: bool = False  # whether its output head is its embeddings once more
    backbone: str | None = None  # of an adapter or a soft prompt: the model that computes it
    virtual_tokens: int = 0  # of a soft prompt
