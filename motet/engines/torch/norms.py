"""Root-mean-square norms as one fused call.

transformers spells the norm out in seven operations. torch has one call, which on a CPU does the same seven: rows of
bfloat16 go through `norms.cpp` there. Which modules are such norms is decided by what they compute, not by their
names: one is replaced only if the fused call gives its values.
"""

from __future__ import annotations

import copy
import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motet.engines.torch.native import AVX512, native

FORM_TOLERANCE = 1e-5  # between two float32 computations of one norm, relative, of each value


class FusedRMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + eps) · weight` over the last dimension, in the weight's dtype."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and x.device.type == "cpu" and not (x.requires_grad and torch.is_grad_enabled()):
            kernel = _kernel()
            if kernel is not None and self.weight.dtype in (torch.bfloat16, torch.float32):
                return self._native(kernel, x.contiguous())
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps).to(x.dtype)

    def _native(self, kernel: Any, x: Tensor) -> Tensor:
        y, width = torch.empty_like(x), x.shape[-1]
        weight, is_wide = self.weight.data_ptr(), self.weight.dtype == torch.float32
        threads = torch.get_num_threads()
        kernel(x.data_ptr(), weight, is_wide, y.data_ptr(), x.numel() // width, width, self.eps, threads)
        return y


@cache
def _kernel() -> Any:
    functions = native(Path(__file__).with_suffix(".cpp"), AVX512)
    if functions is None:
        return None
    kernel, pointer, number = functions.motet_rms_norm, ctypes.c_void_p, ctypes.c_int
    kernel.argtypes = [pointer, pointer, number, pointer, ctypes.c_int64, number, ctypes.c_float, number]
    kernel.restype = None
    return kernel


def is_norm(module: nn.Module) -> bool:
    """Whether a module has what such a norm has: a vector `weight` and an epsilon. What it computes is not asked."""
    weight = getattr(module, "weight", None)
    vector = isinstance(weight, Tensor) and weight.dim() == 1 and weight.is_floating_point()
    return vector and isinstance(_epsilon(module), float) and not isinstance(module, nn.LayerNorm | FusedRMSNorm)


def fused_norm(module: nn.Module, x: Tensor) -> FusedRMSNorm | None:
    """The fused norm that gives what `module` gives for x (rows, width); None where there is none.

    Two forms are tried: scaling by `weight`, and by `1 + weight` (Gemma's, whose sum needs float32).
    """
    weight: Tensor = module.weight.data  # type: ignore[union-attr, assignment]
    for scale in (weight, 1 + weight.float()):
        fused = FusedRMSNorm(scale, _epsilon(module))
        if _same(fused, module, x):
            return fused
    return None


def _epsilon(module: nn.Module) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _same(fused: FusedRMSNorm, module: nn.Module, x: Tensor) -> bool:
    """Value by value, as formulas in float32 and as they are: a norm only multiplies, so that each value's own size
    bounds its error. Every row is also tried a thousand times smaller, where the epsilon weighs."""
    x = torch.cat([x, x * 1e-3])
    exact = FusedRMSNorm(fused.weight.data.float(), fused.eps)
    try:
        pairs = [
            (exact(x.float()), copy.deepcopy(module).float()(x.float()), FORM_TOLERANCE),
            (fused(x), module(x), 2 * torch.finfo(x.dtype).eps),
        ]
    except Exception:  # another kind of module that happens to have both attributes
        return False
    return all(
        bool(((a - b).abs() <= relative * b.abs() + torch.finfo(b.dtype).tiny).all()) for a, b, relative in pairs
    )
