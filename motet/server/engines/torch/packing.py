"""CPU only: weights repacked for oneDNN, and projections of the same input computed as one.

Both leave the Hugging Face modules' own forward untouched: a packed module stands where the linear stood. The
arithmetic is the same; the packed layout saves the repacking of every call, and a joint projection saves calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class PackedLinear(nn.Module):
    """`y = x Wᵀ + b` with W in oneDNN's blocked layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, "none", [], "")


def bias_of(linear: nn.Linear) -> Tensor | None:
    """The bias; torch annotates it as always there."""
    return cast("Tensor | None", linear.bias)


class JointProjection:
    """Sibling projections of one input: the first to be called computes all, the others take their part."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        weight = torch.cat([linear.weight for linear in linears])
        biases = [bias for bias in map(bias_of, linears) if bias is not None]
        self.linear = PackedLinear(weight, torch.cat(biases) if biases else None)
        self.widths = [linear.out_features for linear in linears]
        self._input: Tensor | None = None
        self._parts: tuple[Tensor, ...] = ()

    def part(self, x: Tensor, index: int) -> Tensor:
        if x is not self._input:
            self._parts = self.linear(x).split(self.widths, -1)
            self._input = x
        part = self._parts[index]
        if index == len(self.widths) - 1:
            self._input, self._parts = None, ()  # hold no activations between layers
        return part


class ProjectionPart(nn.Module):
    """Stands where one of the sibling linears stood."""

    def __init__(self, joint: JointProjection, index: int, linear: nn.Linear) -> None:
        super().__init__()
        self.joint = joint
        self.index = index
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        return self.joint.part(x, self.index)


def pack_linears(model: nn.Module) -> None:
    """Replaces every `nn.Linear` of the model, in place. Tied embeddings keep their own plain weight."""
    if not torch.backends.mkldnn.is_available() or not _can_pack(next(model.parameters()).dtype):
        return
    for module in list(model.modules()):
        for names in SIBLINGS:
            _join(module, names)
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child.weight, bias_of(child)))


def _can_pack(dtype: torch.dtype) -> bool:
    """oneDNN's blocked layout of half-precision weights needs processor instructions that many lack."""
    if dtype == torch.float32:
        return True
    check = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype)
    return check is not None and bool(getattr(torch.ops.mkldnn, check)())


def _join(module: nn.Module, names: Sequence[str]) -> None:
    """Joins the siblings where all exist as plain linears with the same input and all or none have a bias."""
    children = [getattr(module, name, None) for name in names]
    if not all(type(child) is nn.Linear for child in children):
        return
    linears = cast("list[nn.Linear]", children)
    if len({(linear.in_features, bias_of(linear) is None) for linear in linears}) != 1:
        return
    joint = JointProjection(linears)
    for index, (name, linear) in enumerate(zip(names, linears, strict=True)):
        setattr(module, name, ProjectionPart(joint, index, linear))
