"""Lossless verification of drafts: what would have been drawn anyway is taken, as far as the drafts have guessed it.

The draw behind every position is the one that this position gets without speculation (the same distribution and the
same uniform number), so answers do not depend on the drafts, only the number of steps does. For greedy requests this
is the rule of Leviathan et al. 2023 (arXiv:2211.17192); for random ones it accepts less often than their test of
ratios, and in return keeps seeds reproducible.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

REJECTED = -1  # vLLM's placeholder


class Verified(NamedTuple):
    """`tokens` (B, S + 1): the accepted drafts of each request and the token behind them, then `REJECTED`. `places`
    (B, S + 1): the position that each was drawn at, any where there is none. `counts` (B,): how many are taken."""

    tokens: Tensor
    places: Tensor
    counts: Tensor


def verify(drawn: Tensor, drafts: Tensor, counts: Tensor, most: int) -> Verified:
    """Which of the drawn tokens hold.

    Args:
        drawn: (D + B,) the draw behind each position: request by request, that behind its last token, then those
            behind its drafts.
        drafts: (D,) request by request.
        counts: (B,) drafts of each request, together D.
        most: S, the most drafts of any request.
    """
    counts = counts.to(torch.int64)
    columns = torch.arange(most + 1, device=drawn.device)
    ends = counts.cumsum(0)
    own = torch.arange(len(counts), device=drawn.device)
    places = ((ends - counts + own)[:, None] + columns).clamp_(max=len(drawn) - 1)
    tokens = drawn[places]
    if most == 0:
        return Verified(tokens, places, torch.ones_like(counts))
    guessed = drafts[((ends - counts)[:, None] + columns[:-1]).clamp_(max=max(len(drafts) - 1, 0))]
    right = (tokens[:, :-1] == guessed) & (columns[:-1] < counts[:, None])
    taken = right.to(torch.int64).cumprod(-1).sum(-1) + 1
    return Verified(tokens.masked_fill(columns >= taken[:, None], REJECTED), places, taken)
