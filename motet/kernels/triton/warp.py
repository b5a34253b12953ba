# type: ignore
"""Top-k, then top-p on what is left, then min-p: one threshold per row, without sorting.

Tokens that tie with the threshold are kept; the oracle keeps them out by sorted order.
"""

import triton
import triton.language as tl

from motet.kernels.triton.columns import MIN_P, PARAMS, TEMPERATURE, TOP_K, TOP_P
from motet.kernels.triton.load import add_mass, is_left_out
from motet.kernels.triton.search import threshold


@triton.jit
def _tokens(offsets, valid, given):
    """Scores, and masses or ones of those from a floor on: see `search.threshold`."""
    scores, floor, best, inverse, scale, counts = given[0], given[1], given[2], given[3], given[4], given[5]
    x = tl.load(scores + offsets, valid, -float("inf"))
    mass = tl.where(counts, 1.0, tl.exp((x - best) * inverse) * scale)
    return x, tl.where((x > -float("inf")) & (x >= floor), mass, 0.0)


@triton.jit
def warp_threshold(scores, info, params, tau, V, ONLY: tl.constexpr, BLOCK: tl.constexpr):
    """What a row's top-k, top-p and min-p leave. Grid (R).

    Parameters:
        scores: (R, V) float32, contiguous.
        info, params: tables, see `columns`. A top-k above 2²⁴ would not be exact.
        tau: (R,) float32, written: the least score that is kept, −inf where nothing is filtered.
        ONLY: see `load.is_left_out`.
    """
    r = tl.program_id(0).to(tl.int64)
    if is_left_out(info, r, ONLY):
        return
    scores += r * V
    temperature = tl.load(params + r * PARAMS + TEMPERATURE)
    top_k = tl.load(params + r * PARAMS + TOP_K)
    top_p = tl.load(params + r * PARAMS + TOP_P)
    min_p = tl.load(params + r * PARAMS + MIN_P)
    limit = -float("inf")
    if (temperature > 0) & ((top_k > 0) | (top_p < 1.0) | (min_p > 0)):
        inverse = 1.0 / temperature
        best = -float("inf")
        for start in range(0, V, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            best = tl.maximum(best, tl.max(tl.load(scores + offsets, offsets < V, -float("inf")), 0))
        if top_k > 0:
            found = threshold(_tokens, (scores, limit, best, inverse, 1.0, True), tl.minimum(top_k, V), V, BLOCK)
            limit = tl.maximum(found, limit)
        if top_p < 1.0:
            m = -float("inf")
            s = 0.0
            for start in range(0, V, BLOCK):
                offsets = start + tl.arange(0, BLOCK)
                x = tl.load(scores + offsets, offsets < V, -float("inf"))
                m, s = add_mass(m, s, tl.where(x >= limit, (x - best) * inverse, -float("inf")))
            found = threshold(_tokens, (scores, limit, best, inverse, tl.exp(-m) / s, False), top_p, V, BLOCK)
            limit = tl.maximum(found, limit)
        if min_p > 0:
            limit = tl.maximum(limit, best + temperature * tl.log(min_p))
    tl.store(tau + r, limit)
