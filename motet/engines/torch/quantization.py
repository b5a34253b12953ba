"""A model's weights in 4 or 8 bits: which of them, in which form, and whether each is still what it was.

Linears are stored in 4 bits where their inputs divide into groups, else in 8; the input embedding, read a row at a
time, in 8. What cannot be stored so stays as it is, with a warning. Modules are replaced one after the other, and each
original is freed before the next: beyond the model itself, loading takes the memory of one of them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from motet.engines.torch.packing import SIBLINGS, bias_of, is_plain, joint_parts, same_linear
from motet.engines.torch.quantized import (
    GROUP,
    INPUTS_MULTIPLE,
    OUTPUTS_MULTIPLE,
    Int8Weight,
    QuantizedEmbedding,
    QuantizedLinear,
    StoredWeight,
    quantize_int4,
    quantize_int8,
)
from motet.models.info import Quantization

log = logging.getLogger(__name__)

PROBED_INPUTS = 16
PROBED_ROWS = 5  # more than the kernels take at once
# of a weight's norm: 4 bits leave 0.07 of a bell curve's, and at the very most 0.27 (a group with one value at each end
# of its range and all others half-way between two levels)
LARGEST_ERROR = 0.3


class QuantizationError(Exception):
    """The model cannot be quantised so; the message says why."""


def quantize(model: PreTrainedModel, kind: Quantization) -> None:
    """Stores a model's linears and its input embedding in `kind`, in place.

    Raises:
        QuantizationError: there is no kernel for it, or most of the weights cannot be stored so.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    check_kernel(model, kind, "quantize")
    total = sum(parameter.numel() for parameter in model.parameters())
    tables = _store_embedding(model)
    for parent in list(cast("Any", model).modules()):
        for names in SIBLINGS:
            _store_siblings(parent, names, kind)
        for name, child in list(parent.named_children()):
            if is_plain(child):
                shared = _forms(child.weight, kind)[:1] == ["int8"]  # a tied head in 8 bits is the very table
                stored = (tables.get(child.weight) if shared else None) or store(child.weight, kind)
                if stored is not None:
                    setattr(parent, name, QuantizedLinear(stored, bias_of(child)))
    for weight in model.parameters():
        weight.data = weight.data.clone()  # a view of the checkpoint's file keeps all of it in memory
    left = {name: weight.numel() for name, weight in model.named_parameters() if weight.dim() > 1}
    share = sum(left.values()) / total
    if share > 0.5:
        raise QuantizationError(f"quantize: {share:.0%} of its weights cannot be stored in {kind}: {_listed(left)}")
    if left:
        log.warning("%.1f %% of the weights stay in %s: %s", 100 * share, dtype, _listed(left))


def check_kernel(model: PreTrainedModel, kind: Quantization, field: str) -> None:
    """Raises QuantizationError: there is no kernel for what `field` of the operator's file asks."""
    if kind == "int4" and model.device.type == "cuda" and model.dtype != torch.bfloat16:
        dtype = str(model.dtype).removeprefix("torch.")
        raise QuantizationError(f"{field}: int4 on CUDA goes with dtype bfloat16 alone, not {dtype}")


def draft_bytes(model: PreTrainedModel, kind: Quantization, itemsize: int) -> int:
    """Bytes of the weights that a model guesses with, beside its own (`draft_weights`)."""
    linears = [module for module in cast("Any", model).modules() if is_plain(module)]
    forms = [(linear.weight, _forms(linear.weight, kind)) for linear in linears]
    return sum(_stored_bytes(weight, own[0], itemsize) for weight, own in forms if own)


def weight_bytes(model: PreTrainedModel, kind: Quantization | None, itemsize: int) -> int:
    """Bytes of a model's weights when `quantize` is done with it; the model may be one without memory (meta device).

    Args:
        itemsize: of the dtype of what is not quantised, and of scales.
    """
    sizes = {id(weight): weight.numel() * itemsize for weight in model.parameters()}
    if kind is None:
        return sum(sizes.values())
    embedding = model.get_input_embeddings()
    table = cast("Tensor", embedding.weight)
    tied = 0
    for module in cast("Any", model).modules():
        forms = _forms(module.weight, kind) if is_plain(module) else []
        if forms and module.weight is not table:
            sizes[id(module.weight)] = _stored_bytes(module.weight, forms[0], itemsize)
        elif forms and forms[0] == "int4":
            tied = _stored_bytes(table, "int4", itemsize)  # a tied head has a form of its own beside the table
    if _is_table(embedding):
        sizes[id(table)] = _stored_bytes(table, "int8", itemsize)
    return sum(sizes.values()) + tied


def _stored_bytes(weight: Tensor, form: Quantization, itemsize: int) -> int:
    outputs, inputs = weight.shape
    if form == "int8":
        return outputs * (inputs + itemsize)
    return (outputs + -outputs % OUTPUTS_MULTIPLE) * (inputs // 2 + inputs // GROUP * 2 * itemsize)


def _forms(weight: Tensor, kind: Quantization) -> list[Quantization]:
    """How a linear's weight (out, in) may be stored, the smallest form first."""
    forms: list[Quantization] = ["int4", "int8"] if kind == "int4" else ["int8"]
    return [form for form in forms if weight.shape[1] % INPUTS_MULTIPLE[form] == 0]


def _is_table(embedding: nn.Module) -> bool:
    """Whether an embedding gives rows of its table, at most multiplied with an `embed_scale` as Gemma's are."""
    return type(embedding) is nn.Embedding or isinstance(getattr(embedding, "embed_scale", None), Tensor)


def _store_embedding(model: PreTrainedModel) -> dict[Tensor, Int8Weight]:
    """Replaces the input embedding by its 8-bit form; returns that by the table, nothing where the table stays."""
    embedding = cast("nn.Embedding", model.get_input_embeddings())
    if not _is_table(embedding):
        return {}
    table = embedding.weight
    factor = cast("Tensor | None", getattr(embedding, "embed_scale", None))
    stored = quantize_int8(table)
    replacement = QuantizedEmbedding(stored, None if factor is None else factor.to(table.dtype))
    ids = torch.arange(min(PROBED_INPUTS, len(table)), device=table.device)
    if not _close(replacement(ids), embedding(ids)):
        return {}
    model.set_input_embeddings(replacement)
    return {table: stored}


def _store_siblings(parent: nn.Module, names: Sequence[str], kind: Quantization) -> None:
    """Joins and stores siblings that are all plain linears."""
    children = dict(parent.named_children())
    linears = [children[name] for name in names if name in children and is_plain(children[name])]
    linears = cast("list[nn.Linear]", linears)
    if len(linears) < len(names) or len({(linear.in_features, bias_of(linear) is None) for linear in linears}) > 1:
        return
    stored = store(torch.cat([linear.weight for linear in linears]), kind)
    parts = None if stored is None else joint_parts(linears, lambda _, bias: QuantizedLinear(stored, bias))
    for name, part in zip(names, parts or (), strict=False):
        setattr(parent, name, part)


def store(weight: Tensor, kind: Quantization) -> StoredWeight | None:
    """A weight (out, in) in the smallest form of `kind` that holds it; None where none does."""
    for form in _forms(weight, kind):
        stored = quantize_int4(weight) if form == "int4" else quantize_int8(weight)
        if _holds(stored, weight):
            return stored
    return None


def _holds(stored: StoredWeight, weight: Tensor) -> bool:
    """Whether a stored weight is the one that it was made of, and is multiplied as what it says it is.

    Single inputs show its values as the kernel reads them; rows of numbers are compared, element by element, with the
    product of the values that it spreads out.
    """
    inputs = torch.linspace(0, weight.shape[1] - 1, PROBED_INPUTS, device=weight.device).long()
    ones = torch.zeros(PROBED_INPUTS, weight.shape[1], dtype=weight.dtype, device=weight.device)
    ones[torch.arange(PROBED_INPUTS), inputs] = 1
    if not _close(stored.multiply(ones), weight[:, inputs].t()):
        return False
    x = torch.randn(PROBED_ROWS, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    found, read = stored.multiply(x), stored.read(x)
    first = 0
    for block in stored.spread(torch.float32):
        if not same_linear(found[:, first : first + len(block)], block, None, read):
            return False
        first += len(block)
    return True


def _close(found: Tensor, expected: Tensor) -> bool:
    """Whether quantising may have made the one of the other; not so where a value is not finite."""
    expected = expected.float()
    return bool((found.float() - expected).square().sum() <= LARGEST_ERROR**2 * expected.square().sum())


def _listed(names: Collection[str]) -> str:
    shown = list(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
