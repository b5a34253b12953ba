"""Products with 4-bit weights and activations read in 8 bits, on processors with AVX-512 VNNI: `int4.cpp`.

Where it cannot be had (`motet.engines.torch.native`), torch's own kernel is used, which computes every row for itself.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from motet.engines.torch.native import AVX512, native

GROUP, OUTPUTS = 32, 16  # inputs that share a scale; outputs of a block
MIDDLE = 8  # the code whose value is the group's zero
STEPS = 127  # of an activation's largest code
SOURCE = Path(__file__).with_suffix(".cpp")
NEEDS = AVX512 | {"avx512_vnni"}
_HEADER = 4 * OUTPUTS
_GROUP_BYTES = _HEADER + GROUP * OUTPUTS // 2


class Int4Kernel:
    """`int4.cpp`, compiled."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._multiply, self._fit = functions.motet_int4_multiply, functions.motet_int4_fit
        self._multiply.argtypes = [pointer, pointer, pointer, number, number, number, pointer, pointer, number]
        self._fit.argtypes = [pointer, ctypes.c_int64, number, pointer, pointer, pointer, number]
        self._multiply.restype = self._fit.restype = None

    def multiply(self, x: Tensor, packed: Tensor) -> Tensor:
        """x Wᵀ (rows, outputs) of x (rows, inputs), bfloat16, and a packed weight."""
        x = x.contiguous()
        (rows, inputs), outputs = x.shape, packed.shape[0] * OUTPUTS
        y = x.new_empty(rows, outputs)
        codes = x.new_empty(rows, inputs, dtype=torch.int8)
        numbers = x.new_empty(3, rows, inputs // GROUP, dtype=torch.float32)
        pointers = (x.data_ptr(), packed.data_ptr(), y.data_ptr())
        room = (codes.data_ptr(), numbers.data_ptr())
        self._multiply(*pointers, rows, inputs, outputs, *room, torch.get_num_threads())
        return y

    def fit(self, weight: Tensor, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (outputs, inputs) uint8, scale and zero (outputs, groups) of a weight (outputs, inputs), bfloat16.

        Levels and codes are fitted to each other, `rounds` times."""
        weight = weight.contiguous()
        codes = torch.empty_like(weight, dtype=torch.uint8)
        scale, zero = weight.new_empty(2, len(weight), weight.shape[1] // GROUP)
        pointers = (codes.data_ptr(), scale.data_ptr(), zero.data_ptr())
        self._fit(weight.data_ptr(), scale.numel(), rounds, *pointers, torch.get_num_threads())
        return codes, scale, zero


def pack(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """A weight as the kernel reads it: (outputs / 16, groups, 320) bytes.

    Args:
        codes: (outputs, inputs) uint8, 0 … 15.
        scale, zero: (outputs, groups) bfloat16.
    """
    blocks, groups = codes.shape[0] // OUTPUTS, codes.shape[1] // GROUP
    halves = codes.view(blocks, OUTPUTS, groups, 4, 2, 4)
    both = (halves[..., 0, :] | (halves[..., 1, :] << 4)).permute(0, 2, 3, 1, 4)
    pairs = torch.stack([scale, zero], -1).view(blocks, OUTPUTS, groups, 2).transpose(1, 2).contiguous()
    header = pairs.view(torch.uint8).view(blocks, groups, _HEADER)
    return torch.cat([header, both.reshape(blocks, groups, _GROUP_BYTES - _HEADER)], -1)


def unpack(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """The values (outputs, inputs) of blocks of a packed weight."""
    blocks, groups, _ = packed.shape
    pairs = packed[..., :_HEADER].contiguous().view(torch.bfloat16).view(blocks, groups, OUTPUTS, 2).to(dtype)
    both = packed[..., _HEADER:].view(blocks, groups, 4, OUTPUTS, 4)
    codes = torch.stack([both & 15, both >> 4], 4).permute(0, 1, 3, 2, 4, 5).reshape(blocks, groups, OUTPUTS, GROUP)
    values = torch.addcmul(pairs[..., 1:], codes.to(dtype).sub_(MIDDLE), pairs[..., :1])
    return values.transpose(1, 2).reshape(blocks * OUTPUTS, groups * GROUP)


def as_read(x: Tensor) -> Tensor:
    """What the kernel takes activations (rows, inputs) for: float32, for each group of 32 a whole number of steps."""
    groups = x.float().view(len(x), -1, GROUP)
    largest = groups.abs().amax(-1, keepdim=True)
    per_step = torch.where(largest > 0, torch.full_like(largest, STEPS) / largest, 0.0)  # 127 / x multiplies with 1 / x
    return ((groups * per_step).round() * (largest / STEPS)).view(x.shape)


@cache
def int4_kernel() -> Int4Kernel | None:
    """The kernel; None where there is none (`native` says why)."""
    functions = native(SOURCE, NEEDS)
    return None if functions is None else Int4Kernel(functions)
