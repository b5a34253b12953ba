"""The cross-entropy of a composition of models, without their logits: for training one member through the composition.

For N tokens and K heads, logits and log-softmaxes of every member are K × N × V floats, of which the loss needs one
number per token. Here a block of tokens at a time is composed, and its gradient taken at once, as Liger-Kernel's fused
linear cross-entropy does for one head (Hsu et al. 2024, arXiv:2410.10989). It pays in memory, at the same time or a
little less: `benchmarks/results/training-loss.csv`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100  # a target that counts nothing, as in `torch.nn.functional.cross_entropy`
TOKENS = 64  # composed at once; at 32,000 tokens of vocabulary 8 MB of float32


@dataclass(frozen=True, slots=True)
class Voice:
    """A member that is not trained: `hidden` (N, H_k), `head` (V, H_k), and its weight in the sum."""

    hidden: Tensor
    head: Tensor
    weight: float


def composed_cross_entropy(
    hidden: Tensor, head: Tensor, weight: float, others: Sequence[Voice], target: Tensor, tokens: int = TOKENS
) -> Tensor:
    """Mean of `−log_softmax(w · h Wᵀ + Σ_k w_k · h_k W_kᵀ)` at the targets, 0 where none counts.

    A weighted sum of log-probs is one of logits up to a constant per token, which the last softmax takes away.

    Args:
        hidden: (N, H), the trained member's last hidden states.
        head: (V, H), its output matrix. Both get a gradient where they require one; `others` get none.
        weight: of the trained member.
        others: the rest of the composition, the base among them.
        target: (N,) int64; `IGNORED` counts nothing.
        tokens: how many are composed at once.
    """
    return _ComposedCrossEntropy.apply(hidden, head, weight, tuple(others), target, tokens)  # type: ignore[no-any-return]


class _ComposedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, weight: float, others: tuple[Voice, ...], target: Tensor, tokens: int
    ) -> Tensor:
        counted = (target != IGNORED).sum().clamp_min(1)
        loss = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        by_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        by_head = torch.zeros_like(head, dtype=loss.dtype) if ctx.needs_input_grad[1] else None
        for start in range(0, hidden.shape[0], tokens):
            block = slice(start, start + tokens)
            part, slope = _block(hidden, head, weight, others, target, block)
            loss += part
            slope *= weight / counted
            if by_hidden is not None:
                by_hidden[block] = (slope @ head.to(slope.dtype)).to(hidden.dtype)
            if by_head is not None:
                by_head += slope.T @ hidden[block].to(slope.dtype)  # many small sums: not in bfloat16
        ctx.save_for_backward(by_hidden, None if by_head is None else by_head.to(head.dtype))
        return loss / counted

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator forgets the names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (by_loss,) = grad_outputs
        grown = (None if slope is None else slope * by_loss.to(slope.dtype) for slope in ctx.saved_tensors)
        return (*grown, None, None, None, None)


def _block(
    hidden: Tensor, head: Tensor, weight: float, others: Sequence[Voice], target: Tensor, block: slice
) -> tuple[Tensor, Tensor]:
    """Sum of the losses of a block of tokens, and its derivative (n, V) by the composed logits."""
    z = _logits(hidden[block], head).mul_(weight)
    for voice in others:
        z += _logits(voice.hidden[block], voice.head).mul_(voice.weight)
    chosen = target[block]
    counts = chosen != IGNORED
    places = chosen.clamp_min(0)[:, None]
    total = z.logsumexp(-1, keepdim=True)
    loss = (total - z.gather(-1, places))[counts].sum()
    slope = z.sub_(total).exp_()
    slope.scatter_add_(-1, places, torch.full_like(places, -1, dtype=slope.dtype))
    return loss, slope.mul_(counts[:, None])


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    """(n, V), float32 at least."""
    logits = hidden @ head.T
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
