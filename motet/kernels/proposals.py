"""Tokens that another distribution has drawn already, taken as far as that changes nothing.

A token of probability q where it was drawn and p in the row's own distribution is taken with probability min(1, p / q),
else one is drawn from max(0, p − q): together these are draws from p (Leviathan et al. 2023, arXiv:2211.17192; Chen et
al. 2023, arXiv:2302.01318).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from motet.kernels.reference import inverse_cdf, warp
from motet.kernels.sampling import SampleRows


@dataclass(frozen=True, slots=True)
class Proposal:
    """A token for row `row`, drawn from `probs` (V,), which are warped by the row's own sampling parameters. `coin` and
    `uniform` are two independent draws in (0, 1]."""

    row: int
    token: int
    probs: Tensor
    coin: float
    uniform: float


def warped(scores: Tensor, params: SampleRows) -> Tensor:
    """The probabilities (R, V) that rows of scores (R, V) with a temperature above 0 are drawn from. Each row by its
    own parameters alone; the vocabulary is sorted only where tokens are filtered."""
    return torch.cat([_warped_row(scores[r : r + 1], params, r) for r in range(scores.shape[0])])


def _warped_row(scores: Tensor, params: SampleRows, row: int) -> Tensor:
    if not params.is_filtered(row):
        return (scores / params.temperature[row]).softmax(-1)
    temperature, top_p, min_p = (
        scores.new_tensor([column[row]]) for column in (params.temperature, params.top_p, params.min_p)
    )
    return warp(scores, temperature, torch.tensor([params.top_k[row]], device=scores.device), top_p, min_p)


def settled(scores: Tensor, params: SampleRows, proposals: Sequence[Proposal]) -> list[int]:
    """The token of every proposal's row: the proposed one, or another.

    Args:
        scores: (R, V) unnormalised log scores of all rows of the step.
        params: of the same R rows.
    """
    rows = [proposal.row for proposal in proposals]
    own = warped(scores[rows], params.select(rows))
    return [_settled(probs, proposal) for probs, proposal in zip(own, proposals, strict=True)]


def _settled(probs: Tensor, proposal: Proposal) -> int:
    token = proposal.token
    if proposal.coin * float(proposal.probs[token]) <= float(probs[token]):
        return token
    rest = (probs - proposal.probs).clamp_min_(0.0)
    # where both are alike but for rounding nothing may be left
    left = rest if float(rest.sum()) > 0.0 else probs
    return int(inverse_cdf(left[None], left.new_tensor([proposal.uniform])))
