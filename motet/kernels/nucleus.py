"""The tokens that make up a mass, best first, without sorting the vocabulary: by heights of bins, in linear time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 1024
SPAN = 64.0  # below the best what there is has no mass; padding that models set far below must not widen the bins


@torch.no_grad()  # what is kept is a set
def within_mass(order: Tensor, probs: Tensor, mass: Tensor | float) -> Tensor:
    """(n, V) bool: the tokens of the highest `order` until their `probs` reach `mass`, the first of equals first; at
    least one. Where there is no such place, all.

    Bins of equal width hold the mass of their tokens. All before the bin in which the mass is reached are kept, all
    behind it are not, and its own tokens are sorted.

    Args:
        order: (n, V) by which tokens are ranked, −inf at the lowest.
        probs: (n, V) what they count, all positive or 0.
        mass: of all rows, or (n, 1).
    """
    best = order.amax(-1, keepdim=True)
    span = (best - _least(order)).clamp_max_(SPAN)
    places = ((best - order) * (BINS / span)).nan_to_num_(0.0).clamp_(0, BINS - 1)
    heights = probs.new_zeros(probs.shape[0], BINS).scatter_add_(-1, places.long(), probs)
    reached = heights.cumsum_(-1)
    last = (reached < mass).sum(-1, keepdim=True)
    before = torch.nn.functional.pad(reached, (1, 0)).gather(-1, last)
    kept = places < last
    rows, tokens = (kept ^ (places < last + 1)).nonzero(as_tuple=True)
    if len(rows):
        kept[rows, tokens] = _best_of_bin(rows, order[rows, tokens], probs[rows, tokens], before, mass)
    return kept


def _least(order: Tensor) -> Tensor:
    """(n, 1) the lowest number of each row that is one."""
    least = order.amin(-1, keepdim=True)
    if bool((least == -math.inf).any()):
        least = order.masked_fill(order == -math.inf, math.inf).amin(-1, keepdim=True)
    return least


def _best_of_bin(rows: Tensor, order: Tensor, probs: Tensor, before: Tensor, mass: Tensor | float) -> Tensor:
    """(m,) bool: which of m tokens are kept, given row by row, before which there is the mass `before` (n, 1)."""
    counts = torch.bincount(rows, minlength=before.shape[0])
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    shape = before.shape[0], int(counts.max())
    ranked = order.new_full(shape, -math.inf)
    ranked[rows, place] = order
    heights = probs.new_zeros(shape)
    heights[rows, place] = probs
    best = ranked.argsort(dim=-1, descending=True, stable=True)
    heights = heights.gather(-1, best)
    kept = ~(before + heights.cumsum(-1) - heights >= mass)  # no number is no reason to drop a token: it must show
    kept[:, 0] = True
    return torch.zeros_like(kept).scatter_(-1, best, kept)[rows, place]
