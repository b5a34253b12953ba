"""A model's weights in 4 or 8 bits: which of them, and the proof that each computes what its stored weight says.

Linears are stored in 4 bits where their inputs divide into groups, else in 8; the input embedding is read a row at a
time and kept in 8. What cannot be stored so stays as it is, with a warning. Modules are replaced one after the other,
each original freed before the next: beyond the model itself, loading needs the memory of one of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from motet.server.engines.torch.packing import SIBLINGS, JointProjection, ProjectionPart, bias_of
from motet.server.engines.torch.quantized import (
    GROUP,
    INPUTS_MULTIPLE,
    MAX_ROWS,
    OUTPUTS_MULTIPLE,
    Int4Weight,
    Int8Weight,
    QuantizedEmbedding,
    QuantizedLinear,
    quantize_int4,
    quantize_int8,
)

log = logging.getLogger(__name__)

Quantization = Literal["int8", "int4"]


class QuantizationError(Exception):
    """The model cannot be quantised so; the message says why."""


def stored_as(weight: Tensor, kind: Quantization) -> Quantization | None:
    """How a linear's weight (out, in) is stored; None: in no quantised form."""
    forms = ("int4", "int8") if kind == "int4" else ("int8",)
    return next((form for form in forms if weight.shape[1] % INPUTS_MULTIPLE[form] == 0), None)


def quantize(model: PreTrainedModel, kind: Quantization) -> None:
    """Replaces the linears and the input embedding of a model, in place.

    Raises:
        QuantizationError: nothing of the model can be stored so, or a quantised module computes something else.
    """
    if kind == "int4" and model.device.type == "cuda" and model.dtype != torch.bfloat16:
        raise QuantizationError(f"on CUDA int4 wants dtype bfloat16, not {str(model.dtype).removeprefix('torch.')}")
    before = sum(parameter.numel() for parameter in model.parameters())
    table = _quantize_embedding(model)
    for parent in list(model.modules()):
        for names in SIBLINGS:
            _join(parent, names, kind)
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and stored_as(child.weight, kind) is not None:
                setattr(parent, name, _linear(child, kind, table))
    left = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    if left > before // 2:
        raise QuantizationError(f"{kind} fits only {1 - left / before:.0%} of its weights: {_names_left(model)} stay")
    if left:
        log.warning("%s of the weights stay as they are: %s", f"{left / before:.1%}", _names_left(model))


def quantized_bytes(model: PreTrainedModel, kind: Quantization | None, itemsize: int) -> int:
    """Bytes of a model's weights, also of one without memory (on the meta device).

    Args:
        itemsize: of the dtype of what is not quantised, and of scales.
    """
    weights = {id(parameter): parameter.numel() * itemsize for parameter in model.parameters()}
    extra = 0
    if kind is not None:
        embedding = model.get_input_embeddings()
        for module in model.modules():
            if type(module) is nn.Linear and (form := stored_as(module.weight, kind)) is not None:
                if form == "int4" and module.weight is embedding.weight:
                    extra += stored_bytes(module.weight, form, itemsize)  # a tied head in 4 bits beside its table
                else:
                    weights[id(module.weight)] = stored_bytes(module.weight, form, itemsize)
        if _factor(embedding) is not None:
            weights[id(embedding.weight)] = stored_bytes(cast(Tensor, embedding.weight), "int8", itemsize)
    return sum(weights.values()) + extra


def stored_bytes(weight: Tensor, form: Quantization, itemsize: int) -> int:
    outputs, inputs = weight.shape
    if form == "int8":
        return outputs * (inputs + itemsize)
    padded = outputs + -outputs % OUTPUTS_MULTIPLE
    return padded * (inputs // 2 + inputs // GROUP * 2 * itemsize)
