"""A PEFT adapter added into its base's weights, so that it computes what it computed beside them."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def merge(adapted: Any) -> PreTrainedModel:
    """The base of a `PeftModel` with the adapter in its weights; `adapted` is used up.

    Where the base's input and output embeddings are one tensor and the adapter changes one of the two, they part:
    adding to the shared tensor would change the other one as well. The configuration then says so, and the merged
    model is saved and loaded with both.

    Raises:
        ValueError: values that are not finite.
    """
    was_tied = _untie(adapted)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")  # seen to above
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        merged = cast(PreTrainedModel, adapted.merge_and_unload(safe_merge=True))
    if was_tied:
        _set_tied(merged)
    return merged


def _untie(adapted: Any) -> bool:
    """Gives the output embedding weights of its own; false where the two never shared any, or the adapter leaves both
    alone."""
    ends: list[Any] = [adapted.get_input_embeddings(), adapted.get_output_embeddings()]
    if any(module is None for module in ends):
        return False
    bases = [_base(module) for module in ends]
    shared: Tensor = bases[1].weight
    if bases[0].weight is not shared or bases == ends:
        return False
    bases[1].weight = nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
    return True


def _base(module: Any) -> Any:
    """The layer of the base that peft has wrapped, if it has."""
    while True:
        inner = getattr(module, "base_layer", getattr(module, "original_module", None))
        if inner is None:
            return module
        module = inner


def _set_tied(merged: PreTrainedModel) -> None:
    """Ties the two again where the adapter changed them alike; else the configuration says that they are apart."""
    ends = cast("list[Any]", [merged.get_input_embeddings(), merged.get_output_embeddings()])
    is_tied = torch.equal(ends[0].weight, ends[1].weight)
    if is_tied:
        ends[1].weight = ends[0].weight
    for config in (merged.config, merged.config.get_text_config()):
        config.tie_word_embeddings = is_tied
