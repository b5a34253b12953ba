"""What a model's layers compute again in the backward pass instead of keeping it: gradient checkpointing.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016. What is computed again is computed with the same
kernels on the same numbers (dropout's included), so that no digit of a run depends on it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, cast

import psutil
import torch
import torch.utils.checkpoint
from torch.utils.checkpoint import CheckpointPolicy
from transformers import PreTrainedModel

from motet.training.run.errors import RunError

# none keeps everything; products keeps what matrix products and attention gave and repeats what is cheap beside them;
# layers keeps each layer's input alone and repeats its whole forward pass, a third of a step's work.
Recomputation = Literal["none", "products", "layers"]

LITTLE = 1 << 30  # bytes of activations that are always kept
SHARE = 0.5  # of the free memory that activations may take before whole layers are repeated
SMALLEST_INNER = 256  # products over fewer numbers, an adapter's, cost less to repeat than to keep

_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default, _aten.addmm.default}
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}


def choose(setting: Literal["auto", "selective"] | bool, model: PreTrainedModel, tokens: int) -> Recomputation:
    """What a recipe's `gradient_checkpointing` means for a model.

    `auto` keeps everything where that takes little, and whole layers are repeated only where the products would take
    more than half of the memory that is free.

    Args:
        setting: the recipe's.
        model: the trained one, without what peft wraps around it.
        tokens: of a micro-batch, padding included.

    Raises:
        RunError: checkpointing is asked for, and the architecture has none.
    """
    able = bool(cast("Any", model).supports_gradient_checkpointing)
    if setting == "auto":
        return _affordable(model, tokens) if able else "none"
    if setting and not able:
        raise RunError(f"gradient_checkpointing: {type(model).__name__} has none; allowed: false, auto")
    return "products" if setting == "selective" else "layers" if setting else "none"


def _affordable(model: PreTrainedModel, tokens: int) -> Recomputation:
    if activation_bytes(model, tokens, "none") <= LITTLE:
        return "none"
    return "products" if activation_bytes(model, tokens, "products") <= SHARE * _free(model.device) else "layers"


def activation_bytes(model: PreTrainedModel, tokens: int, recomputation: Recomputation) -> int:
    """About how many bytes the layers keep for the backward pass."""
    config: Any = cast("Any", model.config).get_text_config()
    hidden = int(config.hidden_size)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    inner = max(cast("list[int]", inner)) if isinstance(inner, list | tuple) else int(inner)
    numbers = {"none": 16 * hidden + 5 * inner, "products": 6 * hidden + 2 * inner, "layers": hidden}[recomputation]
    return tokens * int(config.num_hidden_layers) * numbers * model.dtype.itemsize


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def apply(recomputation: Recomputation, model: PreTrainedModel) -> None:
    """Makes a model's layers compute their share again."""
    if recomputation == "none":
        return
    arguments: dict[str, Any] = {"use_reentrant": False}
    if recomputation == "products":
        contexts = cast("Any", torch.utils.checkpoint).create_selective_checkpoint_contexts
        arguments["context_fn"] = partial(contexts, _kept)
    cast("Any", model).activation_checkpointing_enable(arguments)


def _kept(context: object, operation: object, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Whether an operation's result is kept."""
    product = operation in _PRODUCTS and args[-1].shape[0] >= SMALLEST_INNER
    keeps = product or operation in _ATTENTION
    return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE
