"""Losses of a model, or of a weighted sum of models, without all of their logits at once.

For N tokens and K heads, logits and log-softmaxes of every member are K × N × V floats, of which a loss needs one
number per token. Here a block of tokens at a time is composed, and its gradient taken at once, as Liger-Kernel's fused
linear cross-entropy does for one head (Hsu et al. 2024, arXiv:2410.10989). It pays in memory, at about the same time:
`benchmarks/results/training-loss.csv`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_BYTES = 64 << 20  # of float32 scores that exist at once: 110 tokens at a vocabulary of 151,936

# (n,) or (n, M) values of rows start ≤ i < stop, from those rows of every input
Values = Callable[..., Tensor]


def block_rows(width: int, block_bytes: int = BLOCK_BYTES) -> int:
    """How many rows of `width` float32 scores are computed at once."""
    return max(1, block_bytes // (4 * width))


def weighted_sum(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """`Σ_k w_k · logits_k` (n, V) of K streams (n, V), with gradients.

    The scores of `reference.compose` up to a constant per row, which a loss does not see: normalising K streams first
    would cost K log-softmaxes that no loss needs. Not for masks, gates and other rules, which need log-probs.

    Args:
        weights: of each stream, divided by its temperature.
    """
    return cast("Tensor", sum(weight * stream for weight, stream in zip(weights, logits, strict=True)))


def in_blocks(values: Values, inputs: Sequence[Tensor], size: int, *, trains: bool = False) -> Tensor:
    """`values(slice(0, N), *inputs)`, computed for `size` rows at a time; nothing as large as a block is kept.

    Gradients of the inputs are taken with the values themselves, at no second pass over the scores: row i of the
    result must depend on row i of every input alone. One number per row can then be carried back; with `trains`
    (parameters inside `values` get gradients, too) a block is computed anew in the backward pass instead.

    Args:
        values: is given the rows as a slice, and those rows of each input; returns (n,).
        inputs: (N, …) each.
        size: rows of a block. Where it holds all of them, autograd records them as usual.
        trains: whether `values` reads parameters that are trained.

    Returns:
        (N,).
    """
    count = len(inputs[0])
    blocks = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    if len(blocks) <= 1:
        return values(slice(0, count), *inputs)
    if not trains:
        return cast("Tensor", _Blocks.apply(values, blocks, *inputs))
    if not torch.is_grad_enabled():
        return torch.cat([values(block, *(rows[block] for rows in inputs)) for block in blocks])
    again: Callable[..., Tensor] = partial(cast("Any", torch.utils.checkpoint).checkpoint, values, use_reentrant=False)
    return torch.cat([again(block, *(rows[block] for rows in inputs)) for block in blocks])


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Values, blocks: Sequence[slice], *inputs: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[2:]
        slopes = [torch.zeros_like(rows) if wants else None for rows, wants in zip(inputs, wanted, strict=True)]
        results: list[Tensor] = []
        for block in blocks:
            parts = [rows[block].detach().requires_grad_(wants) for rows, wants in zip(inputs, wanted, strict=True)]
            with torch.set_grad_enabled(any(wanted)):
                result = values(block, *parts)
            results.append(result.detach())
            _differentiate(result, parts, slopes, block)
        ctx.save_for_backward(*slopes)
        return torch.cat(results)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator forgets the names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (by_row,) = grad_outputs
        slopes = cast("tuple[Tensor | None, ...]", ctx.saved_tensors)
        grown = (s if s is None else s * by_row.view(-1, *[1] * (s.ndim - 1)).to(s.dtype) for s in slopes)
        return (None, None, *grown)


def _differentiate(result: Tensor, parts: Sequence[Tensor], slopes: Sequence[Tensor | None], block: slice) -> None:
    """Writes the derivative of a block's values by its rows of each input into `slopes`."""
    pairs = [(part, slope) for part, slope in zip(parts, slopes, strict=True) if slope is not None]
    if not pairs or not result.requires_grad:
        return
    found = torch.autograd.grad(result, [part for part, _ in pairs], torch.ones_like(result), allow_unused=True)
    for (_, slope), derivative in zip(pairs, cast("Sequence[Tensor | None]", found), strict=True):
        if derivative is not None:
            slope[block] = derivative
