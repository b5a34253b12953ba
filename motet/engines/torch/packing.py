"""CPU only: weights repacked for oneDNN, and projections of the same input computed as one.

Both leave the Hugging Face modules' own forward untouched: a packed module stands where the linear stood. The
arithmetic is the same; the packed layout saves the repacking of every call, and a joint projection saves calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
PLAIN_ATTRIBUTES = {*vars(nn.Linear(1, 1)), "_is_hf_initialized"}  # transformers marks what it has loaded
EMPTY_ATTRIBUTES = [name for name, held in vars(nn.Linear(1, 1)).items() if isinstance(held, dict) and not held]
CHECKED_OUTPUTS = 256
# Fewer rows than these are computed as so many: on an AMD EPYC with AVX-512 for bfloat16, one row then takes 0.91 of
# the time and two 0.84; three gain nothing (`benchmarks.quantised products`). It also makes a row's bits the same,
# alone or among up to four. In float32 a row costs the less the fewer there are.
LEAST_ROWS = {torch.bfloat16: 4}


LinearMaker = Callable[[Tensor, Tensor | None], nn.Module]  # weight (out, in), bias (out,) → what stands for the linear


def padded_rows(rows: int, dtype: torch.dtype) -> int:
    """The next of eight sizes between one power of two and the next; at most an eighth more, and none up to 16 but what
    `LEAST_ROWS` adds.

    oneDNN compiles a kernel for every number of rows that it meets, and does not keep all (`motet.environment`): with
    every number of its own, a server would compile for days.
    """
    step = 1 << max(0, (rows - 1).bit_length() - 4)
    return max(-(-rows // step) * step, LEAST_ROWS.get(dtype, 1) if rows else 0)


class PackedLinear(nn.Module):
    """`y = x Wᵀ + b` with W in oneDNN's blocked layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[:-1].numel()
        if (padding := padded_rows(rows, x.dtype) - rows) == 0:
            return self.product(x)
        padded = F.pad(x.reshape(rows, self.in_features), (0, 0, 0, padding))
        return self.product(padded)[:rows].view(*x.shape[:-1], self.out_features)

    def weight_as_given(self) -> Tensor:
        """The weight (out, in), unpacked: a copy."""
        return self.packed.to_dense()

    def product(self, x: Tensor) -> Tensor:
        """The product over just so many rows."""
        return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, "none", [], "")


def bias_of(linear: nn.Linear) -> Tensor | None:
    """The bias; torch annotates it as always there."""
    return cast("Tensor | None", linear.bias)


class JointProjection:
    """Sibling projections of one input: the first to be called computes all, the others take their part."""

    def __init__(self, linears: Sequence[nn.Linear], make: LinearMaker) -> None:
        weight = torch.cat([linear.weight for linear in linears])
        biases = [bias for bias in map(bias_of, linears) if bias is not None]
        self.linear = make(weight, torch.cat(biases) if biases else None)
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


def can_pack(dtype: torch.dtype) -> bool:
    """oneDNN's blocked layout of half-precision weights needs processor instructions that many lack."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.float32:
        return True
    check = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype)
    return check is not None and bool(getattr(torch.ops.mkldnn, check)())


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """A linear that computes `x Wᵀ + b` and nothing else: no forward of its own, no hooks, no quantised weight and
    nothing that quantises what goes in."""
    state = vars(module)
    return (
        type(module) is nn.Linear
        and type(module.weight.data) is Tensor
        and state.keys() <= PLAIN_ATTRIBUTES
        and not any(state[name] for name in EMPTY_ATTRIBUTES)
        and {name for name, _ in module.named_parameters()} <= {"weight", "bias"}
    )


def does_more(module: nn.Module) -> bool:
    """A linear that is not plain: its weights or what goes in are quantised, or code hangs on it."""
    return isinstance(module, nn.Linear) and not is_plain(module)


def joint_parts(linears: Sequence[nn.Linear], make: LinearMaker = PackedLinear) -> list[ProjectionPart] | None:
    """What stands for sibling linears of the same input; None where some have a bias and some not."""
    if len({(linear.in_features, bias_of(linear) is None) for linear in linears}) != 1:
        return None
    joint = JointProjection(linears, make)
    return [ProjectionPart(joint, index, linear) for index, linear in enumerate(linears)]


def same_linear(found: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> bool:
    """Whether `found` (rows, out) is `x Wᵀ + b` for x (rows, in), element by element; judged at every n-th output.

    Each value may be rounded once to its dtype, and its sum of products to float32 in any order: the size of
    Σ |x w| bounds that.
    """
    outputs = torch.linspace(0, weight.shape[0] - 1, min(weight.shape[0], CHECKED_OUTPUTS)).long().to(weight.device)
    wide = torch.float64 if x.dtype == torch.float32 else torch.float32
    x, weight = x.to(wide), weight[outputs].to(wide)
    offset = x.new_zeros(len(outputs)) if bias is None else bias[outputs].to(wide)
    exact = F.linear(x, weight, offset)
    size = F.linear(x.abs(), weight.abs(), offset.abs())
    eps = torch.finfo(torch.float32).eps
    tolerance = torch.finfo(found.dtype).eps * exact.abs() + 32 * eps * size
    return bool(((found[:, outputs] - exact).abs() <= tolerance).all())
