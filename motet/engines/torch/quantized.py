"""Linears and embeddings whose weights are stored in 4 or 8 bits; activations keep the model's dtype.

torch's own kernels read the stored form directly. They are made for few rows: their cost grows with every row, so for
long prompts the weights are spread out in the model's dtype, a block at a time, and multiplied as usual, which reads
them once for all rows. In bfloat16, 4-bit weights are read by a kernel of ours where the processor has what it takes
(`motet.engines.torch.int4`): several rows share what it reads, at the price of activations rounded to 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motet.engines.torch.int4 import (
    GROUP,  # neighbouring inputs that share a scale and a zero in 4 bits
    MIDDLE,  # the code whose value is the group's zero
    OUTPUTS,
    Int4Kernel,
    as_read,
    int4_kernel,
    pack,
    unpack,
)
from motet.engines.torch.native import processor_flags

LEVELS = 16
OUTPUTS_MULTIPLE = 64  # to which 4-bit weights are padded: the widest block that torch interleaves
INPUTS_MULTIPLE = {"int4": GROUP, "int8": 16}  # other widths make the kernels read beyond their rows
MAX_ROWS = {"int4": 96, "int8": 32}  # beyond, spreading the weights out is the faster way
SPREAD_BYTES = 16 << 20  # of weights spread out at a time: what a processor's cache holds
FIT_ROUNDS = 3
ROWS_AT_ONCE = 1024  # of a weight being quantised: its working copies are float32


class StoredWeight(Protocol):
    """A weight in its stored form: (out, in)."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def multiply(self, x: Tensor) -> Tensor:
        """x (rows, in) → x Wᵀ (rows, out)."""
        ...

    def read(self, x: Tensor) -> Tensor:
        """What `multiply` takes few rows of activations for: themselves, where it does not round them."""
        ...

    def spread(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """The values, in blocks of outputs: each (some, in); no block where the stored form cannot be read back."""
        ...


class QuantizedLinear(nn.Module):
    """`y = x Wᵀ + b` with W as it is stored."""

    def __init__(self, weight: StoredWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.stored = weight
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stored.multiply(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y.add_(self.bias)


class QuantizedEmbedding(nn.Module):
    """Rows of an 8-bit table; `factor` is what some families multiply them with."""

    def __init__(self, weight: Int8Weight, factor: Tensor | None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.stored = weight
        self.factor = factor

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.stored.rows(ids)
        return rows if self.factor is None else rows * self.factor


class Int4Weight:
    """Codes 0 … 15 with a scale and a zero per output and group of inputs: `(code − 8) · scale + zero`."""

    def __init__(self, codes: Tensor, scale: Tensor, zero: Tensor) -> None:
        """Codes (out, in) uint8; scale and zero (out, in / GROUP) in the dtype of the activations."""
        self.shape = (codes.shape[0], codes.shape[1])
        codes, scale, zero = _padded(codes, scale, zero)
        self.scale_and_zero = torch.stack([scale.t(), zero.t()], -1).contiguous()  # (groups, out, 2), as kernels want
        self.packed = _pack_cuda(codes) if codes.is_cuda else _pack_cpu(codes)

    def multiply(self, x: Tensor) -> Tensor:
        outputs = self.shape[0]
        if x.is_cuda:
            return torch.ops.aten._weight_int4pack_mm(x, self.packed, GROUP, self.scale_and_zero)[:, :outputs]
        if x.shape[0] > MAX_ROWS["int4"] and interleaved_outputs() is not None:
            return multiply_spread(x, self)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), self.packed, GROUP, self.scale_and_zero)
        return y[:, :outputs]

    def read(self, x: Tensor) -> Tensor:
        return x

    def spread(self, dtype: torch.dtype) -> Iterator[Tensor]:
        block = None if self.packed.is_cuda else interleaved_outputs()
        if block is None:
            return
        outputs, inputs = self.shape
        packed = self.packed.view(-1, inputs, block // 2)
        scale, zero = self.scale_and_zero.view(inputs // GROUP, -1, block, 2).permute(3, 1, 0, 2)[:, :, :, None]
        step = max(1, SPREAD_BYTES // (inputs * block * dtype.itemsize))
        for first in range(0, len(packed), step):
            part = slice(first, first + step)
            low_and_high = packed[part].to(torch.uint8)
            codes = torch.cat([low_and_high & 15, low_and_high >> 4], -1).to(dtype).sub_(MIDDLE)
            grouped = codes.view(-1, inputs // GROUP, GROUP, block)
            torch.addcmul(zero[part].to(dtype), grouped, scale[part].to(dtype), out=grouped)
            yield codes.transpose(1, 2).reshape(-1, inputs)[: outputs - first * block]


class Int4VnniWeight:
    """The same codes, for the kernel that reads activations in 8 bits; bfloat16 on the CPU alone."""

    def __init__(self, kernel: Int4Kernel, codes: Tensor, scale: Tensor, zero: Tensor) -> None:
        """Codes (out, in) uint8; scale and zero (out, in / GROUP) bfloat16."""
        self.shape = (codes.shape[0], codes.shape[1])
        self.packed = pack(*_padded(codes, scale, zero))
        self._kernel = kernel

    def multiply(self, x: Tensor) -> Tensor:
        # with AMX the product of spread weights is the faster one for many rows, without it never
        if x.shape[0] > MAX_ROWS["int4"] and "amx_bf16" in processor_flags():
            return multiply_spread(x, self)
        return self._kernel.multiply(x, self.packed)[:, : self.shape[0]]

    def read(self, x: Tensor) -> Tensor:
        return as_read(x)

    def spread(self, dtype: torch.dtype) -> Iterator[Tensor]:
        outputs, inputs = self.shape
        step = max(1, SPREAD_BYTES // (inputs * OUTPUTS * dtype.itemsize))
        for first in range(0, len(self.packed), step):
            values = unpack(self.packed[first : first + step], dtype)
            yield values[: outputs - first * OUTPUTS]


class Int8Weight:
    """Codes −127 … 127 with a scale per output: `code · scale`."""

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        """Codes (out, in) int8; scale (out,) in the dtype of the activations."""
        self.shape = (codes.shape[0], codes.shape[1])
        self.codes = codes
        self.scale = scale

    def rows(self, ids: Tensor) -> Tensor:
        return self.codes[ids] * self.scale[ids][..., None]

    def multiply(self, x: Tensor) -> Tensor:
        if x.is_cuda or x.shape[0] > MAX_ROWS["int8"]:
            return multiply_spread(x, self)
        return torch.ops.aten._weight_int8pack_mm(x.contiguous(), self.codes, self.scale)

    def read(self, x: Tensor) -> Tensor:
        return x

    def spread(self, dtype: torch.dtype) -> Iterator[Tensor]:
        step = max(1, SPREAD_BYTES // (self.shape[1] * dtype.itemsize))
        for first in range(0, len(self.codes), step):
            part = slice(first, first + step)
            yield self.codes[part].to(dtype).mul_(self.scale[part].to(dtype)[:, None])


def multiply_spread(x: Tensor, weight: StoredWeight) -> Tensor:
    """x Wᵀ with the weight spread out in x's dtype, block after block."""
    return torch.cat([F.linear(x, block) for block in weight.spread(x.dtype)], -1)


def quantize_int8(weight: Tensor) -> Int8Weight:
    """Rounds each output's weights (out, in) to 255 levels around zero."""
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = weight.abs().amax(1).float().div_(127).to(weight.dtype)
    scale[scale == 0] = 1
    for first in range(0, len(weight), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        codes[part] = (weight[part].float() / scale[part].float()[:, None]).round_().clamp_(-127, 127)
    return Int8Weight(codes, scale)


def quantize_int4(weight: Tensor) -> Int4Weight | Int4VnniWeight:
    """Rounds each group of weights (out, in) to 16 levels, placed by least squares."""
    kernel = int4_kernel() if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" else None
    if kernel is not None:
        return Int4VnniWeight(kernel, *kernel.fit(weight.detach(), FIT_ROUNDS))
    parts = [fit_int4(weight[i : i + ROWS_AT_ONCE]) for i in range(0, len(weight), ROWS_AT_ONCE)]
    codes, scale, zero = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Int4Weight(codes, scale, zero)


def fit_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (out, in) uint8, scale and zero (out, in / GROUP) in the weight's dtype.

    From levels between the least and the greatest of a group, codes and levels are fitted to each other in turn: the
    nearest codes, then the line through (code, weight) with the least squared error, which therefore only falls.
    """
    groups = weight.float().reshape(len(weight), -1, GROUP)
    least, greatest = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = torch.where(greatest > least, (greatest - least) / (LEVELS - 1), 1.0)
    zero = least + MIDDLE * scale
    mean = groups.mean(-1, keepdim=True)
    for _ in range(FIT_ROUNDS):
        codes = _nearest(groups, scale, zero)
        middle = codes.mean(-1, keepdim=True)
        variance = (codes - middle).square().sum(-1, keepdim=True)
        slope = ((codes - middle) * (groups - mean)).sum(-1, keepdim=True) / variance.clamp_min(0.5)
        scale = torch.where((variance > 0) & (slope > 0), slope, scale)
        zero = mean - scale * middle
    scale, zero = scale.to(weight.dtype), zero.to(weight.dtype)
    codes = _nearest(groups, scale.float(), zero.float()) + MIDDLE
    return codes.to(torch.uint8).flatten(1), scale[..., 0], zero[..., 0]


def _nearest(groups: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Codes −8 … 7, as numbers."""
    return ((groups - zero) / scale).round_().clamp_(-MIDDLE, MIDDLE - 1)


def _padded(*tensors: Tensor) -> Iterator[Tensor]:
    """With rows of zeros up to a whole number of blocks."""
    return (F.pad(tensor, (0, 0, 0, -len(tensor) % OUTPUTS_MULTIPLE)) for tensor in tensors)


def _pack_cpu(codes: Tensor) -> Tensor:
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 2)


def _pack_cuda(codes: Tensor) -> Tensor:
    inner_tiles = next(tiles for tiles in (8, 4, 2) if codes.shape[1] % (tiles * 16) == 0)
    return torch.ops.aten._convert_weight_to_int4pack((codes[:, ::2] << 4) | codes[:, 1::2], inner_tiles)


@cache
def interleaved_outputs() -> int | None:
    """How many outputs the CPU kernel of this machine interleaves, if it does it in the way that `spread` reads: byte j
    of an input holds output j in its low half and output j + n/2 in its high one. None: in another way."""
    codes = (torch.arange(OUTPUTS_MULTIPLE * GROUP) * 7 // 3 % LEVELS).view(OUTPUTS_MULTIPLE, GROUP)
    packed = _pack_cpu(codes)
    for block in (64, 32, 16):
        low_and_high = packed.view(-1, GROUP, block // 2)
        found = torch.cat([low_and_high & 15, low_and_high >> 4], -1).transpose(1, 2).reshape(-1, GROUP)
        if torch.equal(found, codes.to(torch.uint8)):
            return block
    return None
